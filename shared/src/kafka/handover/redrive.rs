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

/// What came of it.
#[derive(Debug)]
pub enum Returned {
    /// The next letters are back, and the position is behind them.
    Letters {
        /// How many.
        count: usize,
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
    /// transaction. Blocks.
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
        let mut room = BYTES;
        let fits = |record: &&Record| {
            let rest = room.checked_sub(record.bytes());
            room = rest.unwrap_or(0);
            rest.is_some()
        };
        let mut count = self.window.records().iter().take(back.limit).take_while(fits).count().max(1);
        if self.window.records().is_empty() {
            return Ok(Returned::Nothing(Box::new(seen)));
        }
        loop {
            let (next, without) = (self.window.offset_after(count), seen.done(from));
            let intent = Intent::Take { seen: seen.committed, from, next, without };
            match self.step(tools, &intent, Some(&seen), Some(&Cargo::Return(self.back(back, count)))) {
                Ok(Stepped::Committed(mark)) => {
                    let bytes = self.window.take(count).iter().map(Record::payload_bytes).sum();
                    return Ok(Returned::Letters { count, bytes, committed: mark.offset });
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

    /// The letters that would go back next: their offsets, and why each is one. Commits nothing. Blocks.
    pub fn letters(&mut self, tools: Tools<'_>, back: &Return) -> Result<Vec<(i64, Option<String>)>, Error> {
        let seen = self.seen(tools)?;
        if self.find(tools, back, &seen)?.is_none() {
            return Err(Error::new(Code::BrokerUnavailable, "The dead letters are being removed; try again"));
        }
        let records = self.window.records().iter().take(back.limit);
        Ok(records.map(|record| (record.offset, dlq::reason(record))).collect())
    }

    fn seen(&self, tools: Tools<'_>) -> Result<Position, Error> {
        let patience = tools.until.saturating_duration_since(Instant::now()).min(UNSTABLE);
        self.group.position((&self.topic, self.partition), patience)
    }

    /// Fills the window with the letters from the position on, or from the log's start: where that is. None, if the log's
    /// start moves away all the time.
    fn find(&mut self, tools: Tools<'_>, back: &Return, seen: &Position) -> Result<Option<i64>, Error> {
        let mut from = match seen.committed {
            Some(committed) => committed,
            None => self.start(tools.until)?,
        };
        for _ in 0..2 {
            let fetched = self.window.fill((from, &seen.done(from)), back.limit, BYTES, back.end, tools.until)?;
            if fetched == Fetched::Records {
                return Ok(Some(from));
            }
            from = self.restart(from, tools.until)?;
        }
        Ok(None)
    }

    /// The first letters of the window, as they go back.
    fn back(&self, back: &Return, count: usize) -> Arc<Letters> {
        let unletter = |letter: &Record| {
            let mut record = dlq::unletter(letter, self.partition);
            record.partition = record.partition.filter(|partition| *partition < back.partitions);
            (letter.offset, record)
        };
        let list = self.window.records().iter().take(count).map(unletter).collect();
        Arc::new(Letters { topic: back.target.topic().clone(), list })
    }
}
