//! A commit that arrives late, from a function that was frozen with it and fenced meanwhile, just when its successor's own
//! commit is about to end. Kafka refuses the late one; up to 3.9 it also forgets what the successor has pending.

use std::pin::pin;
use std::time::Duration;

use serde_json::json;
use tests::{Api, At, Event, Stack, kafka_since};

use crate::consume::{committed, fill, offsets};
use crate::dead_letters::dead;
use crate::wire::{ACKNOWLEDGE, BATCH, Fault, RECORDS, Wire, cases, each};
use crate::world::{Answer, CONSUME, applies, call, consume, topic_on, unique};

/// Whether the stack's Kafka is one that loses commits.
fn loses_commits() -> bool {
    !kafka_since(4, 0)
}

/// Calls both functions, so that the first is late, and the second in the middle of its commit. Where that is lost, others
/// go on before it is made good.
async fn beside_a_late_commit(
    wire: &Wire,
    late: (&str, Event),
    (name, event): (&str, Event),
    others: impl AsyncFnOnce(),
) -> Answer {
    let bearer = Stack::shared().await.token("gateway-full").await;
    let ((frozen, frozen_id), (function, id)) = tokio::join!(wire.victim(late.0), wire.victim(name));
    let committing = wire.proxy.catch(&frozen_id, (Api::TxnOffsetCommit, At::Request), "", 0);
    let late = frozen.try_invoke(late.1.bearer(&bearer).build(), Duration::from_secs(29));
    let meanwhile = async {
        let held = committing.await.expect("it is sent");
        frozen.freeze();
        let ending = wire.proxy.catch(&id, (Api::EndTxn, At::Request), "", 0);
        let again = wire.proxy.catch(&id, (Api::AddOffsetsToTxn, At::Request), "", 1);
        let between = async {
            let ending = ending.await.expect("it is sent");
            held.pass();
            // Nobody hears when the broker has refused it.
            tokio::time::sleep(Duration::from_millis(200)).await;
            ending.pass();
        };
        let mut calling = pin!(async { tokio::join!(call(&function, event), between).0 });
        let (answer, lost) = tokio::select! {
            answer = &mut calling => (answer, false),
            again = again => {
                others().await;
                again.expect("it is sent").pass();
                (calling.await, true)
            }
        };
        assert_eq!(lost, loses_commits(), "whether the commit was lost");
        frozen.thaw();
        answer
    };
    let (late, answer) = tokio::join!(late, meanwhile);
    let late = Answer::read(&late.expect("an answer"));
    assert!(late.status == 409 || late.ok()["messages"] == json!([]), "it comes away with nothing");
    answer
}

fn consuming(wire: &Wire, group: &str, limit: i64) -> (&'static str, Event) {
    let query = format!("topic={}&group_id={group}&limit={limit}&timeout_ms=0", wire.topic);
    ("consume", Event::get(CONSUME).query(&query))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_out_stays_so() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    consume(&wire.consumer, &wire.topic, &group, "&limit=1").await.messages();
    let calls = (consuming(wire, &group, 3), consuming(wire, &group, RECORDS));
    let answer = beside_a_late_commit(wire, calls.0, calls.1, async || ()).await;
    assert_eq!(offsets(answer.messages()), (1..RECORDS).collect::<Vec<_>>());
    assert_eq!(wire.committed(&group), Some(RECORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rejected_stays_so_and_has_one_letter() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let server = wire.broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    fill(&server, &topic, 1, 2);
    let leased = consume(&wire.consumer, &topic, &group, "&ack=manual&lease_ms=30000&limit=1").await;
    let settling = |how: &str| {
        let body = json!({ "token": leased.body["lease"]["token"], "type": how });
        ("acknowledge", Event::post(ACKNOWLEDGE).json(&body))
    };
    let answer = beside_a_late_commit(wire, settling("renew"), settling("reject"), async || ()).await.ok();
    assert_eq!(answer["results"][0]["committed"], 1, "{answer}");
    assert_eq!(committed(&server, &group, &topic, 0), Some(1));
    assert_eq!(dead(&server, &topic), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_loses_its_claim_with_its_commit_hands_out_nothing() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let calls = (consuming(wire, &group, 3), consuming(wire, &group, RECORDS));
    let mut drained = Vec::new();
    let others = async || drained = wire.drain(&group).await;
    let answer = beside_a_late_commit(wire, calls.0, calls.1, others).await;
    let got = offsets(answer.messages());
    let (all, none) = ((0..RECORDS).collect::<Vec<_>>(), Vec::new());
    assert_eq!((got, drained), if loses_commits() { (none, all) } else { (all, none) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_read_back_is_done() {
    if !applies(loses_commits(), "no commit is read back") {
        return;
    }
    // In a warm sandbox the second read: after the one under the claim.
    each(cases(&[(Api::OffsetFetch, 1)]), async |wire, case| {
        let (group, victim) = (unique("group"), wire.victim("consume").await);
        assert_eq!(
            offsets(call(&victim.0, wire.consuming(&group, "")).await.messages()),
            (0..BATCH).collect::<Vec<_>>()
        );
        let event = wire.consuming(&group, "");
        let (answer, drained) = wire.strike_again(&victim, case, event, async || wire.drain(&group).await).await;
        let got = answer.map_or_else(Vec::new, |answer| offsets(answer.messages()));
        let expected = if case.fault == Fault::Killed { 0..0 } else { BATCH..2 * BATCH };
        assert_eq!(got, expected.collect::<Vec<_>>(), "skipped: at most once");
        assert_eq!(drained, (2 * BATCH..RECORDS).collect::<Vec<_>>());
    })
    .await;
}
