//! Records as JSON: what a produce call sends, and what a consume call answers.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::errors::{Code, Error};
use crate::names::TopicName;
use crate::schema::{Kind, Rendering};

/// `key_format`, `value_format`, `format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// In: a string is its own UTF-8 bytes, anything else its JSON text. Out: UTF-8 as a string, otherwise base64.
    #[default]
    Auto,
    /// JSON text, strings with their quotes.
    Json,
    /// UTF-8 text.
    String,
    /// base64 (RFC 4648, section 4, with padding).
    Binary,
    /// By a schema of the registry, in its wire format.
    Schema(Kind),
}

impl Format {
    /// Every format by the word that names it.
    pub const WORDS: &[(&str, Self)] = &[
        ("auto", Self::Auto),
        ("json", Self::Json),
        ("string", Self::String),
        ("binary", Self::Binary),
        ("avro", Self::Schema(Kind::Avro)),
        ("jsonschema", Self::Schema(Kind::JsonSchema)),
        ("protobuf", Self::Schema(Kind::Protobuf)),
    ];
}

/// A Kafka header: a name, and a value that may be null.
pub type Header = (String, Option<Vec<u8>>);

/// JSON (that is known to be valid) without its insignificant white space; every number and string stays as it was sent.
pub(crate) fn compact(json: &str) -> Vec<u8> {
    let (mut out, mut quoted, mut escaped) = (Vec::with_capacity(json.len()), false, false);
    for &byte in json.as_bytes() {
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            quoted = byte == b'"';
        }
        out.push(byte);
    }
    out
}

/// Bytes that are JSON text, without its insignificant white space.
pub(crate) fn json_text(bytes: &[u8]) -> Option<String> {
    let json: &RawValue = serde_json::from_slice(bytes).ok()?;
    String::from_utf8(compact(json.get())).ok()
}

/// Turns a member of a request into a key's or value's bytes. JSON `null` is a null. `field` names it in errors. For
/// formats with a schema see [`Schemas::encode`](crate::schema::Schemas::encode).
///
/// Errors: `422 unprocessable_record` where the JSON does not fit the format. No error repeats what was sent.
pub fn decode(json: &RawValue, format: Format, field: &str) -> Result<Option<Vec<u8>>, Error> {
    let json = json.get();
    if json == "null" {
        return Ok(None);
    }
    let text = || {
        serde_json::from_str::<String>(json).map_err(|_| {
            let problem = if json.starts_with('"') { "is not valid Unicode text" } else { "must be a JSON string" };
            Error::new(Code::UnprocessableRecord, format!("{field}: {problem}"))
        })
    };
    let bytes = match format {
        Format::Auto if json.starts_with('"') => text()?.into_bytes(),
        Format::Auto | Format::Json => compact(json),
        Format::String => text()?.into_bytes(),
        Format::Binary => STANDARD.decode(text()?).map_err(|error| {
            Error::new(Code::UnprocessableRecord, format!("{field}: is not valid base64")).source(error)
        })?,
        Format::Schema(_) => return Err(Error::internal("a format with a schema was not resolved")),
    };
    Ok(Some(bytes))
}

/// A header as a produce call sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderIn {
    name: String,
    #[serde(default, deserialize_with = "present")]
    #[allow(clippy::option_option)] // absent and null are two things
    value: Option<Option<String>>,
    value_base64: Option<String>,
}

/// Reads a request's body. No error repeats what was sent.
pub fn body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    // In one pass, as it may be megabytes; but serde would take an array of the members' values for an object.
    let at_once = body.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(body));
    match at_once {
        Some(Ok(members)) => Ok(members),
        // Step by step, which shows what is wrong.
        Some(Err(_)) | None => members(json(body)?, "The body"),
    }
}

/// A request's body as JSON of any kind. No error repeats what was sent.
pub fn json(body: &[u8]) -> Result<&RawValue, Error> {
    if body.is_empty() {
        return Err(Error::new(Code::InvalidJson, "The body is empty"));
    }
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("The body is not valid JSON (line {}, column {})", error.line(), error.column());
        Error::new(Code::InvalidJson, place)
    })
}

/// Reads a JSON object with known members. No error repeats what was sent; `what` names the object in them.
pub fn members<'a, T: Deserialize<'a>>(json: &'a RawValue, what: &str) -> Result<T, Error> {
    object(json).map_err(|error| shape_error(&error, what))
}

/// serde's messages quote the body. Also a name that is not known here is not repeated: where the payload itself was
/// sent as the body, it is the payload's.
fn shape_error(error: &serde_json::Error, what: &str) -> Error {
    let message = error.to_string();
    let text = message.rsplit_once(" at line ").map_or(&*message, |(text, _)| text);
    let detail = match text.rsplit_once(", expected ") {
        Some((unknown, expected)) if unknown.starts_with("unknown field") => {
            format!("{what} holds a member that is not known here, expected {expected}")
        }
        _ if text.starts_with("duplicate field") => text.to_owned(),
        _ => format!("{what} must be a JSON object as the documentation describes it"),
    };
    Error::new(Code::InvalidParameter, detail)
}

/// Reads a JSON object. serde by itself would take an array of the members' values for one.
pub(crate) fn object<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, serde_json::Error> {
    if !json.get().starts_with('{') {
        return Err(serde::de::Error::custom("not an object"));
    }
    serde_json::from_str(json.get())
}

/// Tells `null` from absent.
pub(crate) fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// An object whose names are not known beforehand: its members in their order, each name once, as which of two would count is
/// not for us to choose.
#[derive(Debug)]
pub(crate) struct Once<K, V>(pub(crate) Vec<(K, V)>);

impl<'de, K: Deserialize<'de> + Clone + Eq + Hash, V: Deserialize<'de>> Deserialize<'de> for Once<K, V> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<K, V>(PhantomData<(K, V)>);

        impl<'de, K: Deserialize<'de> + Clone + Eq + Hash, V: Deserialize<'de>> Visitor<'de> for Collect<K, V> {
            type Value = Once<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut members, mut names) = (Vec::new(), HashSet::new());
                while let Some((name, value)) = map.next_entry::<K, V>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom("duplicate field: a name stands twice in one object"));
                    }
                    members.push((name, value));
                }
                Ok(Once(members))
            }
        }

        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// How the names of the headers begin that dead letters have beyond their records'.
pub const RESERVED: [&str; 2] = ["__connect.errors.", "dlq."];

/// Turns `headers` into Kafka headers, in their order, repeats kept.
///
/// Errors: `400` for another shape and for names that are kept for dead letters; `422` for what Kafka cannot carry.
pub fn decode_headers(json: &RawValue) -> Result<Vec<Header>, Error> {
    let shape = |_| {
        let shape = "headers: must be an array of {\"name\", \"value\"} or {\"name\", \"value_base64\"}";
        Error::new(Code::InvalidParameter, shape)
    };
    let headers: Vec<&RawValue> = serde_json::from_str(json.get()).map_err(shape)?;
    headers
        .into_iter()
        .map(|header| {
            let header: HeaderIn = object(header).map_err(shape)?;
            if RESERVED.iter().any(|prefix| header.name.starts_with(prefix)) {
                let problem = "headers: names that begin with __connect.errors. or dlq. are kept for dead letters";
                return Err(Error::new(Code::InvalidParameter, problem));
            }
            if header.name.contains('\0') {
                return Err(Error::new(Code::UnprocessableRecord, "headers: a name holds a NUL character"));
            }
            let value = match (header.value, header.value_base64) {
                (Some(value), None) => value.map(String::into_bytes),
                (None, Some(base64)) => Some(STANDARD.decode(base64).map_err(|error| {
                    Error::new(Code::UnprocessableRecord, "headers: value_base64 is not valid base64").source(error)
                })?),
                (None, None) => return Err(Error::new(Code::MissingParameter, "headers: value is required")),
                (Some(_), Some(_)) => {
                    let problem = "headers: value and value_base64 exclude each other";
                    return Err(Error::new(Code::InvalidParameter, problem));
                }
            };
            Ok((header.name, value))
        })
        .collect()
}

/// A record as it was read from a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// Milliseconds since 1970; -1 where the broker has none.
    pub timestamp: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<Header>,
}

impl Record {
    /// What it weighs: key, value and headers.
    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + optional_len(value.as_ref())).sum();
        headers + self.payload_bytes()
    }

    /// What its key and value weigh.
    pub fn payload_bytes(&self) -> usize {
        optional_len(self.key.as_ref()) + optional_len(self.value.as_ref())
    }
}

fn optional_len(bytes: Option<&Vec<u8>>) -> usize {
    bytes.map_or(0, Vec::len)
}

/// Records in the order of their offsets.
pub type Records = VecDeque<Record>;

/// How a consume call wants keys and values.
#[derive(Debug, Clone, Copy, Default)]
pub struct Formats {
    /// For keys.
    pub key: Format,
    /// For values.
    pub value: Format,
}

impl Formats {
    /// Whether a record may be shorter in an answer than it is: without the white space of JSON, or as a schema reads it.
    pub fn may_shorten(self) -> bool {
        [self.key, self.value].iter().any(|format| matches!(format, Format::Json | Format::Schema(_)))
    }
}

/// Where an answer says that a record comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The topic, if the answer may have records of several.
    pub topic: Option<TopicName>,
    /// The partition.
    pub partition: i32,
}

impl From<i32> for Origin {
    fn from(partition: i32) -> Self {
        Self { topic: None, partition }
    }
}

/// Renders a record as one member of `messages`. `attempt` counts its deliveries under leases, this one included.
/// How, and with which schemas, says [`Schemas::rendering`](crate::schema::Schemas::rendering).
pub fn encode(record: &Record, origin: &Origin, rendering: &Rendering, attempt: Option<u32>) -> String {
    let mut out = String::with_capacity(96 + record.bytes() * 5 / 4);
    out.push('{');
    if let Some(topic) = &origin.topic {
        out.push_str("\"topic\":");
        push_json(&mut out, topic.as_str());
        out.push(',');
    }
    out.push_str("\"partition\":");
    out.push_str(&origin.partition.to_string());
    out.push_str(",\"offset\":");
    out.push_str(&record.offset.to_string());
    out.push_str(",\"timestamp\":");
    out.push_str(&record.timestamp.to_string());
    if let Some(attempt) = attempt {
        out.push_str(",\"delivery_attempt\":");
        out.push_str(&attempt.to_string());
    }
    encode_field(&mut out, "key", record.key.as_deref(), rendering.formats.key, rendering);
    encode_field(&mut out, "value", record.value.as_deref(), rendering.formats.value, rendering);
    out.push_str(",\"headers\":[");
    for (index, (name, value)) in record.headers.iter().enumerate() {
        out.push_str(if index == 0 { "{\"name\":" } else { ",{\"name\":" });
        push_json(&mut out, name);
        match value.as_deref().map(text_if_short) {
            None => out.push_str(",\"value\":null"),
            Some(Ok(text)) => {
                out.push_str(",\"value\":");
                push_json(&mut out, text);
            }
            Some(Err(bytes)) => {
                out.push_str(",\"value_base64\":");
                push_base64(&mut out, bytes);
            }
        }
        out.push('}');
    }
    out.push_str("]}");
    out
}

/// Writes `"<name>": …`, and where it is base64, `"<name>_encoding"`; where it does not decode as asked,
/// `"<name>_error"` as well: a record that cannot be shown as wished never fails the call that read it.
fn encode_field(out: &mut String, name: &str, bytes: Option<&[u8]>, format: Format, rendering: &Rendering) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":");
    let Some(bytes) = bytes else { return out.push_str("null") };
    let problem = match format {
        Format::Auto => match text_if_short(bytes) {
            Ok(text) => return push_json(out, text),
            Err(_) => None,
        },
        Format::String => match (std::str::from_utf8(bytes), text_if_short(bytes)) {
            (_, Ok(text)) => return push_json(out, text),
            (Ok(_), Err(_)) => None,
            (Err(_), _) => Some("is not UTF-8 text"),
        },
        Format::Json => match json_text(bytes) {
            Some(json) => return out.push_str(&json),
            None => Some("is not JSON"),
        },
        Format::Binary => None,
        Format::Schema(kind) => match rendering.json(kind, bytes) {
            Ok(json) => return out.push_str(&json),
            Err(problem) => Some(problem),
        },
    };
    push_base64(out, bytes);
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("_encoding\":\"base64\"");
    if let Some(problem) = problem {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("_error\":\"");
        out.push_str(problem);
        out.push('"');
    }
}

/// From this size on a text is weighed as the response event carries it, where the body's own escapes are escaped once
/// more: an answer has little room for such texts, and base64 may be what makes them fit. Below it, what counts is how
/// the caller sees it.
const LARGE: usize = 256 * 1024;

/// UTF-8 text that is, escaped, no longer than its base64.
fn text_if_short(bytes: &[u8]) -> Result<&str, &[u8]> {
    let text = std::str::from_utf8(bytes).map_err(|_| bytes)?;
    let (quote, control, other_control) = if bytes.len() < LARGE { (2, 2, 6) } else { (4, 3, 7) };
    let escaped = bytes.iter().map(|byte| match byte {
        b'"' | b'\\' => quote,
        0x08 | 0x09 | 0x0a | 0x0c | 0x0d => control,
        0x00..=0x1f => other_control,
        _ => 1,
    });
    if escaped.sum::<usize>() <= bytes.len().div_ceil(3) * 4 { Ok(text) } else { Err(bytes) }
}

fn push_json(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn push_base64(out: &mut String, bytes: &[u8]) {
    out.push('"');
    STANDARD.encode_string(bytes, out);
    out.push('"');
}

/// What a piece of the body weighs in the response event, where the body is a JSON string: quotes and backslashes are
/// escaped there. (A rendered piece holds no control characters.)
pub fn weight(json: &str) -> usize {
    json.len() + json.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    fn decoded(json: &str, format: Format) -> Result<Option<Vec<u8>>, Code> {
        decode(&raw(json), format, "value").map_err(|error| error.code())
    }

    #[test]
    fn null_empty_and_text_are_three_things() {
        for &(_, format) in Format::WORDS {
            assert_eq!(decoded("null", format), Ok(None));
        }
        assert_eq!(decoded("\"\"", Format::Auto), Ok(Some(vec![])));
        assert_eq!(decoded("\"null\"", Format::Auto), Ok(Some(b"null".to_vec())));
    }

    #[test]
    fn auto_keeps_json_as_it_was_sent() {
        for (sent, written) in [
            ("\"caf\\u00e9 \\\"x\\\" \"", "café \"x\" "),
            ("1.10", "1.10"),
            ("123456789012345678901234567890.000", "123456789012345678901234567890.000"),
            (
                "{ \"b\" : [ 1e2 , \"a b\\\\\" ],\n\"a\":{ } , \"b\":\"\\\"  \" }",
                "{\"b\":[1e2,\"a b\\\\\"],\"a\":{},\"b\":\"\\\"  \"}",
            ),
            ("true", "true"),
        ] {
            assert_eq!(decoded(sent, Format::Auto), Ok(Some(written.as_bytes().to_vec())), "{sent}");
        }
        assert_eq!(decoded("\"a\"", Format::Json), Ok(Some(b"\"a\"".to_vec())));
    }

    #[test]
    fn what_does_not_fit_its_format_is_refused_without_repeating_it() {
        for (sent, format) in [
            ("1", Format::String),
            ("{}", Format::Binary),
            ("\"s3cret!\"", Format::Binary),
            ("\"YQ\"", Format::Binary),
            ("\"\\ud800\"", Format::Auto),
        ] {
            let error = decode(&raw(sent), format, "value").expect_err(sent);
            assert_eq!(error.code(), Code::UnprocessableRecord, "{sent}");
            assert!(!format!("{error} {:?}", error.chain()).contains("s3cret"));
        }
        assert_eq!(decoded("\"AP8=\"", Format::Binary), Ok(Some(vec![0, 255])));
    }

    #[test]
    fn headers_keep_order_repeats_and_nulls() {
        let headers = decode_headers(&raw(
            r#"[{"name":"b","value":"1"},{"name":"a","value_base64":"AP8="},{"name":"b","value":null},{"name":"","value":""}]"#,
        ));
        let expected = vec![
            ("b".to_owned(), Some(b"1".to_vec())),
            ("a".to_owned(), Some(vec![0, 255])),
            ("b".to_owned(), None),
            (String::new(), Some(vec![])),
        ];
        assert_eq!(headers.expect("headers"), expected);
        for (sent, code) in [
            (r"{}", Code::InvalidParameter),
            (r#"[{"name":"a"}]"#, Code::MissingParameter),
            (r#"[{"value":"a"}]"#, Code::InvalidParameter),
            (r#"[["a","b",null]]"#, Code::InvalidParameter),
            (r#"[{"name":"a","value":1}]"#, Code::InvalidParameter),
            (r#"[{"name":"a","value":"x","value_base64":""}]"#, Code::InvalidParameter),
            (r#"[{"name":"a","value_base64":"?"}]"#, Code::UnprocessableRecord),
            (r#"[{"name":"a\u0000","value":""}]"#, Code::UnprocessableRecord),
            (r#"[{"name":"dlq.group","value":""}]"#, Code::InvalidParameter),
            (r#"[{"name":"__connect.errors.topic","value":""}]"#, Code::InvalidParameter),
        ] {
            assert_eq!(decode_headers(&raw(sent)).expect_err(sent).code(), code, "{sent}");
        }
    }

    fn shown(value: &[u8], format: Format) -> Value {
        let record = Record { offset: 7, timestamp: 1, key: None, value: Some(value.to_vec()), headers: vec![] };
        serde_json::from_str(&encode(
            &record,
            &3.into(),
            &Rendering::plain(Formats { key: format, value: format }),
            None,
        ))
        .expect("JSON")
    }

    #[test]
    fn every_value_can_be_shown_in_every_format() {
        assert_eq!(shown(b"caf\xc3\xa9", Format::Auto)["value"], "café");
        let binary = shown(&[0xff, 0], Format::Auto);
        assert_eq!((&binary["value"], &binary["value_encoding"]), (&json!("/wA="), &json!("base64")));
        assert_eq!(binary.get("value_error"), None);
        assert_eq!(shown(b"{\"a\": 1.10}", Format::Json)["value"], json!({ "a": 1.10 }));
        assert_eq!(shown(b"abc", Format::Binary)["value"], "YWJj");
        for (value, format) in
            [(&b"{"[..], Format::Json), (b"\xff", Format::String), (b"\xff", Format::Json), (b"", Format::Json)]
        {
            let shown = shown(value, format);
            assert_eq!(shown["value_encoding"], "base64", "{format:?}");
            assert!(shown["value_error"].is_string(), "{format:?}");
        }
        assert_eq!(shown(b"x", Format::Auto)["key"], Value::Null);
    }

    #[test]
    fn ordinary_json_and_prose_stay_readable() {
        for text in
            ["{\"id\":17,\"name\":\"Ann\",\"tags\":[\"a\",\"b\"]}".repeat(100), "a line\nand another\n".repeat(100)]
        {
            assert_eq!(shown(text.as_bytes(), Format::Auto)["value"], text);
        }
        // Where there is little room for it, it is weighed as it is carried.
        let large = "{\"id\":17,\"tags\":[\"a\",\"b\"]}".repeat(20_000);
        assert_eq!(shown(large.as_bytes(), Format::Auto)["value_encoding"], "base64");
    }

    #[test]
    fn text_that_grows_by_escaping_goes_as_base64_and_stays_within_its_weight() {
        for value in ["\u{1}".repeat(1000), "\"".repeat(1000), "\\".repeat(1000), "\n".repeat(1000)] {
            let record =
                Record { offset: 0, timestamp: 0, key: None, value: Some(value.into_bytes()), headers: vec![] };
            let json = encode(&record, &0.into(), &Rendering::plain(Formats::default()), None);
            assert!(json.contains("\"value_encoding\":\"base64\""));
            // The weight is what the runtime really sends: the body as a JSON string.
            assert_eq!(weight(&json) + 2, Value::from(json.clone()).to_string().len());
            assert!(weight(&json) < 1500);
        }
    }
}
