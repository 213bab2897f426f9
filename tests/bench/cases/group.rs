//! Several functions that consume for one group.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tests::{Function, progress};
use tokio::task::JoinSet;

use super::{BATCH, Measured};
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{World, call, records, unique};

/// Callers that ask again at once.
const BUSY: &str = "one group, 4 partitions";

/// Callers that do something with what they got.
const WORKING: &str = "one group, 4 partitions, callers that work 10 ms on each answer";

/// What those take for it, without using a processor of this machine.
const WORK: Duration = Duration::from_millis(10);

const PARTITIONS: i32 = 4;

/// Enough that the functions' own start counts for little.
const RECORDS: usize = 160_000;

/// What the processor worked on in one run, in seconds: what limits it.
#[derive(Debug, Serialize, Deserialize)]
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

/// One, two and four functions take the same records: as fast as they can, and for callers that work on what they get.
pub(super) async fn one_group(world: &World, measured: &mut Measured) {
    let topic = world.topic(PARTITIONS).await;
    world.fill(&topic, PARTITIONS, RECORDS - usize::try_from(PARTITIONS).expect("some"));
    // Once unmeasured: the broker gets faster while its code is compiled, and makes its internal topics at the first call.
    run(world, &topic, 4, Duration::ZERO).await;
    for (case, work, rounds) in [(BUSY, Duration::ZERO, 2), (WORKING, WORK, 1)] {
        let mut runs = [1, 2, 4].map(Run::new);
        for _ in 0..rounds {
            for all in &mut runs {
                all.add(run(world, &topic, all.count, work).await);
            }
        }
        for run in runs {
            let subject = format!("consume, {} function{}", run.count, if run.count == 1 { "" } else { "s" });
            measured.rows.push(Row::times(case, &subject, &run.samples).with_rate(RECORDS * rounds, run.took));
            if work.is_zero() {
                let [functions, broker, bench] = run.used;
                measured.shares.push(Share { subject, took: run.took.as_secs_f64(), functions, broker, bench });
            }
        }
        if work.is_zero() {
            by_raw_clients(world, &topic, measured).await;
        }
    }
}

/// What clients do that exclude nobody.
async fn by_raw_clients(world: &World, topic: &str, measured: &mut Measured) {
    for count in [1, 4] {
        progress(format_args!("raw clients on one group: {count}"));
        let (bootstrap, topic) = (world.stack.bootstrap(), topic.to_owned());
        let consumed = tokio::task::spawn_blocking(move || raw_clients(&bootstrap, &topic, count));
        let (samples, took) = consumed.await.expect("no panic");
        let subject = format!("raw clients, poll and commit, not exclusive: {count}");
        measured.rows.push(Row::times(BUSY, subject, &samples).with_rate(RECORDS, took));
    }
}

/// What so many functions did.
struct Run {
    count: usize,
    samples: Samples,
    took: Duration,
    /// Seconds of processor time: the functions', the broker's, this program's.
    used: [f64; 3],
}

impl Run {
    fn new(count: usize) -> Self {
        Self { count, samples: Samples::new(), took: Duration::ZERO, used: [0.0; 3] }
    }

    fn add(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.took += other.took;
        for (sum, more) in self.used.iter_mut().zip(other.used) {
            *sum += more;
        }
    }
}

/// All records by so many functions, whose callers work for this long on each answer.
async fn run(world: &World, topic: &str, count: usize, work: Duration) -> Run {
    progress(format_args!("functions on one group: {count}, callers that work for {work:?}"));
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
        let event = world.consume_event(topic, &group, BATCH, 1000);
        running.spawn(take_all(Arc::clone(function), event, Arc::clone(&left), work));
    }
    let (mut samples, mut seen, mut records, mut end) = (Samples::new(), HashSet::new(), 0, begun);
    while let Some(ended) = running.join_next().await {
        let got = ended.expect("no panic");
        samples.extend(got.samples);
        records += got.records.len();
        seen.extend(got.records);
        end = end.max(got.last);
    }
    let after = used();
    // A fast answer would be worth nothing if it were not everybody's own.
    assert_eq!((records, seen.len()), (RECORDS, RECORDS), "each record exactly once");
    Run { count, samples, took: end - begun, used: [0, 1, 2].map(|index| after[index] - before[index]) }
}

async fn take_all(function: Arc<Function>, event: Value, left: Arc<AtomicUsize>, work: Duration) -> Got {
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
            tokio::time::sleep(work).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "records are missing");
    }
    got
}

/// All records by so many clients that share the partitions out by agreement; each on a thread of its own. Blocks.
fn raw_clients(bootstrap: &str, topic: &str, count: i32) -> (Samples, Duration) {
    let group = unique("group");
    let mut clients = Vec::new();
    for client in 0..count {
        let own = (0..PARTITIONS).filter(|partition| partition % count == client);
        let places: Vec<(&str, i32)> = own.map(|partition| (topic, partition)).collect();
        clients.push((raw::consumer(bootstrap, &group, &places), places.len()));
    }
    let begun = Instant::now();
    let all = std::thread::scope(|scope| {
        let take = |(consumer, partitions)| {
            let calls = RECORDS / usize::try_from(PARTITIONS).expect("some") * partitions / BATCH;
            let mut samples = Samples::new();
            for _ in 0..calls {
                samples.add(raw::poll_and_commit(consumer, BATCH));
            }
            samples
        };
        let running: Vec<_> = clients.iter().map(|(client, of)| scope.spawn(move || take((client, *of)))).collect();
        let mut all = Samples::new();
        for client in running {
            all.extend(client.join().expect("no panic"));
        }
        all
    });
    (all, begun.elapsed())
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
