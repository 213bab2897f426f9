//! The Lambda function `consume`: see [`kafka_gateway::consume`].

use std::process::ExitCode;

use kafka_gateway::consume::Consume;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Consume>()
}
