//! The values of the shipped code, as small numbers: positions as Kafka stores them, and what was decided on them.
//!
//! A state must be small, since there are many. So a committed offset with its metadata stands in it as a number, and
//! this book holds the real one: every mark goes through its string and is read back by [`Position::read`], and every
//! decision is made by the shipped [`decide`], once for each distinct question.

use std::collections::HashMap;

use kafka_gateway::kafka::decide::{CLOCK_SKEW_MS, Intent, Verdict, decide, is_suspect};
use kafka_gateway::kafka::position::{Hash, Holder, Mark, Position, Stamp};

/// One tick of the model's clock. Clocks that differ by the allowed skew are one tick apart.
pub(crate) const TICK_MS: u64 = CLOCK_SKEW_MS;

/// How many ticks a lease lasts.
pub(crate) const LEASE_TICKS: u8 = 1;

/// The number of a committed offset with its metadata.
pub(crate) type Stored = u16;

/// Records, a bit for each.
pub(crate) type Set = u8;

/// What a call is about, as far as the decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    /// `consume` with `ack=auto`, of so many records.
    Auto(i8),
    /// `consume` with `ack=manual`: how many records, and the number of the token.
    Manual(i8, u8),
    /// A position committed where it is: to renew it, or to find out whether one may.
    Keep,
    /// `accept` of this token's lease: all of it, or what lies before an offset.
    Accept(u8, Option<i8>),
    /// `release` of this token's lease.
    Release(u8),
    /// `reject` of one record of this token's lease, or of all that is left of it.
    Reject(u8, Option<i8>),
    /// What a `consume` becomes that meets a hopeless record first.
    Bury,
    /// `renew` of this token's lease.
    Renew(u8),
    /// `seek` to an offset.
    Seek(i8),
}

impl Call {
    /// Whether it begins with a look at the position, without a claim.
    pub(crate) fn looks(self) -> bool {
        matches!(self, Self::Auto(_) | Self::Manual(..) | Self::Keep | Self::Bury)
    }
}

/// A question to the decision function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// The position that is decided on.
    pub(crate) base: Stored,
    /// The position that the call has seen before.
    pub(crate) seen: Stored,
    /// The position whose settled records it has left out: the one that it has seen.
    pub(crate) without: Stored,
    /// What is asked.
    pub(crate) call: Call,
    /// The end of the log.
    pub(crate) end: i8,
    /// Whose question it is.
    pub(crate) sandbox: u8,
    /// Its clock, in ticks.
    pub(crate) now: u8,
    /// The nonce of the commit that may follow.
    pub(crate) nonce: u16,
}

/// The answer: a [`Verdict`], with the mark as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// Commit this.
    Commit(Stored),
    /// Commit this, and write the letters of these records.
    Bury(Stored, Set),
    /// See [`Verdict::Already`].
    Already,
    /// See [`Verdict::Moved`].
    Moved,
    /// See [`Verdict::Leased`].
    Leased,
    /// See [`Verdict::LeaseLost`].
    LeaseLost,
    /// See [`Verdict::BeyondLease`].
    BeyondLease,
}

/// The book.
#[derive(Debug)]
pub(crate) struct Values {
    list: Vec<(Option<i64>, String, Position)>,
    numbers: HashMap<(Option<i64>, String), Stored>,
    rulings: HashMap<Question, Ruling>,
    /// Whether a mark counts only beside the offset that it was made for.
    bound: bool,
    /// `DLQ_MAX_DELIVERIES`; nothing is buried without it.
    most: Option<u32>,
}

/// Milliseconds by a clock that shows so many ticks.
fn at(ticks: u8) -> u64 {
    1_000_000 + u64::from(ticks) * TICK_MS
}

/// Who holds the lease of a token.
fn holder(token: u8) -> Holder {
    Holder { token: Hash::of(&[b"token", &[token]]), principal: Hash::of(&[b"principal", &[token]]) }
}

/// An offset of the model's small log.
fn small(offset: i64) -> i8 {
    i8::try_from(offset).expect("a small offset")
}

impl Values {
    /// An empty book. If `bound` is false, marks are read without a look at the offset that they were made for.
    pub(crate) fn new(bound: bool, most: Option<u32>) -> Self {
        Self { list: Vec::new(), numbers: HashMap::new(), rulings: HashMap::new(), bound, most }
    }

    /// The number of an offset with metadata, as somebody commits it.
    pub(crate) fn store(&mut self, committed: Option<i64>, metadata: &str) -> Stored {
        if let Some(number) = self.numbers.get(&(committed, metadata.to_owned())) {
            return *number;
        }
        let number = Stored::try_from(self.list.len()).expect("fewer positions");
        let mut position = Position::read(committed, metadata).expect("a mark of this version");
        if let (false, Some(offset)) = (self.bound, committed) {
            position.mark = serde_json::from_str::<Mark>(metadata).ok();
            position.mark.iter_mut().for_each(|mark| mark.offset = offset);
        }
        self.list.push((committed, metadata.to_owned(), position));
        self.numbers.insert((committed, metadata.to_owned()), number);
        number
    }

    /// Another offset with the same metadata, or with none: what a tool commits.
    pub(crate) fn reset(&mut self, stored: Stored, offset: i8, copied: bool) -> Stored {
        let metadata = if copied { self.list[usize::from(stored)].1.clone() } else { String::new() };
        self.store(Some(i64::from(offset)), &metadata)
    }

    /// The position, as a function reads it.
    pub(crate) fn position(&self, stored: Stored) -> &Position {
        &self.list[usize::from(stored)].2
    }

    /// Where a group goes on; a new one begins with the first record.
    pub(crate) fn offset(&self, stored: Stored) -> i8 {
        self.list[usize::from(stored)].0.map_or(0, small)
    }

    /// Whether a lease is live by a clock.
    pub(crate) fn is_leased(&self, stored: Stored, now: u8) -> bool {
        self.position(stored).live_lease(at(now)).is_some()
    }

    /// Whether a record is settled, by what a position's mark says.
    pub(crate) fn is_done(&self, stored: Stored, record: i8) -> bool {
        self.position(stored).done(i64::from(self.offset(stored))).contains(i64::from(record))
    }

    /// Whether the first record from a position on is to be buried.
    pub(crate) fn is_hopeless(&self, stored: Stored) -> bool {
        let (position, first) = (self.position(stored), i64::from(self.offset(stored)));
        self.most.is_some_and(|most| position.known(first).is_some_and(|mark| mark.is_hopeless(first, most)))
    }

    /// Asks the shipped decision function.
    pub(crate) fn decide(&mut self, question: Question) -> Ruling {
        if let Some(ruling) = self.rulings.get(&question) {
            return *ruling;
        }
        let Question { base, seen, without, call, end, sandbox, now, nonce } = question;
        let position = self.position(seen);
        let (seen_offset, from) = (position.committed, i64::from(self.offset(seen)));
        let without = self.position(without).done(from);
        // What a window holds: the records from there on that are not settled.
        let next = |limit: i8| {
            let open = (from..i64::from(end)).filter(|offset| !without.contains(*offset));
            open.take(usize::try_from(limit).expect("a count")).last().map_or(from, |last| last + 1)
        };
        let deliveries = position.known(from).map_or(0, |mark| mark.deliveries(from));
        let suspect = self.most.is_some_and(|most| is_suspect(deliveries, most));
        let lease_ms = u64::from(LEASE_TICKS) * TICK_MS;
        let intent = match call {
            Call::Auto(limit) => Intent::Take { seen: seen_offset, from, next: next(limit), without: without.clone() },
            Call::Manual(limit, token) => {
                let limit = if suspect { 1 } else { limit };
                let (next, alone, holder) = (next(limit), (limit == 1).then_some(from), holder(token));
                let (without, delivered, last) = (without.clone(), position.delivered(from), next - 1);
                Intent::Lease { seen: seen_offset, from, last, next, without, delivered, alone, lease_ms, holder }
            }
            Call::Bury => Intent::Bury { seen: seen_offset, record: from, most: self.most.expect("a limit") },
            Call::Reject(token, record) => {
                let records = record.map(|record| vec![i64::from(record)]);
                let there = (0..i64::from(end)).collect();
                Intent::Reject { holder: holder(token), records, there, reason: String::new() }
            }
            // A renewal, since that leaves less to a mark's past.
            Call::Keep => Intent::Keep { seen: seen_offset, from, renewal: true },
            Call::Accept(token, before) => Intent::Accept { holder: holder(token), before: before.map(i64::from) },
            Call::Release(token) => Intent::Release { holder: holder(token) },
            Call::Renew(token) => Intent::Renew { holder: holder(token), lease_ms },
            Call::Seek(to) => Intent::Seek { to: i64::from(to) },
        };
        let stamp = Stamp { nonce: u64::from(nonce), sandbox: u32::from(sandbox), now: at(now) };
        let ruling = match decide(self.position(base), &intent, stamp) {
            Verdict::Commit(mark) => Ruling::Commit(self.store(Some(mark.offset), &mark.to_metadata())),
            Verdict::Bury(mark, dying) => {
                let dying = dying.into_iter().fold(0, |set, offset| set | 1 << offset);
                Ruling::Bury(self.store(Some(mark.offset), &mark.to_metadata()), dying)
            }
            Verdict::TooScattered => unreachable!("there are few records here"),
            Verdict::Already => Ruling::Already,
            Verdict::Moved => Ruling::Moved,
            Verdict::Leased => Ruling::Leased,
            Verdict::LeaseLost | Verdict::Settled => Ruling::LeaseLost,
            Verdict::BeyondLease => Ruling::BeyondLease,
            Verdict::NotTheirs => unreachable!("each token has one principal here"),
        };
        self.rulings.insert(question, ruling);
        ruling
    }

    /// How many distinct questions were decided, and how many positions there were.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.rulings.len(), self.list.len())
    }
}
