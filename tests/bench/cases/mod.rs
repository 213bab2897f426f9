//! What is measured, a file a subject. Where times are compared, their subjects take turns, call by call or in short
//! rounds: whatever else the machine does then hits all of them alike.
//!
//! A new case is a function of [`World`] in a file here, a word in [`CASES`] and a line in [`measure`].

mod batch;
mod cold;
mod consume;
mod cost;
mod fetch;
mod group;
mod memory;
mod produce;
mod schema;

pub(crate) use self::cost::Cost;
pub(crate) use self::group::Share;
pub(crate) use self::memory::Memory;
use crate::stats::Row;
use crate::world::World;

/// How many records a call of `consume` asks for.
const BATCH: usize = 100;

/// What can be measured, in the order of the report.
pub(crate) const CASES: [&str; 11] =
    ["cold", "produce", "batch", "consume", "cycle", "fetch", "schemas", "callers", "group", "memory", "cost"];

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) rows: Vec<Row>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) shares: Vec<Share>,
    pub(crate) costs: Vec<Cost>,
}

/// Measures one of [`CASES`]; `long`, where more requests show more.
pub(crate) async fn measure(case: &str, world: &World, long: bool, measured: &mut Measured) {
    let rows = &mut measured.rows;
    match case {
        "cold" => {
            rows.extend(cold::produce(world).await);
            rows.extend(cold::consume(world).await);
        }
        "produce" => rows.extend(produce::warm(world).await),
        "batch" => rows.extend(batch::warm(world).await),
        "consume" => {
            rows.extend(consume::warm(world).await);
            rows.extend(consume::batch(world).await);
        }
        "cycle" => rows.extend(consume::cycle(world).await),
        "fetch" => rows.extend(fetch::warm(world).await),
        "schemas" => rows.extend(schema::batches(world).await),
        "callers" => rows.extend(produce::callers(world).await),
        "group" => group::one_group(world, measured).await,
        "memory" => measured.memory.extend(memory::memory(world, long).await),
        "cost" => measured.costs.extend(cost::cost(world).await),
        other => unreachable!("{other} is no case"),
    }
}
