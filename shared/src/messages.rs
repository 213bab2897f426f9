//! The `messages` of an answer: what a caller asks of them, and how many records fit.

use std::time::Duration;

use crate::errors::Error;
use crate::http::Response;
use crate::http::request::Query;
use crate::record::{self, Format, Formats, Origin, Record};
use crate::schema::Rendering;

/// The ceiling for `max_bytes`: Lambda's limit for an answer is 6 MB, and what is not counted here must fit as well.
const MAX_BYTES: usize = 6_000_000;

/// The ceiling for `limit`.
pub const MAX_RECORDS: usize = 1000;

/// What a caller asks of an answer with records.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The most records.
    pub limit: usize,
    /// How long to wait for the first.
    pub timeout: Duration,
    /// The most that the whole answer may weigh, as Lambda counts it.
    pub max_bytes: usize,
    /// How keys and values are shown.
    pub formats: Formats,
}

impl Wanted {
    /// Reads `limit`, `timeout_ms`, `max_bytes`, `format`, `key_format` and `value_format`.
    pub fn read(query: &Query<'_>) -> Result<Self, Error> {
        let format = query.choice("format", Format::Auto, Format::WORDS)?;
        Ok(Self {
            limit: query.number("limit", 100, 1..=MAX_RECORDS)?,
            timeout: Duration::from_millis(query.number("timeout_ms", 1000, 0..=25_000)?),
            max_bytes: query.number("max_bytes", MAX_BYTES, 1..=MAX_BYTES)?,
            formats: Formats {
                key: query.choice("key_format", format, Format::WORDS)?,
                value: query.choice("value_format", format, Format::WORDS)?,
            },
        })
    }
}

/// What the records of an answer may weigh, where the rest of its body weighs `rest`.
pub fn budget(max_bytes: usize, rest: usize) -> usize {
    max_bytes.saturating_sub(Response::ENVELOPE_BYTES + rest)
}

/// How many of `records` one answer takes, rendered: at most `limit`, at most `budget` of weight.
pub fn choose<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    origin: impl Into<Origin>,
    rendering: &Rendering,
    attempt: impl Fn(i64) -> Option<u32>,
    limit: usize,
    budget: usize,
) -> Vec<String> {
    let origin = origin.into();
    let mut left = budget;
    let mut chosen = Vec::new();
    for record in records.into_iter().take(limit) {
        // Not even its bytes would fit, and it will not become shorter: spare the rendering.
        if record.bytes() > left && !rendering.formats.may_shorten() {
            break;
        }
        let message = record::encode(record, &origin, rendering, attempt(record.offset));
        let Some(rest) = left.checked_sub(record::weight(&message) + 1) else { break };
        left = rest;
        chosen.push(message);
    }
    chosen
}

/// A body: what stands before its messages, the messages, and what stands behind.
pub fn body<'a>(head: &str, messages: impl Iterator<Item = &'a String> + Clone, tail: &str) -> String {
    let weight: usize = messages.clone().map(|message| message.len() + 1).sum();
    let mut body = String::with_capacity(head.len() + weight + tail.len());
    body.push_str(head);
    for (index, message) in messages.enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(message);
    }
    body.push_str(tail);
    body
}
