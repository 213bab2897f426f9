//! `POST /kafka/consumer/consume/batch`: the next records of several topics for one consumer group.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::auth::{May, Read};
use crate::config::Config;
use crate::consume::{Asked, Parts, Topics};
use crate::errors::{BoxError, Code, Error};
use crate::http::request::Query;
use crate::http::{Call, Endpoint, Reply, Route};
use crate::messages::MAX_RECORDS;
use crate::names::{GroupId, TopicName};
use crate::record;

/// The most topics of one call. Each look asks for the positions and ends of all their partitions.
const MAX_TOPICS: usize = 50;

/// The endpoint.
#[derive(Debug)]
pub struct ConsumeBatch(Arc<Parts>);

impl Endpoint for ConsumeBatch {
    const FUNCTION: &'static str = "consume-batch";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/consumer/consume/batch")];
    const SCHEMAS: bool = true;
    type Permission = May<Read>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self(Parts::start(config).await))
    }

    /// A topic that the caller may not read stops the whole call: to leave it out would look like having no records.
    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let body = call.request.json_body()?;
        let ask = Ask::read(record::body(&body)?)?;
        let terms = self.0.terms(&ask.more)?;
        let only = if let [(topic, _)] = &ask.topics[..] { Some(topic.clone()) } else { None };
        if let Some(topic) = &only {
            call.on_topic(topic);
        }
        call.on_group(&ask.group);
        let mut topics = Vec::new();
        for (topic, limit) in ask.topics {
            let refused = |error: Error| error.with("topic", topic.as_str());
            let from = may.on((topic.clone(), ask.group.clone())).map_err(refused)?;
            topics.push(Asked { from, limit: limit.unwrap_or(terms.wanted.limit) });
        }
        let session = self.0.session(topics, terms, Topics::Each, call.deadline).await?;
        let result = session.reply().await;
        if only.is_some_and(|topic| session.knows(&topic)) {
            call.topic_exists();
        }
        result
    }

    async fn stop(&self) {}
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    group_id: Option<String>,
    #[serde(borrow)]
    topics: Option<&'a RawValue>,
    limit: Option<Value>,
    timeout_ms: Option<Value>,
    max_bytes: Option<Value>,
    ack: Option<Value>,
    lease_ms: Option<Value>,
    start: Option<Value>,
    format: Option<Value>,
    key_format: Option<Value>,
    value_format: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    topic: Option<String>,
    limit: Option<Value>,
}

/// The request.
#[derive(Debug)]
struct Ask {
    group: GroupId,
    /// Each once, with a limit of its own, if it has one.
    topics: Vec<(TopicName, Option<usize>)>,
    more: Query<'static>,
}

impl Ask {
    fn read(body: Body<'_>) -> Result<Self, Error> {
        let missing = |name: &str| Error::new(Code::MissingParameter, format!("{name}: is required"));
        Ok(Self {
            group: GroupId::parse(&body.group_id.ok_or_else(|| missing("group_id"))?)?,
            topics: topics(body.topics.ok_or_else(|| missing("topics"))?)?,
            more: Query::of_members([
                ("limit", body.limit),
                ("timeout_ms", body.timeout_ms),
                ("max_bytes", body.max_bytes),
                ("ack", body.ack),
                ("lease_ms", body.lease_ms),
                ("start", body.start),
                ("format", body.format),
                ("key_format", body.key_format),
                ("value_format", body.value_format),
            ]),
        })
    }
}

fn topics(json: &RawValue) -> Result<Vec<(TopicName, Option<usize>)>, Error> {
    let invalid = |detail: String| Error::new(Code::InvalidParameter, detail);
    let listed: Vec<&RawValue> = serde_json::from_str(json.get()).unwrap_or_default();
    if listed.is_empty() || listed.len() > MAX_TOPICS {
        return Err(invalid(format!("topics: must be an array of 1 to {MAX_TOPICS} objects {{\"topic\", \"limit\"}}")));
    }
    let mut topics: Vec<(TopicName, Option<usize>)> = Vec::new();
    for (index, json) in listed.into_iter().enumerate() {
        let about = |error: Error| Error::new(error.code(), format!("topics[{index}].{}", error.detail()));
        let shape = |_| invalid(format!("topics[{index}]: must be an object {{\"topic\", \"limit\"}}"));
        let Topic { topic, limit } = record::object(json).map_err(shape)?;
        let missing = || about(Error::new(Code::MissingParameter, "topic: is required"));
        let topic = TopicName::parse(&topic.ok_or_else(missing)?).map_err(about)?;
        if topics.iter().any(|(known, _)| *known == topic) {
            return Err(about(invalid("topic: is named more than once".to_owned())));
        }
        let limit = limit.map(|limit| Query::of_members([("limit", Some(limit))]).number("limit", 1, 1..=MAX_RECORDS));
        topics.push((topic, limit.transpose().map_err(about)?));
    }
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<String, Code> {
        let ask = record::body(body.as_bytes()).and_then(Ask::read).map_err(|error| error.code())?;
        let topics: Vec<_> = ask.topics.iter().map(|(topic, limit)| format!("{topic} {limit:?}")).collect();
        Ok(format!("{}: {}", ask.group, topics.join(", ")))
    }

    #[test]
    fn topics_are_named_once_each_with_or_without_a_limit() {
        let good = r#"{"group_id": "g", "topics": [{"topic": "a"}, {"topic": "b", "limit": 7}, {"limit": null, "topic": "c"}]}"#;
        assert_eq!(read(good).as_deref(), Ok("g: a None, b Some(7), c None"));
        let listed = |count: usize| {
            let topics: Vec<_> = (0..count).map(|n| format!(r#"{{"topic": "t{n}"}}"#)).collect();
            read(&format!(r#"{{"group_id": "g", "topics": [{}]}}"#, topics.join(",")))
        };
        assert!(listed(MAX_TOPICS).is_ok());
        assert_eq!(listed(MAX_TOPICS + 1), Err(Code::InvalidParameter));
        for (body, code) in [
            ("[]", Code::InvalidParameter),
            (r#"{"topics": [{"topic": "a"}]}"#, Code::MissingParameter),
            (r#"{"group_id": "g"}"#, Code::MissingParameter),
            (r#"{"group_id": "g", "topics": []}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": "a"}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": ["a"]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [["a"]]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{}]}"#, Code::MissingParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a/b"}]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a", "limit": 0}]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a", "limit": "7"}]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a", "partition": 7}]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a", "topic": "b"}]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a"}, {"topic": "a"}]}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a"}], "topic": "a"}"#, Code::InvalidParameter),
            (r#"{"group_id": "g", "topics": [{"topic": "a"}], "limit": 1, "limit": 1}"#, Code::InvalidParameter),
        ] {
            assert_eq!(read(body), Err(code), "{body}");
        }
    }
}
