//! What waits in vain goes: it is late, or could only be late while others are not.

use std::time::Instant;

use super::{Level, Line, Reply, Waiting, late};
use crate::serve::error::InferError;
use crate::serve::queue::OnTimeout;

impl Line {
    /// Drops what is late, and what could only be late while others are not.
    pub(super) fn shed(&mut self, now: Instant, gone: &mut Vec<(Reply, InferError)>) {
        let mut earliest = None;
        let mut left = self.len();
        for index in 0..self.levels.len() {
            let Some(level) = self.levels.get_mut(index).map(std::mem::take) else { continue };
            let mut kept = Level::default();
            let fresh = level.fresh.into_iter().map(|waiting| (waiting, false));
            for (mut waiting, delayed) in
                fresh.chain(level.delayed.into_iter().map(|waiting| (waiting, true)))
            {
                let expired = waiting.expires.is_some_and(|expires| expires <= now);
                let hopeless = self.hopeless_from(&waiting).is_some_and(|from| from <= now);
                let timeout = waiting.timeout.is_some_and(|timeout| timeout <= now);
                let reject = timeout && self.policy.on_timeout == OnTimeout::Reject;
                if expired || (hopeless && left > 1) || reject {
                    left -= 1;
                    let error = self.too_late(&waiting, now);
                    gone.push((waiting.reply, error));
                    continue;
                }
                if timeout {
                    waiting.timeout = None;
                }
                let from = self.hopeless_from(&waiting).filter(|from| *from > now);
                let late = [from.or(waiting.expires), waiting.timeout].into_iter().flatten().min();
                earliest = [earliest, late].into_iter().flatten().min();
                kept.rows += waiting.rows();
                kept.bytes += waiting.bytes;
                let queue = if timeout || delayed { &mut kept.delayed } else { &mut kept.fresh };
                queue.push_back(waiting);
            }
            if let Some(level) = self.levels.get_mut(index) {
                *level = kept;
            }
        }
        self.earliest = earliest;
    }

    fn too_late(&self, waiting: &Waiting, now: Instant) -> InferError {
        let waited = now.saturating_duration_since(waiting.since);
        if waiting.work.deadline.is_some_and(|deadline| deadline <= now) {
            return InferError::Deadline(format!(
                "the deadline passed after {waited:.1?} of waiting"
            ));
        }
        let time = self.time_ahead(self.levels.len(), 0, now);
        late(time, format!("the answer would come too late after {waited:.1?} of waiting"))
    }
}
