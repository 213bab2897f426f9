//! What `fetch` shows of records with schemas. It shares no session with `consume`.

use serde_json::{Value, json};

use crate::fetch::fetch;
use crate::kit::{self, Raw};
use crate::registry::{Door, Front, register};
use crate::schemas::{EVENT, KEY, ORDER, with_registry};
use crate::world::{function_with, produce, topic};

#[tokio::test]
async fn fetch_shows_every_format_and_says_what_does_not_decode() {
    let (producer, fetcher) = (with_registry("produce", &[]).await, with_registry("fetch", &[]).await);
    let order = json!({ "id": 9_007_199_254_740_993_i64, "total": 12.50, "note": "n", "lines": [] });
    let event = json!({ "id": "5", "tags": ["x"], "counts": { "a": 1 }, "from": { "city": "Ulm" } });
    for (format, kind, schema, value) in [
        ("avro", "AVRO", ORDER, order),
        ("jsonschema", "JSON", KEY, json!({ "customer": 7 })),
        ("protobuf", "PROTOBUF", EVENT, event),
    ] {
        let topic = topic(2).await;
        for field in ["key", "value"] {
            register(&format!("{topic}-{field}"), kind, schema, &json!([])).await;
        }
        let record = |partition: i32| {
            json!({
                "topic": topic, "partition": partition, "key": value, "key_format": format,
                "value": value, "value_format": format,
            })
        };
        produce(&producer, &record(0)).await.ok();
        produce(&producer, &record(1)).await.ok();
        let unknown = [&[0][..], &4_000_000_000_u32.to_be_bytes(), b"x"].concat();
        let tombstone = Raw { partition: 1, ..Raw::default() };
        kit::write(&topic, &[Raw::value(0, "plain text"), Raw::value(1, unknown.clone()), tombstone]).await;
        let shown = fetch(&fetcher, &topic, &format!("&offset=earliest&format={format}")).await;
        let messages = shown.messages();
        assert_eq!(messages.len(), 5, "{format}");
        for message in [&messages[0], &messages[2]] {
            assert_eq!((&message["key"], &message["value"]), (&value, &value), "{format}");
            assert!(message.get("value_error").is_none() && message.get("value_encoding").is_none(), "{message}");
        }
        for (message, reason, encoded) in [
            (&messages[1], "is not in the schema registry's wire format", "cGxhaW4gdGV4dA=="),
            (&messages[3], "has a schema id that the registry does not know", "AO5rKAB4"),
        ] {
            assert_eq!((&message["value_error"], &message["value_encoding"]), (&json!(reason), &json!("base64")));
            assert_eq!((&message["value"], &message["key"]), (&json!(encoded), &Value::Null), "{format}");
        }
        assert_eq!((&messages[4]["value"], messages[4].get("value_error")), (&Value::Null, None));
        assert_eq!(shown.body["next"], json!({ "0": 2, "1": 3 }), "what does not decode is passed like any record");
        // One of them alone, and the wrong way.
        let shown =
            fetch(&fetcher, &topic, &format!("&offset=earliest&limit=1&partition=0&value_format={format}")).await;
        assert_eq!(shown.messages()[0]["value"], value);
        assert_ne!(shown.messages()[0]["key"], value, "not asked for");
        let wrong = if format == "avro" { "protobuf" } else { "avro" };
        let shown = fetch(&fetcher, &topic, &format!("&offset=0:0&limit=1&value_format={wrong}")).await;
        assert_eq!(shown.messages()[0]["value_error"], "has a schema of another type than the format");
    }
}

#[tokio::test]
async fn a_record_that_is_shorter_as_json_than_it_is_fits_as_json() {
    let (topic, producer, fetcher) =
        (topic(1).await, with_registry("produce", &[]).await, with_registry("fetch", &[]).await);
    let doubles = r#"{"type": "array", "items": "double"}"#;
    register(&format!("{topic}-value"), "AVRO", doubles, &json!([])).await;
    // 12 KB as Avro, 6 KB as JSON.
    let record = json!({ "topic": topic, "value": vec![0.0; 1500], "value_format": "avro" });
    produce(&producer, &record).await.ok();
    let shown = fetch(&fetcher, &topic, "&offset=earliest&value_format=avro&max_bytes=10000").await;
    assert_eq!(shown.messages()[0]["value"].as_array().map(Vec::len), Some(1500));
    assert_eq!(fetch(&fetcher, &topic, "&offset=earliest&max_bytes=10000").await.code(), "record_too_large");
}

#[tokio::test]
async fn fetch_without_its_registry_is_503_and_the_same_call_works_later() {
    let front = Front::open(None).await;
    let topic = topic(1).await;
    register(&format!("{topic}-value"), "AVRO", ORDER, &json!([])).await;
    let record = json!({ "topic": topic, "value": { "id": 1, "total": 1, "lines": [] }, "value_format": "avro" });
    let producer = with_registry("produce", &[]).await;
    for _ in 0..3 {
        produce(&producer, &record).await.ok();
    }
    let query = "&offset=earliest&value_format=avro";
    let closed = format!("http://127.0.0.1:{}", tests::free_port().expect("a port"));
    let stranger = function_with("fetch", &[("SCHEMA_REGISTRY_URL", &closed)]).await;
    let unavailable = async |fetcher: &tests::Function| {
        let answer = fetch(fetcher, &topic, query).await;
        assert_eq!((answer.status, answer.code()), (503, "schema_registry_unavailable"), "{answer:?}");
        assert!(answer.headers["retry-after"].is_string() && answer.body["retryable"] == true, "{answer:?}");
        assert!(!answer.body.to_string().contains("127.0.0.1"), "{answer:?}");
        // Other formats need none.
        assert_eq!(fetch(fetcher, &topic, "&offset=earliest").await.messages().len(), 3);
    };
    unavailable(&stranger).await;
    for door in [Door::Hangs, Door::Garbage, Door::Fails] {
        front.set(door);
        let fetcher = function_with("fetch", &[("SCHEMA_REGISTRY_URL", &front.url)]).await;
        unavailable(&fetcher).await;
        front.set(Door::Open);
        // It is left alone for a while; then it is asked again.
        let answered = async {
            loop {
                let answer = fetch(&fetcher, &topic, query).await;
                if answer.status == 200 {
                    return answer;
                }
            }
        };
        let answer = tokio::time::timeout(std::time::Duration::from_secs(60), answered).await.expect("it comes back");
        assert!(answer.messages().iter().all(|message| message["value"]["id"] == 1), "{door:?}: {answer:?}");
        assert_eq!(answer.messages().len(), 3);
    }
}
