//! A sandbox's end.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::json;
use tests::{Event, progress};

use crate::stats::{Row, Samples};
use crate::world::{World, unique};

/// How often a sandbox is ended.
const ENDS: usize = 10;

/// From SIGTERM to the process's end, while a record waits in the producer for company, and metrics for the next push.
/// The second row counts only those ends after which the record is in Kafka.
pub(super) async fn end(world: &World) -> Vec<Row> {
    const CASE: &str = "SIGTERM to exit, a record in the producer, metrics unsent";
    progress("the end of sandboxes");
    let [mut all, mut sent] = [const { Samples::new() }; 2];
    let ends: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", world.stack.bootstrap())
        .set("group.id", "bench-end")
        .create()
        .expect("a consumer");
    for _ in 0..ENDS {
        let topic = world.topic(1).await;
        let count = || ends.fetch_watermarks(&topic, 0, Duration::from_secs(10)).expect("watermarks").1;
        let before = count();
        let settings = [("KAFKA_PROPERTIES", "linger.ms=25000"), ("KAFKA_REQUEST_TIMEOUT_MS", "29000")];
        let produce = world.function_with("produce", &settings).await;
        // Calls that fail are counted, too, and need no record: the first is pushed, the second waits for the next push.
        for _ in 0..2 {
            let absent = json!({ "topic": unique("absent"), "value": "v" });
            let event = Event::post("/kafka/producer/produce").bearer(&world.token).json(&absent).build();
            let answer = produce.invoke(event).await;
            assert_eq!(answer["statusCode"], 404, "{answer}");
        }
        let event = world.produce_event(&topic);
        let (unanswered, took) = tokio::join!(produce.try_invoke(event, Duration::from_secs(29)), async {
            // The topic is looked up and the record is queued long before.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let begun = Instant::now();
            produce.terminate();
            while !produce.exited() {
                assert!(begun.elapsed() < Duration::from_secs(10), "it does not end");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            begun.elapsed()
        });
        assert!(unanswered.is_err(), "the call was under way: {unanswered:?}");
        all.add(took);
        if count() > before {
            sent.add(took);
        }
    }
    vec![Row::times(CASE, "produce", &all), Row::times(CASE, "… of it with the record written", &sent)]
}
