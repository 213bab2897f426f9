//! `make bench`: the release binaries beside the raw client, an empty function and the usual way, on the local stack.
//!
//! It measures and asserts nothing about times: a busy machine would make that a test of the machine. What it does
//! assert is that every call succeeded and that every record was handed out once.
//!
//! `--long` adds 100,000 requests to each function, to see that its memory does not grow. `--only <case>` measures one of
//! `cases::CASES`, and writes nothing.

mod cases;
mod chart;
mod fastapi;
mod raw;
mod report;
mod stats;
mod world;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use tests::progress;

use crate::cases::{CASES, Measured};
use crate::report::{Machine, Report};
use crate::world::World;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let long = arguments.first() == Some(&"--long");
    arguments.drain(..usize::from(long));
    let only = match arguments[..] {
        [] => None,
        ["--only", case] if CASES.contains(&case) => Some(case),
        _ => {
            eprintln!("usage: bench [--long] [--only {}]", CASES.join("|"));
            return ExitCode::from(2);
        }
    };
    if cfg!(debug_assertions) {
        progress("this is a debug build: its figures say little (make bench)");
    }
    let machine = Machine::look();
    let world = match World::start().await {
        Ok(world) => world,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut measured = Measured::default();
    for case in CASES.into_iter().filter(|case| only.is_none_or(|only| only == *case)) {
        cases::measure(case, &world, long, &mut measured).await;
    }
    drop(world);
    let report = Report::new(machine, measured);
    let markdown = report.markdown();
    println!("{markdown}");
    if only.is_some() {
        return ExitCode::SUCCESS;
    }
    match write(&report, &markdown) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(report: &Report, markdown: &str) -> std::io::Result<()> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = package.parent().unwrap_or(package).join("docs");
    fs::create_dir_all(&docs)?;
    fs::write(package.join("bench/results.json"), serde_json::to_string_pretty(report)?)?;
    fs::write(docs.join("bench.md"), markdown)?;
    fs::write(docs.join("bench.svg"), chart::draw(report))
}
