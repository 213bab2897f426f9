//! TLS, certificates and passwords at a real broker: what works, and what is refused, and how.

use serde_json::{Value, json};
use tests::{Event, Function};

use crate::batch::BATCH;
use crate::fetch::FETCH;
use crate::kit::{problem, scheduled};
use crate::redrive::REDRIVE;
use crate::secured::{PASSWORD, function_by, secured};
use crate::topics::TOPICS;
use crate::wire::ACKNOWLEDGE;
use crate::world::{PRODUCE, call, consume, produce, topic_on, unique};

/// What each way needs: its name, its listener, and its variables.
async fn ways() -> [(&'static str, &'static str, Vec<(&'static str, String)>); 4] {
    let (certificate, key) = (secured_file("gateway.pem").await, secured_file("gateway.key").await);
    let credentials = vec![("KAFKA_CREDENTIALS", format!("gateway:{PASSWORD}"))];
    [
        ("tls", "TLS", vec![]),
        ("mtls", "MTLS", vec![("KAFKA_CLIENT_CERT_FILE", certificate), ("KAFKA_CLIENT_KEY_FILE", key)]),
        ("scram-sha-256", "SCRAM", credentials.clone()),
        ("scram-sha-512", "SCRAM", credentials),
    ]
}

async fn secured_file(name: &str) -> String {
    secured().await.certificates().path(name).to_str().expect("UTF-8").to_owned()
}

fn pairs<'a>(variables: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_client_comes_in_by_every_kind_of_security() {
    let server = secured().await.broker().bootstrap();
    for (security, listener, variables) in ways().await {
        let (topic, group) = (topic_on(&server, 2, &[]).await, unique("group"));
        let start = async |name: &str| function_by(name, security, listener, &pairs(&variables)).await;
        let (producer, consumer, acker) = tokio::join!(start("produce"), start("consume"), start("acknowledge"));
        let (rewinder, meter) = tokio::join!(start("seek"), start("lag"));
        for partition in 0..2 {
            let body = json!({ "topic": topic, "value": security, "partition": partition });
            assert_eq!(produce(&producer, &body).await.ok()["offset"], 0, "{security}");
        }
        let mut got = Vec::new();
        while got.len() < 2 {
            let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
            got.extend(leased.messages().iter().map(|message| message["value"].clone()));
            let accept = json!({ "token": leased.body["lease"]["token"], "type": "accept" });
            call(&acker, Event::post(ACKNOWLEDGE).json(&accept)).await.ok();
        }
        assert_eq!(got, [security, security]);
        let lag = Event::get("/kafka/consumer/lag").query(&format!("topic={topic}&group_id={group}"));
        assert_eq!(call(&meter, lag.clone()).await.ok()["total_lag"], 0, "{security}");
        let back = json!({ "group_id": group, "topic": topic, "to": "earliest" });
        call(&rewinder, Event::post("/kafka/consumer/seek").json(&back)).await.ok();
        assert_eq!(call(&meter, lag).await.ok()["total_lag"], 2, "{security}");
        assert!(!consume(&consumer, &topic, &group, "").await.messages().is_empty(), "{security}");
        the_rest_comes_in(&topic, async |name: &str, more: &[(&str, &str)]| {
            function_by(name, security, listener, &[&pairs(&variables), more].concat()).await
        })
        .await;
    }
}

/// The functions with other clients than the first five: transactional producers, readers without a group, the catalogue,
/// what moves letters, and what measures on a schedule. The topic holds two records.
pub(crate) async fn the_rest_comes_in(topic: &str, start: impl AsyncFn(&str, &[(&str, &str)]) -> Function) {
    let batch = |topic: &str, value: &str| {
        let body = json!({ "topic": topic, "atomic": true, "records": [{ "value": value }] });
        Event::post(BATCH).json(&body)
    };
    let (batches, reader) = tokio::join!(start("produce-batch", &[]), start("fetch", &[]));
    let (catalogue, mover) = tokio::join!(start("topics", &[]), start("redrive", &[]));
    call(&batches, batch(topic, "in a transaction")).await.ok();
    let from = Event::get(FETCH).query(&format!("topic={topic}&offset=earliest"));
    let read = call(&reader, from).await;
    assert!(read.messages().iter().any(|message| message["value"] == "in a transaction"), "{}", read.body);
    let letters = format!("{topic}.dlq");
    let made = json!({ "topic": letters, "partitions": 1, "replication_factor": 1 });
    assert_eq!(call(&catalogue, Event::post(TOPICS).json(&made)).await.status, 201);
    call(&batches, batch(&letters, "a letter")).await.ok();
    let back = Event::post(REDRIVE).json(&json!({ "dlq_topic": letters }));
    let answer = call(&mover, back).await.ok();
    assert_eq!(answer["redriven"], 1, "{answer}");
    let groups = format!("watched={topic}");
    let monitor = start("lag-monitor", &[("LAG_MONITOR_GROUPS", &groups)]).await;
    assert_eq!(monitor.invoke(scheduled()).await, Value::Null, "{}", monitor.log_text());
}

/// A short ceiling: nothing of this passes by waiting.
const SOON: (&str, &str) = ("KAFKA_REQUEST_TIMEOUT_MS", "3000");

/// Calls a function that no broker lets in: 503 by `broker_unavailable`, and the log says why.
pub(crate) async fn locked_out(function: &Function, name: &str, why: &[&str]) {
    let event = match name {
        "produce" => Event::post(PRODUCE).json(&json!({ "topic": "t", "value": "v" })),
        "lag" => Event::get("/kafka/consumer/lag").query("group_id=g&topic=t"),
        _ => Event::get("/kafka/consumer/consume").query("topic=t&group_id=g"),
    };
    let token = tests::Stack::shared().await.token("gateway-full").await;
    let answer = function.invoke(event.bearer(&token).build()).await;
    assert_eq!(problem(&answer), (503, "broker_unavailable".to_owned()), "{name}");
    let log = function.log_text();
    assert!(why.iter().any(|why| log.contains(why)), "{name}: {why:?} is not in the log:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_503_and_the_log_names_the_cause_and_no_password() {
    for (security, credentials) in
        [("scram-sha-512", "gateway:wr0ng-password"), ("scram-sha-256", "nobody:wr0ng-password")]
    {
        for name in ["produce", "consume", "lag"] {
            let more = [("KAFKA_CREDENTIALS", credentials), SOON, ("RUST_LOG", "trace")];
            let function = function_by(name, security, "SCRAM", &more).await;
            locked_out(&function, name, &["Authentication failed during authentication"]).await;
            assert!(!function.log_text().contains("wr0ng-password"), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_authority_is_unknown_is_not_talked_to() {
    let credentials = format!("gateway:{PASSWORD}");
    for (security, listener) in [("tls", "TLS"), ("scram-sha-512", "SCRAM")] {
        for name in ["produce", "consume"] {
            // The system's roots have not signed it.
            let more = [("KAFKA_CA_FILE", ""), ("KAFKA_CREDENTIALS", credentials.as_str()), SOON];
            let function = function_by(name, security, listener, &more).await;
            locked_out(&function, name, &["certificate verify failed"]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_that_is_good_is_503() {
    secured().await.sign("expired", "-1", None).await;
    let (certificate, key) = (secured_file("expired.pem").await, secured_file("expired.key").await);
    for name in ["produce", "consume"] {
        let expired = [("KAFKA_CLIENT_CERT_FILE", certificate.as_str()), ("KAFKA_CLIENT_KEY_FILE", &key), SOON];
        let function = function_by(name, "mtls", "MTLS", &expired).await;
        locked_out(&function, name, &["certificate expired", "certificate unknown"]).await;
        let function = function_by(name, "tls", "MTLS", &[SOON]).await;
        locked_out(&function, name, &["certificate required", "bad certificate", "handshake"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_speaks_another_protocol_is_503() {
    let credentials = format!("gateway:{PASSWORD}");
    for (security, listener, why) in [
        ("tls", "PLAINTEXT", "SSL handshake failed"),
        ("plaintext", "TLS", "brokers are down"),
        ("scram-sha-512", "TLS", "SASL"),
    ] {
        let function = function_by("produce", security, listener, &[("KAFKA_CREDENTIALS", &credentials), SOON]).await;
        locked_out(&function, "produce", &[why]).await;
    }
}
