//! Records are joined with a table and with a file; nothing is joined before both are there.

use anyhow::ensure;
use kube::Api;
use millstream_api::{
    DataPipeline, Keyspace,
    condition::{READY, RUNNING, reason},
};
use millstream_e2e::{Namespace, PATIENCE, await_condition, await_reason, with_temp_namespace};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

const SQL: &str = "SELECT r.id, c.name AS country, s.word AS size FROM records r \
    LEFT JOIN countries c ON r.note = c.code JOIN sizes s ON r.version = s.number";

fn keyspace(namespace: &Namespace) -> Value {
    let columns = json!([{"name": "code", "type": "text"}, {"name": "name", "type": "text"}]);
    json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "Keyspace",
        "metadata": {"name": "shop"},
        "spec": {
            "keyspaceName": orders::keyspace(namespace),
            "replication": {"class": "SimpleStrategy", "replicationFactor": 1},
            "tables": [{
                "name": "countries", "columns": columns, "primaryKey": {"partitionKey": ["code"]},
            }],
        },
    })
}

fn sizes() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "sizes"},
        "data": {"sizes.csv": "number,word\n1,small\n2,large\n"},
    })
}

fn pipeline(namespace: &Namespace) -> Value {
    let mut pipeline = orders::pipeline(namespace);
    pipeline["spec"]["sinks"][0]["sql"] = json!(SQL);
    pipeline["spec"]["lookups"] = json!([
        {
            "name": "countries", "refresh": "1s",
            "cassandra": {"keyspace": orders::keyspace(namespace), "table": "countries"},
        },
        {
            "name": "sizes", "schema": "number INT, word TEXT",
            "file": {"path": "/lookups/sizes/sizes.csv", "volume": {"configMap": {"name": "sizes"}}},
        },
    ]);
    pipeline
}

#[test]
fn records_are_joined_with_a_table_and_a_file() {
    with_temp_namespace("lookups", async |namespace| {
        namespace.apply(&keyspace(namespace).to_string()).await?;
        let keyspaces: Api<Keyspace> = namespace.api();
        await_condition(&keyspaces, "shop", READY, PATIENCE).await?;
        namespace.apply(&sizes().to_string()).await?;
        namespace.apply(&pipeline(namespace).to_string()).await?;

        // The table is empty: no row is joined with nothing in silence.
        let pipelines: Api<DataPipeline> = namespace.api();
        let message =
            await_reason(&pipelines, ORDERS, RUNNING, reason::WORKER_ERROR, PATIENCE).await?;
        ensure!(
            message.contains("lookup `countries` can't be read: it has no rows"),
            "{message}"
        );
        let countries = format!("{}.countries", orders::keyspace(namespace));
        let insert = format!("INSERT INTO {countries} (code, name) VALUES ('JP', 'Japan')");
        namespace.cassandra.execute(&insert).await?;
        namespace.ready(ORDERS).await?;

        let topic = orders::topic(namespace);
        let order = |number: u64, version: i32, note: &str| {
            let id = orders::id(number);
            orders::record(&json!({"id": id, "version": version, "note": note}))
        };
        let records = [order(0, 1, "JP"), order(1, 2, "XX"), order(2, 3, "JP")];
        namespace.kafka.produce(&topic, records).await?;
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        let rows = format!("SELECT id, country, size FROM {}", orders::table(namespace));
        let mut rows: Vec<(uuid::Uuid, Option<String>, String)> =
            namespace.cassandra.select(rows).await?;
        rows.sort();
        let expected = [
            (orders::id(0), Some("Japan".to_owned()), "small".to_owned()),
            (orders::id(1), None, "large".to_owned()),
        ];
        assert_eq!(rows, expected);
        Ok(())
    });
}
