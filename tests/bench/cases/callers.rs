//! Many callers at once: on sandboxes that serve one call at a time, and in one that serves many.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use serde_json::Value;
use tests::{Function, progress};
use tokio::task::JoinSet;

use super::BATCH;
use crate::fastapi::FastApi;
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{World, call, records, unique};

/// How long each throughput is measured.
const BURST: Duration = Duration::from_secs(3);
/// The most sandboxes side by side: more would measure how two cores share a hundred threads.
const SANDBOXES: usize = 16;
/// How many callers there are.
const CALLERS: [usize; 3] = [1, 16, 64];
/// A partition for each sandbox.
const PARTITIONS: i32 = 16;
/// More than any of them takes within [`BURST`].
const RECORDS: usize = 320_000;

/// A sandbox serves one call at a time, so callers beyond the sandboxes wait for one.
pub(super) async fn produce(world: &World) -> Vec<Row> {
    const CASE: &str = "produce, many callers";
    let topic = world.topic(4).await;
    let raw = Arc::new(raw::producer(&world.stack.bootstrap()));
    let usual = Arc::new(FastApi::start(world, &topic).await.0);
    let mut rows = Vec::new();
    for callers in CALLERS {
        progress(format_args!("callers that produce: {callers}"));
        let functions = warm(world, "produce", &[], callers, || world.produce_event(&topic)).await;
        rows.push(
            producing(world, CASE, subject("produce", callers, functions.len()), callers, &functions, &topic).await,
        );
        drop(functions);
        rows.push(
            burst(CASE, format!("raw client, {callers} in flight"), callers, |_| {
                let (raw, topic) = (Arc::clone(&raw), topic.clone());
                move || {
                    let (raw, topic) = (Arc::clone(&raw), topic.clone());
                    async move { Some((raw::produce(&raw, &topic).await, 1)) }
                }
            })
            .await,
        );
        rows.push(
            burst(CASE, format!("FastAPI + aiokafka, {callers} at once, one process"), callers, |_| {
                let (usual, topic) = (Arc::clone(&usual), topic.clone());
                move || {
                    let (usual, topic) = (Arc::clone(&usual), topic.clone());
                    async move { Some((usual.produce(&topic).await, 1)) }
                }
            })
            .await,
        );
    }
    rows
}

/// All callers take the records of one group: groups of their own would have nothing to exclude each other from. There is
/// a partition for each sandbox, and for each raw client; callers beyond those wait for one.
pub(super) async fn consume(world: &World) -> Vec<Row> {
    const CASE: &str = "consume 100, many callers, one group, 16 partitions";
    let topic = world.topic(PARTITIONS).await;
    world.fill(&topic, PARTITIONS, RECORDS);
    let usual = Arc::new(FastApi::start(world, &world.topic(1).await).await.0);
    let mut rows = Vec::new();
    for callers in CALLERS {
        progress(format_args!("callers that consume: {callers}"));
        let before = unique("group");
        let functions =
            warm(world, "consume", &[], callers, || world.consume_event(&topic, &before, BATCH, 1000)).await;
        rows.push(
            consuming(world, CASE, subject("consume", callers, functions.len()), callers, &functions, &topic).await,
        );
        drop(functions);
        rows.push(by_raw_clients(world, CASE, callers, &topic).await);
        let group = unique("group");
        // The consumer that all of them share joins its group here.
        usual.consume("/consume/warm", &topic, &group, BATCH).await;
        rows.push(
            burst(
                CASE,
                format!("FastAPI + aiokafka, {callers} at once, one process, a member that stays"),
                callers,
                |_| {
                    let (usual, topic, group) = (Arc::clone(&usual), topic.clone(), group.clone());
                    move || {
                        let (usual, topic, group) = (Arc::clone(&usual), topic.clone(), group.clone());
                        async move { Some(usual.consume("/consume/warm", &topic, &group, BATCH).await) }
                    }
                },
            )
            .await,
        );
    }
    rows
}

/// As many clients as there are sandboxes, each with its share of the partitions by agreement.
async fn by_raw_clients(world: &World, case: &str, callers: usize, topic: &str) -> Row {
    let (group, bootstrap, count) = (unique("group"), world.stack.bootstrap(), callers.min(SANDBOXES));
    let clients: Vec<(Arc<Mutex<BaseConsumer>>, Arc<AtomicUsize>)> = (0..count)
        .map(|client| {
            let own =
                (0..PARTITIONS).filter(|partition| usize::try_from(*partition).is_ok_and(|it| it % count == client));
            let places: Vec<(&str, i32)> = own.map(|partition| (topic, partition)).collect();
            let consumer = raw::consumer(&bootstrap, &group, &places);
            (Arc::new(Mutex::new(consumer)), Arc::new(AtomicUsize::new(RECORDS / count / BATCH)))
        })
        .collect();
    let name = format!("raw clients, poll and commit, not exclusive: {count}, {callers} callers");
    burst(case, name, callers, |caller| {
        let (client, left) = clients[caller % count].clone();
        move || {
            let (client, left) = (Arc::clone(&client), Arc::clone(&left));
            async move {
                // A client that has had its share would wait for more.
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
                Some((raw::take(&client, BATCH).await, BATCH))
            }
        }
    })
    .await
}

/// Lambda Managed Instances: many calls at the same time in one sandbox.
pub(super) async fn one_sandbox(world: &World) -> Vec<Row> {
    const CASE: &str = "one sandbox, AWS_LAMBDA_MAX_CONCURRENCY=64";
    const MANAGED: [(&str, &str); 1] = [("AWS_LAMBDA_MAX_CONCURRENCY", "64")];
    let mut rows = Vec::new();
    let topic = world.topic(4).await;
    let functions = warm(world, "produce", &MANAGED, 1, || world.produce_event(&topic)).await;
    for callers in [1, 64] {
        progress(format_args!("callers that produce in one sandbox: {callers}"));
        rows.push(producing(world, CASE, subject("produce", callers, 1), callers, &functions, &topic).await);
    }
    world.fill(&topic, 4, RECORDS);
    let before = unique("group");
    let functions = warm(world, "consume", &MANAGED, 1, || world.consume_event(&topic, &before, BATCH, 1000)).await;
    for callers in [1, 4, 64] {
        progress(format_args!("callers that consume in one sandbox: {callers}"));
        let name = format!("{}, one group, 4 partitions", subject("consume 100", callers, 1));
        rows.push(consuming(world, CASE, name, callers, &functions, &topic).await);
    }
    rows
}

fn subject(function: &str, callers: usize, sandboxes: usize) -> String {
    match (callers, sandboxes) {
        (1, _) => format!("{function}, 1 caller"),
        (_, 1) => format!("{function}, {callers} callers"),
        _ => format!("{function}, {callers} callers on {sandboxes} sandboxes"),
    }
}

/// A sandbox for each caller, up to the most; each has served a call.
async fn warm(
    world: &World,
    name: &str,
    settings: &[(&str, &str)],
    callers: usize,
    event: impl Fn() -> Value,
) -> Vec<Arc<Function>> {
    let mut functions = Vec::new();
    for _ in 0..callers.min(SANDBOXES) {
        let function = world.function_with(name, settings).await;
        call(&function, event()).await;
        functions.push(Arc::new(function));
    }
    functions
}

async fn producing(
    world: &World,
    case: &str,
    subject: String,
    callers: usize,
    functions: &[Arc<Function>],
    topic: &str,
) -> Row {
    burst(case, subject, callers, |caller| {
        let (function, event) = (Arc::clone(&functions[caller % functions.len()]), world.produce_event(topic));
        move || {
            let (function, event) = (Arc::clone(&function), event.clone());
            async move { Some((call(&function, event).await.0, 1)) }
        }
    })
    .await
}

/// All of them for a new group; no record may be handed out twice.
async fn consuming(
    world: &World,
    case: &str,
    subject: String,
    callers: usize,
    functions: &[Arc<Function>],
    topic: &str,
) -> Row {
    let (group, seen) = (unique("group"), Arc::new(Mutex::new(HashSet::new())));
    burst(case, subject, callers, |caller| {
        let function = Arc::clone(&functions[caller % functions.len()]);
        let (event, seen) = (world.consume_event(topic, &group, BATCH, 1000), Arc::clone(&seen));
        move || {
            let (function, event, seen) = (Arc::clone(&function), event.clone(), Arc::clone(&seen));
            async move {
                let (took, answer) = call(&function, event).await;
                let records = records(&answer);
                let (count, mut seen) = (records.len(), seen.lock().expect("no panic"));
                for place in records {
                    assert!(seen.insert(place), "handed out twice: {place:?}");
                }
                assert!(seen.len() < RECORDS, "the records are out: nothing is left to be measured");
                Some((took, count))
            }
        }
    })
    .await
}

/// Lets `callers` of them call again and again for a while, or until there is nothing to call for. A call says how long it
/// took, and how many records it was for.
async fn burst<C, F>(case: &str, subject: String, callers: usize, caller: impl Fn(usize) -> C) -> Row
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = Option<(Duration, usize)>> + Send,
{
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..callers {
        let call = caller(number);
        running.spawn(async move {
            let (mut samples, mut all, mut last) = (Samples::new(), 0, begun);
            while begun.elapsed() < BURST
                && let Some((took, count)) = call().await
            {
                samples.add(took);
                all += count;
                last = Instant::now();
            }
            (samples, all, last)
        });
    }
    let (mut samples, mut all, mut end) = (Samples::new(), 0, begun);
    while let Some(ended) = running.join_next().await {
        let (its, count, last) = ended.expect("no panic");
        samples.extend(its);
        all += count;
        end = end.max(last);
    }
    Row::times(case, subject, &samples).with_rate(all, end - begun)
}
