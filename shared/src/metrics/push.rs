//! Metrics pushed to a Prometheus Pushgateway.
//!
//! A push replaces everything under the sandbox's own group, `job` and `instance`, with the cumulative state: one that is
//! lost or skipped costs freshness and no counts. When a push may happen is decided in [`crate::lifecycle`]; here is how
//! often, how long, and what if the Pushgateway fails: at most every [`INTERVAL`], [`BUDGET`] in all, and after a failure
//! nothing for a minute. Time is the wall clock's, since the monotonic one may stand still while the sandbox is frozen.
//!
//! A sandbox ends without notice to the Pushgateway, and its last counts must stay until they were scraped. So its group
//! is removed later, by any other sandbox of the same job that pushes: once in ten minutes it looks for groups that
//! were not pushed for [`STALE`]. A sandbox that was only idle for so long is back with its next push, with its counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use reqwest::Client;
use tokio::time::{Instant, timeout_at};

use super::pushgateway::{Pushgateway, causes};
use super::{DURATION_BUCKETS, REQUEST_DURATION};
use crate::config::MetricsConfig;
use crate::errors::BoxError;

/// No two pushes of a sandbox are closer together.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// What one push may take in all, the removal of stale groups included. Lambda bills it, and the sandbox is busy for it.
pub const BUDGET: Duration = Duration::from_millis(200);
/// How long a Pushgateway that failed is left alone.
const REST: Duration = Duration::from_secs(60);
/// How often a sandbox looks for stale groups.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// A group that was not pushed for so long is removed. Lambda ends idle sandboxes well before.
pub const STALE: Duration = Duration::from_secs(3600);
/// A list of all groups that is longer than this is left to `lag-monitor`.
const MAX_LISTING: usize = 8 << 20;

/// This sandbox's group on the Pushgateway.
pub struct Pusher {
    gateway: Pushgateway,
    instance: String,
    rendered: PrometheusHandle,
    /// [`BUDGET`], except in tests, where a busy machine must not use it up.
    budget: Duration,
    schedule: Mutex<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    next_push: SystemTime,
    next_sweep: SystemTime,
}

/// A time that is further ahead than it was ever set has come: the clock was put back.
fn has_come(time: SystemTime, now: SystemTime, furthest: Duration) -> bool {
    time <= now || time > now + furthest
}

impl Pusher {
    /// Makes this process count, and returns what pushes the counts: nothing at all without a `PUSHGATEWAY_URL`.
    /// Call it once, before anything is counted. `client` must keep no idle connections: a frozen sandbox's are dead.
    pub fn install(config: &MetricsConfig, client: Client) -> Result<Option<Arc<Self>>, BoxError> {
        let Some(base) = &config.pushgateway_url else { return Ok(None) };
        let recorder = recorder();
        let rendered = recorder.handle();
        metrics::set_global_recorder(recorder)?;
        super::describe();
        Ok(Some(Arc::new(Self::new(base, &config.job, instance(), rendered, client))))
    }

    fn new(base: &str, job: &str, instance: String, rendered: PrometheusHandle, client: Client) -> Self {
        let now = SystemTime::now();
        // Sandboxes that start together do not look for stale groups together.
        let first_sweep = SWEEP_INTERVAL.mul_f64(rand::random());
        let schedule = Mutex::new(Schedule { next_push: now, next_sweep: now + first_sweep });
        Self { gateway: Pushgateway::new(base, job, client), instance, rendered, budget: BUDGET, schedule }
    }

    /// Pushes, unless that was done or has failed a short while ago. Never fails: a push that does is one warning.
    pub async fn push_if_due(&self) {
        let now = SystemTime::now();
        let sweep = {
            let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
            if !has_come(schedule.next_push, now, REST) {
                return;
            }
            schedule.next_push = now + INTERVAL;
            let sweep = has_come(schedule.next_sweep, now, SWEEP_INTERVAL);
            if sweep {
                schedule.next_sweep = now + SWEEP_INTERVAL;
            }
            sweep
        };
        let deadline = Instant::now() + self.budget;
        if let Err(error) = within(deadline, self.put()).await {
            self.schedule.lock().unwrap_or_else(PoisonError::into_inner).next_push = now + REST;
            warn(error.as_ref(), "metrics were not pushed");
        } else if sweep && let Err(error) = within(deadline, self.gateway.remove_stale(STALE, MAX_LISTING)).await {
            warn(error.as_ref(), "stale metrics were not removed");
        }
    }

    /// Pushes, whatever was done before: the sandbox ends.
    pub async fn push_last(&self) {
        if let Err(error) = within(Instant::now() + self.budget, self.put()).await {
            warn(error.as_ref(), "the last metrics were not pushed");
        }
    }

    async fn put(&self) -> Result<(), BoxError> {
        self.gateway.put(&self.instance, self.rendered.render()).await
    }
}

/// What renders the metrics; the exporter's own defaults would make summaries of the durations.
pub(super) fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(REQUEST_DURATION.to_owned()), DURATION_BUCKETS)
        .unwrap_or_else(|_| unreachable!("there are buckets"))
        .build_recorder()
}

/// Lambda gives every sandbox a log stream whose name ends in 32 hexadecimal digits: whoever sees the metrics finds the
/// logs. Emulators use one name for all, so there the instance is the function's name and a random number.
fn instance() -> String {
    let stream = std::env::var("AWS_LAMBDA_LOG_STREAM_NAME").unwrap_or_default();
    let own = stream.len() >= 32 && stream.bytes().rev().take(32).all(|byte| byte.is_ascii_hexdigit());
    if own {
        stream
    } else {
        let function = std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
        format!("{function}-{:032x}", rand::random::<u128>())
    }
}

async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    timeout_at(deadline, work).await.map_err(|_| BoxError::from("it took too long"))?
}

fn warn(error: &(dyn std::error::Error + 'static), message: &'static str) {
    tracing::warn!(error_chain = causes(error), "{message}");
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::fake_server;

    const INSTANCE: &str = "2026/01/31/[$LATEST]0123456789abcdef0123456789abcdef";
    /// `kafka-gateway`, and [`INSTANCE`].
    const GROUP: &str = "/metrics/job@base64/a2Fma2EtZ2F0ZXdheQ/instance@base64/MjAyNi8wMS8zMS9bJExBVEVTVF0wMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg";

    fn pusher(base: &str) -> Pusher {
        let recorder = recorder();
        metrics::with_local_recorder(&recorder, || super::super::auth_failed("expired_token"));
        let client = Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        let mut pusher = Pusher::new(base, "kafka-gateway", INSTANCE.to_owned(), recorder.handle(), client);
        pusher.budget = Duration::from_secs(60);
        pusher
    }

    /// As if so much time had passed since the last attempt.
    fn later(pusher: &Pusher, by: Duration) {
        pusher.schedule.lock().expect("unpoisoned").next_push -= by;
    }

    fn sweep_now(pusher: &Pusher) {
        pusher.schedule.lock().expect("unpoisoned").next_sweep = UNIX_EPOCH;
    }

    #[tokio::test]
    async fn a_push_replaces_the_sandbox_s_group_and_the_next_one_waits() {
        let (address, mut requests) = fake_server::start().await;
        let pusher = pusher(&format!("{address}/"));
        let ((), ()) = tokio::join!(pusher.push_if_due(), async {
            let push = requests.recv().await.expect("a push");
            assert_eq!(push.line, format!("PUT {GROUP}"));
            assert!(push.body.contains("kafka_gateway_auth_failures_total{reason=\"expired_token\"} 1\n"), "{push:?}");
            push.answer("200 OK", "").await;
        });
        pusher.push_if_due().await;
        assert!(requests.try_recv().is_err());
        later(&pusher, INTERVAL);
        let ((), ()) = tokio::join!(pusher.push_if_due(), async {
            requests.recv().await.expect("the next push").answer("202 Accepted", "").await;
        });
    }

    #[tokio::test]
    async fn a_pushgateway_that_refuses_is_left_alone_for_a_while_but_not_at_the_end() {
        let (address, mut requests) = fake_server::start().await;
        let pusher = pusher(&address);
        let ((), ()) = tokio::join!(pusher.push_if_due(), async {
            requests.recv().await.expect("a push").answer("500 Internal Server Error", "no").await;
        });
        later(&pusher, INTERVAL);
        pusher.push_if_due().await;
        assert!(requests.try_recv().is_err());
        let ((), ()) = tokio::join!(pusher.push_last(), async {
            requests.recv().await.expect("the last push").answer("200 OK", "").await;
        });
        later(&pusher, REST);
        let ((), ()) = tokio::join!(pusher.push_if_due(), async {
            requests.recv().await.expect("a push after the rest").answer("200 OK", "").await;
        });
    }

    #[tokio::test]
    async fn a_pushgateway_that_hangs_is_given_up() {
        let (address, mut requests) = fake_server::start().await;
        let mut pusher = pusher(&address);
        pusher.budget = Duration::from_secs(1);
        let ((), ()) = tokio::join!(pusher.push_if_due(), async {
            requests.recv().await.expect("a push").abandoned().await;
        });
        let rests = pusher.schedule.lock().expect("unpoisoned").next_push > SystemTime::now() + INTERVAL;
        assert!(rests);
    }

    #[tokio::test]
    async fn a_pushgateway_that_is_not_there_fails_nothing_and_its_password_stays_out_of_the_log() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://user:s3cret@{}", listener.local_addr().expect("bound"));
        drop(listener);
        let pusher = pusher(&address);
        let error = pusher.put().await.expect_err("nobody is there");
        let causes = causes(error.as_ref());
        assert!(causes.starts_with("the Pushgateway cannot be reached: ") && !causes.contains("s3cret"), "{causes}");
        pusher.push_if_due().await;
        pusher.push_last().await;
    }

    #[tokio::test]
    async fn stale_groups_of_the_job_are_removed_and_no_others() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let group = |job: &str, instance: &str, more: &str, age: f64| {
            format!(
                r#"{{"labels":{{"job":"{job}","instance":"{instance}"{more}}},"last_push_successful":true,
                "push_time_seconds":{{"type":"GAUGE","metrics":[{{"labels":{{}},"value":"{:e}"}}]}}}}"#,
                now - age
            )
        };
        let listing = format!(
            r#"{{"status":"success","data":[{},{},{},{},{{"labels":{{"job":"kafka-gateway","instance":"x"}}}}]}}"#,
            group("kafka-gateway", "gone", "", 4000.0),
            group("kafka-gateway", "idle", "", 3000.0),
            group("another", "gone", "", 4000.0),
            group("kafka-gateway", "gone", r#","shard":"1""#, 4000.0),
        );
        let (address, mut requests) = fake_server::start().await;
        let pusher = pusher(&address);
        sweep_now(&pusher);
        let ((), ()) = tokio::join!(pusher.push_if_due(), async {
            requests.recv().await.expect("a push").answer("200 OK", "").await;
            let list = requests.recv().await.expect("the list");
            assert_eq!(list.line, "GET /api/v1/metrics");
            list.answer("200 OK", &listing).await;
            let delete = requests.recv().await.expect("a removal");
            assert_eq!(delete.line, "DELETE /metrics/job@base64/a2Fma2EtZ2F0ZXdheQ/instance@base64/Z29uZQ");
            delete.answer("202 Accepted", "").await;
        });
        assert!(requests.try_recv().is_err());
    }

    #[test]
    fn a_clock_that_was_put_back_does_not_stop_the_pushes() {
        let now = SystemTime::now();
        assert!(has_come(now, now, REST));
        assert!(!has_come(now + REST, now, REST));
        assert!(has_come(now + REST + Duration::from_secs(1), now, REST));
    }
}
