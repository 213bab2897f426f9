//! What every function of the Kafka gateway is built from.

pub mod acknowledge;
pub mod app;
pub mod auth;
pub mod config;
pub mod consume;
pub mod deadline;
pub mod errors;
#[cfg(test)]
mod fake_server;
pub mod http;
pub mod kafka;
pub mod lease;
pub mod lifecycle;
pub mod metrics;
pub mod names;
pub mod produce;
pub mod record;
pub mod telemetry;
