//! A pipeline whose records the tests put into its topic themselves, so that they know each one.

use anyhow::Result;
use millstream_e2e::{Namespace, PATIENCE, Record};
use serde_json::{Value, json};
use uuid::Uuid;

/// Name of the pipeline and of its sink; table of the sink.
pub const ORDERS: &str = "orders";

/// The pipeline's topic in Kafka.
pub fn topic(namespace: &Namespace) -> String {
    namespace.unique("orders")
}

/// The sink's keyspace.
pub fn keyspace(namespace: &Namespace) -> String {
    namespace.unique("shop")
}

/// The sink's table, with its keyspace.
pub fn table(namespace: &Namespace) -> String {
    format!("{}.{ORDERS}", keyspace(namespace))
}

/// The pipeline. Its generator makes no records.
pub fn pipeline(namespace: &Namespace) -> Value {
    json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "DataPipeline",
        "metadata": {"name": ORDERS},
        "spec": {
            "source": {"generator": {"count": 0}},
            "schema": "id UUID, version INT, name TEXT, note TEXT, amount DOUBLE",
            "topic": {"name": topic(namespace), "partitions": 4},
            "sinks": [{
                "name": ORDERS,
                "sql": "SELECT id, version, name, note, amount FROM records",
                "cassandra": {
                    "keyspace": keyspace(namespace),
                    "table": ORDERS,
                    "primaryKey": {"partitionKey": ["id"]},
                },
            }],
        },
    })
}

/// The pipeline with some of its spec's fields replaced, top level only.
pub fn pipeline_with(namespace: &Namespace, spec: Value) -> Value {
    let mut pipeline = pipeline(namespace);
    if let Value::Object(fields) = spec {
        for (field, value) in fields {
            pipeline["spec"][field] = value;
        }
    }
    pipeline
}

/// The id of the order with that number: the same in each run.
pub fn id(number: u64) -> Uuid {
    Uuid::from_u64_pair(0x6f72_6465_7273_4000, 0x8000_0000_0000_0000 | number)
}

/// A record of the topic: keyed by its id, as the ingest stage keys it.
pub fn record(order: &Value) -> Record {
    Record::keyed(order["id"].as_str().unwrap_or_default(), order.to_string())
}

/// Puts plain orders into the topic, and waits until the sink has acknowledged them.
pub async fn store(namespace: &Namespace, numbers: std::ops::Range<u64>) -> Result<()> {
    let topic = topic(namespace);
    namespace.kafka.produce(&topic, plain(numbers)).await?;
    namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await
}

/// So many plain orders from that number on.
pub fn plain(numbers: std::ops::Range<u64>) -> impl Iterator<Item = Record> {
    numbers.map(|number| {
        record(&json!({"id": id(number), "version": 1, "name": format!("Jürgen {number}")}))
    })
}
