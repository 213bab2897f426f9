//! `POST /kafka/producer/produce`: one record, acknowledged by all in-sync replicas before the answer.

use serde_json::json;

use crate::auth::{May, Write};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::incoming::Incoming;
use crate::kafka::producer::Producer;
use crate::metrics::{self, Direction};
use crate::on_invalid::OnInvalid;
use crate::schema::Schemas;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Produce {
    producer: Producer,
    schemas: Schemas,
    on_invalid: OnInvalid,
}

impl Endpoint for Produce {
    const FUNCTION: &'static str = "produce";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/producer/produce")];
    type Permission = May<Write>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Ok(Self {
            producer: Producer::start(&config.kafka, config.request_timeout).await?,
            schemas: Schemas::new(&config.schemas),
            on_invalid: OnInvalid::new(config),
        })
    }

    async fn call(&self, may: &May<Write>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let body = call.request.json_body()?;
        let incoming = Incoming::read(&body)?;
        call.on_topic(incoming.topic());
        let to = may.on(incoming.topic().clone())?;
        let record = match incoming.encode(&self.schemas, &call.request, call.deadline).await {
            Ok(record) => record,
            Err(error) if error.code() == Code::SchemaValidationFailed => {
                let sent = incoming.as_sent(&call.request)?;
                return Err(self.on_invalid.keep(&self.producer, &to, sent, error, call.deadline).await);
            }
            Err(error) => return Err(error),
        };
        let bytes = record.bytes();
        let result = self.producer.produce(&to, &record, call.deadline).await;
        if self.producer.knows(to.topic()) {
            call.topic_exists();
            match &result {
                Ok(_) => metrics::records_passed(Direction::Produce, to.topic(), 1, bytes),
                Err(_) => metrics::records_failed(Direction::Produce, to.topic(), 1),
            }
        }
        let receipt = result?;
        let body = json!({
            "topic": to.topic().as_str(),
            "partition": receipt.partition,
            "offset": receipt.offset,
            "timestamp": receipt.timestamp,
        });
        Ok(Reply::json(200, body.to_string()))
    }

    async fn stop(&self) {
        self.producer.flush(std::time::Duration::from_millis(250)).await;
    }
}
