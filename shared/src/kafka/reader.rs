//! Reading for no group: one consumer a sandbox, and the windows of the partitions that were read last.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use rdkafka::consumer::Consumer;
use tokio::sync::OwnedMutexGuard;

use super::brokers::Facts;
use super::client::{NO_TOPIC, Settings};
use super::fetch::Window;
use super::group::{self, Group};
use crate::auth::{Authorized, Fetch};
use crate::config::KafkaConfig;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Error};
use crate::names::{GroupId, TopicName};

/// librdkafka assigns partitions only to a consumer that has a group. This one never joins it, and nothing is committed for
/// it: to the cluster there is no such group.
const NO_GROUP: &str = "kafka-gateway-fetch";

/// The most that init waits for a broker. Without one the sandbox starts all the same.
const WARM_UP: Duration = Duration::from_millis(1500);

/// The most windows that are kept. Each may hold what was fetched ahead.
const WINDOWS: usize = 24;

/// A consumer that reads for no group. Connects to nothing yet; but making it reads the system's certificates.
pub(super) fn consumer(settings: &Settings) -> Result<Group, Error> {
    Group::open(settings, &GroupId::parse(NO_GROUP)?, Facts::unasked())
}

type Windows = LruCache<(TopicName, i32), Arc<tokio::sync::Mutex<Window>>>;

/// The sandbox's reader.
#[derive(Debug)]
pub struct Reader {
    group: Arc<Group>,
    windows: Mutex<Windows>,
}

impl Reader {
    /// Makes the consumer, and connects it.
    pub async fn start(config: &KafkaConfig) -> Result<Self, BoxError> {
        let settings = group::settings(config);
        let made = tokio::task::spawn_blocking(move || {
            let group = consumer(&settings)?;
            if let Err(error) = group.consumer.fetch_metadata(Some(NO_TOPIC), WARM_UP) {
                tracing::warn!(%error, "Kafka did not answer a new consumer; calls will try again");
            }
            Ok::<_, Error>(group)
        });
        Ok(Self { group: Arc::new(made.await??), windows: Mutex::new(LruCache::unbounded()) })
    }

    /// The consumer, to ask it for partitions and offsets.
    pub fn group(&self, _of: &Authorized<Fetch>) -> &Arc<Group> {
        &self.group
    }

    /// Whether the topic was seen to exist.
    pub fn knows(&self, topic: &TopicName) -> bool {
        self.group.knows(topic)
    }

    /// The window of a partition, as soon as no other call of this sandbox has it. Whoever wants several asks for them in
    /// the order of their partitions, lest two calls wait for each other.
    pub async fn window(
        &self,
        of: &Authorized<Fetch>,
        partition: i32,
        deadline: Deadline,
    ) -> Result<OwnedMutexGuard<Window>, Error> {
        let window = self.shared_window(of.topic(), partition)?;
        tokio::time::timeout_at(deadline.instant(), window.lock_owned()).await.map_err(|_| Deadline::exceeded())
    }

    fn shared_window(&self, topic: &TopicName, partition: i32) -> Result<Arc<tokio::sync::Mutex<Window>>, Error> {
        let key = (topic.clone(), partition);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = windows.get(&key) {
            return Ok(Arc::clone(window));
        }
        while windows.len() >= WINDOWS {
            // One in use stays: a second window of the same partition would read from the same queue.
            let idle = windows.iter().rev().find(|(_, window)| Arc::strong_count(window) == 1);
            let Some(idle) = idle.map(|(key, _)| key.clone()) else { break };
            windows.pop(&idle);
        }
        let window = Arc::new(tokio::sync::Mutex::new(Window::new(&self.group, topic, partition)?));
        windows.put(key, Arc::clone(&window));
        Ok(window)
    }
}
