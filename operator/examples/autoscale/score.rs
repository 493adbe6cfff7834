//! What a run is judged by.

/// What a run is judged by.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Seconds of pods, from creation until drained.
    pub pod_seconds: f64,
    /// Requests that ended.
    pub requests: u64,
    /// Those that were late or shed.
    pub late: u64,
    /// How often the number of pods was changed.
    pub actions: u32,
    /// How often the change turned round within ten minutes of the last.
    pub reversals: u32,
    /// Each second: requests that came, pods that were ready, pods in all.
    pub trail: Vec<(u32, u32, u32)>,
    last: Option<(f64, bool)>,
}

/// A change the other way within this many seconds is a reversal.
const SOON: f64 = 600.0;

impl Score {
    /// Counts a request that ended.
    pub fn request(&mut self, late: bool) {
        self.requests += 1;
        self.late += u64::from(late);
    }

    /// Counts an order of `to` pods after one of `from`.
    pub fn ordered(&mut self, now: f64, from: u32, to: u32) {
        if from == to {
            return;
        }
        self.actions += 1;
        let up = to > from;
        if self.last.is_some_and(|(when, before)| before != up && now - when <= SOON) {
            self.reversals += 1;
        }
        self.last = Some((now, up));
    }

    /// The share of requests that were late or shed, in per cent.
    pub fn late_percent(&self) -> f64 {
        100.0 * self.late as f64 / self.requests.max(1) as f64
    }
}
