//! Producing in warm sandboxes, by one caller.

use tests::progress;

use crate::fastapi::FastApi;
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{EMPTY, World, timed};

/// One caller: a call, its answer, the next call. In two paces, since the raw client's time depends on it: call by call
/// each finds the machine as the others leave it; in blocks each has it hot for itself.
pub(super) async fn warm(world: &World) -> Vec<Row> {
    let mut rows = paced(world, "produce, warm, one caller, taking turns", 1, 2000).await;
    rows.extend(paced(world, "produce, warm, one caller, in blocks of 200", 200, 10).await);
    rows
}

async fn paced(world: &World, case: &'static str, block: usize, rounds: usize) -> Vec<Row> {
    progress(case);
    let topic = world.topic(1).await;
    let raw = raw::producer(&world.stack.bootstrap());
    let (produce, empty) = (world.function("produce").await, world.function(EMPTY).await);
    let (usual, _) = FastApi::start(world, &topic).await;
    let [mut by_raw, mut by_empty, mut by_function, mut by_usual] = [const { Samples::new() }; 4];
    // Two hundred calls of each warm up.
    let unmeasured = 200 / block;
    for round in 0..unmeasured + rounds {
        let [mut r, mut e, mut f, mut u] = [const { Samples::new() }; 4];
        for _ in 0..block {
            r.add(raw::produce(&raw, &topic).await);
        }
        for _ in 0..block {
            e.add(timed(&empty, world.produce_event(&topic)).await.0);
        }
        for _ in 0..block {
            f.add(timed(&produce, world.produce_event(&topic)).await.0);
        }
        for _ in 0..block {
            u.add(usual.produce(&topic).await);
        }
        if round >= unmeasured {
            by_raw.extend(r);
            by_empty.extend(e);
            by_function.extend(f);
            by_usual.extend(u);
        }
    }
    vec![
        Row::times(case, "produce", &by_function),
        Row::times(case, "raw client", &by_raw),
        Row::times(case, "empty function", &by_empty),
        Row::times(case, "FastAPI + aiokafka", &by_usual),
    ]
}
