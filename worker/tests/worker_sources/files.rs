//! Files in every form, and a server that gives them.

#![allow(dead_code)]

use std::{
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use futures::{StreamExt, stream};
use millstream_worker::{
    budget::ANSWERS,
    config::Credentials,
    metrics::Metrics,
    source::{Opening, Records, SourceBatch, file},
    status::{Status, StatusPart},
};
use serde_json::{Value, json};

/// The shape of [`records`].
pub fn schema() -> &'static str {
    "id TEXT, count INT, price DOUBLE, ok BOOLEAN, name TEXT"
}

/// Records with numbers, booleans, nulls and text beyond ASCII.
pub fn records(count: usize) -> Vec<Value> {
    let record = |n: usize| {
        let name = (!n.is_multiple_of(3)).then_some("Zoë, \"Ada\"\n");
        json!({
            "id": n.to_string(), "count": n, "price": n as f64 / 4.0 + 0.125,
            "ok": n.is_multiple_of(2), "name": name,
        })
    };
    (0..count).map(record).collect()
}

/// The records as a file of this format.
pub fn written(format: &str, records: &[Value]) -> Vec<u8> {
    match format {
        "ndjson" => {
            let lines = records.iter().map(|record| format!("{record}\n"));
            lines.collect::<String>().into_bytes()
        }
        "jsonArray" => serde_json::to_vec_pretty(records).unwrap(),
        "csv" => csv_file(records),
        "parquet" => parquet_file(records),
        other => panic!("{other}"),
    }
}

fn csv_file(records: &[Value]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let columns = ["id", "count", "price", "ok", "name"];
    writer.write_record(columns).unwrap();
    for record in records {
        let cells = columns.map(|column| match &record[column] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        writer.write_record(cells).unwrap();
    }
    writer.into_inner().unwrap()
}

fn parquet_file(records: &[Value]) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("count", DataType::Int64, true),
        Field::new("price", DataType::Float64, true),
        Field::new("ok", DataType::Boolean, true),
        Field::new("name", DataType::Utf8, true),
    ]));
    let mut decoder = arrow_json::ReaderBuilder::new(schema.clone())
        .with_batch_size(records.len().max(1))
        .build_decoder()
        .unwrap();
    decoder.serialize(records).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(300))
        .build();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(Vec::new(), schema, Some(properties)).unwrap();
    if let Some(batch) = decoder.flush().unwrap() {
        writer.write(&batch).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The bytes, compressed; a zip has one member of this name.
pub fn packed(compression: &str, name: &str, bytes: &[u8]) -> Vec<u8> {
    match compression {
        "none" => bytes.to_vec(),
        "gzip" => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        "bzip2" => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), Default::default());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        "zstd" => zstd::encode_all(bytes, 0).unwrap(),
        "zip" => zip(&[(name, bytes)]),
        other => panic!("{other}"),
    }
}

/// A zip of these members.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = zip::write::SimpleFileOptions::default();
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub fn status() -> (Arc<Status>, StatusPart) {
    let status = Arc::new(Status::default());
    let part = status.part("ingest");
    (status, part)
}

pub fn open(spec: Value, schema: &str, position: Option<&Value>, status: &StatusPart) -> Records {
    let opening = Opening {
        schema,
        credentials: &Credentials::new(PathBuf::new()),
        position,
        status,
        metrics: &Metrics::default().stage("ingest"),
        connections: None,
        answers: ANSWERS,
    };
    file::open(serde_json::from_value(spec).unwrap(), &opening).unwrap()
}

/// All batches of a source without faults.
pub async fn collect(spec: Value, position: Option<&Value>) -> Vec<SourceBatch> {
    let (status, part) = status();
    let batches = open(spec, schema(), position, &part).collect();
    let limit = std::time::Duration::from_secs(30);
    match tokio::time::timeout(limit, batches).await {
        Ok(batches) => batches,
        Err(_) => panic!("{:?}", status.report()),
    }
}

pub fn texts(batches: &[SourceBatch]) -> Vec<String> {
    let records = batches.iter().flat_map(|batch| &batch.records);
    records
        .map(|record| String::from_utf8(record.to_vec()).unwrap())
        .collect()
}

/// Serves one file, with ranges.
pub struct Server {
    address: String,
    state: Arc<Mutex<Served>>,
}

struct Served {
    bytes: Bytes,
    cut_at: Option<usize>,
    requests: Vec<Option<String>>,
}

impl Server {
    pub async fn start(bytes: Vec<u8>) -> Self {
        let state = Arc::new(Mutex::new(Served {
            bytes: bytes.into(),
            cut_at: None,
            requests: Vec::new(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new()
            .route("/files/{name}", get(serve))
            .with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server { address, state }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/files/{name}", self.address)
    }

    /// The next answer ends after so many bytes.
    pub fn cut_next(&self, bytes: usize) {
        self.state.lock().unwrap().cut_at = Some(bytes);
    }

    pub fn replace(&self, bytes: Vec<u8>) {
        self.state.lock().unwrap().bytes = bytes.into();
    }

    /// The `Range` headers of the requests.
    pub fn requests(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().requests.clone()
    }
}

async fn serve(State(state): State<Arc<Mutex<Served>>>, headers: HeaderMap) -> Response {
    let mut served = state.lock().unwrap();
    let header = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let range = header(header::RANGE);
    served.requests.push(range.clone());
    let bytes = served.bytes.clone();
    let tag = format!("\"{}\"", bytes.len());
    let start: Option<usize> = range
        .filter(|_| header(header::IF_RANGE).as_ref() == Some(&tag))
        .map(|range| range["bytes=".len()..range.len() - 1].parse().unwrap());
    let body = bytes.slice(start.unwrap_or(0)..);
    let (length, total) = (body.len(), bytes.len());
    let body = match served.cut_at.take() {
        Some(end) => cut(body.slice(..end)),
        None => Body::from(body),
    };
    let length = [
        (header::CONTENT_LENGTH, length.to_string()),
        (header::ETAG, tag),
    ];
    match start {
        None => (length, body).into_response(),
        Some(start) => {
            let range = format!("bytes {start}-{}/{total}", total - 1);
            let range = [(header::CONTENT_RANGE, range)];
            (StatusCode::PARTIAL_CONTENT, length, range, body).into_response()
        }
    }
}

/// A body that ends before the length that its header promises.
fn cut(begin: Bytes) -> Body {
    let cut = stream::once(async {
        // The beginning has to be on its way first.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        Err(std::io::Error::other("cut"))
    });
    Body::from_stream(stream::iter([Ok(begin)]).chain(cut))
}

/// A generator's records.
pub fn generator(spec: Value, position: Option<&Value>) -> Records {
    let opening = Opening {
        schema: schema(),
        credentials: &Credentials::new(PathBuf::new()),
        position,
        status: &status().1,
        metrics: &Metrics::default().stage("ingest"),
        connections: None,
        answers: ANSWERS,
    };
    millstream_worker::source::generator::open(serde_json::from_value(spec).unwrap(), &opening)
        .unwrap()
}
