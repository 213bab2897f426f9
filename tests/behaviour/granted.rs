//! What the template grants each function on MSK is enough: the same on Kafka's own authorizer, and each does what it is
//! for (docs/operations.md names what is not tried). (That it is no more than that: `acl`, for what Kafka tells apart.)

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tests::{Event, Function, Stack};

use crate::acl::user;
use crate::batch::BATCH as PRODUCE_BATCH;
use crate::consume_batch::BATCH as CONSUME_BATCH;
use crate::kit::{confluent, scheduled};
use crate::registry::register;
use crate::secured::{function_by, secured};
use crate::wire::ACKNOWLEDGE;
use crate::world::{call, consume, produce, unique};

/// As Kafka's ACLs say it: the resource's type, its name, how that is meant, the operation.
type Grant = [String; 4];

/// What the policies of `docs/operations.md` allow each function, under all their conditions; `make lint` holds them equal to
/// the template's. Kafka has no pattern for names that end alike: `letters` stand for them.
fn granted(letters: &[String]) -> BTreeMap<String, Vec<Grant>> {
    let table = include_str!("../../docs/operations.md").split("\n## What each function may do\n").nth(1).expect("it");
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut grants: BTreeMap<String, Vec<Grant>> = BTreeMap::new();
    for row in table.lines().filter(|line| line.starts_with("| Allow | `kafka-cluster:")) {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, _, actions, on, functions, ..] = cells[..] else { panic!("{row}") };
        let functions = if functions.trim() == "all" { all() } else { quoted(functions) };
        let on = quoted(on).pop().expect("a resource");
        for action in quoted(actions) {
            let Some([kind, operation]) = operation(action.trim_start_matches("kafka-cluster:")) else { continue };
            for name in names(&on, letters) {
                let pattern = if name == "kafka-gateway:1:" { "PREFIXED" } else { "LITERAL" };
                for function in &functions {
                    let grant = [kind, name.as_str(), pattern, operation].map(str::to_owned);
                    grants.entry(function.clone()).or_default().push(grant);
                }
            }
        }
    }
    assert_eq!(grants.keys().cloned().collect::<Vec<_>>(), all(), "each function has some");
    grants
}

/// All functions.
fn all() -> Vec<String> {
    let folder = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions")).expect("functions");
    let mut names: Vec<_> =
        folder.map(|entry| entry.expect("a folder").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// What an action of MSK's is in Kafka, by AWS's own description; nothing, for logging in.
fn operation(action: &str) -> Option<[&'static str; 2]> {
    Some(match action {
        "Connect" => return None,
        "DescribeTopic" => ["TOPIC", "DESCRIBE"],
        "ReadData" => ["TOPIC", "READ"],
        "WriteData" => ["TOPIC", "WRITE"],
        "CreateTopic" => ["TOPIC", "CREATE"],
        "DeleteTopic" => ["TOPIC", "DELETE"],
        "DescribeTopicDynamicConfiguration" => ["TOPIC", "DESCRIBE_CONFIGS"],
        "DescribeGroup" => ["GROUP", "DESCRIBE"],
        "AlterGroup" => ["GROUP", "READ"],
        "DescribeTransactionalId" => ["TRANSACTIONAL_ID", "DESCRIBE"],
        "AlterTransactionalId" => ["TRANSACTIONAL_ID", "WRITE"],
        "WriteDataIdempotently" => ["BROKER", "IDEMPOTENT_WRITE"],
        "DescribeClusterDynamicConfiguration" => ["BROKER", "DESCRIBE_CONFIGS"],
        other => panic!("what is {other}?"),
    })
}

fn names(on: &str, letters: &[String]) -> Vec<String> {
    match on.split_once('/') {
        None => vec!["kafka-cluster".to_owned()],
        Some(("topic", "*<DlqTopicSuffix>")) => letters.to_vec(),
        Some(("topic" | "group", "*")) => vec!["*".to_owned()],
        Some((_, name)) => vec![name.trim_end_matches('*').to_owned()],
    }
}

/// A function that has its own grants and no others.
async fn start(name: &str, users: &BTreeMap<String, String>, more: &[(&str, &str)]) -> Function {
    let credentials = format!("{0}:{0}", users[name]);
    let more = [&[("KAFKA_CREDENTIALS", credentials.as_str())], more].concat();
    function_by(name, "scram-sha-512", "SCRAM", &more).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_function_does_what_it_is_for_with_what_the_template_grants_it() {
    let (stack, server, group) = (Stack::shared().await, secured().await.broker().bootstrap(), unique("group"));
    let [first, second, third] = [(); 3].map(|()| unique("topic"));
    let letters = [&first, &second, &third].map(|topic| format!("{topic}.dlq"));
    let mut users = BTreeMap::new();
    for name in all() {
        users.insert(name, user(vec![]).await);
    }
    let grants: BTreeMap<_, _> =
        granted(&letters).into_iter().map(|(function, grants)| (&users[&function], grants)).collect();
    confluent("grants.py", &[&server, &json!(grants).to_string()]).await;

    let topics = start("topics", &users, &[]).await;
    for topic in [&first, &second, &third] {
        let made = call(&topics, Event::post("/kafka/topics").json(&json!({ "topic": topic, "partitions": 1 }))).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let described = call(&topics, Event::get(&format!("/kafka/topics/{first}"))).await.ok();
    assert!(described["configs"]["retention.ms"]["value"].is_string(), "{described}");

    // Records, to a topic that the broker makes, and where what does not fit is kept.
    register(&format!("{second}-value"), "AVRO", r#"{"type":"array","items":"long"}"#, &json!([])).await;
    let registry = [("SCHEMA_REGISTRY_URL", stack.registry().await), ("SCHEMA_ON_INVALID", "dlq")];
    let producer = start("produce", &users, &[&registry[..], &[("KAFKA_AUTO_CREATE_TOPICS", "true")]].concat()).await;
    produce(&producer, &json!({ "topic": unique("made"), "value": "v" })).await.ok();
    produce(&producer, &json!({ "topic": first, "value": "v" })).await.ok();
    let kept = produce(&producer, &json!({ "topic": second, "value": "v", "value_format": "avro" })).await;
    assert_eq!(kept.body["dead_letter"]["offset"], 0, "{kept:?}");
    let batches = start("produce-batch", &users, &registry).await;
    for (topic, atomic) in [(&first, true), (&second, false), (&third, true)] {
        let body = json!({ "topic": topic, "atomic": atomic, "records": [{ "value": "v" }] });
        call(&batches, Event::post(PRODUCE_BATCH).json(&body)).await.ok();
    }

    // A record that is rejected, and one that is given up.
    let limit = [("DLQ_MAX_DELIVERIES", "1")];
    let (consumer, acker) = (start("consume", &users, &limit).await, start("acknowledge", &users, &limit).await);
    let lease = consume(&consumer, &first, &group, "&ack=manual&limit=1").await.ok()["lease"]["token"].clone();
    let reject = call(&acker, Event::post(ACKNOWLEDGE).json(&json!({ "token": lease, "type": "reject" }))).await.ok();
    assert_eq!(reject["results"][0]["status"], "rejected", "{reject}");
    assert_eq!(consume(&consumer, &first, &group, "").await.messages().len(), 1);
    let lease = consume(&consumer, &third, &group, "&ack=manual").await.ok()["lease"]["token"].clone();
    call(&acker, Event::post(ACKNOWLEDGE).json(&json!({ "token": lease, "type": "release" }))).await.ok();
    let buried = consume(&consumer, &third, &group, "&ack=manual&timeout_ms=0").await.ok();
    assert_eq!(buried["messages"], json!([]), "it went to the dead-letter topic");
    let several = start("consume-batch", &users, &[]).await;
    let both = json!({ "group_id": group, "topics": [{ "topic": first }, { "topic": second }] });
    let got = call(&several, Event::post(CONSUME_BATCH).json(&both)).await.ok();
    assert_eq!((got["messages"].as_array().map(Vec::len), got.get("failed")), (Some(1), None), "{got}");

    let back = json!({ "group_id": group, "topic": first, "to": "earliest" });
    let seek = start("seek", &users, &[]).await;
    call(&seek, Event::post("/kafka/consumer/seek").json(&back)).await.ok();
    let lag = start("lag", &users, &[]).await;
    let shown =
        call(&lag, Event::get("/kafka/consumer/lag").query(&format!("group_id={group}&topic={first}"))).await.ok();
    assert_eq!(shown["total_lag"], 3, "two records and the mark of a transaction: {shown}");
    let fetch = start("fetch", &users, &[]).await;
    let fetched =
        call(&fetch, Event::get("/kafka/consumer/fetch").query(&format!("topic={first}&offset=earliest"))).await;
    assert_eq!(fetched.messages().len(), 2, "{fetched:?}");
    let redrive = start("redrive", &users, &[]).await;
    for letters in [&letters[0], &letters[2]] {
        let moved = call(&redrive, Event::post("/kafka/dlq/redrive").json(&json!({ "dlq_topic": letters }))).await.ok();
        assert_eq!(moved["redriven"], 1, "{moved}");
    }
    let watched = format!("{group}={first},{third}");
    let monitor = start("lag-monitor", &users, &[("LAG_MONITOR_GROUPS", &watched)]).await;
    monitor.try_invoke(scheduled(), Duration::from_secs(29)).await.expect("all was measured");
    let gone = call(&topics, Event::new("DELETE", &format!("/kafka/topics/{third}"))).await;
    assert_eq!(gone.status, 204, "{gone:?}");
}
