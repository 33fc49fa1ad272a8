//! The REST service under load: look-ups by key at a steady rate. Every answer is compared with the
//! row; the time counts from when the request was due, not from when the client got round to it.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use millstream_api::worker::credentials;
use millstream_e2e::free_port;
use scylla::client::{session::Session, session_builder::SessionBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[derive(Parser)]
#[command(about = "Measures look-ups by key through the REST service")]
struct Arguments {
    /// Requests per second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// For how long they are measured, after 5 s that don't count.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Rows of the table.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
}

/// Where Cassandra is: of the file that `MILLSTREAM_ENVIRONMENT` names.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Environment {
    cassandra: String,
    cassandra_user: String,
    cassandra_password: String,
}

const WARM_UP: Duration = Duration::from_secs(5);
/// What is aimed at, in milliseconds, on a machine that does nothing else.
const AIM_P99_MS: f64 = 10.0;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let path = std::env::var("MILLSTREAM_ENVIRONMENT")
        .context("MILLSTREAM_ENVIRONMENT doesn't say where Cassandra is: run `cargo xtask up`")?;
    let environment: Environment = serde_json::from_str(&fs::read_to_string(path)?)?;
    let session = SessionBuilder::new()
        .known_node(&environment.cassandra)
        .user(&environment.cassandra_user, &environment.cassandra_password)
        .build()
        .await?;
    let keyspace = format!("requests_{}", std::process::id());
    fill(&session, &keyspace, arguments.rows).await?;
    let measured = measure(&arguments, &environment, &keyspace).await;
    session
        .query_unpaged(format!("DROP KEYSPACE {keyspace}"), ())
        .await?;
    println!("{}", measured?);
    Ok(())
}

async fn fill(session: &Session, keyspace: &str, rows: u64) -> Result<()> {
    for ddl in [
        format!(
            "CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
        ),
        format!(
            "CREATE TABLE {keyspace}.users (id text PRIMARY KEY, name text, visits bigint, seen timestamp)"
        ),
    ] {
        session.query_unpaged(ddl, ()).await?;
    }
    let insert = format!(
        "INSERT INTO {keyspace}.users (id, name, visits, seen) VALUES (?, ?, ?, '2018-05-06T12:00:00Z')"
    );
    let insert = session.prepare(insert).await?;
    for row in 0..rows {
        let visits = i64::try_from(row)?;
        let values = (format!("u{row}"), format!("User {row}"), visits);
        session.execute_unpaged(&insert, values).await?;
    }
    Ok(())
}

fn expected(row: u64) -> Value {
    json!([{
        "id": format!("u{row}"), "name": format!("User {row}"), "visits": row,
        "seen": "2018-05-06T12:00:00.000Z",
    }])
}

async fn measure(
    arguments: &Arguments,
    environment: &Environment,
    keyspace: &str,
) -> Result<String> {
    let server = Server::start(environment, keyspace)?;
    let client = reqwest::Client::new();
    let started = Instant::now();
    loop {
        let answer = client.get(server.url(0)).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            break;
        }
        ensure!(started.elapsed() < PATIENCE, "the service isn't ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let total = (WARM_UP.as_secs() + arguments.seconds) * arguments.rate;
    let url = Arc::new(server);
    let mut requests = JoinSet::new();
    let mut times = Vec::new();
    let started = Instant::now();
    for index in 0..total {
        let due = started + Duration::from_secs_f64(index as f64 / arguments.rate as f64);
        tokio::time::sleep_until(due.into()).await;
        // Rows in an order that no cache foresees.
        let row = index.wrapping_mul(7_919) % arguments.rows;
        let (client, url) = (client.clone(), url.clone());
        requests.spawn(async move {
            let answer = client.get(url.url(row)).send().await?.error_for_status()?;
            let rows: Value = answer.json().await?;
            ensure!(rows == expected(row), "row {row} is {rows}");
            Ok((due, due.elapsed()))
        });
        while let Some(done) = requests.try_join_next() {
            times.push(done??);
        }
    }
    let rate = total as f64 / started.elapsed().as_secs_f64();
    while let Some(done) = requests.join_next().await {
        times.push(done??);
    }
    if rate < 0.95 * arguments.rate as f64 {
        bail!("this machine got no further than {rate:.0} requests/s: try a lower --rate");
    }
    let counted = times.iter().filter(|(due, _)| *due - started >= WARM_UP);
    let mut sorted: Vec<Duration> = counted.map(|(_, time)| *time).collect();
    sorted.sort();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let p99 = percentile(&sorted, 99.0);
    let verdict = if p99 < AIM_P99_MS { "met" } else { "not met" };
    Ok(format!(
        "{} requests at {rate:.0}/s, all exact: p50 {:.1} ms, p99 {p99:.1} ms, p99.9 {:.1} ms, longest {:.1} ms (load of the machine: {})\n\
        aimed at: p99 ms under {AIM_P99_MS}: {p99:.2}, {verdict}",
        sorted.len(),
        percentile(&sorted, 50.0),
        percentile(&sorted, 99.9),
        percentile(&sorted, 100.0),
        load.split(' ').next().unwrap_or_default(),
    ))
}

/// In milliseconds, of a sorted list that isn't empty.
fn percentile(sorted: &[Duration], percent: f64) -> f64 {
    let place = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted[place.clamp(1, sorted.len()) - 1].as_secs_f64() * 1e3
}

/// The service; it is killed with the measurement.
struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(environment: &Environment, keyspace: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (port, admin) = (free_port(), free_port());
        let config = json!({
            "stage": "serve",
            "pipeline": {"namespace": "bench", "name": "requests"},
            "cassandra": {
                "contactPoints": [environment.cassandra], "credentialsSecret": {"name": "cassandra"},
            },
            "keyspaces": [keyspace],
            "port": port,
            "serve": {"endpoints": [{
                "name": "user", "path": "/users/{id}",
                "parameters": [{"name": "id", "type": "text"}],
                "cql": "SELECT id, name, visits, seen FROM users WHERE id = :id",
            }]},
        });
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.path().join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        write(credentials::CASSANDRA_USERNAME, &environment.cassandra_user)?;
        write(
            credentials::CASSANDRA_PASSWORD,
            &environment.cassandra_password,
        )?;
        let config = write("worker.yaml", &config.to_string())?;
        let program = std::env::current_exe()?.with_file_name("millstream-worker");
        let child = Command::new(&program)
            .args(["run", "--http-port", &admin.to_string(), "--config"])
            .arg(config)
            .arg("--credentials-dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Server {
            child,
            port,
            _folder: folder,
        })
    }

    fn url(&self, row: u64) -> String {
        format!("http://127.0.0.1:{}/users/u{row}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
