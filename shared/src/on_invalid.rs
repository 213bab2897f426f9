//! What becomes of a record that does not fit its schema (`SCHEMA_ON_INVALID`): it is refused, and may be kept as a dead
//! letter.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Mutex;

use crate::auth::{Authorized, Write};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::dlq::{Death, Reason, letter};
use crate::errors::Error;
use crate::kafka::consumers::blocking;
use crate::kafka::dead_letters::DeadLetters;
use crate::kafka::producer::{NewRecord, Producer};
use crate::telemetry;

/// Where records that do not fit are kept, if they are.
#[derive(Debug)]
pub struct OnInvalid {
    kept: Option<Arc<DeadLetters>>,
    /// Held by whoever looks for a dead-letter topic, or makes it. The others then know it.
    opening: Mutex<()>,
}

impl OnInvalid {
    /// Connects to nothing yet.
    pub fn new(config: &Config) -> Self {
        let kept = config.schemas.keep_invalid.then(|| Arc::new(DeadLetters::new(&config.kafka)));
        Self { kept, opening: Mutex::new(()) }
    }

    /// The answer for a record, as it was sent, that does not fit: `invalid`, and where it is kept. If it should be kept
    /// and cannot be, that is the error: the caller, who still has the record, had better try again.
    pub async fn keep(
        &self,
        producer: &Producer,
        to: &Authorized<Write>,
        sent: NewRecord,
        invalid: Error,
        deadline: Deadline,
    ) -> Error {
        let topic = to.topic();
        let Some((dead_letters, letters)) =
            self.kept.as_ref().and_then(|dead_letters| Some((dead_letters, dead_letters.topic_of(topic)?)))
        else {
            return invalid;
        };
        let opened = {
            let _one_at_a_time = self.opening.lock().await;
            let (dead_letters, origin, letters) = (Arc::clone(dead_letters), topic.clone(), letters.clone());
            blocking(deadline, move |until| dead_letters.open(&origin, &letters, until)).await
        };
        let written = match opened {
            Ok(partitions) => {
                let death =
                    Death { topic, offset: None, consumed: None, reason: Reason::Schema, message: invalid.detail() };
                // Somebody else may have made the topic, with fewer partitions.
                let partition = sent.partition.filter(|partition| *partition < partitions);
                let letter = letter(NewRecord { partition, ..sent }, &death);
                producer.produce_letter(to, &letters, &letter, deadline).await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(receipt) => {
                telemetry::died(topic, None, None, Reason::Schema, 1);
                let place =
                    json!({ "topic": letters.as_str(), "partition": receipt.partition, "offset": receipt.offset });
                invalid.with("dead_letter", place)
            }
            Err(error) => {
                dead_letters.forget(&letters);
                error.with("dead_letter_topic", letters.as_str())
            }
        }
    }
}
