//! Brokers that are away, paused, restarted: the right status within the deadline, and nothing lost.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Stack};

use crate::consume::{committed, fill};
use crate::world::{Answer, PRODUCE, consume, function_with, produce, topic_on, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_is_found_again() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "3000")];
    let (producer, consumer) = (function_with("produce", &settings).await, function_with("consume", &settings).await);
    produce(&producer, &json!({ "topic": topic, "value": "20" })).await.ok();
    assert_eq!(consume(&consumer, &topic, &group, "&limit=5").await.messages().len(), 5);

    broker.kill().await;
    let answer = produce(&producer, &json!({ "topic": topic, "value": "21" })).await;
    // The topic was seen, so the record was on its way: whether it got there is not known.
    assert_eq!((answer.status, answer.code()), (504, "deadline_exceeded"));
    assert_eq!(answer.body["outcome"], "unknown");
    let answer = consume(&consumer, &topic, &group, "&limit=5").await;
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    assert_eq!(answer.body["retryable"], true);
    // A function that starts while no broker is there.
    let (late_producer, late_consumer) =
        (function_with("produce", &settings).await, function_with("consume", &settings).await);
    let answer = produce(&late_producer, &json!({ "topic": topic, "value": "x" })).await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
    let answer = consume(&late_consumer, &topic, &group, "").await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
    assert_eq!(answer.headers["retry-after"], "1");

    broker.start().await.expect("the broker starts again");
    // A killed broker's own recovery may take a call or two; then all of them work, the late ones as well.
    for function in [&producer, &late_producer] {
        while produce(function, &json!({ "topic": topic, "value": "after" })).await.status != 200 {}
    }
    let mut offsets: Vec<i64> = Vec::new();
    for function in [&consumer, &late_consumer] {
        loop {
            let answer = consume(function, &topic, &group, "&limit=4").await;
            if answer.status == 200 {
                offsets.extend(answer.messages().iter().map(|message| message["offset"].as_i64().expect("an offset")));
                break;
            }
        }
    }
    assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]), "none twice: {offsets:?}");
    assert_eq!(committed(&server, &group, &topic, 0), offsets.last().map(|last| last + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_is_an_error_within_the_deadline() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "2000")];
    let (producer, consumer) = (function_with("produce", &settings).await, function_with("consume", &settings).await);
    produce(&producer, &json!({ "topic": topic, "value": "20" })).await.ok();
    let mut handed_out = consume(&consumer, &topic, &group, "&limit=5").await.messages().len();
    broker.pause().await;
    let record = json!({ "topic": topic, "value": "21" });
    let (written, read) =
        tokio::join!(produce(&producer, &record), consume(&consumer, &topic, &group, "&limit=5&timeout_ms=0"));
    assert_eq!((written.status, written.code()), (504, "deadline_exceeded"));
    assert_eq!(written.body["outcome"], "unknown");
    assert!([503, 504].contains(&read.status), "{read:?}");
    broker.resume().await;
    let mut last = -1;
    while handed_out < 21 {
        let answer = consume(&consumer, &topic, &group, "&limit=5").await;
        if answer.status != 200 {
            assert!([503, 504].contains(&answer.status), "{answer:?}");
            continue;
        }
        for message in answer.messages() {
            let offset = message["offset"].as_i64().expect("an offset");
            assert!(offset > last, "none twice");
            last = offset;
        }
        handed_out = usize::try_from(last + 1).expect("small");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_call_was_answered_is_not_written_when_the_sandbox_thaws() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    let producer = function_with("produce", &[("KAFKA_BOOTSTRAP_SERVERS", server.as_str())]).await;
    assert_eq!(produce(&producer, &json!({ "topic": topic, "value": "0" })).await.ok()["offset"], 0);

    broker.kill().await;
    let token = Stack::shared().await.token("gateway-full").await;
    let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "lost" })).bearer(&token).build();
    // The invocation's deadline comes long before librdkafka would give up by itself.
    let answer = Answer::read(&producer.try_invoke(event, Duration::from_secs(1)).await.expect("an answer in time"));
    assert_eq!((answer.status, answer.code()), (504, "deadline_exceeded"));
    assert_eq!(answer.body["outcome"], "unknown");
    assert!(producer.idle(Duration::from_secs(5)).await);
    producer.freeze();
    broker.start().await.expect("the broker starts again");
    producer.thaw();
    tokio::time::sleep(Duration::from_secs(2)).await;
    while produce(&producer, &json!({ "topic": topic, "value": "1" })).await.status != 200 {}
    produce(&producer, &json!({ "topic": topic, "value": "2" })).await.ok();

    let consumer = function_with("consume", &[("KAFKA_BOOTSTRAP_SERVERS", server.as_str())]).await;
    let answer = consume(&consumer, &topic, &unique("group"), "&timeout_ms=5000").await;
    let mut values: Vec<&Value> = answer.messages().iter().map(|message| &message["value"]).collect();
    values.dedup(); // a call for "1" that ended in 504 may have written it
    assert_eq!(values, ["0", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_was_frozen_across_a_restart_of_the_broker_goes_on() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str())];
    let (producer, consumer) = (function_with("produce", &settings).await, function_with("consume", &settings).await);
    produce(&producer, &json!({ "topic": topic, "value": "20" })).await.ok();
    assert_eq!(consume(&consumer, &topic, &group, "&limit=5").await.messages().len(), 5);
    for function in [&producer, &consumer] {
        assert!(function.idle(Duration::from_secs(5)).await);
        function.freeze();
    }
    broker.restart().await;
    for function in [&producer, &consumer] {
        function.thaw();
    }
    // The connections are dead, and the claim's transaction coordinator has forgotten nothing.
    produce(&producer, &json!({ "topic": topic, "value": "21" })).await.ok();
    let answer = consume(&consumer, &topic, &group, "&limit=100").await;
    let offsets: Vec<i64> = answer.messages().iter().filter_map(|message| message["offset"].as_i64()).collect();
    assert_eq!(offsets, (5..22).collect::<Vec<_>>());
}
