//! What load is there, and what load will be there when a pod ordered now is ready.

use super::series::Series;

/// The load now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Arrivals per second over 4 s.
    pub quick: f64,
    /// Over 10 s.
    pub short: f64,
    /// Over 30 s.
    pub long: f64,
    /// The index of dispersion: the variance of arrivals in 10 s over their mean; 1 is Poisson.
    pub dispersion: f64,
}

/// Differences of this many standard deviations are no chance.
const SIGNIFICANT: f64 = 2.0;
/// A trend is believed beyond this many standard errors.
const TREND: f64 = 3.0;

/// Reads the load; nothing when nobody has answered for the last half minute.
pub fn load(series: &Series, now: f64) -> Option<Load> {
    let long = series.rate(now, 30.0)?;
    let short = series.rate(now, 10.0).unwrap_or(long);
    let quick = series.rate(now, 4.0).unwrap_or(short);
    Some(Load { quick, short, long, dispersion: dispersion(series, now) })
}

/// From neighbouring tens of seconds over five minutes, so that a slow drift does not count.
fn dispersion(series: &Series, now: f64) -> f64 {
    let tens: Vec<f64> = (0..30)
        .filter_map(|ten| {
            series.between(now - 10.0 * f64::from(ten + 1), now - 10.0 * f64::from(ten))
        })
        .map(|rate| 10.0 * rate)
        .collect();
    if tens.len() < 10 {
        return PRIOR_DISPERSION;
    }
    let mean = tens.iter().sum::<f64>() / tens.len() as f64;
    let steps = tens.windows(2).map(|pair| pair.iter().fold(0.0, |a, b| b - a).powi(2));
    let variance = steps.sum::<f64>() / (2.0 * (tens.len() - 1) as f64);
    (variance / mean.max(1.0)).clamp(1.0, 20.0)
}

/// Until it is measured.
const PRIOR_DISPERSION: f64 = 1.5;

impl Load {
    /// The level: the last half minute, or the last ten seconds where they are above it by more
    /// than chance.
    pub fn level(&self) -> f64 {
        let chance = (self.dispersion * self.long.max(1.0) / 10.0).sqrt();
        if self.short > self.long + SIGNIFICANT * chance { self.short } else { self.long }
    }
}

/// The slope in requests per second and second over the last minutes; 0 unless it is certain.
/// `horizon` is how far ahead it is needed.
pub fn trend(series: &Series, now: f64, horizon: f64) -> f64 {
    let bins = ((2.0 * horizon).clamp(60.0, 180.0) / 5.0).floor() as usize;
    let rates: Vec<f64> = (0..bins)
        .rev()
        .map_while(|bin| series.between(now - 5.0 * (bin + 1) as f64, now - 5.0 * bin as f64))
        .collect();
    if rates.len() < bins {
        return 0.0;
    }
    let middle = (bins - 1) as f64 / 2.0;
    let mean = rates.iter().sum::<f64>() / bins as f64;
    let places = || (0..bins).map(|bin| bin as f64 - middle);
    let spread: f64 = places().map(|x| x * x).sum();
    let slope = places().zip(&rates).map(|(x, y)| x * (y - mean)).sum::<f64>() / spread;
    let left: f64 = places().zip(&rates).map(|(x, y)| (y - mean - slope * x).powi(2)).sum();
    let error = (left / (bins - 2) as f64 / spread).sqrt();
    if slope.abs() > TREND * error { slope / 5.0 } else { 0.0 }
}

/// The load after `horizon` seconds: the level, raised by a trend, never doubled by it. A trend
/// never lowers: what falls is let go by the hold.
pub fn forecast(level: f64, slope: f64, horizon: f64) -> f64 {
    (level + slope.max(0.0) * horizon).min(2.0 * level.max(1.0))
}
