//! Producing: one idempotent producer per sandbox, every record acknowledged by all in-sync replicas.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders, Timestamp};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::client::{self, Context};
use super::error::{from_kafka, unreachable};
use crate::auth::{Authorized, Write};
use crate::config::KafkaConfig;
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::names::TopicName;
use crate::record::Header;

/// How long a topic that was seen is taken to exist. One that is deleted meanwhile still ends in 404, by the broker's
/// own word; only slower.
const TOPIC_AGE: Duration = Duration::from_secs(60);

/// The most that init waits for a broker. Without one the sandbox starts all the same, and its calls say 503.
const WARM_UP: Duration = Duration::from_millis(1500);

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

/// The sandbox's producer.
pub struct Producer {
    settings: ClientConfig,
    /// Replaced when it has raised a fatal error, since librdkafka then refuses everything.
    client: RwLock<Arc<FutureProducer<Context>>>,
    topics: Mutex<HashMap<TopicName, (i32, SystemTime)>>,
    auto_create: bool,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Creates the client and waits, for a moment, until it is ready to send.
    ///
    /// Why two requests for metadata: librdkafka asks for its producer id 1 ms after it was created, finds no broker
    /// connected, and tries again after a fixed 500 ms. A metadata reply makes it try at once; the first one proves the
    /// connection, the second finds the id's request possible.
    pub async fn start(config: &KafkaConfig, request_timeout: Duration) -> Result<Self, KafkaError> {
        let mut settings = client::settings(config);
        // A little less than a call may take: what could not be delivered ends with a report, before the call does.
        let give_up = request_timeout.saturating_sub(Duration::from_millis(250)).max(Duration::from_millis(50));
        settings
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", give_up.as_millis().to_string())
            .set("allow.auto.create.topics", config.auto_create_topics.to_string())
            .set("topic.metadata.propagation.max.ms", "1000")
            // Keys go where Java's clients send them.
            .set("partitioner", "murmur2_random")
            // The broker's and the topic's limits decide what is too large, not this client's.
            .set("message.max.bytes", "20000000");
        // Nothing to wait for: a call sends one record. (librdkafka's default would add 5 ms to each.)
        if settings.get("linger.ms").is_none() && settings.get("queue.buffering.max.ms").is_none() {
            settings.set("linger.ms", "0");
        }
        let client: Arc<FutureProducer<Context>> = Arc::new(settings.create_with_context(Context)?);
        let warming = Arc::clone(&client);
        let warmed = tokio::task::spawn_blocking(move || warm_up(&warming)).await;
        if let Ok(Err(error)) = warmed {
            tracing::warn!(%error, "Kafka did not answer during init; calls will try again");
        }
        Ok(Self {
            settings,
            client: RwLock::new(client),
            topics: Mutex::new(HashMap::new()),
            auto_create: config.auto_create_topics,
        })
    }

    /// Writes one record, and waits until all in-sync replicas have it.
    ///
    /// Errors: `404` for an unknown topic or partition, `413` for a record the topic does not take, `503` where Kafka
    /// cannot be reached, `504` with `"outcome": "unknown"` where it did not answer in time: the record may have been
    /// written, or still be.
    pub async fn produce(
        &self,
        to: &Authorized<Write>,
        record: &NewRecord,
        deadline: Deadline,
    ) -> Result<Receipt, Error> {
        self.write(to.topic(), record, deadline).await
    }

    async fn write(&self, topic: &TopicName, record: &NewRecord, deadline: Deadline) -> Result<Receipt, Error> {
        self.check_exists(topic, record.partition, deadline).await?;
        let mut client = self.client();
        let mut sent = send(&client, topic, record);
        if matches!(sent, Err(KafkaError::MessageProduction(RDKafkaErrorCode::Fatal))) {
            client = self.rebuild(&client)?;
            sent = send(&client, topic, record);
        }
        let delivery = sent.map_err(from_kafka)?;
        let outcome_unknown =
            || Error::new(Code::DeadlineExceeded, "Kafka did not acknowledge in time").with("outcome", "unknown");
        match tokio::time::timeout_at(deadline.instant(), delivery).await {
            Ok(Ok(Ok(delivered))) => Ok(Receipt {
                partition: delivered.partition,
                offset: delivered.offset,
                timestamp: match delivered.timestamp {
                    Timestamp::CreateTime(at) | Timestamp::LogAppendTime(at) => at,
                    Timestamp::NotAvailable => -1,
                },
            }),
            Ok(Ok(Err((error, _)))) => Err(self.failed(&client, topic, error)),
            Ok(Err(canceled)) => Err(outcome_unknown().source(canceled)),
            Err(elapsed) => Err(outcome_unknown().source(elapsed)),
        }
    }

    /// Whether the topic was seen to exist.
    pub fn knows(&self, topic: &TopicName) -> bool {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).contains_key(topic)
    }

    /// Waits until nothing is on its way, for at most `patience`.
    pub async fn flush(&self, patience: Duration) {
        let client = self.client();
        let flushed = tokio::task::spawn_blocking(move || client.flush(patience)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "records were still on their way at the end");
        }
    }

    fn client(&self) -> Arc<FutureProducer<Context>> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces a client that has raised a fatal error, unless another call just did.
    fn rebuild(&self, dead: &Arc<FutureProducer<Context>>) -> Result<Arc<FutureProducer<Context>>, Error> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&client, dead) {
            tracing::warn!(reason = ?dead.client().fatal_error(), "the producer is replaced after a fatal error");
            *client = Arc::new(self.settings.create_with_context(Context).map_err(Error::internal)?);
        }
        Ok(Arc::clone(&client))
    }

    fn failed(&self, client: &Arc<FutureProducer<Context>>, topic: &TopicName, error: KafkaError) -> Error {
        if client.client().fatal_error().is_some() {
            let _ = self.rebuild(client);
            return Error::new(Code::BrokerUnavailable, "The producer failed and was replaced")
                .with("outcome", "unknown")
                .source(error);
        }
        let error = from_kafka(error);
        match error.code() {
            Code::TopicNotFound | Code::TopicForbidden => {
                self.topics.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
                error
            }
            Code::DeadlineExceeded => error.with("outcome", "unknown"),
            _ => error,
        }
    }

    /// `404` unless the topic, and the partition if one was chosen, exist. Never creates a topic unless configured.
    async fn check_exists(&self, topic: &TopicName, partition: Option<i32>, deadline: Deadline) -> Result<(), Error> {
        let enough = |partitions: i32| partition.is_none_or(|partition| partition < partitions);
        let seen = self.topics.lock().unwrap_or_else(PoisonError::into_inner).get(topic).copied();
        if let Some((partitions, at)) = seen
            // A clock that was set back makes an entry old, not eternal.
            && at.elapsed().is_ok_and(|age| age < TOPIC_AGE)
            && enough(partitions)
        {
            return Ok(());
        }
        let partitions = loop {
            let patience = deadline.require()?;
            let (client, name) = (self.client(), topic.clone());
            let asked = tokio::task::spawn_blocking(move || partition_count(&client, &name, patience));
            match asked.await.map_err(Error::internal)? {
                Ok(partitions) => break partitions,
                // The request itself made the broker create the topic, if its settings allow it; that takes a moment.
                Err(error)
                    if error.code() == Code::BrokerUnavailable && deadline.left() > Duration::from_millis(100)
                        || self.auto_create
                            && error.code() == Code::TopicNotFound
                            && deadline.left() > Duration::from_secs(5) =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        };
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(topic.clone(), (partitions, SystemTime::now()));
        if enough(partitions) {
            return Ok(());
        }
        Err(Error::new(Code::PartitionNotFound, format!("The topic has {partitions} partitions, counted from 0"))
            .with("topic", topic.as_str())
            .with("partition", partition))
    }
}

fn warm_up(client: &FutureProducer<Context>) -> Result<(), KafkaError> {
    // No topic can have this name: the reply is small, however many topics the cluster has, and nothing is created.
    const NO_TOPIC: &str = "?";
    for _ in 0..2 {
        client.client().fetch_metadata(Some(NO_TOPIC), WARM_UP)?;
    }
    Ok(())
}

/// How many partitions a topic has. `404` where it does not exist.
fn partition_count(client: &FutureProducer<Context>, topic: &TopicName, patience: Duration) -> Result<i32, Error> {
    let metadata = client.client().fetch_metadata(Some(topic.as_str()), patience).map_err(unreachable)?;
    super::group::partitions_of(&metadata, topic)
}

fn send(
    client: &FutureProducer<Context>,
    topic: &TopicName,
    record: &NewRecord,
) -> Result<rdkafka::producer::DeliveryFuture, KafkaError> {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for (name, value) in &record.headers {
        headers = headers.insert(KafkaHeader { key: name, value: value.as_deref() });
    }
    let mut message: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic.as_str());
    if !record.headers.is_empty() {
        message = message.headers(headers);
    }
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

    async fn on(mock: &MockCluster<'_, rdkafka::producer::DefaultProducerContext>) -> (Producer, TopicName, Deadline) {
        mock.create_topic("t", 1, 3).expect("a topic");
        let config = KafkaConfig {
            bootstrap_servers: mock.bootstrap_servers(),
            security: Security::Plaintext,
            ca_file: None,
            properties: vec![],
            auto_create_topics: false,
            delivery: Delivery::Exclusive,
        };
        let patience = Duration::from_secs(20);
        let producer = Producer::start(&config, patience).await.expect("a producer");
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
        let receipt = producer.write(&topic, &record, deadline).await.expect("written by the second client");
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
            let refused = producer.write(&topic, &record, deadline).await.expect_err("refused");
            assert_eq!(refused.code(), code, "{refused}");
        }
        let passing = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
        mock.request_errors(RDKafkaApiKey::Produce, &[passing, passing]);
        producer.write(&topic, &record, deadline).await.expect("written after two tries");
    }
}
