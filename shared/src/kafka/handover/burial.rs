//! Steps that settle records with dead letters: a reject, and the burial of a record that was delivered in vain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Slot, Stepped, Taken, Tools};
use crate::config::Delivery;
use crate::dlq::{self, Death, Reason, letter};
use crate::errors::{Code, Error};
use crate::kafka::claim::Letters;
use crate::kafka::dead_letters::DeadLetters;
use crate::kafka::decide::{Intent, Verdict, decide};
use crate::kafka::position::{Position, Stamp};
use crate::kafka::producer::NewRecord;
use crate::record::Record;
use crate::telemetry;

/// How long a look waits for a position to become stable. A commit takes some milliseconds.
const UNSTABLE: Duration = Duration::from_millis(500);

/// What a step writes in the transaction that moves the position: both happen, or neither.
#[derive(Debug)]
pub enum Cargo<'a> {
    /// Dead letters of the records that it settles.
    Burial(Burial<'a>),
    /// Letters that go back to where they came from.
    Return(Arc<Letters>),
}

impl Cargo<'_> {
    /// The records to write, once their topic is there; none, if there is nothing to write.
    pub(super) fn letters(
        &self,
        slot: &Slot,
        position: &Position,
        dying: &[i64],
        until: Instant,
    ) -> Result<Option<Arc<Letters>>, Error> {
        match self {
            Self::Burial(burial) => Ok(burial.letters(slot, position, dying, until)?.map(Arc::new)),
            Self::Return(letters) => Ok(Some(Arc::clone(letters)).filter(|letters| !letters.list.is_empty())),
        }
    }

    /// They are not written; their topic may be another one than it was.
    pub(super) fn undone(&self, letters: &Letters, error: Error) -> Error {
        match self {
            Self::Burial(burial) => burial.undone(letters, error),
            Self::Return(_) => error,
        }
    }

    /// They are written.
    pub(super) fn done(&self, slot: &Slot, letters: &Letters) {
        if let Self::Burial(burial) = self {
            burial.done(slot, letters);
        }
    }
}

/// What a step needs that settles records with dead letters.
#[derive(Debug)]
pub struct Burial<'a> {
    dead_letters: &'a DeadLetters,
    /// The records, among others.
    records: &'a [Record],
    reason: Reason,
    message: &'a str,
}

impl Burial<'_> {
    /// The letters of those that are `dying`, once their topic is there; none, if there is nothing to write.
    fn letters(
        &self,
        slot: &Slot,
        position: &Position,
        dying: &[i64],
        until: Instant,
    ) -> Result<Option<Letters>, Error> {
        if dying.is_empty() {
            return Ok(None);
        }
        let topic = self.dead_letters.topic_of(&slot.topic).ok_or_else(dlq::no_dead_letters)?;
        let opened = self.dead_letters.open(&slot.topic, &topic, until);
        let partitions = opened.map_err(|error| error.with("dead_letter_topic", topic.as_str()))?;
        let records = self.records.iter().filter(|record| dying.binary_search(&record.offset).is_ok());
        let list = records.map(|record| {
            let deliveries = position.known(record.offset).map_or(0, |mark| mark.deliveries(record.offset));
            let death = Death {
                topic: &slot.topic,
                offset: Some(record.offset),
                consumed: Some((&slot.group.id, deliveries)),
                reason: self.reason,
                message: self.message,
            };
            let mut letter = letter(again(record, slot.partition), &death);
            // Somebody else may have made the topic, with fewer partitions.
            letter.partition = letter.partition.filter(|partition| *partition < partitions);
            (record.offset, letter)
        });
        Ok(Some(Letters { topic, list: list.collect() }))
    }

    /// The letters are not written; their topic may be another one than it was.
    fn undone(&self, letters: &Letters, error: Error) -> Error {
        self.dead_letters.forget(&letters.topic);
        error.with("dead_letter_topic", letters.topic.as_str())
    }

    /// The letters are written.
    fn done(&self, slot: &Slot, letters: &Letters) {
        let count = letters.list.len() as u64;
        telemetry::died(&slot.topic, Some(&slot.group.id), Some(slot.partition), self.reason, count);
    }
}

/// A record, to be written as it was.
fn again(record: &Record, partition: i32) -> NewRecord {
    NewRecord {
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
        partition: Some(partition),
        timestamp: Some(record.timestamp).filter(|time| *time >= 0),
    }
}

impl Slot {
    /// The step of an acknowledgement or of a seek, which depends on no position that was seen before. Also the offsets of
    /// records that were to be rejected, and are gone: these are settled without a letter. Blocks.
    ///
    /// An acknowledgement looks first: a claim takes the position from whoever has it, and a lease that is over, or never
    /// was, is no reason to. For a reject, what is left of the lease is read again then.
    pub fn settle(
        &mut self,
        tools: Tools<'_>,
        dead_letters: &DeadLetters,
        intent: &Intent,
    ) -> Result<(Stepped, Vec<i64>), Error> {
        let exclusive = self.delivery == Delivery::Exclusive;
        if !exclusive && matches!(intent, Intent::Reject { .. }) {
            return Err(Error::new(Code::InvalidParameter, "type: reject needs exclusive delivery"));
        }
        if !exclusive || matches!(intent, Intent::Seek { .. }) {
            return Ok((self.step(tools, intent, None, None)?, Vec::new()));
        }
        let unclaimed = self.claim.is_none() && self.claimant.is_none();
        let position = self.beside(tools, unclaimed, |slot| slot.look(tools))?;
        match decide(&position, intent, Stamp::new(tools.sandbox)) {
            Verdict::Commit(_) | Verdict::Bury(..) => {}
            refused => return Ok((Stepped::Refused(refused, Box::new(position)), Vec::new())),
        }
        let Intent::Reject { holder, records: asked, reason, .. } = intent else {
            return Ok((self.step(tools, intent, None, None)?, Vec::new()));
        };
        let lease = position.mark.as_ref().and_then(|mark| mark.lease.as_ref());
        let (Some(from), Some(lease)) = (position.committed, lease) else {
            return Err(Error::internal("a reject was allowed without a lease"));
        };
        let records = self.window.read((from, lease.end), tools.until)?;
        let there: Vec<i64> = records.iter().map(|record| record.offset).collect();
        let done = position.done(from);
        let is_gone = |offset: &&i64| there.binary_search(offset).is_err() && !done.contains(**offset);
        let gone = asked.iter().flatten().filter(is_gone).copied().collect();
        let message = if reason.is_empty() { "Rejected by its consumer" } else { reason };
        let burial = Burial { dead_letters, records: &records, reason: Reason::Rejected, message };
        let (holder, asked, reason) = (holder.clone(), asked.clone(), reason.clone());
        let intent = Intent::Reject { holder, records: asked, there, reason };
        Ok((self.step(tools, &intent, Some(&position), Some(&Cargo::Burial(burial)))?, gone))
    }

    /// The position, without a claim: whose lease it is matters before anything is read. Where a function that is dead or
    /// frozen has left a transaction open it is claimed all the same, or it could not be read until that times out.
    fn look(&mut self, tools: Tools<'_>) -> Result<Position, Error> {
        let left = |most: Duration| tools.until.saturating_duration_since(Instant::now()).min(most);
        match self.group.position((&self.topic, self.partition), left(UNSTABLE)) {
            Err(error) if error.code() == Code::BrokerUnavailable => {
                self.unblock(tools)?;
                self.group.position((&self.topic, self.partition), left(Duration::MAX))
            }
            read => read,
        }
    }

    /// Makes the first record of the window a dead letter, as it was delivered in vain for `most` times.
    pub(super) fn bury(&mut self, tools: Tools<'_>, dead_letters: &DeadLetters, most: u32, seen: &Position) -> Taken {
        let records = self.window.take(1);
        let Some(record) = records.first().map(|record| record.offset) else { return Taken::Lost };
        let message = "Delivered as often as DLQ_MAX_DELIVERIES allows, and never accepted";
        let burial = Burial { dead_letters, records: &records, reason: Reason::MaxDeliveries, message };
        let intent = Intent::Bury { seen: seen.committed, record, most };
        match self.step(tools, &intent, Some(seen), Some(&Cargo::Burial(burial))) {
            Ok(Stepped::Committed(_)) => Taken::Buried,
            // It is buried, or the next look shows that it is not.
            Ok(Stepped::Refused(..) | Stepped::Fenced | Stepped::Undecided(_)) => Taken::Lost,
            Err(error) => Taken::Unburied(error.with("offset", record)),
        }
    }
}
