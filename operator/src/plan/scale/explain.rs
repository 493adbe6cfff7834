//! Why so many pods: sentences with figures, as `kubectl describe` shows them.

use std::fmt;

use super::capacity::Curve;

/// Why the number is what it is, in one word: the reason of the condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// As many as the load needs.
    #[default]
    Staffed,
    /// Fewer would do now; the hold is not over, or not enough pods are known.
    Held,
    /// Nobody answers: the number stays.
    MetricsUnavailable,
    /// More are needed than `maxReplicas`.
    Saturated,
    /// Even a request alone in an idle pod takes longer than the target.
    TargetInfeasible,
    /// A pod cannot be placed.
    CapacityBlocked,
    /// More pods did not give more answers.
    NoGain,
    /// No request for long: no pod.
    Idle,
}

impl Reason {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staffed => "Staffed",
            Self::Held => "Held",
            Self::MetricsUnavailable => "MetricsUnavailable",
            Self::Saturated => "Saturated",
            Self::TargetInfeasible => "TargetInfeasible",
            Self::CapacityBlocked => "CapacityBlocked",
            Self::NoGain => "NoGain",
            Self::Idle => "Idle",
        }
    }

    /// Whether scaling does what it should: the status of the condition `ScalingActive`.
    pub fn active(self) -> bool {
        matches!(self, Self::Staffed | Self::Held | Self::Idle)
    }
}

/// The figures behind a decision. Rates are requests per second, times seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Arrivals over the last half minute.
    pub rate: f64,
    /// What is expected when a pod ordered now is ready.
    pub forecast: f64,
    /// What is provided for: the forecast with its margin and the backlog.
    pub planned: f64,
    /// The factor of the margin.
    pub margin: f64,
    /// How loaded pods behave, over how loaded they are.
    pub correction: f64,
    /// What one pod can take within the target.
    pub per_pod: f64,
    /// The batch curve.
    pub curve: Curve,
    /// The time a pod takes to start.
    pub start: f64,
    /// Pods needed now, before hold and bounds.
    pub needed: u32,
    /// Pods that the budget's floor keeps.
    pub floor: u32,
    /// The share of requests that missed the target over the last half minute.
    pub missed: f64,
    /// The same over about the last twenty minutes.
    pub missed_long: f64,
    /// Median, 95th and 99th percentile of latency over the last half minute, if any was answered.
    pub latency: Option<[f64; 3]>,
    /// Pods that are ready, and those of them that answer.
    pub ready: u32,
    /// Pods that answer.
    pub known: u32,
}

/// A decision's reason, figures and sentences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// In one word.
    pub reason: Reason,
    /// In figures.
    pub figures: Figures,
    /// In sentences, the most important first.
    pub sentences: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentences.join(" "))
    }
}

/// Seconds as people read them.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.0995 => format!("{} ms", digits(s * 1e3)),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{} s", digits(s)),
        s => format!("{:.0} min", s / 60.0),
    }
}

/// Two significant digits below ten, none after the point above.
pub(super) fn digits(value: f64) -> String {
    let text = if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// A number of pods with its noun.
pub(super) fn pods(count: u32) -> String {
    if count == 1 { "1 pod".into() } else { format!("{count} pods") }
}
