//! Keys and values with schemas, on a real registry: the formats, the rules, validation, and a registry that is away.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::batch::BATCH;
use crate::kit::{self, Raw};
use crate::registry::register;
use crate::world::{Answer, call, consume, function_with, produce, topic, unique};

pub(crate) const ORDER: &str = r#"{"type":"record","name":"Order","namespace":"shop","fields":[
    {"name":"id","type":"long"},
    {"name":"total","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":2}},
    {"name":"note","type":["null","string"],"default":null},
    {"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[
        {"name":"sku","type":"string"},{"name":"kind","type":{"type":"enum","name":"Kind","symbols":["NEW","USED"]}}]}}}]}"#;
pub(crate) const KEY: &str = r#"{"$schema":"http://json-schema.org/draft-07/schema#","type":"object",
    "properties":{"customer":{"type":"integer","minimum":1}},"required":["customer"]}"#;
pub(crate) const EVENT: &str = r#"syntax = "proto3"; package shop;
    message Event { int64 id = 1; repeated string tags = 2; map<string, int32> counts = 3; Address from = 4; }
    message Address { string city = 1; }"#;

/// A function that knows the registry.
pub(crate) async fn with_registry(name: &str, more: &[(&str, &str)]) -> Function {
    let url = Stack::shared().await.registry().await;
    function_with(name, &[&[("SCHEMA_REGISTRY_URL", url)], more].concat()).await
}

pub(crate) fn bytes(record: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(record[field].as_str().expect("base64")).expect("base64")
}

/// The id in the wire format.
pub(crate) fn id(bytes: &[u8]) -> u64 {
    assert_eq!(bytes[0], 0, "the wire format");
    u64::from(u32::from_be_bytes(bytes[1..5].try_into().expect("five bytes")))
}

pub(crate) async fn written(topic: &str, count: usize) -> Vec<Value> {
    kit::python(&["read", topic, "1", &count.to_string()]).await.as_array().expect("records").clone()
}

/// What is wrong, by pointer; after a look that the answer repeats nothing of `secret`.
pub(crate) fn pointers(answer: &Answer, secret: &str) -> Vec<String> {
    assert_eq!((answer.status, answer.code()), (422, "schema_validation_failed"), "{answer:?}");
    assert!(!answer.body.to_string().contains(secret), "{answer:?}");
    let errors = answer.body["errors"].as_array().expect("errors");
    for error in errors {
        for member in ["field", "expected", "found"] {
            assert!(error[member].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        }
    }
    errors.iter().map(|error| error["pointer"].as_str().expect("a pointer").to_owned()).collect()
}

#[tokio::test]
async fn every_format_goes_in_as_json_and_comes_out_as_it_was() {
    let (producer, consumer) = (with_registry("produce", &[]).await, with_registry("consume", &[]).await);
    let topic = topic(1).await;
    let key = register(&format!("{topic}-key"), "JSON", KEY, &json!([])).await;
    let order = register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    let event = register(&format!("{topic}-event"), "PROTOBUF", EVENT, &json!([])).await;
    let sent = json!({ "id": 9_007_199_254_740_993_i64, "total": 12.50, "note": "n", "lines": [{ "sku": "a", "kind": "USED" }] });
    let first = json!({
        "topic": topic, "key": { "customer": 7 }, "key_format": "jsonschema", "value": sent, "value_format": "avro",
    });
    produce(&producer, &first).await.ok();
    let happened = json!({ "id": "5", "tags": ["x"], "counts": { "a": 1 }, "from": { "city": "Ulm" } });
    let schema = json!({ "subject": format!("{topic}-event"), "version": 1 });
    let second = json!({ "topic": topic, "value": happened, "value_format": "protobuf", "value_schema": schema });
    produce(&producer, &second).await.ok();
    let tombstone =
        json!({ "topic": topic, "key": null, "value": null, "value_format": "avro", "key_format": "protobuf" });
    produce(&producer, &tombstone).await.ok();

    let records = written(&topic, 3).await;
    assert_eq!(id(&bytes(&records[0], "key")), key);
    assert_eq!(&bytes(&records[0], "key")[5..], br#"{"customer":7}"#);
    assert_eq!(id(&bytes(&records[0], "value")), order);
    assert_eq!(id(&bytes(&records[1], "value")), event);
    assert_eq!(bytes(&records[1], "value")[5], 0, "the first message");
    assert_eq!((&records[2]["key"], &records[2]["value"]), (&Value::Null, &Value::Null));

    let read = consume(&consumer, &topic, &unique("group"), "&key_format=jsonschema&value_format=avro").await;
    let messages = read.messages();
    assert_eq!((&messages[0]["key"], &messages[0]["value"]), (&json!({ "customer": 7 }), &sent));
    assert_eq!(messages[1]["value_encoding"], "base64");
    assert_eq!(messages[1]["value_error"], "has a schema of another type than the format");
    assert_eq!((&messages[2]["value"], messages[2].get("value_error")), (&Value::Null, None));
    let read = consume(&consumer, &topic, &unique("group"), "&value_format=protobuf").await;
    assert_eq!(read.messages()[1]["value"], happened);
}

/// Its id is one that no registry has, nor takes as a question.
#[tokio::test]
async fn a_record_that_only_begins_like_one_with_a_schema_stops_nothing() {
    let (producer, consumer) = (with_registry("produce", &[]).await, with_registry("consume", &[]).await);
    let topic = topic(1).await;
    for value in ["AP////8B", "AH////8B"] {
        produce(&producer, &json!({ "topic": topic, "value": value, "value_format": "binary" })).await.ok();
    }
    let read = consume(&consumer, &topic, &unique("group"), "&limit=2&value_format=avro").await;
    for message in read.messages() {
        assert_eq!(message["value_error"], "has a schema id that the registry does not know", "{message}");
    }
    assert_eq!(read.messages().len(), 2);
}

#[tokio::test]
async fn a_schema_that_was_missed_is_found_as_soon_as_it_is_registered() {
    let (producer, topic) = (with_registry("produce", &[]).await, topic(1).await);
    let record = json!({ "topic": topic, "key": { "customer": 7 }, "key_format": "jsonschema", "value": null });
    let missed = produce(&producer, &record).await;
    assert_eq!((missed.status, missed.code()), (404, "schema_not_found"));
    register(&format!("{topic}-key"), "JSON", KEY, &json!([])).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    produce(&producer, &record).await.ok();
}

#[tokio::test]
async fn an_answer_does_not_grow_beyond_what_lambda_takes_by_what_does_not_fit() {
    let producer = with_registry("produce-batch", &[]).await;
    let topic = topic(1).await;
    let draft = "http://json-schema.org/draft-07/schema#";
    let schema = json!({ "$schema": draft, "type": "object", "additionalProperties": { "type": "integer" } });
    register(&format!("{topic}-value"), "JSON", &schema.to_string(), &json!([])).await;
    // Ten mismatches in each, whose pointers are as long as can be, and longer as JSON in JSON.
    let names = (0..10).map(|n| (format!("{n}{}", "\"".repeat(190)), json!("x")));
    let wrong = Value::Object(names.collect());
    let mut records = vec![json!({ "value": wrong, "value_format": "jsonschema" }); 999];
    records.push(json!({ "value": { "a": 1 }, "value_format": "jsonschema" }));
    let body = json!({ "topic": topic, "records": records });
    let answer = call(&producer, Event::post(BATCH).json(&body)).await;
    assert_eq!(answer.status, 207);
    let results = answer.body["results"].as_array().expect("results");
    assert_eq!((results.len(), &results[999]["status"]), (1000, &json!(200)), "it says what was written");
    let mismatches = |result: &Value| result["errors"].as_array().map_or(0, Vec::len);
    assert_eq!((mismatches(&results[0]), mismatches(&results[998])), (10, 1), "the first ones in full");
    // One name as long as a record is no longer in one answer.
    let producer = with_registry("produce", &[]).await;
    let members = json!({ "type": "object", "required": ["n".repeat(9000)] });
    let schema = json!({ "$schema": draft, "type": "object", "additionalProperties": members });
    register(&format!("{topic}-value"), "JSON", &schema.to_string(), &json!([])).await;
    let value = json!({ "m".repeat(9000): {} });
    let record = json!({ "topic": topic, "value": value, "value_format": "jsonschema" });
    let answer = produce(&producer, &record).await;
    assert_eq!((answer.status, answer.code()), (422, "schema_validation_failed"));
    assert!(answer.body.to_string().len() < 2000, "{answer:?}");
}

#[tokio::test]
async fn confluents_own_serializers_read_what_is_written_and_the_reverse() {
    let (producer, consumer) = (with_registry("produce", &[]).await, with_registry("consume", &[]).await);
    let descriptor = json!([{
        "name": "interop.proto", "package": "interop", "syntax": "proto3", "dependency": ["google/protobuf/timestamp.proto"],
        "messageType": [
            { "name": "Event", "field": [
                { "name": "id", "number": 1, "type": "TYPE_INT64", "label": "LABEL_OPTIONAL" },
                { "name": "at", "number": 2, "type": "TYPE_MESSAGE", "typeName": ".google.protobuf.Timestamp", "label": "LABEL_OPTIONAL" },
            ]},
            { "name": "Outer", "nestedType": [{ "name": "Inner", "field": [
                { "name": "raw", "number": 1, "type": "TYPE_BYTES", "label": "LABEL_OPTIONAL" },
            ]}]},
        ],
    }, "interop.Event"]);
    let mut inner = descriptor.clone();
    inner[1] = json!("interop.Outer.Inner");
    let avro = r#"{"type":"record","name":"interop.All","fields":[
        {"name":"l","type":"long"},{"name":"d","type":"double"},{"name":"b","type":"boolean"},
        {"name":"u","type":["null","string",{"type":"map","values":"int"}]},
        {"name":"e","type":{"type":"enum","name":"interop.E","symbols":["P","Q"]}},
        {"name":"a","type":{"type":"array","items":"float"}},{"name":"s","type":"string","default":"café"}]}"#;
    let event = json!({ "id": "-9007199254740993", "at": "2026-01-01T00:00:00Z" });
    let all = json!({ "l": -9_007_199_254_740_993_i64, "d": 0.1, "b": true, "u": { "k": -1 }, "e": "Q", "a": [1.5, -2.0], "s": "x" });
    let object = KEY.replace("\"type\":\"object\"", "\"type\":\"object\",\"title\":\"Key\"");
    let cases = [
        ("avro", avro.to_owned(), all, true),
        ("jsonschema", object, json!({ "customer": 3, "more": [1, null, "é"] }), true),
        ("protobuf", descriptor.to_string(), event, true),
        // Ours writes a file's first message only.
        ("protobuf", inner.to_string(), json!({ "raw": "AP8=" }), false),
    ];
    for (kind, schema, value, first) in cases {
        let topic = topic(1).await;
        let theirs = confluent(&["write", kind, &topic, &schema, &value.to_string()]).await;
        let theirs = STANDARD.decode(theirs.as_str().expect("base64")).expect("base64");
        kit::write(&topic, &[Raw::value(0, theirs.clone())]).await;
        let format = format!("&value_format={kind}");
        let read = consume(&consumer, &topic, &unique("group"), &format).await;
        let tagged = json!({ "l": -9_007_199_254_740_993_i64, "d": 0.1, "b": true, "u": { "k": -1 }, "e": "Q", "a": [1.5, -2.0], "s": "x" });
        let expected = if kind == "avro" { tagged } else { value.clone() };
        assert_eq!(read.messages()[0]["value"], expected, "{kind}: theirs, read by us");
        if !first {
            continue;
        }
        produce(&producer, &json!({ "topic": topic, "value": value, "value_format": kind })).await.ok();
        let ours = written(&topic, 2).await[1]["value"].as_str().expect("base64").to_owned();
        assert_eq!(STANDARD.decode(&ours).expect("base64"), theirs, "{kind}: the same bytes");
        let read = confluent(&["read", kind, &topic, &schema, &ours]).await;
        assert_eq!(read, value, "{kind}: ours, read by them");
    }
}

/// Runs `python/schemas.py`; its answer is JSON.
async fn confluent(args: &[&str]) -> Value {
    let registry = Stack::shared().await.registry().await;
    let out = kit::confluent("schemas.py", &[&[registry], args].concat()).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[tokio::test]
async fn a_schema_is_chosen_by_version_or_id_and_only_of_the_topics_own_subjects() {
    let producer = with_registry("produce", &[]).await;
    let (topic, other) = (topic(1).await, unique("other"));
    let subject = format!("{topic}-value");
    let old =
        register(&subject, "AVRO", r#"{"type":"record","name":"A","fields":[{"name":"a","type":"int"}]}"#, &json!([]))
            .await;
    let newer =
        r#"{"type":"record","name":"A","fields":[{"name":"a","type":"int"},{"name":"b","type":"int","default":5}]}"#;
    let new = register(&subject, "AVRO", newer, &json!([])).await;
    let foreign = register(&format!("{other}-value"), "AVRO", r#"{"type":"array","items":"long"}"#, &json!([])).await;
    let reference = json!([{ "name": "A", "subject": subject, "version": 1 }]);
    let list = register(&format!("{topic}-list"), "AVRO", r#"{"type":"array","items":"A"}"#, &reference).await;

    let record =
        |schema: Value| json!({ "topic": topic, "value": { "a": 1 }, "value_format": "avro", "value_schema": schema });
    for (schema, expected) in [
        (json!({}), new),
        (json!({ "version": "latest" }), new),
        (json!({ "version": 1 }), old),
        (json!({ "id": old }), old),
        (json!({ "subject": subject, "id": new }), new),
    ] {
        let receipt = produce(&producer, &record(schema.clone())).await.ok();
        let offset = usize::try_from(receipt["offset"].as_u64().expect("an offset")).expect("small");
        let records = written(&topic, offset + 1).await;
        assert_eq!(id(&bytes(&records[offset], "value")), expected, "{schema}");
    }
    let many = json!({ "topic": topic, "value": [{ "a": 1 }], "value_format": "avro", "value_schema": { "subject": format!("{topic}-list"), "id": list } });
    produce(&producer, &many).await.ok();

    for (schema, status, code) in [
        (json!({ "version": 9 }), 404, "schema_not_found"),
        (json!({ "subject": format!("{topic}-nothing") }), 404, "schema_not_found"),
        (json!({ "id": 987_654 }), 404, "schema_not_found"),
        // That it is there, under another subject, is not told.
        (json!({ "id": foreign }), 404, "schema_not_found"),
        (json!({ "subject": format!("{other}-value") }), 400, "invalid_parameter"),
        (json!({ "subject": topic }), 400, "invalid_parameter"),
        (json!({ "version": 1, "id": old }), 400, "invalid_parameter"),
        (json!({ "version": "newest" }), 400, "invalid_parameter"),
        (json!({ "version": 0 }), 400, "invalid_parameter"),
        (json!({ "id": -1 }), 400, "invalid_parameter"),
        (json!({ "schema": "{}" }), 400, "invalid_parameter"),
        (json!([]), 400, "invalid_parameter"),
    ] {
        let answer = produce(&producer, &record(schema.clone())).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{schema}: {answer:?}");
    }
    let mut wrong = record(json!({}));
    wrong["value_format"] = json!("protobuf");
    assert_eq!(produce(&producer, &wrong).await.code(), "unprocessable_record");
    wrong["value_format"] = json!("json");
    assert_eq!(produce(&producer, &wrong).await.code(), "invalid_parameter");
}

#[tokio::test]
async fn schemas_that_refer_to_others_are_resolved_in_every_format() {
    let (producer, consumer) = (with_registry("produce", &[]).await, with_registry("consume", &[]).await);
    let line_avro = r#"{"type":"record","name":"shop.Line","fields":[{"name":"sku","type":"string"}]}"#;
    let order_avro = r#"{"type":"record","name":"shop.Order","fields":[{"name":"lines","type":{"type":"array","items":"shop.Line"}}]}"#;
    let line_json = r#"{"$schema":"http://json-schema.org/draft-07/schema#","type":"object",
        "properties":{"sku":{"type":"string"}},"required":["sku"],"additionalProperties":false}"#;
    let order_json = r#"{"$schema":"http://json-schema.org/draft-07/schema#","type":"object",
        "properties":{"lines":{"type":"array","items":{"$ref":"line.json"}}},"required":["lines"]}"#;
    let line_proto = r#"syntax = "proto3"; package shop; message Line { string sku = 1; }"#;
    let order_proto =
        r#"syntax = "proto3"; package shop; import "line.proto"; message Order { repeated Line lines = 1; }"#;
    for (format, kind, name, line, order) in [
        ("avro", "AVRO", "shop.Line", line_avro, order_avro),
        ("jsonschema", "JSON", "line.json", line_json, order_json),
        ("protobuf", "PROTOBUF", "line.proto", line_proto, order_proto),
    ] {
        let topic = topic(1).await;
        let (lines, orders) = (unique("line"), format!("{topic}-value"));
        register(&lines, kind, line, &json!([])).await;
        let reference = json!([{ "name": name, "subject": lines, "version": 1 }]);
        let registered = register(&orders, kind, order, &reference).await;
        let value = json!({ "lines": [{ "sku": "a" }, { "sku": "b" }] });
        let body = |value: &Value| json!({ "topic": topic, "value": value, "value_format": format });
        produce(&producer, &body(&value)).await.ok();
        assert_eq!(id(&bytes(&written(&topic, 1).await[0], "value")), registered, "{format}");
        // By another function, which knows of the schemas only what the record's id leads to.
        let read = consume(&consumer, &topic, &unique("group"), &format!("&value_format={format}")).await;
        assert_eq!(read.messages()[0]["value"], value, "{format}");
        let wrong = json!({ "lines": [{ "sku": "a" }, { "sku": ["s3cret"] }] });
        assert_eq!(pointers(&produce(&producer, &body(&wrong)).await, "s3cret"), ["/lines/1/sku"], "{format}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_422_and_names_the_place_but_not_the_value() {
    let producer = with_registry("produce", &[]).await;
    let topic = topic(1).await;
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    register(&format!("{topic}-key"), "JSON", KEY, &json!([])).await;
    register(&format!("{topic}-event"), "PROTOBUF", EVENT, &json!([])).await;
    let secret = "s3cret-value";
    let good = json!({ "id": 1, "total": 1, "lines": [] });
    let changed = |name: &str, value: Value| {
        let mut order = good.clone();
        order[name] = value;
        json!({ "topic": topic, "value": order, "value_format": "avro" })
    };
    for (body, pointer) in [
        (changed("id", json!(secret)), "/id"),
        (changed("id", json!(1.5)), "/id"),
        (changed("total", json!(0.001)), "/total"),
        (changed("lines", json!([{ "sku": "a", "kind": secret }])), "/lines/0/kind"),
        (changed("unknown", json!(secret)), "/unknown"),
    ] {
        assert_eq!(pointers(&produce(&producer, &body).await, secret), [pointer], "{body}");
    }
    let key = json!({ "topic": topic, "key": { "customer": secret }, "key_format": "jsonschema", "value": null });
    assert_eq!(pointers(&produce(&producer, &key).await, secret), ["/customer"]);
    let event = json!({ "topic": topic, "value": { "from": { "city": 1, "s": secret } }, "value_format": "protobuf",
        "value_schema": { "subject": format!("{topic}-event") } });
    assert_eq!(pointers(&produce(&producer, &event).await, secret), ["/from/city"]);
    assert!(!producer.log_text().contains(secret));
    // Nothing of all this was written: the first offset is still free.
    let receipt = produce(&producer, &changed("note", Value::Null)).await.ok();
    assert_eq!(receipt["offset"], 0);
}

#[tokio::test]
async fn plain_json_is_validated_where_its_subject_has_a_json_schema() {
    let producer = with_registry("produce", &[]).await;
    let strict = with_registry("produce", &[("SCHEMA_VALIDATION", "required")]).await;
    let off = with_registry("produce", &[("SCHEMA_VALIDATION", "off")]).await;
    let (validated, free, avro) = (topic(1).await, topic(1).await, topic(1).await);
    register(&format!("{validated}-value"), "JSON", KEY, &json!([])).await;
    register(&format!("{avro}-value"), "AVRO", ORDER, &json!([])).await;
    let record = |topic: &str, value: Value, format: &str| json!({ "topic": topic, "key": "k", "value": value, "value_format": format });
    let (good, bad) = (json!({ "customer": 1 }), json!({ "customer": "s3cret" }));

    for function in [&producer, &strict] {
        produce(function, &record(&validated, good.clone(), "auto")).await.ok();
        for format in ["auto", "json"] {
            assert_eq!(
                pointers(&produce(function, &record(&validated, bad.clone(), format)).await, "s3cret"),
                ["/customer"]
            );
        }
        // A text is validated as the JSON that it is.
        assert_eq!(
            pointers(&produce(function, &record(&validated, json!("{\"customer\":1}"), "auto")).await, "s3cret"),
            [""]
        );
        produce(function, &record(&validated, Value::Null, "auto")).await.ok();
    }
    produce(&off, &record(&validated, bad.clone(), "auto")).await.ok();
    let records = written(&validated, 5).await;
    assert_eq!(bytes(&records[0], "value"), br#"{"customer":1}"#, "validated, and else as it was sent");

    // No schema, another kind of schema, and formats that say that it is no JSON.
    for (topic, value, format, status, code) in [
        (&free, good.clone(), "auto", 404, "schema_not_found"),
        (&avro, good.clone(), "auto", 422, "schema_validation_failed"),
        (&validated, json!("x"), "string", 422, "schema_validation_failed"),
        (&validated, json!("AP8="), "binary", 422, "schema_validation_failed"),
    ] {
        produce(&producer, &record(topic, value.clone(), format)).await.ok();
        let answer = produce(&strict, &record(topic, value, format)).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
    }
}

#[tokio::test]
async fn what_does_not_decode_comes_as_base64_and_says_why() {
    let consumer = with_registry("consume", &[]).await;
    let topic = topic(1).await;
    let int = register(&format!("{topic}-value"), "AVRO", r#""int""#, &json!([])).await;
    let wire = |id: u64, body: &[u8]| [&[0][..], &u32::try_from(id).expect("an id").to_be_bytes(), body].concat();
    let records = [
        (wire(int, &[2]), None),
        (b"plain text".to_vec(), Some("is not in the schema registry's wire format")),
        (vec![], Some("is not in the schema registry's wire format")),
        (vec![0, 0, 0], Some("is not in the schema registry's wire format")),
        (wire(4_000_000_000, &[2]), Some("has a schema id that the registry does not know")),
        (wire(int, &[]), Some("does not fit its schema")),
        (wire(int, &[0xff; 20]), Some("does not fit its schema")),
        (wire(int, &[2, 2]), Some("does not fit its schema")),
    ];
    let raw: Vec<_> = records.iter().map(|(value, _)| Raw::value(0, value.clone())).collect();
    kit::write(&topic, &raw).await;
    let read = consume(&consumer, &topic, &unique("group"), "&format=avro").await;
    assert_eq!(read.messages().len(), records.len());
    for (message, (value, problem)) in read.messages().iter().zip(&records) {
        assert_eq!(message["value_error"].as_str(), *problem, "{message}");
        match problem {
            Some(_) => {
                assert_eq!((bytes(message, "value"), &message["value_encoding"]), (value.clone(), &json!("base64")));
            }
            None => assert_eq!(message["value"], 1),
        }
    }
}

#[tokio::test]
async fn without_a_registry_the_formats_are_refused() {
    let (producer, consumer) = (function_with("produce", &[]).await, function_with("consume", &[]).await);
    let topic = topic(1).await;
    for format in ["avro", "jsonschema", "protobuf"] {
        let answer = produce(&producer, &json!({ "topic": topic, "value": 1, "value_format": format })).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{answer:?}");
        let answer = consume(&consumer, &topic, &unique("group"), &format!("&key_format={format}")).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{answer:?}");
    }
}
