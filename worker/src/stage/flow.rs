//! What a sink's loop keeps going beside its reading: the pause, the commit, the batches in flight.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rdkafka::{
    consumer::{Consumer, StreamConsumer},
    error::KafkaError,
};
use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};

use crate::stage::assignment::Assignment;

/// The consumer of a sink.
pub type SinkConsumer = StreamConsumer<Assignment>;

/// A consumer that can't hand on what it reads for so long stops reading, and goes on polling.
const PAUSE_AFTER: Duration = Duration::from_secs(5);

/// Stops reading while the sink stands still: polling has to go on, or the group waits for us.
#[derive(Default)]
pub struct Flow {
    /// Whether reading is stopped.
    pub paused: bool,
    full_since: Option<Instant>,
}

impl Flow {
    /// Stops or resumes reading; `full` says that a batch waits and can't be handed on.
    pub fn adjust(&mut self, consumer: &SinkConsumer, full: bool) -> Result<(), KafkaError> {
        self.full_since = full.then(|| self.full_since.unwrap_or_else(Instant::now));
        let stands_still = self
            .full_since
            .is_some_and(|since| since.elapsed() > PAUSE_AFTER);
        if stands_still == self.paused {
            return Ok(());
        }
        self.paused = stands_still;
        let partitions = consumer.context().partitions();
        match self.paused {
            true => consumer.pause(&partitions),
            false => consumer.resume(&partitions),
        }
    }
}

/// The commit that is under way, if one is.
#[derive(Default)]
pub struct Commit(Option<JoinHandle<()>>);

impl Commit {
    /// Starts one, where none is under way.
    pub fn start(&mut self, consumer: &Arc<SinkConsumer>) {
        if self.0.as_ref().is_none_or(JoinHandle::is_finished) {
            let consumer = consumer.clone();
            self.0 = Some(tokio::task::spawn_blocking(move || {
                consumer.context().commit(&*consumer);
            }));
        }
    }

    /// Waits for the one that is under way, and makes a last one.
    pub async fn finish(mut self, consumer: &Arc<SinkConsumer>) -> Result<(), JoinError> {
        if let Some(running) = self.0.take() {
            running.await?;
        }
        self.start(consumer);
        match self.0 {
            Some(last) => last.await,
            None => Ok(()),
        }
    }
}

/// A task that ends with whom it works for.
pub struct Running<T>(JoinHandle<T>);

impl<T: Send + 'static> Running<T> {
    /// Starts the task.
    pub fn spawn(task: impl Future<Output = T> + Send + 'static) -> Self {
        Running(tokio::spawn(task))
    }
}

impl<T> Future for Running<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
