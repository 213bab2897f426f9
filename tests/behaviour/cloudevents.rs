//! `CloudEvents` in by their HTTP binding, and the records that consumers see by their Kafka binding.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::batch::{BATCH, read, results};
use crate::kit::python;
use crate::registry::register;
use crate::world::{Answer, PRODUCE, call, consume, function, function_with, topic, unique};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCHED: &str = "application/cloudevents-batch+json; charset=UTF-8";

/// What makes an event, in binary mode.
fn attributes() -> Vec<(&'static str, &'static str)> {
    vec![("ce-id", "17"), ("ce-source", "/shop/orders"), ("ce-specversion", "1.0"), ("ce-type", "com.example.ordered")]
}

/// An event of the same, as JSON.
fn event(id: &str) -> Value {
    json!({ "id": id, "source": "/shop/orders", "specversion": "1.0", "type": "com.example.ordered", "data": { "n": 1 } })
}

fn to(path: &str, topic: &str, headers: &[(&str, &str)]) -> Event {
    let event = Event::post(path).query(&format!("topic={topic}"));
    headers.iter().fold(event, |event, (name, value)| event.header(name, value))
}

/// A record as other clients see it: key, value and headers as text.
fn seen(record: &Value) -> (Option<String>, Option<String>, Vec<(String, String)>) {
    let text = |value: &Value| {
        value.as_str().map(|text| String::from_utf8_lossy(&STANDARD.decode(text).expect("base64")).into_owned())
    };
    let header = |header: &Value| (header[0].as_str().expect("a name").to_owned(), text(&header[1]).expect("a value"));
    let headers = record["headers"].as_array().expect("headers").iter().map(header).collect();
    (text(&record["key"]), text(&record["value"]), headers)
}

async fn records(topic: &str, count: usize) -> Vec<Value> {
    python(&["read", topic, "1", &count.to_string()]).await.as_array().expect("records").clone()
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn an_event_in_binary_mode_becomes_headers_and_its_data_byte_for_byte() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let json = "{ \"total\" : 12.50,\r\n\t\"a\": 1e2 }\n";
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let with = |more: &[(&'static str, &'static str)]| to(PRODUCE, &topic, &[&attributes()[..], more].concat());
    let more = [
        ("content-type", "application/json; charset=utf-8"),
        ("ce-partitionkey", "order%2017"),
        ("Ce-Subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("ce-time", "2026-01-01T00:00:00Z"),
        ("ce-quoted", "\"a \\\"b\\\"\""),
    ];
    let receipt = call(&producer, with(&more).body(json).header("traceparent", parent)).await.ok();
    assert_eq!((&receipt["topic"], &receipt["offset"]), (&json!(topic), &json!(0)));
    call(&producer, with(&[("content-type", "image/png")]).bytes([0, 0xff, b'"'])).await.ok();
    call(&producer, with(&[("content-type", "text/plain")]).body("null")).await.ok();
    call(&producer, with(&[("content-type", "application/problem+json")]).body("null")).await.ok();
    call(&producer, with(&[("ce-partitionkey", "gone")])).await.ok();

    let records = records(&topic, 5).await;
    let (key, value, headers) = seen(&records[0]);
    assert_eq!((key.as_deref(), value.as_deref()), (Some("order 17"), Some(json)));
    let expected = [
        ("ce_id", "17"),
        ("ce_partitionkey", "order 17"),
        ("ce_quoted", "a \"b\""),
        ("ce_source", "/shop/orders"),
        ("ce_specversion", "1.0"),
        ("ce_subject", "Euro € 😀"),
        ("ce_time", "2026-01-01T00:00:00Z"),
        ("ce_type", "com.example.ordered"),
        ("content-type", "application/json; charset=utf-8"),
        ("traceparent", parent),
    ];
    assert_eq!(headers, owned(&expected));
    assert_eq!(records[1]["value"], STANDARD.encode([0, 0xff, b'"']));
    assert_eq!((seen(&records[2]).1.as_deref(), seen(&records[3]).1.as_deref()), (Some("null"), Some("null")));
    assert_eq!(seen(&records[4]).0.as_deref(), Some("gone"));
    assert_eq!(records[4]["value"], Value::Null, "an event without data is a tombstone");

    // Consumers of the gateway see the same.
    let message = &read(&topic, "").await[&0][0];
    let shown: Vec<_> = expected.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    assert_eq!(
        (&message["headers"], &message["value"], &message["key"]),
        (&json!(shown), &json!(json), &json!("order 17"))
    );
}

#[tokio::test]
async fn an_event_in_structured_mode_is_the_value() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let text = r#"{ "specversion": "1.0", "id": "1", "source": "s", "type": "t", "partitionkey": "k",
        "data": { "big": 123456789012345678901234567890 }, "extension": true }"#;
    for kind in [STRUCTURED, "Application/CloudEvents+JSON; charset=UTF-8"] {
        call(&producer, to(PRODUCE, &topic, &[("content-type", kind)]).body(text)).await.ok();
    }
    let bytes = to(PRODUCE, &topic, &[("content-type", STRUCTURED)]).bytes(event("2").to_string());
    call(&producer, bytes).await.ok();
    let records = records(&topic, 3).await;
    let content_type = owned(&[("content-type", "application/cloudevents+json; charset=UTF-8")]);
    for record in &records[..2] {
        assert_eq!(seen(record), (Some("k".into()), Some(text.into()), content_type.clone()));
    }
    assert_eq!(seen(&records[2]), (None, Some(event("2").to_string()), content_type));
}

#[tokio::test]
async fn a_batch_of_events_has_a_result_for_each() {
    let (producer, topic) = (function("produce-batch").await, topic(1).await);
    let mut keyed = event("3");
    keyed["partitionkey"] = json!("k");
    let bad = json!({ "id": "2", "source": "s", "specversion": "1.0" });
    let body = json!([event("1"), bad, keyed, 7]).to_string();
    let batch = |topic: &str| to(BATCH, topic, &[("content-type", BATCHED)]).body(body.clone());
    let answer = call(&producer, batch(&topic)).await;
    let results = results(&answer, 207);
    let told: Vec<_> =
        results.iter().map(|it| (it["id"].as_str(), it["status"].as_u64(), it["code"].as_str())).collect();
    let expected = [
        (Some("1"), Some(200), None),
        (Some("2"), Some(400), Some("missing_parameter")),
        (Some("3"), Some(200), None),
        (None, Some(400), Some("invalid_parameter")),
    ];
    assert_eq!(told, expected);
    let records = records(&topic, 2).await;
    assert_eq!(seen(&records[0]).1, Some(event("1").to_string()));
    assert_eq!(seen(&records[1]).0.as_deref(), Some("k"));

    for (event, status, code) in [
        (batch("").query(""), 400, "missing_parameter"),
        (batch(&unique("absent")), 207, ""),
        (to(BATCH, &topic, &[("content-type", BATCHED)]).body("{}"), 400, "invalid_parameter"),
        (to(BATCH, &topic, &[("content-type", BATCHED)]).body("[]"), 400, "invalid_parameter"),
        (to(BATCH, &topic, &[("content-type", BATCHED)]).body("["), 400, "invalid_json"),
        (to(BATCH, &topic, &[("content-type", STRUCTURED)]).body(body.clone()), 415, "unsupported_media_type"),
        (to(BATCH, &topic, &attributes()).body("[]"), 415, "unsupported_media_type"),
    ] {
        let answer = call(&producer, event).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(code.is_empty() || answer.code() == code, "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_event_is_refused() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let but = |name: &str, value: Option<&'static str>| {
        let mut headers = attributes();
        headers.retain(|(known, _)| *known != name);
        let mut event = to(PRODUCE, &topic, &headers).body("data");
        if let Some(value) = value {
            event = event.header(name, value);
        }
        event
    };
    let structured = |body: Value| to(PRODUCE, &topic, &[("content-type", STRUCTURED)]).body(body.to_string());
    let changed = |name: &str, value: Value| {
        let mut event = event("1");
        event[name] = value;
        structured(event)
    };
    let without = |name: &str| {
        let mut event = event("1");
        event.as_object_mut().expect("an object").remove(name);
        structured(event)
    };
    let (missing, invalid) = ((400, "missing_parameter"), (400, "invalid_parameter"));
    let mut cases = Vec::new();
    for name in ["ce-id", "ce-source", "ce-specversion", "ce-type"] {
        cases.push((but(name, None), missing));
        cases.push((but(name, Some("")), invalid));
        cases.push((without(&name[3..]), missing));
        cases.push((changed(&name[3..], json!("")), invalid));
        cases.push((changed(&name[3..], json!(1)), invalid));
    }
    cases.extend([
        (but("ce-specversion", Some("0.3")), invalid),
        (changed("specversion", json!("2.0")), invalid),
        (but("ce-subject", Some("%C0%A0")), invalid),
        (but("ce-subject", Some("a%00b")), invalid),
        (but("ce-data", Some("x")), invalid),
        (but("ce-datacontenttype", Some("text/plain")), invalid),
        (but("ce-", Some("x")), invalid),
        (but("ce-some_name", Some("x")), invalid),
        (but("none", None).query(""), missing),
        (but("none", None).query("topic=a%20b"), invalid),
        (but("none", None).query(&format!("topic={topic}&key=k")), invalid),
        (but("none", None).query("topic=__internal"), (403, "topic_forbidden")),
        (but("none", None).query(&format!("topic={}", unique("absent"))), (404, "topic_not_found")),
        (but("none", None).header("content-type", "application/json"), (400, "invalid_json")),
        (changed("data_base64", json!("AA==")), invalid),
        (structured(json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data_base64": "?" })), invalid),
        (
            structured(
                json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": null, "data_base64": "" }),
            ),
            invalid,
        ),
        (changed("partitionkey", json!(7)), invalid),
        (structured(json!([event("1")])), invalid),
        (to(PRODUCE, &topic, &[("content-type", STRUCTURED)]).body("{"), (400, "invalid_json")),
        (to(PRODUCE, &topic, &[("content-type", STRUCTURED)]), (400, "invalid_json")),
        (to(PRODUCE, &topic, &[("content-type", BATCHED)]).body("[]"), (415, "unsupported_media_type")),
        (
            to(PRODUCE, &topic, &[("content-type", "application/cloudevents+avro")]).body("x"),
            (415, "unsupported_media_type"),
        ),
        // No event at all: the usual way, without a parameter.
        (to(PRODUCE, &topic, &[]).body("{}"), invalid),
    ]);
    for (event, expected) in cases {
        let what = format!("{event:?}");
        let answer = call(&producer, event).await;
        assert_eq!((answer.status, answer.code()), expected, "{what}: {answer:?}");
    }
    // Also an event asks for permission.
    let token = Stack::shared().await.token("gateway-narrow").await;
    let answer = Answer::read(&producer.invoke(but("none", None).bearer(&token).build()).await);
    assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"));
    assert!(read(&topic, "").await.is_empty(), "nothing of all this was written");
}

#[tokio::test]
async fn events_are_validated_as_other_records_are() {
    const SCHEMA: &str = r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#;
    let url = ("SCHEMA_REGISTRY_URL", Stack::shared().await.registry().await);
    let (producer, topic) = (function_with("produce", &[url, ("SCHEMA_ON_INVALID", "dlq")]).await, topic(1).await);
    register(&format!("{topic}-value"), "JSON", SCHEMA, &json!([])).await;
    let binary = |body: &str| {
        to(PRODUCE, &topic, &[&attributes()[..], &[("content-type", "application/json")]].concat()).body(body)
    };
    call(&producer, binary("{\"n\": 1 }")).await.ok();
    let answer = call(&producer, binary("{ \"n\": null }")).await;
    assert_eq!((answer.status, &answer.body["errors"][0]["pointer"]), (422, &json!("/n")));
    assert_eq!(answer.body["dead_letter"]["topic"], format!("{topic}.dlq"));
    assert_eq!(seen(&records(&format!("{topic}.dlq"), 1).await[0]).1.as_deref(), Some("{ \"n\": null }"), "as it came");
    // In structured mode the value is the event, which does not fit this schema.
    let answer =
        call(&producer, to(PRODUCE, &topic, &[("content-type", STRUCTURED)]).body(event("1").to_string())).await;
    assert_eq!(answer.code(), "schema_validation_failed");
    let strict = function_with("produce", &[url, ("SCHEMA_VALIDATION", "required")]).await;
    let answer =
        call(&strict, to(PRODUCE, &topic, &attributes()).header("content-type", "text/plain").body("text")).await;
    assert_eq!(answer.code(), "schema_validation_failed", "what is no JSON cannot be validated");
}

/// Runs `python/events.py`, on the `CloudEvents` SDK; its answer is JSON.
async fn sdk(args: &[&str]) -> Value {
    const PACKAGES: (&str, &[&str]) = ("python-cloudevents", &["cloudevents==1.12.0"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("behaviour/python/events.py");
    let out = Stack::shared().await.python_with(PACKAGES, script, args).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Produces the request that the SDK makes of an event.
async fn produce_by_sdk(producer: &Function, topic: &str, mode: &str, attributes: &Value, data: &Value) {
    let request = sdk(&["send", mode, &attributes.to_string(), &data.to_string()]).await;
    let headers = request["headers"].as_object().expect("headers");
    let event = headers
        .iter()
        .fold(to(PRODUCE, topic, &[]), |event, (name, value)| event.header(name, value.as_str().expect("text")));
    let body = STANDARD.decode(request["body"].as_str().expect("base64")).expect("base64");
    call(producer, event.bytes(body)).await.ok();
}

#[tokio::test]
async fn the_sdk_s_events_come_out_as_they_went_in() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let attributes = json!({
        "id": "1234-1234", "source": "/my/context", "type": "com.example.some", "specversion": "1.0", "subject": "it",
        "time": "2026-01-01T00:00:00+00:00", "datacontenttype": "application/json", "partitionkey": "k", "more": "x",
    });
    let data = json!({ "text": "é", "list": [1, 2.5, null] });
    for mode in ["binary", "structured"] {
        produce_by_sdk(&producer, &topic, mode, &attributes, &data).await;
    }
    let records = records(&topic, 2).await;
    for (record, mode) in records.iter().zip(["binary", "structured"]) {
        assert_eq!(seen(record).0.as_deref(), Some("k"), "{mode}");
        let mut received = sdk(&["receive", mode, &record.to_string()]).await;
        if mode == "structured" {
            // This SDK takes the content type of the record, which is the event's, for that of the data.
            let of_record = received["attributes"]["datacontenttype"].take();
            assert_eq!(of_record, "application/cloudevents+json; charset=UTF-8");
            received["attributes"]["datacontenttype"] = attributes["datacontenttype"].clone();
        }
        assert_eq!((&received["attributes"], &received["data"]), (&attributes, &data), "{mode}");
    }
}

#[tokio::test]
async fn the_sdk_s_records_are_consumed_as_events() {
    let (consumer, topic) = (function("consume").await, topic(1).await);
    let attributes = json!({
        "id": "1234-1234", "source": "/my/context", "type": "com.example.some", "specversion": "1.0", "subject": "ü",
        "time": "2026-01-01T00:00:00+00:00", "datacontenttype": "application/json", "partitionkey": "k", "more": "x",
    });
    let data = json!({ "text": "é", "list": [1, 2.5, null] });
    let mut sent = Vec::new();
    for mode in ["binary", "structured"] {
        sent.push(sdk(&["record", mode, &attributes.to_string(), &data.to_string()]).await);
    }
    python(&["write", &topic, &json!(sent).to_string()]).await;
    let read = consume(&consumer, &topic, &unique("group"), "").await;
    let messages = read.messages();
    for (message, sent) in messages.iter().zip(&sent) {
        let (key, value, headers) = seen(sent);
        assert_eq!((message["key"].as_str(), message["value"].as_str()), (key.as_deref(), value.as_deref()));
        let shown: Vec<_> = headers.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        assert_eq!(message["headers"], json!(shown), "as they are, in their order");
    }
    // A caller needs no more than the answer to make the event of it, by the Kafka binding.
    let header = |message: &Value, name: &str| {
        let mut headers = message["headers"].as_array().expect("headers").iter();
        headers.find(|header| header["name"] == name).map(|header| header["value"].clone())
    };
    for (name, value) in attributes.as_object().expect("attributes") {
        let name = if name == "datacontenttype" { "content-type".to_owned() } else { format!("ce_{name}") };
        // The key says that one.
        let found =
            if name == "ce_partitionkey" { Some(messages[0]["key"].clone()) } else { header(&messages[0], &name) };
        assert_eq!(found.as_ref(), Some(value), "{name}");
    }
    let read = consume(&consumer, &topic, &unique("group"), "&value_format=json").await;
    assert_eq!(read.messages()[0]["value"], data);
    let event = &read.messages()[1]["value"];
    assert_eq!((&event["data"], &event["id"], &event["subject"]), (&data, &attributes["id"], &json!("ü")));
}

#[tokio::test]
async fn the_caller_s_trace_goes_with_events_in_every_mode_and_comes_out_again() {
    let (producer, several, topic) = (function("produce").await, function("produce-batch").await, topic(1).await);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let traced = |event: Event| event.header("traceparent", parent).header("tracestate", "vendor=a");
    let structured = to(PRODUCE, &topic, &[("content-type", STRUCTURED)]).body(event("1").to_string());
    let pair = json!([event("2"), event("3")]).to_string();
    let pair = to(BATCH, &topic, &[("content-type", BATCHED)]).body(pair);
    let text = [&attributes()[..], &[("content-type", "text/plain"), ("ce-partitionkey", "k")]].concat();
    let binary = to(PRODUCE, &topic, &text).body("data");
    // An event that has a trace of its own (the distributed tracing extension) keeps it: beside it stands the request's.
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let with_own = to(PRODUCE, &topic, &[&text[..], &[("ce-traceparent", own)]].concat()).body("data");
    call(&producer, traced(structured)).await.ok();
    results(&call(&several, traced(pair)).await, 200);
    call(&producer, traced(binary)).await.ok();
    call(&producer, traced(with_own)).await.ok();

    let messages = &read(&topic, "").await[&0];
    assert_eq!(messages.len(), 5);
    let trace = [("traceparent", parent), ("tracestate", "vendor=a")];
    let whole = [("content-type", "application/cloudevents+json; charset=UTF-8")];
    let split = [
        ("ce_id", "17"),
        ("ce_partitionkey", "k"),
        ("ce_source", "/shop/orders"),
        ("ce_specversion", "1.0"),
        ("ce_type", "com.example.ordered"),
        ("content-type", "text/plain"),
    ];
    let mut split_with_own = split.to_vec();
    split_with_own.insert(5, ("ce_traceparent", own));
    split_with_own.sort_unstable();
    let expected: [&[(&str, &str)]; 5] = [&whole, &whole, &whole, &split, &split_with_own];
    for (message, expected) in messages.iter().zip(expected) {
        let headers = [expected, &trace].concat();
        let shown: Vec<_> = headers.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        assert_eq!(message["headers"], json!(shown), "{message}");
    }
    // Sent on as they came out, attributes from their headers, they come out the same again.
    let again = messages[3]["headers"].as_array().expect("headers").iter().fold(
        to(PRODUCE, &topic, &[]).body(messages[3]["value"].as_str().expect("text")),
        |event, header| {
            let (name, value) = (header["name"].as_str().expect("text"), header["value"].as_str().expect("text"));
            event.header(&name.replace("ce_", "ce-"), value)
        },
    );
    call(&producer, again).await.ok();
    let second = &read(&topic, "").await[&0][5];
    for member in ["key", "value", "headers"] {
        assert_eq!(second[member], messages[3][member], "{member}");
    }
}
