//! The endpoint of a warm sandbox, and what must be in order before a call may use it.

use crate::config::{Config, Security};
use crate::deadline::{Deadline, FUNCTION_TIMEOUT};
use crate::errors::{BoxError, Error};
use crate::http::Endpoint;
use crate::kafka::iam::log_in;

/// An endpoint whose clients can log in.
pub struct Warm<E> {
    endpoint: E,
    security: Security,
}

impl<E> std::fmt::Debug for Warm<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warm")
    }
}

impl<E: Endpoint> Warm<E> {
    /// Makes the endpoint. A login that cannot be had now is asked for again by each call.
    pub async fn start(config: &Config) -> Result<Self, BoxError> {
        let security = config.kafka.security.clone();
        if let Err(error) = log_in(&security, Deadline::of_invocation(0, FUNCTION_TIMEOUT)).await {
            tracing::warn!(error_chain = error.chain().join(": "), "no login at Kafka yet; calls will try again");
        }
        Ok(Self { endpoint: E::start(config).await?, security })
    }

    /// The endpoint, for a call that may use it until its deadline.
    ///
    /// Errors: `503` where Kafka cannot be logged in to.
    pub async fn endpoint(&self, deadline: Deadline) -> Result<&E, Error> {
        log_in(&self.security, deadline).await?;
        Ok(&self.endpoint)
    }

    /// See [`Endpoint::stop`].
    pub async fn stop(&self) {
        self.endpoint.stop().await;
    }
}
