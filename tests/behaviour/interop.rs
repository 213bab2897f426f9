//! The gateway beside other clients: aiokafka, which shares no code with it, and Kafka's own Java tools.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::kit::{Raw, python, write};
use crate::world::{CONSUME, PRODUCE, applies_since, call, consume, function, produce, topic, topic_on, unique};

fn b64(bytes: impl AsRef<[u8]>) -> Value {
    STANDARD.encode(bytes).into()
}

/// Produces a body that is text, since a `Value` would have rounded its numbers already.
async fn send(producer: &Function, body: &str) -> Value {
    call(producer, Event::post(PRODUCE).body(body)).await.ok()
}

/// Every message of a topic, call by call.
async fn drain(consumer: &Function, topic: &str, group: &str, more: &str) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let answer = consume(consumer, topic, group, &format!("&timeout_ms=0&limit=1000{more}")).await;
        if answer.messages().is_empty() {
            return all;
        }
        all.extend(answer.messages().iter().cloned());
    }
}

/// JSON of a member, how it is said to be meant, and the bytes that other clients must see.
type Case = (&'static str, &'static str, Option<&'static [u8]>);

const CASES: &[Case] = &[
    ("null", "auto", None),
    ("null", "json", None),
    ("null", "binary", None),
    ("\"\"", "auto", Some(b"")),
    ("\"\"", "json", Some(b"\"\"")),
    ("\"\"", "binary", Some(b"")),
    ("\"null\"", "auto", Some(b"null")),
    (
        "\"text with \\\"quotes\\\", \\u00e9, \\ud83d\\ude00, \\n and \\u0000\"",
        "auto",
        Some(b"text with \"quotes\", \xc3\xa9, \xf0\x9f\x98\x80, \n and \0"),
    ),
    ("\"  spaces  stay  \"", "auto", Some(b"  spaces  stay  ")),
    ("\"text\"", "string", Some(b"text")),
    ("\"text \\u00e9\"", "json", Some(b"\"text \\u00e9\"")),
    ("\"AP+A/w==\"", "binary", Some(&[0, 0xff, 0x80, 0xff])),
    ("1.10", "auto", Some(b"1.10")),
    ("1.10", "json", Some(b"1.10")),
    ("123456789012345678901234567890", "auto", Some(b"123456789012345678901234567890")),
    ("-0.0", "auto", Some(b"-0.0")),
    ("1E400", "auto", Some(b"1E400")),
    ("0.1000000000000000055511151231257827", "json", Some(b"0.1000000000000000055511151231257827")),
    ("true", "auto", Some(b"true")),
    ("[ ]", "auto", Some(b"[]")),
    (
        "{ \"z\" : 1.10,\n\t\"a\" : [ 1e2 , \"x  y\", 100000000000000000000000000001 ], \"z\": null }",
        "auto",
        Some(b"{\"z\":1.10,\"a\":[1e2,\"x  y\",100000000000000000000000000001],\"z\":null}"),
    ),
];

#[tokio::test]
async fn other_clients_read_byte_for_byte_what_was_produced() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let headers = r#"[{"name":"b","value":"1"},{"name":"a","value_base64":"AP8="},{"name":"b","value":null},
        {"name":"b","value":"1"},{"name":"","value":""},{"name":"ü","value":"日本 \"\\\u0000"}]"#;
    let mut expected = Vec::new();
    for (index, (json, format, bytes)) in CASES.iter().enumerate() {
        let timestamp = 1_700_000_000_000 + index;
        let key = CASES[(index * 5) % CASES.len()];
        let body = format!(
            "{{\"topic\":\"{topic}\",\"value\":{json},\"value_format\":\"{format}\",\"key\":{},\"key_format\":\"{}\",
               \"timestamp\":{timestamp},\"headers\":{headers}}}",
            key.0, key.1
        );
        let receipt = send(&producer, &body).await;
        assert_eq!(receipt, json!({ "topic": topic, "partition": 0, "offset": index, "timestamp": timestamp }));
        expected.push(json!({
            "partition": 0, "offset": index, "timestamp": timestamp,
            "key": key.2.map(b64), "value": bytes.map(b64),
            "headers": [["b", b64("1")], ["a", b64([0, 255])], ["b", null], ["b", b64("1")], ["", ""],
                        ["ü", b64("日本 \"\\\0")]],
        }));
    }
    let read = python(&["read", &topic, "1", &CASES.len().to_string()]).await;
    for (read, expected) in read.as_array().expect("records").iter().zip(&expected) {
        assert_eq!(read, expected);
    }
}

#[tokio::test]
async fn what_other_clients_write_is_consumed_byte_for_byte() {
    let (consumer, topic) = (function("consume").await, topic(2).await);
    let headers =
        json!([["b", b64("1")], ["a", b64([0, 255])], ["b", null], ["b", b64("1")], ["", ""], ["ü", b64("日本")]]);
    let records: Vec<Value> = CASES
        .iter()
        .enumerate()
        .map(|(index, (_, _, bytes))| {
            json!({
                "partition": index % 2, "timestamp": 1_700_000_000_000_u64 + index as u64,
                // aiokafka writes no record of which key and value are both null.
                "key": CASES[(index * 5) % CASES.len()].2.or(bytes.is_none().then_some(b"k")).map(b64),
                "value": bytes.map(b64), "headers": headers,
            })
        })
        .collect();
    let receipts = python(&["write", &topic, &json!(records).to_string()]).await;
    for format in ["binary", "auto"] {
        let messages = drain(&consumer, &topic, &unique("g"), &format!("&format={format}")).await;
        assert_eq!(messages.len(), records.len());
        let messages: BTreeMap<_, _> =
            messages.iter().map(|it| ((it["partition"].as_i64(), it["offset"].as_i64()), it)).collect();
        for (record, receipt) in records.iter().zip(receipts.as_array().expect("receipts")) {
            let message = messages[&(receipt["partition"].as_i64(), receipt["offset"].as_i64())];
            assert_eq!(message["timestamp"], record["timestamp"]);
            for field in ["key", "value"] {
                let encoding = message.get(format!("{field}_encoding"));
                let shown =
                    if encoding.is_some() { message[field].clone() } else { message[field].as_str().map(b64).into() };
                assert_eq!(shown, record[field], "{format}: {message}");
                assert_eq!(encoding.is_some(), format == "binary" && !record[field].is_null() || shown == "AP+A/w==");
            }
            let shown = json!([
                { "name": "b", "value": "1" }, { "name": "a", "value_base64": "AP8=" }, { "name": "b", "value": null },
                { "name": "b", "value": "1" }, { "name": "", "value": "" }, { "name": "ü", "value": "日本" },
            ]);
            assert_eq!(message["headers"], shown);
        }
    }
    // As JSON, the text of numbers is in the body as it was written: also of those that this test could not parse.
    let (token, mut bodies) = (Stack::shared().await.token("gateway-full").await, String::new());
    let query = format!("topic={topic}&group_id=g&timeout_ms=0&limit=1000&value_format=json");
    while !bodies.contains("\"messages\":[]") {
        let response = consumer.invoke(Event::get(CONSUME).query(&query).bearer(&token).build()).await;
        bodies.push_str(response["body"].as_str().expect("text"));
    }
    assert_eq!(bodies.matches("\"offset\":").count(), records.len());
    for text in [
        "\"value\":1.10,",
        "\"value\":123456789012345678901234567890,",
        "\"value\":-0.0,",
        "\"value\":1E400,",
        "\"value\":0.1000000000000000055511151231257827,",
        "\"value\":{\"z\":1.10,\"a\":[1e2,\"x  y\",100000000000000000000000000001],\"z\":null},",
    ] {
        assert!(bodies.contains(text), "{text}");
    }
}

#[tokio::test]
async fn kafka_s_console_consumer_shows_what_was_produced() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    for body in [
        json!({ "key": "k 1", "value": "plain", "headers": [{ "name": "h", "value": "1" }, { "name": "h", "value": "2" }] }),
        json!({ "key": null, "value": { "a": [1, 2] }, "timestamp": 1_700_000_000_123_u64 }),
        json!({ "key": "gone", "value": null }),
        json!({ "key": "", "value": "" }),
        json!({ "key": "日本", "value": "Zoë", "headers": [{ "name": "n", "value": null }] }),
    ] {
        let mut body = body;
        body["topic"] = topic.as_str().into();
        produce(&producer, &body).await.ok();
    }
    let args = ["--topic", &topic, "--from-beginning", "--max-messages", "5", "--timeout-ms", "30000"];
    let properties = ["print.key", "print.headers", "print.offset", "print.partition"];
    let properties: Vec<String> = properties.iter().map(|name| format!("{name}=true")).collect();
    let mut args: Vec<&str> = args.to_vec();
    for property in
        properties.iter().map(String::as_str).chain(["null.literal=<null>", "key.separator=|", "headers.separator=,"])
    {
        args.extend(["--property", property]);
    }
    let out = Stack::shared().await.kafka_tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &args).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        [
            "Partition:0|Offset:0|h:1,h:2|k 1|plain",
            "Partition:0|Offset:1|NO_HEADERS|<null>|{\"a\":[1,2]}",
            "Partition:0|Offset:2|NO_HEADERS|gone|<null>",
            "Partition:0|Offset:3|NO_HEADERS||",
            "Partition:0|Offset:4|n:<null>|日本|Zoë",
        ]
    );
}

/// Lets Java's own producer write one record for each of the keys `0` to `count - 1`; the partitions it chose.
async fn java_writes(topic: &str, count: usize) -> Vec<i64> {
    let n = count.to_string();
    let args = ["--topic", topic, "--max-messages", &n, "--repeating-keys", &n, "--value-prefix", "7"];
    let out = Stack::shared().await.kafka_tool("org.apache.kafka.tools.VerifiableProducer", &args).await;
    let sent = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let sent = sent.filter(|line| line["name"] == "producer_send_success");
    let chosen: BTreeMap<usize, i64> = sent
        .map(|line| {
            let key = line["key"].as_str().and_then(|key| key.parse().ok()).expect("a key");
            (key, line["partition"].as_i64().expect("a partition"))
        })
        .collect();
    assert_eq!(chosen.len(), count, "{out}");
    chosen.into_values().collect()
}

#[tokio::test]
async fn a_key_goes_to_the_partition_that_java_chooses_and_java_s_records_are_consumed() {
    const COUNT: usize = 40;
    let (producer, consumer) = (function("produce").await, function("consume").await);
    let (theirs, ours) = (topic(7).await, topic(7).await);
    let chosen = java_writes(&theirs, COUNT).await;
    assert!(chosen.iter().collect::<BTreeSet<_>>().len() > 3, "spread out: {chosen:?}");
    for (key, partition) in chosen.iter().enumerate() {
        for key in [json!(key), json!(key.to_string())] {
            let receipt = produce(&producer, &json!({ "topic": ours, "key": key, "value": "v" })).await.ok();
            assert_eq!(receipt["partition"], *partition, "{key}");
        }
    }
    let messages = drain(&consumer, &theirs, "g", "").await;
    let read: BTreeMap<_, _> =
        messages.iter().map(|it| (it["key"].to_string(), (it["value"].clone(), it["partition"].clone()))).collect();
    let written: BTreeMap<_, _> = chosen
        .iter()
        .enumerate()
        .map(|(key, partition)| (format!("\"{key}\""), (json!(format!("7.{key}")), json!(partition))))
        .collect();
    assert_eq!(read, written);
    assert_eq!(messages.len(), COUNT);
}

#[tokio::test]
async fn odd_keys_go_where_the_java_partitioner_s_rules_say() {
    let (producer, topic) = (function("produce").await, topic(11).await);
    let keys: Vec<Vec<u8>> = (0..48_u8)
        .map(|n| (0..n).map(|byte| byte.wrapping_mul(37).wrapping_add(n)).collect())
        .chain([b"Zo\xc3\xab".to_vec(), vec![0xff; 5], vec![0], vec![0; 4], vec![b'x'; 1000]])
        .collect();
    let texts: Vec<Value> = keys.iter().map(b64).collect();
    let expected = python(&["partitions", &json!(texts).to_string(), "11"]).await;
    for (key, partition) in texts.iter().zip(expected.as_array().expect("partitions")) {
        let body = json!({ "topic": topic, "key": key, "key_format": "binary", "value": "v" });
        assert_eq!(produce(&producer, &body).await.ok()["partition"], *partition, "{key}");
    }
}

#[tokio::test]
async fn records_compressed_in_any_way_are_consumed() {
    if !applies_since(3, 9, "its ProducerPerformance has no --payload-monotonic") {
        return;
    }
    let stack = Stack::shared().await;
    let consumer = function("consume").await;
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        // The broker keeps batches of this codec as they come, and would turn any other into it.
        let topic = topic_on(&stack.bootstrap(), 1, &[("compression.type", codec)]).await;
        let (servers, codec_property) =
            (format!("bootstrap.servers={}", stack.bootstrap()), format!("compression.type={codec}"));
        let args = ["--topic", &topic, "--num-records", "2000", "--throughput", "-1", "--payload-monotonic"];
        let args = [&args[..], &["--producer-props", &servers, &codec_property, "linger.ms=50"]].concat();
        stack.kafka().tool("org.apache.kafka.tools.ProducerPerformance", &args).await;
        let messages = drain(&consumer, &topic, "g", "").await;
        let values: Vec<_> =
            messages.iter().map(|message| message["value"].as_str().expect("text").to_owned()).collect();
        let expected: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
        assert_eq!(values, expected, "{codec}");
    }
    let topic = topic(1).await;
    let record = |n: u32| json!({ "value": b64(n.to_string().repeat(50)), "compression": "gzip" });
    python(&["write", &topic, &json!((0..20).map(record).collect::<Vec<_>>()).to_string()]).await;
    assert_eq!(drain(&consumer, &topic, "g", "").await.len(), 20);
}

#[tokio::test]
async fn of_transactions_the_committed_records_appear_and_the_aborted_never() {
    let (consumer, topic) = (function("consume").await, topic(2).await);
    let committed = python(&["transactions", &topic]).await;
    let committed: BTreeSet<_> =
        committed.as_array().expect("values").iter().map(|it| it.as_str().expect("text")).collect();
    assert_eq!(committed.len(), 10);
    for more in ["", "&limit=1", "&limit=3"] {
        let group = unique("g");
        let mut messages = Vec::new();
        loop {
            let answer = consume(&consumer, &topic, &group, &format!("{more}&timeout_ms=300")).await;
            if answer.messages().is_empty() {
                break;
            }
            messages.extend(answer.messages().iter().cloned());
        }
        let read: BTreeSet<_> = messages.iter().map(|message| message["value"].as_str().expect("text")).collect();
        assert_eq!(read, committed, "{more}");
        assert_eq!(messages.len(), committed.len(), "{more}");
        for partition in [0, 1] {
            let offsets: Vec<_> =
                messages.iter().filter(|it| it["partition"] == partition).map(|it| it["offset"].as_i64()).collect();
            assert!(offsets.is_sorted(), "{offsets:?}");
        }
    }
}

#[tokio::test]
async fn nothing_of_or_after_an_open_transaction_is_handed_out_before_it_ends() {
    const WAIT: Duration = Duration::from_secs(10);
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    for commits in [true, false] {
        let transactional: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", Stack::shared().await.bootstrap())
            .set("transactional.id", unique("transaction"))
            .create()
            .expect("a producer");
        transactional.init_transactions(WAIT).expect("a producer id");
        transactional.begin_transaction().expect("begun");
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic).payload(b"inside");
        transactional.send(record).map_err(|(error, _)| error).expect("queued");
        transactional.flush(WAIT).expect("written");
        produce(&producer, &json!({ "topic": topic, "value": "after" })).await.ok();

        assert_eq!(consume(&consumer, &topic, "g", "&timeout_ms=300").await.messages().len(), 0);
        if commits {
            transactional.commit_transaction(WAIT).expect("committed");
        } else {
            transactional.abort_transaction(WAIT).expect("aborted");
        }
        let expected: &[&str] = if commits { &["inside", "after"] } else { &["after"] };
        let mut values = Vec::new();
        while values.len() < expected.len() {
            let answer = consume(&consumer, &topic, "g", "&timeout_ms=20000").await;
            assert!(!answer.messages().is_empty(), "got {values:?}");
            values.extend(answer.messages().iter().map(|message| message["value"].clone()));
        }
        assert_eq!(values, expected);
    }
}

#[tokio::test]
async fn an_empty_answer_means_that_no_partition_has_a_record() {
    let (consumer, topic) = (function("consume").await, topic(2).await);
    // One partition holds nothing but what was aborted, the other a record.
    let transactional: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", Stack::shared().await.bootstrap())
        .set("transactional.id", unique("transaction"))
        .create()
        .expect("a producer");
    let wait = Duration::from_secs(10);
    transactional.init_transactions(wait).expect("a producer id");
    transactional.begin_transaction().expect("begun");
    let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic).partition(0).payload(b"aborted");
    transactional.send(record).map_err(|(error, _)| error).expect("queued");
    transactional.flush(wait).expect("written");
    transactional.abort_transaction(wait).expect("aborted");
    write(&topic, &[Raw::value(1, "record")]).await;
    // Which of two partitions is looked into first is left to chance: a new group often enough.
    for _ in 0..8 {
        let answer = consume(&consumer, &topic, &unique("g"), "&limit=1&timeout_ms=0").await;
        let values: Vec<_> = answer.messages().iter().map(|message| message["value"].clone()).collect();
        assert_eq!(values, ["record"]);
    }
}

/// What `kafka-consumer-groups --describe` says of a group: by partition its offset, the end and the lag.
async fn described(group: &str) -> BTreeMap<u32, [String; 3]> {
    let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let out = Stack::shared().await.kafka_tool(tool, &["--describe", "--group", group]).await;
    let rows = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| row.first() == Some(&group));
    rows.map(|row| (row[2].parse().expect("a partition"), [row[3], row[4], row[5]].map(str::to_owned))).collect()
}

#[tokio::test]
async fn kafka_s_group_tool_sees_the_position_and_may_move_it() {
    let (producer, consumer, topic, group) =
        (function("produce").await, function("consume").await, topic(2).await, unique("group"));
    for (partition, count) in [(0, 3), (1, 5)] {
        for n in 0..count {
            let body = json!({ "topic": topic, "partition": partition, "value": n });
            produce(&producer, &body).await.ok();
        }
    }
    assert_eq!(drain(&consumer, &topic, &group, "").await.len(), 8);
    produce(&producer, &json!({ "topic": topic, "partition": 1, "value": "new" })).await.ok();
    let row = |offset: &str, end: &str, lag: &str| [offset, end, lag].map(str::to_owned);
    assert_eq!(described(&group).await, BTreeMap::from([(0, row("3", "3", "0")), (1, row("5", "6", "1"))]));

    let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let place = format!("{topic}:1");
    let reset = ["--group", &group, "--topic", &place, "--reset-offsets", "--to-offset", "2", "--execute"];
    Stack::shared().await.kafka_tool(tool, &reset).await;
    let messages = drain(&consumer, &topic, &group, "").await;
    let offsets: Vec<_> =
        messages.iter().map(|message| (message["partition"].as_u64(), message["offset"].as_u64())).collect();
    assert_eq!(offsets, [2, 3, 4, 5].map(|offset| (Some(1), Some(offset))));
    assert_eq!(described(&group).await, BTreeMap::from([(0, row("3", "3", "0")), (1, row("6", "6", "0"))]));
}
