//! A sandbox's end, and a long life with more groups than it can hold.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use serde_json::json;
use tests::process::resident;
use tests::{Api, At, Event, Function, Stack};
use tokio::net::TcpListener;

use crate::consume::{fill, raw_consumer, values};
use crate::wire::Wire;
use crate::world::{PRODUCE, consume, function, function_with, topic, topic_on, unique};

/// Only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that is busy with other tests may not manage it within the 300 ms that Lambda leaves. Without the flush no
/// sandbox ever would: left alone, a record waits for company until long after the end.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_when_the_sandbox_ends_is_sent() {
    for _ in 0..5 {
        if ends_with_a_record_queued().await == 1 {
            return;
        }
    }
    panic!("of five sandboxes none has sent what was queued");
}

/// Ends a sandbox that has one record queued: how many records there are then.
async fn ends_with_a_record_queued() -> i64 {
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
    let (answer, ()) = tokio::join!(producer.try_invoke(event, Duration::from_secs(29)), async {
        looked_up.await.expect("the topic is looked up").pass();
        // From there to the queue there is nothing to wait for.
        tokio::time::sleep(Duration::from_secs(2)).await;
        producer.terminate();
    });
    assert!(answer.is_err(), "the call was under way: {answer:?}");
    assert_eq!(producer.exit_code(PATIENCE).await, Some(0));
    let (_, end) = raw_consumer(&server, "-", &[]).fetch_watermarks(&topic, 0, PATIENCE).expect("watermarks");
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_ends_by_itself_though_nothing_answers() {
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
    let (answer, code) = tokio::join!(producer.try_invoke(event, Duration::from_secs(29)), async {
        let unanswered = sent.await.expect("the record is sent");
        producer.terminate();
        let code = producer.exit_code(PATIENCE).await;
        drop(unanswered);
        code
    });
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(code, Some(0));
}

/// How many threads and file descriptors a function has.
fn held(function: &Function) -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", function.pid())).expect("alive").count();
    (count("task"), count("fd"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions_of_hundreds_of_groups_pass_through_a_sandbox_and_leave_nothing_behind() {
    const GROUPS: usize = 250;
    let (stack, topic) = (Stack::shared().await, topic(4).await);
    fill(&stack.bootstrap(), &topic, 4, 4);
    let consumer = function("consume").await;
    let (mut most, mut early) = ((0, 0), 0.0);
    for number in 0..GROUPS {
        let (group, mut got) = (unique("group"), Vec::new());
        // By then it holds as many as it ever will.
        if number == GROUPS / 5 {
            early = resident(consumer.pid());
        }
        while got.len() < 4 {
            got.extend(values(consume(&consumer, &topic, &group, "").await.messages()));
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
        let (threads, descriptors) = held(&consumer);
        most = (most.0.max(threads), most.1.max(descriptors));
    }
    let late = resident(consumer.pid());
    println!("{early} MiB after a fifth of the groups, {late} MiB after all");
    assert!(late < early + 16.0, "{early} MiB have become {late}");
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
