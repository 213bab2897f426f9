//! How far a group is behind, partition by partition.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::group::{Group, Place};
use super::position::Position;
use crate::errors::Error;
use crate::names::TopicName;

/// How long a commit that is under way is waited for. What is pending for longer was left behind by a function that is
/// dead or frozen, and then the position counts as it is: as any other tool shows it.
const PENDING: Duration = Duration::from_millis(500);

/// How far a group is behind in a partition.
#[derive(Debug)]
pub struct Lag {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: i32,
    /// Where the group is.
    pub position: Position,
    /// The last stable offset: where the records end that can be handed out.
    pub end: i64,
    /// How many offsets lie between, from the log's start where that is later, or where the group has no position yet.
    /// None where the position lies beyond the end.
    pub lag: i64,
}

impl Lag {
    fn new((topic, partition): Place<'_>, position: Position, start: i64, end: i64) -> Self {
        let from = position.committed.map_or(start, |committed| committed.max(start));
        Self { topic: topic.clone(), partition, position, end, lag: (end - from).max(0) }
    }
}

/// How far the group is behind in these topics, of so many partitions each; of those where it has no position at
/// all, only if they are `named`. In the order of the topics. Blocks. Reads only: it claims nothing and joins nothing.
///
/// Errors, if any partition cannot be measured: a total without it would be wrong.
pub fn measure(group: &Group, topics: &[(TopicName, i32)], named: bool, until: Instant) -> Result<Vec<Lag>, Error> {
    let left = || until.saturating_duration_since(Instant::now());
    group.drain_events();
    let places: Vec<Place<'_>> =
        topics.iter().flat_map(|(topic, count)| (0..*count).map(move |partition| (topic, partition))).collect();
    let positions: Vec<Position> = group.settled(&places, PENDING, left())?.0.into_iter().collect::<Result<_, _>>()?;
    let mut found: Vec<(Place<'_>, Position)> = places.iter().copied().zip(positions).collect();
    if !named {
        let has_position =
            |((topic, _), position): &(Place<'_>, Position)| position.committed.map(|_| (*topic).clone());
        let known: HashSet<TopicName> = found.iter().filter_map(has_position).collect();
        found.retain(|((topic, _), _)| known.contains(*topic));
    }
    let places: Vec<Place<'_>> = found.iter().map(|(place, _)| *place).collect();
    // Side by side: both ask the partitions' leaders.
    let (starts, ends) = std::thread::scope(|scope| {
        let starts = scope.spawn(|| group.starts(&places, left()));
        let ends = group.ends(&places, left());
        (starts.join(), ends)
    });
    let (starts, ends) = (starts.map_err(|_| Error::internal("asking for the starts panicked"))??, ends?);
    let bounds = starts.into_iter().zip(ends);
    found
        .into_iter()
        .zip(bounds)
        .map(|((place, position), (start, end))| {
            let about = |error: Error| error.with("topic", place.0.as_str()).with("partition", place.1);
            Ok(Lag::new(place, position, start.map_err(about)?, end.map_err(about)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_what_can_still_be_handed_out() {
        let topic = TopicName::parse("t").expect("legal");
        let lag = |committed, start, end| Lag::new((&topic, 0), Position { committed, mark: None }, start, end).lag;
        assert_eq!(lag(Some(4), 0, 10), 6);
        assert_eq!(lag(Some(10), 0, 10), 0);
        assert_eq!(lag(None, 3, 10), 7, "a new group begins at the log's start");
        assert_eq!(lag(Some(1), 3, 10), 7, "what retention has taken cannot be consumed");
        assert_eq!(lag(Some(12), 0, 10), 0, "beyond the last stable offset");
    }
}
