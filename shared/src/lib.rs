//! What every function of the Kafka gateway is built from.
//!
//! One call takes one way, forward only:
//!
//! ```text
//! API Gateway's event ──> http::Service ──> auth::Authenticator ──> auth::May<Action>     (no Kafka up to here)
//!                         route, deadline    token → Principal       role at all?
//!                                                                         │
//!                 one of produce, consume, acknowledge <──────────────────┘
//!                 body or query → typed request → May::on(topic, group) → auth::Authorized<Action>
//!                                                                         │
//!                 kafka::* <──────────────────────────────────────────────┘
//!                 producer │ consumers, group, fetch, claim, handover, decide, position, retention
//!                                                                         │
//! API Gateway's response <── http::Response <── http::Reply │ errors::Error → http::problem
//!                            when the answer is out: telemetry::request_finished (one log line, the counters),
//!                            then lifecycle pushes the metrics
//! ```
//!
//! Only [`http`] knows HTTP; [`auth`] never sees records, and [`kafka`] never sees claims. [`app`] starts it all, and
//! [`lifecycle`] ends it. ARCHITECTURE.md has the protocol of exclusive consuming.

pub mod acknowledge;
pub mod app;
pub mod auth;
pub mod aws;
pub mod cloud_event;
pub mod config;
pub mod consume;
pub mod consume_batch;
pub mod deadline;
pub mod dlq;
pub mod errors;
#[cfg(test)]
mod fake_server;
pub mod fetch;
pub mod http;
pub mod incoming;
pub mod kafka;
pub mod lag;
pub mod lag_monitor;
pub mod lease;
pub mod lifecycle;
pub mod messages;
pub mod metrics;
pub mod names;
pub mod on_invalid;
pub mod produce;
pub mod produce_batch;
pub mod record;
pub mod redrive;
pub mod runtime_api;
pub mod schema;
pub mod secrets;
pub mod seek;
pub mod telemetry;
pub mod topics;
pub mod warm;
pub mod writer;
