//! From the process's start to its end: log, configuration, clients, then calls until Lambda ends the sandbox.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use serde::de::IgnoredAny;

use crate::auth::Authenticator;
use crate::config::{Config, MonitorConfig};
use crate::deadline::{Deadline, FUNCTION_TIMEOUT};
use crate::errors::BoxError;
use crate::http::request::Event;
use crate::http::{Endpoint, Service};
use crate::lag_monitor::{Incomplete, LagMonitor};
use crate::metrics::push::Pusher;
use crate::runtime_api::{self, Context, Failure};
use crate::secrets::Secrets;
use crate::warm::Warm;
use crate::{lifecycle, metrics, telemetry};

/// Runs one endpoint as this process's Lambda function, until Lambda ends the sandbox.
pub fn run<E: Endpoint>() -> ExitCode {
    process(serve::<E>)
}

/// Runs `lag-monitor`, which has no route, in the same way.
pub fn run_lag_monitor() -> ExitCode {
    process(monitor)
}

/// What stops a function is one log line, which names the environment variable where one is at fault.
fn process<Ended: Future<Output = Result<(), BoxError>>>(serve: impl FnOnce(Instant) -> Ended) -> ExitCode {
    let started = Instant::now();
    few_heaps();
    if let Err(error) = telemetry::init() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the function stops: its runtime cannot be made");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(started));
    // A thread that librdkafka holds is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the function stops");
            ExitCode::FAILURE
        }
    }
}

/// glibc gives threads heaps of their own, up to eight for each core. Clients come and go with their threads, and what is freed
/// in one heap serves no other: with two, memory stays where it is however many groups pass (`life`).
fn few_heaps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets a number, and no other thread is there yet.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// One thread where calls come one by one: what Kafka or Lambda answers then wakes the thread that waits for it, and no
/// other on the way there. Where calls come side by side, a thread for each core.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = if lifecycle::is_concurrent() {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build()
}

async fn serve<E: Endpoint>(started: Instant) -> Result<(), BoxError> {
    let config = Config::from_env()?;
    // The identity provider's keys and Kafka are waited for at the same time. The client reads the system's roots, which
    // is work for some milliseconds: beside, not before.
    let identity = async {
        let client = tokio::task::spawn_blocking(http_client).await??;
        Ok::<_, BoxError>((Authenticator::start(&config.oidc, client.clone()).await, client))
    };
    let (warm, identity) = tokio::join!(Warm::<E>::start(config.clone()), identity);
    let (authenticator, client) = identity?;
    let pusher = Pusher::install(&config.metrics, client)?;
    let service = Arc::new(Service::new(warm?, authenticator, config.request_timeout));
    metrics::initialized(E::FUNCTION, started.elapsed());
    let answer = {
        let service = Arc::clone(&service);
        move |event: Event, context: Context| {
            let service = Arc::clone(&service);
            async move { Ok(service.answer(event, &context.request_id, context.deadline_ms).await) }
        }
    };
    lifecycle::run(answer, pusher, service.stop()).await
}

/// It answers each event with nothing, or with an error, which Lambda counts. What it has to push is pushed in the call
/// itself, as nobody waits for the answer; so there is no extension, and nothing to flush.
async fn monitor(_: Instant) -> Result<(), BoxError> {
    let config = MonitorConfig::from_env()?;
    let client = tokio::task::spawn_blocking(http_client).await??;
    let secrets = Arc::new(Secrets::of_kafka(&config.kafka));
    let run = move |_: IgnoredAny, context: Context| {
        let (mut config, client, secrets) = (config.clone(), client.clone(), Arc::clone(&secrets));
        let deadline = Deadline::of_invocation(context.deadline_ms, FUNCTION_TIMEOUT);
        async move {
            if let Some(secrets) = &*secrets {
                let unread = |error: BoxError| Failure { error_type: "Credentials", error_message: error.to_string() };
                let texts = secrets.read().await.map_err(unread)?;
                config.kafka = texts.put_into_kafka(&config.kafka).map_err(|error| unread(error.into()))?;
            }
            let monitor = Arc::new(LagMonitor::new(config, client));
            let incomplete = |error: Incomplete| Failure { error_type: "Incomplete", error_message: error.to_string() };
            monitor.run(deadline).await.map_err(incomplete)?;
            Ok(((), || ()))
        }
    };
    runtime_api::serve(run, 1, |_| std::future::ready(())).await
}

/// The sandbox's one HTTP client, for the identity provider and the Pushgateway.
pub(crate) fn http_client() -> Result<reqwest::Client, BoxError> {
    let client = || {
        reqwest::Client::builder()
            // Neither has a reason to send us elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            // A connection that was open when the sandbox was frozen is dead when it thaws.
            .pool_max_idle_per_host(0)
    };
    let roots = if openssl_probe::has_ssl_cert_env_vars() { None } else { bundle() };
    // A bundle with a root that cannot be read makes no client; reqwest's own way leaves such a root out.
    let trusting = roots.and_then(|roots| client().tls_certs_only(roots).build().ok());
    Ok(trusting.map_or_else(|| client().build(), Ok)?)
}

/// The system's roots, out of its one bundle, where there is one. reqwest, unless the environment names roots, reads the
/// system's folder of them as well, which on Debian holds the same once more, a file each, and then again under the names of
/// their hashes: some milliseconds of each cold start.
fn bundle() -> Option<Vec<reqwest::Certificate>> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let pem = std::fs::read(openssl_probe::probe().cert_file?).ok()?;
    reqwest::Certificate::from_pem_bundle(&pem).ok().filter(|roots| !roots.is_empty())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_system_has_a_bundle_that_a_client_can_be_made_with() {
        let roots = bundle().expect("Debian's ca-certificates, or another system's bundle");
        reqwest::Client::builder().tls_certs_only(roots).build().expect("each root can be read");
    }
}
