//! A look: where the group is in all partitions of the call, how far they go, and whose turn it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{Learned, Session};
use crate::errors::Error;
use crate::kafka::consumers::{again, blocking};
use crate::kafka::group::{Offsets, Place, Positions};
use crate::kafka::position::{Mark, Position, now_ms};
use crate::names::TopicName;

/// How long a partition is left to the function that committed there last, as long as others have records. Longer than
/// the pause between two calls of a busy consumer, shorter than anybody would wait for a dead one.
const STICKY: Duration = Duration::from_secs(1);

/// How long a look waits for the group's coordinator before it begins anew.
const COORDINATOR: Duration = Duration::from_secs(1);

/// How long pending commits are waited for before it is said that there are no records.
const SETTLING: Duration = Duration::from_millis(100);

/// A partition of the call: its topic's index among the call's topics, and its number.
pub(super) type At = (usize, i32);

/// A partition as one look shows it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: At,
    pub(super) position: Position,
    pub(super) from: i64,
    pub(super) end: i64,
}

impl Seen {
    /// How many records there may be; unknown, so any number, where the position lies beyond the end.
    pub(super) fn waiting(&self) -> usize {
        usize::try_from(self.end - self.from).unwrap_or(usize::MAX)
    }

    /// Whether another function has committed here just now, and will probably go on.
    pub(super) fn is_others(&self, me: u32) -> bool {
        let goes_on = |mark: &Mark| !mark.settles() && mark.age() < STICKY;
        self.position.is_anothers(me) && self.position.mark.as_ref().is_some_and(goes_on)
    }

    /// How long ago somebody committed here.
    pub(super) fn age(&self) -> Duration {
        self.position.mark.as_ref().map_or(Duration::MAX, Mark::age)
    }

    /// When it was served last, milliseconds since 1970.
    fn served(&self) -> u64 {
        self.position.mark.as_ref().map_or(0, |mark| mark.at)
    }
}

/// What the brokers say of some partitions, in their order: positions, last stable offsets; and log starts, if a position
/// needs one to begin at.
struct Bounds {
    partitions: Vec<At>,
    positions: Positions,
    /// Whether no commit was pending in any of them.
    stable: bool,
    ends: Offsets,
    starts: Option<Offsets>,
}

impl Session {
    /// The partitions that may have records for this call, in the order of their turns.
    pub(super) fn waiting<'a>(&self, seen: &'a [Seen], learned: &Learned) -> Vec<&'a Seen> {
        let now = now_ms();
        let hint = |at: At| self.parts.consumers.hint(&self.topics[at.0].from, at.1);
        let waiting = seen
            .iter()
            .filter(|seen| seen.from != seen.end)
            .filter(|seen| learned.too_large.get(&seen.at).is_none_or(|(offset, _)| seen.from > *offset))
            .filter(|seen| !learned.unburied.contains_key(&seen.at))
            .filter(|seen| seen.position.live_lease(now).is_none())
            .filter(|seen| learned.barren.get(&seen.at) != Some(&(seen.from, seen.end)))
            .map(|seen| (seen, hint(seen.at)))
            .filter(|(seen, hint)| !hint.is_barren(seen.from, seen.end))
            .map(|(seen, hint)| (seen, hint.failed()));
        order(waiting, self.parts.consumers.sandbox)
    }

    /// All partitions that can be seen: where the group is, and how far they go. Never empty; a topic of which nothing can
    /// be seen is noted, and so is one of which a partition cannot.
    ///
    /// Errors, if nothing can be: after a while, since leaders and coordinators move within moments.
    ///
    /// `settled` shows also what was committed within the last milliseconds, and may wait for others' commits.
    pub(super) async fn look(&self, learned: &mut Learned, settled: bool) -> Result<Vec<Seen>, Error> {
        let begun = Instant::now();
        loop {
            let error = match self.look_once(learned, settled).await {
                Ok(seen) if !seen.is_empty() => return Ok(seen),
                Ok(_) => learned.why_unseen(),
                Err(error) => error,
            };
            again(error, begun, self.deadline).await?;
        }
    }

    async fn look_once(&self, learned: &mut Learned, settled: bool) -> Result<Vec<Seen>, Error> {
        // What will not change is not asked again in this call.
        learned.unseen.retain(|_, error| !error.code().retryable());
        let Bounds { partitions, positions, stable, ends, starts } = self.bounds(learned, settled).await?;
        let (mut seen, mut failed) = (Vec::with_capacity(partitions.len()), BTreeMap::new());
        let mut starts = starts.map(Vec::into_iter);
        for ((at, position), end) in partitions.into_iter().zip(positions).zip(ends) {
            let start = starts.as_mut().and_then(Iterator::next).transpose();
            match (position, end, start) {
                (Ok(position), Ok(end), Ok(start)) => {
                    // A stable one is the newest: a tool may have put an older one back.
                    let position = if stable {
                        position
                    } else {
                        self.parts.consumers.newest(&self.topics[at.0].from, at.1, position)
                    };
                    let from = position.committed.or(start).unwrap_or(end);
                    seen.push(Seen { at, position, from, end });
                }
                (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                    tracing::debug!(%error, topic = %self.topic(at), partition = at.1, "a partition cannot be seen");
                    failed.insert(at.0, self.about(at, error));
                }
            }
        }
        let (hidden, unseen) = failed.into_iter().partition(|(topic, _)| seen.iter().any(|seen| seen.at.0 == *topic));
        learned.hidden = hidden;
        learned.unseen.extend::<BTreeMap<_, _>>(unseen);
        Ok(seen)
    }

    /// Of all topics at once; those that cannot be asked about are noted.
    async fn bounds(&self, learned: &mut Learned, settled: bool) -> Result<Bounds, Error> {
        let asked = self.topics.iter().map(|asked| asked.from.topic().clone()).enumerate();
        let asked: Vec<_> = asked.filter(|(topic, _)| !learned.unseen.contains_key(topic)).collect();
        let group = Arc::clone(&self.group);
        let (partitions, unknown, positions, ends) = blocking(self.deadline, move |until| {
            let left = || until.saturating_duration_since(Instant::now());
            group.drain_events();
            let topics: Vec<&TopicName> = asked.iter().map(|(_, topic)| topic).collect();
            let (mut partitions, mut places, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
            for ((index, topic), count) in asked.iter().zip(group.partitions_of_each(&topics, until)) {
                match count {
                    Ok(count) => {
                        partitions.extend((0..count).map(|partition| (*index, partition)));
                        places.extend((0..count).map(|partition| (topic, partition)));
                    }
                    Err(error) => unknown.push((*index, error.with("topic", topic.as_str()))),
                }
            }
            // Side by side: the one asks the group's coordinator, the other the partitions' leaders.
            let (positions, ends) = std::thread::scope(|scope| {
                let ends = scope.spawn(|| group.ends(&places, left()));
                let patience = left().min(COORDINATOR);
                let positions =
                    if settled { group.settled(&places, SETTLING, patience) } else { group.glance(&places, patience) };
                (positions, ends.join())
            });
            let ends = ends.map_err(|_| Error::internal("asking for the ends panicked"))??;
            Ok((partitions, unknown, positions, ends))
        })
        .await?;
        learned.unseen.extend(unknown);
        let (positions, stable) = positions?;
        let is_new = |position: &Position| position.committed.is_none();
        if self.terms.latest || !positions.iter().flatten().any(is_new) {
            return Ok(Bounds { partitions, positions, stable, ends, starts: None });
        }
        let names: Vec<_> = partitions.iter().map(|at| (self.topic(*at).clone(), at.1)).collect();
        let group = Arc::clone(&self.group);
        let starts = blocking(self.deadline, move |until| {
            let places: Vec<Place<'_>> = names.iter().map(|(topic, partition)| (topic, *partition)).collect();
            group.starts(&places, until.saturating_duration_since(Instant::now()))
        });
        let starts = Some(starts.await?);
        Ok(Bounds { partitions, positions, stable, ends, starts })
    }
}

impl Learned {
    /// The error of a call that sees too little: rather one that may pass.
    pub(super) fn why_unseen(&mut self) -> Error {
        let passing = self.unseen.iter().find(|(_, error)| error.code().retryable()).map(|(topic, _)| *topic);
        let topic = passing.or(self.unseen.keys().next().copied());
        let error = topic.and_then(|topic| self.unseen.remove(&topic));
        error.unwrap_or_else(|| Error::internal("a look has shown nothing"))
    }
}

/// Puts partitions with records into the order of their turns: first those in nobody else's hands; of these one of each
/// topic, the topic whose last turn is longest ago first, then another one of each. Within a topic, too, the one comes first
/// whose last turn is longest ago. To be served is a turn, by whomever, and so is to fail this sandbox (each comes with when
/// it has): a partition that cannot be read just now fails a call, and not each call before the others are asked.
fn order<'a>(waiting: impl Iterator<Item = (&'a Seen, u64)>, me: u32) -> Vec<&'a Seen> {
    let turn = |(seen, failed): (&'a Seen, u64)| (seen.is_others(me), seen.served().max(failed), seen);
    let mut waiting: Vec<_> = waiting.map(turn).collect();
    // Equal ones in any order, so that functions that start together do not all want the same.
    waiting.sort_by_cached_key(|(others, last, _)| (*others, *last, rand::random::<u32>()));
    let mut last_turns = HashMap::new();
    for (_, last, seen) in &waiting {
        let of_topic: &mut u64 = last_turns.entry(seen.at.0).or_default();
        *of_topic = (*last).max(*of_topic);
    }
    let mut before = HashMap::<usize, usize>::new();
    let mut turns: Vec<_> = waiting
        .into_iter()
        .map(|(others, _, seen)| {
            let rank = before.entry(seen.at.0).or_default();
            *rank += 1;
            ((others, *rank, last_turns[&seen.at.0]), seen)
        })
        .collect();
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, seen)| seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::position::Stamp;

    /// A partition that sandbox 1 has served at this time; in sandbox 2's hands, if it is now.
    fn seen(at: At, served: Option<u64>) -> Seen {
        let stamp = |now| Stamp { nonce: 0, sandbox: 1, now };
        let mark = served.map(|now| Mark::next(None, 0, stamp(now)));
        Seen { at, position: Position { committed: Some(0), mark }, from: 0, end: 10 }
    }

    #[test]
    fn topics_take_turns_and_so_do_the_partitions_of_each() {
        let all = [
            seen((0, 0), Some(10)),
            seen((0, 1), Some(30)),
            seen((0, 2), Some(20)),
            seen((1, 0), Some(25)),
            seen((2, 0), None),
            seen((2, 1), Some(40)),
        ];
        let turns = |me| order(all.iter().map(|seen| (seen, 0)), me).iter().map(|seen| seen.at).collect::<Vec<_>>();
        let expected = [(1, 0), (0, 0), (2, 0), (0, 2), (2, 1), (0, 1)];
        assert_eq!((turns(1), turns(2)), (expected.to_vec(), expected.to_vec()), "old commits are nobody's any more");
        // What another sandbox has served just now comes last, whatever the topic.
        let busy = [seen((0, 0), Some(now_ms())), seen((1, 0), Some(10)), seen((1, 1), Some(20))];
        let turns = |me| order(busy.iter().map(|seen| (seen, 0)), me).iter().map(|seen| seen.at).collect::<Vec<_>>();
        assert_eq!(turns(2), [(1, 0), (1, 1), (0, 0)]);
        assert_eq!(turns(1), [(1, 0), (0, 0), (1, 1)]);
        // One that has failed waits until the others have had their turns since.
        let two = [seen((0, 0), Some(10)), seen((0, 1), Some(30))];
        let turns = |failed| order(two.iter().zip([failed, 0]), 1).iter().map(|seen| seen.at).collect::<Vec<_>>();
        assert_eq!((turns(20), turns(40)), (vec![(0, 0), (0, 1)], vec![(0, 1), (0, 0)]));
    }
}
