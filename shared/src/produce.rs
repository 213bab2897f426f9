//! `POST /kafka/producer/produce`: one record, acknowledged by all in-sync replicas before the answer.

use serde_json::json;

use crate::auth::{May, Write};
use crate::config::Config;
use crate::errors::{BoxError, Error};
use crate::http::{Call, Endpoint, Reply, Route};
use crate::incoming::Incoming;
use crate::writer::Writer;

/// The endpoint, and what a warm sandbox keeps for it.
#[derive(Debug)]
pub struct Produce(Writer);

impl Endpoint for Produce {
    const FUNCTION: &'static str = "produce";
    const ROUTES: &'static [Route] = &[("POST", "/kafka/producer/produce")];
    type Permission = May<Write>;

    async fn start(config: &Config) -> Result<Self, BoxError> {
        Writer::start(config).await.map(Self)
    }

    async fn call(&self, may: &May<Write>, call: &Call) -> Result<Reply, Error> {
        call.request.query(&[])?;
        let body = call.request.json_body()?;
        let incoming = Incoming::read(&body)?;
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
