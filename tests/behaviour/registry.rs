//! The schema registry, and a door before it that can be shut.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tests::Stack;
use tokio::net::TcpListener;

/// Registers a schema at the real registry; its id.
pub(crate) async fn register(subject: &str, kind: &str, schema: &str, references: &Value) -> u64 {
    let url = format!("{}/subjects/{subject}/versions", Stack::shared().await.registry().await);
    let body = json!({ "schemaType": kind, "schema": schema, "references": references }).to_string();
    let request = reqwest::Client::new().post(url).header("content-type", "application/json").body(body);
    let response = request.send().await.expect("an answer");
    let text = response.text().await.expect("a body");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    answer["id"].as_u64().unwrap_or_else(|| panic!("{subject}: {text}"))
}

/// What the door does with who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Lets in whoever has the right credentials.
    Open,
    /// Says nothing.
    Hangs,
    /// Answers with something else.
    Garbage,
    /// Answers that the registry is not well.
    Fails,
}

/// A door before the real registry.
pub(crate) struct Front {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    behind: String,
    authorization: Option<&'static str>,
    door: Mutex<Door>,
    asked: AtomicUsize,
    client: reqwest::Client,
}

impl Front {
    /// Opens one that wants this `Authorization`.
    pub(crate) async fn open(authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let behind = Stack::shared().await.registry().await.to_owned();
        let (door, asked, client) = (Mutex::new(Door::Open), AtomicUsize::new(0), reqwest::Client::new());
        let shared = Arc::new(Shared { behind, authorization, door, asked, client });
        let answering = Arc::clone(&shared);
        let answer = async move |request: Request| {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
            answering.answer(&path, request.headers()).await
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.expect("served") });
        Self { url, shared }
    }

    pub(crate) fn set(&self, door: Door) {
        *self.shared.door.lock().expect("whole") = door;
    }

    /// How many came.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn answer(&self, path: &str, headers: &HeaderMap) -> Response {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let door = *self.door.lock().expect("whole");
        match door {
            Door::Open => {}
            Door::Hangs => std::future::pending().await,
            Door::Garbage => return "<html>".into_response(),
            Door::Fails => return StatusCode::BAD_GATEWAY.into_response(),
        }
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        if given != self.authorization {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let answer = self.client.get(format!("{}{path}", self.behind)).send().await.expect("an answer");
        let status = answer.status();
        (status, answer.bytes().await.expect("a body")).into_response()
    }
}
