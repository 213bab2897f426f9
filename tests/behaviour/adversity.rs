//! States of a topic or a group that stop a careless consumer: what others leave behind, and what lies around records.

use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;
use tests::{Event, Stack};

use crate::consume::{commit_plainly, committed, fill, offsets, raw_consumer};
use crate::world::{admin, call, consume, function, function_with, topic, unique};

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn at(topic: &str, partition: i32, offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
    list
}

fn transactional(bootstrap: &str, id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", "60000")
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("initialised");
    producer.begin_transaction().expect("begun");
    producer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_died_before_it_ended_its_transaction_stops_nobody() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 20);
    // As a function does that is frozen between TxnOffsetCommit and EndTxn, for a minute.
    let dead = transactional(&stack.bootstrap(), &format!("kafka-gateway:1:{topic}:0:{group}"));
    let raw = raw_consumer(&stack.bootstrap(), &group, &[]);
    let metadata = raw.group_metadata().expect("metadata");
    dead.send_offsets_to_transaction(&at(&topic, 0, 5), &metadata, PATIENCE).expect("sent");
    let consumer = function("consume").await;
    let mut got = 0;
    while got < 20 {
        let answer = consume(&consumer, &topic, &group, "&limit=100").await;
        assert!(!answer.messages().is_empty(), "{answer:?}");
        got += answer.messages().len();
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(10), "what it had not committed is not lost");
    let refused = dead.commit_transaction(PATIENCE);
    assert!(refused.is_err(), "when it thaws, it is fenced");
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_froze_on_a_claim_of_its_own_stops_no_warm_one() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let consumer = function("consume").await;
    assert_eq!(offsets(consume(&consumer, &topic, &group, "&limit=1").await.messages()), [0]);
    let frozen = transactional(&stack.bootstrap(), &format!("kafka-gateway:1:{topic}:0:{group}"));
    let raw = raw_consumer(&stack.bootstrap(), &group, &[]);
    let metadata = raw.group_metadata().expect("metadata");
    frozen.send_offsets_to_transaction(&at(&topic, 0, 5), &metadata, PATIENCE).expect("sent");
    assert_eq!(offsets(consume(&consumer, &topic, &group, "").await.messages()), (1..10).collect::<Vec<_>>());
    assert!(frozen.commit_transaction(PATIENCE).is_err(), "when it thaws, it is fenced");
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(10));
}

#[tokio::test]
async fn a_position_that_a_tool_saved_and_puts_back_counts_at_the_next_call() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 3);
    let consumer = function("consume").await;
    let next = async || offsets(consume(&consumer, &topic, &group, "&limit=1&timeout_ms=0").await.messages());
    assert_eq!(next().await, [0]);
    // With its metadata, as Kafka's admin client lists it.
    let raw = raw_consumer(&stack.bootstrap(), &group, &[]);
    let saved = raw.committed_offsets(at(&topic, 0, 0), PATIENCE).expect("a position");
    assert!(saved.elements()[0].metadata().contains("kafka-gateway"), "{saved:?}");
    assert_eq!((next().await, next().await, next().await), (vec![1], vec![2], vec![]));
    commit_plainly(&raw, &saved);
    assert_eq!((next().await, next().await, next().await), (vec![1], vec![2], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_beyond_the_last_stable_offset_waits_and_holds_up_no_other_partition() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 20);
    // Records of an open transaction lie at the end of partition 0, and a tool that reads uncommitted sets the position
    // among them.
    let open = transactional(&stack.bootstrap(), &unique("open"));
    for _ in 0..5 {
        open.send(BaseRecord::<str, str>::to(&topic).payload("open").partition(0)).map_err(|it| it.0).expect("queued");
    }
    open.flush(PATIENCE).expect("written");
    let raw = raw_consumer(&stack.bootstrap(), &group, &[]);
    commit_plainly(&raw, &at(&topic, 0, 13));
    let settings = [("KAFKA_REQUEST_TIMEOUT_MS", "5000")];
    let consumer = function_with("consume", &settings).await;
    let answer = consume(&consumer, &topic, &group, "").await;
    assert_eq!(answer.messages().len(), 10, "the other partition's");
    assert!(consume(&consumer, &topic, &group, "&timeout_ms=200").await.messages().is_empty());
    open.commit_transaction(PATIENCE).expect("committed");
    let answer = consume(&consumer, &topic, &group, "&timeout_ms=10000").await;
    assert_eq!(offsets(answer.messages()), [13, 14], "it goes on where it was set");
}

#[tokio::test]
async fn a_log_that_has_expired_altogether_is_caught_up_with_once() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 20);
    assert_eq!(consume(&function("consume").await, &topic, &group, "&limit=5").await.messages().len(), 5);
    admin(&stack.bootstrap()).delete_records(&at(&topic, 0, 20), &AdminOptions::new()).await.expect("deleted");
    let consumer = function("consume").await;
    for _ in 0..2 {
        assert!(consume(&consumer, &topic, &group, "&timeout_ms=500").await.messages().is_empty());
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(20));
    assert_eq!(consumer.log_text().matches("outside of the log").count(), 1, "{}", consumer.log_text());
    fill(&stack.bootstrap(), &topic, 1, 1);
    assert_eq!(offsets(consume(&consumer, &topic, &group, "").await.messages()), [20]);
}

#[tokio::test]
async fn a_record_too_large_for_its_share_gets_an_answer_for_itself_however_busy_the_others_are() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    let consumer = function("consume").await;
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", stack.bootstrap()).create().expect("a producer");
    let send = |partition: i32, payload: &str| {
        let record = BaseRecord::<str, str>::to(&topic).payload(payload).partition(partition);
        producer.send(record).map_err(|it| it.0).expect("queued");
        producer.flush(PATIENCE).expect("written");
    };
    send(1, &"b".repeat(12_000));
    let mut calls = 0;
    loop {
        send(0, "x");
        let answer = consume(&consumer, &topic, &group, "&max_bytes=20000").await;
        if answer.messages().iter().any(|message| message["partition"] == 1) {
            break;
        }
        calls += 1;
        assert!(calls < 10, "it starves");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_one_broker_down_serves_a_group_that_was_taken_over() {
    let (mock, group) = (MockCluster::new(3).expect("a cluster"), unique("group"));
    mock.create_topic("t", 1, 1).expect("a topic");
    mock.partition_leader("t", 0, Some(1)).expect("a leader");
    mock.coordinator(MockCoordinator::Group(group.clone()), 1).expect("a coordinator");
    let server = mock.bootstrap_servers();
    fill(&server, "t", 1, 20);
    commit_plainly(&raw_consumer(&server, &group, &[]), &at("t", 0, 5));
    mock.broker_down(3).expect("down");
    // The mock cluster knows no transactions.
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_CONSUME_DELIVERY", "shared")];
    let consumer = function_with("consume", &settings).await;
    let answer = consume(&consumer, "t", &group, "&limit=3").await;
    assert_eq!(offsets(answer.messages()), [5, 6, 7], "a renewal that cannot be done now is put off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lags_behind_loses_nothing() {
    let (mock, group) = (MockCluster::new(2).expect("a cluster"), unique("group"));
    mock.create_topic("t", 1, 2).expect("a topic");
    mock.partition_leader("t", 0, Some(1)).expect("a leader");
    let server = mock.bootstrap_servers();
    // Two batches: the follower has the first one.
    fill(&server, "t", 1, 7);
    fill(&server, "t", 1, 3);
    mock.partition_follower("t", 0, 2).expect("a follower");
    mock.follower_watermarks("t", 0, Some(0), Some(7)).expect("watermarks");
    let settings = [
        ("KAFKA_BOOTSTRAP_SERVERS", server.as_str()),
        ("KAFKA_CONSUME_DELIVERY", "shared"),
        ("KAFKA_PROPERTIES", "client.rack=a"),
    ];
    let consumer = function_with("consume", &settings).await;
    let mut got = Vec::new();
    let answer = consume(&consumer, "t", &group, "&timeout_ms=500").await;
    got.extend(offsets(answer.messages()));
    mock.follower_watermarks("t", 0, Some(0), Some(10)).expect("watermarks");
    while got.len() < 10 {
        let answer = consume(&consumer, "t", &group, "&timeout_ms=4000").await;
        assert!(!answer.messages().is_empty(), "lost after {got:?}");
        got.extend(offsets(answer.messages()));
    }
    assert_eq!(got, (0..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_frozen_in_a_lease_is_told_so_when_it_thaws() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let (frozen, other, acker) = (function("consume").await, function("consume").await, function("acknowledge").await);
    let first = consume(&frozen, &topic, &group, "&ack=manual&lease_ms=1000&limit=4").await;
    assert!(frozen.idle(PATIENCE).await);
    frozen.freeze();
    let second = consume(&other, &topic, &group, "&ack=manual&timeout_ms=10000&limit=4").await;
    assert_eq!(offsets(second.messages()), [0, 1, 2, 3]);
    frozen.thaw();
    // Its claim is fenced; it finds the other's lease, and waits for its end like anybody.
    assert!(consume(&frozen, &topic, &group, "&timeout_ms=0").await.messages().is_empty());
    let accept = |answer: &crate::world::Answer| json!({ "token": answer.body["lease"]["token"], "type": "accept" });
    let path = "/kafka/consumer/acknowledge";
    let late = call(&acker, Event::post(path).json(&accept(&first))).await;
    assert_eq!((late.status, late.code()), (409, "lease_lost"));
    call(&acker, Event::post(path).json(&accept(&second))).await.ok();
    assert_eq!(offsets(consume(&frozen, &topic, &group, "").await.messages()), [4, 5, 6, 7, 8, 9]);
}
