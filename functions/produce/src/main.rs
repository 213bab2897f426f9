//! The Lambda function `produce`: see [`kafka_gateway::produce`].

use std::process::ExitCode;

use kafka_gateway::produce::Produce;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Produce>()
}
