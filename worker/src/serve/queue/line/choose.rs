//! Which requests make the next inference, and how long they wait for company.

use std::time::{Duration, Instant};

use super::{Line, Waiting};
use crate::serve::queue::{Batching, rows};

/// A wait below this is none: timers of the system are not finer.
const TICK: Duration = Duration::from_micros(100);

impl Line {
    pub(super) fn joins(&self, rows: usize) -> bool {
        self.policy.batching.as_ref().is_some_and(|batching| rows < batching.max)
    }

    /// The ids of the next inference, and until when it may still wait for company.
    pub(super) fn choose(&self, now: Instant) -> Option<(Vec<u64>, Option<Instant>)> {
        let mut order =
            self.levels.iter().flat_map(|level| level.fresh.iter().chain(&level.delayed));
        let head = order.next()?;
        let alone = Some((vec![head.id], None));
        let Some(batching) = &self.policy.batching else { return alone };
        let Some(rows) = head.rows.filter(|rows| self.joins(*rows)) else { return alone };
        let (mut ids, mut total, mut full) = (vec![head.id], rows, false);
        let (mut oldest, mut expires) = (head.since, self.hopeless_from(head));
        let mut preferred = batching.preferred.contains(&rows).then_some(1);
        for other in order {
            let Some(rows) = other.rows.filter(|_| rows::alike(&head.work, &other.work)) else {
                continue;
            };
            if total + rows > batching.max {
                full = true;
                break;
            }
            total += rows;
            ids.push(other.id);
            oldest = oldest.min(other.since);
            expires = [expires, self.hopeless_from(other)].into_iter().flatten().min();
            if batching.preferred.contains(&total) {
                preferred = Some(ids.len());
            }
        }
        if full || total == batching.max {
            return Some((ids, None));
        }
        if let Some(length) = preferred {
            ids.truncate(length);
            return Some((ids, None));
        }
        // Who cannot join does not wait for those who can.
        if ids.len() < self.len() {
            return Some((ids, None));
        }
        let until = oldest.checked_add(self.patience(total));
        let until = [until, expires].into_iter().flatten().min().filter(|until| *until > now);
        Some((ids, until))
    }

    /// How long `rows` that wait should wait for company.
    ///
    /// Without a declared delay: half of what an inference takes whatever its size, for so much is
    /// saved by each that is not run; at most a quarter of what the latency target leaves; and only
    /// while as much company as was there of late has not come. Alone, nobody waits.
    pub(super) fn patience(&self, rows: usize) -> Duration {
        let Some(Batching { max, delay, .. }) = &self.policy.batching else {
            return Duration::ZERO;
        };
        if let Some(delay) = delay {
            return *delay;
        }
        if rows as f64 >= self.company.min(*max as f64) - 0.5 {
            return Duration::ZERO;
        }
        let target = self.policy.target.unwrap_or(Duration::MAX);
        let spare = target.saturating_sub(self.curve.time(1, *max)) / 4;
        let patience = (self.curve.fixed() / 2).min(spare);
        if patience < TICK { Duration::ZERO } else { patience }
    }

    pub(super) fn take(&mut self, ids: &[u64]) -> Vec<Waiting> {
        let mut taken = Vec::with_capacity(ids.len());
        for level in &mut self.levels {
            for queue in [&mut level.fresh, &mut level.delayed] {
                // The chosen ones come in the order of the line, mostly at its head.
                let mut at = 0;
                while taken.len() < ids.len() && at < queue.len() {
                    let next = ids.get(taken.len()).copied();
                    let chosen = queue.get(at).map(|waiting| waiting.id) == next;
                    match chosen.then(|| queue.remove(at)).flatten() {
                        Some(waiting) => taken.push(waiting),
                        None => at += 1,
                    }
                }
            }
        }
        for waiting in &taken {
            if let Some(level) = self.levels.get_mut(waiting.level) {
                level.left(waiting);
            }
        }
        taken
    }
}
