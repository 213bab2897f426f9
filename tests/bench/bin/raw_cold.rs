//! A program that writes one record with the raw client, or reads a hundred and commits the position after them, says so,
//! and ends: what a cold start costs without a gateway.
//!
//! Arguments: bootstrap servers, topic, and `tuned` (the settings and the two metadata requests of `produce`), `defaults`
//! (librdkafka's own, but for idempotence, as most programs would have it) or `consume` (the settings of `consume`, on the
//! topic's only partition, which it has by agreement, for a group of its own).

use std::process::exit;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, kind] = arguments.as_slice() else {
        eprintln!("usage: bench-raw-cold <bootstrap servers> <topic> tuned|defaults|consume");
        exit(2);
    };
    match kind.as_str() {
        "consume" => consume(bootstrap, topic),
        kind => produce(bootstrap, topic, kind == "tuned").await,
    }
}

/// Says so before any client is dropped: librdkafka would take its time to end.
fn acknowledged() -> ! {
    println!("acknowledged");
    exit(0);
}

async fn produce(bootstrap: &str, topic: &str, tuned: bool) {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("acks", "all");
    if tuned {
        settings.set("linger.ms", "0").set("reconnect.backoff.ms", "10").set("retry.backoff.ms", "2");
    }
    let producer: FutureProducer = settings.create().expect("a producer");
    if tuned {
        for _ in 0..2 {
            producer.client().fetch_metadata(Some("?"), Duration::from_secs(2)).expect("metadata");
        }
    }
    let value = "x".repeat(100);
    let record = FutureRecord::<(), str>::to(topic).payload(&value);
    producer.send(record, Duration::ZERO).await.map_err(|(error, _)| error).expect("acknowledged");
    acknowledged();
}

fn consume(bootstrap: &str, topic: &str) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", format!("bench-raw-cold-{}", std::process::id()))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("reconnect.backoff.ms", "10")
        .set("retry.backoff.ms", "2")
        .set("fetch.wait.max.ms", "5")
        .create()
        .expect("a consumer");
    // A consumer that is assigned before it knows the partition's leader waits for a second.
    consumer.fetch_metadata(Some(topic), Duration::from_secs(2)).expect("metadata");
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, 0, Offset::Beginning).expect("an offset");
    consumer.assign(&place).expect("assigned");
    let mut next = 0;
    for _ in 0..100 {
        next = consumer.poll(Duration::from_secs(10)).expect("a record in time").expect("a record").offset() + 1;
    }
    place.set_partition_offset(topic, 0, Offset::Offset(next)).expect("the partition");
    consumer.commit(&place, CommitMode::Sync).expect("committed");
    acknowledged();
}
