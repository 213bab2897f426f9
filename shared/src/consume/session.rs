//! One call on its way: it looks, takes, and looks again, until there are records, or time is up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::answer::{Answer, Batch, Topics};
use super::look::{At, Seen};
use super::take::{Hurdle, undecided};
use super::{Asked, Parts, Terms};
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::kafka::consumers::{again, may_try_again};
use crate::kafka::group::Group;
use crate::kafka::handover::Slot;
use crate::kafka::position::Position;
use crate::lease::Token;
use crate::names::TopicName;

/// How often a waiting call looks for new records: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(40));

/// The most partitions that one call takes records from, or works on otherwise, at the same time.
pub(super) const ABREAST: usize = 8;

/// A partition in other hands is taken over once nothing was committed there for this long: a consumer that goes on at once
/// does so within some milliseconds, and one that works on what it got is not to keep others from the rest.
const RESTED: Duration = Duration::from_millis(20);

/// The longest that a call leaves records to others who are busy with them. At the latest it takes some when its own
/// `timeout_ms` is over.
const COURTESY: Duration = Duration::from_secs(1);

/// The longest pause after a lost contest: at first, and at most.
const CONTEST: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(240));

/// A call that lost its records to others goes on trying until this much is left of its time.
pub(super) const CONTEST_END: Duration = Duration::from_millis(500);

/// With less time left records are not asked for again where Kafka could not be reached: it would be as long as a step of a
/// transaction may take, and end undecided what has not begun.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How many positions a call renews before it takes records.
const RENEWALS: usize = 2;

/// One call on its way.
pub(crate) struct Session {
    pub(super) parts: Arc<Parts>,
    pub(super) group: Arc<Group>,
    /// Never empty, and each topic once.
    pub(super) topics: Vec<Asked>,
    pub(super) terms: Terms,
    pub(super) shown: Topics,
    /// What the leases of this call belong to.
    pub(super) token: Token,
    /// When the call must be over.
    pub(super) deadline: Deadline,
    /// When an answer without records goes out.
    answer_at: Instant,
}

/// What a call has learned on its way.
#[derive(Default)]
pub(super) struct Learned {
    /// The partition that gets the next answer for itself, since its next record was too large for its share.
    pub(super) alone: Option<At>,
    /// Offset and size of records that are too large for a whole answer.
    pub(super) too_large: HashMap<At, (i64, usize)>,
    /// Why a partition's next record, which is given up, could not become a dead letter.
    pub(super) unburied: HashMap<At, Error>,
    /// From where to where there is no record. Slots know it too, but may be evicted, and then the call would never end.
    pub(super) barren: HashMap<At, (i64, i64)>,
    /// Partitions whose positions it has renewed.
    pub(super) renewed: HashSet<At>,
    /// Topics of which nothing can be seen, by their index, and why.
    pub(super) unseen: BTreeMap<usize, Error>,
    /// The same of topics of which some partitions can be seen, and one cannot.
    pub(super) hidden: BTreeMap<usize, Error>,
}

impl Session {
    pub(super) fn new(
        parts: &Arc<Parts>,
        group: Arc<Group>,
        topics: Vec<Asked>,
        terms: Terms,
        shown: Topics,
        deadline: Deadline,
    ) -> Self {
        let deadline = deadline.extended(terms.wanted.timeout);
        Self {
            parts: Arc::clone(parts),
            token: Token::new(&group.id),
            group,
            topics,
            shown,
            deadline,
            // An answer without records is better than none, even where the function's own timeout is short.
            answer_at: Instant::now() + terms.wanted.timeout.min(deadline.left().saturating_sub(CONTEST_END)),
            terms,
        }
    }

    /// Whether the topic was seen to exist.
    pub(crate) fn knows(&self, topic: &TopicName) -> bool {
        self.group.knows(topic)
    }

    pub(super) fn topic(&self, (topic, _): At) -> &TopicName {
        self.topics[topic].from.topic()
    }

    /// An error, with the place where it came up.
    pub(super) fn about(&self, at: At, error: Error) -> Error {
        error.with("topic", self.topic(at).as_str()).with("partition", at.1)
    }

    pub(super) fn slot(&self, at: At) -> Result<Option<OwnedMutexGuard<Slot>>, Error> {
        self.parts.consumers.slot(&self.topics[at.0].from, &self.group, at.1)
    }

    /// The next records; none, if there were none in time.
    pub(super) async fn consume(&self) -> Result<Answer, Error> {
        let (me, begun) = (self.parts.consumers.sandbox, Instant::now());
        let mut pause = LOOK.0;
        let mut first_look = true;
        let mut courteous_until = self.answer_at.min(begun + COURTESY).max(begun + RESTED);
        let mut contest = CONTEST.0;
        let mut settled = false;
        let mut blind: Option<Instant> = None;
        let mut learned = Learned::default();
        if let Some(batches) = self.go_on(&learned).await? {
            return Ok(Answer { batches, unseen: learned.unseen });
        }
        loop {
            let last_look = std::mem::take(&mut settled);
            let seen = self.look(&mut learned, last_look).await?;
            if self.is_crowded(&learned.unseen) {
                return Err(learned.why_unseen());
            }
            // No answer before that, not even one with records of other partitions: it would say that the group has begun.
            if self.terms.latest && !self.fix_start(&seen, &learned).await? {
                if self.deadline.left() < CONTEST_END {
                    return Err(learned.hidden.into_values().next().unwrap_or_else(Deadline::exceeded));
                }
                step_aside(&mut contest).await;
                continue;
            }
            if self.terms.latest && learned.hidden.is_empty() && learned.unseen.is_empty() {
                self.topics.iter().for_each(|asked| self.group.note_begun(asked.from.topic()));
            }
            if std::mem::take(&mut first_look) {
                self.renew(&seen, RENEWALS, &mut learned).await?;
            }
            let mut waiting = self.waiting(&seen, &learned);
            let free = waiting.iter().filter(|seen| !seen.is_others(me)).count();
            if let Some(at) = learned.alone.take() {
                waiting.retain(|seen| seen.at == at);
            } else if free > 0 {
                waiting.truncate(free);
            } else if waiting.iter().any(|seen| seen.age() >= RESTED) {
                waiting.retain(|seen| seen.age() >= RESTED);
            } else if let Some(longest) = waiting.iter().map(|seen| seen.age()).max()
                && Instant::now() < courteous_until
            {
                // All that have records are in busy hands. To take one from them costs both a claim.
                let some = Duration::from_millis(rand::random_range(1..10));
                tokio::time::sleep(RESTED.saturating_sub(longest) + some).await;
                continue;
            }
            if waiting.is_empty() {
                // Nothing is left that could be answered with.
                let at = learned.too_large.keys().next().copied();
                if let Some((at, (offset, size))) = at.and_then(|at| learned.too_large.remove_entry(&at)) {
                    let seen = seen.iter().find(|seen| seen.at == at);
                    if let Some(error) = self.too_large(seen, offset, size).await? {
                        return Err(error);
                    }
                    continue;
                }
                if let Some((at, error)) = learned.unburied.drain().next() {
                    return Err(self.about(at, error));
                }
            } else {
                let outcome = self.take(&waiting, &learned).await?;
                if !outcome.batches.is_empty() {
                    return Ok(Answer { batches: outcome.batches, unseen: learned.unseen });
                }
                let hurdle = match outcome.hurdle(self, &mut learned, &waiting) {
                    // Nothing was decided. The next look sees where leaders and coordinators are by now.
                    Err(error) if self.deadline.left() >= ASK_AGAIN => {
                        again(error, *blind.get_or_insert_with(Instant::now), self.deadline).await?;
                        continue;
                    }
                    hurdle => hurdle?,
                };
                blind = None;
                match hurdle {
                    Some(Hurdle::Learned) => continue,
                    // There are records, but others were faster: the wait for records is over, the contest is not.
                    Some(Hurdle::Lost) if self.deadline.left() > CONTEST_END => {
                        step_aside(&mut contest).await;
                        // Lest all who lose go on fencing each other.
                        courteous_until = courteous_until.max(Instant::now() + rand::random_range(RESTED..5 * RESTED));
                        continue;
                    }
                    Some(Hurdle::Lost) => {
                        if let Some((at, error)) = learned.unburied.drain().next() {
                            return Err(self.about(at, error));
                        }
                        let detail = "There are records, but other calls were faster for as long as this one had time";
                        return Err(Error::new(Code::Throttled, detail));
                    }
                    None => {}
                }
            }
            let left = self.answer_at.saturating_duration_since(Instant::now());
            if left.is_zero() && (learned.hidden.is_empty() || !may_try_again(begun, self.deadline)) {
                if !last_look && self.group.glances() {
                    // A glance may be older than what was answered to somebody else just now. "No records" is not said by it.
                    settled = true;
                    continue;
                }
                return self.nothing(&seen, learned).await;
            }
            tokio::time::sleep(if left.is_zero() { pause } else { pause.min(left) }).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// The answer without records, which says that there are none. It does not say so of a topic with a partition that
    /// cannot be seen.
    async fn nothing(&self, seen: &[Seen], mut learned: Learned) -> Result<Answer, Error> {
        if learned.hidden.is_empty() {
            self.renew(seen, usize::MAX, &mut learned).await?;
            self.probe(seen).await?;
        }
        learned.unseen.append(&mut learned.hidden);
        if learned.unseen.len() == self.topics.len() || self.is_crowded(&learned.unseen) {
            return Err(learned.why_unseen());
        }
        Ok(Answer { batches: Vec::new(), unseen: learned.unseen })
    }

    /// Records that the call before has fetched, of a partition that this sandbox still has a claim on: there is no need
    /// to look around for those. Whether they still are next is read under the claim, as always.
    async fn go_on(&self, learned: &Learned) -> Result<Option<Vec<Batch>>, Error> {
        // With leases the answer counts deliveries, and only a look shows those; only a look shows what is wrong with a topic
        // that was not seen yet, and whether the group has begun in each of its partitions; and where topics have limits of
        // their own, one alone does not fill the answer.
        let (limit, latest) = (self.terms.wanted.limit, self.terms.latest);
        let one_will_do = |asked: &Asked| {
            let topic = asked.from.topic();
            self.knows(topic) && asked.limit >= limit && (!latest || self.group.has_begun(topic))
        };
        if self.terms.manual || !self.topics.iter().all(one_will_do) {
            return Ok(None);
        }
        let of: Vec<_> = self.topics.iter().map(|asked| &asked.from).collect();
        let Some((at, from, end)) = self.parts.consumers.at_hand(&of, limit) else { return Ok(None) };
        let position = Position { committed: Some(from), ..Position::default() };
        let outcome = self.take(&[&Seen { at, position, from, end }], learned).await?;
        if !outcome.undecided.is_empty() {
            return Err(undecided(self, outcome.undecided));
        }
        Ok(Some(outcome.batches).filter(|batches| !batches.is_empty()))
    }
}

/// Waits for a moment after a contest was lost, the longest wait doubling each time.
async fn step_aside(longest: &mut Duration) {
    tokio::time::sleep(rand::random_range(Duration::from_millis(1)..*longest)).await;
    *longest = (*longest * 2).min(CONTEST.1);
}
