//! Functions that die, freeze or lose their connection at each single step of a reject or a burial: one letter, or none, and
//! what has none is handed out.

use serde_json::{Value, json};
use tests::{Api, At, Event};

use crate::adversity::at;
use crate::consume::{commit_plainly, committed, fill, offsets, raw_consumer};
use crate::dead_letters::dead;
use crate::wire::{ACKNOWLEDGE, BATCH, CALLS, Case, Fault, RECORDS, Wire, cases, each};
use crate::world::{Answer, CONSUME, consume, topic_on, unique};

/// What a reject asks of Kafka, in this order; how many requests of the kind pass before.
const REJECTING: [(Api, usize); 11] = [
    (Api::Metadata, 0),
    (Api::FindCoordinator, 0),
    (Api::OffsetFetch, 0), // the look
    (Api::Fetch, 0),
    (Api::InitProducerId, 0),
    (Api::OffsetFetch, 1), // under the claim
    (Api::AddPartitionsToTxn, 0),
    (Api::Produce, 0),
    (Api::AddOffsetsToTxn, 0),
    (Api::TxnOffsetCommit, 0),
    (Api::EndTxn, 0),
];

/// The same for a consume call that buries a record, and then goes on to the next.
const BURYING: [(Api, usize); 14] = [
    (Api::Metadata, 0),
    (Api::FindCoordinator, 0),
    (Api::OffsetFetch, 0), // the look
    (Api::ListOffsets, 0),
    (Api::Fetch, 0),
    (Api::InitProducerId, 0),
    (Api::OffsetFetch, 1), // under the claim
    (Api::AddPartitionsToTxn, 0),
    (Api::Produce, 0),
    (Api::AddOffsetsToTxn, 0),
    (Api::TxnOffsetCommit, 0),
    (Api::EndTxn, 0),
    (Api::OffsetFetch, 2), // the next look
    (Api::OffsetFetch, 3),
];

/// The records that are rejected.
const REJECTED: [i64; 2] = [1, 2];

/// A topic of the wire's broker, for one case alone.
pub(crate) async fn records(wire: &Wire) -> String {
    let server = wire.broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    fill(&server, &topic, 1, usize::try_from(RECORDS).expect("small"));
    topic
}

/// Consumes up to the last record; the offsets in the order they came.
pub(crate) async fn drain(wire: &Wire, topic: &str, group: &str) -> Vec<i64> {
    let mut got = Vec::new();
    for _ in 0..CALLS {
        if got.last() == Some(&(RECORDS - 1)) {
            break;
        }
        got.extend(offsets(consume(&wire.consumer, topic, group, "&timeout_ms=3000").await.messages()));
    }
    got
}

fn reject(leased: &Answer) -> Value {
    let records = REJECTED.map(|offset| json!({ "partition": 0, "offset": offset }));
    json!({ "token": leased.body["lease"]["token"], "type": "reject", "records": records })
}

fn release(leased: &Answer) -> Value {
    json!({ "token": leased.body["lease"]["token"], "type": "release" })
}

/// All records but these.
fn without(settled: &[i64]) -> Vec<i64> {
    (0..RECORDS).filter(|offset| !settled.contains(offset)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_reject_can_be_repeated_and_writes_each_letter_once() {
    each(cases(&REJECTING), async |wire, case| {
        let (topic, group) = (records(wire).await, unique("group"));
        let leased =
            consume(&wire.consumer, &topic, &group, &format!("&ack=manual&lease_ms=600000&limit={BATCH}")).await;
        assert_eq!(offsets(leased.messages()), (0..BATCH).collect::<Vec<_>>());
        let event = Event::post(ACKNOWLEDGE).json(&reject(&leased));
        let others = async || {
            let again = wire.acknowledge(&reject(&leased)).await.ok();
            assert_eq!(again["results"][0]["status"], "rejected");
            wire.acknowledge(&release(&leased)).await.ok();
            drain(wire, &topic, &group).await
        };
        let (answer, drained) = wire.strike(case, ("acknowledge", event), others).await;
        if let (Some(answer), Fault::Cut) = (answer, case.fault) {
            assert_eq!(answer.ok()["results"][0]["status"], "rejected", "what it was not told it asked again");
        }
        assert_eq!(drained, without(&REJECTED));
        assert_eq!(dead(&wire.broker.bootstrap(), &topic), REJECTED);
        assert_eq!(
            committed(&wire.broker.bootstrap(), &group, &topic, 0),
            Some(RECORDS),
            "nothing moves when it thaws"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_reset_while_letters_are_written_stays_where_it_was_set() {
    let wire = Wire::shared().await;
    let server = wire.broker.bootstrap();
    for caught in [At::Request, At::Answer] {
        let (topic, group) = (records(wire).await, unique("group"));
        let leased = consume(&wire.consumer, &topic, &group, &format!("&ack=manual&limit={BATCH}")).await;
        let event = ("acknowledge", Event::post(ACKNOWLEDGE).json(&reject(&leased)));
        let reset = async || commit_plainly(&raw_consumer(&server, &group, &[]), &at(&topic, 0, 7));
        let answer = wire.meanwhile((Api::Produce, 0, caught), event, reset).await;
        assert_eq!((answer.status, answer.code()), (409, "lease_lost"), "{answer:?}");
        assert_eq!((committed(&server, &group, &topic, 0), dead(&server, &topic)), (Some(7), vec![]));
        assert_eq!(drain(wire, &topic, &group).await, (7..RECORDS).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_that_nobody_repeats_is_done_or_its_records_come_again() {
    let killed = cases(&REJECTING).into_iter().filter(|case| case.fault == Fault::Killed).collect();
    each(killed, async |wire, case: Case| {
        let (topic, group) = (records(wire).await, unique("group"));
        let leased = consume(&wire.consumer, &topic, &group, &format!("&ack=manual&lease_ms=1000&limit={BATCH}")).await;
        let event = Event::post(ACKNOWLEDGE).json(&reject(&leased));
        let (_, drained) = wire.strike(case, ("acknowledge", event), async || drain(wire, &topic, &group).await).await;
        // What was caught it may not have needed, and then it went on until it was killed.
        let settled = dead(&wire.broker.bootstrap(), &topic);
        assert!(settled == REJECTED || settled.is_empty() && !case.commits(), "{settled:?}");
        assert_eq!(drained, without(&settled), "a letter, or handed out again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_burial_is_done_by_the_next_call_and_writes_one_letter() {
    each(cases(&BURYING), async |wire, case| {
        let (topic, group) = (records(wire).await, unique("group"));
        for _ in 0..5 {
            let leased = consume(&wire.consumer, &topic, &group, "&ack=manual&limit=1&timeout_ms=5000").await;
            assert_eq!(offsets(leased.messages()), [0]);
            wire.acknowledge(&release(&leased)).await.ok();
        }
        let query = format!("topic={topic}&group_id={group}&limit={BATCH}&timeout_ms=0");
        let event = Event::get(CONSUME).query(&query);
        let (answer, drained) = wire.strike(case, ("consume", event), async || drain(wire, &topic, &group).await).await;
        let answered = answer.as_ref().filter(|answer| answer.status == 200);
        let mut got = answered.map_or(Vec::new(), |answer| offsets(answer.messages()));
        assert!(!got.is_empty() || case.fault != Fault::Cut, "what it was not told it asked again: {answer:?}");
        got.extend(drained);
        got.sort_unstable();
        assert_eq!(got, without(&[0]), "each once");
        assert_eq!(dead(&wire.broker.bootstrap(), &topic), [0]);
        assert_eq!(committed(&wire.broker.bootstrap(), &group, &topic, 0), Some(RECORDS));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_function_that_froze_before_its_commit_never_show() {
    let wire = Wire::shared().await;
    let (topic, group) = (records(wire).await, unique("group"));
    let leased = consume(&wire.consumer, &topic, &group, "&ack=manual&lease_ms=1000&limit=4").await;
    let event = Event::post(ACKNOWLEDGE).json(&reject(&leased));
    let case = Case { api: Api::TxnOffsetCommit, passing: 0, at: At::Answer, fault: Fault::Frozen };
    // The lease ends, and another one hands out for good what this one rejects.
    let others = async || drain(wire, &topic, &group).await;
    let (answer, accepted) = wire.strike(case, ("acknowledge", event), others).await;
    let answer = answer.expect("an answer");
    assert!(!answer.code().is_empty(), "{answer:?}");
    assert_eq!(accepted, without(&[]));
    assert_eq!(dead(&wire.broker.bootstrap(), &topic), [0; 0]);
}
