//! Many invocations at once in one sandbox, as on Lambda Managed Instances.

use std::sync::Arc;

use serde_json::json;
use tests::{Event, Stack};

use crate::consume::{committed, fill, offsets, values};
use crate::wire::ACKNOWLEDGE;
use crate::world::{call, consume, function, function_with, produce, topic, unique};

const SETTINGS: [(&str, &str); 1] = [("AWS_LAMBDA_MAX_CONCURRENCY", "64")];

/// How long a record waits for company: one by one, 64 calls would take a minute, and each of them is to end in its own time.
const LINGER: (&str, &str) = ("KAFKA_PROPERTIES", "linger.ms=1000");

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_calls_at_once_get_each_record_once() {
    const RECORDS: usize = 3000;
    let (stack, topic, group) = (Stack::shared().await, topic(4).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 4, RECORDS);
    let consumer = Arc::new(function_with("consume", &SETTINGS).await);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (consumer, topic, group) = (Arc::clone(&consumer), topic.clone(), group.clone());
        running.spawn(async move {
            let mut got = Vec::new();
            loop {
                let answer = consume(&consumer, &topic, &group, "&limit=20&timeout_ms=2000").await;
                if answer.status == 200 && answer.messages().is_empty() {
                    return got;
                }
                got.extend(values(answer.messages()));
            }
        });
    }
    let mut all: Vec<usize> = running.join_all().await.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (0..RECORDS).collect::<Vec<_>>());
    // In the end all of them wait, for two seconds each, and none for another: `call` looks at the time.
    assert_eq!(consumer.most_at_once(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_records_at_once_have_each_their_receipt() {
    let topic = topic(1).await;
    let producer = Arc::new(function_with("produce", &[SETTINGS[0], LINGER]).await);
    let mut running = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (producer, topic) = (Arc::clone(&producer), topic.clone());
        running.spawn(async move {
            let receipt = produce(&producer, &json!({ "topic": topic, "value": n.to_string() })).await.ok();
            receipt["offset"].as_i64().expect("an offset")
        });
    }
    let mut all: Vec<i64> = running.join_all().await;
    all.sort_unstable();
    assert_eq!(all, (0..64).collect::<Vec<_>>());
    assert_eq!(producer.most_at_once(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_acknowledgements_at_once_settle_each_record_once() {
    let (stack, topic, group) = (Stack::shared().await, topic(4).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 4, 64);
    let (consumer, acker) = (function("consume").await, Arc::new(function_with("acknowledge", &SETTINGS).await));
    let leased = consume(&consumer, &topic, &group, "&ack=manual&lease_ms=120000&timeout_ms=5000").await;
    assert_eq!(leased.messages().len(), 64);
    // Each accepts one record more, in no order, of all four partitions.
    let mut running = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (partition, offset) = ((n % 4).to_string(), n / 4);
        let body =
            json!({ "token": leased.body["lease"]["token"], "type": "accept", "through": { partition: offset } });
        let acker = Arc::clone(&acker);
        running.spawn(async move { call(&acker, Event::post(ACKNOWLEDGE).json(&body)).await.ok() });
    }
    for settled in running.join_all().await {
        assert_eq!(settled["results"][0]["status"], "accepted", "{settled}");
    }
    for partition in 0..4 {
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, partition), Some(16), "it never goes back");
    }
    assert_eq!(acker.most_at_once(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_groups_than_a_sandbox_keeps_pass_through_it() {
    let (stack, topic) = (Stack::shared().await, topic(2).await);
    fill(&stack.bootstrap(), &topic, 2, 10);
    let consumer = Arc::new(function_with("consume", &SETTINGS).await);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (consumer, topic, group) = (Arc::clone(&consumer), topic.clone(), unique("group"));
        running.spawn(async move {
            let mut got = Vec::new();
            while got.len() < 10 {
                got.extend(offsets(consume(&consumer, &topic, &group, "&timeout_ms=5000").await.messages()));
            }
            got.sort_unstable();
            got
        });
    }
    for got in running.join_all().await {
        assert_eq!(got, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", consumer.pid())).expect("threads").count();
    println!("{threads} threads after 40 groups");
    assert!(threads < 400, "{threads} threads");
}
