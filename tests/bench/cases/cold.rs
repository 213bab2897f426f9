//! Cold starts: from the exec of a process to its first result.

use tests::progress;

use super::BATCH;
use crate::fastapi::FastApi;
use crate::raw;
use crate::stats::{Row, Samples};
use crate::world::{World, call, records, unique};

/// How often a cold start is tried: the traps are met by luck.
const COLD_STARTS: usize = 40;

/// From the start of a process to its first acknowledged record.
pub(super) async fn produce(world: &World) -> Vec<Row> {
    const CASE: &str = "cold start, first record acknowledged";
    progress("cold produce");
    let (topic, bootstrap) = (world.topic(1).await, world.stack.bootstrap());
    // Once unmeasured: what is installed or read from the disk for the first time is.
    call(&world.function("produce").await, world.produce_event(&topic)).await;
    raw::cold(&bootstrap, &topic, "tuned");
    FastApi::start(world, &topic).await;
    let keys = format!("{}/protocol/openid-connect/certs", world.stack.issuer());
    let [mut function, mut told, mut tuned, mut naive, mut usual] = [const { Samples::new() }; 5];
    for number in 0..COLD_STARTS {
        for (settings, samples) in [(&[][..], &mut function), (&[("OIDC_JWKS_URI", keys.as_str())], &mut told)] {
            let produce = world.function_with("produce", settings).await;
            // Lambda invokes as soon as init ends; what lies between the two here is this program's and not counted.
            let init = produce.init_duration();
            samples.add(init + call(&produce, world.produce_event(&topic)).await.0);
        }
        tuned.add(raw::cold(&bootstrap, &topic, "tuned"));
        naive.add(raw::cold(&bootstrap, &topic, "defaults"));
        // It takes a second, and has no trap.
        if number < 3 {
            usual.add(FastApi::start(world, &topic).await.1);
        }
    }
    vec![
        Row::times(CASE, "produce", &function),
        Row::times(CASE, "produce, told where the issuer's keys are", &told),
        Row::times(CASE, "raw client, tuned as produce", &tuned),
        Row::times(CASE, "raw client, idempotent, its own defaults", &naive),
        Row::times(CASE, "FastAPI + aiokafka", &usual),
    ]
}

/// From the start of a process to its first hundred records, their position committed.
pub(super) async fn consume(world: &World) -> Vec<Row> {
    const CASE: &str = "cold start, first 100 records";
    progress("cold consume");
    let topic = world.topic(1).await;
    world.fill(&topic, 1, BATCH * (COLD_STARTS + 1));
    let (mut new, mut known, group) = (Samples::new(), Samples::new(), unique("group"));
    // Once unmeasured: the broker makes its internal topics at the first group and the first transaction of all.
    call(&world.function("consume").await, world.consume_event(&topic, &unique("group"), BATCH, 5000)).await;
    let bootstrap = world.stack.bootstrap();
    raw::cold(&bootstrap, &topic, "consume");
    let [mut by_raw, mut usual] = [const { Samples::new() }; 2];
    for number in 0..COLD_STARTS {
        for (group, samples) in [(&unique("group"), &mut new), (&group, &mut known)] {
            let consume = world.function("consume").await;
            let init = consume.init_duration();
            let (took, answer) = call(&consume, world.consume_event(&topic, group, BATCH, 5000)).await;
            assert_eq!(records(&answer).len(), BATCH, "{answer}");
            samples.add(init + took);
        }
        by_raw.add(raw::cold(&bootstrap, &topic, "consume"));
        if number < 3 {
            usual.add(FastApi::first_records(world, &topic, &unique("group"), BATCH).await);
        }
    }
    vec![
        Row::times(CASE, "consume, a group's first call", &new),
        Row::times(CASE, "consume, a position that another sandbox has just left", &known),
        Row::times(CASE, "raw client, tuned as consume, poll and commit, not exclusive", &by_raw),
        Row::times(CASE, "FastAPI + aiokafka, joins the group", &usual),
    ]
}
