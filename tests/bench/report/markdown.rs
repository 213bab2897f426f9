//! `docs/bench.md`.

use std::fmt::Write as _;

use super::{Machine, Report, SLACK, time};
use crate::cases::{Cost, Memory, Share};

impl Report {
    /// The whole report.
    pub(crate) fn markdown(&self) -> String {
        let mut text = self.beginning();
        self.put_rows(&mut text);
        self.put_ratios(&mut text);
        self.put_memory(&mut text);
        self.put_shares(&mut text);
        self.put_costs(&mut text);
        self.put_cold_starts(&mut text);
        text
    }

    fn beginning(&self) -> String {
        let Machine { processor, cores, kafka, load } = &self.machine;
        format!(
            "# Measured\n\n\
             By `make bench-long`: the release binaries under a simulator of Lambda's Runtime and Extensions API, with their \
             tokens checked, their logs written and their metrics pushed, beside other ways to do the same in the same \
             run. Kafka {kafka}, one broker, plaintext on loopback, 100-byte values, `acks=all`; {processor}, {cores} \
             cores that the broker, the clients and this program share; load before the start {load}. AWS's network, \
             API Gateway and Lambda's own start of a sandbox are not in these figures. Times in milliseconds.\n\n\
             Sandboxes serve one call at a time, as on Lambda, and callers beyond them wait for one; where it says \"one \
             sandbox\", they are of Lambda Managed Instances, and serve many at once. Many callers that consume do so for \
             one group: groups of their own would have nothing to exclude each other from.\n"
        )
    }

    fn put_rows(&self, text: &mut String) {
        text.push_str("\n| | | n | p50 | p99 | longest | per second |\n|---|---|---:|---:|---:|---:|---:|\n");
        let mut before = "";
        for row in &self.rows {
            let case = if row.case == before { "" } else { &row.case };
            before = &row.case;
            let rate = row.per_second.map_or(String::new(), |rate| format!("{rate:.0}"));
            let (p50, p99, longest) = (time(row.p50), time(row.p99), time(row.longest));
            let _ = writeln!(text, "| {case} | {} | {} | {p50} | {p99} | {longest} | {rate} |", row.subject, row.count);
        }
    }

    fn put_ratios(&self, text: &mut String) {
        text.push_str("\n| | measured | promised | |\n|---|---:|---|---|\n");
        // What was not measured in this run is not there to be compared.
        for ratio in self.ratios().iter().filter(|ratio| ratio.is_measured()) {
            let promise = ratio.promise.map_or(String::new(), |promise| promise.to_string());
            let kept = match ratio.kept() {
                None => "",
                Some(true) => "kept",
                Some(false) if ratio.broken() => "**missed**",
                Some(false) => "missed, within the slack",
            };
            let _ = writeln!(text, "| {} | {} | {promise} | {kept} |", ratio.what, ratio.shown());
        }
        let _ = writeln!(
            text,
            "\nThe slack is {:.0} %, in memory none: one run is not like another. `make bench-long` fails where more is missing.",
            (SLACK - 1.0) * 100.0
        );
    }

    fn put_memory(&self, text: &mut String) {
        text.push_str("\n| resident memory | requests | MiB |\n|---|---:|---:|\n");
        for Memory { function, requests, resident } in &self.memory {
            let _ = writeln!(text, "| {function} | {requests} | {resident:.1} |");
        }
        text.push_str(
            "\nGrowth is the median of the slopes between any two of these figures from 30,000 requests (3,000 leases) on (Theil \
             and Sen): what a sandbox keeps, it has by then, and one step of a heap is no leak. A leak of 16 bytes a request would be 1.6 MB per 100,000.\n",
        );
    }

    fn put_shares(&self, text: &mut String) {
        text.push_str(
            "\n| processor time, one group, seconds | by the clock | functions | broker | this program |\n\
             |---|---:|---:|---:|---:|\n",
        );
        for Share { subject, took, functions, broker, bench } in &self.shares {
            let _ = writeln!(text, "| {subject} | {took:.1} | {functions:.1} | {broker:.1} | {bench:.1} |");
        }
    }

    fn put_costs(&self, text: &mut String) {
        text.push_str("\n| function | binary, MiB | resident when it asks for work, MiB |\n|---|---:|---:|\n");
        for Cost { function, size, resident } in &self.costs {
            let _ = writeln!(text, "| {function} | {size:.1} | {resident:.1} |");
        }
    }

    fn put_cold_starts(&self, text: &mut String) {
        text.push_str("\nEvery cold start and every end, in the order they were made (the traps would show here):\n\n");
        for row in self.rows.iter().filter(|row| !row.each.is_empty()) {
            let each: Vec<_> = row.each.iter().map(|time| format!("{time:.0}")).collect();
            let _ = writeln!(text, "- {}, {}: {}", row.case, row.subject, each.join(", "));
        }
    }
}
