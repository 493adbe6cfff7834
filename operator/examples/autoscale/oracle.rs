//! Bounds: schedules that know what nobody knows.
//!
//! The oracle knows all demand beforehand and the exact capacity; the reactive bound knows the
//! demand of the last seconds and the exact capacity, but nothing of what comes.

use crate::pods::{Controller, Odd, Pod, Profile, Run, Second};
use crate::score::Score;
use crate::trace::Trace;
use crate::twin::Exact;

/// A number of pods for each second, known beforehand.
pub struct Schedule(pub Vec<u32>);

impl Controller for Schedule {
    fn step(&mut self, second: &Second, _: &[Pod], _: u32) -> Option<u32> {
        self.0.get(second.end as usize).copied()
    }
}

/// The share of late requests that the oracle may have, in per cent.
pub const GOAL: f64 = 1.0;

/// The cheapest clairvoyant schedule with at most [`GOAL`] late: demand over five centred seconds
/// times the least factor that will do; each pod is ordered a cold start early, and a gap no longer
/// than a cold start is bridged, since that is cheaper than another start.
pub fn clairvoyant(profile: &Profile, exact: &Exact, trace: &Trace, arrivals: &[f64]) -> Score {
    let mut last = Score::default();
    for factor in [0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3] {
        let needed: Vec<u32> = (0..trace.counts.len())
            .map(|second| {
                exact.need(factor * mean(&trace.counts, second.saturating_sub(2), second + 3))
            })
            .collect();
        let schedule = early(&needed, profile.cold + 1.0);
        let first = schedule.first().copied().unwrap_or(1);
        let odd = Odd { exact_cold: true, ..Odd::default() };
        last = Run::new(profile, odd, first).run(arrivals, needed.len(), &mut Schedule(schedule));
        if last.late_percent() <= GOAL {
            break;
        }
    }
    last
}

fn mean(counts: &[u32], from: usize, to: usize) -> f64 {
    let window = counts.get(from..to.min(counts.len())).unwrap_or_default();
    window.iter().map(|count| f64::from(*count)).sum::<f64>() / window.len().max(1) as f64
}

/// Layer by layer: when the k-th pod must be there, it is ordered `cold` seconds before.
fn early(needed: &[u32], cold: f64) -> Vec<u32> {
    let mut schedule = vec![0; needed.len()];
    for layer in 1..=needed.iter().copied().max().unwrap_or(0) {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for (second, _) in needed.iter().enumerate().filter(|(_, need)| **need >= layer) {
            match spans.last_mut() {
                Some((_, end)) if (second - *end) as f64 <= cold => *end = second + 1,
                _ => spans.push((second, second + 1)),
            }
        }
        for (start, end) in spans {
            let start = (start as f64 - cold).max(0.0) as usize;
            for pods in schedule.get_mut(start..end).into_iter().flatten() {
                *pods += 1;
            }
        }
    }
    schedule
}

/// The true rate of the last three seconds and the exact capacity, without delay or margin; kept
/// for two cold starts.
pub fn reactive(profile: &Profile, exact: &Exact, trace: &Trace) -> Schedule {
    let needed: Vec<u32> = (0..trace.counts.len())
        .map(|second| exact.need(mean(&trace.counts, (second + 1).saturating_sub(3), second + 1)))
        .collect();
    let hold = (2.0 * profile.cold) as usize;
    let most = |second: usize| {
        let window = needed.get(second.saturating_sub(hold)..=second).unwrap_or_default();
        window.iter().copied().max().unwrap_or(1)
    };
    Schedule((0..needed.len()).map(most).collect())
}

/// The number of pods that the largest ten seconds need.
pub fn peak(exact: &Exact, trace: &Trace) -> u32 {
    let needs = trace.counts.chunks_exact(10).map(|ten| exact.need(mean(ten, 0, 10)));
    needs.max().unwrap_or(1)
}

/// The pods with which every run begins: enough for the first minute.
pub fn first(profile: &Profile, exact: &Exact, trace: &Trace) -> u32 {
    exact.at_most(profile, 0.85).need(mean(&trace.counts, 0, 60))
}
