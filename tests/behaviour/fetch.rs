//! Reading by offset or time, for no group.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{fill, offsets, raw_consumer, values};
use crate::kit::{Raw, refused, write};
use crate::world::{Answer, admin, call, function, function_with, produce, topic, topic_on, unique};

/// The route of `fetch`.
pub(crate) const FETCH: &str = "/kafka/consumer/fetch";

const WAIT: Duration = Duration::from_secs(30);

pub(crate) async fn fetch(function: &Function, topic: &str, more: &str) -> Answer {
    call(function, Event::get(FETCH).query(&format!("topic={topic}{more}"))).await
}

/// What an answer's `next` is as `offset`.
pub(crate) fn go_on(answer: &Value) -> String {
    let next = answer["next"].as_object().expect("next");
    next.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect::<Vec<_>>().join(",")
}

/// A producer that wraps what it writes in transactions.
fn transactional(bootstrap: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", unique("transaction"))
        .create()
        .expect("a producer");
    producer.init_transactions(WAIT).expect("a producer id");
    producer
}

fn send(producer: &BaseProducer, topic: &str, values: std::ops::Range<usize>) {
    for value in values {
        let value = value.to_string();
        let record = BaseRecord::<str, str>::to(topic).payload(&value).partition(0);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(WAIT).expect("written");
}

#[tokio::test]
async fn reading_begins_at_an_offset_a_time_or_an_end() {
    let topic = topic(1).await;
    let (producer, fetcher) = (function("produce").await, function("fetch").await);
    for n in 0..10_u64 {
        let record = json!({ "topic": topic, "value": n.to_string(), "timestamp": 1_700_000_000_000 + 1000 * n });
        produce(&producer, &record).await.ok();
    }
    for (query, expected) in [
        ("&offset=earliest", 0..10),
        ("&offset=0&partition=0", 0..10),
        ("&offset=7", 7..10),
        ("&offset=0:7", 7..10),
        ("&offset=-3", 7..10),
        ("&offset=-30", 0..10),
        ("&timestamp=0", 0..10),
        ("&timestamp=1700000004000", 4..10),
        ("&timestamp=1700000004001", 5..10),
        ("&offset=2&limit=3", 2..5),
        ("&offset=latest&timeout_ms=0", 10..10),
        ("&offset=10&timeout_ms=0", 10..10),
        ("&timestamp=1800000000000&timeout_ms=0", 10..10),
    ] {
        let answer = fetch(&fetcher, &topic, query).await.ok();
        let messages = answer["messages"].as_array().expect("messages");
        assert_eq!(offsets(messages), expected.clone().collect::<Vec<i64>>(), "{query}");
        assert_eq!(answer["next"], json!({ "0": expected.end }), "{query}");
        assert_eq!(answer["topic"], topic.as_str());
    }
    // Rendered like any answer of consume.
    let shown = fetch(&fetcher, &topic, "&offset=5&limit=1&value_format=json").await.ok();
    let message = json!({ "partition": 0, "offset": 5, "timestamp": 1_700_000_005_000_u64, "key": null, "value": 5, "headers": [] });
    assert_eq!(shown["messages"][0], message);
    let shown = fetch(&fetcher, &topic, "&offset=5&limit=1&format=binary").await.ok();
    assert_eq!(shown["messages"][0]["value"], "NQ==");
}

#[tokio::test]
async fn a_call_says_how_to_go_on_in_every_partition() {
    let (stack, topic) = (Stack::shared().await, topic(4).await);
    // One partition stays empty.
    fill(&stack.bootstrap(), &topic, 3, 1000);
    let fetcher = function("fetch").await;
    let (mut seen, mut offset) = (HashSet::new(), "earliest".to_owned());
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    while seen.len() < 1000 {
        let answer = fetch(&fetcher, &topic, &format!("&offset={offset}&limit=90&timeout_ms=0")).await.ok();
        let messages = answer["messages"].as_array().expect("messages");
        assert!((1..=90).contains(&messages.len()), "{}", messages.len());
        for message in messages {
            let (partition, offset) = (message["partition"].as_i64().expect("one"), message["offset"].as_i64());
            let before = last.insert(partition, offset.expect("one")).unwrap_or(-1);
            assert_eq!(offset, Some(before + 1), "in order, and none is left out");
        }
        seen.extend(values(messages));
        let next = answer["next"].as_object().expect("next");
        assert_eq!(next.len(), 4);
        for (partition, offset) in next {
            let read = last.get(&partition.parse::<i64>().expect("a number")).map_or(0, |last| last + 1);
            assert_eq!(*offset, read, "partition {partition}");
        }
        offset = go_on(&answer);
    }
    let answer = fetch(&fetcher, &topic, &format!("&offset={offset}&timeout_ms=0")).await.ok();
    assert_eq!((&answer["messages"], go_on(&answer)), (&json!([]), offset));
    // Fair shares: each partition that has records is in an answer that is large enough.
    let answer = fetch(&fetcher, &topic, "&offset=0&limit=30").await;
    let of = |partition: i32| answer.messages().iter().filter(|it| it["partition"] == partition).count();
    assert_eq!([0, 1, 2, 3].map(of), [10, 10, 10, 0]);
    // What the others leave, one may have.
    let answer = fetch(&fetcher, &topic, "&offset=0:330,1:0,2:333&limit=30&timeout_ms=0").await;
    let of = |partition: i32| answer.messages().iter().filter(|it| it["partition"] == partition).count();
    assert_eq!([0, 1, 2].map(of), [4, 26, 0]);
    assert_eq!(answer.body["next"], json!({ "0": 334, "1": 26, "2": 333 }), "only those that were named");
}

#[tokio::test]
async fn transactions_show_what_is_committed_and_are_passed() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let producer = transactional(&stack.bootstrap());
    let (fetcher, from) = (function("fetch").await, |offset: i64| format!("&offset={offset}&timeout_ms=0"));
    let next = |answer: &Value| answer["next"]["0"].as_i64().expect("an offset");
    producer.begin_transaction().expect("begun");
    send(&producer, &topic, 0..3);
    producer.commit_transaction(WAIT).expect("committed");
    producer.begin_transaction().expect("begun");
    send(&producer, &topic, 3..6);
    producer.abort_transaction(WAIT).expect("aborted");
    // Three records, a marker, three records that were aborted, a marker.
    let answer = fetch(&fetcher, &topic, "&offset=earliest&limit=2").await.ok();
    assert_eq!((values(answer["messages"].as_array().expect("messages")), next(&answer)), (vec![0, 1], 2));
    let mut answer = fetch(&fetcher, &topic, &from(2)).await.ok();
    assert_eq!(values(answer["messages"].as_array().expect("messages")), [2]);
    for _ in 0..2 {
        answer = fetch(&fetcher, &topic, &from(next(&answer))).await.ok();
    }
    assert_eq!((&answer["messages"], next(&answer)), (&json!([]), 8), "nobody goes round at what is no record");
    for offset in [4, 5, 7] {
        let answer = fetch(&fetcher, &topic, &from(offset)).await.ok();
        assert_eq!((&answer["messages"], next(&answer)), (&json!([]), 8));
    }
    let answer = fetch(&fetcher, &topic, "&offset=-1&timeout_ms=0").await.ok();
    assert_eq!((&answer["messages"], next(&answer)), (&json!([]), 8), "the last offset is a marker's");

    producer.begin_transaction().expect("begun");
    send(&producer, &topic, 6..8);
    // Another producer's record behind the open transaction waits with it.
    fill(&stack.bootstrap(), &topic, 1, 1);
    for query in ["&offset=8&timeout_ms=0", "&offset=latest&timeout_ms=0", "&offset=9&timeout_ms=0"] {
        let answer = fetch(&fetcher, &topic, query).await.ok();
        assert_eq!(answer["messages"], json!([]), "nothing of an open transaction: {query}");
    }
    assert_eq!(fetch(&fetcher, &topic, &from(8)).await.ok()["next"], json!({ "0": 8 }));
    let (answer, ()) = tokio::join!(fetch(&fetcher, &topic, "&offset=8&timeout_ms=20000"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        producer.commit_transaction(WAIT).expect("committed");
    });
    let answer = answer.ok();
    assert_eq!(values(answer["messages"].as_array().expect("messages")), [6, 7, 0]);
    assert_eq!(fetch(&fetcher, &topic, &from(next(&answer))).await.ok()["next"], json!({ "0": 12 }));
}

#[tokio::test]
async fn a_compacted_topic_has_holes_that_nobody_falls_into() {
    let broker = Stack::shared().await.extra_broker(&[("log.cleaner.backoff.ms", "100")]).await;
    let server = broker.bootstrap();
    let compact = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("segment.ms", "100"),
        ("delete.retention.ms", "100"),
    ];
    let topic = topic_on(&server, 1, &compact).await;
    let fetcher = function_with("fetch", &[("KAFKA_BOOTSTRAP_SERVERS", &server)]).await;
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &server).create().expect("a producer");
    let put = |key: usize, value: usize| {
        let (key, value) = (key.to_string(), value.to_string());
        producer.send(BaseRecord::to(&topic).key(&key).payload(&value)).map_err(|(error, _)| error).expect("queued");
        producer.flush(WAIT).expect("written");
    };
    (0..50).for_each(|n| put(n % 5, n));
    // Segments that are full are compacted: the last of each key stays.
    let compacted = loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        put(9, 99);
        let answer = fetch(&fetcher, &topic, "&offset=earliest&limit=1000").await.ok();
        let old: Vec<i64> =
            offsets(answer["messages"].as_array().expect("messages")).into_iter().filter(|it| *it < 50).collect();
        if old == (45..50).collect::<Vec<_>>() {
            break answer;
        }
    };
    assert!(compacted["next"]["0"].as_i64() > Some(50));
    // An offset in a hole is one like any other: the next record is what comes.
    for offset in [0, 7, 44] {
        let answer = fetch(&fetcher, &topic, &format!("&offset={offset}&limit=2")).await.ok();
        assert_eq!(offsets(answer["messages"].as_array().expect("messages")), [45, 46]);
        assert_eq!(answer["next"], json!({ "0": 47 }));
    }
}

#[tokio::test]
async fn an_offset_outside_of_the_log_is_an_error_that_says_where_the_log_is() {
    let (stack, topic) = (Stack::shared().await, topic(2).await);
    fill(&stack.bootstrap(), &topic, 2, 20);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(4)).expect("an offset");
    admin(&stack.bootstrap()).delete_records(&before, &AdminOptions::new()).await.expect("deleted");
    let fetcher = function("fetch").await;
    for query in
        ["&partition=0&offset=3", "&offset=0:3", "&partition=0&offset=0", "&partition=0&offset=11", "&offset=3"]
    {
        let answer = fetch(&fetcher, &topic, query).await;
        assert_eq!((answer.status, answer.code()), (400, "offset_out_of_range"), "{query}");
        let body = &answer.body;
        assert_eq!([&body["partition"], &body["start"], &body["end"]], [0, 4, 10], "{query}");
        assert_eq!(body["topic"], topic.as_str());
    }
    for (query, first, count) in [
        ("&partition=0&offset=4", 4, 6),
        ("&partition=0&offset=earliest", 4, 6),
        ("&partition=0&offset=-10", 4, 6),
        ("&partition=0&timestamp=0", 4, 6),
        ("&partition=1&offset=0", 0, 10),
    ] {
        let answer = fetch(&fetcher, &topic, query).await;
        assert_eq!(offsets(answer.messages()), (first..first + count).collect::<Vec<_>>(), "{query}");
    }
    assert_eq!(fetch(&fetcher, &topic, "&partition=0&offset=10&timeout_ms=0").await.messages().len(), 0);
}

#[tokio::test]
async fn a_waiting_call_gets_the_first_record_that_comes() {
    let topic = topic(3).await;
    let (producer, fetcher) = (function("produce").await, function("fetch").await);
    let (answer, receipt) = tokio::join!(fetch(&fetcher, &topic, "&offset=latest&timeout_ms=20000"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        produce(&producer, &json!({ "topic": topic, "value": "now" })).await.ok()
    });
    assert_eq!(answer.messages().len(), 1);
    assert_eq!(answer.messages()[0]["partition"], receipt["partition"]);
}

#[tokio::test]
async fn a_record_that_no_answer_can_carry_stops_nobody() {
    let topic = topic(2).await;
    let large = |partition| Raw::value(partition, vec![b'x'; 60_000]);
    write(&topic, &[Raw::value(0, "a"), large(0), Raw::value(0, "b"), large(1)]).await;
    let fetcher = function("fetch").await;
    let query = |offset: &str| format!("&offset={offset}&max_bytes=50000&timeout_ms=0");
    // What comes before it; then it alone is an error that says how to go on; then what comes after it.
    let answer = fetch(&fetcher, &topic, &query("0:0")).await.ok();
    assert_eq!(answer["messages"][0]["value"], "a");
    assert_eq!(answer["next"], json!({ "0": 1 }));
    let answer = fetch(&fetcher, &topic, &query("0:1")).await;
    assert_eq!((answer.status, answer.code()), (413, "record_too_large"));
    let body = &answer.body;
    assert_eq!([&body["partition"], &body["offset"], &body["size"]], [0, 1, 60_000]);
    assert_eq!((&body["topic"], &body["next"]), (&json!(topic), &json!({ "0": 2 })));
    let answer = fetch(&fetcher, &topic, &query("0:2")).await.ok();
    assert_eq!(answer["messages"][0]["value"], "b");
    // Beside other partitions' records it is named, and waits.
    let answer = fetch(&fetcher, &topic, &query("0:2,1:0")).await.ok();
    assert_eq!(offsets(answer["messages"].as_array().expect("messages")), [2]);
    assert_eq!(answer["next"], json!({ "0": 3, "1": 0 }));
    assert_eq!(answer["too_large"], json!([{ "partition": 1, "offset": 0, "size": 60_000 }]));
    let answer = fetch(&fetcher, &topic, &query("0:3,1:0")).await;
    assert_eq!((answer.code(), &answer.body["next"]), ("record_too_large", &json!({ "0": 3, "1": 1 })));
    // An answer that has the room for it carries it.
    let answer = fetch(&fetcher, &topic, "&offset=0:1&limit=1").await.ok();
    assert_eq!(answer["messages"][0]["value"].as_str().map(str::len), Some(60_000));
}

#[tokio::test]
async fn a_record_larger_than_its_share_is_not_kept_back_by_small_ones() {
    let topic = topic(3).await;
    let mut records = vec![Raw::value(1, vec![b'x'; 40_000])];
    for n in 0..1500 {
        records.push(Raw::value(2 * (n % 2), vec![b'y'; 1_000]));
    }
    write(&topic, &records).await;
    let fetcher = function("fetch").await;
    let mut offset = "earliest".to_owned();
    // The others' records fill twenty-five answers. Not to be the first in any of them is a chance of one in 25,000.
    for call in 0.. {
        let answer =
            fetch(&fetcher, &topic, &format!("&offset={offset}&max_bytes=60000&limit=1000&timeout_ms=0")).await;
        if answer.messages().iter().any(|message| message["partition"] == 1) {
            return;
        }
        assert!(call < 24, "the others are through, and it never came");
        offset = go_on(&answer.body);
    }
}

#[tokio::test]
async fn nothing_is_committed_and_no_group_comes_to_be() {
    let (stack, topic) = (Stack::shared().await, topic(2).await);
    fill(&stack.bootstrap(), &topic, 2, 10);
    let fetcher = function("fetch").await;
    for _ in 0..3 {
        assert_eq!(fetch(&fetcher, &topic, "&offset=earliest").await.messages().len(), 10);
    }
    let groups = raw_consumer(&stack.bootstrap(), "-", &[]).fetch_group_list(None, WAIT).expect("groups");
    assert!(!groups.groups().iter().any(|group| group.name().contains("fetch")));
}

#[tokio::test]
async fn what_is_asked_must_be_sensible_and_allowed() {
    let topic = topic(2).await;
    let fetcher = function("fetch").await;
    for (query, expected) in [
        ("", "missing_parameter"),
        ("&offset=0&timestamp=0", "invalid_parameter"),
        ("&offset=first", "invalid_parameter"),
        ("&offset=-0", "invalid_parameter"),
        ("&offset=0:1,0:2", "invalid_parameter"),
        ("&offset=0:1&partition=0", "invalid_parameter"),
        ("&timestamp=-1", "invalid_parameter"),
        ("&timestamp=yesterday", "invalid_parameter"),
        ("&offset=0&partition=-1", "invalid_parameter"),
        ("&offset=0&limit=0", "invalid_parameter"),
        ("&offset=0&limit=1001", "invalid_parameter"),
        ("&offset=0&timeout_ms=25001", "invalid_parameter"),
        ("&offset=0&format=avro", "invalid_parameter"),
        ("&offset=0&group_id=g", "invalid_parameter"),
        ("&offset=0&offset=1", "invalid_parameter"),
    ] {
        let answer = fetch(&fetcher, &topic, query).await;
        assert_eq!((answer.status, answer.code()), (400, expected), "{query}");
    }
    for query in ["&offset=0&partition=2", "&offset=0:0,2:0"] {
        let answer = fetch(&fetcher, &topic, query).await;
        assert_eq!((answer.status, answer.code()), (404, "partition_not_found"));
        assert_eq!(answer.body["partition"], 2);
    }
    let answer = fetch(&fetcher, &unique("none"), "&offset=0").await;
    assert_eq!((answer.status, answer.code()), (404, "topic_not_found"));
    let answer = fetch(&fetcher, "__consumer_offsets", "&offset=0").await;
    assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"));
    // A role for the groups of team-a alone does not read past them.
    for (client, topic, code) in [
        ("gateway-none", topic.as_str(), "forbidden"),
        ("gateway-narrow", topic.as_str(), "topic_forbidden"),
        ("gateway-narrow", "orders.x", "topic_forbidden"),
    ] {
        let event = Event::get(FETCH).query(&format!("topic={topic}&offset=0"));
        assert_eq!(refused(&fetcher, client, event).await, (403, code.to_owned()), "{client}");
    }
    let reader = Stack::shared().await.token("gateway-reader").await;
    let event = Event::get(FETCH).query(&format!("topic={topic}&offset=0&timeout_ms=0")).bearer(&reader);
    assert_eq!(Answer::read(&fetcher.invoke(event.build()).await).status, 200);
    for method in ["POST", "HEAD"] {
        assert_eq!(call(&fetcher, Event::new(method, FETCH)).await.code(), "method_not_allowed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_in_one_sandbox_do_not_disturb_each_other() {
    const RECORDS: usize = 600;
    let (stack, topic) = (Stack::shared().await, topic(3).await);
    fill(&stack.bootstrap(), &topic, 3, RECORDS);
    let fetcher = Arc::new(function_with("fetch", &[("AWS_LAMBDA_MAX_CONCURRENCY", "32")]).await);
    let mut running = tokio::task::JoinSet::new();
    for n in 0..32 {
        let (fetcher, topic) = (Arc::clone(&fetcher), topic.clone());
        running.spawn(async move {
            // All over the same partitions, each at a pace of its own.
            let (mut offset, mut got) = ("earliest".to_owned(), Vec::new());
            while got.len() < RECORDS {
                let query = format!("&offset={offset}&limit={}&timeout_ms=0", 50 + 7 * n);
                let answer = fetch(&fetcher, &topic, &query).await;
                got.extend(values(answer.messages()));
                offset = go_on(&answer.body);
            }
            got.sort_unstable();
            got
        });
    }
    for got in running.join_all().await {
        assert_eq!(got, (0..RECORDS).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_an_error_in_time_and_found_again() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "3000")];
    let fetcher = function_with("fetch", &settings).await;
    assert_eq!(fetch(&fetcher, &topic, "&offset=0&limit=2").await.messages().len(), 2);
    broker.pause().await;
    let answer = fetch(&fetcher, &topic, "&offset=0&limit=20&timeout_ms=0").await;
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    assert_eq!(answer.body["retryable"], true);
    broker.resume().await;
    broker.stop().await;
    let answer = fetch(&fetcher, &topic, "&offset=0&timeout_ms=0").await;
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    broker.start().await.expect("the broker starts again");
    let found = async { while fetch(&fetcher, &topic, "&offset=15").await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(180), found).await.expect("it is found again");
    assert_eq!(offsets(fetch(&fetcher, &topic, "&offset=15").await.messages()), [15, 16, 17, 18, 19]);
}

#[tokio::test]
async fn a_sandbox_that_was_frozen_goes_on() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    fill(&stack.bootstrap(), &topic, 1, 10);
    let fetcher = function("fetch").await;
    assert_eq!(fetch(&fetcher, &topic, "&offset=earliest&limit=1").await.messages().len(), 1);
    fetcher.freeze();
    // What was fetched ahead is too old by then.
    tokio::time::sleep(Duration::from_secs(6)).await;
    fill(&stack.bootstrap(), &topic, 1, 1);
    fetcher.thaw();
    assert_eq!(offsets(fetch(&fetcher, &topic, "&offset=1").await.messages()), (1..11).collect::<Vec<_>>());
}
