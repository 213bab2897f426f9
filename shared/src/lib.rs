//! What every function of the Kafka gateway is built from.

pub mod config;
pub mod errors;
pub mod names;
