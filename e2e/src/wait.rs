//! Awaiting what will be so, instead of sleeping until it should be.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

const INTERVAL: Duration = Duration::from_millis(200);

/// Asks again and again until `probe` gives a value.
///
/// # Errors
/// After `timeout`: what `probe` said last.
pub async fn eventually<T>(
    timeout: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut last = anyhow!("nothing was seen yet");
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
        if Instant::now() + INTERVAL >= deadline {
            return Err(last.context(format!("not within {timeout:?}")));
        }
        sleep(INTERVAL).await;
    }
}
