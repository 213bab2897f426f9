//! Three real brokers: leaders and coordinators that move, one broker lost, two brokers lost.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use serde_json::{Value, json};
use tests::{Cluster, Event, Function, Stack};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::consume::{committed, raw_consumer, values};
use crate::kit::problem;
use crate::wire::ACKNOWLEDGE;
use crate::world::{
    Answer, CONSUME, PRODUCE, admin, call, consume, function_with, knows, produce, response, unique, until,
};

const PARTITIONS: i32 = 3;

/// Only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(180);

/// The one cluster of these tests; who locks it may stop its brokers, and starts them again.
async fn cluster() -> tokio::sync::MutexGuard<'static, Cluster> {
    static CLUSTER: OnceCell<tokio::sync::Mutex<Cluster>> = OnceCell::const_new();
    let started = async || tokio::sync::Mutex::new(Stack::shared().await.cluster().await);
    CLUSTER.get_or_init(started).await.lock().await
}

async fn create(server: &str) -> String {
    let name = unique("topic");
    make(server, NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(3))).await;
    name
}

/// Creates a topic, and waits until each broker has heard of it: with a `ZooKeeper` they do when it is made already.
async fn make(server: &str, topic: NewTopic<'_>) {
    let created = admin(server).create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let heard = async {
        for broker in server.split(',') {
            // A new client knows no other broker yet that it could ask.
            while !knows(raw_consumer(broker, "-", &[]).client(), topic.name) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("each broker hears of it");
}

/// Who leads each of a topic's partitions.
fn leaders(server: &str, topic: &str) -> Vec<i32> {
    let client = raw_consumer(server, "-", &[]);
    let metadata = client.fetch_metadata(Some(topic), Duration::from_secs(30)).expect("metadata");
    metadata.topics()[0].partitions().iter().map(MetadataPartition::leader).collect()
}

/// A broker that leads a partition, and is not the controller.
fn leader(server: &str, topic: &str) -> i32 {
    leaders(server, topic).into_iter().max().expect("partitions")
}

/// Starts a broker again, and waits until it has caught up with the others. Who loses the next one sooner may lose both
/// replicas of a partition; and Kafka before 3.0 may never let one in again that was about to be let in (KAFKA-12686).
async fn start_again(cluster: &Cluster, broker: i32) {
    cluster.broker(broker).start().await.expect("it starts again");
    let client = raw_consumer(&cluster.bootstrap(), "-", &[]);
    let in_sync = async {
        loop {
            let metadata = client.fetch_metadata(None, Duration::from_secs(30)).expect("metadata");
            let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
            if partitions.all(|partition| partition.isr().len() == partition.replicas().len()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, in_sync).await.expect("replicas catch up");
}

/// Gives leaderships back to brokers that have lost them, while nobody is stopped: calls hear that they ask the wrong one.
async fn elect(cluster: &Cluster, topic: &str) {
    let server = cluster.bootstrap();
    let before = leaders(&server, topic);
    let args = ["--bootstrap-server", &server, "--election-type", "preferred", "--all-topic-partitions"];
    cluster.broker(1).tool("org.apache.kafka.tools.LeaderElectionCommand", &args).await;
    let moved = async {
        while leaders(&server, topic) == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.expect("leaders move");
}

async fn start(name: &str, server: &str) -> Function {
    function_with(name, &[("KAFKA_BOOTSTRAP_SERVERS", server), ("KAFKA_REQUEST_TIMEOUT_MS", "5000")]).await
}

/// What came of a load of produce and consume calls.
#[derive(Default)]
struct Load {
    next: AtomicUsize,
    over: AtomicBool,
    /// Records whose produce was answered with 200, and those whose outcome is unknown.
    acknowledged: Mutex<HashSet<usize>>,
    unknown: Mutex<HashSet<usize>>,
    /// How often each record was accepted.
    accepted: Mutex<HashMap<usize, u32>>,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Produces, one record after the other, until the load is over.
    async fn produce(self: Arc<Self>, server: String, topic: String) {
        let producer = start("produce", &server).await;
        while self.goes_on() {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let answer = produce(&producer, &json!({ "topic": topic, "value": n.to_string() })).await;
            if answer.status == 200 {
                self.acknowledged.lock().expect("unpoisoned").insert(n);
            } else {
                assert!([503, 504].contains(&answer.status), "{answer:?}");
                self.unknown.lock().expect("unpoisoned").insert(n);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Leases and accepts until the load is over and nothing is left.
    async fn consume(self: Arc<Self>, server: String, topic: String, group: String) {
        let (consumer, acker) = (start("consume", &server).await, start("acknowledge", &server).await);
        let mut empty = 0;
        while empty < 2 {
            let query = format!("topic={topic}&group_id={group}&ack=manual&limit=200&lease_ms=2000&timeout_ms=3000");
            let answer = call(&consumer, Event::get(CONSUME).query(&query)).await;
            if answer.status != 200 {
                assert!([503, 504].contains(&answer.status), "{answer:?}");
                continue;
            }
            if answer.messages().is_empty() {
                empty += usize::from(!self.goes_on());
                continue;
            }
            empty = 0;
            let accept = json!({ "token": answer.body["lease"]["token"], "type": "accept" });
            let settled = loop {
                let settled = call(&acker, Event::post(ACKNOWLEDGE).json(&accept)).await;
                if [200, 409].contains(&settled.status) {
                    break settled;
                }
                assert!([503, 504].contains(&settled.status), "{settled:?}");
            };
            let results = settled.body["results"].as_array().expect("results");
            let done: HashSet<&Value> =
                results.iter().filter(|it| it["status"] == "accepted").map(|it| &it["partition"]).collect();
            let kept = answer.messages().iter().filter(|message| done.contains(&message["partition"]));
            let mut accepted = self.accepted.lock().expect("unpoisoned");
            for value in values(&kept.cloned().collect::<Vec<_>>()) {
                *accepted.entry(value).or_default() += 1;
            }
        }
    }

    /// Waits until so many more records were acknowledged, and as many accepted: both go on.
    async fn moves_on(&self) {
        let count = || {
            let acknowledged = self.acknowledged.lock().expect("unpoisoned").len();
            (acknowledged, self.accepted.lock().expect("unpoisoned").len())
        };
        let (acknowledged, accepted) = count();
        let both = async {
            while count().0 < acknowledged + 100 || count().1 < accepted + 100 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("calls succeed again");
    }
}

/// Produces and consumes while something happens to the cluster; then counts.
async fn under_load(cluster: &Cluster, happens: impl AsyncFnOnce(&str, &str, &Load)) {
    let server = cluster.bootstrap();
    let (topic, group, load) = (create(&server).await, unique("group"), Arc::new(Load::default()));
    let mut running = JoinSet::new();
    for _ in 0..2 {
        running.spawn(Arc::clone(&load).produce(server.clone(), topic.clone()));
        running.spawn(Arc::clone(&load).consume(server.clone(), topic.clone(), group.clone()));
    }
    load.moves_on().await;
    happens(&server, &topic, &load).await;
    load.moves_on().await;
    load.over.store(true, Ordering::Relaxed);
    running.join_all().await;

    let (acknowledged, unknown) = (load.acknowledged.lock().expect("idle"), load.unknown.lock().expect("idle"));
    let accepted = load.accepted.lock().expect("idle");
    println!("{} records acknowledged, {} of unknown outcome", acknowledged.len(), unknown.len());
    assert!(acknowledged.iter().all(|n| accepted.contains_key(n)), "none lost");
    assert!(accepted.values().all(|count| *count == 1), "none twice");
    assert!(accepted.keys().all(|n| acknowledged.contains(n) || unknown.contains(n)));
    let positions: i64 = (0..PARTITIONS).filter_map(|partition| committed(&server, &group, &topic, partition)).sum();
    assert_eq!(usize::try_from(positions), Ok(accepted.len()), "each record is in the log once");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_move_and_a_broker_is_lost_under_load_and_no_acknowledged_record_is() {
    let cluster = cluster().await;
    under_load(&cluster, async |server, topic, load| {
        // It hands its leaderships over and goes.
        let stopped = leader(server, topic);
        cluster.broker(stopped).stop().await;
        load.moves_on().await;
        start_again(&cluster, stopped).await;
        let killed = leader(server, topic);
        cluster.broker(killed).kill().await;
        load.moves_on().await;
        start_again(&cluster, killed).await;
        elect(&cluster, topic).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_brokers_lost_is_said_in_time_and_what_was_acknowledged_comes_back_with_them() {
    let cluster = cluster().await;
    under_load(&cluster, async |server, _, _| {
        let (producer, consumer) = (start("produce", server).await, start("consume", server).await);
        let (other, group) = (create(server).await, unique("group"));
        produce(&producer, &json!({ "topic": other, "value": "0" })).await.ok();
        assert_eq!(consume(&consumer, &other, &group, "").await.messages().len(), 1);
        cluster.broker(2).kill().await;
        cluster.broker(3).kill().await;
        let (late_producer, late_consumer) = (start("produce", server).await, start("consume", server).await);
        let record = json!({ "topic": other, "value": "1" });
        let query = format!("topic={other}&group_id={group}");
        for (function, event) in [
            (&producer, Event::post(PRODUCE).json(&record)),
            (&late_producer, Event::post(PRODUCE).json(&record)),
            (&consumer, Event::get(CONSUME).query(&query)),
            (&late_consumer, Event::get(CONSUME).query(&query)),
        ] {
            let answer = response(function, event).await;
            // The broker that is left comes to lead all partitions, and says that they hold nothing new.
            if answer["statusCode"] == 200 {
                assert_eq!(
                    Answer::read(&answer).body["messages"],
                    json!([]),
                    "nothing was written, and no position moved"
                );
                continue;
            }
            let (status, code) = problem(&answer);
            println!("{status} {code}");
            let expected = [(503, "broker_unavailable"), (504, "deadline_exceeded")];
            assert!(expected.contains(&(status, code.as_str())), "{answer}");
            assert_eq!(Answer::read(&answer).body["retryable"], true);
        }
        tokio::join!(start_again(&cluster, 2), start_again(&cluster, 3));
    })
    .await;
}

/// A topic with a partition on each of these brokers, without another replica.
async fn create_on(server: &str, brokers: &[i32]) -> String {
    let name = unique("topic");
    let replicas: Vec<&[i32]> = brokers.chunks(1).collect();
    let topic = NewTopic::new(&name, i32::try_from(brokers.len()).expect("few"), TopicReplication::Variable(&replicas))
        .set("min.insync.replicas", "1");
    make(server, topic).await;
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_only_broker_is_lost_stops_no_other_topic_of_a_call() {
    let cluster = cluster().await;
    let (server, group) = (cluster.bootstrap(), unique("group"));
    let (there, away) = (create_on(&server, &[1]).await, create_on(&server, &[3]).await);
    let producer = start("produce", &server).await;
    let write = async |topic: &str| {
        produce(&producer, &json!({ "topic": topic, "value": "0" })).await.ok();
    };
    let ask = |group: &str| {
        let topics = json!([{ "topic": away }, { "topic": there }]);
        Event::post("/kafka/consumer/consume/batch").json(&json!({ "group_id": group, "topics": topics }))
    };
    write(&there).await;
    write(&away).await;
    let consumer = start("consume-batch", &server).await;
    assert_eq!(call(&consumer, ask(&group)).await.messages().len(), 2);
    cluster.broker(3).kill().await;
    // Until the cluster has noticed, and after; coordinators may move meanwhile.
    let taken = async |group: &str| loop {
        let answer = call(&consumer, ask(group)).await;
        if answer.status == 200 && !answer.messages().is_empty() {
            break answer;
        }
        println!("{} {}", answer.status, answer.body);
        assert!([200, 503, 504].contains(&answer.status), "{answer:?}");
        write(&there).await;
    };
    for _ in 0..3 {
        for group in [group.clone(), unique("group")] {
            write(&there).await;
            let answer = tokio::time::timeout(PATIENCE, taken(&group)).await.expect("it is served");
            assert!(answer.messages().iter().all(|message| message["topic"] == there), "{answer:?}");
            assert_eq!(
                (&answer.body["failed"][0]["topic"], &answer.body["failed"][0]["status"]),
                (&json!(away), &json!(503))
            );
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    start_again(&cluster, 3).await;
    let back = async {
        write(&away).await;
        while !taken(&group).await.body["messages"].to_string().contains(&away) {
            write(&away).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("it is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_records_is_not_said_while_a_partition_cannot_be_seen() {
    let cluster = cluster().await;
    let (server, group) = (cluster.bootstrap(), unique("group"));
    let topic = create_on(&server, &[1, 3]).await;
    let (producer, consumer) = (start("produce", &server).await, start("consume", &server).await);
    let write = async |partition| {
        produce(&producer, &json!({ "topic": topic, "partition": partition, "value": "0" })).await.status
    };
    assert_eq!((write(0).await, write(1).await), (200, 200));
    let mut found = 0;
    while found < 2 {
        found += consume(&consumer, &topic, &group, "").await.messages().len();
    }
    cluster.broker(3).kill().await;
    // Coordinators may have to move first.
    let delivered = async {
        loop {
            write(0).await;
            let answer = consume(&consumer, &topic, &group, "").await;
            if answer.status == 200 {
                assert!(!answer.messages().is_empty(), "{answer:?}");
                break;
            }
            assert!([503, 504].contains(&answer.status), "{answer:?}");
        }
    };
    tokio::time::timeout(PATIENCE, delivered).await.expect("what can be seen is handed out");
    let drained = async {
        loop {
            let answer = consume(&consumer, &topic, &group, "&timeout_ms=0").await;
            if answer.status != 200 {
                break answer;
            }
            assert!(!answer.messages().is_empty(), "{answer:?}");
        }
    };
    let refused = tokio::time::timeout(PATIENCE, drained).await.expect("nothing is left");
    assert_eq!((refused.status, refused.code()), (503, "broker_unavailable"), "{refused:?}");
    // Where a group begins in that partition nobody knows: it begins nowhere, lest what comes there is passed over later.
    let (late, latest) = (unique("group"), "&start=latest&timeout_ms=0");
    for _ in 0..2 {
        let refused = consume(&consumer, &topic, &late, latest).await;
        assert_eq!((refused.status, refused.code()), (503, "broker_unavailable"), "{refused:?}");
    }
    assert_eq!(committed(&server, &late, &topic, 0), None);
    start_again(&cluster, 3).await;
    until(&[200], async || consume(&consumer, &topic, &group, "").await).await;
    until(&[200], async || consume(&consumer, &topic, &late, latest).await).await;
    assert_eq!(committed(&server, &late, &topic, 1), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_on_when_its_coordinators_are_lost() {
    let cluster = cluster().await;
    let server = cluster.bootstrap();
    let producer = start("produce", &server).await;
    // Which broker coordinates what is left to chance: several times.
    for killed in [2, 3, 2, 3] {
        let (topic, group, sandbox) = (create(&server).await, unique("group"), start("consume", &server).await);
        let write = async || {
            let record = json!({ "topic": topic, "partition": 0, "value": "0" });
            produce(&producer, &record).await.status
        };
        assert_eq!(write().await, 200);
        assert_eq!(consume(&sandbox, &topic, &group, "").await.messages().len(), 1);
        cluster.broker(killed).kill().await;
        let delivered = async {
            loop {
                let written = write().await;
                let answer = consume(&sandbox, &topic, &group, "").await;
                println!("{written}; {} {}", answer.status, answer.body);
                assert!([200, 503, 504].contains(&answer.status), "{answer:?}");
                if answer.status == 200 && !answer.messages().is_empty() {
                    break;
                }
            }
        };
        let delivered = tokio::time::timeout(PATIENCE, delivered).await;
        start_again(&cluster, killed).await;
        delivered.expect("it is delivered");
    }
}
