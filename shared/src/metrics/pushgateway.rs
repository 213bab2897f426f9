//! The Pushgateway: what is pushed lies there in groups, by `job` and `instance`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response};
use serde::Deserialize;

use crate::errors::BoxError;

/// A Pushgateway, and the job that this deployment's groups belong to.
pub struct Pushgateway {
    client: Client,
    /// The address, without a slash at its end.
    base: String,
    job: String,
}

impl Pushgateway {
    /// `client` must keep no idle connections: a frozen sandbox's are dead.
    pub fn new(base: &str, job: &str, client: Client) -> Self {
        Self { client, base: base.trim_end_matches('/').to_owned(), job: job.to_owned() }
    }

    /// Replaces everything in an instance's group.
    pub async fn put(&self, instance: &str, metrics: String) -> Result<(), BoxError> {
        let request =
            self.client.put(self.group(instance)).header(CONTENT_TYPE, "text/plain; version=0.0.4").body(metrics);
        accepted(request.send().await?).await.map(drop)
    }

    /// Removes the groups of this job that were not pushed for so long. The Pushgateway lists its groups only together
    /// with all that is in them; what is `longest` or longer is an error.
    pub async fn remove_stale(&self, age: Duration, longest: usize) -> Result<(), BoxError> {
        let request = self.client.get(format!("{}/api/v1/metrics", self.base));
        let mut response = accepted(request.send().await?).await?;
        let mut listing = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if listing.len() + chunk.len() > longest {
                return Err("the Pushgateway's list of groups is too long".into());
            }
            listing.extend_from_slice(&chunk);
        }
        let listing: Listing = serde_json::from_slice(&listing)?;
        let oldest = SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(age).as_secs_f64();
        for instance in listing.stale(&self.job, oldest) {
            accepted(self.client.delete(self.group(instance)).send().await?).await?;
        }
        Ok(())
    }

    /// Log stream names hold slashes, so the values are always sent in their base64 form.
    fn group(&self, instance: &str) -> String {
        let [job, instance] = [&self.job, instance].map(|value| URL_SAFE_NO_PAD.encode(value));
        format!("{}/metrics/job@base64/{job}/instance@base64/{instance}", self.base)
    }
}

/// The Pushgateway says why it refuses: with the names of metrics, never with what the functions handled.
async fn accepted(response: Response) -> Result<Response, BoxError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let reason: String = response.text().await.unwrap_or_default().chars().take(200).collect();
    Err(format!("{status}: {}", reason.trim()).into())
}

/// The causes of an error, for the log.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = match error.downcast_ref::<reqwest::Error>() {
        // Its own text repeats the address, which may hold a password.
        Some(_) => "the Pushgateway cannot be reached".to_owned(),
        None => error.to_string(),
    };
    let mut next = error.source();
    while let Some(cause) = next {
        causes = format!("{causes}: {cause}");
        next = cause.source();
    }
    causes
}

/// `GET /api/v1/metrics`, so far as it matters here.
#[derive(Deserialize)]
struct Listing {
    data: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    labels: std::collections::BTreeMap<String, String>,
    push_time_seconds: Option<Family>,
}

#[derive(Deserialize)]
struct Family {
    metrics: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    value: String,
}

impl Listing {
    /// The instances of this job that were last pushed before `oldest`. A group that is not grouped by job and instance
    /// alone is somebody else's.
    fn stale(&self, job: &str, oldest: f64) -> impl Iterator<Item = &str> {
        self.data.iter().filter_map(move |group| {
            let instance = group.labels.get("instance")?;
            let ours = group.labels.len() == 2 && group.labels.get("job").is_some_and(|of| of == job);
            let pushed: f64 = group.push_time_seconds.as_ref()?.metrics.first()?.value.parse().ok()?;
            (ours && pushed < oldest).then_some(instance.as_str())
        })
    }
}
