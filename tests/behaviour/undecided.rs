//! Commits of which a function cannot learn how they ended: it hands nothing out and says so, and whatever Kafka then makes
//! of them, each record is handed out, accepted or sent back once.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Api, At, Event, Function, Held, Stack};

use crate::consume::{committed, fill, offsets};
use crate::dead_letters::dead;
use crate::redrive::{GROUP, REDRIVE, dead_letter_topic, numbers, redrive};
use crate::seek::SEEK;
use crate::wire::{ACKNOWLEDGE, BATCH, RECORDS, Wire};
use crate::world::{Answer, call, consume, function_with, topic_on, unique};

/// What Lambda gives the call: enough for the two seconds that it waits for its commit, and to ask how that ended.
const TIMEOUT: Duration = Duration::from_secs(6);

/// Where the commit is caught: before Kafka gets it, or when it has been done.
const WAYS: [At; 2] = [At::Request, At::Answer];

/// A function whose requests can be told from all others'. It does not ask a second time, past what is held.
async fn victim(wire: &Wire, name: &str) -> (Function, String) {
    let id = unique("victim");
    let properties = format!("client.id={id};socket.timeout.ms=9000");
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", wire.proxy.bootstrap()), ("KAFKA_PROPERTIES", properties)];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    (function_with(name, &settings).await, id)
}

/// Calls a function whose commit at this place (its transactional id) is not answered, and neither is the claim that would
/// show how it ended. Its answer, and what is held.
async fn undecided(
    wire: &Wire,
    (victim, id): &(Function, String),
    at: At,
    place: &str,
    event: Event,
) -> (Answer, [Held; 2]) {
    let committing = wire.proxy.catch(id, (Api::EndTxn, at), place, 0);
    let bearer = Stack::shared().await.token("gateway-full").await;
    let call = victim.try_invoke(event.bearer(&bearer).build(), TIMEOUT);
    tokio::pin!(call);
    let commit = tokio::select! {
        biased;
        held = committing => held.expect("the proxy lives"),
        answer = &mut call => panic!("it does not commit: {answer:?}"),
    };
    // The claim that it commits under has passed.
    let mut claiming = wire.proxy.catch(id, (Api::InitProducerId, At::Request), place, 0);
    let answer = Answer::read(&call.await.expect("an answer before Lambda ends the call"));
    let claim = claiming.try_recv().expect("it tried to find out");
    assert_eq!((answer.status, answer.code()), (504, "deadline_exceeded"));
    assert_eq!(answer.body["retryable"], true);
    for member in ["messages", "lease"] {
        assert!(answer.body.get(member).is_none(), "{answer:?}");
    }
    (answer, [commit, claim])
}

/// What was held arrives, after all.
async fn arrives(held: [Held; 2]) {
    held.into_iter().for_each(Held::pass);
    // Nobody hears what Kafka makes of it.
    tokio::time::sleep(Duration::from_millis(500)).await;
}

fn place(topic: &str, group: &str) -> String {
    format!("kafka-gateway:1:{topic}:0:{group}")
}

fn accept(answer: &Answer) -> Value {
    json!({ "token": answer.body["lease"]["token"], "type": "accept" })
}

/// A call of a new sandbox, or of one that goes on under the claim that it has.
async fn consumes_without_leases(at: At, warm: bool) {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let consumer = victim(wire, "consume").await;
    let mut got = Vec::new();
    if warm {
        got = offsets(call(&consumer.0, wire.consuming(&group, "")).await.messages());
    }
    let first = if warm { BATCH } else { 0 };
    let (answer, held) = undecided(wire, &consumer, at, &place(&wire.topic, &group), wire.consuming(&group, "")).await;
    let expected = json!([{ "topic": wire.topic, "partition": 0, "status": "undecided" }]);
    assert_eq!(answer.body["results"], expected, "{answer:?}");
    if at == At::Answer {
        assert_eq!(wire.committed(&group), Some(first + BATCH), "it is done, and nobody was told");
    }
    got.extend(wire.drain(&group).await);
    // At most once: what was committed for nobody is skipped.
    let skipped = first..if at == At::Answer { first + BATCH } else { first };
    assert_eq!(got, (0..RECORDS).filter(|offset| !skipped.contains(offset)).collect::<Vec<_>>(), "each once");
    arrives(held).await;
    assert_eq!(wire.committed(&group), Some(RECORDS), "what comes too late moves nothing");
    assert!(consume(&consumer.0, &wire.topic, &group, "").await.messages().is_empty(), "nor does it go on there");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_whose_commit_is_undecided_are_not_handed_out_and_nobody_gets_them_twice() {
    let [late, lost] = WAYS;
    tokio::join!(
        consumes_without_leases(late, false),
        consumes_without_leases(lost, false),
        consumes_without_leases(late, true),
        consumes_without_leases(lost, true),
    );
}

async fn consumes_with_a_lease(at: At) {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let consumer = victim(wire, "consume").await;
    let event = wire.consuming(&group, "&ack=manual&lease_ms=1000");
    let (answer, held) = undecided(wire, &consumer, at, &place(&wire.topic, &group), event).await;
    let expected = json!([{ "topic": wire.topic, "partition": 0, "status": "undecided" }]);
    assert_eq!(answer.body["results"], expected, "{answer:?}");
    // A lease whose token nobody has is over in its time; then others get the records, each once.
    let again = consume(&wire.consumer, &wire.topic, &group, "&ack=manual&lease_ms=60000&timeout_ms=5000").await;
    assert_eq!(offsets(again.messages()), (0..RECORDS).collect::<Vec<_>>());
    let attempt = if at == At::Answer { 2 } else { 1 };
    assert_eq!(again.messages()[0]["delivery_attempt"], attempt);
    arrives(held).await;
    for more in ["&timeout_ms=0", "&ack=manual&timeout_ms=0"] {
        let answer = consume(&wire.consumer, &wire.topic, &group, more).await;
        assert!(answer.messages().is_empty(), "the lease is not the late one's");
    }
    wire.acknowledge(&accept(&again)).await.ok();
    assert_eq!(wire.committed(&group), Some(RECORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_whose_lease_is_undecided_are_not_handed_out_and_come_again() {
    let [late, lost] = WAYS;
    tokio::join!(consumes_with_a_lease(late), consumes_with_a_lease(lost));
}

async fn acknowledges(at: At, kind: &str) {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let server = wire.broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    fill(&server, &topic, 1, 8);
    let acker = victim(wire, "acknowledge").await;
    let leased = consume(&wire.consumer, &topic, &group, "&ack=manual&lease_ms=60000&limit=4").await;
    assert_eq!(offsets(leased.messages()), [0, 1, 2, 3]);
    let body = json!({ "token": leased.body["lease"]["token"], "type": kind });
    let event = Event::post(ACKNOWLEDGE).json(&body);
    let (answer, held) = undecided(wire, &acker, at, &place(&topic, &group), event).await;
    let expected = json!([{ "topic": topic, "partition": 0, "status": "undecided", "committed": null }]);
    assert_eq!(answer.body["results"], expected, "{answer:?}");
    if at == At::Answer {
        assert_eq!(committed(&server, &group, &topic, 0), Some(4), "it is done, and nobody was told");
    }
    // The same once more, of another function: it is done, and was done once.
    let again = wire.acknowledge(&body).await.ok();
    assert_eq!(again["results"][0]["committed"], 4, "{again}");
    arrives(held).await;
    assert_eq!(committed(&server, &group, &topic, 0), Some(4));
    let rest = consume(&wire.consumer, &topic, &group, "").await;
    assert_eq!(offsets(rest.messages()), [4, 5, 6, 7], "nothing again, nothing lost");
    if kind == "reject" {
        assert_eq!(dead(&server, &topic), [0, 1, 2, 3], "one letter each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_is_undecided_can_be_repeated_and_counts_once() {
    let [late, lost] = WAYS;
    tokio::join!(
        acknowledges(late, "accept"),
        acknowledges(lost, "accept"),
        acknowledges(late, "reject"),
        acknowledges(lost, "reject"),
    );
}

async fn seeks(at: At) {
    let (wire, group) = (Wire::shared().await, unique("group"));
    let seeker = victim(wire, "seek").await;
    consume(&wire.consumer, &wire.topic, &group, "&limit=4").await.messages();
    let body = json!({ "group_id": group, "topic": wire.topic, "partitions": { "0": 9 } });
    let event = Event::post(SEEK).json(&body);
    let (answer, held) = undecided(wire, &seeker, at, &place(&wire.topic, &group), event).await;
    assert_eq!(answer.body["results"], json!([{ "partition": 0, "status": "undecided", "committed": null }]));
    let from = if at == At::Answer { 9 } else { 4 };
    let rest = consume(&wire.consumer, &wire.topic, &group, "&limit=2").await;
    assert_eq!(offsets(rest.messages()), [from, from + 1]);
    arrives(held).await;
    assert_eq!(wire.committed(&group), Some(from + 2), "what comes too late moves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_that_is_undecided_is_done_or_not_and_never_later() {
    let [late, lost] = WAYS;
    tokio::join!(seeks(late), seeks(lost));
}

async fn sends_back(at: At) {
    let wire = Wire::shared().await;
    let server = wire.broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    let letters = dead_letter_topic(&server, &topic, 1).await;
    fill(&server, &letters, 1, 3);
    let direct = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str())];
    let (redriver, other) = tokio::join!(victim(wire, "redrive"), function_with("redrive", &direct));
    let event = Event::post(REDRIVE).json(&json!({ "dlq_topic": letters }));
    let (answer, held) = undecided(wire, &redriver, at, &place(&letters, GROUP), event).await;
    let expected = json!([{ "partition": 0, "status": "undecided", "redriven": 0, "skipped": 0, "committed": null }]);
    assert_eq!(answer.body["results"], expected, "{answer:?}");
    assert_eq!(answer.body["redriven"], 0);
    let left = if at == At::Answer { 0 } else { 3 };
    assert_eq!(redrive(&other, &topic, &json!({})).await.ok()["redriven"], left, "what is not done yet");
    assert_eq!(numbers(&server, &topic), [0, 1, 2], "each once");
    arrives(held).await;
    assert_eq!(numbers(&server, &topic), [0, 1, 2], "each once");
    assert_eq!(committed(&server, GROUP, &letters, 0), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_whose_way_back_is_undecided_go_back_once() {
    let [late, lost] = WAYS;
    tokio::join!(sends_back(late), sends_back(lost));
}
