//! Process pods follow the load: from none to as many as there are partitions, and back.

mod plot;

use std::cell::Cell;
use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::ScaleSpec;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use millstream_api::condition::{READY, reason};
use millstream_api::{DataPipeline, DataPipelineStatus};
use millstream_e2e::{
    Namespace, PATIENCE, StoppedServices, alone_in_temp_namespace, await_reason, eventually,
    is_ready, with_temp_namespace,
};
use serde_json::{Value, json};

use crate::orders::{self, ORDERS};

fn scaled(namespace: &Namespace, scaling: Value) -> Value {
    orders::pipeline_with(namespace, json!({"scaling": scaling}))
}

async fn status(namespace: &Namespace) -> Result<DataPipelineStatus> {
    let pipelines = namespace.api::<DataPipeline>();
    Ok(pipelines.get(ORDERS).await?.status.unwrap_or_default())
}

/// Waits until so many process pods are wanted, and there are no others.
async fn settles_at(namespace: &Namespace, replicas: i32, timeout: Duration) -> Result<()> {
    eventually(timeout, async || {
        let status = status(namespace).await?;
        ensure!(
            status.desired_replicas == Some(replicas) && status.replicas == Some(replicas),
            "{:?} of {:?} process pods, not {replicas}; lag {:?}",
            status.replicas,
            status.desired_replicas,
            status.lag
        );
        Ok(())
    })
    .await
}

/// When so many process pods were ready; there are never more.
async fn most_pods(namespace: &Namespace, wanted: usize, started: Instant) -> Result<Duration> {
    loop {
        let pods = namespace.pods(ORDERS, "process").await?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        ensure!(pods.len() <= wanted, "{} process pods", pods.len());
        if ready == wanted {
            return Ok(started.elapsed());
        }
        let elapsed = started.elapsed();
        ensure!(
            elapsed < PATIENCE,
            "{ready} of {wanted} process pods are ready after {elapsed:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Where what was measured is written.
fn measured() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

async fn first_row(namespace: &Namespace, started: Instant) -> Result<Duration> {
    let cql = format!("SELECT id FROM {} LIMIT 1", orders::table(namespace));
    while namespace
        .cassandra
        .select::<(uuid::Uuid,)>(&cql)
        .await?
        .is_empty()
    {
        ensure!(started.elapsed() < PATIENCE, "no row within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(started.elapsed())
}

#[test]
fn records_at_zero_start_pods_and_none_are_left_after() {
    let records = std::env::var("MILLSTREAM_E2E_RECORDS").map_or(500_000, |number| {
        number.parse().expect("MILLSTREAM_E2E_RECORDS is a number")
    });
    alone_in_temp_namespace("scaling", async |namespace| {
        let topic = orders::topic(namespace);
        let scaling =
            json!({"minReplicas": 0, "targetLag": 10_000, "stabilization": {"down": "15s"}});
        namespace
            .apply(&scaled(namespace, scaling).to_string())
            .await?;
        namespace.ready(ORDERS).await?;
        settles_at(namespace, 0, PATIENCE).await?;

        let started = Instant::now();
        let capped = Cell::new(false);
        let produce = async {
            let mut sent = 0;
            // Again where a pod or two were done with them before there were four.
            while sent == 0 || !capped.get() {
                let more = orders::plain(sent..sent + records);
                namespace.kafka.produce(&topic, more).await?;
                sent += records;
            }
            anyhow::Ok(sent)
        };
        let cap = async {
            let cap = most_pods(namespace, 4, started).await;
            capped.set(true);
            cap
        };
        let (sent, row, cap) = tokio::join!(produce, first_row(namespace, started), cap);
        let (sent, row, cap) = (sent?, row?, cap?);
        namespace
            .drained(ORDERS, ORDERS, &topic, Duration::from_secs(240))
            .await?;
        settles_at(namespace, 0, PATIENCE).await?;
        let none = started.elapsed();
        let figures = json!({
            "records": sent,
            "firstRowSeconds": row.as_secs_f64(),
            "fourPodsSeconds": cap.as_secs_f64(),
            "noPodsSeconds": none.as_secs_f64(),
        });
        std::fs::write(measured()?.join("from-zero.json"), figures.to_string())?;
        let rows = namespace.cassandra.count(orders::table(namespace)).await?;
        assert_eq!(rows, i64::try_from(sent)?);
        Ok(())
    });
}

/// So many process pods the Deployment asks for.
async fn wanted(namespace: &Namespace) -> Result<Option<i32>> {
    let name = format!("{ORDERS}-process");
    let found = namespace.api::<Deployment>().get(&name).await?;
    Ok(found.spec.and_then(|spec| spec.replicas))
}

#[test]
fn while_kafka_is_away_no_pod_is_taken_away() {
    alone_in_temp_namespace("scaling", async |namespace| {
        let window = Duration::from_secs(45);
        let scaling = json!({"minReplicas": 0, "stabilization": {"down": "45s"}});
        namespace
            .apply(&scaled(namespace, scaling).to_string())
            .await?;
        namespace.ready(ORDERS).await?;
        orders::store(namespace, 0..100).await?;
        settles_at(namespace, 1, PATIENCE).await?;

        let stopped = StoppedServices::stop(&["kafka"])?;
        let pipelines = namespace.api::<DataPipeline>();
        let unseen = reason::KAFKA_UNREACHABLE;
        await_reason(&pipelines, ORDERS, READY, unseen, PATIENCE).await?;
        let back = Instant::now();
        drop(stopped);
        // Nothing would bring a pod back that was taken away: there is no record left to process.
        assert_eq!(wanted(namespace).await?, Some(1));
        eventually(PATIENCE + window, async || {
            let wanted = wanted(namespace).await?;
            ensure!(wanted == Some(0), "{wanted:?} process pods are wanted");
            Ok(())
        })
        .await?;
        let lasted = back.elapsed();
        assert!(
            lasted >= window,
            "the pod was taken away {lasted:?} after Kafka had come back: what was seen before counted"
        );
        namespace.ready(ORDERS).await?;
        Ok(())
    });
}

#[test]
fn kubectl_scale_is_told_that_scaling_decides() {
    with_temp_namespace("scaling", async |namespace| {
        let manifest = scaled(namespace, json!({"minReplicas": 1, "maxReplicas": 2}));
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let scale = ["scale", "datapipeline", ORDERS, "--replicas=3"];
        let refused = namespace.kubectl(&scale).await?;
        assert!(
            !refused.success && refused.stderr.contains("spec.scaling decides"),
            "{}",
            refused.stderr
        );
        // Somebody changes the Deployment itself: the operator keeps to the bounds.
        let name = format!("{ORDERS}-process");
        let deployment = ["scale", "deployment", &name, "--replicas=4"];
        namespace.kubectl(&deployment).await?.ok()?;
        eventually(PATIENCE, async || {
            let replicas = wanted(namespace).await?;
            ensure!(replicas <= Some(2), "{replicas:?} replicas");
            Ok(())
        })
        .await?;
        // Without `scaling` the number is theirs again.
        let remove = r#"[{"op": "remove", "path": "/spec/scaling"}]"#;
        namespace
            .kubectl(&["patch", "datapipeline", ORDERS, "--type=json", "-p", remove])
            .await?
            .ok()?;
        namespace.kubectl(&scale).await?.ok()?;
        settles_at(namespace, 3, PATIENCE).await
    });
}

/// Sets the number of process pods as an autoscaler of Kubernetes does: by the scale subresource, as
/// it is, with another number. Gives what it would look for pods by.
async fn autoscale(namespace: &Namespace, replicas: i32) -> Result<String> {
    let pipelines = namespace.api::<DataPipeline>();
    eventually(PATIENCE, async || {
        let mut scale = pipelines.get_scale(ORDERS).await?;
        scale.spec = Some(ScaleSpec {
            replicas: Some(replicas),
        });
        // Refused where the resource has changed meanwhile; the autoscaler then looks again.
        let parameters = PostParams::default();
        let scaled = pipelines.replace_scale(ORDERS, &parameters, &scale).await?;
        let selector = scaled.status.and_then(|status| status.selector);
        selector.context("the scale subresource has no selector")
    })
    .await
}

#[test]
fn an_autoscaler_of_kubernetes_is_not_fought_with() {
    with_temp_namespace("scaling", async |namespace| {
        let manifest = orders::pipeline(namespace).to_string();
        namespace.apply(&manifest).await?;
        namespace.ready(ORDERS).await?;
        let selector = autoscale(namespace, 3).await?;
        settles_at(namespace, 3, PATIENCE).await?;
        namespace.ready_pods(ORDERS, "process", 3).await?;
        let seen = namespace.api::<Pod>();
        let seen = seen.list(&ListParams::default().labels(&selector)).await?;
        assert_eq!(seen.items.len(), 3, "{selector}");

        // What the status tells of new rows was written by a visit after them.
        let keeps_three = async |rows: u64| {
            orders::store(namespace, rows - 100..rows).await?;
            let expected = Some(i64::try_from(rows)?);
            eventually(PATIENCE, async || {
                let rows = status(namespace).await?.rows;
                ensure!(rows == expected, "the status shows {rows:?} rows");
                Ok(())
            })
            .await?;
            let spec = namespace.api::<DataPipeline>().get(ORDERS).await?.spec;
            ensure!(spec.replicas == 3, "{} replicas", spec.replicas);
            let wanted = wanted(namespace).await?;
            ensure!(wanted == Some(3), "{wanted:?} process pods are wanted");
            anyhow::Ok(())
        };
        keeps_three(100).await?;
        keeps_three(200).await?;
        // Nor does somebody who applies the pipeline again, and doesn't say how many.
        namespace.apply(&manifest).await?;
        keeps_three(300).await?;
        autoscale(namespace, 1).await?;
        settles_at(namespace, 1, PATIENCE).await
    });
}

#[test]
fn the_sink_that_lags_most_is_followed() {
    with_temp_namespace("scaling", async |namespace| {
        let topic = orders::topic(namespace);
        let mut manifest = scaled(namespace, json!({"minReplicas": 1, "maxReplicas": 1}));
        // A pod takes minutes for the one, and seconds for the other.
        manifest["spec"]["resources"] =
            json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "60m", "memory": "256Mi"}});
        let slow = json!({
            "name": "slow",
            "sql": "SELECT id, version FROM records \
                WHERE levenshtein(repeat(name, 60), repeat(name, 59)) > 0",
            "cassandra": {
                "keyspace": orders::keyspace(namespace),
                "table": "slow",
                "primaryKey": {"partitionKey": ["id"]},
            },
        });
        let sinks = manifest["spec"]["sinks"].as_array_mut();
        sinks.context("a pipeline has sinks")?.push(slow);
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        namespace
            .kafka
            .produce(&topic, orders::plain(0..20_000))
            .await?;
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        let lag = namespace.lag(ORDERS, "slow", &topic)?;
        ensure!(lag > 4_000, "the slow sink isn't slow: it lags by {lag}");

        manifest["spec"]["scaling"] = json!({"minReplicas": 1, "targetLag": 1_000});
        namespace.apply(&manifest.to_string()).await?;
        eventually(PATIENCE, async || {
            let status = status(namespace).await?;
            ensure!(
                status.desired_replicas > Some(1),
                "{:?} process pods, with a lag of {:?}",
                status.desired_replicas,
                status.lag
            );
            Ok(())
        })
        .await?;
        let messages = [
            "get",
            "events",
            "--field-selector=reason=Scaled",
            "-o=jsonpath={.items[*].message}",
        ];
        eventually(PATIENCE, async || {
            let said = namespace.kubectl(&messages).await?.ok()?;
            ensure!(said.contains("1 → 2; lag: "), "the events are: {said}");
            ensure!(said.contains("(sink `slow`)"), "the events are: {said}");
            Ok(())
        })
        .await
    });
}

/// How often the load rises and falls.
const WAVES: f64 = 2.0;

/// What was seen in one second.
#[derive(Clone, Copy, Debug)]
struct Second {
    /// Records that were produced in it.
    load: i64,
    lag: i64,
    replicas: i32,
}

/// How often the number of pods turned from rising to falling or back.
fn turns(course: &[Second]) -> usize {
    let changes = course
        .windows(2)
        .map(|two| (two[1].replicas - two[0].replicas).signum());
    let changes: Vec<_> = changes.filter(|change| *change != 0).collect();
    changes.windows(2).filter(|two| two[0] != two[1]).count()
}

/// Records that one pod stores in a second: what it takes to work off a backlog of so many.
async fn capacity(namespace: &Namespace, backlog: u64) -> Result<f64> {
    let topic = orders::topic(namespace);
    let started = Instant::now();
    namespace
        .kafka
        .produce(&topic, orders::plain(0..backlog))
        .await?;
    namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
    #[expect(clippy::cast_precision_loss)]
    Ok(backlog as f64 / started.elapsed().as_secs_f64())
}

/// Produces records as a sine wave says, from none to two and a half times what a pod can do, and
/// looks at the pods meanwhile. The first record has the number `produced`; the next one's is given.
async fn wave(
    namespace: &Namespace,
    mut produced: u64,
    capacity: f64,
    seconds: u32,
) -> Result<(u64, Vec<Second>)> {
    let period = f64::from(seconds) / WAVES;
    let topic = orders::topic(namespace);
    let mut course = Vec::new();
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    for second in 0..seconds {
        clock.tick().await;
        let wave = (f64::from(second) * TAU / period - TAU / 4.0).sin();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let load = (1.25 * capacity * (1.0 + wave)) as u64;
        let records = orders::plain(produced..produced + load);
        namespace.kafka.produce(&topic, records).await?;
        produced += load;
        let status = status(namespace).await?;
        course.push(Second {
            load: i64::try_from(load)?,
            lag: status.lag.unwrap_or_default(),
            replicas: status.desired_replicas.unwrap_or_default(),
        });
    }
    Ok((produced, course))
}

#[test]
fn a_wave_of_records_is_followed_without_swinging() {
    // Ten minutes say more; three fit into the daily run.
    let seconds: u32 = std::env::var("MILLSTREAM_E2E_WAVE_SECONDS").map_or(180, |number| {
        number
            .parse()
            .expect("MILLSTREAM_E2E_WAVE_SECONDS is a number")
    });
    alone_in_temp_namespace("scaling", async |namespace| {
        // So slow that it takes several pods.
        let resources =
            json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "60m", "memory": "256Mi"}});
        let mut manifest = scaled(namespace, json!({"minReplicas": 1, "maxReplicas": 1}));
        manifest["spec"]["resources"] = resources;
        manifest["spec"]["sinks"][0]["sql"] = json!(
            "SELECT id, version, name, note, amount FROM records \
            WHERE levenshtein(repeat(name, 25), repeat(name, 24)) > 0"
        );
        namespace.apply(&manifest.to_string()).await?;
        namespace.ready(ORDERS).await?;
        let backlog = 5_000;
        let capacity = capacity(namespace, backlog).await?;
        manifest["spec"]["scaling"] =
            json!({"minReplicas": 1, "targetLag": 1000, "stabilization": {"down": "30s"}});
        namespace.apply(&manifest.to_string()).await?;
        let (produced, course) = wave(namespace, backlog, capacity, seconds).await?;
        let path = measured()?.join("scaling.svg");
        plot::draw(&path, &course)?;
        let most = course.iter().map(|second| second.replicas).max();
        let turns = turns(&course);
        println!(
            "a pod does {capacity:.0} records a second; {produced} records in {WAVES} waves: \
            {most:?} pods at most, {turns} turns; {}",
            path.display()
        );
        // Up and down with each wave; and once to find out what a pod can do.
        assert!(turns <= 6, "{turns} turns");
        assert!(most <= Some(4) && most > Some(1), "{most:?} pods at most");
        let topic = orders::topic(namespace);
        namespace.drained(ORDERS, ORDERS, &topic, PATIENCE).await?;
        let rows = namespace.cassandra.count(orders::table(namespace)).await?;
        assert_eq!(rows, i64::try_from(produced)?);
        Ok(())
    });
}
