//! What every case needs: the stack, a token, topics with records in them, functions and calls to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

/// The value of every record: 100 bytes.
pub(crate) const VALUE: &str =
    "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqr";
/// The function that answers without doing anything.
pub(crate) const EMPTY: &str = "bench-empty";

/// The stack, and who calls.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) token: String,
}

impl World {
    pub(crate) async fn start() -> tests::Result<Self> {
        let stack = Stack::start().await?;
        let token = stack.try_token("gateway-full").await?;
        Ok(Self { stack, token })
    }

    /// A new topic in which each partition has been written to: its first record waits for nothing of the broker's.
    pub(crate) async fn topic(&self, partitions: i32) -> String {
        let (name, bootstrap) = (unique("bench"), self.stack.bootstrap());
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &bootstrap).create().expect("an admin client");
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        for topic in created {
            topic.expect("created");
        }
        self.fill(&name, partitions, usize::try_from(partitions).expect("some"));
        name
    }

    /// Writes `count` records, round robin over the partitions.
    pub(crate) fn fill(&self, topic: &str, partitions: i32, count: usize) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.stack.bootstrap())
            .set("queue.buffering.max.messages", "1000000")
            .create()
            .expect("a producer");
        for number in 0..count {
            let partition = i32::try_from(number).expect("not so many") % partitions;
            let record = BaseRecord::<(), str>::to(topic).payload(VALUE).partition(partition);
            producer.send(record).map_err(|(error, _)| error).expect("queued");
        }
        producer.flush(Duration::from_secs(60)).expect("written");
    }

    pub(crate) async fn function(&self, name: &str) -> Function {
        self.function_with(name, &[]).await
    }

    pub(crate) async fn function_with(&self, name: &str, settings: &[(&str, &str)]) -> Function {
        let mut env = self.environment();
        env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Function::start(name, &env).await
    }

    /// What functions are told.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let mut env = self.stack.kafka_env();
        // `lag-monitor` does not start without groups to look at.
        env.insert("LAG_MONITOR_GROUPS".to_owned(), "bench=bench".to_owned());
        env
    }

    pub(crate) fn produce_event(&self, topic: &str) -> Value {
        let body = json!({ "topic": topic, "value": VALUE });
        Event::post("/kafka/producer/produce").bearer(&self.token).json(&body).build()
    }

    pub(crate) fn consume_event(&self, topic: &str, group: &str, limit: usize, timeout_ms: u32) -> Value {
        let query = format!("topic={topic}&group_id={group}&limit={limit}&timeout_ms={timeout_ms}");
        Event::get("/kafka/consumer/consume").query(&query).bearer(&self.token).build()
    }
}

/// A name that nothing else has.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Calls a function in a sandbox that waits for work, which is the only kind that Lambda gives a call to, and returns
/// its answer with the time from the call to the answer's last byte. Anything but a success ends the benchmark.
pub(crate) async fn timed(function: &Function, event: Value) -> (Duration, Value) {
    assert!(function.idle(Duration::from_secs(5)).await, "the sandbox does not come to rest");
    call(function, event).await
}

/// [`timed`] without the rest before it.
pub(crate) async fn call(function: &Function, event: Value) -> (Duration, Value) {
    let (took, answer) = function.invoke_timed(event).await;
    assert_eq!(answer["statusCode"], 200, "{answer}");
    (took, answer)
}

/// How many records an answer of `consume` holds.
pub(crate) fn records(answer: &Value) -> Vec<(i64, i64)> {
    let body: Value = serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
    let place = |message: &Value| {
        (message["partition"].as_i64().expect("a partition"), message["offset"].as_i64().expect("an offset"))
    };
    body["messages"].as_array().expect("messages").iter().map(place).collect()
}
