//! A group's position in a partition, and the mark that the gateway leaves with it.
//!
//! The position is the group's ordinary committed offset, which any Kafka tool reads and resets. The mark travels in the
//! offset's metadata string, so that both change in one step. It is no secret and holds none: whoever may describe the
//! group can read it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::errors::Error;

/// The version of the mark. A function that meets a newer one does not touch the partition: it may be under a promise
/// (a lease) that this version cannot see.
const VERSION: u32 = 1;

/// How many nonces a mark remembers. One would do to recognise one's own commit; a few more still do when others have
/// committed since.
const REMEMBERED: usize = 4;

/// Milliseconds since 1970, by this machine's wall clock.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What the gateway notes beside a committed offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The mark's version.
    #[serde(rename = "kafka-gateway")]
    version: u32,
    /// The nonces of the last commits, newest first: what proves to a function, when the answer to its commit was lost,
    /// that the commit was done.
    nonces: Vec<u64>,
    /// When it was committed, milliseconds since 1970.
    pub at: u64,
    /// The sandbox that committed it.
    pub holder: u32,
    /// When the position was last renewed (see `retention`), milliseconds since 1970; commits in between do not count.
    #[serde(default)]
    renewed: u64,
}

impl Mark {
    /// The mark of a commit that is about to be made on top of `before`.
    pub fn next(before: Option<&Self>, holder: u32, nonce: u64) -> Self {
        let mut nonces = vec![nonce];
        nonces.extend(before.iter().flat_map(|mark| &mark.nonces).take(REMEMBERED - 1));
        Self { version: VERSION, nonces, at: now_ms(), holder, renewed: before.map_or(0, |mark| mark.renewed) }
    }

    /// Whether a commit with this nonce is part of this position's recent past.
    pub fn includes(&self, nonce: u64) -> bool {
        self.nonces.contains(&nonce)
    }

    /// How long ago it was committed; nothing, if it lies in the future by this machine's clock.
    pub fn age(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.at))
    }

    /// The same mark, as one of a renewal.
    #[must_use]
    pub fn renewing(self) -> Self {
        Self { renewed: self.at, ..self }
    }

    /// How long ago the position was last renewed.
    pub fn renewed_ago(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.renewed))
    }

    /// The metadata string.
    pub fn to_metadata(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A group's position in a partition, as a stable read shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// The next offset to hand out; none where the group has none.
    pub committed: Option<i64>,
    /// The gateway's mark; none where something else has set the position.
    pub mark: Option<Mark>,
}

impl Position {
    /// Reads a committed offset and its metadata. Text that is not a mark is left to whoever wrote it.
    ///
    /// Errors: a mark of a newer version.
    pub fn read(committed: Option<i64>, metadata: &str) -> Result<Self, Error> {
        let mark: Option<Mark> = serde_json::from_str(metadata).ok();
        let version = || serde_json::from_str::<Versioned>(metadata).map_or(0, |mark| mark.version);
        if mark.as_ref().is_none_or(|mark| mark.version != VERSION) && version() > VERSION {
            return Err(Error::internal("the position carries a mark of a newer version of the gateway"));
        }
        Ok(Self { committed, mark })
    }
}

#[derive(Deserialize)]
struct Versioned {
    #[serde(rename = "kafka-gateway")]
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_string_and_remembers_a_few_commits() {
        let mut mark = Mark::next(None, 7, 1);
        for nonce in 2..=6 {
            mark = Mark::next(Some(&mark), 7, nonce);
        }
        let read = Position::read(Some(5), &mark.to_metadata()).expect("readable");
        assert_eq!(read.mark.as_ref(), Some(&mark));
        assert_eq!(
            (1..=6).map(|nonce| mark.includes(nonce)).collect::<Vec<_>>(),
            [false, false, true, true, true, true]
        );
        // The broker's default limit for the string is 4096 bytes.
        let longest =
            Mark { nonces: vec![u64::MAX; REMEMBERED], at: u64::MAX, holder: u32::MAX, renewed: u64::MAX, ..mark };
        assert!(longest.to_metadata().len() < 256);
    }

    #[test]
    fn other_peoples_metadata_is_no_mark() {
        for text in ["", "text", "{}", "null", "7", "{\"kafka-gateway\":\"x\"}", "{\"version\":9}"] {
            assert_eq!(Position::read(Some(1), text).expect(text).mark, None, "{text}");
        }
    }

    #[test]
    fn a_newer_mark_is_not_guessed_at() {
        assert!(Position::read(Some(1), "{\"kafka-gateway\":2,\"lease\":{}}").is_err());
        let newer = Mark { version: 2, ..Mark::next(None, 1, 1) };
        assert!(Position::read(Some(1), &newer.to_metadata()).is_err());
    }
}
