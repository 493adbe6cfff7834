//! Whether a failed request goes to another worker. Pure: `now` is an argument.
//!
//! Only what no worker acted on is sent again, at most once after bytes were sent, and within a
//! budget, so that a fault of all workers does not double their load.

use std::time::Instant;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: the request was not sent.
    Unreachable,
    /// The worker said by GOAWAY or REFUSED_STREAM that it did not look at the request.
    NotProcessed,
    /// The worker answered 503 or UNAVAILABLE before anything else: it loads or it is ending.
    Unavailable,
    /// The connection broke while the worker had the request.
    Broken,
}

/// What was tried so far.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// Attempts after bytes of the request went out.
    pub sent: u32,
    /// Whether the request can be sent again from its first byte.
    pub replayable: bool,
}

/// Whether the request may be sent again, the budget apart.
///
/// | failure | sent once before | body can be replayed | again |
/// |---|---|---|---|
/// | Unreachable | - | - | yes |
/// | NotProcessed | no | yes | yes |
/// | Unavailable | no | yes | yes |
/// | Broken | - | - | no: the worker may have acted |
/// | any but Unreachable | yes, or the body cannot be replayed | | no |
pub fn may_retry(failure: Failure, tried: Tried) -> bool {
    match failure {
        // The worker is marked and not chosen again, so this ends.
        Failure::Unreachable => true,
        Failure::NotProcessed | Failure::Unavailable => tried.replayable && tried.sent <= 1,
        Failure::Broken => false,
    }
}

/// Retries that may be made: a share of the requests, and a few for models with little traffic.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    tokens: f64,
    filled: Option<Instant>,
}

/// Retries for each request. Linkerd's default.
const SHARE: f64 = 0.2;
/// Retries per second that are always allowed. Linkerd's default.
const LEAST: f64 = 10.0;
/// What may be saved up.
const MOST: f64 = 100.0;

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: LEAST, filled: None }
    }
}

impl Budget {
    /// Counts `requests` that came.
    pub fn earn(&mut self, requests: u32) {
        self.tokens = (self.tokens + SHARE * f64::from(requests)).min(MOST);
    }

    /// Takes one retry, if there is one.
    pub fn spend(&mut self, now: Instant) -> bool {
        let since = self.filled.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.filled = Some(now);
        self.tokens = (self.tokens + since * LEAST).min(MOST);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_no_worker_acted_on_is_sent_again() {
        let tried = |sent, replayable| Tried { sent, replayable };
        let rows = [
            (Failure::Unreachable, tried(0, true), true),
            (Failure::Unreachable, tried(1, false), true),
            (Failure::NotProcessed, tried(1, true), true),
            (Failure::NotProcessed, tried(1, false), false),
            (Failure::NotProcessed, tried(2, true), false),
            (Failure::Unavailable, tried(1, true), true),
            (Failure::Unavailable, tried(1, false), false),
            (Failure::Unavailable, tried(2, true), false),
            (Failure::Broken, tried(1, true), false),
        ];
        for (failure, tried, wanted) in rows {
            assert_eq!(may_retry(failure, tried), wanted, "{failure:?} {tried:?}");
        }
    }

    #[test]
    fn retries_are_at_most_a_fifth_of_the_requests_beyond_ten_a_second() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let spent = (0..1000).filter(|_| budget.spend(start)).count();
        assert_eq!(spent, 10);
        budget.earn(50);
        assert_eq!((0..1000).filter(|_| budget.spend(start)).count(), 10);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| budget.spend(later)).count(), 10);
        budget.earn(1_000_000);
        assert_eq!((0..1000).filter(|_| budget.spend(later)).count(), 100, "savings are bounded");
    }
}
