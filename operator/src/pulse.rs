//! Whether the loop still turns, for `/livez`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the loop says that it turns, at least.
pub const BEAT: Duration = Duration::from_secs(5);
/// A loop that was not heard for this long stands still.
const SILENCE: Duration = Duration::from_secs(60);

/// When the loop was heard last.
#[derive(Debug)]
pub struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    /// Says that the loop turns.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether the loop was heard lately.
    pub fn beats(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < SILENCE
    }
}
