//! Credentials from Secrets Manager, in whose place is moto, which checks the signatures: read, kept, and read again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Event, Function, Process, Stack, free_port};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;

use crate::acl::{CLAIMS, user};
use crate::consume::fill;
use crate::kit::scheduled;
use crate::redrive::{REDRIVE, dead_letter_topic};
use crate::registry::{Front, register};
use crate::secured::{function_by, secured};
use crate::wire::ACKNOWLEDGE;
use crate::world::{Answer, call, consume, function_with, produce, topic, topic_on, unique};

const MOTO: (&str, &[&str]) = ("moto", &["moto[server]==5.2.5"]);

/// Only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running moto, and a user of it.
struct Aws {
    port: String,
    id: String,
    key: String,
    _process: Process,
}

fn script() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/behaviour/python/aws.py"))
}

impl Aws {
    async fn shared() -> &'static Self {
        static SHARED: OnceCell<Aws> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let port = free_port().expect("a port").to_string();
        let process = Stack::shared().await.python_spawn_with(MOTO, script(), &["serve", &port]).await;
        let started = async {
            loop {
                let user = process.output().lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
                if let Some(user) = user {
                    return user;
                }
                assert!(process.exited().is_none(), "{}", process.output());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let user = tokio::time::timeout(PATIENCE, started).await.expect("moto answers");
        let text = |name: &str| user[name].as_str().expect("a text").to_owned();
        Self { port, id: text("id"), key: text("key"), _process: process }
    }

    async fn call(&self, command: &str, name: &str, text: &Value) -> String {
        let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
        let args = [command, &self.port, &self.id, &self.key, name, &text];
        Stack::shared().await.python_with(MOTO, script(), &args).await.trim().to_owned()
    }

    /// Makes a secret; its ARN.
    async fn create(&self, text: &Value) -> String {
        self.call("create", &unique("secret"), text).await
    }

    async fn put(&self, arn: &str, text: &Value) {
        self.call("put", arn, text).await;
    }

    /// The variables of a function with the user's key, which asks at this port.
    fn env<'a>(&'a self, endpoint: &'a str) -> [(&'a str, &'a str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", &self.id),
            ("AWS_SECRET_ACCESS_KEY", &self.key),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint),
        ]
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Starts a function whose credentials for Kafka are a secret.
async fn function_of(name: &str, (security, listener): (&str, &str), arn: &str, url: &str) -> Function {
    let aws = Aws::shared().await;
    let more = [("KAFKA_CREDENTIALS", arn), ("KAFKA_REQUEST_TIMEOUT_MS", "6000"), ("RUST_LOG", "trace")];
    function_by(name, security, listener, &[&aws.env(url)[..], &more].concat()).await
}

/// Calls until it is answered with 200; how many calls were not.
async fn until_it_works(mut one: impl AsyncFnMut() -> Answer) -> usize {
    for failed in 0..10 {
        let answer = one().await;
        if answer.status == 200 {
            return failed;
        }
        assert!([503, 504].contains(&answer.status), "{answer:?}");
        // How soon secrets are read again is bounded.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    panic!("it does not work again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_read_once_and_again_when_it_was_rotated() {
    let (aws, secured, user) = (Aws::shared().await, secured().await, unique("rotated"));
    let topic = topic_on(&secured.broker().bootstrap(), 1, &[]).await;
    let (first, second) = ("first-s3cret", "second-s3cret");
    let text = |password: &str| json!({ "username": user, "password": password });
    let (before, after) = (text(first), text(second));
    let principal = format!("User:{user}");
    let grant = ["--topic", topic.as_str(), "--operation", "Write"];
    let (arn, (), ()) = tokio::join!(
        aws.create(&before),
        secured.user("SCRAM-SHA-512", &user, first),
        secured.allow(&principal, &grant),
    );
    let producer = function_of("produce", ("scram-sha-512", "SCRAM"), &arn, &aws.url()).await;
    let body = json!({ "topic": topic, "value": "v" });
    produce(&producer, &body).await.ok();
    // The broker ends old logins, and takes the new password only.
    tokio::join!(aws.put(&arn, &after), secured.user("SCRAM-SHA-512", &user, second));
    tokio::time::sleep(Duration::from_secs(12)).await;
    let failed = until_it_works(async || produce(&producer, &body).await).await;
    assert!(failed <= 3, "{failed} calls failed");
    let log = producer.log_text();
    assert!(log.contains("the credentials are new"), "{log}");
    for secret in [first, second, &aws.key] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_may_be_a_secret_and_its_key_encrypted() {
    let (aws, secured) = (Aws::shared().await, secured().await);
    secured.sign("encrypted", "30", Some("k3y-password")).await;
    secured.allow("User:CN=encrypted", &["--topic", "*", "--operation", "Write"]).await;
    let file = |name: &str| secured.certificates().read(name);
    let text = json!({
        "certificate": file("encrypted.pem"), "privateKey": file("encrypted.key"), "privateKeyPassword": "k3y-password",
    });
    let (arn, topic) = (aws.create(&text).await, topic_on(&secured.broker().bootstrap(), 1, &[]).await);
    let producer = function_of("produce", ("mtls", "MTLS"), &arn, &aws.url()).await;
    assert_eq!(produce(&producer, &json!({ "topic": topic, "value": "v" })).await.ok()["offset"], 0);
    let log = producer.log_text();
    assert!(!log.contains("k3y-password") && !log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_the_rotation_of_the_password() {
    let (aws, secured) = (Aws::shared().await, secured().await);
    let server = secured.broker().bootstrap();
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    fill(&server, &topic, 1, 6);
    let reads: &[&str] = &["--topic", &topic, "--operation", "Read"];
    let joins: &[&str] = &["--group", &group, "--operation", "Read"];
    let name = user(vec![reads, joins, CLAIMS]).await;
    let text = |password: &str| json!({ "username": name, "password": password });
    let (arn, url) = (aws.create(&text(&name)).await, aws.url());
    let start = |function| function_of(function, ("scram-sha-512", "SCRAM"), &arn, &url);
    let (consumer, settler) = tokio::join!(start("consume"), start("acknowledge"));
    let lease = async || consume(&consumer, &topic, &group, "&ack=manual&limit=2&lease_ms=600000").await;
    let accept = async |leased: &Value| {
        let body = json!({ "token": leased["lease"]["token"], "type": "accept" });
        call(&settler, Event::post(ACKNOWLEDGE).json(&body)).await
    };
    // Both have clients for the partition from here on, with the old password.
    let first = lease().await.ok();
    assert_eq!(accept(&first).await.ok()["results"][0]["committed"], 2);
    let second = lease().await.ok();
    let rotated = text("second-s3cret");
    tokio::join!(aws.put(&arn, &rotated), secured.user("SCRAM-SHA-512", &name, "second-s3cret"));
    tokio::time::sleep(Duration::from_secs(12)).await;
    let mut committed = Value::Null;
    let failed = until_it_works(async || {
        let answer = accept(&second).await;
        committed = answer.body["results"][0]["committed"].clone();
        answer
    });
    let failed = failed.await;
    assert!(failed <= 3 && committed == 4, "{failed} calls failed, {committed}");
    let mut third = Value::Null;
    let failed = until_it_works(async || {
        let answer = lease().await;
        third = answer.body.clone();
        answer
    });
    let failed = failed.await;
    let offsets: Vec<&Value> = third["messages"].as_array().into_iter().flatten().map(|it| &it["offset"]).collect();
    assert!(failed <= 3 && offsets == [4, 5], "{failed} calls failed, {third}");
    for function in [&consumer, &settler] {
        let log = function.log_text();
        assert!(log.contains("the credentials are new") && !log.contains("second-s3cret"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_over_is_replaced_by_the_secret_s_next_version() {
    let (aws, secured, name) = (Aws::shared().await, secured().await, unique("renewed"));
    let topic = topic_on(&secured.broker().bootstrap(), 1, &[]).await;
    let principal = format!("User:CN={name}");
    secured.allow(&principal, &["--topic", &topic, "--operation", "Write"]).await;
    let version = async |days: &str| {
        secured.sign(&name, days, None).await;
        let file = |kind: &str| secured.certificates().read(&format!("{name}.{kind}"));
        json!({ "certificate": file("pem"), "privateKey": file("key") })
    };
    let arn = aws.create(&version("-1").await).await;
    let producer = function_of("produce", ("mtls", "MTLS"), &arn, &aws.url()).await;
    let body = json!({ "topic": topic, "value": "v" });
    assert!([503, 504].contains(&produce(&producer, &body).await.status));
    aws.put(&arn, &version("30").await).await;
    until_it_works(async || produce(&producer, &body).await).await;
    let log = producer.log_text();
    assert!(log.contains("the credentials are new") && !log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_s_secret_that_cannot_be_read_concerns_only_those_who_use_schemas() {
    let (aws, server) = (Aws::shared().await, secured().await.broker().bootstrap());
    let (topic, group) = (topic_on(&server, 1, &[]).await, unique("group"));
    let letters = dead_letter_topic(&server, &topic, 1).await;
    fill(&server, &topic, 1, 5);
    fill(&server, &letters, 1, 1);
    let arn = aws.create(&json!({ "username": "gateway", "password": crate::secured::PASSWORD })).await;
    let (url, watched) = (aws.url(), format!("{group}={topic}"));
    // There is no such secret. To a policy that does not name it, it is the same.
    let registry = [
        ("SCHEMA_REGISTRY_URL", "http://127.0.0.1:1"),
        ("SCHEMA_REGISTRY_CREDENTIALS", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:nowhere-AbCdEf"),
    ];
    let kafka = [("KAFKA_CREDENTIALS", arn.as_str()), ("LAG_MONITOR_GROUPS", &watched)];
    let start = async |name: &str, more: &[(&str, &str)]| {
        function_by(name, "scram-sha-512", "SCRAM", &[&aws.env(&url)[..], &kafka, more].concat()).await
    };
    let consumer = start("consume", &[]).await;
    let leased = consume(&consumer, &topic, &group, "&ack=manual&lease_ms=600000").await.ok();
    let accept = json!({ "token": leased["lease"]["token"], "type": "accept" });
    let seek = json!({ "group_id": group, "topic": topic, "to": "earliest" });
    for (name, event) in [
        ("acknowledge", Event::post(ACKNOWLEDGE).json(&accept)),
        ("seek", Event::post("/kafka/consumer/seek").json(&seek)),
        ("lag", Event::get("/kafka/consumer/lag").query(&format!("group_id={group}&topic={topic}"))),
        ("topics", Event::get(&format!("/kafka/topics/{topic}"))),
        ("redrive", Event::post(REDRIVE).json(&json!({ "dlq_topic": letters }))),
    ] {
        let answer = call(&start(name, &registry).await, event).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    let monitor = start("lag-monitor", &registry).await;
    assert_eq!(monitor.invoke(scheduled()).await, Value::Null, "{}", monitor.log_text());
    for (name, event) in [
        ("produce", Event::post("/kafka/producer/produce")),
        ("produce-batch", Event::post("/kafka/producer/produce/batch")),
        ("consume", Event::get("/kafka/consumer/consume")),
        ("consume-batch", Event::post("/kafka/consumer/consume/batch")),
        ("fetch", Event::get("/kafka/consumer/fetch")),
    ] {
        let function = start(name, &registry).await;
        assert_eq!(call(&function, event).await.code(), "broker_unavailable", "{name}");
        let log = function.log_text();
        assert!(log.contains("ResourceNotFoundException"), "{name}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_cannot_be_read_are_503_until_they_can() {
    let aws = Aws::shared().await;
    let arn = aws.create(&json!({ "username": "gateway", "password": crate::secured::PASSWORD })).await;
    let topic = topic_on(&secured().await.broker().bootstrap(), 1, &[]).await;
    let body = json!({ "topic": topic, "value": "v" });
    let port = free_port().expect("a port");
    let url = format!("http://127.0.0.1:{port}");
    let producer = function_of("produce", ("scram-sha-256", "SCRAM"), &arn, &url).await;
    assert_eq!(produce(&producer, &body).await.code(), "broker_unavailable");
    // The way to it opens.
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut to = TcpStream::connect(format!("127.0.0.1:{}", aws.port)).await.expect("moto is there");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    until_it_works(async || produce(&producer, &body).await).await;
    // From now on nobody asks again.
    let before = asked.load(Ordering::SeqCst);
    for _ in 0..5 {
        produce(&producer, &body).await.ok();
    }
    assert_eq!((before, asked.load(Ordering::SeqCst)), (1, 1));
    // Somebody else's key opens nothing.
    let stranger = ("AWS_SECRET_ACCESS_KEY", "another-key");
    let url = aws.url();
    let more = [&aws.env(&url)[..], &[stranger, ("KAFKA_CREDENTIALS", &arn)]].concat();
    let producer = function_by("produce", "scram-sha-256", "SCRAM", &more).await;
    assert_eq!(produce(&producer, &body).await.code(), "broker_unavailable");
    let log = producer.log_text();
    assert!(log.contains("Secrets Manager answered with status 403"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_holds_something_else_stops_the_function_with_the_variable_s_name() {
    let aws = Aws::shared().await;
    let arn = aws.create(&json!({ "password": "s3cret-alone" })).await;
    let mut env = Stack::shared().await.kafka_env();
    let url = aws.url();
    let more = [("KAFKA_SECURITY", "scram-sha-512"), ("KAFKA_CREDENTIALS", &arn)];
    env.extend(aws.env(&url).iter().chain(&more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let failure = Function::try_start("produce", &env).await.expect_err("no login");
    assert!(failure.output.contains("KAFKA_CREDENTIALS: the secret must be JSON"), "{failure:?}");
    assert!(!failure.output.contains("s3cret-alone"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_s_password_may_be_a_secret_and_be_changed() {
    let (aws, topic) = (Aws::shared().await, topic(1).await);
    let schema = r#"{ "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "required": ["id"] }"#;
    register(&format!("{topic}-value"), "JSON", schema, &json!([])).await;
    // The door's `user:pass`.
    let front = Front::open(Some("Basic dXNlcjpwYXNz")).await;
    let arn = aws.create(&json!({ "username": "user", "password": "old" })).await;
    let url = aws.url();
    let more = [("SCHEMA_REGISTRY_URL", front.url.as_str()), ("SCHEMA_REGISTRY_CREDENTIALS", &arn)];
    let producer = function_with("produce", &[&aws.env(&url)[..], &more].concat()).await;
    let body = json!({ "topic": topic, "value": { "id": 1 } });
    assert_eq!(produce(&producer, &body).await.code(), "schema_registry_unavailable");
    aws.put(&arn, &json!({ "username": "user", "password": "pass" })).await;
    until_it_works(async || produce(&producer, &body).await).await;
    let refused = produce(&producer, &json!({ "topic": topic, "value": {} })).await;
    assert_eq!(refused.code(), "schema_validation_failed");
}
