//! Keeping positions alive.
//!
//! Kafka forgets the position of a partition `offsets.retention.minutes` after its last commit (KIP-211): a partition
//! that has no records for a week would start over. And where a *classic* group once had members, it forgets all of the
//! group's positions that long after the last member left, even while positions are committed. So every position is
//! committed again well before, and such a group is joined and left for a moment, which starts its time anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::{self, Client, Context, Settings};
use super::error::unreachable;
use super::group::Group;
use super::position::{Position, now_ms};
use crate::config::KafkaConfig;
use crate::errors::Error;
use crate::names::TopicName;

/// How often a position is renewed within the time that Kafka keeps it.
const RENEWALS: u32 = 8;

/// The client id of the member that joins for a moment, by which other functions know it.
pub const RENEWAL_CLIENT: &str = "kafka-gateway-renewal";

/// When a position is due to be committed again.
#[derive(Debug)]
pub struct Retention {
    settings: Settings,
    /// When a renewal has failed last, milliseconds since 1970.
    failed_ms: AtomicU64,
}

/// How long after a failed renewal none is tried. A position is due for many times longer than that before it expires.
const AFTER_FAILURE_MS: u64 = 60_000;

impl Retention {
    /// No renewal has failed yet.
    pub fn new(config: &KafkaConfig) -> Self {
        let mut settings = client::settings(config);
        settings.set("enable.auto.commit", "false").set("client.id", RENEWAL_CLIENT);
        // Should the sandbox die while it is a member, the group is soon free again.
        settings.set("session.timeout.ms", "6000").set("heartbeat.interval.ms", "1000");
        Self { settings, failed_ms: AtomicU64::new(0) }
    }

    /// Puts off further renewals for a while: they ask every broker of the cluster, and one may be away.
    pub fn put_off(&self) {
        self.failed_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// Whether a position should be committed again by now.
    pub fn is_due(&self, group: &Group, position: &Position) -> bool {
        let renew_after = group.facts.retention / RENEWALS;
        now_ms().abs_diff(self.failed_ms.load(Ordering::Relaxed)) > AFTER_FAILURE_MS
            && position.committed.is_some()
            && position.mark.as_ref().is_none_or(|mark| mark.renewed_ago() > renew_after)
    }

    /// If the group is a classic one that its members have left, starts the time of its positions anew. Blocks, for as
    /// long as the broker's `group.initial.rebalance.delay.ms` at worst.
    pub fn refresh(&self, group: &Group, topic: &TopicName, until: Instant) -> Result<(), Error> {
        let left = || until.saturating_duration_since(Instant::now());
        let list = group.consumer.fetch_group_list(Some(group.id.as_str()), left()).map_err(unreachable)?;
        let emptied = |found: &rdkafka::groups::GroupInfo| {
            found.state() == "Empty" && found.members().is_empty() && !found.protocol_type().is_empty()
        };
        if !list.groups().first().is_some_and(emptied) {
            return Ok(());
        }
        tracing::info!(group = %group.id, "joining an emptied classic group for a moment, lest its positions expire");
        let mut settings = self.settings.clone();
        settings.set("group.id", group.id.as_str());
        let member: Client<Arc<BaseConsumer<Context>>> = settings.create().map_err(Error::internal)?;
        member.subscribe(&[topic.as_str()]).map_err(Error::internal)?;
        let joined = |member: &BaseConsumer<Context>| member.assignment().is_ok_and(|list| list.count() > 0);
        while !joined(&member) && !left().is_zero() {
            let _ = member.poll(left().min(Duration::from_millis(20)));
        }
        member.unsubscribe();
        member.end();
        Ok(())
    }
}
