//! Bytes of any kind never make the decoders panic, nor give what isn't a JSON object.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::source::file::{local::LocalFile, take::Take};

/// What was given.
#[derive(Default)]
struct Given {
    records: Vec<String>,
    rejected: usize,
}

impl Take for Given {
    fn begin(&mut self, _member: Option<&str>) -> Result<bool, ReadError> {
        Ok(true)
    }

    fn record(&mut self, json: &[u8]) -> Result<(), ReadError> {
        self.records.push(String::from_utf8(json.to_vec()).unwrap());
        Ok(())
    }

    fn reject(&mut self, _value: &[u8], _reason: String) -> Result<(), ReadError> {
        self.rejected += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ReadError> {
        Ok(())
    }
}

fn read(spec: serde_json::Value, bytes: &[u8]) -> (Given, Result<(), ReadError>) {
    let spec: FileSource = serde_json::from_value(spec).unwrap();
    let schema = "a INT, b DOUBLE, c BOOLEAN, d ARRAY<INT>, e DECIMAL(9, 2)";
    let reading = Reading {
        compression: spec.compression,
        members: spec.members,
        formats: Formats {
            format: spec.format,
            records: Pointer::parse(spec.records.as_deref().unwrap_or_default()),
            csv: spec.csv,
            schema: RecordSchema::parse(schema).unwrap(),
            scratch: Scratch::new(1 << 20),
        },
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let mut given = Given::default();
    let read = reading.file("r", LocalFile::new(file).unwrap(), &mut given);
    for record in &given.records {
        let json: serde_json::Value = serde_json::from_str(record).unwrap();
        assert!(json.is_object(), "{record}");
    }
    (given, read)
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        ",",
        ":",
        "\n",
        "\r\n",
        " ",
        "a",
        "null",
        "true",
        "1.5",
        "-",
        "{\"a\": 1}",
        "\"a\"",
        "é",
        "\u{feff}",
        "a,b,c,d,e\n",
        "1,2,true,[1],3\n",
        "'",
        "\\u0061",
        "1e999",
        "0",
        "+.5",
        "PAR1",
        "BZh9",
    ]);
    proptest::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat().into_bytes())
}

fn format() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![
        None,
        Some("ndjson"),
        Some("jsonArray"),
        Some("csv"),
        Some("parquet"),
    ])
}

fn spec(format: Option<&str>, compression: Option<&str>, records: &str) -> serde_json::Value {
    let mut spec = serde_json::json!({"path": "/r", "records": records});
    if let Some(format) = format {
        spec["format"] = format.into();
    }
    if let Some(compression) = compression {
        spec["compression"] = compression.into();
    }
    spec
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_a_format_panic(
        bytes in prop_oneof![pieces(), proptest::collection::vec(any::<u8>(), 0..200)],
        format in format(),
        records in prop::sample::select(vec!["", "/a", "/a/b"]),
    ) {
        let _ = read(spec(format, None, records), &bytes);
    }

    #[test]
    fn no_damage_makes_an_archive_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        format in prop::sample::select(vec!["zip", "gzip", "bzip2", "zstd", "parquet"]),
    ) {
        let mut bytes = whole(format);
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let end = bytes.len() - cut.index(bytes.len()) / 8;
        let (format, compression) = match format {
            "parquet" => (Some("parquet"), None),
            other => (Some("ndjson"), Some(other)),
        };
        let _ = read(spec(format, compression, ""), &bytes[..end]);
    }
}

/// Each byte in its turn: the library panics at a dozen such files, which random damages seldom find.
#[test]
fn no_wrong_byte_makes_parquet_panic() {
    let whole = whole("parquet");
    for index in 0..whole.len() {
        for flip in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[index] ^= flip;
            let _ = read(spec(Some("parquet"), None, ""), &bytes);
        }
    }
}

/// A file without damage.
fn whole(format: &str) -> Vec<u8> {
    let text = "{\"a\": 1}\n{\"a\": 2}\n".repeat(50);
    match format {
        "zip" => {
            let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
            let options = zip::write::SimpleFileOptions::default();
            for name in ["1", "2"] {
                zip.start_file(name, options).unwrap();
                zip.write_all(text.as_bytes()).unwrap();
            }
            zip.finish().unwrap().into_inner()
        }
        "gzip" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            gzip.write_all(text.as_bytes()).unwrap();
            gzip.finish().unwrap()
        }
        "bzip2" => {
            let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), Default::default());
            bzip2.write_all(text.as_bytes()).unwrap();
            bzip2.finish().unwrap()
        }
        "zstd" => zstd::encode_all(text.as_bytes(), 0).unwrap(),
        _ => parquet_file(&text),
    }
}

fn parquet_file(text: &str) -> Vec<u8> {
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
    let mut json = arrow_json::ReaderBuilder::new(schema.clone())
        .build(text.as_bytes())
        .unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), schema, None).unwrap();
    writer.write(&json.next().unwrap().unwrap()).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn files_without_damage_are_read() {
    for format in ["zip", "gzip", "bzip2", "zstd", "parquet"] {
        let (given, read) = read(spec(None, None, ""), &whole(format));
        read.unwrap();
        let members = if format == "zip" { 2 } else { 1 };
        assert_eq!(
            (given.records.len(), given.rejected),
            (100 * members, 0),
            "{format}"
        );
    }
}

#[tokio::test]
async fn files_are_the_whole_when_none_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let spec = serde_json::json!({"path": folder.path(), "format": "ndjson"});
    let spec: FileSource = serde_json::from_value(spec).unwrap();
    let secrets = crate::config::Credentials::new(PathBuf::new());
    let read = async || {
        let schema = RecordSchema::parse("a INT").unwrap();
        let given = read_whole(&spec, schema, &secrets, Given::default()).await;
        given.map(|given| given.records.len())
    };
    write("_SUCCESS", "");
    write("de.json", "{\"a\": 1}\n");
    write("fr.json", "{\"a\": 2}\n");
    assert_eq!(read().await.unwrap(), 2);
    write("fr.json", "");
    let error = read().await.unwrap_err().to_string();
    assert!(error.contains("fr.json is empty"), "{error}");
}

#[tokio::test]
async fn an_object_of_another_version_is_given_from_its_beginning() {
    let Ok(endpoint) = std::env::var("MILLSTREAM_S3") else {
        eprintln!("skipped: MILLSTREAM_S3 names no object store");
        return;
    };
    let name = format!("millstream-{}", uuid::Uuid::new_v4().simple());
    let client = reqwest::Client::new();
    let put = async |path: &str, body: &'static str| {
        let put = client.put(format!("{endpoint}/{name}{path}"));
        // Requests without keys aren't signed.
        let put = put.header("x-amz-acl", "public-read").body(body);
        assert!(put.send().await.unwrap().status().is_success());
    };
    put("", "").await;
    put("/r", "version 1").await;
    let spec = serde_json::json!({"s3": {
        "bucket": name, "key": "r", "endpoint": endpoint, "allowHttp": true,
    }});
    let spec = serde_json::from_value(spec).unwrap();
    let secrets = crate::config::Credentials::new(PathBuf::new());
    let origin = Origin::new(&spec, &secrets).unwrap();
    let first = origin.get("r", 0, None).await.unwrap();
    let version = first.version.as_deref();
    let rest = origin.get("r", 8, version).await.unwrap();
    assert_eq!((rest.start, rest.size), (8, Some(9)));
    let rest: Vec<_> = rest.body.map(Result::unwrap).collect().await;
    assert_eq!(rest.concat(), b"1");

    put("/r", "version 20").await;
    let other = origin.get("r", 8, version).await.unwrap();
    assert_eq!((other.start, other.size), (0, Some(10)));
    assert_ne!(other.version, first.version);
}
