//! How far groups are behind.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{commit_plainly, committed, fill, raw_consumer};
use crate::kit::{problem, refused};
use crate::seek::{live_member, protocols};
use crate::world::{Answer, admin, call, consume, function, function_with, topic, unique};

/// The route of `lag`.
const LAG: &str = "/kafka/consumer/lag";

async fn lag(function: &Function, query: &str) -> Answer {
    call(function, Event::get(LAG).query(query)).await
}

/// An ordinary offset commit, without a membership.
pub(crate) fn commit(bootstrap: &str, group: &str, topic: &str, partition: i32, offset: i64) {
    let mut position = TopicPartitionList::new();
    position.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
    commit_plainly(&raw_consumer(bootstrap, group, &[]), &position);
}

/// Partition, position, end and lag of each entry.
fn rows(answer: &Value) -> Value {
    let row = |entry: &Value| json!(["partition", "committed", "end", "lag"].map(|name| &entry[name]));
    answer["partitions"].as_array().expect("partitions").iter().map(row).collect()
}

#[tokio::test]
async fn lag_is_shown_partition_by_partition() {
    let (stack, topic, group) = (Stack::shared().await, topic(4).await, unique("group"));
    let server = stack.bootstrap();
    let function = function("lag").await;
    let query = format!("group_id={group}&topic={topic}");
    assert_eq!(rows(&lag(&function, &query).await.ok()), json!([0, 1, 2, 3].map(|n| json!([n, null, 0, 0]))));
    fill(&server, &topic, 4, 40);
    commit(&server, &group, &topic, 1, 4);
    commit(&server, &group, &topic, 2, 1);
    commit(&server, &group, &topic, 3, 10);
    // Retention takes the beginning of two logs.
    let mut before = TopicPartitionList::new();
    for partition in [0, 2] {
        before.add_partition_offset(&topic, partition, Offset::Offset(3)).expect("an offset");
    }
    admin(&server).delete_records(&before, &AdminOptions::new()).await.expect("deleted");
    let answer = lag(&function, &query).await.ok();
    assert_eq!(rows(&answer), json!([[0, null, 10, 7], [1, 4, 10, 6], [2, 1, 10, 7], [3, 10, 10, 0]]));
    assert_eq!((&answer["group_id"], &answer["total_lag"]), (&json!(group), &json!(20)));
    assert!(answer["partitions"].as_array().is_some_and(|all| all.iter().all(|entry| entry["topic"] == topic)));
    assert!(function.idle(Duration::from_secs(5)).await);
    commit(&server, &group, &topic, 3, 15);
    assert_eq!(lag(&function, &query).await.ok()["partitions"][3]["lag"], 0, "beyond the end there is nothing");
}

#[tokio::test]
async fn lag_shows_leases_and_none_of_their_secrets() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 20);
    let (consumer, function) = (function("consume").await, function("lag").await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=6&lease_ms=60000").await;
    let partition = usize::try_from(leased.messages()[0]["partition"].as_u64().expect("a partition")).expect("small");
    let answer = lag(&function, &format!("group_id={group}&topic={topic}")).await.ok();
    let entry = &answer["partitions"][partition];
    assert_eq!((&entry["committed"], &entry["lag"]), (&json!(0), &json!(10)), "leased is not done");
    assert_eq!(entry["lease"], json!({ "end": 6, "expires_at": leased.body["lease"]["expires_at"] }));
    assert!(answer["partitions"][1 - partition].get("lease").is_none(), "{answer}");
    assert_eq!(answer["total_lag"], 20);
}

/// A producer with a transaction that has begun.
fn transaction(bootstrap: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", unique("transaction"))
        .create()
        .expect("a producer");
    producer.init_transactions(Duration::from_secs(10)).expect("initialised");
    producer.begin_transaction().expect("begun");
    producer
}

#[tokio::test]
async fn lag_ends_at_the_last_stable_offset() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 5);
    let function = function("lag").await;
    let producer = transaction(&stack.bootstrap());
    for value in ["a", "b"] {
        let record = BaseRecord::<str, str>::to(&topic).payload(value).partition(0);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(Duration::from_secs(10)).expect("written");
    let query = format!("group_id={group}&topic={topic}");
    assert_eq!(rows(&lag(&function, &query).await.ok()), json!([[0, null, 5, 5]]), "while the transaction is open");
    producer.commit_transaction(Duration::from_secs(10)).expect("committed");
    // Two records and the transaction's marker.
    while rows(&lag(&function, &query).await.ok()) != json!([[0, null, 8, 8]]) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_commit_that_hangs_does_not_hold_lag_up() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    let server = stack.bootstrap();
    fill(&server, &topic, 2, 20);
    commit(&server, &group, &topic, 0, 2);
    let function = function("lag").await;
    let producer = transaction(&server);
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&topic, 0, Offset::Offset(7)).expect("an offset");
    let metadata = raw_consumer(&server, &group, &[]).group_metadata().expect("of the group");
    producer.send_offsets_to_transaction(&offsets, &metadata, Duration::from_secs(10)).expect("sent");
    for query in [format!("group_id={group}&topic={topic}"), format!("group_id={group}")] {
        assert_eq!(rows(&lag(&function, &query).await.ok()), json!([[0, 2, 10, 8], [1, null, 10, 10]]));
    }
    producer.commit_transaction(Duration::from_secs(10)).expect("nobody has ended it");
    let query = format!("group_id={group}&topic={topic}");
    assert_eq!(rows(&lag(&function, &query).await.ok()), json!([[0, 7, 10, 3], [1, null, 10, 10]]));
}

#[tokio::test]
async fn a_group_s_topics_are_those_that_the_caller_may_read() {
    let stack = Stack::shared().await;
    let server = stack.bootstrap();
    let [eu, other] = ["orders.eu", "payments"].map(unique);
    for name in [&eu, &other] {
        let created = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        admin(&server).create_topics([&created], &AdminOptions::new()).await.expect("an answer");
        fill(&server, name, 1, 10);
    }
    let unread = topic(1).await;
    fill(&server, &unread, 1, 10);
    let function = function("lag").await;
    let [ours, theirs] = ["team-a", "team-b"].map(unique);
    commit(&server, &ours, &eu, 0, 3);
    commit(&server, &ours, &other, 0, 9);
    let by = |answer: &Value| -> Vec<Value> {
        answer["partitions"].as_array().expect("partitions").iter().map(|entry| entry["topic"].clone()).collect()
    };
    let all = lag(&function, &format!("group_id={ours}")).await.ok();
    let mut topics = by(&all);
    topics.sort_by_key(ToString::to_string);
    assert_eq!((topics, &all["total_lag"]), (vec![json!(eu), json!(other)], &json!(8)), "only where it has a position");
    let token = stack.token("gateway-narrow").await;
    let event = |query: String| Event::get(LAG).query(&query);
    let seen = function.invoke(event(format!("group_id={ours}")).bearer(&token).build()).await;
    let seen = Answer::read(&seen).ok();
    assert_eq!((by(&seen), &seen["total_lag"]), (vec![json!(eu)], &json!(7)));
    let named = function.invoke(event(format!("group_id={ours}&topic={eu}")).bearer(&token).build()).await;
    assert_eq!(Answer::read(&named).ok()["total_lag"], 7);
    for query in [
        format!("group_id={ours}&topic={other}"),
        format!("group_id={theirs}&topic={eu}"),
        format!("group_id={theirs}"),
    ] {
        let refused = problem(&function.invoke(event(query).bearer(&token).build()).await);
        assert_eq!(refused, (403, "topic_forbidden".to_owned()));
    }
    assert_eq!(
        refused(&function, "gateway-none", event(format!("group_id={ours}"))).await,
        (403, "forbidden".to_owned())
    );
    // A group that nobody knows is behind nowhere, and on a named topic it would begin at the start.
    let unknown = lag(&function, &format!("group_id={theirs}")).await.ok();
    assert_eq!(unknown, json!({ "group_id": theirs, "total_lag": 0, "partitions": [] }));
    assert_eq!(rows(&lag(&function, &format!("group_id={theirs}&topic={eu}")).await.ok()), json!([[0, null, 10, 10]]));
    for (query, status, code) in [
        (String::new(), 400, "missing_parameter"),
        (format!("group_id={ours}&topic=a%20b"), 400, "invalid_parameter"),
        (format!("group_id={ours}&partition=0"), 400, "invalid_parameter"),
        (format!("group_id={ours}&topic={}", unique("none")), 404, "topic_not_found"),
        (format!("group_id={ours}&topic=__consumer_offsets"), 403, "topic_forbidden"),
    ] {
        let answer = lag(&function, &query).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{query}");
    }
}

#[tokio::test]
async fn live_members_are_looked_at_and_left_alone() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let server = stack.bootstrap();
    fill(&server, &topic, 1, 10);
    let function = function("lag").await;
    for &protocol in protocols() {
        let group = unique("group");
        let member = live_member(&server, &group, &topic, protocol);
        let mut position = TopicPartitionList::new();
        position.add_partition_offset(&topic, 0, Offset::Offset(6)).expect("an offset");
        member.commit(&position, CommitMode::Sync).expect("committed");
        for query in [format!("group_id={group}&topic={topic}"), format!("group_id={group}")] {
            assert_eq!(rows(&lag(&function, &query).await.ok()), json!([[0, 6, 10, 4]]), "{protocol}");
        }
        position.set_all_offsets(Offset::Offset(8)).expect("an offset");
        member.commit(&position, CommitMode::Sync).expect("it still is a member");
        assert_eq!(committed(&server, &group, &topic, 0), Some(8));
    }
}

#[tokio::test]
async fn without_a_broker_it_is_unavailable() {
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"), ("KAFKA_REQUEST_TIMEOUT_MS", "1500")];
    let (lags, seeker) = (function_with("lag", &settings).await, function_with("seek", &settings).await);
    for query in ["group_id=g", "group_id=g&topic=t"] {
        let answer = lag(&lags, query).await;
        assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"), "{query}");
    }
    let answer = crate::seek::seek(&seeker, &json!({ "group_id": "g", "topic": "t", "to": "latest" })).await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
}
