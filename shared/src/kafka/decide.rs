//! What a step may do to a position: the whole of it, as a pure function.
//!
//! A step is decided twice: by what it intends, and by the position as it is read, stable, under the claim, just before
//! the commit. Nothing else moves a position. The model in `tests` explores every interleaving of steps through this very
//! function.

use super::position::{Holder, Lease, Mark, Position, Stamp};

/// How far the wall clocks of two sandboxes may lie apart. A lease is taken over only this long after it has expired by
/// the taker's clock; its holder may settle it for as long as nobody has. Lambda's clocks are kept within milliseconds
/// of each other (Amazon Time Sync); a clock that is further off shortens leases, and loses nothing.
pub const CLOCK_SKEW_MS: u64 = 500;

/// What a step is meant to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Hand out all records up to `next`, for good (`ack=auto`).
    Take {
        /// The committed offset that the records were read from.
        seen: Option<i64>,
        /// The offset after the last record.
        next: i64,
    },
    /// Hand out all records up to `next`, under a lease (`ack=manual`).
    Lease {
        /// The committed offset that the records were read from.
        seen: Option<i64>,
        /// Where the records begin; other than `seen`, where there was no position, or none within the log.
        from: i64,
        /// The offset after the last record.
        next: i64,
        /// For how long, in milliseconds.
        lease_ms: u64,
        /// Who gets it.
        holder: Holder,
    },
    /// Commit the position where it is: to fix where a new group begins, to renew it, or to try whether one may.
    Keep {
        /// The committed offset, as it was seen.
        seen: Option<i64>,
        /// Where the group begins, if it has no position yet.
        from: i64,
        /// Whether it counts as a renewal (see `retention`).
        renewal: bool,
    },
    /// Accept a lease: all of it, or what lies before an offset.
    Accept {
        /// Who holds it.
        holder: Holder,
        /// Where the accepted records end; the lease's end, if absent.
        before: Option<i64>,
    },
    /// Give a lease back.
    Release {
        /// Who holds it.
        holder: Holder,
    },
    /// Make a lease last longer.
    Renew {
        /// Who holds it.
        holder: Holder,
        /// For how long from now, in milliseconds.
        lease_ms: u64,
    },
    /// Set the position, wherever it is and whoever holds a lease: what comes after it begins anew.
    Seek {
        /// The offset to go on from.
        to: i64,
    },
}

/// What a step may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Commit this mark, at its offset.
    Commit(Box<Mark>),
    /// The step was done before; nothing is to be committed.
    Already,
    /// The position is not the one that was seen.
    Moved,
    /// Somebody holds a live lease.
    Leased,
    /// The lease is not, or no longer, this token's.
    LeaseLost,
    /// The token is another principal's.
    NotTheirs,
    /// The lease does not reach that far.
    BeyondLease,
}

impl Position {
    /// The lease, if one is live at `now`, skew allowed for.
    pub fn live_lease(&self, now: u64) -> Option<&Lease> {
        let lease = self.mark.as_ref()?.lease.as_ref()?;
        (now < lease.until.saturating_add(CLOCK_SKEW_MS)).then_some(lease)
    }
}

/// What `intent` may do to `position`.
pub fn decide(position: &Position, intent: &Intent, stamp: Stamp) -> Verdict {
    let mark = position.mark.as_ref();
    match intent {
        Intent::Take { seen, next } => {
            if let Some(refused) = not_free(position, *seen, stamp) {
                return refused;
            }
            Verdict::Commit(Box::new(Mark::next(mark, *next, stamp)))
        }
        Intent::Lease { seen, from, next, lease_ms, holder } => {
            if let Some(refused) = not_free(position, *seen, stamp) {
                return refused;
            }
            let lease = Lease { end: *next, until: stamp.now.saturating_add(*lease_ms), holder: holder.clone() };
            let mark = Mark::next(mark, *from, stamp).delivering(*next).with_lease(lease);
            Verdict::Commit(Box::new(mark))
        }
        Intent::Keep { seen, from, renewal } => {
            if position.committed != *seen {
                return Verdict::Moved;
            }
            let kept = Mark::next(mark, position.committed.unwrap_or(*from), stamp);
            let kept = if *renewal { kept.renewing() } else { kept };
            Verdict::Commit(Box::new(match mark.and_then(|mark| mark.lease.clone()) {
                Some(lease) => kept.with_lease(lease),
                None => kept,
            }))
        }
        Intent::Accept { holder, before } => {
            let lease = match own_lease(position, holder, true) {
                Ok(lease) => lease,
                Err(verdict) => return verdict,
            };
            let (offset, end) = (position.committed.unwrap_or(lease.end), lease.end);
            let before = before.unwrap_or(end);
            if before > end {
                return Verdict::BeyondLease;
            }
            if before <= offset {
                return Verdict::Already;
            }
            let accepted = Mark::next(mark, before, stamp);
            Verdict::Commit(Box::new(if before == end {
                accepted.settling(holder.clone(), true)
            } else {
                accepted.with_lease(lease.clone())
            }))
        }
        Intent::Release { holder } => match own_lease(position, holder, false) {
            Ok(lease) => {
                let offset = position.committed.unwrap_or(lease.end);
                Verdict::Commit(Box::new(Mark::next(mark, offset, stamp).settling(holder.clone(), false)))
            }
            Err(verdict) => verdict,
        },
        Intent::Renew { holder, lease_ms } => match own_lease(position, holder, true) {
            Ok(lease) => {
                let renewed = Lease { until: stamp.now.saturating_add(*lease_ms), ..lease.clone() };
                let offset = position.committed.unwrap_or(lease.end);
                Verdict::Commit(Box::new(Mark::next(mark, offset, stamp).with_lease(renewed)))
            }
            Err(Verdict::Already) => Verdict::LeaseLost,
            Err(verdict) => verdict,
        },
        Intent::Seek { to } => Verdict::Commit(Box::new(Mark::next(mark, *to, stamp).anew())),
    }
}

/// Why records may not be handed out, if they may not.
fn not_free(position: &Position, seen: Option<i64>, stamp: Stamp) -> Option<Verdict> {
    if position.committed != seen {
        return Some(Verdict::Moved);
    }
    position.live_lease(stamp.now).map(|_| Verdict::Leased)
}

/// The lease of this holder. It counts for as long as nobody else has taken the records, expired or not. `Already`, if
/// it was settled in that way before.
fn own_lease<'a>(position: &'a Position, holder: &Holder, accepting: bool) -> Result<&'a Lease, Verdict> {
    let mark = position.mark.as_ref().ok_or(Verdict::LeaseLost)?;
    if let Some(lease) = mark.lease.as_ref().filter(|lease| lease.holder.token == holder.token) {
        return if lease.holder == *holder { Ok(lease) } else { Err(Verdict::NotTheirs) };
    }
    match mark.settled(&holder.token) {
        Some(settled) if settled.holder != *holder => Err(Verdict::NotTheirs),
        Some(settled) if settled.accepted == accepting => Err(Verdict::Already),
        _ => Err(Verdict::LeaseLost),
    }
}

#[cfg(test)]
mod tests {
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

    fn lease(seen: Option<i64>, from: i64, next: i64, name: &str) -> Intent {
        Intent::Lease { seen, from, next, lease_ms: LEASE_MS, holder: holder(name) }
    }

    fn accept(name: &str, before: Option<i64>) -> Intent {
        Intent::Accept { holder: holder(name), before }
    }

    #[test]
    fn a_live_lease_keeps_everybody_else_away_and_an_expired_one_nobody() {
        let leased = after(&Position::default(), &lease(None, 3, 10, "a"), 0);
        assert_eq!(leased.committed, Some(3), "leased records are not committed");
        let take = Intent::Take { seen: Some(3), next: 5 };
        for now in [1, LEASE_MS, LEASE_MS + CLOCK_SKEW_MS - 1] {
            assert_eq!(decide(&leased, &take, at(now)), Verdict::Leased, "{now}");
            assert_eq!(decide(&leased, &lease(Some(3), 3, 5, "b"), at(now)), Verdict::Leased);
        }
        let expired = LEASE_MS + CLOCK_SKEW_MS;
        let again = after(&leased, &lease(Some(3), 3, 5, "b"), expired);
        let mark = again.mark.as_ref().expect("a mark");
        assert_eq!((mark.deliveries(3), mark.deliveries(4), mark.deliveries(5), mark.deliveries(10)), (2, 2, 1, 0));
        assert_eq!(decide(&again, &accept("a", None), at(expired)), Verdict::LeaseLost);
        assert_eq!(after(&leased, &take, expired).committed, Some(5));
    }

    #[test]
    fn an_expired_lease_may_be_settled_as_long_as_nobody_took_it() {
        let leased = after(&Position::default(), &lease(None, 0, 10, "a"), 0);
        assert_eq!(after(&leased, &accept("a", None), 10 * LEASE_MS).committed, Some(10));
    }

    #[test]
    fn accepting_in_parts_and_again() {
        let leased = after(&Position::default(), &lease(None, 0, 10, "a"), 0);
        let part = after(&leased, &accept("a", Some(4)), 1);
        assert_eq!(part.committed, Some(4));
        assert_eq!(
            decide(&part, &Intent::Take { seen: Some(4), next: 5 }, at(2)),
            Verdict::Leased,
            "the rest is leased"
        );
        assert_eq!(decide(&part, &accept("a", Some(4)), at(2)), Verdict::Already);
        assert_eq!(decide(&part, &accept("a", Some(2)), at(2)), Verdict::Already);
        assert_eq!(decide(&part, &accept("a", Some(11)), at(2)), Verdict::BeyondLease);
        let whole = after(&part, &accept("a", None), 3);
        assert_eq!(whole.committed, Some(10));
        assert_eq!(decide(&whole, &accept("a", None), at(4)), Verdict::Already);
        let next = after(&whole, &lease(Some(10), 10, 12, "b"), 5);
        assert_eq!(decide(&next, &accept("a", None), at(6)), Verdict::Already, "also when others have followed");
        assert_eq!(decide(&whole, &Intent::Release { holder: holder("a") }, at(4)), Verdict::LeaseLost);
    }

    #[test]
    fn releasing_gives_back_at_once_and_counts() {
        let leased = after(&Position::default(), &lease(None, 0, 10, "a"), 0);
        let release = Intent::Release { holder: holder("a") };
        let free = after(&leased, &release, 1);
        assert_eq!(free.committed, Some(0));
        assert_eq!(decide(&free, &release, at(2)), Verdict::Already);
        assert_eq!(decide(&free, &accept("a", None), at(2)), Verdict::LeaseLost);
        let again = after(&free, &lease(Some(0), 0, 10, "b"), 2);
        assert_eq!(again.mark.expect("a mark").deliveries(9), 2);
    }

    #[test]
    fn renewing_extends_and_keeping_changes_nothing() {
        let leased = after(&Position::default(), &lease(None, 0, 10, "a"), 0);
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
        let settled = after(&renewed, &accept("a", None), 20);
        let renew = Intent::Renew { holder: holder("a"), lease_ms: 1000 };
        assert_eq!(decide(&settled, &renew, at(21)), Verdict::LeaseLost);
    }

    #[test]
    fn a_seek_ends_the_lease_and_begins_to_count_anew() {
        let leased = after(&Position::default(), &lease(None, 0, 10, "a"), 0);
        let part = after(&leased, &accept("a", Some(4)), 1);
        for to in [0, 4, 7, 10, 50] {
            let sought = after(&part, &Intent::Seek { to }, 2);
            let mark = sought.mark.as_ref().expect("a mark");
            assert_eq!((sought.committed, &mark.lease), (Some(to), &None));
            assert!((0..60).all(|offset| mark.deliveries(offset) == 0), "delivered anew");
            assert!(mark.includes(1) && mark.includes(2), "who lost an answer before still learns how it ended");
            for intent in [accept("a", None), accept("a", Some(6)), Intent::Release { holder: holder("a") }] {
                assert_eq!(decide(&sought, &intent, at(3)), Verdict::LeaseLost, "{intent:?} after a seek to {to}");
            }
            let again = after(&sought, &lease(Some(to), to, to + 1, "b"), 3);
            assert_eq!(again.mark.expect("a mark").deliveries(to), 1);
        }
        let settled = after(&part, &accept("a", None), 2);
        let sought = after(&settled, &Intent::Seek { to: 0 }, 3);
        assert_eq!(decide(&sought, &accept("a", None), at(4)), Verdict::Already, "it was accepted, and is so for ever");
        assert_eq!(after(&Position::default(), &Intent::Seek { to: 5 }, 1).committed, Some(5), "of a new group too");
    }

    #[test]
    fn a_token_is_its_principal_s() {
        let leased = after(&Position::default(), &lease(None, 0, 10, "a"), 0);
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
        let leased = after(&Position::default(), &lease(None, 5, 10, "a"), 0);
        let metadata = leased.mark.as_ref().expect("a mark").to_metadata();
        for (offset, metadata) in [(2, ""), (2, metadata.as_str()), (5, "")] {
            let reset = Position::read(Some(offset), metadata).expect("readable");
            assert_eq!(decide(&reset, &accept("a", None), at(1)), Verdict::LeaseLost);
            let take = Intent::Take { seen: Some(offset), next: offset + 1 };
            assert!(matches!(decide(&reset, &take, at(1)), Verdict::Commit(_)));
        }
    }

    #[test]
    fn nothing_is_based_on_a_position_that_has_moved() {
        let position = Position { committed: Some(7), mark: None };
        for seen in [None, Some(6), Some(8)] {
            assert_eq!(decide(&position, &Intent::Take { seen, next: 9 }, at(1)), Verdict::Moved);
            assert_eq!(decide(&position, &lease(seen, 7, 9, "a"), at(1)), Verdict::Moved);
            assert_eq!(decide(&position, &Intent::Keep { seen, from: 7, renewal: false }, at(1)), Verdict::Moved);
        }
    }
}
