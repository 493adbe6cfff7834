//! Which worker gets a request: the cheaper of two random ones. Pure: time and randomness are
//! arguments.
//!
//! Two choices bring the longest queue from log n / log log n down to log log n (Mitzenmacher 2001)
//! without the herd that follows a single least-loaded one. The cost is Finagle's peak EWMA: a slow
//! answer counts at once, fast ones bring the average down slowly.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// How fast a measured latency is forgotten: after this long 37 % of it are left. Linkerd's default.
const DECAY: Duration = Duration::from_secs(10);

/// The peak-sensitive moving average of a worker's latency.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    seconds: f64,
    seen: Option<Instant>,
}

impl Latency {
    /// Takes in an answer that took `took` and ended at `now`.
    pub fn observe(&mut self, took: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let before = self.estimate(now).unwrap_or(0.0);
        let kept = self.kept(now);
        // A peak counts at once.
        self.seconds = if took > before { took } else { before + (1.0 - kept) * (took - before) };
        self.seen = Some(now);
    }

    /// The average in seconds as of `now`; nothing before the first answer. Silence lowers it, so
    /// that a worker that was slow is tried again.
    pub fn estimate(&self, now: Instant) -> Option<f64> {
        self.seen.map(|_| self.seconds * self.kept(now))
    }

    fn kept(&self, now: Instant) -> f64 {
        let silent = self.seen.map_or(Duration::MAX, |seen| now.saturating_duration_since(seen));
        (-silent.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// What a request would find at a worker.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests under way there.
    pub in_flight: u32,
    /// Its average latency in seconds, once known.
    pub latency: Option<f64>,
}

/// Which of two workers is cheaper. One that never answered has no latency: then only the requests
/// under way are compared, or a new worker would take everything until its first answer.
pub fn cheaper(one: Load, other: Load) -> Ordering {
    match (one.latency, other.latency) {
        (Some(a), Some(b)) => {
            let cost = |load: Load, latency: f64| (f64::from(load.in_flight) + 1.0) * latency;
            cost(one, a).total_cmp(&cost(other, b))
        }
        _ => one.in_flight.cmp(&other.in_flight),
    }
}

/// Two different positions below `count`, drawn by `random`; twice the same when there is only one.
pub fn two(count: usize, random: u64) -> Option<(usize, usize)> {
    let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
    let first = random % count;
    let second = match count {
        1 => first,
        // Uniform among the others.
        _ => (first + 1 + (random >> 32) % (count - 1)) % count,
    };
    Some((usize::try_from(first).ok()?, usize::try_from(second).ok()?))
}

/// A position drawn by `random` in proportion to `weights`; nothing when all are 0.
pub fn weighted(weights: impl Iterator<Item = u32> + Clone, random: u64) -> Option<usize> {
    let sum: u64 = weights.clone().map(u64::from).sum();
    let mut left = random.checked_rem(sum)?;
    for (position, weight) in weights.enumerate() {
        match left.checked_sub(u64::from(weight)) {
            Some(rest) => left = rest,
            None => return Some(position),
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_slowly() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut latency = Latency::default();
        assert_eq!(latency.estimate(start), None);
        latency.observe(Duration::from_millis(10), start);
        latency.observe(Duration::from_millis(500), at(1));
        assert!((latency.estimate(at(1)).unwrap() - 0.5).abs() < 1e-9);
        latency.observe(Duration::from_millis(10), at(2));
        let after = latency.estimate(at(2)).unwrap();
        assert!(after > 0.3 && after < 0.5, "{after}");
        assert!(latency.estimate(at(60)).unwrap() < 0.01, "silence brings it back");
    }

    #[test]
    fn a_worker_that_never_answered_is_judged_by_its_queue_alone() {
        let load = |in_flight, latency| Load { in_flight, latency };
        let rows = [
            (load(0, Some(0.1)), load(0, Some(0.2)), Ordering::Less),
            (load(3, Some(0.1)), load(0, Some(0.2)), Ordering::Greater),
            (load(1, Some(0.1)), load(0, None), Ordering::Greater),
            (load(0, Some(9.0)), load(1, None), Ordering::Less),
            (load(2, None), load(2, None), Ordering::Equal),
        ];
        for (one, other, wanted) in rows {
            assert_eq!(cheaper(one, other), wanted, "{one:?} {other:?}");
        }
    }

    #[test]
    fn two_choices_differ_and_reach_every_pair_alike() {
        assert_eq!(two(0, 7), None);
        assert_eq!(two(1, 7), Some((0, 0)));
        let mut seen = std::collections::BTreeMap::<_, u32>::new();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..60_000 {
            let (one, other) = two(3, random.u64(..)).unwrap();
            assert_ne!(one, other);
            *seen.entry((one, other)).or_default() += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
    }

    #[test]
    fn two_choices_keep_the_longest_queue_near_the_mean() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut queues = [0_u32; 50];
        for _ in 0..5_000 {
            let (one, other) = two(queues.len(), random.u64(..)).unwrap();
            let load = |at: usize| Load { in_flight: queues[at], latency: Some(0.01) };
            let at = if cheaper(load(one), load(other)).is_gt() { other } else { one };
            queues[at] += 1;
        }
        // Random choice alone gives 125 and more.
        assert!(*queues.iter().max().unwrap() <= 104, "{queues:?}");
    }

    #[test]
    fn shares_follow_the_weights_and_zero_gets_nothing() {
        let weights = [90_u32, 10, 0];
        let mut counts = [0; 3];
        for random in 0..1000 {
            counts[weighted(weights.iter().copied(), random).unwrap()] += 1;
        }
        assert_eq!(counts, [900, 100, 0]);
        assert_eq!(weighted([0, 0].into_iter(), 5), None);
        assert_eq!(weighted(std::iter::empty(), 5), None);
    }
}
