//! Records of one partition, from an offset on.
//!
//! The partition is assigned to the group's consumer only while a call fetches, so that nothing is under way when the
//! sandbox may freeze. What was fetched beyond one call's need is kept for the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Context;
use super::error::{from_kafka, unreachable};
use super::group::{Group, list};
use super::position::now_ms;
use super::ranges::Ranges;
use crate::errors::{Code, Error};
use crate::names::TopicName;
use crate::record::{Record, Records};

/// How long fetched records are kept. Longer would hand out what retention or a deletion of the topic took back.
const KEEP_MS: u64 = 5_000;

/// The most bytes that are fetched ahead of need.
const AHEAD_BYTES: usize = 1024 * 1024;

/// How many times what a call needs is kept of what was fetched: at first, and how many times that after each window
/// that was used up. A broker answers with whole batches, thousands of small records; to fetch them again for each call
/// is most of a busy consumer's work, and to keep them is of no use to one that comes back seldom.
const AHEAD: usize = 4;

/// The most records that are kept because of that.
const AHEAD_RECORDS: usize = 4_000;

/// How many calls take what was fetched ahead before it is time for a look at the other partitions.
const AT_HAND: usize = 4;

/// A count of records that has no limit but the end that goes with it.
const ALL: usize = usize::MAX;

/// How long records that must be there are waited for before they are asked for again: a follower may lag behind.
const AGAIN: Duration = Duration::from_millis(20);

/// The longest pause within one partition's records before what is there is taken.
const PAUSE: Duration = Duration::from_millis(250);

/// What a fetch found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// What was asked for is in the buffer, or all there is.
    Records,
    /// The log does not reach, or no longer holds, that offset.
    OutOfRange,
}

/// A partition's window: records from `start` (in the buffer) up to `next`, but for those that are settled.
#[derive(Debug)]
pub struct Window {
    topic: TopicName,
    partition: i32,
    group: Arc<Group>,
    queue: Queue,
    records: Records,
    bytes: usize,
    start: i64,
    next: i64,
    /// The settled records that it leaves out.
    without: Ranges,
    filled_ms: u64,
    /// How many times what a call needs is kept.
    ahead: usize,
    /// How often in a row it was at hand.
    at_hand: usize,
}

/// Whether a call can go on with what a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtHand {
    /// It can: from where to where the window goes.
    Records(i64, i64),
    /// It could, but others have waited for their turn.
    Others,
    /// It cannot.
    Nothing,
}

struct Queue(PartitionQueue<Context>);

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

impl Window {
    /// An empty window.
    pub fn new(group: &Arc<Group>, topic: &TopicName, partition: i32) -> Result<Self, Error> {
        // Split once, before the partition is ever assigned: librdkafka then never forwards it to the common queue.
        let queue = group
            .consumer
            .split_partition_queue(topic.as_str(), partition)
            .ok_or_else(|| Error::internal("the partition has no queue"))?;
        Ok(Self {
            topic: topic.clone(),
            partition,
            group: Arc::clone(group),
            queue: Queue(queue),
            records: Records::new(),
            bytes: 0,
            start: 0,
            next: 0,
            without: Ranges::default(),
            filled_ms: 0,
            ahead: AHEAD,
            at_hand: 0,
        })
    }

    /// The records, in order.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The offset after the first `count` records. After the last, it is where the window ends: past the markers of
    /// transactions, which are no records.
    pub fn offset_after(&self, count: usize) -> i64 {
        self.records.get(count).map_or(self.next, |record| record.offset)
    }

    /// Removes and returns the first `count` records.
    pub fn take(&mut self, count: usize) -> Vec<Record> {
        self.start = self.offset_after(count);
        let taken: Vec<Record> = self.records.drain(..count).collect();
        self.bytes -= taken.iter().map(Record::bytes).sum::<usize>();
        taken
    }

    /// Whether the window begins at `from`, leaves just these records out, holds something, and is fresh.
    fn covers(&self, from: i64, without: &Ranges) -> bool {
        !self.records.is_empty() && self.goes_on_at(from) && self.without.after(from) == *without
    }

    /// Whether `from` is where the last call has come to, just now.
    fn goes_on_at(&self, from: i64) -> bool {
        self.start == from && now_ms().abs_diff(self.filled_ms) < KEEP_MS
    }

    /// Whether a call for `count` records can go on with what is there: with several topics sooner not, as the others wait
    /// for their turn as well.
    pub fn at_hand(&mut self, count: usize, topics: usize) -> AtHand {
        // Only a look shows whether what was left out is still settled.
        if self.records.len() < count || !self.covers(self.start, &Ranges::default()) {
            return AtHand::Nothing;
        }
        if self.at_hand >= AT_HAND / topics {
            self.at_hand = 0;
            return AtHand::Others;
        }
        self.at_hand += 1;
        AtHand::Records(self.start, self.next)
    }

    /// Makes the window begin at `from`, with at least `count` records or `bytes` bytes, or all up to `end` (a last
    /// stable offset seen before); but for those `without`.
    pub fn fill(
        &mut self,
        (from, without): (i64, &Ranges),
        count: usize,
        bytes: usize,
        end: i64,
        until: Instant,
    ) -> Result<Fetched, Error> {
        let goes_on = self.goes_on_at(from);
        if !self.covers(from, without) {
            self.clear(from);
            self.without = without.clone();
        }
        if self.records.len() >= count || self.bytes >= bytes || (self.next >= end && !self.records.is_empty()) {
            return Ok(Fetched::Records);
        }
        self.ahead = if goes_on { (self.ahead * AHEAD).min(AHEAD_RECORDS) } else { AHEAD };
        let fetched = self.fetch(count, bytes, end, until);
        if fetched.is_err() {
            self.clear(from);
        }
        fetched
    }

    /// All records from `from` up to `end`, which were handed out before: those that are not among them are gone, through
    /// retention or compaction. The window is empty then.
    ///
    /// Errors: `503` where they cannot be read in time.
    pub fn read(&mut self, (from, end): (i64, i64), until: Instant) -> Result<Vec<Record>, Error> {
        self.clear(from);
        self.without = Ranges::default();
        let read = self.read_to(end, until);
        let mut records = Vec::from(std::mem::take(&mut self.records));
        self.clear(end);
        records.retain(|record| record.offset < end);
        read.map(|()| records)
    }

    fn read_to(&mut self, end: i64, until: Instant) -> Result<(), Error> {
        loop {
            let fetched = self.fetch(ALL, usize::MAX, end, until)?;
            let left = until.saturating_duration_since(Instant::now());
            if fetched == Fetched::OutOfRange {
                let starts = self.group.starts(&[(&self.topic, self.partition)], left)?;
                // Where the log does not begin later, it has become shorter: there may be records again.
                self.next = self.next.max(starts.into_iter().next().unwrap_or(Ok(0))?);
            }
            if self.next >= end {
                return Ok(());
            }
            if left.is_zero() {
                return Err(unread());
            }
            std::thread::sleep(AGAIN.min(left));
        }
    }

    fn fetch(&mut self, count: usize, bytes: usize, end: i64, until: Instant) -> Result<Fetched, Error> {
        // Whatever lies there was said while the partition was not assigned, of a topic that was deleted, for one.
        while self.queue.0.poll(Duration::ZERO).is_some() {}
        let assigned = Assigned::new(&self.group, list(&[(&self.topic, self.partition)], Offset::Offset(self.next))?)?;
        let fetched = self.receive(count, bytes, end, until);
        drop(assigned);
        self.filled_ms = now_ms();
        fetched
    }

    fn clear(&mut self, from: i64) {
        self.records.clear();
        self.bytes = 0;
        self.start = from;
        self.next = from;
    }

    /// Up to where librdkafka has come in this partition, the markers of transactions included. (Not the end that was
    /// seen before: that was the leader's, and this may be a follower's answer, which lags behind.)
    fn passed(&self) -> i64 {
        let positions = self.group.consumer.position().ok();
        let here = positions.as_ref().and_then(|list| list.find_partition(self.topic.as_str(), self.partition));
        match here.map(|here| here.offset()) {
            Some(Offset::Offset(offset)) => offset,
            _ => self.next,
        }
    }

    fn receive(&mut self, count: usize, bytes: usize, end: i64, until: Instant) -> Result<Fetched, Error> {
        let most = count.saturating_mul(self.ahead).min(AHEAD_RECORDS).max(count);
        loop {
            let enough = self.records.len() >= count || self.bytes >= bytes;
            let ahead = self.bytes >= bytes.max(AHEAD_BYTES) || self.records.len() >= most;
            if ahead || (count == ALL && self.next >= end) {
                return Ok(Fetched::Records);
            }
            let left = until.saturating_duration_since(Instant::now());
            // Once there is enough, only what has already arrived is taken along.
            let patience = match (enough, self.records.is_empty()) {
                (true, _) => Duration::ZERO,
                (false, false) => left.min(PAUSE),
                // Beyond the last stable offset, which tools that read uncommitted can bring about, nothing comes, nor
                // is it said that nothing does; only "out of range" may come.
                (false, true) if self.next > end => left.min(PAUSE),
                (false, true) => left,
            };
            let record = match self.queue.0.poll(patience) {
                Some(Ok(message)) => record(&message),
                None if !self.records.is_empty() || self.next > end => return Ok(Fetched::Records),
                None => return Err(unread()),
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.next = self.next.max(self.passed());
                    return Ok(Fetched::Records);
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                        return Ok(Fetched::OutOfRange);
                    }
                    // librdkafka goes on by itself when a connection or a leader is lost.
                    Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown) => continue,
                    _ if !self.records.is_empty() => return Ok(Fetched::Records),
                    _ => return Err(unreachable(error)),
                },
            };
            if record.offset < self.next {
                continue;
            }
            self.next = record.offset + 1;
            if self.without.contains(record.offset) {
                continue;
            }
            self.bytes += record.bytes();
            self.records.push_back(record);
        }
    }
}

fn unread() -> Error {
    Error::new(Code::BrokerUnavailable, "The partition's leader did not answer in time")
}

/// A partition's assignment to the group's consumer, for as long as this lives.
struct Assigned {
    group: Arc<Group>,
    list: TopicPartitionList,
}

impl Assigned {
    fn new(group: &Arc<Group>, list: TopicPartitionList) -> Result<Self, Error> {
        group.consumer.incremental_assign(&list).map_err(from_kafka)?;
        Ok(Self { group: Arc::clone(group), list })
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        // Served before it returns: from here on librdkafka drops what still arrives for the old assignment.
        if let Err(error) = self.group.consumer.incremental_unassign(&self.list) {
            tracing::error!(%error, "a partition stays assigned");
        }
    }
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        (0..headers.count())
            .map(|index| {
                // rdkafka panics on a name that is not UTF-8, and has no other way to it. One such record must not stop
                // its partition for ever.
                let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let header = headers.get(index);
                    (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
                }));
                read.unwrap_or_else(|_| {
                    tracing::warn!(offset = message.offset(), "a header's name is not UTF-8; it is shown as U+FFFD");
                    ("\u{fffd}".to_owned(), None)
                })
            })
            .collect()
    });
    Record {
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}
