//! Positions outlive `offsets.retention.minutes` while their group is used.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use tests::Stack;

use crate::consume::{commit_plainly, committed, fill, raw_consumer};
use crate::kit::scheduled;
use crate::world::{consume, function_with, topic_on, unique};

/// Commits offset 4 of partition 0, as a member of the group or without joining it.
fn commit_four(bootstrap: &str, group: &str, topic: &str, member: bool) {
    let ordinary = raw_consumer(bootstrap, group, &[]);
    let mut four = TopicPartitionList::new();
    four.add_partition_offset(topic, 0, Offset::Offset(4)).expect("an offset");
    if member {
        ordinary.subscribe(&[topic]).expect("subscribed");
        while ordinary.assignment().expect("an assignment").count() == 0 {
            let _ = ordinary.poll(Duration::from_millis(50));
        }
    }
    commit_plainly(&ordinary, &four);
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_survive_while_the_group_is_used() {
    let stack = Stack::shared().await;
    let broker = stack
        .extra_broker(&[
            ("offsets.retention.minutes", "1"),
            ("offsets.retention.check.interval.ms", "1000"),
            // The default, which the shared broker does not wait for.
            ("group.initial.rebalance.delay.ms", "3000"),
        ])
        .await;
    let server = broker.bootstrap();
    let topic = topic_on(&server, 2, &[]).await;
    fill(&server, &topic, 2, 20);
    let [unused, simple, emptied, watched] = ["unused", "simple", "emptied", "watched"].map(unique);
    commit_four(&server, &unused, &topic, false);
    commit_four(&server, &simple, &topic, false);
    commit_four(&server, &emptied, &topic, true);
    let begun = Instant::now();
    let consumer = function_with("consume", &[("KAFKA_BOOTSTRAP_SERVERS", &server)]).await;
    // All of partition 1 and the rest of partition 0, so that nothing moves the positions from here on.
    commit_four(&server, &watched, &topic, true);
    for group in [&simple, &emptied, &watched] {
        let mut got = 0;
        while got < 16 {
            let answer = consume(&consumer, &topic, group, "&limit=100&timeout_ms=8000").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            got += answer.messages().len();
        }
        assert_eq!(got, 16, "ten of one partition, six of the other");
    }
    // Of this group only lag-monitor takes care from here on.
    let watch = [
        ("KAFKA_BOOTSTRAP_SERVERS", server.clone()),
        ("LAG_MONITOR_GROUPS", format!("{watched}={topic};{unused}={topic}")),
    ];
    let monitor = function_with("lag-monitor", &watch.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
    let expired = || committed(&server, &unused, &topic, 0).is_none();
    // Long enough for the group that nobody uses, and for the one that was left by its members.
    while !expired() || begun.elapsed() < Duration::from_secs(95) {
        for group in [&simple, &emptied] {
            let answer = consume(&consumer, &topic, group, "&timeout_ms=0").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.messages().is_empty(), "{group} began anew after {:?}: {answer:?}", begun.elapsed());
        }
        monitor.invoke(scheduled()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(begun.elapsed() < Duration::from_secs(240), "the broker never forgot the unused group");
    }
    for group in [&simple, &emptied, &watched] {
        assert_eq!(committed(&server, group, &topic, 0), Some(10), "{group}");
        assert_eq!(committed(&server, group, &topic, 1), Some(10), "{group}");
    }
}
