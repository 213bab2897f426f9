//! Dead letters where a lease is of several partitions or topics: the record at fault goes, and no other with it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{committed, fill, offsets};
use crate::consume_batch::{batch, settle};
use crate::dead_letters::{Letter, dead, letters};
use crate::kit::{Raw, write};
use crate::wire::ACKNOWLEDGE;
use crate::world::{Answer, call, consume, function, function_with, topic, unique};

/// A message's topic, partition and offset.
type Place = (String, i64, i64);

/// Where an answer's messages are, those of `consume` in `topic`.
fn places(answer: &Answer, topic: &str) -> Vec<Place> {
    let place = |message: &Value| {
        let number = |name: &str| message[name].as_i64().expect("a number");
        (message["topic"].as_str().unwrap_or(topic).to_owned(), number("partition"), number("offset"))
    };
    answer.messages().iter().map(place).collect()
}

/// Takes what comes, one call after the other, and accepts it, unless `poison` is in it: then nothing of it. What was
/// accepted, once each, and how often the poison was met.
async fn work(acker: &Function, topic: &str, poison: &Place, next: impl AsyncFn() -> Answer) -> (BTreeSet<Place>, u32) {
    let (mut accepted, mut met) = (BTreeSet::new(), 0);
    loop {
        let leased = next().await;
        let places = places(&leased, topic);
        if places.is_empty() {
            return (accepted, met);
        }
        let poisoned = places.contains(poison);
        met += u32::from(poisoned);
        settle(acker, &leased, json!({ "type": if poisoned { "release" } else { "accept" } })).await.ok();
        for place in places.into_iter().filter(|_| !poisoned) {
            assert!(accepted.insert(place.clone()), "accepted twice: {place:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_lease_over_several_topics_only_the_record_at_fault_is_given_up() {
    let (stack, one, two) = (Stack::shared().await, topic(2).await, topic(1).await);
    let server = stack.bootstrap();
    fill(&server, &one, 2, 12);
    fill(&server, &two, 1, 6);
    let acker = function("acknowledge").await;
    let poison = (one.clone(), 1, 3);
    for most in [1, 2, 3, 5] {
        let group = unique("group");
        let consumer = function_with("consume-batch", &[("DLQ_MAX_DELIVERIES", &most.to_string())]).await;
        let more = json!({ "ack": "manual", "timeout_ms": 500 });
        let next = async || batch(&consumer, &[&one, &two], &group, more.clone()).await;
        let (accepted, met) = work(&acker, &one, &poison, next).await;
        let everywhere = [(&one, 0), (&one, 1), (&two, 0)]
            .into_iter()
            .flat_map(|(topic, partition)| (0..6).map(move |offset| (topic.clone(), partition, offset)));
        let all: BTreeSet<Place> = everywhere.filter(|place| *place != poison).collect();
        assert_eq!(accepted, all, "{most}");
        assert_eq!(met, most);
        let of_group = |topic: &str| {
            let letters = letters(&server, topic).into_iter().filter(|letter| letter.header("dlq.group") == group);
            letters.collect::<Vec<_>>()
        };
        let buried = of_group(&one);
        assert_eq!((buried.len(), of_group(&two).len()), (1, 0), "{most}: one letter, by consume-batch");
        let attempts = most.to_string();
        let told = ["__connect.errors.partition", "__connect.errors.offset", "dlq.reason", "dlq.delivery_attempts"];
        assert_eq!(told.map(|name| buried[0].header(name)), ["1", "3", "max_deliveries", &attempts]);
        for (topic, partition) in [(&one, 0), (&one, 1), (&two, 0)] {
            assert_eq!(committed(&server, &group, topic, partition), Some(6), "{most}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_lease_over_several_partitions_only_the_record_at_fault_is_given_up() {
    let (stack, topic) = (Stack::shared().await, topic(3).await);
    fill(&stack.bootstrap(), &topic, 3, 15);
    let acker = function("acknowledge").await;
    let poison = (topic.clone(), 2, 2);
    for most in [1, 3, 5] {
        let group = unique("group");
        let consumer = function_with("consume", &[("DLQ_MAX_DELIVERIES", &most.to_string())]).await;
        let next = async || consume(&consumer, &topic, &group, "&ack=manual&timeout_ms=500").await;
        let (accepted, met) = work(&acker, &topic, &poison, next).await;
        assert_eq!((accepted.len(), met), (14, most), "{most}: {accepted:?}");
    }
    let rounds: Vec<i64> = letters(&stack.bootstrap(), &topic).iter().map(Letter::offset).collect();
    assert_eq!(rounds, [2, 2, 2], "one in each round");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_had_its_answer_with_others_is_not_given_up_before_it_had_one_for_itself() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    // One of each partition: each is its partition's only one in every answer, and never the answer's.
    fill(&stack.bootstrap(), &topic, 2, 2);
    let (patient, acker) =
        (function_with("consume", &[("DLQ_MAX_DELIVERIES", "9")]).await, function("acknowledge").await);
    for _ in 0..3 {
        let leased = consume(&patient, &topic, &group, "&ack=manual&timeout_ms=5000").await;
        assert_eq!(leased.messages().len(), 2);
        settle(&acker, &leased, json!({ "type": "release" })).await.ok();
        // What another function has touched just now is left to it for a moment.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // From here on three deliveries are enough.
    let strict = function_with("consume", &[("DLQ_MAX_DELIVERIES", "3")]).await;
    for _ in 0..2 {
        let leased = consume(&strict, &topic, &group, "&ack=manual&timeout_ms=5000").await;
        assert_eq!((leased.messages().len(), &leased.messages()[0]["delivery_attempt"]), (1, &json!(4)), "alone");
        settle(&acker, &leased, json!({ "type": "accept" })).await.ok();
    }
    assert!(letters(&stack.bootstrap(), &topic).is_empty(), "both were good");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_calls_for_several_topics_bury_a_record_once() {
    const MOST: [(&str, &str); 1] = [("DLQ_MAX_DELIVERIES", "2")];
    let (stack, one, two, group) = (Stack::shared().await, topic(1).await, topic(1).await, unique("group"));
    let server = stack.bootstrap();
    for topic in [&one, &two] {
        fill(&server, topic, 1, 4);
    }
    // The first record of each is met in vain as often as may be.
    let (consumer, acker) = (function_with("consume", &MOST).await, function("acknowledge").await);
    for topic in [&one, &two, &one, &two] {
        let leased = consume(&consumer, topic, &group, "&ack=manual&limit=1&timeout_ms=5000").await;
        assert_eq!(offsets(leased.messages()), [0]);
        settle(&acker, &leased, json!({ "type": "release" })).await.ok();
    }
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (one, two, group) = (one.clone(), two.clone(), group.clone());
        running.spawn(async move {
            let consumer = function_with("consume-batch", &MOST).await;
            let mut got = Vec::new();
            loop {
                let answer = batch(&consumer, &[&one, &two], &group, json!({ "limit": 2, "timeout_ms": 1500 })).await;
                if answer.messages().is_empty() {
                    return got;
                }
                got.extend(places(&answer, ""));
            }
        });
    }
    let mut got: Vec<Place> = running.join_all().await.into_iter().flatten().collect();
    got.sort_unstable();
    let mut expected: Vec<Place> =
        [&one, &two].into_iter().flat_map(|topic| (1..4).map(|offset| (topic.clone(), 0, offset))).collect();
    expected.sort_unstable();
    assert_eq!(got, expected, "each of the others once");
    for topic in [&one, &two] {
        assert_eq!((dead(&server, topic), committed(&server, &group, topic, 0)), (vec![0], Some(4)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_any_answer_can_be_rejected_and_its_letter_is_whole() {
    let (stack, one, two, group) = (Stack::shared().await, topic(1).await, topic(1).await, unique("group"));
    let server = stack.bootstrap();
    let large: Vec<u8> = (0..400_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let record = Raw { key: Some(b"k".to_vec()), headers: vec![("h".to_owned(), None)], ..Raw::value(0, large) };
    for topic in [&one, &two] {
        write(topic, &[record.clone(), Raw::value(0, "next")]).await;
    }
    let acker = function("acknowledge").await;
    for ack in ["auto", "manual"] {
        // One by consume, the other by consume-batch.
        let (topic, refused) = if ack == "auto" {
            let consumer = function("consume").await;
            (&one, consume(&consumer, &one, &group, &format!("&max_bytes=20000&ack={ack}")).await)
        } else {
            let (consumer, more) = (function("consume-batch").await, json!({ "max_bytes": 20_000, "ack": ack }));
            (&two, batch(&consumer, &[&two], &group, more).await)
        };
        assert_eq!((refused.status, refused.code()), (413, "record_too_large"), "{ack}");
        let reject = json!({ "token": refused.body["lease"]["token"], "type": "reject", "reason": "too large for us" });
        let results = call(&acker, Event::post(ACKNOWLEDGE).json(&reject)).await.ok()["results"].clone();
        let expected = json!([{ "topic": topic, "partition": 0, "status": "rejected", "committed": 1 }]);
        assert_eq!(results, expected, "{ack}");
        let letters = letters(&server, topic);
        assert_eq!(letters.len(), 1);
        assert!(letters[0].value == record.value && letters[0].key == record.key, "{ack}: as it was");
        assert_eq!(letters[0].headers[0], record.headers[0]);
        assert_eq!(letters[0].header("__connect.errors.exception.message"), "too large for us");
        let next = consume(&function("consume").await, topic, &group, "&max_bytes=20000").await;
        assert_eq!(offsets(next.messages()), [1], "{ack}");
    }
}
