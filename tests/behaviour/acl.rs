//! Kafka's own authorizer: what the gateway's user may not do is 403, and never a wait; the README's table is enough.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::batch::BATCH as PRODUCE_BATCH;
use crate::consume::fill;
use crate::consume_batch::BATCH as CONSUME_BATCH;
use crate::kit::{problem, scheduled};
use crate::registry::register;
use crate::secured::{function_as, function_by, secured};
use crate::wire::ACKNOWLEDGE;
use crate::world::{PRODUCE, call, consume, produce, topic_on, unique};

const LAG: &str = "/kafka/consumer/lag";
const SEEK: &str = "/kafka/consumer/seek";

/// Makes a user with these grants; its name. Its password is its name.
pub(crate) async fn user(grants: Vec<&[&str]>) -> String {
    let (secured, name) = (secured().await, unique("user"));
    let principal = format!("User:{name}");
    secured.user("SCRAM-SHA-512", &name, &name).await;
    for grant in grants {
        secured.allow(&principal, grant).await;
    }
    name
}

/// How long a call may take of which Kafka says at once that it may not be made. It is far below the call's own time.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Calls a function for a caller who may do everything: the status and the code, which must come at once.
async fn refused(function: &Function, event: Event) -> (u64, String) {
    let token = Stack::shared().await.token("gateway-full").await;
    let (took, answer) = function.invoke_served(event.bearer(&token).build()).await;
    assert!(took < AT_ONCE, "{took:?}: {answer}");
    problem(&answer)
}

fn forbidden(code: &str) -> (u64, String) {
    (403, code.to_owned())
}

/// The README's rows for those who read.
pub(crate) const CLAIMS: &[&str] =
    &["--transactional-id", "kafka-gateway:1:", "--resource-pattern-type", "prefixed", "--operation", "Write"];

#[tokio::test(flavor = "multi_thread")]
async fn producing_takes_write_on_the_topic_and_nothing_more() {
    let topic = topic_on(&secured().await.broker().bootstrap(), 1, &[]).await;
    let (may_write, may_read) =
        (["--topic", &topic, "--operation", "Write"], ["--topic", &topic, "--operation", "Read"]);
    let (writer, reader, stranger) = tokio::join!(user(vec![&may_write]), user(vec![&may_read]), user(vec![]));
    let body = json!({ "topic": topic, "value": "v" });
    let producer = function_as("produce", &writer, &writer).await;
    assert_eq!(produce(&producer, &body).await.ok()["offset"], 0);
    // Which topics there are is not said either.
    let elsewhere = json!({ "topic": unique("nowhere"), "value": "v" });
    let event = |body: &Value| Event::post(PRODUCE).json(body);
    assert_eq!(refused(&producer, event(&elsewhere)).await, forbidden("topic_forbidden"));
    // Who may write nowhere at all is refused as such.
    for (user, code) in [(reader, "forbidden"), (stranger, "topic_forbidden")] {
        let producer = function_as("produce", &user, &user).await;
        for _ in 0..2 {
            assert_eq!(refused(&producer, event(&body)).await, forbidden(code), "{user}");
        }
    }
    assert_eq!(produce(&producer, &body).await.ok()["offset"], 1, "nothing was written meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejecting_takes_write_on_the_dead_letter_topic() {
    let server = secured().await.broker().bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 1);
    let letters = format!("{topic}.dlq");
    let reads: &[&str] = &["--topic", &topic, "--operation", "Read"];
    let joins: &[&str] = &["--group", &group, "--operation", "Read"];
    let may_write: &[&str] = &["--topic", &letters, "--operation", "Write"];
    let may_create: &[&str] = &["--topic", &letters, "--operation", "Create"];
    let (calls, reader, writer, maker) = tokio::join!(
        Calls::make(&topic, &group),
        user(vec![reads, joins, CLAIMS]),
        user(vec![reads, joins, CLAIMS, may_write]),
        user(vec![reads, joins, CLAIMS, may_write, may_create]),
    );
    let reject = || Event::post(ACKNOWLEDGE).json(&json!({ "token": calls.lease, "type": "reject" }));
    let function = function_as("acknowledge", &reader, &reader).await;
    assert_eq!(refused(&function, reject()).await, forbidden("topic_forbidden"));
    let function = function_as("acknowledge", &writer, &writer).await;
    assert_eq!(refused(&function, reject()).await, (503, "broker_unavailable".to_owned()), "it is not there");
    let function = function_as("acknowledge", &maker, &maker).await;
    assert_eq!(call(&function, reject()).await.ok()["results"][0]["committed"], 1);
}

/// The calls of those who read: of a topic with one record, and a lease on it.
struct Calls {
    topic: String,
    group: String,
    lease: Value,
}

impl Calls {
    /// Made by a user who may do everything.
    async fn make(topic: &str, group: &str) -> Self {
        let consumer = function_as("consume", "gateway", crate::secured::PASSWORD).await;
        let leased = consume(&consumer, topic, group, "&ack=manual&lease_ms=600000").await.ok();
        Self { topic: topic.to_owned(), group: group.to_owned(), lease: leased["lease"]["token"].clone() }
    }

    /// In an order in which each works if the ones before have.
    fn events(&self) -> [(&'static str, Event); 4] {
        let (topic, group) = (&self.topic, &self.group);
        [
            ("lag", Event::get(LAG).query(&format!("topic={topic}&group_id={group}"))),
            ("acknowledge", Event::post(ACKNOWLEDGE).json(&json!({ "token": self.lease, "type": "release" }))),
            ("consume", Event::get("/kafka/consumer/consume").query(&format!("topic={topic}&group_id={group}"))),
            ("seek", Event::post(SEEK).json(&json!({ "group_id": group, "topic": topic, "to": "earliest" }))),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consuming_takes_the_topic_the_group_and_the_claims() {
    let server = secured().await.broker().bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 1);
    let reads: &[&str] = &["--topic", &topic, "--operation", "Read"];
    let joins: &[&str] = &["--group", &group, "--operation", "Read"];
    let shows: &[&str] = &["--cluster", "--operation", "DescribeConfigs"];
    let sees: &[&str] = &["--topic", &topic, "--operation", "Describe"];
    let sees_group: &[&str] = &["--group", &group, "--operation", "Describe"];
    let (calls, stranger, watcher, without_group, without_claims, without_settings, reader) = tokio::join!(
        Calls::make(&topic, &group),
        user(vec![]),
        user(vec![sees, sees_group]),
        user(vec![reads, CLAIMS]),
        user(vec![reads, joins]),
        user(vec![reads, joins, CLAIMS]),
        user(vec![reads, joins, CLAIMS, shows]),
    );
    for user in [stranger, without_group] {
        for (name, event) in calls.events() {
            let function = function_as(name, &user, &user).await;
            for _ in 0..2 {
                let (status, code) = refused(&function, event.clone()).await;
                // What a call meets first: the claim, or the topic or group.
                assert!(status == 403 && ["forbidden", "topic_forbidden"].contains(&&*code), "{name}: {status} {code}");
            }
        }
    }
    // What the template gives it on MSK.
    let [(name, looks), ..] = calls.events();
    assert_eq!(call(&function_as(name, &watcher, &watcher).await, looks).await.ok()["total_lag"], 1, "it only looks");
    for (name, event) in calls.events() {
        let function = function_as(name, &without_claims, &without_claims).await;
        if name == "lag" {
            assert_eq!(call(&function, event).await.ok()["total_lag"], 1, "it claims nothing");
        } else {
            assert_eq!(refused(&function, event).await, forbidden("forbidden"), "{name}");
        }
    }
    for user in [without_settings, reader] {
        // Of the lease that is released here, and of a new one for the next user.
        for (name, event) in calls.events() {
            let function = function_as(name, &user, &user).await;
            if name == "acknowledge" && call(&function, event.clone()).await.status == 409 {
                continue; // the user before has released it
            }
            let answer = call(&function, event).await.ok();
            if name == "consume" {
                assert_eq!(answer["messages"][0]["offset"], 0, "{user}: {answer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_take_what_their_records_take_and_atomic_ones_a_claim() {
    let server = secured().await.broker().bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    let elsewhere = topic_on(&server, 1, &[]).await;
    let compacted = topic_on(&server, 1, &[("cleanup.policy", "compact")]).await;
    fill(&server, &elsewhere, 1, 1);
    let writes: &[&str] = &["--topic", &topic, "--operation", "Write"];
    let compacts: &[&str] = &["--topic", &compacted, "--operation", "Write"];
    let reads: &[&str] = &["--topic", &topic, "--operation", "Read"];
    let joins: &[&str] = &["--group", &group, "--operation", "Read"];
    let sees: &[&str] = &["--topic", &elsewhere, "--operation", "Describe"];
    let (alone, whole_user, onlooker, reader) = tokio::join!(
        user(vec![writes]),
        user(vec![writes, CLAIMS]),
        user(vec![writes, compacts, sees, CLAIMS]),
        user(vec![reads, joins, CLAIMS])
    );
    let batch = |topics: &[&str], atomic: bool| {
        let records: Vec<Value> = topics.iter().map(|topic| json!({ "topic": topic, "value": "v" })).collect();
        Event::post(PRODUCE_BATCH).json(&json!({ "records": records, "atomic": atomic }))
    };
    let producer = function_as("produce-batch", &alone, &alone).await;
    let mixed = call(&producer, batch(&[&topic, &elsewhere], false)).await;
    assert_eq!(mixed.status, 207, "{mixed:?}");
    assert_eq!(
        (&mixed.body["results"][0]["offset"], &mixed.body["results"][1]["code"]),
        (&json!(0), &json!("topic_forbidden"))
    );
    assert_eq!(refused(&producer, batch(&[&topic], true)).await, forbidden("forbidden"));
    let producer = function_as("produce-batch", &whole_user, &whole_user).await;
    assert_eq!(refused(&producer, batch(&[&topic, &elsewhere], true)).await, forbidden("topic_forbidden"));
    let whole = call(&producer, batch(&[&topic, &topic], true)).await.ok();
    assert!(whole["results"][1]["offset"].as_i64() > whole["results"][0]["offset"].as_i64(), "{whole}");

    // Where it may be looked at, Kafka says no only within the transaction, and not of which topic.
    let producer = function_as("produce-batch", &onlooker, &onlooker).await;
    let answer = call(&producer, batch(&[&topic, &topic, &elsewhere, &topic], true)).await;
    assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"), "{answer:?}");
    let codes: Vec<_> = (0..4).map(|at| answer.body["results"][at]["code"].as_str()).collect();
    let aborted = Some("transaction_aborted");
    assert_eq!(codes, [aborted, aborted, Some("topic_forbidden"), aborted], "{answer:?}");
    // A record with a fault of its own keeps that, whatever stopped the transaction first.
    let answer = call(&producer, batch(&[&compacted, &elsewhere], true)).await;
    assert_eq!((answer.status, answer.code()), (422, "unprocessable_record"), "{answer:?}");
    assert_eq!(answer.body["results"][1]["code"], "transaction_aborted", "{answer:?}");
    call(&producer, batch(&[&topic], true)).await.ok();

    let consumer = function_as("consume-batch", &reader, &reader).await;
    let event = |topics: &[&str]| {
        let topics: Vec<Value> = topics.iter().map(|topic| json!({ "topic": topic })).collect();
        Event::post(CONSUME_BATCH).json(&json!({ "group_id": group, "topics": topics }))
    };
    let some = call(&consumer, event(&[&topic, &elsewhere])).await.ok();
    assert_eq!(some["messages"].as_array().map(Vec::len), Some(4), "{some}");
    assert_eq!(some["failed"][0]["code"], "topic_forbidden", "{some}");
    assert_eq!(refused(&consumer, event(&[&elsewhere])).await, forbidden("topic_forbidden"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_monitor_takes_what_consuming_takes() {
    let server = secured().await.broker().bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 3);
    let reads: &[&str] = &["--topic", &topic, "--operation", "Read"];
    let joins: &[&str] = &["--group", &group, "--operation", "Read"];
    let (stranger, reader) = tokio::join!(user(vec![reads]), user(vec![reads, joins, CLAIMS]));
    let watched = format!("{group}={topic}");
    for (user, lag) in [(stranger, None), (reader, Some(3))] {
        let credentials = format!("{user}:{user}");
        let more = [("KAFKA_CREDENTIALS", credentials.as_str()), ("LAG_MONITOR_GROUPS", watched.as_str())];
        let monitor = function_by("lag-monitor", "scram-sha-512", "SCRAM", &more).await;
        let ran = monitor.try_invoke(scheduled(), Duration::from_secs(29)).await;
        assert_eq!(ran.is_ok(), lag.is_some(), "{user}: {ran:?}");
        let logs = monitor.logs();
        let measured = logs.iter().find_map(|line| line["consumer_lag"].as_i64());
        assert_eq!(measured, lag, "{user}: {logs:?}");
        if lag.is_none() {
            let chains: Vec<_> = logs.iter().filter_map(|line| line["error_chain"].as_str()).collect();
            assert!(chains.iter().any(|chain| chain.starts_with("topic_forbidden")), "{chains:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keeping_what_does_not_fit_takes_the_dead_letter_topic() {
    let server = secured().await.broker().bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    register(&format!("{topic}-value"), "AVRO", r#"{"type":"array","items":"long"}"#, &json!([])).await;
    let kept_in = format!("{topic}.dlq");
    let may_write: &[&str] = &["--topic", &topic, "--operation", "Write"];
    let may_keep: &[&str] = &["--topic", &kept_in, "--operation", "Write"];
    let may_make: &[&str] = &["--topic", &kept_in, "--operation", "Create"];
    let (writer, keeper) = tokio::join!(user(vec![may_write]), user(vec![may_write, may_keep, may_make]));
    let body = json!({ "topic": topic, "value": "no list", "value_format": "avro" });
    let registry = Stack::shared().await.registry().await;
    for (user, status, code) in [(writer, 403, "topic_forbidden"), (keeper, 422, "schema_validation_failed")] {
        let credentials = format!("{user}:{user}");
        let more = [
            ("KAFKA_CREDENTIALS", credentials.as_str()),
            ("SCHEMA_REGISTRY_URL", registry),
            ("SCHEMA_ON_INVALID", "dlq"),
        ];
        let producer = function_by("produce", "scram-sha-512", "SCRAM", &more).await;
        let answer = produce(&producer, &body).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{user}: {answer:?}");
        let place = &answer.body["dead_letter"]["offset"];
        assert_eq!(place, &if status == 422 { json!(0) } else { Value::Null }, "{answer:?}");
    }
}
