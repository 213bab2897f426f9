//! The Lambda function `seek`: see [`kafka_gateway::seek`].

use std::process::ExitCode;

use kafka_gateway::seek::Seek;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Seek>()
}
