//! The Lambda function `acknowledge`: see [`kafka_gateway::acknowledge`].

use std::process::ExitCode;

use kafka_gateway::acknowledge::Acknowledge;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Acknowledge>()
}
