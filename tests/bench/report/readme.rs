//! The table in the README, between two comments: the lines that matter.

use std::fmt::Write as _;

use super::{Machine, Report, time};

const BEGIN: &str = "<!-- By `make bench-long`; held equal to tests/bench/results.json by `make lint`. -->\n";
const END: &str = "<!-- End of what `make bench-long` writes. -->\n";

/// A line of the table: what it is called, its case, and the beginnings of its subjects: ours, the raw client, the usual way.
type Line = (&'static str, &'static str, &'static str, Option<&'static str>, Option<&'static str>);

const LINES: [Line; 12] = [
    ("produce, warm", "produce, warm, one caller, taking turns", "produce", Some("raw"), Some("FastAPI")),
    (
        "produce, cold: exec to acknowledgement",
        "cold start, first record",
        "produce",
        Some("raw client, tuned"),
        Some("FastAPI"),
    ),
    (
        "produce, 64 callers on 16 sandboxes",
        "produce, many callers",
        "produce, 64",
        Some("raw client, 64"),
        Some("FastAPI + aiokafka, 64"),
    ),
    ("a batch of 1000, warm", "batch of 1000 ×", "produce-batch", Some("raw"), None),
    ("an atomic batch of 1000, warm", "atomic batch of 1000", "produce-batch", Some("raw"), None),
    ("consume 100, warm", "consume 100, warm", "consume", Some("raw"), Some("FastAPI + aiokafka, a member")),
    (
        "consume 100, cold: exec to the first records",
        "cold start, first 100",
        "consume, a group",
        Some("raw"),
        Some("FastAPI"),
    ),
    (
        "consume 100, one group, 64 callers on 16 sandboxes",
        "consume 100, many callers",
        "consume, 64",
        Some("raw clients, poll and commit, not exclusive: 16, 64"),
        Some("FastAPI + aiokafka, 64"),
    ),
    ("consume-batch, 100 of four topics, warm", "consume-batch", "consume-batch", Some("raw"), None),
    ("lease 100 and accept them, two functions", "manual cycle", "consume and", None, Some("FastAPI")),
    ("fetch 1000, warm", "fetch", "fetch", Some("raw"), None),
    ("SIGTERM to exit, a record still to be sent", "SIGTERM", "produce", None, None),
];

/// The README with the report's table in its place.
pub(super) fn put(readme: &str, report: &Report) -> tests::Result<String> {
    let parts = readme.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.ok_or_else(|| tests::Error::new("README.md has not the two comments around the benchmark's table"))?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", table(report)))
}

fn table(report: &Report) -> String {
    let mut text =
        String::from("| | p50, ms | p99, ms | p50 ÷ raw client's | p50 ÷ FastAPI's |\n|---|---:|---:|---:|---:|\n");
    for (name, case, ours, raw, usual) in LINES {
        let Some(row) = report.row(case, ours) else { continue };
        let against = |subject: Option<&str>| match (row.p50, subject.and_then(|subject| report.p50(case, subject))) {
            (Some(own), Some(other)) => format!("{:.2}", own / other),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            time(row.p50),
            time(row.p99),
            against(raw),
            against(usual)
        );
    }
    text.push('\n');
    put_sentences(report, &mut text);
    text
}

fn put_sentences(report: &Report, text: &mut String) {
    let held = |function| report.resident(function, 10_000);
    let both = held("consume").zip(held("consume, leases of 100"));
    if let (Some(produce), Some((consume, leases)), Some(usual)) = (held("produce"), both, held("FastAPI + aiokafka")) {
        let _ = writeln!(
            text,
            "Memory after 10,000 requests: `produce` {produce:.0} MiB, `consume` {consume:.0} MiB (with leases of 100 records \
             {leases:.0} MiB), FastAPI {usual:.0} MiB."
        );
    }
    let rate = |subject| report.row("one group, 4 partitions", subject)?.per_second;
    if let (Some(one), Some(four)) = (rate("consume, 1"), rate("consume, 4")) {
        let _ = writeln!(
            text,
            "One group on 4 partitions: {:.1} thousand records a second by one function, {:.1} by four.",
            one / 1e3,
            four / 1e3
        );
    }
    let ratios = report.ratios();
    let promised: Vec<_> = ratios.iter().filter(|ratio| ratio.promise.is_some() && ratio.is_measured()).collect();
    let missed: Vec<_> = promised.iter().filter(|ratio| ratio.kept() == Some(false)).collect();
    let _ = writeln!(text, "Of {} promises {} are kept.", promised.len(), promised.len() - missed.len());
    for ratio in missed {
        if let Some(promise) = ratio.promise {
            let _ = writeln!(text, "Missed: {} is {}, {promise} was promised.", ratio.what, ratio.shown());
        }
    }
    let Machine { processor, cores, kafka, .. } = &report.machine;
    let _ = writeln!(text, "Measured on {processor}, {cores} cores, with Kafka {kafka}.");
}
