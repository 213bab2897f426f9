//! Dead letters: what a record becomes when it goes to a dead-letter topic, and what comes back of it.
//!
//! A letter is the record as it was, key, value and headers, and behind its headers a block of ours: first those that
//! Kafka Connect writes, so that its users' tools read them, then a few of our own. Nobody can produce such headers through
//! the gateway (see [`crate::record::RESERVED`]).

use crate::errors::{Code, Error};
use crate::kafka::position::now_ms;
use crate::kafka::producer::NewRecord;
use crate::names::{GroupId, TopicName};
use crate::record::{Header, Record};

/// The header that our block begins with. Kafka Connect's begins with it too, so its letters come back as well.
const FIRST: &str = "__connect.errors.topic";

/// The header that says why a letter is one.
const REASON: &str = "dlq.reason";

/// The longest text that a letter carries about its death. With the names it stays well under [`HEADERS_BYTES`].
pub const MESSAGE_BYTES: usize = 1024;

/// More than the block of headers ever weighs.
pub const HEADERS_BYTES: usize = 4096;

/// `DLQ_TOPIC_SUFFIX`: what a dead-letter topic's name has beyond that of the topic its records come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suffix(String);

impl Suffix {
    /// Checks a suffix: it must not be empty, and be legal in a topic's name.
    pub fn parse(text: &str) -> Option<Self> {
        let legal = !text.is_empty() && TopicName::parse(&format!("x{text}")).is_ok();
        legal.then(|| Self(text.to_owned()))
    }

    /// The dead-letter topic of `origin`. None for one that is a dead-letter topic itself: letters that die again would go
    /// round for ever; and none where the name would be longer than Kafka takes.
    pub fn topic_of(&self, origin: &TopicName) -> Option<TopicName> {
        if self.origin_of(origin).is_some() {
            return None;
        }
        TopicName::parse(&format!("{origin}{}", self.0)).ok()
    }

    /// The topic that the letters of `topic` come from; none, if it is no dead-letter topic.
    pub fn origin_of(&self, topic: &TopicName) -> Option<TopicName> {
        TopicName::parse(topic.as_str().strip_suffix(&self.0)?).ok()
    }
}

impl Default for Suffix {
    fn default() -> Self {
        Self(".dlq".to_owned())
    }
}

/// Why a record goes to the dead-letter topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A consumer has rejected it.
    Rejected,
    /// It was delivered `DLQ_MAX_DELIVERIES` times, and never accepted.
    MaxDeliveries,
    /// It does not fit its schema.
    Schema,
}

impl Reason {
    /// The word in `dlq.reason`, in the log and in the metric's label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::MaxDeliveries => "max_deliveries",
            Self::Schema => "schema",
        }
    }

    /// What stands where Kafka Connect names a Java class.
    const fn class_name(self) -> &'static str {
        match self {
            Self::Rejected => "kafka_gateway.Rejected",
            Self::MaxDeliveries => "kafka_gateway.MaxDeliveries",
            Self::Schema => "kafka_gateway.SchemaValidationFailed",
        }
    }
}

/// How a record came to its end.
#[derive(Debug, Clone, Copy)]
pub struct Death<'a> {
    /// The topic that it was in, or meant for.
    pub topic: &'a TopicName,
    /// Where it was in its partition; none for one that was never written.
    pub offset: Option<i64>,
    /// The group that consumed it, and how often it was delivered under leases.
    pub consumed: Option<(&'a GroupId, u32)>,
    /// Why.
    pub reason: Reason,
    /// The same in words; cut to [`MESSAGE_BYTES`].
    pub message: &'a str,
}

/// The letter of a record: the only place where one is made.
///
/// Its own time is now: with the record's time, a topic's retention might take an old record's letter at once. That time
/// is in `dlq.timestamp`. Its partition is the record's, as far as it is known.
pub fn letter(record: NewRecord, death: &Death<'_>) -> NewRecord {
    let mut headers = record.headers;
    let mut add = |name: &str, value: &str| headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    add(FIRST, death.topic.as_str());
    if let (Some(partition), Some(offset)) = (record.partition, death.offset) {
        add("__connect.errors.partition", &partition.to_string());
        add("__connect.errors.offset", &offset.to_string());
    }
    let end = (0..=MESSAGE_BYTES.min(death.message.len())).rev().find(|end| death.message.is_char_boundary(*end));
    let message = &death.message[..end.unwrap_or(0)];
    add("__connect.errors.exception.class.name", death.reason.class_name());
    add("__connect.errors.exception.message", message);
    if let Some((group, attempts)) = death.consumed {
        add("dlq.group", group.as_str());
        add("dlq.delivery_attempts", &attempts.to_string());
    }
    add(REASON, death.reason.word());
    // A record without a time of its own has that of its death.
    let time = record.timestamp.and_then(|time| u64::try_from(time).ok()).unwrap_or_else(now_ms);
    add("dlq.timestamp", &time.to_string());
    NewRecord { headers, timestamp: None, ..record }
}

/// The record of a letter, to go back to its topic: the only place where one is made. `partition` is the letter's.
///
/// Its key decides the partition, as it did at first; without a key it goes back to where it was, as far as letters keep
/// to their records' partitions. Its own time is now, for the reason that a letter's is.
pub fn unletter(letter: &Record, partition: i32) -> NewRecord {
    NewRecord {
        key: letter.key.clone(),
        value: letter.value.clone(),
        headers: original(letter.headers.clone()),
        partition: letter.key.is_none().then_some(partition),
        timestamp: None,
    }
}

/// Whether a letter's record was ever in the topic. What did not fit its schema was not: it was refused, and is kept as it
/// was sent, which is not how the topic's records are written.
pub fn was_written(letter: &Record) -> bool {
    let block = letter.headers.iter().rposition(|(name, _)| name == FIRST);
    let mut block = letter.headers[block.unwrap_or(letter.headers.len())..].iter();
    !block.any(|(name, value)| name == REASON && value.as_deref() == Some(Reason::Schema.word().as_bytes()))
}

/// Why a letter is one, in a word: ours, or the class that Kafka Connect names.
pub fn reason(letter: &Record) -> Option<String> {
    let named = |name: &str| letter.headers.iter().rfind(|header| header.0 == name)?.1.as_deref();
    let reason = named(REASON).or_else(|| named("__connect.errors.exception.class.name"))?;
    Some(String::from_utf8_lossy(reason).chars().take(REASON_CHARS).collect())
}

/// The longest reason that is shown; one of ours is a word.
const REASON_CHARS: usize = 200;

/// The headers that a letter's record had.
fn original(mut headers: Vec<Header>) -> Vec<Header> {
    if let Some(block) = headers.iter().rposition(|(name, _)| name == FIRST) {
        headers.truncate(block);
    }
    headers
}

/// `400` for a topic whose records cannot be rejected.
pub fn no_dead_letters() -> Error {
    let detail =
        "type: the topic has no dead-letter topic: it is one itself, or its name leaves no room for the suffix";
    Error::new(Code::InvalidParameter, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("legal")
    }

    #[test]
    fn a_dead_letter_topic_has_none_of_its_own() {
        let suffix = Suffix::default();
        assert_eq!(suffix.topic_of(&topic("orders")), Some(topic("orders.dlq")));
        assert_eq!(suffix.origin_of(&topic("orders.dlq")), Some(topic("orders")));
        assert_eq!(suffix.topic_of(&topic("orders.dlq")), None);
        assert_eq!(suffix.topic_of(&topic(&"x".repeat(246))), None, "too long");
        for none in ["orders", ".dlq", "orders.dlq.x"] {
            assert_eq!(suffix.origin_of(&topic(none)), None, "{none}");
        }
        for (text, legal) in [("-dead", true), ("", false), ("/x", false), (&"x".repeat(249), false)] {
            assert_eq!(Suffix::parse(text).is_some(), legal, "{text}");
        }
    }

    #[test]
    fn a_letter_has_all_that_the_record_had_and_says_why_it_is_there() {
        let headers = vec![("a".to_owned(), Some(b"1".to_vec())), ("dlq.reason".to_owned(), None)];
        let record = NewRecord {
            key: Some(b"k".to_vec()),
            value: None,
            headers: headers.clone(),
            partition: Some(3),
            timestamp: Some(77),
        };
        let death = Death {
            topic: &topic("orders"),
            offset: Some(9),
            consumed: Some((&GroupId::parse("g").expect("legal"), 2)),
            reason: Reason::Rejected,
            message: &"ü".repeat(MESSAGE_BYTES),
        };
        let letter = letter(record, &death);
        assert_eq!(
            (letter.key, letter.value, letter.partition, letter.timestamp),
            (Some(b"k".to_vec()), None, Some(3), None)
        );
        let text = |(name, value): &Header| {
            (name.clone(), String::from_utf8(value.clone().unwrap_or_default()).expect("text"))
        };
        let block: Vec<_> = letter.headers[2..].iter().map(text).collect();
        let expected = [
            ("__connect.errors.topic", "orders"),
            ("__connect.errors.partition", "3"),
            ("__connect.errors.offset", "9"),
            ("__connect.errors.exception.class.name", "kafka_gateway.Rejected"),
            ("__connect.errors.exception.message", &"ü".repeat(MESSAGE_BYTES / 2)),
            ("dlq.group", "g"),
            ("dlq.delivery_attempts", "2"),
            ("dlq.reason", "rejected"),
            ("dlq.timestamp", "77"),
        ];
        assert_eq!(block, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(original(letter.headers), headers, "and it comes back as it was");
    }

    #[test]
    fn what_did_not_fit_its_schema_was_never_written_whatever_its_own_headers_say() {
        let orders = topic("orders");
        let letter_of = |headers: &[(&str, &str)], reason: Option<Reason>| {
            let headers =
                headers.iter().map(|(name, value)| ((*name).to_owned(), Some(value.as_bytes().to_vec()))).collect();
            let record = NewRecord { headers, ..NewRecord::default() };
            let death = |reason| Death { topic: &orders, offset: None, consumed: None, reason, message: "" };
            let headers = match reason {
                Some(reason) => letter(record, &death(reason)).headers,
                None => record.headers,
            };
            Record { offset: 0, timestamp: 0, key: None, value: None, headers }
        };
        assert!(!was_written(&letter_of(&[], Some(Reason::Schema))));
        assert!(!was_written(&letter_of(&[("dlq.reason", "rejected")], Some(Reason::Schema))));
        let claims = [("dlq.reason", "schema")];
        for reason in [Some(Reason::Rejected), Some(Reason::MaxDeliveries), None] {
            assert!(was_written(&letter_of(&claims, reason)), "{reason:?}");
        }
        assert!(was_written(&letter_of(&[], None)));
    }

    #[test]
    fn the_longest_block_is_no_longer_than_is_allowed_for() {
        let death = Death {
            topic: &topic(&"x".repeat(249)),
            offset: Some(i64::MAX),
            consumed: Some((&GroupId::parse(&"x".repeat(255)).expect("legal"), u32::MAX)),
            reason: Reason::Schema,
            message: &"x".repeat(2 * MESSAGE_BYTES),
        };
        let record = NewRecord { partition: Some(i32::MAX), timestamp: Some(i64::MAX), ..NewRecord::default() };
        let bytes: usize = letter(record, &death)
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        assert!(bytes < HEADERS_BYTES / 2, "{bytes}");
    }
}
