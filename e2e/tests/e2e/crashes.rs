//! Whatever dies in the middle, the table ends up as the records say: row for row, cell for cell.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millstream_e2e::{
    Namespace, PATIENCE, Record, alone_in_temp_namespace, eventually, is_ready, operator_pod,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::orders::{self, ORDERS};

const ROUNDS: u64 = 30;

/// After this round's records the operator's pod is killed too, or a service is restarted.
const OPERATOR: u64 = 8;
const KAFKA: u64 = 14;
const CASSANDRA: u64 = 21;

/// Versions that each key gets on average.
const VERSIONS: u64 = 8;

/// The cells of a row besides its key.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    version: Option<i32>,
    name: Option<String>,
    note: Option<String>,
    amount: Option<f64>,
}

/// What the table must hold, by the records that were produced.
#[derive(Default)]
struct Model(BTreeMap<Uuid, Row>);

/// A field of a record: absent, null or a value.
#[derive(Clone, Debug)]
enum Field<T> {
    Absent,
    Null,
    Value(T),
}

impl<T: Clone> Field<T> {
    /// One of four records lacks the field, one says null.
    fn new(random: u64, value: T) -> Self {
        match random % 4 {
            0 => Field::Absent,
            1 => Field::Null,
            _ => Field::Value(value),
        }
    }

    fn write(&self, cell: &mut Option<T>) {
        match self {
            Field::Absent => {}
            Field::Null => *cell = None,
            Field::Value(value) => *cell = Some(value.clone()),
        }
    }
}

impl<T: Clone + Into<Value>> Field<T> {
    fn put(&self, record: &mut Value, name: &str) {
        match self {
            Field::Absent => {}
            Field::Null => record[name] = Value::Null,
            Field::Value(value) => record[name] = value.clone().into(),
        }
    }
}

/// The mixing function of SplitMix64: the same records in each run.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Model {
    /// The record with that number; the model then holds what it says.
    fn record(&mut self, number: u64, keys: u64) -> Record {
        let random = mix(number);
        let id = orders::id(random % keys);
        let version = i32::try_from(number).expect("records are counted in an i32");
        let name = format!("Zoë-{number}");
        let note = Field::new(random >> 32, format!("naïve №{number}"));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let amount = Field::new(random >> 40, number as f64 / 4.0);

        let mut record = json!({"id": id, "version": version, "name": name});
        note.put(&mut record, "note");
        amount.put(&mut record, "amount");
        let row = self.0.entry(id).or_default();
        (row.version, row.name) = (Some(version), Some(name));
        note.write(&mut row.note);
        amount.write(&mut row.amount);
        orders::record(&record)
    }

    fn records(&mut self, numbers: Range<u64>, keys: u64) -> Vec<Record> {
        numbers.map(|number| self.record(number, keys)).collect()
    }

    /// Holds the table against the model.
    async fn check(&self, namespace: &Namespace) -> Result<()> {
        type Cells = (
            Uuid,
            Option<i32>,
            Option<String>,
            Option<String>,
            Option<f64>,
        );
        let cql = format!(
            "SELECT id, version, name, note, amount FROM {}",
            orders::table(namespace)
        );
        let cells = namespace.cassandra.select::<Cells>(&cql).await?;
        let rows = cells.into_iter().map(|(id, version, name, note, amount)| {
            (
                id,
                Row {
                    version,
                    name,
                    note,
                    amount,
                },
            )
        });
        let rows: BTreeMap<_, _> = rows.collect();
        let missing = self.0.keys().filter(|id| !rows.contains_key(id)).count();
        let surplus = rows.keys().filter(|id| !self.0.contains_key(id)).count();
        let differing: Vec<_> = self
            .0
            .iter()
            .filter_map(|(id, expected)| Some((id, expected, rows.get(id)?)))
            .filter(|(_, expected, found)| expected != found)
            .collect();
        for (id, expected, found) in differing.iter().take(10) {
            eprintln!("{id}\n  expected {expected:?}\n  found    {found:?}");
        }
        ensure!(
            missing + surplus + differing.len() == 0,
            "of {} rows {missing} are missing, {} differ, {surplus} are too many",
            self.0.len(),
            differing.len()
        );
        Ok(())
    }
}

/// Kills one process pod, every fifth time all of them, once there is one to kill. Tells whether
/// there were records left to process.
async fn kill_workers(namespace: &Namespace, round: u64) -> Result<bool> {
    let pods = eventually(PATIENCE, async || {
        let mut pods = namespace.pods(ORDERS, "process").await?;
        pods.retain(is_ready);
        ensure!(!pods.is_empty(), "no process pod is ready");
        Ok(pods)
    })
    .await?;
    // Kafka may just have been started again.
    let lag = eventually(PATIENCE, async || {
        namespace.lag(ORDERS, ORDERS, &orders::topic(namespace))
    })
    .await?;
    let count = if round % 5 == 4 { pods.len() } else { 1 };
    for pod in pods
        .iter()
        .cycle()
        .skip(usize::try_from(round)? % pods.len())
        .take(count)
    {
        namespace.kill(pod).await?;
    }
    Ok(lag > 0)
}

#[test]
fn the_table_equals_the_records_whatever_is_killed() {
    let records = std::env::var("MILLSTREAM_E2E_RECORDS").map_or(200_000, |number| {
        number.parse().expect("MILLSTREAM_E2E_RECORDS is a number")
    });
    alone_in_temp_namespace("crashes", async |namespace| {
        let topic = orders::topic(namespace);
        namespace
            .apply(&orders::pipeline_with(namespace, json!({"replicas": 2})).to_string())
            .await?;
        namespace.ready(ORDERS).await?;
        let keys = (records / VERSIONS).max(1);
        let (mut model, started, mut under_load) = (Model::default(), Instant::now(), 0);
        for round in 0..ROUNDS {
            let numbers = records * round / ROUNDS..records * (round + 1) / ROUNDS;
            let batch = model.records(numbers, keys);
            let produced = namespace.kafka.produce(&topic, batch);
            match round {
                KAFKA => {
                    let (restarted, produced) =
                        tokio::join!(namespace.environment.restart("kafka"), produced);
                    restarted.and(produced)?;
                }
                CASSANDRA => {
                    let (restarted, produced) =
                        tokio::join!(namespace.environment.restart("cassandra"), produced);
                    restarted.and(produced)?;
                }
                _ => produced.await?,
            }
            if round == OPERATOR {
                namespace.kill(&operator_pod(namespace).await?).await?;
            }
            let loaded = kill_workers(namespace, round)
                .await
                .with_context(|| format!("round {round}"))?;
            under_load += u64::from(loaded);
        }
        println!(
            "{records} records and {ROUNDS} kills, {under_load} of them under load: {:.0?}",
            started.elapsed()
        );
        assert!(
            under_load >= ROUNDS / 2,
            "the workers were idle when they were killed"
        );
        assert_eq!(namespace.kafka.records(&topic)?, i64::try_from(records)?);
        namespace
            .drained(ORDERS, ORDERS, &topic, Duration::from_secs(240))
            .await?;
        println!("drained: {:.0?}", started.elapsed());
        // Cassandra has just been restarted: the session may need a moment, the rows may not.
        eventually(PATIENCE, async || {
            namespace
                .cassandra
                .tables(&orders::keyspace(namespace))
                .await
        })
        .await?;
        model.check(namespace).await?;
        assert_eq!(namespace.kafka.records(&format!("{topic}.dead-letter"))?, 0);
        namespace.ready(ORDERS).await?;
        Ok(())
    });
}
