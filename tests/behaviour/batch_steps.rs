//! Functions that die, freeze or lose their connection while they work on two topics side by side: each record once, in
//! both, whichever of the two was done by then.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Value, json};
use tests::{Api, At, Event, Function};
use tokio::sync::OnceCell;

use crate::consume::committed;
use crate::consume_batch::{ask, by_topic};
use crate::dead_letter_steps::{drain, records};
use crate::wire::{ACKNOWLEDGE, BATCH, Case, Fault, RECORDS, Wire, cases, each};
use crate::world::{Answer, call, function_with, unique};

/// What a call for two topics asks of Kafka; how many requests of the kind pass before. From the claims on each topic asks
/// for itself.
const CONSUMING: [(Api, usize); 11] = [
    (Api::OffsetFetch, 0), // the look
    (Api::ListOffsets, 0),
    (Api::Fetch, 0),
    (Api::InitProducerId, 0),
    (Api::InitProducerId, 1),
    (Api::OffsetFetch, 1), // under the claims
    (Api::OffsetFetch, 2),
    (Api::TxnOffsetCommit, 0),
    (Api::TxnOffsetCommit, 1),
    (Api::EndTxn, 0),
    (Api::EndTxn, 1),
];

/// The same for an acknowledgement of a lease of two topics.
const ACKNOWLEDGING: [(Api, usize); 9] = [
    (Api::FindCoordinator, 0),
    (Api::InitProducerId, 0),
    (Api::InitProducerId, 1),
    (Api::OffsetFetch, 0),
    (Api::OffsetFetch, 1),
    (Api::TxnOffsetCommit, 0),
    (Api::TxnOffsetCommit, 1),
    (Api::EndTxn, 0),
    (Api::EndTxn, 1),
];

/// In how many of the two topics a function that is killed there has committed: while it is one's turn to be caught, the
/// other may go on.
fn done(case: Case) -> RangeInclusive<usize> {
    match (case.api, case.passing, case.at) {
        (Api::EndTxn, 1, At::Answer) => 2..=2,
        (Api::EndTxn, 1, At::Request) => 1..=1,
        (Api::EndTxn, _, At::Answer) => 1..=2,
        (Api::EndTxn | Api::TxnOffsetCommit | Api::InitProducerId, ..) => 0..=1,
        // It may not have needed that.
        _ => 0..=2,
    }
}

/// Two topics of the wire's broker, for one case alone.
async fn two(wire: &Wire) -> [String; 2] {
    [records(wire).await, records(wire).await]
}

/// A call for the first records of both.
fn asking([one, two]: &[String; 2], group: &str, more: &Value) -> Event {
    let mut terms = json!({ "limit": 2 * BATCH, "timeout_ms": 0 });
    for (name, value) in more.as_object().expect("members") {
        terms[name] = value.clone();
    }
    ask(&[one, two], group, &terms)
}

/// Consumes both up to their last records.
async fn drain_both(wire: &Wire, topics: &[String; 2], group: &str) -> [Vec<i64>; 2] {
    [drain(wire, &topics[0], group).await, drain(wire, &topics[1], group).await]
}

/// Leases the first records of both topics.
async fn lease(wire: &Wire, topics: &[String; 2], group: &str, lease_ms: u64) -> Answer {
    static CONSUMER: OnceCell<Function> = OnceCell::const_new();
    let start = async || {
        let server = wire.broker.bootstrap();
        let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("AWS_LAMBDA_MAX_CONCURRENCY", "64")];
        function_with("consume-batch", &settings).await
    };
    let consumer = CONSUMER.get_or_init(start).await;
    let leased = call(consumer, asking(topics, group, &json!({ "ack": "manual", "lease_ms": lease_ms }))).await;
    let first: Vec<i64> = (0..BATCH).collect();
    assert_eq!(by_topic(&leased), topics.iter().map(|topic| (topic.clone(), first.clone())).collect());
    leased
}

fn accept(leased: &Answer) -> Value {
    json!({ "token": leased.body["lease"]["token"], "type": "accept" })
}

/// The status of each topic.
fn statuses(answer: &Answer) -> BTreeMap<&str, &str> {
    let results = answer.body["results"].as_array().expect("results").iter();
    results.map(|result| (result["topic"].as_str().expect("one"), result["status"].as_str().expect("one"))).collect()
}

fn from(offset: i64) -> Vec<i64> {
    (offset..RECORDS).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_broken_call_for_two_topics_each_record_comes_once() {
    each(cases(&CONSUMING), async |wire, case| {
        let (topics, group) = (two(wire).await, unique("group"));
        let event = asking(&topics, &group, &json!({}));
        let others = async || drain_both(wire, &topics, &group).await;
        let (answer, drained) = wire.strike(case, ("consume-batch", event), others).await;
        let answered = answer.as_ref().map(by_topic);
        assert!(case.fault != Fault::Cut || answered.as_ref().is_some_and(|got| !got.is_empty()), "it asked again");
        let mut skipped = 0;
        for (topic, drained) in topics.iter().zip(drained) {
            let mut got = answered.as_ref().and_then(|got| got.get(topic)).cloned().unwrap_or_default();
            got.extend(drained);
            got.sort_unstable();
            // An answer that nobody got skips what it held: at most once.
            let lost = answered.is_none() && got == from(BATCH);
            skipped += usize::from(lost);
            assert!(lost || got == from(0), "each once: {got:?}");
            assert_eq!(committed(&wire.broker.bootstrap(), &group, topic, 0), Some(RECORDS));
        }
        assert!(answered.is_some() || done(case).contains(&skipped), "{skipped} topics are done");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_a_broken_call_for_two_topics_go_to_the_next_when_they_are_over() {
    let killed = cases(&CONSUMING).into_iter().filter(|case| case.fault == Fault::Killed).collect();
    each(killed, async |wire, case: Case| {
        let (topics, group) = (two(wire).await, unique("group"));
        let event = asking(&topics, &group, &json!({ "ack": "manual", "lease_ms": 1000 }));
        let others = async || drain_both(wire, &topics, &group).await;
        let (_, drained) = wire.strike(case, ("consume-batch", event), others).await;
        assert_eq!(drained, [from(0), from(0)], "nothing is lost, in order");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_acknowledgement_of_two_topics_comes_right_when_it_is_repeated() {
    each(cases(&ACKNOWLEDGING), async |wire, case| {
        let (topics, group) = (two(wire).await, unique("group"));
        let leased = lease(wire, &topics, &group, 600_000).await;
        let body = accept(&leased);
        let others = async || {
            // Whether none, one or both of them were settled by then.
            let again = wire.acknowledge(&body).await;
            assert_eq!(again.status, 200, "{again:?}");
            let results = again.body["results"].as_array().expect("results");
            assert!(results.iter().all(|result| result["committed"] == BATCH), "{again:?}");
            assert!(statuses(&again).into_values().eq(["accepted"; 2]), "{again:?}");
            drain_both(wire, &topics, &group).await
        };
        let event = Event::post(ACKNOWLEDGE).json(&body);
        let (answer, drained) = wire.strike(case, ("acknowledge", event), others).await;
        assert_eq!(drained, [from(BATCH), from(BATCH)], "none lost, none accepted and handed out again");
        if let Some(answer) = answer {
            let statuses = statuses(&answer);
            assert_eq!(statuses.len(), 2, "{answer:?}");
            // What a frozen one had not settled itself is forgotten, when it thaws long after.
            let fits = |status: &&str| *status == "accepted" || (*status == "lost" && case.fault == Fault::Frozen);
            assert!(statuses.values().all(fits), "{answer:?}");
            let whole = statuses.values().all(|status| *status == "accepted");
            assert_eq!(answer.status, if whole { 200 } else { 409 }, "{answer:?}");
        }
        for topic in &topics {
            let position = committed(&wire.broker.bootstrap(), &group, topic, 0);
            assert_eq!(position, Some(RECORDS), "nothing moves when it thaws");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_of_two_topics_that_nobody_repeats_is_done_in_each_or_its_records_come_again() {
    let killed = cases(&ACKNOWLEDGING).into_iter().filter(|case| case.fault == Fault::Killed).collect();
    each(killed, async |wire, case: Case| {
        let (topics, group) = (two(wire).await, unique("group"));
        let leased = lease(wire, &topics, &group, 1000).await;
        let event = Event::post(ACKNOWLEDGE).json(&accept(&leased));
        let others = async || drain_both(wire, &topics, &group).await;
        let (answer, drained) = wire.strike(case, ("acknowledge", event), others).await;
        let mut settled = 0;
        for drained in drained {
            settled += usize::from(drained == from(BATCH));
            assert!(drained == from(BATCH) || drained == from(0), "all of a topic, or nothing: {drained:?}");
        }
        assert!(answer.is_some() || done(case).contains(&settled), "{settled} topics are settled");
    })
    .await;
}
