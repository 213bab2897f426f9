//! How long a call may take.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::errors::{Code, Error};

/// Kept back from the invocation's own deadline, so that the answer still leaves before Lambda ends the call.
const MARGIN: Duration = Duration::from_millis(300);

/// The function's timeout: what counts where an emulator announces a deadline in the past.
pub(crate) const FUNCTION_TIMEOUT: Duration = Duration::from_secs(29);

/// The point in time by which a call has its answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    /// Where the invocation ends; nothing moves a deadline past it.
    limit: Instant,
}

impl Deadline {
    /// From the invocation's deadline (milliseconds since 1970) and the configured ceiling; the sooner counts.
    ///
    /// `cargo lambda watch` sends a deadline that lies in 1970. One in the past says nothing, since a call that is
    /// really late was already ended by Lambda: then the ceiling alone counts.
    pub fn of_invocation(invocation_deadline_ms: u64, ceiling: Duration) -> Self {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_millis(invocation_deadline_ms).saturating_sub(now_ms);
        let now = Instant::now();
        let limit = now + if left.is_zero() { FUNCTION_TIMEOUT } else { left }.saturating_sub(MARGIN);
        Self { at: limit.min(now + ceiling), limit }
    }

    /// The same deadline, later by a time that the caller asked to wait, but never past the invocation's end.
    #[must_use]
    pub fn extended(self, by: Duration) -> Self {
        Self { at: self.limit.min(self.at + by), limit: self.limit }
    }

    /// The same deadline, but no later than `after` from now.
    #[must_use]
    pub fn within(self, after: Duration) -> Self {
        Self { at: self.at.min(Instant::now() + after), limit: self.limit }
    }

    /// The point in time.
    pub fn instant(self) -> Instant {
        self.at
    }

    /// The time left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The time left, or `504 deadline_exceeded` when there is none.
    pub fn require(self) -> Result<Duration, Error> {
        let left = self.left();
        if left.is_zero() { Err(Self::exceeded()) } else { Ok(left) }
    }

    /// `504 deadline_exceeded`.
    pub fn exceeded() -> Error {
        Error::new(Code::DeadlineExceeded, "The time for this call ran out")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_in_the_past_says_nothing() {
        let ceiling = Duration::from_secs(10);
        let local = Deadline::of_invocation(600_000, ceiling).left();
        assert!(local > Duration::from_secs(9) && local <= ceiling);
    }

    #[test]
    fn the_invocation_s_deadline_counts_when_it_is_sooner() {
        let soon = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + Duration::from_secs(3);
        let left =
            Deadline::of_invocation(u64::try_from(soon.as_millis()).expect("fits"), Duration::from_secs(10)).left();
        assert!(left + MARGIN <= Duration::from_secs(3) && left > Duration::from_secs(2));
        let late = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + Duration::from_millis(100);
        let left = Deadline::of_invocation(u64::try_from(late.as_millis()).expect("fits"), Duration::from_secs(10));
        assert_eq!(left.require().expect_err("no time").code(), Code::DeadlineExceeded);
    }
}
