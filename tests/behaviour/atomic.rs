//! Batches with `atomic: true`: who reads committed records sees all of a batch, or none, whatever happens to it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Api, At, Event, Function, Stack};

use crate::batch::{BATCH, batch, read, results};
use crate::consume::raw_consumer;
use crate::kit::{Raw, write_on};
use crate::registry::register;
use crate::wire::{Fault, Wire, cases, each};
use crate::world::{Answer, call, function, function_with, topic, topic_on, unique};

/// Longer than the broker takes to abort a transaction that nobody ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an atomic batch asks of Kafka; how many requests of the kind pass before. (The sandbox's other producer has asked
/// at its start.)
const STEPS: [(Api, usize); 6] = [
    (Api::FindCoordinator, 0),
    (Api::InitProducerId, 0),
    (Api::AddPartitionsToTxn, 0),
    (Api::Produce, 0),
    (Api::Produce, 1),
    (Api::EndTxn, 0),
];

fn atomic(records: &[Value]) -> Value {
    json!({ "atomic": true, "records": records })
}

/// The values that a reader of committed records finds in a topic, when no transaction there is open any more.
async fn committed(server: &str, topic: &str, partitions: i32) -> Vec<String> {
    let end = unique("end");
    let ends: Vec<_> = (0..partitions).map(|partition| Raw::value(partition, end.clone())).collect();
    write_on(server, topic, &ends).await;
    let consumer = raw_consumer(server, "-", &[("isolation.level", "read_committed")]);
    let mut assigned = TopicPartitionList::new();
    for partition in 0..partitions {
        assigned.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
    }
    let reading = move || {
        consumer.assign(&assigned).expect("assigned");
        let (begun, mut values, mut ended) = (Instant::now(), Vec::new(), 0);
        while ended < partitions {
            assert!(begun.elapsed() < PATIENCE, "what was written after it is not readable: {} records", values.len());
            let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
            let message = message.expect("a record");
            let value = String::from_utf8_lossy(message.payload().expect("a value")).into_owned();
            if value == end {
                ended += 1;
            } else if !value.starts_with("end-") {
                values.push(value);
            }
        }
        values.sort_unstable();
        values
    };
    tokio::task::spawn_blocking(reading).await.expect("no panic")
}

#[tokio::test]
async fn topics_that_the_broker_makes_take_atomic_batches_too() {
    let producer = function_with("produce-batch", &[("KAFKA_AUTO_CREATE_TOPICS", "true")]).await;
    let server = Stack::shared().await.bootstrap();
    for _ in 0..3 {
        let topics = [unique("made"), unique("made")];
        let records = topics.each_ref().map(|topic| json!({ "topic": topic, "value": "v", "partition": 0 }));
        batch(&producer, &atomic(&records)).await.ok();
        for topic in topics {
            assert_eq!(committed(&server, &topic, 1).await, ["v"]);
        }
    }
}

#[tokio::test]
async fn the_records_of_an_atomic_batch_are_all_there_one_batch_after_the_other() {
    let (producer, topics) = (function("produce-batch").await, [topic(2).await, topic(1).await]);
    for round in 0..3 {
        let record = |n: usize| json!({ "id": n, "topic": topics[n % 2], "key": format!("k{}", n % 5), "value": format!("{round} {n:02}") });
        let answer = batch(&producer, &atomic(&(0..40).map(record).collect::<Vec<_>>())).await;
        let receipts = results(&answer, 200);
        for (n, receipt) in receipts.iter().enumerate() {
            assert_eq!((&receipt["id"], &receipt["topic"]), (&json!(n), &json!(topics[n % 2])));
        }
        for (of, topic) in topics.iter().enumerate() {
            let read = read(topic, "").await;
            for receipt in receipts.iter().skip(of).step_by(2) {
                let messages = &read[&receipt["partition"].as_u64().expect("a partition")];
                let message = messages.iter().find(|message| message["offset"] == receipt["offset"]).expect("it");
                assert_eq!(message["value"], format!("{round} {:02}", receipt["id"].as_u64().expect("a number")));
            }
            let all: Vec<_> = read.values().flatten().map(|message| message["value"].as_str().expect("text")).collect();
            assert_eq!(all.len(), 20 * (round + 1));
            for messages in read.values() {
                assert!(messages.iter().map(|message| message["value"].as_str()).is_sorted(), "in their order");
            }
        }
    }
    let one = batch(&producer, &json!({ "topic": topics[0], "atomic": true, "records": [{ "value": null }] })).await;
    results(&one, 200);
}

/// Sends a batch whose record `at` is at fault.
async fn aborted(producer: &Function, records: &[Value], at: usize, expected: (u64, &str)) -> Value {
    let answer = batch(producer, &atomic(records)).await;
    assert_eq!((answer.status, answer.code()), expected, "{answer:?}");
    for (n, result) in results(&answer, expected.0).iter().enumerate() {
        let expected = if n == at { expected } else { (424, "transaction_aborted") };
        assert_eq!(
            (result["status"].as_u64(), result["code"].as_str()),
            (Some(expected.0), Some(expected.1)),
            "{n}: {result}"
        );
    }
    answer.body
}

#[tokio::test]
async fn a_record_at_fault_is_named_and_nothing_is_written() {
    let (producer, stack) = (function("produce-batch").await, Stack::shared().await);
    let (topic, absent) = (topic(2).await, unique("absent"));
    let compacted = topic_on(&stack.bootstrap(), 1, &[("cleanup.policy", "compact")]).await;
    let good = |n: usize| json!({ "topic": topic, "value": n.to_string(), "partition": n % 2 });
    for (fault, expected) in [
        (json!({ "topic": absent, "value": "v" }), (404, "topic_not_found")),
        (json!({ "topic": topic, "value": "v", "partition": 2 }), (404, "partition_not_found")),
        (json!({ "topic": topic }), (400, "missing_parameter")),
        (json!({ "topic": topic, "value": 1, "value_format": "string" }), (422, "unprocessable_record")),
        (json!({ "topic": "__internal", "value": 1 }), (403, "topic_forbidden")),
        // Only the broker finds these.
        (json!({ "topic": topic, "value": "x".repeat(1_500_000) }), (413, "record_too_large")),
        (json!({ "topic": compacted, "value": "no key" }), (422, "unprocessable_record")),
    ] {
        for at in [0, 25, 49] {
            let mut records: Vec<_> = (0..49).map(good).collect();
            records.insert(at, fault.clone());
            aborted(&producer, &records, at, expected).await;
        }
    }
    let several = [good(0), json!({ "topic": absent, "value": 1 }), good(1), json!({ "topic": topic })];
    let answer = batch(&producer, &atomic(&several)).await;
    assert_eq!(answer.code(), "topic_not_found", "the first of them");
    let statuses: Vec<_> = results(&answer, 404).iter().map(|result| result["status"].clone()).collect();
    assert_eq!(statuses, [424, 404, 424, 400].map(Value::from));
    assert!(committed(&stack.bootstrap(), &topic, 2).await.is_empty());
    results(&batch(&producer, &atomic(&[good(7)])).await, 200);
    assert_eq!(committed(&stack.bootstrap(), &topic, 2).await, ["7"], "and the next one goes through");
}

#[tokio::test]
async fn records_that_fit_one_by_one_are_written() {
    let (producer, stack) = (function("produce-batch").await, Stack::shared().await);
    // librdkafka sends up to 1 MB in one request, which this topic takes for one record too large.
    let small = topic_on(&stack.bootstrap(), 1, &[("max.message.bytes", "10000")]).await;
    let mut records: Vec<_> =
        (10..70).map(|n| json!({ "topic": small, "value": n.to_string().repeat(1000) })).collect();
    results(&batch(&producer, &atomic(&records)).await, 200);
    let values = committed(&stack.bootstrap(), &small, 1).await;
    assert_eq!(values, (10..70).map(|n| n.to_string().repeat(1000)).collect::<Vec<_>>());
    records[30]["value"] = json!("x".repeat(20_000));
    aborted(&producer, &records, 30, (413, "record_too_large")).await;
    assert_eq!(committed(&stack.bootstrap(), &small, 1).await.len(), 60);
}

#[tokio::test]
async fn what_does_not_fit_its_schema_aborts_the_batch_and_is_kept() {
    const SCHEMA: &str = r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#;
    let stack = Stack::shared().await;
    let settings = [("SCHEMA_REGISTRY_URL", stack.registry().await), ("SCHEMA_ON_INVALID", "dlq")];
    let (producer, topic) = (function_with("produce-batch", &settings).await, topic(1).await);
    register(&format!("{topic}-value"), "JSON", SCHEMA, &json!([])).await;
    let record = |n: Value| json!({ "topic": topic, "value": { "n": n } });
    let records = [record(json!(1)), record(json!("x")), record(json!(2))];
    let problem = aborted(&producer, &records, 1, (422, "schema_validation_failed")).await;
    let place = json!({ "topic": format!("{topic}.dlq"), "partition": 0, "offset": 0 });
    assert_eq!(problem["results"][1]["dead_letter"], place);
    assert!(committed(&stack.bootstrap(), &topic, 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_seen_whole_or_not_at_all_whatever_happens_to_its_function() {
    each(cases(&STEPS), async |wire, case| {
        let server = wire.broker.bootstrap();
        let topic = topic_on(&server, 2, &[]).await;
        let records: Vec<_> =
            (10..40).map(|n| json!({ "topic": topic, "value": n.to_string(), "partition": n % 2 })).collect();
        let all: Vec<_> = (10..40).map(|n| n.to_string()).collect();
        let event = Event::post(BATCH).json(&atomic(&records));
        let whole = |values: &[String]| values.is_empty() || values == all;
        let others = async || {
            let values = committed(&server, &topic, 2).await;
            assert!(whole(&values), "{values:?}");
            values
        };
        let (answer, meanwhile) = wire.strike(case, ("produce-batch", event), others).await;
        let values = committed(&server, &topic, 2).await;
        assert!(whole(&values), "{values:?}");
        assert!(meanwhile.is_empty() || meanwhile == values, "what was seen stays");
        let seen = !values.is_empty();
        match answer {
            None => assert_eq!(seen, case.commits()),
            Some(answer) if answer.status == 200 => assert!(seen, "{answer:?}"),
            Some(answer) => {
                assert_ne!(case.fault, Fault::Cut, "what it was not told it asked again: {answer:?}");
                match answer.body["outcome"].as_str() {
                    Some("aborted") => assert!(!seen, "{answer:?}"),
                    Some("unknown") => assert_eq!(answer.status, 504),
                    other => panic!("{other:?}: {answer:?}"),
                }
            }
        }
    })
    .await;
}

/// A function whose calls take 3 s at the most, and something that is not answered in that time. The topic, the answer,
/// and what is seen when the answer to it has come after all.
async fn not_answered(api: Api, at: At) -> (Answer, Vec<String>) {
    let wire = Wire::shared().await;
    let (topic, id) = (topic_on(&wire.broker.bootstrap(), 1, &[]).await, unique("victim"));
    let (server, properties) = (wire.proxy.bootstrap(), format!("client.id={id}"));
    let settings = [
        ("KAFKA_BOOTSTRAP_SERVERS", server.as_str()),
        ("KAFKA_PROPERTIES", &properties),
        ("KAFKA_REQUEST_TIMEOUT_MS", "3000"),
    ];
    let producer = function_with("produce-batch", &settings).await;
    let caught = wire.proxy.catch(&id, (api, at), "", 0);
    let records: Vec<_> = (0..10).map(|n| json!({ "topic": topic, "value": n.to_string() })).collect();
    let answer = batch(&producer, &atomic(&records)).await;
    caught.await.expect("it was sent").pass();
    // The sandbox lives on, and serves the next call.
    results(&batch(&producer, &atomic(&[json!({ "topic": topic, "value": "next" })])).await, 200);
    let values = committed(&wire.broker.bootstrap(), &topic, 1).await;
    assert_eq!(values.last().map(String::as_str), Some("next"));
    (answer, values)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_in_time_is_aborted_and_the_answer_says_so() {
    let (answer, values) = not_answered(Api::Produce, At::Request).await;
    assert_eq!((answer.code(), &answer.body["outcome"]), ("deadline_exceeded", &json!("aborted")));
    assert!(results(&answer, 504).iter().all(|result| result["outcome"] == "aborted"), "{answer:?}");
    assert_eq!(values, ["next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_answered_has_an_unknown_outcome() {
    for (at, seen) in [(At::Answer, 11), (At::Request, 11)] {
        let (answer, values) = not_answered(Api::EndTxn, at).await;
        assert_eq!((answer.code(), &answer.body["outcome"]), ("deadline_exceeded", &json!("unknown")));
        assert!(results(&answer, 504).iter().all(|result| result["outcome"] == "unknown"), "{answer:?}");
        assert!(values.len() == seen || at == At::Request && values == ["next"], "{values:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_batches_side_by_side_in_one_sandbox_are_each_whole() {
    let topic = topic(2).await;
    let producer = std::sync::Arc::new(function_with("produce-batch", &[("AWS_LAMBDA_MAX_CONCURRENCY", "16")]).await);
    let mut running = tokio::task::JoinSet::new();
    for batch_number in 0..24 {
        let (producer, topic) = (std::sync::Arc::clone(&producer), topic.clone());
        running.spawn(async move {
            // Every third has a record that only the broker finds at fault.
            let bad = batch_number % 3 == 0;
            let mut records: Vec<_> =
                (0..20).map(|n| json!({ "topic": topic, "value": format!("{batch_number} {n}") })).collect();
            if bad {
                records[9]["value"] = json!("x".repeat(1_200_000));
            }
            let answer = call(&producer, Event::post(BATCH).json(&atomic(&records))).await;
            assert_eq!(answer.status, if bad { 413 } else { 200 }, "{answer:?}");
        });
    }
    running.join_all().await;
    let values = committed(&Stack::shared().await.bootstrap(), &topic, 2).await;
    let expected =
        (0..24).filter(|number| number % 3 != 0).flat_map(|number| (0..20).map(move |n| format!("{number} {n}")));
    assert_eq!(values.iter().cloned().collect::<HashSet<_>>(), expected.collect());
    assert_eq!(values.len(), 16 * 20);
}
