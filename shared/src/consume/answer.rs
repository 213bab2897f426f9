//! The answer of a call: its body, and what may go into it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::look::At;
use super::session::Session;
use crate::errors::Error;
use crate::http::{Reply, problem};
use crate::messages;
use crate::metrics::{self, Direction};
use crate::record::{self, Origin};

/// What a lease weighs in an answer, beside the names of group and topics, which stand in its token in base64.
const LEASE_WEIGHT: usize = 512;

/// Where an answer names topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topics {
    /// Once: there is only one.
    Once,
    /// With each message.
    Each,
}

/// What a call has come to.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) batches: Vec<Batch>,
    /// Topics of which nothing could be seen, by their index, and why.
    pub(super) unseen: BTreeMap<usize, Error>,
}

/// One partition's part of the answer.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) at: At,
    pub(super) messages: Vec<String>,
    pub(super) bytes: usize,
    /// When its lease expires, if it has one.
    pub(super) until: Option<u64>,
}

impl Session {
    /// Does what the call asks for, and answers it.
    pub(crate) async fn reply(&self) -> Result<Reply, Error> {
        let Answer { batches, unseen } = self.consume().await?;
        for batch in &batches {
            let records = batch.messages.len() as u64;
            metrics::records_passed(Direction::Consume, self.topic(batch.at), records, batch.bytes as u64);
        }
        let mut lease = String::new();
        if self.terms.manual && !batches.is_empty() {
            let partitions: Vec<At> = batches.iter().map(|batch| batch.at).collect();
            let until = batches.iter().filter_map(|batch| batch.until).min();
            lease = format!(",\"lease\":{}", self.lease(&partitions, until));
        }
        let tail = format!("]{lease}{}}}", failed(&unseen));
        Ok(Reply::json(200, messages::body(&self.head(), batches.iter().flat_map(|batch| &batch.messages), &tail)))
    }

    /// A lease as the caller sees it.
    pub(super) fn lease(&self, partitions: &[At], until: Option<u64>) -> Value {
        metrics::lease("granted", partitions.len() as u64);
        let places = partitions.iter().map(|at| (self.topic(*at).clone(), at.1));
        json!({ "token": self.token.of(places).encode(), "expires_at": until })
    }

    /// How a message says where it was.
    pub(super) fn origin(&self, at: At) -> Origin {
        let topic = (self.shown == Topics::Each).then(|| self.topic(at).clone());
        Origin { topic, partition: at.1 }
    }

    /// The body before its messages.
    fn head(&self) -> String {
        let group = Value::from(self.group.id.as_str());
        match self.shown {
            Topics::Once => {
                let topic = Value::from(self.topic((0, 0)).as_str());
                format!("{{\"topic\":{topic},\"group_id\":{group},\"messages\":[")
            }
            Topics::Each => format!("{{\"group_id\":{group},\"messages\":["),
        }
    }

    /// Whether what could not be done would leave no room for what could: then the call fails, as nothing is left out
    /// in silence.
    pub(super) fn is_crowded(&self, unseen: &BTreeMap<usize, Error>) -> bool {
        record::weight(&failed(unseen)) > self.terms.wanted.max_bytes / 2
    }

    /// What the records of the answer may weigh, if they are of these topics.
    pub(super) fn budget(&self, topics: impl Iterator<Item = usize>, unseen: &BTreeMap<usize, Error>) -> usize {
        let mut rest = record::weight(&self.head()) + record::weight(&failed(unseen)) + 2;
        if self.terms.manual {
            rest += 2 * record::weight(&self.head()) + LEASE_WEIGHT;
            if self.shown == Topics::Each {
                rest += topics.map(|topic| 2 * self.topic((topic, 0)).as_str().len()).sum::<usize>();
            }
        }
        messages::budget(self.terms.wanted.max_bytes, rest)
    }
}

/// What could not be done beside what was, as a member of the body; nothing, if there is nothing.
fn failed(unseen: &BTreeMap<usize, Error>) -> String {
    if unseen.is_empty() {
        return String::new();
    }
    let list: Vec<_> = unseen.values().map(problem::members).collect();
    format!(",\"failed\":{}", Value::from(list))
}
