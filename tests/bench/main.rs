//! `make bench`: the release binaries beside the raw client, an empty function and the usual way, on the local stack.
//!
//! It measures and asserts nothing about times: a busy machine would make that a test of the machine. What it does
//! assert is that every call succeeded and that every record was handed out once.
//!
//! - `--long` (`make bench-long`) adds 100,000 requests to each function, to see that its memory does not grow. Only then is
//!   the report kept, in results.json, docs/bench.md, docs/bench.svg and the README: a shorter one would leave lines out.
//!   And only then do promises that are missed by far make the program fail.
//! - `--only <case>` measures one of `cases::CASES`.
//! - `--beside <folder>` measures what the functions in another folder cost, too.
//! - `--write` measures nothing, and makes what is published from results.json again; `--check` says whether that would
//!   change anything.

mod cases;
mod fastapi;
mod raw;
mod report;
mod stats;
mod world;

use std::process::ExitCode;

use tests::progress;

use crate::cases::{CASES, Extent, Measured};
use crate::report::{Machine, Report, SLACK};
use crate::world::World;

/// What is to be done.
#[derive(Debug)]
enum Task {
    Measure { only: Option<&'static str>, extent: Extent },
    Write,
    Check,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(task) = task(std::env::args().skip(1)) else {
        eprintln!("usage: bench [--long] [--only {}] [--beside <folder>] | --write | --check", CASES.join("|"));
        return ExitCode::from(2);
    };
    let done = match task {
        Task::Measure { only, extent } => measure(only, &extent).await,
        Task::Write => Report::load().and_then(|report| report.publish()),
        Task::Check => check(),
    };
    done.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn task(mut arguments: impl Iterator<Item = String>) -> Option<Task> {
    let (mut only, mut extent) = (None, Extent { long: false, beside: None });
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--write" => return Some(Task::Write),
            "--check" => return Some(Task::Check),
            "--long" => extent.long = true,
            "--only" => {
                let case = arguments.next()?;
                only = Some(CASES.into_iter().find(|known| *known == case)?);
            }
            "--beside" => extent.beside = Some(arguments.next()?.into()),
            _ => return None,
        }
    }
    Some(Task::Measure { only, extent })
}

async fn measure(only: Option<&str>, extent: &Extent) -> tests::Result<()> {
    if cfg!(debug_assertions) {
        progress("this is a debug build: its figures say little (make bench)");
    }
    let machine = Machine::look();
    let world = World::start().await?;
    let mut measured = Measured::default();
    for case in CASES.into_iter().filter(|case| only.is_none_or(|only| only == *case)) {
        cases::measure(case, &world, extent, &mut measured).await;
    }
    drop(world);
    let report = Report::new(machine, measured);
    println!("{}", report.markdown());
    if only.is_some() || !extent.long {
        return Ok(());
    }
    report.save()?;
    // From the file, as `--check` has it.
    Report::load()?.publish()?;
    judge(&report)
}

/// An error that names the promises that are missed by more than the slack.
fn judge(report: &Report) -> tests::Result<()> {
    let ratios = report.ratios();
    let broken: Vec<_> = ratios.iter().filter(|ratio| ratio.broken()).map(|ratio| ratio.what).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(tests::Error::new(format!("missed by more than {SLACK} times, or not measured: {}", broken.join("; "))))
}

fn check() -> tests::Result<()> {
    let stale = Report::load()?.stale()?;
    if stale.is_empty() {
        return Ok(());
    }
    let stale: Vec<_> = stale.iter().map(|path| path.display().to_string()).collect();
    let how = "cargo run --bin bench -- --write";
    Err(tests::Error::new(format!("not as tests/bench/results.json has it: {} ({how})", stale.join(", "))))
}
