//! Sets of offsets of one partition, as ranges.

use serde::{Deserialize, Serialize};

/// Offsets: ranges in order, from an offset up to an end that is not part of it, which neither overlap nor touch.
///
/// As text, each number is counted from the one before it: where a range begins, how long it is, how far the next one is
/// away, and so on. So a set whose members lie close together is short, however large the offsets are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<i64>", into = "Vec<i64>")]
pub struct Ranges(Vec<(i64, i64)>);

impl Ranges {
    /// Whether there is no offset in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `offset` is in it.
    pub fn contains(&self, offset: i64) -> bool {
        self.end_of(offset).is_some()
    }

    /// The first offset that is not in it, from `offset` on.
    pub fn pass(&self, offset: i64) -> i64 {
        self.end_of(offset).unwrap_or(offset)
    }

    /// Where the range ends that `offset` is in, if it is in one.
    fn end_of(&self, offset: i64) -> Option<i64> {
        let next = self.0.partition_point(|(_, end)| *end <= offset);
        self.0.get(next).filter(|(from, _)| *from <= offset).map(|(_, end)| *end)
    }

    /// Adds the offsets from `from` up to `end`.
    pub fn insert(&mut self, from: i64, end: i64) {
        if from >= end {
            return;
        }
        let first = self.0.partition_point(|(_, before)| *before < from);
        let last = self.0.partition_point(|(after, _)| *after <= end);
        let joined = self.0[first..last].iter().fold((from, end), |all, one| (all.0.min(one.0), all.1.max(one.1)));
        self.0.splice(first..last, [joined]);
    }

    /// The same, without what lies before `offset`.
    #[must_use]
    pub fn after(&self, offset: i64) -> Self {
        let rest = self.0.iter().filter(|(_, end)| *end > offset);
        Self(rest.map(|(from, end)| ((*from).max(offset), *end)).collect())
    }

    /// How long it is as text.
    pub fn text_len(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }
}

impl From<Ranges> for Vec<i64> {
    fn from(ranges: Ranges) -> Self {
        let mut before = 0;
        let steps = ranges.0.into_iter().flat_map(|(from, end)| {
            let steps = [from - before, end - from];
            before = end;
            steps
        });
        steps.collect()
    }
}

impl TryFrom<Vec<i64>> for Ranges {
    type Error = &'static str;

    fn try_from(steps: Vec<i64>) -> Result<Self, Self::Error> {
        const NONE: &str = "no ranges of offsets";
        let mut ranges = Vec::with_capacity(steps.len() / 2);
        let (pairs, []) = steps.as_chunks::<2>() else { return Err(NONE) };
        let mut before = 0_i64;
        for &[gap, length] in pairs {
            let from = before.checked_add(gap).filter(|_| gap > 0 || ranges.is_empty()).ok_or(NONE)?;
            let end = from.checked_add(length).filter(|_| from >= 0 && length > 0).ok_or(NONE)?;
            ranges.push((from, end));
            before = end;
        }
        Ok(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(i64, i64)]) -> Ranges {
        let mut of = Ranges::default();
        for (from, end) in ranges {
            of.insert(*from, *end);
        }
        of
    }

    #[test]
    fn ranges_that_overlap_or_touch_are_one() {
        let all: Vec<(i64, i64)> = vec![(5, 7), (0, 1), (9, 9), (12, 14), (7, 8), (2, 4), (3, 6)];
        let ranges = of(&all);
        assert_eq!(ranges.0, [(0, 1), (2, 8), (12, 14)]);
        for offset in -1..20 {
            let within = all.iter().any(|(from, end)| (*from..*end).contains(&offset));
            assert_eq!(ranges.contains(offset), within, "{offset}");
            assert!(
                !ranges.contains(ranges.pass(offset)) && (offset..ranges.pass(offset)).all(|it| ranges.contains(it))
            );
        }
        assert_eq!(of(&[(0, 1), (2, 8), (12, 14), (1, 13)]).0, [(0, 14)]);
        assert_eq!(ranges.after(0), ranges);
        assert_eq!(ranges.after(3).0, [(3, 8), (12, 14)]);
        assert_eq!(ranges.after(8).0, [(12, 14)]);
        assert!(ranges.after(14).is_empty());
    }

    #[test]
    fn as_text_it_is_short_and_comes_back() {
        let ranges = of(&[(1_000_000_000_000, 1_000_000_000_001), (1_000_000_000_003, 1_000_000_000_009)]);
        let text = serde_json::to_string(&ranges).expect("text");
        assert_eq!(text, "[1000000000000,1,2,6]");
        assert_eq!(text.len(), ranges.text_len());
        for ranges in [ranges, Ranges::default(), of(&[(0, i64::MAX)])] {
            let text = serde_json::to_string(&ranges).expect("text");
            assert_eq!(serde_json::from_str::<Ranges>(&text).expect("ranges"), ranges);
        }
        let long = i64::MAX.to_string();
        let beyond = [format!("[{long},1]"), format!("[1,{long}]"), format!("[1,1,{long},1]")];
        let none = ["[1]", "[1,0]", "[1,-1]", "[-1,2]", "[1,1,0,1]", "[1,1,-1,1]", "[1,1,1]", "{}", "[\"1\",1]"];
        for text in none.into_iter().chain(beyond.iter().map(String::as_str)) {
            assert!(serde_json::from_str::<Ranges>(text).is_err(), "{text}");
        }
    }
}
