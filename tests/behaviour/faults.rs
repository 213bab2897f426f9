//! Brokers that are away, paused, restarted: the right status within the deadline, and nothing lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{committed, fill, offsets};
use crate::fetch::FETCH;
use crate::seek::SEEK;
use crate::wire::{ACKNOWLEDGE, Wire};
use crate::world::{Answer, CONSUME, PRODUCE, call, consume, function_with, produce, topic_on, unique, until};

/// A function, what it is called with, and which group is where when that is done.
type Settler = (Function, Event, (String, i64));

/// An acknowledgement of four leased records, and a seek to the seventh.
async fn settlers(server: &str, topic: &str, consumer: &Function, settings: &[(&str, &str)]) -> [Settler; 2] {
    let (leases, sought) = (unique("leases"), unique("sought"));
    let held = consume(consumer, topic, &leases, "&ack=manual&lease_ms=600000&limit=4").await.ok();
    let accept = Event::post(ACKNOWLEDGE).json(&json!({ "token": held["lease"]["token"], "type": "accept" }));
    let seek = Event::post(SEEK).json(&json!({ "group_id": sought, "topic": topic, "partitions": { "0": 7 } }));
    let (acker, seeker) = tokio::join!(function_with("acknowledge", settings), function_with("seek", settings));
    assert_eq!(committed(server, &leases, topic, 0), Some(0));
    [(acker, accept, (leases, 4)), (seeker, seek, (sought, 7))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_is_found_again() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "3000")];
    let (producer, consumer) = (function_with("produce", &settings).await, function_with("consume", &settings).await);
    produce(&producer, &json!({ "topic": topic, "value": "20" })).await.ok();
    assert_eq!(consume(&consumer, &topic, &group, "&limit=5").await.messages().len(), 5);
    let settlers = settlers(&server, &topic, &consumer, &settings).await;

    broker.kill().await;
    for (settler, event, _) in &settlers {
        let answer = call(settler, event.clone()).await;
        assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"), "nothing is done: {answer:?}");
    }
    let answer = produce(&producer, &json!({ "topic": topic, "value": "21" })).await;
    // The topic was seen, so the record was on its way: whether it got there is not known.
    assert_eq!((answer.status, answer.code()), (504, "deadline_exceeded"));
    assert_eq!(answer.body["outcome"], "unknown");
    let answer = consume(&consumer, &topic, &group, "&limit=5").await;
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    assert_eq!(answer.body["retryable"], true);
    // A function that starts while no broker is there.
    let (late_producer, late_consumer) =
        (function_with("produce", &settings).await, function_with("consume", &settings).await);
    let answer = produce(&late_producer, &json!({ "topic": topic, "value": "x" })).await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
    let answer = consume(&late_consumer, &topic, &group, "").await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"));
    assert_eq!(answer.headers["retry-after"], "1");

    broker.start().await.expect("the broker starts again");
    for (settler, event, (group, position)) in &settlers {
        until(&[200], async || call(settler, event.clone()).await).await;
        assert_eq!(committed(&server, group, &topic, 0), Some(*position));
    }
    // A killed broker's own recovery may take a call or two; then all of them work, the late ones as well.
    for function in [&producer, &late_producer] {
        until(&[200], async || produce(function, &json!({ "topic": topic, "value": "after" })).await).await;
    }
    let mut got: Vec<i64> = Vec::new();
    for function in [&consumer, &late_consumer] {
        let answer = until(&[200], async || consume(function, &topic, &group, "&limit=4").await).await;
        got.extend(offsets(answer.messages()));
    }
    assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "none twice: {got:?}");
    assert_eq!(committed(&server, &group, &topic, 0), got.last().map(|last| last + 1));
}

/// When Lambda ends a call there that was given 2 s for its work: long before a client's own time-outs are over, one after the
/// other.
const LAMBDA_WAITS: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_is_an_error_within_the_deadline() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_REQUEST_TIMEOUT_MS", "2000")];
    let (producer, consumer) = (function_with("produce", &settings).await, function_with("consume", &settings).await);
    produce(&producer, &json!({ "topic": topic, "value": "20" })).await.ok();
    let mut handed_out = consume(&consumer, &topic, &group, "&limit=5").await.messages().len();
    let settlers = settlers(&server, &topic, &consumer, &settings).await;
    broker.pause().await;
    let token = Stack::shared().await.token("gateway-full").await;
    let in_time = async |function: &Function, event: Event| {
        let answer = function.try_invoke(event.bearer(&token).build(), LAMBDA_WAITS).await;
        Answer::read(&answer.expect("an answer before Lambda ends the call"))
    };
    for (settler, event, _) in &settlers {
        let answer = in_time(settler, event.clone()).await;
        assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"), "nothing is done: {answer:?}");
    }
    let record = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "21" }));
    let next = Event::get(CONSUME).query(&format!("topic={topic}&group_id={group}&limit=5&timeout_ms=0"));
    let (written, read) = tokio::join!(in_time(&producer, record), in_time(&consumer, next));
    assert_eq!((written.status, written.code()), (504, "deadline_exceeded"));
    assert_eq!(written.body["outcome"], "unknown");
    assert!([503, 504].contains(&read.status), "{read:?}");
    broker.resume().await;
    for (settler, event, (group, position)) in &settlers {
        until(&[200], async || call(settler, event.clone()).await).await;
        assert_eq!(committed(&server, group, &topic, 0), Some(*position));
    }
    let mut last = -1;
    while handed_out < 21 {
        let answer = until(&[200], async || {
            let answer = consume(&consumer, &topic, &group, "&limit=5").await;
            assert!([200, 503, 504].contains(&answer.status), "{answer:?}");
            answer
        });
        for offset in offsets(answer.await.messages()) {
            assert!(offset > last, "none twice");
            last = offset;
        }
        handed_out = usize::try_from(last + 1).expect("small");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_call_was_answered_is_not_written_when_the_sandbox_thaws() {
    let broker = Stack::shared().await.extra_broker(&[]).await;
    let server = broker.bootstrap();
    let topic = topic_on(&server, 1, &[]).await;
    let producer = function_with("produce", &[("KAFKA_BOOTSTRAP_SERVERS", server.as_str())]).await;
    assert_eq!(produce(&producer, &json!({ "topic": topic, "value": "0" })).await.ok()["offset"], 0);

    broker.kill().await;
    let token = Stack::shared().await.token("gateway-full").await;
    let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "lost" })).bearer(&token).build();
    // The invocation's deadline comes long before librdkafka would give up by itself.
    let answer = Answer::read(&producer.try_invoke(event, Duration::from_secs(1)).await.expect("an answer in time"));
    assert_eq!((answer.status, answer.code()), (504, "deadline_exceeded"));
    assert_eq!(answer.body["outcome"], "unknown");
    assert!(producer.idle(Duration::from_secs(5)).await);
    producer.freeze();
    broker.start().await.expect("the broker starts again");
    producer.thaw();
    tokio::time::sleep(Duration::from_secs(2)).await;
    until(&[200], async || produce(&producer, &json!({ "topic": topic, "value": "1" })).await).await;
    produce(&producer, &json!({ "topic": topic, "value": "2" })).await.ok();

    let consumer = function_with("consume", &[("KAFKA_BOOTSTRAP_SERVERS", server.as_str())]).await;
    let answer = consume(&consumer, &topic, &unique("group"), "&timeout_ms=5000").await;
    let mut values: Vec<&Value> = answer.messages().iter().map(|message| &message["value"]).collect();
    values.dedup(); // a call for "1" that ended in 504 may have written it
    assert_eq!(values, ["0", "1", "2"]);
}

/// How long a sandbox is frozen: longer than any time-out of a client or of the broker that is told to it below.
const FROZEN: Duration = Duration::from_secs(125);

/// What the first call after that may take. It finds out by itself that its connections are dead: were it for a time-out
/// (`socket.timeout.ms`) to find out, that would be 3 s.
const QUICK: Duration = Duration::from_millis(2500);

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_that_were_frozen_for_minutes_and_across_a_restart_of_the_broker_go_on_at_once() {
    let broker = Stack::shared().await.extra_broker(&[("connections.max.idle.ms", "60000")]).await;
    let server = broker.bootstrap();
    let (topic, [group, leases, sought]) = (topic_on(&server, 1, &[]).await, ["a", "b", "c"].map(unique));
    fill(&server, &topic, 1, 20);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str())];
    let made = |name: &'static str| function_with(name, &settings);
    let functions: [Function; 5] =
        tokio::join!(made("produce"), made("consume"), made("fetch"), made("acknowledge"), made("seek")).into();
    let [producer, consumer, fetcher, acker, seeker] = &functions;
    produce(producer, &json!({ "topic": topic, "value": "20" })).await.ok();
    assert_eq!(consume(consumer, &topic, &group, "&limit=5").await.messages().len(), 5);
    let reading = || Event::get(FETCH).query(&format!("topic={topic}&offset=7&limit=4"));
    assert_eq!(call(fetcher, reading()).await.messages().len(), 4);
    let held = consume(consumer, &topic, &leases, "&ack=manual&lease_ms=600000&limit=4").await.ok();
    let accepting = |last: i64| {
        let through = json!({ "0": last });
        Event::post(ACKNOWLEDGE).json(&json!({ "token": held["lease"]["token"], "type": "accept", "through": through }))
    };
    call(acker, accepting(1)).await.ok();
    let moving =
        |to: i64| Event::post(SEEK).json(&json!({ "group_id": sought, "topic": topic, "partitions": { "0": to } }));
    call(seeker, moving(3)).await.ok();
    for function in &functions {
        assert!(function.idle(Duration::from_secs(5)).await);
        function.freeze();
    }
    tokio::join!(broker.restart(), tokio::time::sleep(FROZEN));
    for function in &functions {
        function.thaw();
    }
    let quick = async |function: &Function, event: Event| {
        let begun = Instant::now();
        let answer = call(function, event).await;
        assert!(begun.elapsed() < QUICK, "{:?}: {answer:?}", begun.elapsed());
        answer
    };
    // The connections are dead, and the claim's transaction coordinator has forgotten nothing.
    let record = json!({ "topic": topic, "value": "21" });
    let consuming = Event::get(CONSUME).query(&format!("topic={topic}&group_id={group}&limit=100"));
    let (written, next, read, _, _) = tokio::join!(
        async { quick(producer, Event::post(PRODUCE).json(&record)).await.ok() },
        quick(consumer, consuming),
        quick(fetcher, reading()),
        async { quick(acker, accepting(3)).await.ok() },
        async { quick(seeker, moving(5)).await.ok() },
    );
    assert_eq!(written["offset"], 21);
    let got = offsets(next.messages());
    assert_eq!(got, (5..5 + i64::try_from(got.len()).expect("few")).collect::<Vec<_>>());
    assert!(got.len() >= 16, "all that was there before: {got:?}");
    assert_eq!(offsets(read.messages()), [7, 8, 9, 10]);
    for (group, position) in [(&leases, 4), (&sought, 5)] {
        assert_eq!(committed(&server, group, &topic, 0), Some(position));
    }
}

/// What the first call may take when all connections have died in silence: librdkafka finds that out after
/// `socket.timeout.ms` (3 s), for each client when it is used.
const RIGHT_AGAIN: Duration = Duration::from_secs(20);

/// Lets a sandbox have connections, and freezes it. They die in silence; it goes on, and its next call is right.
/// Its first and its last answer.
async fn across_silence(wire: &Wire, name: &str, before: Event, after: Event) -> (Answer, Answer) {
    let (function, id) = wire.victim(name).await;
    let first = call(&function, before).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert!(function.idle(Duration::from_secs(5)).await);
    function.freeze();
    wire.proxy.forget(&id);
    // By then what was fetched ahead is too old, too.
    tokio::time::sleep(Duration::from_secs(6)).await;
    function.thaw();
    let begun = Instant::now();
    let last = call(&function, after).await;
    println!("{name}: {}, {:?} after the thaw", last.status, begun.elapsed());
    assert_eq!(last.status, 200, "{name}: {last:?}");
    assert!(begun.elapsed() < RIGHT_AGAIN, "{name}: {:?}", begun.elapsed());
    (first, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_die_in_silence_while_a_sandbox_is_frozen_cost_seconds_and_no_record() {
    let wire = Wire::shared().await;
    let server = wire.broker.bootstrap();
    let (topic, [group, leases, sought]) = (topic_on(&server, 1, &[]).await, ["a", "b", "c"].map(unique));
    fill(&server, &topic, 1, 20);
    let reading = |path: &str, more: &str| Event::get(path).query(&format!("topic={topic}&limit=4{more}"));
    let consuming = || reading(CONSUME, &format!("&group_id={group}"));
    let fetching = || reading(FETCH, "&offset=7");
    let record = |value: &str| Event::post(PRODUCE).json(&json!({ "topic": topic, "value": value }));
    let held = consume(&wire.consumer, &topic, &leases, "&ack=manual&lease_ms=120000&limit=4").await.ok();
    let token = &held["lease"]["token"];
    let accept = |last: i64| json!({ "token": token, "type": "accept", "through": { "0": last } });
    let accepting = |last: i64| Event::post(ACKNOWLEDGE).json(&accept(last));
    let moving =
        |to: i64| Event::post(SEEK).json(&json!({ "group_id": sought, "topic": topic, "partitions": { "0": to } }));
    let (consumed, fetched, written, _, _) = tokio::join!(
        across_silence(wire, "consume", consuming(), consuming()),
        across_silence(wire, "fetch", fetching(), fetching()),
        across_silence(wire, "produce", record("20"), record("21")),
        across_silence(wire, "acknowledge", accepting(1), accepting(3)),
        across_silence(wire, "seek", moving(3), moving(5)),
    );
    assert_eq!(offsets(consumed.0.messages()), [0, 1, 2, 3]);
    assert_eq!(offsets(consumed.1.messages()), [4, 5, 6, 7], "each once, and none is skipped");
    assert_eq!(fetched.0.body, fetched.1.body);
    assert_eq!([&written.0.body["offset"], &written.1.body["offset"]], [20, 21], "each once");
    for (group, position) in [(&group, 8), (&leases, 4), (&sought, 5)] {
        assert_eq!(committed(&server, group, &topic, 0), Some(position));
    }
}
