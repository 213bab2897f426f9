//! Keycloak on this machine, and the tokens it gives.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Result};
use crate::install::{Installed, settings};
use crate::process::{Process, lock, output, supervised};
use crate::run::free_port;

const REALM: &str = "kafka-gateway";
const DATABASE: &str = "keycloakdb.mv.db";

pub(crate) fn issuer(port: u16) -> String {
    format!("http://127.0.0.1:{port}/realms/{REALM}")
}

/// Starts a Keycloak with its own copy of the prepared database.
pub(crate) fn start(installed: &Installed, data: &Path, log: &Path, port: u16) -> Result<Process> {
    let database = data.join("data/h2");
    fs::create_dir_all(&database).context(database.display())?;
    fs::copy(installed.keycloak_realm.join(DATABASE), database.join(DATABASE)).context("the prepared realm")?;
    launch(&installed.keycloak, data, log, port)
}

/// Ready when the realm's own discovery document answers.
pub(crate) async fn ready(process: Option<&Process>, port: u16) -> Result<()> {
    answers(process, "keycloak", &format!("{}/.well-known/openid-configuration", issuer(port))).await
}

/// Starts Keycloak once with the realm to import, and keeps the database it made.
pub(crate) async fn prepare_database(home: &Path, dir: &Path) -> Result<()> {
    let (data, port) = (dir.join("home"), free_port()?);
    let import = data.join("data/import");
    fs::create_dir_all(&import).context(import.display())?;
    fs::copy(settings().join("keycloak/realm.json"), import.join("realm.json")).context("realm.json")?;
    let process = launch(home, &data, &dir.join("keycloak.log"), port)?;
    ready(Some(&process), port).await?;
    process.stop(Duration::from_secs(20)).await;
    fs::copy(data.join("data/h2").join(DATABASE), dir.join(DATABASE)).context(DATABASE)?;
    fs::remove_dir_all(&data).context(data.display())
}

/// Compiles the server for its kind of database, once.
pub(crate) async fn build(home: &Path) -> Result<()> {
    let mut java = java(home, home);
    java.args(["build", "--db=dev-file"]);
    output("keycloak's build", java).await.map(drop)
}

fn launch(home: &Path, data: &Path, log: &Path, port: u16) -> Result<Process> {
    // A home of its own that shares the built server: two Keycloaks side by side share no file they write.
    fs::create_dir_all(data.join("conf")).context(data.display())?;
    for shared in ["lib", "providers"] {
        symlink(home.join(shared), data.join(shared)).context(data.display())?;
    }
    let mut java = java(home, data);
    java.args(["start", "--optimized", "--import-realm", "--cache=local", "--http-enabled=true"]);
    java.arg("--http-host=127.0.0.1").arg(format!("--http-port={port}"));
    java.arg(format!("--hostname=http://127.0.0.1:{port}"));
    Process::start("keycloak", java, log)
}

/// Java itself and not `kc.sh`, which would stay as its parent and be the one that signals reach.
fn java(server: &Path, home: &Path) -> Command {
    let mut java = supervised("java");
    java.args(["-Xms64m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    java.arg(format!("-Dkc.home.dir={}", home.display()));
    java.arg("-Djava.util.logging.manager=org.jboss.logmanager.LogManager");
    java.arg("-Dpicocli.disable.closures=true");
    java.arg(concat!(
        "-Djava.util.concurrent.ForkJoinPool.common.threadFactory=",
        "io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory"
    ));
    for package in ["java.util", "java.util.concurrent", "java.security"] {
        java.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    }
    java.arg("-cp").arg(server.join("lib/quarkus-run.jar")).arg("io.quarkus.bootstrap.runner.QuarkusEntryPoint");
    java
}

/// Waits until a URL answers with success, or its process ends.
pub(crate) async fn answers(process: Option<&Process>, name: &str, url: &str) -> Result<()> {
    let (client, started) = (http()?, Instant::now());
    loop {
        if client.get(url).send().await.is_ok_and(|response| response.status().is_success()) {
            return Ok(());
        }
        if let Some(process) = process.filter(|process| process.exited().is_some()) {
            return Err(process.failure("ended while it was starting"));
        }
        if started.elapsed() > Duration::from_secs(180) {
            let silent = "does not answer";
            return Err(process.map_or_else(|| Error::new(format!("{name} {silent}")), |it| it.failure(silent)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Keeps no idle connections: they belong to the runtime of the test that made them.
pub(crate) fn http() -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(60)).no_proxy();
    client.build().context("HTTP client")
}

/// Tokens by client, until shortly before they expire.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (String, Instant)>>);

impl Tokens {
    /// A client-credentials grant. The secrets are the ones in `realm.json`, good for nothing elsewhere.
    pub(crate) async fn get(&self, issuer: &str, client_id: &str) -> Result<String> {
        if let Some((token, until)) = lock(&self.0).get(client_id)
            && *until > Instant::now()
        {
            return Ok(token.clone());
        }
        let what = format!("a token for {client_id}");
        let body = format!("grant_type=client_credentials&client_id={client_id}&client_secret={client_id}-local-only");
        let request = http()?.post(format!("{issuer}/protocol/openid-connect/token")).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.send().await.context(&what)?.bytes().await.context(&what)?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).context(&what)?;
        let (Some(token), Some(lifetime)) = (answer["access_token"].as_str(), answer["expires_in"].as_u64()) else {
            return Err(Error::new(format!("{what}: {answer}")));
        };
        let until = Instant::now() + Duration::from_secs(lifetime.saturating_sub(60));
        lock(&self.0).insert(client_id.to_owned(), (token.to_owned(), until));
        Ok(token.to_owned())
    }
}
