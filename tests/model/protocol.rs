//! The hand-over as a model: functions, Kafka, the callers, and whatever may go wrong between them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::explore::Model;
use crate::values::{Call, LEASE_TICKS, Question, Ruling, Set, Stored, Values};

/// The most functions.
const FUNCTIONS: usize = 3;
/// The most records.
const RECORDS: usize = 4;
/// The most leases.
const TOKENS: usize = 4;
/// Nobody: no function has this number.
const NOBODY: u8 = u8::MAX;
/// More ticks than any lease lasts.
const LATER: u8 = 20;

/// What must hold in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Property {
    /// A record below the position was handed out (`auto`), or accepted (`manual`), or has a letter, or the call that moved
    /// the position has not answered, or has answered 504, or its answer was lost. A settled one above it has a letter.
    NothingLost,
    /// With `auto`, a record is in one answer and in no other one, but for those of leases that are over.
    OnlyOnce,
    /// No record is in the answers of two live leases. A lease is live for as long as it was granted for in real time,
    /// and until its holder asks to release it.
    OneLiveHolder,
    /// The position never goes back, but by a tool or a seek.
    NeverBack,
    /// What is in an answer is committed.
    CommittedFirst,
    /// What is answered as accepted is committed.
    AcceptKept,
    /// What is answered as rejected has a letter.
    RejectKept,
    /// No record has two letters, unless the position was set in between.
    OneLetter,
    /// A record that has a letter is neither handed out any more nor accepted, nor one that was gets a letter.
    OneEnd,
    /// What a commit replaces is what it was based on; so nothing older comes after a seek. (Looked at where there are
    /// seeks. Elsewhere the others say the same, by what callers see.)
    NoLostUpdate,
    /// From here, somebody can go on and read to the end.
    NoDeadEnd,
}

/// A step that the driver leaves out, to see whether the properties notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// The claim: nobody is fenced.
    Claim,
    /// The read under the claim: the look before it has to do.
    SecondRead,
    /// Stable reads (KIP-447): what a decided transaction commits is not waited for.
    StableRead,
    /// Learning of the outcome: what may be committed is handed out.
    Outcome,
    /// The nonce: the outcome is told by the offset.
    Nonce,
    /// The base's nonce: what is not found was not done.
    BaseNonce,
    /// The offset in the mark: a lease counts beside any offset.
    Binding,
    /// The one transaction for letters and position: the letters are written before.
    Together,
    /// Leaving the settled records out: they are handed out again.
    Skip,
    /// The look at what was left out: records that were settled meanwhile are handed out.
    Without,
    /// The claim of a call that finds a transaction pending: it waits for its owner.
    Unblock,
    /// The read after the commit, on brokers that may lose it.
    Confirm,
}

/// How much may happen in one exploration, and between whom.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// How many functions there are.
    pub(crate) functions: u8,
    /// How many records there are.
    pub(crate) records: i8,
    /// Where the group begins: without a position, or with one that a tool has set.
    pub(crate) begins: Option<i8>,
    /// How many records a call may ask for.
    pub(crate) batches: &'static [i8],
    /// How many `consume` calls with `ack=auto` there are.
    pub(crate) auto: u8,
    /// How many with `ack=manual`.
    pub(crate) manual: u8,
    /// How many renewals of the position.
    pub(crate) keep: u8,
    /// How many `acknowledge` calls.
    pub(crate) acknowledge: u8,
    /// How many of these may be `reject`, of one record or of all.
    pub(crate) reject: u8,
    /// `DLQ_MAX_DELIVERIES`; nothing is buried without it.
    pub(crate) most: Option<u32>,
    /// How many `seek` calls.
    pub(crate) seek: u8,
    /// How many commits each function may try.
    pub(crate) commits: u8,
    /// How many answers of Kafka get lost or come too late.
    pub(crate) losses: u8,
    /// How many functions die.
    pub(crate) kills: u8,
    /// How often a tool resets the position.
    pub(crate) resets: u8,
    /// How often others commit so often that nonces are forgotten.
    pub(crate) crowds: u8,
    /// How many commits the coordinator loses: the log holds them, the position does not change.
    pub(crate) forgets: u8,
    /// How far the clock goes.
    pub(crate) ticks: u8,
    /// By how many ticks each function's clock may be ahead.
    pub(crate) ahead: u8,
    /// What is left out.
    pub(crate) left_out: Option<LeftOut>,
    /// Properties that need not hold.
    pub(crate) waived: &'static [Property],
}

impl Bounds {
    /// Nothing happens, with two functions and two records.
    pub(crate) const QUIET: Self = Self {
        functions: 2,
        records: 2,
        begins: None,
        batches: &[1, 2],
        auto: 0,
        manual: 0,
        keep: 0,
        acknowledge: 0,
        reject: 0,
        most: None,
        seek: 0,
        commits: 2,
        losses: 0,
        kills: 0,
        resets: 0,
        crowds: 0,
        forgets: 0,
        ticks: 0,
        ahead: 0,
        left_out: None,
        waived: &[],
    };
}

/// Where a function is in its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// In no call.
    Idle,
    /// About to look at the position, without a claim.
    Look,
    /// About to read it under its claim; claims first, if it has none.
    Read,
    /// About to decide, and to send what it wants to commit (`TxnOffsetCommit`).
    Decide,
    /// About to end the transaction (`EndTxn`).
    Staged,
    /// Waiting for the answer.
    Sent,
    /// The answer is lost: about to claim anew, and then to read how it ended.
    Unknown,
    /// About to read how it ended.
    Settle,
    /// The commit is answered: about to read whether it stays, where brokers may lose it.
    Confirm,
    /// The commit is known to be done: about to answer.
    Done,
}

/// A function, with the call it is in.
#[allow(clippy::struct_excessive_bools)] // Each is a matter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Function {
    phase: Phase,
    call: Option<Call>,
    /// The position that the call is based on, as it was seen first.
    seen: Stored,
    /// The position whose settled records it leaves out, where that step can be left out.
    without: Stored,
    /// The position that was decided on.
    base: Stored,
    /// What it wants to commit.
    wanted: Stored,
    /// Whether it has a claim, as far as it knows.
    claimed: bool,
    /// How many commits it has tried.
    commits: u8,
    /// Whether Kafka has decided to commit the last one; the function may not know.
    decided: bool,
    /// When it decided, by the true clock.
    at: u8,
    /// By how many ticks its own clock is ahead.
    ahead: u8,
    /// Whether a tool has reset the position since it was read.
    disturbed: bool,
    /// Whether a seek was committed after its own commit: its answer is of before.
    overtaken: bool,
}

impl Function {
    /// Whether its answer counts for nothing any more, since the position was set meanwhile.
    fn is_past(&self) -> bool {
        self.disturbed || self.overtaken
    }
}

/// A transaction that is not over. Stable readers wait for it.
#[allow(clippy::struct_excessive_bools)] // Each is a matter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Transaction {
    owner: u8,
    /// The owner's call and commit that it belongs to.
    call: Call,
    attempt: u8,
    base: Stored,
    wanted: Stored,
    /// The records whose letters are written in it.
    dying: Set,
    /// Whether an `EndTxn` is on its way.
    ending: bool,
    /// Whether the coordinator has decided to commit it; the markers follow.
    prepared: bool,
    /// Whether its call has answered that it does not know, or will never answer, or has handed out.
    excused: bool,
    disturbed: bool,
    /// Whether a tool has set the position since its offset was added. Of two commits the one counts that came later to the
    /// group's log, not the one that was decided later.
    passed_over: bool,
    /// Whether the coordinator has lost what is pending.
    forgotten: bool,
}

impl Transaction {
    /// Whether it is certain that the position will be what it wants.
    fn decided(&self) -> bool {
        self.prepared && !self.forgotten && !self.passed_over
    }
}

/// What became of a record, as far as the position has passed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    /// Not passed.
    Waiting,
    /// Passed for a call of this function that has not answered yet.
    Owed(u8),
    /// Handed out for good, accepted, or skipped by a call that could not say so, or by a tool.
    Settled,
    /// Settled with a letter; the position may have passed it, or not yet.
    Dead,
}

/// The answer that gave a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Answer {
    /// Whether it has reached the caller.
    given: bool,
    from: i8,
    end: i8,
    /// Until when it is live, by the true clock.
    until: u8,
    /// Whether its holder has asked to release it, or the position was set by a tool or a seek.
    over: bool,
    /// Whether a seek has ended it.
    sought: bool,
}

/// How much may still happen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
struct Left {
    auto: u8,
    manual: u8,
    keep: u8,
    acknowledge: u8,
    reject: u8,
    seek: u8,
    losses: u8,
    kills: u8,
    resets: u8,
    crowds: u8,
    forgets: u8,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    functions: [Function; FUNCTIONS],
    /// The committed offset with its metadata.
    committed: Stored,
    /// Whose claim is the last one.
    claimant: u8,
    transaction: Option<Transaction>,
    /// The true clock.
    tick: u8,
    left: Left,
    fates: [Fate; RECORDS],
    /// How many letters each record has, since the position was last set to before it.
    letters: [u8; RECORDS],
    /// Which records were handed out for good.
    given: [bool; RECORDS],
    answers: [Answer; TOKENS],
    fault: Option<Property>,
}

/// What may happen. The first number is the function's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A call arrives, and looks, if it can. For `acknowledge`, its caller has the answer with the token.
    Start(u8, Call),
    /// `OffsetFetch`, stable, without a claim. A call for which no record is free ends.
    Look(u8),
    /// It cannot be read, since a transaction is pending: the function claims, which ends that.
    Unblock(u8),
    /// `InitProducerId`: raises the epoch, fences the holder before, aborts what it had open.
    Claim(u8),
    /// `OffsetFetch`, stable, under the claim.
    Read(u8),
    /// It waits for too long: the call ends with an error.
    ReadFails(u8),
    /// The shipped decision, and `AddOffsetsToTxn` and `TxnOffsetCommit`, if it says commit.
    Decide(u8),
    /// The same, but the answer to `TxnOffsetCommit` is lost: the call ends with an error, nothing is aborted.
    DecideAnswerLost(u8),
    /// `EndTxn(commit)` is sent.
    End(u8),
    /// Out of time: `EndTxn(abort)` before the commit; or, while its outcome is open, a 504.
    GiveUp(u8),
    /// The answer to `EndTxn` arrives, and the call's own answer reaches its caller.
    Answered(u8),
    /// `EndTxn` is answered with a fenced epoch. It may have been applied before (it is sent again when answers are lost).
    AnsweredFenced(u8),
    /// No answer to `EndTxn` arrives.
    TimesOut(u8),
    /// `OffsetFetch`, stable, to see by the nonce how a commit ended.
    Settle(u8),
    /// The same after a commit that was answered. If it is lost, it is sent once more.
    Confirm(u8),
    /// The answer reaches the caller, after the outcome was found out.
    Deliver(u8),
    /// The call's answer is lost on its way, or its caller has gone.
    DeliveryFails(u8),
    /// The function is killed; another sandbox takes its place.
    Kill(u8),
    /// The coordinator gets `EndTxn(commit)` and logs its decision.
    Prepare,
    /// The markers are written, and the group's position changes.
    Materialise,
    /// The coordinator loses what is pending, as it refuses a late commit of an earlier claim (before 4.0).
    Forget,
    /// `transaction.timeout.ms` is over: the coordinator aborts and fences.
    Expire,
    /// Time passes.
    Tick,
    /// Others claim, and commit the position where it is, so many times.
    Crowd(u8),
    /// A tool commits an offset, with the metadata copied (true) or none.
    Reset(i8, bool),
}

/// What somebody meets who begins when all others are gone: the position, what is pending on it (and whether its end is
/// on its way, and decided, and whether a reset has passed it over, and whether it is lost), and the time.
type Situation = (Stored, Option<(Stored, bool, bool, bool, bool)>, u8);

/// What becomes of an undecided commit.
enum Outcome {
    Done,
    NotDone,
    Untold,
}

/// The model, with the book of real values.
#[derive(Debug)]
pub(crate) struct Protocol {
    bounds: Bounds,
    values: RefCell<Values>,
    /// How often what happened, to show that it does happen.
    happened: RefCell<BTreeMap<&'static str, usize>>,
    /// Which situations were found to lead to the end.
    ends: RefCell<HashMap<Situation, bool>>,
}

impl Protocol {
    /// A model with these bounds.
    pub(crate) fn new(bounds: Bounds) -> Self {
        let values = RefCell::new(Values::new(bounds.left_out != Some(LeftOut::Binding), bounds.most));
        Self { bounds, values, happened: RefCell::default(), ends: RefCell::default() }
    }

    /// What happened, and how often.
    pub(crate) fn happened(&self) -> BTreeMap<&'static str, usize> {
        self.happened.borrow().clone()
    }

    /// How many distinct questions were put to the decision function, and how many distinct positions there were.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.values.borrow().len()
    }

    fn note(&self, what: &'static str) {
        *self.happened.borrow_mut().entry(what).or_default() += 1;
    }

    fn leaves_out(&self, step: LeftOut) -> bool {
        self.bounds.left_out == Some(step)
    }

    fn offset(&self, stored: Stored) -> i8 {
        self.values.borrow().offset(stored)
    }

    fn fails(&self, state: &mut State, property: Property) {
        if self.bounds.waived.contains(&property) {
            self.note("waived");
        } else {
            state.fault.get_or_insert(property);
        }
    }

    /// Whether a stable read is answered.
    fn is_stable(&self, state: &State) -> bool {
        state.transaction.is_none_or(|transaction| transaction.forgotten) || self.leaves_out(LeftOut::StableRead)
    }

    /// Whether Kafka takes this function for the rightful producer.
    fn is_claimant(&self, state: &State, who: u8) -> bool {
        state.claimant == who || self.leaves_out(LeftOut::Claim)
    }

    fn claim(&self, state: &mut State, who: u8) {
        state.functions[usize::from(who)].claimed = true;
        if self.leaves_out(LeftOut::Claim) {
            return;
        }
        if state.transaction.is_some_and(|transaction| !transaction.prepared) {
            self.note("a claim aborts");
            state.transaction = None;
        }
        state.claimant = who;
    }

    /// The call is over.
    fn finish(state: &mut State, who: u8) {
        let function = &mut state.functions[usize::from(who)];
        *function = Function {
            phase: Phase::Idle,
            call: None,
            seen: 0,
            without: 0,
            base: 0,
            wanted: 0,
            decided: false,
            at: 0,
            disturbed: false,
            overtaken: false,
            ..*function
        };
    }

    /// The call is over, and its caller does not know how.
    fn excuse(state: &mut State, who: u8) {
        for fate in &mut state.fates {
            if *fate == Fate::Owed(who) {
                *fate = Fate::Settled;
            }
        }
        if let Some(transaction) = state.transaction.as_mut().filter(|transaction| transaction.owner == who) {
            transaction.excused = true;
        }
    }

    /// The function takes its commit for not done, and goes on.
    fn retry(&self, state: &mut State, who: u8) {
        let pending = state.transaction.is_some_and(|transaction| {
            transaction.owner == who && transaction.decided() && matches!(transaction.call, Call::Auto(_))
        });
        if pending || state.fates.contains(&Fate::Owed(who)) {
            self.fails(state, Property::NothingLost);
        }
        match state.functions[usize::from(who)].call {
            Some(Call::Keep) | None => Self::finish(state, who),
            Some(call) => {
                let function = &mut state.functions[usize::from(who)];
                function.phase = if call.looks() { Phase::Look } else { Phase::Read };
                function.decided = false;
            }
        }
    }

    /// The position changes.
    fn materialise(&self, state: &mut State) {
        let Some(transaction) = state.transaction.take() else { return };
        if transaction.forgotten {
            // Letters are in their topic nevertheless.
            return self.die(state, transaction);
        }
        if transaction.passed_over {
            // All is as if the reset had come after it.
            return self.note("passed over by a reset");
        }
        let (old, base, new) =
            (self.offset(state.committed), self.offset(transaction.base), self.offset(transaction.wanted));
        if self.bounds.seek > 0 && transaction.base != state.committed && !transaction.disturbed {
            self.fails(state, Property::NoLostUpdate);
        }
        if let Call::Seek(to) = transaction.call {
            state.committed = transaction.wanted;
            for (who, function) in (0..).zip(&mut state.functions) {
                function.overtaken |= function.decided && who != transaction.owner;
            }
            for answer in &mut state.answers {
                answer.sought |= answer.given;
            }
            return self.set(state, to);
        }
        if new < old && !transaction.disturbed {
            self.fails(state, Property::NeverBack);
        }
        if transaction.disturbed {
            // The reset came between the read and the commit, and is overwritten.
            for record in old..base {
                state.fates[index(record)] = Fate::Settled;
            }
            // And so is what the tool has skipped.
            for record in new.max(base)..self.bounds.records {
                if state.fates[index(record)] == Fate::Settled {
                    state.fates[index(record)] = Fate::Waiting;
                }
            }
        }
        self.die(state, transaction);
        for record in base..new {
            if state.fates[index(record)] == Fate::Dead {
                continue;
            }
            state.fates[index(record)] = match transaction.call {
                Call::Auto(_) if transaction.excused => Fate::Settled,
                Call::Auto(_) => Fate::Owed(transaction.owner),
                Call::Accept(token, _) => {
                    let answer = state.answers[usize::from(token)];
                    if answer.holds(record) && !answer.sought { Fate::Settled } else { Fate::Waiting }
                }
                _ => Fate::Waiting,
            };
        }
        state.committed = transaction.wanted;
        let is_dead = |record: i8| state.fates[index(record)] == Fate::Dead;
        let unknown = |record: i8| self.values.borrow().is_done(state.committed, record) && !is_dead(record);
        let waits = |record: i8| record < new && state.fates[index(record)] == Fate::Waiting;
        if (0..self.bounds.records).any(|record| waits(record) || unknown(record)) {
            self.fails(state, Property::NothingLost);
        }
    }

    /// Letters of these records can be read from now on.
    fn die(&self, state: &mut State, transaction: Transaction) {
        for record in (0..self.bounds.records).filter(|record| transaction.dying & 1 << record != 0) {
            if state.fates[index(record)] != Fate::Waiting && !transaction.disturbed {
                self.fails(state, Property::OneEnd);
            }
            state.fates[index(record)] = Fate::Dead;
            if !self.leaves_out(LeftOut::Together) {
                self.write(state, record);
            }
        }
    }

    fn write(&self, state: &mut State, record: i8) {
        state.letters[index(record)] += 1;
        if state.letters[index(record)] > 1 {
            self.fails(state, Property::OneLetter);
        }
    }

    /// The records of an answer reach their caller.
    fn hand_out(&self, state: &mut State, who: u8, token: Option<u8>) {
        let function = state.functions[usize::from(who)];
        if !function.decided {
            self.fails(state, Property::CommittedFirst);
        }
        let (from, end) = if token.is_some() {
            let values = self.values.borrow();
            let lease = values.position(function.wanted).mark.as_ref().and_then(|mark| mark.lease.as_ref());
            let end = lease.and_then(|lease| i8::try_from(lease.end).ok()).expect("a lease");
            (values.offset(function.wanted), end)
        } else {
            (self.offset(function.base), self.offset(function.wanted))
        };
        let until = token.map_or(u8::MAX, |_| function.at + LEASE_TICKS);
        let without = if self.leaves_out(LeftOut::Without) { function.without } else { function.base };
        let left_out = |record: i8| self.values.borrow().is_done(without, record) && !self.leaves_out(LeftOut::Skip);
        if !function.is_past() && state.tick < until {
            for record in (from..end).filter(|record| !left_out(*record)) {
                if state.fates[index(record)] == Fate::Dead {
                    self.fails(state, Property::OneEnd);
                }
                if state.given[index(record)] {
                    self.fails(state, Property::OnlyOnce);
                }
                self.alone(state, record, token);
            }
        }
        Self::excuse(state, who);
        match token {
            None if function.is_past() => {}
            None => {
                let given = (from..end).filter(|record| !left_out(*record));
                given.for_each(|record| state.given[index(record)] = true);
            }
            Some(token) => {
                let again = state.answers.iter().any(|answer| answer.given && answer.from < end && from < answer.end);
                if again {
                    self.note("leased again");
                }
                let (over, sought) = (function.is_past(), function.overtaken);
                state.answers[usize::from(token)] = Answer { given: true, from, end, until, over, sought };
            }
        }
    }

    /// A record is handed out, or stays so: no other lease on it may be live.
    fn alone(&self, state: &mut State, record: i8, token: Option<u8>) {
        let tick = state.tick;
        let live = |(other, answer): (usize, &Answer)| {
            token.map(usize::from) != Some(other) && answer.holds(record) && !answer.over && tick < answer.until
        };
        if state.answers.iter().enumerate().any(live) {
            self.fails(state, Property::OneLiveHolder);
        }
    }

    /// The answer 200 to `accept` reaches the caller.
    fn accepted(&self, state: &mut State, who: u8, token: u8, before: Option<i8>) {
        let decided = state.transaction.filter(Transaction::decided);
        let committed = decided.map_or(state.committed, |transaction| transaction.wanted);
        let past = state.functions[usize::from(who)].is_past() || state.answers[usize::from(token)].sought;
        let before = before.unwrap_or(state.answers[usize::from(token)].end);
        if self.offset(committed).max(self.offset(state.committed)) < before && !past {
            self.fails(state, Property::AcceptKept);
        }
        self.note("accepted");
    }

    /// The answer 200 to `reject` reaches the caller.
    fn rejected(&self, state: &mut State, who: u8, token: u8, record: Option<i8>) {
        let answer = state.answers[usize::from(token)];
        let decided = state.transaction.filter(Transaction::decided);
        let (committed, dying) = decided.map_or((state.committed, 0), |it| (it.wanted, it.dying));
        let is_dead = |record: i8| state.fates[index(record)] == Fate::Dead || dying & 1 << record != 0;
        let kept = match record {
            Some(record) => is_dead(record),
            None => self.offset(committed).max(self.offset(state.committed)) >= answer.end,
        };
        if !kept && !answer.over && !state.functions[usize::from(who)].is_past() {
            self.fails(state, Property::RejectKept);
        }
        self.note("rejected");
    }

    fn deliver(&self, state: &mut State, who: u8) {
        match state.functions[usize::from(who)].call {
            Some(Call::Auto(_)) => self.hand_out(state, who, None),
            Some(Call::Manual(_, token)) => self.hand_out(state, who, Some(token)),
            Some(Call::Accept(token, before)) => self.accepted(state, who, token, before),
            Some(Call::Renew(token)) => {
                let function = state.functions[usize::from(who)];
                let until = function.at + LEASE_TICKS;
                if !function.is_past() {
                    let Answer { from, end, .. } = state.answers[usize::from(token)];
                    let from = from.max(self.offset(function.wanted));
                    if state.tick < until && !state.answers[usize::from(token)].over {
                        (from..end).for_each(|record| self.alone(state, record, Some(token)));
                    }
                    state.answers[usize::from(token)].until = until;
                }
                self.note("renewed");
            }
            Some(Call::Release(_)) => self.note("released"),
            Some(Call::Reject(token, record)) => self.rejected(state, who, token, record),
            Some(Call::Bury) => self.note("buried"),
            Some(Call::Seek(_)) => {
                if !state.functions[usize::from(who)].decided {
                    self.fails(state, Property::CommittedFirst);
                }
                self.note("sought");
            }
            Some(Call::Keep) | None => {}
        }
        Self::finish(state, who);
    }

    fn decide(&self, state: &mut State, who: u8, answer_lost: bool) {
        let function = state.functions[usize::from(who)];
        let call = function.call.expect("a call");
        let question = Question {
            base: function.base,
            seen: function.seen,
            without: if self.leaves_out(LeftOut::Without) { function.base } else { function.seen },
            call,
            end: self.bounds.records,
            sandbox: who,
            now: state.tick + function.ahead,
            nonce: nonce(who, function.commits),
        };
        let ruling = self.values.borrow_mut().decide(question);
        let claimant = self.is_claimant(state, who);
        let (ruling, dying) = match ruling {
            Ruling::Bury(wanted, dying) => (Ruling::Commit(wanted), dying),
            other => (other, 0),
        };
        let function = &mut state.functions[usize::from(who)];
        match ruling {
            Ruling::Bury(..) => unreachable!("a commit, by now"),
            Ruling::Commit(_) if function.commits == self.bounds.commits => Self::finish(state, who),
            // Also letters are refused.
            Ruling::Commit(_) if !claimant => {
                self.note("fenced at TxnOffsetCommit");
                state.functions[usize::from(who)].claimed = false;
                self.retry(state, who);
            }
            Ruling::Commit(wanted) => {
                function.without = if self.leaves_out(LeftOut::Without) { function.seen } else { 0 };
                function.seen = 0;
                function.wanted = wanted;
                function.commits += 1;
                function.decided = false;
                function.at = if matches!(call, Call::Manual(..) | Call::Renew(_)) { state.tick } else { 0 };
                function.phase = Phase::Staged;
                let transaction = Transaction {
                    owner: who,
                    call,
                    attempt: function.commits,
                    base: function.base,
                    wanted,
                    dying,
                    ending: false,
                    prepared: false,
                    excused: false,
                    disturbed: function.disturbed,
                    passed_over: false,
                    forgotten: false,
                };
                if self.leaves_out(LeftOut::Together) {
                    let dying = (0..self.bounds.records).filter(|record| dying & 1 << record != 0);
                    dying.for_each(|record| self.write(state, record));
                }
                // A transaction that is decided was not waited for only if a step was left out.
                self.materialise(state);
                state.transaction = Some(transaction);
                if answer_lost {
                    state.left.losses -= 1;
                    state.functions[usize::from(who)].claimed = false;
                    Self::finish(state, who);
                }
            }
            Ruling::Moved if matches!(call, Call::Auto(_) | Call::Manual(..)) => {
                self.note("moved");
                function.seen = function.base;
                function.phase = Phase::Read;
                if self.values.borrow().is_hopeless(function.seen) {
                    function.call = Some(Call::Bury);
                }
                if self.offset(state.functions[usize::from(who)].base) == self.bounds.records {
                    Self::finish(state, who);
                }
            }
            Ruling::Already => {
                self.note("already");
                match call {
                    Call::Accept(token, before) => self.accepted(state, who, token, before),
                    Call::Reject(token, record) => self.rejected(state, who, token, record),
                    _ => {}
                }
                Self::finish(state, who);
            }
            Ruling::Moved | Ruling::Leased | Ruling::LeaseLost | Ruling::BeyondLease => {
                self.note(match ruling {
                    Ruling::Leased => "leased",
                    Ruling::LeaseLost => "lease lost",
                    Ruling::BeyondLease => "beyond the lease",
                    _ => "moved",
                });
                Self::finish(state, who);
            }
        }
    }

    /// What `Claim::settle` concludes from a stable read.
    fn settle(&self, state: &State, who: u8) -> Outcome {
        let function = &state.functions[usize::from(who)];
        let values = self.values.borrow();
        let (position, base) = (values.position(state.committed), values.position(function.base));
        if self.leaves_out(LeftOut::Nonce) {
            let there = position.committed == values.position(function.wanted).committed;
            return if there { Outcome::Done } else { Outcome::NotDone };
        }
        match position.shows(u64::from(nonce(who, function.commits - 1)), base) {
            Some(true) => Outcome::Done,
            Some(false) => Outcome::NotDone,
            None if self.leaves_out(LeftOut::BaseNonce) => Outcome::NotDone,
            None => Outcome::Untold,
        }
    }

    /// What `Claim::confirm` does.
    fn confirm(&self, state: &mut State, who: u8) {
        match self.settle(state, who) {
            Outcome::Done => state.functions[usize::from(who)].phase = Phase::Done,
            Outcome::NotDone if state.committed != state.functions[usize::from(who)].base => {
                state.functions[usize::from(who)].claimed = false;
                if self.values.borrow().position(state.committed).mark.is_some() {
                    self.note("forgotten, and moved by others");
                    self.retry(state, who);
                } else {
                    self.note("forgotten, and reset");
                    self.fail(state, who, Action::Confirm(who));
                }
            }
            Outcome::NotDone if self.is_claimant(state, who) => {
                self.note("committed once more");
                self.materialise(state);
                let function = &mut state.functions[usize::from(who)];
                function.decided = false;
                function.phase = Phase::Staged;
                state.transaction = Some(Transaction {
                    owner: who,
                    call: function.call.expect("a call"),
                    attempt: function.commits,
                    base: function.base,
                    wanted: function.wanted,
                    dying: 0,
                    ending: false,
                    prepared: false,
                    excused: false,
                    disturbed: function.disturbed,
                    passed_over: false,
                    forgotten: false,
                });
            }
            Outcome::NotDone => {
                self.note("forgotten, and fenced");
                state.functions[usize::from(who)].claimed = false;
                self.retry(state, who);
            }
            Outcome::Untold => {
                self.note("confirmed: cannot be told");
                self.fail(state, who, Action::Confirm(who));
            }
        }
    }

    /// Others use the position as well: claim it, and commit it where it is.
    fn crowd(&self, state: &mut State, commits: u8) {
        state.left.crowds -= 1;
        match state.transaction {
            Some(transaction) if transaction.prepared => self.materialise(state),
            _ => state.transaction = None,
        }
        state.claimant = NOBODY;
        for commit in 0..commits {
            let question = Question {
                base: state.committed,
                seen: state.committed,
                without: state.committed,
                call: Call::Keep,
                end: self.bounds.records,
                sandbox: NOBODY,
                now: state.tick,
                // Never the same twice.
                nonce: nonce(NOBODY, 20 * state.left.crowds + commit),
            };
            let Ruling::Commit(kept) = self.values.borrow_mut().decide(question) else {
                unreachable!("it may be kept")
            };
            state.committed = kept;
        }
    }

    /// What is before an offset is settled now, and what comes after it begins anew.
    fn set(&self, state: &mut State, to: i8) {
        for record in 0..self.bounds.records {
            if record >= to {
                state.fates[index(record)] = Fate::Waiting;
                state.letters[index(record)] = 0;
            } else if state.fates[index(record)] != Fate::Dead {
                state.fates[index(record)] = Fate::Settled;
            }
            state.given[index(record)] &= record < to;
        }
        for answer in &mut state.answers {
            answer.over = answer.given;
        }
    }

    fn reset(&self, state: &mut State, to: i8, copied: bool) {
        state.left.resets -= 1;
        state.committed = self.values.borrow_mut().reset(state.committed, to, copied);
        self.set(state, to);
        // To where it was, and with the mark that it had, it is no reset.
        for record in (to..self.bounds.records).filter(|record| self.values.borrow().is_done(state.committed, *record))
        {
            state.fates[index(record)] = Fate::Dead;
            state.letters[index(record)] = 1;
        }
        for function in &mut state.functions {
            function.disturbed = !matches!(function.phase, Phase::Idle | Phase::Look | Phase::Read);
        }
        if let Some(transaction) = &mut state.transaction {
            transaction.disturbed = true;
            transaction.passed_over = true;
        }
    }

    /// Whether the log can be read to its end from here, by a function that begins when all others are dead and all
    /// leases are over. What it meets is the position, a pending transaction, and the time.
    fn can_end(&self, state: &State) -> bool {
        let pending = state.transaction.map(|it| (it.wanted, it.ending, it.prepared, it.passed_over, it.forgotten));
        let situation = (state.committed, pending, state.tick);
        if let Some(known) = self.ends.borrow().get(&situation) {
            return *known;
        }
        let mut state = *state;
        for who in 0..self.bounds.functions {
            Self::excuse(&mut state, who);
            Self::finish(&mut state, who);
            state.functions[usize::from(who)].claimed = false;
        }
        state.functions[0].commits = 0;
        state.functions[0].ahead = 0;
        state.tick += LATER;
        state.left = Left { auto: 3, ..Left::default() };
        let mut actions = Vec::new();
        let happened = self.happened();
        let mut ended = false;
        for _ in 0..60 {
            // What is lost blocks nobody.
            let blocked = state.transaction.is_some_and(|transaction| !transaction.forgotten);
            ended = !blocked && self.offset(state.committed) == self.bounds.records;
            if ended {
                break;
            }
            actions.clear();
            self.actions(&state, &mut actions);
            let fortunate = |action: &&Action| {
                use Action::{Answered, Claim, Confirm, Decide, Deliver, End, Look, Prepare, Read, Unblock};
                let begins = matches!(action, Look(_) | Unblock(_) | Claim(_) | Read(_) | Decide(_));
                begins || matches!(action, End(_) | Prepare | Answered(_) | Confirm(_) | Deliver(_))
            };
            let action = if actions.contains(&Action::Materialise) {
                // What Kafka has decided, it also does.
                Action::Materialise
            } else if state.functions[0].phase == Phase::Idle && state.left.auto > 0 {
                Action::Start(0, Call::Auto(self.bounds.records))
            } else if let Some(action) = actions.iter().find(fortunate) {
                *action
            } else {
                break;
            };
            state = self.next(&state, action);
        }
        *self.happened.borrow_mut() = happened;
        self.ends.borrow_mut().insert(situation, ended);
        ended
    }

    /// The calls that may begin.
    fn starts(&self, state: &State, who: u8, actions: &mut Vec<Action>) {
        let mut start = |call| actions.push(Action::Start(who, call));
        for &limit in self.bounds.batches {
            if state.left.auto > 0 {
                start(Call::Auto(limit));
            }
            if state.left.manual > 0 {
                start(Call::Manual(limit, self.bounds.manual - state.left.manual));
            }
        }
        if state.left.keep > 0 {
            start(Call::Keep);
        }
        if state.left.seek > 0 {
            (0..=self.bounds.records).for_each(|to| start(Call::Seek(to)));
        }
        if state.left.acknowledge > 0 {
            for (token, answer) in (0..).zip(&state.answers).filter(|(_, answer)| answer.given) {
                start(Call::Accept(token, None));
                (answer.from + 1..answer.end).for_each(|before| start(Call::Accept(token, Some(before))));
                start(Call::Release(token));
                start(Call::Renew(token));
            }
        }
        if state.left.reject > 0 {
            for (token, answer) in (0..).zip(&state.answers).filter(|(_, answer)| answer.given) {
                start(Call::Reject(token, None));
                (answer.from..answer.end).for_each(|record| start(Call::Reject(token, Some(record))));
            }
        }
    }

    fn steps(&self, state: &State, who: u8, actions: &mut Vec<Action>) {
        let function = &state.functions[usize::from(who)];
        let stable = self.is_stable(state);
        match function.phase {
            Phase::Idle => self.starts(state, who, actions),
            Phase::Look if stable => actions.push(Action::Look(who)),
            Phase::Look if self.leaves_out(LeftOut::Unblock) => {}
            Phase::Look => actions.push(Action::Unblock(who)),
            Phase::Read if !function.claimed => actions.push(Action::Claim(who)),
            Phase::Read if stable => actions.push(Action::Read(who)),
            Phase::Read => actions.push(Action::ReadFails(who)),
            Phase::Decide => {
                // Without claims there is no order among transactions; one after the other is bad enough.
                if state.transaction.is_none_or(|_| !self.leaves_out(LeftOut::Claim)) {
                    actions.push(Action::Decide(who));
                    if state.left.losses > 0 && self.is_claimant(state, who) {
                        actions.push(Action::DecideAnswerLost(who));
                    }
                }
            }
            Phase::Staged => actions.extend([Action::End(who), Action::GiveUp(who)]),
            Phase::Sent => {
                if function.decided {
                    actions.extend([Action::Answered(who), Action::DeliveryFails(who)]);
                }
                if !self.is_claimant(state, who) {
                    actions.push(Action::AnsweredFenced(who));
                }
                if state.left.losses > 0 {
                    actions.push(Action::TimesOut(who));
                }
            }
            Phase::Unknown => actions.extend([Action::Claim(who), Action::GiveUp(who)]),
            Phase::Settle | Phase::Confirm => {
                if stable {
                    let settles = function.phase == Phase::Settle;
                    actions.push(if settles { Action::Settle(who) } else { Action::Confirm(who) });
                }
                actions.push(Action::GiveUp(who));
            }
            Phase::Done => actions.extend([Action::Deliver(who), Action::DeliveryFails(who)]),
        }
        if state.left.kills > 0 && (function.phase != Phase::Idle || function.claimed) {
            actions.push(Action::Kill(who));
        }
    }

    /// A function begins, looks, claims or reads.
    fn approach(&self, state: &mut State, action: Action) {
        match action {
            Action::Start(who, call) => {
                let left = &mut state.left;
                *match call {
                    Call::Auto(_) => &mut left.auto,
                    Call::Manual(..) => &mut left.manual,
                    Call::Keep => &mut left.keep,
                    Call::Seek(_) => &mut left.seek,
                    Call::Reject(..) => &mut left.reject,
                    _ => &mut left.acknowledge,
                } -= 1;
                if let Call::Release(token) = call {
                    state.answers[usize::from(token)].over = true;
                }
                let function = &mut state.functions[usize::from(who)];
                function.call = Some(call);
                function.phase = if call.looks() { Phase::Look } else { Phase::Read };
                if call.looks() && self.is_stable(state) {
                    self.approach(state, Action::Look(who));
                }
            }
            Action::Look(who) => {
                let values = self.values.borrow();
                let free = values.offset(state.committed) < self.bounds.records
                    && !values.is_leased(state.committed, state.tick + state.functions[usize::from(who)].ahead);
                let function = &mut state.functions[usize::from(who)];
                function.seen = state.committed;
                function.phase = Phase::Read;
                let hopeless = values.is_hopeless(state.committed);
                if function.call != Some(Call::Keep) && (!free || function.call == Some(Call::Bury) && !hopeless) {
                    Self::finish(state, who);
                } else if function.call != Some(Call::Keep) && hopeless {
                    function.call = Some(Call::Bury);
                }
            }
            Action::Unblock(who) => self.claim(state, who),
            Action::Claim(who) => {
                self.claim(state, who);
                let function = &mut state.functions[usize::from(who)];
                if function.phase == Phase::Unknown {
                    function.phase = Phase::Settle;
                }
            }
            Action::Read(who) => {
                let function = &mut state.functions[usize::from(who)];
                let looked = function.call.is_some_and(Call::looks);
                let skipped = self.leaves_out(LeftOut::SecondRead) && looked;
                function.base = if skipped { function.seen } else { state.committed };
                function.phase = Phase::Decide;
                function.disturbed = false;
                function.overtaken = false;
            }
            _ => {
                let (Action::ReadFails(who) | Action::GiveUp(who) | Action::DeliveryFails(who) | Action::Kill(who)) =
                    action
                else {
                    unreachable!("the rest")
                };
                self.fail(state, who, action);
            }
        }
    }

    /// A call ends without an answer that says how.
    fn fail(&self, state: &mut State, who: u8, action: Action) {
        let function = &mut state.functions[usize::from(who)];
        let phase = function.phase;
        // An answer that is lost takes nothing from the function.
        function.claimed &= matches!(action, Action::DeliveryFails(_));
        if matches!(action, Action::Kill(_)) {
            state.left.kills -= 1;
        } else if phase == Phase::Staged && state.transaction.is_some_and(|transaction| transaction.owner == who) {
            state.transaction = None;
        } else if matches!(phase, Phase::Unknown | Phase::Settle | Phase::Confirm) {
            self.note("undecided");
        }
        Self::excuse(state, who);
        Self::finish(state, who);
    }
}

/// A record's place in the lists.
fn index(record: i8) -> usize {
    usize::try_from(record).expect("an offset")
}

/// The nonce of a function's commit.
fn nonce(who: u8, commit: u8) -> u16 {
    (u16::from(who) + 1) * 100 + u16::from(commit)
}

impl Answer {
    fn holds(self, record: i8) -> bool {
        self.given && self.from <= record && record < self.end
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;
    type Property = Property;

    fn beginnings(&self) -> Vec<State> {
        let bounds = &self.bounds;
        // The number of whatever is not known is 0.
        let committed = self.values.borrow_mut().store(bounds.begins.map(i64::from), "");
        let idle = Function {
            phase: Phase::Idle,
            call: None,
            seen: 0,
            without: 0,
            base: 0,
            wanted: 0,
            claimed: false,
            commits: 0,
            decided: false,
            at: 0,
            ahead: 0,
            disturbed: false,
            overtaken: false,
        };
        let begins = bounds.begins.unwrap_or(0);
        let mut fates = [Fate::Waiting; RECORDS];
        (0..begins).for_each(|record| fates[index(record)] = Fate::Settled);
        let state = State {
            functions: [idle; FUNCTIONS],
            committed,
            claimant: NOBODY,
            transaction: None,
            tick: 0,
            left: Left {
                auto: bounds.auto,
                manual: bounds.manual,
                keep: bounds.keep,
                acknowledge: bounds.acknowledge,
                reject: bounds.reject,
                seek: bounds.seek,
                losses: bounds.losses,
                kills: bounds.kills,
                resets: bounds.resets,
                crowds: bounds.crowds,
                forgets: bounds.forgets,
            },
            fates,
            letters: [0; RECORDS],
            given: [false; RECORDS],
            answers: [Answer { given: false, from: 0, end: 0, until: 0, over: false, sought: false }; TOKENS],
            fault: None,
        };
        // Clocks agree, or one is ahead of the others, or behind them.
        let mut skews = vec![[0; FUNCTIONS]];
        if bounds.ahead > 0 {
            skews.push([bounds.ahead, 0, 0]);
            skews.push([0, bounds.ahead, bounds.ahead]);
        }
        let skewed = |ahead: [u8; FUNCTIONS]| {
            let mut state = state;
            state.functions.iter_mut().zip(ahead).for_each(|(function, ahead)| function.ahead = ahead);
            state
        };
        skews.into_iter().map(skewed).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        (0..self.bounds.functions).for_each(|who| self.steps(state, who, actions));
        if let Some(transaction) = state.transaction {
            if state.left.forgets > 0 && !transaction.forgotten {
                actions.push(Action::Forget);
            }
            if transaction.prepared {
                actions.push(Action::Materialise);
            } else {
                if transaction.ending && self.is_claimant(state, transaction.owner) {
                    actions.push(Action::Prepare);
                }
                if state.left.losses > 0 {
                    actions.push(Action::Expire);
                }
            }
        }
        if state.tick < self.bounds.ticks {
            actions.push(Action::Tick);
        }
        if state.left.crowds > 0 {
            // As many as a mark remembers, and one less.
            actions.extend([15, 16].map(Action::Crowd));
        }
        if state.left.resets > 0 {
            for to in 0..=self.bounds.records {
                actions.extend([false, true].map(|copied| Action::Reset(to, copied)));
            }
        }
    }

    fn next(&self, state: &State, action: Action) -> State {
        let mut state = *state;
        match action {
            Action::Decide(who) => self.decide(&mut state, who, false),
            Action::DecideAnswerLost(who) => self.decide(&mut state, who, true),
            Action::End(who) => {
                let function = &mut state.functions[usize::from(who)];
                function.phase = Phase::Sent;
                let attempt = function.commits;
                let own = |transaction: &&mut Transaction| transaction.owner == who && transaction.attempt == attempt;
                if let Some(transaction) = state.transaction.as_mut().filter(own) {
                    transaction.ending = true;
                }
            }
            Action::AnsweredFenced(who) => {
                let function = &mut state.functions[usize::from(who)];
                self.note(if function.decided { "fenced, but done" } else { "fenced at EndTxn" });
                function.claimed = false;
                function.phase = if self.leaves_out(LeftOut::Outcome) { Phase::Done } else { Phase::Settle };
            }
            Action::TimesOut(who) => {
                state.left.losses -= 1;
                let function = &mut state.functions[usize::from(who)];
                function.claimed = false;
                function.phase = if self.leaves_out(LeftOut::Outcome) { Phase::Done } else { Phase::Unknown };
            }
            Action::Settle(who) => match self.settle(&state, who) {
                Outcome::Done => {
                    self.note("settled: done");
                    state.functions[usize::from(who)].phase = Phase::Done;
                }
                Outcome::NotDone => {
                    self.note("settled: not done");
                    self.retry(&mut state, who);
                }
                Outcome::Untold => {
                    self.note("settled: cannot be told");
                    self.fail(&mut state, who, action);
                }
            },
            Action::Answered(who) if self.bounds.forgets > 0 && !self.leaves_out(LeftOut::Confirm) => {
                state.functions[usize::from(who)].phase = Phase::Confirm;
            }
            Action::Answered(who) | Action::Deliver(who) => self.deliver(&mut state, who),
            Action::Confirm(who) => self.confirm(&mut state, who),
            Action::Forget => {
                state.left.forgets -= 1;
                state.transaction.iter_mut().for_each(|transaction| transaction.forgotten = true);
            }
            Action::Prepare => {
                if let Some(transaction) = &mut state.transaction {
                    transaction.prepared = true;
                    let owner = &mut state.functions[usize::from(transaction.owner)];
                    let waits = matches!(owner.phase, Phase::Sent | Phase::Unknown | Phase::Settle);
                    owner.decided |= waits && owner.commits == transaction.attempt;
                }
            }
            Action::Materialise => self.materialise(&mut state),
            Action::Expire => {
                self.note("a transaction times out");
                state.transaction = None;
                state.claimant = NOBODY;
                state.left.losses -= 1;
            }
            Action::Tick => {
                state.tick += 1;
                let tick = state.tick;
                // Leases that are over are all alike.
                state.answers.iter_mut().filter(|answer| answer.until <= tick).for_each(|answer| answer.until = 0);
            }
            Action::Crowd(commits) => self.crowd(&mut state, commits),
            Action::Reset(to, copied) => self.reset(&mut state, to, copied),
            _ => self.approach(&mut state, action),
        }
        state
    }

    fn violated(&self, state: &State) -> Option<Property> {
        // Without claims nothing ends a transaction of the dead.
        let matters = !self.leaves_out(LeftOut::Claim) && !self.bounds.waived.contains(&Property::NoDeadEnd);
        state.fault.or_else(|| (matters && !self.can_end(state)).then_some(Property::NoDeadEnd))
    }

    fn describe(&self, state: &State) -> String {
        let values = self.values.borrow();
        let show = |stored: Stored| {
            let lease = values.position(stored).mark.as_ref().and_then(|mark| mark.lease.as_ref());
            let leased = lease.map(|lease| format!(" leased to {}", lease.end)).unwrap_or_default();
            format!("{}{leased}", values.offset(stored))
        };
        let mut line = format!("tick {}, position {}", state.tick, show(state.committed));
        for (record, letters) in (0_u8..).zip(state.letters).filter(|(_, letters)| *letters > 0) {
            let _ = write!(line, ", {letters} letters of {record}");
        }
        if let Some(Transaction { owner, wanted, ending, prepared, forgotten, .. }) = state.transaction {
            let progress = if forgotten {
                "forgotten"
            } else if prepared {
                "decided"
            } else if ending {
                "ending"
            } else {
                "open"
            };
            let _ = write!(line, ", transaction of {owner} to {} {progress}", show(wanted));
        }
        for (who, function) in state.functions.iter().enumerate().filter(|(_, one)| one.phase != Phase::Idle) {
            let _ = write!(line, ", {who} at {:?}", function.phase);
        }
        line
    }
}
