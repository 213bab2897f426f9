//! What is measured. Where times are compared, their subjects take turns, call by call or in short rounds: whatever else
//! the machine does then hits all of them alike.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tests::{Function, progress};
use tokio::task::JoinSet;

use crate::fastapi::FastApi;
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{EMPTY, World, call, records, timed, unique};

/// How often a cold start is tried: the traps are met by luck.
const COLD_STARTS: usize = 10;
/// How many records a call of `consume` asks for.
const BATCH: usize = 100;
/// How long each throughput is measured.
const BURST: Duration = Duration::from_secs(3);
/// The most sandboxes side by side: more would measure how two cores share a hundred threads.
const SANDBOXES: usize = 16;

/// From the start of a process to its first acknowledged record.
pub(crate) async fn cold_produce(world: &World) -> Vec<Row> {
    const CASE: &str = "cold start, first record acknowledged";
    progress("cold produce");
    let (topic, bootstrap) = (world.topic(1).await, world.stack.bootstrap());
    // Once unmeasured: what is installed or read from the disk for the first time is.
    call(&world.function("produce").await, world.produce_event(&topic)).await;
    raw::cold(&bootstrap, &topic, "tuned");
    FastApi::start(world, &topic).await;
    let [mut function, mut tuned, mut naive, mut usual] = [const { Samples::new() }; 4];
    for number in 0..COLD_STARTS {
        let produce = world.function("produce").await;
        // Lambda invokes as soon as init ends; what lies between the two here is this program's and not counted.
        let init = produce.init_duration();
        function.add(init + call(&produce, world.produce_event(&topic)).await.0);
        drop(produce);
        tuned.add(raw::cold(&bootstrap, &topic, "tuned"));
        naive.add(raw::cold(&bootstrap, &topic, "defaults"));
        // It takes a second, and has no trap.
        if number < 3 {
            usual.add(FastApi::start(world, &topic).await.1);
        }
    }
    vec![
        Row::times(CASE, "produce", &function),
        Row::times(CASE, "raw client, tuned as produce", &tuned),
        Row::times(CASE, "raw client, idempotent, its own defaults", &naive),
        Row::times(CASE, "FastAPI + aiokafka", &usual),
    ]
}

/// From the start of a process to its first hundred records, their position committed.
pub(crate) async fn cold_consume(world: &World) -> Vec<Row> {
    const CASE: &str = "cold start, first 100 records";
    progress("cold consume");
    let topic = world.topic(1).await;
    world.fill(&topic, 1, BATCH * (COLD_STARTS + 1));
    let (mut new, mut known, group) = (Samples::new(), Samples::new(), unique("group"));
    // Once unmeasured: the broker makes its internal topics at the first group and the first transaction of all.
    call(&world.function("consume").await, world.consume_event(&topic, &unique("group"), BATCH, 5000)).await;
    for _ in 0..COLD_STARTS {
        for (group, samples) in [(&unique("group"), &mut new), (&group, &mut known)] {
            let consume = world.function("consume").await;
            let init = consume.init_duration();
            let (took, answer) = call(&consume, world.consume_event(&topic, group, BATCH, 5000)).await;
            assert_eq!(records(&answer).len(), BATCH, "{answer}");
            samples.add(init + took);
        }
    }
    vec![
        Row::times(CASE, "consume, a group's first call", &new),
        Row::times(CASE, "consume, a position that another sandbox has just left", &known),
    ]
}

/// One caller: a call, its answer, the next call.
pub(crate) async fn warm_produce(world: &World) -> Vec<Row> {
    const CASE: &str = "produce, warm, one caller";
    progress("warm produce");
    let topic = world.topic(1).await;
    let raw = raw::producer(&world.stack.bootstrap());
    let (produce, empty) = (world.function("produce").await, world.function(EMPTY).await);
    let (usual, _) = FastApi::start(world, &topic).await;
    let [mut by_raw, mut by_empty, mut by_function, mut by_usual] = [const { Samples::new() }; 4];
    for round in 0..2200 {
        // Call by call: each finds the machine as the others leave it, and none has it hot for itself.
        let r = raw::produce(&raw, &topic).await;
        let e = timed(&empty, world.produce_event(&topic)).await.0;
        let f = timed(&produce, world.produce_event(&topic)).await.0;
        let u = usual.produce(&topic).await;
        // The first of them warm up.
        if round >= 200 {
            by_raw.add(r);
            by_empty.add(e);
            by_function.add(f);
            by_usual.add(u);
        }
    }
    vec![
        Row::times(CASE, "produce", &by_function),
        Row::times(CASE, "raw client", &by_raw),
        Row::times(CASE, "empty function", &by_empty),
        Row::times(CASE, "FastAPI + aiokafka", &by_usual),
    ]
}

/// One caller that takes a hundred records a call.
pub(crate) async fn warm_consume(world: &World) -> Vec<Row> {
    const CASE: &str = "consume 100, warm, one caller";
    const ROUNDS: usize = 9;
    const CALLS: usize = 40;
    progress("warm consume");
    let (topic, bootstrap) = (world.topic(1).await, world.stack.bootstrap());
    world.fill(&topic, 1, BATCH * ROUNDS * CALLS);
    let consume = world.function("consume").await;
    let (usual, _) = FastApi::start(world, &world.topic(1).await).await;
    let (group, raw_group, warm, stateless) = (unique("group"), unique("group"), unique("group"), unique("group"));
    let raw = Arc::new(raw::consumer(&bootstrap, &raw_group, &topic));
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

/// Many callers at once. A sandbox serves one call at a time, so callers beyond the sandboxes wait for one.
pub(crate) async fn callers(world: &World) -> Vec<Row> {
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

/// Several functions that consume for one group.
pub(crate) async fn one_group(world: &World) -> Vec<Row> {
    const CASE: &str = "one group, 4 partitions";
    const RECORDS: usize = 40_000;
    let topic = world.topic(4).await;
    world.fill(&topic, 4, RECORDS - 4);
    let mut rows = Vec::new();
    for count in [1, 2, 4] {
        progress(format_args!("functions on one group: {count}"));
        let (group, left) = (unique("group"), Arc::new(AtomicUsize::new(RECORDS)));
        let mut functions = Vec::new();
        for _ in 0..count {
            functions.push(world.function("consume").await);
        }
        let (begun, mut running) = (Instant::now(), JoinSet::new());
        for function in functions {
            let (left, event) = (Arc::clone(&left), world.consume_event(&topic, &group, BATCH, 200));
            running.spawn(async move {
                let (mut samples, mut got, mut last) = (Samples::new(), Vec::new(), begun);
                while left.load(Ordering::Relaxed) > 0 {
                    let (took, answer) = call(&function, event.clone()).await;
                    let records = records(&answer);
                    if !records.is_empty() {
                        samples.add(took);
                        left.fetch_sub(records.len(), Ordering::Relaxed);
                        got.extend(records);
                        last = Instant::now();
                    }
                    assert!(begun.elapsed() < Duration::from_secs(120), "records are missing");
                }
                (samples, got, last)
            });
        }
        let (mut all, mut seen, mut records, mut end) = (Samples::new(), HashSet::new(), 0, begun);
        while let Some(ended) = running.join_next().await {
            let (samples, got, last) = ended.expect("no panic");
            all.extend(samples);
            records += got.len();
            seen.extend(got);
            end = end.max(last);
        }
        // A fast answer would be worth nothing if it were not everybody's own.
        assert_eq!((records, seen.len()), (RECORDS, RECORDS), "each record exactly once");
        let subject = format!("consume, {count} function{}", if count == 1 { "" } else { "s" });
        rows.push(Row::times(CASE, subject, &all).with_rate(RECORDS, end - begun));
    }
    rows
}

/// A function's memory after some requests.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Memory {
    pub(crate) function: String,
    pub(crate) requests: usize,
    /// Resident, in MiB.
    pub(crate) resident: f64,
}

/// How much memory the functions hold, after init, after 10,000 requests and, if asked for, after 110,000.
pub(crate) async fn memory(world: &World, long: bool) -> Vec<Memory> {
    const FIRST: usize = 10_000;
    let most = if long { FIRST + 100_000 } else { FIRST };
    progress(format_args!("memory, {most} requests to each function"));
    let topic = world.topic(1).await;
    world.fill(&topic, 1, most);
    let (produce, consume, empty) =
        (world.function("produce").await, world.function("consume").await, world.function(EMPTY).await);
    let (usual, _) = FastApi::start(world, &topic).await;
    let group = unique("group");
    let other = world.topic(1).await;
    let produced = requests("produce", &produce, world.produce_event(&other), most);
    let consumed = requests("consume", &consume, world.consume_event(&topic, &group, 1, 0), most);
    let (mut all, consumed) = tokio::join!(produced, consumed);
    all.extend(consumed);
    all.extend(requests("empty function", &empty, world.produce_event(&other), FIRST).await);
    for _ in 0..FIRST {
        usual.produce(&other).await;
    }
    let resident = resident(usual.pid());
    all.push(Memory { function: "FastAPI + aiokafka".to_owned(), requests: FIRST, resident });
    all
}

async fn requests(name: &str, function: &Function, event: serde_json::Value, most: usize) -> Vec<Memory> {
    let mut all = Vec::new();
    for number in 0..=most {
        if number == 0 || number % 10_000 == 0 {
            all.push(Memory { function: name.to_owned(), requests: number, resident: resident(function.pid()) });
        }
        if number < most {
            call(function, event.clone()).await;
        }
    }
    all
}

fn resident(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") / 1024.0
}
