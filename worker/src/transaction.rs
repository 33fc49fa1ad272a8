//! Records go to Kafka in one transaction with the source's position after them: whoever reads them
//! sees them once, whatever dies in between.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    error::{KafkaError, KafkaResult},
    producer::Producer as _,
};

use crate::{
    kafka::{self, Producer},
    position::{Position, PositionStore},
    retry::Delays,
    status::StatusPart,
};

const TIMEOUT: Duration = Duration::from_secs(10);
const CONCERN: &str = "transaction";

/// The producer of an ingest stage. While one of its transactions is open, those who read the topic
/// wait for its end.
pub struct Transactions {
    producer: Producer,
    positions: PositionStore,
    ours: AtomicBool,
    open: AtomicBool,
    status: StatusPart,
}

impl Transactions {
    /// Of the worker that has the id; nothing is sent yet.
    pub fn new(
        client: &ClientConfig,
        id: &str,
        positions: PositionStore,
        status: StatusPart,
    ) -> KafkaResult<Self> {
        Ok(Transactions {
            producer: kafka::transactional_producer(client, id, status.clone())?,
            positions,
            ours: AtomicBool::new(false),
            open: AtomicBool::new(false),
            status,
        })
    }

    /// The producer, for what belongs into the open transaction.
    pub fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Takes the place of any worker that had the id before: its open transaction is given up, and
    /// it can't commit another one.
    pub async fn take_over(&self) -> anyhow::Result<()> {
        self.call(|producer| producer.init_transactions(TIMEOUT))
            .await?;
        self.ours.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it has been taken over.
    pub fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Relaxed)
    }

    /// Opens a transaction.
    pub fn begin(&self) -> KafkaResult<()> {
        self.producer.begin_transaction()?;
        self.open.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the transaction: its records and the position after them are there, or neither.
    pub async fn commit(&self, position: &Position) -> anyhow::Result<()> {
        let positions = self.positions.clone();
        let metadata = serde_json::to_string(position)?;
        self.call(move |producer| {
            let (offsets, group) = positions.offsets(&metadata)?;
            producer.send_offsets_to_transaction(&offsets, &group, TIMEOUT)
        })
        .await?;
        self.call(|producer| producer.commit_transaction(TIMEOUT))
            .await?;
        self.open.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the transaction up, where one is open.
    pub async fn abort(&self) -> anyhow::Result<()> {
        if !self.open.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.call(|producer| producer.abort_transaction(TIMEOUT))
            .await?;
        self.open.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Calls the client, which blocks, for as long as it says that another try may help.
    async fn call(
        &self,
        call: impl Fn(&Producer) -> KafkaResult<()> + Clone + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut delays = Delays::default();
        loop {
            let (producer, call) = (self.producer.clone(), call.clone());
            match tokio::task::spawn_blocking(move || call(&producer)).await? {
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    let message = format!("Kafka doesn't end a transaction: {error}");
                    self.status.fail(CONCERN, message);
                    delays.wait().await;
                }
                ended => {
                    self.status.clear(CONCERN);
                    return Ok(ended?);
                }
            }
        }
    }
}
