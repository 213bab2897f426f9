//! Which route a request takes, and a call that panics.

use std::sync::atomic::AtomicU32;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::auth::Write;
use crate::config::{
    DeadLetterConfig, Delivery, KafkaConfig, MetricsConfig, OidcConfig, SchemaConfig, Security, Validation,
};
use crate::{app, fake_server};

const ROUTES: &[Route] = &[("GET", "/the/things"), ("GET", "/the/things/{thing}"), ("DELETE", "/the/things/{thing}")];

fn taken(method: &str, path: &str) -> Result<(&'static str, String), (Code, String)> {
    let event = json!({ "rawPath": path, "requestContext": { "http": { "method": method } } });
    let request = Request::new(serde_json::from_value(event).expect("an event"));
    let taken = route(ROUTES, &request).map(|(method, parameter)| (method, parameter.to_owned()));
    taken.map_err(|error| (error.code(), error.members().get("allow").map_or(String::new(), ToString::to_string)))
}

#[test]
fn a_resource_has_a_path_for_all_and_one_for_each() {
    assert_eq!(taken("GET", "/the/things"), Ok(("GET", String::new())));
    assert_eq!(taken("DELETE", "/prod/v1/the/things/a%20b"), Ok(("DELETE", "a%20b".to_owned())));
    assert_eq!(taken("GET", "/the/things/things"), Ok(("GET", "things".to_owned())));
    assert_eq!(taken("DELETE", "/the/things"), Err((Code::MethodNotAllowed, "\"GET\"".to_owned())));
    assert_eq!(taken("HEAD", "/the/things/a"), Err((Code::MethodNotAllowed, "\"GET, DELETE\"".to_owned())));
    for path in [
        "",
        "/",
        "things",
        "/the/things/",
        "/the/things/a/b",
        "/the/thing",
        "/xthe/things",
        "/the/things//",
        "/the/Things/a",
    ] {
        assert_eq!(taken("GET", path), Err((Code::RouteNotFound, String::new())), "{path}");
    }
}

/// Panics at its first call, with a text of which nothing may show; later calls are answered.
struct Panics {
    calls: AtomicU32,
}

impl Endpoint for Panics {
    const FUNCTION: &'static str = "panics";
    const SCHEMAS: bool = false;
    const ROUTES: &'static [Route] = &[("POST", "/panics")];
    type Permission = May<Write>;

    async fn start(_: &Config) -> Result<Self, BoxError> {
        Ok(Self { calls: AtomicU32::new(0) })
    }

    async fn call(&self, _: &May<Write>, call: &Call) -> Result<Reply, Error> {
        call.on_topic(&TopicName::parse("orders")?);
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(before > 0, "s3cret: {:?}", call.request.header("x-secret"));
        Ok(Reply::json(200, "{}".to_owned()))
    }

    async fn stop(&self) {}
}

/// The key of an issuer, who publishes it, and a token.
async fn issuer() -> (OidcConfig, String) {
    let key = Ed25519KeyPair::generate().expect("a key");
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": b64(key.public_key().as_ref()) });
    let (issuer, mut asked) = fake_server::start().await;
    tokio::spawn(async move {
        while let Some(held) = asked.recv().await {
            held.answer("200 OK", &json!({ "keys": [jwk] }).to_string()).await;
        }
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({
        "iss": issuer, "aud": "us", "sub": "me", "iat": now, "exp": now + 300, "typ": "Bearer",
        "realm_access": { "roles": ["kafka_producer:write"] },
    });
    let message = format!("{}.{}", b64(br#"{"alg":"EdDSA","kid":"k"}"#), b64(claims.to_string().as_bytes()));
    let token = format!("{message}.{}", b64(key.sign(message.as_bytes()).as_ref()));
    let jwks_uri = Some(format!("{issuer}/keys"));
    (OidcConfig { issuer, audience: "us".to_owned(), jwks_uri, role_claims: None }, token)
}

async fn service(oidc: OidcConfig) -> Service<Panics> {
    let kafka = KafkaConfig {
        bootstrap_servers: "localhost:1".to_owned(),
        security: Security::Plaintext,
        ca_file: None,
        properties: Vec::new(),
        auto_create_topics: false,
        delivery: Delivery::Exclusive,
        dead_letters: DeadLetterConfig::default(),
    };
    let schemas = SchemaConfig { registry: None, validation: Validation::Off, keep_invalid: false };
    let metrics = MetricsConfig { pushgateway_url: None, job: "test".to_owned() };
    let authenticator = Authenticator::start(&oidc, app::http_client().expect("a client")).await;
    let config = Config { kafka, oidc, schemas, metrics, request_timeout: Duration::from_secs(10) };
    Service::new(Warm::start(config).await.expect("an endpoint"), authenticator, Duration::from_secs(10))
}

#[test]
fn a_panic_is_a_500_that_says_nothing_of_it_and_the_next_call_is_answered() {
    let mut answers = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let lines = telemetry::tests::lines("", || {
        runtime.block_on(async {
            let (oidc, token) = issuer().await;
            let service = service(oidc).await;
            for request_id in ["r-1", "r-2"] {
                let event = json!({
                    "rawPath": "/panics", "requestContext": { "http": { "method": "POST" } },
                    "headers": { "authorization": format!("Bearer {token}"), "x-secret": "s3cret" },
                });
                let (answer, say) = service.answer(event.into(), request_id, 0).await;
                answers.push(serde_json::to_value(answer).expect("JSON"));
                say();
            }
        });
    });
    let [panicked, next] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((&panicked["statusCode"], &next["statusCode"]), (&json!(500), &json!(200)), "{answers:?}");
    assert_eq!(panicked["headers"]["content-type"], "application/problem+json");
    let problem: Value = serde_json::from_str(panicked["body"].as_str().expect("text")).expect("JSON");
    let expected = json!({
        "type": "/problems/internal", "title": "Internal error", "status": 500, "code": "internal", "error_code": 500,
        "detail": "The request could not be completed", "retryable": false, "request_id": "r-1",
    });
    assert_eq!(problem, expected);
    let line = lines.iter().find(|line| line["request_id"] == "r-1").expect("the request's line");
    assert_eq!((&line["message"], &line["level"]), (&json!("request failed"), &json!("ERROR")));
    assert_eq!((&line["function"], &line["topic"], &line["status"]), (&json!("panics"), &json!("orders"), &json!(500)));
    assert_eq!((&line["principal"], &line["code"]), (&json!("me"), &json!("internal")), "{line}");
    assert_eq!(line["error_chain"], "internal: The request could not be completed: the call panicked");
    assert!(line["backtrace"].as_str().is_some_and(|backtrace| !backtrace.is_empty()), "{line}");
    let said = format!("{lines:?}{answers:?}");
    assert!(!said.contains("s3cret"), "{said}");
}
