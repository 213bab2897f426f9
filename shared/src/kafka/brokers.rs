//! What a sandbox learns of its brokers, once: how to keep from committing beside live members of a group, whether a commit
//! that they have acknowledged stays, and for how long positions are kept. One `DescribeConfigs` tells it all.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataBroker;
use tokio::sync::OnceCell;

use super::client::{self, Client, Context, NO_TOPIC, Settings};
use super::error::unreachable;
use crate::config::KafkaConfig;
use crate::errors::{Code, Error};

/// Who sees to it that no transaction commits a position while the group has live members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The coordinator: it refuses a commit with a `group.instance.id` that is no member's while there are members,
    /// classic ones or KIP-848's, and takes it when there are none. Kafka 3.3 and newer.
    Coordinator,
    /// We: the group is described just before the commit. Kafka before 3.3, which knows classic members only. 3.0 to 3.2
    /// refuse the commit with an instance id in empty groups too (KAFKA-14201); older ones do not look at it.
    Description,
    /// Both, where it is not known which of them is enough.
    Both,
}

impl Guard {
    /// Whether the coordinator is to be shown an instance id.
    pub fn shows_instance_id(self) -> bool {
        self != Self::Description
    }

    /// Whether the group is to be described before a commit.
    pub fn describes(self) -> bool {
        self != Self::Coordinator
    }

    /// By two settings of a broker.
    ///
    /// A group's coordinator may be another broker than the one that was asked, and of another version while the cluster
    /// is upgraded. So `inter.broker.protocol.version` counts: whoever upgrades raises it when all brokers are new. From
    /// 4.0 on there is no such setting; then `group.coordinator.rebalance.protocols` shows that it is a Kafka, and new. Both
    /// together, and the former is old: an upgrade that is not complete, or `KRaft`, which does not look at it.
    fn of(inter_broker_protocol: Option<&str>, rebalance_protocols: Option<&str>) -> Self {
        let all_since_3_3 = inter_broker_protocol.and_then(version).map(|version| version >= (3, 3));
        match (all_since_3_3, rebalance_protocols.is_some()) {
            (Some(true), _) | (None, true) => Self::Coordinator,
            (Some(false), false) => Self::Description,
            (Some(false), true) | (None, false) => Self::Both,
        }
    }
}

/// `3.9-IV0`, `2.8` → major and minor.
fn version(text: &str) -> Option<(u32, u32)> {
    let (release, _) = text.split_once('-').unwrap_or((text, ""));
    let mut numbers = release.split('.').map(|number| number.parse().ok());
    numbers.next().flatten().zip(numbers.next().flatten())
}

/// A broker that says nothing for this long is away, or does not let us in.
const SOON: Duration = Duration::from_secs(1);

/// What is known of the brokers.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Who keeps commits off groups with live members.
    pub guard: Guard,
    /// Whether a group's coordinator may lose a commit that it has acknowledged. That of Kafka up to 3.9 keeps what is
    /// pending in a transaction by producer id, without the epoch: a late commit of a producer that was fenced is refused,
    /// and takes with it what its successor has pending, which is then in the log but not in the coordinator's memory.
    /// Brokers are taken to be such until one shows that it is newer; while a cluster is upgraded to 4.0, that may be
    /// another one than the coordinator.
    pub loses_commits: bool,
    /// `offsets.retention.minutes`.
    pub retention: Duration,
}

impl Facts {
    /// What is taken for true where no broker was asked: for clients that commit nothing.
    pub fn unasked() -> Self {
        Self::of(|_| None)
    }

    /// From a broker's settings; what it does not say is taken to be Kafka's default.
    fn of<'a>(setting: impl Fn(&str) -> Option<&'a str>) -> Self {
        let minutes = setting("offsets.retention.minutes").and_then(|minutes| minutes.parse::<u32>().ok());
        let inter_broker_protocol = setting("inter.broker.protocol.version");
        let rebalance_protocols = setting("group.coordinator.rebalance.protocols");
        Self {
            guard: Guard::of(inter_broker_protocol, rebalance_protocols),
            // KIP-848's coordinator does not. Before 4.0 it is the one at work where a broker is told to offer its protocol,
            // which KRaft alone can be; `inter.broker.protocol.version` is gone with 4.0.
            loses_commits: inter_broker_protocol.is_some()
                || rebalance_protocols.is_none_or(|protocols| !protocols.contains("consumer")),
            retention: Duration::from_secs(60 * u64::from(minutes.unwrap_or(7 * 24 * 60))),
        }
    }
}

/// The cluster's brokers, asked once.
#[derive(Debug)]
pub struct Brokers {
    settings: Settings,
    facts: OnceCell<Facts>,
}

impl Brokers {
    /// Asks nothing yet.
    pub fn new(config: &KafkaConfig) -> Self {
        Self { settings: client::settings(config), facts: OnceCell::new() }
    }

    /// What is known of them. Asks if that was not done yet, any of them that answers.
    ///
    /// Errors: `503` where none does; then the next call asks.
    pub async fn facts(&self, patience: Duration) -> Result<Facts, Error> {
        let late = |_| Error::new(Code::BrokerUnavailable, "Kafka did not say in time what it is");
        let asked = self.facts.get_or_try_init(|| ask(self.settings.clone(), Instant::now() + patience));
        tokio::time::timeout(patience, asked).await.map_err(late)?.copied()
    }
}

async fn ask(settings: Settings, until: Instant) -> Result<Facts, Error> {
    let left = move || until.saturating_duration_since(Instant::now());
    // To make a client reads the system's certificates.
    let made = tokio::task::spawn_blocking(move || {
        let admin: Client<AdminClient<Context>> = settings.create().map_err(Error::internal)?;
        let metadata = match admin.inner().fetch_metadata(Some(NO_TOPIC), left().min(SOON)) {
            Err(_) if !left().is_zero() => {
                client::explain(&settings, left());
                admin.inner().fetch_metadata(Some(NO_TOPIC), left())
            }
            answered => answered,
        };
        let metadata = metadata.map_err(unreachable)?;
        let brokers: Vec<i32> = metadata.brokers().iter().map(MetadataBroker::id).collect();
        Ok::<_, Error>((admin, brokers))
    });
    let (admin, brokers) = made.await.map_err(Error::internal)??;
    let mut facts = Err(Error::new(Code::BrokerUnavailable, "The cluster has no broker"));
    for (asked, &broker) in brokers.iter().enumerate() {
        let share = left() / u32::try_from(brokers.len() - asked).unwrap_or(u32::MAX);
        facts = describe(&admin, broker, share).await;
        if facts.is_ok() {
            break;
        }
    }
    facts
}

async fn describe(admin: &AdminClient<Context>, broker: i32, patience: Duration) -> Result<Facts, Error> {
    let options = AdminOptions::new().request_timeout(Some(patience));
    let described = match admin.describe_configs(&[ResourceSpecifier::Broker(broker)], &options).await {
        Ok(mut described) => described.pop().map(|described| described.map_err(KafkaError::AdminOp)),
        Err(error) => Some(Err(error)),
    };
    match described {
        Some(Ok(config)) => Ok(Facts::of(|name| config.get(name)?.value.as_deref())),
        None => Err(Error::internal("DescribeConfigs answered nothing")),
        Some(Err(error)) => {
            let error = unreachable(error);
            if error.code() == Code::BrokerUnavailable {
                return Err(error);
            }
            tracing::info!(
                error_chain = error.chain().join(": "),
                "the broker does not show its settings; taking Kafka's default retention, and describing groups"
            );
            Ok(Facts::of(|_| None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_shows_decides_who_guards() {
        let classic = Some("classic");
        for (shown, protocols, guard) in [
            (Some("0.10.2-IV0"), None, Guard::Description),
            (Some("2.8-IV1"), None, Guard::Description),
            (Some("3.2-IV0"), None, Guard::Description),
            (Some("3.2"), None, Guard::Description),
            (Some("3.3-IV3"), None, Guard::Coordinator),
            (Some("3.9-IV0"), classic, Guard::Coordinator),
            // 4.0 and newer.
            (None, classic, Guard::Coordinator),
            // An upgrade that is not complete, or KRaft with a setting that it does not look at.
            (Some("2.8"), classic, Guard::Both),
            // No setting is shown, or one that nobody knows.
            (None, None, Guard::Both),
            (Some("new"), None, Guard::Both),
        ] {
            assert_eq!(Guard::of(shown, protocols), guard, "{shown:?}, {protocols:?}");
        }
    }

    #[test]
    fn brokers_before_4_lose_commits() {
        let loses = |shown: Option<&'static str>, protocols: Option<&'static str>| {
            let setting = |name: &str| match name {
                "inter.broker.protocol.version" => shown,
                "group.coordinator.rebalance.protocols" => protocols,
                _ => None,
            };
            Facts::of(setting).loses_commits
        };
        for (shown, protocols, expected) in [
            (Some("2.8-IV1"), None, true),
            (Some("3.9-IV0"), Some("classic"), true),
            (None, None, true),
            // Not Kafka's default on 4.x: nothing says that it is one.
            (None, Some("classic"), true),
            (None, Some("classic,consumer,streams"), false),
        ] {
            assert_eq!(loses(shown, protocols), expected, "{shown:?}, {protocols:?}");
        }
    }

    #[test]
    fn a_broker_that_shows_nothing_is_taken_for_the_least() {
        let facts = Facts::of(|_| None);
        assert_eq!((facts.guard, facts.retention), (Guard::Both, Duration::from_secs(7 * 86_400)));
        assert!(facts.loses_commits);
        let facts = Facts::of(|name| (name == "offsets.retention.minutes").then_some("1"));
        assert_eq!(facts.retention, Duration::from_secs(60));
    }
}
