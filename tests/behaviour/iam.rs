//! The login at MSK by IAM, at a broker that checks tokens as MSK does (`support/java/MskTokens.java`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use serde_json::json;
use tests::{Event, Function, SECRET_KEY};
use tokio::net::TcpListener;

use crate::secured::{function_by, secured};
use crate::security::{locked_out, the_rest_comes_in};
use crate::wire::ACKNOWLEDGE;
use crate::world::{Answer, call, consume, produce, topic_on, unique};

/// Milliseconds since 1970, so many seconds from now.
fn in_seconds(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    (now + seconds) * 1000
}

/// Starts a function with the credentials that Lambda gives: in its environment.
async fn function_with_keys(name: &str, secret_key: &str, more: &[(&str, &str)]) -> Function {
    let session = format!("until-{}", in_seconds(86_400));
    let keys = [
        ("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", secret_key),
        ("AWS_SESSION_TOKEN", &session),
        ("RUST_LOG", "trace"),
    ];
    function_by(name, "msk-iam", "IAM", &[&keys, more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_client_logs_in_by_iam() {
    let (server, group) = (secured().await.broker().bootstrap(), unique("group"));
    let topic = topic_on(&server, 1, &[]).await;
    let start = async |name: &str| function_with_keys(name, SECRET_KEY, &[]).await;
    let (producer, consumer, acker) = tokio::join!(start("produce"), start("consume"), start("acknowledge"));
    let (rewinder, meter) = tokio::join!(start("seek"), start("lag"));
    assert_eq!(produce(&producer, &json!({ "topic": topic, "value": "v" })).await.ok()["offset"], 0);
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
    assert_eq!(leased.messages()[0]["value"], "v");
    let accept = json!({ "token": leased.body["lease"]["token"], "type": "accept" });
    call(&acker, Event::post(ACKNOWLEDGE).json(&accept)).await.ok();
    let back = json!({ "group_id": group, "topic": topic, "to": "earliest" });
    call(&rewinder, Event::post("/kafka/consumer/seek").json(&back)).await.ok();
    let lag = Event::get("/kafka/consumer/lag").query(&format!("topic={topic}&group_id={group}"));
    assert_eq!(call(&meter, lag).await.ok()["total_lag"], 1);
    assert_eq!(consume(&consumer, &topic, &group, "").await.messages()[0]["value"], "v");
    the_rest_comes_in(&topic, async |name: &str, more: &[(&str, &str)]| {
        function_with_keys(name, SECRET_KEY, more).await
    })
    .await;
    for function in [producer, consumer, acker, rewinder, meter] {
        let log = function.log_text();
        assert!(!log.contains(SECRET_KEY) && !log.contains("until-"), "{log}");
        // How every token begins: `https://kafka.`
        assert!(!log.contains("aHR0cHM6Ly9rYWZrYS"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_kafka_does_not_know_is_503_and_so_are_credentials_that_cannot_be_had() {
    let soon = ("KAFKA_REQUEST_TIMEOUT_MS", "3000");
    for name in ["produce", "consume"] {
        let function = function_with_keys(name, "another-secret-key", &[soon]).await;
        locked_out(&function, name, &["invalid_token"]).await;
        assert!(!function.log_text().contains("another-secret-key"));
        let nobody = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/");
        let function = function_by(name, "msk-iam", "IAM", &[soon, nobody]).await;
        locked_out(&function, name, &["no login at Kafka yet"]).await;
    }
}

/// What hands credentials out that live for a short time, as AWS does in containers.
struct Credentials {
    url: String,
    given: Arc<AtomicU64>,
}

impl Credentials {
    async fn hand_out(life_s: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let given = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&given);
        let answer = async move || {
            let (number, until) = (counted.fetch_add(1, Ordering::SeqCst), in_seconds(life_s));
            let at = format!("@{}", until / 1000);
            let date = std::process::Command::new("date").args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%SZ"]).output();
            let expiration = String::from_utf8(date.expect("a date").stdout).expect("UTF-8");
            let credentials = json!({
                "AccessKeyId": format!("ASIA{number}"),
                "SecretAccessKey": SECRET_KEY,
                "Token": format!("until-{until}"),
                "Expiration": expiration.trim(),
            });
            credentials.to_string()
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.expect("served") });
        Self { url, given }
    }

    async fn function(&self, name: &str) -> Function {
        function_by(name, "msk-iam", "IAM", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &self.url)]).await
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }
}

/// Calls until it is answered with 200. A busy machine may be late with the login that a broker asks for again, and is then
/// cut off in the middle of a call: that is 503, and the next call works.
async fn patiently(mut one: impl AsyncFnMut() -> Answer) -> Answer {
    let first = one().await;
    if first.status == 200 { first } else { one().await }
}

/// The broker also wants every connection to log in again, well before tokens end (`AGAIN_MS` in `support/secured.rs`).
#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_while_tokens_end_and_after_a_freeze_that_outlives_them() {
    const LIFE: u64 = 30;
    let (server, group) = (secured().await.broker().bootstrap(), unique("group"));
    let topic = topic_on(&server, 1, &[]).await;
    let (ours, theirs) = (Credentials::hand_out(LIFE).await, Credentials::hand_out(LIFE).await);
    let (producer, consumer) = tokio::join!(ours.function("produce"), theirs.function("consume"));
    let mut written = 0_u64;
    let mut round = async || {
        let value = written.to_string();
        patiently(async || produce(&producer, &json!({ "topic": topic, "value": value })).await).await.ok();
        while patiently(async || consume(&consumer, &topic, &group, "").await)
            .await
            .messages()
            .iter()
            .all(|message| message["value"] != value)
        {}
        written += 1;
    };
    // The first token of each has ended by then, and the second.
    while ours.given() < 3 || theirs.given() < 3 {
        round().await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    producer.freeze();
    consumer.freeze();
    tokio::time::sleep(Duration::from_secs(LIFE + 2)).await;
    producer.thaw();
    consumer.thaw();
    round().await;
    // One for many calls and all clients.
    assert!(written > 20 && ours.given() < 8 && theirs.given() < 8, "{written}, {}, {}", ours.given(), theirs.given());
}

#[test]
fn each_function_can_be_built_without_aws() {
    for folder in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../functions")).expect("functions") {
        let manifest = folder.expect("a folder").path().join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).expect("a manifest");
        let features = "[features]\ndefault = [\"aws\"]\naws = [\"kafka-gateway/aws\"]\n";
        assert!(text.contains(features), "{}", manifest.display());
    }
}
