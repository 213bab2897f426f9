//! Positions set by callers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{committed, fill, offsets, raw_consumer, values};
use crate::kit::refused;
use crate::world::{
    Answer, admin, applies_since, call, consume, function, function_with, produce, topic, unique, until,
};

/// The route of `seek`.
pub(crate) const SEEK: &str = "/kafka/consumer/seek";

pub(crate) async fn seek(function: &Function, body: &Value) -> Answer {
    call(function, Event::post(SEEK).json(body)).await
}

/// A consumer that is a live member of the group.
pub(crate) fn live_member(bootstrap: &str, group: &str, topic: &str, protocol: &str) -> BaseConsumer {
    let member = raw_consumer(bootstrap, group, &[("group.protocol", protocol)]);
    member.subscribe(&[topic]).expect("subscribed");
    while member.assignment().expect("an assignment").count() == 0 {
        let _ = member.poll(Duration::from_millis(50));
    }
    member
}

/// The group protocols that the stack's Kafka has.
pub(crate) fn protocols() -> &'static [&'static str] {
    if applies_since(4, 0, "KIP-848 is a preview at most") { &["classic", "consumer"] } else { &["classic"] }
}

/// All that can be consumed, in order of the values.
async fn all(consumer: &Function, topic: &str, group: &str) -> Vec<usize> {
    let mut got = Vec::new();
    loop {
        let answer = consume(consumer, topic, group, "").await;
        if answer.messages().is_empty() {
            got.sort_unstable();
            return got;
        }
        got.extend(values(answer.messages()));
    }
}

#[tokio::test]
async fn a_seek_moves_some_partitions_or_all() {
    let (stack, topic, group) = (Stack::shared().await, topic(3).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 3, 30);
    let (consumer, seeker) = (function("consume").await, function("seek").await);
    let positions = || [0, 1, 2].map(|partition| committed(&stack.bootstrap(), &group, &topic, partition));
    // Of a group that nobody knows yet. A partition that is not named keeps its position, or its lack of one.
    let body = json!({ "group_id": group, "topic": topic, "partitions": { "0": 4, "2": 10 } });
    let moved = seek(&seeker, &body).await.ok();
    let expected = json!({ "group_id": group, "topic": topic, "results": [
        { "partition": 0, "status": "moved", "committed": 4 },
        { "partition": 2, "status": "moved", "committed": 10 },
    ] });
    assert_eq!(moved, expected);
    assert_eq!(positions(), [Some(4), None, Some(10)]);
    let rest: Vec<usize> = (0..30).filter(|n| n % 3 == 1 || (n % 3 == 0 && *n >= 12)).collect();
    assert_eq!(all(&consumer, &topic, &group).await, rest);
    for (to, expected) in [("earliest", 0), ("latest", 10), ("earliest", 0)] {
        let moved = seek(&seeker, &json!({ "group_id": group, "topic": topic, "to": to })).await.ok();
        assert_eq!(moved["results"].as_array().map(Vec::len), Some(3), "{moved}");
        assert_eq!(positions(), [Some(expected); 3], "{to}");
    }
    // The consumer has claims, and knows where it was.
    assert_eq!(all(&consumer, &topic, &group).await, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_seek_by_time_finds_the_first_record_of_that_time_or_later() {
    let (topic, group) = (topic(2).await, unique("group"));
    let (producer, consumer, seeker) = (function("produce").await, function("consume").await, function("seek").await);
    for (partition, timestamp) in [(0, 1000), (0, 3000), (0, 2000), (1, 5000)] {
        let record = json!({ "topic": topic, "partition": partition, "timestamp": timestamp, "value": "v" });
        produce(&producer, &record).await.ok();
    }
    for (to, expected) in [(0, [0, 0]), (1000, [0, 0]), (1001, [1, 0]), (3001, [3, 0]), (5000, [3, 0]), (5001, [3, 1])]
    {
        let moved = seek(&seeker, &json!({ "group_id": group, "topic": topic, "to": to })).await.ok();
        let committed: Vec<&Value> = (0..2).map(|partition: usize| &moved["results"][partition]["committed"]).collect();
        assert_eq!(json!(committed), json!(expected), "{to}");
    }
    seek(&seeker, &json!({ "group_id": group, "topic": topic, "to": 1001 })).await.ok();
    // One answer need not have them all.
    let mut got = Vec::new();
    while got.len() < 3 {
        let answer = consume(&consumer, &topic, &group, "").await;
        assert!(!answer.messages().is_empty(), "{got:?}");
        got.extend(answer.messages().iter().map(|message| (message["partition"].clone(), message["offset"].clone())));
    }
    got.sort_by_key(|(partition, offset)| (partition.as_i64(), offset.as_i64()));
    assert_eq!(json!(got), json!([[0, 1], [0, 2], [1, 0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_by_time_skips_nothing_that_is_written_meanwhile() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    let seeker = function("seek").await;
    let mut settings = ClientConfig::new();
    let settings = settings.set("bootstrap.servers", stack.bootstrap()).set("linger.ms", "0");
    let producer: FutureProducer = settings.create().expect("a producer");
    seek(&seeker, &json!({ "group_id": group, "topic": topic, "to": "latest" })).await.ok();
    // Brokers take no time that is further ahead than an hour.
    let first = std::time::SystemTime::now() + Duration::from_mins(30);
    let first = first.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let first = i64::try_from(first).expect("not so late");
    for round in 0..150 {
        // At all moments of a seek.
        let (to, pause) = (first + round, Duration::from_micros(53 * round.unsigned_abs()));
        let write = async {
            tokio::time::sleep(pause).await;
            let record = FutureRecord::<(), str>::to(&topic).payload("v").timestamp(to);
            producer.send(record, Duration::ZERO).await.expect("written").offset
        };
        let body = json!({ "group_id": group, "topic": topic, "to": to });
        let (moved, offset) = tokio::join!(seek(&seeker, &body), write);
        assert_eq!(offset, round);
        assert!(moved.ok()["results"][0]["committed"].as_i64() <= Some(offset), "the record of {to} is passed");
    }
}

#[tokio::test]
async fn a_seek_ends_leases_and_forgets_deliveries() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let (consumer, seeker) = (function("consume").await, function("seek").await);
    let acker = function("acknowledge").await;
    let acknowledge = async |body: &Value| call(&acker, Event::post("/kafka/consumer/acknowledge").json(body)).await;
    for to in [0, 3, 7] {
        let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=5").await;
        assert_eq!(leased.messages()[0]["delivery_attempt"], 1);
        let token = leased.body["lease"]["token"].clone();
        let body = json!({ "group_id": group, "topic": topic, "partitions": { "0": to } });
        assert_eq!(seek(&seeker, &body).await.ok()["results"][0]["committed"], to);
        for kind in ["accept", "release", "renew"] {
            let lost = acknowledge(&json!({ "token": token, "type": kind })).await;
            assert_eq!((lost.status, lost.code()), (409, "lease_lost"), "{kind}");
            assert_eq!(lost.body["results"][0]["committed"], to);
        }
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(to));
        let next = consume(&consumer, &topic, &group, "&ack=manual&limit=1").await;
        assert_eq!((&next.messages()[0]["offset"], &next.messages()[0]["delivery_attempt"]), (&json!(to), &json!(1)));
        let settle = json!({ "token": next.body["lease"]["token"], "type": "accept" });
        acknowledge(&settle).await.ok();
        // An accept that is repeated is still what it was.
        seek(&seeker, &json!({ "group_id": group, "topic": topic, "to": "earliest" })).await.ok();
        assert_eq!(acknowledge(&settle).await.ok()["results"][0]["status"], "accepted");
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(0), "and moves nothing");
    }
}

#[tokio::test]
async fn a_seek_that_cannot_be_done_moves_nothing() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 20);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(4)).expect("an offset");
    admin(&stack.bootstrap()).delete_records(&before, &AdminOptions::new()).await.expect("deleted");
    let seeker = function("seek").await;
    let to = |partitions: Value| json!({ "group_id": group, "topic": topic, "partitions": partitions });
    for outside in [3, 11, -1, i64::MAX] {
        let answer = seek(&seeker, &to(json!({ "0": outside, "1": 5 }))).await;
        assert_eq!((answer.status, answer.code()), (400, "offset_out_of_range"), "{outside}");
        let members = ["topic", "partition", "start", "end"].map(|name| &answer.body[name]);
        assert_eq!(json!(members), json!([topic, 0, 4, 10]));
    }
    for (partition, status) in [("2", 404), ("-1", 404)] {
        let answer = seek(&seeker, &to(json!({ "0": 5, partition: 0 }))).await;
        assert_eq!((answer.status, answer.code()), (status, "partition_not_found"));
    }
    let answer = seek(&seeker, &json!({ "group_id": group, "topic": unique("none"), "to": "latest" })).await;
    assert_eq!((answer.status, answer.code()), (404, "topic_not_found"));
    for (client, code) in [("gateway-none", "forbidden"), ("gateway-narrow", "topic_forbidden")] {
        let event = Event::post(SEEK).json(&to(json!({ "0": 5 })));
        assert_eq!(refused(&seeker, client, event).await, (403, code.to_owned()));
    }
    assert_eq!(call(&seeker, Event::get(SEEK)).await.code(), "method_not_allowed");
    for partition in [0, 1] {
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, partition), None);
    }
    for offset in [4, 10] {
        seek(&seeker, &to(json!({ "0": offset }))).await.ok();
    }
}

#[tokio::test]
async fn a_group_with_live_members_is_not_moved() {
    let (stack, topic) = (Stack::shared().await, topic(2).await);
    fill(&stack.bootstrap(), &topic, 2, 10);
    let seeker = function("seek").await;
    for &protocol in protocols() {
        let group = unique("group");
        let member = live_member(&stack.bootstrap(), &group, &topic, protocol);
        let body = json!({ "group_id": group, "topic": topic, "to": "latest" });
        let answer = seek(&seeker, &body).await;
        assert_eq!((answer.status, answer.code()), (409, "group_in_use"), "{protocol}");
        let results =
            json!([0, 1].map(|partition| json!({ "partition": partition, "status": "failed", "committed": null })));
        assert_eq!(answer.body["results"], results);
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), None, "{protocol}");
        drop(member);
        until(&[200], async || seek(&seeker, &body).await).await;
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(5), "{protocol}");
    }
}

#[tokio::test]
async fn a_seek_with_shared_delivery_is_a_plain_commit() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let shared = [("KAFKA_CONSUME_DELIVERY", "shared")];
    let (consumer, seeker) = (function_with("consume", &shared).await, function_with("seek", &shared).await);
    for to in [3, 0, 10, 7] {
        let body = json!({ "group_id": group, "topic": topic, "partitions": { "0": to } });
        assert_eq!(seek(&seeker, &body).await.ok()["results"][0]["committed"], to);
        let answer = consume(&consumer, &topic, &group, "&limit=2&timeout_ms=0").await;
        assert_eq!(offsets(answer.messages()), (to..10).take(2).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_among_four_consumers_is_the_last_word() {
    const RECORDS: usize = 2_000;
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, RECORDS);
    let seeker = function("seek").await;
    let over = Arc::new(AtomicBool::new(false));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (topic, group, over) = (topic.clone(), group.clone(), Arc::clone(&over));
        running.spawn(async move {
            let consumer = function("consume").await;
            let mut got = Vec::new();
            loop {
                let last = over.load(Ordering::Relaxed);
                let answer = consume(&consumer, &topic, &group, "&limit=50&timeout_ms=500").await;
                got.extend(values(answer.messages()));
                if last && answer.messages().is_empty() {
                    return got;
                }
            }
        });
    }
    let seeks = 5;
    for _ in 0..seeks {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let moved = seek(&seeker, &json!({ "group_id": group, "topic": topic, "to": "earliest" })).await.ok();
        assert_eq!(moved["results"][0]["committed"], 0);
    }
    over.store(true, Ordering::Relaxed);
    let mut counts: HashMap<usize, usize> = HashMap::new();
    for value in running.join_all().await.into_iter().flatten() {
        *counts.entry(value).or_default() += 1;
    }
    assert_eq!(counts.len(), RECORDS, "after the last seek all came again");
    // Each seek can bring a record once more. More often would be a position that an older step has brought back.
    assert!(counts.values().all(|count| *count <= seeks + 1), "{:?}", counts.values().max());
    for partition in [0, 1] {
        let end = i64::try_from(RECORDS / 2).expect("small");
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, partition), Some(end));
    }
}
