//! `GET /kafka/consumer/consume`: the next records of a topic for a consumer group.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::auth::{Authorized, May, Read};
use crate::config::{Config, Delivery};
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::http::request::Query;
use crate::http::{Call, Endpoint, Reply, Response};
use crate::kafka::consumers::{Consumers, SAY, blocking};
use crate::kafka::decide::Intent;
use crate::kafka::group::Group;
use crate::kafka::handover::{Ack, Ask, Stepped, Taken};
use crate::kafka::position::{Position, now_ms};
use crate::kafka::retention::Retention;
use crate::lease::Token;
use crate::metrics::{self, Direction};
use crate::names::{GroupId, TopicName};
use crate::record::{self, Format, Formats, Record};

/// The ceiling for `max_bytes`: Lambda's limit for an answer is 6 MB, and what is not counted here must fit as well.
const MAX_BYTES: usize = 6_000_000;

/// How long a partition is left to the function that committed there last, as long as others have records. Longer than
/// the pause between two calls of a busy consumer, shorter than anybody would wait for a dead one.
const STICKY: Duration = Duration::from_secs(1);

/// How often a waiting call looks for new records: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(40));

/// The most partitions that one call takes records from at the same time.
const ABREAST: usize = 8;

/// A call that lost its records to others goes on trying until this much is left of its time.
const CONTEST_END: Duration = Duration::from_millis(500);

/// How many positions a call renews before it takes records.
const RENEWALS: usize = 2;

/// For how long a group is taken to have no live members after a commit has shown it.
const PROBE: Duration = Duration::from_secs(30);

/// `lease_ms`: the shortest, the default, the longest.
pub const LEASE_MS: (u64, u64, u64) = (1_000, 30_000, 600_000);

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Consume {
    consumers: Arc<Consumers>,
    retention: Arc<Retention>,
    delivery: Delivery,
}

impl Endpoint for Consume {
    const FUNCTION: &'static str = "consume";
    const METHOD: &'static str = "GET";
    const PATH: &'static str = "/kafka/consumer/consume";
    type Action = Read;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self {
            consumers: Arc::new(Consumers::new(&config.kafka)),
            retention: Arc::new(Retention::discover(&config.kafka).await),
            delivery: config.kafka.delivery,
        })
    }

    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        let params = Params::read(&call.request.query(Params::KNOWN)?)?;
        if params.manual && self.delivery == Delivery::Shared {
            let detail = "ack: manual needs exclusive delivery, which this deployment has turned off";
            return Err(Error::new(Code::InvalidParameter, detail));
        }
        call.on_topic(&params.topic);
        call.on_group(&params.group);
        let from = may.on((params.topic.clone(), params.group.clone()))?;
        let session = Session {
            group: self.consumers.group(from.group())?,
            consumers: Arc::clone(&self.consumers),
            retention: Arc::clone(&self.retention),
            deadline: call.deadline.extended(params.timeout),
            answer_at: Instant::now() + params.timeout,
            token: Token::new(&params.topic, &params.group),
            principal: from.principal().id().to_owned(),
            leases: self.delivery == Delivery::Exclusive,
            params,
        };
        let result = session.consume(&from).await;
        if session.group.knows(from.topic()) {
            call.topic_exists();
        }
        let batches = result.map_err(|error| error.with("topic", from.topic().as_str()))?;
        let records = batches.iter().map(|batch| batch.messages.len() as u64).sum();
        let bytes = batches.iter().map(|batch| batch.bytes as u64).sum();
        metrics::records_passed(Direction::Consume, from.topic(), records, bytes);
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
        let format = query.choice("format", Format::Auto, Format::WORDS)?;
        let manual = query.choice("ack", false, &[("auto", false), ("manual", true)])?;
        if query.get("lease_ms").is_some() && !manual {
            return Err(Error::new(Code::InvalidParameter, "lease_ms: goes with ack=manual only"));
        }
        let (shortest, default, longest) = LEASE_MS;
        let lease_ms = query.number("lease_ms", default, shortest..=longest)?;
        Ok(Self {
            topic: TopicName::parse(query.required("topic")?)?,
            group: GroupId::parse(query.required("group_id")?)?,
            limit: query.number("limit", 100, 1..=1000)?,
            timeout: Duration::from_millis(query.number("timeout_ms", 1000, 0..=25_000)?),
            max_bytes: query.number("max_bytes", MAX_BYTES, 2048..=MAX_BYTES)?,
            latest: query.choice("start", false, &[("earliest", false), ("latest", true)])?,
            manual,
            lease_ms,
            formats: Formats {
                key: query.choice("key_format", format, Format::WORDS)?,
                value: query.choice("value_format", format, Format::WORDS)?,
            },
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
        self.max_bytes.saturating_sub(Response::ENVELOPE_BYTES + record::weight(&self.head()) + lease + 2)
    }
}

/// What a lease weighs in an answer, beside the names of topic and group, which stand in its token in base64.
const LEASE_WEIGHT: usize = 512;

impl Session {
    fn answer(&self, batches: &[Batch]) -> String {
        let messages = || batches.iter().flat_map(|batch| &batch.messages);
        let mut body = self.params.head();
        body.reserve(messages().map(|message| message.len() + 1).sum::<usize>() + 2);
        for (index, message) in messages().enumerate() {
            if index > 0 {
                body.push(',');
            }
            body.push_str(message);
        }
        body.push(']');
        if self.params.manual && !batches.is_empty() {
            let partitions = batches.iter().map(|batch| batch.partition).collect();
            let until = batches.iter().filter_map(|batch| batch.until).min();
            body.push_str(",\"lease\":");
            body.push_str(&self.lease(partitions, until).to_string());
        }
        body.push('}');
        body
    }

    /// A lease as the caller sees it.
    fn lease(&self, partitions: Vec<i32>, until: Option<u64>) -> Value {
        metrics::lease("granted", partitions.len() as u64);
        json!({ "token": self.token.of(partitions).encode(), "expires_at": until })
    }

    /// How records are handed out in this call.
    fn ack(&self, manual: bool) -> Ack {
        if !manual {
            return Ack::Auto;
        }
        Ack::Manual { lease_ms: self.params.lease_ms, holder: self.token.holder(&self.principal) }
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

/// How many of `records` one answer takes, rendered: at most `limit`, at most `budget` of weight.
fn choose<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    partition: i32,
    formats: Formats,
    attempt: impl Fn(i64) -> Option<u32>,
    limit: usize,
    budget: usize,
) -> Vec<String> {
    let mut left = budget;
    let mut chosen = Vec::new();
    for record in records.into_iter().take(limit) {
        // Not even its bytes would fit: spare the rendering.
        if record.bytes() > left {
            break;
        }
        let message = record::encode(record, partition, formats, attempt(record.offset));
        let Some(rest) = left.checked_sub(record::weight(&message) + 1) else { break };
        left = rest;
        chosen.push(message);
    }
    chosen
}

/// One call on its way.
struct Session {
    group: Arc<Group>,
    consumers: Arc<Consumers>,
    retention: Arc<Retention>,
    /// When the call must be over.
    deadline: Deadline,
    /// When an answer without records goes out.
    answer_at: Instant,
    /// What the leases of this call belong to.
    token: Token,
    principal: String,
    /// Whether leases can be given at all.
    leases: bool,
    params: Params,
}

/// A partition as one look shows it.
#[derive(Debug, Clone)]
struct Seen {
    partition: i32,
    position: Position,
    from: i64,
    end: i64,
}

impl Seen {
    /// How many records there may be; unknown, so any number, where the position lies beyond the end.
    fn waiting(&self) -> usize {
        usize::try_from(self.end - self.from).unwrap_or(usize::MAX)
    }

    /// Whether another function has committed here just now.
    fn is_others(&self, me: u32) -> bool {
        self.position.mark.as_ref().is_some_and(|mark| mark.sandbox != me && mark.age() < STICKY)
    }
}

impl Session {
    /// All partitions: where the group is, and how far they go.
    async fn look(&self) -> Result<Vec<Seen>, Error> {
        let (group, topic, latest) = (Arc::clone(&self.group), self.params.topic.clone(), self.params.latest);
        blocking(self.deadline, move |until| {
            let patience = || until.saturating_duration_since(Instant::now());
            group.drain_events();
            let partitions: Vec<i32> = (0..group.partitions(&topic, patience())?).collect();
            let positions = group.positions(&topic, &partitions, patience())?;
            let ends = group.ends(&topic, &partitions, patience())?;
            let starts = if !latest && positions.iter().any(|position| position.committed.is_none()) {
                group.starts(&topic, &partitions, patience())?
            } else {
                ends.clone()
            };
            let seen = positions.into_iter().zip(partitions).zip(ends.into_iter().zip(starts));
            Ok(seen
                .map(|((position, partition), (end, start))| {
                    let from = position.committed.unwrap_or(start);
                    Seen { partition, position, from, end }
                })
                .collect())
        })
        .await
    }

    /// Looks, takes, and looks again, until there are records, or time is up.
    async fn consume(&self, _: &Authorized<Read>) -> Result<Vec<Batch>, Error> {
        let me = self.consumers.sandbox;
        let mut pause = LOOK.0;
        let mut first_look = true;
        let mut courteous = true;
        let mut alone: Option<i32> = None;
        let mut too_large: HashMap<i32, (i64, usize)> = HashMap::new();
        // Kept by the call as well: a slot that knows it may be evicted, and then the call would never end.
        let mut barren: HashMap<i32, (i64, i64)> = HashMap::new();
        loop {
            let seen = self.look().await?;
            let now = now_ms();
            if std::mem::take(&mut first_look) {
                if self.params.latest {
                    self.fix_start(&seen).await?;
                }
                self.renew(&seen, RENEWALS).await?;
            }
            let mut waiting: Vec<&Seen> = seen
                .iter()
                .filter(|seen| seen.from != seen.end && !too_large.contains_key(&seen.partition))
                .filter(|seen| barren.get(&seen.partition) != Some(&(seen.from, seen.end)) && !self.is_barren(seen))
                .filter(|seen| seen.position.live_lease(now).is_none())
                .collect();
            order(&mut waiting, me);
            let free = waiting.iter().filter(|seen| !seen.is_others(me)).count();
            if let Some(partition) = alone.take() {
                waiting.retain(|seen| seen.partition == partition);
            } else if free > 0 {
                waiting.truncate(free);
            } else if !waiting.is_empty() && std::mem::take(&mut courteous) {
                // All that have records are in other hands. A moment for those to go on, then it is our turn.
                tokio::time::sleep(Duration::from_millis(rand::random_range(2..20))).await;
                continue;
            }
            if waiting.is_empty() {
                // Nothing is left that could be answered with.
                if let Some((partition, (offset, size))) = too_large.drain().next() {
                    let at = seen.iter().find(|seen| seen.partition == partition && seen.end > offset);
                    if let Some(error) = self.too_large(at, offset, size).await? {
                        return Err(error);
                    }
                    continue;
                }
            } else {
                let outcome = self.take(&waiting).await?;
                if !outcome.batches.is_empty() {
                    return Ok(outcome.batches);
                }
                if !outcome.undecided.is_empty() {
                    return Err(undecided_error(&outcome.undecided));
                }
                for seen in waiting.iter().filter(|seen| outcome.barren.contains(&seen.partition)) {
                    barren.insert(seen.partition, (seen.from, seen.end));
                }
                let too_large_before = too_large.len();
                for (partition, offset, size, full_budget) in outcome.too_large {
                    if full_budget {
                        too_large.insert(partition, (offset, size));
                    } else {
                        alone = Some(partition);
                    }
                }
                // Also after a partition without records: others may have some that this look did not reach.
                if alone.is_some() || too_large.len() > too_large_before || !outcome.barren.is_empty() {
                    continue;
                }
                // There are records, but others were faster: the wait for records is over, the contest is not.
                if outcome.lost && self.deadline.left() > CONTEST_END {
                    tokio::time::sleep(Duration::from_millis(rand::random_range(1..15))).await;
                    continue;
                }
            }
            let now = Instant::now();
            if now >= self.answer_at {
                self.renew(&seen, usize::MAX).await?;
                self.probe(&seen).await?;
                return Ok(Vec::new());
            }
            tokio::time::sleep(pause.min(self.answer_at - now)).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Commits again what Kafka would forget otherwise: `at_least` partitions that are due, or a quarter of them.
    async fn renew(&self, seen: &[Seen], at_least: usize) -> Result<(), Error> {
        let due: Vec<&Seen> = seen
            .iter()
            .filter(|seen| self.retention.is_due(&seen.position) && !seen.is_others(self.consumers.sandbox))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let (retention, topic) = (Arc::clone(&self.retention), self.params.topic.clone());
        let group = Arc::clone(&self.group);
        blocking(self.deadline, move |until| retention.refresh(&group, &topic, until)).await?;
        for seen in due.iter().take(at_least.max(due.len().div_ceil(4))) {
            self.commit(seen).await?;
        }
        Ok(())
    }

    /// A call without records commits nothing, and so would not notice that the group has live members. Unless somebody
    /// has committed lately, one position is committed where it is: the coordinator refuses if there are members.
    async fn probe(&self, seen: &[Seen]) -> Result<(), Error> {
        let lately = |seen: &Seen| seen.position.mark.as_ref().is_some_and(|mark| mark.age() < PROBE);
        if seen.iter().any(lately) {
            return Ok(());
        }
        let Some(any) = seen.iter().max_by_key(|seen| seen.position.committed) else { return Ok(()) };
        self.commit(any).await.map(drop)
    }

    fn is_barren(&self, seen: &Seen) -> bool {
        self.consumers.is_barren(&self.group.id, &self.params.topic, seen.partition, seen.from, seen.end)
    }

    /// With `start=latest`: what is the end at first sight is where the group begins, for good. To find the end anew in
    /// each call would lose what came between them.
    async fn fix_start(&self, seen: &[Seen]) -> Result<(), Error> {
        for seen in seen.iter().filter(|seen| seen.position.committed.is_none()) {
            self.commit(seen).await?;
        }
        Ok(())
    }

    /// Commits a partition's position where it is. Whether it was done: not, if another call was faster.
    async fn commit(&self, seen: &Seen) -> Result<bool, Error> {
        let Some(mut slot) = self.consumers.slot(&self.group, &self.params.topic, seen.partition)? else {
            return Ok(false);
        };
        let (consumers, seen) = (Arc::clone(&self.consumers), seen.clone());
        blocking(self.deadline, move |until| {
            let intent = Intent::Keep { seen: seen.position.committed, from: seen.from };
            match slot.step(consumers.tools(until), &intent, Some(&seen.position))? {
                Stepped::Committed(_) => Ok(true),
                Stepped::Refused(..) | Stepped::Fenced => Ok(false),
                Stepped::Undecided(error) => Err(error),
            }
        })
        .await
    }

    /// `413` for a record that alone does not fit into one answer, with a lease of that one record, by which it can be
    /// skipped. Nothing, if somebody else has it by now.
    async fn too_large(&self, seen: Option<&Seen>, offset: i64, size: usize) -> Result<Option<Error>, Error> {
        let Some(seen) = seen else { return Ok(None) };
        let detail = "The next record of this partition does not fit into one answer (max_bytes)";
        let error = Error::new(Code::RecordTooLarge, detail)
            .with("partition", seen.partition)
            .with("offset", offset)
            .with("size", size)
            .with("group_id", self.params.group.as_str());
        if !self.leases {
            return Ok(Some(error));
        }
        let Some(mut slot) = self.consumers.slot(&self.group, &self.params.topic, seen.partition)? else {
            return Ok(None);
        };
        let ask = Ask {
            seen: seen.position.clone(),
            from: seen.from,
            end: seen.end,
            records: 1,
            bytes: 1,
            ack: self.ack(true),
        };
        let consumers = Arc::clone(&self.consumers);
        let taken = blocking(self.deadline, move |until| slot.take(consumers.tools(until), &ask, |_, _| 1)).await?;
        match taken {
            Taken::Records { records, until } if records.iter().any(|record| record.offset == offset) => {
                Ok(Some(error.with("lease", self.lease(vec![seen.partition], until))))
            }
            Taken::Undecided(error) => Err(error),
            _ => Ok(None),
        }
    }

    /// Takes records from the first of `waiting` that together may have enough.
    async fn take(&self, waiting: &[&Seen]) -> Result<Outcome, Error> {
        let mut wanted = self.params.limit;
        let mut asks = Vec::new();
        for seen in waiting.iter().take(ABREAST) {
            let limit = seen.waiting().clamp(1, wanted);
            asks.push(((*seen).clone(), limit));
            wanted -= limit;
            if wanted == 0 {
                break;
            }
        }
        let budget = self.params.budget() / asks.len();
        let full_budget = asks.len() == 1;
        let mut running = JoinSet::new();
        let mut outcome = Outcome::default();
        let mut awaited = HashSet::new();
        for (seen, limit) in asks {
            let Some(mut slot) = self.consumers.slot(&self.group, &self.params.topic, seen.partition)? else {
                outcome.lost = true;
                continue;
            };
            let (consumers, formats) = (Arc::clone(&self.consumers), self.params.formats);
            let (ack, manual) = (self.ack(self.params.manual), self.params.manual);
            let until = self.deadline.within(self.deadline.left().saturating_sub(SAY)).instant().into_std();
            let partition = seen.partition;
            awaited.insert(partition);
            running.spawn_blocking(move || {
                let ask =
                    Ask { seen: seen.position, from: seen.from, end: seen.end, records: limit, bytes: budget, ack };
                let mut messages = Vec::new();
                let taken = slot.take(consumers.tools(until), &ask, |records, position| {
                    let delivered = |offset| position.mark.as_ref().map_or(0, |mark| mark.deliveries(offset));
                    let attempt = |offset| manual.then(|| delivered(offset) + 1);
                    messages = choose(records, partition, formats, attempt, limit, budget);
                    messages.len()
                });
                (partition, taken, messages)
            });
        }
        let mut failed = None;
        loop {
            let Ok(next) = tokio::time::timeout_at(self.deadline.instant(), running.join_next()).await else { break };
            let Some(joined) = next else { break };
            let (partition, taken, messages) = joined.map_err(Error::internal)?;
            awaited.remove(&partition);
            match taken {
                Ok(Taken::Records { records, until }) => {
                    let bytes = records.iter().map(Record::bytes).sum();
                    outcome.batches.push(Batch { partition, messages, bytes, until });
                }
                Ok(Taken::Nothing) => outcome.barren.push(partition),
                Ok(Taken::Lost) => outcome.lost = true,
                Ok(Taken::TooLarge { offset, size }) => outcome.too_large.push((partition, offset, size, full_budget)),
                Ok(Taken::Undecided(error)) => outcome.undecided.push((partition, error)),
                Err(error) => failed = Some(error.with("partition", partition)),
            }
        }
        // A step that librdkafka still holds may yet commit.
        running.detach_all();
        outcome.undecided.extend(awaited.into_iter().map(|partition| (partition, Deadline::exceeded())));
        outcome.batches.sort_by_key(|batch| batch.partition);
        match failed {
            Some(error) if outcome.batches.is_empty() && outcome.undecided.is_empty() => Err(error),
            Some(error) => {
                tracing::warn!(%error, "a partition failed beside others");
                Ok(outcome)
            }
            None => Ok(outcome),
        }
    }
}

/// What came of asking some partitions.
#[derive(Debug, Default)]
struct Outcome {
    batches: Vec<Batch>,
    /// Partition, offset, size, and whether the whole answer was free for it.
    too_large: Vec<(i32, i64, usize, bool)>,
    undecided: Vec<(i32, Error)>,
    lost: bool,
    /// Partitions without a record from the position to the end.
    barren: Vec<i32>,
}

fn undecided_error(undecided: &[(i32, Error)]) -> Error {
    let results: Vec<Value> =
        undecided.iter().map(|(partition, _)| json!({ "partition": partition, "status": "undecided" })).collect();
    Error::new(
        Code::DeadlineExceeded,
        "Kafka did not say in time whether the position was moved. Nothing was handed out; records may be skipped",
    )
    .with("results", results)
}

/// Sorts partitions with records: first those in nobody else's hands, and of these the one that was served longest ago.
fn order(waiting: &mut [&Seen], me: u32) {
    // Equal ones in any order, so that functions that start together do not all want the same.
    waiting.sort_by_cached_key(|seen| {
        let served = seen.position.mark.as_ref().map_or(0, |mark| mark.at);
        (seen.is_others(me), served, rand::random::<u32>())
    });
}
