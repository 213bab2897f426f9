//! From the process's start to its end: log, configuration, clients, then calls until Lambda ends the sandbox.

use std::process::ExitCode;
use std::sync::Arc;

use lambda_runtime::{LambdaEvent, service_fn};

use crate::auth::Authenticator;
use crate::config::Config;
use crate::errors::BoxError;
use crate::http::request::Event;
use crate::http::{Endpoint, Service};

/// Runs one endpoint as this process's Lambda function.
pub async fn run<E: Endpoint>() -> ExitCode {
    match start::<E>().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn start<E: Endpoint>() -> Result<(), BoxError> {
    let config = Config::from_env()?;
    // The identity provider's keys and the Kafka client are waited for at the same time.
    let (authenticator, endpoint) = tokio::join!(Authenticator::start(&config.oidc), E::start(&config));
    let service = Arc::new(Service::new(endpoint?, authenticator, config.request_timeout));
    lambda_runtime::run(service_fn(|event: LambdaEvent<Event>| {
        let service = Arc::clone(&service);
        async move {
            let LambdaEvent { payload, context } = event;
            Ok::<_, BoxError>(service.answer(payload, &context.request_id, context.deadline).await)
        }
    }))
    .await
}
