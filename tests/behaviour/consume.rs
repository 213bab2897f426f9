//! Exclusive consuming: no record twice, none lost, whoever else touches the group.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::kit::{Raw, write};
use crate::world::{admin, applies_since, call, consume, function, function_with, produce, topic, unique};

/// Writes records `0..count` with a raw client, round robin over the partitions.
pub(crate) fn fill(bootstrap: &str, topic: &str, partitions: i32, count: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .expect("a producer");
    for n in 0..count {
        let value = n.to_string();
        let partition = i32::try_from(n).expect("small") % partitions;
        let record = BaseRecord::<str, str>::to(topic).payload(&value).partition(partition);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(Duration::from_secs(30)).expect("written");
}

pub(crate) fn values(messages: &[Value]) -> Vec<usize> {
    messages.iter().map(|message| message["value"].as_str().expect("text").parse().expect("a number")).collect()
}

pub(crate) fn offsets(messages: &[Value]) -> Vec<i64> {
    messages.iter().map(|message| message["offset"].as_i64().expect("an offset")).collect()
}

/// A consumer of the raw client, as a look from outside.
pub(crate) fn raw_consumer(bootstrap: &str, group: &str, more: &[(&str, &str)]) -> BaseConsumer {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", bootstrap).set("group.id", group).set("enable.auto.commit", "false");
    for (name, value) in more {
        settings.set(*name, *value);
    }
    settings.create().expect("a consumer")
}

/// Commits plainly. A new broker's coordinators may still be on their way, and then say so.
pub(crate) fn commit_plainly(consumer: &BaseConsumer, position: &TopicPartitionList) {
    use rdkafka::error::RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    let begun = Instant::now();
    while let Err(error) = consumer.commit(position, CommitMode::Sync) {
        let passing = [CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator].map(Some);
        let patient = begun.elapsed() < Duration::from_secs(30);
        assert!(patient && passing.contains(&error.rdkafka_error_code()), "committed: {error}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) fn committed(bootstrap: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let consumer = raw_consumer(bootstrap, group, &[]);
    let read = consumer.committed_offsets(asked, Duration::from_secs(10)).expect("positions");
    match read.find_partition(topic, partition).expect("the partition").offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_functions_get_ten_thousand_records_each_exactly_once() {
    const RECORDS: usize = 10_000;
    let (stack, topic, group) = (Stack::shared().await, topic(3).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 3, RECORDS);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (topic, group) = (topic.clone(), group.clone());
        running.spawn(async move {
            let consumer = function("consume").await;
            let (mut got, mut last): (Vec<usize>, HashMap<i64, i64>) = (Vec::new(), HashMap::new());
            loop {
                let answer = consume(&consumer, &topic, &group, "&limit=100&timeout_ms=1500").await;
                if answer.messages().is_empty() {
                    return got;
                }
                for message in answer.messages() {
                    let (partition, offset) = (message["partition"].as_i64(), message["offset"].as_i64());
                    let (partition, offset) = (partition.expect("a partition"), offset.expect("an offset"));
                    let before = last.insert(partition, offset);
                    assert!(before.is_none_or(|before| before < offset), "order is kept within a partition");
                }
                got.extend(values(answer.messages()));
            }
        });
    }
    let shares = running.join_all().await;
    let mut all: Vec<usize> = shares.iter().flatten().copied().collect();
    println!("records by function: {:?}", shares.iter().map(Vec::len).collect::<Vec<_>>());
    all.sort_unstable();
    assert_eq!(all, (0..RECORDS).collect::<Vec<_>>(), "each record exactly once");
    for partition in 0..3 {
        let expected = i64::try_from((RECORDS + 2 - usize::try_from(partition).expect("small")) / 3).expect("small");
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, partition), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_want_the_same_partition_all_get_their_turns() {
    // So many that none is done with them before the others' second of courtesy is over.
    const RECORDS: usize = 6000;
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, RECORDS);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (topic, group) = (topic.clone(), group.clone());
        running.spawn(async move {
            let consumer = function("consume").await;
            let mut got = Vec::new();
            loop {
                let answer = consume(&consumer, &topic, &group, "&limit=5&timeout_ms=1000").await;
                if answer.messages().is_empty() {
                    return got;
                }
                got.extend(values(answer.messages()));
            }
        });
    }
    let shares = running.join_all().await;
    println!("records by function: {:?}", shares.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(shares.iter().all(|share| !share.is_empty()), "nobody starves");
    let mut all: Vec<usize> = shares.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (0..RECORDS).collect::<Vec<_>>());
}

#[tokio::test]
async fn all_partitions_are_served_and_several_at_once() {
    let (stack, topic, group) = (Stack::shared().await, topic(3).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 3, 30);
    let consumer = function("consume").await;
    let answer = consume(&consumer, &topic, &group, "&limit=30").await;
    let mut got = values(answer.messages());
    got.sort_unstable();
    assert_eq!(got, (0..30).collect::<Vec<_>>(), "one call reaches over all partitions");
    // With more waiting in each than one call takes, no partition waits for ever: a few calls go on with what was fetched
    // ahead, then the partition that was served longest ago comes first.
    fill(&stack.bootstrap(), &topic, 3, 600);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..15 {
        let answer = consume(&consumer, &topic, &group, "&limit=5").await;
        seen.extend(answer.messages().iter().map(|message| message["partition"].as_i64()));
    }
    assert_eq!(seen.len(), 3, "three partitions in fifteen calls");
}

#[tokio::test]
async fn a_reset_by_kafkas_own_tools_counts_at_the_next_call() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 20);
    let consumer = function("consume").await;
    let answer = consume(&consumer, &topic, &group, "&limit=10").await;
    assert_eq!(offsets(answer.messages()), (0..10).collect::<Vec<_>>());
    for (to, first) in [(3, 3), (15, 15), (0, 0)] {
        let offset = to.to_string();
        let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
        let args = ["--group", &group, "--topic", &topic];
        let reset = ["--reset-offsets", "--to-offset", &offset, "--execute"];
        let said = stack.kafka_tool(tool, &[&args[..], &reset[..]].concat()).await;
        assert!(said.contains("NEW-OFFSET"), "{said}");
        let answer = consume(&consumer, &topic, &group, "&limit=2").await;
        assert_eq!(offsets(answer.messages()), [first, first + 1], "after a reset to {to}");
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(first + 2), "and is not overwritten");
    }
}

#[tokio::test]
async fn a_group_takes_over_from_ordinary_consumers_and_back() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let ordinary = raw_consumer(&stack.bootstrap(), &group, &[]);
    let mut offsets_before = TopicPartitionList::new();
    offsets_before.add_partition_offset(&topic, 0, Offset::Offset(4)).expect("an offset");
    commit_plainly(&ordinary, &offsets_before);
    let consumer = function("consume").await;
    let answer = consume(&consumer, &topic, &group, "&limit=2").await;
    assert_eq!(offsets(answer.messages()), [4, 5]);
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(6));
}

async fn refused_while_members_live(protocol: &[(&str, &str)]) {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leased = crate::world::topic(1).await;
    fill(&stack.bootstrap(), &leased, 1, 5);
    let lease = consume(&consumer, &leased, &group, "&ack=manual&lease_ms=600000").await;
    let accept = json!({ "token": lease.body["lease"]["token"], "type": "accept" });
    let accept = || call(&acker, Event::post("/kafka/consumer/acknowledge").json(&accept));
    let member = raw_consumer(&stack.bootstrap(), &group, protocol);
    member.subscribe(&[&topic]).expect("subscribed");
    let assigned = || member.assignment().expect("an assignment").count() > 0;
    while !assigned() {
        let _ = member.poll(Duration::from_millis(50));
    }
    let refused = consume(&consumer, &topic, &group, "&timeout_ms=0").await;
    assert_eq!((refused.status, refused.code()), (409, "group_in_use"));
    assert_eq!(refused.body["retryable"], true);
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), None, "nothing was committed over their heads");
    // The same without records to hand out.
    let empty = crate::world::topic(1).await;
    let refused = consume(&consumer, &empty, &group, "&timeout_ms=0").await;
    assert_eq!((refused.status, refused.code()), (409, "group_in_use"));
    // The same for the lease that was given before they came: it stays as it is.
    let refused = accept().await;
    assert_eq!((refused.status, refused.code()), (409, "group_in_use"));
    assert_eq!(committed(&stack.bootstrap(), &group, &leased, 0), Some(0));
    drop(member);
    let answer = loop {
        let answer = consume(&consumer, &topic, &group, "").await;
        if answer.status == 200 {
            break answer;
        }
        assert!(["group_in_use", "broker_unavailable"].contains(&answer.code()), "{answer:?}");
    };
    assert_eq!(offsets(answer.messages()), (0..10).collect::<Vec<_>>(), "when they have gone, the group is free");
    assert_eq!(accept().await.ok()["results"][0]["committed"], 5);
}

#[tokio::test]
async fn a_group_with_live_classic_members_is_refused() {
    refused_while_members_live(&[("group.protocol", "classic"), ("heartbeat.interval.ms", "500")]).await;
}

#[tokio::test]
async fn a_group_with_live_kip_848_members_is_refused() {
    if !applies_since(4, 0, "KIP-848 is a preview at most") {
        return;
    }
    refused_while_members_live(&[("group.protocol", "consumer")]).await;
}

#[tokio::test]
async fn start_latest_is_fixed_by_the_first_such_call_also_where_others_began_elsewhere() {
    let (topic, group, consumer) = (topic(2).await, unique("group"), function("consume").await);
    let records: Vec<Raw> = (0..8).map(|n: usize| Raw::value(0, n.to_string())).collect();
    write(&topic, &records).await;
    // It has the next ones at hand then.
    assert_eq!(offsets(consume(&consumer, &topic, &group, "&limit=2").await.messages()), [0, 1]);
    assert_eq!(offsets(consume(&consumer, &topic, &group, "&limit=2&start=latest").await.messages()), [2, 3]);
    write(&topic, &[Raw::value(1, "after the first such call")]).await;
    let mut others = 0;
    loop {
        let answer = consume(&consumer, &topic, &group, "&limit=2&start=latest&timeout_ms=500").await;
        if answer.messages().is_empty() {
            break;
        }
        others += answer.messages().iter().filter(|message| message["partition"] == 1).count();
    }
    assert_eq!(others, 1);
}

#[tokio::test]
async fn start_latest_is_fixed_by_the_first_call() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 10);
    let first = function("consume").await;
    let answer = consume(&first, &topic, &group, "&start=latest&timeout_ms=0").await;
    assert!(answer.messages().is_empty());
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(5));
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 1), Some(5));
    fill(&stack.bootstrap(), &topic, 2, 4);
    // Another function, later: what came in between is not lost.
    let second = function("consume").await;
    let mut got = offsets(consume(&second, &topic, &group, "&start=latest").await.messages());
    got.sort_unstable();
    assert_eq!(got, [5, 5, 6, 6]);
}

#[tokio::test]
async fn a_position_outside_of_the_log_goes_on_from_its_start() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 20);
    let consumer = function("consume").await;
    assert_eq!(consume(&consumer, &topic, &group, "&limit=5").await.messages().len(), 5);
    // A new function, since the first one may have fetched ahead.
    let consumer = function("consume").await;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(12)).expect("an offset");
    admin(&stack.bootstrap()).delete_records(&before, &rdkafka::admin::AdminOptions::new()).await.expect("deleted");
    let answer = consume(&consumer, &topic, &group, "&limit=3").await;
    assert_eq!(offsets(answer.messages()), [12, 13, 14]);
    let log = consumer.log_text();
    assert!(log.contains("outside of the log"), "{log}");
    // Beyond the end: as after the topic was made anew.
    let mut beyond = TopicPartitionList::new();
    beyond.add_partition_offset(&topic, 0, Offset::Offset(500)).expect("an offset");
    let raw = raw_consumer(&stack.bootstrap(), &group, &[]);
    commit_plainly(&raw, &beyond);
    let answer = consume(&consumer, &topic, &group, "&limit=2").await;
    assert_eq!(offsets(answer.messages()), [12, 13]);
}

#[tokio::test]
async fn a_waiting_call_gets_a_record_that_comes_meanwhile() {
    let (topic, group) = (topic(2).await, unique("group"));
    let (producer, consumer) = (function("produce").await, function("consume").await);
    let (answer, receipt) = tokio::join!(consume(&consumer, &topic, &group, "&timeout_ms=20000"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        produce(&producer, &json!({ "topic": topic, "value": "now" })).await.ok()
    });
    assert_eq!(answer.messages().len(), 1);
    assert_eq!(answer.messages()[0]["offset"], receipt["offset"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_delivery_loses_nothing_and_needs_no_transactions() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 1000);
    let shared = [("KAFKA_CONSUME_DELIVERY", "shared")];
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (topic, group) = (topic.clone(), group.clone());
        running.spawn(async move {
            let consumer: Function = function_with("consume", &shared).await;
            let mut got = Vec::new();
            loop {
                let answer = consume(&consumer, &topic, &group, "&limit=100&timeout_ms=500").await;
                if answer.messages().is_empty() {
                    return got;
                }
                got.extend(values(answer.messages()));
            }
        });
    }
    let mut all: Vec<usize> = running.join_all().await.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (0..1000).collect::<Vec<_>>(), "each at least once");
}
