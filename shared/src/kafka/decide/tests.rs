//! What each step may do, step by step. (All their interleavings: `tests/model`.)

use super::super::position::{Hash, now_ms};
use super::*;

const LEASE_MS: u64 = 30_000;

fn holder(name: &str) -> Holder {
    Holder { token: Hash::of(&[name.as_bytes()]), principal: Hash::of(&[name.as_bytes(), b"principal"]) }
}

fn at(now: u64) -> Stamp {
    Stamp { nonce: now, sandbox: 1, now }
}

/// The position after a step that must be allowed.
fn after(position: &Position, intent: &Intent, now: u64) -> Position {
    match decide(position, intent, at(now)) {
        Verdict::Commit(mark) => Position { committed: Some(mark.offset), mark: Some(*mark) },
        other => panic!("{intent:?}: {other:?}"),
    }
}

/// A lease on top of a position, as it is seen.
fn lease(on: &Position, from: i64, next: i64, name: &str) -> Intent {
    let alone = (next == from + 1).then_some(from);
    let (seen, without, delivered, last) = (on.committed, on.done(from), on.delivered(from), next - 1);
    Intent::Lease { seen, from, last, next, without, delivered, alone, lease_ms: LEASE_MS, holder: holder(name) }
}

fn take(seen: Option<i64>, next: i64) -> Intent {
    Intent::Take { seen, from: seen.unwrap_or(0), next, without: Ranges::default() }
}

fn accept(name: &str, before: Option<i64>) -> Intent {
    Intent::Accept { holder: holder(name), before }
}

#[test]
fn a_live_lease_keeps_everybody_else_away_and_an_expired_one_nobody() {
    let leased = after(&Position::default(), &lease(&Position::default(), 3, 10, "a"), 0);
    assert_eq!(leased.committed, Some(3), "leased records are not committed");
    let take = take(Some(3), 5);
    for now in [1, LEASE_MS, LEASE_MS + CLOCK_SKEW_MS - 1] {
        assert_eq!(decide(&leased, &take, at(now)), Verdict::Leased, "{now}");
        assert_eq!(decide(&leased, &lease(&leased, 3, 5, "b"), at(now)), Verdict::Leased);
    }
    let expired = LEASE_MS + CLOCK_SKEW_MS;
    let again = after(&leased, &lease(&leased, 3, 5, "b"), expired);
    let mark = again.mark.as_ref().expect("a mark");
    assert_eq!((mark.deliveries(3), mark.deliveries(4), mark.deliveries(5), mark.deliveries(10)), (2, 2, 1, 0));
    assert_eq!(decide(&again, &accept("a", None), at(expired)), Verdict::LeaseLost);
    assert_eq!(after(&leased, &take, expired).committed, Some(5));
}

#[test]
fn an_expired_lease_may_be_settled_as_long_as_nobody_took_it() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    assert_eq!(after(&leased, &accept("a", None), 10 * LEASE_MS).committed, Some(10));
}

#[test]
fn accepting_in_parts_and_again() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let part = after(&leased, &accept("a", Some(4)), 1);
    assert_eq!(part.committed, Some(4));
    assert_eq!(decide(&part, &take(Some(4), 5), at(2)), Verdict::Leased, "the rest is leased");
    assert_eq!(decide(&part, &accept("a", Some(4)), at(2)), Verdict::Already);
    assert_eq!(decide(&part, &accept("a", Some(2)), at(2)), Verdict::Already);
    assert_eq!(decide(&part, &accept("a", Some(11)), at(2)), Verdict::BeyondLease);
    let whole = after(&part, &accept("a", None), 3);
    assert_eq!(whole.committed, Some(10));
    assert_eq!(decide(&whole, &accept("a", None), at(4)), Verdict::Already);
    let next = after(&whole, &lease(&whole, 10, 12, "b"), 5);
    assert_eq!(decide(&next, &accept("a", None), at(6)), Verdict::Already, "also when others have followed");
    assert_eq!(decide(&whole, &Intent::Release { holder: holder("a") }, at(4)), Verdict::Settled);
}

#[test]
fn with_its_last_record_a_lease_is_accepted_whatever_lies_behind() {
    // The records 0, 2 and 4 of transactions, whose markers are 1, 3 and 5.
    let Intent::Lease { seen, from, next, without, delivered, alone, lease_ms, holder, .. } =
        lease(&Position::default(), 0, 6, "a")
    else {
        panic!("a lease")
    };
    let of_transactions = Intent::Lease { seen, from, last: 4, next, without, delivered, alone, lease_ms, holder };
    let leased = after(&Position::default(), &of_transactions, 0);
    let part = after(&leased, &accept("a", Some(3)), 1);
    assert_eq!((part.committed, part.live_lease(1).is_some()), (Some(3), true));
    let renewed = after(&part, &Intent::Renew { holder: self::holder("a"), lease_ms: 1 }, 2);
    let whole = after(&renewed, &accept("a", Some(5)), 3);
    assert_eq!((whole.committed, whole.live_lease(3).is_some()), (Some(6), false));
    assert_eq!(decide(&whole, &accept("a", Some(5)), at(4)), Verdict::Already);
}

#[test]
fn what_was_accepted_of_a_lease_stays_accepted_when_the_rest_is_anothers() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let part = after(&leased, &accept("a", Some(4)), 1);
    let release = Intent::Release { holder: holder("a") };
    let expired = LEASE_MS + CLOCK_SKEW_MS;
    let lost = [
        after(&part, &take(Some(4), 7), expired),
        after(&part, &lease(&part, 4, 7, "b"), expired),
        after(&after(&part, &lease(&part, 4, 7, "b"), expired), &accept("b", None), expired + 1),
    ];
    for position in &lost {
        assert_eq!(decide(position, &accept("a", Some(4)), at(expired)), Verdict::Already);
        assert_eq!(decide(position, &accept("a", Some(2)), at(expired)), Verdict::Already);
        assert_eq!(decide(position, &accept("a", Some(5)), at(expired)), Verdict::LeaseLost);
        assert_eq!(decide(position, &accept("a", None), at(expired)), Verdict::LeaseLost);
        assert_eq!(decide(position, &release, at(expired)), Verdict::LeaseLost, "it was lost, not released");
        let stranger = Holder { principal: holder("b").principal, ..holder("a") };
        let theirs = Intent::Accept { holder: stranger, before: Some(4) };
        assert_eq!(decide(position, &theirs, at(expired)), Verdict::NotTheirs);
    }
    let released = after(&part, &release, 2);
    assert_eq!(decide(&released, &accept("a", Some(4)), at(3)), Verdict::Already);
    assert_eq!(decide(&released, &accept("a", Some(5)), at(3)), Verdict::LeaseLost);
    assert_eq!(decide(&released, &release, at(3)), Verdict::Already);
    // The log was cut meanwhile: what went with it was not accepted.
    let cut = Intent::Take { seen: Some(4), from: 8, next: 9, without: Ranges::default() };
    let cut = after(&part, &cut, expired);
    assert_eq!(decide(&cut, &accept("a", Some(4)), at(expired)), Verdict::Already);
    assert_eq!(decide(&cut, &accept("a", Some(6)), at(expired)), Verdict::LeaseLost);
}

#[test]
fn releasing_gives_back_at_once_and_counts() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let release = Intent::Release { holder: holder("a") };
    let free = after(&leased, &release, 1);
    assert_eq!(free.committed, Some(0));
    assert_eq!(decide(&free, &release, at(2)), Verdict::Already);
    assert_eq!(decide(&free, &accept("a", None), at(2)), Verdict::LeaseLost);
    let before = Position { committed: Some(0), mark: None };
    assert_eq!(
        decide(&free, &lease(&before, 0, 10, "b"), at(2)),
        Verdict::Moved,
        "its answer would say: the first time"
    );
    let again = after(&free, &lease(&free, 0, 10, "b"), 2);
    assert_eq!(again.mark.expect("a mark").deliveries(9), 2);
}

#[test]
fn renewing_extends_and_keeping_changes_nothing() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let kept = after(&leased, &Intent::Keep { seen: Some(0), from: 0, renewal: true }, 5);
    assert_eq!(
        kept.mark.as_ref().and_then(|mark| mark.lease.clone()),
        leased.mark.as_ref().and_then(|mark| mark.lease.clone())
    );
    let ago = |position: &Position| position.mark.as_ref().map(Mark::renewed_ago);
    let probed = after(&leased, &Intent::Keep { seen: Some(0), from: 0, renewal: false }, now_ms());
    assert_eq!(ago(&probed).map(|ago| ago.as_secs() > 1_000_000), Some(true), "only a renewal is one");
    let freshly = after(&leased, &Intent::Keep { seen: Some(0), from: 0, renewal: true }, now_ms());
    assert_eq!(ago(&freshly).map(|ago| ago.as_secs() < 1_000), Some(true));
    let renewed = after(&kept, &Intent::Renew { holder: holder("a"), lease_ms: 2 * LEASE_MS }, 10);
    assert!(renewed.live_lease(2 * LEASE_MS).is_some());
    // A shorter time does not take away what was promised.
    let shortly = after(&renewed, &Intent::Renew { holder: holder("a"), lease_ms: 1000 }, 11);
    assert_eq!(shortly.live_lease(11).map(|lease| lease.until), renewed.live_lease(11).map(|lease| lease.until));
    let settled = after(&renewed, &accept("a", None), 20);
    let renew = Intent::Renew { holder: holder("a"), lease_ms: 1000 };
    assert_eq!(decide(&settled, &renew, at(21)), Verdict::Settled);
}

#[test]
fn a_seek_ends_the_lease_and_begins_to_count_anew() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let part = after(&leased, &accept("a", Some(4)), 1);
    for to in [0, 4, 7, 10, 50] {
        let sought = after(&part, &Intent::Seek { to }, 2);
        let mark = sought.mark.as_ref().expect("a mark");
        assert_eq!((sought.committed, &mark.lease), (Some(to), &None));
        assert!((0..60).all(|offset| mark.deliveries(offset) == 0), "delivered anew");
        assert!(mark.includes(1) && mark.includes(2), "who lost an answer before still learns how it ended");
        assert_eq!(decide(&sought, &accept("a", Some(4)), at(3)), Verdict::Already, "that part was accepted");
        for intent in [accept("a", None), accept("a", Some(6)), Intent::Release { holder: holder("a") }] {
            assert_eq!(decide(&sought, &intent, at(3)), Verdict::LeaseLost, "{intent:?} after a seek to {to}");
        }
        let again = after(&sought, &lease(&sought, to, to + 1, "b"), 3);
        assert_eq!(again.mark.expect("a mark").deliveries(to), 1);
    }
    let settled = after(&part, &accept("a", None), 2);
    let sought = after(&settled, &Intent::Seek { to: 0 }, 3);
    assert_eq!(decide(&sought, &accept("a", None), at(4)), Verdict::Already, "it was accepted, and is so for ever");
    assert_eq!(after(&Position::default(), &Intent::Seek { to: 5 }, 1).committed, Some(5), "of a new group too");
}

#[test]
fn a_token_is_its_principal_s() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let thief = Holder { principal: Hash::of(&[b"other"]), ..holder("a") };
    for intent in [
        Intent::Accept { holder: thief.clone(), before: None },
        Intent::Release { holder: thief.clone() },
        Intent::Renew { holder: thief.clone(), lease_ms: 1 },
    ] {
        assert_eq!(decide(&leased, &intent, at(1)), Verdict::NotTheirs);
    }
    let settled = after(&leased, &accept("a", None), 1);
    assert_eq!(decide(&settled, &Intent::Accept { holder: thief, before: None }, at(2)), Verdict::NotTheirs);
}

#[test]
fn a_reset_by_other_tools_ends_every_lease() {
    let leased = after(&Position::default(), &lease(&Position::default(), 5, 10, "a"), 0);
    let metadata = leased.mark.as_ref().expect("a mark").to_metadata();
    for (offset, metadata) in [(2, ""), (2, metadata.as_str()), (5, "")] {
        let reset = Position::read(Some(offset), metadata).expect("readable");
        assert_eq!(decide(&reset, &accept("a", None), at(1)), Verdict::LeaseLost);
        let take = take(Some(offset), offset + 1);
        assert!(matches!(decide(&reset, &take, at(1)), Verdict::Commit(_)));
    }
}

#[test]
fn nothing_is_based_on_a_position_that_has_moved() {
    let position = Position { committed: Some(7), mark: None };
    for seen in [None, Some(6), Some(8)] {
        assert_eq!(
            decide(&position, &Intent::Take { seen, from: 7, next: 9, without: Ranges::default() }, at(1)),
            Verdict::Moved
        );
        assert_eq!(
            decide(&position, &lease(&Position { committed: seen, mark: None }, 7, 9, "a"), at(1)),
            Verdict::Moved
        );
        assert_eq!(decide(&position, &Intent::Keep { seen, from: 7, renewal: false }, at(1)), Verdict::Moved);
    }
}

/// Letters, and the position after a step that must write some.
fn buried(position: &Position, intent: &Intent, now: u64) -> (Position, Vec<i64>) {
    match decide(position, intent, at(now)) {
        Verdict::Bury(mark, letters) => (Position { committed: Some(mark.offset), mark: Some(*mark) }, letters),
        other => panic!("{intent:?}: {other:?}"),
    }
}

fn reject_of(records: Option<&[i64]>, there: &[i64]) -> Intent {
    let records = records.map(<[i64]>::to_vec);
    Intent::Reject { holder: holder("a"), records, there: there.to_vec(), reason: String::new() }
}

fn done(position: &Position) -> Vec<i64> {
    (0..20).filter(|offset| position.mark.as_ref().is_some_and(|mark| mark.is_done(*offset))).collect()
}

#[test]
fn what_is_rejected_is_settled_and_the_rest_stays_leased() {
    let all: Vec<i64> = (0..10).collect();
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let (middle, letters) = buried(&leased, &reject_of(Some(&[4, 5, 8]), &all), 1);
    assert_eq!((middle.committed, letters, done(&middle)), (Some(0), vec![4, 5, 8], vec![4, 5, 8]));
    assert!(middle.live_lease(2).is_some());
    assert_eq!(decide(&middle, &reject_of(Some(&[4, 5, 8]), &all), at(2)), Verdict::Already);
    assert_eq!(decide(&middle, &reject_of(Some(&[5]), &all), at(2)), Verdict::Already, "no second letter");
    let (first, letters) = buried(&middle, &reject_of(Some(&[0, 5]), &all), 2);
    assert_eq!((first.committed, letters), (Some(1), vec![0]));
    assert_eq!(decide(&first, &reject_of(Some(&[0, 5]), &all), at(3)), Verdict::Already, "although it is passed");
    assert_eq!(
        decide(&first, &reject_of(Some(&[0]), &all), at(3)),
        Verdict::BeyondLease,
        "accepted, for all one knows"
    );
    assert_eq!(decide(&first, &reject_of(Some(&[10]), &all), at(3)), Verdict::BeyondLease);
    let part = after(&first, &accept("a", Some(4)), 3);
    assert_eq!((part.committed, done(&part)), (Some(6), vec![8]), "the position passes what is settled");
    let (whole, letters) = buried(&part, &reject_of(None, &all), 4);
    assert_eq!((whole.committed, letters), (Some(10), vec![6, 7, 9]));
    assert_eq!(whole.live_lease(5), None);
    for intent in [accept("a", None), reject_of(None, &all), reject_of(Some(&[0, 5]), &all)] {
        assert_eq!(decide(&whole, &intent, at(5)), Verdict::Already, "{intent:?}");
    }
    assert_eq!(decide(&whole, &reject_of(Some(&[9]), &all), at(5)), Verdict::LeaseLost, "it never asked for this");
}

#[test]
fn what_is_left_of_a_lease_after_a_reject_can_be_accepted_or_released() {
    let all: Vec<i64> = (0..10).collect();
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 10, "a"), 0);
    let (tail, _) = buried(&leased, &reject_of(Some(&[7, 8, 9]), &all), 1);
    let whole = after(&tail, &accept("a", Some(7)), 2);
    assert_eq!((whole.committed, whole.live_lease(3)), (Some(10), None), "nothing of it is left");
    assert_eq!(decide(&whole, &accept("a", None), at(3)), Verdict::Already);
    let free = after(&tail, &Intent::Release { holder: holder("a") }, 2);
    assert_eq!((free.committed, done(&free)), (Some(0), vec![7, 8, 9]));
    assert_eq!(decide(&free, &reject_of(Some(&[7]), &all), at(3)), Verdict::LeaseLost);
    let Intent::Lease { seen, from, last, next, delivered, alone, lease_ms, holder, .. } = lease(&free, 0, 9, "b")
    else {
        panic!("a lease")
    };
    let without = Ranges::default();
    let with_them = Intent::Lease { seen, from, last, next, without, delivered, alone, lease_ms, holder };
    assert_eq!(decide(&free, &with_them, at(3)), Verdict::Moved, "they must be left out");
    let without = free.done(0);
    let next = Intent::Take { seen: Some(0), from: 0, next: 7, without };
    assert_eq!(after(&free, &next, 3).committed, Some(10));
    let sought = after(&free, &Intent::Seek { to: 8 }, 3);
    assert_eq!((sought.committed, done(&sought)), (Some(8), vec![]), "a seek begins anew");
}

#[test]
fn offsets_without_a_record_go_with_their_neighbours() {
    // The marker of a transaction is at 2 and at 4.
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 5, "a"), 0);
    let there = [0, 1, 3];
    let (tail, letters) = buried(&leased, &reject_of(Some(&[3]), &there), 1);
    assert_eq!((letters, done(&tail)), (vec![3], vec![2, 3, 4]));
    assert_eq!(after(&tail, &accept("a", Some(2)), 2).live_lease(3), None, "a lease without a record is no lease");
    let (gone, letters) = buried(&leased, &reject_of(Some(&[0, 2]), &there), 1);
    assert_eq!((gone.committed, letters, done(&gone)), (Some(1), vec![0], vec![2]), "gone: settled, without a letter");
    let (all, letters) = buried(&leased, &reject_of(None, &[]), 1);
    assert_eq!((all.committed, letters), (Some(5), vec![]));
}

#[test]
fn a_reject_is_its_holder_s_and_must_fit_into_the_mark() {
    let leased = after(&Position::default(), &lease(&Position::default(), 0, 5000, "a"), 0);
    let all: Vec<i64> = (0..5000).collect();
    let others = Holder { principal: Hash::of(&[b"other"]), ..holder("a") };
    let theirs = Intent::Reject { holder: others, records: None, there: all.clone(), reason: String::new() };
    assert_eq!(decide(&leased, &theirs, at(1)), Verdict::NotTheirs);
    let scattered: Vec<i64> = (1..5000).step_by(2).collect();
    assert_eq!(decide(&leased, &reject_of(Some(&scattered), &all), at(1)), Verdict::TooScattered);
    let (_, letters) = buried(&leased, &reject_of(Some(&scattered[..300]), &all), 1);
    assert_eq!(letters.len(), 300);
    let later = after(&leased, &lease(&leased, 0, 5, "b"), LEASE_MS + CLOCK_SKEW_MS);
    assert_eq!(decide(&later, &reject_of(None, &all), at(LEASE_MS + CLOCK_SKEW_MS)), Verdict::LeaseLost);
}

#[test]
fn only_what_failed_alone_is_buried() {
    assert_eq!((0..6).map(|n| is_suspect(n, 5)).collect::<Vec<_>>(), [false, false, false, true, true, true]);
    assert_eq!((0..3).map(|n| is_suspect(n, 2)).collect::<Vec<_>>(), [false, true, true]);
    assert!(is_suspect(0, 1) && !is_suspect(u32::MAX / 4, u32::MAX));
    let bury = |record| Intent::Bury { seen: Some(0), record, most: 3 };
    let release = Intent::Release { holder: holder("a") };
    let mut position = Position::default();
    for _ in 0..3 {
        let leased = after(&position, &lease(&position, 0, 5, "a"), 1);
        assert_eq!(decide(&leased, &bury(0), at(1)), Verdict::Leased);
        position = after(&leased, &release, 1);
    }
    assert_eq!(decide(&position, &bury(0), at(1)), Verdict::Moved, "it was in company");
    let alone = after(&after(&position, &lease(&position, 0, 1, "a"), 1), &release, 1);
    assert_eq!(decide(&alone, &bury(1), at(1)), Verdict::Moved, "its neighbour was not alone");
    let (next, letters) = buried(&alone, &bury(0), 1);
    assert_eq!((next.committed, letters), (Some(1), vec![0]));
    assert_eq!(next.mark.as_ref().map(|mark| mark.deliveries(1)), Some(3));
    let sought = after(&alone, &Intent::Seek { to: 0 }, 1);
    assert_eq!(decide(&sought, &bury(0), at(1)), Verdict::Moved, "counted anew");
}
