//! Sources: every record gets to the topic, whatever the API does and whatever dies; pipelines can
//! be scaled, paused and given new credentials.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use millstream_api::DataPipeline;
use millstream_api::condition::{READY, SUCCEEDED, reason};
use millstream_api::worker::dead_letter;
use millstream_e2e::{
    Apis, Data, Namespace, PATIENCE, await_condition, await_reason, eventually, header,
    with_temp_namespace,
};
use rdkafka::message::Message;
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

/// Waits until the source has given all its records, by the pipeline's status.
async fn complete(namespace: &Namespace, pipeline: &str) -> Result<()> {
    eventually(PATIENCE, async || {
        let status = namespace
            .api::<DataPipeline>()
            .get(pipeline)
            .await?
            .status
            .unwrap_or_default();
        let source = status.source.context("the status shows the source")?;
        ensure!(source.complete, "the source isn't complete: {source:?}");
        Ok(())
    })
    .await
}

const LICENSES: u64 = 20_000;

fn licenses(namespace: &Namespace, apis: &Apis<'_>) -> Value {
    let sink = json!({
        "keyspace": namespace.unique("licenses"), "table": "licenses",
        "primaryKey": {"partitionKey": ["license_nbr"]},
    });
    json!({
        "apiVersion": "millstream.dev/v1alpha1",
        "kind": "DataPipeline",
        "metadata": {"name": "licenses"},
        "spec": {
            "source": {"http": {
                "url": apis.url("/resource/licenses.json"),
                "query": {"$order": "license_nbr"},
                "pagination": {"limitOffset": {
                    "limitParameter": "$limit", "offsetParameter": "$offset", "pageSize": 100,
                    "count": {"query": {"$select": "count(*)"}, "pointer": "/0/count"},
                }},
                "concurrency": 4,
                "timeout": "10s",
            }},
            "schema": "license_nbr TEXT, business_name TEXT, contact_phone TEXT, address_borough TEXT",
            "topic": {"name": namespace.unique("licenses")},
            "sinks": [{
                "name": "licenses",
                "sql": "SELECT license_nbr, business_name, contact_phone FROM records",
                "cassandra": sink,
            }],
        },
    })
}

#[test]
fn all_pages_arrive_whatever_the_api_does_and_though_the_ingest_pod_is_killed() {
    with_temp_namespace("pages", async |namespace| {
        let apis = Apis::start(namespace, Data::Generated(LICENSES)).await?;
        let topic = namespace.unique("licenses");
        let all = i64::try_from(LICENSES)?;
        apis.faults(json!({"kind": "500", "rate": 0.4})).await?;
        namespace
            .apply(&licenses(namespace, &apis).to_string())
            .await?;
        for kind in ["500", "429", "cut", "malformed"] {
            apis.faults(json!({"kind": kind, "rate": 0.4, "retryAfter": 1}))
                .await?;
            eventually(PATIENCE, async || {
                let injected = apis.injected(kind).await?;
                ensure!(injected >= 3, "{injected} requests got {kind}");
                Ok(())
            })
            .await?;
        }
        apis.faults(json!({"kind": "slow", "rate": 1.0, "delay": 500}))
            .await?;
        let before = namespace.kafka.records(&topic)?;
        namespace.filled(&topic, before + 500).await?;
        for pod in namespace.ready_pods("licenses", "ingest", 1).await? {
            namespace.kill(&pod).await?;
        }
        let at_kill = namespace.kafka.records(&topic)?;
        ensure!(
            at_kill < all,
            "all {at_kill} records were there before the pod was killed"
        );
        apis.faults(Value::Null).await?;
        complete(namespace, "licenses").await?;
        namespace
            .drained("licenses", "licenses", &topic, PATIENCE)
            .await?;

        let in_topic = namespace.kafka.records(&topic)?;
        println!("killed at {at_kill} records; {in_topic} in the topic at the end");
        // Pages that were on their way when the pod was killed are sent again, and the first ones given up.
        assert_eq!(in_topic, all);
        let expected = apis
            .get(&format!("/resource/licenses.json?$limit={LICENSES}"))
            .await?;
        let expected: BTreeMap<_, _> = expected
            .as_array()
            .into_iter()
            .flatten()
            .map(cells)
            .collect();
        let cql = format!(
            "SELECT license_nbr, business_name, contact_phone FROM {}.licenses",
            namespace.unique("licenses")
        );
        let rows = namespace
            .cassandra
            .select::<(String, Option<String>, Option<String>)>(&cql)
            .await?;
        assert_eq!(rows.len(), expected.len());
        let rows: BTreeMap<_, _> = rows
            .into_iter()
            .map(|(id, name, phone)| (id, (name, phone)))
            .collect();
        assert!(rows == expected, "the rows aren't those that the API has");

        // What is complete stays complete: no pod is left, and a change elsewhere starts none.
        let pipelines = namespace.api::<DataPipeline>();
        await_condition(&pipelines, "licenses", SUCCEEDED, PATIENCE).await?;
        namespace.ready_pods("licenses", "ingest", 0).await?;
        let scale = ["scale", "datapipeline", "licenses", "--replicas=2"];
        namespace.kubectl(&scale).await?.ok()?;
        namespace.ready_pods("licenses", "process", 2).await?;
        await_condition(&pipelines, "licenses", SUCCEEDED, PATIENCE).await?;
        namespace.ready_pods("licenses", "ingest", 0).await?;
        assert_eq!(namespace.kafka.records(&topic)?, in_topic);
        Ok(())
    });
}

fn cells(license: &Value) -> (String, (Option<String>, Option<String>)) {
    let of = |name: &str| license[name].as_str().map(str::to_owned);
    (
        of("license_nbr").unwrap_or_default(),
        (of("business_name"), of("contact_phone")),
    )
}

#[test]
fn a_record_without_its_key_goes_to_the_dead_letter_of_the_ingest_stage() {
    with_temp_namespace("no-key", async |namespace| {
        let text = json!([
            {"license_nbr": "1-DCA", "business_name": "Œuf & Co"},
            {"business_name": "without a number"},
            {"license_nbr": null, "business_name": "with a null"},
            {"license_nbr": "2-DCA", "business_name": "B"},
        ]);
        let apis = Apis::start(namespace, Data::Recorded(&text.to_string())).await?;
        let topic = namespace.unique("licenses");
        namespace
            .apply(&licenses(namespace, &apis).to_string())
            .await?;
        complete(namespace, "licenses").await?;
        assert_eq!(namespace.kafka.records(&topic)?, 2);
        let dead_letters = namespace.kafka.consume(&format!("{topic}.dead-letter"))?;
        assert_eq!(dead_letters.len(), 2);
        for dead in &dead_letters {
            let payload: Value = serde_json::from_slice(dead.payload().unwrap_or_default())?;
            assert!(
                payload["business_name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("with"))
            );
            assert_eq!(header(dead, dead_letter::STAGE).as_deref(), Some("ingest"));
            let reason = header(dead, dead_letter::REASON).unwrap_or_default();
            assert!(reason.contains("license_nbr"), "{reason}");
        }
        Ok(())
    });
}

fn generator(namespace: &Namespace, generator: Value) -> Value {
    orders::pipeline_with(namespace, json!({"source": {"generator": generator}}))
}

#[test]
fn a_generator_makes_so_many_records_and_the_pipeline_scales() {
    with_temp_namespace("scale", async |namespace| {
        let (topic, table) = (orders::topic(namespace), orders::table(namespace));
        namespace
            .apply(&generator(namespace, json!({"count": 5000, "seed": 7})).to_string())
            .await?;
        complete(namespace, ORDERS).await?;
        assert_eq!(namespace.kafka.records(&topic)?, 5000);
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        assert_eq!(namespace.cassandra.count(&table).await?, 5000);

        let scale = async |replicas: usize| -> Result<()> {
            let replicas_flag = format!("--replicas={replicas}");
            namespace
                .kubectl(&["scale", "datapipeline", ORDERS, &replicas_flag])
                .await?
                .ok()?;
            namespace.ready_pods(ORDERS, "process", replicas).await?;
            // The number of pods follows the pods, a moment after the condition.
            eventually(PATIENCE, async || {
                let status = namespace.ready(ORDERS).await?.status.unwrap_or_default();
                ensure!(
                    status.replicas == Some(i32::try_from(replicas)?),
                    "the status shows {:?} replicas",
                    status.replicas
                );
                Ok(())
            })
            .await
        };
        scale(3).await?;
        scale(0).await?;
        namespace
            .kafka
            .produce(&topic, orders::plain(0..100))
            .await?;
        eventually(PATIENCE, async || {
            let status = namespace.ready(ORDERS).await?.status.unwrap_or_default();
            ensure!(
                status.lag == Some(100),
                "the status shows lag {:?}",
                status.lag
            );
            ensure!(
                // Those that the source has brought.
                status.records == Some(5000),
                "the status shows {:?} records",
                status.records
            );
            Ok(())
        })
        .await?;
        scale(1).await?;
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        assert_eq!(namespace.cassandra.count(&table).await?, 5100);
        Ok(())
    });
}

#[test]
fn a_paused_pipeline_stands_still_and_goes_on_where_it_was() {
    with_temp_namespace("pause", async |namespace| {
        let (topic, table) = (orders::topic(namespace), orders::table(namespace));
        let mut manifest = generator(namespace, json!({"count": 3000, "rate": 200}));
        namespace.apply(&manifest.to_string()).await?;
        namespace.filled(&topic, 300).await?;

        manifest["spec"]["paused"] = true.into();
        namespace.apply(&manifest.to_string()).await?;
        await_reason(
            &namespace.api::<DataPipeline>(),
            ORDERS,
            READY,
            reason::PAUSED,
            PATIENCE,
        )
        .await?;
        for stage in ["ingest", "process"] {
            namespace.ready_pods(ORDERS, stage, 0).await?;
        }
        // Pods that are on their way out finish what they hold.
        let paused_at = eventually(PATIENCE, async || {
            let left = namespace
                .kubectl(&["get", "pods", "-o", "name"])
                .await?
                .ok()?;
            ensure!(left.is_empty(), "there are still {left}");
            namespace.kafka.records(&topic)
        })
        .await?;
        ensure!(paused_at < 3000, "paused after the end");
        assert!(namespace.cassandra.count(&table).await? <= paused_at);

        manifest["spec"]["paused"] = false.into();
        namespace.apply(&manifest.to_string()).await?;
        complete(namespace, ORDERS).await?;
        namespace.ready(ORDERS).await?;
        // A drain acknowledges what was sent: nothing is sent twice.
        assert_eq!(namespace.kafka.records(&topic)?, 3000);
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        assert_eq!(namespace.cassandra.count(&table).await?, 3000);
        Ok(())
    });
}

#[test]
fn a_pipeline_that_is_refused_can_be_paused() {
    with_temp_namespace("pause", async |namespace| {
        let mut manifest = generator(namespace, json!({"rate": 20}));
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        manifest["spec"]["sinks"][0]["sql"] = "SELECT nothing FROM records".into();
        let pipelines = namespace.api::<DataPipeline>();
        for (paused, pods) in [(false, 1), (true, 0)] {
            manifest["spec"]["paused"] = paused.into();
            namespace.apply(&manifest.to_string()).await?;
            await_reason(&pipelines, ORDERS, READY, reason::INVALID_SQL, PATIENCE).await?;
            for stage in ["ingest", "process"] {
                namespace.ready_pods(ORDERS, stage, pods).await?;
            }
        }
        Ok(())
    });
}

#[test]
fn new_credentials_roll_the_pods() {
    with_temp_namespace("rotate", async |namespace| {
        let secret = |user: &str, password: &str| {
            let data = json!({"username": user, "password": password});
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}, "stringData": data})
        };
        let environment = &namespace.environment;
        namespace
            .apply(&secret(&environment.kafka_user, &environment.kafka_password).to_string())
            .await?;
        let kafka = json!({
            "bootstrapServers": environment.in_cluster.kafka_sasl,
            "sasl": {"mechanism": "SCRAM-SHA-512", "credentialsSecret": {"name": "login"}},
        });
        namespace
            .apply(&orders::pipeline_with(namespace, json!({"kafka": kafka})).to_string())
            .await?;
        namespace.ready(ORDERS).await?;
        let before = namespace.ready_pods(ORDERS, "process", 1).await?[0].uid();

        // The second user of the development servers.
        namespace
            .apply(&secret("admin", "admin-secret").to_string())
            .await?;
        eventually(PATIENCE, async || {
            let pods = namespace.ready_pods(ORDERS, "process", 1).await?;
            ensure!(pods[0].uid() != before, "the pod is the same");
            Ok(())
        })
        .await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        assert_eq!(
            namespace.cassandra.count(&orders::table(namespace)).await?,
            100
        );
        Ok(())
    });
}
