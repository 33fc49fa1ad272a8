//! A small HTTP server that behaves as the public APIs of the examples do, for the demo and the
//! tests: it can be asked what it served, and to fail.
//!
//! | route | behaves as |
//! |---|---|
//! | `GET /api/?results=N&seed=S&page=P` | Randomuser |
//! | `GET /resource/<id>.json?$limit&$offset&$order&$select` | Socrata (SODA 2) |
//! | `GET /pages/numbered`, `/pages/cursor`, `/pages/linked` | APIs with other pages; see [`pages`] |
//! | `GET /files/<name>.ndjson`, `.ndjson.gz`, `.zip` | a server of files; see [`files`] |
//! | `GET /sent?ids=false`, `DELETE /sent` | tells, or forgets, what was served |
//! | `GET`, `POST`, `DELETE /faults` | see [`faults`] |

pub mod dataset;
pub mod faults;
pub mod files;
mod nations;
pub mod pages;
pub mod randomuser;
mod recordings;
mod sent;
pub mod socrata;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use dataset::Dataset;
use faults::Faults;
use pages::Admission;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sent::Sent;
use sha2::{Digest, Sha256};

/// What the server serves.
#[derive(Debug, Default)]
pub struct Options {
    /// Seed of everything that is generated.
    pub seed: String,
    /// Rows of the generated Socrata dataset.
    pub records: u64,
    /// Served in place of generated records, by every route.
    pub recorded: Option<Dataset>,
    /// Folder of the files that `/files/` serves in place of generated ones.
    pub files: Option<PathBuf>,
    /// What requests to `/pages/` have to know; nothing where absent.
    pub token: Option<String>,
    /// Requests to `/pages/` that are answered in a second; all where absent.
    pub rate: Option<u32>,
}

/// The server's state.
pub struct Apis {
    seed: String,
    recorded: Option<Dataset>,
    /// The dataset of `/resource/`, where nothing recorded takes its place.
    generated: Dataset,
    files: Option<PathBuf>,
    /// Calls of `/api/` without a seed so far: each gets records of its own.
    calls: AtomicU64,
    /// Recorded records that `/api/` has served so far.
    position: AtomicU64,
    users_sent: Sent,
    rows_sent: Sent,
    faults: Faults,
    admission: Admission,
}

impl Apis {
    /// A server that has served nothing yet.
    pub fn new(options: Options) -> Arc<Self> {
        let rows = if options.recorded.is_some() {
            0
        } else {
            options.records
        };
        let generated = (0..rows).map(|index| socrata::business(&options.seed, index));
        Arc::new(Apis {
            generated: Dataset::new(generated.collect()),
            faults: Faults::new(&options.seed),
            admission: Admission::new(&options),
            seed: options.seed,
            recorded: options.recorded,
            files: options.files,
            calls: AtomicU64::new(0),
            position: AtomicU64::new(0),
            users_sent: Sent::default(),
            rows_sent: Sent::default(),
        })
    }

    fn dataset(&self) -> &Dataset {
        self.recorded.as_ref().unwrap_or(&self.generated)
    }

    fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }
}

/// All routes.
pub fn router(apis: Arc<Apis>) -> Router {
    let pages = Router::new()
        .route("/pages/numbered", get(pages::numbered))
        .route("/pages/cursor", get(pages::cursor))
        .route("/pages/linked", get(pages::linked))
        .route_layer(from_fn_with_state(apis.clone(), pages::admit));
    Router::new()
        .merge(pages)
        .route("/api", get(randomuser::serve))
        .route("/api/", get(randomuser::serve))
        .route("/resource/{file}", get(socrata::serve))
        .route("/files/{file}", get(files::serve))
        .route("/sent", get(sent::show).delete(sent::forget))
        .route(
            "/faults",
            get(faults::show).post(faults::order).delete(faults::clear),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(apis)
}

/// Random values that depend on nothing but these three.
fn random(seed: &str, kind: &str, index: u64) -> StdRng {
    let mut hash = Sha256::new();
    hash.update((seed.len() as u64).to_le_bytes());
    hash.update(seed);
    hash.update(kind);
    hash.update(index.to_le_bytes());
    StdRng::from_seed(hash.finalize().into())
}
