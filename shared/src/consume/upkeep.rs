//! What a call does for positions beside moving them: where a group begins, and that Kafka does not forget it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::look::Seen;
use super::session::{ABREAST, CONTEST_END, Learned, Session};
use super::take::undecided;
use crate::errors::{Code, Error};
use crate::kafka::consumers::blocking;
use crate::kafka::decide::Intent;
use crate::kafka::handover::Stepped;

/// The longest that a call works on renewing positions.
const RENEWING: Duration = Duration::from_secs(6);

/// For how long a group is taken to have no live members after a commit has shown it.
const PROBE: Duration = Duration::from_secs(30);

impl Session {
    /// With `start=latest`: what is the end at first sight is where the group begins, for good. To find the end anew in
    /// each call would lose what came between them.
    ///
    /// A partition that is added to a topic later begins where its end is when a call first sees it, as with any consumer
    /// of `latest`.
    ///
    /// Whether all of them are committed. If not, others are at it, and a new look shows what they have come to; or there is
    /// a partition that cannot be seen: then none is, or nobody would know later that this one is still to come.
    pub(super) async fn fix_start(&self, seen: &[Seen], learned: &Learned) -> Result<bool, Error> {
        let new: Vec<&Seen> = seen.iter().filter(|seen| seen.position.committed.is_none()).collect();
        if new.iter().any(|seen| learned.hidden.contains_key(&seen.at.0)) {
            return Ok(false);
        }
        let mut fixed = true;
        for some in new.chunks(ABREAST) {
            let kept = futures_util::future::try_join_all(some.iter().map(|seen| self.keep(seen, false))).await?;
            fixed &= kept.into_iter().all(|kept| kept);
        }
        Ok(fixed)
    }

    /// Commits again what Kafka would forget otherwise: `at_least` partitions that are due, or a quarter of them.
    ///
    /// Errors: only what would refuse the call itself. What else goes wrong can wait, and must not fail a call.
    pub(super) async fn renew(&self, seen: &[Seen], at_least: usize, learned: &mut Learned) -> Result<(), Error> {
        let (me, retention) = (self.parts.consumers.sandbox, &self.parts.retention);
        let due: Vec<&Seen> = seen
            .iter()
            .filter(|seen| retention.is_due(&self.group, &seen.position) && !seen.is_others(me))
            .filter(|seen| !learned.renewed.contains(&seen.at))
            .collect();
        let Some(first) = due.first() else { return Ok(()) };
        let (group, parts, topic) = (Arc::clone(&self.group), Arc::clone(&self.parts), self.topic(first.at).clone());
        let deadline = self.deadline.within(RENEWING);
        let mut renewed = blocking(deadline, move |until| parts.retention.refresh(&group, &topic, until)).await;
        for seen in due.iter().take(at_least.max(due.len().div_ceil(4))) {
            if renewed.is_err() || deadline.left() < CONTEST_END {
                break;
            }
            renewed = self.keep(seen, true).await.map(drop);
            learned.renewed.insert(seen.at);
        }
        if renewed.is_err() {
            retention.put_off();
        }
        self.tolerate(renewed)
    }

    /// A call without records commits nothing, and so would not notice that the group has live members. Unless somebody
    /// has committed lately, one position is committed where it is: the coordinator refuses if there are members.
    pub(super) async fn probe(&self, seen: &[Seen]) -> Result<(), Error> {
        let lately = |seen: &Seen| seen.position.mark.as_ref().is_some_and(|mark| mark.age() < PROBE);
        if seen.iter().any(lately) {
            return Ok(());
        }
        let Some(any) = seen.iter().max_by_key(|seen| seen.position.committed) else { return Ok(()) };
        let probed = self.keep(any, false).await.map(drop);
        self.tolerate(probed)
    }

    /// Passes on what refuses the caller, and logs what is only a hitch.
    fn tolerate(&self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(error) if !matches!(error.code(), Code::GroupInUse | Code::TopicForbidden | Code::Forbidden) => {
                tracing::warn!(error_chain = error.chain().join(": "), group = %self.group.id, "a position was not renewed");
                Ok(())
            }
            other => other,
        }
    }

    /// Commits a partition's position where it is. Whether it was done: not, if another call was faster.
    async fn keep(&self, seen: &Seen, renewal: bool) -> Result<bool, Error> {
        let Some(mut slot) = self.slot(seen.at)? else { return Ok(false) };
        let (parts, position) = (Arc::clone(&self.parts), seen.position.clone());
        let intent = Intent::Keep { seen: position.committed, from: seen.from, renewal };
        let stepped = blocking(self.deadline, move |until| {
            let committing = AtomicBool::new(false);
            slot.step(parts.consumers.tools(until, &committing), &intent, Some(&position), None)
        });
        match stepped.await? {
            Stepped::Committed(_) => Ok(true),
            Stepped::Refused(..) | Stepped::Fenced => Ok(false),
            Stepped::Undecided(error) => Err(undecided(self, vec![(seen.at, error)])),
        }
    }
}
