//! Files to download: `GET /files/<name>.ndjson`, and the same as `.ndjson.gz` and `.zip`. They are
//! those of the folder that the server was given, and else generated ones: `meetup_rsvps` and
//! `sessions`.

use std::fs;
use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::{Apis, recordings};

pub(crate) async fn serve(State(apis): State<Arc<Apis>>, Path(file): Path<String>) -> Response {
    // To make and to pack a file takes the processor for a moment.
    let made = tokio::task::spawn_blocking(move || apis.file(&file)).await;
    match made.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Some(bytes)) => {
            ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
        }
        Ok(None) => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Apis {
    /// A file as its name's end says; none where there is no such file.
    fn file(&self, file: &str) -> io::Result<Option<Vec<u8>>> {
        let Some((name, form)) = file.split_once('.') else {
            return Ok(None);
        };
        // It mustn't lead out of the folder.
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Ok(None);
        }
        let pack: fn(&str, Vec<u8>) -> io::Result<Vec<u8>> = match form {
            "ndjson" => |_, lines| Ok(lines),
            "ndjson.gz" => |_, lines| gzip(&lines),
            "zip" => |name, lines| zip(&format!("{name}.ndjson"), &lines),
            _ => return Ok(None),
        };
        let lines = self.lines(name)?;
        lines.map(|lines| pack(name, lines)).transpose()
    }

    fn lines(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        if let Some(folder) = &self.files {
            for (ending, packed) in [("ndjson", false), ("ndjson.gz", true)] {
                match fs::read(folder.join(format!("{name}.{ending}"))) {
                    Ok(bytes) if packed => return gunzip(&bytes).map(Some),
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(match name {
            "meetup_rsvps" => Some(ndjson(recordings::rsvps(&self.seed))),
            "sessions" => Some(ndjson(recordings::sessions(&self.seed))),
            _ => None,
        })
    }
}

fn ndjson(records: impl IntoIterator<Item = Value>) -> Vec<u8> {
    let lines = records.into_iter().map(|record| format!("{record}\n"));
    lines.collect::<String>().into_bytes()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
    writer.write_all(bytes)?;
    writer.finish()
}

fn gunzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut plain)?;
    Ok(plain)
}

fn zip(member: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file(member, SimpleFileOptions::default())?;
    writer.write_all(bytes)?;
    Ok(writer.finish()?.into_inner())
}
