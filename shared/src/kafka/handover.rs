//! What a sandbox keeps of one group's partition, and the one step in which its position moves.

mod burial;
mod redrive;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use self::burial::Cargo;
pub use self::redrive::{Return, Returned};
use super::claim::{COMMIT, Claim, Claimant, Committed};
use super::client::Settings;
use super::dead_letters::DeadLetters;
use super::decide::{Intent, Verdict, decide, is_suspect};
use super::fetch::{AtHand, Fetched, Window};
use super::group::Group;
use super::position::{Holder, Mark, Position, Stamp, now_ms};
use crate::config::Delivery;
use crate::deadline::Deadline;
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
    /// The mark of the last commit under that claim.
    ours: Option<Box<Mark>>,
    /// The client for the next claim, if one is made already.
    claimant: Option<Claimant>,
    /// Whether leases begin or end here: then the claim goes from function to function, and each step needs a new one.
    alternates: bool,
    delivery: Delivery,
    hint: Hint,
}

/// What a slot remembers of its partition, as long as the position stays where it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hint {
    /// From where to where there is no record, and when that was seen: transactions leave offsets without records.
    barren: Option<(i64, i64, u64)>,
    /// Where a record waits that was too large for its share of an answer.
    oversized: Option<i64>,
    /// When a call came away from here with an error, milliseconds since 1970; 0, if none did.
    failed: u64,
}

/// How long a partition is taken to be barren. A fetch may have been answered by a follower that lags behind.
const BARREN_MS: u64 = 2_000;

impl Hint {
    /// Whether there is no record from `from` to `end`.
    pub fn is_barren(&self, from: i64, end: i64) -> bool {
        self.barren.is_some_and(|(start, barren_to, seen)| {
            start == from && end <= barren_to && now_ms().abs_diff(seen) < BARREN_MS
        })
    }

    /// Whether the record at `from` wants an answer for itself.
    pub fn is_oversized(&self, from: i64) -> bool {
        self.oversized == Some(from)
    }

    /// When a call came away from here with an error, milliseconds since 1970.
    pub fn failed(&self) -> u64 {
        self.failed
    }
}

/// What every step of a sandbox has in common.
#[derive(Debug, Clone, Copy)]
pub struct Tools<'a> {
    /// The settings of the producers that hold claims.
    pub settings: &'a Settings,
    /// This sandbox.
    pub sandbox: u32,
    /// When the step must be over.
    pub until: Instant,
    /// Set by the step when it begins to be open whether the position moves.
    pub committing: &'a AtomicBool,
}

/// How records are handed out.
#[derive(Debug, Clone)]
pub enum Ack {
    /// For good.
    Auto,
    /// Under a lease.
    Manual {
        /// For how long, in milliseconds.
        lease_ms: u64,
        /// Who gets it.
        holder: Holder,
    },
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
    /// Whether nothing else is asked for the same answer. A suspect is handed out only then.
    pub alone: bool,
    /// How they are handed out.
    pub ack: Ack,
}

/// What came of it.
#[derive(Debug)]
pub enum Taken {
    /// These records are the caller's, and nobody else's. Never empty.
    Records {
        /// The records.
        records: Vec<Record>,
        /// Until when, milliseconds since 1970, where they are leased.
        until: Option<u64>,
    },
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
    /// The next record was delivered in vain for too often, and is a dead letter now. Look again.
    Buried,
    /// It should be one, but that cannot be done; nothing is handed out.
    Unburied(Error),
    /// Whether the position was moved could not be learned; nothing is handed out.
    Undecided(Error),
}

/// How a step ended.
#[derive(Debug)]
pub enum Stepped {
    /// It is committed, with this mark.
    Committed(Box<Mark>),
    /// The position, as it is, does not allow it.
    Refused(Verdict, Box<Position>),
    /// Somebody else has claimed the position in the middle of it, or a tool has set it.
    Fenced,
    /// Whether it is committed could not be learned.
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
            ours: None,
            claimant: None,
            alternates: false,
            delivery,
            hint: Hint::default(),
        })
    }

    /// What is known of the partition.
    pub fn hint(&self) -> Hint {
        self.hint
    }

    /// A call comes away from here with an error.
    pub fn note_failed(&mut self) {
        self.hint.failed = now_ms();
    }

    /// The position that this sandbox has committed on top of the one that was seen, if it has, and still has the claim. Kafka says that a transaction is committed some milliseconds before a glance shows it.
    pub fn newest(&self, seen: &Position) -> Option<Position> {
        let latest = seen.mark.as_ref()?.latest()?;
        let ours = self.ours.as_ref().filter(|ours| self.claim.is_some() && ours.includes(latest))?;
        Some(Position { committed: Some(ours.offset), mark: Some((**ours).clone()) })
    }

    /// Whether a call for `count` records, of so many topics, can go on here, with the claim that it has, without a look
    /// around.
    pub fn at_hand(&mut self, count: usize, topics: usize) -> AtHand {
        if self.claim.is_some() { self.window.at_hand(count, topics) } else { AtHand::Nothing }
    }

    /// Ends a transaction that a dead function has left open: until then, nobody can read the position. Blocks.
    pub fn unblock(&mut self, tools: Tools<'_>) -> Result<(), Error> {
        self.claim = None;
        self.claim = Some(Claim::take(tools.settings, &self.group, &self.topic, self.partition, tools.until)?);
        Ok(())
    }

    /// Hands out the next records: fetches, then takes the step that makes them the caller's. Blocks.
    ///
    /// `choose` says how many of the fetched records are taken, from the first on; none, if the first does not fit. It
    /// gets what is known of them, and the most that it may choose: one, where the first is a suspect. If it
    /// fails, nothing is claimed or committed.
    pub fn take(
        &mut self,
        tools: Tools<'_>,
        dead_letters: &DeadLetters,
        ask: &Ask,
        mut choose: impl FnMut(&Records, Option<&Mark>, usize) -> Result<usize, Error>,
    ) -> Result<Taken, Error> {
        // Without leases nothing is counted, and without claims nothing is buried.
        let most = dead_letters.most(&self.topic).filter(|_| self.delivery == Delivery::Exclusive);
        let (mut seen, mut from) = (ask.seen.clone(), ask.from);
        // Twice: with the claim in hand, a position that had been moved before is worth a second look.
        for _ in 0..2 {
            let asked = from;
            if self.fetch(tools, ask, &seen, from)? == Fetched::OutOfRange {
                from = self.restart(from, tools.until)?;
                let without = seen.done(from);
                let fetched = self.window.fill((from, &without), ask.records, ask.bytes, ask.end, tools.until)?;
                if fetched == Fetched::OutOfRange {
                    return Ok(Taken::Lost);
                }
            }
            let Some(first) = self.window.records().front() else {
                self.hint.barren = Some((asked, self.window.offset_after(0).max(ask.end), now_ms()));
                if from != asked {
                    // Once and for all, or every call would begin with the same search.
                    let without = seen.done(from);
                    let pass = Intent::Take { seen: seen.committed, from, next: from, without };
                    self.step(tools, &pass, Some(&seen), None)?;
                }
                return Ok(Taken::Nothing);
            };
            let (offset, size) = (first.offset, first.bytes());
            let known = seen.known(from);
            if let Some(most) = most.filter(|most| known.is_some_and(|mark| mark.is_hopeless(offset, *most))) {
                return Ok(self.bury(tools, dead_letters, most, &seen));
            }
            let deliveries = known.map_or(0, |mark| mark.deliveries(offset));
            let suspect =
                matches!(ask.ack, Ack::Manual { .. }) && most.is_some_and(|most| is_suspect(deliveries, most));
            let count = match (suspect, ask.alone) {
                // Others have moved the position to a suspect since the look. It gets an answer for itself.
                (true, false) => 0,
                (true, true) => choose(self.window.records(), known, 1)?,
                (false, _) => choose(self.window.records(), known, ask.records)?,
            };
            if count == 0 {
                self.hint.oversized = Some(asked);
                return Ok(Taken::TooLarge { offset, size });
            }
            let (seen_offset, next, without) = (seen.committed, self.window.offset_after(count), seen.done(from));
            let intent = match &ask.ack {
                Ack::Auto => Intent::Take { seen: seen_offset, from, next, without },
                Ack::Manual { lease_ms, holder } => {
                    let alone = (count == 1 && ask.alone).then_some(offset);
                    let last = self.window.records().get(count - 1).map_or(offset, |record| record.offset);
                    let (delivered, lease_ms, holder) = (seen.delivered(from), *lease_ms, holder.clone());
                    Intent::Lease { seen: seen_offset, from, last, next, without, delivered, alone, lease_ms, holder }
                }
            };
            match self.step(tools, &intent, Some(&seen), None)? {
                Stepped::Committed(mark) => {
                    let until = mark.lease.map(|lease| lease.until);
                    return Ok(Taken::Records { records: self.window.take(count), until });
                }
                Stepped::Refused(Verdict::Moved, now) => {
                    let Some(committed) = now.committed else { return Ok(Taken::Lost) };
                    from = committed;
                    seen = *now;
                }
                Stepped::Refused(..) | Stepped::Fenced => return Ok(Taken::Lost),
                Stepped::Undecided(error) => return Ok(Taken::Undecided(error)),
            }
        }
        Ok(Taken::Lost)
    }

    /// Fills the window. Where the claim has gone to another sandbox, the client for the next one is made meanwhile; but
    /// nothing is claimed before there is a record to hand out.
    fn fetch(&mut self, tools: Tools<'_>, ask: &Ask, seen: &Position, from: i64) -> Result<Fetched, Error> {
        if seen.is_anothers(tools.sandbox) {
            self.claim = None;
        }
        let wanted = self.claim.is_none() && self.claimant.is_none();
        let without = seen.done(from);
        self.beside(tools, wanted, |slot| {
            slot.window.fill((from, &without), ask.records, ask.bytes, ask.end, tools.until)
        })
    }

    /// Does something, and beside it, if `wanted`, makes the client for the next claim.
    fn beside<T>(&mut self, tools: Tools<'_>, wanted: bool, work: impl FnOnce(&mut Self) -> T) -> T {
        if !wanted || self.delivery != Delivery::Exclusive {
            return work(self);
        }
        let (group, topic, partition) = (Arc::clone(&self.group), self.topic.clone(), self.partition);
        std::thread::scope(|scope| {
            let made = scope.spawn(|| Claimant::new(tools.settings, &group, &topic, partition, tools.until));
            let done = work(self);
            // What went wrong with it, the step says when it needs it.
            self.claimant = made.join().ok().and_then(Result::ok);
            done
        })
    }

    /// The claim that still stands, or a new one.
    fn claim(&mut self, tools: Tools<'_>) -> Result<Claim, Error> {
        if let Some(claim) = self.claim.take() {
            return Ok(claim);
        }
        match self.claimant.take() {
            Some(claimant) => claimant.claim(tools.until),
            None => Claim::take(tools.settings, &self.group, &self.topic, self.partition, tools.until),
        }
    }

    /// The compare-and-set: claims, reads the position, decides, commits. Blocks.
    ///
    /// With shared delivery there is no claim, and the position that was `seen` before has to do, or one that is read now.
    pub fn step(
        &mut self,
        tools: Tools<'_>,
        intent: &Intent,
        seen: Option<&Position>,
        cargo: Option<&Cargo<'_>>,
    ) -> Result<Stepped, Error> {
        self.beside(tools, self.alternates, |slot| slot.step_once(tools, intent, seen, cargo))
    }

    fn step_once(
        &mut self,
        tools: Tools<'_>,
        intent: &Intent,
        seen: Option<&Position>,
        cargo: Option<&Cargo<'_>>,
    ) -> Result<Stepped, Error> {
        let Tools { settings, sandbox, until, committing } = tools;
        // The claim leaves the slot, so that whatever goes wrong on the way drops it.
        let (claim, position) = match (self.delivery, seen) {
            (Delivery::Shared, Some(seen)) => (None, seen.clone()),
            (Delivery::Shared, None) => {
                let patience = until.saturating_duration_since(Instant::now());
                (None, self.group.position((&self.topic, self.partition), patience)?)
            }
            (Delivery::Exclusive, _) => {
                let stood = self.claim.is_some();
                let mut claim = self.claim(tools)?;
                let mut position = claim.position(until)?;
                if stood && position.is_anothers(sandbox) {
                    // Who has committed since then has claimed the position: this claim would not get through. To take it
                    // back at once, where it was ours when it was seen, is how two functions would spend their time on claims.
                    if seen.is_some_and(|seen| !seen.is_anothers(sandbox)) {
                        return Ok(Stepped::Fenced);
                    }
                    claim = self.claim(tools)?;
                    position = claim.position(until)?;
                }
                (Some(claim), position)
            }
        };
        let stamp = Stamp::new(sandbox);
        let (mark, dying) = match decide(&position, intent, stamp) {
            Verdict::Commit(mark) => (mark, Vec::new()),
            Verdict::Bury(mark, dying) => (mark, dying),
            refused => {
                self.claim = claim;
                return Ok(Stepped::Refused(refused, Box::new(position)));
            }
        };
        let letters = match cargo.map(|cargo| cargo.letters(self, &position, &dying, until)).transpose() {
            Ok(letters) => letters.flatten(),
            Err(error) => {
                self.claim = claim;
                return Err(error);
            }
        };
        let least = if self.group.facts.loses_commits { 3 * COMMIT } else { COMMIT };
        if until.saturating_duration_since(Instant::now()) < least {
            self.claim = claim;
            return Err(Deadline::exceeded());
        }
        let Some(claim) = claim else {
            if letters.is_some() {
                return Err(Error::internal("records were to be written without a claim"));
            }
            committing.store(true, Ordering::Relaxed);
            return match self.group.commit_plain(&self.topic, self.partition, &mark) {
                Ok(()) => Ok(Stepped::Committed(mark)),
                Err(error) if error.code() == Code::BrokerUnavailable => Ok(Stepped::Undecided(error)),
                Err(error) => Err(error),
            };
        };
        let undone = |error| match (cargo, &letters) {
            (Some(cargo), Some(letters)) => cargo.undone(letters, error),
            _ => error,
        };
        let committed = claim.commit(&mark, &position, letters.as_deref(), until, committing);
        let ended = match committed.map_err(undone)? {
            Committed::Yes => claim.confirm(settings, &mark, &position, until),
            Committed::Fenced => Ok((None, false)),
            Committed::Undecided(error) => claim
                .settle(settings, &error, stamp.nonce, &position, until)
                .inspect_err(|_| tracing::warn!(%error, "how a commit ended is not known")),
        };
        let stepped = match ended {
            Ok((claim, true)) => {
                // A lease is begun by one function and settled by another: who did his part has no more use for the
                // claim. Where that went on before, the client for the next one is made beside the step.
                self.alternates = mark.settles() || matches!(intent, Intent::Lease { .. });
                self.claim = claim.filter(|_| !self.alternates);
                self.ours = Some(mark.clone());
                Stepped::Committed(mark)
            }
            Ok((claim, false)) => {
                self.claim = claim;
                Stepped::Fenced
            }
            Err(unsettled) => {
                tracing::warn!(%unsettled, "the outcome of a commit could not be learned");
                let detail = "Kafka did not say whether the position was moved";
                Stepped::Undecided(Error::new(Code::DeadlineExceeded, detail).source(unsettled))
            }
        };
        if let (Stepped::Committed(_), Some(cargo), Some(letters)) = (&stepped, cargo, &letters) {
            cargo.done(self, letters);
        }
        Ok(stepped)
    }

    /// Where to go on when the log does not hold the position: from its start, as nothing before it is left.
    fn restart(&self, from: i64, until: Instant) -> Result<i64, Error> {
        let start = self.start(until)?;
        tracing::warn!(
            group = %self.group.id, topic = %self.topic, partition = self.partition, position = from, start,
            "the position is outside of the log; going on from the log's start"
        );
        Ok(start)
    }

    /// Where the log begins.
    fn start(&self, until: Instant) -> Result<i64, Error> {
        let patience = until.saturating_duration_since(Instant::now());
        self.group.starts(&[(&self.topic, self.partition)], patience)?.pop().unwrap_or(Ok(0))
    }
}
