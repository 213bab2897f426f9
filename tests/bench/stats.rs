//! What a handful of measured times comes to.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times in milliseconds, in the order they were measured.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Every one, for where each counts (a trap that is met by luck shows in no median).
    pub(crate) fn each(&self) -> &[f64] {
        &self.0
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The nearest rank: always a time that was measured, never one between two.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rank
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// One line of the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) case: String,
    /// What it was measured on.
    pub(crate) subject: String,
    /// Of how many measurements.
    pub(crate) count: usize,
    /// Milliseconds.
    pub(crate) p50: Option<f64>,
    /// Milliseconds.
    pub(crate) p99: Option<f64>,
    /// Milliseconds, the longest of all.
    pub(crate) longest: Option<f64>,
    /// Records or calls a second, where that is what counts.
    pub(crate) per_second: Option<f64>,
    /// Every time, where there are few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) each: Vec<f64>,
}

impl Row {
    pub(crate) fn times(case: &str, subject: impl Into<String>, samples: &Samples) -> Self {
        let each = if samples.len() <= 10 { samples.each().to_vec() } else { Vec::new() };
        Self {
            case: case.to_owned(),
            subject: subject.into(),
            count: samples.len(),
            p50: Some(samples.p50()),
            p99: Some(samples.quantile(0.99)),
            longest: Some(samples.quantile(1.0)),
            per_second: None,
            each,
        }
    }

    #[must_use]
    pub(crate) fn with_rate(mut self, count: usize, took: Duration) -> Self {
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let count = count as f64;
        self.per_second = Some(count / took.as_secs_f64());
        self
    }
}
