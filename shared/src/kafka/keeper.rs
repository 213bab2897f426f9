//! Keeping the positions of watched groups alive, when nobody consumes as them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::claim;
use super::client::Settings;
use super::decide::Intent;
use super::group::Group;
use super::handover::{Slot, Stepped, Tools};
use super::lag::Lag;
use super::retention::Retention;
use crate::config::{Delivery, KafkaConfig};
use crate::errors::{Code, Error};

/// How many positions are renewed at the same time: each takes a client.
const ABREAST: usize = 8;

/// No renewal is begun with less time left than this.
const LAST: Duration = Duration::from_secs(1);

/// What renews positions.
#[derive(Debug)]
pub struct Keeper {
    retention: Retention,
    claims: Settings,
    delivery: Delivery,
    sandbox: u32,
}

impl Keeper {
    /// Connects to nothing.
    pub fn new(config: &KafkaConfig) -> Self {
        Self {
            retention: Retention::new(config),
            claims: claim::settings(config),
            delivery: config.delivery,
            sandbox: rand::random(),
        }
    }

    /// Whether some of a group's positions are to be renewed.
    ///
    /// A group without a mark of the gateway's is somebody else's, and left alone.
    pub fn is_due(&self, group: &Group, lags: &[Lag]) -> bool {
        lags.iter().any(|lag| lag.position.mark.is_some())
            && lags.iter().any(|lag| self.retention.is_due(group, &lag.position))
    }

    /// Commits the positions that are due (see [`Retention`]) again where they are, as far as there is time: the others
    /// are due the next time as well. How many it were. Blocks.
    ///
    /// A group with live members is left alone: its positions do not expire.
    pub fn renew(&self, group: &Arc<Group>, lags: &[Lag], until: Instant) -> Result<usize, Error> {
        let due: Vec<&Lag> = lags.iter().filter(|lag| self.retention.is_due(group, &lag.position)).collect();
        let Some((first, rest)) = due.split_first() else { return Ok(0) };
        self.retention.refresh(group, &first.topic, until)?;
        // One alone: it shows whether the group may be committed for.
        match self.keep(group, first, until) {
            Err(error) if error.code() == Code::GroupInUse => return Ok(0),
            kept => kept?,
        }
        let mut renewed = 1;
        for some in rest.chunks(ABREAST) {
            if until.saturating_duration_since(Instant::now()) < LAST {
                break;
            }
            std::thread::scope(|scope| {
                let keeping: Vec<_> = some.iter().map(|lag| scope.spawn(|| self.keep(group, lag, until))).collect();
                keeping.into_iter().try_for_each(|kept| {
                    kept.join().unwrap_or_else(|_| Err(Error::internal("renewing a position panicked")))
                })
            })?;
            renewed += some.len();
        }
        Ok(renewed)
    }

    fn keep(&self, group: &Arc<Group>, lag: &Lag, until: Instant) -> Result<(), Error> {
        let mut slot = Slot::new(group, &lag.topic, lag.partition, self.delivery)?;
        let tools = Tools { settings: &self.claims, sandbox: self.sandbox, until, committing: &AtomicBool::new(false) };
        let intent = Intent::Keep { seen: lag.position.committed, from: lag.end, renewal: true };
        match slot.step(tools, &intent, Some(&lag.position), None)? {
            // Who was faster has committed it too.
            Stepped::Committed(_) | Stepped::Refused(..) | Stepped::Fenced => Ok(()),
            Stepped::Undecided(error) => Err(error),
        }
    }
}
