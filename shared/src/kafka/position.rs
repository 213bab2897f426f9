//! A group's position in a partition, and the mark that the gateway leaves with it.
//!
//! The position is the group's ordinary committed offset, which any Kafka tool reads and resets. The mark travels in the
//! offset's metadata string, so that both change in one step. It holds no secret, since whoever may describe the group
//! can read it: of a lease's token and principal only hashes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ranges::Ranges;
use crate::errors::Error;

/// The newest version of the mark. A function that meets a newer one than its own does not touch the partition: it may be
/// under a promise that this function cannot see.
const VERSION: u32 = 2;

/// The version of a mark without settled records above its offset. Functions from before there were any read it.
const PLAIN: u32 = 1;

/// How many nonces a mark remembers. One would do to recognise one's own last commit; more still do when others have
/// followed meanwhile.
const REMEMBERED: usize = 16;

/// How many settled leases a mark remembers, and how many rejects.
const SETTLED: usize = 4;

/// How long a mark's list of settled records above its offset may be, as text. That is enough for 300 records that lie
/// among others of the same batch, and for 30 that lie anywhere.
const DONE_BYTES: usize = 1280;

/// A mark from further ahead than this was made by a clock that is wrong; it is taken for an old one.
const FUTURE_MS: u64 = 2_000;

/// How many ranges with a count of their own a mark holds at most. Those beyond share the last one's, which is the
/// lowest: no record is taken for one that was delivered more often than it was.
const RANGES: usize = 16;

/// Milliseconds since 1970, by this machine's wall clock.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time since then.
fn ago(then_ms: u64) -> Duration {
    let now = now_ms();
    if then_ms > now + FUTURE_MS { Duration::MAX } else { Duration::from_millis(now.saturating_sub(then_ms)) }
}

/// The hash of a secret, as it may stand in a mark (base64).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(String);

impl Hash {
    /// Hashes `parts`, each with its length before it, so that no two lists are alike. SHA-256, cut to 128 bits: nobody
    /// can choose what is hashed, so that collisions are of no use.
    pub fn of(parts: &[&[u8]]) -> Self {
        use base64::Engine;
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self(base64::engine::general_purpose::STANDARD_NO_PAD.encode(&context.finish().as_ref()[..16]))
    }
}

/// Who holds a lease: whoever knows the token, and is the principal that it was given to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The token's hash.
    #[serde(rename = "t")]
    pub token: Hash,
    /// The hash of the principal and the token: without the token, nobody can try who it was.
    #[serde(rename = "p")]
    pub principal: Hash,
}

impl Holder {
    /// What stands in the mark of a reject of these records (in order; none for all of the lease): by that it is known
    /// when it comes again.
    pub fn rejection(&self, records: Option<&[i64]>) -> Hash {
        let offsets: Vec<u8> = records.into_iter().flatten().flat_map(|offset| offset.to_be_bytes()).collect();
        let what: &[u8] = if records.is_some() { b"records" } else { b"all" };
        Hash::of(&[b"reject", self.token.0.as_bytes(), self.principal.0.as_bytes(), what, &offsets])
    }
}

/// Records that are handed out and not yet settled: from the position up to `end`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The last record. A version that does not know it drops it, and then a part that is accepted up to here leaves a lease
    /// of what lies behind, though that may be no record.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub last: Option<i64>,
    /// The offset after the last record, and after what is no record behind it.
    pub end: i64,
    /// When it expires, milliseconds since 1970.
    pub until: u64,
    /// Who holds it.
    #[serde(flatten)]
    pub holder: Holder,
}

/// A lease that is over by its holder's own word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settled {
    /// Who held it.
    #[serde(flatten)]
    pub holder: Holder,
    /// Whether nothing of it is left, since its records were accepted (or rejected); otherwise it was released.
    #[serde(rename = "a")]
    pub accepted: bool,
}

/// A lease of which a part was accepted, whatever became of the rest. A version that does not know these drops them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Part {
    #[serde(flatten)]
    holder: Holder,
    /// Where the records end that were accepted.
    #[serde(rename = "b")]
    before: i64,
}

/// What the gateway notes beside a committed offset.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The mark's version.
    #[serde(rename = "kafka-gateway")]
    version: u32,
    /// The committed offset that the mark was made for. Beside another one, lease and counts say nothing: tools copy
    /// metadata.
    pub offset: i64,
    /// The nonces of the last commits, newest first: what proves to a function, when the answer to its commit was lost,
    /// that the commit was done.
    nonces: Vec<u64>,
    /// When it was committed, milliseconds since 1970.
    pub at: u64,
    /// The sandbox that committed it.
    pub sandbox: u32,
    /// When the position was last renewed (see `retention`), milliseconds since 1970; commits in between do not count.
    renewed: u64,
    /// The lease, live or expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// How often records were delivered under leases without being accepted: each range begins where the one before it
    /// ends, the first at the position; `(end, count)`. Deliveries begin at the position, so counts never rise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deliveries: Vec<(i64, u32)>,
    /// The record that was the only one in the last lease, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alone: Option<i64>,
    /// The records from the offset on that are settled: never at the offset itself, which is the first that is not. A
    /// version that does not know them would hand them out again, so only here the mark is of the newer one.
    #[serde(default, skip_serializing_if = "Ranges::is_empty")]
    done: Ranges,
    /// The last leases that their holders have settled, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    settled: Vec<Settled>,
    /// The last leases of which a part was accepted, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
    /// The last rejects (see [`Holder::rejection`]), newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rejects: Vec<Hash>,
    /// Whether this commit settled a lease. Who did that has no more use for the partition.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    settles: bool,
}

/// What makes one commit of one sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// A random number, new for each commit.
    pub nonce: u64,
    /// The sandbox.
    pub sandbox: u32,
    /// Milliseconds since 1970.
    pub now: u64,
}

impl Stamp {
    /// A stamp for a commit now.
    pub fn new(sandbox: u32) -> Self {
        Self { nonce: rand::random(), sandbox, now: now_ms() }
    }
}

impl Mark {
    /// The mark of a commit of `offset` on top of `before`, or, where that is settled, of the first offset behind it that
    /// is not. What was known of the records from there on is kept, but for the lease.
    pub fn next(before: Option<&Self>, offset: i64, stamp: Stamp) -> Self {
        let mark = Self::anew(before, offset, stamp);
        // What lies before the marked offset was never known.
        let Some(known) = before.filter(|mark| mark.offset <= offset) else { return mark };
        let (deliveries, done) = (known.deliveries.clone(), known.done.clone());
        Self { deliveries, alone: known.alone, done, ..mark }.passing(offset)
    }

    /// The mark of a commit of `offset` on top of `before`, with nothing known of the records from there on.
    pub fn anew(before: Option<&Self>, offset: i64, stamp: Stamp) -> Self {
        let mut nonces = vec![stamp.nonce];
        nonces.extend(before.iter().flat_map(|mark| &mark.nonces).take(REMEMBERED - 1));
        Self {
            version: PLAIN,
            offset,
            nonces,
            at: stamp.now,
            sandbox: stamp.sandbox,
            renewed: before.map_or(0, |mark| mark.renewed),
            lease: None,
            deliveries: Vec::new(),
            alone: None,
            done: Ranges::default(),
            settled: before.map(|mark| mark.settled.clone()).unwrap_or_default(),
            parts: before.map(|mark| mark.parts.clone()).unwrap_or_default(),
            rejects: before.map(|mark| mark.rejects.clone()).unwrap_or_default(),
            settles: false,
        }
    }

    /// The same mark, further on: at `offset`, or at the first one behind it that is not settled.
    #[must_use]
    pub fn passing(mut self, offset: i64) -> Self {
        self.offset = self.done.pass(offset);
        self.done = self.done.after(self.offset);
        self.deliveries.retain(|(end, _)| *end > self.offset);
        self.alone = self.alone.filter(|record| *record >= self.offset);
        self.version = if self.done.is_empty() { PLAIN } else { VERSION };
        self
    }

    /// The same mark, with these records settled by a reject. Nothing, if there is no room for them.
    #[must_use]
    pub fn rejecting(mut self, records: &[(i64, i64)], reject: Hash) -> Option<Self> {
        for (from, end) in records {
            self.done.insert(*from, *end);
        }
        self.rejects.insert(0, reject);
        self.rejects.truncate(SETTLED);
        let offset = self.offset;
        Some(self.passing(offset)).filter(|mark| mark.done.text_len() <= DONE_BYTES)
    }

    /// The same mark, with a lease.
    #[must_use]
    pub fn with_lease(self, lease: Lease) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// The same mark, with one more delivery of all records up to `end`; of a single one, if that was delivered `alone`.
    #[must_use]
    pub fn delivering(mut self, end: i64, alone: Option<i64>) -> Self {
        self.alone = alone;
        let mut deliveries = Vec::new();
        let mut covered = self.offset;
        for &(range_end, count) in &self.deliveries {
            if covered < end {
                deliveries.push((range_end.min(end), count.saturating_add(1)));
            }
            if range_end > end {
                deliveries.push((range_end, count));
            }
            covered = covered.max(range_end);
        }
        if covered < end {
            deliveries.push((end, 1));
        }
        deliveries.dedup_by(|next, kept| {
            next.1 == kept.1 && {
                kept.0 = next.0;
                true
            }
        });
        if let Some(last) = deliveries.get(RANGES..).and_then(<[_]>::last).copied() {
            deliveries.truncate(RANGES - 1);
            deliveries.push(last);
        }
        self.deliveries = deliveries;
        self
    }

    /// The same mark, with a lease settled.
    #[must_use]
    pub fn settling(mut self, holder: Holder, accepted: bool) -> Self {
        self.settled.insert(0, Settled { holder, accepted });
        self.settled.truncate(SETTLED);
        self.settles = true;
        self
    }

    /// The same mark, with what lies before it accepted as a part of a lease.
    #[must_use]
    pub fn accepting(mut self, holder: Holder) -> Self {
        self.parts.retain(|part| part.holder != holder);
        self.parts.insert(0, Part { holder, before: self.offset });
        self.parts.truncate(SETTLED);
        self
    }

    /// Whether a lease was accepted up to this offset by its holder, as a part of it, if that is still remembered.
    pub fn reached(&self, holder: &Holder, offset: i64) -> bool {
        self.parts.iter().any(|part| part.holder == *holder && offset <= part.before)
    }

    /// Who holds the lease with this token, or held it, if that is still remembered.
    pub fn holder(&self, token: &Hash) -> Option<&Holder> {
        let live = self.lease.iter().map(|lease| &lease.holder);
        let over = self.settled.iter().map(|settled| &settled.holder).chain(self.parts.iter().map(|part| &part.holder));
        live.chain(over).find(|holder| holder.token == *token)
    }

    /// How the lease with this token was settled, if that is still remembered.
    pub fn settled(&self, token: &Hash) -> Option<&Settled> {
        self.settled.iter().find(|settled| settled.holder.token == *token)
    }

    /// How often the record at `offset` was delivered before, under leases.
    pub fn deliveries(&self, offset: i64) -> u32 {
        self.deliveries.iter().find(|(end, _)| offset < *end).map_or(0, |(_, count)| *count)
    }

    /// Whether a record was delivered as often as may be, without being accepted, and had nothing beside it the last time:
    /// then it is its own fault.
    pub fn is_hopeless(&self, record: i64, most: u32) -> bool {
        self.alone == Some(record) && self.deliveries(record) >= most
    }

    /// Whether a record from the offset on is settled.
    pub fn is_done(&self, offset: i64) -> bool {
        self.done.contains(offset)
    }

    /// Whether it was this reject, or one that came after it, that made the mark, if that is still remembered.
    pub fn remembers(&self, reject: &Hash) -> bool {
        self.rejects.contains(reject)
    }

    /// Whether a commit with this nonce is part of this position's recent past.
    pub fn includes(&self, nonce: u64) -> bool {
        self.nonces.contains(&nonce)
    }

    /// The newest nonce.
    pub fn latest(&self) -> Option<u64> {
        self.nonces.first().copied()
    }

    /// Whether the nonces reach back to the first commit that has a mark.
    pub fn remembers_all(&self) -> bool {
        self.nonces.len() < REMEMBERED
    }

    /// How long ago it was committed.
    pub fn age(&self) -> Duration {
        ago(self.at)
    }

    /// Whether the sandbox that committed it has no more use for the partition.
    pub fn settles(&self) -> bool {
        self.settles
    }

    /// The same mark, as one of a renewal.
    #[must_use]
    pub fn renewing(self) -> Self {
        Self { renewed: self.at, ..self }
    }

    /// How long ago the position was last renewed.
    pub fn renewed_ago(&self) -> Duration {
        ago(self.renewed)
    }

    /// The metadata string.
    pub fn to_metadata(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A group's position in a partition, as a stable read shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// The next offset to hand out; none where the group has none.
    pub committed: Option<i64>,
    /// The gateway's mark; none where something else has set the position.
    pub mark: Option<Mark>,
}

impl Position {
    /// Reads a committed offset and its metadata. Text that is not a mark, or that was made for another offset, is left
    /// to whoever wrote it.
    ///
    /// Errors: a mark of a newer version.
    pub fn read(committed: Option<i64>, metadata: &str) -> Result<Self, Error> {
        let newer = |mark: &Versioned| mark.version > VERSION;
        if serde_json::from_str::<Versioned>(metadata).ok().as_ref().is_some_and(newer) {
            return Err(Error::internal("the position carries a mark of a newer version of the gateway"));
        }
        let mark: Option<Mark> = serde_json::from_str(metadata).ok();
        Ok(Self { committed, mark: mark.filter(|mark| Some(mark.offset) == committed) })
    }

    /// What its mark tells of the records from `from` on. Nothing, where these begin before the position: the log was made
    /// anew then, and they are others.
    pub fn known(&self, from: i64) -> Option<&Mark> {
        self.mark.as_ref().filter(|mark| mark.offset <= from)
    }

    /// The records from `from` on that are settled.
    pub fn done(&self, from: i64) -> Ranges {
        self.known(from).map(|mark| mark.done.after(from)).unwrap_or_default()
    }

    /// What its mark tells of how often the records from `from` on were delivered before: `(end, count)`, range after range.
    pub fn delivered(&self, from: i64) -> Vec<(i64, u32)> {
        self.known(from).map(|mark| mark.deliveries.clone()).unwrap_or_default()
    }

    /// Whether another sandbox was the last to commit it.
    pub fn is_anothers(&self, sandbox: u32) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.sandbox != sandbox)
    }

    /// Whether a commit with this nonce on top of `base` was done, if that can be told: not to find the nonce proves
    /// something only where the mark still remembers what the commit was based on.
    pub fn shows(&self, nonce: u64, base: &Self) -> Option<bool> {
        if self.mark.as_ref().is_some_and(|mark| mark.includes(nonce)) {
            return Some(true);
        }
        let remembered = match base.mark.as_ref().and_then(Mark::latest) {
            Some(latest) => self.mark.as_ref().is_some_and(|mark| mark.includes(latest)),
            None => self.mark.as_ref().is_none_or(Mark::remembers_all),
        };
        remembered.then_some(false)
    }
}

#[derive(Deserialize)]
struct Versioned {
    #[serde(rename = "kafka-gateway")]
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(nonce: u64) -> Stamp {
        Stamp { nonce, sandbox: 7, now: 1000 + nonce }
    }

    fn holder(name: &str) -> Holder {
        Holder { token: Hash::of(&[name.as_bytes()]), principal: Hash::of(&[b"principal", name.as_bytes()]) }
    }

    fn lease(name: &str) -> Lease {
        Lease { last: Some(8), end: 9, until: 5000, holder: holder(name) }
    }

    #[test]
    fn a_mark_survives_its_string_and_remembers_a_few_commits() {
        let mut mark = Mark::next(None, 5, stamp(1));
        for nonce in 2..=18 {
            mark = Mark::next(Some(&mark), 5, stamp(nonce)).settling(holder(&nonce.to_string()), nonce % 2 == 0);
        }
        mark = mark.with_lease(lease("live")).delivering(9, None);
        let read = Position::read(Some(5), &mark.to_metadata()).expect("readable");
        assert_eq!(read.mark.as_ref(), Some(&mark));
        let included: Vec<bool> = (1..=4).map(|nonce| mark.includes(nonce)).collect();
        assert_eq!(included, [false, false, true, true]);
        assert_eq!(mark.latest(), Some(18));
        assert!(!mark.remembers_all());
        assert_eq!(mark.settled(&holder("18").token).map(|settled| settled.accepted), Some(true));
        assert_eq!(mark.settled(&holder("2").token), None);
    }

    #[test]
    fn the_longest_mark_fits_into_the_broker_s_default_limit() {
        let mut mark = Mark::next(None, i64::MAX - 1, Stamp { nonce: u64::MAX, sandbox: u32::MAX, now: u64::MAX });
        for _ in 0..REMEMBERED {
            mark = Mark::next(Some(&mark), i64::MAX - 1, Stamp { nonce: u64::MAX, sandbox: u32::MAX, now: u64::MAX })
                .settling(holder("x"), false);
        }
        mark.deliveries = vec![(i64::MAX, u32::MAX); RANGES];
        mark = mark.renewing().with_lease(Lease { last: Some(i64::MAX), end: i64::MAX, until: u64::MAX, ..lease("x") });
        mark.alone = Some(i64::MAX);
        mark.parts = vec![Part { holder: holder("x"), before: i64::MAX }; SETTLED];
        mark.rejects = vec![holder("x").rejection(None); SETTLED];
        assert!(mark.to_metadata().len() < 2200, "{}", mark.to_metadata().len());
        let room = |range: fn(i64) -> (i64, i64)| {
            let full = |count: &i64| {
                let ranges: Vec<_> = (1..=*count).map(range).collect();
                mark.clone().passing(0).rejecting(&ranges, holder("x").rejection(None)).is_none()
            };
            (1..10_000).find(full).expect("some limit") - 1
        };
        assert!(room(|nth| (3 * nth, 3 * nth + 1)) >= 300, "{}", room(|nth| (3 * nth, 3 * nth + 1)));
        assert!(room(|nth| (nth << 55, (nth << 55) + (1 << 54))) >= 30);
        mark.done.insert(0, 1);
        assert!(mark.to_metadata().len() + DONE_BYTES < 3600);
    }

    #[test]
    fn deliveries_are_counted_by_range_and_forgotten_with_the_records() {
        let counts = |mark: &Mark| (0..12).map(|offset| mark.deliveries(offset)).collect::<Vec<_>>();
        let first = Mark::next(None, 0, stamp(1)).delivering(10, None);
        assert_eq!(counts(&first), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
        let second = Mark::next(Some(&first), 0, stamp(2)).delivering(3, None);
        assert_eq!(counts(&second), [2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
        let third = Mark::next(Some(&second), 2, stamp(3)).delivering(12, None);
        assert_eq!(counts(&third)[2..], [3, 2, 2, 2, 2, 2, 2, 2, 1, 1]);
        let moved = Mark::next(Some(&third), 11, stamp(4));
        assert_eq!(moved.deliveries, [(12, 1)]);
        let mut many = Mark::next(None, 0, stamp(1));
        for end in (1..=40).rev() {
            many = Mark::next(Some(&many), 0, stamp(1)).delivering(end, None);
        }
        assert_eq!(many.deliveries.len(), RANGES);
        assert_eq!((many.deliveries(0), many.deliveries(14), many.deliveries(15), many.deliveries(39)), (40, 26, 1, 1));
    }

    #[test]
    fn other_peoples_metadata_is_no_mark() {
        for text in ["", "text", "{}", "null", "7", "{\"kafka-gateway\":\"x\"}", "{\"version\":9}"] {
            assert_eq!(Position::read(Some(1), text).expect(text).mark, None, "{text}");
        }
        let copied = Mark::next(None, 5, stamp(1)).to_metadata();
        assert_eq!(Position::read(Some(6), &copied).expect("readable").mark, None, "made for another offset");
    }

    #[test]
    fn a_newer_mark_is_not_guessed_at() {
        assert!(Position::read(Some(1), "{\"kafka-gateway\":3,\"lease\":{}}").is_err());
        let newer = Mark { version: VERSION + 1, ..Mark::next(None, 1, stamp(1)) };
        assert!(Position::read(Some(1), &newer.to_metadata()).is_err());
    }

    #[test]
    fn settled_records_are_passed_and_kept_from_functions_that_do_not_know_them() {
        let reject = |mark: &Mark, records: &[(i64, i64)]| {
            Mark::next(Some(mark), mark.offset, stamp(2)).rejecting(records, holder("x").rejection(None)).expect("room")
        };
        let some = reject(&Mark::next(None, 3, stamp(1)).delivering(20, None), &[(5, 7), (9, 10)]);
        assert_eq!((some.offset, some.version), (3, VERSION));
        let read = Position::read(Some(3), &some.to_metadata()).expect("readable");
        assert_eq!(read.mark.as_ref(), Some(&some));
        assert_eq!((0..12).filter(|offset| some.is_done(*offset)).collect::<Vec<_>>(), [5, 6, 9]);
        assert_eq!(read.done(6), some.done.after(6));
        assert!(read.done(2).is_empty(), "another log");
        let leading = reject(&some, &[(3, 5)]);
        assert_eq!((leading.offset, leading.deliveries(7)), (7, 1));
        assert!(leading.is_done(9) && !leading.is_done(7));
        for (to, offset, version) in [(8, 8, VERSION), (9, 10, PLAIN), (15, 15, PLAIN)] {
            let further = Mark::next(Some(&leading), 7, stamp(3)).passing(to);
            assert_eq!((further.offset, further.version), (offset, version), "{to}");
        }
        let anew = Mark::anew(Some(&leading), 9, stamp(3));
        assert_eq!((anew.offset, anew.version, anew.deliveries(9)), (9, PLAIN, 0));
        assert!(anew.remembers(&holder("x").rejection(None)) && anew.includes(1));
    }

    #[test]
    fn a_record_is_hopeless_only_if_it_was_alone_the_last_time() {
        let first = Mark::next(None, 0, stamp(1)).delivering(5, None);
        let alone = Mark::next(Some(&first), 0, stamp(2)).delivering(2, Some(1));
        assert_eq!((alone.is_hopeless(1, 2), alone.is_hopeless(1, 3), alone.is_hopeless(0, 1)), (true, false, false));
        assert!(Mark::next(Some(&alone), 0, stamp(3)).is_hopeless(1, 2), "for as long as it stays there");
        assert!(!Mark::next(Some(&alone), 0, stamp(3)).delivering(5, None).is_hopeless(1, 2));
        assert!(!Mark::next(Some(&alone), 0, stamp(3)).passing(2).is_hopeless(1, 0));
    }
}
