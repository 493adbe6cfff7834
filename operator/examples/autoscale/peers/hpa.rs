//! Kubernetes' HorizontalPodAutoscaler, version 2, on three metrics: processor, mean latency per
//! pod, and KEDA's percentile from Prometheus. Sync 15 s, tolerance 0.1, up by at most the larger of
//! 100 % and four pods in 15 s, down by the largest recommendation of 300 s.

use std::collections::{BTreeMap, VecDeque};

use super::{BUCKETS, Controller, Pod, SHARE, Second, ceiling, push, within};

const SYNC: u64 = 15;
const TOLERANCE: f64 = 0.1;
const STABILISATION: f64 = 300.0;

/// What all three share.
struct Hpa {
    target: f64,
    recommendations: VecDeque<(f64, u32)>,
    ups: VecDeque<(f64, u32)>,
}

impl Hpa {
    fn new(target: f64) -> Self {
        Self { target, recommendations: VecDeque::new(), ups: VecDeque::new() }
    }

    /// The behaviour section: stabilisation and the limit of growth.
    fn behave(&mut self, now: f64, wanted: u32, ordered: u32) -> u32 {
        self.recommendations.push_back((now, wanted));
        self.recommendations.retain(|(when, _)| *when >= now - STABILISATION);
        let mut wanted = wanted;
        if wanted < ordered {
            let most = self.recommendations.iter().map(|(_, count)| *count).max();
            wanted = ordered.min(most.unwrap_or(ordered));
        }
        self.ups.retain(|(when, _)| *when > now - SYNC as f64);
        let added: u32 = self.ups.iter().map(|(_, count)| count).sum();
        let base = ordered.saturating_sub(added);
        if wanted > ordered {
            wanted = wanted.min((base + 4).max(base * 2));
        }
        let wanted = within(wanted);
        if wanted > ordered {
            self.ups.push_back((now, wanted - ordered));
        }
        wanted
    }

    /// `calcPlainMetricReplicas` of replica_calculator.go: pods without the metric count as zero
    /// where that would scale up, and the answer is dropped where they turn it round.
    fn ratio(&self, values: &[f64], second: &Second, ordered: u32) -> u32 {
        if values.is_empty() {
            return ordered;
        }
        let sum: f64 = values.iter().sum();
        let unready = second.total.saturating_sub(values.len() as u32);
        let usage = sum / values.len() as f64 / self.target;
        if unready == 0 || usage <= 1.0 {
            let keep = (1.0 - usage).abs() <= TOLERANCE;
            return if keep { ordered } else { ceiling(usage * values.len() as f64) };
        }
        let all = values.len() as f64 + f64::from(unready);
        let usage = sum / all / self.target;
        if (1.0 - usage).abs() <= TOLERANCE || usage < 1.0 { ordered } else { ceiling(usage * all) }
    }
}

/// Sums and counts per pod over the seconds of a window, of pods that are still there.
fn per_pod(
    window: &VecDeque<Second>,
    value: impl Fn(&super::super::pods::PodSecond) -> (f64, f64),
) -> Vec<(f64, f64)> {
    let mut sums: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for pod in window.iter().flat_map(|second| &second.pods).filter(|pod| !pod.leaving) {
        let (sum, count) = value(pod);
        let entry = sums.entry(pod.id).or_default();
        entry.0 += sum;
        entry.1 += count;
    }
    let live = |id: &u64| {
        let pods = window.back().map(|second| second.pods.as_slice()).unwrap_or_default();
        pods.iter().any(|pod| pod.id == *id && !pod.leaving)
    };
    sums.into_iter().filter(|(id, _)| live(id)).map(|(_, sums)| sums).collect()
}

/// On processor time; the metrics server samples 15 s, out of phase with the sync.
pub struct Cpu {
    hpa: Hpa,
    window: VecDeque<Second>,
    values: Option<Vec<f64>>,
}

impl Cpu {
    /// With a target utilisation.
    pub fn new(target: f64) -> Self {
        Self { hpa: Hpa::new(target), window: VecDeque::new(), values: None }
    }
}

impl Controller for Cpu {
    fn step(&mut self, second: &Second, _: &[Pod], ordered: u32) -> Option<u32> {
        push(&mut self.window, 15, second.clone());
        let time = second.end as u64;
        if time % SYNC == 7 {
            let sums = per_pod(&self.window, |pod| (pod.busy, 1.0));
            let seen = sums.into_iter().filter(|(_, count)| *count >= 8.0);
            self.values = Some(seen.map(|(sum, count)| sum / count).collect());
        }
        let values = self.values.as_ref().filter(|_| time.is_multiple_of(SYNC))?;
        let wanted = self.hpa.ratio(values, second, ordered);
        Some(self.hpa.behave(second.end, wanted, ordered))
    }
}

/// On the mean latency of each pod over a minute, scraped each 15 s.
pub struct MeanLatency {
    hpa: Hpa,
    window: VecDeque<Second>,
    values: Option<Vec<f64>>,
}

impl MeanLatency {
    /// With a target in seconds.
    pub fn new(target: f64) -> Self {
        Self { hpa: Hpa::new(target), window: VecDeque::new(), values: None }
    }
}

impl Controller for MeanLatency {
    fn step(&mut self, second: &Second, _: &[Pod], ordered: u32) -> Option<u32> {
        push(&mut self.window, 60, second.clone());
        let time = second.end as u64;
        if time % SYNC == 9 {
            let sums = per_pod(&self.window, |pod| (pod.latency, f64::from(pod.done)));
            let seen = sums.into_iter().filter(|(_, count)| *count > 0.0);
            self.values = Some(seen.map(|(sum, count)| sum / count).collect());
        }
        let values = self.values.as_ref().filter(|_| time.is_multiple_of(SYNC))?;
        let wanted = self.hpa.ratio(values, second, ordered);
        Some(self.hpa.behave(second.end, wanted, ordered))
    }
}

/// KEDA's Prometheus trigger with `metricType: Value` on
/// `histogram_quantile(0.95, sum(rate(bucket[1m])) by (le))`, scraped each 15 s.
pub struct Percentile {
    hpa: Hpa,
    window: VecDeque<[u32; 12]>,
    value: Option<f64>,
}

impl Percentile {
    /// With a target in seconds.
    pub fn new(target: f64) -> Self {
        Self { hpa: Hpa::new(target), window: VecDeque::new(), value: None }
    }
}

impl Controller for Percentile {
    fn step(&mut self, second: &Second, _: &[Pod], ordered: u32) -> Option<u32> {
        push(&mut self.window, 60, second.classic);
        let time = second.end as u64;
        if time % SYNC == 9 {
            let mut sums = [0_u32; 12];
            for (sum, count) in self.window.iter().flat_map(|classic| classic.iter().enumerate()) {
                if let Some(slot) = sums.get_mut(sum) {
                    *slot += count;
                }
            }
            self.value = quantile(&sums, SHARE);
        }
        if !time.is_multiple_of(SYNC) {
            return None;
        }
        let wanted = self.value.map_or(ordered, |value| {
            let usage = value / self.hpa.target;
            let keep = (1.0 - usage).abs() <= TOLERANCE;
            if keep { ordered } else { ceiling(usage * f64::from(second.ready.max(1))) }
        });
        Some(self.hpa.behave(second.end, wanted, ordered))
    }
}

/// `histogram_quantile` of Prometheus over the default buckets.
fn quantile(counts: &[u32; 12], q: f64) -> Option<f64> {
    let total: u32 = counts.iter().sum();
    let rank = q * f64::from(total);
    let (mut below, mut low) = (0.0, 0.0);
    for (count, high) in counts.iter().zip(BUCKETS.iter().chain(&[f64::INFINITY])) {
        let count = f64::from(*count);
        if count > 0.0 && below + count >= rank {
            return Some(if high.is_finite() {
                low + (high - low) * (rank - below) / count
            } else {
                low
            });
        }
        below += count;
        low = if high.is_finite() { *high } else { low };
    }
    None
}
