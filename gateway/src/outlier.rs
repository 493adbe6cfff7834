//! Which workers get no requests for a while because they fail where others do not. Pure: `now` is
//! an argument.
//!
//! Envoy's two rules: failures in a row, and a success rate far below the others'. The time grows
//! with each ejection, and never more than half of the workers are out.

use std::time::{Duration, Instant};

/// Failures in a row that eject. Envoy's default.
const CONSECUTIVE: u32 = 5;
/// The time of the first ejection; the n-th takes n times as long.
const BASE: Duration = Duration::from_secs(5);
/// The longest ejection.
const LONGEST: Duration = Duration::from_secs(60);
/// Answers of one window below which a success rate says nothing.
const ENOUGH: u32 = 50;
/// Workers with [`ENOUGH`] answers below which there is nobody to compare with.
const PEERS: usize = 3;
/// Standard deviations below the mean that eject. Envoy's default.
const DEVIATIONS: f64 = 1.9;
/// The time over which success rates are compared.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How one worker has been doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    consecutive: u32,
    ejections: u32,
    until: Option<Instant>,
    good: u32,
    bad: u32,
}

impl Health {
    /// Takes in one answer; whether the worker should be ejected for failures in a row.
    pub fn record(&mut self, success: bool) -> bool {
        if success {
            self.consecutive = 0;
            self.good = self.good.saturating_add(1);
        } else {
            self.consecutive = self.consecutive.saturating_add(1);
            self.bad = self.bad.saturating_add(1);
        }
        self.consecutive >= CONSECUTIVE
    }

    /// Puts the worker out at `now`; returns for how long.
    pub fn eject(&mut self, now: Instant) -> Duration {
        self.consecutive = 0;
        self.ejections = self.ejections.saturating_add(1);
        let time = BASE.saturating_mul(self.ejections).min(LONGEST);
        self.until = Some(now + time);
        time
    }

    /// Whether the worker is out.
    pub fn ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Ends a window: the share of good answers if there were enough. A window without any failure
    /// takes one ejection back.
    pub fn window(&mut self) -> Option<f64> {
        let (good, bad) = (self.good, self.bad);
        (self.good, self.bad) = (0, 0);
        if bad == 0 && good > 0 {
            self.ejections = self.ejections.saturating_sub(1);
        }
        let all = good.saturating_add(bad);
        (all >= ENOUGH).then(|| f64::from(good) / f64::from(all))
    }
}

/// Whether one more of `total` workers may be out when `ejected` are.
pub fn may_eject(ejected: usize, total: usize) -> bool {
    ejected.saturating_add(1).saturating_mul(2) <= total
}

/// The success rate below which a worker is ejected, given the `rates` of all that had enough
/// answers; nothing when those are too few to compare.
pub fn threshold(rates: &[f64]) -> Option<f64> {
    if rates.len() < PEERS {
        return None;
    }
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    Some(mean - DEVIATIONS * variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_forgives() {
        let mut health = Health::default();
        for _ in 0..4 {
            assert!(!health.record(false));
        }
        health.record(true);
        for _ in 0..4 {
            assert!(!health.record(false));
        }
        assert!(health.record(false));
    }

    #[test]
    fn every_ejection_is_longer_up_to_a_minute_and_calm_shortens_it() {
        let now = Instant::now();
        let mut health = Health::default();
        let times: Vec<u64> = (0..14).map(|_| health.eject(now).as_secs()).collect();
        assert_eq!(times, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60, 60]);
        assert!(health.ejected(now + Duration::from_secs(59)));
        assert!(!health.ejected(now + Duration::from_secs(60)), "it comes back");
        let mut once = Health::default();
        once.eject(now);
        once.record(true);
        once.window();
        assert_eq!(once.eject(now).as_secs(), 5);
    }

    #[test]
    fn at_most_half_are_out_and_never_the_only_one() {
        let rows = [(0, 1, false), (0, 2, true), (1, 2, false), (1, 3, false), (1, 4, true)];
        for (ejected, total, wanted) in rows {
            assert_eq!(may_eject(ejected, total), wanted, "{ejected} of {total}");
        }
    }

    #[test]
    fn a_rate_far_below_the_others_is_seen_and_common_failures_are_not() {
        let rates = [1.0, 1.0, 0.99, 1.0, 1.0, 0.5];
        let limit = threshold(&rates).unwrap_or_default();
        assert_eq!(rates.iter().filter(|rate| **rate < limit).count(), 1);
        // Everybody fails: the cause is elsewhere.
        let limit = threshold(&[0.5, 0.5, 0.5, 0.5]).unwrap_or_default();
        assert!(limit <= 0.5);
        assert_eq!(threshold(&[1.0, 0.0]), None);
    }

    #[test]
    fn few_answers_say_nothing() {
        let mut health = Health::default();
        for _ in 0..49 {
            health.record(false);
        }
        assert_eq!(health.window(), None);
        for n in 0..50 {
            health.record(n % 2 == 0);
        }
        assert_eq!(health.window(), Some(0.5));
    }
}
