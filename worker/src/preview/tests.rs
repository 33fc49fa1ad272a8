use clap::Parser;
use serde_json::json;

use super::*;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    preview: Preview,
}

/// The arguments of a preview of this pipeline, which is in a folder of its own.
fn arguments(folder: &tempfile::TempDir, pipeline: &str, more: &[&str]) -> Preview {
    let path = folder.path().join("pipeline.yaml");
    std::fs::write(&path, pipeline).unwrap();
    let (file, dir) = (path.to_str().unwrap(), folder.path().to_str().unwrap());
    let given = ["preview", "-f", file, "--credentials-dir", dir];
    let given = given.into_iter().chain(more.iter().copied());
    Arguments::parse_from(given).preview
}

async fn shown(arguments: &Preview) -> anyhow::Result<String> {
    let (pipeline, accepted) = pipeline(arguments)?;
    let previewed = preview(&pipeline, accepted.as_ref(), arguments).await?;
    Ok(print::table(&previewed, None))
}

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().unwrap())
}

/// Runs by a schedule and after another pipeline, joins a file, is Avro in between, and has a sink
/// with groups whose rows go to Delta Lake.
const PIPELINE: &str = "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: orders}
spec:
  schedule: {cron: '0 4 1 1 *'}
  after: [others]
  source: {file: {path: /orders.csv}}
  schema: id BIGINT, country TEXT, total DOUBLE
  topic: {encoding: avro}
  lookups:
    - name: countries
      file: {path: /countries.csv}
      schema: code TEXT, name TEXT
  sinks:
    - name: orders
      sql: SELECT r.id, c.name AS country FROM records r LEFT JOIN countries c ON r.country = c.code
      expectations: [{name: known, check: country IS NOT NULL}]
      cassandra: {keyspace: shop, table: orders, primaryKey: {partitionKey: [id]}}
    - name: counts
      sql: SELECT id, count(*) AS orders FROM records GROUP BY id
      delta: {volume: {persistentVolumeClaim: {claimName: lake}, path: counts}, mode: merge, mergeKeys: [id]}
      state: {keyspace: shop, table: counts}
";

#[tokio::test(flavor = "multi_thread")]
async fn all_that_becomes_of_records_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let orders = "id,country,total\n1,AT,3.5\n2,XX,4\n1,AT,1\n4,DE,88888,2\n5,DE,many\n,DE,5\n";
    write("orders.csv", orders);
    write("countries.csv", "code,name\nAT,Austria\nDE,Germany\n");
    let root = ["--root", folder.path().to_str().unwrap()];
    let text = shown(&arguments(&folder, PIPELINE, &root)).await.unwrap();
    for part in [
        "2 records of the source can't be read, and would go to the dead letter:\n",
        "1 of 4 records would not get into the topic:\n  record 3: the key field `/id` is",
        "sink `orders` → shop.orders (2 rows of 3 records, 1 rejected)",
        "│ 1  ┆ Austria │",
        "  record 1: expectation `known` failed: country IS NOT NULL",
        "  1 row fails the expectation `known`",
        "sink `counts` → lake:counts (2 rows of 3 records, 0 rejected)",
        "│ 1  ┆ 2      │",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let told = |more| pipeline_told(&folder, PIPELINE, more);
    let says = told(&["--name", "users"]).await;
    assert_eq!(says, "there is no DataPipeline `users`; there are orders");
    let says = told(&["--sink", "order"]).await;
    let expected = "there is no sink `order` in the pipeline; there are orders, counts";
    assert_eq!(says, expected);
    let both = format!(
        "{PIPELINE}---{}",
        PIPELINE.replace("name: orders}", "name: more}")
    );
    let says = pipeline_told(&folder, &both, &[]).await;
    assert_eq!(
        says,
        "choose one of the DataPipelines with --name: orders, more"
    );
    let says = told(&[]).await;
    assert!(says.starts_with("lookup `countries`: can't read"), "{says}");
    let says = told(&["--latest"]).await;
    assert_eq!(says, "--latest is for a pipeline whose source is a topic");
}

async fn pipeline_told(folder: &tempfile::TempDir, pipeline: &str, more: &[&str]) -> String {
    error(shown(&arguments(folder, pipeline, more)).await)
}

fn of_topic(topic: &serde_json::Value) -> String {
    let pipeline = json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "DataPipeline",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {
            "source": {"topic": topic},
            "schema": "id BIGINT",
            "sinks": [{
                "name": "orders", "sql": "SELECT id FROM records",
                "cassandra": {"keyspace": "shop", "table": "orders", "primaryKey": {"partitionKey": ["id"]}},
            }],
        },
    });
    pipeline.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_needs_a_kafka_and_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let says = pipeline_told(&folder, &of_topic(&json!({"name": "orders"})), &[]).await;
    assert!(says.contains("write into spec.kafka"), "{says}");

    let kafka = json!({
        "bootstrapServers": "127.0.0.1:1",
        "sasl": {"credentialsSecret": {"name": "shop-kafka"}},
        "tls": {"caSecret": {"name": "shop-ca"}},
    });
    let secured = of_topic(&json!({"name": "orders", "kafka": kafka}));
    let give = |file: &str| std::fs::write(folder.path().join(file), "x").unwrap();
    give("source-kafka-username");
    insta::assert_snapshot!(pipeline_told(&folder, &secured, &[]).await, @r#"
    the pipeline reads with Secrets; get these files into a folder, and name it with --credentials-dir:
      kubectl get secret -n shop shop-kafka -o go-template='{{index .data "password" | base64decode}}' > source-kafka-password
      kubectl get secret -n shop shop-ca -o go-template='{{index .data "ca.crt" | base64decode}}' > source-kafka-ca.crt
    "#);

    let away = of_topic(&json!({"name": "orders", "kafka": {"bootstrapServers": "127.0.0.1:1"}}));
    let says = pipeline_told(&folder, &away, &["--timeout", "1s"]).await;
    assert!(says.starts_with("no record within 1s"), "{says}");
    let avro =
        json!({"name": "orders", "encoding": "avro", "kafka": {"bootstrapServers": "127.0.0.1:1"}});
    let says = pipeline_told(&folder, &of_topic(&avro), &[]).await;
    assert!(
        says.contains("there is no schemaRegistry: set it in"),
        "{says}"
    );
}
