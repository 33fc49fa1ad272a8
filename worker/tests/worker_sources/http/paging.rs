//! Pages of every kind: each record once, in order, and from any page on.

use std::time::Duration;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use millstream_worker::{
    source::{Records, SourceBatch},
    status::Status,
};
use serde_json::{Value, json};

use super::{Api, Asked, all, ids, open, records, refused, status, texts};

#[tokio::test]
async fn one_answer_is_one_batch_with_its_bytes() {
    let body = r#"{"results": [{"name": "Zoë", "postcode": 7.0}, {"n": 1.50}]}"#;
    for mark in ["", "\u{feff}"] {
        let api = Api::start(move |_, _| format!("{mark}{body}").into_response()).await;
        let batches = all(api.source(json!({"records": "/results"})), None).await;
        assert_eq!(
            texts(&batches),
            [r#"{"name": "Zoë", "postcode": 7.0}"#, r#"{"n": 1.50}"#]
        );
    }
}

#[tokio::test]
async fn polls_again_and_again() {
    let api =
        Api::start(|request, _| json!([{"request": request}]).to_string().into_response()).await;
    let (_, part) = status();
    let spec = api.source(json!({"poll": {"interval": "100ms"}}));
    let started = std::time::Instant::now();
    let batches: Vec<_> = open(spec, None, part).take(4).collect().await;
    assert_eq!(texts(&batches)[3], r#"{"request":3}"#);
    assert!(started.elapsed() >= Duration::from_millis(300));
    // Nothing to keep, so nothing is written to Kafka.
    assert!(batches.iter().all(|batch| batch.position == json!({})));
}

/// Records `offset..offset + limit` of so many, at most `cap` at once.
fn limited(total: usize, cap: usize, asked: &Asked) -> Response {
    let (offset, limit) = (asked.number("$offset"), asked.number("$limit"));
    let end = total.min(offset + limit.min(cap));
    Value::from(records(offset.min(end)..end))
        .to_string()
        .into_response()
}

fn limit_offset(count: bool, max_records: Option<u64>) -> Value {
    let mut paging = json!({
        "limitParameter": "$limit", "offsetParameter": "$offset", "pageSize": 10,
    });
    if count {
        paging["count"] = json!({"query": {"$select": "count(*)"}, "pointer": "/0/count"});
    }
    if let Some(max_records) = max_records {
        paging["maxRecords"] = max_records.into();
    }
    json!({"pagination": {"limitOffset": paging}, "concurrency": 3})
}

#[tokio::test]
async fn counted_pages_come_in_order_and_resume() {
    let api = Api::start(|request, asked| {
        if asked.parameter("$select").is_some() {
            return r#"[{"count": "35"}]"#.into_response();
        }
        // Later pages answer sooner: the order must not depend on it.
        std::thread::sleep(Duration::from_millis(20 / (request as u64 + 1)));
        limited(35, 10, asked)
    })
    .await;
    let spec = api.source(limit_offset(true, None));
    let batches = all(spec.clone(), None).await;
    assert_eq!(texts(&batches), ids(0..35));
    assert_eq!(api.requests(), 5);
    resumes_after_each(&spec, &batches).await;
}

/// What is left after each position is what comes from it; after the last one nothing does.
async fn resumes_after_each(spec: &millstream_api::source::HttpSource, batches: &[SourceBatch]) {
    for (index, batch) in batches.iter().enumerate() {
        let rest = all(spec.clone(), Some(&batch.position)).await;
        assert_eq!(texts(&rest), texts(&batches[index + 1..]), "{index}");
    }
}

#[tokio::test]
async fn a_server_that_gives_less_than_it_is_asked_for_is_asked_for_the_rest() {
    for count in [true, false] {
        let api = Api::start(|_, asked| match asked.parameter("$select") {
            Some(_) => r#"[{"count": 35}]"#.into_response(),
            None => limited(35, 7, asked),
        })
        .await;
        let batches = all(api.source(limit_offset(count, None)), None).await;
        assert_eq!(texts(&batches), ids(0..35), "count: {count}");
    }
}

#[tokio::test]
async fn a_result_that_shrinks_while_it_is_read_has_an_end() {
    let api = Api::start(|_, asked| match asked.parameter("$select") {
        Some(_) => r#"[{"count": 35}]"#.into_response(),
        None => limited(12, 10, asked),
    })
    .await;
    let (status, part) = status();
    let source = open(api.source(limit_offset(true, None)), None, part);
    assert_eq!(texts(&source.collect::<Vec<_>>().await), ids(0..12));
    let warning = &status.report().warnings["ingest"];
    assert!(warning.contains("has become shorter"), "{warning}");
}

#[tokio::test]
async fn a_last_page_that_is_shorter_than_it_was_counted_needs_no_word() {
    let api = Api::start(|_, asked| match asked.parameter("$select") {
        Some(_) => r#"[{"count": 35}]"#.into_response(),
        None => limited(32, 10, asked),
    })
    .await;
    let (status, part) = status();
    let source = open(api.source(limit_offset(true, None)), None, part);
    assert_eq!(texts(&source.collect::<Vec<_>>().await), ids(0..32));
    assert_eq!(status.report(), Default::default());
}

#[tokio::test]
async fn uncounted_pages_end_with_a_short_one_or_at_the_limit() {
    for (total, max_records, requests, given) in [
        (25, None, 3, 25),
        (20, None, 3, 20),
        (0, None, 1, 0),
        (100, Some(25), 3, 25),
        (100, Some(20), 2, 20),
        (100, Some(0), 0, 0),
    ] {
        let api = Api::start(move |_, asked| limited(total, 10, asked)).await;
        let batches = all(api.source(limit_offset(false, max_records)), None).await;
        assert_eq!(texts(&batches), ids(0..given), "{total} {max_records:?}");
        assert_eq!(api.requests(), requests, "{total} {max_records:?}");
    }
}

#[tokio::test]
async fn an_offset_behind_the_last_record_that_is_refused_is_the_end() {
    for (count, total) in [(false, 20), (true, 20), (true, 12)] {
        let api = Api::start(move |_, asked| match asked.parameter("$select") {
            Some(_) => r#"[{"count": 45}]"#.into_response(),
            None if asked.number("$offset") >= total => refused(416),
            None => limited(total, 10, asked),
        })
        .await;
        let (status, part) = status();
        let source = open(api.source(limit_offset(count, None)), None, part);
        let batches: Vec<_> = source.collect().await;
        assert_eq!(texts(&batches), ids(0..total), "count: {count}");
        assert_eq!(batches.last().unwrap().position, json!({"at": "end"}));
        // Of those that were fetched beside it, too.
        let report = status.report();
        assert!(report.errors.is_empty(), "{report:?}");
        match report.warnings.get("ingest") {
            None => assert!(!count),
            Some(warning) => assert!(
                count && warning.contains("records are missing"),
                "{warning}"
            ),
        }
    }
}

/// Page `p` of ten records each, and how many pages there are.
fn numbered(total: usize, first: usize, asked: &Asked) -> Response {
    let start = (asked.number("p") - first) * 10;
    let items = records(start.min(total)..total.min(start + 10));
    json!({"items": items, "pages": total.div_ceil(10)})
        .to_string()
        .into_response()
}

#[tokio::test]
async fn numbered_pages_end_with_a_short_one() {
    for (total, first, requests) in [(25, 1, 3), (20, 0, 3), (7, 1, 2), (0, 1, 1)] {
        let api = Api::start(move |_, asked| numbered(total, first, asked)).await;
        let paging = json!({"parameter": "p", "firstPage": first});
        let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
        let batches = all(api.source(spec), None).await;
        assert_eq!(texts(&batches), ids(0..total));
        assert_eq!(api.requests(), requests, "{total}");
    }
}

#[tokio::test]
async fn numbered_pages_whose_number_is_known_are_fetched_side_by_side() {
    for total in [0, 10, 95] {
        let api = Api::start(move |_, asked| {
            assert_eq!(asked.parameter("size"), Some("10"));
            numbered(total, 1, asked)
        })
        .await;
        let paging = json!({
            "parameter": "p", "sizeParameter": "size", "pageSize": 10, "totalPages": "/pages",
        });
        let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
        let spec = api.source(spec);
        let batches = all(spec.clone(), None).await;
        assert_eq!(texts(&batches), ids(0..total));
        assert_eq!(api.requests(), total.div_ceil(10).max(1));
        resumes_after_each(&spec, &batches).await;
    }
}

#[tokio::test]
async fn a_page_behind_the_last_one_that_is_refused_is_the_end() {
    for (total, refusal, requests) in [(10, 404, 1 + 4), (20, 400, 2 + 4), (0, 404, 1)] {
        let api = Api::start(move |_, asked| {
            let page = asked.number("p");
            match page > 1 && (page - 1) * 10 >= total {
                true => refused(refusal),
                false => numbered(total, 1, asked),
            }
        })
        .await;
        let paging = json!({"parameter": "p"});
        let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
        let spec = api.source(spec);
        let (status, part) = status();
        let batches: Vec<_> = open(spec.clone(), None, part).collect().await;
        assert_eq!(texts(&batches), ids(0..total));
        assert_eq!(api.requests(), requests, "{total}");
        assert_eq!(status.report(), Default::default());
        resumes_after_each(&spec, &batches).await;
    }
}

#[tokio::test]
async fn a_server_that_refuses_everything_for_a_while_is_not_at_its_end() {
    let api = Api::start(|request, asked| match request {
        1..=4 => refused(404),
        _ => numbered(25, 1, asked),
    })
    .await;
    let paging = json!({"parameter": "p"});
    let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
    assert_eq!(texts(&all(api.source(spec), None).await), ids(0..25));
}

#[tokio::test]
async fn pages_that_were_counted_and_are_refused_are_behind_the_end() {
    let api = Api::start(|_, asked| match asked.number("p") {
        page @ 1..=2 => json!({"items": records(page * 10 - 10..page * 10), "pages": 9})
            .to_string()
            .into_response(),
        _ => refused(404),
    })
    .await;
    let paging = json!({"parameter": "p", "totalPages": "/pages"});
    let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
    let behind = json!({"at": {"page": 7}});
    for (from, given) in [(None, 0..20), (Some(&behind), 0..0)] {
        let (status, part) = status();
        let source = open(api.source(spec.clone()), from, part);
        let batches: Vec<_> = source.collect().await;
        assert_eq!(texts(&batches), ids(given));
        assert_eq!(batches.last().unwrap().position, json!({"at": "end"}));
        // Of those that were fetched beside it, too.
        let report = status.report();
        assert!(report.errors.is_empty(), "{report:?}");
        let warning = &report.warnings["ingest"];
        assert!(warning.contains("records are missing"), "{warning}");
    }
}

#[tokio::test]
async fn an_empty_page_before_the_last_one_is_told_of() {
    let api = Api::start(|_, asked| {
        let page = asked.number("p");
        let items = match page {
            2 => Vec::new(),
            _ => records(page * 10 - 10..page * 10),
        };
        json!({"items": items, "pages": 3})
            .to_string()
            .into_response()
    })
    .await;
    let paging = json!({"parameter": "p", "totalPages": "/pages"});
    let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
    let (status, part) = status();
    let source = open(api.source(spec), None, part);
    let batches: Vec<_> = source.collect().await;
    // What comes after it comes all the same.
    assert_eq!(texts(&batches), [ids(0..10), ids(20..30)].concat());
    let warning = &status.report().warnings["ingest"];
    assert!(warning.contains("records are missing"), "{warning}");
}

#[tokio::test]
async fn a_page_that_is_not_even_empty_is_told_of() {
    let paged = [
        (json!({"parameter": "p"}), 0..10),
        // What comes after it comes all the same.
        (json!({"parameter": "p", "totalPages": "/pages"}), 0..20),
    ];
    for (paging, given) in paged {
        let api = Api::start(|_, asked| match asked.number("p") {
            2 => StatusCode::OK.into_response(),
            page => json!({"items": records(if page == 1 { 0..10 } else { 10..20 }), "pages": 3})
                .to_string()
                .into_response(),
        })
        .await;
        let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
        let (status, part) = status();
        let batches: Vec<_> = open(api.source(spec), None, part).collect().await;
        assert_eq!(texts(&batches), ids(given));
        let warning = &status.report().warnings["ingest"];
        assert!(warning.contains("records are missing"), "{warning}");
    }
}

/// Three ways of paging, and from where on the second page of ten records is read.
fn paged_by_ten() -> [(Value, Value, &'static str); 3] {
    let count = json!({"query": {"select": "count"}, "pointer": "/count"});
    let offset = json!({"at": {"offset": 10}});
    [
        (
            json!({"limitOffset": {"pageSize": 10}}),
            offset.clone(),
            "`offset=10`",
        ),
        (
            json!({"limitOffset": {"pageSize": 10, "count": count}}),
            offset,
            "`offset=10`",
        ),
        (
            json!({"pageNumber": {"totalPages": "/pages"}}),
            json!({"at": {"page": 2}}),
            "`page=2`",
        ),
    ]
}

/// An API that knows none of the parameters.
async fn ignorant() -> Api {
    Api::start(|_, _| {
        json!({"items": records(0..10), "count": 30, "pages": 3})
            .to_string()
            .into_response()
    })
    .await
}

/// Expects that nothing more is taken, and the status to say so of the page with this parameter.
async fn nothing_is_taken(source: &mut Records, status: &Status, parameter: &str) {
    let told = async {
        while status.report().errors.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = source.next() => panic!("it is taken: {parameter}"),
        () = told => {}
    }
    let error = &status.report().errors["ingest"];
    assert!(error.contains(parameter), "{error}");
}

#[tokio::test]
async fn a_page_that_is_the_one_before_again_is_not_taken() {
    for (paging, from, says) in paged_by_ten() {
        let api = ignorant().await;
        let spec = api.source(json!({"records": "/items", "pagination": paging}));
        let (told, part) = status();
        let mut source = open(spec.clone(), None, part);
        assert_eq!(texts(&[source.next().await.unwrap()]), ids(0..10));
        nothing_is_taken(&mut source, &told, says).await;
        // Nor by a worker that goes on there.
        let (told, part) = status();
        let mut source = open(spec, Some(&from), part);
        nothing_is_taken(&mut source, &told, says).await;
    }
}

#[tokio::test]
async fn the_rest_of_a_page_that_is_its_beginning_again_is_not_taken() {
    let count = json!({"query": {"select": "count"}, "pointer": "/count"});
    let paging = json!({"limitOffset": {"pageSize": 1_000, "count": count}});
    let api = ignorant().await;
    let (told, part) = status();
    let spec = json!({"records": "/items", "pagination": paging});
    let mut source = open(api.source(spec), None, part);
    nothing_is_taken(&mut source, &told, "`offset=10`").await;
}

#[tokio::test]
async fn a_numbered_page_that_is_the_one_before_again_is_the_end() {
    // For a number behind the last page there is the last page.
    for (total, requests, warns) in [(20, 4, false), (10, 3, true)] {
        let api = Api::start(move |_, asked| {
            let page = asked.number("p").min(total / 10);
            json!({"items": records(page * 10 - 10..page * 10)})
                .to_string()
                .into_response()
        })
        .await;
        let paging = json!({"parameter": "p"});
        let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
        let (status, part) = status();
        let source = open(api.source(spec), None, part);
        let batches: Vec<_> = source.collect().await;
        assert_eq!(texts(&batches), ids(0..total));
        assert_eq!(batches.last().unwrap().position, json!({"at": "end"}));
        assert_eq!(api.requests(), requests);
        let report = status.report();
        assert!(report.errors.is_empty(), "{report:?}");
        let warning = report.warnings.get("ingest");
        let told = warning.is_some_and(|warning| warning.contains("does the API know `p`?"));
        assert_eq!(told, warns, "{warning:?}");
    }
}

#[tokio::test]
async fn a_numbered_page_that_is_the_one_before_again_may_have_others_behind_it() {
    // One that calls its first page 0 as well as 1; and one on which a page of new records has come in.
    for (moved_from, first_page) in [(1, 0), (3, 1)] {
        let api = Api::start(move |_, asked| {
            let page = asked.number("p");
            let page = if page >= moved_from && first_page == 1 {
                page - 1
            } else {
                page.max(1)
            };
            json!({"items": records(page * 10 - 10..(page * 10).min(35))})
                .to_string()
                .into_response()
        })
        .await;
        let paging = json!({"parameter": "p", "firstPage": first_page});
        let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
        assert_eq!(texts(&all(api.source(spec), None).await), ids(0..35));
    }
}

#[tokio::test]
async fn a_worker_that_goes_on_behind_the_last_page_knows_it_again() {
    let api = Api::start(|_, asked| {
        let page = asked.number("p").min(3);
        json!({"items": records(page * 10 - 10..page * 10)})
            .to_string()
            .into_response()
    })
    .await;
    let paging = json!({"parameter": "p"});
    let spec = json!({"records": "/items", "pagination": {"pageNumber": paging}});
    let (status, part) = status();
    let kept = json!({"at": {"page": 4}});
    let batches: Vec<_> = open(api.source(spec), Some(&kept), part).collect().await;
    assert_eq!(texts(&batches), ids(0..0));
    assert_eq!(status.report(), Default::default());
}

#[tokio::test]
async fn a_first_page_that_is_refused_is_waited_for() {
    for paging in [
        json!({"pageNumber": {}}),
        json!({"limitOffset": {"pageSize": 10}}),
    ] {
        let api = Api::start(|request, _| match request {
            0..=2 => refused(404),
            3 => Value::from(records(0..1)).to_string().into_response(),
            _ => "[]".into_response(),
        })
        .await;
        let batches = all(api.source(json!({"pagination": paging})), None).await;
        assert_eq!(texts(&batches), ids(0..1), "{paging}");
    }
}

#[tokio::test]
async fn an_answer_without_content_or_of_null_is_an_empty_page() {
    let empty: [fn() -> Response; 2] = [
        || StatusCode::NO_CONTENT.into_response(),
        || r#"{"items": null, "next": null, "pages": 0}"#.into_response(),
    ];
    let pagings = [
        (json!({"pageNumber": {}}), 1),
        (json!({"limitOffset": {"pageSize": 10}}), 1),
        (
            json!({"cursor": {"next": "/next", "parameter": "after"}}),
            1,
        ),
        (json!({"cursor": {"linkHeader": true}}), 0),
        (json!({"pageNumber": {"totalPages": "/pages"}}), 0),
        (Value::Null, 0),
    ];
    for empty in empty {
        // So many pages of one record come before the empty one.
        for (paging, before) in pagings.clone() {
            let api = Api::start(move |request, _| match request < before {
                true => r#"{"items": [{"id":0}], "next": "more"}"#.into_response(),
                false => empty(),
            })
            .await;
            let spec = json!({"records": "/items", "pagination": paging});
            let batches = all(api.source(spec), None).await;
            assert_eq!(texts(&batches), ids(0..before), "{paging}");
            assert_eq!(api.requests(), before + 1, "{paging}");
        }
    }
}

/// Five records after the cursor, and where to go on by every way there is.
fn linked(asked: &Asked) -> Response {
    let start = asked.parameter("after").map_or(0, |at| at.parse().unwrap());
    let more = start + 5 < 23;
    let body = json!({
        "items": records(start..23.min(start + 5)),
        "next": if more { json!(start + 5) } else { Value::Null },
        "links": {"next": if more { format!("?after={}", start + 5) } else { String::new() }},
    });
    let link = format!(
        r#"</other>; rel="prev", </api?after={}>; rel="next""#,
        start + 5
    );
    match more {
        true => ([("link", link)], body.to_string()).into_response(),
        false => body.to_string().into_response(),
    }
}

#[tokio::test]
async fn pages_that_name_the_next_one_are_followed() {
    for cursor in [
        json!({"next": "/next", "parameter": "after"}),
        json!({"next": "/links/next"}),
        json!({"linkHeader": true}),
    ] {
        let api = Api::start(|_, asked| linked(asked)).await;
        let spec = json!({"records": "/items", "pagination": {"cursor": cursor}});
        let spec = api.source(spec);
        let batches = all(spec.clone(), None).await;
        assert_eq!(texts(&batches), ids(0..23), "{cursor}");
        assert_eq!(api.requests(), 5);
        resumes_after_each(&spec, &batches).await;
    }
}

#[tokio::test]
async fn a_cursor_that_stands_still_is_the_end() {
    let api = Api::start(|_, _| r#"{"items": [1], "next": "same"}"#.into_response()).await;
    let cursor = json!({"next": "/next", "parameter": "after"});
    let spec = json!({"records": "/items", "pagination": {"cursor": cursor}});
    let batches = all(api.source(spec), None).await;
    assert_eq!(texts(&batches), ["1", "1"]);
}

#[tokio::test]
async fn a_first_page_that_names_itself_is_the_last() {
    let api = Api::start(|_, _| r#"{"items": [1], "next": "/api?a=b"}"#.into_response()).await;
    let paging = json!({"cursor": {"next": "/next"}});
    let spec = json!({"records": "/items", "query": {"a": "b"}, "pagination": paging});
    let batches = all(api.source(spec), None).await;
    assert_eq!(texts(&batches), ["1"]);
    assert_eq!(api.requests(), 1);
}

#[tokio::test]
async fn a_cursor_that_is_refused_though_the_server_has_just_told_of_it_is_the_end() {
    for cursor in [
        json!({"next": "/next", "parameter": "after"}),
        json!({"next": "/links/next"}),
    ] {
        let api = Api::start(|_, asked| match asked.parameter("after") {
            Some("10") => refused(400),
            _ => linked(asked),
        })
        .await;
        let spec = json!({"records": "/items", "pagination": {"cursor": cursor}});
        let (status, part) = status();
        let source = open(api.source(spec), None, part);
        let batches: Vec<_> = source.collect().await;
        assert_eq!(texts(&batches), ids(0..10), "{cursor}");
        assert_eq!(batches.last().unwrap().position, json!({"at": "end"}));
        assert_eq!(api.requests(), 2 + 4);
        let report = status.report();
        assert!(report.errors.is_empty(), "{report:?}");
        let warning = &report.warnings["ingest"];
        assert!(warning.contains("records are missing"), "{warning}");
    }
}

#[tokio::test]
async fn a_cursor_that_is_too_old_starts_over() {
    let api = Api::start(|_, asked| match asked.parameter("after") {
        Some("old") => refused(410),
        _ => linked(asked),
    })
    .await;
    let cursor = json!({"next": "/next", "parameter": "after"});
    let spec = json!({"records": "/items", "pagination": {"cursor": cursor}});
    let position = json!({"at": {"cursor": "old"}});
    let (status, part) = status();
    let source = open(api.source(spec), Some(&position), part);
    let batches: Vec<_> = source.collect().await;
    assert_eq!(texts(&batches), ids(0..23));
    assert_eq!(api.requests(), 4 + 5);
    let report = status.report();
    assert!(report.errors.is_empty(), "{report:?}");
    let warning = &report.warnings["ingest"];
    assert!(warning.contains("some records came twice"), "{warning}");
}
