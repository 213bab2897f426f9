//! The Lambda function `redrive`: see [`kafka_gateway::redrive`].

use std::process::ExitCode;

use kafka_gateway::redrive::Redrive;

fn main() -> ExitCode {
    kafka_gateway::app::run::<Redrive>()
}
