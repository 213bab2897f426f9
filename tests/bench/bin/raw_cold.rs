//! A program that writes one record with the raw client, says so, and ends: what a cold start costs without a gateway.
//!
//! Arguments: bootstrap servers, topic, and `tuned` (the settings and the two metadata requests of `produce`) or
//! `defaults` (librdkafka's own, but for idempotence, as most programs would have it).

use std::process::exit;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, kind] = arguments.as_slice() else {
        eprintln!("usage: bench-raw-cold <bootstrap servers> <topic> tuned|defaults");
        exit(2);
    };
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("acks", "all");
    if kind == "tuned" {
        settings.set("linger.ms", "0").set("reconnect.backoff.ms", "10").set("retry.backoff.ms", "2");
    }
    let producer: FutureProducer = settings.create().expect("a producer");
    if kind == "tuned" {
        for _ in 0..2 {
            producer.client().fetch_metadata(Some("?"), Duration::from_secs(2)).expect("metadata");
        }
    }
    let value = "x".repeat(100);
    let record = FutureRecord::<(), str>::to(topic).payload(&value);
    producer.send(record, Duration::ZERO).await.map_err(|(error, _)| error).expect("acknowledged");
    println!("acknowledged");
    // librdkafka would take its time to end.
    exit(0);
}
