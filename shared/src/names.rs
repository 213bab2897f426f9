//! Names that were checked once, where they came in.

use std::fmt;
use std::sync::Arc;

use crate::errors::{Code, Error};

/// A topic name that Kafka accepts: 1 to 249 of `a-z A-Z 0-9 . _ -`, neither `.` nor `..`
/// (`org.apache.kafka.common.internals.Topic#validate`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks a name. `400 invalid_parameter` where Kafka would refuse it.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.bytes().all(legal) {
            return Err(Error::new(
                Code::InvalidParameter,
                "topic: must be 1 to 249 characters of a-z, A-Z, 0-9, '.', '_', '-', and neither '.' nor '..'",
            ));
        }
        Ok(Self(name.into()))
    }

    /// Whether the name is one of Kafka's own (`__consumer_offsets`, `__transaction_state`, …), closed to every caller.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with("__")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A consumer group's id: 1 to 255 bytes without control characters. Kafka takes any text that is not empty; the bound
/// keeps transactional ids and log lines sane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(Arc<str>);

impl GroupId {
    /// Checks an id. `400 invalid_parameter` where it is empty, too long, or holds control characters.
    pub fn parse(id: &str) -> Result<Self, Error> {
        if id.is_empty() || id.len() > 255 || id.chars().any(char::is_control) {
            return Err(Error::new(
                Code::InvalidParameter,
                "group_id: must be 1 to 255 bytes without control characters",
            ));
        }
        Ok(Self(id.into()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_are_what_kafka_takes() {
        for good in ["a", "orders.v1", "A_b-c.9", &"x".repeat(249), "...", "__consumer_offsets"] {
            assert!(TopicName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", "a:b", &"x".repeat(250), "a\n"] {
            assert_eq!(TopicName::parse(bad).expect_err(bad).code(), Code::InvalidParameter);
        }
        assert!(TopicName::parse("__x").expect("legal").is_internal());
    }

    #[test]
    fn group_ids_may_hold_anything_that_can_be_seen() {
        for good in ["g", "team:a/b c", "ü", &"x".repeat(255)] {
            assert!(GroupId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a\0", "a\n", &"x".repeat(256)] {
            assert_eq!(GroupId::parse(bad).expect_err("refused").code(), Code::InvalidParameter);
        }
    }
}
