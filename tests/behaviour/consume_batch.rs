//! Several topics for one group in one call: one deadline, one budget, one lease; and no topic stops another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::consumer::Consumer;
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{committed, fill, offsets, raw_consumer, values};
use crate::dead_letters::dead;
use crate::http::{nasty, posted};
use crate::issuer::{Issuer, OURS};
use crate::kit::{Raw, problem, refused, topics, write};
use crate::registry::register;
use crate::world::{Answer, CONSUME, admin, call, consume, function, function_with, produce, topic, topic_on, unique};

pub(crate) const BATCH: &str = "/kafka/consumer/consume/batch";
const ACKNOWLEDGE: &str = "/kafka/consumer/acknowledge";

/// A call for these topics, with more members.
pub(crate) fn ask(topics: &[&str], group: &str, more: &Value) -> Event {
    let listed: Vec<Value> = topics.iter().map(|topic| json!({ "topic": topic })).collect();
    let mut body = json!({ "group_id": group, "topics": listed });
    for (name, value) in more.as_object().expect("members") {
        body[name] = value.clone();
    }
    Event::post(BATCH).json(&body)
}

pub(crate) async fn batch(function: &Function, topics: &[&str], group: &str, more: Value) -> Answer {
    call(function, ask(topics, group, &more)).await
}

pub(crate) async fn settle(function: &Function, answer: &Answer, more: Value) -> Answer {
    let mut body = json!({ "token": answer.body["lease"]["token"] });
    for (name, value) in more.as_object().expect("members") {
        body[name] = value.clone();
    }
    call(function, Event::post(ACKNOWLEDGE).json(&body)).await
}

/// The offsets of each topic's messages, as they came.
pub(crate) fn by_topic(answer: &Answer) -> BTreeMap<String, Vec<i64>> {
    let mut offsets = BTreeMap::<String, Vec<i64>>::new();
    for message in answer.messages() {
        let (topic, offset) = (message["topic"].as_str().expect("a topic"), message["offset"].as_i64());
        offsets.entry(topic.to_owned()).or_default().push(offset.expect("an offset"));
    }
    offsets
}

fn expected<const N: usize>(topics: [(&str, Vec<i64>); N]) -> BTreeMap<String, Vec<i64>> {
    topics.into_iter().map(|(topic, offsets)| (topic.to_owned(), offsets)).collect()
}

/// What became of each topic's partitions: status and committed offset.
fn results(body: &Value) -> BTreeMap<(String, u64), (String, Option<i64>)> {
    let one = |result: &Value| {
        let place = (result["topic"].as_str().expect("a topic").to_owned(), result["partition"].as_u64().expect("one"));
        (place, (result["status"].as_str().expect("a status").to_owned(), result["committed"].as_i64()))
    };
    body["results"].as_array().expect("results").iter().map(one).collect()
}

#[tokio::test]
async fn topics_are_consumed_together_and_committed_each() {
    let (stack, one, two, group) = (Stack::shared().await, topic(2).await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &one, 2, 6);
    fill(&stack.bootstrap(), &two, 1, 4);
    let consumer = function("consume-batch").await;
    let answer = batch(&consumer, &[&two, &one], &group, json!({})).await;
    assert_eq!(by_topic(&answer), expected([(&one, vec![0, 1, 2, 0, 1, 2]), (&two, vec![0, 1, 2, 3])]));
    assert_eq!(answer.messages()[0]["topic"], two, "in the order in which they were asked for");
    let body = answer.ok();
    assert_eq!(body["group_id"], group);
    let members: Vec<_> = body.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(members, ["group_id", "messages"]);
    for (topic, partition, position) in [(&one, 0, 3), (&one, 1, 3), (&two, 0, 4)] {
        assert_eq!(committed(&stack.bootstrap(), &group, topic, partition), Some(position));
    }
    let nothing = batch(&consumer, &[&one, &two], &group, json!({ "timeout_ms": 0 })).await.ok();
    assert_eq!(nothing, json!({ "group_id": group, "messages": [] }));
    // Whoever consumes one of them alone goes on from there.
    fill(&stack.bootstrap(), &two, 1, 1);
    let alone = consume(&function("consume").await, &two, &group, "").await;
    assert_eq!(offsets(alone.messages()), [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_with_overlapping_topics_get_each_record_exactly_once() {
    const RECORDS: usize = 2000;
    let (stack, group) = (Stack::shared().await, unique("group"));
    let topics = [topic(3).await, topic(1).await, topic(2).await];
    for (topic, partitions) in topics.iter().zip([3, 1, 2]) {
        fill(&stack.bootstrap(), topic, partitions, RECORDS);
    }
    let mut running = tokio::task::JoinSet::new();
    for (n, some) in [vec![0, 1], vec![1, 2], vec![2, 1, 0], vec![0, 1, 2]].into_iter().enumerate() {
        let (topics, group) = (some.into_iter().map(|it| topics[it].clone()).collect::<Vec<_>>(), group.clone());
        running.spawn(async move {
            let (consumer, acker) = (function("consume-batch").await, function("acknowledge").await);
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            // Two of them with leases: what is accepted counts.
            let more = json!({ "limit": 100, "timeout_ms": 2000, "ack": if n < 2 { "auto" } else { "manual" } });
            let (mut got, mut last) = (Vec::new(), BTreeMap::new());
            loop {
                let answer = batch(&consumer, &topics, &group, more.clone()).await;
                if answer.messages().is_empty() {
                    return got;
                }
                for message in answer.messages() {
                    let place = (message["topic"].to_string(), message["partition"].as_i64());
                    let before = last.insert(place, message["offset"].as_i64());
                    assert!(before < Some(message["offset"].as_i64()), "order is kept within a partition");
                }
                if n >= 2 {
                    settle(&acker, &answer, json!({ "type": "accept" })).await.ok();
                }
                let named = |message: &Value| message["topic"].as_str().expect("a topic").to_owned();
                got.extend(answer.messages().iter().map(named).zip(values(answer.messages())));
            }
        });
    }
    let alone = {
        let (topic, group) = (topics[1].clone(), group.clone());
        tokio::spawn(async move {
            let consumer = function("consume").await;
            let mut got = Vec::new();
            loop {
                let answer = consume(&consumer, &topic, &group, "&limit=100&timeout_ms=2000").await;
                if answer.messages().is_empty() {
                    return got;
                }
                got.extend(values(answer.messages()).into_iter().map(|value| (topic.clone(), value)));
            }
        })
    };
    let mut shares = running.join_all().await;
    shares.push(alone.await.expect("not cancelled"));
    println!("records by function: {:?}", shares.iter().map(Vec::len).collect::<Vec<_>>());
    let all: Vec<(String, usize)> = shares.into_iter().flatten().collect();
    let once: BTreeSet<_> = all.iter().cloned().collect();
    let wanted = topics.iter().flat_map(|topic| (0..RECORDS).map(|n| (topic.clone(), n))).collect();
    assert_eq!((once, all.len()), (wanted, 3 * RECORDS), "each record exactly once");
}

#[tokio::test]
async fn one_token_spans_topics_and_is_settled_in_parts() {
    let (stack, one, two, group) = (Stack::shared().await, topic(1).await, topic(2).await, unique("group"));
    fill(&stack.bootstrap(), &one, 1, 3);
    fill(&stack.bootstrap(), &two, 2, 6);
    let (consumer, acker) = (function("consume-batch").await, function("acknowledge").await);
    let leased = batch(&consumer, &[&one, &two], &group, json!({ "ack": "manual" })).await;
    assert_eq!(by_topic(&leased), expected([(&one, vec![0, 1, 2]), (&two, vec![0, 1, 2, 0, 1, 2])]));
    assert!(leased.messages().iter().all(|message| message["delivery_attempt"] == 1));
    assert!(leased.body["lease"]["expires_at"].is_u64());
    assert!(batch(&consumer, &[&one, &two], &group, json!({ "timeout_ms": 0 })).await.messages().is_empty());
    for through in [json!({ "0": 1 }), json!({ "nowhere": { "0": 1 } }), json!({ &one: { "1": 0 } }), json!([])] {
        let answer = settle(&acker, &leased, json!({ "type": "accept", "through": through })).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{through}");
    }
    let beyond = json!({ "type": "accept", "through": { &one: { "0": 2 }, &two: { "1": 3 } } });
    let answer = settle(&acker, &leased, beyond).await;
    assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "beyond the lease");
    assert_eq!(results(&answer.body)[&(one.clone(), 0)], ("accepted".to_owned(), Some(3)), "the other one counts");

    let part = json!({ "type": "accept", "through": { &two: { "0": 0, "1": 1 } } });
    let accepted = |offset| ("accepted".to_owned(), Some(offset));
    for _ in 0..2 {
        let answer = settle(&acker, &leased, part.clone()).await.ok();
        let expected = BTreeMap::from([((two.clone(), 0), accepted(1)), ((two.clone(), 1), accepted(2))]);
        assert_eq!(results(&answer), expected);
    }
    let renewed = settle(&acker, &leased, json!({ "type": "renew", "lease_ms": 60000 })).await;
    let renewed = renewed.ok();
    assert_eq!(results(&renewed)[&(two.clone(), 1)], ("renewed".to_owned(), Some(2)));
    assert_eq!(results(&renewed)[&(two.clone(), 0)], ("renewed".to_owned(), Some(1)));
    // What is accepted in whole is none of a renewal's or a release's business.
    assert_eq!(results(&renewed)[&(one.clone(), 0)], ("settled".to_owned(), Some(3)));
    assert!(renewed["lease"]["expires_at"].is_u64(), "{renewed}");
    let released = settle(&acker, &leased, json!({ "type": "release" })).await.ok();
    assert_eq!(results(&released)[&(one.clone(), 0)], ("settled".to_owned(), Some(3)));
    assert_eq!(results(&released)[&(two.clone(), 0)], ("released".to_owned(), Some(1)));
    // A look that has other records to show does not wait for what is pending in one partition.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = batch(&consumer, &[&one, &two], &group, json!({ "ack": "manual" })).await;
    assert_eq!(by_topic(&again), expected([(&two, vec![1, 2, 2])]));
    assert!(again.messages().iter().all(|message| message["delivery_attempt"] == 2));
    // This lease is of one topic, however many were asked for, and either way of naming its partitions will do.
    settle(&acker, &again, json!({ "type": "accept", "through": { &two: { "0": 1 } } })).await.ok();
    settle(&acker, &again, json!({ "type": "accept", "through": { "0": 2 } })).await.ok();
    let renewed = settle(&acker, &again, json!({ "type": "renew" })).await.ok();
    assert_eq!(results(&renewed)[&(two.clone(), 0)].0, "settled");
    assert_eq!(results(&renewed)[&(two.clone(), 1)].0, "renewed");
    let answer = settle(&acker, &again, json!({ "type": "accept" })).await.ok();
    let renewed = settle(&acker, &again, json!({ "type": "renew" })).await;
    assert_eq!((renewed.status, renewed.code()), (409, "lease_lost"), "there is nothing to renew");
    settle(&acker, &again, json!({ "type": "release" })).await.ok();
    assert_eq!(results(&answer), BTreeMap::from([((two.clone(), 0), accepted(3)), ((two.clone(), 1), accepted(3))]));
    for (topic, partition) in [(&one, 0), (&two, 0), (&two, 1)] {
        assert_eq!(committed(&stack.bootstrap(), &group, topic, partition), Some(3));
    }
}

#[tokio::test]
async fn a_lease_is_settled_as_far_as_its_topics_are_there_and_allowed() {
    let (stack, group) = (Stack::shared().await, unique("group"));
    let (kept, closed, gone) = (topic(1).await, topic(1).await, topic(1).await);
    for topic in [&kept, &closed, &gone] {
        fill(&stack.bootstrap(), topic, 1, 3);
    }
    let issuer = Issuer::start().await;
    let consumer = issuer.function("consume-batch", &stack.bootstrap(), &[]).await;
    let acker = issuer.function("acknowledge", &stack.bootstrap(), &[]).await;
    let as_roles = async |function: &Function, roles: &[&str], event: Event| {
        let token = issuer.token(&OURS, "ours", roles);
        Answer::read(&function.invoke(event.bearer(&token).build()).await)
    };
    let leased = ask(&[&kept, &closed, &gone], &group, &json!({ "ack": "manual", "lease_ms": 600_000 }));
    let leased = as_roles(&consumer, &["kafka_consumer:read"], leased).await;
    assert_eq!(by_topic(&leased).len(), 3);
    admin(&stack.bootstrap()).delete_topics(&[&gone], &AdminOptions::new()).await.expect("deleted");
    while topics().await.contains(&gone) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let roles = [format!("kafka_consumer:read:{kept}"), format!("kafka_consumer:read:{gone}")];
    let accept = Event::post(ACKNOWLEDGE).json(&json!({ "token": leased.body["lease"]["token"], "type": "accept" }));
    let none = as_roles(&acker, &["kafka_consumer:read:elsewhere"], accept.clone()).await;
    assert_eq!((none.status, none.code()), (403, "topic_forbidden"));
    assert_eq!(committed(&stack.bootstrap(), &group, &kept, 0), Some(0));
    let answer = as_roles(&acker, &roles.each_ref().map(String::as_str), accept.clone()).await;
    assert!(answer.status >= 400, "{answer:?}");
    let results = results(&answer.body);
    assert_eq!(results[&(kept.clone(), 0)], ("accepted".to_owned(), Some(3)), "{answer:?}");
    assert_eq!(results[&(closed.clone(), 0)], ("failed".to_owned(), None), "{answer:?}");
    assert!(["lost", "failed"].contains(&results[&(gone, 0)].0.as_str()), "{answer:?}");
    assert_eq!(committed(&stack.bootstrap(), &group, &kept, 0), Some(3));
    assert_eq!(committed(&stack.bootstrap(), &group, &closed, 0), Some(0));
    // Allowed again, it is settled too.
    let answer = as_roles(&acker, &["kafka_consumer:read"], accept).await;
    assert_eq!(self::results(&answer.body)[&(closed, 0)], ("accepted".to_owned(), Some(3)), "{answer:?}");
}

#[tokio::test]
async fn what_others_took_of_an_expired_lease_is_lost_and_the_rest_is_not() {
    let (stack, one, two, group) = (Stack::shared().await, topic(1).await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &one, 1, 3);
    fill(&stack.bootstrap(), &two, 1, 3);
    let (consumer, other, acker) =
        (function("consume-batch").await, function("consume").await, function("acknowledge").await);
    let leased = batch(&consumer, &[&one, &two], &group, json!({ "ack": "manual", "lease_ms": 1000 })).await;
    assert_eq!(by_topic(&leased).len(), 2);
    let taken = consume(&other, &one, &group, "&ack=manual&timeout_ms=15000").await;
    assert_eq!(offsets(taken.messages()), [0, 1, 2]);
    let late = settle(&acker, &leased, json!({ "type": "accept" })).await;
    assert_eq!((late.status, late.code()), (409, "lease_lost"));
    let expected = BTreeMap::from([
        ((one, 0), ("lost".to_owned(), Some(0))),
        ((two.clone(), 0), ("accepted".to_owned(), Some(3))),
    ]);
    assert_eq!(results(&late.body), expected);
    assert_eq!(committed(&stack.bootstrap(), &group, &two, 0), Some(3));
}

#[tokio::test]
async fn records_of_several_topics_are_rejected_together() {
    let (stack, one, two, group) = (Stack::shared().await, topic(1).await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &one, 1, 3);
    fill(&stack.bootstrap(), &two, 1, 3);
    let (consumer, acker) = (function("consume-batch").await, function("acknowledge").await);
    let leased = batch(&consumer, &[&one, &two], &group, json!({ "ack": "manual" })).await;
    let unnamed = json!({ "type": "reject", "records": [{ "partition": 0, "offset": 1 }] });
    assert_eq!(settle(&acker, &leased, unnamed).await.code(), "invalid_parameter", "of which topic?");
    let records = json!([{ "topic": one, "partition": 0, "offset": 1 }, { "topic": two, "partition": 0, "offset": 0 }]);
    let answer = settle(&acker, &leased, json!({ "type": "reject", "records": records, "reason": "both" })).await.ok();
    assert!(results(&answer).values().all(|(status, _)| status == "rejected"), "{answer}");
    let bootstrap = stack.bootstrap();
    assert_eq!((dead(&bootstrap, &one), dead(&bootstrap, &two)), (vec![1], vec![0]));
    settle(&acker, &leased, json!({ "type": "release" })).await.ok();
    let rest = batch(&consumer, &[&one, &two], &group, json!({})).await;
    assert_eq!(by_topic(&rest), expected([(&one, vec![0, 2]), (&two, vec![1, 2])]));
}

#[tokio::test]
async fn a_busy_topic_leaves_the_others_their_turns() {
    let (stack, busy, quiet, group) = (Stack::shared().await, topic(3).await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &busy, 3, 9000);
    fill(&stack.bootstrap(), &quiet, 1, 5);
    let (consumer, producer) = (function("consume-batch").await, function("produce").await);
    let more = json!({ "limit": 20, "timeout_ms": 10_000 });
    let first = batch(&consumer, &[&busy, &quiet], &group, more.clone()).await;
    assert_eq!(by_topic(&first)[&quiet], [0, 1, 2, 3, 4], "what is wanted is shared");
    assert_eq!(by_topic(&first)[&busy].len(), 15, "and nothing of it is left");
    for round in 0..5 {
        let receipt = produce(&producer, &json!({ "topic": quiet, "value": "0" })).await.ok();
        let mut calls = 0;
        loop {
            let answer = batch(&consumer, &[&busy, &quiet], &group, more.clone()).await;
            if let Some(offsets) = by_topic(&answer).get(&quiet) {
                assert_eq!(offsets[..], [receipt["offset"].as_i64().expect("an offset")]);
                break;
            }
            calls += 1;
            assert!(calls < 10, "it starves, round {round}");
        }
    }
}

#[tokio::test]
async fn limits_count_for_each_topic_and_for_all() {
    let (stack, group) = (Stack::shared().await, unique("group"));
    let (one, two, three) = (topic(1).await, topic(2).await, topic(1).await);
    for (topic, partitions) in [(&one, 1), (&two, 2), (&three, 1)] {
        fill(&stack.bootstrap(), topic, partitions, 200);
    }
    let consumer = function("consume-batch").await;
    let mut counts = BTreeMap::<String, Vec<usize>>::new();
    for _ in 0..3 {
        let body = json!({ "group_id": group, "limit": 60, "topics": [
            { "topic": one, "limit": 7 }, { "topic": two, "limit": 30 }, { "topic": three },
        ] });
        let answer = call(&consumer, Event::post(BATCH).json(&body)).await;
        for (topic, offsets) in by_topic(&answer) {
            counts.entry(topic).or_default().push(offsets.len());
        }
    }
    println!("{counts:?}");
    assert_eq!(counts[&one], [7; 3]);
    assert!(counts[&two].iter().all(|count| *count <= 30) && counts[&three].iter().all(|count| *count <= 60));
    assert_eq!(counts.values().map(|counts| counts[0]).sum::<usize>(), 60, "the call's limit is used up");
    let single = json!({ "group_id": unique("group"), "topics": [{ "topic": three, "limit": 3 }] });
    assert_eq!(call(&consumer, Event::post(BATCH).json(&single)).await.messages().len(), 3);
}

#[tokio::test]
async fn a_record_too_large_stops_no_other_topic_and_is_413_when_it_is_alone() {
    let (stack, large, small, group) = (Stack::shared().await, topic(1).await, topic(2).await, unique("group"));
    write(&large, &[Raw::value(0, vec![b'x'; 50_000]), Raw::value(0, "1")]).await;
    fill(&stack.bootstrap(), &small, 2, 40);
    let (consumer, acker) = (function("consume-batch").await, function("acknowledge").await);
    let more = json!({ "max_bytes": 20_000, "limit": 10, "timeout_ms": 0 });
    let mut got = Vec::new();
    let refusal = loop {
        let answer = batch(&consumer, &[&large, &small], &group, more.clone()).await;
        if answer.status != 200 {
            assert_eq!((answer.status, answer.code()), (413, "record_too_large"));
            break answer;
        }
        assert!(!answer.messages().is_empty(), "an empty answer says there is nothing more");
        assert!(answer.messages().iter().all(|message| message["topic"] == small), "{answer:?}");
        got.extend(values(answer.messages()));
    };
    got.sort_unstable();
    assert_eq!(got, (0..40).collect::<Vec<_>>());
    let place = (&refusal.body["topic"], &refusal.body["partition"], &refusal.body["offset"]);
    assert_eq!(place, (&json!(large), &json!(0), &json!(0)));
    settle(&acker, &refusal, json!({ "type": "accept" })).await.ok();
    let next = batch(&consumer, &[&large, &small], &group, more).await;
    assert_eq!(by_topic(&next), expected([(&large, vec![1])]), "past it");
}

#[tokio::test]
async fn a_topic_that_is_not_allowed_refuses_the_whole_call() {
    let (stack, other) = (Stack::shared().await, topic(1).await);
    let allowed = format!("orders.{other}");
    let consumer = function("consume-batch").await;
    fill(&stack.bootstrap(), &other, 1, 3);
    let creating = function_with("produce", &[("KAFKA_AUTO_CREATE_TOPICS", "true")]).await;
    produce(&creating, &json!({ "topic": allowed, "value": "1" })).await.ok();
    let group = unique("team-a");
    for forbidden in [&other, "__consumer_offsets", "topic-that-is-nowhere"] {
        let event = ask(&[&allowed, forbidden], &group, &json!({}));
        let token = stack.token("gateway-narrow").await;
        let answer = Answer::read(&consumer.invoke(event.bearer(&token).build()).await);
        assert_eq!((answer.status, answer.code()), (403, "topic_forbidden"));
        assert_eq!(answer.body["topic"], *forbidden);
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &allowed, 0), None, "nothing was handed out");
    let event = ask(&[&allowed], &group, &json!({}));
    let token = stack.token("gateway-narrow").await;
    let answer = Answer::read(&consumer.invoke(event.bearer(&token).build()).await);
    assert_eq!(by_topic(&answer), expected([(&allowed, vec![0])]));
    assert_eq!(refused(&consumer, "gateway-none", ask(&[&other], "g", &json!({}))).await.1, "forbidden");
    // Refused before Kafka is reached.
    let nowhere = format!("127.0.0.1:{}", tests::free_port().expect("a port"));
    let cut_off = function_with("consume-batch", &[("KAFKA_BOOTSTRAP_SERVERS", &nowhere)]).await;
    let event = ask(&[&allowed, &other], &group, &json!({}));
    assert_eq!(refused(&cut_off, "gateway-narrow", event).await, (403, "topic_forbidden".to_owned()));
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_named_and_stops_no_other() {
    let (stack, there, group) = (Stack::shared().await, topic(1).await, unique("group"));
    let (absent, more_absent) = (unique("absent"), unique("absent"));
    fill(&stack.bootstrap(), &there, 1, 30);
    let consumer = function("consume-batch").await;
    let named = |answer: &Answer| {
        let failed = answer.body["failed"].as_array().expect("failures").clone();
        assert_eq!((&failed[0]["status"], &failed[0]["retryable"]), (&json!(404), &json!(false)), "{failed:?}");
        assert_eq!(
            (&failed[0]["type"], &failed[0]["error_code"]),
            (&json!("/problems/topic_not_found"), &json!(40401))
        );
        failed.iter().map(|it| (it["topic"].clone(), it["code"].clone())).collect::<Vec<_>>()
    };
    // In each answer, whatever was fetched ahead; and in an empty one.
    let mut got = 0;
    for _ in 0..4 {
        let answer = batch(&consumer, &[&absent, &there], &group, json!({ "limit": 10, "timeout_ms": 50 })).await;
        assert_eq!(named(&answer), [(json!(absent), json!("topic_not_found"))]);
        got += answer.messages().len();
    }
    assert_eq!(got, 30);
    let two = batch(&consumer, &[&absent, &there, &more_absent], &group, json!({ "timeout_ms": 0 })).await;
    assert_eq!(named(&two).len(), 2);
    // More of them than an answer can name: the call says so, and takes nothing.
    let many: Vec<String> = (0..20).map(|n| format!("{absent}-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain([there.as_str()]).collect();
    fill(&stack.bootstrap(), &there, 1, 1);
    let crowded = batch(&consumer, &many, &group, json!({ "max_bytes": 5000 })).await;
    assert_eq!((crowded.status, crowded.code()), (404, "topic_not_found"));
    assert_eq!(batch(&consumer, &many, &group, json!({})).await.messages().len(), 1);
    for topics in [&[&absent[..]][..], &[&absent, &more_absent]] {
        let none = batch(&consumer, topics, &group, json!({})).await;
        assert_eq!((none.status, none.code()), (404, "topic_not_found"));
        assert_eq!(none.body["topic"], absent);
    }
    assert!(!topics().await.iter().any(|topic| *topic == absent || *topic == more_absent), "asking creates none");
}

#[tokio::test]
async fn a_group_with_live_members_is_refused() {
    let (stack, one, two, group) = (Stack::shared().await, topic(1).await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &one, 1, 5);
    let member = raw_consumer(&stack.bootstrap(), &group, &[("group.protocol", "classic")]);
    member.subscribe(&[&two]).expect("subscribed");
    while member.assignment().expect("an assignment").count() == 0 {
        let _ = member.poll(Duration::from_millis(50));
    }
    let consumer = function("consume-batch").await;
    for topics in [&[&one[..], &two][..], &[&two]] {
        let answer = batch(&consumer, topics, &group, json!({ "timeout_ms": 0 })).await;
        assert_eq!((answer.status, answer.code()), (409, "group_in_use"));
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &one, 0), None);
}

#[tokio::test]
async fn start_latest_is_fixed_for_all_topics_by_the_first_call() {
    let (stack, one, two, group) = (Stack::shared().await, topic(2).await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &one, 2, 6);
    fill(&stack.bootstrap(), &two, 1, 2);
    let more = json!({ "start": "latest", "timeout_ms": 0 });
    let first = function("consume-batch").await;
    assert!(batch(&first, &[&one, &two], &group, more.clone()).await.messages().is_empty());
    fill(&stack.bootstrap(), &one, 2, 2);
    fill(&stack.bootstrap(), &two, 1, 1);
    let second = batch(&function("consume-batch").await, &[&one, &two], &group, more).await;
    assert_eq!(by_topic(&second), expected([(&one, vec![3, 3]), (&two, vec![2])]));
}

#[tokio::test]
async fn a_waiting_call_gets_a_record_of_any_of_its_topics() {
    let (one, two, group) = (topic(1).await, topic(1).await, unique("group"));
    let (producer, consumer) = (function("produce").await, function("consume-batch").await);
    let both = [one.as_str(), &two];
    let (answer, _) = tokio::join!(batch(&consumer, &both, &group, json!({ "timeout_ms": 20_000 })), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        produce(&producer, &json!({ "topic": two, "value": "now" })).await.ok()
    });
    assert_eq!(by_topic(&answer), expected([(&two, vec![0])]));
}

#[tokio::test]
async fn more_topics_than_one_answer_serves_take_turns() {
    let (stack, group) = (Stack::shared().await, unique("group"));
    let mut names = Vec::new();
    for _ in 0..12 {
        names.push(topic_on(&stack.bootstrap(), 1, &[]).await);
        fill(&stack.bootstrap(), names.last().expect("one"), 1, 40);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let consumer = function("consume-batch").await;
    let mut served = BTreeMap::<String, Vec<i64>>::new();
    for _ in 0..2 {
        for (topic, offsets) in by_topic(&batch(&consumer, &names, &group, json!({ "limit": 16 })).await) {
            served.entry(topic).or_default().extend(offsets);
        }
    }
    assert_eq!(served.len(), 12, "all of them in two calls");
    while served.values().map(Vec::len).sum::<usize>() < 12 * 40 {
        let answer = batch(&consumer, &names, &group, json!({ "limit": 1000 })).await;
        assert!(!answer.messages().is_empty());
        for (topic, offsets) in by_topic(&answer) {
            served.entry(topic).or_default().extend(offsets);
        }
    }
    assert!(served.values().all(|offsets| *offsets == (0..40).collect::<Vec<_>>()), "{served:?}");
}

#[tokio::test]
async fn no_answer_is_larger_than_max_bytes_whatever_the_topics_and_their_records() {
    let (consumer, acker) = (function("consume-batch").await, function("acknowledge").await);
    let names = [topic(2).await, topic(1).await, topic(1).await];
    let mut count = 0;
    for (name, size) in names.iter().zip([3, 300, 2000]) {
        let records: Vec<Raw> = (0..8).flat_map(|_| nasty(size)).map(|value| Raw::value(0, value)).collect();
        count += records.len();
        write(name, &records).await;
    }
    let absent = unique("absent");
    let token = Stack::shared().await.token("gateway-full").await;
    for (ack, max_bytes) in [("auto", 15_000), ("manual", 15_000), ("manual", 60_000), ("auto", 300_000)] {
        // A group's name stands in the token as well, and may need escapes.
        let group = format!("{}\"\\ü", unique("group"));
        let topics: Vec<&str> = names.iter().map(String::as_str).chain([absent.as_str()]).collect();
        let more = json!({ "ack": ack, "max_bytes": max_bytes, "limit": 1000, "timeout_ms": 0 });
        let (mut got, mut largest) = (0, 0);
        loop {
            let response = consumer.invoke(ask(&topics, &group, &more).bearer(&token).build()).await;
            let size = posted(&response);
            assert!(size <= max_bytes, "{size} of {max_bytes}, {ack}");
            largest = largest.max(size);
            let answer = Answer::read(&response);
            if answer.messages().is_empty() {
                break;
            }
            got += answer.messages().len();
            if ack == "manual" {
                settle(&acker, &answer, json!({ "type": "accept" })).await.ok();
            }
        }
        assert_eq!(got, count, "{ack} {max_bytes}");
        assert!(largest > max_bytes / 2 || max_bytes > 60_000, "the room is used: {largest} of {max_bytes}");
    }
}

#[tokio::test]
async fn formats_are_for_all_topics_and_schemas_found_for_each() {
    let url = Stack::shared().await.registry().await;
    let registry = [("SCHEMA_REGISTRY_URL", url)];
    let (producer, consumer) =
        (function_with("produce", &registry).await, function_with("consume-batch", &registry).await);
    let (orders, plain) = (topic(1).await, topic(1).await);
    let schema = r#"{"type":"record","name":"Order","fields":[{"name":"id","type":"long"}]}"#;
    register(&format!("{orders}-value"), "AVRO", schema, &json!([])).await;
    let order = json!({ "topic": orders, "value": { "id": 7 }, "value_format": "avro" });
    produce(&producer, &order).await.ok();
    produce(&producer, &json!({ "topic": plain, "value": { "id": 7 } })).await.ok();
    let answer = batch(&consumer, &[&orders, &plain], &unique("group"), json!({ "value_format": "avro" })).await;
    let messages = answer.messages();
    assert_eq!((&messages[0]["topic"], &messages[0]["value"]), (&json!(orders), &json!({ "id": 7 })));
    assert_eq!((&messages[1]["topic"], &messages[1]["value_encoding"]), (&json!(plain), &json!("base64")));
    assert!(messages[1]["value_error"].is_string(), "{messages:?}");
    let answer = batch(&consumer, &[&plain], &unique("group"), json!({ "format": "json" })).await;
    assert_eq!(answer.messages()[0]["value"], json!({ "id": 7 }));
    // Without a registry, such a format is refused before anything is taken.
    let without = function("consume-batch").await;
    let event = ask(&[&plain], "g", &json!({ "value_format": "avro" }));
    assert_eq!(refused(&without, "gateway-full", event).await, (400, "invalid_parameter".to_owned()));
}

#[tokio::test]
async fn a_body_is_taken_to_the_letter_or_refused() {
    let (consumer, topic) = (function("consume-batch").await, topic(1).await);
    for method in ["HEAD", "GET", "PUT", "DELETE", "OPTIONS"] {
        let response = consumer.invoke(Event::new(method, BATCH).body("{}").build()).await;
        assert_eq!(problem(&response), (405, "method_not_allowed".to_owned()), "{method}");
        assert_eq!(response["headers"]["allow"], "POST");
    }
    for path in [CONSUME, "/kafka/consumer/consume/batch/", "/kafka/consumer/consume/batches"] {
        let response = consumer.invoke(Event::post(path).json(&json!({})).build()).await;
        assert_eq!(problem(&response), (404, "route_not_found".to_owned()), "{path}");
    }
    let refused = async |event: Event| refused(&consumer, "gateway-full", event).await;
    let good = format!(r#""group_id": "g", "topics": [{{"topic": "{topic}"}}]"#);
    for more in [
        r#""x": 1"#,
        r#""topic": "t""#,
        r#""limit": 0"#,
        r#""limit": 1001"#,
        r#""limit": 1.5"#,
        r#""limit": "5""#,
        r#""limit": 5, "limit": 5"#,
        r#""timeout_ms": 25001"#,
        r#""timeout_ms": true"#,
        r#""max_bytes": 6000001"#,
        r#""max_bytes": []"#,
        r#""ack": "none""#,
        r#""ack": true"#,
        r#""lease_ms": 5000"#,
        r#""ack": "manual", "lease_ms": 999"#,
        r#""start": "middle""#,
        r#""start": 0"#,
        r#""format": "yaml""#,
        r#""key_format": {}"#,
        r#""group_id": "g""#,
    ] {
        let got = refused(Event::post(BATCH).body(format!("{{{good}, {more}}}"))).await;
        assert_eq!(got, (400, "invalid_parameter".to_owned()), "{more}");
    }
    for (body, code) in [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[]", "invalid_parameter"),
        ("null", "invalid_parameter"),
        ("{}", "missing_parameter"),
        (r#"{"group_id": "g", "topics": null}"#, "missing_parameter"),
        (r#"{"group_id": "g", "topics": []}"#, "invalid_parameter"),
        (r#"{"group_id": "", "topics": [{"topic": "t"}]}"#, "invalid_parameter"),
        (r#"{"group_id": 5, "topics": [{"topic": "t"}]}"#, "invalid_parameter"),
        (r#"{"group_id": "g", "topics": [{"topic": "t"}, {"topic": "t"}]}"#, "invalid_parameter"),
    ] {
        assert_eq!(refused(Event::post(BATCH).body(body)).await, (400, code.to_owned()), "{body}");
    }
    let text = Event::post(BATCH).header("content-type", "text/plain").body(format!("{{{good}}}"));
    assert_eq!(refused(text).await, (415, "unsupported_media_type".to_owned()));
    let query = Event::post(BATCH).query("limit=5").body(format!("{{{good}}}"));
    assert_eq!(refused(query).await, (400, "invalid_parameter".to_owned()));
    // All of it at once, and null for what is left to its default.
    let all = format!(
        r#"{{{good}, "limit": 5, "timeout_ms": 0, "max_bytes": 100000, "ack": "manual", "lease_ms": 5000,
            "start": "earliest", "format": "json", "key_format": "string", "value_format": null}}"#
    );
    let got = call(&consumer, Event::post(BATCH).body(all)).await.ok();
    assert_eq!(got, json!({ "group_id": "g", "messages": [] }));
    // Leases need exclusive delivery.
    let shared = function_with("consume-batch", &[("KAFKA_CONSUME_DELIVERY", "shared")]).await;
    let answer = batch(&shared, &[&topic], "g", json!({ "ack": "manual" })).await;
    assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"));
    fill(&Stack::shared().await.bootstrap(), &topic, 1, 2);
    let answer = batch(&shared, &[&topic], &unique("group"), json!({})).await;
    assert_eq!(by_topic(&answer), expected([(&topic, vec![0, 1])]));
}

#[tokio::test]
async fn a_kafka_that_is_gone_is_503_within_the_deadline() {
    let gone = format!("127.0.0.1:{}", tests::free_port().expect("a port"));
    let env = [("KAFKA_BOOTSTRAP_SERVERS", gone.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "700")];
    let consumer = function_with("consume-batch", &env).await;
    for topics in [&["t"][..], &["t", "u", "v"]] {
        let answer = batch(&consumer, topics, "g", json!({ "timeout_ms": 0 })).await;
        assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
        assert!(!answer.body.to_string().contains(&gone), "{answer:?}");
    }
}
