//! The exact capacity of pods, by simulating them alone: what the oracle and a peer are given.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::chance::Chance;
use crate::pods::{Profile, SHARE};

/// Requests of one simulation; the first eighth is left out.
const REQUESTS: usize = 16_000;
/// Numbers of pods that are simulated; between them capacity is interpolated.
const POINTS: [u32; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
/// The largest number of pods anybody may order.
pub const MOST: u32 = 64;

/// Requests per second that each of `n` pods takes with 95 % within the target.
#[derive(Clone, Debug)]
pub struct Exact {
    per_pod: Vec<(u32, f64)>,
    bound: f64,
}

impl Exact {
    /// Measures `profile`.
    pub fn measure(profile: &Profile) -> Self {
        let capacity = |pods: &u32| (*pods, bisect(profile, *pods));
        Self { per_pod: POINTS.iter().map(capacity).collect(), bound: f64::INFINITY }
    }

    /// The same, but with no pod above `share` of its maximum.
    pub fn at_most(&self, profile: &Profile, share: f64) -> Self {
        Self { bound: share * profile.most(), ..self.clone() }
    }

    fn per_pod(&self, pods: u32) -> f64 {
        let after = self.per_pod.iter().find(|(n, _)| *n >= pods);
        let before = self.per_pod.iter().rev().find(|(n, _)| *n <= pods);
        let value = match (before, after) {
            (Some((a, low)), Some((b, high))) if b > a => {
                low + (high - low) * f64::from(pods - a) / f64::from(b - a)
            }
            (Some((_, value)), _) | (None, Some((_, value))) => *value,
            (None, None) => 0.0,
        };
        value.min(self.bound)
    }

    /// The least number of pods for `rate` requests per second.
    pub fn need(&self, rate: f64) -> u32 {
        (1..MOST).find(|pods| f64::from(*pods) * self.per_pod(*pods) >= rate).unwrap_or(MOST)
    }
}

fn bisect(profile: &Profile, pods: u32) -> f64 {
    let (mut low, mut high) = (0.02 * profile.most(), profile.most());
    for _ in 0..9 {
        let middle = 0.5 * (low + high);
        if percentile(profile, pods as usize, middle) <= profile.target {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// The 95th percentile of latency of `pods` at `rate` each, the less loaded of two taken.
pub fn percentile(profile: &Profile, pods: usize, rate: f64) -> f64 {
    let mut chance = Chance::new(5);
    let all = rate * pods as f64;
    let mut queues: Vec<VecDeque<(f64, usize)>> = vec![VecDeque::new(); pods];
    let mut running: Vec<Vec<(f64, usize)>> = vec![Vec::new(); pods];
    let mut ends: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut latencies = Vec::with_capacity(REQUESTS);
    let mut next = chance.exponential() / all;
    let (mut came, mut inside) = (0, 0_usize);
    while came < REQUESTS || !ends.is_empty() {
        let end = ends.peek().map(|Reverse((at, _))| f64::from_bits(*at));
        let (now, pod) = if came < REQUESTS && end.is_none_or(|end| next <= end) {
            let load = |pod: usize| {
                queues.get(pod).map_or(0, VecDeque::len) + running.get(pod).map_or(0, Vec::len)
            };
            let (one, two) = (chance.below(pods), chance.below(pods));
            let pod = if load(two) < load(one) { two } else { one };
            if let Some(queue) = queues.get_mut(pod) {
                queue.push_back((next, came));
            }
            let now = next;
            came += 1;
            inside += 1;
            if inside > pods * profile.batch * 60 {
                return f64::INFINITY;
            }
            next = now + chance.exponential() / all;
            (now, pod)
        } else {
            let Some(Reverse((at, pod))) = ends.pop() else { break };
            let now = f64::from_bits(at);
            for (since, number) in running.get_mut(pod).map(std::mem::take).unwrap_or_default() {
                inside -= 1;
                if number >= REQUESTS / 8 {
                    latencies.push(now - since);
                }
            }
            (now, pod)
        };
        let (Some(queue), Some(batch)) = (queues.get_mut(pod), running.get_mut(pod)) else { break };
        if batch.is_empty() && !queue.is_empty() {
            batch.extend(queue.drain(..queue.len().min(profile.batch)));
            let noise = (1.0 + profile.scatter * chance.normal()).max(0.2);
            ends.push(Reverse(((now + profile.seconds(batch.len()) * noise).to_bits(), pod)));
        }
    }
    latencies.sort_unstable_by(f64::total_cmp);
    let rank = (SHARE * latencies.len() as f64) as usize;
    latencies.get(rank.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
