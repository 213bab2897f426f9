//! One Lambda sandbox as a function sees it: the Runtime API and the Extensions API.
//!
//! Our own because what it is for is what a ready-made simulator (lambda-simulator 0.2) leaves out: the next invocation
//! is held back until the runtime *and* every extension have asked for it, deadlines and INVOKE events begin at the
//! delivery, and no answer can be missed by its waiter when many calls a second are made.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};

use crate::error::{Context as _, Error, Result};
use crate::process::lock;

/// What Lambda lets an answer be (6 MB, and a little that its own limit leaves).
const RESPONSE_LIMIT: usize = 6_291_556;

/// Where the function runs.
pub(crate) const REGION: &str = "eu-central-1";

pub(crate) const FUNCTION_ARN: &str = "arn:aws:lambda:eu-central-1:123456789012:function:";

/// Why an invocation gave no answer.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The function reported an error: `errorType`, `errorMessage`.
    Error(Value),
    /// The answer was larger than Lambda takes; its size.
    TooLarge(usize),
    /// The deadline passed. Lambda would end the sandbox then; here it goes on, so that a test can look at it.
    TimedOut,
    /// The process ended.
    Exited,
}

/// Servers outlive the test that started them, so they do not live on its runtime.
pub(crate) static SERVERS: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.unwrap_or_else(|e| panic!("the servers' runtime: {e}"))
});

#[derive(Debug, Clone)]
pub(crate) struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    /// A sandbox of Lambda Managed Instances: it serves calls side by side, and waits for no extension.
    managed: bool,
    state: Mutex<StateOf>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct StateOf {
    queue: VecDeque<Invocation>,
    /// Invocations under way, by their ids; one at the most, unless managed.
    current: HashMap<String, UnderWay>,
    /// The most that were under way at the same time.
    most: usize,
    /// Who waits for work; one at the most, unless managed.
    runtimes: VecDeque<oneshot::Sender<Delivery>>,
    extensions: Vec<Extension>,
    first_next: Option<Instant>,
    init_error: Option<Value>,
    delivered: u64,
}

#[derive(Debug)]
struct Invocation {
    event: Vec<u8>,
    timeout: Duration,
    reply: Reply,
}

/// What an invocation came to: its answer, or why there is none.
pub(crate) type Outcome = std::result::Result<Answered, Failure>;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) body: Bytes,
    /// When the function got the event.
    pub(crate) delivered: Instant,
    /// When the last byte of the answer had come.
    pub(crate) at: Instant,
}

type Reply = oneshot::Sender<Outcome>;

#[derive(Debug)]
struct UnderWay {
    reply: Reply,
    delivered: Instant,
}

#[derive(Debug)]
struct Extension {
    id: String,
    invokes: bool,
    waiting: Option<oneshot::Sender<Value>>,
}

#[derive(Debug)]
struct Delivery {
    id: String,
    deadline: u128,
    trace: String,
    event: Vec<u8>,
}

impl Sandbox {
    /// Starts the API on a port of its own.
    pub(crate) async fn listen(name: &str, managed: bool) -> Result<(Self, SocketAddr)> {
        let inner = Inner { name: name.to_owned(), managed, state: Mutex::default(), changed: Notify::new() };
        let sandbox = Self(Arc::new(inner));
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .route("/2020-01-01/extension/register", post(register))
            .route("/2020-01-01/extension/event/next", get(next_event))
            .layer(DefaultBodyLimit::disable())
            .with_state(sandbox.clone());
        let bind = async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("runtime API")?;
            let address = listener.local_addr().context("runtime API")?;
            Ok::<_, Error>((listener, address))
        };
        let (listener, address) = SERVERS.spawn(bind).await.context("runtime API")??;
        SERVERS.spawn(async move { axum::serve(listener, router).await });
        Ok((sandbox, address))
    }

    /// Queues an invocation; the receiver gets its outcome.
    pub(crate) fn invoke(&self, event: Vec<u8>, timeout: Duration) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.update(|state| state.queue.push_back(Invocation { event, timeout, reply }));
        outcome
    }

    /// When the runtime asked for work the first time.
    pub(crate) fn first_next(&self) -> Option<Instant> {
        lock(&self.0.state).first_next
    }

    /// What the function reported as the reason that it could not start.
    pub(crate) fn init_error(&self) -> Option<Value> {
        lock(&self.0.state).init_error.clone()
    }

    /// The most invocations that were under way at the same time: delivered, and not answered yet.
    pub(crate) fn most_at_once(&self) -> usize {
        lock(&self.0.state).most
    }

    /// How many extensions have registered.
    pub(crate) fn extensions(&self) -> usize {
        lock(&self.0.state).extensions.len()
    }

    /// Whether the runtime and all extensions wait for work: the moment Lambda freezes a sandbox.
    pub(crate) fn idle(&self) -> bool {
        let state = lock(&self.0.state);
        state.current.is_empty() && state.queue.is_empty() && state.all_waiting()
    }

    /// Whether a call is queued or under way.
    pub(crate) fn is_serving(&self) -> bool {
        let state = lock(&self.0.state);
        !state.current.is_empty() || !state.queue.is_empty()
    }

    /// Waits for the next change of anything above.
    pub(crate) async fn changed(&self) {
        // Changes between a look and this wait are caught by the short timeout.
        let _ = tokio::time::timeout(Duration::from_millis(5), self.0.changed.notified()).await;
    }

    fn update<T>(&self, change: impl FnOnce(&mut StateOf) -> T) -> T {
        let mut state = lock(&self.0.state);
        let result = change(&mut state);
        state.advance(self);
        drop(state);
        self.0.changed.notify_waiters();
        result
    }
}

impl StateOf {
    fn all_waiting(&self) -> bool {
        let open = |extension: &Extension| extension.waiting.as_ref().is_some_and(|it| !it.is_closed());
        self.runtimes.iter().any(|it| !it.is_closed()) && self.extensions.iter().all(open)
    }

    /// Ends an invocation that was answered, and delivers the next, once everybody has asked for it.
    fn advance(&mut self, sandbox: &Sandbox) {
        self.runtimes.retain(|runtime| !runtime.is_closed());
        if sandbox.0.managed {
            while !self.queue.is_empty() && !self.runtimes.is_empty() {
                self.deliver(sandbox);
            }
        } else if self.all_waiting() {
            for (_, under_way) in self.current.drain() {
                // The runtime came back for more without an answer.
                let _ = under_way.reply.send(Err(Failure::Error(json!({ "errorType": "Runtime.NoAnswer" }))));
            }
            self.deliver(sandbox);
        }
    }

    fn deliver(&mut self, sandbox: &Sandbox) {
        let Some(invocation) = self.queue.pop_front() else { return };
        let Some(runtime) = self.runtimes.pop_front() else { return };
        self.delivered += 1;
        let id = format!("00000000-0000-4000-8000-{:012}", self.delivered);
        let deadline = SystemTime::now() + invocation.timeout;
        let deadline = deadline.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let trace = format!("Root=1-5759e988-{:024x};Parent=53995c3f42cd8ad8;Sampled=0", self.delivered);
        for extension in self.extensions.iter_mut().filter(|extension| extension.invokes) {
            if let Some(waiting) = extension.waiting.take() {
                let _ = waiting.send(json!({
                    "eventType": "INVOKE",
                    "deadlineMs": u64::try_from(deadline).unwrap_or(u64::MAX),
                    "requestId": id,
                    "invokedFunctionArn": format!("{FUNCTION_ARN}{}", sandbox.0.name),
                    "tracing": { "type": "X-Amzn-Trace-Id", "value": trace },
                }));
            }
        }
        self.current.insert(id.clone(), UnderWay { reply: invocation.reply, delivered: Instant::now() });
        self.most = self.most.max(self.current.len());
        let (sandbox, late) = (sandbox.clone(), id.clone());
        SERVERS.spawn(async move {
            tokio::time::sleep(invocation.timeout).await;
            lock(&sandbox.0.state).settle(&late, Err(Failure::TimedOut));
        });
        let _ = runtime.send(Delivery { id, deadline, trace, event: invocation.event });
    }

    /// Gives the waiting caller the outcome; false if that invocation is not under way, or has its answer.
    fn settle(&mut self, id: &str, outcome: std::result::Result<Bytes, Failure>) -> bool {
        let Some(UnderWay { reply, delivered }) = self.current.remove(id) else { return false };
        let _ = reply.send(outcome.map(|body| Answered { body, delivered, at: Instant::now() }));
        true
    }
}

async fn next(State(sandbox): State<Sandbox>) -> Response {
    let (sender, delivery) = oneshot::channel();
    sandbox.update(|state| {
        state.first_next.get_or_insert_with(Instant::now);
        if !sandbox.0.managed {
            // It asks anew; the connection it asked on before is gone.
            state.runtimes.clear();
        }
        state.runtimes.push_back(sender);
    });
    let Ok(delivery) = delivery.await else { return StatusCode::GONE.into_response() };
    let headers = [
        ("lambda-runtime-aws-request-id", delivery.id),
        ("lambda-runtime-deadline-ms", delivery.deadline.to_string()),
        ("lambda-runtime-invoked-function-arn", format!("{FUNCTION_ARN}{}", sandbox.0.name)),
        ("lambda-runtime-trace-id", delivery.trace),
        ("content-type", "application/json".to_owned()),
    ];
    (headers, delivery.event).into_response()
}

async fn response(State(sandbox): State<Sandbox>, Path(id): Path<String>, body: Bytes) -> StatusCode {
    let (outcome, status) = if body.len() > RESPONSE_LIMIT {
        (Err(Failure::TooLarge(body.len())), StatusCode::PAYLOAD_TOO_LARGE)
    } else {
        (Ok(body), StatusCode::ACCEPTED)
    };
    let known = sandbox.update(|state| state.settle(&id, outcome));
    if known { status } else { StatusCode::BAD_REQUEST }
}

async fn error(State(sandbox): State<Sandbox>, Path(id): Path<String>, body: Bytes) -> StatusCode {
    let known = sandbox.update(|state| state.settle(&id, Err(Failure::Error(text_or_json(&body)))));
    if known { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST }
}

async fn init_error(State(sandbox): State<Sandbox>, body: Bytes) -> StatusCode {
    sandbox.update(|state| state.init_error = Some(text_or_json(&body)));
    StatusCode::ACCEPTED
}

async fn register(State(sandbox): State<Sandbox>, body: Bytes) -> Response {
    let registration = text_or_json(&body);
    let invokes = registration["events"].as_array().is_some_and(|events| events.contains(&"INVOKE".into()));
    let id = sandbox.update(|state| {
        // Lambda closes the registration when init ends.
        if state.first_next.is_some() {
            return None;
        }
        let id = format!("00000000-0000-4000-9000-{:012}", state.extensions.len());
        state.extensions.push(Extension { id: id.clone(), invokes, waiting: None });
        Some(id)
    });
    let Some(id) = id else { return StatusCode::FORBIDDEN.into_response() };
    let about = json!({ "functionName": sandbox.0.name, "functionVersion": "$LATEST", "handler": "bootstrap" });
    ([("lambda-extension-identifier", id)], about.to_string()).into_response()
}

async fn next_event(State(sandbox): State<Sandbox>, headers: HeaderMap) -> Response {
    let id = headers.get("lambda-extension-identifier").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let (sender, event) = oneshot::channel();
    let known = sandbox.update(|state| {
        let extension = state.extensions.iter_mut().find(|extension| extension.id == id)?;
        extension.waiting = Some(sender);
        Some(())
    });
    if known.is_none() {
        return StatusCode::FORBIDDEN.into_response();
    }
    let Ok(event) = event.await else { return StatusCode::GONE.into_response() };
    ([("lambda-extension-event-identifier", id.to_owned())], event.to_string()).into_response()
}

fn text_or_json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into())
}
