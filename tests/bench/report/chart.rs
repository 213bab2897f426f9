//! The chart in the README: bars, in an SVG that reads on light and on dark pages.

use std::fmt::Write as _;

use super::{Report, time};

/// A group of bars with one scale.
struct Panel {
    title: &'static str,
    case: &'static str,
    /// Which rows, by the beginning of their subject, and what they are called here.
    bars: &'static [(&'static str, &'static str)],
    /// Whether the bars are records or calls a second, where longer is better, and not times.
    rates: bool,
}

const PANELS: &[Panel] = &[
    Panel {
        title: "Produce, warm, p50 (ms)",
        case: "produce, warm, one caller, taking turns",
        bars: &[("produce", "produce"), ("raw", "raw client"), ("empty", "empty function"), ("FastAPI", USUAL)],
        rates: false,
    },
    Panel {
        title: "Consume 100 records, warm, p50 (ms)",
        case: "consume 100, warm",
        bars: &[
            ("consume", "consume, exclusive"),
            ("raw", "raw client, not exclusive"),
            ("FastAPI + aiokafka, a member", "FastAPI, a member that stays"),
            ("FastAPI + aiokafka, stateless", "FastAPI, stateless"),
        ],
        rates: false,
    },
    Panel {
        title: "Lease 100 records and accept them, p50 (ms)",
        case: "manual cycle",
        bars: &[("consume and", "consume, acknowledge"), ("FastAPI + aiokafka", "FastAPI, a member that stays")],
        rates: false,
    },
    Panel {
        title: "Cold start to the first record, p50 (ms)",
        case: "cold start, first record",
        bars: &[
            ("produce", "produce"),
            ("raw client, tuned", "raw client, tuned"),
            ("raw client, idem", "raw client, its defaults"),
            ("FastAPI", USUAL),
        ],
        rates: false,
    },
    Panel {
        title: "Cold start to the first 100 records, p50 (ms)",
        case: "cold start, first 100",
        bars: &[
            ("consume, a group", "consume"),
            ("raw client", "raw client, not exclusive"),
            ("FastAPI", "FastAPI, joins the group"),
        ],
        rates: false,
    },
    Panel {
        title: "One group, 4 partitions (records a second)",
        case: "one group",
        bars: &[("consume, 1", "1 function"), ("consume, 2", "2 functions"), ("consume, 4", "4 functions")],
        rates: true,
    },
];
const USUAL: &str = "FastAPI + aiokafka";

const WIDTH: usize = 720;
/// Where bars begin, and how long the longest is.
const LEFT: usize = 210;
const LONGEST: f64 = 420.0;
const LINE: usize = 22;

/// Draws the report.
pub(super) fn draw(report: &Report) -> String {
    let (mut body, mut y) = (String::new(), 0);
    for panel in PANELS {
        let bars: Vec<(&str, f64)> = panel
            .bars
            .iter()
            .filter_map(|(subject, name)| {
                let mut rows = report.rows.iter().filter(|row| row.case.starts_with(panel.case));
                let row = rows.find(|row| row.subject.starts_with(subject))?;
                Some((*name, if panel.rates { row.per_second? } else { row.p50? }))
            })
            .collect();
        let most = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        y += 26;
        let _ = writeln!(body, "<text class=\"title\" x=\"0\" y=\"{y}\">{}</text>", panel.title);
        y += 8;
        for (index, (name, value)) in bars.into_iter().enumerate() {
            let length = (value / most * LONGEST).max(1.0);
            let (middle, end) = (y + 15, f64::from(u32::try_from(LEFT).unwrap_or(0)) + length + 6.0);
            // Ours are the first; of functions beside functions, all.
            let class = if index == 0 || panel.rates { "ours" } else { "other" };
            let value = if panel.rates { format!("{value:.0}") } else { time(Some(value)) };
            let _ = writeln!(
                body,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"14\" rx=\"2\"/>\
                 <text x=\"{end:.1}\" y=\"{middle}\">{value}</text>",
                LEFT - 8,
                y + 4,
            );
            y += LINE;
        }
        y += 8;
    }
    // A picture inside a page knows the page's preference, but none of its colours.
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" viewBox=\"0 0 {WIDTH} {y}\" \
         role=\"img\" aria-label=\"Times and rates of the functions beside other ways; the table holds the same\">\n\
         <style>text{{font:13px system-ui,sans-serif;fill:#57606a}}.title{{font-weight:600;fill:#24292f}}\
         .ours{{fill:#2f81f7}}.other{{fill:#9aa4b0}}\
         @media(prefers-color-scheme:dark){{text{{fill:#9ea7b3}}.title{{fill:#e6edf3}}.other{{fill:#6e7681}}}}</style>\n\
         {body}</svg>\n"
    )
}
