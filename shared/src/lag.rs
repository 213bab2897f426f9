//! `GET /kafka/consumer/lag`: how far a group is behind, partition by partition.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::auth::{May, Read};
use crate::config::Config;
use crate::errors::{BoxError, Error};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::{Consumers, blocking};
use crate::kafka::lag::{self, measure};
use crate::names::{GroupId, TopicName};

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Lag {
    consumers: Consumers,
}

impl Endpoint for Lag {
    const FUNCTION: &'static str = "lag";
    const ROUTES: &'static [Route] = &[("GET", "/kafka/consumer/lag")];
    const SCHEMAS: bool = false;
    type Permission = May<Read>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        let consumers = Consumers::new(&config.kafka);
        consumers.learn().await;
        Ok(Self { consumers })
    }

    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        let query = call.request.query(&["group_id", "topic"])?;
        let id = GroupId::parse(query.required("group_id")?)?;
        call.on_group(&id);
        let lags = if let Some(topic) = query.get("topic") {
            let topic = TopicName::parse(topic)?;
            call.on_topic(&topic);
            let from = may.on((topic.clone(), id.clone()))?;
            let group = self.consumers.group(&from, call.deadline).await?;
            let measured = blocking(call.deadline, {
                let (group, topic) = (Arc::clone(&group), topic.clone());
                move |until| {
                    let partitions = group.partitions(&topic, until.saturating_duration_since(Instant::now()))?;
                    measure(&group, &[(topic, partitions)], true, until)
                }
            });
            let measured = measured.await;
            if group.knows(&topic) {
                call.topic_exists();
            }
            measured.map_err(|error| error.with("topic", topic.as_str()))?
        } else {
            let group = self.consumers.group_on_any_topic(&may.of_group(id.clone())?, call.deadline).await?;
            let may = may.clone();
            blocking(call.deadline, move |until| {
                let mut topics = group.topics(until.saturating_duration_since(Instant::now()))?;
                topics.retain(|(topic, _)| may.reaches(&(topic.clone(), group.id.clone())));
                measure(&group, &topics, false, until)
            })
            .await?
        };
        let total: i64 = lags.iter().map(|lag| lag.lag).sum();
        let partitions: Vec<Value> = lags.iter().map(shown).collect();
        let body = json!({ "group_id": id.as_str(), "total_lag": total, "partitions": partitions });
        Ok(Reply::json(200, body.to_string()))
    }

    async fn stop(&self) {}
}

fn shown(lag: &lag::Lag) -> Value {
    let mut shown = json!({
        "topic": lag.topic.as_str(),
        "partition": lag.partition,
        "committed": lag.position.committed,
        "end": lag.end,
        "lag": lag.lag,
    });
    // Its hashes are nobody's business.
    if let Some(lease) = lag.position.mark.as_ref().and_then(|mark| mark.lease.as_ref()) {
        shown["lease"] = json!({ "end": lease.end, "expires_at": lease.until });
    }
    shown
}
