//! A keyspace in Cassandra, a serve stage over it, and a gate between them that can be shut.

use std::{
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use scylla::client::{session::Session, session_builder::SessionBuilder};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    ports::free_port,
    support::{Environment, spawn},
};

/// A service of one test.
pub struct Serving {
    /// Where the worker finds Cassandra.
    pub cassandra: String,
    /// `spec.serve`.
    pub serve: Value,
    /// The Delta Lake tables.
    pub tables: Value,
    origin: String,
    #[expect(dead_code, reason = "held")]
    environment: Environment,
    session: Session,
    keyspace: String,
    user: String,
    password: String,
    folder: tempfile::TempDir,
}

impl Serving {
    /// Makes a keyspace.
    pub async fn create(environment: Environment) -> Self {
        let Environment {
            cassandra,
            user,
            password,
            ..
        } = environment.clone();
        let session = connect(&cassandra, &user, &password).await;
        let keyspace = format!("serve_{}", uuid::Uuid::new_v4().simple());
        let ddl = format!(
            "CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
        );
        session.query_unpaged(ddl, ()).await.unwrap();
        session.use_keyspace(&keyspace, false).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cassandra-username"), &user).unwrap();
        std::fs::write(folder.path().join("cassandra-password"), &password).unwrap();
        Serving {
            environment,
            origin: cassandra.clone(),
            cassandra,
            serve: json!({}),
            tables: json!([]),
            session,
            keyspace,
            user,
            password,
            folder,
        }
    }

    /// Runs CQL in the keyspace.
    pub async fn execute(&self, cql: &str) {
        let result = self.session.query_unpaged(cql, ()).await;
        result.unwrap_or_else(|error| panic!("{cql}: {error}"));
    }

    /// Mounts a secret.
    pub fn secret(&self, file: &str, value: &Value) {
        std::fs::write(self.folder.path().join(file), value.to_string()).unwrap();
    }

    /// Starts a worker, and waits until it is ready.
    pub async fn start(&mut self) -> Server {
        let server = self.start_unready().await;
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.admin("/readyz").await != "ok\n" {
            let status = server.admin("/status").await;
            assert!(Instant::now() < deadline, "not ready: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// Starts a worker, and waits until it listens.
    pub async fn start_unready(&mut self) -> Server {
        let (port, admin) = (free_port(), free_port());
        let mut config = json!({
            "stage": "serve",
            "pipeline": {"namespace": "test", "name": "sessions"},
            "keyspaces": [self.keyspace],
            "tables": self.tables,
            "port": port,
            "serve": self.serve,
        });
        let mut endpoints = self.serve["endpoints"].as_array().unwrap().iter();
        if endpoints.any(|endpoint| endpoint.get("cql").is_some()) {
            config["cassandra"] = json!({
                "contactPoints": [self.cassandra], "credentialsSecret": {"name": "c"},
            });
        }
        let path = self.folder.path().join(format!("{port}.yaml"));
        std::fs::write(&path, config.to_string()).unwrap();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_millstream-worker"));
        worker
            .args([
                "run",
                "--log-format",
                "human",
                "--http-port",
                &admin.to_string(),
                "--config",
            ])
            .arg(path)
            .arg("--credentials-dir")
            .arg(self.folder.path());
        let child = spawn(&mut worker);
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let server = Server {
            child,
            port,
            admin,
            client: client.build().unwrap(),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while server.client.get(server.url("/docs")).send().await.is_err() {
            assert!(Instant::now() < deadline, "it doesn't listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the keyspace {} is kept for a look", self.keyspace);
            return;
        }
        let drop = format!("DROP KEYSPACE {}", self.keyspace);
        // In a runtime and a session of its own: a destructor can't wait in the test's.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(async {
                    let connected = connect(&self.origin, &self.user, &self.password).await;
                    let _ = connected.query_unpaged(drop, ()).await;
                });
            });
        });
    }
}

async fn connect(address: &str, user: &str, password: &str) -> Session {
    let builder = SessionBuilder::new().known_node(address);
    builder.user(user, password).build().await.unwrap()
}

/// A worker that serves; it is killed with the test.
pub struct Server {
    child: Child,
    port: u16,
    admin: u16,
    pub client: reqwest::Client,
}

impl Server {
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    pub async fn json(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.text(path).await;
        let json = serde_json::from_str(&text);
        (
            status,
            json.unwrap_or_else(|error| panic!("{path}: {error}: {text}")),
        )
    }

    pub async fn text(&self, path: &str) -> (u16, String) {
        let response = self.get(path).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// What an endpoint for the cluster alone answers.
    pub async fn admin(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        match self.client.get(url).send().await {
            Ok(response) => response.text().await.unwrap(),
            Err(error) => error.to_string(),
        }
    }

    /// Waits until a path is answered with this status.
    pub async fn await_status(&self, path: &str, status: u16) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (found, text) = self.text(path).await;
            if found == status {
                return;
            }
            assert!(Instant::now() < deadline, "{path}: {found} {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGTERM; its exit code.
    pub fn terminate(mut self) -> impl Future<Output = Option<i32>> {
        let id = self.child.id().to_string();
        Command::new("kill").arg(id).status().unwrap();
        async move {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                assert!(Instant::now() < deadline, "it doesn't end");
                tokio::time::sleep(Duration::from_millis(20)).await;
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

/// A way to a server that can be shut: connections break, and no new ones come through.
pub struct Gate {
    pub address: String,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    pub async fn open(target: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, is_open) = watch::channel(true);
        let target = target.to_owned();
        tokio::spawn(async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                let target = target.clone();
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let Ok(mut outer) = tokio::net::TcpStream::connect(target).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Gate {
            address,
            open: Arc::new(open),
        }
    }

    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    pub fn unshut(&self) {
        self.open.send_replace(true);
    }
}

/// A time so many hours before another, as CQL takes it.
pub fn hours_ago(time: &str, hours: i64) -> String {
    let time =
        chrono::DateTime::parse_from_rfc3339(time).unwrap() - chrono::TimeDelta::hours(hours);
    time.format("%Y-%m-%d %H:%M:%S%z").to_string()
}

/// Keeps what a person may want to look at, where `MILLSTREAM_KEEP` names a folder for it.
pub fn keep(name: &str, text: &str) {
    if let Ok(folder) = std::env::var("MILLSTREAM_KEEP") {
        std::fs::write(Path::new(&folder).join(name), text).unwrap();
    }
}
