//! What every function of the Kafka gateway is built from.

pub mod app;
pub mod auth;
pub mod config;
pub mod consume;
pub mod deadline;
pub mod errors;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod names;
pub mod produce;
pub mod record;
pub mod telemetry;
