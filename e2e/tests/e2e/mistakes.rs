//! A mistake is told in plain words, harms nothing else, and is mended by mending the YAML.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use millstream_api::DataPipeline;
use millstream_api::condition::{READY, reason};
use millstream_e2e::{
    Namespace, PATIENCE, await_reason, eventually, operator_pod, with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

/// A pipeline that does nothing wrong, beside one that does; and the operator, which isn't
/// restarted.
struct Bystander<'a> {
    namespace: &'a Namespace,
    pods: Vec<String>,
    operator: (Option<String>, i32),
}

const BYSTANDER: &str = "bystander";

impl<'a> Bystander<'a> {
    async fn start(namespace: &'a Namespace) -> Result<Self> {
        let mut manifest = orders::pipeline_with(
            namespace,
            json!({
                "topic": {"name": namespace.unique(BYSTANDER), "partitions": 1},
            }),
        );
        manifest["metadata"]["name"] = BYSTANDER.into();
        manifest["spec"]["sinks"][0]["cassandra"]["table"] = BYSTANDER.into();
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(BYSTANDER).await?;
        let pods = uids(&namespace.ready_pods(BYSTANDER, "process", 1).await?);
        Ok(Bystander {
            namespace,
            pods,
            operator: operator(namespace).await?,
        })
    }

    /// It still runs in the same pods, and takes records.
    async fn stays_unharmed(self) -> Result<()> {
        let topic = self.namespace.unique(BYSTANDER);
        self.namespace
            .kafka
            .produce(&topic, orders::plain(0..10))
            .await?;
        self.namespace
            .drained(BYSTANDER, ORDERS, &topic, PATIENCE)
            .await?;
        let table = format!("{}.{BYSTANDER}", orders::keyspace(self.namespace));
        assert_eq!(self.namespace.cassandra.count(&table).await?, 10);
        assert_eq!(
            uids(&self.namespace.pods(BYSTANDER, "process").await?),
            self.pods
        );
        assert_eq!(
            operator(self.namespace).await?,
            self.operator,
            "the operator was restarted"
        );
        Ok(())
    }
}

fn uids(pods: &[Pod]) -> Vec<String> {
    pods.iter().filter_map(ResourceExt::uid).collect()
}

/// The operator's identity, and how often it was restarted.
async fn operator(namespace: &Namespace) -> Result<(Option<String>, i32)> {
    let pod = operator_pod(namespace).await?;
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    Ok((
        pod.uid(),
        statuses
            .into_iter()
            .flatten()
            .map(|status| status.restart_count)
            .sum(),
    ))
}

/// Applies the pipeline, and awaits `Ready=False` with that reason; its message has all the words.
async fn mistaken(
    namespace: &Namespace,
    pipeline: &Value,
    reason: &str,
    words: &[&str],
) -> Result<()> {
    namespace.apply(&pipeline.to_string()).await?;
    let pipelines: Api<DataPipeline> = namespace.api();
    eventually(PATIENCE, async || {
        let message = await_reason(&pipelines, ORDERS, READY, reason, PATIENCE).await?;
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !message.contains(**word))
            .collect();
        ensure!(
            missing.is_empty(),
            "{missing:?} aren't in the message: {message}"
        );
        Ok(())
    })
    .await
}

/// Applies the pipeline as it should be: it becomes ready and takes records.
async fn mended(namespace: &Namespace, pipeline: &Value) -> Result<()> {
    namespace.apply(&pipeline.to_string()).await?;
    namespace.ready(ORDERS).await?;
    orders::store(namespace, 0..10).await?;
    let sink = &pipeline["spec"]["sinks"][0]["cassandra"];
    let table = [&sink["keyspace"], &sink["table"]].map(|name| name.as_str().unwrap_or_default());
    assert_eq!(namespace.cassandra.count(&table.join(".")).await?, 10);
    Ok(())
}

#[test]
fn kubectl_apply_says_no_to_what_is_no_pipeline() {
    with_temp_namespace("mistakes", async |namespace| {
        let unknown = orders::pipeline_with(namespace, json!({"sorce": {}}));
        let refusal = namespace.refused(&unknown.to_string()).await?;
        assert!(
            refusal.contains("unknown field \"spec.sorce\""),
            "{refusal}"
        );

        let two = json!({"source": {"generator": {}, "http": {"url": "http://example.com"}}});
        let refusal = namespace
            .refused(&orders::pipeline_with(namespace, two).to_string())
            .await?;
        assert!(
            refusal
                .contains("exactly one of http, file, database, topic and generator must be set"),
            "{refusal}"
        );
        assert!(refusal.contains("spec.source"), "{refusal}");
        Ok(())
    });
}

#[test]
fn sql_that_cannot_work_is_explained() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let mut pipeline = orders::pipeline(namespace);
        let right = pipeline.clone();
        let sql = "/spec/sinks/0/sql";
        for (mistake, words) in [
            (
                "SELECT id,\n  nam FROM records",
                vec![ORDERS, "line 2", "`nam`", "`name`"],
            ),
            (
                "SELECT id, name FROM record",
                vec![ORDERS, "line 1", "records"],
            ),
            ("SELECT id, name FORM records", vec![ORDERS, "line 1"]),
            (
                "SELECT id, name, count(*) AS n FROM records GROUP BY id",
                vec![ORDERS, "GROUP BY"],
            ),
        ] {
            *pipeline.pointer_mut(sql).expect("a sink has SQL") = mistake.into();
            mistaken(namespace, &pipeline, reason::INVALID_SQL, &words).await?;
        }
        let mut schema = right.clone();
        schema["spec"]["schema"] = "id UUID,\n version INTT".into();
        mistaken(namespace, &schema, reason::INVALID_SQL, &["line 2", "INTT"]).await?;
        mended(namespace, &right).await?;

        // What runs keeps running on its last good spec.
        *pipeline.pointer_mut(sql).expect("a sink has SQL") = "SELECT id, nmae FROM records".into();
        mistaken(namespace, &pipeline, reason::INVALID_SQL, &["nmae"]).await?;
        orders::store(namespace, 10..20).await?;
        assert_eq!(
            namespace.cassandra.count(&orders::table(namespace)).await?,
            20
        );
        bystander.stays_unharmed().await
    });
}

#[test]
fn a_result_that_does_not_fit_the_table_is_explained() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let declared = json!({
            "apiVersion": "millstream.dev/v1alpha1", "kind": "Keyspace", "metadata": {"name": "declared"},
            "spec": {"keyspaceName": namespace.unique("declared"), "tables": [{
                "name": "typed",
                "columns": [{"name": "id", "type": "uuid"}, {"name": "version", "type": "text"}],
                "primaryKey": {"partitionKey": ["id"]},
            }]},
        });
        namespace.apply(&declared.to_string()).await?;
        let mut pipeline = orders::pipeline(namespace);
        let sink = &mut pipeline["spec"]["sinks"][0];
        sink["cassandra"] = json!({"keyspace": namespace.unique("declared"), "table": "typed"});
        sink["sql"] = "SELECT id, version FROM records".into();
        mistaken(
            namespace,
            &pipeline,
            reason::INVALID_SQL,
            &[ORDERS, "version", "typed", "CAST"],
        )
        .await?;
        pipeline["spec"]["sinks"][0]["sql"] = "SELECT id, version, name FROM records".into();
        mistaken(
            namespace,
            &pipeline,
            reason::INVALID_SQL,
            &[ORDERS, "typed"],
        )
        .await?;
        pipeline["spec"]["sinks"][0]["sql"] =
            "SELECT id, CAST(version AS TEXT) AS version FROM records".into();
        mended(namespace, &pipeline).await?;
        bystander.stays_unharmed().await
    });
}

#[test]
fn a_table_with_another_primary_key_is_explained_and_left_alone() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let table = orders::table(namespace);
        let cql = format!("CREATE TABLE {table} (name text PRIMARY KEY, id uuid)");
        namespace.cassandra.execute(&cql).await?;
        let mut pipeline = orders::pipeline(namespace);
        mistaken(
            namespace,
            &pipeline,
            reason::INCOMPATIBLE,
            &[ORDERS, "name", "id"],
        )
        .await?;
        let columns = namespace
            .cassandra
            .columns(&orders::keyspace(namespace), ORDERS)
            .await?;
        assert_eq!(columns.len(), 2, "nothing was altered: {columns:?}");
        pipeline["spec"]["sinks"][0]["cassandra"]["table"] = "orders_by_id".into();
        mended(namespace, &pipeline).await?;
        bystander.stays_unharmed().await
    });
}

#[test]
fn replicas_that_kafka_has_no_brokers_for_are_mended_by_fewer() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let mut pipeline = orders::pipeline(namespace);
        pipeline["spec"]["topic"]["replicationFactor"] = json!(3);
        let words = [ORDERS, "replication factor"];
        mistaken(namespace, &pipeline, reason::KAFKA_REFUSED, &words).await?;
        pipeline["spec"]["topic"]["replicationFactor"] = json!(1);
        mended(namespace, &pipeline).await?;
        bystander.stays_unharmed().await
    });
}

#[test]
fn more_partitions_than_a_topic_has_are_mended_by_its_number() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let topic = orders::topic(namespace);
        namespace.kafka.create_topic(&topic, 2, &[]).await?;
        let mut pipeline = orders::pipeline(namespace);
        let words = ["2 partitions", "4 are declared", "declare 2"];
        mistaken(namespace, &pipeline, reason::INCOMPATIBLE, &words).await?;
        pipeline["spec"]["topic"]["partitions"] = json!(2);
        mended(namespace, &pipeline).await?;
        assert_eq!(namespace.kafka.partitions(&topic)?, Some(2));
        bystander.stays_unharmed().await
    });
}

#[test]
fn another_key_of_a_topic_with_groups_is_explained_and_what_runs_goes_on() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let mut pipeline = orders::pipeline(namespace);
        let sink = &mut pipeline["spec"]["sinks"][0];
        sink["sql"] = "SELECT id, name, count(*) AS records FROM records GROUP BY id, name".into();
        sink["cassandra"]["primaryKey"] =
            json!({"partitionKey": ["id"], "clusteringKey": [{"name": "name"}]});
        let right = pipeline.clone();
        mended(namespace, &right).await?;

        // The primary keys of both have but the name in common.
        let by_name = json!({
            "name": "by-name",
            "sql": "SELECT name, id FROM records",
            "cassandra": {
                "keyspace": orders::keyspace(namespace),
                "table": "by_name",
                "primaryKey": {"partitionKey": ["name"]},
            },
        });
        let sinks = pipeline["spec"]["sinks"].as_array_mut();
        sinks.expect("a pipeline has sinks").push(by_name);
        let words = [ORDERS, "`/id`", "`/name`", "topic.key: [/id]", "a new name"];
        mistaken(namespace, &pipeline, reason::INCOMPATIBLE, &words).await?;
        orders::store(namespace, 10..20).await?;
        let table = orders::table(namespace);
        assert_eq!(namespace.cassandra.count(&table).await?, 20);

        // The topic outlives the pipeline, and so does what it is keyed by.
        let deleted = namespace.kubectl(&["delete", "datapipeline", ORDERS]);
        deleted.await?.ok()?;
        mistaken(namespace, &pipeline, reason::INCOMPATIBLE, &words).await?;
        namespace.apply(&right.to_string()).await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 20..30).await?;
        assert_eq!(namespace.cassandra.count(&table).await?, 30);
        bystander.stays_unharmed().await
    });
}

#[test]
fn another_table_for_groups_is_explained_and_what_runs_goes_on() {
    with_temp_namespace("mistakes", async |namespace| {
        let mut pipeline = orders::pipeline(namespace);
        let sink = &mut pipeline["spec"]["sinks"][0];
        sink["sql"] = "SELECT id, count(*) AS records FROM records GROUP BY id".into();
        mended(namespace, &pipeline).await?;

        pipeline["spec"]["sinks"][0]["cassandra"]["table"] = "elsewhere".into();
        let words = [ORDERS, ".orders`", ".elsewhere`", "a new name"];
        mistaken(namespace, &pipeline, reason::INCOMPATIBLE, &words).await?;
        orders::store(namespace, 10..20).await?;
        let table = orders::table(namespace);
        assert_eq!(namespace.cassandra.count(&table).await?, 20);

        // A sink of a new name begins with the first record.
        pipeline["spec"]["sinks"][0]["name"] = "again".into();
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let topic = orders::topic(namespace);
        namespace.drained(ORDERS, "again", &topic, PATIENCE).await?;
        let table = format!("{}.elsewhere", orders::keyspace(namespace));
        assert_eq!(namespace.cassandra.count(&table).await?, 20);
        Ok(())
    });
}

/// Waits until there are more rows than now.
async fn more_rows(namespace: &Namespace) -> Result<()> {
    let table = orders::table(namespace);
    let before = namespace.cassandra.count(&table).await?;
    eventually(PATIENCE, async || {
        let rows = namespace.cassandra.count(&table).await?;
        ensure!(rows > before, "there are still {rows} rows");
        Ok(())
    })
    .await
}

#[test]
fn a_schema_that_cannot_read_the_topic_is_explained_and_what_runs_goes_on() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let spec = json!({
            "source": {"generator": {"rate": 20}},
            "topic": {"name": orders::topic(namespace), "partitions": 1, "encoding": "avro"},
        });
        let mut pipeline = orders::pipeline_with(namespace, spec);
        // The table has nothing to do with the field that changes.
        pipeline["spec"]["sinks"][0]["sql"] = "SELECT id, name FROM records".into();
        let right = pipeline.clone();
        namespace.apply(&right.to_string()).await?;
        namespace.ready(ORDERS).await?;
        more_rows(namespace).await?;
        let pods = async || {
            let mut pods = namespace.ready_pods(ORDERS, "process", 1).await?;
            pods.extend(namespace.ready_pods(ORDERS, "ingest", 1).await?);
            anyhow::Ok(uids(&pods))
        };
        let before = pods().await?;

        pipeline["spec"]["schema"] =
            "id UUID, version INT, name TEXT, note TEXT, amount TEXT".into();
        let words = ["`amount`", "take the change back"];
        mistaken(namespace, &pipeline, reason::INCOMPATIBLE_SCHEMA, &words).await?;
        more_rows(namespace).await?;
        assert_eq!(pods().await?, before);

        namespace.apply(&right.to_string()).await?;
        namespace.ready(ORDERS).await?;
        more_rows(namespace).await?;
        assert_eq!(pods().await?, before);
        // A field more is no mistake.
        pipeline["spec"]["schema"] =
            "id UUID, version INT, name TEXT, note TEXT, amount DOUBLE, colour TEXT".into();
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(ORDERS).await?;
        bystander.stays_unharmed().await
    });
}

#[test]
fn a_kafka_that_does_not_answer_is_named() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let (host, _) = namespace
            .environment
            .in_cluster
            .kafka
            .rsplit_once(':')
            .unwrap_or_default();
        let nowhere = format!("{host}:1");
        let pipeline =
            orders::pipeline_with(namespace, json!({"kafka": {"bootstrapServers": nowhere}}));
        mistaken(namespace, &pipeline, reason::KAFKA_UNREACHABLE, &[&nowhere]).await?;
        mended(namespace, &orders::pipeline(namespace)).await?;
        bystander.stays_unharmed().await
    });
}

fn secret(name: &str, user: &str, password: &str) -> Value {
    let data = json!({"username": user, "password": password});
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

#[test]
fn wrong_passwords_and_missing_secrets_are_named_and_never_shown() {
    with_temp_namespace("mistakes", async |namespace| {
        let bystander = Bystander::start(namespace).await?;
        let environment = &namespace.environment;
        let mut pipeline = orders::pipeline_with(
            namespace,
            json!({
                "kafka": {
                    "bootstrapServers": environment.in_cluster.kafka_sasl,
                    "sasl": {"mechanism": "SCRAM-SHA-512", "credentialsSecret": {"name": "kafka-login"}},
                },
                "cassandra": {
                    "contactPoints": [environment.in_cluster.cassandra],
                    "datacenter": "datacenter1",
                    "credentialsSecret": {"name": "cassandra-login"},
                },
            }),
        );
        // One that it shares would be reached as the other pipeline says.
        pipeline["spec"]["sinks"][0]["cassandra"]["keyspace"] = namespace.unique("login").into();
        mistaken(namespace, &pipeline, reason::SECRET_MISSING, &["login"]).await?;

        let right_kafka = secret(
            "kafka-login",
            &environment.kafka_user,
            &environment.kafka_password,
        );
        let right_cassandra = secret(
            "cassandra-login",
            &environment.cassandra_user,
            &environment.cassandra_password,
        );
        let wrong_kafka = secret("kafka-login", &environment.kafka_user, "sesame-4711");
        let wrong_cassandra = secret(
            "cassandra-login",
            &environment.cassandra_user,
            "sesame-4711",
        );

        for (secret, other, refused, name) in [
            (
                &wrong_kafka,
                &right_cassandra,
                reason::KAFKA_REFUSED,
                "kafka-login",
            ),
            (
                &right_kafka,
                &wrong_cassandra,
                reason::CASSANDRA_REFUSED,
                "cassandra-login",
            ),
        ] {
            namespace.apply(&secret.to_string()).await?;
            namespace.apply(&other.to_string()).await?;
            mistaken(namespace, &pipeline, refused, &[name]).await?;
            let seen = namespace
                .kubectl(&["get", "millstream,events,configmaps", "-o", "yaml"])
                .await?
                .ok()?;
            assert!(
                !seen.contains("sesame-4711"),
                "a password is to be read in a resource"
            );
        }
        namespace.apply(&right_cassandra.to_string()).await?;
        mended(namespace, &pipeline).await?;
        bystander.stays_unharmed().await
    });
}
