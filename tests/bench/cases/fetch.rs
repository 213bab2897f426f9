//! Reading without a group.

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use tests::{Event, progress};

use crate::stats::{Row, Samples};
use crate::world::{World, records, timed};

/// How many records a call fetches.
const RECORDS: usize = 1000;
const ROUNDS: usize = 60;

/// A thousand records from an offset on, beside a raw consumer that is put there.
pub(super) async fn warm(world: &World) -> Vec<Row> {
    const CASE: &str = "fetch 1000 from an offset, warm, one caller";
    progress("fetch");
    let topic = world.topic(1).await;
    world.fill(&topic, 1, RECORDS * (ROUNDS + 5));
    let fetch = world.function("fetch").await;
    let raw = consumer(&world.stack.bootstrap());
    let (mut by_function, mut by_raw) = (Samples::new(), Samples::new());
    for round in 0..ROUNDS + 5 {
        let offset = round * RECORDS;
        let query = format!("topic={topic}&partition=0&offset={offset}&limit={RECORDS}");
        let event = Event::get("/kafka/consumer/fetch").query(&query).bearer(&world.token).build();
        let (took, answer) = timed(&fetch, event).await;
        assert_eq!(records(&answer).len(), RECORDS, "{answer}");
        let taken = tokio::task::block_in_place(|| poll(&raw, &topic, offset));
        // Five of each warm up.
        if round >= 5 {
            by_function.add(took);
            by_raw.add(taken);
        }
    }
    vec![Row::times(CASE, "fetch", &by_function), Row::times(CASE, "raw client, assign and poll", &by_raw)]
}

fn consumer(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "bench-fetch")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        // As the function has it: what is assigned anew else waits for the fetch that is at the broker.
        .set("fetch.wait.max.ms", "5")
        .create()
        .expect("a consumer")
}

fn poll(raw: &BaseConsumer, topic: &str, offset: usize) -> Duration {
    let begun = Instant::now();
    let mut place = TopicPartitionList::new();
    let offset = Offset::Offset(i64::try_from(offset).expect("an offset"));
    place.add_partition_offset(topic, 0, offset).expect("an offset");
    raw.assign(&place).expect("assigned");
    for _ in 0..RECORDS {
        raw.poll(Duration::from_secs(10)).expect("a record in time").expect("a record");
    }
    begun.elapsed()
}
