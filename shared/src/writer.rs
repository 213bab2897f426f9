//! The way of records into Kafka, one for `produce` and for batches: encoded, or kept as dead letters where they do not
//! fit; written; counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};

use crate::auth::{Authorized, Write};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::http::Call;
use crate::http::request::Request;
use crate::incoming::Incoming;
use crate::kafka::producer::{NewRecord, Producer, Receipt, Sending};
use crate::kafka::transaction::{Aborted, Transactions};
use crate::metrics::{self, Direction};
use crate::names::TopicName;
use crate::on_invalid::OnInvalid;
use crate::schema::Schemas;

/// How many records are encoded at the same time, which matters where the schema registry is waited for.
const ABREAST: usize = 16;

/// A record, and that the caller may write it.
pub type Wanted<'a> = (Authorized<Write>, Incoming<'a>);

/// The records of one topic, and their places among all.
struct OfTopic<'a> {
    to: &'a Authorized<Write>,
    places: Vec<usize>,
    records: Vec<&'a NewRecord>,
}

/// What a warm sandbox keeps for writing.
#[derive(Debug)]
pub struct Writer {
    producer: Producer,
    schemas: Schemas,
    on_invalid: OnInvalid,
}

impl Writer {
    /// Makes the producer. Runs in Lambda's init phase.
    pub async fn start(config: &Config, sending: Sending) -> Result<Self, BoxError> {
        Ok(Self {
            producer: Producer::start(&config.kafka, sending, config.request_timeout).await?,
            schemas: Schemas::to_write(&config.schemas),
            on_invalid: OnInvalid::new(config),
        })
    }

    /// Writes each record for itself, and those of a topic in their order: what became of each. What cannot be written
    /// stays the error that it is.
    pub async fn write(&self, wanted: &[Result<Wanted<'_>, Error>], call: &Call) -> Vec<Result<Receipt, Error>> {
        let encoded = self.encode(wanted, call).await;
        let topics = by_topic(wanted, &encoded);
        let unqueued = AtomicUsize::new(topics.len());
        let queued = || {
            if unqueued.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.producer.hurry(call.deadline);
            }
        };
        // A topic that makes its records wait makes no others wait.
        let written = join_all(topics.into_iter().map(async |OfTopic { to, places, records }| {
            let results = self.producer.produce(to, &records, call.deadline, queued).await;
            self.count(to.topic(), records.into_iter().zip(&results));
            places.into_iter().zip(results).collect::<Vec<_>>()
        }));
        let mut results: Vec<Option<_>> = encoded.iter().map(|_| None).collect();
        for (place, result) in written.await.into_iter().flatten() {
            results[place] = Some(result);
        }
        let result = |(encoded, result): (Result<NewRecord, Error>, Option<_>)| {
            let result = encoded.and_then(|_| result.unwrap_or_else(|| Err(Error::internal("nothing was said of it"))));
            result.map_err(outcome)
        };
        encoded.into_iter().zip(results).map(result).collect()
    }

    /// Writes all records in one transaction: all or none. What is wrong with one of them is its result, and then the
    /// others' is [`Code::TransactionAborted`]. What hinders them all is the result of each.
    pub async fn write_atomically(
        &self,
        transactions: &Transactions,
        wanted: &[Result<Wanted<'_>, Error>],
        call: &Call,
    ) -> Vec<Result<Receipt, Error>> {
        let encoded = self.encode(wanted, call).await;
        let topics = by_topic(wanted, &encoded);
        let checked = join_all(topics.iter().map(async |OfTopic { to, places, records }| {
            places.iter().copied().zip(self.producer.check(to, records, call.deadline).await).collect::<Vec<_>>()
        }));
        let checked = checked.await.into_iter().flatten().filter_map(|(place, result)| Some((place, result.err()?)));
        let refused = encoded.iter().enumerate().filter_map(|(place, record)| Some((place, record.as_ref().err()?)));
        let mut faults: HashMap<usize, Error> = refused.map(|(place, error)| (place, error.clone())).collect();
        faults.extend(checked);
        let mut of_all = None;
        let mut receipts = Vec::new();
        if faults.is_empty() {
            let records = wanted.iter().flatten().map(|(to, _)| to).zip(encoded.iter().flatten());
            match transactions.write(&records.collect::<Vec<_>>(), call.deadline).await {
                Ok(written) => receipts = written,
                Err(Aborted { at: Some(place), error }) => drop(faults.insert(place, error)),
                Err(Aborted { at: None, error }) => of_all = Some(error),
            }
        }
        let result = |place| match receipts.get(place) {
            Some(receipt) => Ok(*receipt),
            None => Err(faults.remove(&place).or_else(|| of_all.clone()).unwrap_or_else(aborted)),
        };
        let results: Vec<_> = (0..wanted.len()).map(result).collect();
        for OfTopic { to, places, records } in topics {
            let results = places.iter().map(|place| &results[*place]);
            self.count(to.topic(), records.into_iter().zip(results));
        }
        results
    }

    /// Whether the topic was seen to exist.
    pub fn knows(&self, topic: &TopicName) -> bool {
        self.producer.knows(topic)
    }

    /// Sends what is still on its way, at SIGTERM.
    pub async fn stop(&self) {
        self.producer.flush(std::time::Duration::from_millis(220)).await;
    }

    async fn encode(&self, wanted: &[Result<Wanted<'_>, Error>], call: &Call) -> Vec<Result<NewRecord, Error>> {
        let plain = |(_, incoming): &Wanted<'_>| !incoming.concerns(&self.schemas);
        if wanted.iter().flatten().all(plain) {
            let encode = |wanted: &Result<Wanted<'_>, Error>| match wanted {
                Ok((_, incoming)) => incoming.as_sent(&call.request),
                Err(error) => Err(error.clone()),
            };
            return wanted.iter().map(encode).collect();
        }
        // What the registry is slow to say of one record leaves half of the time to the others.
        let deadline = call.deadline.within(call.deadline.left() / 2);
        let mut encoding = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            encoding.push(self.encode_one(wanted, &call.request, deadline).boxed());
        }
        stream::iter(encoding).buffered(ABREAST).collect().await
    }

    async fn encode_one(
        &self,
        wanted: &Result<Wanted<'_>, Error>,
        request: &Request,
        deadline: Deadline,
    ) -> Result<NewRecord, Error> {
        let (to, incoming) = wanted.as_ref().map_err(Clone::clone)?;
        match incoming.encode(&self.schemas, request, deadline).await {
            Err(error) if error.code() == Code::SchemaValidationFailed => {
                let sent = incoming.as_sent(request)?;
                Err(self.on_invalid.keep(&self.producer, to, sent, error, deadline).await)
            }
            encoded => encoded,
        }
    }

    /// Only what is meant for a topic that exists.
    fn count<'a>(&self, topic: &TopicName, results: impl Iterator<Item = (&'a NewRecord, &'a Result<Receipt, Error>)>) {
        if !self.producer.knows(topic) {
            return;
        }
        let (mut passed, mut bytes, mut failed) = (0, 0, 0);
        for (record, result) in results {
            if result.is_ok() {
                passed += 1;
                bytes += record.bytes();
            } else {
                failed += 1;
            }
        }
        if passed > 0 {
            metrics::records_passed(Direction::Produce, topic, passed, bytes);
        }
        if failed > 0 {
            metrics::records_failed(Direction::Produce, topic, failed);
        }
    }
}

/// What can be written, topic by topic.
fn by_topic<'a>(wanted: &'a [Result<Wanted<'_>, Error>], encoded: &'a [Result<NewRecord, Error>]) -> Vec<OfTopic<'a>> {
    let mut topics: BTreeMap<&TopicName, OfTopic<'_>> = BTreeMap::new();
    for (place, record) in encoded.iter().enumerate() {
        if let (Ok((to, _)), Ok(record)) = (&wanted[place], record) {
            let of_topic = topics.entry(to.topic());
            let of_topic = of_topic.or_insert_with(|| OfTopic { to, places: Vec::new(), records: Vec::new() });
            of_topic.places.push(place);
            of_topic.records.push(record);
        }
    }
    topics.into_values().collect()
}

/// What becomes of a record says every 504, also where the time ran out before the record was sent.
fn outcome(error: Error) -> Error {
    let open = error.code() == Code::DeadlineExceeded && !error.members().contains_key("outcome");
    if open { error.with("outcome", "unknown") } else { error }
}

fn aborted() -> Error {
    Error::new(Code::TransactionAborted, "Another record of the batch failed, so none was written")
}
