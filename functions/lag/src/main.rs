//! The Lambda function `lag`: see [`kafka_gateway::lag`].

use std::process::ExitCode;

use kafka_gateway::lag::Lag;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Lag>()
}
