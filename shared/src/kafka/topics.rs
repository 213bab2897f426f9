//! Which topics are there: what a broker said a short while ago.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::names::TopicName;

/// How long a broker's word counts. A topic that is deleted meanwhile still ends in 404, by the broker's own word; only
/// slower.
const AGE: Duration = Duration::from_secs(60);

/// Topics that were seen to exist, and how many partitions they had.
#[derive(Debug, Default)]
pub(super) struct Topics(Mutex<HashMap<TopicName, (i32, SystemTime)>>);

impl Topics {
    /// How many partitions the topic had a short while ago, if somebody asked then.
    pub(super) fn partitions(&self, topic: &TopicName) -> Option<i32> {
        self.seen().get(topic).filter(|(_, at)| is_fresh(*at)).map(|(partitions, _)| *partitions)
    }

    /// Whether the topic was seen to exist.
    pub(super) fn knows(&self, topic: &TopicName) -> bool {
        self.seen().contains_key(topic)
    }

    /// Notes what a broker has just said. What is old is dropped, so that names do not pile up.
    pub(super) fn note(&self, topic: &TopicName, partitions: i32) {
        let mut seen = self.seen();
        seen.retain(|_, (_, at)| is_fresh(*at));
        seen.insert(topic.clone(), (partitions, SystemTime::now()));
    }

    /// Forgets a topic that is not what it was thought to be.
    pub(super) fn forget(&self, topic: &TopicName) {
        self.seen().remove(topic);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<TopicName, (i32, SystemTime)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By the wall clock, as a sandbox may be frozen meanwhile; one that was set back makes a word old, not eternal.
fn is_fresh(at: SystemTime) -> bool {
    at.elapsed().is_ok_and(|age| age < AGE)
}
