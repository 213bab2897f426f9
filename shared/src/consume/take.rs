//! Taking records from some partitions side by side, and what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

use super::answer::Batch;
use super::look::{At, Seen};
use super::session::{ABREAST, Learned, Session};
use crate::config::Delivery;
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::kafka::consumers::{SAY, blocking};
use crate::kafka::decide::is_suspect;
use crate::kafka::handover::{Ack, Ask, Slot, Taken};
use crate::kafka::position::Mark;
use crate::messages::choose;
use crate::record::{Record, Records};

/// A partition that is to be asked for so many records at most.
type Wish = (Seen, OwnedMutexGuard<Slot>, usize);

impl Session {
    /// How records are handed out in this call.
    fn ack(&self, manual: bool) -> Ack {
        if !manual {
            return Ack::Auto;
        }
        let principal = self.topics[0].from.principal().id();
        Ack::Manual { lease_ms: self.terms.lease_ms, holder: self.token.holder(principal) }
    }

    /// `413` for a record that alone does not fit into one answer, with a lease of that one record, by which it can be
    /// skipped. Nothing, if somebody else has it by now.
    pub(super) async fn too_large(
        &self,
        seen: Option<&Seen>,
        offset: i64,
        size: usize,
    ) -> Result<Option<Error>, Error> {
        let Some(seen) = seen.filter(|seen| seen.from <= offset) else { return Ok(None) };
        let detail = "The next record of this partition does not fit into one answer (max_bytes)";
        let error = Error::new(Code::RecordTooLarge, detail).with("offset", offset).with("size", size);
        let error = self.about(seen.at, error).with("group_id", self.group.id.as_str());
        if self.parts.consumers.delivery == Delivery::Shared {
            return Ok(Some(error));
        }
        let Some(mut slot) = self.slot(seen.at)? else { return Ok(None) };
        let ask = Ask {
            seen: seen.position.clone(),
            from: seen.from,
            end: seen.end,
            records: 1,
            bytes: 1,
            alone: true,
            ack: self.ack(true),
        };
        let parts = Arc::clone(&self.parts);
        let taken = blocking(self.deadline, move |until| {
            let committing = AtomicBool::new(false);
            let tools = parts.consumers.tools(until, &committing);
            // Only this one: with the lease of another the caller could do nothing.
            let choose = |records: &Records, _: Option<&Mark>, _| {
                Ok(usize::from(records.front().is_some_and(|first| first.offset == offset)))
            };
            slot.take(tools, &parts.consumers.dead_letters, &ask, choose)
        });
        match taken.await? {
            Taken::Records { until, .. } => Ok(Some(error.with("lease", self.lease(&[seen.at], until)))),
            Taken::Undecided(error) => Err(undecided(self, vec![(seen.at, error)])),
            _ => Ok(None),
        }
    }

    /// Which partitions to ask, of those `waiting`: the first ones that together may have enough. Topics share what is
    /// wanted. Also whether others have some of them.
    fn wishes(&self, waiting: &[&Seen]) -> Result<(Vec<Wish>, bool), Error> {
        let mut left = shares(waiting, |topic| self.topics[topic].limit, self.terms.wanted.limit);
        let (mut wishes, mut lost) = (Vec::new(), false);
        for &seen in waiting {
            let Some(left) = left.get_mut(&seen.at.0).filter(|left| **left > 0) else { continue };
            let hint = self.parts.consumers.hint(&self.topics[seen.at.0].from, seen.at.1);
            let for_itself = hint.is_oversized(seen.from) || self.is_suspect(seen);
            if for_itself && !wishes.is_empty() {
                // It gets an answer for itself, as soon as it is the first.
                continue;
            }
            let Some(slot) = self.slot(seen.at)? else {
                lost = true;
                continue;
            };
            let limit = seen.waiting().clamp(1, *left);
            *left -= limit;
            wishes.push((seen.clone(), slot, limit));
            if for_itself || wishes.len() == ABREAST {
                break;
            }
        }
        Ok((wishes, lost))
    }

    /// Whether the next record of a partition must have the whole answer for itself, or nobody could tell whose fault it is
    /// if that is not accepted. One that is given up need not be asked for.
    fn is_suspect(&self, seen: &Seen) -> bool {
        let most = self.parts.consumers.dead_letters.most(self.topic(seen.at)).filter(|_| self.terms.manual);
        let known = seen.position.known(seen.from);
        let deliveries = known.map_or(0, |mark| mark.deliveries(seen.from));
        most.is_some_and(|most| {
            is_suspect(deliveries, most) && !known.is_some_and(|mark| mark.is_hopeless(seen.from, most))
        })
    }

    /// Takes records from the first of `waiting` that together may have enough.
    pub(super) async fn take(&self, waiting: &[&Seen], learned: &Learned) -> Result<Outcome, Error> {
        let (wishes, lost) = self.wishes(waiting)?;
        let mut outcome = Outcome { lost, whole: wishes.len() == 1, ..Outcome::default() };
        // Topics share the budget, and so do the partitions of each.
        let mut of_topic = HashMap::<usize, usize>::new();
        for (seen, ..) in &wishes {
            *of_topic.entry(seen.at.0).or_default() += 1;
        }
        let budget = self.budget(of_topic.keys().copied(), &learned.unseen) / of_topic.len().max(1);
        let until = self.deadline.within(self.deadline.left().saturating_sub(SAY)).instant().into_std();
        let mut running = JoinSet::new();
        let mut awaited: HashMap<At, Arc<AtomicBool>> = HashMap::new();
        for (seen, mut slot, limit) in wishes {
            let (parts, formats, manual) = (Arc::clone(&self.parts), self.terms.wanted.formats, self.terms.manual);
            let (ack, origin, budget) = (self.ack(manual), self.origin(seen.at), budget / of_topic[&seen.at.0]);
            let alone = outcome.whole;
            let committing = Arc::new(AtomicBool::new(false));
            awaited.insert(seen.at, Arc::clone(&committing));
            let (deadline, runtime) = (self.deadline, Handle::current());
            running.spawn_blocking(move || {
                let Seen { at, position, from, end } = seen;
                let ask = Ask { seen: position, from, end, records: limit, bytes: budget, alone, ack };
                let mut messages = Vec::new();
                let (tools, dead_letters) = (parts.consumers.tools(until, &committing), &parts.consumers.dead_letters);
                let taken = slot.take(tools, dead_letters, &ask, |records, known, limit| {
                    let delivered = |offset| known.map_or(0, |mark| mark.deliveries(offset));
                    let attempt = |offset| manual.then(|| delivered(offset) + 1);
                    // Before anything is claimed: without the registry, the records stay where they are.
                    let rendering = parts.schemas.rendering(records.iter().take(limit), formats, deadline);
                    let rendering = runtime.block_on(rendering)?;
                    messages = choose(records, origin.clone(), &rendering, attempt, limit, budget);
                    Ok(messages.len())
                });
                if matches!(taken, Err(_) | Ok(Taken::Unburied(_))) {
                    slot.note_failed();
                }
                (at, taken, messages)
            });
        }
        while let Ok(Some(joined)) = tokio::time::timeout_at(self.deadline.instant(), running.join_next()).await {
            match joined {
                Ok((at, taken, messages)) => {
                    awaited.remove(&at);
                    outcome.add(self, at, taken, messages);
                }
                // A panic, logged by now, of one partition; its neighbours' records are committed.
                Err(error) => outcome.failed = Some(Error::internal(error)),
            }
        }
        // librdkafka holds a step for longer than it was told. If it has begun to commit, it may yet.
        running.detach_all();
        for (at, committing) in awaited {
            if committing.load(Ordering::Relaxed) {
                outcome.undecided.push((at, Deadline::exceeded()));
            } else {
                outcome.failed.get_or_insert_with(Deadline::exceeded);
            }
        }
        outcome.batches.sort_by_key(|batch| batch.at);
        if !outcome.batches.is_empty() {
            for (at, error) in &outcome.undecided {
                let (topic, partition) = (self.topic(*at), at.1);
                tracing::warn!(%error, %topic, partition, "a partition's records may be skipped, beside others handed out");
            }
            for error in outcome.failed.iter().chain(outcome.unburied.iter().map(|(_, error)| error)) {
                tracing::warn!(error_chain = error.chain().join(": "), "a partition failed, beside others handed out");
            }
        }
        Ok(outcome)
    }
}

/// How many of `total` records each topic gets, of those whose turn it is: one after another, one record at a time, until
/// each has what it wants (at most its `limit`) or no more are left.
fn shares(waiting: &[&Seen], limit: impl Fn(usize) -> usize, total: usize) -> HashMap<usize, usize> {
    let mut topics: Vec<(usize, usize, usize)> = Vec::new();
    for (turn, seen) in waiting.iter().enumerate() {
        let (topic, wanted) = (seen.at.0, seen.waiting().max(1));
        if let Some((_, wants, _)) = topics.iter_mut().find(|(known, ..)| *known == topic) {
            *wants = wants.saturating_add(wanted).min(limit(topic));
        } else if turn < ABREAST {
            topics.push((topic, wanted.min(limit(topic)), 0));
        }
    }
    let mut left = total;
    while left > 0 && topics.iter().any(|(_, wants, gets)| gets < wants) {
        for (_, _, gets) in topics.iter_mut().filter(|(_, wants, gets)| gets < wants).take(left) {
            *gets += 1;
            left -= 1;
        }
    }
    topics.into_iter().map(|(topic, _, gets)| (topic, gets)).collect()
}

/// Why a call has no records yet.
#[derive(Debug)]
pub(super) enum Hurdle {
    /// Others were faster.
    Lost,
    /// Now it is known which partition to ask, or not to ask.
    Learned,
}

/// What came of asking some partitions.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) batches: Vec<Batch>,
    /// Partition, offset, size.
    too_large: Vec<(At, i64, usize)>,
    /// Whether the whole answer was free for one partition.
    whole: bool,
    pub(super) undecided: Vec<(At, Error)>,
    lost: bool,
    /// Whether a record became a dead letter: there may be others behind it.
    buried: bool,
    unburied: Vec<(At, Error)>,
    /// Partitions without a record from the position to the end.
    barren: Vec<At>,
    failed: Option<Error>,
}

impl Outcome {
    fn add(&mut self, session: &Session, at: At, taken: Result<Taken, Error>, messages: Vec<String>) {
        match taken {
            Ok(Taken::Records { records, until }) => {
                let bytes = records.iter().map(Record::payload_bytes).sum();
                self.batches.push(Batch { at, messages, bytes, until });
            }
            Ok(Taken::Nothing) => self.barren.push(at),
            Ok(Taken::Lost) => self.lost = true,
            Ok(Taken::TooLarge { offset, size }) => self.too_large.push((at, offset, size)),
            Ok(Taken::Buried) => self.buried = true,
            Ok(Taken::Unburied(error)) => self.unburied.push((at, error)),
            Ok(Taken::Undecided(error)) => self.undecided.push((at, error)),
            Err(error) => {
                // What may be over in a moment hides nothing that is not.
                if self.failed.is_none() || error.code() != Code::BrokerUnavailable {
                    self.failed = Some(session.about(at, error));
                }
            }
        }
    }

    /// What to do when nothing was handed out: an error to answer with, or what stands in the way.
    pub(super) fn hurdle(
        self,
        session: &Session,
        learned: &mut Learned,
        waiting: &[&Seen],
    ) -> Result<Option<Hurdle>, Error> {
        if !self.undecided.is_empty() {
            return Err(undecided(session, self.undecided));
        }
        let news = !self.barren.is_empty() || !self.too_large.is_empty() || self.buried || !self.unburied.is_empty();
        learned.unburied.extend(self.unburied);
        for seen in waiting.iter().filter(|seen| self.barren.contains(&seen.at)) {
            learned.barren.insert(seen.at, (seen.from, seen.end));
        }
        for (at, offset, size) in self.too_large {
            if self.whole {
                learned.too_large.insert(at, (offset, size));
            } else {
                learned.alone = Some(at);
            }
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        Ok(if news { Some(Hurdle::Learned) } else { self.lost.then_some(Hurdle::Lost) })
    }
}

pub(super) fn undecided(session: &Session, undecided: Vec<(At, Error)>) -> Error {
    let list = |(at, _): &(At, Error)| json!({ "topic": session.topic(*at).as_str(), "partition": at.1, "status": "undecided" });
    let results: Vec<Value> = undecided.iter().map(list).collect();
    let detail =
        "Kafka did not say in time whether the position was moved. Nothing was handed out; records may be skipped";
    let error = Error::new(Code::DeadlineExceeded, detail).with("results", results);
    match undecided.into_iter().next() {
        Some((_, cause)) => error.source(cause),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::position::Position;

    fn seen(topic: usize, partition: i32, records: i64) -> Seen {
        Seen { at: (topic, partition), position: Position::default(), from: 100, end: 100 + records }
    }

    fn shares(waiting: &[Seen], limits: &[usize], total: usize) -> Vec<(usize, usize)> {
        let waiting: Vec<&Seen> = waiting.iter().collect();
        let mut shares: Vec<_> = super::shares(&waiting, |topic| limits[topic], total).into_iter().collect();
        shares.sort_unstable();
        shares
    }

    #[test]
    fn topics_share_what_is_wanted_and_leave_nothing_to_waste() {
        let two = [seen(0, 0, 5000), seen(1, 0, 3), seen(0, 1, 5000)];
        assert_eq!(shares(&two, &[1000, 1000], 100), [(0, 97), (1, 3)], "a busy topic leaves the other its own");
        assert_eq!(shares(&two, &[10, 1000], 100), [(0, 10), (1, 3)]);
        assert_eq!(shares(&two[..1], &[1000], 100), [(0, 100)]);
        assert_eq!(shares(&two, &[1000, 1000], 1), [(0, 1), (1, 0)], "whose turn it is first");
        let three = [seen(2, 0, 50), seen(0, 0, 50), seen(1, 0, 50)];
        assert_eq!(shares(&three, &[1000; 3], 100), [(0, 33), (1, 33), (2, 34)]);
        // A position beyond the end: nobody knows how many.
        assert_eq!(shares(&[seen(0, 0, -5), seen(0, 1, -5), seen(1, 0, 1)], &[9; 2], 100), [(0, 9), (1, 1)]);
        // Topics whose turn does not come in this answer get nothing of it.
        let many: Vec<Seen> = (0..20).map(|topic| seen(topic, 0, 50)).collect();
        assert_eq!(shares(&many, &[1000; 20], 80), (0..8).map(|topic| (topic, 10)).collect::<Vec<_>>());
    }
}
