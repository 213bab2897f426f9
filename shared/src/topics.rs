//! `/kafka/topics`: lists, describes, makes and deletes topics.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::{Admin, Describe, May, Principal};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::{Call, Endpoint, Permission, Reply, Route};
use crate::kafka::catalogue::{Catalogue, Description, Partition, Plan, Setting};
use crate::names::TopicName;
use crate::record::{self, Once};

/// The most partitions, and the most replicas, that can be asked for. Kafka itself makes no more partitions at once.
const MOST: i32 = 10_000;

/// The most settings of a topic that can be asked for; Kafka has some forty.
const MOST_CONFIGS: usize = 100;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Topics {
    catalogue: Catalogue,
}

/// What a caller may do: to look, or to change something. Each method is one of the two.
#[derive(Debug)]
pub enum Permit {
    /// To list and describe.
    See(May<Describe>),
    /// To make and delete.
    Change(May<Admin>),
}

impl Permission for Permit {
    fn ask(caller: Principal, method: &str) -> Result<Self, Error> {
        if method == "GET" { caller.may().map(Self::See) } else { caller.may().map(Self::Change) }
    }
}

impl Endpoint for Topics {
    const FUNCTION: &'static str = "topics";
    const ROUTES: &'static [Route] = &[
        ("GET", "/kafka/topics"),
        ("POST", "/kafka/topics"),
        ("GET", "/kafka/topics/{topic}"),
        ("DELETE", "/kafka/topics/{topic}"),
    ];
    const SCHEMAS: bool = false;
    type Permission = Permit;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self { catalogue: Catalogue::start(&config.kafka).await? })
    }

    async fn call(&self, permit: &Permit, call: &Call) -> Result<Reply, Error> {
        let topic = call.parameter().map(TopicName::parse).transpose()?;
        match (permit, topic) {
            (Permit::See(may), None) => self.list(may, call).await,
            (Permit::See(may), Some(topic)) => self.describe(may, topic, call).await,
            (Permit::Change(may), None) => self.create(may, call).await,
            (Permit::Change(may), Some(topic)) => self.delete(may, topic, call).await,
        }
    }

    async fn stop(&self) {}
}

impl Topics {
    async fn list(&self, may: &May<Describe>, call: &Call) -> Result<Reply, Error> {
        let query = call.request.query(&["limit", "after"])?;
        let (limit, after) = (query.number("limit", 100, 1..=1000)?, query.get("after"));
        let topics = self.catalogue.list(may, call.deadline).await?;
        let mut rest = topics.iter().map(TopicName::as_str).filter(|topic| after.is_none_or(|after| *topic > after));
        let page: Vec<&str> = rest.by_ref().take(limit).collect();
        let mut body = json!({ "topics": page });
        if let (Some(last), Some(_)) = (page.last(), rest.next()) {
            body["next"] = json!(last);
        }
        Ok(Reply::json(200, body.to_string()))
    }

    async fn describe(&self, may: &May<Describe>, topic: TopicName, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        call.on_topic(&topic);
        let described = self.catalogue.describe(&may.on(topic.clone())?, call.deadline).await;
        let Description { partitions, settings } = described.map_err(|error| error.with("topic", topic.as_str()))?;
        call.topic_exists();
        let configs = settings.map(|settings| settings.into_iter().map(setting).collect::<BTreeMap<_, _>>());
        let body = json!({
            "topic": topic.as_str(),
            "replication_factor": replication_factor(&partitions),
            "partitions": partitions.iter().map(partition).collect::<Vec<_>>(),
            "configs": configs,
        });
        Ok(Reply::json(200, body.to_string()))
    }

    async fn create(&self, may: &May<Admin>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let (topic, plan) = read(&call.request.json_body()?)?;
        call.on_topic(&topic);
        let created = self.catalogue.create(&may.on(topic.clone())?, &plan, call.deadline).await;
        let partitions = created.map_err(|error| error.with("topic", topic.as_str()))?;
        call.topic_exists();
        let body = json!({
            "topic": topic.as_str(),
            "partitions": partitions.len(),
            "replication_factor": replication_factor(&partitions),
        });
        Ok(Reply::json(201, body.to_string()))
    }

    async fn delete(&self, may: &May<Admin>, topic: TopicName, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        call.on_topic(&topic);
        let deleted = self.catalogue.delete(&may.on(topic.clone())?, call.deadline).await;
        deleted.map_err(|error| error.with("topic", topic.as_str()))?;
        Ok(Reply::empty(204))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    topic: Option<String>,
    partitions: Option<i32>,
    replication_factor: Option<i32>,
    configs: Option<Once<String, Value>>,
}

/// The topic to make, and what it is to be like.
fn read(body: &[u8]) -> Result<(TopicName, Plan), Error> {
    let Body { topic, partitions, replication_factor, configs } = record::body(body)?;
    let invalid = |detail: String| Error::new(Code::InvalidParameter, detail);
    let topic = topic.ok_or_else(|| Error::new(Code::MissingParameter, "topic: is required"))?;
    for (name, number) in [("partitions", partitions), ("replication_factor", replication_factor)] {
        if number.is_some_and(|number| !(1..=MOST).contains(&number)) {
            return Err(invalid(format!("{name}: must be a whole number from 1 to {MOST}")));
        }
    }
    let configs = configs.map_or_else(BTreeMap::new, |Once(configs)| configs.into_iter().collect());
    if configs.len() > MOST_CONFIGS {
        return Err(invalid(format!("configs: must be {MOST_CONFIGS} at most")));
    }
    let setting = |(name, value): (String, Value)| {
        let value = match value {
            Value::String(text) => Some(text),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
            _ => None,
        };
        value
            .filter(|value| !value.contains('\0') && !name.contains('\0'))
            .map(|value| (name, value))
            .ok_or_else(|| invalid("configs: must be an object of texts, numbers, true or false".into()))
    };
    let configs = configs.into_iter().map(setting).collect::<Result<_, _>>()?;
    Ok((TopicName::parse(&topic)?, Plan { partitions, replication_factor, configs }))
}

fn replication_factor(partitions: &[Partition]) -> usize {
    partitions.first().map_or(0, |partition| partition.replicas.len())
}

fn partition(partition: &Partition) -> Value {
    json!({
        "partition": partition.id,
        "leader": partition.leader,
        "replicas": partition.replicas,
        "isr": partition.isr,
        "start": partition.start,
        "end": partition.end,
    })
}

fn setting(setting: Setting) -> (String, Value) {
    (setting.name, json!({ "value": setting.value, "source": setting.source }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_planned_within_bounds() {
        let plan = |body: &str| read(body.as_bytes()).map(|(_, plan)| plan).map_err(|error| error.code());
        let read = plan(
            r#"{"topic": "t", "partitions": 3, "configs": {"retention.ms": 60000, "preallocate": true, "cleanup.policy": "compact"}}"#,
        )
        .expect("a plan");
        assert_eq!((read.partitions, read.replication_factor), (Some(3), None));
        let configs = [("cleanup.policy", "compact"), ("preallocate", "true"), ("retention.ms", "60000")];
        assert_eq!(read.configs, configs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(plan("{}").expect_err("no topic"), Code::MissingParameter);
        for body in [
            r#"{"topic": "a b"}"#,
            r#"{"topic": "t", "partitions": 0}"#,
            r#"{"topic": "t", "partitions": 10001}"#,
            r#"{"topic": "t", "partitions": "3"}"#,
            r#"{"topic": "t", "replication_factor": -1}"#,
            r#"{"topic": "t", "replicas": 1}"#,
            r#"{"topic": "t", "configs": {"retention.ms": null}}"#,
            r#"{"topic": "t", "configs": {"retention.ms": [1]}}"#,
            r#"{"topic": "t", "configs": {"retention.ms": "1\u0000"}}"#,
            r#"{"topic": "t", "configs": ["retention.ms"]}"#,
            r#"{"topic": "t", "configs": {"retention.ms": 1, "retention.ms": 2}}"#,
        ] {
            assert_eq!(plan(body).expect_err(body), Code::InvalidParameter, "{body}");
        }
    }
}
