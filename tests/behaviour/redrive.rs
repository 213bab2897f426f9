//! Dead letters that go back to where they came from: each once, as it was, whatever happens on the way.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Api, Event, Function, Stack};

use crate::acl::{CLAIMS, user};
use crate::consume::{committed, fill, offsets, raw_consumer};
use crate::kit::{Raw, noise, refused, write, write_on};
use crate::secured::{SECURED, function_as, secured};
use crate::wire::{ACKNOWLEDGE, Case, cases, each};
use crate::world::{
    Answer, admin, applies_since, call, consume, function, function_with, produce, topic, topic_on, unique,
};

/// The route of `redrive`.
pub(crate) const REDRIVE: &str = "/kafka/dlq/redrive";

/// The group whose position says which letters are back.
pub(crate) const GROUP: &str = "kafka-gateway-redrive";

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn redrive(function: &Function, topic: &str, more: &Value) -> Answer {
    let mut body = json!({ "dlq_topic": format!("{topic}.dlq") });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    call(function, Event::post(REDRIVE).json(&body)).await
}

/// Makes a topic's dead-letter topic.
pub(crate) async fn dead_letter_topic(server: &str, topic: &str, partitions: i32) -> String {
    let name = format!("{topic}.dlq");
    let new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    let created = admin(server).create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    for topic in created {
        topic.expect("created");
    }
    name
}

/// All of a topic, read as committed, by partition: partition and value.
pub(crate) fn all(server: &str, topic: &str) -> Vec<(i32, Raw)> {
    let settings = [("isolation.level", "read_committed"), ("enable.partition.eof", "true")];
    let reader: BaseConsumer = raw_consumer(server, "-", &settings);
    let metadata = reader.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let mut read = Vec::new();
    for partition in 0..i32::try_from(metadata.topics()[0].partitions().len()).expect("few") {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a place");
        reader.assign(&list).expect("assigned");
        loop {
            match reader.poll(PATIENCE).expect("records, or the end") {
                Err(KafkaError::PartitionEOF(_)) => break,
                Err(error) => println!("reading {topic}: {error}"),
                Ok(message) => {
                    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                    let record = Raw {
                        partition,
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: headers.map(|it| (it.key.to_owned(), it.value.map(<[u8]>::to_vec))).collect(),
                    };
                    read.push((partition, record));
                }
            }
        }
    }
    read
}

/// The values of a topic, which are numbers, sorted.
pub(crate) fn numbers(server: &str, topic: &str) -> Vec<usize> {
    let text = |value: Option<Vec<u8>>| String::from_utf8(value.expect("a value")).expect("text");
    let mut numbers: Vec<usize> =
        all(server, topic).into_iter().map(|(_, record)| text(record.value).parse().expect("a number")).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rejected_comes_back_as_it_was() {
    let (stack, topic, group) = (Stack::shared().await, topic(4).await, unique("group"));
    let (server, dlq) = (stack.bootstrap(), format!("{topic}.dlq"));
    let (producer, consumer, acker, redriver) =
        tokio::join!(function("produce"), function("consume"), function("acknowledge"), function("redrive"));
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    let odd = Raw {
        partition: 3,
        value: Some(vec![0, 0xfe]),
        headers: vec![
            header("a", Some(b"1")),
            header("a", None),
            header("dlq.reason", Some(b"older")),
            header("", None),
        ],
        ..Raw::default()
    };
    for n in 0..8 {
        let record = json!({ "topic": topic, "key": format!("key {n}"), "value": n.to_string() });
        produce(&producer, &record).await.ok();
    }
    produce(&producer, &json!({ "topic": topic, "key": "key 3", "value": null })).await.ok();
    write(&topic, &[odd]).await;
    let before = all(&server, &topic);
    let mut rejected = 0;
    while rejected < 10 {
        let leased = consume(&consumer, &topic, &group, "&ack=manual&timeout_ms=5000").await;
        rejected += leased.messages().len();
        let body = json!({ "token": leased.body["lease"]["token"], "type": "reject", "reason": "no good" });
        call(&acker, Event::post(ACKNOWLEDGE).json(&body)).await.ok();
    }
    // What would go back, and why; nothing moves.
    for _ in 0..2 {
        let shown = redrive(&redriver, &topic, &json!({ "dry_run": true })).await.ok();
        assert_eq!(
            [&shown["dlq_topic"], &shown["topic"], &shown["dry_run"], &shown["redriven"]],
            [&json!(dlq), &json!(topic), &json!(true), &json!(10)]
        );
        let records = shown["records"].as_array().expect("records");
        assert_eq!(records.len(), 10);
        assert!(records.iter().all(|record| record["reason"] == "rejected" && record["offset"].is_u64()), "{shown}");
        assert_eq!(committed(&server, GROUP, &dlq, 0), None);
        let shown = redrive(&redriver, &topic, &json!({ "dry_run": true, "limit": 3 })).await.ok();
        assert_eq!((shown["records"].as_array().map(Vec::len), &shown["redriven"]), (Some(3), &json!(3)));
    }
    assert_eq!(all(&server, &topic), before);

    let moved = redrive(&redriver, &topic, &json!({})).await.ok();
    assert_eq!((&moved["redriven"], &moved["dry_run"]), (&json!(10), &json!(false)));
    for result in moved["results"].as_array().expect("results") {
        let partition = i32::try_from(result["partition"].as_i64().expect("a partition")).expect("small");
        assert_eq!(result["status"], "moved");
        assert_eq!(committed(&server, GROUP, &dlq, partition), result["committed"].as_i64());
    }
    // Key, value, headers and partition: each twice now, and nothing else.
    let (mut after, mut twice) = (all(&server, &topic), [before.clone(), before].concat());
    let order = |records: &mut Vec<(i32, Raw)>| records.sort_by_key(|record| format!("{record:?}"));
    order(&mut after);
    order(&mut twice);
    assert_eq!(after, twice);
    // The group that has rejected them gets them again.
    let mut again = 0;
    while again < 10 {
        again += consume(&consumer, &topic, &group, "&timeout_ms=5000").await.messages().len();
    }
    let nothing = redrive(&redriver, &topic, &json!({})).await.ok();
    assert_eq!((&nothing["redriven"], &nothing["results"]), (&json!(0), &json!([])));
}

#[tokio::test]
async fn a_call_moves_as_many_as_it_is_told_and_the_next_goes_on() {
    let (stack, topic) = (Stack::shared().await, topic(3).await);
    let server = stack.bootstrap();
    let dlq = dead_letter_topic(&server, &topic, 2).await;
    fill(&server, &dlq, 2, 25);
    let redriver = function("redrive").await;
    let mut moved = Vec::new();
    loop {
        let answer = redrive(&redriver, &topic, &json!({ "limit": 10 })).await.ok();
        moved.push(answer["redriven"].as_u64().expect("a count"));
        assert_eq!(numbers(&server, &topic).len() as u64, moved.iter().sum::<u64>());
        if answer["redriven"] == 0 {
            break;
        }
    }
    assert_eq!(moved, [10, 10, 5, 0]);
    assert_eq!(numbers(&server, &topic), (0..25).collect::<Vec<_>>());
    assert_eq!([0, 1].map(|partition| committed(&server, GROUP, &dlq, partition)), [Some(13), Some(12)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_each_letter_goes_back_once() {
    const LETTERS: usize = 600;
    let (stack, topic) = (Stack::shared().await, topic(2).await);
    let server = stack.bootstrap();
    let dlq = dead_letter_topic(&server, &topic, 2).await;
    fill(&server, &dlq, 2, LETTERS);
    let mut running = tokio::task::JoinSet::new();
    for calls in ["1", "1", "4"] {
        let topic = topic.clone();
        running.spawn(async move {
            let redriver =
                std::sync::Arc::new(function_with("redrive", &[("AWS_LAMBDA_MAX_CONCURRENCY", calls)]).await);
            let mut side_by_side = tokio::task::JoinSet::new();
            for _ in 0..calls.parse().expect("a number") {
                let (redriver, topic) = (std::sync::Arc::clone(&redriver), topic.clone());
                side_by_side.spawn(async move {
                    let mut moved = 0;
                    loop {
                        let answer = redrive(&redriver, &topic, &json!({ "limit": 40 })).await;
                        match answer.status {
                            200 if answer.body["redriven"] == 0 => return moved,
                            // Some of a call that others got in the way of.
                            _ => moved += answer.body["redriven"].as_u64().unwrap_or_default(),
                        }
                    }
                });
            }
            side_by_side.join_all().await.into_iter().sum::<u64>()
        });
    }
    let moved = running.join_all().await;
    println!("letters by function: {moved:?}");
    assert_eq!(numbers(&server, &topic), (0..LETTERS).collect::<Vec<_>>(), "each once");
    assert_eq!(moved.iter().sum::<u64>(), LETTERS as u64);
}

/// What a redrive asks of Kafka, in this order; how many requests of the kind pass before.
const REDRIVING: [(Api, usize); 12] = [
    (Api::Metadata, 0),
    (Api::FindCoordinator, 0),
    (Api::ListOffsets, 0),
    (Api::OffsetFetch, 0),
    (Api::Fetch, 0),
    (Api::InitProducerId, 0),
    (Api::OffsetFetch, 1), // under the claim
    (Api::AddPartitionsToTxn, 0),
    (Api::Produce, 0),
    (Api::AddOffsetsToTxn, 0),
    (Api::TxnOffsetCommit, 0),
    (Api::EndTxn, 0),
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_cut_off_or_frozen_anywhere_none_is_lost_and_none_goes_back_twice() {
    each(cases(&REDRIVING), async |wire, case: Case| {
        let server = wire.broker.bootstrap();
        let topic = topic_on(&server, 1, &[]).await;
        let dlq = dead_letter_topic(&server, &topic, 1).await;
        fill(&server, &dlq, 1, 6);
        let event = Event::post(REDRIVE).json(&json!({ "dlq_topic": dlq }));
        let others = async || {
            let redriver = function_with("redrive", &[("KAFKA_BOOTSTRAP_SERVERS", &server)]).await;
            loop {
                let answer = redrive(&redriver, &topic, &json!({})).await;
                if answer.status == 200 && answer.body["redriven"] == 0 {
                    return;
                }
            }
        };
        let (answer, ()) = wire.strike(case, ("redrive", event), others).await;
        assert_eq!(numbers(&server, &topic), (0..6).collect::<Vec<_>>(), "{answer:?}");
        assert_eq!(committed(&server, GROUP, &dlq, 0), Some(6));
    })
    .await;
}

#[tokio::test]
async fn a_letter_that_cannot_go_back_is_named_and_those_before_it_go() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let server = stack.bootstrap();
    let dlq = dead_letter_topic(&server, &topic, 1).await;
    write(&dlq, &[Raw::value(0, "0"), Raw::value(0, "1"), Raw::value(0, noise(40_000)), Raw::value(0, "3")]).await;
    let small = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "20000");
    admin(&server).alter_configs([&small], &AdminOptions::new()).await.expect("an answer");
    let redriver = function("redrive").await;
    let answer = redrive(&redriver, &topic, &json!({})).await;
    assert_eq!((answer.status, answer.code()), (413, "record_too_large"));
    assert_eq!([&answer.body["partition"], &answer.body["offset"], &answer.body["redriven"]], [0, 2, 2]);
    assert_eq!(answer.body["topic"], dlq.as_str());
    let result = json!([{ "partition": 0, "status": "failed", "redriven": 2, "skipped": 0, "committed": 2 }]);
    assert_eq!(answer.body["results"], result);
    assert_eq!(numbers(&server, &topic), [0, 1]);
    // Whoever has seen to it goes on behind it, by the group's position.
    let seeker = function("seek").await;
    let behind = json!({ "group_id": GROUP, "topic": dlq, "partitions": { "0": 3 } });
    call(&seeker, Event::post("/kafka/consumer/seek").json(&behind)).await.ok();
    assert_eq!(redrive(&redriver, &topic, &json!({})).await.ok()["redriven"], 1);
    assert_eq!(numbers(&server, &topic), [0, 1, 3]);
}

#[tokio::test]
async fn large_letters_go_back_in_several_transactions() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let server = stack.bootstrap();
    let dlq = dead_letter_topic(&server, &topic, 1).await;
    let letters: Vec<Raw> = (0..9).map(|n| Raw::value(0, [vec![b'0' + n], noise(900_000)].concat())).collect();
    write(&dlq, &letters).await;
    let redriver = function_with("redrive", &[("KAFKA_REQUEST_TIMEOUT_MS", "25000")]).await;
    assert_eq!(redrive(&redriver, &topic, &json!({})).await.ok()["redriven"], 9);
    let firsts: Vec<u8> = all(&server, &topic).iter().map(|(_, it)| it.value.as_ref().expect("a value")[0]).collect();
    assert_eq!(firsts, (b'0'..=b'8').collect::<Vec<_>>(), "in their order");
}

#[tokio::test]
async fn what_is_no_dead_letter_topic_or_not_the_caller_s_stays_as_it_is() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let server = stack.bootstrap();
    let redriver = function("redrive").await;
    let body = |dlq: &str| json!({ "dlq_topic": dlq });
    let post = |dlq: &str| Event::post(REDRIVE).json(&body(dlq));
    for dlq in [topic.as_str(), ".dlq", "a.dlq.dlq", "a b.dlq", ""] {
        let answer = call(&redriver, post(dlq)).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{dlq}");
    }
    // Its letters are nowhere; or they are, but there is nowhere to go back to.
    let answer = call(&redriver, post(&format!("{topic}.dlq"))).await;
    assert_eq!((answer.status, answer.code()), (404, "topic_not_found"));
    assert_eq!(answer.body["topic"], format!("{topic}.dlq"));
    let (none, orders) = (unique("none"), unique("orders.x"));
    for origin in [&none, &orders] {
        let dlq = dead_letter_topic(&server, origin, 1).await;
        fill(&server, &dlq, 1, 1);
    }
    let answer = redrive(&redriver, &none, &json!({})).await;
    assert_eq!((answer.status, answer.code(), &answer.body["topic"]), (404, "topic_not_found", &json!(none)));
    assert!(!crate::kit::topics().await.contains(&none), "and none is made");

    for (client, dlq, code) in [
        ("gateway-none", format!("{orders}.dlq"), "forbidden"),
        ("gateway-reader", format!("{orders}.dlq"), "forbidden"),
        ("gateway-narrow", format!("{none}.dlq"), "topic_forbidden"),
        ("gateway-full", "__x.dlq".to_owned(), "topic_forbidden"),
    ] {
        assert_eq!(refused(&redriver, client, post(&dlq)).await, (403, code.to_owned()), "{client}");
    }
    let token = stack.token("gateway-narrow").await;
    let answer = Answer::read(&redriver.invoke(post(&format!("{orders}.dlq")).bearer(&token).build()).await);
    assert_eq!((answer.status, answer.code()), (404, "topic_not_found"), "an admin of both may");
    let shared = function_with("redrive", &[("KAFKA_CONSUME_DELIVERY", "shared")]).await;
    assert_eq!(call(&shared, post(&format!("{orders}.dlq"))).await.code(), "invalid_parameter");
    for partition in [0, 1] {
        assert_eq!(committed(&server, GROUP, &format!("{orders}.dlq"), partition), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_kafka_s_own_access_control_it_takes_the_readme_s_rows() {
    if !applies_since(4, 0, SECURED) {
        return;
    }
    let server = secured().await.broker().bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    let dlq = dead_letter_topic(&server, &topic, 1).await;
    fill(&server, &dlq, 1, 1);
    let reads: &[&str] = &["--topic", &dlq, "--operation", "Read"];
    let writes: &[&str] = &["--topic", &topic, "--operation", "Write"];
    let joins: &[&str] = &["--group", GROUP, "--operation", "Read"];
    let (reader, mover) = tokio::join!(user(vec![reads, joins, CLAIMS]), user(vec![reads, writes, joins, CLAIMS]));
    let answer = redrive(&function_as("redrive", &reader, &reader).await, &topic, &json!({})).await;
    assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"));
    assert_eq!(committed(&server, GROUP, &dlq, 0), None);
    let answer = redrive(&function_as("redrive", &mover, &mover).await, &topic, &json!({})).await;
    assert_eq!(answer.ok()["redriven"], 1);
    assert_eq!(numbers(&server, &topic), [0]);
}

#[tokio::test]
async fn letters_of_kafka_connect_and_of_other_suffixes_come_back_too() {
    let server = Stack::shared().await.bootstrap();
    let topic = topic(1).await;
    let name = format!("{topic}-dead");
    let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
    admin(&server).create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
    let letter = Raw {
        headers: vec![
            header("mine", "1"),
            header("__connect.errors.topic", "elsewhere"),
            header("__connect.errors.partition", "7"),
            header("__connect.errors.exception.class.name", "org.example.Broken"),
        ],
        ..Raw::value(0, "v")
    };
    write_on(&server, &name, &[letter]).await;
    let redriver = function_with("redrive", &[("DLQ_TOPIC_SUFFIX", "-dead")]).await;
    let ask = async |more: bool| {
        let body = json!({ "dlq_topic": name, "dry_run": more });
        call(&redriver, Event::post(REDRIVE).json(&body)).await.ok()
    };
    assert_eq!(ask(true).await["records"], json!([{ "partition": 0, "offset": 0, "reason": "org.example.Broken" }]));
    assert_eq!(ask(false).await["redriven"], 1);
    let back = all(&server, &topic);
    assert_eq!(back.len(), 1, "by its topic's name, never by a header");
    assert_eq!((&back[0].1.value, &back[0].1.headers), (&Some(b"v".to_vec()), &vec![header("mine", "1")]));
    let consumer = function("consume").await;
    assert_eq!(offsets(consume(&consumer, &topic, &unique("group"), "").await.messages()), [0]);
}
