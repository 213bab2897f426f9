//! Consuming in warm sandboxes: for good, and under leases.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, progress};

use super::BATCH;
use crate::fastapi::FastApi;
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{World, records, timed, unique};

/// One caller that takes a hundred records a call.
pub(super) async fn warm(world: &World) -> Vec<Row> {
    const CASE: &str = "consume 100, warm, one caller";
    const ROUNDS: usize = 9;
    const CALLS: usize = 40;
    progress("warm consume");
    let (topic, bootstrap) = (world.topic(1).await, world.stack.bootstrap());
    world.fill(&topic, 1, BATCH * ROUNDS * CALLS);
    let consume = world.function("consume").await;
    let (usual, _) = FastApi::start(world, &world.topic(1).await).await;
    let (group, raw_group, warm, stateless) = (unique("group"), unique("group"), unique("group"), unique("group"));
    let raw = Arc::new(Mutex::new(raw::consumer(&bootstrap, &raw_group, &[(&topic, 0)])));
    let [mut by_function, mut by_raw, mut by_warm, mut by_stateless] = [const { Samples::new() }; 4];
    for round in 0..ROUNDS {
        let [mut f, mut r, mut w, mut s] = [const { Samples::new() }; 4];
        for _ in 0..CALLS {
            let (took, answer) = timed(&consume, world.consume_event(&topic, &group, BATCH, 1000)).await;
            assert_eq!(records(&answer).len(), BATCH, "{answer}");
            f.add(took);
        }
        for _ in 0..CALLS {
            r.add(raw::take(&raw, BATCH).await);
        }
        for _ in 0..CALLS {
            let (took, count) = usual.consume("/consume/warm", &topic, &warm, BATCH).await;
            assert!(count > 0, "no records");
            w.add(took);
        }
        for _ in 0..CALLS / 5 {
            let (took, count) = usual.consume("/consume", &topic, &stateless, BATCH).await;
            assert!(count > 0, "no records");
            s.add(took);
        }
        if round > 0 {
            by_function.extend(f);
            by_raw.extend(r);
            by_warm.extend(w);
            by_stateless.extend(s);
        }
    }
    vec![
        Row::times(CASE, "consume, exclusive", &by_function),
        Row::times(CASE, "raw client, poll and commit, not exclusive", &by_raw),
        Row::times(CASE, "FastAPI + aiokafka, a member that stays", &by_warm),
        Row::times(CASE, "FastAPI + aiokafka, stateless", &by_stateless),
    ]
}

/// As many records of four topics in one call of `consume-batch`, which commits a position in each; beside a raw client on
/// the four partitions, and a call of `consume` for each topic.
pub(super) async fn batch(world: &World) -> Vec<Row> {
    const CASE: &str = "consume-batch, 100 of four topics, warm, taking turns";
    const CALLS: usize = 220;
    const TOPICS: usize = 4;
    progress("consume-batch");
    let (function, group) = (world.function("consume-batch").await, unique("group"));
    let (single, single_group) = (world.function("consume").await, unique("group"));
    let mut topics = Vec::new();
    for _ in 0..TOPICS {
        let topic = world.topic(1).await;
        world.fill(&topic, 1, BATCH / TOPICS * CALLS);
        topics.push(topic);
    }
    let places: Vec<(&str, i32)> = topics.iter().map(|topic| (topic.as_str(), 0)).collect();
    let raw = Arc::new(Mutex::new(raw::consumer(&world.stack.bootstrap(), &unique("group"), &places)));
    let named: Vec<Value> = topics.iter().map(|topic| json!({ "topic": topic })).collect();
    let body = json!({ "group_id": group, "topics": named, "limit": BATCH });
    let event = Event::post("/kafka/consumer/consume/batch").bearer(&world.token).json(&body).build();
    let [mut by_function, mut by_raw, mut by_single] = [const { Samples::new() }; 3];
    for round in 0..CALLS {
        let (took, answer) = timed(&function, event.clone()).await;
        assert_eq!(records(&answer).len(), BATCH, "{answer}");
        let polled = raw::take(&raw, BATCH).await;
        let mut one_by_one = Duration::ZERO;
        for topic in &topics {
            let event = world.consume_event(topic, &single_group, BATCH / TOPICS, 1000);
            let (took, answer) = timed(&single, event).await;
            assert_eq!(records(&answer).len(), BATCH / TOPICS, "{answer}");
            one_by_one += took;
        }
        // The first warm up.
        if round >= 20 {
            by_function.add(took);
            by_raw.add(polled);
            by_single.add(one_by_one);
        }
    }
    vec![
        Row::times(CASE, "consume-batch, exclusive", &by_function),
        Row::times(CASE, "raw client, poll and commit, not exclusive", &by_raw),
        Row::times(CASE, "consume, four calls one after another", &by_single),
    ]
}

/// A worker's way to lose nothing: takes a hundred records under a lease, and accepts them; consume and acknowledge are
/// functions of their own, so the claim of the position goes from one to the other and back.
pub(super) async fn cycle(world: &World) -> Vec<Row> {
    const CASE: &str = "manual cycle of 100, warm, one caller";
    const ROUNDS: usize = 9;
    const CALLS: usize = 20;
    progress("manual cycle");
    let topic = world.topic(1).await;
    world.fill(&topic, 1, BATCH * ROUNDS * CALLS);
    let (consume, acknowledge) = (world.function("consume").await, world.function("acknowledge").await);
    let (usual, _) = FastApi::start(world, &world.topic(1).await).await;
    let (group, usual_group) = (unique("group"), unique("group"));
    let take = lease_event(world, &topic, &group);
    let [mut taken, mut accepted, mut whole, mut by_usual] = [const { Samples::new() }; 4];
    for round in 0..ROUNDS {
        let [mut t, mut a, mut w, mut u] = [const { Samples::new() }; 4];
        for _ in 0..CALLS {
            let (taking, accepting) = lease_and_accept(world, &consume, &acknowledge, &take).await;
            t.add(taking);
            a.add(accepting);
            w.add(taking + accepting);
        }
        for _ in 0..CALLS {
            let (polling, count) = usual.consume("/consume/poll", &topic, &usual_group, BATCH).await;
            assert!(count > 0, "no records");
            u.add(polling + usual.commit(&topic, &usual_group).await);
        }
        if round > 0 {
            taken.extend(t);
            accepted.extend(a);
            whole.extend(w);
            by_usual.extend(u);
        }
    }
    vec![
        Row::times(CASE, "consume and acknowledge, two functions", &whole),
        Row::times(CASE, "… of it consume", &taken),
        Row::times(CASE, "… of it acknowledge", &accepted),
        Row::times(CASE, "FastAPI + aiokafka, a member that stays, poll and commit", &by_usual),
    ]
}

/// A call that leases a hundred records.
pub(super) fn lease_event(world: &World, topic: &str, group: &str) -> Value {
    let query = format!("topic={topic}&group_id={group}&limit={BATCH}&ack=manual");
    Event::get("/kafka/consumer/consume").query(&query).bearer(&world.token).build()
}

/// One cycle: how long the lease took, and how long the accept.
pub(super) async fn lease_and_accept(
    world: &World,
    consume: &Function,
    acknowledge: &Function,
    take: &Value,
) -> (Duration, Duration) {
    let (taking, answer) = timed(consume, take.clone()).await;
    assert_eq!(records(&answer).len(), BATCH, "{answer}");
    let body: Value = serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
    let accept = json!({ "token": body["lease"]["token"], "type": "accept" });
    let event = Event::post("/kafka/consumer/acknowledge").bearer(&world.token).json(&accept).build();
    (taking, timed(acknowledge, event).await.0)
}
