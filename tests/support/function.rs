//! A function's binary in a sandbox of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Context as _, Error, Result};
use crate::lambda_api::{Answered, Failure, Outcome, REGION, Sandbox};
use crate::process::{Process, supervised};
use crate::run::RunDir;

/// The function timeout of the template.
const TIMEOUT: Duration = Duration::from_secs(29);

/// So long a function that has answered may take to say so in its log. Only a defect, or a frozen sandbox, takes it.
const SAYING: Duration = Duration::from_secs(5);

/// One running sandbox of a function. Killed when dropped.
///
/// Like a sandbox of Lambda it serves one invocation at a time, and calls made side by side wait for each other; with
/// `AWS_LAMBDA_MAX_CONCURRENCY` in its environment it is one of Lambda Managed Instances, and serves as many at once.
#[derive(Debug)]
pub struct Function {
    process: Process,
    sandbox: Sandbox,
    init: Duration,
    request_timeout: Duration,
}

/// How a function ended instead of starting.
#[derive(Debug)]
pub struct StartFailure {
    /// What it told the Runtime API's init/error, if it did.
    pub init_error: Option<Value>,
    /// Its exit code, if it ended by itself.
    pub exit_code: Option<i32>,
    /// What it wrote.
    pub output: String,
}

impl StartFailure {
    fn without_a_start(error: &Error) -> Self {
        Self { init_error: None, exit_code: None, output: error.to_string() }
    }
}

impl Function {
    /// Starts `target/<profile>/<name>` and waits until it asks for its first invocation. It sees `env` and what
    /// Lambda sets, and nothing of this process's environment. `FUNCTIONS_DIR` names another folder of binaries.
    pub async fn start(name: &str, env: &BTreeMap<String, String>) -> Self {
        Self::try_start(name, env).await.unwrap_or_else(|failure| panic!("{name} did not start: {failure:?}"))
    }

    /// [`Function::start`] with the binary in `folder`.
    pub async fn start_in(folder: &Path, name: &str, env: &BTreeMap<String, String>) -> Self {
        let started = Self::started(folder, name, env).await;
        started.unwrap_or_else(|failure| panic!("{name} did not start: {failure:?}"))
    }

    /// [`Function::start`] for a function that is expected not to.
    pub async fn try_start(name: &str, env: &BTreeMap<String, String>) -> std::result::Result<Self, StartFailure> {
        let folder = binaries().map_err(|e| StartFailure::without_a_start(&e))?;
        Self::started(&folder, name, env).await
    }

    async fn started(
        folder: &Path,
        name: &str,
        env: &BTreeMap<String, String>,
    ) -> std::result::Result<Self, StartFailure> {
        let begun = Instant::now();
        let request_timeout = env.get("KAFKA_REQUEST_TIMEOUT_MS").map_or(10_000, |ms| ms.parse().unwrap_or(u64::MAX));
        let request_timeout = Duration::from_millis(request_timeout);
        let launched = launch(&folder.join(name), name, env).await;
        let (sandbox, process) = launched.map_err(|e| StartFailure::without_a_start(&e))?;
        loop {
            if let Some(next) = sandbox.first_next() {
                let init = next.saturating_duration_since(begun);
                return Ok(Self { process, sandbox, init, request_timeout });
            }
            let exited = process.exited();
            // Lambda gives init ten seconds.
            if exited.is_some() || begun.elapsed() > Duration::from_secs(10) {
                let (init_error, exit_code) = (sandbox.init_error(), exited.and_then(|status| status.code()));
                return Err(StartFailure { init_error, exit_code, output: process.output() });
            }
            sandbox.changed().await;
        }
    }

    /// Invokes it, with the deadline a 29 s timeout gives, and returns its answer.
    pub async fn invoke(&self, event: Value) -> Value {
        self.answered(event.to_string().into_bytes()).await.1
    }

    /// The same, and how long it took: until the last byte of the answer had come, before anything was made of it.
    pub async fn invoke_timed(&self, event: Value) -> (Duration, Value) {
        let event = event.to_string().into_bytes();
        let begun = Instant::now();
        let (answered, answer) = self.answered(event).await;
        (answered.at.saturating_duration_since(begun), answer)
    }

    /// The same, without the time that the event waited for other calls: how long the function had it.
    pub async fn invoke_served(&self, event: Value) -> (Duration, Value) {
        let (answered, answer) = self.answered(event.to_string().into_bytes()).await;
        (answered.at.saturating_duration_since(answered.delivered), answer)
    }

    async fn answered(&self, event: Vec<u8>) -> (Answered, Value) {
        let answered = self.outcome(event, TIMEOUT).await;
        let answered = answered.and_then(|answered| parsed(&answered.body).map(|answer| (answered, answer)));
        answered.unwrap_or_else(|failure| {
            panic!("invoking {}: {failure:?}\n{}", self.process.name(), crate::process::tail(&self.log_text()))
        })
    }

    /// Invokes it with a timeout of the caller's choice, and returns the answer or why there was none.
    pub async fn try_invoke(&self, event: Value, timeout: Duration) -> std::result::Result<Value, Failure> {
        parsed(&self.outcome(event.to_string().into_bytes(), timeout).await?.body)
    }

    async fn outcome(&self, event: Vec<u8>, timeout: Duration) -> Outcome {
        let mut outcome = self.sandbox.invoke(event, timeout);
        loop {
            match tokio::time::timeout(Duration::from_millis(100), &mut outcome).await {
                Ok(outcome) => return outcome.unwrap_or(Err(Failure::Exited)),
                Err(_) if self.process.exited().is_some() => return Err(Failure::Exited),
                Err(_) => {}
            }
        }
    }

    /// From the exec of the binary to its first request for work.
    pub fn init_duration(&self) -> Duration {
        self.init
    }

    /// What it was given for the work of one call, beside the wait that a caller asks for: `KAFKA_REQUEST_TIMEOUT_MS`.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The most calls that it had at the same time.
    pub fn most_at_once(&self) -> usize {
        self.sandbox.most_at_once()
    }

    /// Waits until the runtime and every extension ask for work: all that follows an answer is done, and Lambda would
    /// freeze here. False if that does not happen within `limit`.
    pub async fn idle(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while !self.sandbox.idle() {
            if begun.elapsed() > limit {
                return false;
            }
            self.sandbox.changed().await;
        }
        true
    }

    /// How many extensions it registered.
    pub fn extensions(&self) -> usize {
        self.sandbox.extensions()
    }

    /// The lines it has written so far, parsed; a line that is not JSON comes as a string.
    pub fn logs(&self) -> Vec<Value> {
        let text = self.log_text();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| line.into())).collect()
    }

    /// All it has written so far. What it writes of a call comes after the answer: it is waited for, unless a call is under way.
    pub fn log_text(&self) -> String {
        let begun = Instant::now();
        while !self.sandbox.idle() && !self.sandbox.is_serving() && begun.elapsed() < SAYING && !self.exited() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.process.output()
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// SIGKILL, as when Lambda drops a sandbox.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGTERM, as Lambda sends to functions with an extension before it drops a sandbox.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Waits for it to end by itself; the exit code, or `None` if it still runs after `limit` or died of a signal.
    pub async fn exit_code(&self, limit: Duration) -> Option<i32> {
        self.process.wait(limit).await.and_then(|status| status.code())
    }

    /// Whether it has ended.
    pub fn exited(&self) -> bool {
        self.process.exited().is_some()
    }

    /// SIGSTOP, as Lambda freezes a sandbox between invocations.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
    }
}

fn parsed(answer: &[u8]) -> std::result::Result<Value, Failure> {
    serde_json::from_slice(answer).map_err(|error| Failure::Error(json!({ "errorMessage": error.to_string() })))
}

async fn launch(binary: &Path, name: &str, env: &BTreeMap<String, String>) -> Result<(Sandbox, Process)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    fs::metadata(binary).context(format_args!("{} (cargo build --workspace)", binary.display()))?;
    let managed = env.get("AWS_LAMBDA_MAX_CONCURRENCY").is_some_and(|concurrency| concurrency != "1");
    let (sandbox, address) = Sandbox::listen(name, managed).await?;
    let mut command = supervised(binary);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.envs([
        ("AWS_LAMBDA_RUNTIME_API", address.to_string().as_str()),
        ("AWS_LAMBDA_FUNCTION_NAME", name),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", &log_stream()),
        ("AWS_REGION", REGION),
        ("TZ", ":UTC"),
        ("_HANDLER", "bootstrap"),
    ]);
    command.envs(env);
    let log = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let process = Process::start(name, command, &RunDir::of_process()?.log(&log))?;
    Ok((sandbox, process))
}

/// Where this program was built to: the functions are beside it.
fn binaries() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("FUNCTIONS_DIR") {
        return Ok(dir.into());
    }
    let own = std::env::current_exe().context("this program's path")?;
    let dir = own.parent().unwrap_or(Path::new("."));
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_owned())
}

/// A name that no other sandbox has, of this process or another.
fn log_stream() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("2026/01/01/[$LATEST]{:016x}{number:016x}", std::process::id())
}
