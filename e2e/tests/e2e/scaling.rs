//! Process pods follow the load: from none to as many as there are partitions, and back.

mod plot;

use std::cell::Cell;
use std::f64::consts::TAU;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
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
        let sent = sent?;
        println!(
            "first row after {:.1?}, 4 pods after {:.1?}, {sent} records",
            row?, cap?
        );
        namespace
            .drained(ORDERS, ORDERS, &topic, Duration::from_secs(240))
            .await?;
        settles_at(namespace, 0, PATIENCE).await?;
        println!("no pods after {:.1?}", started.elapsed());
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join("scaling.svg");
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
