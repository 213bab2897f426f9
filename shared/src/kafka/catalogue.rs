//! The cluster's topics: which there are, how they are set, and making and deleting them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigEntry, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataPartition;

use super::client::{self, Client, Context, NO_TOPIC};
use super::consumers::blocking;
use super::error::{classify, from_kafka, unreachable};
use super::group::{self, Group, Offsets, partitions_of, places};
use super::reader;
use crate::auth::{Admin, Authorized, Describe, May};
use crate::config::KafkaConfig;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::names::TopicName;

/// The most that init waits for a broker. Without one the sandbox starts all the same.
const WARM_UP: Duration = Duration::from_millis(1500);

/// How long a topic that comes or goes is waited for, between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What a topic is to be like. What is absent, the cluster decides.
#[derive(Debug)]
pub struct Plan {
    /// How many partitions.
    pub partitions: Option<i32>,
    /// How many replicas each has.
    pub replication_factor: Option<i32>,
    /// Kafka's settings of a topic.
    pub configs: Vec<(String, String)>,
}

/// A topic as it is.
#[derive(Debug)]
pub struct Description {
    /// Its partitions, in order.
    pub partitions: Vec<Partition>,
    /// Its settings without the sensitive ones, or none, where Kafka does not show them to the gateway.
    pub settings: Option<Vec<Setting>>,
}

/// A setting of a topic.
#[derive(Debug)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
    /// Who has set it: `topic`, `broker` or `default`; `unknown` to Kafka before 1.1.
    pub source: &'static str,
}

impl From<ConfigEntry> for Setting {
    fn from(entry: ConfigEntry) -> Self {
        let source = match entry.source {
            ConfigSource::DynamicTopic => "topic",
            ConfigSource::DynamicBroker | ConfigSource::DynamicDefaultBroker | ConfigSource::StaticBroker => "broker",
            ConfigSource::Default => "default",
            ConfigSource::Unknown => "unknown",
        };
        Self { name: entry.name, value: entry.value, source }
    }
}

/// A partition as it is.
#[derive(Debug)]
pub struct Partition {
    /// Its number.
    pub id: i32,
    /// The broker that leads it; none, where that is away.
    pub leader: Option<i32>,
    /// The brokers that are to have it.
    pub replicas: Vec<i32>,
    /// Those of them that have all of it.
    pub isr: Vec<i32>,
    /// Its first offset that is still there, as far as the leader says so.
    pub start: Option<i64>,
    /// Its last stable offset, as far as the leader says so.
    pub end: Option<i64>,
}

/// The sandbox's way to the cluster's topics.
pub struct Catalogue {
    consumer: Arc<Group>,
    admin: Client<AdminClient<Context>>,
}

impl std::fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalogue").finish_non_exhaustive()
    }
}

impl Catalogue {
    /// Makes the clients, and connects them.
    pub async fn start(config: &KafkaConfig) -> Result<Self, BoxError> {
        let (reading, writing) = (group::settings(config), client::settings(config));
        let made = tokio::task::spawn_blocking(move || {
            let consumer = Arc::new(reader::consumer(&reading)?);
            let admin = writing.create().map_err(Error::internal)?;
            if let Err(error) = consumer.consumer.fetch_metadata(Some(NO_TOPIC), WARM_UP) {
                tracing::warn!(%error, "Kafka did not answer a new client; calls will try again");
            }
            Ok::<_, Error>(Self { consumer, admin })
        });
        Ok(made.await??)
    }

    /// The topics that the caller may see, by name.
    pub async fn list(&self, may: &May<Describe>, deadline: Deadline) -> Result<Vec<TopicName>, Error> {
        let consumer = Arc::clone(&self.consumer);
        let topics = blocking(deadline, move |until| consumer.topics(left(until))).await?;
        let mut topics: Vec<_> = topics.into_iter().map(|(topic, _)| topic).filter(|it| may.reaches(it)).collect();
        topics.sort_unstable();
        Ok(topics)
    }

    /// A topic as it is. `404` where it does not exist.
    pub async fn describe(&self, of: &Authorized<Describe>, deadline: Deadline) -> Result<Description, Error> {
        let (consumer, topic) = (Arc::clone(&self.consumer), of.topic().clone());
        let partitions = blocking(deadline, move |until| {
            let mut partitions = partitions(&consumer, &topic, until)?;
            let ids: Vec<i32> = partitions.iter().map(|partition| partition.id).collect();
            let places = places(&topic, &ids);
            // One whose leader is away is shown without its offsets.
            let known = |offsets: Result<Offsets, Error>| {
                offsets.unwrap_or_default().into_iter().map(Result::ok).chain(std::iter::repeat(None))
            };
            let (starts, ends) = (consumer.starts(&places, left(until)), consumer.ends(&places, left(until)));
            for (partition, (start, end)) in partitions.iter_mut().zip(known(starts).zip(known(ends))) {
                (partition.start, partition.end) = (start, end);
            }
            Ok(partitions)
        });
        let (partitions, settings) = tokio::join!(partitions, self.settings(of.topic(), deadline));
        Ok(Description { partitions: partitions?, settings: settings? })
    }

    async fn settings(&self, topic: &TopicName, deadline: Deadline) -> Result<Option<Vec<Setting>>, Error> {
        let which = [ResourceSpecifier::Topic(topic.as_str())];
        let asked = self.admin.describe_configs(&which, &options(deadline));
        let described = self.answer(deadline, asked).await?.map_err(unreachable)?.pop();
        let config = described.ok_or_else(|| Error::internal("DescribeConfigs answered nothing"))?;
        let config = config.map_err(|code| from_kafka(KafkaError::AdminOp(code)))?;
        // rdkafka shows a refusal as a topic without settings.
        let shown: Vec<_> = config.entries.into_iter().filter(|entry| !entry.is_sensitive).map(Setting::from).collect();
        Ok((!shown.is_empty()).then_some(shown))
    }

    /// Makes a topic, and waits until its partitions have leaders that know of it: from then on it can be used.
    ///
    /// Errors: `409 topic_exists`; `400` where Kafka refuses what is planned; `403` by Kafka's own ACLs; `503` and `504`
    /// with `outcome`, as the topic may have been made.
    pub async fn create(
        &self,
        of: &Authorized<Admin>,
        plan: &Plan,
        deadline: Deadline,
    ) -> Result<Vec<Partition>, Error> {
        let topic = of.topic();
        if let Err(code) = self.try_create(topic, plan, false, deadline).await.map_err(outcome_unknown)? {
            return Err(self.refused(topic, plan, code, deadline).await.source(KafkaError::AdminOp(code)));
        }
        let (consumer, topic) = (Arc::clone(&self.consumer), topic.clone());
        let usable = blocking(deadline, move |until| {
            loop {
                match usable(&consumer, &topic, until) {
                    Ok(partitions) => return Ok(partitions),
                    Err(error) if left(until).is_zero() => return Err(error),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        });
        usable.await.map_err(|error| {
            let detail = "The topic is made, but its partitions had no leaders in time";
            Error::new(Code::DeadlineExceeded, detail).with("outcome", "created").source(error)
        })
    }

    async fn try_create(
        &self,
        topic: &TopicName,
        plan: &Plan,
        validate_only: bool,
        deadline: Deadline,
    ) -> Result<Result<(), RDKafkaErrorCode>, Error> {
        let replication = TopicReplication::Fixed(plan.replication_factor.unwrap_or(-1));
        let mut new = NewTopic::new(topic.as_str(), plan.partitions.unwrap_or(-1), replication);
        for (name, value) in &plan.configs {
            new = new.set(name, value);
        }
        let created = self.admin.create_topics([&new], &options(deadline).validate_only(validate_only));
        let created = self.answer(deadline, created).await?.map_err(from_kafka)?.pop();
        let created = created.ok_or_else(|| Error::internal("the broker's answer leaves the topic out"))?;
        Ok(created.map(drop).map_err(|(_, code)| code))
    }

    /// Why a topic was not made. rdkafka keeps Kafka's own words from us, so the settings at fault are found by asking
    /// for each alone.
    async fn refused(&self, topic: &TopicName, plan: &Plan, code: RDKafkaErrorCode, deadline: Deadline) -> Error {
        use RDKafkaErrorCode as K;
        let invalid = |detail: String| Error::new(Code::InvalidParameter, detail);
        match code {
            K::InvalidTopic => invalid(
                "topic: Kafka refuses this name; another topic's may differ from it in '.' and '_' alone".into(),
            ),
            K::InvalidPartitions => invalid("partitions: Kafka refuses this number".into()),
            K::InvalidReplicationFactor if plan.replication_factor.is_some() => {
                invalid("replication_factor: there are fewer brokers than that".into())
            }
            K::InvalidConfig => {
                let alone = plan.configs.iter().map(async |config| {
                    let alone = Plan { configs: vec![config.clone()], ..*plan };
                    let tried = self.try_create(topic, &alone, true, deadline).await;
                    matches!(tried, Ok(Err(K::InvalidConfig))).then_some(config.0.as_str())
                });
                let at_fault: Vec<_> = futures_util::future::join_all(alone).await.into_iter().flatten().collect();
                let which = if at_fault.is_empty() { "these together".to_owned() } else { at_fault.join(", ") };
                invalid(format!("configs: Kafka does not know, or does not take the value of: {which}"))
            }
            K::PolicyViolation => invalid("A policy of the cluster does not allow such a topic".into()),
            code => {
                let (code, detail) = classify(code);
                Error::new(code, detail)
            }
        }
    }

    /// What a broker answers to the admin client.
    async fn answer<T>(
        &self,
        deadline: Deadline,
        answer: impl Future<Output = Result<T, KafkaError>>,
    ) -> Result<Result<T, KafkaError>, Error> {
        let answered = tokio::time::timeout_at(deadline.instant(), answer).await;
        if !matches!(answered, Ok(Ok(_))) {
            // It may have waited for brokers that the client has forgotten.
            self.admin.find_brokers();
        }
        answered.map_err(|_| Deadline::exceeded())
    }

    /// Deletes a topic, and waits until it is gone. `404` where it does not exist.
    pub async fn delete(&self, of: &Authorized<Admin>, deadline: Deadline) -> Result<(), Error> {
        let names = [of.topic().as_str()];
        let deleted = self.answer(deadline, self.admin.delete_topics(&names, &options(deadline))).await;
        let deleted = deleted.and_then(|deleted| deleted.map_err(from_kafka)).map_err(outcome_unknown)?.pop();
        match deleted {
            Some(Ok(_)) => {}
            Some(Err((_, code))) => return Err(from_kafka(KafkaError::AdminOp(code))),
            None => return Err(Error::internal("the broker's answer leaves the topic out")),
        }
        let (consumer, topic) = (Arc::clone(&self.consumer), of.topic().clone());
        let gone = blocking(deadline, move |until| {
            loop {
                match partitions(&consumer, &topic, until) {
                    Err(error) if error.code() == Code::TopicNotFound => return Ok(()),
                    _ if left(until).is_zero() => return Err(Deadline::exceeded()),
                    _ => std::thread::sleep(PAUSE),
                }
            }
        });
        gone.await.map_err(|error| {
            let detail = "The topic is being deleted, but was still there when the time for this call ran out";
            Error::new(Code::DeadlineExceeded, detail).with("outcome", "deleting").source(error)
        })
    }
}

/// How long the cluster may take: as long as somebody waits for it.
fn options(deadline: Deadline) -> AdminOptions {
    AdminOptions::new().request_timeout(Some(deadline.left())).operation_timeout(Some(deadline.left()))
}

/// Gives an answer up at the deadline, whatever librdkafka was told.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// A change whose answer did not come may have been made.
fn outcome_unknown(error: Error) -> Error {
    let open = matches!(error.code(), Code::DeadlineExceeded | Code::BrokerUnavailable);
    if open { error.with("outcome", "unknown") } else { error }
}

/// A topic's partitions, as a broker describes them now.
fn partitions(consumer: &Group, topic: &TopicName, until: Instant) -> Result<Vec<Partition>, Error> {
    let client = &consumer.consumer;
    let metadata =
        client.fetch_metadata(Some(topic.as_str()), left(until)).map_err(|error| client.unreachable(error))?;
    partitions_of(&metadata, topic)?;
    let described = metadata.topics().iter().filter(|found| found.name() == topic.as_str());
    let mut partitions: Vec<_> = described.flat_map(|topic| topic.partitions().iter().map(partition)).collect();
    partitions.sort_unstable_by_key(|partition| partition.id);
    Ok(partitions)
}

fn partition(partition: &MetadataPartition) -> Partition {
    Partition {
        id: partition.id(),
        leader: (partition.leader() >= 0).then_some(partition.leader()),
        replicas: partition.replicas().to_vec(),
        isr: partition.isr().to_vec(),
        start: None,
        end: None,
    }
}

/// A topic's partitions, if each has a leader that answers for it.
fn usable(consumer: &Group, topic: &TopicName, until: Instant) -> Result<Vec<Partition>, Error> {
    let partitions = partitions(consumer, topic, until)?;
    let ids: Vec<i32> = partitions.iter().map(|partition| partition.id).collect();
    consumer.ends(&places(topic, &ids), left(until))?.into_iter().collect::<Result<Vec<_>, _>>()?;
    if partitions.is_empty() {
        return Err(Error::new(Code::BrokerUnavailable, "The topic has no partitions yet"));
    }
    Ok(partitions)
}
