//! A batch of records in one call, beside a client that sends as many and waits for all of them.

use serde_json::{Value, json};
use tests::{Event, progress};

use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{EMPTY, VALUE, World, timed};

/// As many as a batch may have.
const RECORDS: usize = 1000;

/// Warm, call by call.
pub(super) async fn warm(world: &World) -> Vec<Row> {
    const CASE: &str = "batch of 1000 × 100 bytes, warm, taking turns";
    progress(CASE);
    let topic = world.topic(1).await;
    let raw = raw::producer(&world.stack.bootstrap());
    let (batch, empty) = (world.function("produce-batch").await, world.function(EMPTY).await);
    let event = event(world, &topic, false);
    let [mut by_raw, mut by_empty, mut by_function] = [const { Samples::new() }; 3];
    for round in 0..220 {
        let sent = raw::produce_many(&raw, &topic, RECORDS).await;
        let nothing = timed(&empty, event.clone()).await.0;
        let answered = timed(&batch, event.clone()).await.0;
        // The first warm up.
        if round >= 20 {
            by_raw.add(sent);
            by_empty.add(nothing);
            by_function.add(answered);
        }
    }
    vec![
        Row::times(CASE, "produce-batch", &by_function),
        Row::times(CASE, "raw client", &by_raw),
        Row::times(CASE, "empty function", &by_empty),
    ]
}

/// The same as one transaction.
pub(super) async fn atomic(world: &World) -> Vec<Row> {
    const CASE: &str = "atomic batch of 1000 × 100 bytes, warm, taking turns";
    progress(CASE);
    let topic = world.topic(1).await;
    let raw = raw::transactional(&world.stack.bootstrap());
    let (batch, empty) = (world.function("produce-batch").await, world.function(EMPTY).await);
    let event = event(world, &topic, true);
    let [mut by_raw, mut by_empty, mut by_function] = [const { Samples::new() }; 3];
    for round in 0..120 {
        let written = raw::produce_transaction(&raw, &topic, RECORDS).await;
        let nothing = timed(&empty, event.clone()).await.0;
        let answered = timed(&batch, event.clone()).await.0;
        // The first warm up.
        if round >= 20 {
            by_raw.add(written);
            by_empty.add(nothing);
            by_function.add(answered);
        }
    }
    vec![
        Row::times(CASE, "produce-batch, atomic", &by_function),
        Row::times(CASE, "raw transactional client: begin, send, commit", &by_raw),
        Row::times(CASE, "empty function", &by_empty),
    ]
}

fn event(world: &World, topic: &str, atomic: bool) -> Value {
    let body = json!({ "topic": topic, "atomic": atomic, "records": vec![json!({ "value": VALUE }); RECORDS] });
    Event::post("/kafka/producer/produce/batch").bearer(&world.token).json(&body).build()
}
