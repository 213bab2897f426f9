//! The usual way: a `FastAPI` service with aiokafka, called over a connection that stays open.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tests::{Process, free_port};

use crate::world::{VALUE, World};

/// Its own environment, every version pinned.
const PACKAGES: (&str, &[&str]) = (
    "bench-venv",
    &["fastapi==0.165.0", "uvicorn[standard]==0.54.0", "aiokafka==0.14.0", "PyJWT[crypto]==2.15.1", "uvloop==0.23.0"],
);

/// The running service.
#[derive(Debug)]
pub(crate) struct FastApi {
    process: Process,
    base: String,
    client: Client,
    token: String,
}

impl FastApi {
    /// Starts it and waits for its first acknowledged record; also how long that took from the start of the process.
    pub(crate) async fn start(world: &World, topic: &str) -> (Self, Duration) {
        let (this, begun) = Self::launch(world).await;
        this.up(this.produce_request(topic), begun).await;
        let took = begun.elapsed();
        this.produce(topic).await;
        (this, took)
    }

    /// Starts it and takes the first records of a group; how long that took from the start of the process.
    pub(crate) async fn first_records(world: &World, topic: &str, group: &str, limit: usize) -> Duration {
        let (this, begun) = Self::launch(world).await;
        let answer = this.up(this.consume_request("/consume", topic, group, limit), begun).await;
        let body = answer.bytes().await.expect("a body");
        let took = begun.elapsed();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!(answer["messages"].as_array().map(Vec::len), Some(limit), "{answer}");
        took
    }

    /// Asks until it answers, which must be with a success.
    async fn up(&self, request: RequestBuilder, begun: Instant) -> Response {
        loop {
            if let Ok(answer) = request.try_clone().expect("it can be sent again").send().await {
                assert!(answer.status().is_success(), "{answer:?}\n{}", self.process.output());
                return answer;
            }
            assert!(self.process.exited().is_none(), "fastapi_app.py ended:\n{}", self.process.output());
            assert!(begun.elapsed() < Duration::from_secs(60), "fastapi_app.py does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn launch(world: &World) -> (Self, Instant) {
        let port = free_port().expect("a port").to_string();
        let (bootstrap, issuer) = (world.stack.bootstrap(), world.stack.issuer());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/fastapi_app.py");
        let arguments =
            ["--port", &port, "--bootstrap", &bootstrap, "--issuer", &issuer, "--audience", "kafka-gateway"];
        let begun = Instant::now();
        let process = world.stack.python_spawn_with(PACKAGES, script, &arguments).await;
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().expect("a client");
        let this = Self { process, base: format!("http://127.0.0.1:{port}"), client, token: world.token.clone() };
        (this, begun)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(crate) async fn produce(&self, topic: &str) -> Duration {
        self.timed(self.produce_request(topic)).await.0
    }

    /// The next records of a group; `path` says which way.
    pub(crate) async fn consume(&self, path: &str, topic: &str, group: &str, limit: usize) -> (Duration, usize) {
        let (took, answer) = self.timed(self.consume_request(path, topic, group, limit)).await;
        (took, answer["messages"].as_array().expect("messages").len())
    }

    /// Commits what `/consume/poll` has handed out.
    pub(crate) async fn commit(&self, topic: &str, group: &str) -> Duration {
        let url = format!("{}/consume/commit?topic={topic}&group_id={group}", self.base);
        self.timed(self.client.post(url).bearer_auth(&self.token)).await.0
    }

    fn consume_request(&self, path: &str, topic: &str, group: &str, limit: usize) -> RequestBuilder {
        let url = format!("{}{path}?topic={topic}&group_id={group}&limit={limit}", self.base);
        self.client.get(url).bearer_auth(&self.token)
    }

    fn produce_request(&self, topic: &str) -> RequestBuilder {
        let body = json!({ "topic": topic, "value": VALUE }).to_string();
        let request = self.client.post(format!("{}/produce", self.base)).bearer_auth(&self.token);
        request.header("content-type", "application/json").body(body)
    }

    /// Until the answer's last byte, as with the functions.
    async fn timed(&self, request: RequestBuilder) -> (Duration, Value) {
        let begun = Instant::now();
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let body = answer.bytes().await.expect("a body");
        let took = begun.elapsed();
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert!(status.is_success(), "{status}: {value}\n{}", self.process.output());
        (took, value)
    }
}
