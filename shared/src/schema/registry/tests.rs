use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::fake_server::{self, Held};

const INT: &str = r#"{"schema":"\"int\""}"#;
const UNKNOWN: &str = r#"{"error_code":40403,"message":"Schema not found"}"#;

async fn start() -> (Arc<Registry>, UnboundedReceiver<Held>) {
    let (address, requests) = fake_server::start().await;
    let url = Url::parse(&format!("{address}/apis/v7/")).expect("an address");
    (Arc::new(Registry::new(&RegistryConfig { url, authorization: None, secret: None }, Schema::to_write)), requests)
}

fn soon() -> Deadline {
    Deadline::of_invocation(0, Duration::from_secs(10))
}

/// Answers the next request, which must be this one.
async fn answer(requests: &mut UnboundedReceiver<Held>, path: &str, status: &str, body: &str) {
    let held = requests.recv().await.expect("a request");
    assert_eq!(held.line, format!("GET /apis/v7/{path}"));
    held.answer(status, body).await;
}

fn code<T>(result: Result<T, Error>) -> Code {
    result.err().expect("an error").code()
}

#[tokio::test]
async fn many_calls_ask_once_and_what_is_known_is_not_asked_again() {
    let (registry, mut requests) = start().await;
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let registry = Arc::clone(&registry);
            tokio::spawn(async move { registry.schema(7, soon()).await.expect("an answer").is_some() })
        })
        .collect();
    answer(&mut requests, "schemas/ids/7", "200 OK", INT).await;
    for call in calls {
        assert!(call.await.expect("no panic"));
    }
    // A subject's name is one segment of the path, whatever is in it.
    let asking = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.id("a/b?-value", Version::Latest, NOT_YET, soon()).await }
    });
    answer(&mut requests, "subjects/a%2Fb%3F-value/versions/latest", "200 OK", r#"{"id":7,"version":2}"#).await;
    assert_eq!(asking.await.expect("no panic").expect("an answer"), Some(7));
    assert_eq!(registry.id("a/b?-value", Version::Latest, NOT_YET, soon()).await.expect("known"), Some(7));
    assert!(requests.try_recv().is_err(), "all of it was known");
}

#[tokio::test]
async fn references_are_fetched_with_their_own_and_once() {
    let (registry, mut requests) = start().await;
    let asking = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.schema(1, soon()).await }
    });
    let outer =
        r#"{"schemaType":"AVRO","schema":"[\"x.A\",\"x.B\"]","references":[{"name":"x.A","subject":"a","version":3}]}"#;
    answer(&mut requests, "schemas/ids/1", "200 OK", outer).await;
    let a = r#"{"schema":"{\"type\":\"record\",\"name\":\"x.A\",\"fields\":[{\"name\":\"b\",\"type\":\"x.B\"}]}",
        "references":[{"name":"x.B","subject":"b","version":1},{"name":"x.A","subject":"a","version":3}]}"#;
    answer(&mut requests, "subjects/a/versions/3", "200 OK", a).await;
    let b = r#"{"schema":"{\"type\":\"enum\",\"name\":\"x.B\",\"symbols\":[\"S\"]}"}"#;
    answer(&mut requests, "subjects/b/versions/1", "200 OK", b).await;
    let schema = asking.await.expect("no panic").expect("an answer").expect("a schema");
    assert_eq!(schema.kind(), Some(Kind::Avro));
    assert!(schema.encode(r#"{"x.B":"S"}"#).expect("usable").is_ok());
}

#[tokio::test]
async fn what_is_missing_is_told_from_what_failed() {
    let (registry, mut requests) = start().await;
    let asking = |id| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.schema(id, soon()).await })
    };
    let missing = asking(1);
    answer(&mut requests, "schemas/ids/1", "404 Not Found", UNKNOWN).await;
    assert!(missing.await.expect("no panic").expect("an answer").is_none());
    assert!(registry.schema(1, soon()).await.expect("known to be missing").is_none());

    // A 404 of something else on the way, and what is no answer of a registry at all.
    for (id, status, body) in [
        (2, "404 Not Found", "<html>"),
        (3, "401 Unauthorized", r#"{"error_code":40101}"#),
        (4, "500 Internal Server Error", ""),
        (5, "200 OK", "<html>"),
        (6, "200 OK", r#"{"schema":7}"#),
        (7, "302 Found", ""),
    ] {
        let (registry, mut requests) = start().await;
        let asking = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.schema(id, soon()).await }
        });
        answer(&mut requests, &format!("schemas/ids/{id}"), status, body).await;
        assert_eq!(code(asking.await.expect("no panic")), Code::SchemaRegistryUnavailable, "{status} {body}");
        // It is left alone for a while, also about other things.
        assert_eq!(code(registry.schema(99, soon()).await), Code::SchemaRegistryUnavailable);
        assert!(requests.try_recv().is_err());
    }
}

/// A record begins with any id, and a caller may name any version: that stops nobody else.
#[tokio::test]
async fn an_odd_question_is_not_taken_for_a_registry_that_is_away() {
    let (registry, mut requests) = start().await;
    assert!(registry.schema(u32::MAX, soon()).await.expect("an answer").is_none());
    assert_eq!(registry.id("t-value", Version::Number(1 << 31), NOT_YET, soon()).await.expect("an answer"), None);
    assert!(!registry.is_under(1 << 31, "t-value", soon()).await.expect("an answer"));
    assert!(requests.try_recv().is_err(), "there can be none");

    let id = |subject, version| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.id(subject, version, NOT_YET, soon()).await })
    };
    let schema = |id| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.schema(id, soon()).await })
    };
    let asking = id("t-value", Version::Number(7));
    let refused = r#"{"error_code":42202,"message":"The specified version is not valid"}"#;
    answer(&mut requests, "subjects/t-value/versions/7", "422 Unprocessable Entity", refused).await;
    assert_eq!(asking.await.expect("no panic").expect("an answer"), None);

    // Larger than any schema.
    let asking = schema(1);
    answer(&mut requests, "schemas/ids/1", "200 OK", &" ".repeat(LARGEST + 1)).await;
    let large = asking.await.expect("no panic").expect("an answer").expect("a schema");
    assert!(matches!(&*large, Schema::Unusable(None)));
    // Refused for the name's sake, perhaps.
    let asking = id("t-a/b", Version::Latest);
    answer(&mut requests, "subjects/t-a%2Fb/versions/latest", "400 Bad Request", "Ambiguous URI").await;
    assert_eq!(code(asking.await.expect("no panic")), Code::SchemaRegistryUnavailable);
    let asking = schema(2);
    answer(&mut requests, "schemas/ids/2", "200 OK", INT).await;
    assert!(asking.await.expect("no panic").expect("an answer").is_some(), "others are still asked for");
}

#[tokio::test]
async fn a_registry_that_hangs_costs_its_two_seconds_or_less() {
    let (registry, mut requests) = start().await;
    let short = Deadline::of_invocation(0, Duration::from_millis(50));
    let (first, held) = tokio::join!(registry.schema(1, short), requests.recv());
    assert_eq!(code(first), Code::SchemaRegistryUnavailable);
    drop(held);
    // One call's short deadline says nothing about the registry: the next asks again, and learns it.
    let (second, held) = tokio::join!(registry.schema(1, soon()), requests.recv());
    assert_eq!(code(second), Code::SchemaRegistryUnavailable);
    held.expect("a request").abandoned().await;
    assert_eq!(code(registry.schema(1, soon()).await), Code::SchemaRegistryUnavailable);
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_schema_that_cannot_be_used_is_no_failure_of_the_registry() {
    let (registry, mut requests) = start().await;
    for (id, body, kind) in [
        (1, r#"{"schema":"{"}"#, Some(Kind::Avro)),
        (2, r#"{"schema":"","schemaType":"THRIFT"}"#, None),
        (3, r#"{"schema":"[","schemaType":"JSON"}"#, Some(Kind::JsonSchema)),
    ] {
        let asking = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.schema(id, soon()).await }
        });
        answer(&mut requests, &format!("schemas/ids/{id}"), "200 OK", body).await;
        let schema = asking.await.expect("no panic").expect("an answer").expect("a schema");
        assert!(matches!(&*schema, Schema::Unusable(unusable) if *unusable == kind), "{body}");
    }
}

#[test]
fn credentials_never_show() {
    let mut authorization = HeaderValue::from_static("Basic s3cret");
    authorization.set_sensitive(true);
    let url = Url::parse("http://localhost:8081").expect("an address");
    let config = RegistryConfig { url, authorization: Some(authorization), secret: None };
    assert!(!format!("{config:?} {:?}", Registry::new(&config, Schema::to_read)).contains("s3cret"));
}
