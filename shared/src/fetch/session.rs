//! One call on its way: it looks where records wait, and reads, until the answer is full or nothing waits any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::{Begin, Params, next};
use crate::auth::{Authorized, Fetch};
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::kafka::consumers::{again, blocking};
use crate::kafka::fetch::{Fetched, Window};
use crate::kafka::group::{Group, Offsets, out_of_range, places};
use crate::kafka::ranges::Ranges;
use crate::kafka::reader::Reader;
use crate::messages::{budget, choose};
use crate::names::TopicName;
use crate::record::{self, Record};
use crate::schema::Schemas;

/// How often a waiting call looks for new records: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(40));

/// What a call keeps back of its time for its answer.
const LAST: Duration = Duration::from_millis(500);

/// The most partitions that are read at the same time.
const ABREAST: usize = 8;

/// The most that a partition adds to `next`: its number and the longest offset.
const NEXT_WEIGHT: usize = 36;

/// What a call found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The records, rendered, in the order of their partitions and offsets.
    pub(super) messages: Vec<String>,
    /// What their keys and values weigh.
    pub(super) bytes: usize,
    /// Where to go on, for every partition that was asked.
    pub(super) next: BTreeMap<i32, i64>,
    /// Where reading ended at a record that no answer can carry.
    pub(super) too_large: Vec<TooLarge>,
}

/// A record that no answer can carry.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLarge {
    partition: i32,
    offset: i64,
    size: usize,
}

impl TooLarge {
    pub(super) fn to_json(self) -> Value {
        json!({ "partition": self.partition, "offset": self.offset, "size": self.size })
    }
}

/// A partition during a call.
#[derive(Debug)]
struct Part {
    /// Where to read next.
    from: i64,
    /// The last stable offset as it was last seen; where no more can be read just now, the same as `from`.
    end: i64,
    messages: Vec<String>,
    bytes: usize,
    /// Whether this call is through with it: its next record does not fit.
    done: bool,
    /// Whether it was tried to read beyond the end, which is known to have moved back when leaders change.
    beyond: bool,
}

impl Part {
    fn waits(&self) -> bool {
        !self.done && (self.from < self.end || (self.from > self.end && !self.beyond))
    }
}

type Parts = BTreeMap<i32, Part>;

/// What is left of the answer.
#[derive(Debug, Clone, Copy)]
struct Room {
    records: usize,
    bytes: usize,
}

/// What a call has so far.
#[derive(Debug)]
struct State {
    parts: Parts,
    room: Room,
    /// The room of an answer without records.
    whole: Room,
    too_large: Vec<TooLarge>,
    /// Why a partition could not be read.
    failed: Option<Error>,
}

impl State {
    fn next(&self) -> BTreeMap<i32, i64> {
        self.parts.iter().map(|(partition, part)| (*partition, part.from)).collect()
    }

    fn found(mut self) -> Found {
        let mut left = self.room.bytes;
        self.too_large.retain(|large| {
            let rest = left.checked_sub(record::weight(&large.to_json().to_string()) + 1);
            left = rest.unwrap_or(left);
            rest.is_some()
        });
        let mut found = Found { next: self.next(), too_large: self.too_large, ..Found::default() };
        for part in self.parts.into_values() {
            found.messages.extend(part.messages);
            found.bytes += part.bytes;
        }
        found
    }

    /// `413` for a record that alone does not fit into one answer; it says how to go on behind it.
    fn alone(&self, large: TooLarge) -> Error {
        let mut offsets = self.next();
        offsets.insert(large.partition, large.offset + 1);
        Error::new(Code::RecordTooLarge, "The next record of this partition does not fit into one answer (max_bytes)")
            .with("partition", large.partition)
            .with("offset", large.offset)
            .with("size", large.size)
            .with("next", next(&offsets))
    }
}

/// One call on its way.
pub(super) struct Session<'a> {
    from: Authorized<Fetch>,
    reader: &'a Arc<Reader>,
    schemas: &'a Schemas,
    params: &'a Params,
    deadline: Deadline,
    /// When an answer without records goes out.
    answer_at: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        from: Authorized<Fetch>,
        reader: &'a Arc<Reader>,
        schemas: &'a Schemas,
        params: &'a Params,
        deadline: Deadline,
    ) -> Self {
        let timeout = params.wanted.timeout;
        let deadline = deadline.extended(timeout);
        let answer_at = Instant::now() + timeout.min(deadline.left().saturating_sub(LAST));
        Self { from, reader, schemas, params, deadline, answer_at }
    }

    /// The records from where the call begins; none, if there were none in time.
    pub(super) async fn fetch(&self) -> Result<Found, Error> {
        let parts = self.begin().await?;
        let whole = self.room(parts.len());
        let mut state = State { parts, room: whole, whole, too_large: Vec::new(), failed: None };
        let mut pause = LOOK.0;
        loop {
            self.look(&mut state.parts).await?;
            while self.round(&mut state).await? {
                if state.room.records < whole.records && self.deadline.left() < LAST {
                    break;
                }
            }
            if state.room.records < whole.records {
                if let Some(error) = &state.failed {
                    tracing::warn!(
                        error_chain = error.chain().join(": "),
                        "a partition failed, beside others' records"
                    );
                }
                return Ok(state.found());
            }
            if let Some(error) = state.failed {
                return Err(error);
            }
            if let Some(first) = state.too_large.first() {
                return Err(state.alone(*first));
            }
            let now = Instant::now();
            if now >= self.answer_at {
                return Ok(state.found());
            }
            tokio::time::sleep(pause.min(self.answer_at - now)).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// What an answer has room for beside everything else in it.
    fn room(&self, partitions: usize) -> Room {
        let frame = self.params.head() + r#"],"next":{},"too_large":[]}"#;
        let rest = record::weight(&frame) + partitions * NEXT_WEIGHT;
        Room { records: self.params.wanted.limit, bytes: budget(self.params.wanted.max_bytes, rest) }
    }

    /// The partitions that are asked for, each where it begins. Leaders that move are waited for, a while.
    ///
    /// Errors: `404` for an unknown topic or partition.
    async fn begin(&self) -> Result<Parts, Error> {
        let begun = Instant::now();
        loop {
            let error = match self.ask(|asking| asking.begin()).await {
                Ok(begins) => {
                    let part = |(partition, from)| {
                        let (messages, bytes, done, beyond) = (Vec::new(), 0, false, false);
                        (partition, Part { from, end: from, messages, bytes, done, beyond })
                    };
                    return Ok(begins.into_iter().map(part).collect());
                }
                Err(error) => error,
            };
            again(error, begun, self.deadline).await?;
        }
    }

    /// Sees how far the partitions go. One that cannot be seen is left out, as if it had nothing.
    ///
    /// Errors, if none can be.
    async fn look(&self, parts: &mut Parts) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let partitions: Vec<i32> = parts.keys().copied().collect();
            let error = match self.ask(move |asking| asking.ends(&partitions)).await {
                Ok(ends) => {
                    let (mut seen, mut failed) = (false, None);
                    for ((partition, part), end) in parts.iter_mut().zip(ends) {
                        match end {
                            Ok(end) => (part.end, seen) = (end, true),
                            Err(error) => {
                                tracing::debug!(%error, partition, "a partition cannot be seen");
                                part.end = part.from;
                                failed = Some(error.with("partition", *partition));
                            }
                        }
                    }
                    match failed {
                        Some(error) if !seen => error,
                        _ => return Ok(()),
                    }
                }
                Err(error) => error,
            };
            again(error, begun, self.deadline).await?;
        }
    }

    /// Asks the cluster something, off the runtime's own threads.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Asking<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (group, topic) = (Arc::clone(self.reader.group(&self.from)), self.from.topic().clone());
        let (partition, begin) = (self.params.partition, self.params.begin.clone());
        blocking(self.deadline, move |until| {
            question(Asking { group: &group, topic: &topic, partition, begin: &begin, until })
        })
        .await
    }

    /// Reads from some partitions where records wait. Whether there may be more to read.
    ///
    /// They share what room there is, whoever needs less leaves it to those after; and which is the first is drawn anew
    /// each time: its next record may take all the room, so that no partition is stuck for ever at a record that is larger
    /// than its share.
    async fn round(&self, state: &mut State) -> Result<bool, Error> {
        let State { parts, room, .. } = &*state;
        let waits = parts.iter().filter(|(_, part)| part.waits());
        let mut waiting: Vec<i32> = waits.map(|(partition, _)| *partition).collect();
        waiting.shuffle(&mut rand::rng());
        waiting.truncate(ABREAST.min(room.records));
        let mut windows = self.fill(&waiting, parts, *room).await;
        for (index, partition) in waiting.iter().enumerate() {
            let Some(filled) = windows.remove(partition) else { continue };
            self.read(*partition, filled, waiting.len() - index, state)
                .await
                .map_err(|error| error.with("partition", *partition))?;
        }
        Ok(!waiting.is_empty())
    }

    /// The windows of some partitions, each with what its share of the room takes, if there is as much.
    async fn fill(&self, waiting: &[i32], parts: &Parts, room: Room) -> BTreeMap<i32, Filled> {
        // Half of the time, lest a partition whose leader is away takes the others' records from the caller.
        let deadline = self.deadline.within(self.deadline.left() / 2);
        let mut sorted: Vec<(i32, &Part)> = waiting.iter().filter_map(|it| Some((*it, parts.get(it)?))).collect();
        sorted.sort_unstable_by_key(|(partition, _)| *partition);
        let mut filling = Vec::new();
        for (partition, &Part { from, end, .. }) in sorted {
            let window = self.reader.window(&self.from, partition, deadline).await;
            let (count, bytes) = (room.records.div_ceil(waiting.len()), room.bytes / waiting.len());
            filling.push(async move {
                let mut window = match window {
                    Ok(window) => window,
                    Err(error) => return (partition, Err(error)),
                };
                let filled = blocking(deadline, move |until| {
                    let fetched = window.fill((from, &Ranges::default()), count, bytes, end, until)?;
                    Ok((window, fetched))
                });
                (partition, filled.await)
            });
        }
        futures_util::future::join_all(filling).await.into_iter().collect()
    }

    /// Takes one of `sharers`' share of the room out of a partition's window.
    async fn read(&self, partition: i32, filled: Filled, sharers: usize, state: &mut State) -> Result<(), Error> {
        let Some(part) = state.parts.get_mut(&partition) else { return Ok(()) };
        let (mut window, fetched) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                part.end = part.from;
                state.failed = Some(error.with("partition", partition));
                return Ok(());
            }
        };
        if fetched == Fetched::OutOfRange {
            drop(window);
            return self.restart(partition, part).await;
        }
        part.beyond |= part.from > part.end;
        let Some(first) = window.records().front() else {
            // Markers of transactions, and what was aborted, are passed; or a follower has answered that lags behind.
            part.from = window.offset_after(0).max(part.from);
            part.end = part.from;
            return Ok(());
        };
        let State { room, whole, .. } = state;
        let first = TooLarge { partition, offset: first.offset, size: first.bytes() };
        let (formats, limit) = (self.params.wanted.formats, room.records.div_ceil(sharers));
        let records = || window.records().iter();
        let rendering = self.schemas.rendering(records().take(limit), formats, self.deadline).await?;
        let chosen = |limit, bytes| choose(records(), partition, &rendering, |_| None, limit, bytes);
        let mut messages = chosen(limit, room.bytes / sharers);
        if messages.is_empty() {
            messages = chosen(1, room.bytes);
        }
        if messages.is_empty() && (room.bytes == whole.bytes || chosen(1, whole.bytes).is_empty()) {
            state.too_large.push(first);
        }
        part.done = messages.is_empty();
        part.from = window.offset_after(messages.len());
        part.bytes += window.take(messages.len()).iter().map(Record::payload_bytes).sum::<usize>();
        room.records -= messages.len();
        room.bytes -= messages.iter().map(|message| record::weight(message) + 1).sum::<usize>();
        part.messages.extend(messages);
        Ok(())
    }

    /// Where to go on when the log does not hold an offset: what the caller has named is an error; anything else was
    /// removed since this call began, and there it goes on from the log's start.
    async fn restart(&self, partition: i32, part: &mut Part) -> Result<(), Error> {
        let (start, end) = self.ask(move |asking| asking.bounds(partition)).await?;
        if !part.messages.is_empty() {
            part.done = true;
        } else if part.from < start && !matches!(self.params.begin, Begin::At(_) | Begin::Each(_)) {
            (part.from, part.end) = (start, end);
        } else {
            return Err(out_of_range(start, end));
        }
        Ok(())
    }
}

type Filled = Result<(OwnedMutexGuard<Window>, Fetched), Error>;

/// Questions of one call, asked on a thread that may block.
struct Asking<'a> {
    group: &'a Group,
    topic: &'a TopicName,
    partition: Option<i32>,
    begin: &'a Begin,
    until: Instant,
}

impl Asking<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Which partitions are asked for, and where each begins.
    fn begin(&self) -> Result<BTreeMap<i32, i64>, Error> {
        self.group.drain_events();
        let count = self.group.partitions(self.topic, self.left())?;
        let partitions: Vec<i32> = match (self.begin, self.partition) {
            (Begin::Each(offsets), _) => offsets.keys().copied().collect(),
            (_, Some(partition)) => vec![partition],
            (_, None) => (0..count).collect(),
        };
        if let Some(unknown) = partitions.iter().find(|partition| !(0..count).contains(*partition)) {
            let detail = format!("The topic has {count} partitions, counted from 0");
            return Err(Error::new(Code::PartitionNotFound, detail).with("partition", *unknown));
        }
        let places = places(self.topic, &partitions);
        let offsets = match self.begin {
            Begin::At(offset) => partitions.iter().map(|_| Ok(*offset)).collect(),
            Begin::Each(offsets) => offsets.values().map(|offset| Ok(*offset)).collect(),
            Begin::Earliest => self.group.starts(&places, self.left())?,
            Begin::Latest => self.group.ends(&places, self.left())?,
            Begin::Time(time) => self.group.at_time(&places, *time, self.left())?,
            Begin::Before(count) => {
                let (starts, ends) = (self.group.starts(&places, self.left())?, self.group.ends(&places, self.left())?);
                starts.into_iter().zip(ends).map(|(start, end)| Ok(start?.max(end?.saturating_sub(*count)))).collect()
            }
        };
        let of = |(partition, offset): (i32, Result<i64, Error>)| match offset {
            Ok(offset) => Ok((partition, offset)),
            Err(error) => Err(error.with("partition", partition)),
        };
        partitions.into_iter().zip(offsets).map(of).collect()
    }

    fn ends(&self, partitions: &[i32]) -> Result<Offsets, Error> {
        self.group.ends(&places(self.topic, partitions), self.left())
    }

    /// From where to where a partition's log goes.
    fn bounds(&self, partition: i32) -> Result<(i64, i64), Error> {
        let none = || Error::internal("ListOffsets answered nothing");
        let places = places(self.topic, &[partition]);
        let start = self.group.starts(&places, self.left())?.pop().ok_or_else(none)??;
        let end = self.group.ends(&places, self.left())?.pop().ok_or_else(none)??;
        Ok((start, end))
    }
}
