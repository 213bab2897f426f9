//! The Lambda function `topics`: see [`kafka_gateway::topics`].

use std::process::ExitCode;

use kafka_gateway::topics::Topics;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Topics>()
}
