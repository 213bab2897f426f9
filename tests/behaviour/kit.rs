//! Errors looked at from every side, records written past the gateway, and Python clients.

use std::path::Path;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::world::Answer;

/// An answer that must be an error as the contract (section 3) shapes it: its status and its code.
pub(crate) fn problem(response: &Value) -> (u64, String) {
    let answer = Answer::read(response);
    let code = answer.code().to_owned();
    let (body, headers) = (&answer.body, &answer.headers);
    for member in ["type", "title", "detail", "code", "request_id"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body}");
    }
    assert!(body["error_code"].is_u64() && body["retryable"].is_boolean(), "{body}");
    assert_eq!(headers["cache-control"], "no-store", "{headers}");
    let challenge = headers["www-authenticate"].as_str().unwrap_or_default();
    assert_eq!(challenge.starts_with("Bearer"), answer.status == 401, "{answer:?}");
    assert_eq!(headers["allow"].is_string(), answer.status == 405, "{answer:?}");
    (answer.status, code)
}

/// What a function says to a call with a token of one of the realm's clients, which must be an error.
pub(crate) async fn refused(function: &Function, client: &str, event: Event) -> (u64, String) {
    let token = Stack::shared().await.token(client).await;
    problem(&function.invoke(event.bearer(&token).build()).await)
}

/// What one of the scripts in `python/` says that use Confluent's client.
pub(crate) async fn confluent(script: &str, args: &[&str]) -> String {
    const PACKAGES: (&str, &[&str]) = ("python-confluent", &["confluent-kafka[avro,json,protobuf]==2.16.0"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("behaviour/python").join(script);
    Stack::shared().await.python_with(PACKAGES, script, args).await
}

/// What `EventBridge` sends to a function on a schedule.
pub(crate) fn scheduled() -> Value {
    json!({
        "version": "0",
        "id": "89d1a02d-5ec7-412e-82f5-13505f849b41",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "123456789012",
        "time": "2026-01-01T00:00:00Z",
        "region": "eu-central-1",
        "resources": ["arn:aws:events:eu-central-1:123456789012:rule/lag-monitor"],
        "detail": {},
    })
}

/// A record for [`write`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Raw {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Raw {
    pub(crate) fn value(partition: i32, value: impl Into<Vec<u8>>) -> Self {
        Self { partition, value: Some(value.into()), ..Self::default() }
    }
}

/// Bytes that no compression makes fewer.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

/// Writes records past the gateway, in order.
pub(crate) async fn write(topic: &str, records: &[Raw]) {
    write_on(&Stack::shared().await.bootstrap(), topic, records).await;
}

/// [`write`], to another broker.
pub(crate) async fn write_on(bootstrap: &str, topic: &str, records: &[Raw]) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("message.max.bytes", "20000000")
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let deliveries: Vec<_> = records
        .iter()
        .map(|record| {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: value.as_deref() });
            }
            let mut message: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(topic).partition(record.partition).headers(headers);
            message.key = record.key.as_deref();
            message.payload = record.value.as_deref();
            producer.send_result(message).map_err(|(error, _)| error).expect("queued")
        })
        .collect();
    for delivery in deliveries {
        delivery.await.expect("a report").map_err(|(error, _)| error).expect("delivered");
    }
}

/// The broker's topics. Asking for all of them creates none.
pub(crate) async fn topics() -> Vec<String> {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", Stack::shared().await.bootstrap()).create().expect("a client");
    let asked = move || {
        let metadata = client.fetch_metadata(None, Duration::from_secs(10)).expect("metadata");
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    };
    tokio::task::spawn_blocking(asked).await.expect("not cancelled")
}

/// Runs `python/kafka.py`, a client that shares no code with the gateway's; its answer is JSON.
pub(crate) async fn python(args: &[&str]) -> Value {
    let stack = Stack::shared().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("behaviour/python/kafka.py");
    let out = stack.python(script, &[&[stack.bootstrap().as_str()], args].concat()).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}
