//! API Gateway's event → what an endpoint reads. Nothing is parsed before somebody may ask for it: the body stays as it
//! came until [`Request::json_body`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::errors::{Code, Error};

/// API Gateway's event (payload format 2.0), as far as it is read.
///
/// Not `aws_lambda_events`: its headers refuse what HTTP allows (a byte above 127), and then the whole invocation fails
/// with an error that quotes the value. Here any JSON is an event, as anybody who may invoke the function can send
/// any: what is missing, null or of another type is absent, and the call gets an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "Value")]
pub struct Event {
    raw_path: String,
    raw_query_string: String,
    /// By their names in small letters: API Gateway sends them so, not every other sender does.
    headers: HashMap<String, String>,
    method: String,
    body: Option<String>,
    is_base64_encoded: bool,
}

impl From<Value> for Event {
    fn from(mut event: Value) -> Self {
        let mut take = |pointer: &str| event.pointer_mut(pointer).map(Value::take);
        let headers = match take("/headers") {
            Some(Value::Object(headers)) => headers,
            _ => Map::new(),
        };
        Self {
            raw_path: take("/rawPath").and_then(text).unwrap_or_default(),
            raw_query_string: take("/rawQueryString").and_then(text).unwrap_or_default(),
            headers: headers.into_iter().filter_map(|(name, value)| Some((small(name), text(value)?))).collect(),
            method: take("/requestContext/http/method").and_then(text).unwrap_or_default(),
            body: take("/body").and_then(text),
            is_base64_encoded: take("/isBase64Encoded") == Some(Value::Bool(true)),
        }
    }
}

fn small(mut name: String) -> String {
    name.make_ascii_lowercase();
    name
}

fn text(value: Value) -> Option<String> {
    if let Value::String(text) = value { Some(text) } else { None }
}

/// One HTTP request.
#[derive(Debug)]
pub struct Request {
    event: Event,
}

impl Request {
    /// Takes API Gateway's event.
    pub fn new(event: Event) -> Self {
        Self { event }
    }

    /// The method, in capitals.
    pub fn method(&self) -> &str {
        &self.event.method
    }

    /// The path, before any decoding.
    pub fn path(&self) -> &str {
        &self.event.raw_path
    }

    /// A header's value, by its name in small letters. API Gateway joins repeated headers with commas.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.event.headers.get(name).map(String::as_str)
    }

    /// The query's parameters. `400` where one is repeated or not among `known`: a parameter that is silently ignored
    /// is one that its sender relies on.
    ///
    /// What is not UTF-8 is refused too: decoded with replacement characters, two names would become one.
    pub fn query(&self, known: &[&str]) -> Result<Query<'_>, Error> {
        let raw = &self.event.raw_query_string;
        decoded(raw, "The query")?;
        let mut pairs: Vec<(Cow<'_, str>, Given<'_>)> = Vec::new();
        for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
            let Some(known) = known.iter().find(|known| **known == name) else {
                return Err(Error::new(Code::InvalidParameter, "The query holds a parameter that is not known here")
                    .with("allowed", known.to_vec()));
            };
            if pairs.iter().any(|(seen, _)| *seen == name) {
                return Err(Error::new(Code::InvalidParameter, format!("{known}: is given more than once")));
            }
            pairs.push((name, Given::Text(value)));
        }
        Ok(Query(pairs))
    }

    /// The headers whose names begin with `prefix`: the rest of each name, in small letters, and its value.
    pub fn headers(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.event.headers.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// The media type of the content, in small letters and without its parameters; none, if it is not given.
    pub fn media_type(&self) -> Option<String> {
        let essence = self.header("content-type")?.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        (!essence.is_empty()).then_some(essence)
    }

    /// The body's bytes, if it is JSON by its content type (or has none).
    pub fn json_body(&self) -> Result<Cow<'_, [u8]>, Error> {
        if self.media_type().is_some_and(|media_type| !is_json(&media_type)) {
            return Err(Error::new(Code::UnsupportedMediaType, "Content-Type must be application/json or +json"));
        }
        self.body()
    }

    /// The body's bytes. API Gateway sends base64 for what it does not take for text.
    pub fn body(&self) -> Result<Cow<'_, [u8]>, Error> {
        let body = self.event.body.as_deref().unwrap_or_default();
        if self.event.is_base64_encoded {
            let bytes = STANDARD
                .decode(body)
                .map_err(|error| Error::new(Code::InvalidJson, "The body's base64 is not valid").source(error))?;
            return Ok(Cow::Owned(bytes));
        }
        Ok(Cow::Borrowed(body.as_bytes()))
    }
}

/// Whether a media type is JSON's, or has the structured suffix `+json` (RFC 6839).
pub fn is_json(media_type: &str) -> bool {
    media_type == "application/json"
        || media_type
            .split_once('/')
            .is_some_and(|(kind, subtype)| !kind.is_empty() && subtype.len() > 5 && subtype.ends_with("+json"))
}

/// The parameters of a query, each at most once and each known; or members of a body, which are read in the same way.
#[derive(Debug)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Given<'a>)>);

/// What was given for a parameter.
#[derive(Debug)]
enum Given<'a> {
    /// Text of a URL, whatever it stands for.
    Text(Cow<'a, str>),
    /// JSON, where numbers and words are not the same.
    Json(Value),
}

impl Given<'_> {
    fn word(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Json(json) => json.as_str(),
        }
    }

    fn number(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Json(json) => json.as_number().map(|number| number.to_string().into()),
        }
    }
}

impl Query<'_> {
    /// Members of a JSON body that are like parameters of a query; null is as good as absent.
    pub fn of_members(members: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Self {
        let given = members.into_iter().filter_map(|(name, value)| Some((name.into(), Given::Json(value?))));
        Self(given.collect())
    }

    fn given(&self, name: &str) -> Option<&Given<'_>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, given)| given)
    }

    /// A parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.given(name).and_then(Given::word)
    }

    /// Whether a parameter is there.
    pub fn has(&self, name: &str) -> bool {
        self.given(name).is_some()
    }

    /// A parameter that must be there.
    pub fn required(&self, name: &'static str) -> Result<&str, Error> {
        self.get(name).ok_or_else(|| Error::new(Code::MissingParameter, format!("{name}: is required")))
    }

    /// A whole number within bounds.
    pub fn number<T>(&self, name: &'static str, default: T, bounds: RangeInclusive<T>) -> Result<T, Error>
    where
        T: PartialOrd + Display + FromStr,
    {
        let Some(given) = self.given(name) else { return Ok(default) };
        // `usize::from_str` would take a leading plus.
        let digits = given.number().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse().ok());
        number.filter(|number| bounds.contains(number)).ok_or_else(|| {
            Error::new(
                Code::InvalidParameter,
                format!("{name}: must be a whole number from {} to {}", bounds.start(), bounds.end()),
            )
        })
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, name: &'static str, default: T, choices: &[(&str, T)]) -> Result<T, Error> {
        self.given(name).map_or(Ok(default), |given| one_of(name, given.word(), choices))
    }
}

/// Percent-encoded text of a URL, decoded. `400` where it is not UTF-8.
///
/// API Gateway decodes a path or not, depending on the kind of the API. No name that is legal here holds a percent sign,
/// so what it has decoded stays as it is.
pub fn decoded<'a>(text: &'a str, what: &str) -> Result<Cow<'a, str>, Error> {
    let not_text = |_| Error::new(Code::InvalidParameter, format!("{what} is not UTF-8"));
    percent_decode_str(text).decode_utf8().map_err(not_text)
}

/// What one of a few words stands for; `400 invalid_parameter` for any other word, or none.
pub fn one_of<T: Copy>(name: &str, word: Option<&str>, choices: &[(&str, T)]) -> Result<T, Error> {
    let chosen = choices.iter().find(|(known, _)| word == Some(*known));
    chosen.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        Error::new(Code::InvalidParameter, format!("{name}: must be one of {}", words.join(", ")))
    })
}

/// The caller's position in a trace (W3C Trace Context, level 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent<'a> {
    /// The header as it came.
    pub header: &'a str,
    /// 32 hexadecimal digits.
    pub trace_id: &'a str,
}

impl Request {
    /// A well-formed `traceparent`; a malformed one is ignored, as the specification asks.
    pub fn trace_parent(&self) -> Option<TraceParent<'_>> {
        let header = self.header("traceparent")?;
        let mut parts = header.split('-');
        let (version, trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
        let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        (known && hex(trace_id, 32) && !zero(trace_id) && hex(parent_id, 16) && !zero(parent_id) && hex(flags, 2))
            .then_some(TraceParent { header, trace_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(event: serde_json::Value) -> Request {
        Request::new(serde_json::from_value(event).expect("an event"))
    }

    #[test]
    fn any_event_can_be_read() {
        for event in [
            serde_json::json!(null),
            serde_json::json!([1]),
            serde_json::json!({}),
            serde_json::json!({ "rawPath": null, "headers": null, "requestContext": [], "body": 7, "isBase64Encoded": "x" }),
            serde_json::json!({ "headers": { "content-type": null, "authorization": 5 } }),
            serde_json::json!({ "version": "2.0", "headers": { "x": "\u{fc}\u{7}" }, "rawQueryString": "a=\"<>", "cookies": [] }),
        ] {
            let request = request(event);
            assert_eq!(request.path(), "");
            assert!(request.json_body().expect("none is JSON").is_empty());
        }
    }

    #[test]
    fn members_of_a_body_are_read_like_a_query_but_for_their_types() {
        let of = |json: Value| Query::of_members([("limit", Some(json))]);
        let number = |json: Value| of(json).number("limit", 7, 1..=1000_usize).map_err(|error| error.code());
        assert_eq!(number(serde_json::json!(5)), Ok(5));
        for json in ["5", "5.0", "1e2", "-1", "0", "1001", "99999999999999999999999", "\"5\"", "true", "[5]", "{}"] {
            let json = serde_json::from_str(json).expect("JSON");
            let fits = json == 5;
            assert_eq!(number(json).is_ok(), fits);
        }
        let choice = |json: Value| of(json).choice("limit", 0, &[("1", 1), ("auto", 2)]).map_err(|error| error.code());
        assert_eq!(choice("auto".into()), Ok(2));
        assert_eq!((choice(1.into()), choice("x".into())), (Err(Code::InvalidParameter), Err(Code::InvalidParameter)));
        assert!(of(Value::Bool(false)).has("limit") && !Query::of_members([("limit", None)]).has("limit"));
    }

    #[test]
    fn the_query_holds_what_is_known_and_once() {
        let of = |raw: &str| request(serde_json::json!({ "rawQueryString": raw }));
        let read = of("topic=a%2Bb+c&limit=");
        let query = read.query(&["topic", "limit"]).expect("known");
        assert_eq!(query.get("topic"), Some("a+b c"));
        assert_eq!(query.required("group_id").expect_err("missing").code(), Code::MissingParameter);
        for text in ["", "0", "-1", "+5", "5.0", "1e2", "１", "99999999999999999999999", "1001"] {
            let read = of(&format!("limit={text}"));
            let error =
                read.query(&["limit"]).and_then(|query| query.number("limit", 1, 1..=1000_usize)).expect_err(text);
            assert_eq!(error.code(), Code::InvalidParameter, "{text}");
        }
        for raw in ["topic=a&topic=a", "topic=a&secret=b"] {
            let error = of(raw).query(&["topic"]).expect_err(raw);
            assert_eq!(error.code(), Code::InvalidParameter);
            assert!(!error.detail().contains("secret"));
        }
    }

    #[test]
    fn a_query_that_is_not_utf_8_names_nothing() {
        let of = |raw: &str| request(serde_json::json!({ "rawQueryString": raw }));
        for raw in
            ["group_id=%FF", "group_id=%FE", "group_id=a%C3", "%FF=a", "group_id=%C3&topic=%A9", "group_id=%ED%A0%80"]
        {
            let error = of(raw).query(&["group_id", "topic"]).expect_err(raw);
            assert_eq!(error.code(), Code::InvalidParameter, "{raw}");
        }
        // A replacement character that was really sent is one, and a percent sign alone is itself.
        for (raw, group) in [("group_id=%EF%BF%BD", "\u{fffd}"), ("group_id=caf%c3%a9", "café"), ("group_id=5%", "5%")]
        {
            assert_eq!(of(raw).query(&["group_id"]).expect(raw).get("group_id"), Some(group), "{raw}");
        }
    }

    #[test]
    fn bodies_are_json_plain_or_in_base64() {
        let of = |kind: Option<&str>, base64: bool, body: &str| {
            request(serde_json::json!({
                "headers": kind.map(|kind| serde_json::json!({ "Content-Type": kind })).unwrap_or(serde_json::json!({})),
                "body": body, "isBase64Encoded": base64
            }))
            .json_body()
            .map(Cow::into_owned)
            .map_err(|error| error.code())
        };
        for kind in [
            None,
            Some(""),
            Some("application/json"),
            Some("Application/JSON; charset=utf-8"),
            Some("application/cloudevents+json"),
        ] {
            assert_eq!(of(kind, false, "{}"), Ok(b"{}".to_vec()), "{kind:?}");
        }
        assert_eq!(of(None, true, "e30="), Ok(b"{}".to_vec()));
        assert_eq!(of(None, true, "e30"), Err(Code::InvalidJson));
        for kind in ["text/plain", "application/xml", "application/x+jsonx", "+json", "application/+json", "json"] {
            assert_eq!(of(Some(kind), false, "{}"), Err(Code::UnsupportedMediaType), "{kind}");
        }
    }

    #[test]
    fn a_malformed_trace_is_no_trace() {
        let of = |header: &str| {
            request(serde_json::json!({ "headers": { "traceparent": header } }))
                .trace_parent()
                .map(|p| p.trace_id.to_owned())
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        assert_eq!(of(&format!("01-{trace}-00f067aa0ba902b7-01-more")).as_deref(), Some(trace));
        for bad in [
            String::new(),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }
}
