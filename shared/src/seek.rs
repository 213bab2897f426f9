//! `POST /kafka/consumer/seek`: sets a group's position in a topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::auth::{May, Read};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::{Consumers, Decided, blocking};
use crate::kafka::decide::Intent;
use crate::kafka::group::{Group, out_of_range, places};
use crate::names::{GroupId, TopicName};
use crate::record::{self, Once};

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Seek {
    consumers: Arc<Consumers>,
}

impl Endpoint for Seek {
    const FUNCTION: &'static str = "seek";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/consumer/seek")];
    const SCHEMAS: bool = false;
    type Permission = May<Read>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        let consumers = Arc::new(Consumers::new(&config.kafka));
        consumers.learn().await;
        Ok(Self { consumers })
    }

    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let ask = Arc::new(Ask::read(&call.request.json_body()?)?);
        call.on_topic(&ask.topic);
        call.on_group(&ask.group);
        let from = may.on((ask.topic.clone(), ask.group.clone()))?;
        let group = self.consumers.group(&from, call.deadline).await?;
        let offsets = blocking(call.deadline, {
            let (ask, group) = (Arc::clone(&ask), Arc::clone(&group));
            move |until| ask.offsets(&group, until)
        });
        let offsets = offsets.await;
        if group.knows(&ask.topic) {
            call.topic_exists();
        }
        let offsets = offsets.map_err(|error| error.with("topic", ask.topic.as_str()))?;
        let steps = offsets.into_iter().map(|(partition, to)| (from.clone(), partition, Intent::Seek { to }));
        let decided = self.consumers.step_each(&group, steps, call.deadline).await?;
        ask.answer(decided)
    }

    async fn stop(&self) {}
}

/// The request.
#[derive(Debug)]
struct Ask {
    group: GroupId,
    topic: TopicName,
    to: To,
}

/// Where to.
#[derive(Debug)]
enum To {
    /// To these offsets, by partition.
    Offsets(BTreeMap<i32, i64>),
    /// To the beginning of every partition.
    Earliest,
    /// To the end of every partition.
    Latest,
    /// To each partition's first record of this time (milliseconds since 1970) or later; to its end, if there is none.
    Time(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    group_id: Option<String>,
    topic: Option<String>,
    partitions: Option<Once<i32, i64>>,
    #[serde(borrow)]
    to: Option<&'a RawValue>,
}

impl Ask {
    fn read(body: &[u8]) -> Result<Self, Error> {
        let body: Body<'_> = record::body(body)?;
        let missing = |name: &str| Error::new(Code::MissingParameter, format!("{name}: is required"));
        let invalid = |problem: &'static str| Error::new(Code::InvalidParameter, problem);
        let to = match (body.partitions, body.to) {
            (None, None) => return Err(missing("partitions or to")),
            (Some(_), Some(_)) => return Err(invalid("partitions and to: only one of them can be given")),
            (Some(Once(offsets)), None) if offsets.is_empty() => return Err(invalid("partitions: names no partition")),
            (Some(Once(offsets)), None) => To::Offsets(offsets.into_iter().collect()),
            (None, Some(to)) => match serde_json::from_str(to.get()).unwrap_or_default() {
                Value::String(word) if word == "earliest" => To::Earliest,
                Value::String(word) if word == "latest" => To::Latest,
                Value::Number(number) if number.as_i64().is_some_and(|time| time >= 0) => {
                    To::Time(number.as_i64().unwrap_or_default())
                }
                _ => return Err(invalid("to: must be earliest, latest, or a time in milliseconds since 1970")),
            },
        };
        Ok(Self {
            group: GroupId::parse(&body.group_id.ok_or_else(|| missing("group_id"))?)?,
            topic: TopicName::parse(&body.topic.ok_or_else(|| missing("topic"))?)?,
            to,
        })
    }

    /// The offset that each partition is to go on from. Blocks.
    ///
    /// Errors, of any partition: nothing is moved then.
    fn offsets(&self, group: &Group, until: Instant) -> Result<BTreeMap<i32, i64>, Error> {
        let left = || until.saturating_duration_since(Instant::now());
        group.drain_events();
        let count = group.partitions(&self.topic, left())?;
        let partitions: Vec<i32> = match &self.to {
            To::Offsets(offsets) => offsets.keys().copied().collect(),
            _ => (0..count).collect(),
        };
        if let Some(unknown) = partitions.iter().find(|partition| !(0..count).contains(*partition)) {
            return Err(
                Error::new(Code::PartitionNotFound, "The topic has no such partition").with("partition", *unknown)
            );
        }
        let places = places(&self.topic, &partitions);
        let offsets = match &self.to {
            To::Earliest => group.starts(&places, left())?,
            To::Latest => group.ends(&places, left())?,
            To::Time(time) => group.at_time(&places, *time, left())?,
            To::Offsets(offsets) => {
                let (starts, ends) = (group.starts(&places, left())?, group.ends(&places, left())?);
                let bounds = offsets.values().zip(starts.into_iter().zip(ends));
                bounds.map(|(offset, (start, end))| within(*offset, start?, end?)).collect()
            }
        };
        let of = |(partition, offset): (i32, Result<i64, Error>)| match offset {
            Ok(offset) => Ok((partition, offset)),
            Err(error) => Err(error.with("partition", partition)),
        };
        partitions.into_iter().zip(offsets).map(of).collect()
    }

    fn answer(&self, decided: BTreeMap<(TopicName, i32), Result<Decided, Error>>) -> Result<Reply, Error> {
        let mut worst: Option<Error> = None;
        let mut results = Vec::new();
        for ((_, partition), decided) in decided {
            let (status, committed) = match decided.and_then(moved) {
                Ok(offset) => ("moved", Some(offset)),
                Err(error) => {
                    let undecided = error.code() == Code::DeadlineExceeded;
                    // What may yet be done outweighs what is not done: the caller has to look.
                    if undecided || worst.is_none() {
                        worst = Some(error);
                    }
                    (if undecided { "undecided" } else { "failed" }, None)
                }
            };
            results.push(json!({ "partition": partition, "status": status, "committed": committed }));
        }
        let (group, topic) = (self.group.as_str(), self.topic.as_str());
        if let Some(error) = worst {
            return Err(error.with("group_id", group).with("topic", topic).with("results", results));
        }
        Ok(Reply::json(200, json!({ "group_id": group, "topic": topic, "results": results }).to_string()))
    }
}

fn moved(decided: Decided) -> Result<i64, Error> {
    match decided {
        Decided::Committed { mark, .. } => Ok(mark.offset),
        Decided::Refused(verdict, _) => Err(Error::internal(format!("a seek was refused: {verdict:?}"))),
    }
}

/// The offset, if it lies in the log or at its end.
fn within(offset: i64, start: i64, end: i64) -> Result<i64, Error> {
    if (start..=end).contains(&offset) {
        return Ok(offset);
    }
    Err(out_of_range(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seek_says_where_in_one_way() {
        let read = |more: &str| {
            let body = format!(r#"{{"group_id": "g", "topic": "t"{more}}}"#);
            Ask::read(body.as_bytes()).map(|ask| format!("{:?}", ask.to)).map_err(|error| error.code())
        };
        assert_eq!(read(r#", "to": "earliest""#).as_deref(), Ok("Earliest"));
        assert_eq!(read(r#", "to": "latest""#).as_deref(), Ok("Latest"));
        assert_eq!(read(r#", "to": 1767225600000"#).as_deref(), Ok("Time(1767225600000)"));
        assert_eq!(read(r#", "partitions": {"0": 5, "2": 0}"#).as_deref(), Ok("Offsets({0: 5, 2: 0})"));
        assert_eq!(read(""), Err(Code::MissingParameter));
        for more in [
            r#", "to": "first""#,
            r#", "to": -1"#,
            r#", "to": 1.5"#,
            r#", "to": 99999999999999999999"#,
            r#", "to": {}"#,
            r#", "to": "latest", "partitions": {"0": 5}"#,
            r#", "partitions": {}"#,
            r#", "partitions": {"a": 5}"#,
            r#", "partitions": {"0": "5"}"#,
            r#", "partitions": [5]"#,
            r#", "offset": 5"#,
        ] {
            assert_eq!(read(more), Err(Code::InvalidParameter), "{more}");
        }
        for body in [r#"{"group_id": "g", "to": 1}"#, r#"{"topic": "t", "to": 1}"#] {
            assert_eq!(Ask::read(body.as_bytes()).expect_err(body).code(), Code::MissingParameter);
        }
    }

    #[test]
    fn the_end_belongs_to_the_log() {
        for offset in [3, 4, 7] {
            assert_eq!(within(offset, 3, 7).expect("inside"), offset);
        }
        for offset in [i64::MIN, -1, 2, 8, i64::MAX] {
            assert_eq!(within(offset, 3, 7).expect_err("outside").code(), Code::OffsetOutOfRange);
        }
    }
}
