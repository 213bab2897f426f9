//! A schema registry on this machine: Apicurio Registry, by its interface like Confluent's.

use std::path::Path;
use std::process::Command;

use crate::error::Result;
use crate::install::registry_version;
use crate::keycloak::answers;
use crate::process::{Process, supervised};

/// Where Confluent's paths begin.
pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/apis/ccompat/v7")
}

/// Keeps what is registered in memory.
pub(crate) fn start(home: &Path, log: &Path, port: u16) -> Result<Process> {
    let mut java: Command = supervised("java");
    java.args(["-Xmx384m", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1"]);
    java.arg(format!("-Dquarkus.http.port={port}"));
    java.arg("-jar").arg(home.join(format!("apicurio-registry-app-{}-runner.jar", registry_version())));
    java.current_dir(home);
    Process::start("schema registry", java, log)
}

pub(crate) async fn ready(process: Option<&Process>, port: u16) -> Result<()> {
    answers(process, "schema registry", &format!("{}/subjects", url(port))).await
}
