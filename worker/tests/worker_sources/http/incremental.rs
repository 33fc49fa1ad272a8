//! Polls that ask only for what is new.

use std::sync::Mutex;

use axum::response::IntoResponse;
use futures::StreamExt;
use millstream_worker::source::SourceBatch;
use serde_json::{Value, json};

use super::{Api, ids, open, records, refused, status, texts};

/// A log of changes: each pass finds what has a later time than it asks for, two on a page. It grows after
/// so many requests.
async fn changes(requests: usize) -> (Api, &'static Mutex<Vec<Option<String>>>) {
    let seen: &'static Mutex<Vec<Option<String>>> = Box::leak(Box::default());
    let api = Api::start(move |_, asked| {
        let since = asked.parameter("since").map(str::to_owned);
        let offset = asked.number("offset");
        seen.lock().unwrap().push(since.clone());
        let since: u64 = since.map_or(0, |since| since.parse().unwrap());
        // Newest first, as such APIs like it: 12, 11, …, 8. Later ones turn up later.
        let newest = if seen.lock().unwrap().len() > requests {
            14
        } else {
            12
        };
        let changes = (8..=newest).rev().filter(|at| *at > since);
        let page: Vec<_> = changes
            .skip(offset)
            .take(2)
            .map(|at| json!({"at": at}))
            .collect();
        Value::from(page).to_string().into_response()
    })
    .await;
    (api, seen)
}

fn settings(initial: Option<&str>) -> Value {
    let incremental = json!({"field": "/at", "parameter": "since", "initial": initial});
    json!({
        "poll": {"interval": "10ms", "incremental": incremental},
        "pagination": {"limitOffset": {"pageSize": 2}},
    })
}

fn times(batches: &[SourceBatch]) -> Vec<Value> {
    let records = batches.iter().flat_map(|batch| &batch.records);
    let json = records.map(|record| serde_json::from_slice::<Value>(record).unwrap());
    json.map(|record| record["at"].clone()).collect()
}

#[tokio::test]
async fn a_pass_asks_for_what_the_passes_before_did_not_give() {
    let (api, seen) = changes(3).await;
    let (_, part) = status();
    // 12 11, 10 9, 8; then 14 13, nothing; then nothing.
    let source = open(api.source(settings(None)), None, part);
    let batches: Vec<_> = source.take(6).collect().await;
    assert_eq!(times(&batches), [12, 11, 10, 9, 8, 14, 13]);
    let asked: Vec<_> = seen.lock().unwrap()[..6].to_vec();
    let (twelve, fourteen) = (Some("12".to_owned()), Some("14".to_owned()));
    assert_eq!(asked, [None, None, None, twelve.clone(), twelve, fourteen]);
    assert_eq!(batches[5].position["since"], "14");
}

#[tokio::test]
async fn a_worker_that_dies_in_a_pass_leaves_it_to_the_next_one() {
    let (api, seen) = changes(4).await;
    let (_, part) = status();
    let mut source = open(api.source(settings(Some("7"))), None, part.clone());
    let first = source.next().await.unwrap();
    drop(source);
    // Newest first: asking for what is after 12 would lose the rest.
    let source = open(api.source(settings(Some("7"))), Some(&first.position), part);
    let rest: Vec<_> = source.take(2).collect().await;
    assert_eq!(times(&[first]), [12, 11]);
    assert_eq!(times(&rest), [10, 9, 8]);
    // Two, and the first one again, to know it.
    let asked = seen.lock().unwrap()[..4].to_vec();
    assert_eq!(asked, vec![Some("7".to_owned()); 4]);
    assert_eq!(rest[1].position["since"], "12");
}

#[tokio::test]
async fn what_is_added_behind_a_refused_page_comes_with_the_next_pass() {
    // Two records on a page, and a third one when the first pass is over.
    let api = Api::start(|request, asked| {
        let total = if request < 5 { 2 } else { 3 };
        let since: usize = asked.parameter("since").map_or(0, |id| id.parse().unwrap());
        let start = since + (asked.number("page") - 1) * 2;
        match start < total {
            true => Value::from(records(start..total.min(start + 2)))
                .to_string()
                .into_response(),
            false => refused(404),
        }
    })
    .await;
    let spec = api.source(json!({
        "poll": {"interval": "10ms", "incremental": {"field": "/id", "parameter": "since"}},
        "pagination": {"pageNumber": {}},
    }));
    let (status, part) = status();
    // 0 1, nothing; 2, nothing: the second pass is given 1 again.
    let batches: Vec<_> = open(spec, None, part).take(4).collect().await;
    assert_eq!(texts(&batches), ids(0..3));
    for (batch, since) in [(1, "1"), (3, "2")] {
        let position = &batches[batch].position;
        assert_eq!(position["since"], since);
        assert_eq!(position["at"], Value::Null);
    }
    assert_eq!(api.requests(), 10);
    assert_eq!(status.report(), Default::default());
}

/// A log that grows by a record with every second request, and has three of each time: a pass finds
/// what has the time that it asks for or a later one, two on a page.
async fn growing_log() -> Api {
    Api::start(|request, asked| {
        let since: usize = asked.parameter("since").map_or(0, |at| at.parse().unwrap());
        let log = (0..=request / 2).map(|id| (id, id / 3));
        let page: Vec<_> = log
            .filter(|(_, at)| *at >= since)
            .skip(asked.number("offset"))
            .take(2)
            .map(|(id, at)| json!({"id": id, "at": at}))
            .collect();
        Value::from(page).to_string().into_response()
    })
    .await
}

#[tokio::test]
async fn what_a_parameter_gives_again_comes_once() {
    for restarts in [false, true] {
        let api = growing_log().await;
        let (status, part) = status();
        let mut source = open(api.source(settings(None)), None, part.clone());
        let mut read = Vec::new();
        for _ in 0..60 {
            let batch = source.next().await.unwrap();
            read.extend(texts(std::slice::from_ref(&batch)));
            if restarts {
                source = open(
                    api.source(settings(None)),
                    Some(&batch.position),
                    part.clone(),
                );
            }
        }
        let log = (0..read.len()).map(|id| json!({"id": id, "at": id / 3}).to_string());
        assert_eq!(read, log.collect::<Vec<_>>());
        assert!(read.len() > 10, "{read:?}");
        let report = status.report();
        assert!(report.warnings.is_empty(), "{report:?}");
    }
}
