//! Each function once: what packaged binaries are tried with (`.ci/package-check`). The tests bear the functions' names.

use serde_json::{Value, json};
use tests::{Event, Stack};

use crate::consume::fill;
use crate::kit::scheduled;
use crate::redrive::{REDRIVE, dead_letter_topic};
use crate::world::{call, consume as consumed, function, function_with, produce as produced, topic, unique};

/// A topic with five records.
async fn filled() -> String {
    let topic = topic(1).await;
    fill(&Stack::shared().await.bootstrap(), &topic, 1, 5);
    topic
}

#[tokio::test]
async fn produce() {
    let receipt = produced(&function("produce").await, &json!({ "topic": topic(1).await, "value": "v" })).await.ok();
    assert_eq!((&receipt["partition"], &receipt["offset"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn produce_batch() {
    let topic = topic(1).await;
    let body = json!({ "topic": topic, "records": [{ "value": "one" }, { "value": "two" }] });
    let event = Event::post("/kafka/producer/produce/batch").json(&body);
    let receipts = call(&function("produce-batch").await, event).await.ok();
    assert_eq!(receipts["results"].as_array().map(Vec::len), Some(2), "{receipts}");
}

#[tokio::test]
async fn consume() {
    let answer = consumed(&function("consume").await, &filled().await, &unique("group"), "").await;
    assert_eq!(answer.messages().len(), 5);
}

#[tokio::test]
async fn consume_batch() {
    let body = json!({ "group_id": unique("group"), "topics": [{ "topic": filled().await }] });
    let event = Event::post("/kafka/consumer/consume/batch").json(&body);
    let answer = call(&function("consume-batch").await, event).await;
    assert_eq!(answer.messages().len(), 5);
}

#[tokio::test]
async fn acknowledge() {
    let (topic, group) = (filled().await, unique("group"));
    let leased = consumed(&function("consume").await, &topic, &group, "&ack=manual").await.ok();
    let body = json!({ "token": leased["lease"]["token"], "type": "accept" });
    let event = Event::post("/kafka/consumer/acknowledge").json(&body);
    let accepted = call(&function("acknowledge").await, event).await.ok();
    assert_eq!(accepted["results"][0]["committed"], 5);
}

#[tokio::test]
async fn seek() {
    let body = json!({ "group_id": unique("group"), "topic": filled().await, "to": "latest" });
    let event = Event::post("/kafka/consumer/seek").json(&body);
    let moved = call(&function("seek").await, event).await.ok();
    assert_eq!(moved["results"][0]["committed"], 5);
}

#[tokio::test]
async fn fetch() {
    let event = Event::get("/kafka/consumer/fetch").query(&format!("topic={}&offset=earliest", filled().await));
    assert_eq!(call(&function("fetch").await, event).await.messages().len(), 5);
}

#[tokio::test]
async fn topics() {
    let name = unique("topic");
    let topics = function("topics").await;
    let event = Event::post("/kafka/topics").json(&json!({ "topic": name, "partitions": 2 }));
    assert_eq!(call(&topics, event).await.status, 201);
    let described = call(&topics, Event::get(&format!("/kafka/topics/{name}"))).await.ok();
    assert_eq!(described["partitions"].as_array().map(Vec::len), Some(2), "{described}");
}

#[tokio::test]
async fn lag() {
    let (topic, group) = (filled().await, unique("group"));
    let event = Event::get("/kafka/consumer/lag").query(&format!("group_id={group}&topic={topic}"));
    assert_eq!(call(&function("lag").await, event).await.ok()["total_lag"], 5);
}

#[tokio::test]
async fn redrive() {
    let (server, topic) = (Stack::shared().await.bootstrap(), topic(1).await);
    let letters = dead_letter_topic(&server, &topic, 1).await;
    fill(&server, &letters, 1, 5);
    let event = Event::post(REDRIVE).json(&json!({ "dlq_topic": letters }));
    assert_eq!(call(&function("redrive").await, event).await.ok()["redriven"], 5);
}

#[tokio::test]
async fn lag_monitor() {
    let watched = format!("{}={}", unique("group"), filled().await);
    let monitor = function_with("lag-monitor", &[("LAG_MONITOR_GROUPS", &watched)]).await;
    assert_eq!(monitor.invoke(scheduled()).await, Value::Null);
    assert!(monitor.logs().iter().any(|line| line["consumer_lag"] == 5), "{}", monitor.log_text());
}
