//! What a sandbox keeps of one group's partition, and the one step in which records change hands.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::config::ClientConfig;

use super::claim::{Claim, Committed};
use super::fetch::{Fetched, Window};
use super::group::Group;
use super::position::{Mark, Position};
use crate::config::Delivery;
use crate::errors::{Code, Error};
use crate::names::TopicName;
use crate::record::{Record, Records};

/// One group's partition in this sandbox: the records fetched ahead, and the claim, while it lasts.
#[derive(Debug)]
pub struct Slot {
    group: Arc<Group>,
    topic: TopicName,
    partition: i32,
    window: Window,
    claim: Option<Claim>,
    delivery: Delivery,
    /// Up to where there is no record after a position: transactions leave offsets without records.
    barren: Option<(i64, i64)>,
}

/// What a call asks of a partition.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The position as it was seen; what is handed out is handed out only if it still is so.
    pub seen: Position,
    /// Where to read from: the committed offset, or where a group without one begins.
    pub from: i64,
    /// The last stable offset as it was seen.
    pub end: i64,
    /// The most records.
    pub records: usize,
    /// The most bytes.
    pub bytes: usize,
    /// This sandbox.
    pub holder: u32,
}

/// What came of it.
#[derive(Debug)]
pub enum Taken {
    /// These records are the caller's, and nobody else's. Never empty.
    Records(Vec<Record>),
    /// Between the position and the end there is no record.
    Nothing,
    /// Somebody else was faster.
    Lost,
    /// The next record alone does not fit.
    TooLarge {
        /// Its offset.
        offset: i64,
        /// Its bytes.
        size: usize,
    },
    /// Whether the position was moved could not be learned; nothing is handed out.
    Undecided(Error),
}

impl Slot {
    /// Nothing fetched, nothing claimed.
    pub fn new(group: &Arc<Group>, topic: &TopicName, partition: i32, delivery: Delivery) -> Result<Self, Error> {
        Ok(Self {
            group: Arc::clone(group),
            topic: topic.clone(),
            partition,
            window: Window::new(group, topic, partition)?,
            claim: None,
            delivery,
            barren: None,
        })
    }

    /// Whether it is known that there is no record from `from` to `end`.
    pub fn is_barren(&self, from: i64, end: i64) -> bool {
        self.barren.is_some_and(|(start, barren_to)| start == from && end <= barren_to)
    }

    /// Hands out the next records: fetches, claims, reads again, commits. Blocks.
    ///
    /// `choose` says how many of the fetched records are taken, from the first on; none, if the first does not fit.
    pub fn take(
        &mut self,
        settings: &ClientConfig,
        ask: &Ask,
        mut choose: impl FnMut(&Records) -> usize,
        until: Instant,
    ) -> Result<Taken, Error> {
        let (mut seen, mut from) = (ask.seen.clone(), ask.from);
        // Twice: with the claim in hand, a position that had been moved before is worth a second look.
        for _ in 0..2 {
            if self.window.fill(from, ask.records, ask.bytes, ask.end, until)? == Fetched::OutOfRange {
                from = self.restart(from, until)?;
                if self.window.fill(from, ask.records, ask.bytes, ask.end, until)? == Fetched::OutOfRange {
                    return Ok(Taken::Lost);
                }
            }
            let Some(first) = self.window.records().front() else {
                self.barren = Some((from, self.window.offset_after(0).max(ask.end)));
                return Ok(Taken::Nothing);
            };
            let (offset, size) = (first.offset, first.bytes());
            let count = choose(self.window.records());
            if count == 0 {
                return Ok(Taken::TooLarge { offset, size });
            }
            let now = self.claim_and_read(settings, &seen, until)?;
            if now.committed == seen.committed {
                let next = self.window.offset_after(count);
                let nonce = rand::random();
                let mut mark = Mark::next(now.mark.as_ref(), ask.holder, nonce);
                if now.committed.is_none() {
                    // A position that begins here has no past that Kafka could forget.
                    mark = mark.renewing();
                }
                return Ok(match self.advance(settings, next, &mark, nonce, until)? {
                    Advance::Done => Taken::Records(self.window.take(count)),
                    Advance::Lost => Taken::Lost,
                    Advance::Undecided(error) => Taken::Undecided(error),
                });
            }
            let Some(committed) = now.committed else { return Ok(Taken::Lost) };
            from = committed;
            seen = now;
        }
        Ok(Taken::Lost)
    }

    /// Commits `offset` without handing anything out, if the position still is what was seen: it fixes where a new group
    /// begins, renews a position before Kafka forgets it, and proves that the group has no live members. Returns whether
    /// it was done.
    pub fn commit(
        &mut self,
        settings: &ClientConfig,
        seen: &Position,
        offset: i64,
        holder: u32,
        until: Instant,
    ) -> Result<bool, Error> {
        let now = self.claim_and_read(settings, seen, until)?;
        if now.committed != seen.committed {
            return Ok(false);
        }
        let nonce = rand::random();
        let mark = Mark::next(now.mark.as_ref(), holder, nonce).renewing();
        match self.advance(settings, offset, &mark, nonce, until)? {
            Advance::Done => Ok(true),
            Advance::Lost => Ok(false),
            Advance::Undecided(error) => Err(error),
        }
    }

    /// Makes sure of the claim, and reads the position under it. With shared delivery there is no claim, and what was
    /// seen before has to do.
    fn claim_and_read(&mut self, settings: &ClientConfig, seen: &Position, until: Instant) -> Result<Position, Error> {
        if self.delivery == Delivery::Shared {
            return Ok(seen.clone());
        }
        let claim = match self.claim.take() {
            Some(claim) => claim,
            None => Claim::take(settings, &self.group, &self.topic, self.partition, until)?,
        };
        let read = claim.position(until);
        self.claim = Some(claim);
        read
    }

    /// Moves the position to `offset`.
    fn advance(
        &mut self,
        settings: &ClientConfig,
        offset: i64,
        mark: &Mark,
        nonce: u64,
        until: Instant,
    ) -> Result<Advance, Error> {
        // It leaves the slot, so that whatever goes wrong drops it.
        let Some(claim) = self.claim.take() else {
            self.group.commit_plain(&self.topic, self.partition, offset, mark)?;
            return Ok(Advance::Done);
        };
        match claim.commit(offset, mark, until)? {
            Committed::Yes => {
                self.claim = Some(claim);
                Ok(Advance::Done)
            }
            Committed::Fenced => Ok(Advance::Lost),
            Committed::Undecided(error) => match claim.settle(settings, &error, nonce, until) {
                Ok((claim, done)) => {
                    self.claim = claim;
                    Ok(if done { Advance::Done } else { Advance::Lost })
                }
                Err(unsettled) => {
                    tracing::warn!(%error, %unsettled, "the outcome of a commit could not be learned");
                    Ok(Advance::Undecided(
                        Error::new(
                            Code::DeadlineExceeded,
                            "Kafka did not say whether the position was moved; its next records may be skipped",
                        )
                        .source(unsettled),
                    ))
                }
            },
        }
    }

    /// Where to go on when the log does not hold the position: from its start, as nothing before it is left.
    fn restart(&self, from: i64, until: Instant) -> Result<i64, Error> {
        let patience = until.saturating_duration_since(Instant::now());
        let start = self.group.starts(&self.topic, &[self.partition], patience)?.first().copied().unwrap_or(0);
        tracing::warn!(
            group = %self.group.id, topic = %self.topic, partition = self.partition, position = from, start,
            "the position is outside of the log; going on from the log's start"
        );
        Ok(start)
    }
}

enum Advance {
    Done,
    Lost,
    Undecided(Error),
}
