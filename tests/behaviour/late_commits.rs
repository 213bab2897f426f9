//! A commit that arrives late, from a function that was frozen with it and fenced meanwhile, just when its successor's own
//! commit is about to end. Kafka refuses the late one; up to 3.9 it also forgets what the successor has pending.

use std::time::Duration;

use serde_json::json;
use tests::{Api, At, Event, Stack};

use crate::consume::{committed, fill, offsets};
use crate::dead_letters::dead;
use crate::wire::{ACKNOWLEDGE, RECORDS, Wire};
use crate::world::{Answer, CONSUME, call, consume, topic_on, unique};

/// Calls both functions, so that the first is late, and the second in the middle of its commit.
async fn beside_a_late_commit(wire: &Wire, late: (&str, Event), (name, event): (&str, Event)) -> Answer {
    let bearer = Stack::shared().await.token("gateway-full").await;
    let ((frozen, frozen_id), (function, id)) = tokio::join!(wire.victim(late.0), wire.victim(name));
    let committing = wire.proxy.catch(&frozen_id, (Api::TxnOffsetCommit, At::Request), "", 0);
    let late = frozen.try_invoke(late.1.bearer(&bearer).build(), Duration::from_secs(29));
    let meanwhile = async {
        let held = committing.await.expect("it is sent");
        frozen.freeze();
        let ending = wire.proxy.catch(&id, (Api::EndTxn, At::Request), "", 0);
        let between = async {
            let ending = ending.await.expect("it is sent");
            held.pass();
            // Nobody hears when the broker has refused it.
            tokio::time::sleep(Duration::from_millis(200)).await;
            ending.pass();
        };
        let (answer, ()) = tokio::join!(call(&function, event), between);
        frozen.thaw();
        answer
    };
    let (late, answer) = tokio::join!(late, meanwhile);
    let late = Answer::read(&late.expect("an answer"));
    assert!(late.status == 409 || late.ok()["messages"] == json!([]), "it comes away with nothing");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_out_stays_so() {
    let (wire, group) = (Wire::shared().await, unique("group"));
    consume(&wire.consumer, &wire.topic, &group, "&limit=1").await.messages();
    let consuming = |limit: i64| {
        let query = format!("topic={}&group_id={group}&limit={limit}&timeout_ms=0", wire.topic);
        ("consume", Event::get(CONSUME).query(&query))
    };
    let answer = beside_a_late_commit(wire, consuming(3), consuming(RECORDS)).await;
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
    let answer = beside_a_late_commit(wire, settling("renew"), settling("reject")).await.ok();
    assert_eq!(answer["results"][0]["committed"], 1, "{answer}");
    assert_eq!(committed(&server, &group, &topic, 0), Some(1));
    assert_eq!(dead(&server, &topic), [0]);
}
