//! A record as a produce request describes it (an event, see [`cloud_event`](crate::cloud_event), too), one way for `produce` and for each record of a batch:
//! [`read`](Incoming::read) its members, ask whether the caller may write to its topic, then [`encode`](Incoming::encode).

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::http::request::Request;
use crate::kafka::producer::NewRecord;
use crate::names::TopicName;
use crate::record::{self, Header};
use crate::schema::{Draft, Field, Schemas};

/// A request's record whose members are known to be well-formed. Key and value are still as they were sent, since what
/// they become may depend on the topic.
#[derive(Debug)]
pub struct Incoming<'a> {
    topic: TopicName,
    key: Draft<'a>,
    value: Draft<'a>,
    headers: Vec<Header>,
    partition: Option<i32>,
    timestamp: Option<i64>,
}

/// The members of a record, each still as it was sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
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
    #[serde(borrow, default)]
    key_schema: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value_schema: Option<&'a RawValue>,
}

impl<'a> Incoming<'a> {
    /// Reads a record that is a request's body. No error repeats what was sent.
    pub fn read(json: &'a [u8]) -> Result<Self, Error> {
        let members: Members<'_> = record::body(json)?;
        if members.id.is_some() {
            return Err(Error::new(Code::InvalidParameter, "id: goes with the records of a batch only"));
        }
        Self::of(&members, None)
    }

    /// Reads a record of a batch, and its `id`, which is the batch's affair; `default` is its topic unless it names one.
    pub fn read_in_batch(
        json: &'a RawValue,
        default: Option<&TopicName>,
    ) -> (Option<&'a RawValue>, Result<Self, Error>) {
        match record::members::<Members<'_>>(json, "The record") {
            Ok(members) => (members.id, Self::of(&members, default)),
            Err(error) => (id(json), Err(error)),
        }
    }

    fn of(members: &Members<'a>, default: Option<&TopicName>) -> Result<Self, Error> {
        let topic = match (members.topic, default) {
            (Some(topic), _) => parse_topic(topic)?,
            (None, Some(default)) => default.clone(),
            (None, None) => return Err(Error::new(Code::MissingParameter, "topic: is required")),
        };
        let value = members.value.ok_or_else(|| {
            Error::new(Code::MissingParameter, "value: is required; null writes a tombstone, \"\" an empty value")
        })?;
        let key = members.key.unwrap_or(RawValue::NULL);
        Ok(Self {
            topic,
            key: Draft::read(Field::Key, key, members.key_format, members.key_schema)?,
            value: Draft::read(Field::Value, value, members.value_format, members.value_schema)?,
            headers: members.headers.map(record::decode_headers).transpose()?.unwrap_or_default(),
            partition: members.partition.map(|partition| at_least(0, partition, PARTITION)).transpose()?,
            timestamp: members.timestamp.map(|timestamp| at_least(1, timestamp, TIMESTAMP)).transpose()?,
        })
    }

    /// A record that was put together of something else.
    pub fn new(topic: TopicName, key: Option<String>, value: Draft<'a>, headers: Vec<Header>) -> Result<Self, Error> {
        let key = key.map_or(Ok(Draft::none(Field::Key)), |key| Draft::text(Field::Key, &key))?;
        Ok(Self { topic, key, value, headers, partition: None, timestamp: None })
    }

    /// Where it is to be written.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Makes the record's bytes of it. See [`Schemas::encode`] for what may stand in the way.
    pub async fn encode(&self, schemas: &Schemas, request: &Request, deadline: Deadline) -> Result<NewRecord, Error> {
        let key = schemas.encode(&self.topic, &self.key, deadline).await?;
        let value = schemas.encode(&self.topic, &self.value, deadline).await?;
        Ok(self.record(key, value, request))
    }

    /// Whether the schema registry has a say in what it becomes; otherwise it goes [as it was sent](Self::as_sent).
    pub fn concerns(&self, schemas: &Schemas) -> bool {
        schemas.concern(&self.key) || schemas.concern(&self.value)
    }

    /// The record without schemas: what a dead letter keeps of one that does not fit.
    pub fn as_sent(&self, request: &Request) -> Result<NewRecord, Error> {
        Ok(self.record(self.key.as_sent()?, self.value.as_sent()?, request))
    }

    fn record(&self, key: Option<Vec<u8>>, value: Option<Vec<u8>>, request: &Request) -> NewRecord {
        let (headers, partition, timestamp) = (self.headers.clone(), self.partition, self.timestamp);
        let mut record = NewRecord { key, value, headers, partition, timestamp };
        add_trace(&mut record, request);
        record
    }
}

/// The `id` of a JSON object, whatever else it holds.
pub fn id(json: &RawValue) -> Option<&RawValue> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
    }
    record::object(json).ok().and_then(|Named { id }| id)
}

const PARTITION: &str = "partition: must be a whole number from 0";

/// Why 0 is refused: librdkafka takes it for "now", and the record would be written with another time than was asked.
const TIMESTAMP: &str = "timestamp: must be milliseconds since 1970, from 1";

/// A topic as a request names it.
pub fn parse_topic(json: &RawValue) -> Result<TopicName, Error> {
    let name: String = member(json, "topic: must be a string")?;
    TopicName::parse(&name)
}

fn member<T: serde::de::DeserializeOwned>(json: &RawValue, problem: &'static str) -> Result<T, Error> {
    serde_json::from_str(json.get()).map_err(|_| Error::new(Code::InvalidParameter, problem))
}

fn at_least<T>(least: T, json: &RawValue, problem: &'static str) -> Result<T, Error>
where
    T: PartialOrd + Copy + serde::de::DeserializeOwned,
{
    let number = member(json, problem)?;
    if number >= least { Ok(number) } else { Err(Error::new(Code::InvalidParameter, problem)) }
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
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::config::{SchemaConfig, Validation};
    use crate::http::request::Event;

    /// A record's topic and what is written there, as the request has no trace, and there is no registry.
    fn parse(body: &[u8]) -> Result<(TopicName, NewRecord), Error> {
        let schemas =
            Schemas::to_write(&SchemaConfig { registry: None, validation: Validation::Off, keep_invalid: false });
        let (incoming, request) = (Incoming::read(body)?, Request::new(Event::default()));
        let deadline = Deadline::of_invocation(0, Duration::from_secs(10));
        let encoded = incoming.encode(&schemas, &request, deadline).now_or_never();
        Ok((incoming.topic().clone(), encoded.expect("nothing to wait for")?))
    }

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
            ("{\"topic\":\"t\",\"value\":1,\"id\":1}", Code::InvalidParameter),
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
