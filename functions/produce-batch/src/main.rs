//! The Lambda function `produce-batch`: see [`kafka_gateway::produce_batch`].

use std::process::ExitCode;

use kafka_gateway::produce_batch::ProduceBatch;

fn main() -> ExitCode {
    kafka_gateway::app::run::<ProduceBatch>()
}
