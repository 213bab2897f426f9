//! What is measured, a file a subject. Where times are compared, their subjects take turns, call by call or in short
//! rounds: whatever else the machine does then hits all of them alike.
//!
//! A new case is a function of [`World`] in a file here, a word in [`CASES`] and a line in [`measure`].

mod batch;
mod callers;
mod cold;
mod consume;
mod cost;
mod end;
mod fetch;
mod group;
mod memory;
mod produce;
mod schema;

use std::path::PathBuf;

pub(crate) use self::cost::Cost;
pub(crate) use self::group::Share;
pub(crate) use self::memory::Memory;
use crate::stats::Row;
use crate::world::World;

/// How many records a call of `consume` asks for.
const BATCH: usize = 100;

/// What can be measured, in the order of the report.
pub(crate) const CASES: [&str; 12] =
    ["cold", "produce", "batch", "consume", "cycle", "fetch", "schemas", "callers", "group", "end", "memory", "cost"];

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) rows: Vec<Row>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) shares: Vec<Share>,
    pub(crate) costs: Vec<Cost>,
}

/// How far it goes.
#[derive(Debug)]
pub(crate) struct Extent {
    /// More requests, where they show more.
    pub(crate) long: bool,
    /// Another folder of functions, whose cost is shown beside.
    pub(crate) beside: Option<PathBuf>,
}

/// Measures one of [`CASES`].
pub(crate) async fn measure(case: &str, world: &World, extent: &Extent, measured: &mut Measured) {
    let rows = &mut measured.rows;
    match case {
        "cold" => {
            rows.extend(cold::produce(world).await);
            rows.extend(cold::consume(world).await);
        }
        "produce" => rows.extend(produce::warm(world).await),
        "batch" => {
            rows.extend(batch::warm(world).await);
            rows.extend(batch::atomic(world).await);
        }
        "consume" => {
            rows.extend(consume::warm(world).await);
            rows.extend(consume::batch(world).await);
        }
        "cycle" => rows.extend(consume::cycle(world).await),
        "fetch" => rows.extend(fetch::warm(world).await),
        "schemas" => rows.extend(schema::batches(world).await),
        "callers" => {
            rows.extend(callers::produce(world).await);
            rows.extend(callers::consume(world).await);
            rows.extend(callers::one_sandbox(world).await);
        }
        "group" => group::one_group(world, measured).await,
        "end" => rows.extend(end::end(world).await),
        "memory" => measured.memory.extend(memory::memory(world, extent.long).await),
        "cost" => cost::cost(world, extent.beside.as_deref(), measured).await,
        other => unreachable!("{other} is no case"),
    }
}
