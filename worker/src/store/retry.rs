//! Tries again what may pass, with growing pauses, within one budget of time.

use std::time::{Duration, Instant};

use super::error::StoreError;

/// How long all tries of one transfer may take before the last begins: long enough for a registry
/// to restart, short enough that a Job says what is wrong within minutes.
pub const BUDGET: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Runs `attempt` until it succeeds, fails for good, or `budget` is used up.
///
/// # Errors
/// The last attempt's.
pub async fn retry<T>(
    budget: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt().await {
            Err(error) if error.transient() && start.elapsed() + pause < budget => {
                tracing::warn!(%error, ?pause, "trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
}
