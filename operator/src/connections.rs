//! Open connections, one for each cluster and credentials.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

/// Connections that were not used for this long are closed.
const IDLE: Duration = Duration::from_secs(600);

/// After a failure, those who wait for the same connection hear of it rather than try one by one.
const FAILED: Duration = Duration::from_secs(2);

/// Open connections by fingerprint.
pub struct Connections<C, E> {
    slots: Mutex<HashMap<String, Used<Slot<C, E>>>>,
}

/// Something shared, and when it was last asked for.
type Used<T> = (Arc<T>, Instant);

struct Slot<C, E>(Mutex<State<C, E>>);

enum State<C, E> {
    Closed,
    Open(Arc<C>),
    Failed(E, Instant),
}

impl<C, E> Default for Connections<C, E> {
    fn default() -> Self {
        Connections {
            slots: Mutex::default(),
        }
    }
}

impl<C: Send + Sync + 'static, E: Clone + Send + 'static> Connections<C, E> {
    /// The open connection of this fingerprint, or a new one: `connect` runs only then.
    pub async fn get(
        &self,
        fingerprint: String,
        connect: impl Future<Output = Result<C, E>>,
    ) -> Result<Arc<C>, E> {
        let slot = self.slot(fingerprint).await;
        let mut state = slot.0.lock().await;
        match &*state {
            State::Open(connection) => return Ok(connection.clone()),
            State::Failed(error, at) if at.elapsed() < FAILED => return Err(error.clone()),
            State::Failed(..) | State::Closed => {}
        }
        match connect.await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *state = State::Open(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                *state = State::Failed(error.clone(), Instant::now());
                Err(error)
            }
        }
    }

    async fn slot(&self, fingerprint: String) -> Arc<Slot<C, E>> {
        let mut slots = self.slots.lock().await;
        let now = Instant::now();
        let unused: Vec<_> = slots
            .extract_if(|_, (_, used)| now.duration_since(*used) >= IDLE)
            .collect();
        if !unused.is_empty() {
            // Closing Kafka's clients waits for their threads.
            tokio::task::spawn_blocking(move || drop(unused));
        }
        let (slot, used) = slots
            .entry(fingerprint)
            .or_insert_with(|| (Arc::new(Slot(Mutex::new(State::Closed))), now));
        *used = now;
        slot.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connects_once_and_shares_a_failure() {
        let connections = Connections::<u32, &str>::default();
        let failed = connections.get("a".into(), async { Err("down") }).await;
        assert_eq!(failed.unwrap_err(), "down");
        let shared = connections.get("a".into(), async { Ok(1) }).await;
        assert_eq!(shared.unwrap_err(), "down");
        let open = connections.get("b".into(), async { Ok(2) }).await;
        let again = connections.get("b".into(), async { Ok(3) }).await;
        assert_eq!((*open.unwrap(), *again.unwrap()), (2, 2));
    }

    /// Takes until the sender is gone to be closed.
    #[derive(Debug)]
    struct Slow(std::sync::Mutex<mpsc::Receiver<()>>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.lock().unwrap().recv_timeout(10 * FAILED);
        }
    }

    #[tokio::test]
    async fn nobody_waits_until_what_is_unused_is_closed() {
        // A machine that was just started has no time so long ago.
        let Some(long_ago) = Instant::now().checked_sub(IDLE) else {
            return;
        };
        let (sender, open) = mpsc::channel();
        let connections = Connections::<Slow, &str>::default();
        let slow = Slow(std::sync::Mutex::new(open));
        let _ = connections.get("a".into(), async { Ok(slow) }).await;
        for (_, used) in connections.slots.lock().await.values_mut() {
            *used = long_ago;
        }
        let started = Instant::now();
        let other = connections.get("b".into(), async { Err("down") }).await;
        assert_eq!(other.unwrap_err(), "down");
        assert!(started.elapsed() < FAILED);
        let slots = connections.slots.lock().await;
        assert_eq!(slots.keys().collect::<Vec<_>>(), ["b"]);
        drop(sender);
    }
}
