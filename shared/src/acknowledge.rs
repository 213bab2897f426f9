//! `POST /kafka/consumer/acknowledge`: settles a lease that a consume call with `ack=manual` has given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::auth::{May, Read};
use crate::config::Config;
use crate::consume::LEASE_MS;
use crate::deadline::Deadline;
use crate::dlq::{self, MESSAGE_BYTES};
use crate::errors::{BoxError, Code, Error};
use crate::http::request::one_of;
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::{Consumers, Decided};
use crate::kafka::decide::{Intent, Verdict};
use crate::kafka::position::Holder;
use crate::lease::Token;
use crate::metrics;
use crate::names::TopicName;
use crate::record::{self, Once};

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Acknowledge {
    consumers: Arc<Consumers>,
}

impl Endpoint for Acknowledge {
    const FUNCTION: &'static str = "acknowledge";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/consumer/acknowledge")];
    const SCHEMAS: bool = false;
    type Permission = May<Read>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        let consumers = Arc::new(Consumers::new(&config.kafka));
        consumers.learn().await;
        Ok(Self { consumers })
    }

    async fn call(&self, may: &May<Read>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let ask = Ask::read(&call.request.json_body()?)?;
        if let Some(topic) = ask.token.only_topic() {
            call.on_topic(topic);
        }
        call.on_group(&ask.token.group);
        let results = self.settle(may, &ask, call.deadline).await?;
        // A token's names are the caller's own words; a mark that holds its lease is not.
        if results
            .values()
            .any(|result| matches!(result, Ok(Outcome::Done { .. } | Outcome::Renewed(..) | Outcome::Settled(_))))
        {
            call.topic_exists();
        }
        ask.answer(results)
    }

    async fn stop(&self) {}
}

/// `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Accept,
    Release,
    Reject,
    Renew,
}

impl Type {
    const WORDS: &[(&str, Self)] =
        &[("accept", Self::Accept), ("release", Self::Release), ("reject", Self::Reject), ("renew", Self::Renew)];

    const fn done(self) -> &'static str {
        match self {
            Self::Accept => "accepted",
            Self::Release => "released",
            Self::Reject => "rejected",
            Self::Renew => "renewed",
        }
    }
}

/// The request.
#[derive(Debug)]
struct Ask {
    token: Token,
    kind: Type,
    /// The last accepted offset of each partition; all of each, if absent.
    through: Option<BTreeMap<Place, i64>>,
    /// The rejected offsets of each partition, in order; all of the lease, if absent.
    records: Option<BTreeMap<Place, BTreeSet<i64>>>,
    /// Why they are rejected; empty, if the caller does not say.
    reason: String,
    lease_ms: u64,
}

/// A topic and one of its partitions.
type Place = (TopicName, i32);

/// What became of each partition.
type Results = BTreeMap<Place, Result<Outcome, Error>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    token: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow)]
    through: Option<&'a RawValue>,
    records: Option<Vec<Named>>,
    reason: Option<String>,
    #[serde(borrow)]
    lease_ms: Option<&'a RawValue>,
}

/// One of `records`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    topic: Option<String>,
    partition: i32,
    offset: i64,
}

impl Ask {
    fn read(body: &[u8]) -> Result<Self, Error> {
        let body: Body<'_> = record::body(body)?;
        let missing = |name: &str| Error::new(Code::MissingParameter, format!("{name}: is required"));
        let invalid = |problem: &'static str| Error::new(Code::InvalidParameter, problem);
        let token = Token::parse(&body.token.ok_or_else(|| missing("token"))?)?;
        let word = body.kind.ok_or_else(|| missing("type"))?;
        let kind = one_of("type", Some(&word), Type::WORDS)?;
        if body.through.is_some() && kind != Type::Accept {
            return Err(invalid("through: goes with accept only"));
        }
        if body.lease_ms.is_some() && kind != Type::Renew {
            return Err(invalid("lease_ms: goes with renew only"));
        }
        if (body.records.is_some() || body.reason.is_some()) && kind != Type::Reject {
            return Err(invalid("records and reason: go with reject only"));
        }
        let reason = body.reason.unwrap_or_default();
        if reason.len() > MESSAGE_BYTES {
            return Err(invalid("reason: must be at most 1024 bytes long"));
        }
        let records = body.records.map(|named| records(&token, named)).transpose()?;
        let through = body.through.map(|json| through(&token, json.get())).transpose()?;
        let lease_ms = match body.lease_ms {
            None => LEASE_MS.1,
            Some(json) => serde_json::from_str(json.get())
                .ok()
                .filter(|lease_ms| (LEASE_MS.0..=LEASE_MS.2).contains(lease_ms))
                .ok_or_else(|| invalid("lease_ms: must be a whole number from 1000 to 600000"))?,
        };
        Ok(Self { token, kind, through, records, reason, lease_ms })
    }

    /// What is to be done in a partition; nothing, if `through` or `records` leave it out.
    fn intent(&self, place: &Place, holder: &Holder) -> Option<Intent> {
        let holder = holder.clone();
        Some(match (self.kind, &self.through) {
            (Type::Accept, None) => Intent::Accept { holder, before: None },
            (Type::Accept, Some(through)) => Intent::Accept { holder, before: Some(through.get(place)? + 1) },
            (Type::Release, _) => Intent::Release { holder },
            (Type::Reject, _) => {
                let records = match &self.records {
                    Some(records) => Some(records.get(place)?.iter().copied().collect()),
                    None => None,
                };
                Intent::Reject { holder, records, there: Vec::new(), reason: self.reason.clone() }
            }
            (Type::Renew, _) => Intent::Renew { holder, lease_ms: self.lease_ms },
        })
    }

    /// What was decided in a partition, as far as the lease is concerned.
    fn outcome(&self, decided: Decided) -> Result<Outcome, Error> {
        match decided {
            Decided::Committed { mark, gone } => Ok(match mark.lease {
                Some(lease) if self.kind == Type::Renew => Outcome::Renewed(mark.offset, lease.until),
                _ => Outcome::Done { committed: Some(mark.offset), gone },
            }),
            Decided::Refused(Verdict::Already, position) => {
                Ok(Outcome::Done { committed: position.committed, gone: Vec::new() })
            }
            Decided::Refused(Verdict::Settled, position) => Ok(Outcome::Settled(position.committed)),
            Decided::Refused(Verdict::NotTheirs, _) => {
                Err(Error::new(Code::Forbidden, "The lease was given to another principal"))
            }
            Decided::Refused(Verdict::BeyondLease, _) if self.kind == Type::Reject => {
                let detail = "records: an offset is not part of the lease, or not any more";
                Err(Error::new(Code::InvalidParameter, detail))
            }
            Decided::Refused(Verdict::BeyondLease, _) => {
                Err(Error::new(Code::InvalidParameter, "through: an offset lies beyond the lease"))
            }
            Decided::Refused(Verdict::TooScattered, _) => {
                let detail = "records: too many that do not lie together; accept or reject what lies before them first";
                Err(Error::new(Code::InvalidParameter, detail))
            }
            Decided::Refused(_, position) => Ok(Outcome::Lost(position.committed)),
        }
    }

    fn answer(&self, results: Results) -> Result<Reply, Error> {
        let mut worst: Option<Error> = None;
        let mut until = None::<u64>;
        let mut listed = Vec::new();
        for ((topic, partition), result) in results {
            let mut gone = Vec::new();
            let (status, committed) = match result {
                Ok(Outcome::Done { committed, gone: those }) => {
                    gone = those;
                    (self.kind.done(), committed)
                }
                Ok(Outcome::Renewed(committed, lease_until)) => {
                    until = Some(until.map_or(lease_until, |until| until.min(lease_until)));
                    (self.kind.done(), Some(committed))
                }
                Ok(Outcome::Settled(committed)) => ("settled", committed),
                Ok(Outcome::Lost(committed)) => {
                    let detail = match self.kind {
                        Type::Reject => {
                            "The lease is over: its records were accepted or released, or it expired and others took \
                             them, or the position was reset"
                        }
                        _ => "The lease is over: it expired and others took its records, or the position was reset",
                    };
                    worst.get_or_insert_with(|| Error::new(Code::LeaseLost, detail));
                    ("lost", committed)
                }
                Err(error) => {
                    let undecided = error.code() == Code::DeadlineExceeded;
                    // What stopped a partition outweighs what is lost in another, and what may be tried again outweighs
                    // what may not: it says what to do.
                    if worst.as_ref().is_none_or(|worst| !worst.code().retryable()) {
                        worst = Some(error);
                    }
                    (if undecided { "undecided" } else { "failed" }, None)
                }
            };
            metrics::lease(status, 1);
            let mut entry = json!({
                "topic": topic.as_str(),
                "partition": partition,
                "status": status,
                "committed": committed,
            });
            if !gone.is_empty() {
                entry["gone"] = json!(gone);
            }
            listed.push(entry);
        }
        if self.kind == Type::Renew && until.is_none() {
            let detail = "The lease is over: all of its records were accepted or rejected";
            worst.get_or_insert_with(|| Error::new(Code::LeaseLost, detail));
        }
        let lease = until.map(|until| json!({ "token": self.token.encode(), "expires_at": until }));
        if let Some(error) = worst {
            let error = error.with("results", listed);
            return Err(match lease {
                Some(lease) => error.with("lease", lease),
                None => error,
            });
        }
        let mut body = json!({ "results": listed });
        if let Some(lease) = lease {
            body["lease"] = lease;
        }
        Ok(Reply::json(200, body.to_string()))
    }
}

/// How it went in one partition; with the position, as far as it is known.
#[derive(Debug)]
enum Outcome {
    Done {
        committed: Option<i64>,
        /// Records that were to be rejected, and are there no more.
        gone: Vec<i64>,
    },
    Renewed(i64, u64),
    /// Nothing was left to release or to renew: all records were accepted or rejected before.
    Settled(Option<i64>),
    Lost(Option<i64>),
}

/// Reads `records`. A topic is named where the lease is of several.
fn records(token: &Token, named: Vec<Named>) -> Result<BTreeMap<Place, BTreeSet<i64>>, Error> {
    let invalid = |problem: &'static str| Error::new(Code::InvalidParameter, problem);
    if named.is_empty() {
        return Err(invalid("records: names no record; leave it out to reject all of the lease"));
    }
    let mut records = BTreeMap::<_, BTreeSet<_>>::new();
    for Named { topic, partition, offset } in named {
        let topic = match &topic {
            None => {
                token.only_topic().ok_or_else(|| invalid("records: topic is required, as the lease is of several"))?
            }
            Some(name) => {
                let known = token.places.keys().find(|topic| topic.as_str() == name);
                known.ok_or_else(|| invalid("records: names a topic that is not of this lease"))?
            }
        };
        if !token.places[topic].contains(&partition) || offset < 0 || offset == i64::MAX {
            return Err(invalid("records: must give offsets of the lease's own partitions"));
        }
        records.entry((topic.clone(), partition)).or_default().insert(offset);
    }
    Ok(records)
}

/// Reads `through`: `{"<partition>": offset}`, or by topic `{"<topic>": {"<partition>": offset}}`, as a lease of several
/// topics needs it.
fn through(token: &Token, json: &str) -> Result<BTreeMap<Place, i64>, Error> {
    let invalid = |problem: &'static str| Error::new(Code::InvalidParameter, problem);
    let flat: Option<Once<i32, i64>> = serde_json::from_str(json).ok();
    let by_topic = if let (Some(Once(offsets)), Some(topic)) = (flat, token.only_topic()) {
        BTreeMap::from([(topic, offsets)])
    } else {
        let shape = "through: must be {\"<partition>\": offset}, or {\"<topic>\": {\"<partition>\": offset}} where the lease \
                     is of several topics, each of them once";
        let Once(named): Once<String, Once<i32, i64>> = serde_json::from_str(json).map_err(|_| invalid(shape))?;
        let of = |(name, Once(offsets)): (String, _)| {
            Some((token.places.keys().find(|topic| topic.as_str() == name)?, offsets))
        };
        let known: Option<BTreeMap<_, _>> = named.into_iter().map(of).collect();
        known.ok_or_else(|| invalid("through: names a topic that is not of this lease"))?
    };
    let mut through = BTreeMap::new();
    for (topic, offsets) in by_topic {
        for (partition, offset) in offsets {
            if !token.places[topic].contains(&partition) || offset < 0 || offset == i64::MAX {
                return Err(invalid("through: must give offsets of the lease's own partitions"));
            }
            through.insert((topic.clone(), partition), offset);
        }
    }
    if through.is_empty() {
        return Err(invalid("through: names no partition; leave it out to accept all of the lease"));
    }
    Ok(through)
}

impl Acknowledge {
    /// Takes the step in every partition of the lease, side by side. A topic that the caller may not use any more stops
    /// only itself.
    async fn settle(&self, may: &May<Read>, ask: &Ask, deadline: Deadline) -> Result<Results, Error> {
        let holder = ask.token.holder(may.principal().id());
        let allow = |topic: &TopicName| may.on((topic.clone(), ask.token.group.clone()));
        let any = ask.token.places.keys().map(allow).reduce(Result::or);
        let any = any.unwrap_or_else(|| Err(Error::internal("a token of no topic")))?;
        if ask.kind == Type::Reject {
            let rejects = |topic: &&TopicName| {
                ask.records.as_ref().is_none_or(|records| records.keys().any(|(named, _)| named == *topic))
            };
            let mut topics = ask.token.places.keys().filter(rejects);
            if let Some(none) = topics.find(|topic| self.consumers.dead_letters.topic_of(topic).is_none()) {
                return Err(dlq::no_dead_letters().with("topic", none.as_str()));
            }
        }
        let group = self.consumers.group(&any, deadline).await?;
        let (mut results, mut steps) = (Results::new(), Vec::new());
        for (topic, partitions) in &ask.token.places {
            for &partition in partitions {
                let place = (topic.clone(), partition);
                let Some(intent) = ask.intent(&place, &holder) else { continue };
                match allow(topic) {
                    Ok(from) => steps.push((from, partition, intent)),
                    Err(refusal) => {
                        results.insert(place, Err(refusal));
                    }
                }
            }
        }
        let decided = self.consumers.step_each(&group, steps, deadline).await?;
        results.extend(decided.into_iter().map(|(place, decided)| (place, decided.and_then(|it| ask.outcome(it)))));
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::GroupId;

    #[test]
    fn records_are_named_with_their_topic_where_there_are_several() {
        let read = |topics: &[&str], json: &str| {
            let places = topics.iter().map(|topic| (TopicName::parse(topic).expect("legal"), 0));
            let token = Token::new(&GroupId::parse("g").expect("legal")).of(places).encode();
            let ask =
                Ask::read(format!(r#"{{"token": "{token}", {json}}}"#).as_bytes()).map_err(|error| error.code())?;
            let all = |records: BTreeMap<Place, BTreeSet<i64>>| {
                records
                    .into_iter()
                    .map(|((topic, partition), offsets)| format!("{topic}/{partition}: {offsets:?}"))
                    .collect()
            };
            Ok(ask.records.map(all))
        };
        let ok = |records: &[&str]| Ok(Some(records.iter().map(ToString::to_string).collect::<Vec<_>>()));
        let reject = |records: &str| format!(r#""type": "reject", "records": {records}"#);
        let (one, named) = (r#"{"partition": 0, "offset": 7}"#, r#"{"topic": "a", "partition": 0, "offset": 5}"#);
        assert_eq!(read(&["a"], r#""type": "reject", "reason": "why""#), Ok(None));
        assert_eq!(read(&["a"], &reject(&format!("[{one}, {named}, {one}]"))), ok(&["a/0: {5, 7}"]));
        assert_eq!(read(&["a", "b"], &reject(&format!("[{named}]"))), ok(&["a/0: {5}"]));
        let long = format!(r#""type": "reject", "reason": "{}""#, "x".repeat(1025));
        for (topics, json) in [
            (&["a", "b"][..], reject(&format!("[{one}]"))),
            (&["b"], reject(&format!("[{named}]"))),
            (&["a"], reject("[]")),
            (&["a"], reject(r#"[{"partition": 1, "offset": 7}]"#)),
            (&["a"], reject(r#"[{"partition": 0, "offset": -1}]"#)),
            (&["a"], reject(r#"[{"partition": 0}]"#)),
            (&["a"], reject(r#"[{"partition": 0, "offset": 7, "more": 1}]"#)),
            (&["a"], format!(r#""type": "accept", "records": [{one}]"#)),
            (&["a"], r#""type": "accept", "reason": "why""#.to_owned()),
            (&["a"], long),
        ] {
            assert_eq!(read(topics, &json), Err(Code::InvalidParameter), "{json}");
        }
    }

    #[test]
    fn through_is_by_partition_or_by_topic_and_partition() {
        let read = |topics: &[&str], json: &str| {
            let places = topics
                .iter()
                .flat_map(|topic| [0, 1].map(|partition| (TopicName::parse(topic).expect("legal"), partition)));
            let token = Token::new(&GroupId::parse("g").expect("legal")).of(places);
            let through = through(&token, json).map_err(|error| error.code())?;
            Ok(through.into_iter().map(|((topic, partition), at)| format!("{topic}/{partition}: {at}")).collect())
        };
        let ok = |through: &[&str]| Ok(through.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(read(&["0"], r#"{"1": 7}"#), ok(&["0/1: 7"]));
        assert_eq!(read(&["0"], r#"{"0": {"1": 7}}"#), ok(&["0/1: 7"]), "a topic's name may look like a partition");
        assert_eq!(read(&["0", "a"], r#"{"a": {"1": 7}, "0": {"0": 0}}"#), ok(&["0/0: 0", "a/1: 7"]));
        for (topics, json) in [
            (&["0", "a"][..], r#"{"0": 7}"#),
            (&["0"], r#"{"2": 7}"#),
            (&["0", "a"], r#"{"b": {"0": 7}}"#),
            (&["0", "a"], r#"{"a": {"2": 7}}"#),
            (&["0"], r#"{"0": -1}"#),
            (&["0"], r#"{"0": 9223372036854775807}"#),
            (&["0"], r#"{"0": "7"}"#),
            (&["0"], "[7]"),
            (&["0"], "{}"),
            (&["0", "a"], r#"{"a": {}}"#),
            (&["0"], r#"{"0": 7, "0": 8}"#),
            (&["0", "a"], r#"{"a": {"0": 7}, "a": {"1": 7}}"#),
        ] {
            assert_eq!(read(topics, json), Err(Code::InvalidParameter), "{json}");
        }
    }
}
