//! Arrivals per second over the last minutes, though answers come late, at odd times, or not.
//!
//! The difference of two answers is spread over the time between them. A second for which not all
//! pods have answered yet is filled with the mean of those that have: unknown is never zero.

use std::collections::VecDeque;

/// Seconds that are kept.
const KEPT: usize = 360;

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    /// Arrivals of the sources that answered for it.
    arrivals: f64,
    /// Seconds of sources that answered for it.
    answered: f64,
    /// Seconds of sources that should have.
    expected: f64,
}

/// Arrivals by the second.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The second at which the last bin begins.
    newest: u64,
    /// Up to which moment anything is known.
    until: f64,
    bins: VecDeque<Bin>,
}

impl Series {
    fn bin(&mut self, second: u64) -> Option<&mut Bin> {
        if self.bins.is_empty() {
            self.newest = second;
            self.bins.push_back(Bin::default());
        }
        // A gap longer than what is kept leaves nothing of the past.
        if second > self.newest + KEPT as u64 {
            self.bins.clear();
            self.newest = second;
            self.bins.push_back(Bin::default());
        }
        while self.newest < second {
            self.newest += 1;
            self.bins.push_back(Bin::default());
            if self.bins.len() > KEPT {
                self.bins.pop_front();
            }
        }
        let back = usize::try_from(self.newest - second).ok()?;
        let index = self.bins.len().checked_sub(back + 1)?;
        self.bins.get_mut(index)
    }

    /// Applies `change` to each second between two moments, with the part of it that lies there.
    fn over(&mut self, from: f64, to: f64, mut change: impl FnMut(&mut Bin, f64)) {
        let from = from.max(to - KEPT as f64).max(0.0);
        self.until = self.until.max(to);
        let mut at = from;
        while at < to {
            let next = (at.floor() + 1.0).min(to);
            if let Some(bin) = self.bin(at as u64) {
                change(bin, next - at);
            }
            at = next;
        }
    }

    /// Says that `sources` were there from one moment to another.
    pub fn expect(&mut self, sources: u32, from: f64, to: f64) {
        self.over(from, to, |bin, part| bin.expected += part * f64::from(sources));
    }

    /// Adds the arrivals of one source between two moments.
    pub fn add(&mut self, arrivals: u64, from: f64, to: f64) {
        let rate = arrivals as f64 / (to - from).max(1e-9);
        self.over(from, to, |bin, part| {
            bin.arrivals += rate * part;
            bin.answered += part;
        });
    }

    /// Arrivals per second over the last `seconds` before `now`; nothing when nobody answered for
    /// any of them.
    pub fn rate(&self, now: f64, seconds: f64) -> Option<f64> {
        self.between(now - seconds, now)
    }

    /// Arrivals per second between two moments; nothing when nobody answered for any of it.
    pub fn between(&self, from: f64, to: f64) -> Option<f64> {
        let oldest = (self.newest + 1) as f64 - self.bins.len() as f64;
        let first = (from - oldest).floor().max(0.0) as usize;
        let (mut sum, mut covered) = (0.0, 0.0);
        for (index, bin) in self.bins.iter().enumerate().skip(first) {
            let begin = oldest + index as f64;
            // The last second may not be over: its arrivals are those of the part that is.
            let end = (begin + 1.0).min(self.until);
            let part = end.min(to) - begin.max(from);
            if begin >= to {
                break;
            }
            if bin.answered > 0.0 && part > 0.0 {
                let missing = (bin.expected / bin.answered).max(1.0);
                sum += bin.arrivals * missing * part / (end - begin);
                covered += part;
            }
        }
        (covered > 0.0).then(|| sum / covered)
    }

    /// Seconds for which anybody answered, up to `most`.
    pub fn span(&self, most: f64) -> f64 {
        let known = self.bins.iter().rev().take(most as usize);
        known.filter(|bin| bin.answered > 0.0).count() as f64
    }
}
