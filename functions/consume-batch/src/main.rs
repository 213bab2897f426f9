//! The Lambda function `consume-batch`: see [`kafka_gateway::consume_batch`].

use std::process::ExitCode;

use kafka_gateway::consume_batch::ConsumeBatch;

fn main() -> ExitCode {
    kafka_gateway::app::run::<ConsumeBatch>()
}
