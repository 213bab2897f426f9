//! What the environment decides for `lag-monitor`, which answers to nobody: no issuer, but groups to watch.

use std::collections::HashSet;

use super::{ConfigError, KafkaConfig, MetricsConfig, Variables, bad, missing};
use crate::names::{GroupId, TopicName};

const GROUPS: &str = "LAG_MONITOR_GROUPS";
const THRESHOLD: &str = "LAG_ALARM_THRESHOLD";

/// Everything that the environment decides for `lag-monitor`.
#[derive(Debug, Clone)]
pub struct MonitorConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// Where metrics go.
    pub metrics: MetricsConfig,
    /// The groups to watch, each on some topics (`LAG_MONITOR_GROUPS`).
    pub groups: Vec<(GroupId, Vec<TopicName>)>,
    /// A lag of more records than this, over all partitions of a topic, is warned of (`LAG_ALARM_THRESHOLD`).
    pub threshold: Option<i64>,
}

impl MonitorConfig {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&Variables(std::env::vars().collect()))
    }

    fn read(env: &Variables) -> Result<Self, ConfigError> {
        let threshold = match env.get(THRESHOLD) {
            None => None,
            Some(text) => match text.parse() {
                Ok(threshold) if threshold >= 0 => Some(threshold),
                _ => return Err(bad(THRESHOLD, "must be a whole number of records")),
            },
        };
        Ok(Self { kafka: KafkaConfig::read(env)?, metrics: MetricsConfig::read(env)?, groups: groups(env)?, threshold })
    }
}

/// `group=topic,topic;…`. A group's id may hold `=`, as topics cannot, but neither `;` nor white space at its ends.
fn groups(env: &Variables) -> Result<Vec<(GroupId, Vec<TopicName>)>, ConfigError> {
    let mut groups = Vec::new();
    let mut seen = HashSet::new();
    let entries = env.get(GROUPS).ok_or_else(|| missing(GROUPS))?.split(';').map(str::trim);
    for (number, entry) in (1..).zip(entries).filter(|(_, entry)| !entry.is_empty()) {
        let wrong = |problem: &str| bad(GROUPS, format!("entry {number}: {problem}"));
        let (group, topics) = entry.rsplit_once('=').ok_or_else(|| wrong("must be group=topic,topic"))?;
        let group = GroupId::parse(group.trim()).map_err(|error| wrong(error.detail()))?;
        let mut named = Vec::new();
        for topic in topics.split(',') {
            let topic = TopicName::parse(topic.trim()).map_err(|error| wrong(error.detail()))?;
            if topic.is_internal() {
                return Err(wrong("internal topics are nobody's to consume"));
            }
            if !seen.insert((group.clone(), topic.clone())) {
                return Err(wrong("names a topic of its group once more"));
            }
            named.push(topic);
        }
        groups.push((group, named));
    }
    if groups.is_empty() {
        return Err(bad(GROUPS, "names no group"));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(groups: &str, threshold: &str) -> Result<MonitorConfig, String> {
        let variables = [("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"), (GROUPS, groups), (THRESHOLD, threshold)];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        MonitorConfig::read(&Variables(variables.into())).map_err(|error| error.to_string())
    }

    #[test]
    fn groups_and_their_topics_are_listed() {
        let config = read(" billing = orders , payments ; a=b=refunds;; ", "1000").expect("valid");
        let listed: Vec<(&str, Vec<&str>)> = config
            .groups
            .iter()
            .map(|(group, topics)| (group.as_str(), topics.iter().map(TopicName::as_str).collect()))
            .collect();
        assert_eq!(listed, [("billing", vec!["orders", "payments"]), ("a=b", vec!["refunds"])]);
        assert_eq!(config.threshold, Some(1000));
        assert_eq!(read("g=t", "").expect("valid").threshold, None);
    }

    #[test]
    fn every_bad_value_names_its_variable() {
        for groups in ["", ";", "g", "g=", "=t", "g=t,", "g=a b", "g=t;g=t", "g=t,t", "g=__consumer_offsets"] {
            let error = read(groups, "").expect_err(groups);
            assert!(error.starts_with("LAG_MONITOR_GROUPS: "), "{groups}: {error}");
        }
        for threshold in ["-1", "1.5", "many", "99999999999999999999"] {
            let error = read("g=t", threshold).expect_err(threshold);
            assert!(error.starts_with("LAG_ALARM_THRESHOLD: "), "{error}");
        }
    }
}
