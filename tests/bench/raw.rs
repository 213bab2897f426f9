//! The raw client: librdkafka without a gateway, with the settings that the functions give it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use crate::world::{VALUE, unique};

/// A producer as the function has it.
pub(crate) fn producer(bootstrap: &str) -> FutureProducer {
    settings(bootstrap).create().expect("a producer")
}

/// One whose records are written in transactions.
pub(crate) fn transactional(bootstrap: &str) -> FutureProducer {
    let producer: FutureProducer =
        settings(bootstrap).set("transactional.id", unique("bench")).create().expect("a producer");
    producer.init_transactions(Duration::from_secs(30)).expect("a producer id");
    producer
}

fn settings(bootstrap: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("acks", "all");
    settings.set("linger.ms", "0");
    settings
}

/// From the call to the acknowledgement by all in-sync replicas.
pub(crate) async fn produce(producer: &FutureProducer, topic: &str) -> Duration {
    let begun = Instant::now();
    let record = FutureRecord::<(), str>::to(topic).payload(VALUE);
    producer.send(record, Duration::ZERO).await.map_err(|(error, _)| error).expect("acknowledged");
    begun.elapsed()
}

/// The same for many records, which are sent together and then waited for.
pub(crate) async fn produce_many(producer: &FutureProducer, topic: &str, count: usize) -> Duration {
    let begun = Instant::now();
    let send = |_| {
        let record = FutureRecord::<(), str>::to(topic).payload(VALUE);
        producer.send_result(record).map_err(|(error, _)| error).expect("queued")
    };
    let deliveries: Vec<_> = (0..count).map(send).collect();
    for delivery in deliveries {
        delivery.await.expect("a report").map_err(|(error, _)| error).expect("acknowledged");
    }
    begun.elapsed()
}

/// The same in one transaction of [`transactional`]: begun, filled, committed.
pub(crate) async fn produce_transaction(producer: &FutureProducer, topic: &str, count: usize) -> Duration {
    let begun = Instant::now();
    producer.begin_transaction().expect("begun");
    produce_many(producer, topic, count).await;
    tokio::task::block_in_place(|| producer.commit_transaction(Duration::from_secs(30))).expect("committed");
    begun.elapsed()
}

/// A consumer on partitions that it has for itself by agreement, and not by anything that enforces it.
pub(crate) fn consumer(bootstrap: &str, group: &str, places: &[(&str, i32)]) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer");
    let mut assigned = TopicPartitionList::new();
    for (topic, partition) in places {
        assigned.add_partition_offset(topic, *partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&assigned).expect("assigned");
    consumer
}

/// Takes the next records and commits the position after them, and waits for that. Blocks.
pub(crate) fn poll_and_commit(consumer: &BaseConsumer, count: usize) -> Duration {
    let begun = Instant::now();
    let mut next = BTreeMap::new();
    for _ in 0..count {
        let message = consumer.poll(Duration::from_secs(10)).expect("a record in time").expect("a record");
        next.insert((message.topic().to_owned(), message.partition()), message.offset() + 1);
    }
    let mut position = TopicPartitionList::new();
    for ((topic, partition), next) in next {
        position.add_partition_offset(&topic, partition, Offset::Offset(next)).expect("an offset");
    }
    consumer.commit(&position, CommitMode::Sync).expect("committed");
    begun.elapsed()
}

/// [`poll_and_commit`] on a thread that may block. Callers of one consumer wait for each other.
pub(crate) async fn take(consumer: &Arc<Mutex<BaseConsumer>>, count: usize) -> Duration {
    let consumer = Arc::clone(consumer);
    let taken = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let consumer = consumer.lock().expect("no panic");
        poll_and_commit(&consumer, count);
        begun.elapsed()
    });
    taken.await.expect("no panic")
}

/// Runs `bench-raw-cold`, started as the functions are; from the start to its word that what `kind` says is acknowledged.
pub(crate) fn cold(bootstrap: &str, topic: &str, kind: &str) -> Duration {
    use std::io::{BufRead as _, BufReader};

    let own = std::env::current_exe().expect("this program's path");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(own.with_file_name("bench-raw-cold"));
    command.args([bootstrap, topic, kind]).stdin(Stdio::null()).stdout(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().expect("bench-raw-cold (cargo build --release --workspace --bins)");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut line).expect("a line");
    let took = begun.elapsed();
    assert!(line.starts_with("acknowledged"), "bench-raw-cold: {line}");
    let _ = child.wait();
    took
}
