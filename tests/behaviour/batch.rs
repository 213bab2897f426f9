//! `produce-batch`: every record has a result of its own, and nothing is hidden behind a 200.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::mocking::MockCluster;
use serde_json::{Value, json};
use tests::{Api, Event, Function, Stack};

use crate::consume::raw_consumer;
use crate::kit::python;
use crate::observability::{pushed, sum};
use crate::registry::register;
use crate::wire::{Fault, cases, each};
use crate::world::{Answer, call, consume, function, function_with, topic, topic_on, unique};

/// The route.
pub(crate) const BATCH: &str = "/kafka/producer/produce/batch";

const PATIENCE: Duration = Duration::from_secs(30);

/// Produces a batch.
pub(crate) async fn batch(function: &Function, body: &Value) -> Answer {
    call(function, Event::post(BATCH).json(body)).await
}

/// The results of an answer with this status, each at its place and with its own status.
pub(crate) fn results(answer: &Answer, status: u64) -> Vec<Value> {
    assert_eq!(answer.status, status, "{answer:?}");
    let results = answer.body["results"].as_array().expect("results").clone();
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["index"], index, "{result}");
        if result["status"] == 200 {
            assert!(
                result["offset"].is_u64() && result["timestamp"].is_u64() && result["topic"].is_string(),
                "{result}"
            );
        } else {
            for member in ["type", "title", "detail", "code", "error_code", "retryable"] {
                assert!(!result[member].is_null(), "{member}: {result}");
            }
        }
    }
    results
}

/// The status and the code (nothing, where it was written) of each result.
fn verdicts(results: &[Value]) -> Vec<(u64, &str)> {
    let verdict = |result: &'_ Value| result["status"].as_u64().expect("a status");
    results.iter().map(|result| (verdict(result), result["code"].as_str().unwrap_or_default())).collect()
}

/// All that a new group finds in a topic, partition by partition.
pub(crate) async fn read(topic: &str, more: &str) -> BTreeMap<u64, Vec<Value>> {
    let (consumer, group) = (function("consume").await, unique("group"));
    let mut partitions: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    loop {
        let answer = consume(&consumer, topic, &group, &format!("&limit=1000&timeout_ms=0{more}")).await;
        if answer.messages().is_empty() {
            return partitions;
        }
        for message in answer.messages() {
            partitions.entry(message["partition"].as_u64().expect("a partition")).or_default().push(message.clone());
        }
    }
}

#[tokio::test]
async fn a_thousand_records_over_several_topics_are_each_where_their_receipt_says_and_in_their_order() {
    let (producer, topics) = (function("produce-batch").await, [topic(3).await, topic(1).await, topic(2).await]);
    // 5 KB each: near to what Lambda lets a request be.
    let filler = "x".repeat(5000);
    let record = |n: usize| json!({ "id": n, "topic": topics[n % 3], "key": format!("k{}", n % 7), "value": format!("{n} {filler}") });
    let body = json!({ "records": (0..1000).map(record).collect::<Vec<_>>() });
    let answer = batch(&producer, &body).await;
    let results = results(&answer, 200);
    assert_eq!(results.len(), 1000);
    let mut read_back = BTreeMap::new();
    for topic in &topics {
        for (partition, messages) in read(topic, "").await {
            let numbers: Vec<usize> = messages
                .iter()
                .map(|message| message["value"].as_str().and_then(|it| it.split(' ').next()?.parse().ok()).expect("it"))
                .collect();
            assert!(numbers.is_sorted(), "{topic} {partition}: {numbers:?}");
            for (message, number) in messages.iter().zip(numbers) {
                read_back.insert(number, (topic.clone(), partition, message["offset"].as_u64()));
            }
        }
    }
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result["id"], number);
        let (topic, partition, offset) = &read_back[&number];
        assert_eq!(
            (&result["topic"], &result["partition"], result["offset"].as_u64()),
            (&json!(topic), &json!(partition), *offset)
        );
    }
}

#[tokio::test]
async fn a_failed_record_is_seen_and_takes_no_other_with_it() {
    let (producer, topic, absent) = (function("produce-batch").await, topic(2).await, unique("absent"));
    let texts = [
        r#"{"id":"a","value":"first","key":"string key","partition":0,"headers":[{"name":"h","value":"1"},{"name":"h","value":null}]}"#.to_owned(),
        format!(r#"{{"topic":"{absent}","value":1}}"#),
        r#"{"value":"v","partition":2}"#.to_owned(),
        r#"{"key":"string key","value":null,"partition":0}"#.to_owned(),
        r#"{"id":"no value","key":"k"}"#.to_owned(),
        r#"{"id":"unknown","value":"v","colour":"s3cret"}"#.to_owned(),
        r#"{"id":"twice","value":"s3cret","value":"v"}"#.to_owned(),
        r#"["s3cret"]"#.to_owned(),
        "7".to_owned(),
        r#"{"id":"format","value":1,"value_format":"string"}"#.to_owned(),
        r#"{"topic":"__consumer_offsets","value":"v"}"#.to_owned(),
        r#"{"topic":"a b","value":"v"}"#.to_owned(),
        r#"{"topic":null,"value":"v"}"#.to_owned(),
        r#"{"id":{"s3cret":1},"value":"v"}"#.to_owned(),
        format!(r#"{{"id":"{}","value":"v"}}"#, "s3cret".repeat(50)),
        r#"{"id":-1.50,"value":{"b":1.10,"a":[]},"partition":0}"#.to_owned(),
        r#"{"id":null,"value":"","partition":0}"#.to_owned(),
    ];
    let body = format!(r#"{{"topic":"{topic}","records":[{}]}}"#, texts.join(","));
    let event = Event::post(BATCH).header("content-type", "application/json").body(body);
    let answer = call(&producer, event).await;
    let results = results(&answer, 207);
    let (bad, missing) = ((400, "invalid_parameter"), (400, "missing_parameter"));
    let expected = [
        (200, ""),
        (404, "topic_not_found"),
        (404, "partition_not_found"),
        (200, ""),
        missing,
        bad,
        bad,
        bad,
        bad,
        (422, "unprocessable_record"),
        (403, "topic_forbidden"),
        bad,
        bad,
        bad,
        bad,
        (200, ""),
        (200, ""),
    ];
    assert_eq!(verdicts(&results), expected);
    let ids: Vec<_> = results.iter().map(|result| result.get("id").cloned()).collect();
    let id = |text: &str| Some(json!(text));
    let named = [(0, "a"), (4, "no value"), (5, "unknown"), (9, "format")];
    for (index, text) in named {
        assert_eq!(ids[index], id(text));
    }
    assert_eq!((&ids[15], &ids[16], &ids[13]), (&Some(json!(-1.5)), &None, &None));
    assert!(!answer.body.to_string().contains("s3cret"), "{answer:?}");
    assert_eq!((&results[2]["topic"], &results[2]["partition"]), (&json!(topic), &json!(2)));

    let messages = &read(&topic, "").await[&0];
    let seen: Vec<_> = messages.iter().map(|it| (&it["key"], &it["value"], &it["headers"])).collect();
    let headers = json!([{ "name": "h", "value": "1" }, { "name": "h", "value": null }]);
    let (key, none) = (json!("string key"), json!([]));
    assert_eq!(
        seen,
        [
            (&key, &json!("first"), &headers),
            (&key, &Value::Null, &none),
            (&Value::Null, &json!("{\"b\":1.10,\"a\":[]}"), &none),
            (&Value::Null, &json!(""), &none),
        ]
    );
    assert!(!crate::kit::topics().await.contains(&absent), "asking made the topic");
}

#[tokio::test]
async fn where_all_fail_alike_that_is_the_answer() {
    let (producer, topic) = (function("produce-batch").await, topic(1).await);
    let absent = unique("absent");
    let record = |topic: &str, id: u32| json!({ "id": id, "topic": topic, "value": "v" });
    let answer = batch(&producer, &json!({ "records": [record(&absent, 1), record(&absent, 2)] })).await;
    assert_eq!(answer.code(), "topic_not_found");
    let alike = results(&answer, 404);
    assert_eq!(verdicts(&alike), [(404, "topic_not_found"); 2]);
    assert_eq!((&alike[0]["id"], &alike[1]["id"]), (&json!(1), &json!(2)));
    let answer = batch(&producer, &json!({ "records": [{ "topic": topic, "value": "v", "id": [] }] })).await;
    assert_eq!(answer.code(), "invalid_parameter");
    assert_eq!(results(&answer, 400).len(), 1);

    // As JSON's grammar allows them, though nobody could give them back.
    for id in [r#""cut off: \ud83d""#, "1e999", "12345678901234567890123", "true", &format!("\"{}\"", "x".repeat(257))]
    {
        let body = format!(r#"{{"records":[{{"id":{id},"topic":"{absent}","value":1}}]}}"#);
        let answer = call(&producer, Event::post(BATCH).body(body)).await;
        assert_eq!(answer.code(), "invalid_parameter", "{id}");
        assert_eq!(results(&answer, 400)[0].get("id"), None);
    }
    let longest = json!("x".repeat(256));
    let body = json!({ "records": [{ "id": longest, "topic": absent, "value": 1 }] });
    assert_eq!(results(&batch(&producer, &body).await, 404)[0]["id"], longest);

    let mixed = json!({ "records": [record(&absent, 1), record("__internal", 2)] });
    let mixed = batch(&producer, &mixed).await;
    assert_eq!(verdicts(&results(&mixed, 207)), [(404, "topic_not_found"), (403, "topic_forbidden")]);
    let mixed = batch(&producer, &json!({ "records": [record(&absent, 1), record(&topic, 2)] })).await;
    assert_eq!(verdicts(&results(&mixed, 207)), [(404, "topic_not_found"), (200, "")]);
}

#[tokio::test]
async fn what_is_no_batch_is_refused_as_a_whole() {
    let (producer, topic) = (function("produce-batch").await, topic(1).await);
    let record = format!(r#"{{"topic":"{topic}","value":"v"}}"#);
    let many = |count: usize| format!(r#"{{"records":[{}]}}"#, vec![record.as_str(); count].join(","));
    for (body, code) in [
        (String::new(), "invalid_json"),
        (format!(r#"{{"records":[{record}"#), "invalid_json"),
        ("[]".to_owned(), "invalid_parameter"),
        (format!("[{record}]"), "invalid_parameter"),
        (record.clone(), "invalid_parameter"),
        ("{}".to_owned(), "missing_parameter"),
        (r#"{"records":[]}"#.to_owned(), "invalid_parameter"),
        (r#"{"records":{"0":1}}"#.to_owned(), "invalid_parameter"),
        (r#"{"records":7}"#.to_owned(), "invalid_parameter"),
        (r#"{"records":null}"#.to_owned(), "missing_parameter"),
        (many(1001), "invalid_parameter"),
        (format!(r#"{{"records":[{record}],"s3cret":1}}"#), "invalid_parameter"),
        (format!(r#"{{"records":[{record}],"records":[{record}]}}"#), "invalid_parameter"),
        (format!(r#"{{"topic":"a b","records":[{record}]}}"#), "invalid_parameter"),
        (format!(r#"{{"topic":null,"records":[{record}]}}"#), "invalid_parameter"),
        (format!(r#"{{"atomic":"yes","records":[{record}]}}"#), "invalid_parameter"),
    ] {
        let answer = call(&producer, Event::post(BATCH).body(body.clone())).await;
        assert_eq!((answer.status, answer.code()), (400, code), "{body:.200}");
        assert!(!answer.body.to_string().contains("s3cret"), "{answer:?}");
    }
    let answer = call(&producer, Event::post(BATCH).body(many(1001))).await;
    let detail = answer.body["detail"].as_str().expect("a detail");
    assert!(detail.contains("1000") && detail.contains("6 MB"), "{detail}");
    let xml = Event::post(BATCH).header("content-type", "application/xml").body(many(1));
    assert_eq!(call(&producer, xml).await.code(), "unsupported_media_type");
    let unknown = Event::post(BATCH).query("topic=t").json(&json!({ "records": [] }));
    assert_eq!(call(&producer, unknown).await.code(), "invalid_parameter");
    assert!(read(&topic, "").await.is_empty(), "nothing of all this was written");
}

#[tokio::test]
async fn each_topic_is_asked_for_permission() {
    let producer = function("produce-batch").await;
    let stack = Stack::shared().await;
    // The role of this client: kafka_producer:write:orders.*
    let (mine, other) = (format!("orders.{}", unique("batch")), topic(1).await);
    let body = json!({ "records": [{ "topic": mine, "value": "v" }, { "topic": other, "value": "v" }] });
    let event = Event::post(BATCH).json(&body).bearer(&stack.token("gateway-narrow").await);
    let answer = Answer::read(&producer.invoke(event.build()).await);
    // That its own topic is not there it may know; of the other it learns nothing.
    assert_eq!(verdicts(&results(&answer, 207)), [(404, "topic_not_found"), (403, "topic_forbidden")]);
    let event = Event::post(BATCH).json(&body).bearer(&stack.token("gateway-reader").await);
    let answer = Answer::read(&producer.invoke(event.build()).await);
    assert_eq!((answer.status, answer.code()), (403, "forbidden"));
    assert!(read(&other, "").await.is_empty());
}

#[tokio::test]
async fn what_kafka_refuses_together_is_judged_record_by_record() {
    let (producer, stack) = (function("produce-batch").await, Stack::shared().await);
    // librdkafka sends up to 1 MB in one request, which this topic takes for one record too large.
    let small = topic_on(&stack.bootstrap(), 1, &[("max.message.bytes", "10000")]).await;
    let mut records: Vec<_> = (0..60).map(|n| json!({ "id": n, "value": "x".repeat(2000) })).collect();
    records[30]["value"] = json!("x".repeat(20_000));
    let answer = batch(&producer, &json!({ "topic": small, "records": records })).await;
    for result in results(&answer, 207) {
        let expected = if result["id"] == 30 { json!("record_too_large") } else { Value::Null };
        assert_eq!(result.get("code").unwrap_or(&Value::Null), &expected, "{result}");
    }
    assert_eq!(read(&small, "").await[&0].len(), 59);

    let compacted = topic_on(&stack.bootstrap(), 1, &[("cleanup.policy", "compact")]).await;
    let records: Vec<_> = (0..20)
        .map(|n| if n == 7 { json!({ "value": "no key" }) } else { json!({ "key": n.to_string(), "value": n }) })
        .collect();
    let answer = batch(&producer, &json!({ "topic": compacted, "records": records })).await;
    for (n, result) in results(&answer, 207).iter().enumerate() {
        let expected = if n == 7 { (422, Some("unprocessable_record")) } else { (200, None) };
        assert_eq!((result["status"].as_u64().expect("a status"), result["code"].as_str()), expected, "{result}");
    }
}

#[tokio::test]
async fn a_record_of_a_megabyte_goes_through_beside_small_ones() {
    let (producer, topic) = (function("produce-batch").await, topic(1).await);
    let large = "x".repeat(1_000_000);
    let records = json!([{ "value": "before" }, { "value": large }, { "value": "after" }]);
    results(&batch(&producer, &json!({ "topic": topic, "records": records })).await, 200);
    let read = python(&["read", &topic, "1", "3"]).await;
    let lengths: Vec<_> =
        read.as_array().expect("records").iter().map(|it| it["value"].as_str().map(str::len)).collect();
    assert_eq!(lengths, [Some(8), Some(large.len().div_ceil(3) * 4), Some(8)]);
}

#[tokio::test]
async fn the_trace_of_the_request_is_in_each_record_and_comes_out_again() {
    let (producer, topic) = (function("produce-batch").await, topic(1).await);
    let (parent, state) = ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=a,other=b");
    let own = json!([{ "name": "traceparent", "value": "mine" }]);
    let body = json!({ "topic": topic, "records": [
        { "value": 1, "headers": [{ "name": "a", "value": "b" }] }, { "value": 2 }, { "value": 3, "headers": own },
    ]});
    let event = Event::post(BATCH).json(&body).header("traceparent", parent).header("tracestate", state);
    results(&call(&producer, event).await, 200);
    let trace = [json!({ "name": "traceparent", "value": parent }), json!({ "name": "tracestate", "value": state })];
    let headers: Vec<_> = read(&topic, "").await[&0].iter().map(|message| message["headers"].clone()).collect();
    assert_eq!(headers, [json!([{ "name": "a", "value": "b" }, trace[0], trace[1]]), json!(trace), own]);
}

#[tokio::test]
async fn a_topic_that_kafka_is_slow_with_holds_up_no_other() {
    let mock = MockCluster::new(1).expect("a cluster");
    for name in ["well", "unwell"] {
        mock.create_topic(name, 1, 1).expect("a topic");
    }
    mock.partition_leader("unwell", 0, None).expect("no leader");
    let server = mock.bootstrap_servers();
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "2000")];
    let producer = function_with("produce-batch", &settings).await;
    let records: Vec<_> =
        (0..40).map(|n| json!({ "topic": if n % 2 == 0 { "unwell" } else { "well" }, "value": n })).collect();
    let answer = batch(&producer, &json!({ "records": records })).await;
    for (n, result) in results(&answer, 207).iter().enumerate() {
        if n % 2 == 0 {
            assert_eq!((result["status"].as_u64(), &result["outcome"]), (Some(504), &json!("unknown")), "{result}");
        } else {
            assert_eq!(result["offset"], n / 2, "{result}");
        }
    }
    let line = producer.logs().into_iter().find(|line| line["message"] == "records of a batch failed").expect("a line");
    assert_eq!(
        (&line["code"], &line["records"], &line["level"]),
        (&json!("deadline_exceeded"), &json!(20), &json!("ERROR"))
    );

    // All of them, and nothing is written when the broker is well again.
    let answer = batch(&producer, &json!({ "topic": "unwell", "records": [{ "value": 1 }, { "value": 2 }] })).await;
    assert_eq!((answer.code(), &answer.body["outcome"]), ("deadline_exceeded", &json!("unknown")));
    for result in results(&answer, 504) {
        assert_eq!(result["outcome"], "unknown");
    }
    mock.partition_leader("unwell", 0, Some(1)).expect("a leader");
    let answer = batch(&producer, &json!({ "topic": "unwell", "records": [{ "value": 1 }] })).await;
    assert_eq!(results(&answer, 200)[0]["offset"], 0, "the first that was written");
}

#[tokio::test]
async fn what_does_not_fit_its_schema_is_kept_record_by_record() {
    const SCHEMA: &str = r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#;
    let url = Stack::shared().await.registry().await;
    let settings = [("SCHEMA_REGISTRY_URL", url), ("SCHEMA_ON_INVALID", "dlq")];
    let (producer, topic) = (function_with("produce-batch", &settings).await, topic(1).await);
    register(&format!("{topic}-value"), "JSON", SCHEMA, &json!([])).await;
    let record =
        |n: u32| json!({ "value": if n.is_multiple_of(3) { json!({ "n": "s3cret" }) } else { json!({ "n": n }) } });
    let body = json!({ "topic": topic, "records": (0..60).map(record).collect::<Vec<_>>() });
    let answer = batch(&producer, &body).await;
    assert!(!answer.body.to_string().contains("s3cret"));
    let mut letters = Vec::new();
    for (n, result) in results(&answer, 207).iter().enumerate() {
        if n % 3 == 0 {
            let wrong = (&result["code"], &result["errors"][0]["pointer"]);
            assert_eq!(wrong, (&json!("schema_validation_failed"), &json!("/n")));
            assert_eq!(result["dead_letter"]["topic"], format!("{topic}.dlq"), "{result}");
            letters.push(result["dead_letter"]["offset"].as_u64().expect("an offset"));
        } else {
            assert_eq!(result["status"], 200, "{result}");
        }
    }
    letters.sort_unstable();
    assert_eq!(letters, (0..20).collect::<Vec<_>>(), "each has one of its own");
    assert_eq!(read(&format!("{topic}.dlq"), "").await[&0].len(), 20);
    assert_eq!(read(&topic, "").await[&0].len(), 40);
}

#[tokio::test]
async fn records_are_counted_under_their_topics() {
    let (first, second, absent) = (topic(1).await, topic(1).await, unique("absent"));
    let (job, url) = (unique("job"), Stack::shared().await.pushgateway());
    let producer = function_with("produce-batch", &[("METRICS_JOB", &job), ("PUSHGATEWAY_URL", &url)]).await;
    let record = |topic: &str, partition: u32| json!({ "topic": topic, "value": "four", "partition": partition });
    let records =
        json!([record(&first, 0), record(&first, 0), record(&second, 0), record(&first, 9), record(&absent, 0)]);
    results(&batch(&producer, &json!({ "records": records })).await, 207);
    assert!(producer.idle(PATIENCE).await);
    let samples = pushed(&job).await;
    let count = |topic: &str, outcome: &str| {
        let labels = [format!("topic=\"{topic}\""), format!("outcome=\"{outcome}\"")];
        sum(&samples, "kafka_gateway_records_total", &labels.each_ref().map(String::as_str))
    };
    let counted = [(&first, "ok"), (&first, "error"), (&second, "ok"), (&absent, "error")];
    let counted = counted.map(|(topic, outcome)| format!("{:.0}", count(topic, outcome).abs()));
    assert_eq!(counted, ["2", "1", "1", "0"]);
    assert!(!samples.iter().any(|line| line.contains(&absent)), "a name that callers invent is no label");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_of_a_batch_is_written_once_whatever_happens_to_its_requests() {
    each(cases(&[(Api::Produce, 0), (Api::Produce, 1)]), async |wire, case| {
        let server = wire.broker.bootstrap();
        let topic = topic_on(&server, 2, &[]).await;
        let records: Vec<_> = (0..30).map(|n| json!({ "value": n, "partition": n % 2 })).collect();
        let event = Event::post(BATCH).json(&json!({ "topic": topic, "records": records }));
        let (answer, ()) = wire.strike(case, ("produce-batch", event), async || ()).await;
        let ends: Vec<i64> = (0..2)
            .map(|partition| {
                raw_consumer(&server, "-", &[]).fetch_watermarks(&topic, partition, PATIENCE).expect("ends").1
            })
            .collect();
        if let Some(answer) = answer {
            let results = results(&answer, 200);
            assert_eq!(results.iter().filter(|result| result["partition"] == 0).count(), 15);
            assert_eq!(ends, [15, 15], "what the broker had not said it was asked again");
        } else {
            assert_eq!(case.fault, Fault::Killed);
            assert!(ends.iter().all(|end| *end <= 15), "{ends:?}");
        }
    })
    .await;
}
