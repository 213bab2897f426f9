//! Keys have schemas as values have: every format for both, `key_schema`, and plain keys that a JSON Schema stands for.

use serde_json::{Value, json};

use crate::registry::register;
use crate::schemas::{EVENT, KEY, ORDER, bytes, id, pointers, with_registry, written};
use crate::world::{consume, produce, topic, unique};

/// A way to write a key or a value: format, the registry's name for it, schema, what fits, what does not, and where not.
type Way = (&'static str, &'static str, &'static str, Value, Value, &'static str);

fn ways() -> [Way; 3] {
    let order = json!({ "id": 9_007_199_254_740_993_i64, "total": 12.50, "note": null, "lines": [] });
    let event = json!({ "id": "5", "tags": ["x"], "counts": { "a": 1 }, "from": { "city": "Ulm" } });
    let wrong = "s3cret-part";
    [
        ("avro", "AVRO", ORDER, order, json!({ "id": wrong, "total": 1, "lines": [] }), "/id"),
        ("jsonschema", "JSON", KEY, json!({ "customer": 7 }), json!({ "customer": wrong }), "/customer"),
        ("protobuf", "PROTOBUF", EVENT, event, json!({ "from": { "city": [wrong] } }), "/from/city"),
    ]
}

#[tokio::test]
async fn keys_and_values_are_written_and_shown_in_every_format() {
    let (producer, consumer) = (with_registry("produce", &[]).await, with_registry("consume", &[]).await);
    for (format, kind, schema, good, bad, pointer) in ways() {
        for (field, other) in [("key", "value"), ("value", "key")] {
            let (topic, what) = (topic(1).await, format!("{format} {field}"));
            let registered = register(&format!("{topic}-{field}"), kind, schema, &json!([])).await;
            let record = |content: &Value| json!({ "topic": topic, field: content, format!("{field}_format"): format, other: "plain" });
            let refused = produce(&producer, &record(&bad)).await;
            assert_eq!(pointers(&refused, "s3cret"), [pointer], "{what}");
            assert_eq!(refused.body["errors"][0]["field"], field, "{what}");
            assert_eq!(refused.body["subject"], format!("{topic}-{field}"), "{what}");
            assert_eq!(produce(&producer, &record(&good)).await.ok()["offset"], 0, "{what}");
            let raw = &written(&topic, 1).await[0];
            assert_eq!(id(&bytes(raw, field)), registered, "{what}");
            assert_eq!(bytes(raw, other), b"plain", "{what}");
            let read = consume(&consumer, &topic, &unique("group"), &format!("&{field}_format={format}")).await;
            let message = &read.messages()[0];
            assert_eq!((&message[field], &message[other]), (&good, &json!("plain")), "{what}");
            assert!(message.get(format!("{field}_error")).is_none(), "{message}");
        }
    }
}

#[tokio::test]
async fn a_key_s_schema_is_chosen_as_a_value_s_is() {
    let producer = with_registry("produce", &[]).await;
    let (topic, other) = (topic(1).await, unique("other"));
    let subject = format!("{topic}-key");
    let record_of = |fields: &str| format!(r#"{{"type":"record","name":"K","fields":[{fields}]}}"#);
    let (a, b) = (r#"{"name":"a","type":"int"}"#, r#"{"name":"b","type":"int","default":5}"#);
    let old = register(&subject, "AVRO", &record_of(a), &json!([])).await;
    let new = register(&subject, "AVRO", &record_of(&format!("{a},{b}")), &json!([])).await;
    let own = register(&format!("{topic}-own"), "AVRO", &record_of(b), &json!([])).await;
    let foreign = register(&format!("{other}-key"), "AVRO", r#"{"type":"array","items":"long"}"#, &json!([])).await;
    let record = |schema: &Value| json!({ "topic": topic, "key": { "a": 1 }, "key_format": "avro", "key_schema": schema, "value": "plain" });
    let named = format!("{topic}-own");
    for (offset, (schema, key, expected)) in [
        (json!({}), json!({ "a": 1 }), new),
        (json!({ "version": 1 }), json!({ "a": 1 }), old),
        (json!({ "id": old }), json!({ "a": 1 }), old),
        (json!({ "subject": subject, "id": new }), json!({ "a": 1 }), new),
        (json!({ "subject": named, "version": "latest" }), json!({ "b": 1 }), own),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = record(&schema);
        body["key"] = key;
        produce(&producer, &body).await.ok();
        let raw = written(&topic, offset + 1).await;
        assert_eq!(id(&bytes(&raw[offset], "key")), expected, "{schema}");
        assert_eq!(bytes(&raw[offset], "value"), b"plain");
    }
    for (schema, status, code) in [
        (json!({ "version": 9 }), 404, "schema_not_found"),
        (json!({ "subject": format!("{topic}-nothing") }), 404, "schema_not_found"),
        (json!({ "id": foreign }), 404, "schema_not_found"),
        // That it is under another subject of the topic, which was not named, does not help.
        (json!({ "id": own }), 404, "schema_not_found"),
        (json!({ "subject": format!("{other}-key") }), 400, "invalid_parameter"),
        (json!({ "version": 1, "id": old }), 400, "invalid_parameter"),
        (json!("latest"), 400, "invalid_parameter"),
    ] {
        let answer = produce(&producer, &record(&schema)).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{schema}: {answer:?}");
        let said = answer.body["detail"].as_str().expect("a detail");
        assert!(said.starts_with("key"), "which of the two: {said}");
    }
    let mut plain = record(&json!({ "version": 1 }));
    plain["key_format"] = json!("json");
    assert_eq!(produce(&producer, &plain).await.code(), "invalid_parameter");
    assert_eq!(written(&topic, 5).await.len(), 5);
}

#[tokio::test]
async fn plain_keys_are_validated_where_their_subject_has_a_json_schema() {
    let modes = ["if-registered", "required", "off"];
    let [checks, requires, off] = modes.map(|mode| [("SCHEMA_VALIDATION", mode)]);
    let (checks, requires, off) = tokio::join!(
        with_registry("produce", &checks),
        with_registry("produce", &requires),
        with_registry("produce", &off)
    );
    let (validated, avro, free) = (topic(1).await, topic(1).await, topic(1).await);
    register(&format!("{validated}-key"), "JSON", KEY, &json!([])).await;
    register(&format!("{avro}-key"), "AVRO", ORDER, &json!([])).await;
    // Values are validated too, for whom that is required.
    let integer = r#"{"$schema":"http://json-schema.org/draft-07/schema#","type":"integer"}"#;
    for topic in [&validated, &avro, &free] {
        register(&format!("{topic}-value"), "JSON", integer, &json!([])).await;
    }
    let record = |topic: &str, key: &Value, format: &str| json!({ "topic": topic, "key": key, "key_format": format, "value": 1 });
    let mut written_there = 0;
    for function in [&checks, &requires] {
        for (key, format, pointer) in [
            (json!({ "customer": "s3cret" }), "auto", "/customer"),
            (json!({ "customer": "s3cret" }), "json", "/customer"),
            (json!({}), "auto", "/customer"),
            // A text is validated as the string that it is, whatever it looks like.
            (json!("{\"customer\":1}"), "auto", ""),
        ] {
            let answer = produce(function, &record(&validated, &key, format)).await;
            assert_eq!(pointers(&answer, "s3cret"), [pointer], "{key}");
            assert_eq!(answer.body["errors"][0]["field"], "key", "{answer:?}");
            assert_eq!(answer.body["subject"], format!("{validated}-key"), "{answer:?}");
        }
        // Of a key no validation is required: null, what is no JSON, and what has no JSON Schema.
        for (topic, key, format) in [
            (&validated, json!({ "customer": 1 }), "auto"),
            (&validated, Value::Null, "auto"),
            (&validated, json!("plain"), "string"),
            (&validated, json!("AP8="), "binary"),
            (&avro, json!({ "any": 1 }), "auto"),
            (&free, json!("plain"), "auto"),
        ] {
            produce(function, &record(topic, &key, format)).await.ok();
            written_there += usize::from(topic == &validated);
        }
        // Key and value each have their own say.
        let mut value = record(&validated, &json!({ "customer": 1 }), "auto");
        value["value"] = json!("s3cret");
        assert_eq!(produce(function, &value).await.body["errors"][0]["field"], "value");
    }
    produce(&off, &record(&validated, &json!({ "customer": "any" }), "auto")).await.ok();
    let raw = written(&validated, written_there + 1).await;
    assert_eq!(bytes(&raw[0], "key"), br#"{"customer":1}"#, "validated, and else as it was sent");
    assert_eq!(bytes(&raw[written_there], "key"), br#"{"customer":"any"}"#);
}
