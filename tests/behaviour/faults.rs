//! Brokers that are away, paused, restarted: the right status within the deadline, and nothing lost.

use std::time::Duration;

use serde_json::json;
use tests::Stack;

use crate::consume::{committed, fill};
use crate::world::{consume, function_with, produce, topic_on, unique};

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
