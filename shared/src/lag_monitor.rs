//! `lag-monitor`: on a schedule, how far the configured groups are behind is measured, published and warned of.
//!
//! It has no route and no callers: who may invoke it (IAM) may learn what `LAG_MONITOR_GROUPS` names, and nothing else.
//! So no permission is asked for here, and nothing in the event is read. Of each group it also renews the positions that
//! would expire (see [`Keeper`]).
//!
//! Nothing is kept from one run to the next: a client that was made minutes ago is mostly a dead connection. Nor is a
//! group's client kept beyond its own turn: there may be hundreds of groups to watch.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::timeout_at;

use crate::config::MonitorConfig;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Error};
use crate::kafka::brokers::Brokers;
use crate::kafka::client::Settings;
use crate::kafka::consumers::blocking;
use crate::kafka::group::{self, Group};
use crate::kafka::iam::log_in;
use crate::kafka::keeper::Keeper;
use crate::kafka::lag::{Lag, measure};
use crate::kafka::position::now_ms;
use crate::metrics;
use crate::metrics::push::STALE;
use crate::metrics::pushgateway::{Pushgateway, causes};
use crate::names::{GroupId, TopicName};
use crate::telemetry;

/// The function's name in logs, and the instance whose metrics it replaces with each run, whichever sandbox runs.
const FUNCTION: &str = "lag-monitor";

/// How many groups are measured at the same time: each takes a client.
const ABREAST: usize = 8;

/// The longest that one topic of a group may take: others shall be measured as well.
const TOPIC: Duration = Duration::from_secs(5);

/// What is kept of a run's time for publishing.
const PUBLISHING: Duration = Duration::from_secs(5);

/// The longest list of the Pushgateway's groups that is looked through for stale ones.
const MAX_LISTING: usize = 64 << 20;

/// The `CloudWatch` namespace of its metrics.
const NAMESPACE: &str = "KafkaGateway";

/// The function, as it is made at init.
pub struct LagMonitor {
    config: MonitorConfig,
    brokers: Brokers,
    settings: Settings,
    keeper: Keeper,
    pushgateway: Option<Pushgateway>,
}

impl std::fmt::Debug for LagMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LagMonitor").field("config", &self.config).finish_non_exhaustive()
    }
}

/// One topic of a group, measured.
struct Measured {
    group: GroupId,
    topic: TopicName,
    lags: Vec<Lag>,
    /// Whether some of its positions are to be renewed.
    due: bool,
}

impl Measured {
    fn total(&self) -> i64 {
        self.lags.iter().map(|lag| lag.lag).sum()
    }

    fn most(&self) -> i64 {
        self.lags.iter().map(|lag| lag.lag).max().unwrap_or_default()
    }
}

/// A run that left something undone.
#[derive(Debug, thiserror::Error)]
#[error("{unmeasured} topics could not be measured, {unpublished} of the ways to publish failed; the log says why")]
pub struct Incomplete {
    unmeasured: usize,
    unpublished: usize,
}

impl LagMonitor {
    /// Connects to nothing: a Kafka that is away does not fail init, but each run.
    pub fn new(config: MonitorConfig, client: reqwest::Client) -> Self {
        let metrics = &config.metrics;
        let pushgateway = metrics.pushgateway_url.as_ref().map(|url| Pushgateway::new(url, &metrics.job, client));
        Self {
            settings: group::settings(&config.kafka),
            keeper: Keeper::new(&config.kafka),
            brokers: Brokers::new(&config.kafka),
            pushgateway,
            config,
        }
    }

    /// One run: measures, warns, publishes, renews. What cannot be measured holds up nothing else; it fails the run at its
    /// end, so that Lambda's own count of errors shows it.
    pub async fn run(self: &Arc<Self>, deadline: Deadline) -> Result<(), Incomplete> {
        let begun = Instant::now();
        if let Err(error) = log_in(&self.config.kafka.security, deadline).await {
            tracing::error!(function = FUNCTION, error_chain = error.chain().join(": "), "no login at Kafka");
        }
        let measuring = deadline.within(deadline.left().saturating_sub(PUBLISHING));
        let groups = self.config.groups.iter().map(|(group, topics)| self.measure(group, topics, measuring));
        let groups: Vec<_> = groups.collect();
        let results: Vec<Vec<Result<Measured, Error>>> = stream::iter(groups).buffer_unordered(ABREAST).collect().await;
        let mut measured = Vec::new();
        let mut unmeasured = 0;
        for result in results.into_iter().flatten() {
            match result {
                Ok(topic) => measured.push(topic),
                Err(error) => {
                    unmeasured += 1;
                    let of = |name: &str| error.members().get(name).and_then(Value::as_str);
                    let (group, topic, error_chain) = (of("group_id"), of("topic"), error.chain().join(": "));
                    tracing::error!(function = FUNCTION, group, topic, error_chain, "the lag could not be measured");
                }
            }
        }
        self.warn(&measured);
        let emitted = emit(&self.config.metrics.job, &measured);
        let unpublished = usize::from(!emitted) + usize::from(!self.push(&measured, deadline).await);
        let topics = measured.len();
        self.renew(measured, deadline).await;
        let duration_ms = telemetry::milliseconds(begun.elapsed());
        tracing::info!(function = FUNCTION, topics, unmeasured, unpublished, duration_ms, "lag measured");
        if unmeasured + unpublished > 0 {
            return Err(Incomplete { unmeasured, unpublished });
        }
        Ok(())
    }

    /// Measures a group, one topic after the other.
    async fn measure(
        self: &Arc<Self>,
        id: &GroupId,
        topics: &[TopicName],
        deadline: Deadline,
    ) -> Vec<Result<Measured, Error>> {
        let mut results = Vec::new();
        let mut opened: Option<Arc<Group>> = None;
        for topic in topics {
            let (this, name, group) = (Arc::clone(self), topic.clone(), opened.clone());
            let deadline = deadline.within(TOPIC);
            let measured = async {
                let group = match group {
                    Some(group) => group,
                    None => self.open(id, deadline).await?,
                };
                let measured = blocking(deadline, move |until| {
                    let count = group.partitions(&name, until.saturating_duration_since(Instant::now()))?;
                    let lags = measure(&group, &[(name.clone(), count)], true, until)?;
                    let due = this.keeper.is_due(&group, &lags);
                    Ok((Measured { group: group.id.clone(), topic: name, lags, due }, group))
                });
                measured.await
            };
            let measured = measured.await.map(|(measured, group)| {
                opened = Some(group);
                measured
            });
            results.push(measured.map_err(|error| error.with("group_id", id.as_str()).with("topic", topic.as_str())));
        }
        results
    }

    async fn open(self: &Arc<Self>, id: &GroupId, deadline: Deadline) -> Result<Arc<Group>, Error> {
        let facts = self.brokers.facts(deadline.left()).await?;
        let (this, id) = (Arc::clone(self), id.clone());
        blocking(deadline, move |_| Group::open(&this.settings, &id, facts).map(Arc::new)).await
    }

    /// One line for each topic of a group that is behind by more than the threshold.
    fn warn(&self, measured: &[Measured]) {
        let Some(threshold) = self.config.threshold else { return };
        for one in measured.iter().filter(|one| one.total() > threshold) {
            let (group, topic, lag) = (one.group.as_str(), one.topic.as_str(), one.total());
            tracing::warn!(function = FUNCTION, group, topic, lag, threshold, "the group is too far behind");
        }
    }

    /// Replaces the lags on the Pushgateway, and removes what sandboxes that are gone have left there. Whether the lags are
    /// out.
    async fn push(&self, measured: &[Measured], deadline: Deadline) -> bool {
        let Some(pushgateway) = &self.pushgateway else { return true };
        let lags =
            measured.iter().flat_map(|one| one.lags.iter().map(|lag| (&one.group, &lag.topic, lag.partition, lag.lag)));
        let late = || Err(BoxError::from("it took too long"));
        let until = deadline.instant();
        let put = pushgateway.put(FUNCTION, metrics::consumer_lags(lags));
        if let Err(error) = timeout_at(until, put).await.unwrap_or_else(|_| late()) {
            tracing::error!(function = FUNCTION, error_chain = causes(error.as_ref()), "the lags were not pushed");
            return false;
        }
        let removed = pushgateway.remove_stale(STALE, MAX_LISTING);
        if let Err(error) = timeout_at(until, removed).await.unwrap_or_else(|_| late()) {
            tracing::warn!(function = FUNCTION, error_chain = causes(error.as_ref()), "stale metrics were not removed");
        }
        true
    }

    /// Renews what would expire, with the time that is left. What fails is tried again in the next run, long before the
    /// positions expire.
    async fn renew(self: &Arc<Self>, measured: Vec<Measured>, deadline: Deadline) {
        for Measured { group, topic, lags, .. } in measured.into_iter().filter(|one| one.due) {
            let this = Arc::clone(self);
            let renewed = async {
                let opened = self.open(&group, deadline).await?;
                blocking(deadline, move |until| this.keeper.renew(&opened, &lags, until)).await
            };
            match renewed.await {
                Ok(0) => {}
                Ok(positions) => tracing::info!(function = FUNCTION, %group, %topic, positions, "positions renewed"),
                Err(error) => {
                    let error_chain = error.chain().join(": ");
                    tracing::warn!(function = FUNCTION, %group, %topic, error_chain, "positions were not renewed");
                }
            }
        }
    }
}

/// Writes `CloudWatch`'s embedded metric format to standard output, a line for each topic of a group, which become metrics
/// without a call to an API. Whether that could be written.
fn emit(job: &str, measured: &[Measured]) -> bool {
    let now = now_ms();
    let mut out = std::io::stdout().lock();
    let line = |one: &Measured| embedded(job, one, now);
    let written = measured.iter().try_for_each(|one| writeln!(out, "{}", line(one))).and_then(|()| out.flush());
    if let Err(error) = &written {
        tracing::error!(function = FUNCTION, %error, "the lags were not written for CloudWatch");
    }
    written.is_ok()
}

/// `job` tells deployments apart that share an account, as it does on the Pushgateway.
fn embedded(job: &str, one: &Measured, now_ms: u64) -> Value {
    json!({
        "_aws": {
            "Timestamp": now_ms,
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [["job", "group", "topic"]],
                "Metrics": [
                    { "Name": "consumer_lag", "Unit": "Count" },
                    { "Name": "consumer_lag_max", "Unit": "Count" },
                ],
            }],
        },
        "job": job,
        "group": one.group.as_str(),
        "topic": one.topic.as_str(),
        "consumer_lag": one.total(),
        "consumer_lag_max": one.most(),
    })
}
