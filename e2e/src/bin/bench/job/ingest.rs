//! Pages of an HTTP API go into a topic: licences, as the licences pipeline fetches them from the
//! server of `examples/apis`.

use std::{
    collections::HashMap,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use millstream_e2e::free_port;
use serde_json::Value;

use super::JobName;
use crate::{
    Bench,
    drain::until,
    engine::{Engine, Kind, Work, built},
    report::{Measured, Report},
    verify::{Check, Expected, Row},
};

/// Records of a page.
pub const PAGE: u64 = 1_000;
/// The field that is the key.
pub const KEY: &str = "license_nbr";
/// As many as the server gives at once.
const LARGEST_PAGE: usize = 50_000;
const PATIENCE: Duration = Duration::from_secs(30);
/// So long no other record comes.
const SETTLED: Duration = Duration::from_secs(1);

impl Bench {
    pub async fn ingest(&self, report: &mut Report) -> Result<()> {
        let server = Server::start(self.records).await?;
        let licences = server.licences().await?;
        ensure!(
            licences.len() as u64 == self.records,
            "the server has not got every record"
        );
        println!("{} licences at {}", licences.len(), server.url);
        let engines = [Kind::Ceiling, Kind::Millstream];
        self.turns(
            JobName::Ingest,
            &engines,
            report,
            async |kind, run: &str| self.ingest_once(kind, run, &server.url, &licences).await,
        )
        .await;
        Ok(())
    }

    async fn ingest_once(
        &self,
        kind: Kind,
        topic: &str,
        url: &str,
        licences: &Licences,
    ) -> Result<Measured> {
        self.kafka.create_topic(topic).await?;
        self.kafka.follow(topic)?;
        let mut engine = Engine::start(self, kind, &Work::Ingest { url, topic })?;
        let mut records = Vec::new();
        let mut has = async |engine: &mut Engine, wanted: u64| {
            let come = || {
                self.kafka.receive(&mut records)?;
                Ok(records.len() as u64 >= wanted)
            };
            until(self, engine, come).await
        };
        let first = has(&mut engine, 1).await?;
        let whole = has(&mut engine, self.records).await?;
        let usage = engine.usage()?;
        drop(engine);
        // One that is sent twice may come last.
        tokio::time::sleep(SETTLED).await;
        self.kafka.receive(&mut records)?;
        let mut check = Check::new(licences);
        for (key, record) in &records {
            let key = String::from_utf8_lossy(key).into_owned();
            check.see(vec![key, canonical(record)]);
        }
        self.kafka.delete_topic(topic).await?;
        Ok(Measured {
            wrong: check.verdict().into_iter().collect(),
            ..Measured::of(self.records, whole, first, &usage)
        })
    }
}

/// A JSON text without its white space.
fn canonical(record: &[u8]) -> String {
    match serde_json::from_slice::<Value>(record) {
        Ok(value) => value.to_string(),
        Err(_) => String::from_utf8_lossy(record).into_owned(),
    }
}

/// What the server has.
struct Licences {
    records: Vec<Row>,
    places: HashMap<String, usize>,
}

impl Expected for Licences {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn place(&self, key: &str) -> Option<usize> {
        self.places.get(key).copied()
    }

    fn row(&self, place: usize) -> Row {
        self.records[place].clone()
    }
}

/// The server; it is killed with the measurement.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    async fn start(records: u64) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port());
        let program = built("millstream-apis")?;
        let child = Command::new(&program)
            .args(["--listen", &address, "--records", &records.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let server = Server {
            child,
            url: format!("http://{address}/resource/w7w3-xahh.json"),
        };
        let health = format!("http://{address}/healthz");
        let started = Instant::now();
        while reqwest::get(&health).await.is_err() {
            ensure!(started.elapsed() < PATIENCE, "{health} doesn't answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    async fn licences(&self) -> Result<Licences> {
        let client = reqwest::Client::new();
        let (mut records, mut places) = (Vec::new(), HashMap::new());
        loop {
            let window = [("$limit", LARGEST_PAGE), ("$offset", records.len())];
            let answer = client.get(&self.url).query(&window).send().await?;
            let page: Vec<Value> = answer.error_for_status()?.json().await?;
            if page.is_empty() {
                return Ok(Licences { records, places });
            }
            for record in page {
                let key = record[KEY].as_str().context("a licence's number")?;
                places.insert(key.to_owned(), records.len());
                records.push(vec![key.to_owned(), record.to_string()]);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
