//! Answers that are kept, the least recently used first out, and asked for once at a time.

use std::fmt::Display;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;

/// How long an answer is believed that may change: which version is the latest, that there is no such thing.
pub(super) const BELIEVED: Duration = Duration::from_secs(30);

/// How long an answer is believed that changes only when somebody deletes a subject for good.
pub(super) const SETTLED: Duration = Duration::from_secs(600);

/// How long it is believed that a thing is not there which a caller has named: he may be about to register it.
pub(super) const NOT_YET: Duration = Duration::from_secs(1);

/// Answers by what was asked.
pub(super) struct Cache<K, V> {
    slots: Mutex<LruCache<K, Arc<Slot<V>>>>,
}

/// Held by the call that asks; others that want the same wait for it.
type Slot<V> = tokio::sync::Mutex<Option<Answer<V>>>;

struct Answer<V> {
    found: Option<V>,
    at: SystemTime,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    pub(super) fn new(size: usize) -> Self {
        let size = NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        Self { slots: Mutex::new(LruCache::new(size)) }
    }

    /// What is known, or what `ask` says. Where that fails, what was found before still serves. A thing that was found is
    /// believed for `lasts`, and that there is none for `missing`.
    pub(super) async fn get<E: Display>(
        &self,
        key: K,
        lasts: Duration,
        missing: Duration,
        ask: impl AsyncFnOnce() -> Result<Option<V>, E>,
    ) -> Result<Option<V>, E> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.get_or_insert(key, Arc::default))
        };
        let mut known = slot.lock().await;
        let now = SystemTime::now();
        if let Some(Answer { found, at }) = &*known {
            let believed = if found.is_some() { lasts } else { missing };
            // A clock that was set back makes an answer old.
            if believed == Duration::MAX || now.duration_since(*at).is_ok_and(|age| age < believed) {
                return Ok(found.clone());
            }
        }
        match ask().await {
            Ok(found) => {
                *known = Some(Answer { found: found.clone(), at: now });
                Ok(found)
            }
            Err(error) => match known.as_ref().and_then(|answer| answer.found.clone()) {
                Some(found) => {
                    tracing::warn!(%error, "the schema registry fails; going on with what is known");
                    Ok(Some(found))
                }
                None => Err(error),
            },
        }
    }
}
