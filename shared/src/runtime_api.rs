//! The loop against Lambda's Runtime API: the next event, its answer, the next event.
//!
//! Why not `lambda_runtime`'s own: it puts each event's trace id into the environment (`_X_AMZN_TRACE_ID`), and glibc
//! keeps every value that a variable ever had. That is 170 bytes an invocation, 16 MiB in 100,000, and nothing here reads
//! the variable. The client is that project's.
//!
//! The API: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use lambda_runtime_api_client::body::Body;
use lambda_runtime_api_client::{PooledClient, build_request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::errors::BoxError;

const NEXT: &str = "/2018-06-01/runtime/invocation/next";

/// Names one delivery of an invocation, where Lambda gives it; the answer repeats it.
const DELIVERY: &str = "lambda-runtime-invocation-id";

/// What Lambda says of an invocation.
#[derive(Debug, Clone)]
pub struct Context {
    /// Lambda's id of it.
    pub request_id: String,
    /// When Lambda ends it, milliseconds since 1970.
    pub deadline_ms: u64,
}

/// One invocation, as the Runtime API delivers it.
struct Invocation {
    context: Context,
    event: Bytes,
    delivery: Option<HeaderValue>,
}

impl Invocation {
    fn read(headers: &HeaderMap, event: Bytes) -> Result<Self, BoxError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let request_id = text("lambda-runtime-aws-request-id").ok_or("the Runtime API named no request id")?;
        let deadline_ms = text("lambda-runtime-deadline-ms").and_then(|ms| ms.parse().ok());
        let deadline_ms = deadline_ms.ok_or("the Runtime API named no deadline")?;
        Ok(Self {
            context: Context { request_id: request_id.to_owned(), deadline_ms },
            event,
            delivery: headers.get(DELIVERY).cloned(),
        })
    }

    /// The event. The error says where it is not what was expected, and never what is there.
    fn event<Event: DeserializeOwned>(&self) -> Result<Event, Failure> {
        serde_json::from_slice(&self.event).map_err(|error| Failure {
            error_type: "InvalidEvent",
            error_message: format!("the event cannot be read, from column {} on", error.column()),
        })
    }
}

/// Why an invocation has no answer, as Lambda takes it: it counts as an error of the function.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A word for its kind.
    pub error_type: &'static str,
    /// What went wrong. It is seen by whoever invoked the function.
    pub error_message: String,
}

/// Answers Lambda's invocations, `abreast` of them at the same time, until the Runtime API fails. The first one that is
/// asked for ends the init phase.
///
/// A handler returns its answer, and what it has to say of the call when that is out: nobody waits for a log line. Then
/// `afterwards` gets the deadline of the invocation. Lambda hands the answer on at once; the sandbox is busy until these,
/// too, are done.
pub async fn serve<Event, Answer, Say, Handler, Answering, Afterwards, Done>(
    handler: Handler,
    abreast: usize,
    afterwards: Afterwards,
) -> Result<(), BoxError>
where
    Event: DeserializeOwned + Send,
    Answer: Serialize,
    Say: FnOnce() + Send,
    Handler: Fn(Event, Context) -> Answering + Clone + Send + Sync + 'static,
    Answering: Future<Output = Result<(Answer, Say), Failure>> + Send,
    Afterwards: Fn(u64) -> Done + Clone + Send + Sync + 'static,
    Done: Future<Output = ()> + Send,
{
    let client = Arc::new(PooledClient::builder().with_pool_size(abreast).build());
    if abreast == 1 {
        return one_by_one(&client, &handler, &afterwards).await;
    }
    let mut loops = JoinSet::new();
    for _ in 0..abreast {
        let (client, handler, afterwards) = (client.clone(), handler.clone(), afterwards.clone());
        loops.spawn(async move { one_by_one(&client, &handler, &afterwards).await });
    }
    // The others go on without one that fails.
    let mut ended = Ok(());
    while let Some(joined) = loops.join_next().await {
        ended = joined.map_err(BoxError::from).and_then(|ended| ended);
        if let Err(error) = &ended {
            tracing::error!(%error, "one of the loops that take invocations has ended");
        }
    }
    ended
}

async fn one_by_one<Event, Answer, Say, Answering, Done>(
    client: &PooledClient,
    handler: &impl Fn(Event, Context) -> Answering,
    afterwards: &impl Fn(u64) -> Done,
) -> Result<(), BoxError>
where
    Event: DeserializeOwned,
    Answer: Serialize,
    Say: FnOnce(),
    Answering: Future<Output = Result<(Answer, Say), Failure>>,
    Done: Future<Output = ()>,
{
    loop {
        let next = client.call(build_request().method(Method::GET).uri(NEXT).body(Body::empty())?).await?;
        let (parts, event) = next.into_parts();
        let event = event.collect().await?.to_bytes();
        match parts.status {
            StatusCode::OK => {}
            // Emulators say so when nothing came for a while.
            StatusCode::NO_CONTENT => continue,
            status => return Err(format!("the Runtime API answered {status} to the request for an event").into()),
        }
        let invocation = Invocation::read(&parts.headers, event)?;
        let span = tracing::error_span!("request", request_id = invocation.context.request_id);
        let answered = async {
            let (answer, say) = match answer(&invocation, handler).await {
                Ok((body, say)) => (Ok(body), Some(say)),
                Err(failure) => (Err(failure), None),
            };
            let handed_over = hand_over(client, &invocation, answer).await;
            if let Some(say) = say {
                say();
            }
            handed_over
        };
        answered.instrument(span).await?;
        afterwards(invocation.context.deadline_ms).await;
    }
}

/// The answer's body, or why there is none. A panic is caught, as the sandbox is still good for the next call.
async fn answer<Event, Answer, Say, Answering>(
    invocation: &Invocation,
    handler: &impl Fn(Event, Context) -> Answering,
) -> Result<(Vec<u8>, Say), Failure>
where
    Event: DeserializeOwned,
    Answer: Serialize,
    Say: FnOnce(),
    Answering: Future<Output = Result<(Answer, Say), Failure>>,
{
    let answering = async {
        let (answer, say) = handler(invocation.event()?, invocation.context.clone()).await?;
        let body = serde_json::to_vec(&answer).map_err(|_| Failure {
            error_type: "InvalidAnswer",
            error_message: "the answer cannot be written as JSON".to_owned(),
        })?;
        Ok((body, say))
    };
    AssertUnwindSafe(answering).catch_unwind().await.unwrap_or_else(|_| {
        // The panic itself is in the log already.
        Err(Failure { error_type: "Panic", error_message: "the function panicked".to_owned() })
    })
}

/// Hands an answer to Lambda. One that it does not take (the time was up, or it is too large) is logged.
async fn hand_over(
    client: &PooledClient,
    invocation: &Invocation,
    answer: Result<Vec<u8>, Failure>,
) -> Result<(), BoxError> {
    let (kind, body, failure) = match answer {
        Ok(body) => ("response", body, None),
        Err(failure) => {
            tracing::error!(error_type = failure.error_type, error = failure.error_message, "an invocation failed");
            ("error", serde_json::to_vec(&failure)?, Some(failure))
        }
    };
    let uri = format!("/2018-06-01/runtime/invocation/{}/{kind}", invocation.context.request_id);
    let mut request: Request<Body> = build_request().method(Method::POST).uri(uri).body(Body::from(body))?;
    if let Some(failure) = failure {
        let kind = HeaderValue::from_static(failure.error_type);
        request.headers_mut().insert("lambda-runtime-function-error-type", kind);
    }
    if let Some(id) = &invocation.delivery {
        request.headers_mut().insert(DELIVERY, id.clone());
    }
    let taken = client.call(request).await?;
    let status = taken.status();
    if !status.is_success() {
        tracing::error!(status = status.as_u16(), "Lambda did not take the answer");
    }
    // Read to its end, so that the connection can be used again.
    taken.into_body().collect().await?;
    Ok(())
}
