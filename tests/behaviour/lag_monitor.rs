//! `lag-monitor`: what it publishes, and what it says when it cannot.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Failure, Function, Stack};

use crate::consume::fill;
use crate::kit::scheduled;
use crate::lag::commit;
use crate::observability::{pushed, sum};
use crate::world::{function_with, topic, unique};

/// The metrics of `CloudWatch`'s embedded format among a function's lines, for one topic.
fn embedded(function: &Function, topic: &str) -> Vec<Value> {
    function.logs().into_iter().filter(|line| line["_aws"].is_object() && line["topic"] == topic).collect()
}

fn lines(function: &Function, message: &str) -> Vec<Value> {
    function.logs().into_iter().filter(|line| line["message"] == message).collect()
}

#[tokio::test]
async fn the_lag_of_watched_groups_is_published_and_warned_of() {
    let (stack, [one, two]) = (Stack::shared().await, [topic(2).await, topic(1).await]);
    let [ours, theirs, job] = ["ours", "theirs", "job"].map(unique);
    let server = stack.bootstrap();
    fill(&server, &one, 2, 20);
    fill(&server, &two, 1, 5);
    commit(&server, &ours, &one, 0, 7);
    let groups = format!("{ours}={one},{two}; {theirs}={two}");
    let settings = [("LAG_MONITOR_GROUPS", groups.as_str()), ("LAG_ALARM_THRESHOLD", "5"), ("METRICS_JOB", &job)];
    let monitor = function_with("lag-monitor", &settings).await;
    assert_eq!(monitor.invoke(scheduled()).await, Value::Null);
    let samples = pushed(&job).await;
    let lag = |group: &str, topic: &str, partition: u32| {
        let labels = [format!("group=\"{group}\""), format!("topic=\"{topic}\""), format!("partition=\"{partition}\"")];
        sum(&samples, "kafka_gateway_consumer_lag", &labels.each_ref().map(String::as_str))
    };
    assert_eq!([lag(&ours, &one, 0), lag(&ours, &one, 1)].map(|lag| lag.to_string()), ["3", "10"]);
    assert_eq!([lag(&ours, &two, 0), lag(&theirs, &two, 0)].map(|lag| lag.to_string()), ["5", "5"]);
    assert!(samples.iter().all(|line| line.contains("instance=\"lag-monitor\"")), "{samples:?}");
    // What CloudWatch makes metrics of.
    let [metrics] = &embedded(&monitor, &one)[..] else { panic!("{:?}", monitor.logs()) };
    assert_eq!(
        (&metrics["job"], &metrics["group"], &metrics["consumer_lag"], &metrics["consumer_lag_max"]),
        (&json!(job), &json!(ours), &json!(13), &json!(10))
    );
    let directive = &metrics["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(
        (&directive["Namespace"], &directive["Dimensions"]),
        (&json!("KafkaGateway"), &json!([["job", "group", "topic"]]))
    );
    assert!(metrics["_aws"]["Timestamp"].is_u64(), "{metrics}");
    assert_eq!(embedded(&monitor, &two).len(), 2);
    // Only what is over the threshold is warned of.
    let [warning] = &lines(&monitor, "the group is too far behind")[..] else { panic!("{:?}", monitor.logs()) };
    assert_eq!(warning["level"], "WARN");
    let named = ["group", "topic", "lag", "threshold"].map(|name| &warning[name]);
    assert_eq!(json!(named), json!([ours, one, 13, 5]));
    // Another run replaces what was pushed.
    commit(&server, &ours, &one, 1, 10);
    monitor.invoke(scheduled()).await;
    let left = sum(&pushed(&job).await, "kafka_gateway_consumer_lag", &[&format!("group=\"{ours}\"")]);
    assert_eq!(left.to_string(), "8");
    assert!(lines(&monitor, "the group is too far behind").len() == 1, "{:?}", monitor.logs());
}

#[tokio::test]
async fn what_cannot_be_measured_fails_the_run_and_holds_up_nothing_else() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let [group, none, job] = ["group", "none", "job"].map(unique);
    fill(&stack.bootstrap(), &topic, 1, 5);
    let groups = format!("{group}={none},{topic}");
    let monitor = function_with("lag-monitor", &[("LAG_MONITOR_GROUPS", &groups), ("METRICS_JOB", &job)]).await;
    for runs in 1..=2 {
        let failure = monitor.try_invoke(scheduled(), Duration::from_secs(29)).await.expect_err("it fails");
        let Failure::Error(error) = &failure else { panic!("{failure:?}") };
        assert!(error["errorMessage"].as_str().is_some_and(|text| text.starts_with("1 topics")), "{error}");
        let said = lines(&monitor, "the lag could not be measured");
        assert_eq!(said.len(), runs);
        let named = ["level", "group", "topic"].map(|name| &said[0][name]);
        assert_eq!(json!(named), json!(["ERROR", group, none]));
        assert!(said[0]["error_chain"].as_str().is_some_and(|chain| chain.starts_with("topic_not_found")), "{said:?}");
        assert_eq!(embedded(&monitor, &topic).len(), runs);
    }
    let samples = pushed(&job).await;
    assert_eq!(sum(&samples, "kafka_gateway_consumer_lag", &[&format!("topic=\"{topic}\"")]).to_string(), "5");
    assert!(samples.iter().all(|line| !line.contains(&none)), "{samples:?}");
    // Without a broker, and without a Pushgateway, it says so too.
    let away = [
        ("LAG_MONITOR_GROUPS", groups.as_str()),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("PUSHGATEWAY_URL", "http://127.0.0.1:1"),
    ];
    let monitor = function_with("lag-monitor", &away).await;
    monitor.try_invoke(scheduled(), Duration::from_secs(29)).await.expect_err("it fails");
    assert_eq!(lines(&monitor, "the lag could not be measured").len(), 2);
    assert_eq!(lines(&monitor, "the lags were not pushed").len(), 1);
}

#[tokio::test]
async fn it_does_not_start_without_groups_to_watch() {
    for (name, value) in [("LAG_MONITOR_GROUPS", ""), ("LAG_MONITOR_GROUPS", "group"), ("LAG_ALARM_THRESHOLD", "many")]
    {
        let mut env = Stack::shared().await.kafka_env();
        env.insert("LAG_MONITOR_GROUPS".to_owned(), "g=t".to_owned());
        env.insert(name.to_owned(), value.to_owned());
        let failure = Function::try_start("lag-monitor", &env).await.expect_err("it does not start");
        assert!(failure.output.contains(name) && failure.exit_code.is_some_and(|code| code != 0), "{failure:?}");
    }
}
