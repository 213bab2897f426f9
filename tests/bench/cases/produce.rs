//! Producing in warm sandboxes: one caller, and many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tests::progress;
use tokio::task::JoinSet;

use crate::fastapi::FastApi;
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{EMPTY, World, call, timed};

/// How long each throughput is measured.
const BURST: Duration = Duration::from_secs(3);
/// The most sandboxes side by side: more would measure how two cores share a hundred threads.
const SANDBOXES: usize = 16;

/// One caller: a call, its answer, the next call. In two paces, since the raw client's time depends on it: call by call
/// each finds the machine as the others leave it; in blocks each has it hot for itself.
pub(super) async fn warm(world: &World) -> Vec<Row> {
    let mut rows = paced(world, "produce, warm, one caller, taking turns", 1, 2000).await;
    rows.extend(paced(world, "produce, warm, one caller, in blocks of 200", 200, 10).await);
    rows
}

async fn paced(world: &World, case: &'static str, block: usize, rounds: usize) -> Vec<Row> {
    progress(case);
    let topic = world.topic(1).await;
    let raw = raw::producer(&world.stack.bootstrap());
    let (produce, empty) = (world.function("produce").await, world.function(EMPTY).await);
    let (usual, _) = FastApi::start(world, &topic).await;
    let [mut by_raw, mut by_empty, mut by_function, mut by_usual] = [const { Samples::new() }; 4];
    // Two hundred calls of each warm up.
    let unmeasured = 200 / block;
    for round in 0..unmeasured + rounds {
        let [mut r, mut e, mut f, mut u] = [const { Samples::new() }; 4];
        for _ in 0..block {
            r.add(raw::produce(&raw, &topic).await);
        }
        for _ in 0..block {
            e.add(timed(&empty, world.produce_event(&topic)).await.0);
        }
        for _ in 0..block {
            f.add(timed(&produce, world.produce_event(&topic)).await.0);
        }
        for _ in 0..block {
            u.add(usual.produce(&topic).await);
        }
        if round >= unmeasured {
            by_raw.extend(r);
            by_empty.extend(e);
            by_function.extend(f);
            by_usual.extend(u);
        }
    }
    vec![
        Row::times(case, "produce", &by_function),
        Row::times(case, "raw client", &by_raw),
        Row::times(case, "empty function", &by_empty),
        Row::times(case, "FastAPI + aiokafka", &by_usual),
    ]
}

/// Many callers at once. A sandbox serves one call at a time, so callers beyond the sandboxes wait for one.
pub(super) async fn callers(world: &World) -> Vec<Row> {
    const CASE: &str = "produce, many callers";
    let topic = world.topic(4).await;
    let raw = Arc::new(raw::producer(&world.stack.bootstrap()));
    let usual = Arc::new(FastApi::start(world, &topic).await.0);
    let mut rows = Vec::new();
    for callers in [1, 16, 64] {
        progress(format_args!("callers: {callers}"));
        let sandboxes = callers.min(SANDBOXES);
        let mut functions = Vec::new();
        for _ in 0..sandboxes {
            let function = world.function("produce").await;
            call(&function, world.produce_event(&topic)).await;
            functions.push(Arc::new(function));
        }
        let name = if callers == 1 {
            "produce, 1 caller".to_owned()
        } else {
            format!("produce, {callers} callers on {sandboxes} sandboxes")
        };
        rows.push(
            burst(CASE, name, callers, |caller| {
                let (function, event) = (Arc::clone(&functions[caller % sandboxes]), world.produce_event(&topic));
                move || {
                    let (function, event) = (Arc::clone(&function), event.clone());
                    async move { call(&function, event).await.0 }
                }
            })
            .await,
        );
        drop(functions);
        rows.push(
            burst(CASE, format!("raw client, {callers} in flight"), callers, |_| {
                let (raw, topic) = (Arc::clone(&raw), topic.clone());
                move || {
                    let (raw, topic) = (Arc::clone(&raw), topic.clone());
                    async move { raw::produce(&raw, &topic).await }
                }
            })
            .await,
        );
        rows.push(
            burst(CASE, format!("FastAPI + aiokafka, {callers} at once, one process"), callers, |_| {
                let (usual, topic) = (Arc::clone(&usual), topic.clone());
                move || {
                    let (usual, topic) = (Arc::clone(&usual), topic.clone());
                    async move { usual.produce(&topic).await }
                }
            })
            .await,
        );
    }
    rows
}

/// Lets `callers` of them call again and again for a while.
async fn burst<C, F>(case: &'static str, subject: String, callers: usize, caller: impl Fn(usize) -> C) -> Row
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = Duration> + Send,
{
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..callers {
        let call = caller(number);
        running.spawn(async move {
            let mut samples = Samples::new();
            while begun.elapsed() < BURST {
                samples.add(call().await);
            }
            samples
        });
    }
    let mut all = Samples::new();
    while let Some(samples) = running.join_next().await {
        all.extend(samples.expect("no panic"));
    }
    let took = begun.elapsed();
    Row::times(case, subject, &all).with_rate(all.len(), took)
}
