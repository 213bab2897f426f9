//! `POST /kafka/dlq/redrive`: moves dead letters back to the topic they came from.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use crate::auth::{Admin, Authorized, May, Read};
use crate::config::{Config, Delivery};
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::{Consumers, blocking};
use crate::kafka::decide::Intent;
use crate::kafka::group::{Group, Offsets, places};
use crate::kafka::handover::{Return, Returned, Slot};
use crate::kafka::position::Position;
use crate::kafka::retention::Retention;
use crate::names::{GroupId, TopicName};
use crate::{record, telemetry};

/// The group whose position says which letters are back.
const GROUP: &str = "kafka-gateway-redrive";

/// The most letters of a call: by default, and at most.
const LIMIT: (usize, usize) = (100, 1000);

/// No further step is begun with less time left than this.
const LAST: Duration = Duration::from_secs(1);

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Redrive {
    consumers: Arc<Consumers>,
    retention: Retention,
}

impl Endpoint for Redrive {
    const FUNCTION: &'static str = "redrive";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/dlq/redrive")];
    const SCHEMAS: bool = false;
    type Permission = May<Admin>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        let consumers = Arc::new(Consumers::new(&config.kafka));
        consumers.learn().await;
        Ok(Self { consumers, retention: Retention::new(&config.kafka) })
    }

    async fn call(&self, may: &May<Admin>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let ask = Ask::read(&call.request.json_body()?)?;
        let (letters, id) = (ask.letters.clone(), GroupId::parse(GROUP)?);
        call.on_topic(&letters);
        call.on_group(&id);
        let target = self.consumers.dead_letters.origin_of(&letters).ok_or_else(not_dead_letters)?;
        let (from, to) = may.redrive(letters, target, id)?;
        if self.consumers.delivery == Delivery::Shared {
            let detail = "redrive needs exclusive delivery, which this deployment has turned off";
            return Err(Error::new(Code::InvalidParameter, detail));
        }
        let group = self.consumers.group(&from, call.deadline).await?;
        let seen = look(&group, &from, &to, call.deadline).await;
        if group.knows(from.topic()) {
            call.topic_exists();
        }
        let (partitions, ends) = seen?;
        let Self { consumers, retention } = self;
        let run = Run { consumers, retention, group, from, to, partitions, deadline: call.deadline };
        if ask.dry_run { run.show(ends, ask.limit).await } else { run.send_back(ends, ask.limit).await }
    }

    async fn stop(&self) {}
}

/// The request.
#[derive(Debug)]
struct Ask {
    letters: TopicName,
    limit: usize,
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    dlq_topic: Option<String>,
    limit: Option<usize>,
    dry_run: Option<bool>,
}

impl Ask {
    fn read(body: &[u8]) -> Result<Self, Error> {
        let Body { dlq_topic, limit, dry_run } = record::body(body)?;
        let topic = dlq_topic.ok_or_else(|| Error::new(Code::MissingParameter, "dlq_topic: is required"))?;
        let (default, most) = LIMIT;
        let limit = limit.unwrap_or(default);
        if !(1..=most).contains(&limit) {
            let detail = format!("limit: must be a whole number from 1 to {most}");
            return Err(Error::new(Code::InvalidParameter, detail));
        }
        Ok(Self { letters: TopicName::parse(&topic)?, limit, dry_run: dry_run.unwrap_or_default() })
    }
}

fn not_dead_letters() -> Error {
    let detail = "dlq_topic: is no dead-letter topic: it must be the name of another topic and DLQ_TOPIC_SUFFIX";
    Error::new(Code::InvalidParameter, detail)
}

/// How many partitions the target has, and how far those of the letters go. `404` where one of the topics is not there.
async fn look(
    group: &Arc<Group>,
    from: &Authorized<Read>,
    to: &Authorized<Admin>,
    deadline: Deadline,
) -> Result<(i32, Offsets), Error> {
    let (group, letters, target) = (Arc::clone(group), from.topic().clone(), to.topic().clone());
    blocking(deadline, move |until| {
        let left = || until.saturating_duration_since(Instant::now());
        let count =
            |topic: &TopicName| group.partitions(topic, left()).map_err(|error| error.with("topic", topic.as_str()));
        group.drain_events();
        let all: Vec<i32> = (0..count(&letters)?).collect();
        Ok((count(&target)?, group.ends(&places(&letters, &all), left())?))
    })
    .await
}

/// One call on its way.
struct Run<'a> {
    consumers: &'a Arc<Consumers>,
    retention: &'a Retention,
    group: Arc<Group>,
    from: Authorized<Read>,
    to: Authorized<Admin>,
    /// How many partitions the target has.
    partitions: i32,
    deadline: Deadline,
}

/// What came of one partition.
#[derive(Debug, Default)]
struct Part {
    redriven: usize,
    /// Letters whose records were never in the topic: they stay letters.
    skipped: usize,
    committed: Option<i64>,
    failed: Option<Error>,
    /// Whether the time was up before it was known that there are no more.
    unfinished: bool,
}

impl Run<'_> {
    /// Sends letters back, partition by partition, until there are enough, or no more, or the time is up.
    async fn send_back(&self, ends: Offsets, limit: usize) -> Result<Reply, Error> {
        let (mut redriven, mut skipped, mut unfinished) = (0, 0, false);
        let (mut results, mut worst) = (Vec::new(), None::<Error>);
        for (partition, end) in (0..).zip(ends) {
            let part = match end {
                Ok(end) => self.send_back_of(partition, end, limit - redriven).await,
                Err(error) => Part { failed: Some(error), ..Part::default() },
            };
            redriven += part.redriven;
            skipped += part.skipped;
            unfinished |= part.unfinished;
            let undecided = part.failed.as_ref().is_some_and(|error| error.code() == Code::DeadlineExceeded);
            let status = match &part.failed {
                None if part.redriven + part.skipped == 0 => continue,
                None => "moved",
                Some(_) if undecided => "undecided",
                Some(_) => "failed",
            };
            results.push(json!({
                "partition": partition,
                "status": status,
                "redriven": part.redriven,
                "skipped": part.skipped,
                "committed": part.committed,
            }));
            // What may yet be done outweighs what is not done: the caller has to look.
            worst = match part.failed {
                Some(error) if undecided || worst.is_none() => Some(error.with("partition", partition)),
                _ => worst,
            };
        }
        if let Some(error) = worst {
            let error = error.with("topic", self.from.topic().as_str());
            return Err(error.with("redriven", redriven).with("skipped", skipped).with("results", results));
        }
        // Others have taken all the time; that there is nothing to move would be wrong.
        if unfinished && redriven + skipped == 0 {
            return Err(Deadline::exceeded());
        }
        Ok(self.answer(false, (redriven, skipped), ("results", results)))
    }

    /// Sends the letters of one partition back.
    async fn send_back_of(&self, partition: i32, end: i64, limit: usize) -> Part {
        let mut part = Part::default();
        while part.redriven < limit {
            if self.deadline.left() < LAST {
                part.unfinished = true;
                break;
            }
            let back = self.asking(end, limit - part.redriven);
            let consumers = Arc::clone(self.consumers);
            let step = move |mut slot: OwnedMutexGuard<Slot>, until| {
                slot.redrive(consumers.tools(until, &AtomicBool::new(false)), &back)
            };
            match self.on_slot(partition, step).await {
                Ok(Returned::Letters { count, skipped, bytes, committed }) => {
                    let (topic, target) = (self.from.topic(), self.to.topic());
                    if count > 0 {
                        telemetry::redriven(topic, partition, target, count as u64, bytes as u64);
                    }
                    if skipped > 0 {
                        tracing::info!(%topic, partition, records = skipped, "dead letters that never were records were passed");
                    }
                    part.redriven += count;
                    part.skipped += skipped;
                    part.committed = Some(committed);
                }
                Ok(Returned::Nothing(position)) => {
                    self.renew(partition, &position).await;
                    break;
                }
                // Another function may be taking a step of its own, which ends within milliseconds.
                Ok(Returned::Lost) => pause().await,
                Ok(Returned::Undecided(error)) | Err(error) => {
                    part.failed = Some(error);
                    break;
                }
            }
        }
        part
    }

    /// Commits a position again that Kafka would forget otherwise: then all letters that are still there would go back once
    /// more. What goes wrong with it can wait for the next call.
    async fn renew(&self, partition: i32, position: &Position) {
        let Some(committed) = position.committed.filter(|_| self.retention.is_due(&self.group, position)) else {
            return;
        };
        let (consumers, seen) = (Arc::clone(self.consumers), position.clone());
        let renewed = self.on_slot(partition, move |mut slot, until| {
            let keep = Intent::Keep { seen: seen.committed, from: committed, renewal: true };
            slot.step(consumers.tools(until, &AtomicBool::new(false)), &keep, Some(&seen), None)
        });
        if let Err(error) = renewed.await {
            tracing::warn!(error_chain = error.chain().join(": "), partition, "the position was not renewed");
        }
    }

    /// Shows what would go back, and why each letter is one.
    async fn show(&self, ends: Offsets, limit: usize) -> Result<Reply, Error> {
        let (mut records, mut skipped) = (Vec::new(), 0);
        for (partition, end) in (0..).zip(ends) {
            let about = |error: Error| error.with("topic", self.from.topic().as_str()).with("partition", partition);
            let back = self.asking(end.map_err(about)?, limit - records.len());
            let consumers = Arc::clone(self.consumers);
            let step = move |mut slot: OwnedMutexGuard<Slot>, until| {
                slot.letters(consumers.tools(until, &AtomicBool::new(false)), &back)
            };
            let shown = self.on_slot(partition, step).await.map_err(about)?;
            skipped += shown.skipped;
            for (offset, reason) in shown.letters {
                records.push(json!({ "partition": partition, "offset": offset, "reason": reason }));
            }
            if records.len() == limit {
                break;
            }
        }
        Ok(self.answer(true, (records.len(), skipped), ("records", records)))
    }

    fn asking(&self, end: i64, limit: usize) -> Return {
        Return { target: self.to.clone(), partitions: self.partitions, end, limit }
    }

    /// Does something with a partition's slot, as soon as no other call of this sandbox has it.
    async fn on_slot<T: Send + 'static>(
        &self,
        partition: i32,
        step: impl FnOnce(OwnedMutexGuard<Slot>, Instant) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        loop {
            self.deadline.require()?;
            if let Some(slot) = self.consumers.slot(&self.from, &self.group, partition)? {
                return blocking(self.deadline, move |until| step(slot, until)).await;
            }
            pause().await;
        }
    }

    fn answer(&self, dry_run: bool, (redriven, skipped): (usize, usize), (name, list): (&str, Vec<Value>)) -> Reply {
        let mut body = json!({
            "dlq_topic": self.from.topic().as_str(),
            "topic": self.to.topic().as_str(),
            "dry_run": dry_run,
            "redriven": redriven,
            "skipped": skipped,
        });
        body[name] = list.into();
        Reply::json(200, body.to_string())
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(1..15))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_topic_and_may_bound_it() {
        let ask = Ask::read(br#"{"dlq_topic": "orders.dlq"}"#).expect("a request");
        assert_eq!((ask.letters.as_str(), ask.limit, ask.dry_run), ("orders.dlq", 100, false));
        let ask = Ask::read(br#"{"dlq_topic": "orders.dlq", "limit": 1000, "dry_run": true}"#).expect("a request");
        assert_eq!((ask.limit, ask.dry_run), (1000, true));
        for (body, code) in [
            (r"{}", Code::MissingParameter),
            (r#"{"dlq_topic": "a b"}"#, Code::InvalidParameter),
            (r#"{"dlq_topic": "orders.dlq", "limit": 0}"#, Code::InvalidParameter),
            (r#"{"dlq_topic": "orders.dlq", "limit": 1001}"#, Code::InvalidParameter),
            (r#"{"dlq_topic": "orders.dlq", "dry_run": "yes"}"#, Code::InvalidParameter),
            (r#"{"dlq_topic": "orders.dlq", "topic": "other"}"#, Code::InvalidParameter),
        ] {
            assert_eq!(Ask::read(body.as_bytes()).expect_err(body).code(), code, "{body}");
        }
    }
}
