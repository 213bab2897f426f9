//! What schemas cost a record: batches of a thousand, so that the call itself counts for little.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, progress};

use crate::stats::{Row, Samples};
use crate::world::{World, timed};

const RECORDS: usize = 1000;
const ROUNDS: usize = 30;

/// The same records as plain JSON, validated by a JSON Schema, and encoded with each kind of schema.
pub(super) async fn batches(world: &World) -> Vec<Row> {
    const CASE: &str = "batch of 1000 records of 100 bytes, with schemas";
    progress("schemas");
    let registry = world.stack.try_registry().await.expect("the registry").to_owned();
    let mut env = world.stack.kafka_env();
    env.insert("SCHEMA_REGISTRY_URL".to_owned(), registry.clone());
    let batch = Function::start("produce-batch", &env).await;
    let mut subjects = Vec::new();
    for (subject, format, schema) in [
        ("plain JSON", "auto", None),
        ("plain JSON, validated", "auto", Some(json!({ "schemaType": "JSON", "schema": JSON_SCHEMA }))),
        ("avro", "avro", Some(json!({ "schema": AVRO }))),
        ("jsonschema", "jsonschema", Some(json!({ "schemaType": "JSON", "schema": JSON_SCHEMA }))),
        ("protobuf", "protobuf", Some(json!({ "schemaType": "PROTOBUF", "schema": PROTOBUF }))),
    ] {
        let topic = world.topic(1).await;
        if let Some(schema) = schema {
            register(&registry, &topic, &schema).await;
        }
        subjects.push((subject, event(world, &topic, format), Samples::new()));
    }
    for round in 0..ROUNDS + 2 {
        for (_, event, samples) in &mut subjects {
            let took: Duration = timed(&batch, event.clone()).await.0;
            // Two of each warm up.
            if round >= 2 {
                samples.add(took);
            }
        }
    }
    subjects.into_iter().map(|(subject, _, samples)| Row::times(CASE, subject, &samples)).collect()
}

fn event(world: &World, topic: &str, format: &str) -> Value {
    let name = "abcdefghijklmnopqrstuvwxyz0123456789";
    let value = json!({ "id": 12_345_678, "name": name, "price": 12.5, "tags": ["a", "b"], "active": true });
    let records: Vec<Value> = (0..RECORDS).map(|_| json!({ "value": value, "value_format": format })).collect();
    let body = json!({ "topic": topic, "records": records });
    Event::post("/kafka/producer/produce/batch").bearer(&world.token).json(&body).build()
}

async fn register(registry: &str, topic: &str, schema: &Value) {
    let url = format!("{registry}/subjects/{topic}-value/versions");
    let body = schema.to_string();
    let kind = "application/vnd.schemaregistry.v1+json";
    let sent = reqwest::Client::new().post(url).header("content-type", kind).body(body).send().await;
    let answer = sent.expect("the registry answers");
    assert!(answer.status().is_success(), "{answer:?}");
}

const JSON_SCHEMA: &str = r#"{"type":"object","required":["id","name","price","tags","active"],"additionalProperties":false,
"properties":{"id":{"type":"integer"},"name":{"type":"string","maxLength":100},"price":{"type":"number","minimum":0},
"tags":{"type":"array","items":{"type":"string"}},"active":{"type":"boolean"}}}"#;

const AVRO: &str = r#"{"type":"record","name":"Item","fields":[{"name":"id","type":"long"},{"name":"name","type":"string"},
{"name":"price","type":"double"},{"name":"tags","type":{"type":"array","items":"string"}},{"name":"active","type":"boolean"}]}"#;

const PROTOBUF: &str = r#"syntax = "proto3";
message Item { int64 id = 1; string name = 2; double price = 3; repeated string tags = 4; bool active = 5; }"#;
