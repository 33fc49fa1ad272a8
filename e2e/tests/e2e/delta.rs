//! Delta Lake tables on a volume: each record once, though pods are killed.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};
use millstream_e2e::{Namespace, PATIENCE, with_temp_namespace};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

/// A folder of this machine as a PersistentVolume, and a claim on it.
fn volume(namespace: &Namespace, folder: &Path) -> String {
    let name = format!("lake-{}", namespace.name);
    let size = json!({"storage": "1Gi"});
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": folder, "type": "Directory"},
            "claimRef": {"namespace": namespace.name, "name": "lake"},
        },
    });
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "lake"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": size},
        },
    });
    format!("{volume}\n---\n{claim}\n")
}

fn sink(name: &str, more: Value) -> Value {
    let mut delta = json!({
        "volume": {"persistentVolumeClaim": {"claimName": "lake"}, "path": format!("shop/{name}")},
        "commitInterval": "1s",
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        delta[field] = value.clone();
    }
    json!({"name": name, "sql": "SELECT id, version, name FROM records", "delta": delta})
}

/// Rows of a table, by its log.
pub fn rows(table: &Path) -> Result<i64> {
    let log = table.join("_delta_log");
    let mut commits = Vec::new();
    for entry in std::fs::read_dir(&log).with_context(|| log.display().to_string())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            commits.push(path);
        }
    }
    commits.sort();
    let mut files = BTreeMap::new();
    for commit in commits {
        for line in std::fs::read_to_string(commit)?.lines() {
            let action: Value = serde_json::from_str(line)?;
            if let Some(path) = action["add"]["path"].as_str() {
                let stats = action["add"]["stats"].as_str().context("statistics")?;
                let stats: Value = serde_json::from_str(stats)?;
                let rows = stats["numRecords"].as_i64().context("a count")?;
                files.insert(path.to_owned(), rows);
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                files.remove(path);
            }
        }
    }
    Ok(files.into_values().sum())
}

#[test]
fn tables_on_a_volume_have_each_record_once() {
    with_temp_namespace("delta", async |namespace| {
        let folder = tempfile::tempdir()?;
        // Pods aren't root.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
        namespace.apply(&volume(namespace, folder.path())).await?;
        let merge = json!({"mode": "merge", "mergeKeys": ["id"]});
        let sinks = json!([sink("events", json!({})), sink("latest", merge)]);
        let pipeline = orders::pipeline_with(namespace, json!({"sinks": sinks}));
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(ORDERS).await?;

        let topic = orders::topic(namespace);
        for round in 0..3 {
            // Half of them come again in the next round.
            let numbers = round * 100..round * 100 + 200;
            namespace
                .kafka
                .produce(&topic, orders::plain(numbers))
                .await?;
            for pod in namespace.pods(ORDERS, "process").await? {
                namespace.kill(&pod).await?;
            }
        }
        for sink in ["events", "latest"] {
            namespace.drained(ORDERS, sink, &topic, PATIENCE).await?;
        }
        assert_eq!(rows(&folder.path().join("shop/events"))?, 600);
        assert_eq!(rows(&folder.path().join("shop/latest"))?, 400);
        let name = format!("lake-{}", namespace.name);
        namespace
            .kubectl(&["delete", "persistentvolume", &name, "--wait=false"])
            .await?
            .ok()?;
        Ok(())
    });
}
