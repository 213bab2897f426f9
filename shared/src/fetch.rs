//! `GET /kafka/consumer/fetch`: records from an offset or a time on, for no group.

mod session;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use self::session::{Found, Session};
use crate::auth::{self, May};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::request::Query;
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::reader::Reader;
use crate::messages::{self, Wanted};
use crate::metrics::{self, Direction};
use crate::names::TopicName;
use crate::schema::Schemas;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Fetch {
    reader: Arc<Reader>,
    schemas: Schemas,
}

impl Endpoint for Fetch {
    const FUNCTION: &'static str = "fetch";
    const ROUTES: &'static [Route] = &[("GET", "/kafka/consumer/fetch")];
    const SCHEMAS: bool = true;
    type Permission = May<auth::Fetch>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self { reader: Arc::new(Reader::start(&config.kafka).await?), schemas: Schemas::to_read(&config.schemas) })
    }

    async fn call(&self, may: &May<auth::Fetch>, call: &Call) -> Result<Reply, Error> {
        let params = Params::read(&call.request.query(Params::KNOWN)?)?;
        self.schemas.require(params.wanted.formats)?;
        let topic = params.topic.clone();
        call.on_topic(&topic);
        let from = may.on(topic.clone())?;
        let found = Session::new(from, &self.reader, &self.schemas, &params, call.deadline).fetch().await;
        if self.reader.knows(&topic) {
            call.topic_exists();
        }
        let found = found.map_err(|error| error.with("topic", topic.as_str()))?;
        metrics::records_passed(Direction::Consume, &topic, found.messages.len() as u64, found.bytes as u64);
        Ok(Reply::json(200, params.answer(&found)))
    }

    async fn stop(&self) {}
}

/// The query.
#[derive(Debug)]
struct Params {
    topic: TopicName,
    /// All of them, if absent.
    partition: Option<i32>,
    begin: Begin,
    wanted: Wanted,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Begin {
    /// At the beginning of each partition.
    Earliest,
    /// At the end of each partition.
    Latest,
    /// So many offsets before the end of each partition, or at its beginning.
    Before(i64),
    /// At each partition's first record of this time (milliseconds since 1970) or later; at its end, if there is none.
    Time(i64),
    /// At this offset in each partition.
    At(i64),
    /// At these offsets, in these partitions alone: what `next` said.
    Each(BTreeMap<i32, i64>),
}

impl Params {
    const KNOWN: &[&str] = &[
        "topic",
        "partition",
        "offset",
        "timestamp",
        "limit",
        "timeout_ms",
        "max_bytes",
        "format",
        "key_format",
        "value_format",
    ];

    fn read(query: &Query<'_>) -> Result<Self, Error> {
        let invalid = |problem: &'static str| Error::new(Code::InvalidParameter, problem);
        let begin = match (query.get("offset"), query.get("timestamp")) {
            (None, None) => return Err(Error::new(Code::MissingParameter, "offset or timestamp: is required")),
            (Some(_), Some(_)) => return Err(invalid("offset and timestamp: only one of them can be given")),
            (Some(offset), None) => Begin::parse(offset).ok_or_else(|| {
                invalid("offset: must be a number, earliest, latest, -n (from the end), or partition:offset,…")
            })?,
            (None, Some(_)) => Begin::Time(query.number("timestamp", 0, 0..=i64::MAX)?),
        };
        let partition = match query.get("partition") {
            Some(_) if matches!(begin, Begin::Each(_)) => {
                return Err(invalid("partition: offset names the partitions already"));
            }
            Some(_) => Some(query.number("partition", 0, 0..=i32::MAX)?),
            None => None,
        };
        Ok(Self { topic: TopicName::parse(query.required("topic")?)?, partition, begin, wanted: Wanted::read(query)? })
    }

    /// The answer's body before its records.
    fn head(&self) -> String {
        format!("{{\"topic\":{},\"messages\":[", Value::from(self.topic.as_str()))
    }

    fn answer(&self, found: &Found) -> String {
        let mut rest = json!({ "next": next(&found.next) });
        if !found.too_large.is_empty() {
            rest["too_large"] = found.too_large.iter().map(|large| large.to_json()).collect();
        }
        messages::body(&self.head(), found.messages.iter(), &format!("],{}", &rest.to_string()[1..]))
    }
}

/// Where to go on from, as a caller sees it.
fn next(offsets: &BTreeMap<i32, i64>) -> Value {
    offsets.iter().map(|(partition, offset)| (partition.to_string(), Value::from(*offset))).collect()
}

impl Begin {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        match text {
            "earliest" => return Some(Self::Earliest),
            "latest" => return Some(Self::Latest),
            _ => {}
        }
        if let Some(text) = text.strip_prefix('-') {
            return number(text).filter(|before| *before > 0).map(Self::Before);
        }
        if !text.contains(':') {
            return number(text).map(Self::At);
        }
        let mut offsets = BTreeMap::new();
        for place in text.split(',') {
            let (partition, offset) = place.split_once(':')?;
            let partition = i32::try_from(number(partition)?).ok()?;
            if offsets.insert(partition, number(offset)?).is_some() {
                return None;
            }
        }
        Some(Self::Each(offsets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_begin_is_said_in_one_way() {
        for (text, begin) in [
            ("earliest", Begin::Earliest),
            ("latest", Begin::Latest),
            ("0", Begin::At(0)),
            ("9223372036854775807", Begin::At(i64::MAX)),
            ("-7", Begin::Before(7)),
            ("0:5", Begin::Each(BTreeMap::from([(0, 5)]))),
            ("3:0,1:17", Begin::Each(BTreeMap::from([(1, 17), (3, 0)]))),
        ] {
            assert_eq!(Begin::parse(text), Some(begin), "{text}");
        }
        for text in [
            "",
            "-",
            "-0",
            "+1",
            "1.5",
            "first",
            "--1",
            "9223372036854775808",
            "1:2:3",
            ":5",
            "5:",
            "0:1,",
            "0:1,0:2",
            "0:-1",
            "2147483648:0",
            "0:1, 1:2",
            "0:latest",
        ] {
            assert_eq!(Begin::parse(text), None, "{text}");
        }
    }
}
