//! Offsets of partitions, as their leaders know them. Where one leader is away, the others' partitions have theirs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::group::{Group, Offsets, Place, each, list};
use crate::errors::{Code, Error};
use crate::names::TopicName;

/// How long a leader is waited for, where there are others. A healthy one answers within milliseconds.
const ANSWER: Duration = Duration::from_secs(2);

/// How many topics' leaders are remembered before it begins anew.
const TOPICS: usize = 1000;

/// What metadata calls the leader of a partition that has none.
const NOBODY: i32 = -1;

/// Who led the partitions of topics, by their number, when a broker was asked last. Only a hint: librdkafka asks who leads
/// now.
#[derive(Debug, Default)]
pub(super) struct Leaders(Mutex<HashMap<TopicName, HashMap<i32, i32>>>);

impl Leaders {
    /// Notes what a broker has just said of a topic.
    pub(super) fn note(&self, topic: &TopicName, metadata: &Metadata) {
        let named = metadata.topics().iter().filter(|named| named.name() == topic.as_str());
        let leaders = named.flat_map(MetadataTopic::partitions).map(|partition| (partition.id(), partition.leader()));
        let mut known = self.known();
        if known.len() >= TOPICS {
            known.clear();
        }
        known.insert(topic.clone(), leaders.collect());
    }

    /// Places (by their index) that have the same leader.
    fn groups(&self, places: &[Place<'_>]) -> BTreeMap<Option<i32>, Vec<usize>> {
        let (known, mut groups) = (self.known(), BTreeMap::<_, Vec<usize>>::new());
        for (index, (topic, partition)) in places.iter().enumerate() {
            let leader = known.get(*topic).and_then(|leaders| leaders.get(partition)).copied();
            groups.entry(leader).or_default().push(index);
        }
        groups
    }

    fn known(&self) -> MutexGuard<'_, HashMap<TopicName, HashMap<i32, i32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None, where no record has the time that was asked for.
type Found = Result<Option<i64>, Error>;

impl Group {
    /// The partitions' last stable offsets: below them, every record is decided.
    pub fn ends(&self, places: &[Place<'_>], patience: Duration) -> Result<Offsets, Error> {
        self.bounds(places, Offset::End, patience)
    }

    /// The partitions' first offsets that are still there.
    pub fn starts(&self, places: &[Place<'_>], patience: Duration) -> Result<Offsets, Error> {
        self.bounds(places, Offset::Beginning, patience)
    }

    fn bounds(&self, places: &[Place<'_>], which: Offset, patience: Duration) -> Result<Offsets, Error> {
        let none = || Error::internal("ListOffsets answered nothing");
        let found = self.offsets(places, which, patience)?;
        Ok(found.into_iter().map(|offset| offset?.ok_or_else(none)).collect())
    }

    /// The partitions' first offsets of this time (milliseconds since 1970) or later; their ends, where there is none.
    pub fn at_time(&self, places: &[Place<'_>], time: i64, patience: Duration) -> Result<Offsets, Error> {
        let begun = Instant::now();
        // The ends first: a record that is written between the two is found, or lies behind them.
        let ends = self.ends(places, patience)?;
        let found = self.offsets(places, Offset::Offset(time), patience.saturating_sub(begun.elapsed()))?;
        Ok(found.into_iter().zip(ends).map(|(found, end)| found?.map_or(end, Ok)).collect())
    }

    /// One `ListOffsets` a leader, side by side. librdkafka sends as many for a list of all, but then one leader that is
    /// away takes the answers of all others with it. (Its watermark query takes two for each partition.)
    fn offsets(&self, places: &[Place<'_>], which: Offset, patience: Duration) -> Result<Vec<Found>, Error> {
        let groups = self.leaders.groups(places);
        let patience = if groups.len() > 1 { patience.min(ANSWER) } else { patience };
        let ask = |(leader, indices): (Option<i32>, Vec<usize>)| {
            let some: Vec<Place<'_>> = indices.iter().map(|index| places[*index]).collect();
            let found = if leader == Some(NOBODY) { Err(leaderless()) } else { self.ask(&some, which, patience) };
            let found = found.unwrap_or_else(|error| vec![Err(error); some.len()]);
            for ((topic, _), found) in some.iter().zip(&found) {
                if found.as_ref().is_err_and(|error| error.code() == Code::BrokerUnavailable) {
                    // Others may lead soon: who it is, is looked up again.
                    self.topics.forget(topic);
                }
            }
            indices.into_iter().zip(found).collect::<Vec<_>>()
        };
        let mut groups = groups.into_iter();
        let Some(first) = groups.next() else { return Ok(Vec::new()) };
        let mut found = std::thread::scope(|scope| {
            let beside: Vec<_> = groups.map(|group| scope.spawn(|| ask(group))).collect();
            let mut found = ask(first);
            for asked in beside {
                found.extend(asked.join().map_err(|_| Error::internal("asking for offsets panicked"))?);
            }
            Ok::<_, Error>(found)
        })?;
        found.sort_by_key(|(index, _)| *index);
        Ok(found.into_iter().map(|(_, found)| found).collect())
    }

    fn ask(&self, places: &[Place<'_>], which: Offset, patience: Duration) -> Result<Vec<Found>, Error> {
        // What exists was looked up before: librdkafka calls a partition unknown that has no leader, too.
        let known = |error: Error| match error.code() {
            Code::PartitionNotFound => leaderless().source(error),
            _ => error,
        };
        let asked = list(places, which)?;
        let read = self.consumer.offsets_for_times(asked, patience);
        let read = read.map_err(|error| known(self.consumer.unreachable(error)))?;
        let found = each(&read, places, |element| match element.offset() {
            Offset::Offset(offset) => Ok(Some(offset)),
            Offset::End => Ok(None),
            other => Err(Error::internal(format!("ListOffsets answered {other:?}"))),
        });
        Ok(found.into_iter().map(|offset| offset.map_err(known)).collect())
    }
}

fn leaderless() -> Error {
    Error::new(Code::BrokerUnavailable, "A partition has no leader just now")
}
