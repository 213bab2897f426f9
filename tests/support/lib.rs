//! The local stack (Kafka, Keycloak, Pushgateway) and what tests need around it.
//!
//! `make dev` and the tests start the stack through the same code: with `infra/local/compose.yaml` where a container
//! engine answers, and from jars and packages kept below `.local/` where none does. Nothing outlives its starter: every
//! child is killed by the kernel when the process that started it is gone, however that happened.
//!
//! - [`Stack`]: the running services, tokens, Kafka's own tools, Python clients. Tests share one: [`Stack::shared`].
//! - [`Broker`]: a Kafka that can be stopped, killed, paused and started again on the same port and data.
//! - [`Cluster`]: three brokers.
//! - [`Secured`]: a broker with TLS, logins and ACLs.
//! - [`Proxy`]: a wire to a broker, on which single requests and answers are caught, and connections die in silence.
//! - [`Function`]: a function's binary run against a Lambda Runtime and Extensions API.
//! - [`Prometheus`]: with the rules of `infra/local`; `promtool` on them.
//! - [`Gateway`]: the functions at their routes, by `cargo lambda watch`. [`Page`]: the API as a page before it;
//!   [`Browser`]: who looks at that.
//! - [`Event`]: the API Gateway event a function is invoked with.
//!
//! Helpers that only tests call panic when they fail: a failing helper is a failing test.

// The panics are the point (see above), and repeating that on every helper would say nothing.
#![allow(clippy::missing_panics_doc)]

mod browser;
mod certificates;
mod cluster;
mod compose;
mod error;
mod event;
mod function;
mod install;
mod kafka;
mod keycloak;
mod lambda_api;
mod page;
pub mod process;
mod prometheus;
mod proxy;
mod pushgateway;
mod registry;
mod run;
mod secured;
mod stack;
mod watch;
mod zookeeper;

pub use browser::Browser;
pub use certificates::Certificates;
pub use cluster::Cluster;
pub use error::{Error, Result};
pub use event::Event;
pub use function::{Function, StartFailure};
pub use install::{kafka_since, kafka_version};
pub use kafka::Broker;
pub use lambda_api::Failure;
pub use page::Page;
pub use process::Process;
pub use prometheus::{Prometheus, promtool};
pub use proxy::{Api, At, Held, Proxy};
pub use run::{free_port, progress};
pub use secured::{SECRET_KEY, Secured};
pub use stack::Stack;
pub use watch::Gateway;
