//! `POST /kafka/consumer/acknowledge`: settles a lease that a consume call with `ack=manual` has given.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::auth::{May, Read};
use crate::config::Config;
use crate::consume::LEASE_MS;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::http::request::one_of;
use crate::http::{Call, Endpoint, Reply, Route};
use crate::kafka::consumers::{Consumers, Decided};
use crate::kafka::decide::{Intent, Verdict};
use crate::kafka::position::Holder;
use crate::lease::Token;
use crate::metrics;
use crate::names::TopicName;
use crate::record;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Acknowledge {
    consumers: Arc<Consumers>,
}

impl Endpoint for Acknowledge {
    const FUNCTION: &'static str = "acknowledge";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/consumer/acknowledge")];
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
        if results.values().any(|result| matches!(result, Ok(Outcome::Done(_) | Outcome::Renewed(..)))) {
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
    Renew,
}

impl Type {
    const WORDS: &[(&str, Self)] = &[("accept", Self::Accept), ("release", Self::Release), ("renew", Self::Renew)];

    const fn done(self) -> &'static str {
        match self {
            Self::Accept => "accepted",
            Self::Release => "released",
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
    #[serde(borrow)]
    lease_ms: Option<&'a RawValue>,
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
        let through = body.through.map(|json| through(&token, json.get())).transpose()?;
        let lease_ms = match body.lease_ms {
            None => LEASE_MS.1,
            Some(json) => serde_json::from_str(json.get())
                .ok()
                .filter(|lease_ms| (LEASE_MS.0..=LEASE_MS.2).contains(lease_ms))
                .ok_or_else(|| invalid("lease_ms: must be a whole number from 1000 to 600000"))?,
        };
        Ok(Self { token, kind, through, lease_ms })
    }

    /// What is to be done in a partition; nothing, if `through` leaves it out.
    fn intent(&self, place: &Place, holder: &Holder) -> Option<Intent> {
        let holder = holder.clone();
        Some(match (self.kind, &self.through) {
            (Type::Accept, None) => Intent::Accept { holder, before: None },
            (Type::Accept, Some(through)) => Intent::Accept { holder, before: Some(through.get(place)? + 1) },
            (Type::Release, _) => Intent::Release { holder },
            (Type::Renew, _) => Intent::Renew { holder, lease_ms: self.lease_ms },
        })
    }

    /// What was decided in a partition, as far as the lease is concerned.
    fn outcome(&self, decided: Decided) -> Result<Outcome, Error> {
        match decided {
            Decided::Committed(mark) => Ok(match mark.lease {
                Some(lease) if self.kind == Type::Renew => Outcome::Renewed(mark.offset, lease.until),
                _ => Outcome::Done(Some(mark.offset)),
            }),
            Decided::Refused(Verdict::Already, position) => Ok(Outcome::Done(position.committed)),
            Decided::Refused(Verdict::NotTheirs, _) => {
                Err(Error::new(Code::Forbidden, "The lease was given to another principal"))
            }
            Decided::Refused(Verdict::BeyondLease, _) => {
                Err(Error::new(Code::InvalidParameter, "through: an offset lies beyond the lease"))
            }
            Decided::Refused(_, position) => Ok(Outcome::Lost(position.committed)),
        }
    }

    fn answer(&self, results: Results) -> Result<Reply, Error> {
        let mut worst: Option<Error> = None;
        let mut until = u64::MAX;
        let mut listed = Vec::new();
        for ((topic, partition), result) in results {
            let (status, committed) = match result {
                Ok(Outcome::Done(committed)) => (self.kind.done(), committed),
                Ok(Outcome::Renewed(committed, lease_until)) => {
                    until = until.min(lease_until);
                    (self.kind.done(), Some(committed))
                }
                Ok(Outcome::Lost(committed)) => {
                    let detail = "The lease is over: it expired and others took its records, or the position was reset";
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
            listed.push(json!({
                "topic": topic.as_str(),
                "partition": partition,
                "status": status,
                "committed": committed,
            }));
        }
        if let Some(error) = worst {
            return Err(error.with("results", listed));
        }
        let mut body = json!({ "results": listed });
        if self.kind == Type::Renew {
            body["lease"] = json!({ "token": self.token.encode(), "expires_at": until });
        }
        Ok(Reply::json(200, body.to_string()))
    }
}

/// How it went in one partition; with the position, as far as it is known.
#[derive(Debug)]
enum Outcome {
    Done(Option<i64>),
    Renewed(i64, u64),
    Lost(Option<i64>),
}

/// Reads `through`: `{"<partition>": offset}`, or by topic `{"<topic>": {"<partition>": offset}}`, as a lease of several
/// topics needs it.
fn through(token: &Token, json: &str) -> Result<BTreeMap<Place, i64>, Error> {
    let invalid = |problem: &'static str| Error::new(Code::InvalidParameter, problem);
    let flat: Option<BTreeMap<i32, i64>> = serde_json::from_str(json).ok();
    let by_topic = if let (Some(offsets), Some(topic)) = (flat, token.only_topic()) {
        BTreeMap::from([(topic, offsets)])
    } else {
        let shape = "through: must be {\"<partition>\": offset}, or {\"<topic>\": {\"<partition>\": offset}} where the lease \
                     is of several topics";
        let named: BTreeMap<String, BTreeMap<i32, i64>> = serde_json::from_str(json).map_err(|_| invalid(shape))?;
        let of =
            |(name, offsets): (String, _)| Some((token.places.keys().find(|topic| topic.as_str() == name)?, offsets));
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
        assert_eq!(read(&["0", "a"], "{}"), ok(&[]));
        for (topics, json) in [
            (&["0", "a"][..], r#"{"0": 7}"#),
            (&["0"], r#"{"2": 7}"#),
            (&["0", "a"], r#"{"b": {"0": 7}}"#),
            (&["0", "a"], r#"{"a": {"2": 7}}"#),
            (&["0"], r#"{"0": -1}"#),
            (&["0"], r#"{"0": 9223372036854775807}"#),
            (&["0"], r#"{"0": "7"}"#),
            (&["0"], "[7]"),
        ] {
            assert_eq!(read(topics, json), Err(Code::InvalidParameter), "{json}");
        }
    }
}
