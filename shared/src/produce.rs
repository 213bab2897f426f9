//! `POST /kafka/producer/produce`: one record, acknowledged by all in-sync replicas before the answer.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::auth::{May, Write};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::request::{Request, one_of};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::producer::{NewRecord, Producer};
use crate::metrics::{self, Direction};
use crate::names::TopicName;
use crate::record::{self, Format};

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Produce {
    producer: Producer,
}

impl Endpoint for Produce {
    const FUNCTION: &'static str = "produce";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/producer/produce")];
    type Permission = May<Write>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self { producer: Producer::start(&config.kafka, config.request_timeout).await? })
    }

    async fn call(&self, may: &May<Write>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let body = call.request.json_body()?;
        let (topic, mut record) = parse(&body)?;
        call.on_topic(&topic);
        let to = may.on(topic)?;
        add_trace(&mut record, &call.request);
        let bytes = record.bytes();
        let result = self.producer.produce(&to, &record, call.deadline).await;
        if self.producer.knows(to.topic()) {
            call.topic_exists();
            match &result {
                Ok(_) => metrics::records_passed(Direction::Produce, to.topic(), 1, bytes),
                Err(_) => metrics::records_failed(Direction::Produce, to.topic(), 1),
            }
        }
        let receipt = result?;
        let body = json!({
            "topic": to.topic().as_str(),
            "partition": receipt.partition,
            "offset": receipt.offset,
            "timestamp": receipt.timestamp,
        });
        Ok(Reply::json(200, body.to_string()))
    }

    async fn stop(&self) {
        self.producer.flush(std::time::Duration::from_millis(250)).await;
    }
}

impl NewRecord {
    fn bytes(&self) -> u64 {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len) as u64;
        len(&self.key) + len(&self.value)
    }
}

/// The body's members, each still as it was sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow, default, deserialize_with = "record::present")]
    topic: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "record::present")]
    key: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "record::present")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partition: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    key_format: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value_format: Option<&'a RawValue>,
}

/// Reads a produce request. No error repeats what was sent, but for the names of members.
fn parse(body: &[u8]) -> Result<(TopicName, NewRecord), Error> {
    let body: Body<'_> = record::body(body)?;
    let topic = body.topic.ok_or_else(|| Error::new(Code::MissingParameter, "topic: is required"))?;
    let topic: String = member(topic, "topic: must be a string")?;
    let topic = TopicName::parse(&topic)?;
    let value = body.value.ok_or_else(|| {
        Error::new(Code::MissingParameter, "value: is required; null writes a tombstone, \"\" an empty value")
    })?;
    let (key_format, value_format) =
        (format(body.key_format, "key_format")?, format(body.value_format, "value_format")?);
    let record = NewRecord {
        key: body.key.map(|key| record::decode(key, key_format, "key")).transpose()?.flatten(),
        value: record::decode(value, value_format, "value")?,
        headers: body.headers.map(record::decode_headers).transpose()?.unwrap_or_default(),
        partition: body
            .partition
            .map(|partition| member::<i32>(partition, "partition: must be a whole number from 0"))
            .transpose()?
            .map(|partition| at_least(0, partition, "partition: must be a whole number from 0"))
            .transpose()?,
        timestamp: body
            .timestamp
            .map(|timestamp| member::<i64>(timestamp, TIMESTAMP))
            .transpose()?
            .map(|timestamp| at_least(1, timestamp, TIMESTAMP))
            .transpose()?,
    };
    Ok((topic, record))
}

fn member<T: serde::de::DeserializeOwned>(json: &RawValue, problem: &'static str) -> Result<T, Error> {
    serde_json::from_str(json.get()).map_err(|_| Error::new(Code::InvalidParameter, problem))
}

/// Why 0 is refused: librdkafka takes it for "now", and the record would be written with another time than was asked.
const TIMESTAMP: &str = "timestamp: must be milliseconds since 1970, from 1";

fn at_least<T: PartialOrd + Copy>(least: T, number: T, problem: &'static str) -> Result<T, Error> {
    if number >= least { Ok(number) } else { Err(Error::new(Code::InvalidParameter, problem)) }
}

fn format(json: Option<&RawValue>, field: &'static str) -> Result<Format, Error> {
    let Some(json) = json else { return Ok(Format::Auto) };
    let word: Option<String> = serde_json::from_str(json.get()).ok();
    one_of(field, word.as_deref(), Format::WORDS)
}

/// Hands the caller's trace on in the record's headers (W3C Trace Context), unless the caller gave headers of that name.
fn add_trace(record: &mut NewRecord, request: &Request) {
    let Some(parent) = request.trace_parent() else { return };
    let given = |name: &str| record.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    if given("traceparent") || given("tracestate") {
        return;
    }
    record.headers.push(("traceparent".into(), Some(parent.header.into())));
    if let Some(state) = request.header("tracestate").filter(|state| !state.is_empty()) {
        record.headers.push(("tracestate".into(), Some(state.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> Code {
        parse(body.as_bytes()).expect_err(body).code()
    }

    #[test]
    fn every_bad_body_has_its_code_and_repeats_nothing() {
        for (body, expected) in [
            ("", Code::InvalidJson),
            ("{", Code::InvalidJson),
            ("{\"topic\":\"t\",\"value\":1} x", Code::InvalidJson),
            ("[]", Code::InvalidParameter),
            ("[\"t\",null,\"v\"]", Code::InvalidParameter),
            ("\"s3cret\"", Code::InvalidParameter),
            ("null", Code::InvalidParameter),
            ("{\"value\":1}", Code::MissingParameter),
            ("{\"topic\":\"t\"}", Code::MissingParameter),
            ("{\"topic\":null,\"value\":1}", Code::InvalidParameter),
            ("{\"topic\":1,\"value\":1}", Code::InvalidParameter),
            ("{\"topic\":\"a b\",\"value\":1}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"s3cret\":1}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"x, expected s3cret at line 1\":1}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"value\":2}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"partition\":-1}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"partition\":1.5}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"partition\":2147483648}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"partition\":\"0\"}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"timestamp\":-5}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"timestamp\":0}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"timestamp\":\"now\"}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"value_format\":\"avro\"}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"key_format\":7}", Code::InvalidParameter),
            ("{\"topic\":\"t\",\"value\":1,\"value_format\":\"string\"}", Code::UnprocessableRecord),
        ] {
            let error = parse(body.as_bytes()).expect_err(body);
            assert_eq!(error.code(), expected, "{body}");
            assert!(!format!("{:?}", error.chain()).contains("s3cret"), "{body}");
        }
        assert_eq!(parse(b"{\"topic\":\"t\",\"value\":\"\xff\"}").expect_err("UTF-8").code(), Code::InvalidJson);
        assert_eq!(code(&"[".repeat(100_000)), Code::InvalidJson);
        assert_eq!(code(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), Code::InvalidParameter);
    }

    #[test]
    fn null_members_are_absent_but_for_value() {
        let (topic, record) = parse(
            br#"{"topic":"t","value":null,"key":null,"headers":null,"partition":null,"timestamp":null,"key_format":null}"#,
        )
        .expect("valid");
        assert_eq!(topic.as_str(), "t");
        assert!(record.value.is_none() && record.key.is_none() && record.headers.is_empty());
        assert!(record.partition.is_none() && record.timestamp.is_none());
    }
}
