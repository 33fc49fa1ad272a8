//! `infer`, as a person runs it: from a server, and from files.

use std::{future::ready, process::Command};

use axum::{
    Router,
    http::{HeaderMap, StatusCode},
    routing::get,
};

use crate::files::packed;

const ANSWER: &str = r#"{"results": [{"id": 1, "city": "Wil"}, {"id": 2, "city": null}]}"#;
const THINGS: &str = "id,price\n1,1.5\n2,2\nbad\n";

/// What the worker prints, and what it says besides; with whether it was right.
fn worker(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_millstream-worker"))
        .args(arguments)
        .output()
        .unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.success(), out, err)
}

/// Words with single blanks between them.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A server with an API, a file, and what doesn't work; its URL.
async fn start() -> String {
    let packed = packed("gzip", "", THINGS.as_bytes());
    let router = Router::new()
        .route("/api", get(|| async { ANSWER }))
        .route(
            "/closed",
            get(|headers: HeaderMap| async move {
                let right = headers
                    .get("authorization")
                    .is_some_and(|it| it == "Bearer t:k");
                match right {
                    true => Ok(ANSWER),
                    false => Err(StatusCode::UNAUTHORIZED),
                }
            }),
        )
        .route("/things.csv.gz", get(move || ready(packed.clone())))
        .route("/broken", get(|| async { StatusCode::BAD_GATEWAY }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// The pipeline that was printed has these lines, and is taken as it is.
fn assert_accepted(pipeline: &str, lines: &[String]) {
    for line in lines {
        assert!(pipeline.lines().any(|there| there == line), "{pipeline}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    std::fs::write(&path, pipeline).unwrap();
    let (right, told, error) = worker(&["check", "-f", path.to_str().unwrap()]);
    assert!(right && told.contains("ok"), "{told}{error}\n{pipeline}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_and_a_pipeline_of_what_an_api_gives() {
    let url = start().await;
    let api = format!("{url}/api");
    let (right, schema, notes) = worker(&["infer", "--url", &api, "--records", "/results"]);
    assert!(right, "{notes}");
    assert_eq!(
        (words(&schema).as_str(), notes.as_str()),
        ("id BIGINT, city TEXT", "")
    );

    let closed = format!("{url}/closed");
    let of_closed = ["infer", "--url", &closed, "--records", "/results"];
    let header = ["--header", "Authorization: Bearer t:k"];
    let (right, of_closed, notes) = worker(&[&of_closed[..], &header].concat());
    assert!(right, "{notes}");
    assert_eq!(of_closed, schema);

    let (right, _, notes) = worker(&["infer", "--url", &api]);
    assert!(right, "{notes}");
    assert!(
        notes.contains("did you mean --records /results?"),
        "{notes}"
    );

    let of_api = ["infer", "--url", &api, "--records", "/results"];
    let (right, pipeline, notes) = worker(&[&of_api[..], &["--pipeline", "places"]].concat());
    assert!(right, "{notes}");
    let lines = [
        "# Inferred from 2 records. What it would write: millstream-worker preview -f FILE".into(),
        format!("      url: \"{api}\""),
        "      records: \"/results\"".into(),
        "        primaryKey: {partitionKey: [id]}".into(),
    ];
    assert_accepted(&pipeline, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_and_a_pipeline_of_what_is_in_a_file() {
    let url = start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("things.csv.gz");
    std::fs::write(&path, packed("gzip", "", THINGS.as_bytes())).unwrap();
    let path = path.to_str().unwrap();
    let behind_url = format!("{url}/things.csv.gz");
    for (file, field) in [(path, "path"), (behind_url.as_str(), "url")] {
        let (right, schema, notes) = worker(&["infer", "--file", file]);
        assert!(right, "{notes}");
        assert_eq!(words(&schema), "id BIGINT, price DOUBLE");
        assert!(
            notes.contains("note: 1 of 3 records can't be read"),
            "{notes}"
        );

        let (right, pipeline, notes) = worker(&["infer", "--file", file, "--pipeline", "things"]);
        assert!(right, "{notes}");
        let of_this_machine = notes.contains("the file's path is one of this machine");
        assert_eq!(of_this_machine, field == "path", "{notes}");
        assert_accepted(&pipeline, &[format!("      {field}: \"{file}\"")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let url = start().await;
    let broken = format!("{url}/broken");
    let nothing = ["infer", "--url", &broken, "--timeout", "1s"];
    for (arguments, says) in [
        (&nothing[..], "the server answers 502"),
        (
            &["infer", "--url", "ftp://x"],
            "begin it with http:// or https://",
        ),
        (
            &["infer", "--file", "/nowhere.csv", "--timeout", "1s"],
            "can't read /nowhere.csv",
        ),
        (&["infer"], "--url <URL>|--file <FILE>"),
        (
            &["infer", "--url", &url, "--file", "/a"],
            "cannot be used with",
        ),
    ] {
        let (right, out, error) = worker(arguments);
        assert!(!right && out.is_empty(), "{out}");
        assert!(error.contains(says), "{error}");
    }
}
