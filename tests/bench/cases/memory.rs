//! What the functions hold in memory.

use serde::{Deserialize, Serialize};
use tests::process::resident;
use tests::{Function, progress};

use super::BATCH;
use super::consume::{lease_and_accept, lease_event};
use crate::fastapi::FastApi;
use crate::world::{EMPTY, World, call, unique};

/// A function's memory after some requests.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) function: String,
    pub(crate) requests: usize,
    /// Resident, in MiB.
    pub(crate) resident: f64,
}

impl Memory {
    fn of(name: &str, requests: usize, function: &Function) -> Self {
        Self { function: name.to_owned(), requests, resident: resident(function.pid()) }
    }
}

/// How much memory the functions hold: after init, after 10,000 requests and, if asked for, after 110,000; leases of a
/// hundred records, which hold more, for a tenth as many.
pub(super) async fn memory(world: &World, long: bool) -> Vec<Memory> {
    const FIRST: usize = 10_000;
    let most = if long { FIRST + 100_000 } else { FIRST };
    progress(format_args!("memory, {most} requests to each function"));
    let topic = world.topic(1).await;
    world.fill(&topic, 1, most);
    let (produce, consume, empty) =
        (world.function("produce").await, world.function("consume").await, world.function(EMPTY).await);
    let (usual, _) = FastApi::start(world, &topic).await;
    let group = unique("group");
    let other = world.topic(1).await;
    let produced = requests("produce", &produce, world.produce_event(&other), most);
    let consumed = requests("consume", &consume, world.consume_event(&topic, &group, 1, 0), most);
    let (mut all, consumed, leased) = tokio::join!(produced, consumed, leases(world, most / 10));
    all.extend(consumed);
    all.extend(leased);
    all.extend(requests("empty function", &empty, world.produce_event(&other), FIRST).await);
    for _ in 0..FIRST {
        usual.produce(&other).await;
    }
    let resident = resident(usual.pid());
    all.push(Memory { function: "FastAPI + aiokafka".to_owned(), requests: FIRST, resident });
    all
}

/// Leases of a hundred records, accepted by the other function.
async fn leases(world: &World, most: usize) -> Vec<Memory> {
    let (consume, acknowledge) = (world.function("consume").await, world.function("acknowledge").await);
    let topic = world.topic(1).await;
    let take = lease_event(world, &topic, &unique("group"));
    let (mut by_consume, mut by_acknowledge) = (Vec::new(), Vec::new());
    for number in 0..=most {
        if number % 1000 == 0 {
            by_consume.push(Memory::of("consume, leases of 100", number, &consume));
            by_acknowledge.push(Memory::of("acknowledge, leases of 100", number, &acknowledge));
        }
        if number < most {
            // Not all at once: this program would hold them all.
            if number % 1000 == 0 {
                world.fill(&topic, 1, BATCH * 1000);
            }
            lease_and_accept(world, &consume, &acknowledge, &take).await;
        }
    }
    by_consume.into_iter().chain(by_acknowledge).collect()
}

async fn requests(name: &str, function: &Function, event: serde_json::Value, most: usize) -> Vec<Memory> {
    let mut all = Vec::new();
    for number in 0..=most {
        if number == 0 || number % 10_000 == 0 {
            all.push(Memory::of(name, number, function));
        }
        if number < most {
            call(function, event.clone()).await;
        }
    }
    all
}
