//! What an operator of a server may choose about waiting and batching, in Triton's vocabulary.

use std::time::Duration;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that wait, without those that run.
    pub requests: usize,
    /// Bytes of their tensors.
    pub bytes: usize,
}

/// What happens to a request that waited for [`Policy::timeout`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnTimeout {
    /// It is refused.
    #[default]
    Reject,
    /// It waits on, behind every other request of its priority.
    Delay,
}

/// How requests become one inference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most rows of one inference; a larger request runs alone.
    pub max: usize,
    /// How long the oldest request waits for company. `None` lets the measured curve and the
    /// latency target decide.
    pub delay: Option<Duration>,
    /// Sizes in rows that are run at once when the waiting requests make exactly one of them.
    pub preferred: Vec<usize>,
}

/// How requests wait.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How requests become one inference; each its own without.
    pub batching: Option<Batching>,
    /// Priorities from 1, the most urgent, to this; requests without one are in the middle.
    pub levels: usize,
    /// The longest wait; without limit when `None`.
    pub timeout: Option<Duration>,
    /// What happens after it.
    pub on_timeout: OnTimeout,
    /// The latency that requests should meet.
    pub target: Option<Duration>,
}

/// A request that took this many times the latency target is worth nothing any more. Below 2, a
/// short burst that a moment later would be over is answered with errors; above, requests are
/// computed that their clients gave up on.
pub const TARGET_FACTOR: u32 = 2;

impl Default for Policy {
    fn default() -> Self {
        Self {
            batching: None,
            levels: 1,
            timeout: None,
            on_timeout: OnTimeout::Reject,
            target: None,
        }
    }
}

impl Policy {
    /// The place in the order of levels, from 0, of a request that asks for `priority`. As in
    /// Triton, 0 and what is beyond the levels mean the default.
    pub fn level(&self, priority: u64) -> usize {
        let asked = usize::try_from(priority).unwrap_or(usize::MAX);
        if (1..=self.levels).contains(&asked) { asked - 1 } else { self.levels / 2 }
    }
}
