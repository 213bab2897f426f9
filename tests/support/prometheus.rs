//! Prometheus on this machine, with the settings and rules of `infra/local/prometheus`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Context as _, Error, Result};
use crate::install::{self, settings};
use crate::keycloak::{answers, http};
use crate::process::{Process, output, supervised};
use crate::run::{RunDir, free_port};
use crate::stack::Stack;

/// A server that scrapes a stack's Pushgateway, every second.
#[derive(Debug)]
pub struct Prometheus {
    url: String,
    _process: Process,
}

impl Prometheus {
    /// Starts one.
    pub async fn start(stack: &Stack) -> Self {
        Self::try_start(stack).await.unwrap_or_else(|e| panic!("{e}"))
    }

    async fn try_start(stack: &Stack) -> Result<Self> {
        let (run, port, from) = (RunDir::of_process()?, free_port()?, settings().join("prometheus"));
        let data = run.data(&format!("prometheus-{port}"))?;
        let config = fs::read_to_string(from.join("prometheus.yml")).context("prometheus.yml")?;
        let config = config.replace("pushgateway:9091", stack.pushgateway().trim_start_matches("http://"));
        fs::write(data.join("prometheus.yml"), config.replace("15s", "1s")).context(data.display())?;
        fs::copy(from.join("rules.yml"), data.join("rules.yml")).context("rules.yml")?;
        let mut command = supervised(install::prometheus("prometheus").await?);
        command.arg(format!("--config.file={}", data.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::start("prometheus", command, &run.log(&format!("prometheus-{port}")))?;
        let url = format!("http://127.0.0.1:{port}");
        answers(Some(&process), "prometheus", &format!("{url}/-/ready")).await?;
        Ok(Self { url, _process: process })
    }

    /// What an expression is now: its samples. An expression that Prometheus refuses is a failure.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("query", expression).finish();
        let data = self.ask(&format!("/api/v1/query?{query}")).await.unwrap_or_else(|e| panic!("{expression}: {e}"));
        data["result"].as_array().cloned().unwrap_or_default()
    }

    /// The rules, and how each fares.
    pub async fn rules(&self) -> Vec<Value> {
        let data = self.ask("/api/v1/rules").await.unwrap_or_else(|e| panic!("{e}"));
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().filter_map(|group| group["rules"].as_array().cloned()).flatten().collect()
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = http()?.get(format!("{}{path}", self.url)).send().await.context("prometheus")?;
        let mut answer: Value =
            serde_json::from_slice(&answer.bytes().await.context("prometheus")?).context("prometheus")?;
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(Error::new(answer.to_string())) }
    }
}

/// Runs `promtool` on files of `infra/local/prometheus`, and returns what it says; that it finds something wrong is a failure.
pub async fn promtool(args: &[&str]) -> String {
    let said = async {
        let mut promtool = supervised(install::prometheus("promtool").await?);
        promtool.args(args).current_dir(settings().join(Path::new("prometheus")));
        output(&format!("promtool {}", args.join(" ")), promtool).await
    };
    said.await.unwrap_or_else(|e| panic!("{e}"))
}
