//! Many invocations at once in one sandbox, as on Lambda Managed Instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;
use tests::{Event, Stack};

use crate::consume::{committed, fill, offsets, raw_consumer, values};
use crate::leases::{acknowledge, token};
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
async fn sixty_four_calls_at_once_lease_and_accept_each_record_once() {
    const RECORDS: usize = 800;
    let (stack, topic, group) = (Stack::shared().await, topic(4).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 4, RECORDS);
    let (consumer, acker) = tokio::join!(function_with("consume", &SETTINGS), function_with("acknowledge", &SETTINGS));
    let (consumer, acker, accepted) = (Arc::new(consumer), Arc::new(acker), Arc::new(AtomicUsize::new(0)));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (consumer, acker, accepted) = (Arc::clone(&consumer), Arc::clone(&acker), Arc::clone(&accepted));
        let (topic, group) = (topic.clone(), group.clone());
        running.spawn(async move {
            let mut got = Vec::new();
            while accepted.load(Ordering::Relaxed) < RECORDS {
                let query = "&ack=manual&lease_ms=120000&limit=20&timeout_ms=1000";
                let answer = consume(&consumer, &topic, &group, query).await;
                if answer.status != 200 || answer.messages().is_empty() {
                    continue;
                }
                assert!(answer.messages().iter().all(|message| message["delivery_attempt"] == 1), "{answer:?}");
                acknowledge(&acker, &json!({ "token": token(&answer), "type": "accept" })).await.ok();
                accepted.fetch_add(answer.messages().len(), Ordering::Relaxed);
                got.extend(values(answer.messages()));
            }
            got
        });
    }
    let mut all: Vec<usize> = running.join_all().await.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (0..RECORDS).collect::<Vec<_>>());
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

/// More partitions at a time than a sandbox has places for.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_group_begins_is_committed_by_each_of_many_first_calls() {
    const PARTITIONS: i32 = 30;
    let (server, topic) = (Stack::shared().await.bootstrap(), topic(PARTITIONS).await);
    let consumer = Arc::new(function_with("consume", &SETTINGS).await);
    let groups = [unique("group"), unique("group")];
    let mut running = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (consumer, topic, server) = (Arc::clone(&consumer), topic.clone(), server.clone());
        let group = groups[number % 2].clone();
        running.spawn(async move {
            let begun = consume(&consumer, &topic, &group, "&start=latest&timeout_ms=0").await.ok();
            assert_eq!(begun["messages"], json!([]));
            let mut places = TopicPartitionList::new();
            places.add_partition_range(&topic, 0, PARTITIONS - 1);
            let client = raw_consumer(&server, &group, &[]);
            let begins = client.committed_offsets(places, Duration::from_secs(30)).expect("an answer");
            let begins = begins.elements().iter().filter(|place| place.offset() == Offset::Offset(0)).count();
            assert_eq!(begins, usize::try_from(PARTITIONS).expect("few"), "it has begun everywhere");
        });
    }
    running.join_all().await;
    assert_eq!(consumer.most_at_once(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_groups_than_a_sandbox_keeps_pass_through_it() {
    const GROUPS: usize = 64;
    let (stack, topic) = (Stack::shared().await, topic(2).await);
    fill(&stack.bootstrap(), &topic, 2, 10);
    let consumer = Arc::new(function_with("consume", &SETTINGS).await);
    let (pid, most) = (consumer.pid(), Arc::new([const { AtomicUsize::new(0) }; 2]));
    let watching = tokio::spawn({
        let most = Arc::clone(&most);
        async move {
            loop {
                for (most, what) in most.iter().zip(["task", "fd"]) {
                    let there = std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
                    most.fetch_max(there, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    // Those that come later find what those before have left.
    for _ in 0..2 {
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..GROUPS {
            let (consumer, topic, group) = (Arc::clone(&consumer), topic.clone(), unique("group"));
            running.spawn(async move {
                let mut got = Vec::new();
                while got.len() < 10 {
                    let answer = consume(&consumer, &topic, &group, "&timeout_ms=5000").await.ok();
                    got.extend(offsets(answer["messages"].as_array().expect("messages")));
                }
                got.sort_unstable();
                got
            });
        }
        for got in running.join_all().await {
            assert_eq!(got, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        }
    }
    watching.abort();
    // Lambda allows 1024 of each.
    let [threads, descriptors] = most.each_ref().map(|most| most.load(Ordering::Relaxed));
    println!("at most {threads} threads and {descriptors} descriptors with {GROUPS} groups at once");
    assert!(threads < 1000 && descriptors < 1000, "{threads} threads, {descriptors} descriptors");
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").count();
    println!("{threads} threads after them");
    assert!(threads < 400, "{threads} threads");
}
