//! The only place that knows HTTP: events in, answers out.
//!
//! Every call takes one way, forward only: route and deadline, [`Principal`](crate::auth::Principal), permission
//! ([`May`]), and only then the body; what comes back, an answer or an [`Error`], becomes a [`Reply`] here, and one log
//! line and its counters in [`telemetry`].

pub mod problem;
pub mod request;

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde::Serialize;
use serde::ser::SerializeMap;

use self::request::{Event, Request};
use crate::auth::{Action, Authenticator, May, Principal};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::names::{GroupId, TopicName};
use crate::warm::Warm;
use crate::{lifecycle, metrics, telemetry};

/// A method and a path. A path may end in a parameter, `/{…}`: one segment that is not empty.
pub type Route = (&'static str, &'static str);

/// One endpoint: its route (or those of its one resource), the permission it needs, and what it does. Each is one Lambda
/// function.
pub trait Endpoint: Sized + Send + Sync + 'static {
    /// The function's name in logs and metrics.
    const FUNCTION: &'static str;
    /// What it answers to.
    const ROUTES: &'static [Route];
    /// Whether it uses schemas. Only then does it know of the registry and read its secret, as the template's policies
    /// have it.
    const SCHEMAS: bool;
    /// What the caller must be allowed to do: a [`May`], or one of several by the method.
    type Permission: Permission;

    /// Makes what a warm sandbox keeps. Runs in Lambda's init phase.
    fn start(config: &Config) -> impl Future<Output = Result<Self, BoxError>> + Send;

    /// Answers one call of a caller who has [`Self::Permission`] somewhere; where, is checked by [`May::on`] as soon as
    /// the request says it.
    fn call(&self, may: &Self::Permission, call: &Call) -> impl Future<Output = Result<Reply, Error>> + Send;

    /// Called at SIGTERM, with 250 ms left.
    fn stop(&self) -> impl Future<Output = ()> + Send;
}

/// What a caller must be allowed to do before anything of the request is read.
pub trait Permission: Sized + Send + Sync {
    /// Asks whether the caller may. `403 forbidden` otherwise.
    fn ask(caller: Principal, method: &str) -> Result<Self, Error>;
}

impl<A: Action> Permission for May<A> {
    fn ask(caller: Principal, _: &str) -> Result<Self, Error> {
        caller.may()
    }
}

/// What an endpoint gets of a call, and what it says about it on the way, for the log line and the counters.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// When the answer must be there.
    pub deadline: Deadline,
    parameter: OnceLock<String>,
    principal: OnceLock<String>,
    topic: OnceLock<TopicName>,
    topic_exists: AtomicBool,
    group: OnceLock<GroupId>,
}

impl Call {
    fn new(event: Event, deadline: Deadline) -> Self {
        Self {
            request: Request::new(event),
            deadline,
            parameter: OnceLock::new(),
            principal: OnceLock::new(),
            topic: OnceLock::new(),
            topic_exists: AtomicBool::new(false),
            group: OnceLock::new(),
        }
    }

    /// What stands for the parameter of the route's path, decoded, where that has one.
    pub fn parameter(&self) -> Option<&str> {
        self.parameter.get().map(String::as_str)
    }

    /// Names the topic in the log line.
    pub fn on_topic(&self, topic: &TopicName) {
        let _ = self.topic.set(topic.clone());
    }

    /// Names the group in the log line.
    pub fn on_group(&self, group: &GroupId) {
        let _ = self.group.set(group.clone());
    }

    /// From here on the topic may be a metric's label: the caller may use it, and it exists.
    pub fn topic_exists(&self) {
        self.topic_exists.store(true, Ordering::Relaxed);
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The body's type, unless there is no body.
    pub content_type: Option<&'static str>,
    /// The body, always text.
    pub body: String,
    /// `WWW-Authenticate`, for 401.
    pub www_authenticate: Option<&'static str>,
    /// `Retry-After`, in whole seconds.
    pub retry_after: Option<Duration>,
    /// `Allow`, for 405.
    pub allow: Option<String>,
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: String) -> Self {
        let content_type = Some("application/json");
        Self { status, content_type, body, www_authenticate: None, retry_after: None, allow: None }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self { content_type: None, ..Self::json(status, String::new()) }
    }
}

/// API Gateway's response, payload format 2.0.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    status_code: u16,
    headers: Headers,
    /// Empty, and there for `cargo lambda watch`, which fails without them.
    multi_value_headers: Empty,
    cookies: [(); 0],
    body: String,
    is_base64_encoded: bool,
}

#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug)]
struct Headers {
    content_type: Option<&'static str>,
    www_authenticate: Option<&'static str>,
    retry_after: Option<Duration>,
    allow: Option<String>,
    request_id: String,
}

impl Serialize for Headers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(content_type) = self.content_type {
            map.serialize_entry("content-type", content_type)?;
        }
        // On everything: an answer is for one caller and one moment.
        map.serialize_entry("cache-control", "no-store")?;
        map.serialize_entry("x-content-type-options", "nosniff")?;
        map.serialize_entry("x-request-id", &self.request_id)?;
        if let Some(challenge) = self.www_authenticate {
            map.serialize_entry("www-authenticate", challenge)?;
        }
        if let Some(after) = self.retry_after {
            map.serialize_entry("retry-after", &after.as_secs().max(1).to_string())?;
        }
        if let Some(allow) = &self.allow {
            map.serialize_entry("allow", allow)?;
        }
        map.end()
    }
}

impl Response {
    /// What the answer weighs beside its body: the bytes of the response event around it, rounded up.
    pub const ENVELOPE_BYTES: usize = 512;

    fn new(reply: Reply, request_id: &str) -> Self {
        Self {
            status_code: reply.status,
            headers: Headers {
                content_type: reply.content_type,
                www_authenticate: reply.www_authenticate,
                retry_after: reply.retry_after,
                allow: reply.allow,
                request_id: request_id.to_owned(),
            },
            multi_value_headers: Empty {},
            cookies: [],
            body: reply.body,
            is_base64_encoded: false,
        }
    }
}

/// One function's way through, shared by all calls of a sandbox.
pub struct Service<E> {
    warm: Warm<E>,
    authenticator: Authenticator,
    ceiling: Duration,
}

impl<E> std::fmt::Debug for Service<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

impl<E: Endpoint> Service<E> {
    /// Puts an endpoint behind the check of its callers.
    pub fn new(warm: Warm<E>, authenticator: Authenticator, ceiling: Duration) -> Self {
        Self { warm, authenticator, ceiling }
    }

    /// See [`Endpoint::stop`].
    pub async fn stop(&self) {
        self.warm.stop().await;
    }

    /// Answers one event. Never fails: what goes wrong is an answer too. Also what there is to say of it, in the log and the
    /// counters, when it is out: the first backtrace of a sandbox takes a while to be read.
    pub async fn answer(
        &self,
        event: Event,
        request_id: &str,
        invocation_deadline_ms: u64,
    ) -> (Response, impl FnOnce() + Send + use<E>) {
        let started = Instant::now();
        let cold_start = lifecycle::cold_start();
        let call = Call::new(event, Deadline::of_invocation(invocation_deadline_ms, self.ceiling));
        let answered = AssertUnwindSafe(self.respond(&call)).catch_unwind().await;
        // The panic itself is in the log already.
        let result = answered.unwrap_or_else(|_| Err(Error::internal("the call panicked")));
        let (reply, error) = match result {
            Ok(reply) => (reply, None),
            Err(error) => (problem::reply(&error, request_id), Some(error)),
        };
        let (status, duration, response) = (reply.status, started.elapsed(), Response::new(reply, request_id));
        let request_id = request_id.to_owned();
        let say = move || {
            if let Some(code) = error.as_ref().map(Error::code).filter(|code| matches!(code.status(), 401 | 403)) {
                metrics::auth_failed(code.word());
            }
            telemetry::request_finished(&telemetry::Finished {
                function: E::FUNCTION,
                request_id: &request_id,
                topic: call.topic.get().map(TopicName::as_str),
                topic_label: call.topic_exists.load(Ordering::Relaxed),
                group: call.group.get().map(GroupId::as_str),
                principal: call.principal.get().map(String::as_str),
                status,
                error: error.as_ref(),
                duration,
                cold_start,
                trace_id: call.request.trace_parent().map(|parent| parent.trace_id),
            });
        };
        (response, say)
    }

    async fn respond(&self, call: &Call) -> Result<Reply, Error> {
        let request = &call.request;
        let (method, parameter) = route(E::ROUTES, request)?;
        if !parameter.is_empty() {
            let _ = call.parameter.set(request::decoded(parameter, "The path")?.into_owned());
        }
        let authorization: Vec<&str> = request.header("authorization").into_iter().collect();
        let principal = self.authenticator.authenticate(&authorization, call.deadline.instant()).await;
        let principal = principal?;
        let _ = call.principal.set(principal.subject().to_owned());
        let may = E::Permission::ask(principal, method)?;
        let endpoint = self.warm.endpoint(call.deadline).await?;
        let result = endpoint.call(&may, call).await;
        if let Err(error) = &result {
            self.warm.failed(error);
        }
        result
    }
}

/// Which of the routes a request takes: its method, and what stands for the path's parameter.
fn route<'a>(routes: &[Route], request: &'a Request) -> Result<(&'static str, &'a str), Error> {
    let found: Vec<_> =
        routes.iter().filter_map(|(method, path)| Some((*method, fits(path, request.path())?))).collect();
    if found.is_empty() {
        let served: Vec<_> = routes.iter().map(|(method, path)| format!("{method} {path}")).collect();
        return Err(Error::new(Code::RouteNotFound, format!("This function serves {}", served.join(", "))));
    }
    found.iter().find(|(method, _)| *method == request.method()).copied().ok_or_else(|| {
        let allow = found.iter().map(|(method, _)| *method).collect::<Vec<_>>().join(", ");
        Error::new(Code::MethodNotAllowed, format!("Only {allow} is allowed here")).with("allow", allow)
    })
}

/// Whether a path is the route's: what stands for its parameter, or nothing of it where it has none. A base path mapping
/// or a named stage stands before the route.
fn fits<'a>(route: &str, path: &'a str) -> Option<&'a str> {
    let Some((collection, _)) = route.split_once('{') else { return path.ends_with(route).then_some("") };
    let (before, parameter) = path.split_at(path.rfind('/')? + 1);
    (before.ends_with(collection) && !parameter.is_empty()).then_some(parameter)
}

#[cfg(test)]
mod tests;
