//! The exclusive hand-over: a compare-and-set on a group's position in a partition, with nothing but Kafka.
//!
//! Whoever wants to move the position does it inside a transaction whose `transactional.id` names topic, partition and
//! group (KIP-98). Kafka lets one producer at a time use such an id: `init_transactions` raises its epoch, fences whoever
//! used it before, and completes or aborts what that one had open. So between our claim and our commit nobody else's
//! commit can succeed, and a stable read after the claim shows what ours is based on:
//!
//! 1. claim (skipped while the claim of an earlier call is still good),
//! 2. read the position, stable (KIP-447), and decide by it (see [`decide`](super::decide)),
//! 3. commit the new position, with a mark that holds a nonce, through the transaction,
//! 4. only then act on it: hand the records out, say that they are accepted.
//!
//! If the outcome of 3 is not known (a fenced or timed-out `EndTxn` may have been applied), a new claim settles it and
//! the nonce tells. While that cannot be learned, nothing is handed out. Where brokers may lose what they have
//! acknowledged, the commit is read back before 4 ([`Claim::confirm`]).
//!
//! What must never happen: records handed out whose commit is not known to be done; a commit that is not based on a
//! stable read made under the same claim.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::client::{self, Client, Context, NO_TOPIC, Report, Settings};
use super::error::unreachable;
use super::group::{Group, marked};
use super::position::{Mark, Position};
use super::producer::{NewRecord, headers};
use crate::config::KafkaConfig;
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::names::{GroupId, TopicName};

/// The longest that one step of a transaction may block. librdkafka sometimes blocks longer than it is told; the caller
/// of the blocking thread keeps its own deadline.
const STEP: Duration = Duration::from_secs(2);

/// The same for writing dead letters: they may be megabytes, in a topic that was made just now.
const LETTERS: Duration = Duration::from_secs(5);

/// The same for adding the offsets: where the coordinator's connection breaks, librdkafka waits for half a second, and then
/// looks for the coordinator at most once a second, before it asks again.
const OFFSETS: Duration = Duration::from_secs(4);

/// How often a claim that is not granted yet is made to look again, as long as it may be a matter of moments, and how often
/// after that: what takes long for one function takes long for all, and their brokers have enough to do then.
const ASK: (Duration, Duration) = (Duration::from_millis(3), Duration::from_millis(50));

/// How long it may be a matter of moments: others end their transactions.
const MOMENTS: Duration = Duration::from_millis(300);

/// A step does not begin to commit with less time left than this; three times as much, where it is read back.
pub(super) const COMMIT: Duration = Duration::from_millis(50);

/// How much later than it was told librdkafka may say that it has waited in vain.
const LATE: Duration = Duration::from_millis(500);

/// The transactional id of a position. The ids are a wire protocol: two schemes would exclude nothing, so the version is
/// part of it, and the prefix is what IAM policies grant. A topic's name holds no colon, so nothing is ambiguous.
fn transactional_id(group: &GroupId, topic: &TopicName, partition: i32) -> String {
    format!("kafka-gateway:1:{topic}:{partition}:{group}")
}

/// The settings of the producers that hold claims.
pub fn settings(config: &KafkaConfig) -> Settings {
    let mut settings = client::settings(config);
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // A holder that is frozen with a transaction open holds stable readers up for this long, and somewhat more.
        .set("transaction.timeout.ms", "10000")
        .set("message.timeout.ms", "10000")
        .set("linger.ms", "0")
        // Of dead letters. A topic's limit is one for whole batches: so what is near such a limit has a batch of its own,
        // and what is too large the topic says. Keys go where Java's clients send them.
        .set("batch.size", "65536")
        .set("message.max.bytes", "20000000")
        .set("partitioner", "murmur2_random");
    if settings.get("compression.type").or_else(|| settings.get("compression.codec")).is_none() {
        // A topic's limit is for records as they lie there. One whose producer compressed it must fit again, as a letter and on
        // its way back. Every client reads this kind.
        settings.set("compression.type", "gzip").set("compression.level", "1");
    }
    settings
}

/// How a commit ended.
#[derive(Debug)]
pub enum Committed {
    /// It is done.
    Yes,
    /// It is not done and never will be: somebody else has claimed the position, or a tool has set it.
    Fenced,
    /// It may be done or not; [`Claim::settle`] finds out.
    Undecided(KafkaError),
}

/// Records that are written in the transaction that moves the position: dead letters of what it settles, or letters on
/// their way back.
#[derive(Debug)]
pub struct Letters {
    /// The topic, which is there.
    pub topic: TopicName,
    /// The records, each with the offset that it had where the position is.
    pub list: Vec<(i64, NewRecord)>,
}

/// The right to move one group's position in one partition, as long as nobody else claims it.
pub struct Claim {
    group: Arc<Group>,
    topic: TopicName,
    partition: i32,
    /// Shared with the thread that asks for offsets in a transaction, see [`Claim::add`].
    producer: Arc<Client<BaseProducer<Context>>>,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("topic", &self.topic).field("partition", &self.partition).finish_non_exhaustive()
    }
}

/// A client that is ready to claim a position, and has disturbed nobody yet.
#[derive(Debug)]
pub struct Claimant(Claim);

impl Claimant {
    /// Makes the client and connects it. Blocks.
    pub fn new(
        settings: &Settings,
        group: &Arc<Group>,
        topic: &TopicName,
        partition: i32,
        until: Instant,
    ) -> Result<Self, Error> {
        let mut settings = settings.clone();
        settings.set("transactional.id", transactional_id(&group.id, topic, partition));
        let producer: Client<BaseProducer<Context>> = settings.create().map_err(Error::internal)?;
        client::connect(producer.client(), topic, partition, patience(until));
        let producer = Arc::new(producer);
        Ok(Self(Claim { group: Arc::clone(group), topic: topic.clone(), partition, producer }))
    }

    /// Takes the position over from whoever held it. Blocks.
    pub fn claim(self, until: Instant) -> Result<Claim, Error> {
        initialise(&**self.0.producer, until)?;
        Ok(self.0)
    }
}

impl Claim {
    /// Takes the position over, with a client made for it. Blocks.
    pub fn take(
        settings: &Settings,
        group: &Arc<Group>,
        topic: &TopicName,
        partition: i32,
        until: Instant,
    ) -> Result<Self, Error> {
        Claimant::new(settings, group, topic, partition, until)?.claim(until)
    }

    /// The position, read under this claim.
    pub fn position(&self, until: Instant) -> Result<Position, Error> {
        self.group.position((&self.topic, self.partition), patience(until))
    }

    /// Commits the mark's offset, with the mark, and with dead letters, if there are any: all of it or nothing. After
    /// anything but `Ok(Committed::Yes)` the claim is used up and must be dropped.
    ///
    /// To make the letters' topic and to write them takes seconds at worst, in which a tool may set the position, as it
    /// needs no claim: so it is read again then, and must still be the `base`.
    ///
    /// `committing` is set when the outcome begins to be open.
    ///
    /// Errors: `409 group_in_use` (by the coordinator, or by the group's description: see [`Guard`](super::brokers::Guard)),
    /// `403` by Kafka's ACLs, `413` for a letter that its topic does not take, `503`, `504`: nothing is committed.
    pub fn commit(
        &self,
        mark: &Mark,
        base: &Position,
        letters: Option<&Letters>,
        until: Instant,
        committing: &AtomicBool,
    ) -> Result<Committed, Error> {
        let offsets = marked(&self.topic, self.partition, mark)?;
        let metadata = self.group.metadata()?;
        self.group.require_free(patience(until))?;
        match self.producer.begin_transaction() {
            Ok(()) => {}
            Err(error) if error.rdkafka_error_code().is_some_and(is_fenced) => return Ok(Committed::Fenced),
            Err(error) => return Err(unreachable(error)),
        }
        if let Err((offset, error)) =
            letters.map_or(Ok(()), |letters| self.write(letters, until.min(Instant::now() + LETTERS)))
        {
            let _ = self.producer.abort_transaction(patience(until));
            let fenced = self.producer.client().fatal_error().is_some_and(|(code, _)| is_fenced(code));
            return if fenced || error.rdkafka_error_code().is_some_and(is_aborted) {
                Ok(Committed::Fenced)
            } else {
                Err(unwritten(&error).with("offset", offset).source(error))
            };
        }
        if letters.is_some() {
            match self.position(until) {
                Ok(position) if position == *base => {}
                moved => {
                    let _ = self.producer.abort_transaction(patience(until));
                    return moved.map(|_| Committed::Fenced);
                }
            }
        }
        if let Err(error) = self.add(offsets, metadata, patience_up_to(OFFSETS, until))? {
            // Nothing is committed without EndTxn. To end the transaction now spares the next holder a wait.
            let _ = self.producer.abort_transaction(patience(until));
            return match error.rdkafka_error_code() {
                Some(code) if is_fenced(code) || is_aborted(code) => Ok(Committed::Fenced),
                Some(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::FencedInstanceId) => {
                    Err(self.group.refusal(patience(until)).source(error))
                }
                _ => Err(unreachable(error)),
            };
        }
        // Said before the clock is read: who gives up on this step in between must not take it for one that ends here.
        committing.store(true, Ordering::SeqCst);
        if until.saturating_duration_since(Instant::now()) < COMMIT {
            // Hardly anybody waits for it any more: records must not be committed for no one.
            let _ = self.producer.abort_transaction(STEP);
            committing.store(false, Ordering::SeqCst);
            return Err(Deadline::exceeded());
        }
        match self.producer.commit_transaction(patience(until)) {
            Ok(()) => Ok(Committed::Yes),
            Err(error) => Ok(Committed::Undecided(error)),
        }
    }

    /// Adds a position to the open transaction.
    ///
    /// In a thread of its own, which may never end: where the group's coordinator is lost for good meanwhile, librdkafka
    /// 2.12 waits for it without an end, whatever time-out it is given. Then the claim is given up, and what hangs is left.
    ///
    /// Errors: `503` then. Nothing is committed without `EndTxn`.
    fn add(
        &self,
        offsets: TopicPartitionList,
        metadata: ConsumerGroupMetadata,
        patience: Duration,
    ) -> Result<Result<(), KafkaError>, Error> {
        let (said, hears) = mpsc::channel();
        let producer = Arc::clone(&self.producer);
        std::thread::spawn(move || {
            // Who does not wait any more has given up.
            let _ = said.send(producer.send_offsets_to_transaction(&offsets, &metadata, patience));
        });
        hears.recv_timeout(patience + LATE).map_err(|late| {
            let (group, topic, partition) = (&self.group.id, &self.topic, self.partition);
            tracing::warn!(%group, %topic, partition, "librdkafka hangs; the claim is given up");
            Error::new(Code::BrokerUnavailable, "The group's coordinator did not answer in time").source(late)
        })
    }

    /// Writes letters into the open transaction, and waits until all in-sync replicas have them. Otherwise: the offset of
    /// a record whose letter was not written, and why.
    fn write(&self, letters: &Letters, until: Instant) -> Result<(), (i64, KafkaError)> {
        let mut reports = Vec::with_capacity(letters.list.len());
        for (offset, letter) in &letters.list {
            let report = Report::default();
            let mut record: BaseRecord<'_, [u8], [u8], Report> =
                BaseRecord::with_opaque_to(letters.topic.as_str(), Arc::clone(&report));
            record.key = letter.key.as_deref();
            record.payload = letter.value.as_deref();
            record.partition = letter.partition;
            record.timestamp = letter.timestamp;
            record.headers = headers(letter);
            self.producer.send(record).map_err(|(error, _)| (*offset, error))?;
            reports.push((*offset, report));
        }
        // Not `flush`, which looks only every 100 ms.
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= until {
                let first = reports.first().map_or(0, |(offset, _)| *offset);
                return Err((first, KafkaError::MessageProduction(RDKafkaErrorCode::OperationTimedOut)));
            }
            self.producer.poll(Duration::from_millis(1));
        }
        let failed = || reports.iter().filter_map(|(offset, report)| Some((*offset, report.get()?.clone())));
        // Once one has failed the others are purged.
        let purged = |error: &KafkaError| {
            matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight))
        };
        failed().find(|(_, error)| !purged(error)).or_else(|| failed().next()).map_or(Ok(()), Err)
    }

    /// Whether a commit on top of `base` whose outcome was lost was done after all.
    ///
    /// A new claim first completes or aborts what was open. Where `error` says that somebody else has claimed the
    /// position, they have done that already, and a stable read is enough: claiming it back would only cost them theirs.
    pub fn settle(
        self,
        settings: &Settings,
        error: &KafkaError,
        nonce: u64,
        base: &Position,
        until: Instant,
    ) -> Result<(Option<Self>, bool), Error> {
        let claim = if error.rdkafka_error_code().is_some_and(is_fenced) {
            None
        } else {
            Some(Self::take(settings, &self.group, &self.topic, self.partition, until)?)
        };
        let done = shown(&self.position(until)?, nonce, base)?;
        Ok((claim, done))
    }

    /// Whether a commit of `mark` on top of `base`, which Kafka has acknowledged, is there to stay; and the claim, while it
    /// stands. Brokers that may lose it (see [`Facts`](super::brokers::Facts)) show that they have not, or it is committed
    /// once more: letters are in their topic by now, and only the position stayed behind. Not where somebody else has moved
    /// it since.
    pub fn confirm(
        mut self,
        settings: &Settings,
        mark: &Mark,
        base: &Position,
        until: Instant,
    ) -> Result<(Option<Self>, bool), Error> {
        if !self.group.facts.loses_commits {
            return Ok((Some(self), true));
        }
        let nonce = mark.latest().ok_or_else(|| Error::internal("a mark without a nonce"))?;
        loop {
            let position = self.acknowledged(until)?;
            if shown(&position, nonce, base)? {
                return Ok((Some(self), true));
            }
            if position != *base {
                // Others commit under claims of their own, and leave marks. A tool leaves none: it may have come later.
                return if position.mark.is_some() { Ok((None, false)) } else { Err(untold()) };
            }
            let (group, topic, partition) = (&self.group.id, &self.topic, self.partition);
            tracing::warn!(%group, %topic, partition, "Kafka lost a commit that it had acknowledged; once more");
            // It stays open how this ends, whatever becomes of the second.
            match self.commit(mark, base, None, until, &AtomicBool::new(true))? {
                Committed::Yes => {}
                Committed::Fenced => return Ok((None, false)),
                Committed::Undecided(error) => match self.settle(settings, &error, nonce, base, until)? {
                    (Some(claim), false) => self = claim,
                    settled => return Ok(settled),
                },
            }
        }
    }

    /// The position after a commit that was acknowledged. It is read until the step's own end: without it the records
    /// would be skipped.
    fn acknowledged(&self, until: Instant) -> Result<Position, Error> {
        loop {
            match self.position(until) {
                Err(error) if error.code() == Code::BrokerUnavailable && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                read => return read,
            }
        }
    }
}

/// Whether a position shows that a commit was done.
fn shown(position: &Position, nonce: u64, base: &Position) -> Result<bool, Error> {
    position.shows(nonce, base).ok_or_else(untold)
}

fn untold() -> Error {
    Error::new(Code::DeadlineExceeded, "The position has moved on too far to tell")
}

/// Why a letter was not written, to the caller. Its topic was there just now; if it is gone, the next try says so, or makes
/// it again.
fn unwritten(error: &KafkaError) -> Error {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge) => {
            let detail = "The record is larger than the topic that it goes to allows (max.message.bytes)";
            Error::new(Code::RecordTooLarge, detail)
        }
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition,
        ) => Error::new(Code::BrokerUnavailable, "The topic that the record goes to is gone; try again"),
        _ => unreachable(error.clone()),
    }
}

fn is_fenced(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::InvalidProducerIdMapping
            | RDKafkaErrorCode::Fatal
    )
}

/// What Kafka 3.6 and newer say to who writes into a transaction that is not open any more (KIP-890): the next claim has
/// ended it.
fn is_aborted(code: RDKafkaErrorCode) -> bool {
    code == RDKafkaErrorCode::InvalidTransactionalState
}

pub(super) fn patience(until: Instant) -> Duration {
    patience_up_to(STEP, until)
}

fn patience_up_to(most: Duration, until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), most)
}

/// `init_transactions`, without its trap: librdkafka asks for a producer id before a broker is connected, or meets the
/// transaction of the holder before it, and then waits on a 500 ms timer. A metadata reply makes it look again.
pub(super) fn initialise<C, P>(producer: &P, until: Instant) -> Result<(), Error>
where
    C: ProducerContext,
    P: Producer<C> + Sync,
{
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let begun = Instant::now();
            loop {
                std::thread::park_timeout(if begun.elapsed() < MOMENTS { ASK.0 } else { ASK.1 });
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let _ = producer.client().fetch_metadata(Some(NO_TOPIC), Duration::from_millis(50));
            }
        });
        let result = loop {
            match producer.init_transactions(patience(until)) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break other,
            }
        };
        done.store(true, Ordering::Relaxed);
        // The scope waits for it: let it not sleep out its pause.
        asking.thread().unpark();
        result
    })
    .map_err(unreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactional_ids_are_unambiguous_and_never_change() {
        let id = |topic: &str, partition, group: &str| {
            transactional_id(
                &GroupId::parse(group).expect("group"),
                &TopicName::parse(topic).expect("topic"),
                partition,
            )
        };
        // Functions of different releases exclude each other by these very bytes.
        assert_eq!(id("orders.v1", 3, "team:a"), "kafka-gateway:1:orders.v1:3:team:a");
        assert_ne!(id("a", 1, "1:b"), id("a", 11, "b"));
    }
}
