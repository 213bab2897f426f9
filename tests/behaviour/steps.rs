//! Functions that die, freeze or lose their connection at each single step of the protocol: each record once.
//!
//! A step is a request to Kafka, or its answer, caught on the wire (`wire.rs`, `tests/support/proxy.rs`).

use std::time::{Duration, Instant};

use rdkafka::admin::AdminOptions;
use rdkafka::consumer::Consumer;
use serde_json::{Value, json};
use tests::{Api, At, Event, kafka_since};

use crate::adversity::{self, at};
use crate::consume::{commit_plainly, fill, offsets, raw_consumer, values};
use crate::leases::{acknowledge, forged, token};
use crate::wire::{ACKNOWLEDGE, BATCH, CALLS, Case, Fault, RECORDS, Wire, cases, each};
use crate::world::{Answer, PRODUCE, admin, call, consume, topic_on, unique};

/// What a lease lasts at least. Others wait for its end where its holder is gone.
const LEASE: Duration = Duration::from_secs(1);

const PATIENCE: Duration = Duration::from_secs(10);

/// What a consume call asks of Kafka, in this order; how many requests of the kind pass before.
const CONSUMING: [(Api, usize); 10] = [
    (Api::Metadata, 0),
    (Api::FindCoordinator, 0),
    (Api::OffsetFetch, 0), // the look
    (Api::ListOffsets, 0),
    (Api::Fetch, 0),
    (Api::InitProducerId, 0),
    (Api::OffsetFetch, 1), // under the claim
    (Api::AddOffsetsToTxn, 0),
    (Api::TxnOffsetCommit, 0),
    (Api::EndTxn, 0),
];

/// The same for an acknowledgement.
const ACKNOWLEDGING: [(Api, usize); 8] = [
    (Api::Metadata, 0),
    (Api::FindCoordinator, 0),
    (Api::OffsetFetch, 0), // the look
    (Api::InitProducerId, 0),
    (Api::OffsetFetch, 1), // under the claim
    (Api::AddOffsetsToTxn, 0),
    (Api::TxnOffsetCommit, 0),
    (Api::EndTxn, 0),
];

fn all() -> Vec<i64> {
    (0..RECORDS).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_call_has_not_committed_goes_to_the_next() {
    each(cases(&CONSUMING), async |wire, case| {
        let group = unique("group");
        let event = wire.consuming(&group, "");
        let (answer, drained) = wire.strike(case, ("consume", event), async || wire.drain(&group).await).await;
        let mut got = match answer {
            None if case.commits() => (0..BATCH).collect(), // skipped: at most once
            None => Vec::new(),
            Some(answer) => {
                let got = offsets(answer.messages());
                assert!(!got.is_empty() || case.fault != Fault::Cut, "what it was not told it asked again");
                got
            }
        };
        got.extend(drained);
        got.sort_unstable();
        assert_eq!(got, all(), "each once");
        assert_eq!(wire.committed(&group), Some(RECORDS));
    })
    .await;
}

/// What a call asks that goes on with what the one before has fetched ahead, under the claim that it has.
const GOING_ON: [(Api, usize); 4] =
    [(Api::OffsetFetch, 0), (Api::AddOffsetsToTxn, 0), (Api::TxnOffsetCommit, 0), (Api::EndTxn, 0)];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_call_of_a_warm_sandbox_has_not_committed_goes_to_the_next() {
    each(cases(&GOING_ON), async |wire, case| {
        let (group, victim) = (unique("group"), wire.victim("consume").await);
        let first = call(&victim.0, wire.consuming(&group, "")).await;
        let event = wire.consuming(&group, "");
        let (answer, drained) = wire.strike_again(&victim, case, event, async || wire.drain(&group).await).await;
        let mut got = offsets(first.messages());
        match answer {
            None if case.commits() => got.extend(BATCH..2 * BATCH), // skipped: at most once
            None => {}
            Some(answer) => {
                let more = offsets(answer.messages());
                assert!(!more.is_empty() || case.fault != Fault::Cut, "what it was not told it asked again");
                got.extend(more);
            }
        }
        got.extend(drained);
        got.sort_unstable();
        assert_eq!(got, all(), "each once");
        assert_eq!(wire.committed(&group), Some(RECORDS));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_group_begins_is_committed_when_a_call_has_said_that_it_has_begun() {
    const LATEST: &str = "&start=latest&timeout_ms=0";
    // It reads no record, as it begins at the end of the log.
    let beginning: Vec<_> = CONSUMING.into_iter().filter(|(api, _)| *api != Api::Fetch).collect();
    each(cases(&beginning), async |wire, case| {
        let group = unique("group");
        let event = wire.consuming(&group, "&start=latest");
        let (answer, ()) = wire.strike(case, ("consume", event), async || ()).await;
        match answer {
            Some(answer) if answer.status == 200 => assert_eq!(wire.committed(&group), Some(RECORDS), "{answer:?}"),
            Some(answer) => assert!([503, 504].contains(&answer.status), "{answer:?}"),
            None => {}
        }
        for _ in 0..CALLS {
            if consume(&wire.consumer, &wire.topic, &group, LATEST).await.status == 200 {
                break;
            }
        }
        assert_eq!(wire.committed(&group), Some(RECORDS));
    })
    .await;
}

/// The loser of a contest must not take it for done, as the winner may die.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_group_begins_is_committed_by_a_call_that_was_fenced_by_one_that_died() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let event = || ("consume", wire.consuming(&group, "&start=latest"));
    let frozen = Case { api: Api::AddOffsetsToTxn, passing: 0, at: At::Answer, fault: Fault::Frozen };
    let killed = Case { api: Api::EndTxn, passing: 0, at: At::Request, fault: Fault::Killed };
    let winner = async || wire.strike(killed, event(), async || ()).await;
    let (answer, (none, ())) = wire.strike(frozen, event(), winner).await;
    assert!(none.is_none(), "the winner died before it committed");
    assert_eq!(answer.expect("an answer").ok()["messages"], json!([]));
    assert_eq!(wire.committed(&group), Some(RECORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_call_has_leased_goes_to_the_next_when_the_lease_is_over() {
    each(cases(&CONSUMING), async |wire, case| {
        let group = unique("group");
        let lease = format!("&ack=manual&lease_ms={}", LEASE.as_millis());
        let event = wire.consuming(&group, &lease);
        let begun = Instant::now();
        let others = async || {
            let (mut accepted, mut attempt, mut after) = (Vec::new(), None, Duration::ZERO);
            for _ in 0..CALLS {
                if accepted.last() == Some(&(RECORDS - 1)) {
                    break;
                }
                let answer = consume(&wire.consumer, &wire.topic, &group, "&ack=manual&timeout_ms=3000").await;
                let Some(first) = answer.messages().first() else { continue };
                if attempt.is_none() {
                    (attempt, after) = (first["delivery_attempt"].as_i64(), begun.elapsed());
                }
                wire.acknowledge(&accept(&answer)).await.ok();
                accepted.extend(offsets(answer.messages()));
            }
            (accepted, attempt, after)
        };
        let (answer, (accepted, attempt, after)) = wire.strike(case, ("consume", event), others).await;
        assert_eq!(accepted, all(), "each accepted once, in order");
        let answered = answer.as_ref().is_some_and(|answer| !answer.messages().is_empty());
        assert!(answered || case.fault != Fault::Cut, "what it was not told it asked again");
        let leased = case.commits() || answered;
        assert_eq!(attempt, Some(if leased { 2 } else { 1 }));
        assert!(!leased || after >= LEASE, "in two live hands");
        if let Some(answer) = answer {
            assert_eq!(offsets(answer.messages()), if leased { (0..BATCH).collect() } else { Vec::new() });
            if leased {
                let late = wire.acknowledge(&accept(&answer)).await;
                assert_eq!((late.status, late.code()), (409, "lease_lost"));
            }
        }
        assert_eq!(wire.committed(&group), Some(RECORDS));
    })
    .await;
}

fn accept(answer: &Answer) -> Value {
    json!({ "token": answer.body["lease"]["token"], "type": "accept" })
}

/// Leases the first records and lets the fault happen to an acknowledgement of them, which another function then repeats.
/// Others get what is left of the group; from where on, is returned.
async fn acknowledge_and_repeat(wire: &Wire, case: Case, mut body: Value) -> i64 {
    let group = unique("group");
    let query = format!("&ack=manual&lease_ms=30000&limit={BATCH}");
    let leased = consume(&wire.consumer, &wire.topic, &group, &query).await;
    assert_eq!(offsets(leased.messages()), (0..BATCH).collect::<Vec<_>>());
    body["token"] = leased.body["lease"]["token"].clone();
    let event = Event::post(ACKNOWLEDGE).json(&body);
    let others = async || {
        let again = wire.acknowledge(&body).await.ok();
        let committed = again["results"][0]["committed"].as_i64();
        if body["type"] != "release" && committed < Some(BATCH) {
            wire.acknowledge(&accept(&leased)).await.ok();
        }
        (again, wire.drain(&group).await)
    };
    let (answer, (again, drained)) = wire.strike(case, ("acknowledge", event), others).await;
    if let Some(answer) = answer {
        if case.fault == Fault::Cut {
            assert_eq!(answer.ok()["results"][0]["status"], again["results"][0]["status"]);
        } else if answer.status != 200 {
            // Renewed, accepted and forgotten meanwhile.
            assert_eq!((answer.status, answer.code()), (409, "lease_lost"));
        }
    }
    assert_eq!(wire.committed(&group), Some(RECORDS), "nothing moves when it thaws");
    drained[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_acknowledgement_can_be_repeated_and_counts_once() {
    each(cases(&ACKNOWLEDGING), async |wire, case| {
        for (body, from) in [
            (json!({ "type": "accept" }), BATCH),
            (json!({ "type": "accept", "through": { "0": 1 } }), BATCH),
            (json!({ "type": "release" }), 0),
            (json!({ "type": "renew" }), BATCH),
        ] {
            // What only breaks or freezes does so in the same steps, whatever they commit.
            if case.fault != Fault::Killed && body != json!({ "type": "accept" }) {
                continue;
            }
            assert_eq!(acknowledge_and_repeat(wire, case, body).await, from);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_nobody_repeats_is_done_or_its_records_come_again() {
    let killed = cases(&ACKNOWLEDGING).into_iter().filter(|case| case.fault == Fault::Killed).collect();
    each(killed, async |wire, case| {
        let group = unique("group");
        let query = format!("&ack=manual&lease_ms={}&limit={BATCH}", LEASE.as_millis());
        let leased = consume(&wire.consumer, &wire.topic, &group, &query).await;
        let event = Event::post(ACKNOWLEDGE).json(&accept(&leased));
        let (_, drained) = wire.strike(case, ("acknowledge", event), async || wire.drain(&group).await).await;
        let from = if case.commits() { BATCH } else { 0 };
        assert_eq!(drained, (from..RECORDS).collect::<Vec<_>>(), "none lost, none accepted and handed out again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_written_once_whatever_happens_to_its_request() {
    each(cases(&[(Api::Produce, 0)]), async |wire, case| {
        let server = wire.broker.bootstrap();
        let topic = topic_on(&server, 1, &[]).await;
        let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "v" }));
        let (answer, ()) = wire.strike(case, ("produce", event), async || ()).await;
        let written = if let Some(answer) = answer {
            assert_eq!(answer.ok()["offset"], 0, "what the broker had not said it was asked again");
            true
        } else {
            case.at == At::Answer
        };
        let (_, end) = raw_consumer(&server, "-", &[]).fetch_watermarks(&topic, 0, PATIENCE).expect("watermarks");
        assert_eq!(end, i64::from(written));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_commit_is_never_answered_takes_nothing_from_the_others() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let server = wire.broker.bootstrap();
    let topic = topic_on(&server, 2, &[]).await;
    fill(&server, &topic, 2, 10);
    let (victim, id) = wire.victim("consume").await;
    let claim = format!("kafka-gateway:1:{topic}:1:{group}");
    let caught = wire.proxy.catch(&id, (Api::EndTxn, At::Request), &claim, 0);
    let begun = Instant::now();
    let answer = consume(&victim, &topic, &group, "").await;
    println!("answered after {:?}", begun.elapsed());
    let mut got = values(answer.messages());
    assert_eq!(got, [0, 2, 4, 6, 8], "those of the other partition");
    drop(caught.await.expect("it was sent"));
    got.extend(values(consume(&wire.consumer, &topic, &group, "&timeout_ms=5000").await.messages()));
    got.sort_unstable();
    assert_eq!(got, (0..10).collect::<Vec<_>>(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_under_way_is_not_disturbed_by_who_finds_records_elsewhere() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let server = wire.broker.bootstrap();
    let topic = topic_on(&server, 2, &[]).await;
    fill(&server, &topic, 2, 8);
    let ((committer, id), (looker, other_id)) = tokio::join!(wire.victim("consume"), wire.victim("consume"));
    let first = consume(&committer, &topic, &group, "&limit=2").await;
    let partition = first.messages()[0]["partition"].as_i64().expect("a partition");
    let caught = wire.proxy.catch(&id, (Api::EndTxn, At::Request), "", 0);
    // Two more of the same partition: a sandbox goes on where it has fetched ahead.
    let going_on = consume(&committer, &topic, &group, "&limit=2");
    let beside = async {
        let held = caught.await.expect("it is sent");
        let claim = format!("kafka-gateway:1:{topic}:{partition}:{group}");
        let mut claims = wire.proxy.catch(&other_id, (Api::InitProducerId, At::Request), &claim, 0);
        let answer = consume(&looker, &topic, &group, "&limit=4").await;
        assert!(claims.try_recv().is_err(), "the position is claimed, which aborts what was under way");
        held.pass();
        answer
    };
    let (more, rest) = tokio::join!(going_on, beside);
    assert!(rest.messages().iter().all(|message| message["partition"] != partition), "{}", rest.body);
    let mut got = [values(first.messages()), values(more.messages()), values(rest.messages())].concat();
    got.sort_unstable();
    assert_eq!(got, (0..8).collect::<Vec<_>>(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_over_or_made_up_takes_the_claim_from_nobody() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let leased = consume(&wire.consumer, &wire.topic, &group, "&ack=manual&lease_ms=600000&limit=4").await;
    wire.acknowledge(&accept(&leased)).await.ok();
    let other = consume(&wire.consumer, &wire.topic, &unique("group"), "&ack=manual&limit=1").await;
    let made_up = forged(token(&other), &json!({ "g": group, "p": [0, 7] }));
    let (victim, id) = wire.victim("acknowledge").await;
    let mut claims = wire.proxy.catch(&id, (Api::InitProducerId, At::Request), "", 0);
    let (leased, made_up) = (token(&leased), made_up.as_str());
    for (token, kind, status) in [
        (leased, "accept", 200),
        (leased, "release", 200),
        (leased, "renew", 409),
        (leased, "reject", 409),
        (made_up, "accept", 409),
        (made_up, "release", 409),
        (made_up, "renew", 409),
    ] {
        let answer = acknowledge(&victim, &json!({ "token": token, "type": kind })).await;
        assert_eq!(answer.status, status, "{kind} of {token}: {answer:?}");
        assert!(claims.try_recv().is_err(), "{kind} of {token}: the position is claimed");
    }
    let next = consume(&wire.consumer, &wire.topic, &group, "&ack=manual&limit=4").await;
    let (caught, answer) = tokio::join!(async { claims.await.expect("it is sent").pass() }, async {
        acknowledge(&victim, &accept(&next)).await.ok()
    });
    assert_eq!((caught, &answer["results"][0]["status"]), ((), &json!("accepted")), "a lease that is none of those");
}

/// No sandbox of Lambda's is frozen in the middle of a call, but machines are. What was asked then is over when it thaws.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_stood_still_for_seconds_asks_again() {
    let wire = Wire::shared().await;
    let case = Case { api: Api::OffsetFetch, passing: 1, at: At::Answer, fault: Fault::Frozen };
    // A look that was slow has asked twice itself, and then it is that which stands still.
    for _ in 0..3 {
        let event = ("consume", wire.consuming(&unique("group"), ""));
        let (answer, ()) = wire.strike(case, event, async || tokio::time::sleep(Duration::from_secs(5)).await).await;
        let answer = answer.expect("an answer");
        if answer.status == 200 {
            assert_eq!(offsets(answer.messages()), (0..BATCH).collect::<Vec<_>>());
            return;
        }
        println!("{answer:?}");
    }
    panic!("it does not");
}

/// What tools, or time, do to a group's offsets.
#[derive(Debug, Clone, Copy)]
enum Moved {
    Reset(i64),
    Deleted,
}

impl Moved {
    async fn apply(self, wire: &Wire, group: &str) {
        let server = wire.broker.bootstrap();
        match self {
            Moved::Reset(to) => {
                commit_plainly(&raw_consumer(&server, group, &[]), &at(&wire.topic, 0, to));
            }
            Moved::Deleted => {
                let deleted = admin(&server).delete_groups(&[group], &AdminOptions::new()).await.expect("an answer");
                assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_reset_or_lost_in_the_middle_of_a_call_count() {
    let wire = Wire::shared().await;
    for moved in [Moved::Reset(9), Moved::Reset(1), Moved::Deleted] {
        let from = if let Moved::Reset(to) = moved { to } else { 0 };
        let expected: Vec<i64> = (from..RECORDS.min(from + BATCH)).collect();
        for more in ["", "&ack=manual"] {
            // The call has seen the position, and reads it once more before it commits.
            for (api, passing) in [(Api::Fetch, 0), (Api::InitProducerId, 0), (Api::OffsetFetch, 1)] {
                let group = unique("group");
                consume(&wire.consumer, &wire.topic, &group, &format!("&limit={BATCH}")).await.messages();
                let event = ("consume", wire.consuming(&group, more));
                let moves = async || moved.apply(wire, &group).await;
                let answer = wire.meanwhile((api, passing, At::Request), event, moves).await;
                assert_eq!(offsets(answer.messages()), expected, "{moved:?} at {api:?} {passing}");
                let committed = if more.is_empty() { expected.last().map(|last| last + 1) } else { Some(from) };
                assert_eq!(wire.committed(&group), committed, "{moved:?} at {api:?} {passing}");
            }
        }
        // At the look, before the claim, and under it.
        for (api, passing) in [(Api::OffsetFetch, 0), (Api::InitProducerId, 0), (Api::OffsetFetch, 1)] {
            let group = unique("group");
            let leased = consume(&wire.consumer, &wire.topic, &group, "&ack=manual&limit=4").await;
            let event = ("acknowledge", Event::post(ACKNOWLEDGE).json(&accept(&leased)));
            let moves = async || moved.apply(wire, &group).await;
            let answer = wire.meanwhile((api, passing, At::Request), event, moves).await;
            assert_eq!((answer.status, answer.code()), (409, "lease_lost"), "{moved:?} at {api:?} {passing}");
            assert_eq!(wire.committed(&group), matches!(moved, Moved::Reset(_)).then_some(from), "{moved:?}");
        }
    }
}

/// A tool that commits before the call's own offset is added is overwritten. After it, the tool's is the newer one and
/// stays, though the call's transaction ends later: as if the tool had come after the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_beside_a_commit_is_overwritten_or_stays() {
    let wire = Wire::shared().await;
    let interrupted = async |event: (&str, Event), (api, at): (Api, At), group: &str, to| {
        let (tool, reset) = (raw_consumer(&wire.broker.bootstrap(), group, &[]), adversity::at(&wire.topic, 0, to));
        // What is held has seconds at most: the tool knows the group's coordinator by then.
        tool.committed_offsets(reset.clone(), PATIENCE).expect("positions");
        wire.meanwhile((api, 0, at), event, async || commit_plainly(&tool, &reset)).await
    };
    for (api, at, stays) in [
        (Api::AddOffsetsToTxn, At::Request, false),
        (Api::TxnOffsetCommit, At::Request, false),
        (Api::TxnOffsetCommit, At::Answer, true),
        (Api::EndTxn, At::Request, true),
    ] {
        // Who reads the commit back finds it gone, and cannot tell whether it was ever there.
        let status = if stays && !kafka_since(4, 0) { 504 } else { 200 };
        for to in [1, 9] {
            for (more, committed) in [("", 2 * BATCH), ("&ack=manual", BATCH)] {
                let (case, group) = (format!("{api:?} {at:?} to {to} {more}"), unique("group"));
                consume(&wire.consumer, &wire.topic, &group, &format!("&limit={BATCH}")).await.messages();
                let event = ("consume", wire.consuming(&group, more));
                let answer = interrupted(event, (api, at), &group, to).await;
                assert_eq!(answer.status, status, "{case}: {answer:?}");
                if status == 200 {
                    assert_eq!(offsets(answer.messages()), (BATCH..2 * BATCH).collect::<Vec<_>>(), "{case}");
                }
                assert_eq!(wire.committed(&group), Some(if stays { to } else { committed }), "{case}");
                if stays {
                    let next = consume(&wire.consumer, &wire.topic, &group, "&limit=1&timeout_ms=5000").await;
                    assert_eq!(offsets(next.messages()), [to], "{case}: no lease holds it up");
                }
            }
            let (case, group) = (format!("{api:?} {at:?} to {to}, accept"), unique("group"));
            let query = format!("&ack=manual&limit={BATCH}");
            let leased = consume(&wire.consumer, &wire.topic, &group, &query).await;
            let event = ("acknowledge", Event::post(ACKNOWLEDGE).json(&accept(&leased)));
            let answer = interrupted(event, (api, at), &group, to).await;
            assert_eq!(answer.status, status, "{case}: {answer:?}");
            assert_eq!(wire.committed(&group), Some(if stays { to } else { BATCH }), "{case}");
        }
    }
}
