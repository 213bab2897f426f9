//! What is counted, under the contract's names (section 5): one function for each event.
//!
//! Every sandbox is an `instance` with counters of its own, which begin anew with it, and whose first value is already
//! what it counted until its first push. `increase()` over an instance does not see that first value; with short-lived
//! sandboxes it matters. What was counted in the last five minutes is
//!
//! ```text
//! sum by (function, status) (
//!   (increase(kafka_gateway_requests_total[5m]) and kafka_gateway_requests_total offset 5m)
//!   or (kafka_gateway_requests_total unless kafka_gateway_requests_total offset 5m)
//! )
//! ```
//!
//! (Prometheus must scrape the Pushgateway with `honor_labels: true`.) A sandbox that comes back after more than
//! [`push::STALE`] counts as a new one there.
//!
//! Without a `PUSHGATEWAY_URL` no recorder is installed, and every call here ends at a recorder that does nothing.

pub mod push;
pub mod pushgateway;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::dlq::Reason;
use crate::names::{GroupId, TopicName};

/// Finished requests, by status.
pub const REQUESTS: &str = "kafka_gateway_requests_total";
/// How long they took, in seconds.
pub const REQUEST_DURATION: &str = "kafka_gateway_request_duration_seconds";
/// Records that went through, or did not.
pub const RECORDS: &str = "kafka_gateway_records_total";
/// Keys and values of the records that went through.
pub const BYTES: &str = "kafka_gateway_bytes_total";
/// Requests that had to wait for their sandbox to start.
pub const COLD_STARTS: &str = "kafka_gateway_cold_starts_total";
/// How long this sandbox took to start, in seconds.
pub const INIT_DURATION: &str = "kafka_gateway_init_duration_seconds";
/// Records that went to a dead-letter topic.
pub const DEAD_LETTERS: &str = "kafka_gateway_dead_letters_total";
/// Leases by what became of them.
pub const LEASES: &str = "kafka_gateway_leases_total";
/// How far a group is behind in a partition.
pub const CONSUMER_LAG: &str = "kafka_gateway_consumer_lag";
/// Calls that were turned away before anything else happened.
pub const AUTH_FAILURES: &str = "kafka_gateway_auth_failures_total";

/// Upper bounds of [`REQUEST_DURATION`], from a warm produce to a long poll that ran into the function's timeout.
const DURATION_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// So many topics get a label value of their own in one sandbox. Each costs about twenty lines in every push, and a
/// time series in Prometheus for each of them.
const MAX_TOPICS: usize = 200;
/// What the others are counted under. No topic can have this name.
const OTHER_TOPICS: &str = "(other)";

/// Which way records went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into Kafka.
    Produce,
    /// Out of Kafka.
    Consume,
}

impl Direction {
    const fn label(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Consume => "consume",
        }
    }
}

/// Records that were acknowledged by Kafka, or handed out to a consumer; `bytes` is the length of their keys and values.
pub fn records_passed(direction: Direction, topic: &TopicName, records: u64, bytes: u64) {
    let topic = topic_label(Some(topic.as_str()));
    let direction = direction.label();
    counter!(RECORDS, "direction" => direction, "topic" => topic.clone(), "outcome" => "ok").increment(records);
    counter!(BYTES, "direction" => direction, "topic" => topic).increment(bytes);
}

/// Records that were refused or whose outcome is not known.
pub fn records_failed(direction: Direction, topic: &TopicName, records: u64) {
    let topic = topic_label(Some(topic.as_str()));
    counter!(RECORDS, "direction" => direction.label(), "topic" => topic, "outcome" => "error").increment(records);
}

/// Leases that were given (`granted`) or settled, one a partition; `outcome` is a word of ours.
pub fn lease(outcome: &'static str, partitions: u64) {
    counter!(LEASES, "outcome" => outcome).increment(partitions);
}

/// Called by [`crate::telemetry::died`] alone, which writes the log line of the same event.
pub(crate) fn died(topic: &TopicName, reason: Reason, records: u64) {
    let topic = topic_label(Some(topic.as_str()));
    counter!(DEAD_LETTERS, "topic" => topic, "reason" => reason.word()).increment(records);
}

/// A token that was not accepted, or whose roles do not allow the call. `reason` is a word of ours, never the caller's.
pub fn auth_failed(reason: &'static str) {
    counter!(AUTH_FAILURES, "reason" => reason).increment(1);
}

/// The sandbox is ready for its first request.
pub fn initialized(function: &'static str, duration: Duration) {
    gauge!(INIT_DURATION, "function" => function).set(duration.as_secs_f64());
}

/// What one look at the groups that are watched has shown, as text to push. It holds nothing of earlier looks: what could
/// not be measured this time is not there, since an old value would pass for a new one.
pub fn consumer_lags<'a>(lags: impl Iterator<Item = (&'a GroupId, &'a TopicName, i32, i64)>) -> String {
    let recorder = push::recorder();
    metrics::with_local_recorder(&recorder, || {
        describe_gauge!(CONSUMER_LAG, "Offsets between a group's position and the last stable offset");
        for (group, topic, partition, lag) in lags {
            let labels = [
                ("group", group.as_str().to_owned()),
                ("topic", topic.as_str().to_owned()),
                ("partition", partition.to_string()),
            ];
            // Offsets beyond 2^53 are nobody's.
            #[allow(clippy::cast_precision_loss)]
            gauge!(CONSUMER_LAG, &labels).set(lag as f64);
        }
    });
    recorder.handle().render()
}

/// Called by [`crate::telemetry::request_finished`] alone, which writes the log line of the same event.
pub(crate) fn request_finished(
    function: &'static str,
    topic: Option<&str>,
    status: u16,
    duration: Duration,
    cold_start: bool,
) {
    let topic = topic_label(topic);
    counter!(REQUESTS, "function" => function, "topic" => topic.clone(), "status" => status.to_string()).increment(1);
    histogram!(REQUEST_DURATION, "function" => function, "topic" => topic).record(duration.as_secs_f64());
    if cold_start {
        counter!(COLD_STARTS, "function" => function).increment(1);
    }
}

/// The label's value for a topic that exists and that the caller may use; empty where there is none.
fn topic_label(topic: Option<&str>) -> SharedString {
    static TOPICS: Mutex<Option<HashSet<Arc<str>>>> = Mutex::new(None);
    let Some(topic) = topic else { return SharedString::const_str("") };
    let mut topics = TOPICS.lock().unwrap_or_else(PoisonError::into_inner);
    bounded(topics.get_or_insert_default(), topic).map_or(SharedString::const_str(OTHER_TOPICS), SharedString::from)
}

fn bounded(topics: &mut HashSet<Arc<str>>, topic: &str) -> Option<Arc<str>> {
    if let Some(known) = topics.get(topic) {
        return Some(known.clone());
    }
    if topics.len() >= MAX_TOPICS {
        return None;
    }
    let topic = Arc::<str>::from(topic);
    topics.insert(topic.clone());
    Some(topic)
}

fn describe() {
    describe_counter!(REQUESTS, "Finished requests");
    describe_histogram!(REQUEST_DURATION, Unit::Seconds, "Time from event to answer");
    describe_counter!(RECORDS, "Records produced or handed out (ok), refused or undecided (error)");
    describe_counter!(BYTES, Unit::Bytes, "Keys and values of records produced or handed out");
    describe_counter!(COLD_STARTS, "Requests that waited for their sandbox to start");
    describe_gauge!(INIT_DURATION, Unit::Seconds, "Time that the sandbox took to start");
    describe_counter!(DEAD_LETTERS, "Records that went to a dead-letter topic, by the topic they come from");
    describe_counter!(LEASES, "Leases of partitions: granted, accepted, released, renewed, lost, failed, undecided");
    describe_counter!(AUTH_FAILURES, "Calls refused for their token or its roles");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_bound_share_one_label() {
        let mut topics = HashSet::new();
        for number in 0..MAX_TOPICS {
            assert!(bounded(&mut topics, &format!("t{number}")).is_some());
        }
        assert_eq!(bounded(&mut topics, "one-too-many"), None);
        assert_eq!(bounded(&mut topics, "t0").as_deref(), Some("t0"));
        assert!(TopicName::parse(OTHER_TOPICS).is_err());
    }

    #[test]
    fn lag_is_rendered_for_each_partition_and_no_longer_than_it_is_known() {
        let (group, topic) = (GroupId::parse("g \"1\"").expect("legal"), TopicName::parse("orders").expect("legal"));
        let rendered = consumer_lags([(&group, &topic, 0, 12), (&group, &topic, 1, 0)].into_iter());
        for line in [
            r#"kafka_gateway_consumer_lag{group="g \"1\"",topic="orders",partition="0"} 12"#,
            r#"kafka_gateway_consumer_lag{group="g \"1\"",topic="orders",partition="1"} 0"#,
        ] {
            assert!(rendered.lines().any(|rendered| rendered == line), "{line}\nis not in\n{rendered}");
        }
        assert!(!consumer_lags(std::iter::empty()).contains("orders"));
    }

    #[test]
    fn every_event_is_rendered_under_the_contract_s_name_and_labels() {
        let recorder = push::recorder();
        let rendered = metrics::with_local_recorder(&recorder, || {
            describe();
            let topic = TopicName::parse("orders").expect("legal");
            records_passed(Direction::Produce, &topic, 2, 30);
            records_failed(Direction::Consume, &topic, 1);
            auth_failed("expired_token");
            died(&topic, Reason::MaxDeliveries, 3);
            initialized("produce", Duration::from_millis(20));
            request_finished("produce", Some("orders"), 200, Duration::from_micros(700), true);
            request_finished("produce", None, 404, Duration::from_secs(31), false);
            recorder.handle().render()
        });
        for line in [
            r#"kafka_gateway_records_total{direction="produce",topic="orders",outcome="ok"} 2"#,
            r#"kafka_gateway_records_total{direction="consume",topic="orders",outcome="error"} 1"#,
            r#"kafka_gateway_bytes_total{direction="produce",topic="orders"} 30"#,
            r#"kafka_gateway_dead_letters_total{topic="orders",reason="max_deliveries"} 3"#,
            r#"kafka_gateway_auth_failures_total{reason="expired_token"} 1"#,
            r#"kafka_gateway_init_duration_seconds{function="produce"} 0.02"#,
            r#"kafka_gateway_cold_starts_total{function="produce"} 1"#,
            r#"kafka_gateway_requests_total{function="produce",topic="orders",status="200"} 1"#,
            r#"kafka_gateway_requests_total{function="produce",topic="",status="404"} 1"#,
            r#"kafka_gateway_request_duration_seconds_bucket{function="produce",topic="orders",le="0.0005"} 0"#,
            r#"kafka_gateway_request_duration_seconds_bucket{function="produce",topic="orders",le="0.001"} 1"#,
            r#"kafka_gateway_request_duration_seconds_bucket{function="produce",topic="",le="30"} 0"#,
            r#"kafka_gateway_request_duration_seconds_count{function="produce",topic=""} 1"#,
        ] {
            assert!(rendered.lines().any(|rendered| rendered == line), "{line}\nis not in\n{rendered}");
        }
    }
}
