//! Dead-letter topics: found, or made, before anything is written to them.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaErrorCode as K;
use tokio::runtime::Handle;

use super::client::{self, Client, Context, Settings};
use super::error::{classify, from_kafka};
use super::group::partitions_of;
use super::topics::Topics;
use crate::config::KafkaConfig;
use crate::dlq::{HEADERS_BYTES, Suffix};
use crate::errors::{Code, Error};
use crate::names::TopicName;

/// How long one question to the cluster may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most that `max.message.bytes` can be.
const LARGEST: u64 = i32::MAX as u64;

/// How long a topic that was just made is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the records go that no consumer can use, and when.
pub struct DeadLetters {
    suffix: Suffix,
    max_deliveries: u32,
    settings: Settings,
    /// Made when it is first needed: most sandboxes never see a dead letter.
    admin: OnceLock<Client<AdminClient<Context>>>,
    topics: Topics,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters").field("suffix", &self.suffix).finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// Connects to nothing yet.
    pub fn new(config: &KafkaConfig) -> Self {
        Self {
            suffix: config.dead_letters.suffix.clone(),
            max_deliveries: config.dead_letters.max_deliveries,
            settings: client::settings(config),
            admin: OnceLock::new(),
            topics: Topics::default(),
        }
    }

    /// The dead-letter topic of `origin`, if it can have one (see [`Suffix::topic_of`]).
    pub fn topic_of(&self, origin: &TopicName) -> Option<TopicName> {
        self.suffix.topic_of(origin)
    }

    /// How often a record of `origin` is delivered under leases before it is given up (`DLQ_MAX_DELIVERIES`); none, where
    /// there is no dead-letter topic for it to go to.
    pub fn most(&self, origin: &TopicName) -> Option<u32> {
        self.topic_of(origin).map(|_| self.max_deliveries)
    }

    /// The topic that the letters of `letters` come from; none, if that is no dead-letter topic of ours.
    pub fn origin_of(&self, letters: &TopicName) -> Option<TopicName> {
        self.suffix.origin_of(letters).filter(|origin| self.topic_of(origin).as_ref() == Some(letters))
    }

    /// Makes sure that the dead-letter topic of `origin` exists: how many partitions it has. Blocks; call it from
    /// `spawn_blocking`.
    ///
    /// One that is made has as many partitions as its origin, takes whatever the origin takes, and keeps letters until
    /// somebody has dealt with them. One that somebody else has made is taken as it is.
    ///
    /// Errors: `503` where it is not there and the cluster does not let us make it.
    pub fn open(&self, origin: &TopicName, letters: &TopicName, until: Instant) -> Result<i32, Error> {
        if let Some(partitions) = self.topics.partitions(letters) {
            return Ok(partitions);
        }
        let admin = self.admin()?;
        let mut made = false;
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(PATIENCE);
            if left.is_zero() {
                return Err(Error::new(Code::BrokerUnavailable, "The dead-letter topic was not ready in time"));
            }
            match partitions(admin, letters, left) {
                Ok(partitions) if partitions > 0 => {
                    self.topics.note(letters, partitions);
                    return Ok(partitions);
                }
                Err(error) if error.code() == Code::TopicNotFound && !made => {
                    create(admin, origin, letters, until)?;
                    made = true;
                }
                Err(error) if !matches!(error.code(), Code::TopicNotFound | Code::BrokerUnavailable) => {
                    return Err(error);
                }
                Ok(_) | Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Forgets what was seen of a topic that turned out not to be there.
    pub fn forget(&self, letters: &TopicName) {
        self.topics.forget(letters);
    }

    fn admin(&self) -> Result<&Client<AdminClient<Context>>, Error> {
        if let Some(admin) = self.admin.get() {
            return Ok(admin);
        }
        let made = self.settings.create().map_err(Error::internal)?;
        Ok(self.admin.get_or_init(|| made))
    }
}

fn partitions(admin: &Client<AdminClient<Context>>, topic: &TopicName, patience: Duration) -> Result<i32, Error> {
    let metadata =
        admin.inner().fetch_metadata(Some(topic.as_str()), patience).map_err(|error| admin.unreachable(error))?;
    partitions_of(&metadata, topic)
}

fn create(
    admin: &Client<AdminClient<Context>>,
    origin: &TopicName,
    letters: &TopicName,
    until: Instant,
) -> Result<(), Error> {
    // Three requests, one after the other.
    let patience = || until.saturating_duration_since(Instant::now()).min(PATIENCE);
    let largest =
        largest(admin, origin, patience())?.map(|bytes| (bytes + HEADERS_BYTES as u64).min(LARGEST).to_string());
    let partitions = partitions(admin, origin, patience())?;
    // As many replicas as the cluster gives a topic by itself (KIP-464).
    let mut topic = NewTopic::new(letters.as_str(), partitions, TopicReplication::Fixed(-1));
    // Whatever the cluster does with a topic by itself.
    for (name, value) in [("retention.ms", "-1"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")] {
        topic = topic.set(name, value);
    }
    if let Some(largest) = &largest {
        topic = topic.set("max.message.bytes", largest);
    }
    let patience = Some(patience());
    let options = AdminOptions::new().request_timeout(patience).operation_timeout(patience);
    let created = Handle::current().block_on(admin.create_topics([&topic], &options));
    let created = created.map_err(|error| admin.unreachable(error))?;
    match created.into_iter().next() {
        Some(Ok(_) | Err((_, K::TopicAlreadyExists))) => {
            tracing::info!(topic = %origin, dead_letter_topic = %letters, partitions, "a dead-letter topic is made");
            Ok(())
        }
        Some(Err((_, code))) => Err(refused(letters, code)),
        None => Err(Error::internal("the broker's answer leaves the topic out")),
    }
}

/// The largest record that a topic takes, or nothing, if the cluster does not tell us.
fn largest(admin: &Client<AdminClient<Context>>, topic: &TopicName, patience: Duration) -> Result<Option<u64>, Error> {
    let options = AdminOptions::new().request_timeout(Some(patience));
    let which = [ResourceSpecifier::Topic(topic.as_str())];
    let described = Handle::current().block_on(admin.describe_configs(&which, &options));
    let described = described.map_err(|error| admin.unreachable(error))?;
    let config = match described.into_iter().next() {
        Some(Ok(config)) => config,
        Some(Err(error)) if classify(error).0.status() == 403 => {
            tracing::info!(%topic, %error, "the largest record is not known; its dead-letter topic gets Kafka's default");
            return Ok(None);
        }
        Some(Err(error)) => return Err(from_kafka(KafkaError::AdminOp(error))),
        None => return Err(Error::internal("the broker's answer leaves the topic out")),
    };
    let value = config.get("max.message.bytes").and_then(|entry| entry.value.as_deref());
    Ok(value.and_then(|value| value.parse().ok()))
}

/// The member of an error that names a dead-letter topic which cannot be made.
const REFUSED: &str = "dead_letter_topic";

/// Whatever stands in the way, the caller can only wait for an operator.
fn refused(letters: &TopicName, code: RDKafkaErrorCode) -> Error {
    let (_, why) = classify(code);
    let detail = format!("The dead-letter topic does not exist, and Kafka does not let the gateway create it: {why}");
    Error::new(Code::BrokerUnavailable, detail).with(REFUSED, letters.as_str()).source(KafkaError::AdminOp(code))
}

/// Whether it is that.
pub(super) fn is_refused(error: &Error) -> bool {
    error.members().contains_key(REFUSED)
}
