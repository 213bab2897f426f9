//! What the functions hold in memory.

use tests::process::resident;
use tests::{Function, progress};

use crate::fastapi::FastApi;
use crate::world::{EMPTY, World, call, unique};

/// A function's memory after some requests.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Memory {
    pub(crate) function: String,
    pub(crate) requests: usize,
    /// Resident, in MiB.
    pub(crate) resident: f64,
}

/// How much memory the functions hold, after init, after 10,000 requests and, if asked for, after 110,000.
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
    let (mut all, consumed) = tokio::join!(produced, consumed);
    all.extend(consumed);
    all.extend(requests("empty function", &empty, world.produce_event(&other), FIRST).await);
    for _ in 0..FIRST {
        usual.produce(&other).await;
    }
    let resident = resident(usual.pid());
    all.push(Memory { function: "FastAPI + aiokafka".to_owned(), requests: FIRST, resident });
    all
}

async fn requests(name: &str, function: &Function, event: serde_json::Value, most: usize) -> Vec<Memory> {
    let mut all = Vec::new();
    for number in 0..=most {
        if number == 0 || number % 10_000 == 0 {
            all.push(Memory { function: name.to_owned(), requests: number, resident: resident(function.pid()) });
        }
        if number < most {
            call(function, event.clone()).await;
        }
    }
    all
}
