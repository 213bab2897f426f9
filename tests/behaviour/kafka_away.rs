//! Functions that find no Kafka when they start: a clear answer in time from each that writes, and it says that nothing
//! was written.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::batch::{BATCH, results};
use crate::consume::fill;
use crate::redrive::{REDRIVE, dead_letter_topic};
use crate::world::{Answer, call, function_with, topic_on, unique};

/// What a call of these functions may take; `call` sees to it that none takes longer.
const CALL_MS: u64 = 3000;

/// A function whose brokers are at this address.
async fn function_at(name: &str, address: &str) -> Function {
    let time = CALL_MS.to_string();
    function_with(name, &[("KAFKA_BOOTSTRAP_SERVERS", address), ("KAFKA_REQUEST_TIMEOUT_MS", &time)]).await
}

async fn unavailable(function: &Function, event: Event) -> Answer {
    let answer = call(function, event).await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"), "{answer:?}");
    assert!(answer.headers["retry-after"].is_string() && answer.body["retryable"] == true, "{answer:?}");
    assert!(!answer.body.to_string().contains("127.0.0.1"), "{answer:?}");
    answer
}

#[tokio::test]
async fn a_batch_says_of_each_record_that_it_is_not_written() {
    // Nobody ever listens there.
    let producer = function_at("produce-batch", "127.0.0.1:1").await;
    let records: Vec<Value> = (0..20).map(|n| json!({ "id": n, "topic": format!("t{}", n % 3), "value": n })).collect();
    for atomic in [false, true] {
        // The first call and one of a sandbox that knows by now.
        for _ in 0..2 {
            let body = json!({ "atomic": atomic, "records": records });
            let answer = unavailable(&producer, Event::post(BATCH).json(&body)).await;
            for (n, result) in results(&answer, 503).iter().enumerate() {
                assert_eq!((&result["id"], &result["code"]), (&json!(n), &json!("broker_unavailable")), "{result}");
            }
            assert_eq!(answer.body["outcome"], if atomic { json!("aborted") } else { Value::Null }, "{answer:?}");
        }
    }
    // What is at fault by itself is said all the same.
    let body = json!({ "records": [{ "topic": "t", "value": 1 }, { "topic": "__x", "value": 1 }, { "topic": "t" }] });
    let mixed = call(&producer, Event::post(BATCH).json(&body)).await;
    let statuses: Vec<Value> = results(&mixed, 207).iter().map(|result| result["status"].clone()).collect();
    assert_eq!(statuses, [503, 403, 400].map(Value::from));
}

#[tokio::test]
async fn a_redrive_moves_nothing_and_says_so() {
    let redriver = function_at("redrive", "127.0.0.1:1").await;
    for body in [json!({ "dlq_topic": "t.dlq" }), json!({ "dlq_topic": "t.dlq", "dry_run": true })] {
        for _ in 0..2 {
            let answer = unavailable(&redriver, Event::post(REDRIVE).json(&body)).await;
            assert!(answer.body.get("results").is_none(), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_that_found_no_kafka_work_when_it_is_there() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    let letters = dead_letter_topic(&server, &topic, 1).await;
    fill(&server, &letters, 1, 3);
    broker.stop().await;
    let (producer, redriver) = (function_at("produce-batch", &server).await, function_at("redrive", &server).await);
    let batch = |atomic: bool| {
        Event::post(BATCH).json(&json!({ "topic": topic, "atomic": atomic, "records": [{ "value": unique("value") }] }))
    };
    let redrive = || Event::post(REDRIVE).json(&json!({ "dlq_topic": letters }));
    for atomic in [false, true] {
        unavailable(&producer, batch(atomic)).await;
    }
    unavailable(&redriver, redrive()).await;
    broker.start().await.expect("the broker starts again");
    let comes_back = async |function: &Function, event: Event| {
        let again = async {
            loop {
                let answer = call(function, event.clone()).await;
                if answer.status == 200 {
                    return answer;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), again).await.expect("it is found")
    };
    // Nothing of what was refused comes after all.
    let first = comes_back(&producer, batch(false)).await;
    assert_eq!(results(&first, 200)[0]["offset"], 0, "the first that is written");
    let second = comes_back(&producer, batch(true)).await;
    assert_eq!(results(&second, 200)[0]["offset"], 1);
    assert_eq!(comes_back(&redriver, redrive()).await.body["redriven"], 3);
}
