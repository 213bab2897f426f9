//! The values of the shipped code, as small numbers: positions as Kafka stores them, and what was decided on them.
//!
//! A state must be small, since there are many. So a committed offset with its metadata stands in it as a number, and
//! this book holds the real one: every mark goes through its string and is read back by [`Position::read`], and every
//! decision is made by the shipped [`decide`], once for each distinct question.

use std::collections::HashMap;

use kafka_gateway::kafka::decide::{CLOCK_SKEW_MS, Intent, Verdict, decide};
use kafka_gateway::kafka::position::{Hash, Holder, Mark, Position, Stamp};

/// One tick of the model's clock. Clocks that differ by the allowed skew are one tick apart.
pub(crate) const TICK_MS: u64 = CLOCK_SKEW_MS;

/// How many ticks a lease lasts.
pub(crate) const LEASE_TICKS: u8 = 1;

/// The number of a committed offset with its metadata.
pub(crate) type Stored = u16;

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
    /// `renew` of this token's lease.
    Renew(u8),
    /// `seek` to an offset.
    Seek(i8),
}

impl Call {
    /// Whether it begins with a look at the position, without a claim.
    pub(crate) fn looks(self) -> bool {
        matches!(self, Self::Auto(_) | Self::Manual(..) | Self::Keep)
    }
}

/// A question to the decision function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// The position that is decided on.
    pub(crate) base: Stored,
    /// The position that the call has seen before.
    pub(crate) seen: Stored,
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
    pub(crate) fn new(bound: bool) -> Self {
        Self { list: Vec::new(), numbers: HashMap::new(), rulings: HashMap::new(), bound }
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

    /// Asks the shipped decision function.
    pub(crate) fn decide(&mut self, question: Question) -> Ruling {
        if let Some(ruling) = self.rulings.get(&question) {
            return *ruling;
        }
        let Question { base, seen, call, end, sandbox, now, nonce } = question;
        let seen_offset = self.position(seen).committed;
        let from = i64::from(self.offset(seen));
        let next = |limit: i8| (from + i64::from(limit)).min(i64::from(end));
        let lease_ms = u64::from(LEASE_TICKS) * TICK_MS;
        let intent = match call {
            Call::Auto(limit) => Intent::Take { seen: seen_offset, next: next(limit) },
            Call::Manual(limit, token) => {
                Intent::Lease { seen: seen_offset, from, next: next(limit), lease_ms, holder: holder(token) }
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
            Verdict::Already => Ruling::Already,
            Verdict::Moved => Ruling::Moved,
            Verdict::Leased => Ruling::Leased,
            Verdict::LeaseLost => Ruling::LeaseLost,
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
