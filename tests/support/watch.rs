//! The functions served at their routes by `cargo lambda watch`.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::install::{venv, workspace_root};
use crate::keycloak::http;
use crate::process::{Process, supervised};
use crate::run::free_port;
use crate::stack::Stack;

/// How long a function may take to answer on a busy machine; it was compiled before.
const PATIENCE: Duration = Duration::from_secs(120);

/// A local stand-in for API Gateway in front of all functions; they are compiled again when their code changes.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    port: u16,
}

impl Gateway {
    /// Starts it on a free port, for functions that work with `stack`, and with `more` variables. What it and the
    /// functions write goes to `log`, or where this program's output goes.
    pub async fn start(stack: &Stack, more: &[(&str, &str)], log: Option<&Path>) -> Result<Self> {
        let port = free_port()?;
        let mut watch = supervised(venv().await?.join("bin/cargo-lambda"));
        // `--wait`: otherwise every binary of the workspace is started as a function, this program too.
        watch.args(["lambda", "watch", "--quiet", "--wait", "--invoke-address", "127.0.0.1", "--invoke-port"]);
        watch.arg(port.to_string()).current_dir(workspace_root()).envs(stack.kafka_env()).envs(more.iter().copied());
        let name = "cargo lambda watch";
        let process = match log {
            // In a test, what the functions are does not change in its middle.
            Some(log) => {
                watch.arg("--ignore-changes");
                Process::start(name, watch, log)?
            }
            None => Process::attached(name, watch)?,
        };
        Ok(Self { process, port })
    }

    /// The base URL of all routes.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Calls a route, without a token, until its function answers: started, and done with its init.
    pub async fn answers(&self, method: &str, route: &str) -> Result<()> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).map_err(|e| Error::new(e.to_string()))?;
        let (client, url, begun) = (http()?, format!("{}{route}", self.url()), Instant::now());
        loop {
            let answer = match client.request(method.clone(), &url).send().await {
                // Without a token a function that works says so.
                Ok(response) if response.status() == 401 => return Ok(()),
                Ok(response) => format!("{}: {}", response.status(), response.text().await.unwrap_or_default()),
                Err(error) => error.to_string(),
            };
            if self.ended() {
                return Err(Error::new("cargo lambda watch ended"));
            }
            if begun.elapsed() > PATIENCE {
                return Err(Error::new(format!("{route} does not answer as it should; the last answer: {answer}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether it has ended by itself.
    pub fn ended(&self) -> bool {
        self.process.exited().is_some()
    }

    /// Ends it and the functions it started.
    pub async fn stop(&self) {
        self.process.stop(Duration::from_secs(5)).await;
    }
}
