//! One batch after the other, where batches are in flight side by side.

use anyhow::Context;
use tokio::sync::oneshot;

/// Gives out turns.
pub struct Turns(oneshot::Receiver<()>);

/// A place in the row.
pub struct Turn {
    before: oneshot::Receiver<()>,
    after: oneshot::Sender<()>,
}

/// Whose turn it is. Dropped without being passed on, nobody after it has a turn: what it was to do
/// wasn't done.
pub struct Held(oneshot::Sender<()>);

impl Default for Turns {
    fn default() -> Self {
        let (first, turn) = oneshot::channel();
        Held(first).pass();
        Turns(turn)
    }
}

impl Turns {
    /// The next place.
    pub fn take(&mut self) -> Turn {
        let (after, next) = oneshot::channel();
        Turn {
            before: std::mem::replace(&mut self.0, next),
            after,
        }
    }
}

impl Turn {
    /// Waits for it.
    pub async fn wait(self) -> anyhow::Result<Held> {
        self.before
            .await
            .context("the batch before this one failed")?;
        Ok(Held(self.after))
    }
}

impl Held {
    /// It is the next one's turn.
    pub fn pass(self) {
        // Where nobody waits any more, nobody is passed by.
        let _ = self.0.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_come_in_order_and_none_is_passed_by() {
        let mut turns = Turns::default();
        let (first, second, third) = (turns.take(), turns.take(), turns.take());
        let second = tokio::spawn(second.wait());
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        first.wait().await.unwrap().pass();
        drop(second.await.unwrap().unwrap());
        assert!(third.wait().await.is_err());
    }
}
