//! The step that sends dead letters back to the topic they came from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::burial::Cargo;
use super::{Slot, Stepped, Tools};
use crate::auth::{Admin, Authorized};
use crate::dlq;
use crate::errors::{Code, Error};
use crate::kafka::claim::Letters;
use crate::kafka::decide::{Intent, Verdict};
use crate::kafka::fetch::Fetched;
use crate::kafka::position::Position;
use crate::record::Record;

/// What goes back in one transaction at most, but for a record that is larger.
const BYTES: usize = 4 * 1024 * 1024;

/// A dry run looks no further with less time left than this: it has other partitions to look at.
const LAST: Duration = Duration::from_secs(1);

/// How long the position may be pending before the function that left it so is taken to be dead.
const UNSTABLE: Duration = Duration::from_secs(1);

/// What is asked of a partition of dead letters.
#[derive(Debug, Clone)]
pub struct Return {
    /// The topic that they go back to.
    pub target: Authorized<Admin>,
    /// How many partitions that has.
    pub partitions: i32,
    /// The last stable offset of the letters' partition, as it was seen.
    pub end: i64,
    /// The most letters.
    pub limit: usize,
}

/// What would go back.
#[derive(Debug, Default)]
pub struct Shown {
    /// The offsets of the letters, and why each is one.
    pub letters: Vec<(i64, Option<String>)>,
    /// How many would be passed on the way.
    pub skipped: usize,
}

/// What came of it.
#[derive(Debug)]
pub enum Returned {
    /// The next letters are back, and the position is behind them.
    Letters {
        /// How many.
        count: usize,
        /// How many were passed on the way, as their records never were in the topic. They stay letters.
        skipped: usize,
        /// What their keys and values weigh.
        bytes: usize,
        /// The position.
        committed: i64,
    },
    /// There is none, from this position on.
    Nothing(Box<Position>),
    /// Somebody else was faster.
    Lost,
    /// Whether they are back could not be learned.
    Undecided(Error),
}

impl Slot {
    /// Sends the next letters back, as many as one transaction takes, and moves the position behind them in that very
    /// transaction. Letters whose records were never in the topic ([`dlq::was_written`]) are passed. Blocks.
    ///
    /// Errors: `413` for a first letter that the target does not take; nothing is moved then, as with any other error.
    pub fn redrive(&mut self, tools: Tools<'_>, back: &Return) -> Result<Returned, Error> {
        let seen = match self.seen(tools) {
            // A dead function has left a transaction open.
            Err(error) if error.code() == Code::BrokerUnavailable => {
                self.unblock(tools)?;
                self.seen(tools)?
            }
            seen => seen?,
        };
        let Some(from) = self.find(tools, back, &seen)? else { return Ok(Returned::Lost) };
        let (mut room, mut left) = (BYTES, back.limit);
        let fits = |letter: &&Record| {
            if !dlq::was_written(letter) {
                return true;
            }
            let rest = room.checked_sub(letter.bytes()).zip(left.checked_sub(1));
            (room, left) = rest.unwrap_or((0, 0));
            rest.is_some()
        };
        let mut count = self.window.records().iter().take_while(fits).count().max(1);
        if self.window.records().is_empty() {
            return Ok(Returned::Nothing(Box::new(seen)));
        }
        loop {
            let (next, without) = (self.window.offset_after(count), seen.done(from));
            let intent = Intent::Take { seen: seen.committed, from, next, without };
            match self.step(tools, &intent, Some(&seen), Some(&Cargo::Return(self.back(back, count)))) {
                Ok(Stepped::Committed(mark)) => {
                    let letters = self.window.take(count);
                    let back = || letters.iter().filter(|letter| dlq::was_written(letter));
                    let (bytes, skipped) = (back().map(Record::payload_bytes).sum(), count - back().count());
                    return Ok(Returned::Letters { count: count - skipped, skipped, bytes, committed: mark.offset });
                }
                Ok(Stepped::Refused(Verdict::Leased, _)) => {
                    let detail = "Somebody consumes the dead letters for this very group, and holds a lease on them";
                    return Err(Error::new(Code::GroupInUse, detail));
                }
                Ok(Stepped::Refused(..) | Stepped::Fenced) => return Ok(Returned::Lost),
                Ok(Stepped::Undecided(error)) => return Ok(Returned::Undecided(error)),
                // Together, or one of them: a topic's limit is one for whole batches. So fewer, until one is alone.
                Err(error) if error.code() == Code::RecordTooLarge && count > 1 => count /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// The letters that would go back next. Commits nothing. Blocks.
    pub fn letters(&mut self, tools: Tools<'_>, back: &Return) -> Result<Shown, Error> {
        let seen = self.seen(tools)?;
        let (mut shown, mut found) = (Shown::default(), self.find(tools, back, &seen)?);
        loop {
            if found.is_none() {
                return Err(Error::new(Code::BrokerUnavailable, "The dead letters are being removed; try again"));
            }
            let count = self.window.records().len().min(back.limit - shown.letters.len());
            for letter in self.window.take(count) {
                if dlq::was_written(&letter) {
                    shown.letters.push((letter.offset, dlq::reason(&letter)));
                } else {
                    shown.skipped += 1;
                }
            }
            let next = self.window.offset_after(0);
            let late = tools.until.saturating_duration_since(Instant::now()) < LAST;
            if count == 0 || shown.letters.len() == back.limit || next >= back.end || late {
                return Ok(shown);
            }
            found = self.find_from(tools, back, &seen, next)?;
        }
    }

    fn seen(&self, tools: Tools<'_>) -> Result<Position, Error> {
        let patience = tools.until.saturating_duration_since(Instant::now()).min(UNSTABLE);
        self.group.position((&self.topic, self.partition), patience)
    }

    /// Fills the window with the letters from the position on, or from the log's start: where that is. None, if the log's
    /// start moves away all the time.
    fn find(&mut self, tools: Tools<'_>, back: &Return, seen: &Position) -> Result<Option<i64>, Error> {
        let from = match seen.committed {
            Some(committed) => committed,
            None => self.start(tools.until)?,
        };
        self.find_from(tools, back, seen, from)
    }

    fn find_from(
        &mut self,
        tools: Tools<'_>,
        back: &Return,
        seen: &Position,
        mut from: i64,
    ) -> Result<Option<i64>, Error> {
        for _ in 0..2 {
            let fetched = self.window.fill((from, &seen.done(from)), back.limit, BYTES, back.end, tools.until)?;
            if fetched == Fetched::Records {
                return Ok(Some(from));
            }
            from = self.restart(from, tools.until)?;
        }
        Ok(None)
    }

    /// Those of the first letters of the window that go back, as they do.
    fn back(&self, back: &Return, count: usize) -> Arc<Letters> {
        let unletter = |letter: &Record| {
            let mut record = dlq::unletter(letter, self.partition);
            record.partition = record.partition.filter(|partition| *partition < back.partitions);
            (letter.offset, record)
        };
        let first = self.window.records().iter().take(count);
        let list = first.filter(|letter| dlq::was_written(letter)).map(unletter).collect();
        Arc::new(Letters { topic: back.target.topic().clone(), list })
    }
}
