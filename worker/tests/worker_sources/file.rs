//! The file source: every format and compression, and files that are damaged, cut or changed.

use std::{path::Path, time::Duration};

use crate::files::{self, Server, collect, open, packed, records, schema, status, texts, written};
use futures::StreamExt;
use serde_json::{Value, json};

const FORMATS: [&str; 4] = ["ndjson", "jsonArray", "csv", "parquet"];
const COMPRESSIONS: [&str; 5] = ["none", "gzip", "bzip2", "zstd", "zip"];

fn values(texts: &[String]) -> Vec<Value> {
    let values = texts.iter().map(|text| serde_json::from_str(text).unwrap());
    values.collect()
}

#[tokio::test]
async fn every_format_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let expected = records(1_234);
    for format in FORMATS {
        for compression in COMPRESSIONS {
            // Once by what is said, once by what is found out.
            for said in [true, false] {
                let name = match (format, said) {
                    ("csv", false) => "records.csv",
                    _ => "records",
                };
                let path = folder.path().join(name);
                let bytes = packed(compression, name, &written(format, &expected));
                std::fs::write(&path, bytes).unwrap();
                let mut spec = json!({"path": path});
                if said {
                    spec["format"] = format.into();
                    spec["compression"] = compression.into();
                }
                let batches = collect(spec, None).await;
                assert!(batches.len() > 2, "{format} {compression}");
                let found = values(&texts(&batches));
                assert_eq!(found, expected, "{format} {compression} {said}");
            }
        }
    }
}

#[tokio::test]
async fn goes_on_after_every_batch() {
    let folder = tempfile::tempdir().unwrap();
    for (format, compression) in [
        ("ndjson", "none"),
        ("jsonArray", "gzip"),
        ("csv", "zip"),
        ("parquet", "zstd"),
    ] {
        let path = folder.path().join("records.csv");
        let bytes = packed(compression, "a.csv", &written(format, &records(2_100)));
        std::fs::write(&path, bytes).unwrap();
        let spec = json!({"path": path, "format": format});
        let all = collect(spec.clone(), None).await;
        assert!(all.len() > 4);
        for (index, batch) in all.iter().enumerate() {
            let rest = collect(spec.clone(), Some(&batch.position)).await;
            assert_eq!(rest, all[index + 1..], "{format} after batch {index}");
        }
    }
}

#[tokio::test]
async fn files_of_a_folder_and_members_of_a_zip_come_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let line = |n: u32| format!("{{\"n\":{n}}}\n").into_bytes();
    std::fs::write(folder.path().join("b.ndjson"), line(4)).unwrap();
    std::fs::write(folder.path().join(".hidden"), line(9)).unwrap();
    std::fs::create_dir(folder.path().join("below")).unwrap();
    let zip = files::zip(&[
        ("2.json", &line(2)),
        ("1.json", &line(1)),
        ("notes.txt", b"notes"),
        ("3.json.gz", &packed("gzip", "", &line(3))),
        ("__MACOSX/1.json", b"\0"),
    ]);
    std::fs::write(folder.path().join("a.zip"), zip).unwrap();
    let spec = json!({"path": folder.path(), "members": "*.json*"});
    let batches = collect(spec.clone(), None).await;
    let expected: Vec<_> = (1..=4).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(texts(&batches), expected);
    for (index, batch) in batches.iter().enumerate() {
        let rest = collect(spec.clone(), Some(&batch.position)).await;
        assert_eq!(rest, batches[index + 1..]);
    }
}

#[tokio::test]
async fn a_bad_record_is_rejected_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let ndjson = "\u{feff}{\"a\": 1}\r\n\r\n{\"a\": \n[1]\n{\"a\": 2}";
    let array = "[{\"a\": 1}, {\"a\": tru}, 7 , {\"a\": 2}]";
    let csv = "id,count,price,ok,extra\n\
        x,1,1.50,true,Zoë\n\
        y,2\n\
        z,many,1,true,\n\
        \"two\nlines\",3,NaN,true,\n\
        w,+04,.5,F,\n";
    for (name, text, good, bad) in [
        (
            "r.ndjson",
            ndjson,
            vec![r#"{"a": 1}"#, r#"{"a": 2}"#],
            vec![
                ("{\"a\":", "r.ndjson, line 3: it isn't JSON"),
                ("[1]", "r.ndjson, line 4: it is an array, not an object"),
            ],
        ),
        (
            "r.json",
            array,
            vec![r#"{"a": 1}"#, r#"{"a": 2}"#],
            vec![
                ("{\"a\": tru}", "r.json, element 2: it isn't JSON"),
                ("7", "r.json, element 3: it is a number"),
            ],
        ),
        (
            "r.csv",
            csv,
            vec![
                r#"{"id":"x","count":1,"price":1.50,"ok":true,"extra":"Zoë"}"#,
                r#"{"id":"w","count":4,"price":0.5,"ok":false,"extra":null}"#,
            ],
            vec![
                ("y,2", "r.csv, line 3: it has 2 columns, not 5"),
                (
                    "z,many,1,true,",
                    "line 4: column `count` is `many`, not a whole number",
                ),
                (
                    "\"two\nlines\",3,NaN,true,",
                    "line 5: column `price` is `NaN`",
                ),
            ],
        ),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let batches = collect(json!({"path": path}), None).await;
        assert_eq!(texts(&batches), good, "{name}");
        let rejected: Vec<_> = batches.iter().flat_map(|batch| &batch.rejected).collect();
        assert_eq!(rejected.len(), bad.len(), "{rejected:?}");
        for ((value, reason), (expected, says)) in rejected.iter().zip(bad) {
            assert_eq!(String::from_utf8_lossy(value), expected);
            assert!(reason.contains(says), "{reason}");
        }
    }
}

#[tokio::test]
async fn csv_is_read_as_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.txt");
    std::fs::write(&path, "a;'x;y';-;false\nb;\\N;1e3;1\n").unwrap();
    let csv = json!({"delimiter": ";", "header": false, "quote": "'", "nullValue": "-"});
    let spec = json!({"path": path, "format": "csv", "csv": csv});
    let source = open(
        spec,
        "id TEXT, name TEXT, price DOUBLE, ok BOOLEAN",
        None,
        &status().1,
    );
    let batches: Vec<_> = source.collect().await;
    assert_eq!(
        texts(&batches),
        [
            r#"{"id":"a","name":"x;y","price":null,"ok":false}"#,
            r#"{"id":"b","name":"\\N","price":1e3,"ok":true}"#,
        ]
    );
}

#[tokio::test]
async fn records_behind_a_pointer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answer");
    let text = r#" {"info": {"results": [0], "a\"b": "]"}, "resu\u006cts": [{"a": "]}"}, {"a": []}], "x": 1}"#;
    std::fs::write(&path, text).unwrap();
    let batches = collect(json!({"path": path, "records": "/results"}), None).await;
    assert_eq!(texts(&batches), [r#"{"a": "]}"}"#, r#"{"a": []}"#]);
}

/// Waits until the source shows an error with these words.
async fn await_error(status: &millstream_worker::status::Status, says: &str) -> String {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Some(error) = status.report().errors.remove("ingest")
                && error.contains(says)
            {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    match waited.await {
        Ok(error) => error,
        Err(_) => panic!("{says}: {:?}", status.report()),
    }
}

/// A damaged file shows as an error; once it is mended, its records are there, each once.
async fn mended(path: &Path, damaged: &[u8], whole: &[u8], says: &str) {
    std::fs::write(path, damaged).unwrap();
    let (status, part) = status();
    let spec = json!({"path": path, "format": "ndjson"});
    let source = open(spec, schema(), None, &part);
    let reading = tokio::spawn(source.collect::<Vec<_>>());
    await_error(&status, says).await;
    std::fs::write(path, whole).unwrap();
    let batches = reading.await.unwrap();
    assert_eq!(values(&texts(&batches)), records(3_000));
    assert!(batches.iter().all(|batch| batch.rejected.is_empty()));
    assert!(status.report().errors.is_empty());
}

#[tokio::test]
async fn a_damaged_file_is_tried_again_and_nothing_comes_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let text = written("ndjson", &records(3_000));
    for (compression, says) in [("gzip", "cut off"), ("bzip2", "r: "), ("zstd", "r: ")] {
        let whole = packed(compression, "", &text);
        mended(&path, &whole[..whole.len() * 3 / 4], &whole, says).await;
    }
    let half = text.len() / 2;
    let half = half + text[half..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let whole = files::zip(&[("1.ndjson", &text[..half]), ("2.ndjson", &text[half..])]);
    let second = find(&whole, b"2.ndjson");
    let mut corrupt = whole.clone();
    corrupt[second + 2_000..second + 2_010].fill(0x55);
    mended(&path, &corrupt, &whole, "member 2.ndjson: ").await;
}

fn find(bytes: &[u8], text: &[u8]) -> usize {
    let mut windows = bytes.windows(text.len());
    windows.position(|window| window == text).unwrap()
}

#[tokio::test]
async fn a_file_that_grew_is_read_on_and_another_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.ndjson");
    let all = records(1_500);
    std::fs::write(&path, written("ndjson", &all[..1_000])).unwrap();
    let spec = json!({"path": path});
    let first = collect(spec.clone(), None).await;
    let position = &first.last().unwrap().position;
    std::fs::write(&path, written("ndjson", &all)).unwrap();
    let rest = collect(spec.clone(), Some(position)).await;
    assert_eq!(values(&texts(&rest)), all[1_000..]);

    for other in [&all[1..], &all[..999]] {
        std::fs::write(&path, written("ndjson", other)).unwrap();
        let (status, part) = status();
        let source = open(spec.clone(), schema(), Some(position), &part);
        let batches = source.collect::<Vec<_>>().await;
        assert_eq!(values(&texts(&batches)), other);
        let report = status.report();
        assert!(report.errors.is_empty(), "{report:?}");
        let says = "r.ndjson: it isn't the file that was read before";
        assert!(report.warnings["ingest"].starts_with(says), "{report:?}");
    }
}

#[tokio::test]
async fn a_file_that_was_begun_and_is_gone_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let all = records(2_000);
    let write = |name: &str, records: &[Value]| {
        std::fs::write(folder.path().join(name), written("ndjson", records)).unwrap();
    };
    write("a.ndjson", &all[..1_200]);
    write("b.ndjson", &all[1_200..]);
    let spec = json!({"path": folder.path()});
    let batches = collect(spec.clone(), None).await;
    std::fs::remove_file(folder.path().join("a.ndjson")).unwrap();
    for batch in batches
        .iter()
        .filter(|batch| batch.position["file"] == "a.ndjson")
    {
        let (status, part) = status();
        let source = open(spec.clone(), schema(), Some(&batch.position), &part);
        if batch.position["ended"] == true {
            assert_eq!(
                values(&texts(&source.collect::<Vec<_>>().await)),
                all[1_200..]
            );
            continue;
        }
        let reading = tokio::spawn(source.collect::<Vec<_>>());
        await_error(&status, "a.ndjson isn't there any more").await;
        write("a.ndjson", &all[..1_200]);
        let rest = reading.await.unwrap();
        let read = batch.position["records"].as_u64().unwrap() as usize;
        assert_eq!(values(&texts(&rest)), all[read..]);
        std::fs::remove_file(folder.path().join("a.ndjson")).unwrap();
    }
}

#[tokio::test]
async fn a_zip_with_other_members_is_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.zip");
    let all = written("ndjson", &records(600));
    let write = |names: &[&str]| {
        let members = names.iter().map(|name| (*name, all.as_slice()));
        std::fs::write(&path, files::zip(&members.collect::<Vec<_>>())).unwrap();
    };
    write(&["a.ndjson", "b.ndjson"]);
    let spec = json!({"path": path});
    let batches = collect(spec.clone(), None).await;
    let in_b = batches
        .iter()
        .find(|batch| batch.position["member"] == "b.ndjson");
    for names in [&["a.ndjson"][..], &["c.ndjson"], &["a.ndjson", "c.ndjson"]] {
        write(names);
        let (status, part) = status();
        let source = open(spec.clone(), schema(), Some(&in_b.unwrap().position), &part);
        let read = texts(&source.collect::<Vec<_>>().await);
        assert_eq!(read.len(), 600 * names.len(), "{names:?}");
        let warning = &status.report().warnings["ingest"];
        assert!(warning.contains("it isn't the file"), "{warning}");
    }
}

#[tokio::test]
async fn a_first_line_that_is_wrong_is_no_other_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    std::fs::write(&path, "{\"a\": NaN}\n{\"a\": 1}\n").unwrap();
    let batches = collect(json!({"path": path}), None).await;
    assert_eq!(texts(&batches), [r#"{"a": 1}"#]);
    let rejected: usize = batches.iter().map(|batch| batch.rejected.len()).sum();
    assert_eq!(rejected, 1);
}

#[tokio::test]
async fn another_schema_goes_on_in_a_csv_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.csv");
    let lines = |range: std::ops::Range<u32>| {
        range.fold(String::new(), |text, n| {
            text + &format!("{n},{n}.5,2026-11-0{}\n", 1 + n / 1_000)
        })
    };
    std::fs::write(&path, "id,amount,day\n".to_owned() + &lines(0..2_000)).unwrap();
    for replay in [Value::Null, json!({"eventTime": "day"})] {
        let spec = json!({"path": path, "replay": replay});
        let read = async |schema: &str, position| {
            let (status, part) = status();
            let source = open(spec.clone(), schema, position, &part);
            let batches = source.collect::<Vec<_>>().await;
            let report = status.report();
            assert!(report.warnings.is_empty(), "{report:?}");
            batches
        };
        let before = read("id INT", None).await;
        let position = &before[2].position;
        let after = read("id INT, amount DOUBLE", Some(position)).await;
        assert_eq!(
            texts(&after)[0],
            r#"{"id":1500,"amount":1500.5,"day":"2026-11-02"}"#
        );
        assert_eq!(texts(&after).len(), 500);
    }
}

#[tokio::test]
async fn a_zip_with_several_members_of_one_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.zip");
    let members = [("a.ndjson", b"{\"a\":1}\n"), ("b.ndjson", b"{\"a\":2}\n")];
    let members = members.map(|(name, bytes)| (name, bytes.as_slice()));
    let mut zip = files::zip(&members);
    // What writes zips here refuses to write such a one.
    while zip.windows(8).any(|window| window == b"b.ndjson") {
        let at = find(&zip, b"b.ndjson");
        zip[at] = b'a';
    }
    std::fs::write(&path, zip).unwrap();
    let (status, part) = status();
    let mut source = open(json!({"path": path}), schema(), None, &part);
    let refused = async {
        while status.report().errors.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        batch = source.next() => panic!("{batch:?}"),
        () = refused => {}
    }
    let error = &status.report().errors["ingest"];
    assert!(error.contains("have the same name"), "{error}");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_an_error_and_no_mixture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.ndjson");
    let all = records(40_000);
    let text = written("ndjson", &all);
    let half = find(&text, b"\"id\":\"20000\"");
    let half = half - text[..half].iter().rev().position(|b| *b == b'\n').unwrap();
    std::fs::write(&path, &text[..half]).unwrap();
    let (status, part) = status();
    let mut source = open(json!({"path": path}), schema(), None, &part);
    let mut batches = vec![source.next().await.unwrap()];
    // Nobody takes more: the reading stands still in the middle.
    std::fs::write(&path, &text).unwrap();
    let rest = tokio::spawn(source.collect::<Vec<_>>());
    await_error(&status, "changed while it was read").await;
    batches.extend(rest.await.unwrap());
    assert_eq!(values(&texts(&batches)), all);
    assert!(status.report().errors.is_empty());
}

#[tokio::test]
async fn a_missing_file_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.ndjson");
    let (status, part) = status();
    let source = open(json!({"path": path}), schema(), None, &part);
    let reading = tokio::spawn(source.collect::<Vec<_>>());
    await_error(&status, "No such file").await;
    std::fs::write(&path, "{}").unwrap();
    assert_eq!(texts(&reading.await.unwrap()), ["{}"]);
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on() {
    let bytes = packed("gzip", "", &written("ndjson", &records(3_000)));
    let server = Server::start(bytes.clone()).await;
    server.cut_next(bytes.len() / 2);
    let batches = collect(json!({"url": server.url("r.ndjson.gz?token=x")}), None).await;
    assert_eq!(values(&texts(&batches)), records(3_000));
    let half = format!("bytes={}-", bytes.len() / 2);
    assert_eq!(server.requests(), [None, Some(half)]);

    // Another file meanwhile: it is downloaded from its beginning.
    let server = Server::start(bytes.clone()).await;
    server.cut_next(bytes.len() / 2);
    let (status, part) = status();
    let spec = json!({"url": server.url("r.ndjson.gz")});
    let source = open(spec, schema(), None, &part);
    let reading = tokio::spawn(source.collect::<Vec<_>>());
    await_error(&status, "downloading r.ndjson.gz").await;
    server.replace(packed("gzip", "", &written("ndjson", &records(10))));
    assert_eq!(values(&texts(&reading.await.unwrap())), records(10));
}

#[tokio::test]
async fn the_disk_is_bounded() {
    let server = Server::start(vec![b' '; 2 << 20]).await;
    let (status, part) = status();
    let spec = json!({"url": server.url("r"), "scratchSize": "1Mi"});
    let mut source = open(spec, schema(), None, &part);
    let waiting = tokio::time::timeout(Duration::from_millis(700), source.next());
    assert!(waiting.await.is_err());
    await_error(&status, "2 MiB of disk are needed, `scratchSize` is 1 MiB").await;
}

#[tokio::test]
async fn the_landing_zone_keeps_the_download_and_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = packed("zip", "r.ndjson", &written("ndjson", &records(1_200)));
    let server = Server::start(bytes.clone()).await;
    let volume = json!({
        "persistentVolumeClaim": {"claimName": "landing"}, "path": folder.path(),
    });
    let spec = json!({"url": server.url("sessions.zip"), "landingZone": {"volume": volume}});
    let batches = collect(spec.clone(), None).await;
    assert_eq!(values(&texts(&batches)), records(1_200));
    let landed = batches[0].position["landed"].as_str().unwrap().to_owned();
    let today = chrono::Utc::now().format("%Y/%m/%d").to_string();
    assert_eq!(landed, today);
    let day = folder.path().join(landed);
    let kept: Vec<_> = std::fs::read_dir(&day).unwrap().collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(std::fs::read(day.join("sessions.zip")).unwrap(), bytes);

    // What is kept doesn't change when the server's file does.
    server.replace(packed("zip", "r.ndjson", &written("ndjson", &records(7))));
    let rest = collect(spec, Some(&batches[0].position)).await;
    assert_eq!(rest, batches[1..]);
    assert_eq!(server.requests().len(), 1);
}

/// Sessions as the recorded ones are, of some days and not in order.
fn sessions() -> Vec<Value> {
    let session = |n: u64| {
        let day = 1 + n * 7 % 5;
        json!({"session": n, "ts": format!("2018-05-{day:02}T{:02}:00:00.5", n % 24)})
    };
    (0..5_000).map(session).collect()
}

fn day(text: &str) -> String {
    let json: Value = serde_json::from_str(text).unwrap();
    json["ts"].as_str().unwrap()[..10].to_owned()
}

#[tokio::test]
async fn a_replay_gives_date_by_date() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.zip");
    let (first, second) = (sessions()[..2_500].to_vec(), sessions()[2_500..].to_vec());
    let mut second = written("ndjson", &second);
    second.extend_from_slice(b"{\"session\": 1}\n{\"ts\": \"soon\"}\n{");
    let zip = files::zip(&[
        ("1.ndjson", &written("ndjson", &first)),
        ("2.ndjson", &second),
    ]);
    std::fs::write(&path, zip).unwrap();
    let spec = json!({"path": path, "replay": {"eventTime": "ts"}});
    let batches = collect(spec.clone(), None).await;

    let mut expected: Vec<_> = sessions().iter().map(Value::to_string).collect();
    // The order of a date's records is the file's.
    expected.sort_by_key(|text| day(text));
    assert_eq!(texts(&batches), expected);
    for batch in &batches {
        let mut days: Vec<_> = texts(std::slice::from_ref(batch))
            .iter()
            .map(|text| day(text))
            .collect();
        days.dedup();
        assert!(days.len() <= 1, "{days:?}");
    }
    let rejected: Vec<_> = batches.iter().flat_map(|batch| &batch.rejected).collect();
    for ((_, reason), says) in rejected.iter().zip([
        "it has no event time `/ts`",
        "its event time `/ts` is \"soon\", not a time",
        "sessions.zip, member 2.ndjson, line 2503: it isn't JSON",
    ]) {
        assert!(reason.contains(says), "{reason}");
    }
    assert_eq!(rejected.len(), 3);
    for (index, batch) in batches.iter().enumerate() {
        let rest = collect(spec.clone(), Some(&batch.position)).await;
        assert_eq!(rest, batches[index + 1..]);
    }
}

#[tokio::test]
async fn a_replay_takes_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.ndjson");
    std::fs::write(&path, written("ndjson", &sessions())).unwrap();
    let replay = json!({"eventTime": "/ts", "interval": "200ms", "granularity": "month"});
    let started = std::time::Instant::now();
    collect(json!({"path": path, "replay": replay}), None).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    let replay = json!({"eventTime": "/ts", "interval": "200ms"});
    let started = std::time::Instant::now();
    collect(json!({"path": path, "replay": replay}), None).await;
    assert!(started.elapsed() >= Duration::from_millis(800));
}

fn recorded(name: &str) -> Option<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let path = root.join(name);
    if !path.exists() {
        eprintln!("skipped: no recorded data");
        return None;
    }
    Some(path)
}

#[tokio::test]
async fn recorded_sessions_are_replayed_by_date() {
    let Some(path) = recorded("session_start_end.jsonl.gz") else {
        return;
    };
    let spec = json!({"path": path, "replay": {"eventTime": "/ts"}});
    let batches = collect(spec, None).await;
    let texts = texts(&batches);
    assert_eq!(texts.len(), 44_474);
    let days: Vec<_> = texts.iter().map(|text| day(text)).collect();
    assert!(days.is_sorted());
    assert_eq!(
        (days[0].as_str(), days[44_473].as_str()),
        ("2018-05-06", "2018-07-02")
    );
    assert_eq!(days.iter().filter(|day| *day == "2018-05-08").count(), 518);
}

#[tokio::test]
async fn recorded_answers_and_lines_are_read() {
    for (name, records, count) in [
        ("randomuser_api_response_200.json", "/results", 200),
        ("randomuser_api_response_111.json", "/results", 111),
        ("meetup_rsvps.deid.jsonl.gz", "", 1_541),
        ("nyc_dca_businesses.soda.deid.jsonl.gz", "", 14_776),
    ] {
        let Some(path) = recorded(name) else { return };
        let batches = collect(json!({"path": path, "records": records}), None).await;
        assert_eq!(texts(&batches).len(), count, "{name}");
    }
}

#[tokio::test]
async fn a_recording_is_played_at_its_rate_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.ndjson");
    std::fs::write(&path, written("ndjson", &records(700))).unwrap();
    let play = |settings: Value, position: Option<&Value>| {
        let mut spec = json!({"replay": {"file": {"path": path}}});
        for (name, value) in settings.as_object().unwrap() {
            match name.as_str() {
                "repeat" => spec["replay"]["repeat"] = value.clone(),
                _ => spec[name] = value.clone(),
            }
        }
        files::generator(spec, position)
    };
    let once: Vec<_> = play(json!({}), None).collect().await;
    assert_eq!(values(&texts(&once)), records(700));

    let started = std::time::Instant::now();
    let paced: Vec<_> = play(json!({"rate": 500, "repeat": true, "count": 1_000}), None)
        .collect()
        .await;
    let took = started.elapsed().as_secs_f64();
    assert!((1.8..3.0).contains(&took), "{took} s");
    let expected: Vec<_> = records(700).into_iter().chain(records(300)).collect();
    assert_eq!(values(&texts(&paced)), expected);
    for (index, batch) in paced.iter().enumerate().step_by(7) {
        let rest: Vec<_> = play(
            json!({"repeat": true, "count": 1_000}),
            Some(&batch.position),
        )
        .collect()
        .await;
        assert_eq!(texts(&rest), texts(&paced[index + 1..]));
    }

    // With another end it goes on where it was.
    for (before, now, in_all) in [
        (json!({"count": 5}), json!({}), 700),
        (json!({"count": 600}), json!({"count": 650}), 650),
        (json!({}), json!({"repeat": true, "count": 1_000}), 1_000),
        (json!({"repeat": true, "count": 800}), json!({}), 1_400),
    ] {
        let mut played: Vec<_> = play(before, None).collect().await;
        let position = played.last().unwrap().position.clone();
        let rest: Vec<_> = play(now, Some(&position)).collect().await;
        played.extend(rest);
        let all = records(700).into_iter().chain(records(700));
        let expected: Vec<_> = all.take(in_all).collect();
        assert_eq!(values(&texts(&played)), expected, "{in_all}");
    }
}
