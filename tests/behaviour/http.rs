//! The HTTP contract: what comes in, in which order it is judged, and what goes out.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::Offset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use tests::{Event, Function, Stack, kafka_since};

use crate::issuer::Counter;
use crate::kit::{Raw, problem, refused, topics, write};
use crate::world::{
    Answer, CONSUME, PRODUCE, call, consume, function, function_with, produce, topic, topic_on, unique,
};

const FULL: &str = "gateway-full";

fn answer(status: u64, code: &str) -> (u64, String) {
    (status, code.to_owned())
}

async fn full_token() -> String {
    Stack::shared().await.token(FULL).await
}

fn ask(query: &str) -> Event {
    Event::get(CONSUME).query(query)
}

/// Every message of a topic, call by call, each call with `query` added.
async fn drain(function: &Function, topic: &str, group: &str, query: &str) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let answer = consume(function, topic, group, &format!("&timeout_ms=0{query}")).await;
        if answer.messages().is_empty() {
            return all;
        }
        all.extend(answer.messages().iter().cloned());
    }
}

fn payload(message: &Value, field: &str) -> Option<Vec<u8>> {
    let text = message[field].as_str()?;
    Some(match message.get(format!("{field}_encoding")) {
        None => text.as_bytes().to_vec(),
        Some(encoding) => {
            assert_eq!(encoding, "base64");
            STANDARD.decode(text).expect("base64")
        }
    })
}

#[tokio::test]
async fn bodies_come_plain_or_in_base64_under_any_json_content_type() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let body = json!({ "topic": topic, "value": "v" }).to_string();
    for kind in [
        None,
        Some(""),
        Some("application/json"),
        Some("APPLICATION/JSON ; charset=utf-8"),
        Some("application/vnd.acme.order+json"),
        Some("text/x.y+JSON"),
    ] {
        for event in [Event::post(PRODUCE).body(&*body), Event::post(PRODUCE).bytes(&body)] {
            let event = if let Some(kind) = kind { event.header("content-type", kind) } else { event };
            let receipt = call(&producer, event).await.ok();
            assert_eq!(receipt["topic"], topic, "{kind:?}");
        }
    }
    for kind in [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=json",
        "application/octet-stream",
        "application/jsonp",
        "text/plain; x=application/json",
        "json",
        "ü",
    ] {
        for event in [Event::post(PRODUCE).body(&*body), Event::post(PRODUCE).bytes(&body)] {
            let got = refused(&producer, FULL, event.header("content-type", kind)).await;
            assert_eq!(got, answer(415, "unsupported_media_type"), "{kind}");
        }
    }
    for (body, code) in [
        (&b""[..], "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b"{\"topic\":\"t\",\"value\":\"\xff\"}", "invalid_json"),
        (b"{}", "missing_parameter"),
        (b"{\"topic\":\"t\"}", "missing_parameter"),
        (b"{\"value\":1}", "missing_parameter"),
        (b"[]", "invalid_parameter"),
        (b"null", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"VALUE\":2}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"value\":1}", "invalid_parameter"),
        (b"{\"topic\":\"\",\"value\":1}", "invalid_parameter"),
        (b"{\"topic\":\"a b\",\"value\":1}", "invalid_parameter"),
        (b"{\"topic\":\"..\",\"value\":1}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"partition\":-1}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"timestamp\":\"now\"}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"timestamp\":-1}", "invalid_parameter"),
        // librdkafka would write another time: its 0 is "now".
        (b"{\"topic\":\"t\",\"value\":1,\"timestamp\":0}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"value_format\":\"yaml\"}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"headers\":{\"a\":\"b\"}}", "invalid_parameter"),
        (b"{\"topic\":\"t\",\"value\":1,\"headers\":[{\"name\":\"dlq.x\",\"value\":\"b\"}]}", "invalid_parameter"),
        (
            b"{\"topic\":\"t\",\"value\":1,\"headers\":[{\"name\":\"__connect.errors.x\",\"value\":\"b\"}]}",
            "invalid_parameter",
        ),
    ] {
        let got = refused(&producer, FULL, Event::post(PRODUCE).bytes(body)).await;
        assert_eq!(got, answer(400, code), "{}", String::from_utf8_lossy(body));
    }
    for value in ["\"\\ud800\"", "7", "\"YQ\"", "\"not base64\""] {
        let format = if value == "7" { "string" } else { "binary" };
        let body = format!("{{\"topic\":\"t\",\"value\":{value},\"value_format\":\"{format}\"}}");
        let got = refused(&producer, FULL, Event::post(PRODUCE).body(body)).await;
        assert_eq!(got, answer(422, "unprocessable_record"), "{value}");
    }
    assert_eq!(refused(&producer, FULL, Event::post(PRODUCE)).await, answer(400, "invalid_json"), "no body");
    let mut event = Event::post(PRODUCE).bearer(&full_token().await).bytes(&body).build();
    event["body"] = "%%%".into();
    assert_eq!(problem(&producer.invoke(event).await), answer(400, "invalid_json"), "base64 that is none");
}

#[tokio::test]
async fn a_query_is_taken_to_the_letter_or_refused() {
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    let good = json!({ "topic": topic, "value": "v" });
    for query in ["x=1", "topic=t", "%00", "="] {
        let got = refused(&producer, FULL, Event::post(PRODUCE).query(query).json(&good)).await;
        assert_eq!(got, answer(400, "invalid_parameter"), "{query}");
    }
    assert_eq!(drain(&consumer, &topic, &unique("g"), "").await, [json!(null); 0], "nothing was written on the way");

    let base = format!("topic={topic}&group_id=g");
    for more in [
        "x=1",
        "Limit=1",
        "limit=1&limit=1",
        "topic=other",
        "group_id=g",
        "limit",
        "limit=",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=+1",
        "limit=%2B1",
        "limit=1.0",
        "limit=1e2",
        "limit=0x10",
        "limit=%201",
        "limit=%EF%BC%91",
        "limit=99999999999999999999999999",
        "limit=NaN",
        "timeout_ms=25001",
        "timeout_ms=-0",
        "timeout_ms=soon",
        "max_bytes=6000001",
        "max_bytes=0",
        "max_bytes=6MB",
        "ack=none",
        "ack=AUTO",
        "start=middle",
        "start=-1",
        "format=yaml",
        "key_format=",
        "value_format=%22",
        "lease_ms=1&lease_ms=2",
        "%3Cscript%3E=1",
        "\"=1",
        "<=%",
        "%=%zz",
        "%ED%A0%80=1",
        "%00=%00",
        "limit=%00",
    ] {
        let got = refused(&consumer, FULL, ask(&format!("{base}&{more}"))).await;
        assert_eq!(got, answer(400, "invalid_parameter"), "{more}");
    }
    for (query, code) in [
        ("", "missing_parameter"),
        ("topic=t", "missing_parameter"),
        ("group_id=g", "missing_parameter"),
        ("topic=&group_id=g", "invalid_parameter"),
        ("topic=t&group_id=", "invalid_parameter"),
        ("topic=t&group_id=%00", "invalid_parameter"),
        ("topic=t%2Fu&group_id=g", "invalid_parameter"),
        ("topic=%ED%A0%80&group_id=g", "invalid_parameter"),
        ("topic=t\"<&group_id=g", "invalid_parameter"),
        ("topic=..&group_id=g", "invalid_parameter"),
        (&format!("topic={}&group_id=g", "x".repeat(250)), "invalid_parameter"),
        (&format!("topic=t&group_id={}", "x".repeat(256)), "invalid_parameter"),
    ] {
        assert_eq!(refused(&consumer, FULL, ask(query)).await, answer(400, code), "{query}");
    }

    // Odd but legal: escapes, `+` for a space, and empty pairs.
    let escaped = topic.bytes().fold(String::new(), |escaped, byte| escaped + &format!("%{byte:02x}"));
    let got = call(&consumer, ask(&format!("&t%6Fpic={escaped}&&group_id=a+%22b%3C%2F%C3%BC&timeout_ms=0&"))).await;
    assert_eq!(got.ok(), json!({ "topic": topic, "group_id": "a \"b</ü", "messages": [] }));
}

#[tokio::test]
async fn one_route_and_one_method_each_and_neither_needs_a_token_to_say_so() {
    let (producer, consumer) = (function("produce").await, function("consume").await);
    for method in ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", ""] {
        let response = consumer.invoke(Event::new(method, CONSUME).query("topic=t&group_id=g").build()).await;
        assert_eq!(problem(&response), answer(405, "method_not_allowed"), "{method}");
        assert_eq!(response["headers"]["allow"], "GET");
    }
    for method in ["HEAD", "GET", "PUT", "DELETE", "OPTIONS"] {
        let response = producer.invoke(Event::new(method, PRODUCE).body("{}").build()).await;
        assert_eq!(problem(&response), answer(405, "method_not_allowed"), "{method}");
        assert_eq!(response["headers"]["allow"], "POST");
    }
    for path in ["", "/", "/kafka", CONSUME, "/kafka/producer/produce/", "/kafka/producer/produce/batch", "/x\"<%00"] {
        let response = producer.invoke(Event::post(path).json(&json!({})).build()).await;
        assert_eq!(problem(&response), answer(404, "route_not_found"), "{path}");
    }
    for path in ["/", PRODUCE, "/kafka/consumer/Consume", "/kafka//consumer/consume", "/xkafka/consumer/consume"] {
        let response = consumer.invoke(Event::get(path).build()).await;
        assert_eq!(problem(&response), answer(404, "route_not_found"), "{path}");
    }
}

#[tokio::test]
async fn a_stage_or_base_path_before_the_route_changes_nothing() {
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    let event = Event::post(&format!("/prod{PRODUCE}")).json(&json!({ "topic": topic, "value": "v" }));
    call(&producer, event).await.ok();
    let event = Event::get(&format!("/v1/api{CONSUME}")).query(&format!("topic={topic}&group_id=g"));
    assert_eq!(call(&consumer, event).await.messages().len(), 1);
}

#[tokio::test]
async fn headers_are_found_in_any_case_and_may_hold_any_text() {
    let (producer, topic) = (function("produce").await, topic(1).await);
    let token = full_token().await;
    let body = json!({ "topic": topic, "value": "v" });
    let mut event = Event::post(PRODUCE).json(&body).build();
    for (name, value) in [
        ("AUTHORIZATION", format!("bearer {token}")),
        ("X-Name", "Zoë 日本 \u{7}\u{0}\u{ff}\"<".to_owned()),
        ("", "empty name".to_owned()),
        ("ü: ", String::new()),
    ] {
        event["headers"][name] = value.into();
    }
    let kind = event["headers"].as_object_mut().expect("headers").remove("content-type").expect("a type");
    event["headers"]["CoNtEnT-TyPe"] = kind;
    Answer::read(&producer.invoke(event).await).ok();

    for (value, code) in [
        ("", "missing_token"),
        ("Bearer", "invalid_token"),
        ("Bearer ", "invalid_token"),
        ("Bearer Zoë\u{0}", "invalid_token"),
        ("Bearer a.b.c, Bearer a.b.c", "invalid_token"),
        ("Basic Z2F0ZXdheTpnYXRld2F5", "missing_token"),
    ] {
        let event = Event::post(PRODUCE).json(&body).header("authorization", value).build();
        assert_eq!(problem(&producer.invoke(event).await), answer(401, code), "{value:?}");
    }
    let two = Event::post(PRODUCE).json(&body).bearer(&token).bearer(&token).build();
    assert_eq!(problem(&producer.invoke(two).await), answer(401, "invalid_token"), "two tokens");
    let event = Event::post(PRODUCE).json(&body).build();
    let response = producer.invoke(event).await;
    assert_eq!(problem(&response), answer(401, "missing_token"));
    // RFC 6750, 3.1: no error word where no token was sent.
    assert_eq!(response["headers"]["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn any_event_gets_an_answer() {
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    let token = full_token().await;
    let event = Event::post(PRODUCE).bearer(&token).json(&json!({ "topic": topic, "value": "v" })).build();
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let nothings = [json!(null), json!(7), json!(true), json!("\u{0}\"<%"), json!([]), json!([null]), json!({}), deep];
    for nothing in &nothings {
        let outcome = producer.try_invoke(nothing.clone(), Duration::from_secs(10)).await;
        let response = outcome.unwrap_or_else(|failure| panic!("{nothing}: {failure:?}"));
        assert_eq!(problem(&response), answer(404, "route_not_found"), "{nothing}");
    }
    for pointer in [
        "/version",
        "/routeKey",
        "/rawPath",
        "/rawQueryString",
        "/headers",
        "/headers/authorization",
        "/headers/content-type",
        "/headers/host",
        "/requestContext",
        "/requestContext/http",
        "/requestContext/http/method",
        "/requestContext/requestId",
        "/body",
        "/isBase64Encoded",
    ] {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let mut without = event.clone();
        without.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").remove(name);
        let mut odd = vec![without];
        for nothing in &nothings {
            let mut with = event.clone();
            *with.pointer_mut(pointer).expect("a member") = nothing.clone();
            odd.push(with);
        }
        for event in odd {
            let outcome = producer.try_invoke(event, Duration::from_secs(10)).await;
            let response = outcome.unwrap_or_else(|failure| panic!("{pointer}: {failure:?}"));
            let status = response["statusCode"].as_u64().expect("a status");
            assert!(matches!(status, 200 | 400..=499), "{pointer}: {response}");
            if status != 200 {
                problem(&response);
            }
        }
    }
    // And it still works.
    Answer::read(&producer.invoke(event).await).ok();
    assert!(!drain(&consumer, &topic, "g", "").await.is_empty());
}

#[tokio::test]
async fn the_request_s_id_is_in_the_answer() {
    let consumer = function("consume").await;
    let response = consumer.invoke(ask("topic=t&group_id=g").build()).await;
    problem(&response);
    let answer = Answer::read(&response);
    assert_eq!(answer.body["request_id"], answer.headers["x-request-id"]);
    let line = consumer.logs().into_iter().find(|line| line["status"] == 401).expect("a line");
    assert_eq!(line["request_id"], answer.body["request_id"], "and it is Lambda's own, as in its REPORT lines");
}

#[tokio::test]
async fn route_then_token_then_permission_then_body() {
    let (producer, consumer) = (function("produce").await, function("consume").await);
    let bad = |path: &str| Event::post(path).header("content-type", "text/plain").query("x=1").body("{");
    let got = problem(&producer.invoke(bad("/elsewhere").bearer("x").build()).await);
    assert_eq!(got, answer(404, "route_not_found"));
    let got = problem(&producer.invoke(bad(PRODUCE).build()).await);
    assert_eq!(got, answer(401, "missing_token"));
    let got = problem(&producer.invoke(bad(PRODUCE).bearer("x.y.z").build()).await);
    assert_eq!(got, answer(401, "invalid_token"));
    for client in ["gateway-none", "gateway-reader"] {
        assert_eq!(refused(&producer, client, bad(PRODUCE)).await, answer(403, "forbidden"), "{client}");
    }
    let got = refused(&producer, FULL, Event::post(PRODUCE).header("content-type", "text/plain").body("{")).await;
    assert_eq!(got, answer(415, "unsupported_media_type"));

    let got = problem(&consumer.invoke(ask("limit=x").build()).await);
    assert_eq!(got, answer(401, "missing_token"));
    assert_eq!(refused(&consumer, "gateway-none", ask("limit=x")).await, answer(403, "forbidden"));
    assert_eq!(refused(&consumer, "gateway-reader", ask("limit=x")).await.0, 400);
}

#[tokio::test]
async fn who_may_not_use_a_topic_does_not_learn_whether_it_exists() {
    let (producer, consumer) = (function("produce").await, function("consume").await);
    let (there, absent) = (topic(1).await, unique("topic-absent"));
    let mut texts = Vec::new();
    for topic in [&there, &absent] {
        for partition in [0, 9] {
            let body = json!({ "topic": topic, "value": "v", "partition": partition });
            let got = refused(&producer, "gateway-narrow", Event::post(PRODUCE).json(&body)).await;
            assert_eq!(got, answer(403, "topic_forbidden"));
        }
        let token = Stack::shared().await.token("gateway-narrow").await;
        let event = ask(&format!("topic={topic}&group_id=team-a")).bearer(&token).build();
        let response = consumer.invoke(event).await;
        assert_eq!(problem(&response), answer(403, "topic_forbidden"));
        let mut body = Answer::read(&response).body;
        body["request_id"] = Value::Null;
        texts.push(body.to_string().replace(topic.as_str(), "T"));
    }
    assert_eq!(texts[0], texts[1]);
    for client in [FULL, "gateway-narrow"] {
        for internal in ["__consumer_offsets", "__transaction_state", "__no_such_topic"] {
            let body = json!({ "topic": internal, "value": "v" });
            let got = refused(&producer, client, Event::post(PRODUCE).json(&body)).await;
            assert_eq!(got, answer(403, "topic_forbidden"), "{internal}");
            let got = refused(&consumer, client, ask(&format!("topic={internal}&group_id=team-a"))).await;
            assert_eq!(got, answer(403, "topic_forbidden"), "{internal}");
        }
    }
}

#[tokio::test]
async fn a_record_over_the_topic_s_limit_is_413_and_the_next_one_goes_through() {
    let producer = function("produce").await;
    let small = topic_on(&Stack::shared().await.bootstrap(), 1, &[("max.message.bytes", "10000")]).await;
    let default = topic(1).await;
    for (topic, size) in [(&small, 10_001), (&small, 2_000_000), (&default, 2_000_000)] {
        let value = "x".repeat(size);
        let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": value }));
        assert_eq!(refused(&producer, FULL, event).await, answer(413, "record_too_large"), "{size}");
    }
    for (topic, size) in [(&small, 9_000), (&default, 1_000_000)] {
        let receipt = produce(&producer, &json!({ "topic": topic, "value": "x".repeat(size) })).await.ok();
        assert_eq!(receipt["offset"], 0);
    }
}

#[tokio::test]
async fn an_unknown_topic_is_404_and_is_not_created_by_asking() {
    let (producer, consumer, absent) = (function("produce").await, function("consume").await, unique("topic-absent"));
    for _ in 0..2 {
        let event = Event::post(PRODUCE).json(&json!({ "topic": absent, "value": "v" }));
        assert_eq!(refused(&producer, FULL, event).await, answer(404, "topic_not_found"));
        let event = Event::post(PRODUCE).json(&json!({ "topic": absent, "value": "v", "partition": 0 }));
        assert_eq!(refused(&producer, FULL, event).await, answer(404, "topic_not_found"));
        for start in ["earliest", "latest"] {
            let event = ask(&format!("topic={absent}&group_id=g&timeout_ms=0&start={start}"));
            assert_eq!(refused(&consumer, FULL, event).await, answer(404, "topic_not_found"));
        }
    }
    assert!(!topics().await.contains(&absent));

    // The broker would have: that the topic is absent is the gateway's doing.
    let creating = function_with("produce", &[("KAFKA_AUTO_CREATE_TOPICS", "true")]).await;
    let receipt = produce(&creating, &json!({ "topic": absent, "value": "v" })).await.ok();
    assert_eq!(receipt["topic"], absent);
    assert!(topics().await.contains(&absent));
    // The sandbox that had not found it finds it now.
    produce(&producer, &json!({ "topic": absent, "value": "v" })).await.ok();
}

#[tokio::test]
async fn a_kafka_that_is_silent_or_gone_is_503_without_its_address() {
    let silent = Counter::listen().await;
    let gone = format!("127.0.0.1:{}", tests::free_port().expect("a port"));
    for bootstrap in [&silent.address.to_string(), &gone] {
        let env = [("KAFKA_BOOTSTRAP_SERVERS", bootstrap.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "700")];
        let (producer, consumer) = (function_with("produce", &env).await, function_with("consume", &env).await);
        let token = full_token().await;
        for _ in 0..3 {
            let write = Event::post(PRODUCE).bearer(&token).json(&json!({ "topic": "t", "value": "v" })).build();
            let read = ask("topic=t&group_id=g&timeout_ms=0").bearer(&token).build();
            for (function, event) in [(&producer, write), (&consumer, read)] {
                let response = function.invoke(event).await;
                assert_eq!(problem(&response), answer(503, "broker_unavailable"), "{response}");
                assert!(!response.to_string().contains(bootstrap), "{response}");
            }
        }
    }
}

#[tokio::test]
async fn an_unknown_partition_is_404_and_a_chosen_one_is_used() {
    let (producer, topic) = (function("produce").await, topic(3).await);
    for partition in [3, 2_000_000_000] {
        let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "v", "partition": partition }));
        assert_eq!(refused(&producer, FULL, event).await, answer(404, "partition_not_found"));
    }
    for partition in [2, 0, 1] {
        let body = json!({ "topic": topic, "value": "v", "key": "the same", "partition": partition });
        assert_eq!(produce(&producer, &body).await.ok()["partition"], partition);
    }
}

#[tokio::test]
async fn a_compacted_topic_takes_no_record_without_a_key() {
    let producer = function("produce").await;
    let compacted = topic_on(&Stack::shared().await.bootstrap(), 1, &[("cleanup.policy", "compact")]).await;
    for body in [json!({ "topic": compacted, "value": "v" }), json!({ "topic": compacted, "value": "v", "key": null })]
    {
        let got = refused(&producer, FULL, Event::post(PRODUCE).json(&body)).await;
        assert_eq!(got, answer(422, "unprocessable_record"));
    }
    produce(&producer, &json!({ "topic": compacted, "value": null, "key": "" })).await.ok();
}

#[tokio::test]
async fn null_empty_and_absent_are_three_things_for_key_value_and_header() {
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    for (key, value) in [(json!(null), json!(null)), (json!(""), json!("")), (json!("null"), json!("null"))] {
        let headers = json!([{ "name": "h", "value": value }, { "name": "h", "value_base64": "" }]);
        let body = json!({ "topic": topic, "key": key, "value": value, "headers": headers });
        produce(&producer, &body).await.ok();
    }
    produce(&producer, &json!({ "topic": topic, "value": "v" })).await.ok();
    for format in ["auto", "string"] {
        let messages = drain(&consumer, &topic, &unique("g"), &format!("&format={format}")).await;
        let shown: Vec<_> = messages.iter().map(|it| (&it["key"], &it["value"], &it["headers"][0]["value"])).collect();
        let (null, empty, word, v) = (json!(null), json!(""), json!("null"), json!("v"));
        let expected = [(&null, &null, &null), (&empty, &empty, &empty), (&word, &word, &word), (&null, &v, &null)];
        assert_eq!(shown, expected, "{format}");
        assert_eq!(messages[3]["headers"], json!([]));
        assert!(messages.iter().all(|message| message.get("value_error").is_none()), "{messages:?}");
    }
}

#[tokio::test]
async fn the_timestamp_is_the_caller_s_or_now_or_the_broker_s_and_the_receipt_s_too() {
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    let now = || u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("fits");
    let before = now();
    let (mut receipts, at) = (Vec::new(), json!(1_700_000_000_123_u64));
    for timestamp in [json!(null), at.clone(), json!(1)] {
        let body = json!({ "topic": topic, "value": "v", "timestamp": timestamp });
        receipts.push(produce(&producer, &body).await.ok()["timestamp"].clone());
    }
    assert!((before..=now()).contains(&receipts[0].as_u64().expect("a number")), "{receipts:?}");
    assert_eq!(receipts[1..], [at, json!(1)]);
    let messages = drain(&consumer, &topic, "g", "").await;
    let read: Vec<_> = messages.iter().map(|message| message["timestamp"].clone()).collect();
    assert_eq!(read, receipts);

    let config = [("message.timestamp.type", "LogAppendTime")];
    let stamped = topic_on(&Stack::shared().await.bootstrap(), 1, &config).await;
    let receipt = produce(&producer, &json!({ "topic": stamped, "value": "v", "timestamp": 5 })).await.ok();
    assert!(receipt["timestamp"].as_u64().expect("a number") >= before, "{receipt}");
    let messages = drain(&consumer, &stamped, "g", "").await;
    assert_eq!(messages[0]["timestamp"], receipt["timestamp"]);

    let name =
        if kafka_since(3, 6) { "message.timestamp.before.max.ms" } else { "message.timestamp.difference.max.ms" };
    let config = [(name, "60000")];
    let strict = topic_on(&Stack::shared().await.bootstrap(), 1, &config).await;
    let event = Event::post(PRODUCE).json(&json!({ "topic": strict, "value": "v", "timestamp": 5 }));
    assert_eq!(refused(&producer, FULL, event).await, answer(422, "unprocessable_record"));
}

#[tokio::test]
async fn the_caller_s_trace_goes_into_the_record_unless_the_record_has_one() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(1).await);
    let event =
        |headers: Value| Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "v", "headers": headers }));
    let state = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";
    let own = json!([{ "name": "traceparent", "value": "mine" }, { "name": "a", "value": "b" }]);
    for event in [
        event(json!([{ "name": "a", "value": "b" }])).header("TraceParent", PARENT).header("tracestate", state),
        event(json!([])).header("traceparent", PARENT),
        event(own.clone()).header("traceparent", PARENT).header("tracestate", state),
        event(json!([])).header("traceparent", "nonsense").header("tracestate", state),
        event(json!([])).header("tracestate", state),
    ] {
        call(&producer, event).await.ok();
    }
    let messages = drain(&consumer, &topic, "g", "").await;
    let headers: Vec<_> = messages.iter().map(|message| message["headers"].clone()).collect();
    let parent = json!({ "name": "traceparent", "value": PARENT });
    let state = json!({ "name": "tracestate", "value": state });
    let expected = [json!([{ "name": "a", "value": "b" }, parent, state]), json!([parent]), own, json!([]), json!([])];
    assert_eq!(headers, expected);
}

/// Texts and bytes that weigh more in an answer than they are long.
pub(crate) fn nasty(size: usize) -> Vec<Vec<u8>> {
    let fill = |unit: &[u8]| unit.iter().copied().cycle().take(size / unit.len() * unit.len()).collect::<Vec<u8>>();
    vec![
        fill(b"\""),
        fill(b"\\"),
        fill(b"\n"),
        fill(b"\0"),
        fill(b"\x1b"),
        fill(b"\x7f"),
        fill(b"</script>"),
        fill(b"{\"a\":\"\\\"\"}"),
        fill(&[0xff, 0x00, 0x80]),
        fill("ü".as_bytes()),
        fill("\u{2028}日".as_bytes()),
        fill("\u{1f600}".as_bytes()),
        fill(b"plain text "),
    ]
}

/// Records of them, with keys of the same kind, and with headers, if so.
pub(crate) fn nasty_records(size: usize, partition: i32, headers: bool) -> impl Iterator<Item = Raw> {
    nasty(size).into_iter().map(move |content| Raw {
        partition,
        key: Some(content[..content.len().min(60)].to_vec()),
        headers: headers
            .then(|| ("h\"\\\u{1}ü".to_owned(), Some(content[..content.len().min(90)].to_vec())))
            .into_iter()
            .collect(),
        value: Some(content),
    })
}

/// What the function posts: its answer, as JSON.
pub(crate) fn posted(response: &Value) -> usize {
    response.to_string().len()
}

#[tokio::test]
async fn no_answer_is_larger_than_max_bytes_whatever_the_records_hold_and_none_is_lost() {
    let (consumer, topic) = (function("consume").await, topic(2).await);
    let mut records = Vec::new();
    // Many small ones, as what stands around a record weighs most there, and a short text is never base64.
    let sizes = (0..12).flat_map(|_| [(3, 0), (36, 0), (60, 0)]).chain([(10, 0), (300, 1), (700, 0), (4000, 1)]);
    for (index, (size, partition)) in sizes.enumerate() {
        records.extend(nasty_records(size, partition, index % 2 == 1));
    }
    write(&topic, &records).await;
    let token = full_token().await;
    for format in ["auto", "string", "json", "binary"] {
        for max_bytes in [12_000, 30_000, 200_000] {
            let group = unique("g");
            let (mut messages, mut largest) = (Vec::new(), 0);
            loop {
                let query = format!(
                    "topic={topic}&group_id={group}&timeout_ms=0&format={format}&max_bytes={max_bytes}&limit=1000"
                );
                let response = consumer.invoke(ask(&query).bearer(&token).build()).await;
                let size = posted(&response);
                assert!(size <= max_bytes, "{size} of {max_bytes}, {format}");
                let answer = Answer::read(&response);
                if answer.messages().is_empty() {
                    break;
                }
                largest = largest.max(size);
                messages.extend(answer.messages().iter().cloned());
            }
            assert_eq!(messages.len(), records.len(), "{format} {max_bytes}");
            assert!(largest > max_bytes / 10 * 8 || max_bytes > 50_000, "the room is used: {largest}");
            if format == "json" {
                continue;
            }
            for partition in [0, 1] {
                let read = messages.iter().filter(|message| message["partition"] == partition);
                let sent = records.iter().filter(|record| record.partition == partition);
                for (read, sent) in read.zip(sent) {
                    assert_eq!(payload(read, "key"), sent.key);
                    assert_eq!(payload(read, "value"), sent.value);
                }
            }
        }
    }
}

#[tokio::test]
async fn the_largest_answer_fits_into_what_lambda_takes() {
    let (consumer, topic) = (function("consume").await, topic(1).await);
    let records: Vec<Raw> = (0..40).flat_map(|_| nasty(20_000)).map(|value| Raw::value(0, value)).collect();
    write(&topic, &records).await;
    let (token, mut count, mut largest) = (full_token().await, 0, 0);
    loop {
        let query = format!("topic={topic}&group_id=g&timeout_ms=0&limit=1000");
        let response = consumer.invoke(ask(&query).bearer(&token).build()).await;
        let size = posted(&response);
        assert!(size <= 6_000_000, "{size}");
        largest = largest.max(size);
        let answer = Answer::read(&response);
        if answer.messages().is_empty() {
            break;
        }
        count += answer.messages().len();
    }
    assert_eq!(count, records.len());
    assert!(largest > 5_000_000, "the room is used: {largest}");
}

#[tokio::test]
async fn limit_is_the_most_that_is_handed_out() {
    let (consumer, topic) = (function("consume").await, topic(3).await);
    let records: Vec<Raw> = (0..2500).map(|n| Raw::value(n % 3, n.to_string())).collect();
    write(&topic, &records).await;
    for (more, at_most) in [("", 100), ("&limit=1", 1), ("&limit=7", 7), ("&limit=1000", 1000)] {
        let count = consume(&consumer, &topic, &unique("g"), more).await.messages().len();
        assert!((1..=at_most).contains(&count), "{count} of {at_most}");
    }
    let mut seen: Vec<u32> = Vec::new();
    loop {
        let answer = consume(&consumer, &topic, "g", "&limit=333&timeout_ms=0").await;
        assert!(answer.messages().len() <= 333);
        if answer.messages().is_empty() {
            break;
        }
        let value =
            |message: &Value| message["value"].as_str().and_then(|text| text.parse::<u32>().ok()).expect("a number");
        seen.extend(answer.messages().iter().map(value));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..2500).collect::<Vec<u32>>());
}

#[tokio::test]
async fn a_record_too_large_for_an_answer_is_413_with_its_place_after_the_others_were_served() {
    let (consumer, topic) = (function("consume").await, topic(3).await);
    write(&topic, &[Raw::value(1, "before"), Raw::value(1, vec![b'x'; 50_000]), Raw::value(1, "after")]).await;
    write(&topic, &(0..20).map(|n| Raw::value(n % 2 * 2, n.to_string())).collect::<Vec<_>>()).await;
    let query = format!("topic={topic}&group_id=g&timeout_ms=0&max_bytes=20000&limit=4");
    let (token, mut values) = (full_token().await, Vec::new());
    let refusal = loop {
        let response = consumer.invoke(ask(&query).bearer(&token).build()).await;
        let answer = Answer::read(&response);
        if answer.status != 200 {
            assert_eq!(problem(&response), self::answer(413, "record_too_large"));
            break answer.body;
        }
        assert!(!answer.messages().is_empty(), "an empty answer says there is nothing more");
        values.extend(answer.messages().iter().map(|message| message["value"].as_str().expect("text").to_owned()));
    };
    assert_eq!((&refusal["topic"], &refusal["partition"], &refusal["offset"]), (&json!(topic), &json!(1), &json!(1)));
    assert!(refusal["size"].as_u64().expect("a size") >= 50_000, "{refusal}");
    values.sort();
    let mut expected: Vec<_> = (0..20).map(|n| n.to_string()).chain(["before".to_owned()]).collect();
    expected.sort();
    assert_eq!(values, expected);

    // It is leased to the caller; given back and asked again it says so again, and neither skips the record nor hands out
    // what comes after it.
    let acker = function("acknowledge").await;
    let release = async |lease: &Value| {
        let body = json!({ "token": lease["token"], "type": "release" });
        call(&acker, Event::post("/kafka/consumer/acknowledge").json(&body)).await.ok()
    };
    release(&refusal["lease"]).await;
    let response = consumer.invoke(ask(&query).bearer(&token).build()).await;
    assert_eq!(problem(&response), answer(413, "record_too_large"));
    release(&Answer::read(&response).body["lease"]).await;
    write(&topic, &[Raw::value(0, "new")]).await;
    assert_eq!(call(&consumer, ask(&query)).await.messages()[0]["value"], "new", "others still come first");
    let rest = drain(&consumer, &topic, "g", "").await;
    let lengths: Vec<_> = rest.iter().map(|it| (it["offset"].clone(), it["value"].as_str().map(str::len))).collect();
    assert_eq!(lengths, [(json!(1), Some(50_000)), (json!(2), Some(5))], "with more room it goes on");
}

#[tokio::test]
async fn a_record_that_no_answer_can_carry_is_413() {
    let stack = Stack::shared().await;
    let (consumer, topic) =
        (function("consume").await, topic_on(&stack.bootstrap(), 1, &[("max.message.bytes", "9000000")]).await);
    write(&topic, &[Raw::value(0, vec![0xff; 5_000_000])]).await;
    let token = full_token().await;
    let query = format!("topic={topic}&group_id=g&timeout_ms=0");
    let response = consumer.invoke(ask(&query).bearer(&token).build()).await;
    assert_eq!(problem(&response), answer(413, "record_too_large"));
    assert_eq!(Answer::read(&response).body["offset"], 0);
}

#[tokio::test]
async fn a_record_that_comes_while_a_call_waits_is_that_call_s_answer() {
    let (producer, consumer, topic) = (function("produce").await, function("consume").await, topic(2).await);
    let token = full_token().await;
    let query = format!("topic={topic}&group_id=g&timeout_ms=25000&start=latest");
    let event = ask(&query).bearer(&token).build();
    let waiting = tokio::spawn(async move { consumer.invoke(event).await });
    // With `start=latest` the first call commits where the group begins: from then on it waits.
    let mut bystander = ClientConfig::new();
    bystander.set("bootstrap.servers", Stack::shared().await.bootstrap()).set("group.id", "g");
    let bystander: BaseConsumer = bystander.create().expect("a client");
    let asked = topic.clone();
    let begun = move || {
        let mut list = rdkafka::TopicPartitionList::new();
        for partition in 0..2 {
            list.add_partition(&asked, partition);
        }
        loop {
            let committed = bystander.committed_offsets(list.clone(), Duration::from_secs(10)).expect("offsets");
            if committed.elements().iter().all(|element| element.offset() == Offset::Offset(0)) {
                return;
            }
        }
    };
    tokio::task::spawn_blocking(begun).await.expect("not cancelled");
    assert!(!waiting.is_finished(), "it waits");
    produce(&producer, &json!({ "topic": topic, "value": "at last" })).await.ok();
    let answer = Answer::read(&waiting.await.expect("not cancelled"));
    assert_eq!(answer.messages().len(), 1);
    assert_eq!(answer.messages()[0]["value"], "at last");
    for header in ["cache-control", "content-type"] {
        let expected = if header == "cache-control" { "no-store" } else { "application/json" };
        assert_eq!(answer.headers[header], expected);
    }
}

#[tokio::test]
async fn what_does_not_decode_as_asked_comes_as_base64_with_the_reason() {
    let (consumer, topic) = (function("consume").await, topic(1).await);
    let values: [&[u8]; 4] = [b"\xff\xfe", b"{\"a\": 1.10}", b"text", b"{\"a\":"];
    write(&topic, &values.map(|value| Raw { key: Some(value.to_vec()), ..Raw::value(0, value) })).await;
    for (format, errors) in [
        ("auto", [false; 4]),
        ("string", [true, false, false, false]),
        ("json", [true, false, true, true]),
        ("binary", [false; 4]),
    ] {
        let messages = drain(&consumer, &topic, &unique("g"), &format!("&format={format}")).await;
        for ((message, value), error) in messages.iter().zip(values).zip(errors) {
            for field in ["key", "value"] {
                let said = message.get(format!("{field}_error"));
                assert_eq!(said.is_some_and(Value::is_string), error, "{format}: {message}");
                if error || format == "binary" {
                    assert_eq!(message[format!("{field}_encoding")], "base64", "{format}: {message}");
                }
                if format != "json" || error {
                    assert_eq!(payload(message, field).as_deref(), Some(value), "{format}: {message}");
                }
            }
        }
    }
    let messages = drain(&consumer, &topic, &unique("g"), "&key_format=json&value_format=binary").await;
    assert_eq!((&messages[1]["key"], &messages[1]["value"]), (&json!({ "a": 1.10 }), &json!("eyJhIjogMS4xMH0=")));
}
