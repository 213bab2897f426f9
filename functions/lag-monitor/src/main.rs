//! The Lambda function `lag-monitor`: see [`kafka_gateway::lag_monitor`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kafka_gateway::app::run_lag_monitor()
}
