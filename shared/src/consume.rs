//! `GET /kafka/consumer/consume`: the next records of a topic for a consumer group.

mod session;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use self::session::Session;
use crate::auth::{May, Read};
use crate::config::{Config, Delivery};
use crate::errors::{BoxError, Code, Error};
use crate::http::request::Query;
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::Consumers;
use crate::kafka::retention::Retention;
use crate::messages::{self, Wanted};
use crate::metrics::{self, Direction};
use crate::names::{GroupId, TopicName};
use crate::record::{self, Formats};
use crate::schema::Schemas;

/// `lease_ms`: the shortest, the default, the longest.
pub const LEASE_MS: (u64, u64, u64) = (1_000, 30_000, 600_000);

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Consume {
    consumers: Arc<Consumers>,
    retention: Arc<Retention>,
    schemas: Arc<Schemas>,
}

impl Endpoint for Consume {
    const FUNCTION: &'static str = "consume";
    const ROUTES: &'static [Route] = &[("GET", "/kafka/consumer/consume")];
    type Permission = May<Read>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        let consumers = Arc::new(Consumers::new(&config.kafka));
        consumers.learn().await;
        Ok(Self {
            consumers,
            retention: Arc::new(Retention::new(&config.kafka)),
            schemas: Arc::new(Schemas::new(&config.schemas)),
        })
    }

    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        let params = Params::read(&call.request.query(Params::KNOWN)?)?;
        if params.manual && self.consumers.delivery == Delivery::Shared {
            let detail = "ack: manual needs exclusive delivery, which this deployment has turned off";
            return Err(Error::new(Code::InvalidParameter, detail));
        }
        self.schemas.require(params.formats)?;
        call.on_topic(&params.topic);
        call.on_group(&params.group);
        let from = may.on((params.topic.clone(), params.group.clone()))?;
        let group = self.consumers.group(&from, call.deadline).await?;
        let session = Session::new(from, group, &self.consumers, &self.retention, &self.schemas, params, call.deadline);
        let result = session.consume().await;
        let topic = session.from.topic();
        if session.group.knows(topic) {
            call.topic_exists();
        }
        let batches = result.map_err(|error| error.with("topic", topic.as_str()))?;
        let records = batches.iter().map(|batch| batch.messages.len() as u64).sum();
        let bytes = batches.iter().map(|batch| batch.bytes as u64).sum();
        metrics::records_passed(Direction::Consume, topic, records, bytes);
        Ok(Reply::json(200, session.answer(&batches)))
    }

    async fn stop(&self) {}
}

/// The query.
#[derive(Debug)]
struct Params {
    topic: TopicName,
    group: GroupId,
    limit: usize,
    timeout: Duration,
    max_bytes: usize,
    latest: bool,
    manual: bool,
    lease_ms: u64,
    formats: Formats,
}

impl Params {
    const KNOWN: &[&str] = &[
        "topic",
        "group_id",
        "limit",
        "timeout_ms",
        "max_bytes",
        "ack",
        "lease_ms",
        "start",
        "format",
        "key_format",
        "value_format",
    ];

    fn read(query: &Query<'_>) -> Result<Self, Error> {
        let Wanted { limit, timeout, max_bytes, formats } = Wanted::read(query)?;
        let manual = query.choice("ack", false, &[("auto", false), ("manual", true)])?;
        if query.get("lease_ms").is_some() && !manual {
            return Err(Error::new(Code::InvalidParameter, "lease_ms: goes with ack=manual only"));
        }
        let (shortest, default, longest) = LEASE_MS;
        let lease_ms = query.number("lease_ms", default, shortest..=longest)?;
        Ok(Self {
            topic: TopicName::parse(query.required("topic")?)?,
            group: GroupId::parse(query.required("group_id")?)?,
            limit,
            timeout,
            max_bytes,
            latest: query.choice("start", false, &[("earliest", false), ("latest", true)])?,
            manual,
            lease_ms,
            formats,
        })
    }

    /// The answer's body before its records.
    fn head(&self) -> String {
        let (topic, group) = (Value::from(self.topic.as_str()), Value::from(self.group.as_str()));
        format!("{{\"topic\":{topic},\"group_id\":{group},\"messages\":[")
    }

    /// What the records of one answer may weigh.
    fn budget(&self) -> usize {
        let lease = if self.manual { 2 * record::weight(&self.head()) + LEASE_WEIGHT } else { 0 };
        messages::budget(self.max_bytes, record::weight(&self.head()) + lease + 2)
    }
}

/// What a lease weighs in an answer, beside the names of topic and group, which stand in its token in base64.
const LEASE_WEIGHT: usize = 512;

impl Session {
    fn answer(&self, batches: &[Batch]) -> String {
        let mut tail = "]}".to_owned();
        if self.params.manual && !batches.is_empty() {
            let partitions = batches.iter().map(|batch| batch.partition).collect();
            let until = batches.iter().filter_map(|batch| batch.until).min();
            tail = format!("],\"lease\":{}}}", self.lease(partitions, until));
        }
        messages::body(&self.params.head(), batches.iter().flat_map(|batch| &batch.messages), &tail)
    }

    /// A lease as the caller sees it.
    fn lease(&self, partitions: Vec<i32>, until: Option<u64>) -> Value {
        metrics::lease("granted", partitions.len() as u64);
        let places = partitions.into_iter().map(|partition| (self.from.topic().clone(), partition));
        json!({ "token": self.token.of(places).encode(), "expires_at": until })
    }
}

/// One partition's part of the answer.
#[derive(Debug)]
struct Batch {
    partition: i32,
    messages: Vec<String>,
    bytes: usize,
    /// When its lease expires, if it has one.
    until: Option<u64>,
}
