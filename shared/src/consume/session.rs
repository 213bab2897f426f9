//! One call on its way: it looks, takes, and looks again, until there are records, or time is up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

use super::{Batch, Params};
use crate::auth::{Authorized, Read};
use crate::config::Delivery;
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::kafka::consumers::{Consumers, SAY, blocking};
use crate::kafka::decide::Intent;
use crate::kafka::group::{Group, Offsets, Positions, places};
use crate::kafka::handover::{Ack, Ask, Slot, Stepped, Taken};
use crate::kafka::position::{Mark, Position, now_ms};
use crate::kafka::retention::Retention;
use crate::lease::Token;
use crate::messages::choose;
use crate::record::Record;
use crate::schema::Schemas;

/// How long a partition is left to the function that committed there last, as long as others have records. Longer than
/// the pause between two calls of a busy consumer, shorter than anybody would wait for a dead one.
const STICKY: Duration = Duration::from_secs(1);

/// How often a waiting call looks for new records: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(40));

/// How long a look waits for positions to become stable. A commit takes some milliseconds; what takes longer was left
/// behind by a function that is dead or frozen.
const UNSTABLE: Duration = Duration::from_secs(1);

/// The same for one partition alone, once some are known to be unstable.
const UNSTABLE_ALONE: Duration = Duration::from_millis(100);

/// For how long a call looks again when it can see nothing: leaders and coordinators move within moments.
const BLIND: Duration = Duration::from_secs(3);

/// The most partitions that one call takes records from, or works on otherwise, at the same time.
const ABREAST: usize = 8;

/// A call that lost its records to others goes on trying until this much is left of its time.
const CONTEST_END: Duration = Duration::from_millis(500);

/// How many positions a call renews before it takes records.
const RENEWALS: usize = 2;

/// The longest that a call works on renewing positions.
const RENEWING: Duration = Duration::from_secs(6);

/// For how long a group is taken to have no live members after a commit has shown it.
const PROBE: Duration = Duration::from_secs(30);

/// One call on its way.
pub(super) struct Session {
    pub(super) from: Authorized<Read>,
    pub(super) group: Arc<Group>,
    pub(super) params: Params,
    /// What the leases of this call belong to.
    pub(super) token: Token,
    consumers: Arc<Consumers>,
    retention: Arc<Retention>,
    schemas: Arc<Schemas>,
    /// When the call must be over.
    deadline: Deadline,
    /// When an answer without records goes out.
    answer_at: Instant,
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

    /// Whether another function has committed here just now, and will probably go on.
    fn is_others(&self, me: u32) -> bool {
        let goes_on = |mark: &Mark| !mark.settles() && mark.age() < STICKY;
        self.position.is_anothers(me) && self.position.mark.as_ref().is_some_and(goes_on)
    }
}

/// What one look brings: partitions, positions, last stable offsets; and log starts, if a position needs one to begin at.
type Look = (Vec<i32>, Positions, Offsets, Option<Offsets>);

/// What a call has learned on its way.
#[derive(Default)]
struct Learned {
    /// The partition that gets the next answer for itself, since its next record was too large for its share.
    alone: Option<i32>,
    /// Offset and size of records that are too large for a whole answer.
    too_large: HashMap<i32, (i64, usize)>,
    /// From where to where there is no record. Slots know it too, but may be evicted, and then the call would never end.
    barren: HashMap<i32, (i64, i64)>,
    /// Partitions whose positions it has renewed.
    renewed: HashSet<i32>,
}

impl Session {
    pub(super) fn new(
        from: Authorized<Read>,
        group: Arc<Group>,
        consumers: &Arc<Consumers>,
        retention: &Arc<Retention>,
        schemas: &Arc<Schemas>,
        params: Params,
        deadline: Deadline,
    ) -> Self {
        let deadline = deadline.extended(params.timeout);
        Self {
            token: Token::new(from.group()),
            from,
            group,
            consumers: Arc::clone(consumers),
            retention: Arc::clone(retention),
            schemas: Arc::clone(schemas),
            deadline,
            // An answer without records is better than none, even where the function's own timeout is short.
            answer_at: Instant::now() + params.timeout.min(deadline.left().saturating_sub(CONTEST_END)),
            params,
        }
    }

    /// The next records; none, if there were none in time.
    pub(super) async fn consume(&self) -> Result<Vec<Batch>, Error> {
        let me = self.consumers.sandbox;
        let mut pause = LOOK.0;
        let mut first_look = true;
        let mut courteous = true;
        let mut learned = Learned::default();
        if let Some(batches) = self.go_on().await? {
            return Ok(batches);
        }
        loop {
            let seen = self.look().await?;
            if self.params.latest {
                self.fix_start(&seen).await?;
            }
            if std::mem::take(&mut first_look) {
                self.renew(&seen, RENEWALS, &mut learned).await?;
            }
            let mut waiting = self.waiting(&seen, &learned);
            order(&mut waiting, me);
            let free = waiting.iter().filter(|seen| !seen.is_others(me)).count();
            if let Some(partition) = learned.alone.take() {
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
                let partition = learned.too_large.keys().next().copied();
                if let Some((partition, (offset, size))) = partition.and_then(|it| learned.too_large.remove_entry(&it))
                {
                    let at = seen.iter().find(|seen| seen.partition == partition);
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
                match outcome.hurdle(&mut learned, &waiting)? {
                    Some(Hurdle::Learned) => continue,
                    // There are records, but others were faster: the wait for records is over, the contest is not.
                    Some(Hurdle::Lost) if self.deadline.left() > CONTEST_END => {
                        tokio::time::sleep(Duration::from_millis(rand::random_range(1..15))).await;
                        continue;
                    }
                    Some(Hurdle::Lost) | None => {}
                }
            }
            let now = Instant::now();
            if now >= self.answer_at {
                self.renew(&seen, usize::MAX, &mut learned).await?;
                self.probe(&seen).await?;
                return Ok(Vec::new());
            }
            tokio::time::sleep(pause.min(self.answer_at - now)).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Records that the call before has fetched, of a partition that this sandbox still has a claim on: there is no need
    /// to look around for those. Whether they still are next is read under the claim, as always.
    async fn go_on(&self) -> Result<Option<Vec<Batch>>, Error> {
        // With leases the answer counts deliveries, and only a look shows those.
        let at_hand = (!self.params.manual).then(|| self.consumers.at_hand(&self.from, self.params.limit)).flatten();
        let Some((partition, from, end)) = at_hand else { return Ok(None) };
        let position = Position { committed: Some(from), ..Position::default() };
        let outcome = self.take(&[&Seen { partition, position, from, end }]).await?;
        if !outcome.undecided.is_empty() {
            return Err(undecided(outcome.undecided));
        }
        Ok(Some(outcome.batches).filter(|batches| !batches.is_empty()))
    }

    /// The partitions that may have records for this call.
    fn waiting<'a>(&self, seen: &'a [Seen], learned: &Learned) -> Vec<&'a Seen> {
        let now = now_ms();
        seen.iter()
            .filter(|seen| seen.from != seen.end && !learned.too_large.contains_key(&seen.partition))
            .filter(|seen| seen.position.live_lease(now).is_none())
            .filter(|seen| learned.barren.get(&seen.partition) != Some(&(seen.from, seen.end)))
            .filter(|seen| !self.consumers.hint(&self.from, seen.partition).is_barren(seen.from, seen.end))
            .collect()
    }

    /// All partitions that can be seen: where the group is, and how far they go.
    ///
    /// Errors, if none can be: after a while, since leaders and coordinators move within moments.
    async fn look(&self) -> Result<Vec<Seen>, Error> {
        let begun = Instant::now();
        loop {
            let error = match self.look_once().await {
                Ok((partitions, positions, ends, starts)) => {
                    let mut seen = Vec::with_capacity(partitions.len());
                    let mut failed = None;
                    let mut starts = starts.map(Vec::into_iter);
                    for ((partition, position), end) in partitions.into_iter().zip(positions).zip(ends) {
                        let start = starts.as_mut().and_then(Iterator::next).transpose();
                        match (position, end, start) {
                            (Ok(position), Ok(end), Ok(start)) => {
                                let from = position.committed.or(start).unwrap_or(end);
                                seen.push(Seen { partition, position, from, end });
                            }
                            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                                tracing::debug!(%error, partition, "a partition cannot be seen");
                                failed = Some(error.with("partition", partition));
                            }
                        }
                    }
                    match failed {
                        Some(error) if seen.is_empty() => error,
                        _ => return Ok(seen),
                    }
                }
                Err(error) => error,
            };
            let again = error.code() == Code::BrokerUnavailable && begun.elapsed() < BLIND;
            if !again || self.deadline.left() < CONTEST_END {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn look_once(&self) -> Result<Look, Error> {
        let (group, topic, latest) = (Arc::clone(&self.group), self.from.topic().clone(), self.params.latest);
        let (partitions, positions, ends) = blocking(self.deadline, {
            let (group, topic) = (Arc::clone(&group), topic.clone());
            move |until| {
                let left = || until.saturating_duration_since(Instant::now());
                group.drain_events();
                let partitions: Vec<i32> = (0..group.partitions(&topic, left())?).collect();
                let places = places(&topic, &partitions);
                // Side by side: the one asks the group's coordinator, the other the partitions' leaders.
                let (positions, ends) = std::thread::scope(|scope| {
                    let ends = scope.spawn(|| group.ends(&places, left()));
                    let positions = group.positions(&places, left().min(UNSTABLE));
                    (positions, ends.join())
                });
                let ends = ends.map_err(|_| Error::internal("asking for the ends panicked"))??;
                Ok((partitions, positions, ends))
            }
        })
        .await?;
        let positions = match positions {
            Ok(positions) => positions,
            Err(error) if error.code() == Code::BrokerUnavailable => self.unstable(&partitions, error).await?,
            Err(error) => return Err(error),
        };
        let is_new = |position: &Position| position.committed.is_none();
        if latest || !positions.iter().flatten().any(is_new) {
            return Ok((partitions, positions, ends, None));
        }
        blocking(self.deadline, move |until| {
            let starts = group.starts(&places(&topic, &partitions), until.saturating_duration_since(Instant::now()))?;
            Ok((partitions, positions, ends, Some(starts)))
        })
        .await
    }

    /// Positions, when they could not be read all together. Where a transaction is pending for long, the function that
    /// began it is dead or frozen: to claim the position ends it at once, instead of at its timeout.
    async fn unstable(&self, partitions: &[i32], error: Error) -> Result<Positions, Error> {
        let mut positions = Vec::new();
        let mut freed = 0;
        for &partition in partitions {
            let (group, topic) = (Arc::clone(&self.group), self.from.topic().clone());
            let alone = move |_| group.position((&topic, partition), UNSTABLE_ALONE);
            let mut position = blocking(self.deadline, alone.clone()).await;
            if position.is_err()
                && freed < ABREAST
                && let Some(mut slot) = self.slot(partition)?
            {
                freed += 1;
                let consumers = Arc::clone(&self.consumers);
                let deadline = self.deadline.within(2 * UNSTABLE);
                let unblocked =
                    blocking(deadline, move |until| slot.unblock(consumers.tools(until, &AtomicBool::new(false))));
                if unblocked.await.is_err() {
                    // Not a matter of one partition, then.
                    return Err(error);
                }
                position = blocking(self.deadline, alone).await;
            }
            positions.push(position);
        }
        Ok(positions)
    }

    fn slot(&self, partition: i32) -> Result<Option<OwnedMutexGuard<Slot>>, Error> {
        self.consumers.slot(&self.from, &self.group, partition)
    }

    /// With `start=latest`: what is the end at first sight is where the group begins, for good. To find the end anew in
    /// each call would lose what came between them.
    ///
    /// A partition that is added to a topic later begins where its end is when a call first sees it, as with any consumer
    /// of `latest`.
    async fn fix_start(&self, seen: &[Seen]) -> Result<(), Error> {
        let new: Vec<&Seen> = seen.iter().filter(|seen| seen.position.committed.is_none()).collect();
        for some in new.chunks(ABREAST) {
            futures_util::future::try_join_all(some.iter().map(|seen| self.keep(seen, false))).await?;
        }
        Ok(())
    }

    /// Commits again what Kafka would forget otherwise: `at_least` partitions that are due, or a quarter of them.
    ///
    /// Errors: only what would refuse the call itself. What else goes wrong can wait, and must not fail a call.
    async fn renew(&self, seen: &[Seen], at_least: usize, learned: &mut Learned) -> Result<(), Error> {
        let due: Vec<&Seen> = seen
            .iter()
            .filter(|seen| {
                self.retention.is_due(&self.group, &seen.position) && !seen.is_others(self.consumers.sandbox)
            })
            .filter(|seen| !learned.renewed.contains(&seen.partition))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let (group, retention, topic) =
            (Arc::clone(&self.group), Arc::clone(&self.retention), self.from.topic().clone());
        let deadline = self.deadline.within(RENEWING);
        let mut renewed = blocking(deadline, move |until| retention.refresh(&group, &topic, until)).await;
        for seen in due.iter().take(at_least.max(due.len().div_ceil(4))) {
            if renewed.is_err() || deadline.left() < CONTEST_END {
                break;
            }
            renewed = self.keep(seen, true).await.map(drop);
            learned.renewed.insert(seen.partition);
        }
        if renewed.is_err() {
            self.retention.put_off();
        }
        self.tolerate(renewed)
    }

    /// A call without records commits nothing, and so would not notice that the group has live members. Unless somebody
    /// has committed lately, one position is committed where it is: the coordinator refuses if there are members.
    async fn probe(&self, seen: &[Seen]) -> Result<(), Error> {
        let lately = |seen: &Seen| seen.position.mark.as_ref().is_some_and(|mark| mark.age() < PROBE);
        if seen.iter().any(lately) {
            return Ok(());
        }
        let Some(any) = seen.iter().max_by_key(|seen| seen.position.committed) else { return Ok(()) };
        let probed = self.keep(any, false).await.map(drop);
        self.tolerate(probed)
    }

    /// Passes on what refuses the caller, and logs what is only a hitch.
    fn tolerate(&self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(error) if !matches!(error.code(), Code::GroupInUse | Code::TopicForbidden | Code::Forbidden) => {
                tracing::warn!(error_chain = error.chain().join(": "), group = %self.group.id, "a position was not renewed");
                Ok(())
            }
            other => other,
        }
    }

    /// Commits a partition's position where it is. Whether it was done: not, if another call was faster.
    async fn keep(&self, seen: &Seen, renewal: bool) -> Result<bool, Error> {
        let Some(mut slot) = self.slot(seen.partition)? else { return Ok(false) };
        let (consumers, seen) = (Arc::clone(&self.consumers), seen.clone());
        blocking(self.deadline, move |until| {
            let intent = Intent::Keep { seen: seen.position.committed, from: seen.from, renewal };
            match slot.step(consumers.tools(until, &AtomicBool::new(false)), &intent, Some(&seen.position))? {
                Stepped::Committed(_) => Ok(true),
                Stepped::Refused(..) | Stepped::Fenced => Ok(false),
                Stepped::Undecided(error) => Err(error),
            }
        })
        .await
    }

    /// How records are handed out in this call.
    fn ack(&self, manual: bool) -> Ack {
        if !manual {
            return Ack::Auto;
        }
        Ack::Manual { lease_ms: self.params.lease_ms, holder: self.token.holder(self.from.principal().id()) }
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
            .with("group_id", self.from.group().as_str());
        if self.consumers.delivery == Delivery::Shared {
            return Ok(Some(error));
        }
        let Some(mut slot) = self.slot(seen.partition)? else { return Ok(None) };
        let ask = Ask {
            seen: seen.position.clone(),
            from: seen.from,
            end: seen.end,
            records: 1,
            bytes: 1,
            ack: self.ack(true),
        };
        let consumers = Arc::clone(&self.consumers);
        let taken = blocking(self.deadline, move |until| {
            slot.take(consumers.tools(until, &AtomicBool::new(false)), &ask, |_, _| Ok(1))
        });
        match taken.await? {
            Taken::Records { records, until } if records.iter().any(|record| record.offset == offset) => {
                Ok(Some(error.with("lease", self.lease(vec![seen.partition], until))))
            }
            Taken::Undecided(error) => Err(error),
            _ => Ok(None),
        }
    }

    /// Takes records from the first of `waiting` that together may have enough.
    async fn take(&self, waiting: &[&Seen]) -> Result<Outcome, Error> {
        let mut asks = Vec::new();
        let mut wanted = self.params.limit;
        let mut outcome = Outcome::default();
        for &seen in waiting {
            let oversized = self.consumers.hint(&self.from, seen.partition).is_oversized(seen.from);
            if oversized && !asks.is_empty() {
                // It gets an answer for itself, as soon as it is the first.
                continue;
            }
            let Some(slot) = self.slot(seen.partition)? else {
                outcome.lost = true;
                continue;
            };
            let limit = seen.waiting().clamp(1, wanted);
            asks.push((seen.clone(), slot, limit));
            wanted -= limit;
            if wanted == 0 || oversized || asks.len() == ABREAST {
                break;
            }
        }
        outcome.whole = asks.len() == 1;
        let budget = self.params.budget() / asks.len().max(1);
        let until = self.deadline.within(self.deadline.left().saturating_sub(SAY)).instant().into_std();
        let mut running = JoinSet::new();
        let mut awaited: HashMap<i32, Arc<AtomicBool>> = HashMap::new();
        for (seen, mut slot, limit) in asks {
            let (consumers, formats) = (Arc::clone(&self.consumers), self.params.formats);
            let (ack, manual) = (self.ack(self.params.manual), self.params.manual);
            let committing = Arc::new(AtomicBool::new(false));
            let partition = seen.partition;
            awaited.insert(partition, Arc::clone(&committing));
            let (schemas, deadline, runtime) = (Arc::clone(&self.schemas), self.deadline, Handle::current());
            running.spawn_blocking(move || {
                let Seen { position, from, end, .. } = seen;
                let ask = Ask { seen: position, from, end, records: limit, bytes: budget, ack };
                let mut messages = Vec::new();
                let taken = slot.take(consumers.tools(until, &committing), &ask, |records, position| {
                    let delivered = |offset| position.mark.as_ref().map_or(0, |mark| mark.deliveries(offset));
                    let attempt = |offset| manual.then(|| delivered(offset) + 1);
                    // Before anything is claimed: without the registry, the records stay where they are.
                    let rendering = schemas.rendering(records.iter().take(limit), formats, deadline);
                    let rendering = runtime.block_on(rendering)?;
                    messages = choose(records, partition, &rendering, attempt, limit, budget);
                    Ok(messages.len())
                });
                (partition, taken, messages)
            });
        }
        while let Ok(Some(joined)) = tokio::time::timeout_at(self.deadline.instant(), running.join_next()).await {
            match joined {
                Ok((partition, taken, messages)) => {
                    awaited.remove(&partition);
                    outcome.add(partition, taken, messages);
                }
                // A panic, logged by now, of one partition; its neighbours' records are committed.
                Err(error) => outcome.failed = Some(Error::internal(error)),
            }
        }
        // librdkafka holds a step for longer than it was told. If it has begun to commit, it may yet.
        running.detach_all();
        for (partition, committing) in awaited {
            if committing.load(Ordering::Relaxed) {
                outcome.undecided.push((partition, Deadline::exceeded()));
            } else {
                outcome.failed.get_or_insert_with(Deadline::exceeded);
            }
        }
        outcome.batches.sort_by_key(|batch| batch.partition);
        if !outcome.batches.is_empty() {
            for (partition, error) in &outcome.undecided {
                tracing::warn!(%error, partition, "a partition's records may be skipped, beside others handed out");
            }
            if let Some(error) = &outcome.failed {
                tracing::warn!(error_chain = error.chain().join(": "), "a partition failed, beside others handed out");
            }
        }
        Ok(outcome)
    }
}

/// Why a call has no records yet.
#[derive(Debug)]
enum Hurdle {
    /// Others were faster.
    Lost,
    /// Now it is known which partition to ask, or not to ask.
    Learned,
}

/// What came of asking some partitions.
#[derive(Debug, Default)]
struct Outcome {
    batches: Vec<Batch>,
    /// Partition, offset, size.
    too_large: Vec<(i32, i64, usize)>,
    /// Whether the whole answer was free for one partition.
    whole: bool,
    undecided: Vec<(i32, Error)>,
    lost: bool,
    /// Partitions without a record from the position to the end.
    barren: Vec<i32>,
    failed: Option<Error>,
}

impl Outcome {
    fn add(&mut self, partition: i32, taken: Result<Taken, Error>, messages: Vec<String>) {
        match taken {
            Ok(Taken::Records { records, until }) => {
                let bytes = records.iter().map(Record::payload_bytes).sum();
                self.batches.push(Batch { partition, messages, bytes, until });
            }
            Ok(Taken::Nothing) => self.barren.push(partition),
            Ok(Taken::Lost) => self.lost = true,
            Ok(Taken::TooLarge { offset, size }) => self.too_large.push((partition, offset, size)),
            Ok(Taken::Undecided(error)) => self.undecided.push((partition, error)),
            Err(error) => self.failed = Some(error.with("partition", partition)),
        }
    }

    /// What to do when nothing was handed out: an error to answer with, or what stands in the way.
    fn hurdle(self, learned: &mut Learned, waiting: &[&Seen]) -> Result<Option<Hurdle>, Error> {
        if !self.undecided.is_empty() {
            return Err(undecided(self.undecided));
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        let news = !self.barren.is_empty() || !self.too_large.is_empty();
        for seen in waiting.iter().filter(|seen| self.barren.contains(&seen.partition)) {
            learned.barren.insert(seen.partition, (seen.from, seen.end));
        }
        for (partition, offset, size) in self.too_large {
            if self.whole {
                learned.too_large.insert(partition, (offset, size));
            } else {
                learned.alone = Some(partition);
            }
        }
        Ok(if news { Some(Hurdle::Learned) } else { self.lost.then_some(Hurdle::Lost) })
    }
}

fn undecided(undecided: Vec<(i32, Error)>) -> Error {
    let list = |(partition, _): &(i32, Error)| json!({ "partition": partition, "status": "undecided" });
    let results: Vec<Value> = undecided.iter().map(list).collect();
    let detail =
        "Kafka did not say in time whether the position was moved. Nothing was handed out; records may be skipped";
    let error = Error::new(Code::DeadlineExceeded, detail).with("results", results);
    match undecided.into_iter().next() {
        Some((_, cause)) => error.source(cause),
        None => error,
    }
}

/// Sorts partitions with records: first those in nobody else's hands, and of these the one that was served longest ago.
fn order(waiting: &mut [&Seen], me: u32) {
    // Equal ones in any order, so that functions that start together do not all want the same.
    waiting.sort_by_cached_key(|seen| {
        let served = seen.position.mark.as_ref().map_or(0, |mark| mark.at);
        (seen.is_others(me), served, rand::random::<u32>())
    });
}
