//! `CloudEvents` (specification 1.0) over HTTP, on their way to be records: the HTTP protocol binding in, the Kafka protocol
//! binding out. What consumers get is the record as it is: nothing is undone on the way out.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::errors::{Code, Error};
use crate::http::request::{Request, is_json};
use crate::incoming::Incoming;
use crate::names::TopicName;
use crate::record::{self, Header};
use crate::schema::{Draft, Field};

/// The event format in structured mode, as a record's header names it.
const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";

/// Without these no event is one.
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];

/// How events come in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One, its attributes in `ce-*` headers, the body its data.
    Binary,
    /// One, as JSON.
    Structured,
    /// Some, as an array of JSON.
    Batched,
}

impl Mode {
    /// How events come in this request; none, if it is another kind of request. `415` for event formats other than JSON.
    pub fn of(request: &Request) -> Result<Option<Self>, Error> {
        match request.media_type().as_deref() {
            Some("application/cloudevents+json") => Ok(Some(Self::Structured)),
            Some("application/cloudevents-batch+json") => Ok(Some(Self::Batched)),
            Some(other) if other.starts_with("application/cloudevents") => {
                let detail = "Of the event formats there is JSON: application/cloudevents+json, and -batch+json";
                Err(Error::new(Code::UnsupportedMediaType, detail))
            }
            _ => Ok(request.headers("ce-").next().is_some().then_some(Self::Binary)),
        }
    }
}

/// Where events go: the only parameter of their requests.
pub fn topic(request: &Request) -> Result<TopicName, Error> {
    TopicName::parse(request.query(&["topic"])?.required("topic")?)
}

/// The record of an event in binary mode.
pub fn binary<'a>(request: &Request, topic: TopicName, data: &'a [u8]) -> Result<Incoming<'a>, Error> {
    let mut attributes = Vec::new();
    for (name, value) in request.headers("ce-") {
        let legal = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !legal || matches!(name, "data" | "datacontenttype") {
            let detail =
                "ce-: the names of attributes are letters and digits; data is the body, and its type Content-Type";
            return Err(Error::new(Code::InvalidParameter, detail));
        }
        attributes.push((name, attribute(value)?));
    }
    // API Gateway gives headers no order.
    attributes.sort_unstable();
    let value_of = |wanted: &str| attributes.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
    require(value_of, "ce-")?;
    let key = value_of("partitionkey").map(str::to_owned);
    let mut headers: Vec<Header> =
        attributes.into_iter().map(|(name, value)| (format!("ce_{name}"), Some(value.into_bytes()))).collect();
    let content_type = request.header("content-type").filter(|content_type| !content_type.is_empty());
    if let Some(content_type) = content_type {
        headers.push(("content-type".to_owned(), Some(content_type.as_bytes().to_vec())));
    }
    let value = match request.media_type() {
        // Without data there is no value: a tombstone.
        _ if data.is_empty() => Draft::none(Field::Value),
        Some(media_type) if is_json(&media_type) => {
            let not_json = |_| Error::new(Code::InvalidJson, "The event's data is not JSON, as its Content-Type says");
            let json: &RawValue = serde_json::from_slice(data).map_err(not_json)?;
            Draft::json(Field::Value, json, data)
        }
        _ => Draft::bytes(Field::Value, data)?,
    };
    Incoming::new(topic, key, value, headers)
}

/// The record of an event in structured mode: its value is the event.
pub fn structured(json: &RawValue, topic: TopicName) -> Result<Incoming<'_>, Error> {
    /// What is looked at of an event; the rest goes with it.
    #[derive(Deserialize)]
    struct Members<'a> {
        #[serde(borrow)]
        id: Option<Cow<'a, str>>,
        #[serde(borrow)]
        source: Option<Cow<'a, str>>,
        #[serde(borrow)]
        specversion: Option<Cow<'a, str>>,
        #[serde(borrow, rename = "type")]
        kind: Option<Cow<'a, str>>,
        partitionkey: Option<String>,
        #[serde(default, deserialize_with = "record::present")]
        data: Option<IgnoredAny>,
        #[serde(default, deserialize_with = "record::present")]
        data_base64: Option<String>,
    }
    let members: Members<'_> = record::object(json).map_err(|_| {
        let detail =
            "An event must be a JSON object, whose id, source, specversion, type, partitionkey and data_base64 are strings";
        Error::new(Code::InvalidParameter, detail)
    })?;
    if members.data_base64.as_ref().is_some_and(|text| STANDARD.decode(text).is_err()) {
        return Err(Error::new(Code::InvalidParameter, "data_base64: is not valid base64"));
    }
    if members.data.is_some() && members.data_base64.is_some() {
        return Err(Error::new(Code::InvalidParameter, "data and data_base64 exclude each other"));
    }
    let value_of = |wanted: &str| {
        let value = match wanted {
            "id" => &members.id,
            "source" => &members.source,
            "specversion" => &members.specversion,
            _ => &members.kind,
        };
        value.as_deref()
    };
    require(value_of, "")?;
    let headers = vec![("content-type".to_owned(), Some(STRUCTURED.as_bytes().to_vec()))];
    Incoming::new(topic, members.partitionkey, Draft::json(Field::Value, json, json.get().as_bytes()), headers)
}

/// `400` unless the attributes are there that make an event.
fn require<'v>(value_of: impl Fn(&str) -> Option<&'v str>, prefix: &str) -> Result<(), Error> {
    for name in REQUIRED {
        match value_of(name) {
            None => return Err(Error::new(Code::MissingParameter, format!("{prefix}{name}: is required of an event"))),
            Some("") => return Err(Error::new(Code::InvalidParameter, format!("{prefix}{name}: must not be empty"))),
            Some(version) if name == "specversion" && version != "1.0" => {
                return Err(Error::new(Code::InvalidParameter, format!("{prefix}specversion: must be 1.0")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// An attribute's value as a header has it (HTTP protocol binding, 3.1.3.2): perhaps in quotes, and percent-encoded.
fn attribute(header: &str) -> Result<String, Error> {
    let mut unquoted = String::with_capacity(header.len());
    let (mut quoted, mut escaped) = (false, false);
    for character in header.trim().chars() {
        match character {
            _ if escaped => {
                escaped = false;
                unquoted.push(character);
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => unquoted.push(character),
        }
    }
    let value = percent_decode_str(&unquoted).decode_utf8().ok().filter(|value| !value.contains(char::is_control));
    value.map(Cow::into_owned).ok_or_else(|| {
        Error::new(Code::InvalidParameter, "ce-: the value of an attribute must be text, percent-encoded UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_attributes_are_unquoted_and_decoded_once() {
        for (header, value) in [
            ("plain", "plain"),
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("%e2%82%ac", "€"),
            ("100%2525", "100%25"),
            ("\"quoted text\"", "quoted text"),
            ("\"a \\\"b\\\" \\\\ c\"", "a \"b\" \\ c"),
            ("Zoë", "Zoë"),
            ("back\\slash", "back\\slash"),
            (" spaces around ", "spaces around"),
        ] {
            assert_eq!(attribute(header).expect(header), value, "{header}");
        }
        for header in ["%C0%A0", "%FF", "%E2%82", "%00", "%0A", "a\u{7}b", "%C2%85"] {
            assert_eq!(attribute(header).expect_err(header).code(), Code::InvalidParameter, "{header}");
        }
    }
}
