//! Several functions that consume for one group.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tests::{Function, progress};
use tokio::task::JoinSet;

use super::{BATCH, Measured};
use crate::stats::{Row, Samples};
use crate::world::{World, call, records, unique};

/// Enough that the functions' own start counts for little.
const RECORDS: usize = 160_000;

/// What the processor worked on in one run, in seconds: what limits it.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    pub(crate) subject: String,
    /// By the clock.
    pub(crate) took: f64,
    /// The functions' processor time.
    pub(crate) functions: f64,
    /// The broker's, where its process is ours.
    pub(crate) broker: f64,
    /// This program's, which is Lambda to the functions, and reads what they answer.
    pub(crate) bench: f64,
}

/// What one caller got.
struct Got {
    samples: Samples,
    records: Vec<(i64, i64)>,
    last: Instant,
}

/// One, two and four functions take the same records.
pub(super) async fn one_group(world: &World, measured: &mut Measured) {
    const CASE: &str = "one group, 4 partitions";
    let topic = world.topic(4).await;
    world.fill(&topic, 4, RECORDS - 4);
    // Once unmeasured: the broker gets faster while its code is compiled, and makes its internal topics at the first call.
    for (round, count) in [4, 1, 2, 4].into_iter().enumerate() {
        progress(format_args!("functions on one group: {count}"));
        let (group, left) = (unique("group"), Arc::new(AtomicUsize::new(RECORDS)));
        let mut functions = Vec::new();
        for _ in 0..count {
            functions.push(Arc::new(world.function("consume").await));
        }
        let used = || {
            let functions = functions.iter().map(|function| processor(function.pid())).sum::<f64>();
            let broker = world.stack.kafka().pid().map_or(0.0, processor);
            [functions, broker, processor(std::process::id().cast_signed())]
        };
        let (before, begun, mut running) = (used(), Instant::now(), JoinSet::new());
        for function in &functions {
            let event = world.consume_event(&topic, &group, BATCH, 200);
            running.spawn(take_all(Arc::clone(function), event, Arc::clone(&left)));
        }
        let (mut all, mut seen, mut records, mut end) = (Samples::new(), HashSet::new(), 0, begun);
        while let Some(ended) = running.join_next().await {
            let got = ended.expect("no panic");
            all.extend(got.samples);
            records += got.records.len();
            seen.extend(got.records);
            end = end.max(got.last);
        }
        let after = used();
        let [functions, broker, bench] = [0, 1, 2].map(|index| after[index] - before[index]);
        // A fast answer would be worth nothing if it were not everybody's own.
        assert_eq!((records, seen.len()), (RECORDS, RECORDS), "each record exactly once");
        let subject = format!("consume, {count} function{}", if count == 1 { "" } else { "s" });
        let took = end - begun;
        if round == 0 {
            continue;
        }
        measured.rows.push(Row::times(CASE, &subject, &all).with_rate(RECORDS, took));
        measured.shares.push(Share { subject, took: took.as_secs_f64(), functions, broker, bench });
    }
}

async fn take_all(function: Arc<Function>, event: Value, left: Arc<AtomicUsize>) -> Got {
    let begun = Instant::now();
    let mut got = Got { samples: Samples::new(), records: Vec::new(), last: begun };
    while left.load(Ordering::Relaxed) > 0 {
        let (took, answer) = call(&function, event.clone()).await;
        let records = records(&answer);
        if !records.is_empty() {
            got.samples.add(took);
            left.fetch_sub(records.len(), Ordering::Relaxed);
            got.records.extend(records);
            got.last = Instant::now();
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "records are missing");
    }
    got
}

/// The processor time that a process has used, in seconds.
fn processor(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The second field, the name in parentheses, may hold spaces; `utime` and `stime` are the 14th and 15th.
    let fields = stat.rsplit(") ").next().expect("fields").split(' ').skip(11).take(2);
    let ticks: f64 = fields.map(|field| field.parse::<f64>().expect("a number")).sum();
    // Linux counts in hundredths of a second, whatever its own clock.
    ticks / 100.0
}
