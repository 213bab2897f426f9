//! A function's life: run, push metrics after answers, end in order.
//!
//! Lambda hands an answer on as soon as it has it, and freezes the sandbox when the runtime asks for the next event. So
//! metrics are pushed between the two: no caller waits for a push, and it is never cut off by a freeze. A slow Pushgateway
//! costs this sandbox up to 200 ms every ten seconds.
//!
//! SIGTERM comes only to sandboxes with an extension. The one that is registered here, where metrics are pushed, asks for
//! no events and does nothing else.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lambda_extension::{Extension, LambdaEvent, RegisteredExtension};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tower::service_fn;

use crate::deadline::FUNCTION_TIMEOUT;
use crate::errors::BoxError;
use crate::metrics::push::{self, Pusher};
use crate::runtime_api::{self, Context, Failure};

/// After SIGTERM Lambda leaves an internal extension 300 to 500 ms. A little is left to end in.
const FAREWELL: Duration = Duration::from_millis(250);

/// Whether this request is the first, and had to wait for the sandbox to start. Provisioned sandboxes started before.
pub fn cold_start() -> bool {
    static WARM: AtomicBool = AtomicBool::new(false);
    !WARM.swap(true, Ordering::Relaxed)
        && std::env::var("AWS_LAMBDA_INITIALIZATION_TYPE").as_deref() != Ok("provisioned-concurrency")
}

/// Runs `handler` for Lambda's invocations until the process is told to end (SIGTERM, or Ctrl-C), or the runtime fails.
/// Then metrics are pushed a last time while `flush` runs; each has 250 ms. On Lambda, SIGTERM comes only where an
/// extension is registered, that is where metrics are pushed: `flush` must be of use, and not of need.
///
/// Init must be over: Lambda takes the call of this function for its end.
///
/// The caller should end the process when this returns, without waiting for blocking threads.
pub async fn run<Event, Answer, Say, Handler, Answering>(
    handler: Handler,
    pusher: Option<Arc<Pusher>>,
    flush: impl Future<Output = ()>,
) -> Result<(), BoxError>
where
    Event: DeserializeOwned + Send,
    Answer: Serialize,
    Say: FnOnce() + Send,
    Handler: Fn(Event, Context) -> Answering + Clone + Send + Sync + 'static,
    Answering: Future<Output = Result<(Answer, Say), Failure>> + Send,
{
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // An extension must be registered before the runtime asks for its first event, which ends the init phase.
    let extension = match &pusher {
        Some(_) => register().await,
        None => None,
    };
    // Where calls come side by side nothing freezes, and the time for a push is any time.
    let (on_a_timer, after_answers) = if is_concurrent() { (pusher.clone(), None) } else { (None, pusher.clone()) };
    let ended = tokio::select! {
        ended = runtime_api::serve(handler, abreast(), move |deadline_ms| push(after_answers.clone(), deadline_ms)) => ended,
        () = wait_for_nothing(extension) => Ok(()),
        () = push_on_a_timer(on_a_timer) => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let flush = async {
        if timeout(FAREWELL, flush).await.is_err() {
            tracing::warn!("there was no time to flush everything");
        }
    };
    match &pusher {
        Some(pusher) => drop(tokio::join!(pusher.push_last(), flush)),
        None => flush.await,
    }
    ended
}

/// Registers the extension for whose sake SIGTERM comes.
async fn register() -> Option<impl Future<Output = Result<(), BoxError>>> {
    let registered = Extension::new()
        .with_extension_name("kafka-gateway-metrics")
        .with_events(&[])
        .with_events_processor(service_fn(async |_: LambdaEvent| Ok::<_, Infallible>(())))
        .register()
        .await;
    match registered {
        Ok(extension) => Some(RegisteredExtension::run(extension)),
        Err(error) => {
            // What was counted since the last push is lost at the sandbox's end. Calls are served all the same.
            tracing::warn!(error_chain = %error, "the extension that hears of the sandbox's end could not be registered");
            None
        }
    }
}

/// Asks for the extension's events: that there are none is not said, and Lambda waits for the question. Where it fails (an
/// emulator that does not expect it, for one), calls are served all the same.
async fn wait_for_nothing(extension: Option<impl Future<Output = Result<(), BoxError>>>) {
    if let Some(extension) = extension
        && let Err(error) = extension.await
    {
        tracing::warn!(error_chain = %error, "the extension that hears of the sandbox's end has ended");
    }
    pending::<()>().await;
}

/// Pushes after an answer, if it is time, and there is time left.
async fn push(pusher: Option<Arc<Pusher>>, deadline_ms: u64) {
    if let Some(pusher) = pusher.filter(|_| time_left(deadline_ms) > push::BUDGET) {
        pusher.push_if_due().await;
    }
}

async fn push_on_a_timer(pusher: Option<Arc<Pusher>>) {
    let Some(pusher) = pusher else { return pending().await };
    loop {
        sleep(push::INTERVAL).await;
        pusher.push_if_due().await;
    }
}

/// Whether this process serves calls side by side (Lambda Managed Instances).
pub(crate) fn is_concurrent() -> bool {
    std::env::var("AWS_LAMBDA_INITIALIZATION_TYPE").as_deref() == Ok("lambda-managed-instances") || abreast() > 1
}

/// How many calls this process takes at the same time.
fn abreast() -> usize {
    let concurrency = std::env::var("AWS_LAMBDA_MAX_CONCURRENCY").ok().and_then(|text| text.parse().ok());
    concurrency.unwrap_or(1).max(1)
}

fn time_left(deadline_ms: u64) -> Duration {
    let deadline = UNIX_EPOCH + Duration::from_millis(deadline_ms);
    deadline.duration_since(SystemTime::now()).unwrap_or(FUNCTION_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Child, Command, ExitStatus, Stdio};

    use serde::Deserialize;
    use serde_json::{Value, json};
    use tokio::sync::mpsc::{self, UnboundedReceiver};

    use super::*;
    use crate::config::MetricsConfig;
    use crate::fake_server::{self, Held};
    use crate::telemetry::{self, Finished};

    /// So long a test waits for what must come. Only a defect takes it.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The request for an event.
    const NEXT: &str = "GET /2018-06-01/runtime/invocation/next";

    #[derive(Deserialize)]
    struct Asked {
        act: String,
    }

    async fn act(asked: Asked, context: Context) -> Result<(Value, impl FnOnce()), Failure> {
        assert!(!asked.act.starts_with("panic"), "over {}", asked.act);
        let say = move || {
            telemetry::request_finished(&Finished {
                function: "produce",
                request_id: &context.request_id,
                topic: None,
                topic_label: false,
                group: None,
                principal: None,
                status: 200,
                error: None,
                duration: Duration::from_millis(1),
                cold_start: cold_start(),
                trace_id: None,
            });
        };
        Ok((json!({"statusCode": 200}), say))
    }

    /// Not a test: the function's process, which the tests start.
    #[tokio::test]
    #[ignore = "started by the other tests"]
    async fn the_function() {
        telemetry::init().expect("logging");
        let config =
            MetricsConfig { pushgateway_url: std::env::var("PUSHGATEWAY_URL").ok(), job: "kafka-gateway".to_owned() };
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        let pusher = Pusher::install(&config, client).expect("metrics");
        let flush = async { tracing::info!("flushed") };
        run(act, pusher, flush).await.expect("an orderly end");
    }

    /// Lambda, as far as a sandbox sees it, and a function in it. Like Lambda, and unlike emulators, it invokes only a
    /// sandbox whose runtime and extension both wait for an event.
    struct Sandbox {
        function: Child,
        lambda: UnboundedReceiver<Held>,
        runtime: Option<Held>,
        extension: Option<Held>,
        registered: Vec<String>,
        pushes: UnboundedReceiver<Held>,
    }

    impl Drop for Sandbox {
        fn drop(&mut self) {
            let _ = self.function.kill();
            let _ = self.function.wait();
        }
    }

    async fn next(requests: &mut UnboundedReceiver<Held>) -> Held {
        timeout(PATIENCE, requests.recv()).await.expect("the request comes").expect("the server lives")
    }

    /// Gives an event to who has asked for one.
    async fn deliver(to: Held, payload: Value) {
        // Beyond the test's patience, so that nobody is saved by it.
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + 10 * PATIENCE;
        let deadline = deadline.as_millis();
        let headers = format!(
            "200 OK\r\nLambda-Runtime-Aws-Request-Id: r-1\r\nLambda-Runtime-Deadline-Ms: {deadline}\r\n\
             Lambda-Runtime-Invoked-Function-Arn: arn"
        );
        to.answer(&headers, &payload.to_string()).await;
    }

    impl Sandbox {
        async fn start(pushing: bool, variables: &[(&str, &str)]) -> Self {
            let (lambda_url, lambda) = fake_server::start().await;
            let (push_url, pushes) = fake_server::start().await;
            let mut command = Command::new(std::env::current_exe().expect("this test"));
            command
                .args(["--exact", "lifecycle::tests::the_function", "--ignored", "--nocapture"])
                .env("AWS_LAMBDA_RUNTIME_API", lambda_url.trim_start_matches("http://"))
                .env("AWS_LAMBDA_FUNCTION_NAME", "produce")
                .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
                .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
                .env("RUST_LOG", "trace")
                .envs(variables.iter().copied())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            if pushing {
                command.env("PUSHGATEWAY_URL", push_url);
            } else {
                command.env_remove("PUSHGATEWAY_URL");
            }
            let function = command.spawn().expect("the function starts");
            let registered = Vec::new();
            Self { function, lambda, runtime: None, extension: None, registered, pushes }
        }

        /// Takes what the sandbox's extension asks of Lambda; anything else comes back.
        async fn of_extension(&mut self, call: Held) -> Option<Held> {
            match call.line.as_str() {
                "POST /2020-01-01/extension/register" => {
                    assert!(self.runtime.is_none(), "registered too late");
                    self.registered.push(call.body.clone());
                    let body = r#"{"functionName": "produce", "functionVersion": "1", "handler": "bootstrap"}"#;
                    call.answer("200 OK\r\nLambda-Extension-Identifier: e-1", body).await;
                }
                "GET /2020-01-01/extension/event/next" => self.extension = Some(call),
                _ => return Some(call),
            }
            None
        }

        /// Takes what the sandbox asks of Lambda, up to its next answer to an invocation or until it may be frozen.
        async fn until_answered_or_frozen(&mut self) -> Option<Held> {
            while self.runtime.is_none() || self.extension.is_none() {
                let call = next(&mut self.lambda).await;
                match self.of_extension(call).await {
                    Some(call) if call.line == NEXT => self.runtime = Some(call),
                    Some(call) => return Some(call),
                    None => {}
                }
            }
            None
        }

        async fn frozen(&mut self) {
            if let Some(call) = self.until_answered_or_frozen().await {
                panic!("not expected: {call:?}");
            }
        }

        /// Invokes the function, and returns its answer, which Lambda has not taken yet.
        async fn invoke(&mut self, payload: Value) -> Held {
            self.frozen().await;
            deliver(self.runtime.take().expect("frozen"), payload).await;
            self.until_answered_or_frozen().await.expect("an answer before the next call")
        }

        /// Takes what a sandbox of many calls asks of Lambda, until so many of its loops wait for an event.
        async fn loops(&mut self, abreast: usize) -> Vec<Held> {
            let mut waiting = Vec::new();
            while waiting.len() < abreast || self.extension.is_none() {
                let call = next(&mut self.lambda).await;
                if let Some(call) = self.of_extension(call).await {
                    assert_eq!(call.line, NEXT);
                    waiting.push(call);
                }
            }
            waiting
        }

        /// Ends the sandbox, and returns what it logged.
        async fn end(mut self, push: bool) -> String {
            let id = self.function.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill").success());
            if push {
                next(&mut self.pushes).await.answer("200 OK", "").await;
            }
            let (log, ended) = self.ended().await;
            assert!(ended.success(), "{log}");
            log
        }

        /// Waits until the sandbox has ended: what it logged, and how it ended.
        async fn ended(mut self) -> (String, ExitStatus) {
            let mut log = String::new();
            let mut errors = self.function.stderr.take().expect("piped");
            let log = tokio::task::spawn_blocking(move || errors.read_to_string(&mut log).map(|_| log));
            let log = timeout(PATIENCE, log).await.expect("it ends").expect("no panic").expect("text");
            (log, self.function.wait().expect("ended"))
        }
    }

    #[tokio::test]
    async fn a_pushgateway_that_does_not_answer_delays_no_answer_and_no_later_call() {
        let mut sandbox = Sandbox::start(true, &[]).await;
        let answer = sandbox.invoke(json!({"act": "answer"})).await;
        assert_eq!(answer.line, "POST /2018-06-01/runtime/invocation/r-1/response");
        assert!(sandbox.pushes.try_recv().is_err(), "pushed before Lambda had the answer");
        answer.answer("202 Accepted", "").await;

        let push = next(&mut sandbox.pushes).await;
        assert!(push.body.contains("kafka_gateway_requests_total{function=\"produce\",topic=\"\",status=\"200\"} 1\n"));
        assert!(push.body.contains("kafka_gateway_cold_starts_total{function=\"produce\"} 1\n"));
        assert!(sandbox.runtime.is_none(), "the sandbox may freeze while it pushes");
        push.abandoned().await;

        // The Pushgateway is left alone for a while, and calls go on.
        sandbox.invoke(json!({"act": "answer"})).await.answer("202 Accepted", "").await;
        sandbox.frozen().await;
        assert!(sandbox.pushes.try_recv().is_err());
        let log = sandbox.end(true).await;
        assert_eq!(log.matches("\"message\":\"metrics were not pushed\"").count(), 1, "{log}");
    }

    #[tokio::test]
    async fn a_panic_or_an_undecodable_event_leaves_nobody_waiting_and_is_not_quoted() {
        let mut sandbox = Sandbox::start(true, &[]).await;
        for payload in [json!({"act": "panic s3cret"}), json!({"act": {"s3cret": 1}}), json!("s3cret")] {
            let answer = sandbox.invoke(payload).await;
            assert_eq!(answer.line, "POST /2018-06-01/runtime/invocation/r-1/error");
            answer.answer("202 Accepted", "").await;
            if let Ok(push) = sandbox.pushes.try_recv() {
                push.answer("200 OK", "").await;
            }
        }
        sandbox.frozen().await;
        let log = sandbox.end(true).await;
        assert!(!log.contains("s3cret"), "{log}");
        assert_eq!(log.matches("\"message\":\"panicked\"").count(), 1, "{log}");
        assert_eq!(log.matches("\"error_type\":\"InvalidEvent\"").count(), 2, "{log}");
    }

    #[tokio::test]
    async fn sigterm_pushes_a_last_time_and_flushes() {
        let mut sandbox = Sandbox::start(true, &[]).await;
        sandbox.invoke(json!({"act": "answer"})).await.answer("202 Accepted", "").await;
        next(&mut sandbox.pushes).await.answer("200 OK", "").await;
        // Within the interval: not pushed yet.
        sandbox.invoke(json!({"act": "answer"})).await.answer("202 Accepted", "").await;
        sandbox.frozen().await;
        assert!(sandbox.pushes.try_recv().is_err());
        assert_eq!(sandbox.registered, [r#"{"events":[]}"#]);
        let log = sandbox.end(true).await;
        assert!(log.contains("\"message\":\"flushed\""), "{log}");
    }

    #[tokio::test]
    async fn without_a_pushgateway_there_is_no_extension() {
        let mut sandbox = Sandbox::start(false, &[]).await;
        let first = next(&mut sandbox.lambda).await;
        assert_eq!(first.line, NEXT);
        let log = sandbox.end(false).await;
        assert!(log.contains("\"message\":\"flushed\""), "{log}");
    }

    /// A sandbox of Lambda Managed Instances.
    const SIDE_BY_SIDE: [(&str, &str); 2] =
        [("AWS_LAMBDA_INITIALIZATION_TYPE", "lambda-managed-instances"), ("AWS_LAMBDA_MAX_CONCURRENCY", "8")];

    #[tokio::test]
    async fn where_calls_come_side_by_side_a_timer_pushes_and_no_answer_does() {
        let mut sandbox = Sandbox::start(true, &SIDE_BY_SIDE).await;
        let mut waiting = sandbox.loops(8).await;
        for pushed in [false, true] {
            deliver(waiting.pop().expect("a loop"), json!({"act": "answer"})).await;
            let answer = next(&mut sandbox.lambda).await;
            assert_eq!(answer.line, "POST /2018-06-01/runtime/invocation/r-1/response");
            answer.answer("202 Accepted", "").await;
            waiting.extend(sandbox.loops(1).await);
            assert!(sandbox.pushes.try_recv().is_err(), "an answer is no reason to push");
            if !pushed {
                let push = next(&mut sandbox.pushes).await;
                let counted = "kafka_gateway_requests_total{function=\"produce\",topic=\"\",status=\"200\"} 1\n";
                assert!(push.body.contains(counted), "{}", push.body);
                push.answer("200 OK", "").await;
            }
        }
        assert_eq!(waiting.len(), 8, "all of them wait again");
        let log = sandbox.end(true).await;
        assert!(log.contains("\"message\":\"flushed\""), "{log}");
    }

    #[tokio::test]
    async fn a_runtime_api_that_goes_away_ends_the_process_which_pushes_and_flushes() {
        for (variables, abreast) in [(&[][..], 1), (&SIDE_BY_SIDE, 8)] {
            let mut sandbox = Sandbox::start(true, variables).await;
            let waiting = sandbox.loops(abreast).await;
            // From now on every connection is closed as soon as something is asked on it.
            sandbox.lambda = mpsc::unbounded_channel().1;
            sandbox.extension = None;
            drop(waiting);
            next(&mut sandbox.pushes).await.answer("200 OK", "").await;
            let (log, ended) = sandbox.ended().await;
            assert!(!ended.success(), "{abreast} abreast: {log}");
            assert!(log.contains("\"message\":\"flushed\""), "{abreast} abreast: {log}");
        }
    }

    #[test]
    fn a_deadline_in_the_past_is_no_deadline() {
        assert_eq!(time_left(600_000), FUNCTION_TIMEOUT);
    }
}
