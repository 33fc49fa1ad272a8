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

impl<C, E: Clone> Connections<C, E> {
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
        slots.retain(|_, (_, used)| now.duration_since(*used) < IDLE);
        let (slot, used) = slots
            .entry(fingerprint)
            .or_insert_with(|| (Arc::new(Slot(Mutex::new(State::Closed))), now));
        *used = now;
        slot.clone()
    }
}

#[cfg(test)]
mod tests {
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
}
