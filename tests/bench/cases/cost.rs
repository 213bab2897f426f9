//! What each function is: how large, how soon it is ready, what it holds then. None should pay for what another needs.

use std::fs;

use serde::Serialize;
use tests::process::resident;
use tests::progress;

use crate::stats::Samples;
use crate::world::World;

/// How often each is started.
const STARTS: usize = 5;

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
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) function: &'static str,
    /// The binary's size, in MiB.
    pub(crate) size: f64,
    /// From the exec to its first request for work, in milliseconds; the median.
    pub(crate) init: f64,
    /// Resident memory then, in MiB.
    pub(crate) resident: f64,
}

pub(super) async fn cost(world: &World) -> Vec<Cost> {
    progress("what each function costs");
    let mut all = Vec::new();
    for name in FUNCTIONS {
        let mut init = Samples::new();
        let (mut size, mut held) = (0, 0.0);
        for _ in 0..STARTS {
            let function = world.function(name).await;
            init.add(function.init_duration());
            held = resident(function.pid());
            size = fs::metadata(format!("/proc/{}/exe", function.pid())).expect("its binary").len();
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let size = size as f64 / f64::from(1 << 20);
        all.push(Cost { function: name, size, init: init.p50(), resident: held });
    }
    all
}
