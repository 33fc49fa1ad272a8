//! Schemas in the registry, and a way to it that can be cut.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use millstream_plan::RecordSchema;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Environment;

/// The registry's URL, and a word why where there is none.
pub fn url(environment: &Environment) -> Option<String> {
    let url = environment.json["registry"].as_str();
    if url.is_none() {
        eprintln!("skipped: the environment has no schema registry");
    }
    url.map(str::to_owned)
}

/// Registers a schema; its id.
pub async fn register(url: &str, subject: &str, schema: &Value) -> u32 {
    let response = reqwest::Client::new()
        .post(format!("{url}/subjects/{subject}/versions"))
        .json(&json!({"schema": schema.to_string()}))
        .send()
        .await
        .unwrap();
    let answer: Value = response.json().await.unwrap();
    let id = answer["id"].as_u64();
    u32::try_from(id.unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

/// Registers the schema of a pipeline's records, as the operator does; its id.
pub async fn register_records(url: &str, topic: &str, schema: &str) -> u32 {
    let schema = RecordSchema::parse(schema).unwrap().avro(topic).unwrap();
    register(url, &format!("{topic}-value"), &schema).await
}

/// A way to the registry that is closed at first.
pub struct Gate {
    pub url: String,
    open: Arc<AtomicBool>,
}

impl Gate {
    /// A gate before the registry of this URL.
    pub async fn before(url: &str) -> Self {
        let url = reqwest::Url::parse(url).unwrap();
        let target = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicBool::new(false));
        let is_open = open.clone();
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                if is_open.load(Ordering::SeqCst) {
                    let mut to = TcpStream::connect(&target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
            }
        });
        Gate {
            url: format!("http://{address}{}", url.path()),
            open,
        }
    }

    /// Lets everything through.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}
