//! A Keyspace resource is what is in Cassandra: created, adopted, extended; what would lose data is
//! refused.

use anyhow::{Context, Result, ensure};
use millstream_api::{Keyspace, condition};
use millstream_e2e::{
    Namespace, PATIENCE, await_condition, await_reason, eventually, with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders;

fn keyspace(name: &str, spec: Value) -> String {
    let (api, metadata) = ("millstream.dev/v1alpha1", json!({"name": name}));
    json!({"apiVersion": api, "kind": "Keyspace", "metadata": metadata, "spec": spec}).to_string()
}

fn columns(columns: &[(&str, &str)]) -> Value {
    columns
        .iter()
        .map(|(name, type_)| json!({"name": name, "type": type_}))
        .collect()
}

fn table(name: &str, of: &[(&str, &str)]) -> Value {
    json!({"name": name, "columns": columns(of), "primaryKey": {"partitionKey": ["id"]}})
}

async fn ready(namespace: &Namespace, name: &str) -> Result<Keyspace> {
    await_condition(&namespace.api(), name, condition::READY, PATIENCE).await
}

async fn has(
    namespace: &Namespace,
    keyspace: &str,
    table: &str,
    columns: &[(&str, &str)],
) -> Result<()> {
    let owned = columns
        .iter()
        .map(|(name, type_)| ((*name).to_owned(), (*type_).to_owned()));
    assert_eq!(
        namespace.cassandra.columns(keyspace, table).await?,
        owned.collect(),
        "{table}"
    );
    Ok(())
}

#[test]
fn tables_are_created_and_columns_and_options_follow_the_spec() {
    with_temp_namespace("keyspace", async |namespace| {
        let name = namespace.unique("created");
        let spec = |columns_: Value, gc_grace: i32, comment: &str| {
            json!({
                "keyspaceName": name,
                "replication": {"class": "SimpleStrategy", "replicationFactor": 1},
                "tables": [{
                    "name": "readings",
                    "columns": columns_,
                    "primaryKey": {"partitionKey": ["id"], "clusteringKey": [{"name": "at", "order": "DESC"}]},
                    "options": {"defaultTimeToLive": 864000, "gcGraceSeconds": gc_grace, "comment": comment},
                }, table("names", &[("id", "int"), ("name", "varchar")])],
            })
        };
        let first = [("id", "uuid"), ("at", "timestamp"), ("tags", "list<text>")];
        namespace
            .apply(&keyspace(
                "created",
                spec(columns(&first), 3600, "it's new"),
            ))
            .await?;
        let status = ready(namespace, "created")
            .await?
            .status
            .unwrap_or_default();
        assert_eq!(
            (status.tables, status.keyspace_name.as_deref()),
            (Some(2), Some(name.as_str()))
        );
        has(namespace, &name, "readings", &first).await?;
        has(
            namespace,
            &name,
            "names",
            &[("id", "int"), ("name", "text")],
        )
        .await?;
        let options = || async {
            let cql = format!(
                "SELECT default_time_to_live, gc_grace_seconds, comment \
                 FROM system_schema.tables WHERE keyspace_name = '{name}' AND table_name = 'readings'"
            );
            let rows = namespace
                .cassandra
                .select::<(i32, i32, String)>(&cql)
                .await?;
            rows.into_iter().next().context("the table is there")
        };
        assert_eq!(options().await?, (864_000, 3600, "it's new".to_owned()));
        let order = namespace.cassandra.select::<(String, String)>(format!(
            "SELECT column_name, clustering_order FROM system_schema.columns \
             WHERE keyspace_name = '{name}' AND table_name = 'readings' AND column_name = 'at'"
        ));
        assert_eq!(order.await?, [("at".to_owned(), "desc".to_owned())]);

        let insert =
            format!("INSERT INTO {name}.readings (id, at, tags) VALUES (uuid(), 0, ['ä'])");
        namespace.cassandra.execute(&insert).await?;
        let second = [first.as_slice(), &[("value", "double")]].concat();
        namespace
            .apply(&keyspace("created", spec(columns(&second), 7200, "grown")))
            .await?;
        ready(namespace, "created").await?;
        has(namespace, &name, "readings", &second).await?;
        assert_eq!(options().await?, (864_000, 7200, "grown".to_owned()));
        assert_eq!(
            namespace
                .cassandra
                .count(format!("{name}.readings"))
                .await?,
            1
        );

        // A column that is taken off the list stays: nothing is dropped.
        namespace
            .apply(&keyspace("created", spec(columns(&first), 7200, "grown")))
            .await?;
        ready(namespace, "created").await?;
        has(namespace, &name, "readings", &second).await?;
        Ok(())
    });
}

#[test]
fn a_changed_type_or_primary_key_is_refused_and_nothing_is_altered() {
    with_temp_namespace("keyspace", async |namespace| {
        let name = namespace.unique("adopted");
        let existing = [("id", "uuid"), ("age", "text")];
        for cql in [
            format!(
                "CREATE KEYSPACE {name} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
            ),
            format!("CREATE TABLE {name}.people (id uuid PRIMARY KEY, age text)"),
            format!("INSERT INTO {name}.people (id, age) VALUES (uuid(), 'quarante')"),
        ] {
            namespace.cassandra.execute(&cql).await?;
        }
        let spec = |people: Value| json!({"keyspaceName": name, "tables": [people, table("pets", &[("id", "int")])]});
        let keyspaces = namespace.api::<Keyspace>();
        let incompatible = condition::reason::INCOMPATIBLE;

        let changed = table(
            "people",
            &[("id", "uuid"), ("age", "int"), ("added", "text")],
        );
        namespace.apply(&keyspace("adopted", spec(changed))).await?;
        let message = await_reason(
            &keyspaces,
            "adopted",
            condition::READY,
            incompatible,
            PATIENCE,
        )
        .await?;
        for word in ["people", "age", "text", "int"] {
            assert!(message.contains(word), "`{word}` isn't in: {message}");
        }
        has(namespace, &name, "people", &existing).await?;
        has(namespace, &name, "pets", &[("id", "int")]).await?;

        let mut changed = table(
            "people",
            &[("id", "uuid"), ("age", "text"), ("added", "text")],
        );
        changed["primaryKey"] = json!({"partitionKey": ["id"], "clusteringKey": [{"name": "age"}]});
        namespace.apply(&keyspace("adopted", spec(changed))).await?;
        let message = await_reason(
            &keyspaces,
            "adopted",
            condition::READY,
            incompatible,
            PATIENCE,
        )
        .await?;
        assert!(
            message.contains("people") && message.contains("age"),
            "{message}"
        );
        assert!(message.to_lowercase().contains("primary key"), "{message}");
        has(namespace, &name, "people", &existing).await?;

        let mended = table(
            "people",
            &[("id", "uuid"), ("age", "varchar"), ("added", "text")],
        );
        namespace.apply(&keyspace("adopted", spec(mended))).await?;
        ready(namespace, "adopted").await?;
        has(
            namespace,
            &name,
            "people",
            &[("id", "uuid"), ("age", "text"), ("added", "text")],
        )
        .await?;
        let ages = namespace
            .cassandra
            .select::<(String,)>(format!("SELECT age FROM {name}.people"));
        assert_eq!(
            ages.await?,
            [("quarante".to_owned(),)],
            "the row is untouched"
        );
        Ok(())
    });
}

#[test]
fn the_deletion_policy_decides_what_stays_in_cassandra() {
    with_temp_namespace("keyspace", async |namespace| {
        let names = ["kept", "removed", "shared"].map(|stem| namespace.unique(stem));
        let [kept, removed, shared] = &names;
        for (resource, name, policy) in [
            ("kept", kept, "Retain"),
            ("removed", removed, "Delete"),
            ("shared", shared, "Delete"),
        ] {
            let spec = json!({
                "keyspaceName": name, "deletionPolicy": policy, "tables": [table("ours", &[("id", "int")])],
            });
            namespace.apply(&keyspace(resource, spec)).await?;
            ready(namespace, resource).await?;
        }
        namespace
            .cassandra
            .execute(&format!(
                "CREATE TABLE {shared}.theirs (id int PRIMARY KEY)"
            ))
            .await?;
        namespace
            .kubectl(&["delete", "keyspaces", "kept", "removed", "shared"])
            .await?
            .ok()?;
        assert_eq!(namespace.cassandra.tables(kept).await?, ["ours"]);
        assert_eq!(
            namespace.cassandra.tables(shared).await?,
            ["theirs"],
            "others' tables stay"
        );
        assert!(!namespace.cassandra.keyspaces().await?.contains(removed));
        Ok(())
    });
}

/// As with definitions that are newer than the operator.
#[test]
fn one_that_the_operator_cannot_read_keeps_its_status_and_can_be_deleted() {
    with_temp_namespace("keyspace", async |namespace| {
        let name = namespace.unique("odd");
        let apply = async |replication: Value| {
            let spec = json!({
                "keyspaceName": name, "deletionPolicy": "Delete", "replication": replication,
                "tables": [table("ours", &[("id", "int")])],
            });
            namespace.apply(&keyspace("odd", spec)).await
        };
        let readable = json!({"class": "SimpleStrategy", "replicationFactor": 1});
        // The definition has no maximum here, and the operator counts replicas in 32 bits.
        let unreadable =
            json!({"class": "NetworkTopologyStrategy", "datacenters": {"dc1": 5_000_000_000_u64}});
        let is_told = async || {
            let get = ["get", "keyspace", "odd", "-o", "json"];
            let live: Value = serde_json::from_str(&namespace.kubectl(&get).await?.ok()?)?;
            let status = &live["status"];
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            let ready = conditions.find(|of| of["type"] == condition::READY);
            let ready = ready.context("no condition Ready")?;
            ensure!(
                ready["reason"] == condition::reason::INVALID_SPEC,
                "{ready}"
            );
            ensure!(
                ready["observedGeneration"] == live["metadata"]["generation"],
                "{ready}"
            );
            anyhow::Ok(status.clone())
        };
        apply(readable.clone()).await?;
        let before = ready(namespace, "odd").await?.status.unwrap_or_default();

        apply(unreadable.clone()).await?;
        let status = eventually(PATIENCE, &is_told).await?;
        assert_eq!(status["keyspaceName"], name.as_str());
        assert_eq!(status["tables"], 1);

        apply(readable).await?;
        let mut after = ready(namespace, "odd").await?.status.unwrap_or_default();
        after.observed_generation = before.observed_generation;
        for (after, before) in after.conditions.iter_mut().zip(&before.conditions) {
            after.observed_generation = before.observed_generation;
            after.last_transition_time = before.last_transition_time.clone();
        }
        assert_eq!(after, before);

        apply(unreadable).await?;
        eventually(PATIENCE, &is_told).await?;
        let delete = ["delete", "keyspace", "odd", "--timeout=90s"];
        namespace.kubectl(&delete).await?.ok()?;
        let of = "--field-selector=reason=LeftBehind,involvedObject.name=odd";
        let get = ["get", "events", of, "-o", "jsonpath={.items[*].message}"];
        let left = namespace.kubectl(&get).await?.ok()?;
        assert!(left.contains("can't be read"), "{left}");
        assert_eq!(namespace.cassandra.tables(&name).await?, ["ours"]);
        Ok(())
    });
}

#[test]
fn two_pipelines_share_a_keyspace() {
    with_temp_namespace("keyspace", async |namespace| {
        let name = orders::keyspace(namespace);
        for pipeline in ["first", "second"] {
            let mut manifest = orders::pipeline_with(
                namespace,
                json!({
                    "topic": {"name": namespace.unique(pipeline), "partitions": 1},
                    "deletionPolicy": "Delete",
                }),
            );
            manifest["metadata"]["name"] = pipeline.into();
            manifest["spec"]["sinks"][0]["cassandra"]["table"] = pipeline.into();
            namespace.apply(&manifest.to_string()).await?;
        }
        for pipeline in ["first", "second"] {
            namespace.ready(pipeline).await?;
            namespace
                .kafka
                .produce(&namespace.unique(pipeline), orders::plain(0..10))
                .await?;
        }
        let mut tables = namespace.cassandra.tables(&name).await?;
        tables.sort();
        assert_eq!(tables, ["first", "second"]);
        let resources = namespace
            .api::<Keyspace>()
            .list(&Default::default())
            .await?
            .items;
        assert_eq!(resources.len(), 1, "one resource for one keyspace");

        namespace
            .kubectl(&["delete", "datapipeline", "first"])
            .await?
            .ok()?;
        assert_eq!(namespace.cassandra.tables(&name).await?, ["second"]);
        let topic = namespace.unique("second");
        namespace
            .kafka
            .produce(&topic, orders::plain(10..20))
            .await?;
        namespace
            .drained("second", orders::ORDERS, &topic, PATIENCE)
            .await?;
        assert_eq!(
            namespace.cassandra.count(format!("{name}.second")).await?,
            20
        );
        namespace.ready("second").await?;
        Ok(())
    });
}
