//! What one run measured, as it is kept in `results.json`, and what is said of it: `docs/bench.md`, `docs/bench.svg` and the
//! table in the README. All of those are made from the file alone, so that they can be held against it.

mod chart;
mod markdown;
mod promises;
mod readme;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use self::promises::SLACK;
use crate::cases::{Cost, Measured, Memory, Share};
use crate::stats::Row;

/// All that one run measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Row>,
    memory: Vec<Memory>,
    shares: Vec<Share>,
    costs: Vec<Cost>,
}

/// Where it was measured, as far as that explains the figures.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    kafka: String,
    /// How many processes wanted to run, on average over the minute before: more than the cores, and others disturbed.
    load: String,
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
        Self { machine, rows, memory, shares, costs }
    }

    /// Keeps it in `results.json`.
    pub(crate) fn save(&self) -> tests::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| tests::Error::new(e.to_string()))?;
        write(&results(), &(text + "\n"))
    }

    /// The last one that was kept.
    pub(crate) fn load() -> tests::Result<Self> {
        serde_json::from_str(&read(&results())?).map_err(|e| tests::Error::new(format!("{}: {e}", results().display())))
    }

    /// Writes all that is made of it.
    pub(crate) fn publish(&self) -> tests::Result<()> {
        self.published()?.into_iter().try_for_each(|(path, text)| write(&path, &text))
    }

    /// Which files are not what they would be made now.
    pub(crate) fn stale(&self) -> tests::Result<Vec<PathBuf>> {
        let mut stale = Vec::new();
        for (path, text) in self.published()? {
            if read(&path)? != text {
                stale.push(path);
            }
        }
        Ok(stale)
    }

    fn published(&self) -> tests::Result<[(PathBuf, String); 3]> {
        let (page, picture, readme) =
            (root().join("docs/bench.md"), root().join("docs/bench.svg"), root().join("README.md"));
        let table = readme::put(&read(&readme)?, self)?;
        Ok([(page, self.markdown()), (picture, chart::draw(self)), (readme, table)])
    }

    /// The row of a case whose subject begins so.
    fn row(&self, case: &str, subject: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.case.starts_with(case) && row.subject.starts_with(subject))
    }

    fn p50(&self, case: &str, subject: &str) -> Option<f64> {
        self.row(case, subject)?.p50
    }

    /// Resident memory of a function after so many requests.
    fn resident(&self, function: &str, requests: usize) -> Option<f64> {
        let memory = self.memory.iter().find(|it| it.function == function && it.requests == requests);
        memory.map(|memory| memory.resident)
    }
}

/// The repository.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

fn results() -> PathBuf {
    root().join("tests/bench/results.json")
}

fn read(path: &Path) -> tests::Result<String> {
    fs::read_to_string(path).map_err(|e| tests::Error::new(format!("{}: {e}", path.display())))
}

fn write(path: &Path, text: &str) -> tests::Result<()> {
    fs::write(path, text).map_err(|e| tests::Error::new(format!("{}: {e}", path.display())))
}

/// Three digits that mean something.
fn time(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => String::new(),
        Some(time) if time < 10.0 => format!("{time:.2}"),
        Some(time) if time < 100.0 => format!("{time:.1}"),
        Some(time) => format!("{time:.0}"),
    }
}
