//! The report: a table to read, the same as JSON, and how the figures stand to each other.

use std::fmt::Write as _;
use std::fs;

use serde::Serialize;

use crate::cases::{Cost, Measured, Memory, Share};
use crate::stats::Row;

/// All that one run measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) shares: Vec<Share>,
    pub(crate) costs: Vec<Cost>,
    pub(crate) ratios: Vec<Ratio>,
}

/// Where it was measured, as far as that explains the figures.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    kafka: String,
    /// How many processes wanted to run, on average over the minute before: more than the cores, and others disturbed.
    load: String,
}

/// Two figures of one run, and what was promised of them.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    what: &'static str,
    value: f64,
    unit: &'static str,
    promised: &'static str,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            processor: model.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kafka: tests::kafka_version().unwrap_or_default(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, measured: Measured) -> Self {
        let Measured { rows, memory, shares, costs } = measured;
        let mut report = Self { machine, rows, memory, shares, costs, ratios: Vec::new() };
        report.ratios = report.ratios();
        report
    }

    /// The row of a case whose subject begins so.
    fn row(&self, case: &str, subject: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.case.starts_with(case) && row.subject.starts_with(subject))
    }

    fn p50(&self, case: &str, subject: &str) -> f64 {
        self.row(case, subject).and_then(|row| row.p50).unwrap_or(f64::NAN)
    }

    fn ratios(&self) -> Vec<Ratio> {
        let group = "one group, 4 partitions";
        let rate = |case, subject| self.row(case, subject).and_then(|row| row.per_second).unwrap_or(f64::NAN);
        let gain = |case, four, one| rate(case, four) / rate(case, one);
        let beyond = |case| (self.p50(case, "produce") - self.p50(case, "empty")) / self.p50(case, "raw client");
        let (cold, first) = ("cold start, first record", "cold start, first 100");
        // Milliseconds for a thousand records are microseconds for one.
        let with_schemas = "batch of 1000 records";
        let schema = |subject| self.p50(with_schemas, subject) - self.p50(with_schemas, "plain JSON");
        let longest = |case, subject| self.row(case, subject).and_then(|row| row.longest).unwrap_or(f64::NAN);
        let ten_thousand = |function: &str| {
            let memory = self.memory.iter().find(|it| it.function == function && it.requests == 10_000);
            memory.map_or(f64::NAN, |memory| memory.resident)
        };
        let ratio = |what, value, unit, promised| Ratio { what, value, unit, promised };
        let mut ratios = vec![
            ratio(
                "(warm produce − empty function) ÷ raw client, p50, taking turns",
                beyond("produce, warm, one caller, taking turns"),
                "×",
                "at most 1.5",
            ),
            ratio(
                "the same in blocks of 200 calls",
                beyond("produce, warm, one caller, in blocks"),
                "×",
                "at most 1.5",
            ),
            ratio(
                "(batch of 1000 × 100 bytes − empty function) ÷ raw client, p50",
                beyond("batch of 1000 × 100 bytes"),
                "×",
                "at most 1.3",
            ),
            ratio(
                "cold produce p50 ÷ raw client's own cold start",
                self.p50(cold, "produce") / self.p50(cold, "raw client, tuned"),
                "×",
                "at most 1.5",
            ),
            ratio("the slowest of ten cold produces", longest(cold, "produce"), "ms", "never near 500"),
            ratio("warm exclusive consume of 100, p50", self.p50("consume 100", "consume"), "ms", "at most 6"),
            ratio("manual cycle in two functions, p50", self.p50("manual cycle", "consume and"), "ms", "at most 25"),
            ratio("cold consume of 100, p50", self.p50(first, "consume, a group"), "ms", "at most 60"),
            ratio(
                "cold consume ÷ raw client's own cold start, which excludes nothing, p50",
                self.p50(first, "consume, a group") / self.p50(first, "raw client"),
                "×",
                "",
            ),
            ratio("the slowest of ten cold consumes", longest(first, "consume, a group"), "ms", "never near 1000"),
            ratio(
                "fetch of 1000 ÷ raw client, p50",
                self.p50("fetch", "fetch") / self.p50("fetch", "raw client"),
                "×",
                "",
            ),
            ratio("a record validated by a JSON Schema, beyond plain JSON", schema("plain JSON, validated"), "µs", ""),
            ratio("a record as Avro, beyond plain JSON", schema("avro"), "µs", ""),
            ratio("a record as JSON with a schema, beyond plain JSON", schema("jsonschema"), "µs", ""),
            ratio("a record as Protobuf, beyond plain JSON", schema("protobuf"), "µs", ""),
            ratio(
                "4 functions ÷ 1 function on one group, callers that ask again at once",
                gain(group, "consume, 4", "consume, 1"),
                "×",
                "at least 2",
            ),
            ratio(
                "the same for callers that work 10 ms on each answer",
                gain("one group, 4 partitions, callers", "consume, 4", "consume, 1"),
                "×",
                "at least 2",
            ),
            ratio(
                "4 raw clients ÷ 1 raw client, which exclude nothing",
                gain(
                    group,
                    "raw clients, poll and commit, not exclusive: 4",
                    "raw clients, poll and commit, not exclusive: 1",
                ),
                "×",
                "",
            ),
            ratio("produce's memory after 10,000 requests", ten_thousand("produce"), "MiB", "under 25"),
            ratio("consume's memory after 10,000 requests", ten_thousand("consume"), "MiB", "under 25"),
        ];
        for (function, what) in
            [("produce", "produce's growth over 100,000 more"), ("consume", "consume's growth over 100,000 more")]
        {
            if let Some(end) = self.memory.iter().find(|it| it.function == function && it.requests == 110_000) {
                ratios.push(ratio(what, end.resident - ten_thousand(function), "MiB", "none"));
            }
        }
        // What was not measured in this run is not there to be compared.
        ratios.retain(|ratio| ratio.value.is_finite());
        ratios
    }

    /// The whole report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let Machine { processor, cores, kafka, load } = &self.machine;
        let mut text = format!(
            "# Measured\n\n\
             By `make bench`: the release binaries under a simulator of Lambda's Runtime and Extensions API, with their \
             tokens checked, their logs written and their metrics pushed, beside other ways to do the same in the same \
             run. Kafka {kafka}, one broker, plaintext on loopback, 100-byte values, `acks=all`; {processor}, {cores} \
             cores that the broker, the clients and this program share; load before the start {load}. AWS's network, \
             API Gateway and Lambda's own start of a sandbox are not in these figures. Times in milliseconds.\n\n\
             | | | n | p50 | p99 | longest | per second |\n|---|---|---:|---:|---:|---:|---:|\n"
        );
        let mut before = "";
        for row in &self.rows {
            let case = if row.case == before { "" } else { row.case };
            before = row.case;
            let rate = row.per_second.map_or(String::new(), |rate| format!("{rate:.0}"));
            let (p50, p99, longest) = (time(row.p50), time(row.p99), time(row.longest));
            let _ = writeln!(text, "| {case} | {} | {} | {p50} | {p99} | {longest} | {rate} |", row.subject, row.count);
        }
        text.push_str("\n| | measured | promised |\n|---|---:|---|\n");
        for Ratio { what, value, unit, promised } in &self.ratios {
            let space = if *unit == "×" { "" } else { " " };
            let _ = writeln!(text, "| {what} | {value:.2}{space}{unit} | {promised} |");
        }
        text.push_str("\n| resident memory | requests | MiB |\n|---|---:|---:|\n");
        for Memory { function, requests, resident } in &self.memory {
            let _ = writeln!(text, "| {function} | {requests} | {resident:.1} |");
        }
        text.push_str(
            "\n| processor time, one group, seconds | by the clock | functions | broker | this program |\n\
             |---|---:|---:|---:|---:|\n",
        );
        for Share { subject, took, functions, broker, bench } in &self.shares {
            let _ = writeln!(text, "| {subject} | {took:.1} | {functions:.1} | {broker:.1} | {bench:.1} |");
        }
        text.push_str(
            "\n| function | binary, MiB | exec to the first request for work, ms | resident then, MiB |\n\
             |---|---:|---:|---:|\n",
        );
        for Cost { function, size, init, resident } in &self.costs {
            let _ = writeln!(text, "| {function} | {size:.1} | {init:.1} | {resident:.1} |");
        }
        text.push_str("\nEvery cold start, in the order they were made (the traps would show here):\n\n");
        for row in self.rows.iter().filter(|row| !row.each.is_empty()) {
            let each: Vec<_> = row.each.iter().map(|time| format!("{time:.0}")).collect();
            let _ = writeln!(text, "- {}, {}: {}", row.case, row.subject, each.join(", "));
        }
        text.push_str(
            "\nSandboxes serve one call at a time here, as on Lambda; many calls in one sandbox \
             (`AWS_LAMBDA_MAX_CONCURRENCY`) are not measured.\n",
        );
        text
    }
}

/// Three digits that mean something.
pub(crate) fn time(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => String::new(),
        Some(time) if time < 10.0 => format!("{time:.2}"),
        Some(time) if time < 100.0 => format!("{time:.1}"),
        Some(time) => format!("{time:.0}"),
    }
}
