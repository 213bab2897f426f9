//! The Lambda function `fetch`: see [`kafka_gateway::fetch`].

use std::process::ExitCode;

use kafka_gateway::fetch::Fetch;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Fetch>()
}
