//! What most tests need: a topic of their own, the functions, and calls to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use serde_json::Value;
use tests::{Event, Function, Stack, kafka_since, kafka_version, progress};

/// The route of `produce`.
pub(crate) const PRODUCE: &str = "/kafka/producer/produce";
/// The route of `consume`.
pub(crate) const CONSUME: &str = "/kafka/consumer/consume";

/// What a call may take longer than it was given, where the machine is busy.
const SLACK: Duration = Duration::from_secs(10);

/// Only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A name that no other test uses.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client")
}

/// Whether the broker that a client asks has heard of a topic.
pub(crate) fn knows(client: &Client<impl ClientContext>, topic: &str) -> bool {
    let metadata = client.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
    metadata.topics().iter().any(|topic| topic.error().is_none() && !topic.partitions().is_empty())
}

/// Creates a topic on a broker, and returns its name.
pub(crate) async fn topic_on(bootstrap: &str, partitions: i32, configs: &[(&str, &str)]) -> String {
    let name = unique("topic");
    let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (key, value) in configs {
        topic = topic.set(key, value);
    }
    let admin = admin(bootstrap);
    let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    for topic in created {
        topic.expect("created");
    }
    // The controller has it; a busy broker may hear of it later.
    let begun = Instant::now();
    while !knows(admin.inner(), &name) {
        assert!(begun.elapsed() < PATIENCE, "the broker does not know {name}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    name
}

/// Creates a topic on the shared stack's broker, and returns its name.
pub(crate) async fn topic(partitions: i32) -> String {
    topic_on(&Stack::shared().await.bootstrap(), partitions, &[]).await
}

/// Starts a function on the shared stack, with some variables changed.
pub(crate) async fn function_with(name: &str, changed: &[(&str, &str)]) -> Function {
    let mut env: BTreeMap<String, String> = Stack::shared().await.kafka_env();
    env.extend(changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Function::start(name, &env).await
}

/// Starts a function on the shared stack.
pub(crate) async fn function(name: &str) -> Function {
    function_with(name, &[]).await
}

/// An answer of a function: its status, headers and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u64,
    pub(crate) headers: Value,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn read(response: &Value) -> Self {
        assert!(response.is_object(), "not an API Gateway response: {response}");
        let text = response["body"].as_str().unwrap_or_default();
        let bytes = if response["isBase64Encoded"] == true {
            STANDARD.decode(text).expect("base64")
        } else {
            text.as_bytes().to_vec()
        };
        let answer = Self {
            status: response["statusCode"].as_u64().expect("a status"),
            headers: response["headers"].clone(),
            body: if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("a JSON body") },
        };
        if answer.status >= 400 {
            answer.code();
        }
        answer
    }

    /// The answer, which must be a success.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.body
    }

    /// The error's code, after a look at what every error must have.
    pub(crate) fn code(&self) -> &str {
        assert!(self.status >= 400, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], self.status);
        for member in ["type", "title", "detail", "error_code", "retryable", "request_id"] {
            assert!(!self.body[member].is_null(), "{member}: {self:?}");
        }
        let retry_after = self.headers["retry-after"].as_str().and_then(|after| after.parse::<u32>().ok());
        assert_eq!(retry_after.is_some_and(|seconds| seconds > 0), matches!(self.status, 429 | 503), "{self:?}");
        self.body["code"].as_str().expect("a code")
    }

    pub(crate) fn messages(&self) -> &Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        self.body["messages"].as_array().expect("messages")
    }
}

/// Whether a test applies to the stack's Kafka; where it does not, that is said, and `what` is missing there.
pub(crate) fn applies_since(major: u32, minor: u32, what: &str) -> bool {
    applies(kafka_since(major, minor), what)
}

/// The same, where it is not a matter of age alone.
pub(crate) fn applies(applies: bool, what: &str) -> bool {
    if !applies {
        let (test, version) = (std::thread::current(), kafka_version().expect("a version"));
        progress(format_args!("does not apply to Kafka {version}: {} ({what})", test.name().unwrap_or("a test")));
    }
    applies
}

/// Calls a function with a token of `gateway-full`.
pub(crate) async fn call(function: &Function, event: Event) -> Answer {
    Answer::read(&response(function, event).await)
}

/// The same, as API Gateway gets it. It must come within the time that the function was given.
pub(crate) async fn response(function: &Function, event: Event) -> Value {
    let token = Stack::shared().await.token("gateway-full").await;
    let event = event.bearer(&token).build();
    let given = function.request_timeout() + asked(&event) + SLACK;
    let (took, answer) = function.invoke_served(event).await;
    assert!(took <= given, "an answer after {took:?}, which was to come within {given:?}: {answer}");
    answer
}

/// How long a call asks to wait for records: `timeout_ms`, or its default.
fn asked(event: &Value) -> Duration {
    let in_query = event["queryStringParameters"]["timeout_ms"].as_str().and_then(|ms| ms.parse().ok());
    let in_body = || serde_json::from_str::<Value>(event["body"].as_str()?).ok()?["timeout_ms"].as_u64();
    Duration::from_millis(in_query.or_else(in_body).unwrap_or(1000).min(25_000))
}

/// Calls again and again until the answer has one of these statuses.
pub(crate) async fn until(statuses: &[u64], mut calling: impl AsyncFnMut() -> Answer) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = calling().await;
        if statuses.contains(&answer.status) {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "still: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Produces one record.
pub(crate) async fn produce(function: &Function, body: &Value) -> Answer {
    call(function, Event::post(PRODUCE).json(body)).await
}

/// Consumes; `more` is added to the query.
pub(crate) async fn consume(function: &Function, topic: &str, group: &str, more: &str) -> Answer {
    call(function, Event::get(CONSUME).query(&format!("topic={topic}&group_id={group}{more}"))).await
}
