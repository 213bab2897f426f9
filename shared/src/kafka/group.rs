//! A consumer group as the gateway uses it: its positions, and a consumer that never joins it.
//!
//! All calls here block; they are made from `spawn_blocking`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::groups::GroupMemberInfo;
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};

use super::brokers::Facts;
use super::client::{self, Client, Context, NO_TOPIC, Settings};
use super::error::{classify, from_kafka, unreachable};
use super::offsets::Leaders;
use super::position::{Mark, Position, now_ms};
use super::retention::RENEWAL_CLIENT;
use super::topics::Topics;
use crate::config::KafkaConfig;
use crate::errors::{Code, Error};
use crate::names::{GroupId, TopicName};

/// How many topics are asked about at the same time.
const ABREAST: usize = 8;

/// A partition of a topic.
pub type Place<'a> = (&'a TopicName, i32);

/// A position for each partition that was asked for, or why there is none.
pub type Positions = Vec<Result<Position, Error>>;

/// An offset for each partition that was asked for, or why there is none.
pub type Offsets = Vec<Result<i64, Error>>;

/// The settings of the consumers that read positions and records for a group.
pub fn settings(config: &KafkaConfig) -> Settings {
    let mut settings = client::settings(config);
    settings
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Only committed records, and positions without transactions pending on them.
        .set("isolation.level", "read_committed")
        // Positions are resolved here, never by librdkafka on its own.
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        // A partition that is assigned anew gets nothing before a fetch that waits at the broker has returned.
        .set("fetch.wait.max.ms", "5")
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "10")
        // A fetch that has brought what the largest call takes is not followed by another before it is used up.
        .set("queued.min.messages", "1000")
        .set("queued.max.messages.kbytes", "8192");
    settings
}

/// A group's handle. It holds the only consumer of that group in this sandbox that reads records.
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// What its brokers are.
    pub facts: Facts,
    pub(super) consumer: Client<Arc<BaseConsumer<Context>>>,
    pub(super) topics: Topics,
    pub(super) leaders: Leaders,
    /// The topics of which every partition was seen to have a position.
    begun: Mutex<HashSet<TopicName>>,
    settings: Settings,
    /// Whether its coordinator has answered.
    found: AtomicBool,
    /// The same group without its stability; made by the first read that meets pending commits.
    unsettled: OnceLock<Box<Group>>,
    /// Until when looks are glances, milliseconds since 1970.
    glancing_until: AtomicU64,
    /// Whether Kafka's access control keeps the group's coordinator from us. librdkafka says so once, in an event, and then
    /// lets everybody wait.
    forbidden: AtomicBool,
}

/// How long a coordinator is waited for before it is looked whether we may know it at all.
const ALLOWED: Duration = Duration::from_secs(1);

/// How long a glance waits for pending commits: some milliseconds more than one of them takes.
const PENDING: Duration = Duration::from_millis(25);

/// The same for a group's first, which has to find the coordinator.
const FINDING: Duration = Duration::from_millis(250);

/// For how long looks are glances after one has met pending commits.
const GLANCING_MS: u64 = 10_000;

/// How long an event is waited for that should be there already, behind log lines.
const LISTENING: Duration = Duration::from_millis(5);

/// What a group's description shows. It is the older kind of description, which knows classic members only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Described {
    /// There is no such group; or it is one of KIP-848, with members or not.
    Unknown,
    /// It has no members.
    Empty,
    /// Its members come or go, or one of ours renews it.
    Passing,
    /// It has members.
    InUse,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Group {
    /// Creates the consumer; connects to nothing yet.
    pub fn open(settings: &Settings, id: &GroupId, facts: Facts) -> Result<Self, Error> {
        let kept = settings.clone();
        let mut settings = kept.clone();
        settings.set("group.id", id.as_str());
        if facts.guard.shows_instance_id() {
            settings.set("group.instance.id", "kafka-gateway");
        }
        let consumer = settings.create().map_err(Error::internal)?;
        Ok(Self {
            id: id.clone(),
            facts,
            consumer,
            topics: Topics::default(),
            leaders: Leaders::default(),
            begun: Mutex::default(),
            settings: kept,
            found: AtomicBool::new(false),
            unsettled: OnceLock::new(),
            glancing_until: AtomicU64::new(0),
            forbidden: AtomicBool::new(false),
        })
    }

    /// How many partitions a topic has. `404` where it does not exist.
    ///
    /// It also makes the partitions' leaders known: a consumer that is assigned before it knows them waits a second.
    pub fn partitions(&self, topic: &TopicName, patience: Duration) -> Result<i32, Error> {
        let counted = self.partitions_of_each(&[topic], Instant::now() + patience).pop();
        counted.unwrap_or_else(|| Err(Error::internal("a topic was not counted")))
    }

    /// The same for several topics, in their order, side by side.
    pub fn partitions_of_each(&self, topics: &[&TopicName], until: Instant) -> Vec<Result<i32, Error>> {
        let left = || until.saturating_duration_since(Instant::now());
        let mut counts: Vec<_> = topics.iter().map(|topic| self.topics.partitions(topic).map(Ok)).collect();
        if let Some(first) = topics.first().filter(|_| counts.iter().all(Option::is_none)) {
            client::connect(self.consumer.client(), first, 0, left());
        }
        let mut unknown: Vec<_> = topics.iter().zip(&mut counts).filter(|(_, count)| count.is_none()).collect();
        for some in unknown.chunks_mut(ABREAST) {
            std::thread::scope(|scope| {
                for (topic, count) in some {
                    scope.spawn(|| **count = Some(self.count(topic, left())));
                }
            });
        }
        counts.into_iter().flatten().collect()
    }

    fn count(&self, topic: &TopicName, patience: Duration) -> Result<i32, Error> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic.as_str()), patience)
            .map_err(|error| self.consumer.unreachable(error))?;
        let partitions = partitions_of(&metadata, topic)?;
        self.topics.note(topic, partitions);
        self.leaders.note(topic, &metadata);
        Ok(partitions)
    }

    /// All topics, with how many partitions each has.
    pub fn topics(&self, patience: Duration) -> Result<Vec<(TopicName, i32)>, Error> {
        let metadata =
            self.consumer.fetch_metadata(None, patience).map_err(|error| self.consumer.unreachable(error))?;
        let there = metadata.topics().iter().filter(|topic| topic.error().is_none());
        there
            .map(|topic| {
                let partitions = i32::try_from(topic.partitions().len()).map_err(Error::internal)?;
                Ok((TopicName::parse(topic.name())?, partitions))
            })
            .collect()
    }

    /// Whether the topic was seen to exist.
    pub fn knows(&self, topic: &TopicName) -> bool {
        self.topics.knows(topic)
    }

    /// Whether each partition of a topic was seen to have a position.
    pub fn has_begun(&self, topic: &TopicName) -> bool {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).contains(topic)
    }

    /// Notes that each partition of a topic has a position.
    pub fn note_begun(&self, topic: &TopicName) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.clone());
    }

    /// Commits a position without a transaction and without a membership. Blocks.
    pub fn commit_plain(&self, topic: &TopicName, partition: i32, mark: &Mark) -> Result<(), Error> {
        let offsets = marked(topic, partition, mark)?;
        match self.consumer.commit(&offsets, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(error) => match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownMemberId
                    | RDKafkaErrorCode::FencedInstanceId
                    | RDKafkaErrorCode::IllegalGeneration
                    | RDKafkaErrorCode::RebalanceInProgress,
                ) => Err(self.refusal(Duration::from_secs(2)).source(error)),
                _ => Err(unreachable(error)),
            },
        }
    }

    /// The group's positions, in the order of `places`: an `OffsetFetch` that waits until no transaction is pending on
    /// them (KIP-447's `require_stable`).
    pub fn positions(&self, places: &[Place<'_>], patience: Duration) -> Result<Positions, Error> {
        // librdkafka refuses to be asked for nothing.
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let (asked, begun) = (list(places, Offset::Invalid)?, Instant::now());
        let mut read = self.consumer.committed_offsets(asked.clone(), patience.min(ALLOWED));
        if read.as_ref().is_err_and(|error| unreachable(error.clone()).code() == Code::BrokerUnavailable) {
            // Perhaps it waits for a coordinator that it will not be told of.
            self.listen(LISTENING);
            if self.forbidden.load(Ordering::Relaxed) {
                return Err(from_kafka(KafkaError::OffsetFetch(RDKafkaErrorCode::GroupAuthorizationFailed)));
            }
            let left = patience.saturating_sub(begun.elapsed());
            if !left.is_zero() {
                read = self.consumer.committed_offsets(asked, left);
            }
        }
        let read = read.map_err(|error| self.consumer.unreachable(error))?;
        self.forbidden.store(false, Ordering::Relaxed);
        self.found.store(true, Ordering::Relaxed);
        Ok(each(&read, places, |element| {
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            Position::read(committed, element.metadata())
        }))
    }

    /// The same to look around by: it does not wait until nothing is pending. In a group that many functions consume from,
    /// a commit is pending in some partition at almost any time, and librdkafka would ask again for all of them until it
    /// meets a moment when none is. What a glance shows is the position before what is pending. Also says whether they are
    /// stable, with nothing pending.
    pub fn glance(&self, places: &[Place<'_>], patience: Duration) -> Result<(Positions, bool), Error> {
        if self.glances() {
            return Ok((self.as_they_are(places, patience)?, false));
        }
        let pending = if self.found.load(Ordering::Relaxed) { PENDING } else { FINDING };
        self.settled(places, pending, patience)
    }

    /// The positions, with what was committed within the last milliseconds, if there is a moment without pending commits
    /// before so much time is over; otherwise as they are, and not stable. What is pending for longer was left behind by a
    /// function that is dead or frozen.
    pub fn settled(
        &self,
        places: &[Place<'_>],
        pending: Duration,
        patience: Duration,
    ) -> Result<(Positions, bool), Error> {
        let begun = Instant::now();
        match self.positions(places, patience.min(pending)) {
            // It may as well be that nobody answers; then this fails too.
            Err(error) if error.code() == Code::BrokerUnavailable => {
                self.glancing_until.store(now_ms() + GLANCING_MS, Ordering::Relaxed);
                Ok((self.as_they_are(places, patience.saturating_sub(begun.elapsed()))?, false))
            }
            read => Ok((read?, true)),
        }
    }

    /// Whether looks do not wait for pending commits just now.
    pub fn glances(&self) -> bool {
        now_ms() < self.glancing_until.load(Ordering::Relaxed)
    }

    fn as_they_are(&self, places: &[Place<'_>], patience: Duration) -> Result<Positions, Error> {
        if self.unsettled.get().is_none() {
            let mut settings = self.settings.clone();
            settings.set("isolation.level", "read_uncommitted");
            let unsettled = Self::open(&settings, &self.id, self.facts)?;
            // Another call may have been faster.
            let _ = self.unsettled.set(Box::new(unsettled));
        }
        let unsettled = self.unsettled.get().ok_or_else(|| Error::internal("the group has no second client"))?;
        unsettled.drain_events();
        unsettled.positions(places, patience)
    }

    /// The group's position in one partition, stable.
    pub fn position(&self, place: Place<'_>, patience: Duration) -> Result<Position, Error> {
        let read = self.positions(&[place], patience)?;
        read.into_iter().next().ok_or_else(|| Error::internal("no position"))?
    }

    /// What proves to the coordinator for which group a transaction's offsets are.
    pub(super) fn metadata(&self) -> Result<ConsumerGroupMetadata, Error> {
        self.consumer.group_metadata().ok_or_else(|| Error::internal("the consumer has no group"))
    }

    /// Takes events that nobody waits for (lost connections, for one) off the consumer's own queue, lest they pile up.
    pub fn drain_events(&self) {
        self.listen(Duration::ZERO);
    }

    /// Takes events until none comes for this long.
    fn listen(&self, patience: Duration) {
        while let Some(event) = self.consumer.poll(patience) {
            if let Err(error) = event {
                tracing::debug!(%error, group = %self.id, "consumer event");
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) {
                    self.forbidden.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Before a commit in a transaction, where the coordinator may not refuse it: `409 group_in_use` if the group has live
    /// members, `503` if it is passing from one state to another or cannot be described.
    ///
    /// All brokers that the client knows are asked, and all of them must answer: librdkafka can ask the coordinator alone, but
    /// ends the process where that changes meanwhile (2.12, `DescribeConsumerGroups`).
    pub(super) fn require_free(&self, patience: Duration) -> Result<(), Error> {
        if !self.facts.guard.describes() {
            return Ok(());
        }
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        let mut described = self.described(patience / 2);
        if matches!(described, Err(_) | Ok(Described::Unknown)) {
            // A group with positions is known to its coordinator: that may be a broker which this client has not met. And one
            // that is away is asked until the client hears that it has left the cluster.
            self.consumer.fetch_metadata(Some(NO_TOPIC), left()).map_err(unreachable)?;
            described = self.described(left());
        }
        match described? {
            Described::Unknown | Described::Empty => Ok(()),
            Described::Passing => Err(self.is_passing()),
            Described::InUse => Err(self.in_use()),
        }
    }

    /// What a refused commit means: `409 group_in_use`, or `503` where the group is only passing from one state to another.
    ///
    /// Asked only when the coordinator has refused a commit, and the coordinator's refusal is what counts.
    pub fn refusal(&self, patience: Duration) -> Error {
        match self.described(patience) {
            // Empty: its last member has just left.
            Ok(Described::Passing | Described::Empty) => self.is_passing(),
            Ok(Described::Unknown | Described::InUse) | Err(_) => self.in_use(),
        }
    }

    fn described(&self, patience: Duration) -> Result<Described, Error> {
        let list = self.consumer.fetch_group_list(Some(self.id.as_str()), patience).map_err(unreachable)?;
        let ours = |member: &GroupMemberInfo| member.client_id() == RENEWAL_CLIENT;
        Ok(match list.groups().first() {
            None => Described::Unknown,
            Some(group) if group.state() == "Dead" => Described::Unknown,
            Some(group) if group.state() == "Empty" => Described::Empty,
            Some(group) if group.members().iter().all(ours) => Described::Passing,
            Some(_) => Described::InUse,
        })
    }

    fn is_passing(&self) -> Error {
        Error::new(Code::BrokerUnavailable, "The consumer group is changing; try again")
            .with("group_id", self.id.as_str())
    }

    fn in_use(&self) -> Error {
        let detail =
            "The consumer group has live members. Stop them, or use another group: both would get the same records";
        Error::new(Code::GroupInUse, detail).with("group_id", self.id.as_str())
    }
}

/// Partitions of one topic, as places.
pub fn places<'a>(topic: &'a TopicName, partitions: &[i32]) -> Vec<Place<'a>> {
    partitions.iter().map(|&partition| (topic, partition)).collect()
}

/// `400` for an offset outside of a log that goes from `start` to `end`.
pub fn out_of_range(start: i64, end: i64) -> Error {
    let detail = format!("The offset is outside of the log, which goes from {start} to {end}");
    Error::new(Code::OffsetOutOfRange, detail).with("start", start).with("end", end)
}

/// A list of partitions, all with one offset.
pub(super) fn list(places: &[Place<'_>], offset: Offset) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition_offset(topic.as_str(), *partition, offset).map_err(Error::internal)?;
    }
    Ok(list)
}

/// A list of one position with its mark, ready to commit.
pub(super) fn marked(topic: &TopicName, partition: i32, mark: &Mark) -> Result<TopicPartitionList, Error> {
    let offsets = list(&[(topic, partition)], Offset::Offset(mark.offset))?;
    let element = offsets.find_partition(topic.as_str(), partition);
    element.ok_or_else(|| Error::internal("the list has no partition"))?.set_metadata(mark.to_metadata());
    Ok(offsets)
}

/// Reads a list partition by partition. An error in one of them arrives inside an `Ok` list; taking its offset for an
/// answer would send the position back to the start.
pub(super) fn each<T>(
    list: &TopicPartitionList,
    places: &[Place<'_>],
    read: impl Fn(&rdkafka::topic_partition_list::TopicPartitionListElem<'_>) -> Result<T, Error>,
) -> Vec<Result<T, Error>> {
    places
        .iter()
        .map(|(topic, partition)| {
            let element = list
                .find_partition(topic.as_str(), *partition)
                .ok_or_else(|| Error::internal("the broker's answer leaves a partition out"))?;
            element.error().map_err(from_kafka)?;
            read(&element)
        })
        .collect()
}

/// How many partitions a topic has. `404` where it does not exist.
pub fn partitions_of(metadata: &Metadata, topic: &TopicName) -> Result<i32, Error> {
    let about = |error: Error| error.with("topic", topic.as_str());
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic.as_str()) else {
        return Err(about(Error::internal("the broker's answer leaves the topic out")));
    };
    if let Some(error) = found.error() {
        let code = RDKafkaErrorCode::from(error);
        let (public, detail) = classify(code);
        return Err(about(Error::new(public, detail).source(KafkaError::MetadataFetch(code))));
    }
    i32::try_from(found.partitions().len()).map_err(Error::internal)
}
