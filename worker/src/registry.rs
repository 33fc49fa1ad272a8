//! Avro schemas out of a schema registry.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use millstream_api::{SchemaRegistryConnection, worker::credentials};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::{config::Credentials, retry::Delays, status::StatusPart, tls::trusting};

const TIMEOUT: Duration = Duration::from_secs(10);
const CONCERN: &str = "schema registry";
const MISSING: &str = "unknown schema";
/// Ids of which it is remembered that they are unknown; a topic has few.
const MEMORY: usize = 1_000;
/// An id may be unknown for so long before it counts as that: where a producer registers a schema and
/// writes at once, another node of the registry than its own may not have caught up.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest delay between two questions meanwhile.
const OFTEN: Duration = Duration::from_secs(1);
/// A registry that doesn't know an id is asked again after so long: not for each record of a batch, and
/// soon enough that few are lost where the schema comes after all.
const UNKNOWN: Duration = Duration::from_secs(2);
/// For so long an id that was waited for in vain is only asked for: a producer that has its schemas
/// elsewhere doesn't hold up the others all the time.
const HOPELESS: Duration = Duration::from_secs(5 * 60);
/// For so long after a wait in vain there is no other, whatever the id: where each record has another
/// one, they still get on for half of the time.
const RESPITE: Duration = PATIENCE;
/// Largest schema, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// The registry's own number for a schema that it doesn't have: a plain 404 may be a wrong URL.
const NOT_FOUND: u32 = 40_403;

/// A schema registry, and the schemas that it has given.
pub struct Registry {
    client: Client,
    url: String,
    login: Option<(String, String)>,
    seen: Mutex<HashMap<u32, Seen>>,
}

/// A schema, or why there is none for records of its id.
type Found = Result<Arc<Value>, String>;

/// What the registry has answered.
enum Seen {
    /// What it has, which never changes.
    Found(Found),
    Unknown {
        /// When it was asked last.
        asked: Instant,
        /// When the last wait was over, if it was waited for.
        waited: Option<Instant>,
    },
}

impl Seen {
    fn found(&self, id: u32) -> Found {
        match self {
            Seen::Found(found) => found.clone(),
            Seen::Unknown { .. } => Err(missing(id)),
        }
    }

    /// When the last wait in vain was over, if there was one.
    fn waited(&self) -> Option<Instant> {
        match self {
            Seen::Found(_) => None,
            Seen::Unknown { waited, .. } => *waited,
        }
    }

    /// Whether it was waited for in vain no longer ago than this.
    fn waited_within(&self, time: Duration) -> bool {
        self.waited().is_some_and(|waited| waited.elapsed() < time)
    }
}

fn missing(id: u32) -> String {
    format!("the schema registry has no schema {id}")
}

impl Registry {
    /// A client; nothing is asked yet.
    pub fn new(
        connection: &SchemaRegistryConnection,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        let mut client = Client::builder()
            .timeout(TIMEOUT)
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")));
        if credentials.path(credentials::REGISTRY_CA).is_some() {
            client = trusting(client, credentials, credentials::REGISTRY_CA)?;
        }
        let login = match &connection.credentials_secret {
            None => None,
            Some(_) => Some((
                credentials.require(credentials::REGISTRY_USERNAME, "basic authentication")?,
                credentials.require(credentials::REGISTRY_PASSWORD, "basic authentication")?,
            )),
        };
        Ok(Registry {
            client: client.build()?,
            url: connection.url.trim_end_matches('/').to_owned(),
            login,
            seen: Mutex::default(),
        })
    }

    /// The schema of this id, if it has been fetched; else why there is none.
    pub fn known(&self, id: u32) -> Found {
        let seen = self.seen();
        seen.get(&id)
            .map_or_else(|| Err(missing(id)), |seen| seen.found(id))
    }

    /// Fetches the schema of this id; or why there is none that its records can be read by. Tries for
    /// as long as the registry doesn't answer, waits a little where it has none, and shows why.
    pub async fn fetch(&self, id: u32, status: &StatusPart) -> Found {
        if let Some(found) = self.remembered(id) {
            return found;
        }
        let patience = self.patience(id);
        let mut delays = Delays::up_to(OFTEN);
        let mut until = None;
        loop {
            let found = self.ask(id, status).await;
            // Not before: of a registry that doesn't answer it isn't known what it has.
            let until = *until.get_or_insert_with(|| Instant::now() + patience);
            let left = until.saturating_duration_since(Instant::now());
            if found.is_some() || left.is_zero() {
                status.clear(MISSING);
                return self.keep(id, found, !patience.is_zero());
            }
            let url = &self.url;
            let message = format!("{url} has no schema {id} yet: its records wait for a moment");
            status.warn(MISSING, message);
            tokio::time::sleep(delays.next_delay().min(left)).await;
        }
    }

    /// What needn't be asked for.
    fn remembered(&self, id: u32) -> Option<Found> {
        let seen = self.seen();
        let seen = seen.get(&id)?;
        let old = matches!(seen, Seen::Unknown { asked, .. } if asked.elapsed() >= UNKNOWN);
        (!old).then(|| seen.found(id))
    }

    /// How long this id may be unknown before it counts as that.
    fn patience(&self, id: u32) -> Duration {
        let seen = self.seen();
        let hopeless = seen
            .get(&id)
            .is_some_and(|seen| seen.waited_within(HOPELESS));
        match hopeless || seen.values().any(|seen| seen.waited_within(RESPITE)) {
            true => Duration::ZERO,
            false => PATIENCE,
        }
    }

    /// What the registry has of this id. Tries for as long as it doesn't answer, and shows why.
    async fn ask(&self, id: u32, status: &StatusPart) -> Option<Found> {
        let mut delays = Delays::default();
        loop {
            match self.get(id).await {
                Ok(found) => {
                    status.clear(CONCERN);
                    return found;
                }
                Err(error) => {
                    let url = &self.url;
                    let message = format!("can't read schema {id} from {url}: {error:#}");
                    status.fail(CONCERN, message);
                    delays.wait().await;
                }
            }
        }
    }

    /// Takes note of what the registry has given, and whether that was waited for.
    fn keep(&self, id: u32, found: Option<Found>, waited: bool) -> Found {
        let mut seen = self.seen();
        if seen.len() >= MEMORY {
            // What was found stays: whoever has fetched one counts on it.
            seen.retain(|_, seen| matches!(seen, Seen::Found(_)) || seen.waited_within(HOPELESS));
        }
        let entry = match (found, seen.get(&id)) {
            (Some(found), _) => Seen::Found(found),
            // Somebody else has asked a node that knows it.
            (None, Some(Seen::Found(found))) => return found.clone(),
            (None, before) => {
                let asked = Instant::now();
                let before = before.and_then(Seen::waited);
                let waited = waited.then_some(asked).or(before);
                Seen::Unknown { asked, waited }
            }
        };
        let found = entry.found(id);
        seen.insert(id, entry);
        found
    }

    /// Asks once; none where the registry doesn't know the id.
    async fn get(&self, id: u32) -> anyhow::Result<Option<Found>> {
        let mut request = self.client.get(format!("{}/schemas/ids/{id}", self.url));
        if let Some((username, password)) = &self.login {
            request = request.basic_auth(username, Some(password));
        }
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            anyhow::ensure!(
                body.len() <= MAX_BYTES,
                "the answer has more than {MAX_BYTES} bytes"
            );
        }
        if status == StatusCode::NOT_FOUND
            && serde_json::from_slice::<Refusal>(&body).is_ok_and(|r| r.error_code == NOT_FOUND)
        {
            return Ok(None);
        }
        anyhow::ensure!(status.is_success(), "it answers {status}");
        let answer: Answer = serde_json::from_slice(&body)
            .context("it doesn't answer as a schema registry does; is the URL right?")?;
        let schema = answer.schema().map(Arc::new);
        Ok(Some(schema.map_err(|why| {
            format!("schema {id} can't be read: {why}")
        })))
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<u32, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Value>,
}

impl Answer {
    /// The schema; or why the worker can't read it, which asking again doesn't change.
    fn schema(&self) -> Result<Value, String> {
        let kind = self.schema_type.as_deref().unwrap_or("AVRO");
        if kind != "AVRO" {
            return Err(format!("it is of type {kind}, not AVRO"));
        }
        if !self.references.is_empty() {
            return Err(
                "it refers to other schemas of the registry, which isn't supported".to_owned(),
            );
        }
        serde_json::from_str(&self.schema).map_err(|error| format!("it isn't JSON: {error}"))
    }
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::{Json, Router, extract::Path, http, routing};
    use millstream_api::worker::WorkerStatus;
    use millstream_plan::{RecordSchema, SinkPlan};
    use serde_json::json;

    use super::*;
    use crate::{
        avro::{decode::AvroTopic, encode::Encode},
        batch::Batch,
        decode::Decode,
        status::Status,
        transform::Transform,
    };

    impl Registry {
        /// As if it had been fetched.
        pub(crate) fn remember(&self, id: u32, schema: Option<Value>) {
            let _ = self.keep(id, schema.map(|schema| Ok(Arc::new(schema))), false);
        }
    }

    /// A registry that has what it is given.
    #[derive(Clone, Default)]
    pub(crate) struct Server {
        url: String,
        answers: Arc<Mutex<HashMap<u32, Value>>>,
        asked: Arc<Mutex<Vec<u32>>>,
    }

    impl Server {
        pub(crate) async fn start() -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Server {
                url: format!("http://{}", listener.local_addr().unwrap()),
                ..Server::default()
            };
            let answering = server.clone();
            let answer = async move |Path(id): Path<u32>| answering.answer(id);
            let router = Router::new().route("/schemas/ids/{id}", routing::get(answer));
            tokio::spawn(async { axum::serve(listener, router).await });
            server
        }

        fn answer(&self, id: u32) -> (http::StatusCode, Json<Value>) {
            self.asked.lock().unwrap().push(id);
            match self.answers.lock().unwrap().get(&id) {
                Some(answer) => (http::StatusCode::OK, Json(answer.clone())),
                None => {
                    let refusal = json!({"error_code": NOT_FOUND, "message": "not found"});
                    (http::StatusCode::NOT_FOUND, Json(refusal))
                }
            }
        }

        pub(crate) fn give(&self, id: u32, answer: Value) {
            self.answers.lock().unwrap().insert(id, answer);
        }

        pub(crate) fn asked(&self, id: u32) -> usize {
            let asked = self.asked.lock().unwrap();
            asked.iter().filter(|asked| **asked == id).count()
        }

        pub(crate) fn connection(&self) -> SchemaRegistryConnection {
            // Whoever comes second finds the provider installed.
            let _ = rustls::crypto::ring::default_provider().install_default();
            serde_json::from_value(json!({"url": self.url})).unwrap()
        }

        fn registry(&self) -> Registry {
            Registry::new(&self.connection(), &Credentials::new("/nowhere".into())).unwrap()
        }
    }

    #[tokio::test]
    async fn a_schema_that_comes_a_little_later_is_waited_for() {
        let server = Server::start().await;
        let registry = server.registry();
        let status = Arc::new(Status::default());
        let users = status.part("users");
        let catching_up = async {
            loop {
                if let Some(warning) = status.report().warnings.remove("users") {
                    server.give(7, json!({"schema": "\"int\""}));
                    return warning;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (found, warning) = tokio::join!(registry.fetch(7, &users), catching_up);
        assert_eq!(*found.unwrap(), json!("int"));
        assert!(warning.contains("has no schema 7 yet"), "{warning}");
        assert!(server.asked(7) >= 2);
        assert_eq!(status.report(), WorkerStatus::default());
    }

    #[tokio::test]
    async fn what_stays_unknown_is_waited_for_once() {
        let server = Server::start().await;
        let registry = server.registry();
        let status = Arc::new(Status::default());
        let users = status.part("users");
        let begun = Instant::now();
        let reason = registry.fetch(1, &users).await.unwrap_err();
        assert_eq!(reason, "the schema registry has no schema 1");
        assert!(begun.elapsed() >= PATIENCE);
        let asked = server.asked(1);
        assert!(asked > 3, "{asked}");
        assert_eq!(status.report(), WorkerStatus::default());
        // The rest of the batch: more of them, and some that each have another id.
        for id in 1..=20 {
            assert_eq!(registry.fetch(id, &users).await, Err(missing(id)));
        }
        assert_eq!(server.asked(1), asked);
        assert!((2..=20).all(|id| server.asked(id) == 1));

        server.give(1, json!({"schema": "\"int\""}));
        tokio::time::sleep(UNKNOWN).await;
        registry.fetch(1, &users).await.unwrap();
        assert_eq!(server.asked(1), asked + 1);
        // A node that hasn't caught up yet takes nothing away.
        registry.keep(1, None, true).unwrap();
        assert_eq!(*registry.known(1).unwrap(), json!("int"));
    }

    #[tokio::test]
    async fn what_is_hopeless_is_only_asked_for() {
        let registry = Server::default().registry();
        assert_eq!(registry.patience(1), PATIENCE);
        let earlier = Instant::now().checked_sub(RESPITE).unwrap();
        let unknown = Seen::Unknown {
            asked: earlier,
            waited: Some(earlier),
        };
        registry.seen().insert(1, unknown);
        assert_eq!(registry.remembered(1), None);
        assert_eq!(registry.patience(1), Duration::ZERO);
        assert_eq!(registry.patience(2), PATIENCE);
        // Asked for again, and as hopeless as before.
        assert_eq!(registry.keep(1, None, false), Err(missing(1)));
        assert_eq!(registry.remembered(1), Some(Err(missing(1))));
        assert_eq!(registry.patience(1), Duration::ZERO);
        assert_eq!(registry.patience(2), PATIENCE);
        assert_eq!(registry.keep(2, None, true), Err(missing(2)));
        assert_eq!(registry.patience(3), Duration::ZERO);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_schema_that_cannot_be_read_is_its_records_fault() {
        let server = Server::start().await;
        let schema = RecordSchema::parse("id INT").unwrap();
        let avro = schema.avro("t").unwrap();
        let text = avro.to_string();
        server.give(1, json!({"schema": text, "schemaType": "AVRO"}));
        server.give(
            2,
            json!({"schema": "message A {}", "schemaType": "PROTOBUF"}),
        );
        let reference = json!({"name": "A", "subject": "a-value", "version": 1});
        server.give(3, json!({"schema": text, "references": [reference]}));
        server.give(4, json!({"schema": "message A {}"}));
        let mut batch = Batch::default();
        for id in 1..=4 {
            let record = br#"{"id": 7}"#.as_slice().into();
            let mut encode = Encode::new(&schema, "t", id).unwrap();
            let encoded = encode.encode(&[record]).remove(0).unwrap();
            batch.push_record(0, id.into(), None, None, Some(&encoded));
        }
        let topic = AvroTopic {
            schema: Arc::new(avro),
            registry: Arc::new(server.registry()),
        };
        let status = Arc::new(Status::default());
        let users = status.part("users");
        for _ in 0..2 {
            topic.fetch_schemas(&batch, &users).await;
            assert_eq!(status.report(), WorkerStatus::default());
        }
        assert!((1..=4).all(|id| server.asked(id) == 1));

        let plan = SinkPlan::new(&schema, "s", "SELECT id FROM records").unwrap();
        let mut transform = Transform::with(&plan, Decode::avro(&plan, topic));
        let transformed = transform.run(&batch).unwrap();
        let good: Vec<_> = transformed.rows.iter().flat_map(|r| &r.records).collect();
        assert_eq!(good, [&0]);
        let reasons = transformed.rejected.iter();
        let reasons: Vec<_> = reasons.map(|rejected| &*rejected.reason).collect();
        insta::assert_snapshot!(reasons.join("\n"), @r"
        schema 2 can't be read: it is of type PROTOBUF, not AVRO
        schema 3 can't be read: it refers to other schemas of the registry, which isn't supported
        schema 4 can't be read: it isn't JSON: expected value at line 1 column 1
        ");
    }
}
