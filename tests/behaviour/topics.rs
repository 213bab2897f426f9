//! Topics: listed, described, made and deleted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Event, Function, Stack, kafka_since};

use crate::acl::user;
use crate::consume::{committed, fill};
use crate::fetch::fetch;
use crate::kit::refused;
use crate::secured::{SECURED, function_as, secured};
use crate::world::{
    Answer, applies_since, call, consume, function, function_with, produce, topic, topic_on, unique, until,
};

/// The route of `topics`.
pub(crate) const TOPICS: &str = "/kafka/topics";

fn one(topic: &str) -> String {
    format!("{TOPICS}/{topic}")
}

async fn create(function: &Function, body: &Value) -> Answer {
    call(function, Event::post(TOPICS).json(body)).await
}

async fn describe(function: &Function, topic: &str) -> Answer {
    call(function, Event::get(&one(topic))).await
}

async fn delete(function: &Function, topic: &str) -> Answer {
    call(function, Event::new("DELETE", &one(topic))).await
}

/// The names in one page, and where the next one begins.
async fn list(function: &Function, client: &str, query: &str) -> (Vec<String>, Option<String>) {
    let token = Stack::shared().await.token(client).await;
    let event = Event::get(TOPICS).query(query).bearer(&token);
    let body = Answer::read(&function.invoke(event.build()).await).ok();
    let names = body["topics"].as_array().expect("topics").iter().map(|name| name.as_str().expect("a name").to_owned());
    (names.collect(), body["next"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn a_topic_is_made_used_described_and_deleted() {
    let topic = unique("made");
    let (topics, producer) = (function("topics").await, function("produce").await);
    for _ in 0..3 {
        let plan = json!({
            "topic": topic,
            "partitions": 3,
            "replication_factor": 1,
            "configs": { "retention.ms": 60_000, "cleanup.policy": "delete" },
        });
        // With a ZooKeeper, Kafka is still about to delete the one before when nobody sees it any more.
        let at_once: &[u64] = if kafka_since(3, 3) { &[201, 409] } else { &[201] };
        let made = until(at_once, async || create(&topics, &plan).await).await;
        assert_eq!(made.status, 201, "{made:?}");
        assert_eq!(made.body, json!({ "topic": topic, "partitions": 3, "replication_factor": 1 }));
        // It can be used at once.
        for partition in 0..3 {
            produce(&producer, &json!({ "topic": topic, "partition": partition, "value": "x" })).await.ok();
        }
        let described = describe(&topics, &topic).await.ok();
        assert_eq!((&described["topic"], &described["replication_factor"]), (&json!(topic), &json!(1)));
        let partitions = described["partitions"].as_array().expect("partitions");
        for (number, partition) in partitions.iter().enumerate() {
            let leader = &partition["leader"];
            let expected = json!({
                "partition": number,
                "leader": leader,
                "replicas": [leader],
                "isr": [leader],
                "start": 0,
                "end": 1,
            });
            assert!(leader.is_u64(), "{partition}");
            assert_eq!(*partition, expected);
        }
        assert_eq!(partitions.len(), 3);
        assert_eq!(described["configs"]["retention.ms"], json!({ "value": "60000", "source": "topic" }));
        assert_eq!(described["configs"]["max.message.bytes"]["source"], "default");

        let gone = delete(&topics, &topic).await;
        assert_eq!((gone.status, &gone.body, &gone.headers["content-type"]), (204, &Value::Null, &Value::Null));
        for gone in [describe(&topics, &topic).await, delete(&topics, &topic).await] {
            assert_eq!((gone.status, gone.code()), (404, "topic_not_found"));
            assert_eq!(gone.body["topic"], topic.as_str());
        }
        let answer = produce(&producer, &json!({ "topic": topic, "value": "x" })).await;
        assert!([404, 503].contains(&answer.status), "{answer:?}");
    }
}

#[tokio::test]
async fn what_a_plan_leaves_out_the_cluster_decides() {
    let topics = function("topics").await;
    let topic = unique("made");
    let made = create(&topics, &json!({ "topic": topic })).await;
    assert_eq!((made.status, &made.body), (201, &json!({ "topic": topic, "partitions": 1, "replication_factor": 1 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_make_or_delete_a_topic_one_does() {
    let topics = Arc::new(function_with("topics", &[("AWS_LAMBDA_MAX_CONCURRENCY", "8")]).await);
    let topic = unique("made");
    let at_once = async |make: bool| {
        let calls = (0..8).map(|_| {
            let (topics, topic) = (Arc::clone(&topics), topic.clone());
            tokio::spawn(async move {
                if make {
                    create(&topics, &json!({ "topic": topic, "partitions": 2 })).await
                } else {
                    delete(&topics, &topic).await
                }
            })
        });
        let mut answers = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            let answer = call.await.expect("answered");
            answers.push((answer.status, if answer.status < 300 { String::new() } else { answer.code().to_owned() }));
        }
        answers.sort_unstable();
        answers
    };
    let made = at_once(true).await;
    assert_eq!(made[0], (201, String::new()));
    assert!(made[1..].iter().all(|answer| *answer == (409, "topic_exists".to_owned())), "{made:?}");
    let gone = at_once(false).await;
    assert_eq!(gone[0], (204, String::new()));
    assert!(gone[1..].iter().all(|answer| *answer == (404, "topic_not_found".to_owned())), "{gone:?}");
}

#[tokio::test]
async fn what_kafka_refuses_is_said_without_its_address() {
    let (stack, topics) = (Stack::shared().await, function("topics").await);
    let taken = unique("a.b");
    assert_eq!(create(&topics, &json!({ "topic": taken })).await.status, 201);
    for (plan, about) in [
        (json!({ "topic": taken.replace('.', "_") }), "'.' and '_'"),
        (json!({ "topic": unique("no"), "replication_factor": 3 }), "replication_factor"),
        (json!({ "topic": unique("no"), "configs": { "no.such": 1, "retention.ms": 1 } }), "no.such"),
        (
            json!({ "topic": unique("no"), "configs": { "retention.ms": "soon", "cleanup.policy": "delete" } }),
            "retention.ms",
        ),
        (json!({ "topic": unique("no"), "partitions": 0 }), "partitions"),
        (json!({ "topic": "a b" }), "topic"),
    ] {
        let answer = create(&topics, &plan).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{plan}");
        let detail = answer.body["detail"].as_str().expect("a detail");
        assert!(detail.contains(about), "{detail}");
        assert!(!answer.body.to_string().contains(&stack.bootstrap()));
        // What is not at fault is not blamed.
        assert!(!detail.contains("cleanup.policy"), "{detail}");
        let made = plan["topic"].as_str().expect("a name");
        assert!(!crate::kit::topics().await.iter().any(|topic| topic == made), "{made}");
    }
    let answer = create(&topics, &json!({ "topic": taken })).await;
    assert_eq!((answer.status, answer.code(), &answer.body["error_code"]), (409, "topic_exists", &json!(40002)));
    assert_eq!(create(&topics, &json!({})).await.code(), "missing_parameter");
    assert_eq!(create(&topics, &json!({ "topic": unique("no"), "replicas": 1 })).await.code(), "invalid_parameter");
    assert_eq!(describe(&topics, &unique("none")).await.code(), "topic_not_found");
    assert_eq!(describe(&topics, "a%20b").await.code(), "invalid_parameter");
    let answer = call(&topics, Event::get(TOPICS).query("limit=0")).await;
    assert_eq!(answer.code(), "invalid_parameter");
    assert_eq!(call(&topics, Event::new("DELETE", TOPICS)).await.code(), "method_not_allowed");
    assert_eq!(call(&topics, Event::post(&one(&taken))).await.code(), "method_not_allowed");
}

#[tokio::test]
async fn a_caller_sees_and_changes_what_the_roles_name() {
    let (topics, hidden, seen) = (function("topics").await, topic(1).await, unique("orders.x"));
    assert_eq!(create(&topics, &json!({ "topic": seen })).await.status, 201);
    // Somebody consumes, so that the cluster has internal topics.
    let consumer = function("consume").await;
    consume(&consumer, &hidden, &unique("group"), "&timeout_ms=0").await.ok();
    // In pages, all of it, each once, in order.
    let (mut all, mut query) = (Vec::new(), "limit=3".to_owned());
    loop {
        let (page, next) = list(&topics, "gateway-full", &query).await;
        assert!(page.len() == 3 || next.is_none());
        all.extend(page);
        let Some(next) = next else { break };
        assert_eq!(all.last(), Some(&next));
        query = format!("limit=3&after={next}");
    }
    assert!(all.is_sorted() && all.len() == all.iter().collect::<HashSet<_>>().len());
    assert!(all.contains(&hidden) && all.contains(&seen));
    assert!(!all.iter().any(|topic| topic.starts_with("__")), "{all:?}");
    // Where nothing is left, there is no next page.
    assert_eq!(list(&topics, "gateway-full", "after=zzzz").await, (vec![], None));

    let (narrow, _) = list(&topics, "gateway-narrow", "limit=1000").await;
    assert!(narrow.contains(&seen) && narrow.iter().all(|topic| topic.starts_with("orders.")), "{narrow:?}");
    let token = Stack::shared().await.token("gateway-narrow").await;
    let as_narrow = async |event: Event| Answer::read(&topics.invoke(event.bearer(&token).build()).await);
    assert_eq!(as_narrow(Event::get(&one(&seen))).await.status, 200);
    let mine = unique("orders.mine");
    assert_eq!(as_narrow(Event::post(TOPICS).json(&json!({ "topic": mine }))).await.status, 201);
    assert_eq!(as_narrow(Event::new("DELETE", &one(&mine))).await.status, 204);

    for (client, event, code) in [
        ("gateway-narrow", Event::get(&one(&hidden)), "topic_forbidden"),
        ("gateway-narrow", Event::new("DELETE", &one(&hidden)), "topic_forbidden"),
        ("gateway-narrow", Event::post(TOPICS).json(&json!({ "topic": unique("no") })), "topic_forbidden"),
        ("gateway-reader", Event::post(TOPICS).json(&json!({ "topic": unique("no") })), "forbidden"),
        ("gateway-reader", Event::new("DELETE", &one(&hidden)), "forbidden"),
        ("gateway-none", Event::get(TOPICS), "forbidden"),
        ("gateway-none", Event::get(&one(&hidden)), "forbidden"),
        ("gateway-full", Event::get(&one("__consumer_offsets")), "topic_forbidden"),
        ("gateway-full", Event::new("DELETE", &one("__consumer_offsets")), "topic_forbidden"),
        ("gateway-full", Event::post(TOPICS).json(&json!({ "topic": "__mine" })), "topic_forbidden"),
    ] {
        assert_eq!(refused(&topics, client, event.clone()).await, (403, code.to_owned()), "{client} {event:?}");
    }
    assert!(list(&topics, "gateway-reader", "limit=1000").await.0.contains(&hidden));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_others_use_may_go_and_come_back() {
    let (stack, topics) = (Stack::shared().await, function("topics").await);
    let (producer, consumer, fetcher) = (function("produce").await, function("consume").await, function("fetch").await);
    let (topic, group) = (unique("made"), unique("group"));
    for round in 0..2 {
        assert_eq!(create(&topics, &json!({ "topic": topic, "partitions": 2 })).await.status, 201);
        for partition in 0..2 {
            produce(&producer, &json!({ "topic": topic, "partition": partition, "value": round.to_string() }))
                .await
                .ok();
        }
        let mut got = 0;
        while got < 2 {
            got += consume(&consumer, &topic, &group, "&timeout_ms=5000").await.messages().len();
        }
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(1), "a new topic begins anew");
        let query = "&offset=earliest&timeout_ms=10000&limit=1";
        assert_eq!(fetch(&fetcher, &topic, query).await.messages()[0]["value"], round.to_string());
        assert_eq!(delete(&topics, &topic).await.status, 204);
        let deleted = Instant::now();
        loop {
            let answers = [
                consume(&consumer, &topic, &group, "&timeout_ms=0").await,
                fetch(&fetcher, &topic, "&offset=earliest").await,
            ];
            // With ZooKeeper, its leaders go before the topic does.
            if answers.iter().any(|gone| gone.status == 503) && deleted.elapsed() < Duration::from_secs(10) {
                continue;
            }
            for gone in answers {
                assert_eq!((gone.status, gone.code()), (404, "topic_not_found"));
            }
            break;
        }
        // What was fetched ahead may be handed out for a moment, and no longer.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_access_control_is_a_clear_403() {
    if !applies_since(4, 0, SECURED) {
        return;
    }
    let server = secured().await.broker().bootstrap();
    let seen = topic_on(&server, 1, &[]).await;
    fill(&server, &seen, 1, 1);
    let (hidden, new) = (topic_on(&server, 1, &[]).await, unique("made"));
    let prefixed = ["--resource-pattern-type", "prefixed"];
    let shows: &[&str] = &["--topic", &seen, "--operation", "Describe"];
    let configs: &[&str] = &["--topic", &seen, "--operation", "DescribeConfigs"];
    let makes = ["--topic", &new, "--operation", "Create", "--operation", "Delete", "--operation", "Describe"];
    let makes = [&makes[..], &prefixed].concat();
    let (looker, admin) = tokio::join!(user(vec![shows]), user(vec![shows, configs, &makes]));

    let topics = function_as("topics", &looker, &looker).await;
    for answer in [
        create(&topics, &json!({ "topic": new })).await,
        delete(&topics, &seen).await,
        describe(&topics, &hidden).await,
    ] {
        assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"));
        assert!(answer.body["detail"].as_str().expect("a detail").contains("Kafka's own access control"));
    }
    // What may be seen is shown.
    let described = describe(&topics, &seen).await.ok();
    assert_eq!((&described["configs"], &described["partitions"][0]["end"]), (&Value::Null, &json!(1)));
    assert_eq!(list(&topics, "gateway-full", "limit=1000").await.0, std::slice::from_ref(&seen));

    let topics = function_as("topics", &admin, &admin).await;
    assert_eq!(describe(&topics, &seen).await.ok()["configs"]["cleanup.policy"]["value"], "delete");
    assert_eq!(create(&topics, &json!({ "topic": new })).await.status, 201);
    assert_eq!(delete(&topics, &new).await.status, 204);
    // To read takes Read, and no group.
    let reads: &[&str] = &["--topic", &seen, "--operation", "Read"];
    let reader = user(vec![reads]).await;
    for (name, status) in [(&reader, 200), (&looker, 403)] {
        let answer = fetch(&function_as("fetch", name, name).await, &seen, "&offset=earliest").await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_leaves_the_outcome_open() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "2000")];
    let topics = function_with("topics", &settings).await;
    describe(&topics, &topic).await.ok();
    broker.pause().await;
    for (answer, open) in [
        (create(&topics, &json!({ "topic": "late" })).await, true),
        (delete(&topics, &topic).await, true),
        (describe(&topics, &topic).await, false),
        (call(&topics, Event::get(TOPICS)).await, false),
    ] {
        assert!([503, 504].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.body["retryable"], true);
        assert_eq!(answer.body["outcome"] == "unknown", open, "{answer:?}");
    }
    broker.resume().await;
    until(&[200], async || call(&topics, Event::get(TOPICS)).await).await;
    // Whatever came of it, the same call again ends it.
    until(&[201, 409], async || create(&topics, &json!({ "topic": "late" })).await).await;
    until(&[204, 404], async || delete(&topics, "late").await).await;
}
