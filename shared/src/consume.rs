//! `GET /kafka/consumer/consume`: the next records of a topic for a consumer group. What it has in common with
//! [`consume_batch`](crate::consume_batch) is here as well: [`Terms`], and the [`Session`] that does the work.

mod answer;
mod look;
mod session;
mod take;
mod upkeep;

use std::sync::Arc;

pub(crate) use self::answer::Topics;
pub(crate) use self::session::Session;
use crate::auth::{Authorized, May, Read};
use crate::config::{Config, Delivery};
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::http::request::Query;
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::Consumers;
use crate::kafka::retention::Retention;
use crate::messages::Wanted;
use crate::names::{GroupId, TopicName};
use crate::schema::Schemas;

/// `lease_ms`: the shortest, the default, the longest.
pub const LEASE_MS: (u64, u64, u64) = (1_000, 30_000, 600_000);

/// The endpoint.
#[derive(Debug)]
pub struct Consume(Arc<Parts>);

impl Endpoint for Consume {
    const FUNCTION: &'static str = "consume";
    const ROUTES: &'static [Route] = &[("GET", "/kafka/consumer/consume")];
    const SCHEMAS: bool = true;
    type Permission = May<Read>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self(Parts::start(config).await))
    }

    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        let query = call.request.query(&[&["topic", "group_id"], Terms::KNOWN].concat())?;
        let terms = self.0.terms(&query)?;
        let topic = TopicName::parse(query.required("topic")?)?;
        let group = GroupId::parse(query.required("group_id")?)?;
        call.on_topic(&topic);
        call.on_group(&group);
        let asked = Asked { from: may.on((topic.clone(), group))?, limit: terms.wanted.limit };
        let session = self.0.session(vec![asked], terms, Topics::Once, call.deadline).await?;
        let result = session.reply().await;
        if session.knows(&topic) {
            call.topic_exists();
        }
        result.map_err(|error| error.with("topic", topic.as_str()))
    }

    async fn stop(&self) {}
}

/// What a warm sandbox keeps for consuming.
#[derive(Debug)]
pub(crate) struct Parts {
    consumers: Consumers,
    retention: Retention,
    schemas: Schemas,
}

impl Parts {
    pub(crate) async fn start(config: &Config) -> Arc<Self> {
        let consumers = Consumers::new(&config.kafka);
        consumers.learn().await;
        let (retention, schemas) = (Retention::new(&config.kafka), Schemas::to_read(&config.schemas));
        Arc::new(Self { consumers, retention, schemas })
    }

    /// What a call asks for, as far as this deployment has it.
    pub(crate) fn terms(&self, query: &Query<'_>) -> Result<Terms, Error> {
        let terms = Terms::read(query)?;
        if terms.manual && self.consumers.delivery == Delivery::Shared {
            let detail = "ack: manual needs exclusive delivery, which this deployment has turned off";
            return Err(Error::new(Code::InvalidParameter, detail));
        }
        self.schemas.require(terms.wanted.formats)?;
        Ok(terms)
    }

    /// A call on its way, for topics of one group.
    pub(crate) async fn session(
        self: &Arc<Self>,
        topics: Vec<Asked>,
        terms: Terms,
        shown: Topics,
        deadline: Deadline,
    ) -> Result<Session, Error> {
        let any = topics.first().ok_or_else(|| Error::internal("a call for no topic"))?;
        let group = self.consumers.group(&any.from, deadline).await?;
        Ok(Session::new(self, group, topics, terms, shown, deadline))
    }
}

/// A topic that the caller may read, and how many of its records are wanted at most.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) from: Authorized<Read>,
    pub(crate) limit: usize,
}

/// What a call asks for, beside group and topics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) wanted: Wanted,
    latest: bool,
    manual: bool,
    lease_ms: u64,
}

impl Terms {
    const KNOWN: &[&str] =
        &["limit", "timeout_ms", "max_bytes", "ack", "lease_ms", "start", "format", "key_format", "value_format"];

    fn read(query: &Query<'_>) -> Result<Self, Error> {
        let manual = query.choice("ack", false, &[("auto", false), ("manual", true)])?;
        if query.has("lease_ms") && !manual {
            return Err(Error::new(Code::InvalidParameter, "lease_ms: goes with ack=manual only"));
        }
        let (shortest, default, longest) = LEASE_MS;
        Ok(Self {
            wanted: Wanted::read(query)?,
            latest: query.choice("start", false, &[("earliest", false), ("latest", true)])?,
            manual,
            lease_ms: query.number("lease_ms", default, shortest..=longest)?,
        })
    }
}
