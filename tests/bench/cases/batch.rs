//! A batch of records in one call, beside a client that sends as many and waits for all of them.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, progress};

use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{EMPTY, VALUE, World, timed};

/// As many as a batch may have.
const RECORDS: usize = 1000;

/// The first rounds warm up.
const WARM_UP: usize = 20;

/// Warm, call by call.
pub(super) async fn warm(world: &World) -> Vec<Row> {
    const CASE: &str = "batch of 1000 × 100 bytes, warm, taking turns";
    let raw = raw::producer(&world.stack.bootstrap());
    let send = async |topic: &str| raw::produce_many(&raw, topic, RECORDS).await;
    taking_turns(world, CASE, 200, false, ("produce-batch", "raw client"), send).await
}

/// The same as one transaction.
pub(super) async fn atomic(world: &World) -> Vec<Row> {
    const CASE: &str = "atomic batch of 1000 × 100 bytes, warm, taking turns";
    let raw = raw::transactional(&world.stack.bootstrap());
    let send = async |topic: &str| raw::produce_transaction(&raw, topic, RECORDS).await;
    let names = ("produce-batch, atomic", "raw transactional client: begin, send, commit");
    taking_turns(world, CASE, 100, true, names, send).await
}

/// A raw client, an empty function and ours, round by round.
async fn taking_turns(
    world: &World,
    case: &'static str,
    rounds: usize,
    atomic: bool,
    (ours, theirs): (&str, &str),
    raw: impl AsyncFn(&str) -> Duration,
) -> Vec<Row> {
    progress(case);
    let topic = world.topic(1).await;
    let (batch, empty) = (world.function("produce-batch").await, world.function(EMPTY).await);
    let event = event(world, &topic, atomic);
    let [mut by_raw, mut by_empty, mut by_function] = [const { Samples::new() }; 3];
    for round in 0..WARM_UP + rounds {
        let sent = raw(&topic).await;
        let nothing = timed(&empty, event.clone()).await.0;
        let answered = timed(&batch, event.clone()).await.0;
        if round >= WARM_UP {
            by_raw.add(sent);
            by_empty.add(nothing);
            by_function.add(answered);
        }
    }
    vec![
        Row::times(case, ours, &by_function),
        Row::times(case, theirs, &by_raw),
        Row::times(case, "empty function", &by_empty),
    ]
}

fn event(world: &World, topic: &str, atomic: bool) -> Value {
    let body = json!({ "topic": topic, "atomic": atomic, "records": vec![json!({ "value": VALUE }); RECORDS] });
    Event::post("/kafka/producer/produce/batch").bearer(&world.token).json(&body).build()
}
