//! Leases: at least once, nothing lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tests::{Event, Function, Stack};
use tokio::sync::Mutex;

use crate::consume::{committed, fill, offsets, values};
use crate::issuer::{Issuer, OURS};
use crate::world::{Answer, CONSUME, call, consume, function, topic, topic_on, unique};

const ACKNOWLEDGE: &str = "/kafka/consumer/acknowledge";

pub(crate) async fn acknowledge(function: &Function, body: &Value) -> Answer {
    call(function, Event::post(ACKNOWLEDGE).json(body)).await
}

pub(crate) fn token(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body["lease"]["expires_at"].is_u64(), "{answer:?}");
    answer.body["lease"]["token"].as_str().expect("a token")
}

fn attempts(answer: &Answer) -> Vec<u64> {
    answer.messages().iter().map(|message| message["delivery_attempt"].as_u64().expect("a count")).collect()
}

#[tokio::test]
async fn what_is_accepted_is_committed_and_nothing_before() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 10);
    let (one, two, acker) = (function("consume").await, function("consume").await, function("acknowledge").await);
    let leased = consume(&one, &topic, &group, "&ack=manual&limit=6").await;
    assert_eq!(offsets(leased.messages()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(attempts(&leased), [1; 6]);
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(0));
    // Per partition there is one live lease, and `auto` respects it as well.
    for more in ["&ack=manual&timeout_ms=0", "&timeout_ms=0"] {
        assert!(consume(&two, &topic, &group, more).await.messages().is_empty());
        assert!(consume(&one, &topic, &group, more).await.messages().is_empty());
    }
    let part = json!({ "token": token(&leased), "type": "accept", "through": { "0": 2 } });
    for _ in 0..2 {
        let answer = acknowledge(&acker, &part).await.ok();
        assert_eq!(
            answer["results"],
            json!([{ "topic": topic, "partition": 0, "status": "accepted", "committed": 3 }])
        );
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(3));
    assert!(consume(&two, &topic, &group, "&timeout_ms=0").await.messages().is_empty(), "the rest stays leased");
    let whole = json!({ "token": token(&leased), "type": "accept" });
    assert_eq!(acknowledge(&acker, &whole).await.ok()["results"][0]["committed"], 6);
    let next = consume(&two, &topic, &group, "&ack=manual").await;
    assert_eq!(offsets(next.messages()), [6, 7, 8, 9]);
    assert_eq!(acknowledge(&acker, &whole).await.ok()["results"][0]["status"], "accepted", "again, after others");
    acknowledge(&acker, &json!({ "token": token(&next), "type": "accept" })).await.ok();
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(10));
}

#[tokio::test]
async fn what_is_released_comes_again_and_is_counted() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 5);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let first = consume(&consumer, &topic, &group, "&ack=manual").await;
    let release = json!({ "token": token(&first), "type": "release" });
    for _ in 0..2 {
        assert_eq!(acknowledge(&acker, &release).await.ok()["results"][0]["status"], "released");
    }
    let lost = acknowledge(&acker, &json!({ "token": token(&first), "type": "accept" })).await;
    assert_eq!((lost.status, lost.code()), (409, "lease_lost"));
    assert_eq!(lost.body["results"][0]["status"], "lost");
    let second = consume(&consumer, &topic, &group, "&ack=manual&limit=2").await;
    assert_eq!(attempts(&second), [2, 2]);
    acknowledge(&acker, &json!({ "token": token(&second), "type": "release" })).await.ok();
    let third = consume(&consumer, &topic, &group, "&ack=manual").await;
    assert_eq!(attempts(&third), [3, 3, 2, 2, 2]);
}

#[tokio::test]
async fn an_expired_lease_is_taken_over_and_a_renewed_one_is_not() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 2, 10);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    // Of another group, the lease that is renewed.
    let other = unique("group");
    let kept = consume(&consumer, &topic, &other, "&ack=manual&lease_ms=1500").await;
    assert_eq!(kept.messages().len(), 10);
    let longer = json!({ "token": token(&kept), "type": "renew", "lease_ms": 120_000 });
    acknowledge(&acker, &longer).await.ok();
    // Both partitions under one token; one is settled before the lease expires, the other in part.
    let first = consume(&consumer, &topic, &group, "&ack=manual&lease_ms=1500").await;
    assert_eq!(first.messages().len(), 10);
    let renewed = acknowledge(&acker, &json!({ "token": token(&first), "type": "renew", "lease_ms": 2500 })).await.ok();
    assert!(renewed["lease"]["expires_at"].as_u64() > first.body["lease"]["expires_at"].as_u64(), "{renewed}");
    let part = json!({ "token": token(&first), "type": "accept", "through": { "0": 4, "1": 1 } });
    let committed = |answer: &Value| [0, 1].map(|place: usize| answer["results"][place]["committed"].clone());
    assert_eq!(committed(&acknowledge(&acker, &part).await.ok()), [5, 2]);
    // A long poll gets the rest when the lease is over.
    let second = consume(&consumer, &topic, &group, "&ack=manual&timeout_ms=10000").await;
    assert_eq!(offsets(second.messages()), [2, 3, 4]);
    assert_eq!(attempts(&second), [2; 3]);
    let late = acknowledge(&acker, &json!({ "token": token(&first), "type": "accept" })).await;
    assert_eq!((late.status, late.code()), (409, "lease_lost"));
    let by_partition: BTreeMap<u64, &Value> = late.body["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|result| (result["partition"].as_u64().expect("a partition"), &result["status"]))
        .collect();
    assert_eq!(by_partition, BTreeMap::from([(0, &json!("accepted")), (1, &json!("lost"))]));
    // Who lost the answer to a part learns that it was accepted, before and after the rest is another's.
    assert_eq!(committed(&acknowledge(&acker, &part).await.ok()), [5, 2]);
    acknowledge(&acker, &json!({ "token": token(&second), "type": "accept" })).await.ok();
    assert_eq!(committed(&acknowledge(&acker, &part).await.ok()), [5, 5]);
    // It was given before that one, for a shorter time, and would be over by now.
    for more in ["&ack=manual&timeout_ms=0", "&timeout_ms=0"] {
        assert!(consume(&consumer, &topic, &other, more).await.messages().is_empty(), "renewed");
    }
    let accepted = acknowledge(&acker, &json!({ "token": token(&kept), "type": "accept" })).await.ok();
    assert!(accepted["results"].as_array().is_some_and(|all| all.iter().all(|it| it["committed"] == 5)), "{accepted}");
}

#[tokio::test]
async fn a_token_is_good_for_its_principal_and_nothing_else() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 5);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
    let accept = json!({ "token": token(&leased), "type": "accept" });
    let as_client = async |client: &str, body: &Value| {
        let token = stack.token(client).await;
        Answer::read(&acker.invoke(Event::post(ACKNOWLEDGE).json(body).bearer(&token).build()).await)
    };
    let thief = as_client("gateway-reader", &accept).await;
    assert_eq!((thief.status, thief.code()), (403, "forbidden"));
    let narrow = as_client("gateway-narrow", &accept).await;
    assert_eq!((narrow.status, narrow.code()), (403, "topic_forbidden"));
    assert_eq!(as_client("gateway-none", &accept).await.code(), "forbidden");
    for (body, code) in [
        (json!({ "type": "accept" }), "missing_parameter"),
        (json!({ "token": token(&leased) }), "missing_parameter"),
        (json!({ "token": "x", "type": "accept" }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "take" }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "accept", "through": { "1": 0 } }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "accept", "through": { "0": 5 } }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "accept", "through": { "0": -1 } }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "release", "through": { "0": 1 } }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "renew", "lease_ms": 999 }), "invalid_parameter"),
        (json!({ "token": token(&leased), "type": "accept", "more": 1 }), "invalid_parameter"),
    ] {
        let answer = acknowledge(&acker, &body).await;
        assert_eq!((answer.status, answer.code()), (400, code), "{body}");
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(0), "none of these has settled anything");
    acknowledge(&acker, &accept).await.ok();
}

/// A token with other words in it (none, for a null), and the same secret.
pub(crate) fn forged(token: &str, words: &Value) -> String {
    let text = URL_SAFE_NO_PAD.decode(token).expect("base64");
    let mut text: Value = serde_json::from_slice(&text).expect("JSON");
    let members = text.as_object_mut().expect("an object");
    members.extend(words.as_object().expect("an object").clone());
    members.retain(|_, member| !member.is_null());
    URL_SAFE_NO_PAD.encode(text.to_string())
}

#[tokio::test]
async fn a_token_that_is_made_to_name_other_places_is_lost_there() {
    let (stack, one, two) = (Stack::shared().await, topic(2).await, topic(1).await);
    let (group, other) = (unique("group"), unique("group"));
    let server = stack.bootstrap();
    fill(&server, &one, 2, 10);
    fill(&server, &two, 1, 5);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leasing = async |topic: &str, group: &str| {
        let answer = consume(&consumer, topic, group, "&ack=manual&lease_ms=120000&limit=1").await;
        (token(&answer).to_owned(), answer.messages()[0]["partition"].as_i64().expect("a partition"))
    };
    // The same caller's leases: of a partition, of its neighbour, in another topic, and in another group.
    let (mine, partition) = leasing(&one, &group).await;
    let (neighbour, next) = leasing(&one, &group).await;
    let (elsewhere, _) = leasing(&two, &group).await;
    let mut others = [leasing(&one, &other).await, leasing(&one, &other).await];
    assert_eq!(partition + next, 1, "both partitions");
    others.sort_by_key(|(_, partition)| *partition);
    let moved = || {
        let places = [(&group, &one, 0), (&group, &one, 1), (&group, &two, 0), (&other, &one, 0), (&other, &one, 1)];
        places.map(|(group, topic, partition)| committed(&server, group, topic, partition))
    };
    for (words, all) in [
        (json!({ "t": two, "p": [0] }), false),
        (json!({ "p": [next] }), false),
        (json!({ "g": other }), false),
        (json!({ "g": unique("group") }), false),
        (json!({ "p": [partition, next] }), true),
        (json!({ "v": 2, "t": { &one: [partition], &two: [0] }, "p": null }), true),
    ] {
        let text = forged(&mine, &words);
        // To renew its own lease moves nothing either.
        let kinds: &[&str] = if all { &["renew"] } else { &["accept", "release", "reject", "renew"] };
        for kind in kinds {
            let answer = acknowledge(&acker, &json!({ "token": text, "type": kind })).await;
            assert_eq!((answer.status, answer.code()), (409, "lease_lost"), "{kind} of {words}");
            let results = answer.body["results"].as_array().expect("results");
            let lost = results.iter().filter(|result| result["status"] == "lost").count();
            assert_eq!((results.len(), lost), (1 + usize::from(all), 1), "{kind} of {words}: {}", answer.body);
            assert_eq!(moved(), [Some(0); 5], "{kind} of {words}");
        }
    }
    for (text, code) in [
        (forged(&mine, &json!({ "t": "__consumer_offsets" })), "topic_forbidden"),
        (forged(&mine, &json!({ "g": "" })), "invalid_parameter"),
        (forged(&mine, &json!({ "v": 3 })), "invalid_parameter"),
        (forged(&mine, &json!({ "p": [-1] })), "invalid_parameter"),
    ] {
        assert_eq!(acknowledge(&acker, &json!({ "token": text, "type": "accept" })).await.code(), code);
    }
    // None of the leases has suffered.
    for text in [&mine, &neighbour, &elsewhere, &others[0].0, &others[1].0] {
        acknowledge(&acker, &json!({ "token": text, "type": "accept" })).await.ok();
    }
    assert_eq!(moved(), [Some(1); 5]);
}

#[tokio::test]
async fn permission_is_looked_at_again_whatever_a_token_says() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    let (group, other) = (unique("group"), unique("group"));
    let server = stack.bootstrap();
    fill(&server, &topic, 1, 5);
    let issuer = Issuer::start().await;
    let (consumer, acker) =
        tokio::join!(issuer.function("consume", &server, &[]), issuer.function("acknowledge", &server, &[]));
    // The same caller each time, by `sub`; what is different are the roles.
    let event = Event::get(CONSUME).query(&format!("topic={topic}&group_id={group}&ack=manual&lease_ms=120000"));
    let bearer = issuer.token(&OURS, "ours", &["kafka_consumer:read"]);
    let leased = Answer::read(&consumer.invoke(event.bearer(&bearer).build()).await);
    assert_eq!(leased.messages().len(), 5);
    let settle = async |role: &str, kind: &str, text: &str| {
        let bearer = issuer.token(&OURS, "ours", &[role]);
        let event = Event::post(ACKNOWLEDGE).json(&json!({ "token": text, "type": kind })).bearer(&bearer);
        Answer::read(&acker.invoke(event.build()).await)
    };
    let of_other = format!("kafka_consumer:read:{topic}:{other}");
    for kind in ["accept", "release", "reject", "renew"] {
        for role in [of_other.clone(), format!("kafka_consumer:read:{other}:{group}"), format!("{of_other}:{group}")] {
            let answer = settle(&role, kind, token(&leased)).await;
            assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"), "{kind} by {role}");
        }
        assert_eq!(settle("kafka_producer:write", kind, token(&leased)).await.code(), "forbidden", "{kind}");
        // In the group that this role has, the token is good for nothing.
        let answer = settle(&of_other, kind, &forged(token(&leased), &json!({ "g": other }))).await;
        assert_eq!((answer.status, answer.code()), (409, "lease_lost"), "{kind}");
    }
    assert_eq!(committed(&server, &group, &topic, 0), Some(0));
    let role = format!("kafka_consumer:read:{topic}:{group}");
    assert_eq!(settle(&role, "accept", token(&leased)).await.ok()["results"][0]["committed"], 5);
}

#[tokio::test]
async fn a_record_too_large_for_any_answer_can_be_skipped() {
    let (stack, group) = (Stack::shared().await, unique("group"));
    let topic = topic_on(&stack.bootstrap(), 1, &[]).await;
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let producer = function("produce").await;
    for value in ["x".repeat(4000), "next".to_owned()] {
        crate::world::produce(&producer, &json!({ "topic": topic, "value": value })).await.ok();
    }
    let refused = consume(&consumer, &topic, &group, "&max_bytes=2048").await;
    assert_eq!((refused.status, refused.code()), (413, "record_too_large"));
    assert_eq!(refused.body["topic"], topic);
    assert_eq!(
        (&refused.body["partition"], &refused.body["offset"], &refused.body["size"]),
        (&json!(0), &json!(0), &json!(4000))
    );
    let lease = refused.body["lease"]["token"].as_str().expect("a lease");
    acknowledge(&acker, &json!({ "token": lease, "type": "accept" })).await.ok();
    let next = consume(&consumer, &topic, &group, "&max_bytes=4096").await;
    assert_eq!(offsets(next.messages()), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_records_are_accepted_once_each_while_functions_are_killed() {
    const RECORDS: usize = 20_000;
    let (stack, topic, group) = (Stack::shared().await, topic(4).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 4, RECORDS);
    let acker = Arc::new(Mutex::new(Arc::new(function("acknowledge").await)));
    // How often each record's accept was answered with 200.
    let accepted: Arc<Mutex<HashMap<usize, u32>>> = Arc::default();
    // How many calls a death has cut short.
    let cut_short = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let consumers: Arc<Vec<Mutex<Arc<Function>>>> = Arc::new({
        let mut consumers = Vec::new();
        for _ in 0..4 {
            consumers.push(Mutex::new(Arc::new(function("consume").await)));
        }
        consumers
    });
    let killer = {
        let (consumers, acker, done) = (Arc::clone(&consumers), Arc::clone(&acker), Arc::clone(&done));
        tokio::spawn(async move {
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let fresh = Arc::new(function("consume").await);
                let killed = std::mem::replace(&mut *consumers[kills % 4].lock().await, fresh);
                killed.kill();
                kills += 1;
                if kills % 2 == 0 {
                    let fresh = Arc::new(function("acknowledge").await);
                    std::mem::replace(&mut *acker.lock().await, fresh).kill();
                }
            }
            kills
        })
    };
    let mut running = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (consumers, acker, accepted) = (Arc::clone(&consumers), Arc::clone(&acker), Arc::clone(&accepted));
        let (topic, group, cut_short) = (topic.clone(), group.clone(), Arc::clone(&cut_short));
        running.spawn(async move {
            let query = format!("topic={topic}&group_id={group}&ack=manual&limit=50&lease_ms=2000&timeout_ms=1000");
            let mut idle = 0;
            while idle < 5 {
                let consumer = Arc::clone(&*consumers[n].lock().await);
                let bearer = Stack::shared().await.token("gateway-full").await;
                let event = Event::get(CONSUME).query(&query).bearer(&bearer).build();
                // A function that is killed in the middle of a call answers nothing; its lease expires.
                let Ok(answer) = consumer.try_invoke(event, Duration::from_secs(29)).await else {
                    cut_short.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let answer = Answer::read(&answer);
                if answer.status != 200 {
                    assert_eq!(answer.body["retryable"], true, "{answer:?}");
                    continue;
                }
                if answer.messages().is_empty() {
                    idle += 1;
                    continue;
                }
                idle = 0;
                // One that is killed in the middle of it answers nothing: the same once more, of the next one.
                let accept = json!({ "token": token(&answer), "type": "accept" });
                let settled = loop {
                    let acker = Arc::clone(&*acker.lock().await);
                    let event = Event::post(ACKNOWLEDGE).json(&accept).bearer(&bearer).build();
                    let Ok(settled) = acker.try_invoke(event, Duration::from_secs(29)).await else {
                        cut_short.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    let settled = Answer::read(&settled);
                    if [200, 409].contains(&settled.status) {
                        break settled;
                    }
                    assert!([503, 504].contains(&settled.status), "{settled:?}");
                };
                let mut accepted = accepted.lock().await;
                let lost: Vec<u64> = settled.body["results"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|result| result["status"] != "accepted")
                    .filter_map(|result| result["partition"].as_u64())
                    .collect();
                let kept = answer
                    .messages()
                    .iter()
                    .filter(|message| !lost.contains(&message["partition"].as_u64().expect("a partition")));
                for value in values(&kept.cloned().collect::<Vec<_>>()) {
                    *accepted.entry(value).or_default() += 1;
                }
            }
        });
    }
    running.join_all().await;
    done.store(true, Ordering::Relaxed);
    let kills = killer.await.expect("the killer ends");
    let accepted = accepted.lock().await;
    let cut_short = cut_short.load(Ordering::Relaxed);
    println!("{kills} functions killed, {cut_short} calls cut short");
    assert!(cut_short > 2, "{kills} functions killed, {cut_short} calls cut short");
    assert_eq!(accepted.len(), RECORDS, "none lost");
    assert!(accepted.values().all(|count| *count == 1), "none accepted twice");
    let total: i64 = (0..4).filter_map(|partition| committed(&stack.bootstrap(), &group, &topic, partition)).sum();
    assert_eq!(total, i64::try_from(RECORDS).expect("small"));
}
