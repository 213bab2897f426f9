//! What a step may do to a position: the whole of it, as a pure function.
//!
//! A step is decided twice: by what it intends, and by the position as it is read, stable, under the claim, just before
//! the commit. Nothing else moves a position. The model in `tests` explores every interleaving of steps through this very
//! function.

use super::position::{Holder, Lease, Mark, Position, Stamp};
use super::ranges::Ranges;

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
        /// Where the records begin; other than `seen`, where there was no position, or none within the log.
        from: i64,
        /// The offset after the last record.
        next: i64,
        /// The settled records from there on, as they were seen: these were left out.
        without: Ranges,
    },
    /// Hand out all records up to `next`, under a lease (`ack=manual`).
    Lease {
        /// The committed offset that the records were read from.
        seen: Option<i64>,
        /// Where the records begin; other than `seen`, where there was no position, or none within the log.
        from: i64,
        /// The last record.
        last: i64,
        /// The offset of the record after the last, or where the fetch ended: markers of transactions lie between.
        next: i64,
        /// The settled records from there on, as they were seen: these were left out.
        without: Ranges,
        /// How often the records were delivered before, as it was seen: that is what the answer says, and whether the
        /// first one is a suspect.
        delivered: Vec<(i64, u32)>,
        /// The record, if there is only one.
        alone: Option<i64>,
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
    /// Settle records of a lease with a dead letter each.
    Reject {
        /// Who holds it.
        holder: Holder,
        /// Their offsets, in order; all of the lease, if absent.
        records: Option<Vec<i64>>,
        /// The offsets of all records that are there, from the position seen before to the lease's end, in order. What is
        /// not among them is gone, or was never a record.
        there: Vec<i64>,
        /// Why, in the holder's words.
        reason: String,
    },
    /// Settle the first record from the position on with a dead letter, if it was delivered in vain for too often.
    Bury {
        /// The committed offset that the record was found from.
        seen: Option<i64>,
        /// Its offset.
        record: i64,
        /// How often a record may be delivered.
        most: u32,
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
    /// Commit this mark, at its offset, and write the dead letters of the records at these offsets: both, or neither.
    Bury(Box<Mark>, Vec<i64>),
    /// The step was done before; nothing is to be committed.
    Already,
    /// The position is not the one that was seen.
    Moved,
    /// Somebody holds a live lease.
    Leased,
    /// Nothing is left of the lease: its records were accepted or rejected.
    Settled,
    /// The lease is not, or no longer, this token's.
    LeaseLost,
    /// The token is another principal's.
    NotTheirs,
    /// What is asked for is not, or no longer, part of the lease.
    BeyondLease,
    /// The settled records lie in more ranges than a mark can hold.
    TooScattered,
}

/// Whether a record may be what makes its consumers fail, after so many deliveries of `most`: then it is delivered alone,
/// so that it is known to be the one, and its neighbours are not given up with it.
pub fn is_suspect(deliveries: u32, most: u32) -> bool {
    let next = deliveries.saturating_add(1);
    next >= most || deliveries.saturating_mul(2) >= most
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
        Intent::Take { seen, from, next, without } => {
            if let Some(refused) = not_free(position, *seen, stamp).or_else(|| unlike(position, *from, without)) {
                return refused;
            }
            Verdict::Commit(Box::new(Mark::next(mark, *from, stamp).passing(*next)))
        }
        Intent::Lease { seen, from, last, next, without, delivered, alone, lease_ms, holder } => {
            if let Some(refused) = not_free(position, *seen, stamp).or_else(|| unlike(position, *from, without)) {
                return refused;
            }
            if position.delivered(*from) != *delivered {
                return Verdict::Moved;
            }
            let until = stamp.now.saturating_add(*lease_ms);
            let lease = Lease { last: Some(*last), end: *next, until, holder: holder.clone() };
            let mark = Mark::next(mark, *from, stamp).delivering(*next, *alone).with_lease(lease);
            Verdict::Commit(Box::new(mark))
        }
        Intent::Bury { seen, record, most } => {
            if let Some(refused) = not_free(position, *seen, stamp) {
                return refused;
            }
            // Settled or delivered meanwhile, by somebody who left the position where it was.
            if !position.known(*record).is_some_and(|mark| !mark.is_done(*record) && mark.is_hopeless(*record, *most)) {
                return Verdict::Moved;
            }
            let buried = Mark::next(mark, position.committed.unwrap_or(*record), stamp).passing(*record + 1);
            Verdict::Bury(Box::new(buried), vec![*record])
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
            let lease = match own_lease(position, holder) {
                Ok(lease) => lease,
                Err(Over::Settled) => return Verdict::Already,
                Err(Over::Theirs) => return Verdict::NotTheirs,
                Err(Over::Released | Over::Lost) => {
                    let reached = |before| mark.is_some_and(|mark| mark.reached(holder, before));
                    return if before.is_some_and(reached) { Verdict::Already } else { Verdict::LeaseLost };
                }
            };
            let (offset, end) = (position.committed.unwrap_or(lease.end), lease.end);
            let before = before.unwrap_or(end);
            if before > end {
                return Verdict::BeyondLease;
            }
            // With its last record all of it: behind that one nobody could accept anything, and the lease would never end.
            let before = if lease.last.is_some_and(|last| before > last) { end } else { before };
            if before <= offset {
                return Verdict::Already;
            }
            let accepted = Mark::next(mark, offset, stamp).passing(before);
            let accepted = if before < end { accepted.accepting(holder.clone()) } else { accepted };
            Verdict::Commit(Box::new(going_on(accepted, lease)))
        }
        Intent::Reject { holder, records, there, .. } => reject(position, holder, records.as_deref(), there, stamp),
        Intent::Release { holder } => match own_lease(position, holder) {
            Ok(lease) => {
                let offset = position.committed.unwrap_or(lease.end);
                Verdict::Commit(Box::new(Mark::next(mark, offset, stamp).settling(holder.clone(), false)))
            }
            Err(Over::Released) => Verdict::Already,
            Err(over) => over.verdict(),
        },
        Intent::Renew { holder, lease_ms } => match own_lease(position, holder) {
            Ok(lease) => {
                // Never earlier than it would have ended: where this answer is lost, its holder counts on that.
                let renewed = Lease { until: stamp.now.saturating_add(*lease_ms).max(lease.until), ..lease.clone() };
                let offset = position.committed.unwrap_or(lease.end);
                Verdict::Commit(Box::new(Mark::next(mark, offset, stamp).with_lease(renewed)))
            }
            Err(over) => over.verdict(),
        },
        Intent::Seek { to } => Verdict::Commit(Box::new(Mark::anew(mark, *to, stamp))),
    }
}

/// The same mark, with what is left of a lease; or with that settled, if nothing is left.
fn going_on(mark: Mark, lease: &Lease) -> Mark {
    if mark.offset >= lease.end { mark.settling(lease.holder.clone(), true) } else { mark.with_lease(lease.clone()) }
}

/// Settles `records` of a lease, of which those are written as dead letters that are `there`.
fn reject(position: &Position, holder: &Holder, records: Option<&[i64]>, there: &[i64], stamp: Stamp) -> Verdict {
    let reject = holder.rejection(records);
    if position.mark.as_ref().is_some_and(|mark| mark.remembers(&reject)) {
        return Verdict::Already;
    }
    let lease = match own_lease(position, holder) {
        Ok(lease) => lease,
        // Settled otherwise: there will be no letter.
        Err(Over::Settled) => return Verdict::LeaseLost,
        Err(over) => return over.verdict(),
    };
    let leased = position.committed.unwrap_or(lease.end)..lease.end;
    let is_done = |offset: &i64| position.mark.as_ref().is_some_and(|mark| mark.is_done(*offset));
    let (ranges, letters) = match records {
        None => {
            let letters = there.iter().filter(|offset| leased.contains(offset) && !is_done(offset)).copied().collect();
            (vec![(leased.start, leased.end)], letters)
        }
        Some(records) if !records.iter().all(|record| leased.contains(record)) => return Verdict::BeyondLease,
        Some(records) => {
            let wanted: Vec<i64> = records.iter().filter(|offset| !is_done(offset)).copied().collect();
            if wanted.is_empty() {
                return Verdict::Already;
            }
            // With the offsets around it that have no record: nobody could settle those, and the lease would never end.
            let around = |record: i64| {
                let (before, after) = there.split_at(there.partition_point(|offset| *offset < record));
                let next = after.iter().find(|offset| **offset > record);
                (before.last().map_or(leased.start, |last| last + 1), next.map_or(leased.end, |next| *next))
            };
            let ranges = wanted.iter().map(|record| around(*record)).collect();
            (ranges, wanted.into_iter().filter(|offset| there.binary_search(offset).is_ok()).collect())
        }
    };
    match Mark::next(position.mark.as_ref(), leased.start, stamp).rejecting(&ranges, reject) {
        Some(mark) => Verdict::Bury(Box::new(going_on(mark, lease)), letters),
        None => Verdict::TooScattered,
    }
}

/// `Moved`, where other records are settled than those that were left out.
fn unlike(position: &Position, from: i64, without: &Ranges) -> Option<Verdict> {
    (position.done(from) != *without).then_some(Verdict::Moved)
}

/// Why records may not be handed out, if they may not.
fn not_free(position: &Position, seen: Option<i64>, stamp: Stamp) -> Option<Verdict> {
    if position.committed != seen {
        return Some(Verdict::Moved);
    }
    position.live_lease(stamp.now).map(|_| Verdict::Leased)
}

/// Why a holder has no lease.
enum Over {
    /// Its records were accepted or rejected, all of them.
    Settled,
    /// It was released.
    Released,
    /// Others have the records, or the position was set.
    Lost,
    /// It is another principal's.
    Theirs,
}

impl Over {
    fn verdict(self) -> Verdict {
        match self {
            Self::Settled => Verdict::Settled,
            Self::Released | Self::Lost => Verdict::LeaseLost,
            Self::Theirs => Verdict::NotTheirs,
        }
    }
}

/// The lease of this holder. It counts for as long as nobody else has taken the records, expired or not.
fn own_lease<'a>(position: &'a Position, holder: &Holder) -> Result<&'a Lease, Over> {
    let mark = position.mark.as_ref().ok_or(Over::Lost)?;
    if mark.holder(&holder.token).is_some_and(|known| known != holder) {
        return Err(Over::Theirs);
    }
    if let Some(lease) = mark.lease.as_ref().filter(|lease| lease.holder == *holder) {
        return Ok(lease);
    }
    Err(match mark.settled(&holder.token) {
        Some(settled) if settled.accepted => Over::Settled,
        Some(_) => Over::Released,
        None => Over::Lost,
    })
}

#[cfg(test)]
mod tests;
