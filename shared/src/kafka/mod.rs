//! Kafka, and nothing else: these modules see proofs of permission, names and bytes, never claims or HTTP.

pub mod brokers;
pub mod catalogue;
pub mod claim;
pub mod client;
pub mod consumers;
pub mod dead_letters;
pub mod decide;
pub mod error;
pub mod fetch;
pub mod group;
pub mod handover;
pub mod iam;
pub mod keeper;
pub mod lag;
mod offsets;
pub mod position;
pub mod producer;
pub mod ranges;
pub mod reader;
pub mod retention;
mod topics;
pub mod transaction;
