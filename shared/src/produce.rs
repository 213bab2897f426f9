//! `POST /kafka/producer/produce`: one record, acknowledged by all in-sync replicas before the answer. It may come as a
//! `CloudEvent`.

use serde_json::json;

use crate::auth::{May, Write};
use crate::cloud_event::{self, Mode};
use crate::config::Config;
use crate::errors::{BoxError, Code, Error};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::incoming::Incoming;
use crate::kafka::producer::Sending;
use crate::record;
use crate::writer::Writer;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Produce(Writer);

impl Endpoint for Produce {
    const FUNCTION: &'static str = "produce";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/producer/produce")];
    const SCHEMAS: bool = true;
    type Permission = May<Write>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        // Nothing to wait for: there is one record. (librdkafka's default would add 5 ms.)
        Writer::start(config, Sending::AtOnce).await.map(Self)
    }

    async fn call(&self, may: &May<Write>, call: &Call) -> Result<Reply, Error> {
        let (request, mode) = (&call.request, Mode::of(&call.request)?);
        let body;
        let incoming = match mode {
            None => {
                request.query(&[])?;
                body = request.json_body()?;
                Incoming::read(&body)?
            }
            Some(Mode::Binary) => {
                let topic = cloud_event::topic(request)?;
                body = request.body()?;
                cloud_event::binary(request, topic, &body)?
            }
            Some(Mode::Structured) => {
                let topic = cloud_event::topic(request)?;
                body = request.body()?;
                cloud_event::structured(record::json(&body)?, topic)?
            }
            Some(Mode::Batched) => {
                let detail = "A batch of events goes to POST /kafka/producer/produce/batch";
                return Err(Error::new(Code::UnsupportedMediaType, detail));
            }
        };
        call.on_topic(incoming.topic());
        let to = may.on(incoming.topic().clone())?;
        let topic = to.topic().clone();
        let written = self.0.write(&[Ok((to, incoming))], call).await.pop();
        if self.0.knows(&topic) {
            call.topic_exists();
        }
        let receipt = written.unwrap_or_else(|| Err(Error::internal("a record without a result")))?;
        let body = json!({
            "topic": topic.as_str(),
            "partition": receipt.partition,
            "offset": receipt.offset,
            "timestamp": receipt.timestamp,
        });
        Ok(Reply::json(200, body.to_string()))
    }

    async fn stop(&self) {
        self.0.stop().await;
    }
}
