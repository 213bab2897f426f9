//! A registry that is away, or wants to know who asks: a clear answer in time, and nothing is lost or half done.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function};

use crate::batch::{batch, results};
use crate::consume::committed;
use crate::consume_batch;
use crate::fetch::fetch;
use crate::kit::{self, Raw};
use crate::leases::{acknowledge, token};
use crate::registry::{Door, Front, register};
use crate::schemas::{ORDER, with_registry, written};
use crate::world::{Answer, call, consume, function_with, produce, topic, unique};

/// What a call may take by default (`KAFKA_REQUEST_TIMEOUT_MS`). A registry that hangs takes 2 s of it.
const CALL: Duration = Duration::from_secs(10);

fn order(topic: &str) -> Value {
    json!({ "topic": topic, "value": { "id": 1, "total": 1, "lines": [] }, "value_format": "avro" })
}

/// A topic whose values have a schema.
async fn orders() -> String {
    let topic = topic(1).await;
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    topic
}

fn unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.code()), (503, "schema_registry_unavailable"), "{answer:?}");
    assert!(answer.headers["retry-after"].is_string() && answer.body["retryable"] == true, "{answer:?}");
    assert!(!answer.body.to_string().contains("127.0.0.1"), "{answer:?}");
}

async fn in_time(answer: impl Future<Output = Answer>) -> Answer {
    tokio::time::timeout(CALL, answer).await.expect("within what a call may take")
}

/// Registries that are away, each in its way: an address where nobody listens, and doors that are shut.
async fn away() -> Vec<(String, Option<Front>)> {
    let nobody = format!("http://127.0.0.1:{}", tests::free_port().expect("a port"));
    let mut away = vec![(nobody, None)];
    for door in [Door::Hangs, Door::Garbage, Door::Fails] {
        let front = Front::open(None).await;
        front.set(door);
        away.push((front.url.clone(), Some(front)));
    }
    away
}

#[tokio::test]
async fn a_registry_that_is_away_is_503_and_no_record_is_lost() {
    let topic = orders().await;
    let record = order(&topic);
    for (url, _front) in away().await {
        let producer = function_with("produce", &[("SCHEMA_REGISTRY_URL", &url)]).await;
        unavailable(&in_time(produce(&producer, &record)).await);
        // Also what would only be validated: it cannot be known that there is no schema.
        unavailable(&in_time(produce(&producer, &json!({ "topic": topic, "value": 1 }))).await);
    }
    let front = Front::open(None).await;
    let url = [("SCHEMA_REGISTRY_URL", front.url.as_str())];
    let (producer, consumer) = (function_with("produce", &url).await, function_with("consume", &url).await);
    for _ in 0..3 {
        produce(&producer, &record).await.ok();
    }
    let (group, format) = (unique("group"), "&value_format=avro");
    front.set(Door::Fails);
    // What is known of the subject and its schema still serves.
    produce(&producer, &record).await.ok();
    unavailable(&consume(&consumer, &topic, &group, format).await);
    unavailable(&consume(&consumer, &topic, &group, format).await);
    // Other formats need no registry, and take nothing from this group.
    assert_eq!(consume(&consumer, &topic, &unique("group"), "").await.messages().len(), 4);
    front.set(Door::Open);
    let consumer = function_with("consume", &url).await;
    let read = consume(&consumer, &topic, &group, format).await;
    assert_eq!(read.messages().len(), 4, "all that was there before");
    assert!(read.messages().iter().all(|message| message["value"]["id"] == 1), "{read:?}");
}

#[tokio::test]
async fn of_a_batch_only_what_needs_the_registry_fails() {
    let topic = orders().await;
    let mut there = 0;
    for (url, _front) in away().await {
        let producer = function_with("produce-batch", &[("SCHEMA_REGISTRY_URL", &url)]).await;
        // Formats without a schema that are no JSON, and nulls, nobody has to validate.
        let records: Vec<Value> = (0..60)
            .map(|n| match n % 3 {
                0 => order(&topic),
                1 => json!({ "topic": topic, "value": "plain", "value_format": "string" }),
                _ => json!({ "topic": topic, "key": null, "value": null }),
            })
            .collect();
        let answer = in_time(batch(&producer, &json!({ "records": records }))).await;
        for (n, result) in results(&answer, 207).iter().enumerate() {
            let expected = if n % 3 == 0 { (503, Some("schema_registry_unavailable")) } else { (200, None) };
            let status = result["status"].as_u64().expect("a status");
            assert_eq!((status, result["code"].as_str()), expected, "{result}");
        }
        there += 40;
        // All alike: then that is the answer.
        let all = in_time(batch(&producer, &json!({ "records": [order(&topic), order(&topic)] }))).await;
        unavailable(&all);
        assert!(results(&all, 503).iter().all(|result| result["code"] == "schema_registry_unavailable"));
        assert_eq!(written(&topic, there).await.len(), there);
        let next = batch(&producer, &json!({ "topic": topic, "records": [{ "value": null }] })).await;
        assert_eq!(results(&next, 200)[0]["offset"], there, "and nothing more was written");
        there += 1;
    }
}

#[tokio::test]
async fn of_an_atomic_batch_nothing_is_written_without_the_registry() {
    let topic = orders().await;
    for (url, _front) in away().await {
        let producer = function_with("produce-batch", &[("SCHEMA_REGISTRY_URL", &url)]).await;
        let records = json!([{ "topic": topic, "value": null }, order(&topic), { "topic": topic, "value": null }]);
        let answer = in_time(batch(&producer, &json!({ "atomic": true, "records": records }))).await;
        unavailable(&answer);
        let codes: Vec<Value> = results(&answer, 503).iter().map(|result| result["code"].clone()).collect();
        assert_eq!(codes, ["transaction_aborted", "schema_registry_unavailable", "transaction_aborted"]);
        assert_eq!(answer.body["outcome"], "aborted", "{answer:?}");
    }
    let producer = with_registry("produce", &[]).await;
    assert_eq!(produce(&producer, &order(&topic)).await.ok()["offset"], 0, "the first that was written");
}

#[tokio::test]
async fn several_topics_stay_as_they_are_without_the_registry() {
    let (one, two) = (orders().await, orders().await);
    let producer = with_registry("produce", &[]).await;
    for topic in [&one, &two, &one, &two] {
        produce(&producer, &order(topic)).await.ok();
    }
    let server = tests::Stack::shared().await.bootstrap();
    for ack in ["auto", "manual"] {
        for (url, front) in away().await {
            let group = unique("group");
            let consumer = function_with("consume-batch", &[("SCHEMA_REGISTRY_URL", &url)]).await;
            let ask = async |format: &str| {
                let topics = json!([{ "topic": one }, { "topic": two }]);
                let body = json!({ "group_id": group, "topics": topics, "ack": ack, "value_format": format });
                in_time(call(&consumer, Event::post(consume_batch::BATCH).json(&body))).await
            };
            for _ in 0..2 {
                unavailable(&ask("avro").await);
            }
            for topic in [&one, &two] {
                assert_eq!(committed(&server, &group, topic, 0), None, "{ack} {url}");
            }
            if let Some(front) = front {
                front.set(Door::Open);
            }
            // Nothing is taken, and nobody holds a lease on it.
            assert_eq!(ask("binary").await.messages().len(), 4, "{ack} {url}");
        }
    }
}

#[tokio::test]
async fn the_registry_is_asked_with_its_credentials_and_little() {
    let topic = orders().await;
    let record = order(&topic);
    for (credentials, header) in [("me:s3:cret", "Basic bWU6czM6Y3JldA=="), ("Bearer s3cret", "Bearer s3cret")] {
        let front = Front::open(Some(header)).await;
        let url = ("SCHEMA_REGISTRY_URL", front.url.as_str());
        let producer = function_with("produce", &[url, ("SCHEMA_REGISTRY_CREDENTIALS", credentials)]).await;
        assert_eq!(front.asked(), 0, "not before it is needed");
        for _ in 0..10 {
            produce(&producer, &record).await.ok();
        }
        assert_eq!(front.asked(), 2, "the latest version, and its schema");
        let stranger = function_with("produce", &[url]).await;
        assert_eq!(produce(&stranger, &record).await.code(), "schema_registry_unavailable");
        assert!(!format!("{}{}", producer.log_text(), stranger.log_text()).contains("s3cret"));
    }
}

#[tokio::test]
async fn readers_show_their_credentials_too() {
    let topic = orders().await;
    let producer = with_registry("produce", &[]).await;
    produce(&producer, &order(&topic)).await.ok();
    let read = async |name: &str, function: &Function| match name {
        "consume" => consume(function, &topic, &unique("group"), "&value_format=avro").await,
        "fetch" => fetch(function, &topic, "&offset=earliest&value_format=avro").await,
        _ => {
            let body = json!({ "group_id": unique("group"), "topics": [{ "topic": topic }], "value_format": "avro" });
            call(function, Event::post(consume_batch::BATCH).json(&body)).await
        }
    };
    for (credentials, header) in [("me:s3:cret", "Basic bWU6czM6Y3JldA=="), ("Bearer s3cret", "Bearer s3cret")] {
        let front = Front::open(Some(header)).await;
        let url = ("SCHEMA_REGISTRY_URL", front.url.as_str());
        for name in ["consume", "consume-batch", "fetch"] {
            let reader = function_with(name, &[url, ("SCHEMA_REGISTRY_CREDENTIALS", credentials)]).await;
            let before = front.asked();
            for _ in 0..5 {
                assert_eq!(read(name, &reader).await.messages()[0]["value"]["id"], 1, "{name}");
            }
            assert_eq!(front.asked() - before, 1, "{name}: the schema of an id, once");
            let stranger = function_with(name, &[url, ("SCHEMA_REGISTRY_CREDENTIALS", "Bearer wr0ng")]).await;
            let answer = read(name, &stranger).await;
            unavailable(&answer);
            let said = format!("{}{}{}", answer.body, reader.log_text(), stranger.log_text());
            assert!(!said.contains("s3cret") && !said.contains("wr0ng"), "{name}: {said}");
        }
    }
}

#[tokio::test]
async fn a_partition_that_needs_the_registry_keeps_no_other_from_its_readers() {
    let topic = topic(2).await;
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    let producer = with_registry("produce", &[]).await;
    let mut record = order(&topic);
    record["partition"] = json!(0);
    for _ in 0..3 {
        produce(&producer, &record).await.ok();
    }
    let mut plain = 0;
    for ack in ["auto", "manual"] {
        for (url, front) in away().await {
            let (group, url) = (unique("group"), [("SCHEMA_REGISTRY_URL", url.as_str())]);
            let consumer = function_with("consume", &url).await;
            let (acker, format) = (function_with("acknowledge", &[]).await, format!("&value_format=avro&ack={ack}"));
            let ask = async |more: &str| in_time(consume(&consumer, &topic, &group, &format!("{format}{more}"))).await;
            for offset in 0..plain + 3 {
                if offset >= plain {
                    kit::write(&topic, &[Raw::value(1, "plain")]).await;
                }
                let mut answer = ask("&limit=1").await;
                if answer.status != 200 {
                    // It had its turn. Now the other has.
                    unavailable(&answer);
                    answer = ask("&limit=1").await;
                }
                let message = &answer.messages()[0];
                assert_eq!((&message["partition"], &message["offset"]), (&json!(1), &json!(offset)), "{answer:?}");
                if ack == "manual" {
                    acknowledge(&acker, &json!({ "token": token(&answer), "type": "accept" })).await.ok();
                }
            }
            plain += 3;
            unavailable(&ask("").await);
            if let Some(front) = front {
                front.set(Door::Open);
                // Another one, which has not left the registry alone.
                let consumer = function_with("consume", &url).await;
                let rest = consume(&consumer, &topic, &group, &format).await;
                let ids: Vec<&Value> = rest.messages().iter().map(|message| &message["value"]["id"]).collect();
                assert_eq!(ids, [1, 1, 1], "{rest:?}");
            }
        }
    }
}
