//! All or none: records written in one Kafka transaction (KIP-98).
//!
//! The producer has a transactional id of its sandbox's own, so that nobody else's transaction is in its way, and nobody
//! fences it: a transaction that the sandbox leaves open, as it is killed or frozen, is aborted by the broker after
//! [`TRANSACTION`], or by the sandbox's next producer, which has the same id. Until then no reader of committed records
//! sees anything of it, and afterwards nobody ever does.
//!
//! A producer serves one transaction after another, and is dropped after anything that did not end well: what state it is
//! in then is not worth knowing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer as _};

use super::claim::{initialise, patience};
use super::client::{self, Client, Context, Settings};
use super::consumers::blocking;
use super::error::{from_kafka, unreachable};
use super::producer::{self, NewRecord, Receipt, blames_company, send};
use crate::auth::{Authorized, Write};
use crate::config::KafkaConfig;
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::names::TopicName;

/// When the broker aborts a transaction that nobody ends.
const TRANSACTION: Duration = Duration::from_secs(10);

/// The most of it that is spent on sending. What is left is for ending it.
const SENDING: Duration = Duration::from_secs(7);

/// How many milliseconds a record waits for the others of its transaction, where there are any.
const LINGER: &str = "0.3";

/// How long one try to abort takes. Each first takes back the records that are queued; but one that comes back from the
/// broker for another try just then is sent no more and waited for, until the next try takes it back as well.
const ABORTING: Duration = Duration::from_millis(50);

/// Why there are no receipts.
#[derive(Debug)]
pub struct Aborted {
    /// The record at fault, where it is one's.
    pub at: Option<usize>,
    /// What is wrong with it, or with all.
    pub error: Error,
}

/// Records, with the proof that their caller may write them.
pub type Batch<'a> = [(&'a Authorized<Write>, &'a NewRecord)];

type Transactional = Client<FutureProducer<Context>>;

/// The sandbox's transactions, one at a time.
pub struct Transactions {
    settings: Settings,
    /// What the transaction before has left, if that ended well.
    producer: tokio::sync::Mutex<Option<Transactional>>,
}

impl std::fmt::Debug for Transactions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transactions").finish_non_exhaustive()
    }
}

impl Transactions {
    /// Makes no client yet: most sandboxes never need one.
    pub fn new(config: &KafkaConfig) -> Self {
        let mut settings = producer::settings(config, LINGER);
        settings
            .set("transactional.id", transactional_id(rand::random()))
            .set("transaction.timeout.ms", TRANSACTION.as_millis().to_string())
            .set("message.timeout.ms", TRANSACTION.as_millis().to_string());
        Self { settings, producer: tokio::sync::Mutex::new(None) }
    }

    /// Writes all records, or none as far as readers of committed records can see.
    ///
    /// Errors: those of a single record, for the one at fault. For all of them `503` and `504`: `outcome` says whether it
    /// is known that nothing was written (`aborted`), or not known (`unknown`).
    pub async fn write(&self, batch: &Batch<'_>, deadline: Deadline) -> Result<Vec<Receipt>, Aborted> {
        self.try_write(batch, deadline).await.map_err(Failure::verdict)
    }

    async fn try_write(&self, batch: &Batch<'_>, deadline: Deadline) -> Result<Vec<Receipt>, Failure> {
        let locked = tokio::time::timeout_at(deadline.instant(), self.producer.lock()).await;
        let mut kept = locked.map_err(|_| Failure::All(Deadline::exceeded()))?;
        match self.attempt(&mut kept, batch, batch.len(), deadline).await {
            Err(Failure::Refused(_, error)) if is_of_a_topic(&error) => Err(self.blamed(batch, error, deadline).await),
            // Which one it was, if any, shows where none is sent with others.
            Err(Failure::Refused(_, error)) if batch.len() > 1 && blames_company(&error) => {
                self.attempt(&mut kept, batch, 1, deadline).await
            }
            attempted => attempted,
        }
    }

    /// One transaction, in which up to `abreast` records are on their way at the same time.
    async fn attempt(
        &self,
        kept: &mut Option<Transactional>,
        batch: &Batch<'_>,
        abreast: usize,
        deadline: Deadline,
    ) -> Result<Vec<Receipt>, Failure> {
        let Some((first, _)) = batch.first() else { return Ok(Vec::new()) };
        // It is put back only where the transaction ends well.
        let producer = match kept.take() {
            Some(producer) => producer,
            None => self.make(first.topic(), deadline).await.map_err(Failure::All)?,
        };
        producer.begin_transaction().map_err(|error| Failure::All(unreachable(error)))?;
        let sending = deadline.within(SENDING.min(deadline.left() * 3 / 4));
        match send_all(&producer, batch, abreast, sending).await {
            Ok(receipts) => {
                *kept = Some(commit(producer, deadline).await?);
                Ok(receipts)
            }
            Err(failure) => {
                abort(producer, deadline).await;
                Err(failure)
            }
        }
    }

    /// Which record it is whose topic Kafka refuses: in another transaction, one record of each topic is sent after the other,
    /// and none of them is kept. Where that does not show it, all have the error.
    async fn blamed(&self, batch: &Batch<'_>, error: KafkaError, deadline: Deadline) -> Failure {
        let mut seen = HashSet::new();
        let places: Vec<usize> = (0..batch.len()).filter(|place| seen.insert(batch[*place].0.topic())).collect();
        let [first, _, ..] = places[..] else { return Failure::Refused(0, error) };
        let firsts: Vec<_> = places.iter().map(|place| batch[*place]).collect();
        let Ok(producer) = self.make(batch[first].0.topic(), deadline).await else {
            return Failure::All(from_kafka(error));
        };
        let sending = deadline.within(SENDING.min(deadline.left() / 2));
        let sent = match producer.begin_transaction() {
            Ok(()) => send_all(&producer, &firsts, 1, sending).await,
            Err(error) => Err(Failure::All(unreachable(error))),
        };
        abort(producer, deadline).await;
        match sent {
            // It may be refused for another reason than the first one was.
            Err(Failure::Refused(at, why)) => Failure::Refused(places[at], why),
            _ => Failure::All(from_kafka(error)),
        }
    }

    /// A producer, which has aborted what the one before it may have left open.
    async fn make(&self, topic: &TopicName, deadline: Deadline) -> Result<Transactional, Error> {
        let (settings, topic) = (self.settings.clone(), topic.clone());
        let made = blocking(deadline, move |until| {
            let producer: Transactional = settings.create().map_err(Error::internal)?;
            client::connect(producer.client(), &topic, 0, patience(until));
            initialise(&*producer, until)?;
            Ok(producer)
        });
        made.await
    }
}

/// The transactional id of a sandbox. It begins like those of claims, since that is what IAM policies and ACLs grant; but
/// where those have a topic, it has what no topic can be called. A new version of either changes the number of both.
fn transactional_id(sandbox: u128) -> String {
    format!("kafka-gateway:1:(batch):{sandbox:032x}")
}

/// Why a transaction has no receipts.
enum Failure {
    /// Kafka refuses the record at this place. Nothing was written.
    Refused(usize, KafkaError),
    /// Nothing was written, for a reason that is no record's.
    All(Error),
    /// It may have been committed.
    Unknown(Error),
}

impl Failure {
    fn verdict(self) -> Aborted {
        let of_all = |error: Error| {
            let ours = error.code().status() >= 500;
            Aborted { at: None, error: if ours { error.with("outcome", "aborted") } else { error } }
        };
        match self {
            Self::Refused(place, error) => {
                let error = from_kafka(error);
                if error.code().status() < 500 { Aborted { at: Some(place), error } } else { of_all(error) }
            }
            Self::All(error) => of_all(error),
            Self::Unknown(source) => {
                let error = Error::new(Code::DeadlineExceeded, "Kafka did not say whether the batch is committed");
                Aborted { at: None, error: error.source(source).with("outcome", "unknown") }
            }
        }
    }
}

/// Hands the records to librdkafka in their order and waits for all of them, or for the first that is at fault. After that
/// one librdkafka sends no other, and takes back what it has.
async fn send_all(
    producer: &FutureProducer<Context>,
    batch: &Batch<'_>,
    abreast: usize,
    deadline: Deadline,
) -> Result<Vec<Receipt>, Failure> {
    let mut receipts = vec![None; batch.len()];
    let mut under_way = FuturesUnordered::new();
    let mut waiting = batch.iter().enumerate();
    // What is said of a record that is not at fault itself.
    let mut stopped = None;
    loop {
        while stopped.is_none()
            && under_way.len() < abreast
            && let Some((place, (to, record))) = waiting.next()
        {
            match send(producer, to.topic(), record) {
                Ok(delivery) => under_way.push(delivery.map(move |word| (place, word))),
                Err(error) if stops_all(&error) => stopped = Some(error),
                Err(error) => return Err(Failure::Refused(place, error)),
            }
        }
        match tokio::time::timeout_at(deadline.instant(), under_way.next()).await {
            Ok(None) => break,
            Ok(Some((place, Ok(Ok(delivered))))) => receipts[place] = Some(Receipt::of(&delivered)),
            Ok(Some((_, Ok(Err((error, _)))))) if stops_all(&error) => stopped = Some(error),
            Ok(Some((place, Ok(Err((error, _)))))) => return Err(Failure::Refused(place, error)),
            Ok(Some((_, Err(canceled)))) => return Err(Failure::All(Error::internal(canceled))),
            Err(elapsed) => {
                let error = Error::new(Code::DeadlineExceeded, "Kafka did not acknowledge in time").source(elapsed);
                return Err(Failure::All(error));
            }
        }
    }
    let Some(error) = stopped else { return Ok(receipts.into_iter().flatten().collect()) };
    let error = cause(producer).unwrap_or(error);
    // Where one is sent after the other, it is the first that was not written.
    let place = receipts.iter().position(Option::is_none).filter(|_| is_of_a_topic(&error));
    Err(match place {
        Some(place) => Failure::Refused(place, error),
        None => Failure::All(from_kafka(error)),
    })
}

/// Whether it is the topic of one of the records that the transaction has failed of: Kafka does not say of which one.
fn is_of_a_topic(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// Whether librdkafka does not take or send a record because the transaction has failed already.
fn stops_all(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as K;
    matches!(error.rdkafka_error_code(), Some(K::PurgeQueue | K::PurgeInflight | K::State))
}

/// What a transaction has failed of. No function of librdkafka's asks for it; but the next step, here one that is not
/// legal within a transaction, is refused with it.
fn cause(producer: &FutureProducer<Context>) -> Option<KafkaError> {
    producer.begin_transaction().err().filter(|error| !stops_all(error))
}

/// Commits, and gives the producer back. What has gone wrong from the beginning of that on, nobody knows.
async fn commit(producer: Transactional, deadline: Deadline) -> Result<Transactional, Failure> {
    let committing = Arc::new(AtomicBool::new(false));
    let begun = Arc::clone(&committing);
    let committed = blocking(deadline, move |until| {
        // Said before the clock is read: who gives up on this step in between must not take it for one that ends here.
        begun.store(true, Ordering::SeqCst);
        if Instant::now() >= until {
            // Nobody waits for it any more: it must not be committed for no one. The broker aborts it, in its time.
            begun.store(false, Ordering::SeqCst);
            return Err(Deadline::exceeded());
        }
        loop {
            match producer.commit_transaction(patience(until)) {
                Ok(()) => return Ok(producer),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(from_kafka(error)),
            }
        }
    });
    committed
        .await
        .map_err(|error| if committing.load(Ordering::SeqCst) { Failure::Unknown(error) } else { Failure::All(error) })
}

/// Ends a transaction of which nothing shall be seen, so that it holds no reader up. Where that fails, the broker does it.
async fn abort(producer: Transactional, deadline: Deadline) {
    let aborted = blocking(deadline, move |until| {
        loop {
            match producer.abort_transaction(patience(until).min(ABORTING)) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < until => {}
                aborted => return aborted.map_err(from_kafka),
            }
        }
    });
    if let Err(error) = aborted.await {
        tracing::warn!(error_chain = error.chain().join(": "), "a transaction is left to the broker to abort");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_s_transactional_id_is_no_claim_s() {
        let id = transactional_id(0xab);
        assert_eq!(id, "kafka-gateway:1:(batch):000000000000000000000000000000ab");
        let of_a_claim = id.strip_prefix("kafka-gateway:1:").and_then(|rest| rest.split(':').next());
        assert!(of_a_claim.is_some_and(|topic| TopicName::parse(topic).is_err()), "no topic has this name");
    }
}
