//! Consuming in warm sandboxes: for good, and under leases.

use std::sync::Arc;

use serde_json::{Value, json};
use tests::{Event, progress};

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
    let raw = Arc::new(raw::consumer(&bootstrap, &raw_group, &topic, &[0]));
    let [mut by_function, mut by_raw, mut by_warm, mut by_stateless] = [const { Samples::new() }; 4];
    for round in 0..ROUNDS {
        let [mut f, mut r, mut w, mut s] = [const { Samples::new() }; 4];
        for _ in 0..CALLS {
            let (took, answer) = timed(&consume, world.consume_event(&topic, &group, BATCH, 1000)).await;
            assert_eq!(records(&answer).len(), BATCH, "{answer}");
            f.add(took);
        }
        for _ in 0..CALLS {
            let (raw, topic) = (Arc::clone(&raw), topic.clone());
            let polled = tokio::task::spawn_blocking(move || raw::poll_and_commit(&raw, &topic, BATCH));
            r.add(polled.await.expect("no panic"));
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

/// As many records of four topics in one call of `consume-batch`, which commits a position in each.
pub(super) async fn batch(world: &World) -> Vec<Row> {
    const CASE: &str = "consume-batch, 100 of four topics, warm, one caller";
    const CALLS: usize = 220;
    const TOPICS: usize = 4;
    progress("consume-batch");
    let (function, group) = (world.function("consume-batch").await, unique("group"));
    let mut topics = Vec::new();
    for _ in 0..TOPICS {
        let topic = world.topic(1).await;
        world.fill(&topic, 1, BATCH / TOPICS * CALLS);
        topics.push(json!({ "topic": topic }));
    }
    let body = json!({ "group_id": group, "topics": topics, "limit": BATCH });
    let event = Event::post("/kafka/consumer/consume/batch").bearer(&world.token).json(&body).build();
    let mut samples = Samples::new();
    for call in 0..CALLS {
        let (took, answer) = timed(&function, event.clone()).await;
        assert_eq!(records(&answer).len(), BATCH, "{answer}");
        // The first warm up.
        if call >= 20 {
            samples.add(took);
        }
    }
    vec![Row::times(CASE, "consume-batch, exclusive", &samples)]
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
    let take = Event::get("/kafka/consumer/consume")
        .query(&format!("topic={topic}&group_id={group}&limit={BATCH}&ack=manual"))
        .bearer(&world.token)
        .build();
    let [mut taken, mut accepted, mut whole, mut by_usual] = [const { Samples::new() }; 4];
    for round in 0..ROUNDS {
        let [mut t, mut a, mut w, mut u] = [const { Samples::new() }; 4];
        for _ in 0..CALLS {
            let (taking, answer) = timed(&consume, take.clone()).await;
            assert_eq!(records(&answer).len(), BATCH, "{answer}");
            let body: Value = serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
            let accept = json!({ "token": body["lease"]["token"], "type": "accept" });
            let event = Event::post("/kafka/consumer/acknowledge").bearer(&world.token).json(&accept).build();
            let accepting = timed(&acknowledge, event).await.0;
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
