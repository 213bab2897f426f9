//! What operators see: log lines, and metrics on a real Pushgateway.

// Counts are whole numbers, which floating point holds exactly.
#![allow(clippy::float_cmp)]

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, Stack};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::world::{Answer, CONSUME, call, consume, function, function_with, produce, topic, unique};

/// The samples of one job on the Pushgateway, as text lines.
pub(crate) async fn pushed(job: &str) -> Vec<String> {
    let url = format!("{}/metrics", Stack::shared().await.pushgateway());
    let text = reqwest::get(url).await.expect("an answer").text().await.expect("text");
    let label = format!("job=\"{job}\"");
    text.lines().filter(|line| line.contains(&label)).map(str::to_owned).collect()
}

/// The sum of a metric's samples that have all of these labels.
pub(crate) fn sum(samples: &[String], name: &str, labels: &[&str]) -> f64 {
    samples
        .iter()
        .filter(|line| line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number"))
        .sum()
}

/// The last line a function wrote about a finished request.
fn last_request(function: &Function) -> Value {
    let lines = function.logs();
    lines.into_iter().rfind(|line| line["request_id"].is_string() && line["status"].is_number()).expect("a line")
}

#[tokio::test]
async fn every_request_is_one_line_with_the_contract_s_fields() {
    let (topic, group) = (topic(1).await, unique("group"));
    let consumer = function("consume").await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let event = Event::get(CONSUME)
        .query(&format!("topic={topic}&group_id={group}&timeout_ms=0"))
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    let answer = call(&consumer, event).await;
    assert_eq!(answer.status, 200);
    assert!(consumer.idle(Duration::from_secs(5)).await);
    let line = last_request(&consumer);
    assert_eq!(line["function"], "consume");
    assert_eq!(line["topic"], topic);
    assert_eq!(line["group"], group);
    assert_eq!(line["status"], 200);
    assert_eq!(line["cold_start"], true);
    assert_eq!(line["trace_id"], trace);
    assert_eq!(line["request_id"], answer.headers["x-request-id"]);
    assert!(
        line["duration_ms"].is_number() && line["timestamp"].is_string() && line["principal"].is_string(),
        "{line}"
    );
    consume(&consumer, "no-such-topic", &group, "&timeout_ms=0").await;
    assert!(consumer.idle(Duration::from_secs(5)).await);
    let line = last_request(&consumer);
    assert_eq!(
        (&line["status"], &line["code"], &line["cold_start"]),
        (&json!(404), &json!("topic_not_found"), &json!(false))
    );
    let requests = consumer.logs().iter().filter(|line| line["status"].is_number()).count();
    assert_eq!(requests, 2, "one line a request");
    for line in consumer.logs() {
        assert!(line.is_object(), "every line is JSON: {line}");
    }
}

#[tokio::test]
async fn a_fault_s_line_carries_the_whole_chain_and_its_answer_does_not() {
    let nowhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = nowhere.local_addr().expect("an address").to_string();
    drop(nowhere);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", address.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "1500")];
    let producer = function_with("produce", &settings).await;
    let answer = produce(&producer, &json!({ "topic": "t", "value": "v" })).await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
    assert!(answer.headers["retry-after"].is_string(), "{answer:?}");
    assert!(!answer.body.to_string().contains(&address), "no broker address: {answer:?}");
    assert!(producer.idle(Duration::from_secs(5)).await);
    let line = last_request(&producer);
    assert_eq!(line["level"], "ERROR");
    let chain = line["error_chain"].as_str().expect("a chain");
    assert!(chain.starts_with("broker_unavailable") && chain.contains("BrokerTransportFailure"), "{chain}");
    assert!(line["backtrace"].is_string());
    // Kafka is asked for all the time, and an outage is no flood of lines.
    let down =
        producer.logs().iter().filter(|line| line["message"].as_str().is_some_and(|it| it.ends_with("down"))).count();
    assert_eq!(down, 1, "{}", producer.log_text());
}

#[tokio::test]
async fn metrics_arrive_at_the_pushgateway_and_know_only_real_topics() {
    let (topic, group, job) = (topic(1).await, unique("group"), unique("job"));
    let settings = [("METRICS_JOB", job.as_str())];
    let (producer, consumer) = (function_with("produce", &settings).await, function_with("consume", &settings).await);
    assert_eq!((producer.extensions(), consumer.extensions()), (1, 1));
    for value in ["one", "two", "three"] {
        produce(&producer, &json!({ "topic": topic, "value": value })).await.ok();
    }
    produce(&producer, &json!({ "topic": "no-such-topic", "value": "x" })).await;
    let refused = Answer::read(&producer.invoke(Event::post("/kafka/producer/produce").build()).await);
    assert_eq!(refused.status, 401);
    assert_eq!(consume(&consumer, &topic, &group, "").await.messages().len(), 3);
    // The end of a sandbox pushes what is not pushed yet.
    for function in [&producer, &consumer] {
        assert!(function.idle(Duration::from_secs(5)).await);
        function.terminate();
        assert_eq!(function.exit_code(Duration::from_secs(5)).await, Some(0));
    }
    let samples = pushed(&job).await;
    let topic_label = format!("topic=\"{topic}\"");
    let sum = |name: &str, labels: &[&str]| sum(&samples, name, labels);
    assert_eq!(sum("kafka_gateway_requests_total", &["function=\"produce\"", &topic_label, "status=\"200\""]), 3.0);
    assert_eq!(sum("kafka_gateway_requests_total", &["function=\"consume\"", &topic_label, "status=\"200\""]), 1.0);
    assert_eq!(sum("kafka_gateway_records_total", &["direction=\"produce\"", &topic_label]), 3.0);
    assert_eq!(sum("kafka_gateway_records_total", &["direction=\"consume\"", &topic_label]), 3.0);
    assert_eq!(sum("kafka_gateway_bytes_total", &["direction=\"consume\"", &topic_label]), 11.0);
    assert_eq!(sum("kafka_gateway_request_duration_seconds_count", &["function=\"produce\""]), 5.0);
    assert_eq!(sum("kafka_gateway_auth_failures_total", &["reason=\"missing_token\""]), 1.0);
    assert_eq!(sum("kafka_gateway_cold_starts_total", &[]), 2.0);
    assert!(sum("kafka_gateway_init_duration_seconds", &["function=\"consume\""]) > 0.0);
    assert!(samples.iter().all(|line| !line.contains("no-such-topic")), "a label that any caller can invent");
    assert!(samples.iter().all(|line| line.contains("instance=\"")));
}

#[tokio::test]
async fn a_pushgateway_that_never_answers_delays_no_answer() {
    // It accepts connections and reads, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let (heard, mut hear) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = silent.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut first = [0; 1];
                if connection.read_exact(&mut first).await.is_ok() {
                    let _ = heard.send(());
                }
                let _ = connection.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let topic = topic(1).await;
    let producer = function_with("produce", &[("PUSHGATEWAY_URL", &url)]).await;
    // The answer is here while the push has not even been answered; and the next call works as well.
    produce(&producer, &json!({ "topic": topic, "value": "v" })).await.ok();
    hear.recv().await.expect("a push was tried");
    produce(&producer, &json!({ "topic": topic, "value": "v" })).await.ok();
    assert!(producer.idle(Duration::from_secs(5)).await, "and the sandbox comes to rest");
}

#[tokio::test]
async fn init_fails_fast_and_names_the_variable() {
    for (name, value) in
        [("KAFKA_SECURITY", "none"), ("OIDC_ISSUER", ""), ("RUST_LOG", "a=b=c"), ("KAFKA_PROPERTIES", "acks=0")]
    {
        for function in ["produce", "consume"] {
            let mut env = Stack::shared().await.kafka_env();
            env.insert(name.to_owned(), value.to_owned());
            let failure = Function::try_start(function, &env).await.expect_err("it does not start");
            assert!(failure.output.contains(name), "{name}: {failure:?}");
            assert!(failure.exit_code.is_some_and(|code| code != 0), "{failure:?}");
        }
    }
}
