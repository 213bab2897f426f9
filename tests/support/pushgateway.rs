//! Prometheus Pushgateway on this machine.

use std::path::Path;

use crate::error::Result;
use crate::keycloak::answers;
use crate::process::{Process, supervised};

pub(crate) fn start(binary: &Path, log: &Path, port: u16) -> Result<Process> {
    let mut command = supervised(binary);
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    Process::start("pushgateway", command, log)
}

pub(crate) async fn ready(process: Option<&Process>, port: u16) -> Result<()> {
    answers(process, "pushgateway", &format!("http://127.0.0.1:{port}/-/ready")).await
}
