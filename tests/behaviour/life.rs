//! A sandbox's end, and a long life with more groups than it can hold.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use serde_json::json;
use tests::process::resident;
use tests::{Api, At, Event, Function, Stack};
use tokio::net::TcpListener;

use crate::consume::{fill, raw_consumer, values};
use crate::fetch::FETCH;
use crate::wire::{ACKNOWLEDGE, Wire};
use crate::world::{PRODUCE, admin, call, consume, function, function_with, produce, topic, topic_on, unique, until};

/// Only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What Lambda leaves a sandbox from SIGTERM on at the least, before it kills it. A machine that is busy with other tests may
/// not manage it each time.
const FAREWELL: Duration = Duration::from_millis(300);

/// Whether of five sandboxes one ended in order within the time that Lambda leaves, and three ended in order.
async fn in_time(ends: impl AsyncFn() -> (Duration, bool)) -> bool {
    let (mut one, mut orderly) = (false, 0);
    for _ in 0..5 {
        let (took, in_order) = ends().await;
        println!("it ended after {took:?}, {}", if in_order { "in order" } else { "not in order" });
        one |= in_order && took < FAREWELL;
        orderly += usize::from(in_order);
        if one && orderly >= 3 {
            return true;
        }
    }
    false
}

/// Sends SIGTERM, and waits for the end: how long it took.
async fn end(function: &Function) -> Duration {
    let begun = Instant::now();
    function.terminate();
    assert_eq!(function.exit_code(PATIENCE).await, Some(0));
    begun.elapsed()
}

/// Without the flush no sandbox ever would: left alone, a record waits for company until long after the end.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_when_the_sandbox_ends_is_sent_in_the_time_there_is() {
    assert!(in_time(ends_with_a_record_queued).await, "none, or too few, have sent what was queued");
}

/// Ends a sandbox that has one record queued: how long it took, and whether the record is there then.
async fn ends_with_a_record_queued() -> (Duration, bool) {
    let wire = Wire::shared().await;
    let server = wire.broker.bootstrap();
    let (topic, id) = (topic_on(&server, 1, &[]).await, unique("victim"));
    let properties = format!("client.id={id};linger.ms=25000");
    let settings = [
        ("KAFKA_BOOTSTRAP_SERVERS", server.as_str()),
        ("KAFKA_PROPERTIES", &properties),
        ("KAFKA_REQUEST_TIMEOUT_MS", "29000"),
    ];
    let producer = function_with("produce", &settings).await;
    let looked_up = wire.proxy.catch(&id, (Api::Metadata, At::Answer), &topic, 0);
    let bearer = Stack::shared().await.token("gateway-full").await;
    let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "v" })).bearer(&bearer).build();
    let (answer, took) = tokio::join!(producer.try_invoke(event, Duration::from_secs(29)), async {
        looked_up.await.expect("the topic is looked up").pass();
        // From there to the queue there is nothing to wait for.
        tokio::time::sleep(Duration::from_secs(2)).await;
        end(&producer).await
    });
    assert!(answer.is_err(), "the call was under way: {answer:?}");
    let (_, end) = raw_consumer(&server, "-", &[]).fetch_watermarks(&topic, 0, PATIENCE).expect("watermarks");
    (took, end == 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_ends_in_the_time_there_is_though_nothing_answers() {
    assert!(in_time(ends_though_nothing_answers).await, "none was fast enough");
}

/// Ends a sandbox whose record is not answered, and whose Pushgateway says nothing.
async fn ends_though_nothing_answers() -> (Duration, bool) {
    let wire = Wire::shared().await;
    let server = wire.broker.bootstrap();
    let (topic, id) = (topic_on(&server, 1, &[]).await, unique("victim"));
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let pushgateway = format!("http://{}", silent.local_addr().expect("an address"));
    let properties = format!("client.id={id}");
    let settings = [
        ("KAFKA_BOOTSTRAP_SERVERS", server.as_str()),
        ("KAFKA_PROPERTIES", &properties),
        ("PUSHGATEWAY_URL", &pushgateway),
    ];
    let producer = function_with("produce", &settings).await;
    let sent = wire.proxy.catch(&id, (Api::Produce, At::Answer), "", 0);
    let bearer = Stack::shared().await.token("gateway-full").await;
    let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "v" })).bearer(&bearer).build();
    let (answer, took) = tokio::join!(producer.try_invoke(event, Duration::from_secs(29)), async {
        let unanswered = sent.await.expect("the record is sent");
        let took = end(&producer).await;
        drop(unanswered);
        took
    });
    assert!(answer.is_err(), "{answer:?}");
    (took, true)
}

/// How many threads and file descriptors a function has.
fn held(function: &Function) -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", function.pid())).expect("alive").count();
    (count("task"), count("fd"))
}

/// How many rounds pass before a function's growth is looked at, and how many then. What it keeps at the most, it has by then.
type Rounds = (usize, usize);

/// Lets rounds pass, and says by how many MiB the functions have grown in those that count: the one that has grown most.
async fn grown<const N: usize>(
    functions: [&Function; N],
    (before, counted): Rounds,
    mut round: impl AsyncFnMut(),
) -> f64 {
    let residents = || functions.iter().map(|function| resident(function.pid())).collect::<Vec<_>>();
    for _ in 0..before {
        round().await;
    }
    let early = residents();
    for _ in 0..counted {
        round().await;
    }
    let late = residents();
    println!("{early:.1?} MiB after {before} rounds, {late:.1?} MiB after {counted} more");
    late.iter().zip(&early).map(|(late, early)| late - early).fold(f64::MIN, f64::max)
}

/// The most that a function may have grown, in MiB: over 300 groups, 10 KiB of each. To look twice at the same function differs
/// by one or two.
const GROWTH: f64 = 3.0;

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_partitions_of_hundreds_of_groups_pass_through_a_sandbox_and_leave_nothing_behind() {
    let (stack, topic) = (Stack::shared().await, topic(4).await);
    fill(&stack.bootstrap(), &topic, 4, 4);
    let consumer = function("consume").await;
    let mut most = (0, 0);
    let grown = grown([&consumer], (300, 300), async || {
        let (group, mut got) = (unique("group"), Vec::new());
        while got.len() < 4 {
            got.extend(values(consume(&consumer, &topic, &group, "").await.messages()));
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
        let (threads, descriptors) = held(&consumer);
        most = (most.0.max(threads), most.1.max(descriptors));
    });
    let grown = grown.await;
    assert!(grown < GROWTH, "{grown} MiB more");
    println!("at most {} threads and {} descriptors, {:?} at the end", most.0, most.1, held(&consumer));
    // Lambda has 1024 of each. What is evicted is dropped beside the calls, which takes a moment.
    assert!(most.0 < 512 && most.1 < 768, "{most:?}");
    // 8 groups and 24 claims are kept, 4 threads and 8 descriptors each.
    let dropped = async {
        while held(&consumer).0 > 32 * 4 + 64 || held(&consumer).1 > 32 * 8 + 64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, dropped).await.is_ok(), "{:?} are left", held(&consumer));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_group_that_a_sandbox_gives_up_it_keeps_no_partition() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    fill(&stack.bootstrap(), &topic, 1, 1);
    let consumer = function("consume").await;
    for _ in 0..40 {
        assert_eq!(consume(&consumer, &topic, &unique("group"), "&timeout_ms=5000").await.messages().len(), 1);
    }
    // 8 groups with a client for each, and one for the claim of its only partition.
    let most = 8 * 2 * 5 + 16;
    let dropped = async {
        while held(&consumer).0 > most {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, dropped).await.is_ok(), "{:?} are left", held(&consumer));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_hundreds_of_groups_are_settled_in_a_sandbox_and_leave_nothing_behind() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    fill(&stack.bootstrap(), &topic, 1, 1);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let grown = grown([&consumer, &acker], (500, 300), async || {
        let leased = consume(&consumer, &topic, &unique("group"), "&ack=manual").await.ok();
        let body = json!({ "token": leased["lease"]["token"], "type": "accept" });
        let settled = call(&acker, Event::post(ACKNOWLEDGE).json(&body)).await.ok();
        assert_eq!(settled["results"][0]["committed"], 1);
    });
    let grown = grown.await;
    assert!(grown < GROWTH, "{grown} MiB more");
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_topics_are_written_and_read_in_a_sandbox_and_leave_little_behind() {
    const TOPICS: usize = 300;
    let server = Stack::shared().await.bootstrap();
    let names: Vec<String> = (0..TOPICS).map(|_| unique("topic")).collect();
    let new: Vec<NewTopic<'_>> = names.iter().map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1))).collect();
    let created = admin(&server).create_topics(&new, &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let (producer, fetcher) = (function("produce").await, function("fetch").await);
    let mut next = names.iter();
    let written = grown([&producer], (TOPICS / 2, TOPICS / 2), async || {
        let record = json!({ "topic": next.next().expect("as many"), "value": "v" });
        until(&[200], async || produce(&producer, &record).await).await;
    });
    let written = written.await;
    let mut next = names.iter();
    let read = grown([&fetcher], (TOPICS / 2, TOPICS / 2), async || {
        let query = format!("topic={}&offset=0", next.next().expect("as many"));
        assert_eq!(call(&fetcher, Event::get(FETCH).query(&query)).await.messages().len(), 1);
    });
    let read = read.await;
    assert!(written < GROWTH && read < GROWTH, "{written} and {read} MiB more");
}
