//! What does not fit its schema, where `SCHEMA_ON_INVALID=dlq` keeps it: the letter, where it cannot be written, and that it
//! does not come back as a record.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::batch::{batch, results};
use crate::consume::committed;
use crate::dead_letters::letters;
use crate::redrive::{GROUP, REDRIVE, all};
use crate::registry::register;
use crate::schemas::{ORDER, bytes, pointers, with_registry, written};
use crate::wire::ACKNOWLEDGE;
use crate::world::{Answer, admin, call, consume, function, function_with, produce, topic, topic_on, unique};

#[tokio::test]
async fn what_does_not_fit_may_be_kept_as_a_dead_letter() {
    let keeper = with_registry("produce", &[("SCHEMA_ON_INVALID", "dlq")]).await;
    let topic = topic(1).await;
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    let body = json!({
        "topic": topic, "key": "k", "value": { "id": "x", "big": 9_007_199_254_740_993_i64 }, "value_format": "avro",
        "headers": [{ "name": "a", "value": "1" }],
    });
    for offset in 0..2 {
        let answer = produce(&keeper, &body).await;
        assert_eq!(pointers(&answer, "9007199254740993"), ["/id"]);
        let place = json!({ "topic": format!("{topic}.dlq"), "partition": 0, "offset": offset });
        assert_eq!(answer.body["dead_letter"], place, "{answer:?}");
    }
    let letters = written(&format!("{topic}.dlq"), 2).await;
    assert_eq!(bytes(&letters[0], "key"), b"k");
    assert_eq!(bytes(&letters[0], "value"), br#"{"big":9007199254740993,"id":"x"}"#);
    let headers = letters[0]["headers"].as_array().expect("headers");
    let header = |name: &str| {
        let found = headers.iter().find(|header| header[0] == name).unwrap_or_else(|| panic!("{name}: {headers:?}"));
        String::from_utf8(STANDARD.decode(found[1].as_str().expect("base64")).expect("base64")).expect("text")
    };
    assert_eq!(
        (header("a"), header("dlq.reason"), header("__connect.errors.topic")),
        ("1".into(), "schema".into(), topic.clone())
    );
    // Nothing is kept of what is refused for another reason, and a good record goes where it belongs.
    let mut good = body.clone();
    good["value"] = json!({ "id": 1, "total": 1, "lines": [] });
    assert_eq!(produce(&keeper, &good).await.ok()["offset"], 0);
    let mut nowhere = body;
    nowhere["topic"] = json!(unique("nowhere"));
    assert_eq!(produce(&keeper, &nowhere).await.code(), "schema_not_found");
}

/// A record of a topic with [`ORDER`], and one that does not fit.
fn orders(topic: &str) -> (Value, Value) {
    let good = json!({ "topic": topic, "value": { "id": 1, "total": 1, "lines": [] }, "value_format": "avro" });
    let mut bad = good.clone();
    bad["value"]["id"] = json!("s3cret");
    (good, bad)
}

/// Makes the dead-letter topic of a topic by hand, for small records.
async fn make_small(server: &str, topic: &str) {
    let name = format!("{topic}.dlq");
    let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    let made = admin(server).create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_cannot_be_kept_that_is_the_answer_and_the_others_are_written() {
    // New topics need three replicas there, and so cannot be made; those of these tests say one.
    let stack = Stack::shared().await;
    let broker = stack.extra_broker(&[("default.replication.factor", "3")]).await;
    let server = broker.bootstrap();
    let settings = [
        ("KAFKA_BOOTSTRAP_SERVERS", server.as_str()),
        ("SCHEMA_REGISTRY_URL", stack.registry().await),
        ("SCHEMA_ON_INVALID", "dlq"),
    ];
    let (producer, batches) =
        tokio::join!(function_with("produce", &settings), function_with("produce-batch", &settings));
    let topic = topic_on(&server, 1, &[]).await;
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    let (good, bad) = orders(&topic);
    let mut large = bad.clone();
    large["value"]["id"] = json!("s3cret".repeat(1000));
    let refused = |body: &Value, (status, code): (u64, &str)| {
        assert_eq!((body["status"].as_u64(), body["code"].as_str()), (Some(status), Some(code)), "{body}");
        assert_eq!(body["dead_letter_topic"], format!("{topic}.dlq"), "{body}");
        assert!(body.get("dead_letter").is_none() && !body.to_string().contains("s3cret"), "{body}");
    };
    let (impossible, too_large) = ((503, "broker_unavailable"), (413, "record_too_large"));
    let mut there = 0;
    for (wrong, expected) in [(&bad, impossible), (&large, too_large)] {
        if expected == too_large {
            make_small(&server, &topic).await;
        }
        let answer = produce(&producer, wrong).await;
        assert_eq!(answer.headers["retry-after"].is_string(), expected == impossible, "{answer:?}");
        refused(&answer.body, expected);

        let records = [&good, wrong, &good, &good, wrong];
        let answer = batch(&batches, &json!({ "records": records })).await;
        for (n, result) in results(&answer, 207).iter().enumerate() {
            if n == 1 || n == 4 {
                refused(result, expected);
            } else {
                assert_eq!(result["status"], 200, "{result}");
                there += 1;
            }
        }
        let answer = batch(&batches, &json!({ "atomic": true, "records": records })).await;
        assert_eq!((answer.status, answer.code()), expected, "the status of the record at fault");
        for (n, result) in results(&answer, expected.0).iter().enumerate() {
            if n == 1 || n == 4 {
                refused(result, expected);
            } else {
                assert_eq!((&result["status"], &result["code"]), (&json!(424), &json!("transaction_aborted")));
            }
        }
    }
    assert_eq!(there, 6);
    assert!(letters(&server, &topic).is_empty());
    assert_eq!(all(&server, &topic).len(), there, "of the atomic batches nothing");
    // What fits into a letter is kept there.
    let kept = produce(&producer, &bad).await;
    assert_eq!(pointers(&kept, "s3cret"), ["/id"]);
    assert_eq!(kept.body["dead_letter"]["topic"], format!("{topic}.dlq"), "{kept:?}");
    assert_eq!(letters(&server, &topic).len(), 1);
}

async fn redrive(function: &Function, topic: &str, more: Value) -> Answer {
    let mut body = json!({ "dlq_topic": format!("{topic}.dlq") });
    for (name, value) in more.as_object().expect("members") {
        body[name] = value.clone();
    }
    call(function, Event::post(REDRIVE).json(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_was_a_record_does_not_go_back_and_holds_up_no_other() {
    let (server, topic, group) = (Stack::shared().await.bootstrap(), topic(1).await, unique("group"));
    let (keeper, consumer, acker, redriver) = tokio::join!(
        with_registry("produce", &[("SCHEMA_ON_INVALID", "dlq")]),
        with_registry("consume", &[]),
        function("acknowledge"),
        function("redrive")
    );
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    let (good, bad) = orders(&topic);
    for record in [&bad, &bad, &good, &bad] {
        let answer = produce(&keeper, record).await;
        assert_eq!(answer.status, if record == &good { 200 } else { 422 });
    }
    let before = all(&server, &topic);
    assert_eq!(before.len(), 1);
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
    let reject = json!({ "token": leased.body["lease"]["token"], "type": "reject" });
    call(&acker, Event::post(ACKNOWLEDGE).json(&reject)).await.ok();
    assert_eq!(produce(&keeper, &bad).await.status, 422);
    // The letter at 3 was a record; those before it, and the one behind it, were not.
    for limit in [1, 100] {
        let shown = redrive(&redriver, &topic, json!({ "dry_run": true, "limit": limit })).await.ok();
        assert_eq!(shown["records"], json!([{ "partition": 0, "offset": 3, "reason": "rejected" }]), "{shown}");
        assert_eq!(shown["redriven"], 1, "{shown}");
        // Whoever has found enough looks no further.
        assert_eq!(shown["skipped"], if limit == 1 { 3 } else { 4 }, "{shown}");
    }
    let moved = redrive(&redriver, &topic, json!({})).await.ok();
    assert_eq!((&moved["redriven"], &moved["skipped"]), (&json!(1), &json!(4)), "{moved}");
    let result = json!({ "partition": 0, "status": "moved", "redriven": 1, "skipped": 4, "committed": moved["results"][0]["committed"] });
    assert_eq!(moved["results"], json!([result]));
    assert_eq!(all(&server, &topic), [before.clone(), before].concat(), "the wire format, twice, and nothing else");
    let read = consume(&consumer, &topic, &group, "&value_format=avro").await;
    assert_eq!(read.messages()[0]["value"]["id"], 1);
    // They are passed once and for all, and stay where they are.
    let end = committed(&server, GROUP, &format!("{topic}.dlq"), 0);
    assert_eq!(end, moved["results"][0]["committed"].as_i64());
    let nothing = redrive(&redriver, &topic, json!({})).await.ok();
    assert_eq!([&nothing["redriven"], &nothing["skipped"], &nothing["results"]], [&json!(0), &json!(0), &json!([])]);
    assert_eq!(letters(&server, &topic).len(), 5);
    // Where there is nothing else, they are passed as well.
    assert_eq!(produce(&keeper, &bad).await.status, 422);
    let passed = redrive(&redriver, &topic, json!({ "limit": 1 })).await.ok();
    assert_eq!((&passed["redriven"], &passed["skipped"]), (&json!(0), &json!(1)), "{passed}");
    assert_eq!(all(&server, &topic).len(), 2);
}
