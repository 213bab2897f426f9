//! What each function is: how large, how soon it is ready, what it holds then. None should pay for what another needs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tests::process::resident;
use tests::{Function, progress};

use super::Measured;
use crate::stats::{Row, Samples};
use crate::world::World;

/// How often each is started.
const STARTS: usize = 20;

const FUNCTIONS: [&str; 11] = [
    "produce",
    "produce-batch",
    "consume",
    "consume-batch",
    "acknowledge",
    "seek",
    "fetch",
    "lag",
    "topics",
    "redrive",
    "lag-monitor",
];

/// What one function is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) function: String,
    /// The binary's size, in MiB.
    pub(crate) size: f64,
    /// Resident memory when it first asks for work, in MiB; the median.
    pub(crate) resident: f64,
}

/// One binary, started again and again.
struct Binary<'a> {
    name: &'static str,
    /// Another folder than this program's.
    folder: Option<&'a Path>,
    size: u64,
    init: Samples,
    held: Vec<f64>,
}

/// All functions in turns, and those in the folder `beside` with them.
pub(super) async fn cost(world: &World, beside: Option<&Path>, measured: &mut Measured) {
    const CASE: &str = "init: exec to the first request for work";
    progress("what each function costs");
    let folders = [None].into_iter().chain(beside.map(Some));
    let mut binaries: Vec<_> = folders
        .flat_map(|folder| {
            FUNCTIONS.map(|name| Binary { name, folder, size: 0, init: Samples::new(), held: Vec::new() })
        })
        .collect();
    let env = world.environment();
    // Once unmeasured: what is read from the disk for the first time is.
    for round in 0..=STARTS {
        for binary in &mut binaries {
            let function = match binary.folder {
                Some(folder) => Function::start_in(folder, binary.name, &env).await,
                None => Function::start(binary.name, &env).await,
            };
            if round > 0 {
                binary.init.add(function.init_duration());
                binary.held.push(resident(function.pid()));
            }
            binary.size = fs::metadata(format!("/proc/{}/exe", function.pid())).expect("its binary").len();
            drop(function);
            // Its end, and the broker's part in that, are not to be in the next one's beginning.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for Binary { name, folder, size, init, mut held } in binaries {
        let function = if folder.is_some() { format!("{name}, in the other folder") } else { name.to_owned() };
        held.sort_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let size = size as f64 / f64::from(1 << 20);
        measured.rows.push(Row::times(CASE, function.clone(), &init));
        measured.costs.push(Cost { function, size, resident: held[held.len() / 2] });
    }
}
