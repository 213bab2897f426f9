//! Prometheus' rules and Grafana's dashboard, on what functions really push.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kafka_gateway::metrics;
use serde_json::{Value, json};
use tests::{Event, Function, Prometheus, Stack, promtool};

use crate::kit::scheduled;
use crate::world::{Answer, PRODUCE, call, consume, function_with, produce, topic, unique};

const ACKNOWLEDGE: &str = "/kafka/consumer/acknowledge";

/// The dashboard's panels: title and expression.
fn panels() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/local/grafana/dashboards/kafka-gateway.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(path).expect("the dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels
        .flat_map(|panel| {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            let targets = panel["targets"].as_array().expect("targets").iter();
            targets.map(move |target| (text(&panel["title"]), text(&target["expr"])))
        })
        .collect()
}

/// The words of an expression that name what functions push.
fn pushed_names(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("kafka_gateway_")).collect()
}

async fn end(functions: &[&Function]) {
    for function in functions {
        assert!(function.idle(Duration::from_secs(5)).await);
        function.terminate();
        assert_eq!(function.exit_code(Duration::from_secs(5)).await, Some(0));
    }
}

#[tokio::test]
async fn the_rules_say_what_they_are_meant_to() {
    promtool(&["check", "config", "prometheus.yml"]).await;
    promtool(&["test", "rules", "rules.test.yml"]).await;
}

/// Makes functions push everything that they can, as `job`; whether all six requests are counted.
async fn counted(prometheus: &Prometheus, job: &str) -> bool {
    let (group, topic) = (unique("group"), topic(1).await);
    let watched = format!("{group}={topic}");
    let settings = [("METRICS_JOB", job), ("LAG_MONITOR_GROUPS", &watched)];
    let producer = function_with("produce", &settings).await;
    for value in ["one", "two", "three"] {
        produce(&producer, &json!({ "topic": topic, "value": value })).await.ok();
    }
    assert_eq!(Answer::read(&producer.invoke(Event::post(PRODUCE).build()).await).status, 401);
    let consumer = function_with("consume", &settings).await;
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await.ok();
    let acknowledger = function_with("acknowledge", &settings).await;
    let reject = json!({ "token": leased["lease"]["token"], "type": "reject", "reason": "a test" });
    call(&acknowledger, Event::post(ACKNOWLEDGE).json(&reject)).await.ok();
    function_with("lag-monitor", &settings).await.invoke(scheduled()).await;
    end(&[&producer, &consumer, &acknowledger]).await;

    // Recorded from the first values of three sandboxes that are gone already.
    let recorded = format!("sum(kafka_gateway:requests:increase5m{{job=\"{job}\"}})");
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        if prometheus.query(&recorded).await.first().is_some_and(|sample| sample["value"][1] == "6") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}

#[tokio::test]
async fn dashboard_and_rules_show_what_functions_push() {
    let prometheus = Prometheus::start(Stack::shared().await).await;
    // A push has 200 ms, and a busy machine may take longer: then its counts are lost with the sandbox.
    let mut job = unique("job");
    let mut tries = 1;
    while !counted(&prometheus, &job).await {
        assert!(tries < 5, "what functions counted does not arrive");
        tries += 1;
        job = unique("job");
    }
    let known = [
        metrics::REQUESTS,
        metrics::REQUEST_DURATION,
        metrics::RECORDS,
        metrics::BYTES,
        metrics::COLD_STARTS,
        metrics::INIT_DURATION,
        metrics::DEAD_LETTERS,
        metrics::LEASES,
        metrics::CONSUMER_LAG,
        metrics::AUTH_FAILURES,
    ];
    let mut used = BTreeSet::new();
    for (title, expression) in panels() {
        let here = expression.replace("$job", &job).replace("$topic", ".*");
        // Nothing of ours has failed. The rules are evaluated one after the other: what the first has counted may not show in
        // the others yet.
        let expected = title != "5xx among answers";
        let mut samples = prometheus.query(&here).await;
        let begun = std::time::Instant::now();
        while expected && samples.is_empty() && begun.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            samples = prometheus.query(&here).await;
        }
        assert_eq!(!samples.is_empty(), expected, "{title}: {here}: {samples:?}");
        used.extend(pushed_names(&expression).into_iter().map(str::to_owned));
    }
    let rules = prometheus.rules().await;
    assert!(rules.len() > 10, "{rules:?}");
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        used.extend(pushed_names(rule["query"].as_str().expect("a query")).into_iter().map(str::to_owned));
    }
    let known: BTreeSet<&str> = known.into();
    let used: BTreeSet<&str> = used.iter().map(|name| name.strip_suffix("_bucket").unwrap_or(name)).collect();
    assert_eq!(used, known, "what is shown, and what is pushed");
}
