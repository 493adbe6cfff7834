//! How much more than the forecast is provided: by how much forecasts were wrong, and by how much
//! of the error budget was used.

use std::collections::VecDeque;

/// By how much forecasts were exceeded over the last minutes (a conformal margin).
#[derive(Clone, Debug, Default)]
pub struct Margin {
    /// Forecasts whose time has not come: when it comes, and what was said.
    open: VecDeque<(f64, f64)>,
    /// When, and load over forecast.
    ratios: VecDeque<(f64, f64)>,
}

/// How far back forecasts are judged, in seconds.
const MEMORY: f64 = 1200.0;
/// Forecasts that must have been judged before they say anything.
const ENOUGH: usize = 30;
/// The margin until then, after a restart.
const UNKNOWN: f64 = 1.2;
/// The share of forecasts that with the margin would have been enough.
const COVERED: f64 = 0.75;
/// The largest margin.
const MOST: f64 = 1.6;

impl Margin {
    /// Judges forecasts whose time has come by the load over 10 s, and remembers the new one.
    pub fn judge(&mut self, now: f64, load: f64, forecast: f64, horizon: f64) {
        self.open.push_back((now + horizon, forecast));
        while let Some((_, said)) = self.open.front().copied().filter(|(due, _)| *due <= now) {
            self.open.pop_front();
            self.ratios.push_back((now, load / said.max(1.0)));
        }
        self.ratios.retain(|(when, _)| *when > now - MEMORY);
    }

    /// The factor on the forecast.
    pub fn factor(&self) -> f64 {
        if self.ratios.len() < ENOUGH {
            return UNKNOWN;
        }
        let ratios = self.ratios.iter().map(|(_, ratio)| *ratio).collect();
        quantile(ratios, COVERED).clamp(1.0, MOST)
    }
}

/// How much of the error budget was used, and the capacity that is kept for it.
#[derive(Clone, Debug)]
pub struct Budget {
    missed: f64,
    ended: f64,
    /// The share of the memory of loads that capacity is kept above; 1 keeps nothing.
    spared: f64,
    /// Loads over 10 s of the last hour, each 10 s.
    loads: VecDeque<(f64, f64)>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { missed: 0.0, ended: 0.0, spared: 1.0, loads: VecDeque::new() }
    }
}

/// Misses are forgotten with this time constant, in seconds.
const BUDGET: f64 = 1200.0;
/// How far back loads are remembered.
const HOUR: f64 = 3600.0;
/// How fast the floor follows.
const PACE: f64 = 0.005;

impl Budget {
    /// Counts what ended since the last look, `seconds` ago; `allowed` is the share that may miss.
    pub fn spend(&mut self, missed: u64, ended: u64, seconds: f64, allowed: f64) {
        let fade = (-seconds / BUDGET).exp();
        self.missed = self.missed * fade + missed as f64;
        self.ended = self.ended * fade + ended as f64;
        let used = self.missed / self.ended.max(1.0);
        // Half of what is allowed is the aim: the other half is for what nobody foresees.
        let over = (used - 0.5 * allowed) / allowed;
        self.spared = (self.spared * (-PACE * seconds * over).exp()).clamp(0.005, 1.0);
    }

    /// Remembers the load.
    pub fn remember(&mut self, now: f64, load: f64) {
        if self.loads.back().is_none_or(|(when, _)| *when <= now - 10.0 + 1e-9) {
            self.loads.push_back((now, load));
        }
        self.loads.retain(|(when, _)| *when > now - HOUR);
    }

    /// The load for which capacity is kept because the budget was spent; 0 while it was not.
    pub fn floor(&self) -> f64 {
        if self.spared >= 0.95 || self.loads.len() < ENOUGH {
            return 0.0;
        }
        quantile(self.loads.iter().map(|(_, load)| *load).collect(), 1.0 - self.spared)
    }

    /// The share of requests that missed the target lately.
    pub fn used(&self) -> f64 {
        self.missed / self.ended.max(1.0)
    }
}

fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    let at = (q * values.len().saturating_sub(1) as f64) as usize;
    if at >= values.len() {
        return 0.0;
    }
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}
