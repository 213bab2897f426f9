//! How the figures stand to each other, and to what the product promises.

use super::Report;

/// By how much a promise of time may be missed before it counts as broken: one machine and one run are not like another. In
/// memory they are.
pub(crate) const SLACK: f64 = 1.2;

const MEMORY: &str = "MB";

/// MB are what was promised, MiB what was measured.
const MB: f64 = 1.048_576;

/// The requests after which memory must not grow any more: what a sandbox keeps, it has by then.
const WARM: usize = 30_000;

/// A figure made of others of the same run.
#[derive(Debug)]
pub(crate) struct Ratio {
    pub(crate) what: &'static str,
    /// Not finite where it was not measured.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) promise: Option<Promise>,
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Promise {
    AtMost(f64),
    AtLeast(f64),
}

impl Promise {
    /// Whether it is kept where it may be missed by this factor.
    fn holds(self, value: f64, slack: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit * slack,
            Self::AtLeast(limit) => value >= limit / slack,
        }
    }
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
        }
    }
}

impl Ratio {
    pub(crate) fn is_measured(&self) -> bool {
        self.value.is_finite()
    }

    /// Whether its promise is kept to the letter, if it has one.
    pub(crate) fn kept(&self) -> Option<bool> {
        Some(self.promise?.holds(self.value, 1.0))
    }

    /// Whether its promise is missed by more than [`SLACK`], or was never looked at.
    pub(crate) fn broken(&self) -> bool {
        let slack = if self.unit == MEMORY { 1.0 } else { SLACK };
        self.promise.is_some_and(|promise| !self.is_measured() || !promise.holds(self.value, slack))
    }

    /// The value with its unit.
    pub(crate) fn shown(&self) -> String {
        let space = if matches!(self.unit, "×" | "") { "" } else { " " };
        format!("{:.2}{space}{}", self.value, self.unit)
    }
}

impl Report {
    /// All of them, those that were not measured, too.
    pub(crate) fn ratios(&self) -> Vec<Ratio> {
        let mut all = self.of_times();
        all.extend(self.of_rates());
        all.extend(self.of_memory());
        all
    }

    fn of_times(&self) -> Vec<Ratio> {
        let p50 = |case, subject| self.p50(case, subject).unwrap_or(f64::NAN);
        let longest = |case, subject| self.row(case, subject).and_then(|row| row.longest).unwrap_or(f64::NAN);
        let beyond = |case| (p50(case, "produce") - p50(case, "empty")) / p50(case, "raw");
        let (cold, first) = ("cold start, first record", "cold start, first 100");
        let (several, end) = ("consume-batch", "SIGTERM");
        // Milliseconds for a thousand records are microseconds for one.
        let with_schemas = "batch of 1000 records";
        let schema = |subject| p50(with_schemas, subject) - p50(with_schemas, "plain JSON");
        #[allow(clippy::cast_precision_loss)] // ten
        let written = self.row(end, "… of it with").map_or(f64::NAN, |row| row.count as f64);
        vec![
            times(
                "(warm produce − empty function) ÷ raw client, p50, taking turns",
                beyond("produce, warm, one caller, taking turns"),
            )
            .at_most(1.5),
            times("the same in blocks of 200 calls", beyond("produce, warm, one caller, in blocks")).at_most(1.5),
            times(
                "(batch of 1000 × 100 bytes − empty function) ÷ raw client, p50",
                beyond("batch of 1000 × 100 bytes"),
            )
            .at_most(1.3),
            times(
                "(atomic batch of 1000 − empty function) ÷ raw transactional client, p50",
                beyond("atomic batch of 1000"),
            ),
            times(
                "cold produce ÷ raw client's own cold start, p50",
                p50(cold, "produce") / p50(cold, "raw client, tuned"),
            )
            .at_most(1.5),
            ms("the slowest cold produce (each of librdkafka's traps is 500)", longest(cold, "produce")).at_most(250.0),
            ms("warm exclusive consume of 100, p50", p50("consume 100, warm", "consume")).at_most(6.0),
            ms("manual cycle of 100 in two functions, p50", p50("manual cycle", "consume and")).at_most(25.0),
            ms("cold consume of 100, p50", p50(first, "consume, a group")).at_most(60.0),
            times(
                "cold consume ÷ raw client's own cold start, which excludes nothing, p50",
                p50(first, "consume, a group") / p50(first, "raw client"),
            ),
            ms("the slowest cold consume (each of librdkafka's traps is 1000)", longest(first, "consume, a group"))
                .at_most(500.0),
            times(
                "consume-batch of four topics ÷ raw client on their partitions, which excludes nothing, p50",
                p50(several, "consume-batch") / p50(several, "raw client"),
            ),
            times("the same ÷ four calls of consume", p50(several, "consume-batch") / p50(several, "consume, four")),
            times("fetch of 1000 ÷ raw client, p50", p50("fetch", "fetch") / p50("fetch", "raw client")),
            us("a record validated by a JSON Schema, beyond plain JSON", schema("plain JSON, validated")),
            us("a record as Avro, beyond plain JSON", schema("avro")),
            us("a record as JSON with a schema, beyond plain JSON", schema("jsonschema")),
            us("a record as Protobuf, beyond plain JSON", schema("protobuf")),
            ms("SIGTERM to exit, the slowest of ten", longest(end, "produce")).at_most(300.0),
            Ratio::new("of ten records in a producer at SIGTERM, those that reached Kafka", written, "").at_least(10.0),
        ]
    }

    fn of_rates(&self) -> Vec<Ratio> {
        let rate = |case, subject| self.row(case, subject).and_then(|row| row.per_second).unwrap_or(f64::NAN);
        let gain = |case, more, less| rate(case, more) / rate(case, less);
        let (group, one) = ("one group, 4 partitions", "one sandbox");
        vec![
            times(
                "4 functions ÷ 1 function on one group, records a second, callers that ask again at once",
                gain(group, "consume, 4", "consume, 1"),
            )
            .at_least(2.0),
            times(
                "the same for callers that work 10 ms on each answer",
                gain("one group, 4 partitions, callers", "consume, 4", "consume, 1"),
            )
            .at_least(2.0),
            times(
                "4 raw clients ÷ 1 raw client, which exclude nothing",
                gain(
                    group,
                    "raw clients, poll and commit, not exclusive: 4",
                    "raw clients, poll and commit, not exclusive: 1",
                ),
            ),
            times(
                "64 callers that produce ÷ as many of FastAPI + aiokafka, calls a second",
                gain("produce, many callers", "produce, 64", "FastAPI + aiokafka, 64"),
            ),
            times(
                "64 callers that consume ÷ as many of FastAPI + aiokafka, records a second",
                gain("consume 100, many callers", "consume, 64", "FastAPI + aiokafka, 64"),
            ),
            times(
                "one sandbox, produce: 64 callers ÷ 1 caller, calls a second",
                gain(one, "produce, 64", "produce, 1"),
            ),
            times(
                "one sandbox, consume: 4 callers ÷ 1 caller, records a second",
                gain(one, "consume 100, 4", "consume 100, 1"),
            ),
        ]
    }

    fn of_memory(&self) -> Vec<Ratio> {
        let after = |function, requests| self.resident(function, requests).map_or(f64::NAN, |held| held * MB);
        vec![
            mb("produce's memory after 10,000 requests", after("produce", 10_000)).at_most(25.0),
            mb("consume's memory after 10,000 requests", after("consume", 10_000)).at_most(25.0),
            mb("consume's memory after 10,000 leases of 100 records", after("consume, leases of 100", 10_000)),
            // A leak of 16 bytes a request would be 1.6.
            mb("produce's growth per 100,000 requests, from 30,000 on", 1e5 * self.slope("produce", WARM)).at_most(0.5),
            mb("consume's growth per 100,000 requests, from 30,000 on", 1e5 * self.slope("consume", WARM)).at_most(0.5),
            mb(
                "consume's growth per 10,000 leases of 100 records, from 3,000 on",
                1e4 * self.slope("consume, leases of 100", WARM / 10),
            ),
        ]
    }

    /// How much a function's memory grows with each request from some on, in MB: the median of the slopes between any two
    /// points (Theil and Sen). A leak shows in all of them, a single step of a heap does not. Not finite where that are fewer
    /// than three points.
    fn slope(&self, function: &str, from: usize) -> f64 {
        let points = self.memory.iter().filter(|it| it.function == function && it.requests >= from);
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let points: Vec<(f64, f64)> = points.map(|it| (it.requests as f64, it.resident * MB)).collect();
        if points.len() < 3 {
            return f64::NAN;
        }
        let pairs =
            points.iter().enumerate().flat_map(|(at, one)| points[at + 1..].iter().map(move |other| (one, other)));
        let mut slopes: Vec<f64> = pairs.map(|(one, other)| (other.1 - one.1) / (other.0 - one.0)).collect();
        slopes.sort_by(f64::total_cmp);
        slopes[slopes.len() / 2]
    }
}

impl Ratio {
    fn new(what: &'static str, value: f64, unit: &'static str) -> Self {
        Self { what, value, unit, promise: None }
    }

    fn at_most(self, limit: f64) -> Self {
        Self { promise: Some(Promise::AtMost(limit)), ..self }
    }

    fn at_least(self, limit: f64) -> Self {
        Self { promise: Some(Promise::AtLeast(limit)), ..self }
    }
}

fn times(what: &'static str, value: f64) -> Ratio {
    Ratio::new(what, value, "×")
}

fn ms(what: &'static str, value: f64) -> Ratio {
    Ratio::new(what, value, "ms")
}

fn us(what: &'static str, value: f64) -> Ratio {
    Ratio::new(what, value, "µs")
}

fn mb(what: &'static str, value: f64) -> Ratio {
    Ratio::new(what, value, MEMORY)
}
