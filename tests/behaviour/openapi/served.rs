//! What the document and the README speak of, and the functions at their routes.

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use serde_json::Value;
use tests::{Broker, Gateway, Stack};
use tokio::sync::OnceCell;

use super::watched;
use crate::kit::{Raw, write_on};
use crate::registry::register;
use crate::world::admin;

/// A broker with the topics of the examples, where names are theirs alone. What is tried out on it meets no other test.
pub(super) async fn broker_for_examples() -> Broker {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let topics = ["orders", "orders.dlq", "orders-avro", "archive", "demo", "audit"];
    let topics = topics.map(|name| NewTopic::new(name, 3, TopicReplication::Fixed(1)));
    let created = admin(&broker.bootstrap()).create_topics(&topics, &AdminOptions::new()).await.expect("an answer");
    for topic in created {
        topic.expect("created");
    }
    let orders = (0..9).map(|number| Raw::value(number % 3, format!("order {number}")));
    write_on(&broker.bootstrap(), "orders", &orders.collect::<Vec<_>>()).await;
    write_on(&broker.bootstrap(), "archive", &[Raw::value(0, "x".repeat(4000))]).await;
    write_on(&broker.bootstrap(), "orders.dlq", &[Raw::value(0, "an order")]).await;
    let schema = r#"{"type":"record","name":"Order","fields":[{"name":"id","type":"long"}]}"#;
    register("orders-avro-value", "AVRO", schema, &Value::Array(vec![])).await;
    broker
}

/// All functions behind `cargo lambda watch`, with a broker of their own.
pub(super) struct Served {
    pub(super) gateway: Gateway,
    _broker: Broker,
}

/// One for all tests.
pub(super) async fn served() -> &'static Served {
    static SERVED: OnceCell<Served> = OnceCell::const_new();
    let start = async || {
        let (stack, broker) = (Stack::shared().await, broker_for_examples().await);
        let (bootstrap, registry) = (broker.bootstrap(), stack.registry().await);
        let more = [
            ("KAFKA_BOOTSTRAP_SERVERS", bootstrap.as_str()),
            ("SCHEMA_REGISTRY_URL", registry),
            ("LAG_MONITOR_GROUPS", "demo-group=demo"),
            // On a busy machine a broker may take longer than the usual ten seconds to delete a topic.
            ("KAFKA_REQUEST_TIMEOUT_MS", "29000"),
        ];
        let gateway = stack.gateway(&more).await;
        for (path, method) in watched().into_keys().filter(|(path, _)| !path.contains('{')) {
            gateway.answers(&method, &path).await.unwrap_or_else(|e| panic!("{e}"));
        }
        Served { gateway, _broker: broker }
    };
    SERVED.get_or_init(start).await
}
