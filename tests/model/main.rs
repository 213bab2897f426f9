//! The hand-over protocol, checked: every interleaving of everything that may happen, for small numbers.
//!
//! A few functions, one partition with a few records, a group, callers with and without leases, some that seek, and a
//! clock of a few ticks. All states that they can reach are visited (see [`explore`]), and in each the properties must hold (see
//! [`protocol::Property`]). It needs no stack: `cargo test -p tests --test model`; with `-- --nocapture` it prints how
//! many states there were, what happened in them, and the counterexamples below.
//!
//! # What is the shipped code's
//!
//! Every decision is made by `kafka::decide::decide`, on real positions, marks, intents and stamps, and every mark goes
//! through its metadata string and back (see [`values`]). What needs a real Kafka is written here once more, step by step:
//! the order of steps of `handover::Slot::step` and `take`, the look of `consume::session`, the claim that ends a blocked look
//! (`Slot::unblock`, which redrives and acknowledgements use; a look of `consume` then goes by what is not pending, and what it
//! sees is older at worst, as what any look has seen may be by the time that it counts), the repetition of `acknowledge`, and
//! what `claim::Claim::settle` and `confirm` do with what the shipped `Position::shows` tells them.
//!
//! # What is Kafka's
//!
//! Its side is as good as its guarantees, and no better:
//!
//! - One producer at a time uses a transactional id (KIP-98). `InitProducerId` raises the epoch; from then on everything of
//!   earlier producers is refused. It aborts what they had open, unless the coordinator has logged the decision to
//!   commit: then it is committed, whoever asks.
//! - `TxnOffsetCommit` changes nothing before the transaction is committed. `EndTxn` may be answered when the decision is
//!   logged; the position changes a while later. It may also arrive without an answer, or after its sender has given
//!   up or died, or never.
//! - A stable read (KIP-447) is not answered while a transaction is pending on the position, decided or not, and it is
//!   the only thing that waits: a new claim may be granted before the position shows what the earlier holder committed
//!   (KAFKA-17507, brokers before 4.0).
//! - The coordinator aborts a transaction that takes too long, and fences its owner.
//! - Before 4.0 it may lose what is pending, when a late commit of an earlier claim arrives: the log holds it, the position
//!   does not change, and stable readers do not wait. (That the coordinator reads the log anew, and with it a commit that
//!   somebody has given up, is left out.)
//! - A tool's plain `OffsetCommit` takes effect at once, with any metadata, also in the middle of all this. What a pending
//!   transaction has added before it does not count any more when that is committed: the tool's is the newer one.
//!
//! # What may go wrong
//!
//! Functions stop for any time at any step (a freeze is nothing else: others go on, and the clock), die at any step, and
//! come back without memory. Answers of Kafka and answers to callers get lost. Clocks differ. Others commit so often that
//! a mark forgets nonces. Tools reset the position. All of it within the bounds that each test states.
//!
//! # What is left out
//!
//! Other partitions (nothing is shared among them), offsets without a record (markers of transactions), what records hold
//! and how large they are, logs that are cut off,
//! live members of the group, positions that expire, courtesy and pauses (they choose among interleavings, and all of
//! them are explored), the window of fetched records, principals, and `KAFKA_CONSUME_DELIVERY=shared`, which promises less.
//! The look of an acknowledgement before its claim: it is as stable as the read under the claim, goes through the same
//! function, and only refuses.
//! A function serves one call at a time here: in a sandbox, a partition's slot has one owner at a time too. A thread that
//! goes on after its call has answered 504 ends with the call; what it may still do, the explored claims of others do too.
//!
//! # Why an explorer of its own
//!
//! The crate `stateright` (0.31) always brings a web server (`tiny_http`) and a dozen more crates, does not promise the
//! shortest counterexample with several threads, and cannot say "from every state some way leads to the end".

mod explore;
mod protocol;
mod values;

use explore::explore;
use protocol::{Bounds, LeftOut, Property, Protocol};

/// Explores all there is within the bounds. All properties must hold, and what is said to happen must have happened:
/// a model in which nothing happens shows nothing.
fn holds(name: &str, bounds: Bounds, happens: &[&str]) {
    let model = Protocol::new(bounds);
    let report = explore(&model);
    let (happened, (decisions, positions)) = (model.happened(), model.size());
    println!("{name}: {report}, {decisions} decisions, {positions} positions; {happened:?}");
    assert!(report.counterexample.is_none(), "{name}: {report}");
    for what in happens {
        assert!(happened.contains_key(what), "{name}: it never happens: {what}; but {happened:?}");
    }
}

/// Explores until a property does not hold, and it must be this one.
fn fails(name: &str, bounds: Bounds, expected: Property) {
    let report = explore(&Protocol::new(bounds));
    println!("{name}: {report}");
    let found = report.counterexample.map(|counterexample| counterexample.property);
    assert_eq!(found, Some(expected), "{name}");
}

/// Calls of one record each, and an answer of Kafka that is lost.
const AUTO: Bounds = Bounds { batches: &[1], auto: 3, losses: 1, ..Bounds::QUIET };

#[test]
fn auto_with_two_functions_one_of_which_dies() {
    let bounds = Bounds { batches: &[1, 2], kills: 1, ..AUTO };
    let happens = ["settled: done", "settled: not done", "fenced, but done", "fenced at EndTxn", "undecided", "moved"];
    holds("auto, two functions", bounds, &happens);
}

#[test]
fn auto_with_three_functions() {
    let bounds = Bounds { functions: 3, batches: &[1, 2], commits: 1, ..AUTO };
    holds("auto, three functions", bounds, &["settled: done", "settled: not done", "fenced at TxnOffsetCommit"]);
}

#[test]
fn auto_from_where_a_tool_has_set_the_position() {
    let bounds = Bounds { records: 4, begins: Some(1), batches: &[1, 2], losses: 2, ..AUTO };
    holds("auto, from a tool's position", bounds, &["settled: done", "settled: not done", "a transaction times out"]);
}

#[test]
fn auto_when_nonces_are_forgotten() {
    let bounds = Bounds { auto: 2, crowds: 2, ..AUTO };
    holds("auto, nonces forgotten", bounds, &["settled: cannot be told", "settled: done", "settled: not done"]);
}

#[test]
fn positions_are_renewed_meanwhile() {
    let bounds = Bounds { auto: 1, manual: 1, keep: 2, kills: 1, batches: &[1], ..Bounds::QUIET };
    holds("renewals of the position", bounds, &["moved", "fenced, but done", "leased"]);
}

#[test]
fn leases_are_settled_while_answers_are_lost_and_functions_die() {
    let bounds = Bounds { batches: &[2], manual: 1, acknowledge: 2, losses: 1, kills: 1, ticks: 1, ..Bounds::QUIET };
    let happens = ["accepted", "already", "released", "renewed", "lease lost", "settled: done", "undecided"];
    holds("manual, with losses", bounds, &happens);
}

#[test]
fn leases_follow_each_other() {
    let bounds = Bounds { batches: &[2], manual: 2, acknowledge: 2, ..Bounds::QUIET };
    holds("manual, one after the other", bounds, &["leased", "leased again", "already", "lease lost"]);
}

#[test]
fn leases_expire_while_clocks_differ() {
    let bounds = Bounds { batches: &[2], manual: 2, acknowledge: 1, ticks: 2, ahead: 1, ..Bounds::QUIET };
    holds("manual, with expiry and skew", bounds, &["leased", "leased again", "lease lost", "accepted", "renewed"]);
    let bounds = Bounds { batches: &[2], manual: 2, acknowledge: 1, ticks: 2, kills: 1, ..Bounds::QUIET };
    holds("manual, with expiry and a death", bounds, &["leased", "leased again", "lease lost", "accepted", "renewed"]);
}

#[test]
fn callers_with_and_without_leases_share_a_group() {
    let bounds = Bounds { batches: &[2], auto: 1, manual: 1, acknowledge: 1, kills: 1, ticks: 2, ..Bounds::QUIET };
    holds("auto and manual", bounds, &["leased", "lease lost", "accepted", "fenced, but done"]);
}

#[test]
fn brokers_lose_a_commit() {
    let auto = Bounds { forgets: 1, losses: 0, ..AUTO };
    let happens = ["committed once more", "forgotten, and fenced", "moved"];
    holds("auto, a commit lost", auto.clone(), &happens);
    holds("auto, a commit and an answer lost", Bounds { auto: 2, losses: 1, ..auto.clone() }, &["settled: not done"]);
    let manual = Bounds { batches: &[2], manual: 1, auto: 1, acknowledge: 1, forgets: 1, ..Bounds::QUIET };
    holds("manual, a commit lost", manual.clone(), &["committed once more", "accepted", "renewed"]);
    let twice = Bounds { auto: 1, manual: 1, losses: 1, forgets: 2, ..auto.clone() };
    holds("two commits lost", twice, &["committed once more", "forgotten, and fenced", "settled: not done"]);
    let crowd = Bounds { auto: 2, crowds: 1, ..auto.clone() };
    let happens = ["committed once more", "forgotten, and moved by others", "confirmed: cannot be told"];
    holds("a commit lost, nonces forgotten", crowd, &happens);
    let reset = Bounds { auto: 2, resets: 1, ..auto.clone() };
    holds("a commit lost, and a reset", reset, &["committed once more", "forgotten, and reset"]);
    let seek = Bounds { auto: 1, seek: 1, forgets: 1, ..AUTO };
    holds("seek, a commit lost", seek, &["committed once more", "sought"]);
    // Beside others, who may fence it before the second commit, the record might be buried again.
    let reject = Bounds { functions: 1, auto: 1, acknowledge: 1, forgets: 1, ..REJECT };
    holds("reject, a commit lost", reject, &["committed once more", "rejected", "accepted"]);
    let without = |bounds| Bounds { left_out: Some(LeftOut::Confirm), ..bounds };
    fails("not confirmed", without(auto), Property::OnlyOnce);
    fails("not confirmed, leases", without(Bounds { auto: 0, ..manual }), Property::AcceptKept);
}

#[test]
fn tools_reset_the_position() {
    // Here a record counts as lost only if the position passes it after the reset.
    let bounds = Bounds { auto: 2, resets: 1, ..AUTO };
    let happens = ["settled: cannot be told", "settled: done", "settled: not done", "passed over by a reset"];
    holds("auto, with a reset", bounds, &happens);
    let bounds = Bounds { batches: &[2], manual: 1, auto: 1, acknowledge: 1, resets: 1, ..Bounds::QUIET };
    holds("manual, with a reset", bounds, &["lease lost", "accepted", "leased", "passed over by a reset"]);
}

#[test]
fn a_seek_comes_in_between() {
    let bounds = Bounds { auto: 2, seek: 1, ..AUTO };
    let happens = ["sought", "moved", "fenced at EndTxn", "fenced, but done", "settled: done", "settled: not done"];
    holds("seek beside auto", bounds.clone(), &happens);
    let leases = Bounds { batches: &[2], manual: 1, acknowledge: 2, seek: 1, ..Bounds::QUIET };
    holds("seek beside leases", leases.clone(), &["sought", "accepted", "already", "lease lost", "fenced, but done"]);
    let two = Bounds { batches: &[2], auto: 1, seek: 2, losses: 1, ..Bounds::QUIET };
    holds("one seek after the other", two, &["sought", "settled: done", "settled: not done"]);
    for without in [LeftOut::Claim, LeftOut::SecondRead] {
        let bounds = Bounds { left_out: Some(without), ..bounds.clone() };
        fails("something older after a seek", bounds, Property::NoLostUpdate);
    }
}

/// A lease of two records, of which some are rejected.
const REJECT: Bounds = Bounds { batches: &[2], manual: 1, reject: 1, ..Bounds::QUIET };

#[test]
fn rejected_records_have_one_letter_each_and_never_come_again() {
    let bounds = Bounds { acknowledge: 1, auto: 1, kills: 1, ..REJECT };
    let happens = ["rejected", "accepted", "released", "lease lost", "leased", "fenced, but done"];
    holds("reject, and a function dies", bounds, &happens);
    let bounds = Bounds { reject: 2, auto: 1, losses: 1, ..REJECT };
    let happens = ["rejected", "already", "settled: done", "settled: not done", "a transaction times out", "undecided"];
    holds("reject twice, with an answer lost", bounds, &happens);
    let bounds = Bounds { manual: 2, ticks: 2, ..REJECT };
    holds("reject, with expiry", bounds, &["rejected", "leased again", "lease lost"]);
    let bounds = Bounds { records: 3, batches: &[3], auto: 1, acknowledge: 1, ..REJECT };
    holds("reject of some of three", bounds, &["rejected", "accepted", "released", "moved"]);
}

#[test]
fn rejects_beside_seeks_and_resets() {
    let bounds = Bounds { seek: 1, auto: 1, ..REJECT };
    holds("reject beside a seek", bounds, &["rejected", "sought", "lease lost", "fenced, but done"]);
    let bounds = Bounds { resets: 1, auto: 1, ..REJECT };
    holds("reject beside a reset", bounds, &["rejected", "lease lost", "passed over by a reset"]);
}

#[test]
fn a_record_that_is_given_up_has_one_letter() {
    let bounds = Bounds { batches: &[2], manual: 1, auto: 2, ticks: 2, kills: 1, most: Some(1), ..Bounds::QUIET };
    holds("burial, and a function dies", bounds, &["buried", "leased", "moved", "fenced, but done"]);
    let bounds = Bounds { batches: &[2], manual: 1, auto: 2, ticks: 2, losses: 1, most: Some(1), ..Bounds::QUIET };
    holds("burial, with an answer lost", bounds, &["buried", "settled: done", "settled: not done"]);
    let bounds = Bounds { batches: &[2], manual: 3, acknowledge: 2, most: Some(2), commits: 5, ..Bounds::QUIET };
    let bounds = Bounds { functions: 1, auto: 1, reject: 1, ..bounds };
    holds("burial at the second time", bounds, &["buried", "released", "accepted", "rejected", "leased again"]);
}

#[test]
fn no_step_with_letters_can_be_left_out() {
    let without = |step, bounds: Bounds| Bounds { left_out: Some(step), ..bounds };
    let losses = Bounds { losses: 1, ..REJECT };
    fails("letters before the transaction", without(LeftOut::Together, losses.clone()), Property::OneLetter);
    // So does the lease that it is of.
    let rejected = Bounds { waived: &[Property::CommittedFirst], ..losses };
    fails("rejected although unknown", without(LeftOut::Outcome, rejected), Property::RejectKept);
    let burial = Bounds { batches: &[1], manual: 1, auto: 2, ticks: 2, kills: 1, most: Some(1), ..Bounds::QUIET };
    fails("the same of a burial", without(LeftOut::Together, burial), Property::OneLetter);
    let others = Bounds { acknowledge: 1, auto: 1, ..REJECT };
    fails("settled records are not left out", without(LeftOut::Skip, others.clone()), Property::OneEnd);
    let others = Bounds { begins: Some(0), commits: 3, ..others };
    fails("what is left out is not looked at", without(LeftOut::Without, others), Property::OneEnd);
}

#[test]
fn clocks_further_apart_than_allowed_shorten_leases_and_lose_nothing() {
    let bounds = Bounds { batches: &[2], manual: 2, acknowledge: 1, ticks: 2, ahead: 2, ..Bounds::QUIET };
    fails("clocks too far apart", bounds.clone(), Property::OneLiveHolder);
    let waived = &[Property::OneLiveHolder];
    holds("clocks too far apart, all else", Bounds { waived, ..bounds }, &["waived", "lease lost", "accepted"]);
}

#[test]
fn no_step_can_be_left_out() {
    let without = |step, bounds: Bounds| Bounds { left_out: Some(step), ..bounds };
    fails("no claim", without(LeftOut::Claim, AUTO), Property::OnlyOnce);
    fails("no read under the claim", without(LeftOut::SecondRead, AUTO), Property::OnlyOnce);
    // What callers see of it comes first.
    let waived = &[Property::OnlyOnce, Property::NothingLost];
    let seen = Bounds { waived, ..AUTO };
    fails("no claim, and the position goes back", without(LeftOut::Claim, seen.clone()), Property::NeverBack);
    fails("no read under the claim, and it goes back", without(LeftOut::SecondRead, seen), Property::NeverBack);
    fails("no stable read", without(LeftOut::StableRead, AUTO), Property::NothingLost);
    let waived = &[Property::NothingLost];
    fails("no stable read, again", without(LeftOut::StableRead, Bounds { waived, ..AUTO }), Property::OnlyOnce);
    fails("handed out although unknown", without(LeftOut::Outcome, AUTO), Property::CommittedFirst);
    let accept = Bounds { batches: &[2], manual: 1, acknowledge: 1, losses: 1, ..Bounds::QUIET };
    // So does the lease that it is of.
    let accept = Bounds { waived: &[Property::CommittedFirst], ..accept };
    fails("accepted although unknown", without(LeftOut::Outcome, accept), Property::AcceptKept);
    fails("no nonce", without(LeftOut::Nonce, AUTO), Property::CommittedFirst);
    let crowded = Bounds { crowds: 1, ..AUTO };
    fails("not found is not done", without(LeftOut::BaseNonce, crowded), Property::NothingLost);
    fails("a pending transaction is waited for", without(LeftOut::Unblock, AUTO), Property::NoDeadEnd);
    let leases = Bounds { batches: &[2], manual: 2, ticks: 1, ..Bounds::QUIET };
    for step in [LeftOut::Claim, LeftOut::SecondRead, LeftOut::StableRead] {
        fails("leases without it", without(step, leases.clone()), Property::OneLiveHolder);
    }
    let reset = Bounds { begins: Some(1), manual: 1, acknowledge: 1, resets: 1, ..Bounds::QUIET };
    fails("leases beside any offset", without(LeftOut::Binding, reset), Property::NothingLost);
}
