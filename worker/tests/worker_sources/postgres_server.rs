//! A PostgreSQL server of the test's own.

#![allow(dead_code)]

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use crate::ports::free_port;

pub const PASSWORD: &str = "it's a secret";

/// A server with a database of its own; it ends with the test.
pub struct Server {
    programs: PathBuf,
    pub folder: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
    /// Whether connections can be encrypted.
    pub tls: bool,
}

/// PostgreSQL doesn't run as root: nobody does it then.
fn unprivileged(program: &Path, folder: &Path) -> Command {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Command::new(program);
    }
    run(Command::new("chown").arg("65534:65534").arg(folder));
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program);
    command
}

pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Server {
    /// None, and a word why, where there is no PostgreSQL.
    pub async fn start() -> Option<Self> {
        let installed = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten();
        let programs = installed
            .map(|version| version.unwrap().path().join("bin"))
            .max();
        let Some(programs) = programs else {
            eprintln!("skipped: no PostgreSQL");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server {
            programs,
            folder,
            port: free_port(),
            child: None,
            tls: false,
        };
        let password = server.folder.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let (data, folder) = (server.data(), server.folder.path().to_owned());
        let mut initdb = unprivileged(&server.programs.join("initdb"), &folder);
        initdb
            .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", password.display()))
            .arg(data);
        run(&mut initdb);
        server.up().await;
        Some(server)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub async fn up(&mut self) {
        let mut postgres = unprivileged(&self.programs.join("postgres"), self.folder.path());
        postgres
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .args(["-c", "unix_socket_directories=", "-c", "fsync=off"])
            .args(["-c", if self.tls { "ssl=on" } else { "ssl=off" }])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(postgres.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.try_client().await.is_none() {
            assert!(Instant::now() < deadline, "PostgreSQL doesn't answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As a source names it.
    pub fn connection(&self) -> Value {
        json!({
            "host": "127.0.0.1", "port": self.port, "database": "postgres", "user": "postgres",
            "passwordSecret": {"name": "postgres", "key": "password"},
        })
    }

    /// As a crash would end it.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let id = child.id().to_string();
            let _ = Command::new("kill").args(["-QUIT", &id]).status();
            let _ = child.wait();
        }
    }

    pub async fn try_client(&self) -> Option<Client> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .password(PASSWORD)
            .dbname("postgres")
            .connect(NoTls)
            .await
            .ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    pub async fn execute(&self, sql: &str) {
        let client = self.try_client().await.unwrap();
        client.batch_execute(sql).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}
