//! Producing: one idempotent producer per sandbox, every record acknowledged by all in-sync replicas.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders, Timestamp};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _, PurgeConfig};
use tokio::time::Instant;

use super::client::{self, Context, NO_TOPIC, Settings};
use super::error::{classify, from_kafka};
use super::topics::Topics;
use crate::auth::{Authorized, Write};
use crate::config::KafkaConfig;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::names::TopicName;
use crate::record::Header;

/// The most that a new client waits for a broker, for each of two answers. Without one the sandbox starts all the same,
/// and its calls say 503.
const WARM_UP: Duration = Duration::from_millis(1500);

/// How long a call that gave a record up waits for librdkafka's word on it. Within what a deadline keeps back.
const LAST_WORD: Duration = Duration::from_millis(50);

/// When records are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Each as soon as it is there.
    AtOnce,
    /// All of a call's records together, when the last of them is there ([`Producer::hurry`]): in fewer requests, which a
    /// broker has done with sooner. A batch of 1000 takes a fifth less time than with the first ones sent ahead
    /// (`bench --only batch`).
    Together,
}

impl Sending {
    /// How many milliseconds librdkafka keeps a record that nobody tells it to send.
    const fn linger(self) -> &'static str {
        match self {
            Self::AtOnce => "0",
            // Longer than it takes to hand a thousand records over; and no longer, as a topic of a batch may have to be
            // looked up first, which the others do not wait for.
            Self::Together => "5",
        }
    }
}

/// A record on its way to Kafka.
#[derive(Debug, Default)]
pub struct NewRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<Header>,
    /// The partition, where the caller chose one; otherwise the key decides as in Java's clients (murmur2).
    pub partition: Option<i32>,
    /// Milliseconds since 1970; now, where the caller gave none.
    pub timestamp: Option<i64>,
}

impl NewRecord {
    /// What its key and value weigh.
    pub fn bytes(&self) -> u64 {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len) as u64;
        len(&self.key) + len(&self.value)
    }
}

/// Where a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// The record's timestamp, milliseconds since 1970.
    pub timestamp: i64,
}

impl Receipt {
    pub(super) fn of(delivered: &Delivery) -> Self {
        let timestamp = match delivered.timestamp {
            Timestamp::CreateTime(at) | Timestamp::LogAppendTime(at) => at,
            Timestamp::NotAvailable => -1,
        };
        Self { partition: delivered.partition, offset: delivered.offset, timestamp }
    }
}

type Client = client::Client<FutureProducer<Context>>;

/// The settings of whoever writes callers' records: `linger` is how many milliseconds a record waits for others.
pub(super) fn settings(config: &KafkaConfig, linger: &str) -> Settings {
    let mut settings = client::settings(config);
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("allow.auto.create.topics", config.auto_create_topics.to_string())
        .set("topic.metadata.propagation.max.ms", "1000")
        // Keys go where Java's clients send them.
        .set("partitioner", "murmur2_random")
        // The broker's and the topic's limits decide what is too large, not this client's.
        .set("message.max.bytes", "20000000");
    if settings.get("linger.ms").is_none() && settings.get("queue.buffering.max.ms").is_none() {
        settings.set("linger.ms", linger);
    }
    settings
}

/// Makes a client and waits, for a moment, until it is ready to send. Blocks: TLS reads its roots.
///
/// Why two requests for metadata: librdkafka asks for its producer id 1 ms after it was created, finds no broker
/// connected, and tries again after a fixed 500 ms. A metadata reply makes it try at once; the first one proves the
/// connection, the second finds the id's request possible.
fn create(settings: &Settings, patience: Duration) -> Result<Client, KafkaError> {
    let client: Client = settings.create()?;
    for _ in 0..2 {
        if let Err(error) = client.client().fetch_metadata(Some(NO_TOPIC), patience) {
            tracing::warn!(%error, "Kafka did not answer a new producer; calls will try again");
            break;
        }
    }
    Ok(client)
}

/// The sandbox's producer.
pub struct Producer {
    settings: Settings,
    /// Replaced when it has raised a fatal error, since librdkafka then refuses everything.
    client: RwLock<Arc<Client>>,
    /// Held by the one call that replaces the client.
    replacing: tokio::sync::Mutex<()>,
    topics: Topics,
    auto_create: bool,
    sending: Sending,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Creates the client, off the runtime's own threads.
    pub async fn start(config: &KafkaConfig, sending: Sending, request_timeout: Duration) -> Result<Self, BoxError> {
        let mut settings = settings(config, sending.linger());
        // A little less than a call may take, so that what could not be delivered ends with a report. But librdkafka
        // counts from the sending, not from the call's start, and looks once a second: `give_up` does not rely on it.
        let give_up = request_timeout.saturating_sub(Duration::from_millis(250)).max(Duration::from_millis(50));
        settings.set("message.timeout.ms", give_up.as_millis().to_string());
        let made = settings.clone();
        let client = tokio::task::spawn_blocking(move || create(&made, WARM_UP)).await??;
        Ok(Self {
            settings,
            client: RwLock::new(Arc::new(client)),
            replacing: tokio::sync::Mutex::new(()),
            topics: Topics::default(),
            auto_create: config.auto_create_topics,
            sending,
        })
    }

    /// Writes records of one topic, in their order, and waits until all in-sync replicas have them: what became of each.
    /// `queued` is called when all are with librdkafka, and nothing was waited for yet.
    ///
    /// Errors: `404` for an unknown topic or partition, `413` for a record the topic does not take, `503` where Kafka
    /// cannot be reached, `504` with `"outcome": "unknown"` where it did not answer in time: the record may have been
    /// written, but will not be from here on.
    pub async fn produce(
        &self,
        to: &Authorized<Write>,
        records: &[&NewRecord],
        deadline: Deadline,
        queued: impl FnOnce(),
    ) -> Vec<Result<Receipt, Error>> {
        let together = self.write(to.topic(), records, deadline, queued).await;
        let mut results = Vec::with_capacity(records.len());
        for (record, written) in records.iter().zip(together) {
            results.push(match written {
                Err(Failure::Kafka(error)) if forgot(&error) || records.len() > 1 && blames_company(&error) => {
                    self.write_alone(to.topic(), record, deadline).await
                }
                written => self.verdict(to.topic(), written),
            });
        }
        results
    }

    /// Whether records could be written to a topic, as far as that shows before: `404` for each where the topic or the
    /// partition does not exist.
    pub async fn check(
        &self,
        to: &Authorized<Write>,
        records: &[&NewRecord],
        deadline: Deadline,
    ) -> Vec<Result<(), Error>> {
        let partitions = self.partitions(to.topic(), highest(records), deadline).await;
        let check = |record: &&NewRecord| {
            let partitions = partitions.as_ref().map_err(Clone::clone)?;
            require_partition(to.topic(), record, *partitions)
        };
        records.iter().map(check).collect()
    }

    /// Writes a dead letter: who may write to a topic may leave letters in its dead-letter topic.
    pub async fn produce_letter(
        &self,
        _of: &Authorized<Write>,
        letters: &TopicName,
        letter: &NewRecord,
        deadline: Deadline,
    ) -> Result<Receipt, Error> {
        self.write_alone(letters, letter, deadline).await
    }

    async fn write_alone(&self, topic: &TopicName, record: &NewRecord, deadline: Deadline) -> Result<Receipt, Error> {
        let written = self.write(topic, &[record], deadline, || self.hurry(deadline)).await.pop();
        self.verdict(topic, written.unwrap_or_else(|| Err(Failure::Unknown(None))))
    }

    /// Hands records to librdkafka, all of them, and then waits for what it says of each.
    async fn write(
        &self,
        topic: &TopicName,
        records: &[&NewRecord],
        deadline: Deadline,
        all_queued: impl FnOnce(),
    ) -> Vec<Result<Receipt, Failure>> {
        let mut queued = Vec::with_capacity(records.len());
        let mut partitions = self.partitions(topic, highest(records), deadline).await;
        for record in records {
            queued.push(match &partitions {
                Ok(count) => self.enqueue(topic, record, *count, deadline).await,
                Err(error) => Err(Failure::Before(error.clone())),
            });
            // What keeps one record back keeps back those behind it: they are not to pass it, nor to ask again.
            if let Some(Err(Failure::Before(error))) = queued.last()
                && error.code() != Code::PartitionNotFound
            {
                partitions = Err(error.clone());
            }
        }
        all_queued();
        let mut patience = Patience { until: deadline.instant(), gave_up: None };
        let mut written = Vec::with_capacity(records.len());
        // The last first: those before it have their words by then, and this task wakes once and not with each.
        for queued in queued.into_iter().rev() {
            written.push(match queued {
                Ok((client, delivery)) => patience.wait(&client, delivery).await,
                Err(failure) => Err(failure),
            });
        }
        written.reverse();
        written
    }

    /// Has librdkafka send what it keeps: a call has no more. While it is at that, nothing is kept.
    pub fn hurry(&self, deadline: Deadline) {
        if self.sending == Sending::Together {
            let (client, patience) = (self.client(), deadline.left());
            // What cannot be sent in time, its own report says.
            tokio::task::spawn_blocking(move || client.send_all(patience));
        }
    }

    /// Hands a record to librdkafka. What it refuses here was not sent, so that another try can do no harm.
    async fn enqueue(
        &self,
        topic: &TopicName,
        record: &NewRecord,
        partitions: i32,
        deadline: Deadline,
    ) -> Result<(Arc<Client>, DeliveryFuture), Failure> {
        require_partition(topic, record, partitions).map_err(Failure::Before)?;
        let client = self.client();
        let error = match send(&client, topic, record) {
            Ok(delivery) => return Ok((client, delivery)),
            Err(error) => error,
        };
        let client = match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::Fatal) => {
                self.replace(&client, deadline).await.map_err(Failure::Before)?
            }
            // The topic, as it was when somebody last looked, is gone; perhaps it is back.
            error if self.refused(topic, error.clone()).code().status() == 404 => {
                let partitions = self.partitions(topic, record.partition, deadline).await.map_err(Failure::Before)?;
                require_partition(topic, record, partitions).map_err(Failure::Before)?;
                client
            }
            error => return Err(Failure::Kafka(error)),
        };
        match send(&client, topic, record) {
            Ok(delivery) => Ok((client, delivery)),
            // A new client may be refused as such before it has taken a record.
            Err(error) => Err(failure(&client, error)),
        }
    }

    /// What became of a record, for its caller.
    fn verdict(&self, topic: &TopicName, written: Result<Receipt, Failure>) -> Result<Receipt, Error> {
        written.map_err(|failure| match failure {
            Failure::Before(error) => error,
            Failure::Kafka(error) => {
                let error = self.refused(topic, error);
                // It was sent, perhaps; and these do not say that it was not written.
                let open = matches!(error.code(), Code::DeadlineExceeded | Code::BrokerUnavailable);
                if open { error.with("outcome", "unknown") } else { error }
            }
            Failure::Unknown(source) => {
                let error = Error::new(Code::DeadlineExceeded, "Kafka did not acknowledge in time");
                let error = error.with("outcome", "unknown");
                match source {
                    Some(source) => error.source(source),
                    None => error,
                }
            }
        })
    }

    /// Whether the topic was seen to exist.
    pub fn knows(&self, topic: &TopicName) -> bool {
        self.topics.knows(topic)
    }

    /// Waits until nothing is on its way, for at most `patience`.
    pub async fn flush(&self, patience: Duration) {
        let client = self.client();
        let flushed = tokio::task::spawn_blocking(move || client.send_all(patience)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "records were still on their way at the end");
        }
    }

    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces a client that has raised a fatal error, unless another call just did.
    async fn replace(&self, dead: &Arc<Client>, deadline: Deadline) -> Result<Arc<Client>, Error> {
        let _one_call = self.replacing.lock().await;
        let current = self.client();
        if !Arc::ptr_eq(&current, dead) {
            return Ok(current);
        }
        tracing::warn!(reason = ?dead.client().fatal_error(), "the producer is replaced after a fatal error");
        let settings = self.settings.clone();
        // Two answers, and half of the time is still there for the record.
        let patience = WARM_UP.min(deadline.require()? / 4);
        let made = tokio::task::spawn_blocking(move || create(&settings, patience)).await;
        let fresh = Arc::new(made.map_err(Error::internal)?.map_err(Error::internal)?);
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&fresh);
        Ok(fresh)
    }

    /// The public error, after which a topic that is not what it was thought to be is looked at anew. (A client that is
    /// fatally broken is replaced by the next call.)
    fn refused(&self, topic: &TopicName, error: KafkaError) -> Error {
        let error = from_kafka(error);
        if matches!(error.code(), Code::TopicNotFound | Code::TopicForbidden | Code::PartitionNotFound) {
            self.topics.forget(topic);
        }
        error
    }

    /// How many partitions the topic has; asked anew unless what was heard a short while ago has the partition `wanted`.
    /// `404` where it does not exist. Never creates a topic unless configured.
    async fn partitions(&self, topic: &TopicName, wanted: Option<i32>, deadline: Deadline) -> Result<i32, Error> {
        let enough = |partitions: &i32| wanted.is_none_or(|wanted| wanted < *partitions);
        if let Some(partitions) = self.topics.partitions(topic).filter(enough) {
            return Ok(partitions);
        }
        // A topic that is being made may take this long; half of the time is left for the record.
        let creation = deadline.within(deadline.left() / 2);
        let partitions = loop {
            let patience = deadline.require()?;
            let (client, name) = (self.client(), topic.clone());
            let asked = tokio::task::spawn_blocking(move || partition_count(&client, &name, patience));
            match asked.await.map_err(Error::internal)? {
                Ok(partitions) => break partitions,
                // The request itself made the broker create the topic, if its settings allow it; that takes a moment.
                Err(error)
                    if error.code() == Code::BrokerUnavailable && deadline.left() > Duration::from_millis(100)
                        || self.auto_create && error.code() == Code::TopicNotFound && !creation.left().is_zero() =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if deadline.left().is_zero() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        };
        self.topics.note(topic, partitions);
        Ok(partitions)
    }
}

/// The highest partition that records were given.
fn highest(records: &[&NewRecord]) -> Option<i32> {
    records.iter().filter_map(|record| record.partition).max()
}

/// `404` unless the topic has the partition, if one was chosen.
fn require_partition(topic: &TopicName, record: &NewRecord, partitions: i32) -> Result<(), Error> {
    match record.partition {
        Some(partition) if partition >= partitions => {
            let detail = format!("The topic has {partitions} partitions, counted from 0");
            let error = Error::new(Code::PartitionNotFound, detail);
            Err(error.with("topic", topic.as_str()).with("partition", partition))
        }
        _ => Ok(()),
    }
}

/// Why a record has no receipt.
enum Failure {
    /// It was not sent.
    Before(Error),
    /// What librdkafka, or the broker, says of it.
    Kafka(KafkaError),
    /// Nothing was heard of it.
    Unknown(Option<BoxError>),
}

/// Whether the fault may be another record's. Kafka refuses all records of a request for one of them, or takes the whole
/// for too large a record; and it is librdkafka that fills the requests.
pub(super) fn blames_company(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as K;
    matches!(
        error.rdkafka_error_code(),
        Some(
            K::MessageSizeTooLarge
                | K::MessageBatchTooLarge
                | K::InvalidRecord
                | K::InvalidTimestamp
                | K::InvalidMessage
                | K::InvalidDifferentRecord
        )
    )
}

/// Whether librdkafka has forgotten the partition that the record was for: the topic was deleted, and perhaps made again
/// under its name. In what is there now, the record was not written.
fn forgot(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerDestroy)
}

/// How long librdkafka's words on some records are waited for, all in all.
struct Patience {
    until: Instant,
    /// The client whose records were taken back.
    gave_up: Option<Arc<Client>>,
}

impl Patience {
    async fn wait(&mut self, client: &Arc<Client>, delivery: DeliveryFuture) -> Result<Receipt, Failure> {
        tokio::pin!(delivery);
        let word = loop {
            match tokio::time::timeout_at(self.until, &mut delivery).await {
                Ok(word) => break word,
                Err(elapsed) if self.gave_up.as_ref().is_some_and(|other| Arc::ptr_eq(other, client)) => {
                    return Err(Failure::Unknown(Some(elapsed.into())));
                }
                Err(_) => {
                    give_up(client);
                    self.gave_up = Some(Arc::clone(client));
                    self.until = Instant::now() + LAST_WORD;
                }
            }
        };
        match word {
            Ok(Ok(delivered)) => Ok(Receipt::of(&delivered)),
            Ok(Err((error, _))) => Err(failure(client, error)),
            Err(canceled) => Err(Failure::Unknown(Some(canceled.into()))),
        }
    }
}

/// Why a record was not written.
fn failure(client: &Client, error: KafkaError) -> Failure {
    forbidden(client).map_or(Failure::Kafka(error), Failure::Before)
}

/// Whether Kafka's access control has refused the client as such: the gateway may write to no topic at all. Then librdkafka
/// only says that it dropped the records.
fn forbidden(client: &Client) -> Option<Error> {
    let (code, _) = client.client().fatal_error()?;
    let (public, detail) = classify(code);
    (public.status() == 403).then(|| Error::new(public, detail).source(KafkaError::MessageProduction(code)))
}

/// Takes back what is still on its way, so that nothing is written after its call was answered: a frozen sandbox would
/// send it minutes later, when it thaws.
///
/// What is in flight is taken back too, lest librdkafka sends it again. Nothing of this proves that a record was not
/// written: one in flight may have been, and one in the queue may be there for a second try.
///
/// It takes back every record of this client, also those of other calls that the sandbox answers at the same time
/// (`AWS_LAMBDA_MAX_CONCURRENCY`). They say 504 and that the outcome is unknown, too. To send theirs again here might write
/// them twice, since a record that was purged has lost its sequence number; and brokers that have not answered one call
/// in all of its time are not likely to answer the others.
fn give_up(client: &Client) {
    // Without waiting for librdkafka's threads, any of which may hang in a look-up of a name.
    client.purge(PurgeConfig::default().queue().inflight().non_blocking());
    // Whom it waited for may be gone for good.
    client.find_brokers();
}

/// How many partitions a topic has. `404` where it does not exist.
fn partition_count(client: &Client, topic: &TopicName, patience: Duration) -> Result<i32, Error> {
    let metadata = client.client().fetch_metadata(Some(topic.as_str()), patience);
    let metadata = metadata.map_err(|error| client.unreachable(error))?;
    super::group::partitions_of(&metadata, topic)
}

/// A record's headers as librdkafka takes them; none, if it has none.
pub(super) fn headers(record: &NewRecord) -> Option<OwnedHeaders> {
    if record.headers.is_empty() {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for (name, value) in &record.headers {
        headers = headers.insert(KafkaHeader { key: name, value: value.as_deref() });
    }
    Some(headers)
}

/// Hands a record to librdkafka.
pub(super) fn send(
    client: &FutureProducer<Context>,
    topic: &TopicName,
    record: &NewRecord,
) -> Result<DeliveryFuture, KafkaError> {
    let mut message: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic.as_str());
    message.headers = headers(record);
    message.key = record.key.as_deref();
    message.payload = record.value.as_deref();
    message.partition = record.partition;
    message.timestamp = record.timestamp;
    client.send_result(message).map_err(|(error, _)| error)
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::config::{Delivery, Security};

    type Mock = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

    async fn on(mock: &Mock) -> (Producer, TopicName, Deadline) {
        mock.create_topic("t", 1, 3).expect("a topic");
        let config = KafkaConfig {
            bootstrap_servers: mock.bootstrap_servers(),
            security: Security::Plaintext,
            ca_file: None,
            properties: vec![],
            auto_create_topics: true,
            delivery: Delivery::Exclusive,
            dead_letters: crate::config::DeadLetterConfig::default(),
        };
        let patience = Duration::from_secs(20);
        let producer = Producer::start(&config, Sending::AtOnce, patience).await.expect("a producer");
        (producer, TopicName::parse("t").expect("legal"), Deadline::of_invocation(0, patience))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_producer_with_a_fatal_error_is_replaced() {
        let mock = MockCluster::new(3).expect("a cluster");
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        mock.request_errors(RDKafkaApiKey::InitProducerId, &[refused]);
        let (producer, topic, deadline) = on(&mock).await;
        let first = producer.client();
        while first.client().fatal_error().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let record = NewRecord { value: Some(b"v".to_vec()), ..NewRecord::default() };
        let receipt = producer.write_alone(&topic, &record, deadline).await.expect("written by the second client");
        assert_eq!((receipt.partition, receipt.offset), (0, 0));
        assert!(!Arc::ptr_eq(&first, &producer.client()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_broker_says_of_a_record_is_classed_and_a_passing_fault_is_not_seen() {
        let mock = MockCluster::new(3).expect("a cluster");
        let (producer, topic, deadline) = on(&mock).await;
        let record = NewRecord { value: Some(b"v".to_vec()), ..NewRecord::default() };
        for (error, code) in [
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Code::RecordTooLarge),
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD, Code::UnprocessableRecord),
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Code::TopicForbidden),
            // librdkafka remembers that refusal until it sees the topic's metadata again.
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Code::UnprocessableRecord),
        ] {
            mock.request_errors(RDKafkaApiKey::Produce, &[error]);
            let refused = producer.write_alone(&topic, &record, deadline).await.expect_err("refused");
            assert_eq!(refused.code(), code, "{refused}");
        }
        let passing = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
        mock.request_errors(RDKafkaApiKey::Produce, &[passing, passing]);
        producer.write_alone(&topic, &record, deadline).await.expect("written after two tries");
    }

    fn value() -> NewRecord {
        NewRecord { value: Some(b"v".to_vec()), ..NewRecord::default() }
    }

    fn within(ms: u64) -> Deadline {
        Deadline::of_invocation(0, Duration::from_millis(ms))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_that_was_given_up_in_the_queue_is_never_written() {
        let mock = MockCluster::new(1).expect("a cluster");
        let (producer, topic, deadline) = on(&mock).await;
        assert_eq!(producer.write_alone(&topic, &value(), deadline).await.expect("written").offset, 0);
        mock.broker_down(-1).expect("down");
        // Another call of the sandbox, with more time, gives up with the first.
        let record = value();
        let (first, second) = tokio::join!(
            producer.write_alone(&topic, &record, within(300)),
            producer.write_alone(&topic, &record, within(10_000))
        );
        for refused in [first, second] {
            let refused = refused.expect_err("no broker");
            assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
            assert_eq!(refused.members()["outcome"], "unknown");
        }
        mock.broker_up(-1).expect("up");
        // The next record is the second one: none was written in between.
        assert_eq!(producer.write_alone(&topic, &value(), deadline).await.expect("written").offset, 1);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(producer.write_alone(&topic, &value(), deadline).await.expect("written").offset, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_that_was_given_up_in_flight_is_not_sent_again() {
        let mock = MockCluster::new(1).expect("a cluster");
        let (producer, topic, deadline) = on(&mock).await;
        assert_eq!(producer.write_alone(&topic, &value(), deadline).await.expect("written").offset, 0);
        // The broker refuses the record, in a way that librdkafka would try again, after the call has given up.
        mock.broker_round_trip_time(-1, Duration::from_millis(400)).expect("slow");
        mock.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS]);
        let refused = producer.write_alone(&topic, &value(), within(200)).await.expect_err("too slow");
        assert_eq!((refused.code(), &refused.members()["outcome"]), (Code::DeadlineExceeded, &"unknown".into()));
        mock.broker_round_trip_time(-1, Duration::ZERO).expect("fast");
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(producer.write_alone(&topic, &value(), deadline).await.expect("written").offset, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_topic_that_is_made_again_is_found_at_once() {
        let mock = MockCluster::new(1).expect("a cluster");
        let (producer, topic, deadline) = on(&mock).await;
        producer.write_alone(&topic, &value(), deadline).await.expect("written");
        mock.topic_error("t", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("gone");
        // librdkafka believes it after `topic.metadata.propagation.max.ms`.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let _ = producer.client().client().fetch_metadata(Some("t"), Duration::from_secs(1));
        let refused = send(&producer.client(), &topic, &value()).err();
        assert_eq!(refused, Some(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic)), "before it is sent");
        assert!(producer.knows(&topic));
        let refused = producer.write_alone(&topic, &value(), within(300)).await.expect_err("gone");
        assert_eq!(refused.code(), Code::TopicNotFound);
        assert!(!producer.knows(&topic));
        // It believes as slowly that the same topic is back. (One that was made again has another id, and no such wait.)
        tokio::time::sleep(Duration::from_millis(1100)).await;
        // The cache says yes, librdkafka says no, the cluster says yes.
        producer.topics.note(&topic, 1);
        mock.topic_error("t", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).expect("back");
        producer.write_alone(&topic, &value(), deadline).await.expect("written");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_topic_that_the_broker_is_making_is_waited_for_whatever_the_ceiling() {
        let mock = MockCluster::new(1).expect("a cluster");
        let (producer, topic, _) = on(&mock).await;
        mock.topic_error("t", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("not yet");
        let record = value();
        let (written, ()) = tokio::join!(producer.write_alone(&topic, &record, within(3000)), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            mock.topic_error("t", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).expect("there");
        });
        assert_eq!(written.expect("written").offset, 0);
    }
}
