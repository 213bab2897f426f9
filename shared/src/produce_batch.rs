//! `POST /kafka/producer/produce/batch`: up to 1000 records over any topics, each with a result of its own.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::auth::{May, Write};
use crate::cloud_event::{self, Mode};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::{Call, Endpoint, Reply, Route, problem};
use crate::incoming::{self, Incoming};
use crate::kafka::producer::{Receipt, Sending};
use crate::kafka::transaction::Transactions;
use crate::names::TopicName;
use crate::record;
use crate::telemetry;
use crate::writer::{Wanted, Writer};

/// The most records of a batch.
const MAX_RECORDS: usize = 1000;

/// The most bytes of a record's `id`, as it was sent, without its quotes: it comes back in the answer, which has a limit too.
const MAX_ID_BYTES: usize = 256;

/// The most bytes that the answer spends on mismatches with schemas, beyond the first one of each record. An answer that
/// is too large is lost, with what it says of the records that were written.
const MISMATCH_BYTES: usize = 2_000_000;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct ProduceBatch {
    writer: Writer,
    transactions: Transactions,
}

impl Endpoint for ProduceBatch {
    const FUNCTION: &'static str = "produce-batch";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/producer/produce/batch")];
    const SCHEMAS: bool = true;
    type Permission = May<Write>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        let (writer, transactions) =
            (Writer::start(config, Sending::Together).await?, Transactions::new(&config.kafka));
        Ok(Self { writer, transactions })
    }

    async fn call(&self, may: &May<Write>, call: &Call) -> Result<Reply, Error> {
        let request = &call.request;
        let topic = match Mode::of(request)? {
            None => {
                request.query(&[])?;
                None
            }
            Some(Mode::Batched) => Some(cloud_event::topic(request)?),
            Some(Mode::Binary | Mode::Structured) => {
                let detail = "A single event goes to POST /kafka/producer/produce; a batch of them is \
                     application/cloudevents-batch+json";
                return Err(Error::new(Code::UnsupportedMediaType, detail));
            }
        };
        let body = request.json_body()?;
        let batch = match topic {
            None => Batch::read(&body)?,
            Some(topic) => Batch::of_events(&body, topic)?,
        };
        let read = batch.records.iter().map(|json| read(json, &batch, may));
        let (ids, wanted): (Vec<_>, Vec<_>) = read.unzip();
        let only = only_topic(&wanted);
        if let Some(topic) = &only {
            call.on_topic(topic);
        }
        let results = if batch.atomic {
            self.writer.write_atomically(&self.transactions, &wanted, call).await
        } else {
            self.writer.write(&wanted, call).await
        };
        if only.is_some_and(|topic| self.writer.knows(&topic)) {
            call.topic_exists();
        }
        answer(&ids, &wanted, &results, batch.atomic)
    }

    async fn stop(&self) {
        self.writer.stop().await;
    }
}

/// A request's body.
struct Batch<'a> {
    /// Of the records that name none.
    topic: Option<TopicName>,
    /// All or none.
    atomic: bool,
    /// Whether the records are events in structured mode.
    events: bool,
    records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "Records: Deserialize<'de>"))]
struct Members<'a, Records> {
    #[serde(borrow, default, deserialize_with = "record::present")]
    topic: Option<&'a RawValue>,
    #[serde(borrow, default)]
    atomic: Option<&'a RawValue>,
    #[serde(default = "Option::default")]
    records: Option<Records>,
}

impl<'a> Batch<'a> {
    fn read(json: &'a [u8]) -> Result<Self, Error> {
        let members = record::body(json).map_err(|error| match record::body::<Members<'_, &RawValue>>(json) {
            // It is only the records that are not as they should be.
            Ok(_) => not_records(),
            Err(_) => error,
        });
        let members: Members<'_, Vec<&RawValue>> = members?;
        let topic = members.topic.map(incoming::parse_topic).transpose()?;
        let atomic = match members.atomic.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Error::new(Code::InvalidParameter, "atomic: must be true or false")),
        };
        let records = members.records.ok_or_else(|| Error::new(Code::MissingParameter, "records: is required"))?;
        Ok(Self { topic, atomic, events: false, records: as_many_as_allowed(records)? })
    }

    fn of_events(json: &'a [u8], topic: TopicName) -> Result<Self, Error> {
        let records = serde_json::from_str(record::json(json)?.get()).map_err(|_| not_records())?;
        Ok(Self { topic: Some(topic), atomic: false, events: true, records: as_many_as_allowed(records)? })
    }
}

fn as_many_as_allowed(records: Vec<&RawValue>) -> Result<Vec<&RawValue>, Error> {
    if (1..=MAX_RECORDS).contains(&records.len()) { Ok(records) } else { Err(not_records()) }
}

fn not_records() -> Error {
    let detail =
        format!("records: must be an array of 1 to {MAX_RECORDS} records; Lambda takes requests of 6 MB at the most");
    Error::new(Code::InvalidParameter, detail)
}

/// A record's `id`, and the record, if it is well-formed and its caller may write it.
fn read<'a>(
    json: &'a RawValue,
    batch: &Batch<'_>,
    may: &May<Write>,
) -> (Option<&'a RawValue>, Result<Wanted<'a>, Error>) {
    let (id, read) = match &batch.topic {
        Some(topic) if batch.events => (incoming::id(json), cloud_event::structured(json, topic.clone())),
        default => Incoming::read_in_batch(json, default.as_ref()),
    };
    if id.is_some_and(|id| !is_legal(id.get())) {
        let detail =
            format!("id: must be a string or a number that a double can hold, of at most {MAX_ID_BYTES} bytes");
        return (None, Err(Error::new(Code::InvalidParameter, detail)));
    }
    (id, read.and_then(|incoming| Ok((may.on(incoming.topic().clone())?, incoming))))
}

/// Whether an `id` can come back wherever the answer has it: JSON's grammar allows text and numbers that are none, and a whole
/// number of more than 64 bits would be another one there. A decimal is the same double.
fn is_legal(id: &str) -> bool {
    match serde_json::from_str(id) {
        Ok(Value::String(_)) => id.len() <= MAX_ID_BYTES + 2,
        Ok(Value::Number(number)) => {
            id.len() <= MAX_ID_BYTES && (!number.is_f64() || id == "-0" || id.contains(['.', 'e', 'E']))
        }
        _ => false,
    }
}

/// The topic of all the records that have one, if it is the same.
fn only_topic(wanted: &[Result<Wanted<'_>, Error>]) -> Option<TopicName> {
    let mut topics = wanted.iter().flatten().map(|(to, _)| to.topic());
    let first = topics.next()?;
    topics.all(|topic| topic == first).then(|| first.clone())
}

/// One of the answer's results.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Written {
        index: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        status: u16,
        topic: &'a str,
        partition: i32,
        offset: i64,
        timestamp: i64,
    },
    Failed {
        index: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        #[serde(flatten)]
        problem: Map<String, Value>,
    },
}

/// 200 where all records were written; where all failed for one reason, that error, and of an atomic batch the error of
/// the first record at fault; otherwise 207.
fn answer(
    ids: &[Option<&RawValue>],
    wanted: &[Result<Wanted<'_>, Error>],
    results: &[Result<Receipt, Error>],
    atomic: bool,
) -> Result<Reply, Error> {
    let mut left = MISMATCH_BYTES;
    let item = |(index, result): (usize, &Result<Receipt, Error>)| match (&wanted[index], result) {
        (Ok((to, _)), &Ok(Receipt { partition, offset, timestamp })) => Item::Written {
            index,
            id: ids[index],
            status: 200,
            topic: to.topic().as_str(),
            partition,
            offset,
            timestamp,
        },
        (Err(error), _) | (_, Err(error)) => {
            Item::Failed { index, id: ids[index], problem: brief(problem::members(error), &mut left) }
        }
    };
    let items: Vec<Item<'_>> = results.iter().enumerate().map(item).collect();
    let errors: Vec<&Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let none = errors.len() == results.len();
    let first = errors.iter().copied().find(|error| error.code() != Code::TransactionAborted);
    match first {
        Some(first) if none && (atomic || errors.iter().all(|error| error.code() == first.code())) => {
            let results = serde_json::to_value(items).map_err(Error::internal)?;
            let says = |outcome: &str| {
                errors.iter().any(|error| error.members().get("outcome").is_some_and(|said| said == outcome))
            };
            // Whatever else went wrong in an atomic batch did so before its commit.
            let unavailable = atomic && matches!(first.code().status(), 503 | 504);
            let (outcome, lead) = if says("unknown") {
                (Some("unknown"), "It is not known whether records were written")
            } else {
                ((unavailable || says("aborted")).then_some("aborted"), "No record was written")
            };
            let error = Error::new(first.code(), format!("{lead}. {}", first.detail()));
            let error = error.source(first.clone()).with("results", results);
            Err(match outcome {
                Some(outcome) => error.with("outcome", outcome),
                None => error,
            })
        }
        first => {
            telemetry::records_failed(&errors);
            let status = if first.is_some() { 207 } else { 200 };
            let body = serde_json::to_string(&Body { results: items }).map_err(Error::internal)?;
            Ok(Reply::json(status, body))
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    results: Vec<Item<'a>>,
}

/// What does not fit its schema, in full only as long as there are bytes `left` for it: then the first mismatch alone.
fn brief(mut members: Map<String, Value>, left: &mut usize) -> Map<String, Value> {
    if let Some(Value::Array(errors)) = members.get_mut("errors") {
        // The body is a string in the answer to Lambda.
        let weight = Value::String(Value::Array(errors.clone()).to_string()).to_string().len();
        match left.checked_sub(weight) {
            Some(rest) => *left = rest,
            None => errors.truncate(1),
        }
    }
    members
}
