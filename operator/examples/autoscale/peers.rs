//! Other autoscalers, exactly as their sources have them, windows and delays at their defaults.

use std::collections::VecDeque;

use crate::oracle::Schedule;
use crate::pods::{BUCKETS, Controller, Pod, Profile, SHARE, Second};
use crate::twin::{Exact, MOST};

mod hpa;
mod others;

pub use hpa::{Cpu, MeanLatency, Percentile};
pub use others::{Concurrency, Ongoing, RateModel, TargetTracking};

/// One peer: its name, its threshold by default, and those tried with hindsight.
pub struct Peer {
    /// Its name in the table.
    pub name: &'static str,
    /// The threshold on which it runs by default.
    pub default: f64,
    /// The thresholds of which the best is taken with hindsight.
    pub grid: &'static [f64],
    /// Makes it.
    pub make: fn(&Profile, &Exact, f64) -> Box<dyn Controller>,
}

/// All peers with their defaults and grids; thresholds of latency are shares of the target, of
/// requests per second shares of a pod's maximum.
pub fn peers(profile: &Profile) -> [Peer; 7] {
    [
        Peer {
            name: "hpa-cpu",
            default: 0.7,
            grid: &[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
            make: |_, _, x| Box::new(Cpu::new(x)),
        },
        Peer {
            name: "hpa-latency",
            default: 0.5,
            grid: &[0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8],
            make: |profile, _, x| Box::new(MeanLatency::new(x * profile.target)),
        },
        Peer {
            name: "keda-p95",
            default: 0.8,
            grid: &[0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2],
            make: |profile, _, x| Box::new(Percentile::new(x * profile.target)),
        },
        Peer {
            name: "kpa",
            default: 0.7 * profile.batch as f64,
            grid: &[0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.6, 6.5, 7.5],
            make: |_, _, x| Box::new(Concurrency::new(x)),
        },
        Peer {
            name: "ray-serve",
            default: 2.0,
            grid: &[0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0],
            make: |_, _, x| Box::new(Ongoing::new(x)),
        },
        Peer {
            name: "target-tracking",
            default: 0.5,
            grid: &[0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            make: |profile, _, x| Box::new(TargetTracking::new(x * profile.most())),
        },
        Peer {
            name: "rate-over-mu",
            default: 0.85,
            grid: &[0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            make: |profile, exact, x| Box::new(RateModel::new(exact.at_most(profile, x))),
        },
    ]
}

/// A fixed number of pods.
pub fn fixed(pods: u32, seconds: usize) -> Schedule {
    Schedule(vec![pods; seconds + 1])
}

/// A ceiling that a rounding error does not lift.
fn ceiling(value: f64) -> u32 {
    (value - 1e-9).ceil().clamp(0.0, 1e9) as u32
}

/// Keeps the last `length` of what is pushed.
fn push<T>(window: &mut VecDeque<T>, length: usize, value: T) {
    if window.len() == length {
        window.pop_front();
    }
    window.push_back(value);
}

fn within(count: u32) -> u32 {
    count.clamp(1, MOST)
}
