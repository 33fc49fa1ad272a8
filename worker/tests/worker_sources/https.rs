//! Servers whose certificates are of an authority of their own: refused, unless it is given.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::{Router, response::Redirect, routing::get, serve::Listener};
use futures::StreamExt;
use millstream_api::Lookup as LookupSpec;
use millstream_plan::{Lookup, RecordSchema, SinkPlan};
use millstream_worker::{
    budget::ANSWERS,
    config::Credentials,
    lookup,
    metrics::Metrics,
    source::{self, Opening, Records},
    status::{Status, StatusPart},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::certificates;

const RECORDS: &str = r#"[{"id": 1}, {"id": 2}]"#;

/// Connections over TLS. Those that don't get so far are forgotten.
struct OverTls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for OverTls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A server that gives the records; its URL, and a folder with `server-ca.crt`. None without openssl.
async fn start() -> Option<(String, tempfile::TempDir)> {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path(), "server")?;
    let certificate = CertificateDer::from_pem_file(folder.path().join("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.path().join("server.key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let over_tls = OverTls {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        acceptor: TlsAcceptor::from(Arc::new(config)),
    };
    let url = format!("https://{}/records.json", over_tls.local_addr().unwrap());
    let elsewhere = "http://127.0.0.1/records.json";
    let router = Router::new()
        .route("/records.json", get(|| async { RECORDS }))
        .route("/moved.json", get(|| async { Redirect::to(elsewhere) }));
    tokio::spawn(async move { axum::serve(over_tls, router).await.unwrap() });
    Some((url, folder))
}

/// What is said of the server's authority, and a folder with it.
fn trusted(made: &Path, file: &str) -> (Value, tempfile::TempDir) {
    let mounted = tempfile::tempdir().unwrap();
    std::fs::copy(made.join("server-ca.crt"), mounted.path().join(file)).unwrap();
    let tls = json!({"caSecret": {"name": "server", "key": "ca.crt"}});
    (tls, mounted)
}

fn open(spec: Value, mounted: &Path, status: &StatusPart) -> anyhow::Result<Records> {
    let opening = Opening {
        schema: "id BIGINT",
        credentials: &Credentials::new(mounted.to_owned()),
        position: None,
        answers: ANSWERS,
        status,
        metrics: &Metrics::default().stage("ingest"),
        connections: None,
    };
    source::open(&serde_json::from_value(spec).unwrap(), &opening)
}

/// What a source says that doesn't get a record.
async fn refused(spec: Value, mounted: &Path) -> String {
    let status = Arc::new(Status::default());
    let mut source = open(spec, mounted, &status.part("ingest")).unwrap();
    let shown = async {
        loop {
            if let Some(error) = status.report().errors.remove("ingest") {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = source.next() => panic!("it gets a record"),
        error = shown => error,
    }
}

/// A source is refused without the authority, and gives all records with it; nothing goes by plain
/// HTTP then.
async fn assert_trusts(kind: &str, file: &str) {
    let Some((url, made)) = start().await else {
        return;
    };
    let error = refused(json!({kind: {"url": url}}), Path::new("")).await;
    assert!(error.contains("certificate"), "{error}");

    let (tls, mounted) = trusted(made.path(), file);
    let moved = url.replace("records", "moved");
    let error = refused(json!({kind: {"url": moved, "tls": tls}}), mounted.path()).await;
    assert!(error.contains("URL scheme is not allowed"), "{error}");
    let spec = json!({kind: {"url": url, "tls": tls}});
    let part = Arc::new(Status::default()).part("ingest");
    let source = open(spec.clone(), mounted.path(), &part).unwrap();
    let batches: Vec<_> = source.collect().await;
    let records = batches.iter().flat_map(|batch| &batch.records);
    let ids = records.map(|record| serde_json::from_slice::<Value>(record).unwrap()["id"].clone());
    assert_eq!(ids.collect::<Vec<_>>(), [1, 2]);

    let broken = "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n";
    for (pem, says) in [("", "there is no certificate in"), (broken, "isn't PEM")] {
        std::fs::write(mounted.path().join(file), pem).unwrap();
        let error = open(spec.clone(), mounted.path(), &part).err().unwrap();
        assert!(format!("{error:#}").contains(says), "{error:#}");
    }
    let error = open(spec, Path::new(""), &part).err().unwrap();
    assert!(format!("{error:#}").contains(file), "{error:#}");
}

#[tokio::test]
async fn an_api_is_read_where_its_authority_is_given() {
    assert_trusts("http", "http-ca.crt").await;
}

#[tokio::test]
async fn a_file_is_downloaded_where_its_authority_is_given() {
    assert_trusts("file", "file-ca.crt").await;
}

#[tokio::test]
async fn a_lookup_is_read_where_its_authority_is_given() {
    let Some((url, made)) = start().await else {
        return;
    };
    let (tls, mounted) = trusted(made.path(), "lookup-things-file-ca.crt");
    let schema = RecordSchema::parse("thing BIGINT").unwrap();
    let things = Lookup::new("things", "id BIGINT").unwrap();
    let sql = "SELECT r.thing, t.id FROM records r JOIN things t ON r.thing = t.id";
    let plans = [SinkPlan::joining(&schema, &[things], "rows", sql).unwrap()];
    let read = async |file: Value| {
        let spec = json!({"name": "things", "file": file, "schema": "id BIGINT"});
        let spec: LookupSpec = serde_json::from_value(spec).unwrap();
        let credentials = Credentials::new(mounted.path().to_owned());
        let loaders = lookup::loaders(&[spec], &plans, None, &credentials).unwrap();
        loaders[0].load_once().await?;
        let joined = lookup::joined(&loaders, &plans[0]);
        anyhow::Ok(joined.now()["things"].rows())
    };
    let error = read(json!({"url": url})).await.unwrap_err();
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");
    assert_eq!(read(json!({"url": url, "tls": tls})).await.unwrap(), 2);
}
