//! Knative's KPA, Ray Serve, the target tracking of AWS, and rate over capacity.

use std::collections::VecDeque;

use super::{Controller, Exact, MOST, Pod, Second, ceiling, push, within};

fn mean<T: Copy + Into<f64>>(window: impl ExactSizeIterator<Item = T>) -> f64 {
    let count = window.len().max(1) as f64;
    window.map(Into::into).sum::<f64>() / count
}

/// Knative's pod autoscaler: concurrency over 60 s, over 6 s in panic, which begins at twice what
/// the pods can take and ends 60 s after; a tick is 2 s.
pub struct Concurrency {
    target: f64,
    window: VecDeque<u32>,
    panic: Option<f64>,
    most: u32,
}

impl Concurrency {
    /// With a target of requests in each pod.
    pub fn new(target: f64) -> Self {
        Self { target, window: VecDeque::new(), panic: None, most: 0 }
    }
}

impl Controller for Concurrency {
    fn step(&mut self, second: &Second, _: &[Pod], _: u32) -> Option<u32> {
        push(&mut self.window, 60, second.in_flight as u32);
        if !(second.end as u64).is_multiple_of(2) {
            return None;
        }
        let ready = second.ready.max(1);
        let recent = self.window.len().min(6);
        let wanted = |load: f64| (load / self.target).ceil();
        let stable = wanted(mean(self.window.iter().copied()));
        let panic = wanted(mean(self.window.iter().skip(self.window.len() - recent).copied()));
        let (least, most) = (f64::from(ready / 2), 1000.0 * f64::from(ready));
        let bounded = |count: f64| count.max(least).min(most) as u32;
        if panic / f64::from(ready) >= 2.0 {
            self.panic = Some(second.end);
        } else if self.panic.is_some_and(|since| since + 60.0 < second.end) {
            self.panic = None;
            self.most = 0;
        }
        let mut count = bounded(stable);
        if self.panic.is_some() {
            self.most = self.most.max(count).max(bounded(panic));
            count = self.most;
        }
        Some(within(count))
    }
}

/// Ray Serve: ongoing requests over 30 s; the same direction for 30 s up or 600 s down, and then
/// only the last value counts.
pub struct Ongoing {
    target: f64,
    window: VecDeque<u32>,
    streak: i32,
}

impl Ongoing {
    /// With a target of requests in each pod.
    pub fn new(target: f64) -> Self {
        Self { target, window: VecDeque::new(), streak: 0 }
    }
}

impl Controller for Ongoing {
    fn step(&mut self, second: &Second, _: &[Pod], ordered: u32) -> Option<u32> {
        push(&mut self.window, 30, second.in_flight as u32);
        let wanted = within(ceiling(mean(self.window.iter().copied()) / self.target));
        self.streak = match wanted.cmp(&ordered) {
            std::cmp::Ordering::Greater => self.streak.max(0) + 1,
            std::cmp::Ordering::Less => self.streak.min(0) - 1,
            std::cmp::Ordering::Equal => 0,
        };
        if self.streak > 30 || self.streak < -600 {
            self.streak = 0;
            return Some(wanted);
        }
        Some(ordered)
    }
}

/// Target tracking on requests per instance and minute: out after three minutes above, in after
/// fifteen below nine tenths, five minutes apart.
pub struct TargetTracking {
    target: f64,
    minutes: VecDeque<f64>,
    sum: u32,
    out: f64,
    back: f64,
}

impl TargetTracking {
    /// With a target of requests per second of each pod.
    pub fn new(target: f64) -> Self {
        let never = f64::NEG_INFINITY;
        Self { target, minutes: VecDeque::new(), sum: 0, out: never, back: never }
    }
}

impl Controller for TargetTracking {
    fn step(&mut self, second: &Second, _: &[Pod], ordered: u32) -> Option<u32> {
        const COOLDOWN: f64 = 300.0;
        self.sum += second.arrivals;
        if !(second.end as u64).is_multiple_of(60) {
            return None;
        }
        let ready = f64::from(second.ready);
        let last = f64::from(self.sum) / 60.0 / ready.max(1.0);
        push(&mut self.minutes, 15, last);
        self.sum = 0;
        let now = second.end;
        let wanted = ceiling(ready * last / self.target);
        let recent: Vec<f64> = self.minutes.iter().rev().copied().collect();
        if recent.len() >= 3
            && recent.iter().take(3).all(|rate| *rate > self.target)
            && now - self.out >= COOLDOWN
        {
            self.out = now;
            return Some(wanted.min(MOST).max(ordered));
        }
        if recent.len() >= 15
            && recent.iter().all(|rate| *rate < 0.9 * self.target)
            && now - self.back >= COOLDOWN
            && now - self.out >= COOLDOWN
        {
            self.back = now;
            return Some(wanted.min(ordered).max(1));
        }
        None
    }
}

/// The rate of the last minute over the exact capacity, each 15 s, kept for 300 s: a plain
/// model-based autoscaler, which is given what ours has to learn.
pub struct RateModel {
    exact: Exact,
    window: VecDeque<u32>,
    wanted: VecDeque<u32>,
}

impl RateModel {
    /// With the capacity of pods.
    pub fn new(exact: Exact) -> Self {
        Self { exact, window: VecDeque::new(), wanted: VecDeque::new() }
    }
}

impl Controller for RateModel {
    fn step(&mut self, second: &Second, _: &[Pod], _: u32) -> Option<u32> {
        push(&mut self.window, 60, second.arrivals);
        if !(second.end as u64).is_multiple_of(15) {
            return None;
        }
        push(&mut self.wanted, 21, self.exact.need(mean(self.window.iter().copied())));
        self.wanted.iter().copied().max().map(within)
    }
}
