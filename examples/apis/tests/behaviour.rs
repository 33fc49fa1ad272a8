//! The server as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::Duration;

use millstream_apis::dataset::Dataset;
use millstream_apis::{Apis, Options, router};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

struct Server {
    base: String,
    client: Client,
}

impl Server {
    async fn start(recorded: Option<Vec<Value>>) -> Self {
        Server::start_with(Options {
            recorded: recorded.map(Dataset::new),
            ..Options::default()
        })
        .await
    }

    async fn start_with(options: Options) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let apis = Apis::new(Options {
            seed: "test".into(),
            records: 250,
            ..options
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router(apis)).await.unwrap() });
        let client = Client::builder()
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        Server { base, client }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Response {
        let request = self.client.get(format!("{}{path}", self.base)).query(query);
        request.send().await.unwrap()
    }

    async fn json(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let response = self.get(path, query).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }

    async fn users(&self, query: &[(&str, &str)]) -> Vec<Value> {
        self.json("/api/", query).await["results"]
            .as_array()
            .unwrap()
            .clone()
    }

    async fn rows(&self, query: &[(&str, &str)]) -> Vec<Value> {
        let rows = self.json("/resource/w7w3-xahh.json", query).await;
        rows.as_array().unwrap().clone()
    }

    async fn order_faults(&self, order: Value) -> StatusCode {
        let request = self
            .client
            .request(Method::POST, format!("{}/faults", self.base));
        request.json(&order).send().await.unwrap().status()
    }
}

fn uuid(user: &Value) -> String {
    user["login"]["uuid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_seed_gives_the_same_users_and_pages_go_on() {
    let server = Server::start(None).await;
    let first = server.users(&[("results", "40"), ("seed", "abc")]).await;
    assert_eq!(
        first,
        server.users(&[("results", "40"), ("seed", "abc")]).await
    );
    let second = server
        .users(&[("results", "20"), ("seed", "abc"), ("page", "2")])
        .await;
    assert_eq!(first[20..], second);
    assert_ne!(
        first,
        server.users(&[("results", "40"), ("seed", "abd")]).await
    );
}

#[tokio::test]
async fn without_a_seed_every_call_gives_new_users_that_can_be_had_again() {
    let (server, other) = (Server::start(None).await, Server::start(None).await);
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let answer = server.json("/api/", &[("results", "100")]).await;
        let seed = answer["info"]["seed"].as_str().unwrap();
        let again = server.users(&[("results", "100"), ("seed", seed)]).await;
        assert_eq!(answer["results"].as_array().unwrap(), &again);
        assert_eq!(
            again,
            other.users(&[("results", "100")]).await,
            "same server seed"
        );
        seen.extend(again.iter().map(uuid));
    }
    assert_eq!(seen.len(), 300);
}

#[tokio::test]
async fn users_have_every_form_that_the_public_api_gives() {
    let server = Server::start(None).await;
    let users = server.users(&[("results", "500"), ("seed", "forms")]).await;
    let count = |test: &dyn Fn(&Value) -> bool| users.iter().filter(|user| test(user)).count();
    assert!(count(&|u| u["location"]["postcode"].is_u64()) > 50);
    assert!(count(&|u| u["location"]["postcode"].is_string()) > 50);
    assert!(count(&|u| u["id"]["value"].is_null()) > 50);
    assert!(count(&|u| !u["name"]["first"].as_str().unwrap().is_ascii()) > 50);
    assert_eq!(count(&|u| u["email"].as_str().unwrap().is_ascii()), 500);
    assert_eq!(count(&|u| uuid(u).len() == 36), 500);
    let keys: Vec<_> = users[0]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "gender",
            "name",
            "location",
            "email",
            "login",
            "dob",
            "registered",
            "phone",
            "cell",
            "id",
            "picture",
            "nat",
        ]
    );
}

#[tokio::test]
async fn pages_of_a_dataset_are_the_whole_in_order() {
    let server = Server::start(None).await;
    let count = server.rows(&[("$select", "count(*)")]).await;
    assert_eq!(count, [json!({"count": "250"})]);
    let all = server.rows(&[]).await;
    let mut paged = Vec::new();
    for offset in ["0", "100", "200", "300"] {
        paged.extend(server.rows(&[("$limit", "100"), ("$offset", offset)]).await);
    }
    assert_eq!(all, paged);
    for field in ["business_name_2", "detail", "contact_phone"] {
        let known = all.iter().filter(|row| row[field].is_string()).count();
        assert!((1..250).contains(&known), "{field} is left out of some");
    }
    let sorted = server
        .rows(&[("$order", "address_borough DESC,license_nbr")])
        .await;
    let key = |row: &Value| row["address_borough"].as_str().unwrap().to_owned();
    assert!(sorted.windows(2).all(|two| key(&two[0]) >= key(&two[1])));
    assert_eq!(sorted.len(), 250);
}

#[tokio::test]
async fn what_is_not_understood_is_refused() {
    let server = Server::start(None).await;
    for query in [
        ("$where", "1=1"),
        ("$limit", "many"),
        ("$order", "a SIDEWAYS"),
    ] {
        let response = server.get("/resource/x.json", &[query]).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query:?}");
    }
    for query in [("results", "0"), ("results", "5001"), ("fault", "meteor")] {
        let response = server.get("/api/", &[query]).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query:?}");
    }
    for order in [
        json!({"kind": "500"}),
        json!({"kind": "x", "next": 1}),
        json!({"kind": "cut", "rate": 2}),
    ] {
        assert_eq!(server.order_faults(order).await, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn recorded_records_come_once_and_in_order_through_any_fault() {
    let recorded: Vec<Value> = (0..10)
        .map(|n| json!({"login": {"uuid": n.to_string()}, "é": 1.50}))
        .collect();
    let server = Server::start(Some(recorded.clone())).await;
    let mut got = server.users(&[("results", "4")]).await;
    for fault in ["500", "429", "cut", "malformed"] {
        let request = server.client.get(format!("{}/api/", server.base));
        let answer = request
            .query(&[("fault", fault), ("results", "4")])
            .send()
            .await;
        let json = match answer {
            Ok(response) if response.status() == StatusCode::OK => {
                response.json::<Value>().await.ok()
            }
            _ => None,
        };
        assert_eq!(json, None, "{fault}");
    }
    got.extend(
        server
            .users(&[("results", "4"), ("fault", "slow"), ("delay", "1")])
            .await,
    );
    got.extend(server.users(&[("results", "4")]).await);
    got.extend(server.users(&[("results", "4")]).await);
    assert_eq!(got, recorded);
    let sent = server.json("/sent", &[]).await;
    assert_eq!(sent["api"]["records"], 10);
    let ids: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!(sent["api"]["ids"], json!(ids));
    assert_eq!(server.rows(&[("$offset", "8")]).await, recorded[8..]);
}

#[tokio::test]
async fn a_cut_answer_begins_as_any_other() {
    let server = Server::start(None).await;
    let mut response = server
        .get("/api/", &[("fault", "cut"), ("results", "10")])
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        response
            .chunk()
            .await
            .unwrap()
            .unwrap()
            .starts_with(b"{\"results\":[{")
    );
    assert!(response.chunk().await.is_err());
}

#[tokio::test]
async fn ordered_faults_hit_so_many_requests() {
    let server = Server::start(None).await;
    let order = json!({"kind": "429", "next": 2, "retryAfter": 7});
    assert_eq!(server.order_faults(order).await, StatusCode::OK);
    for _ in 0..2 {
        let response = server.get("/api/", &[]).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "7");
    }
    assert_eq!(server.users(&[]).await.len(), 1);

    let order = json!({"kind": "500", "rate": 0.5});
    assert_eq!(server.order_faults(order).await, StatusCode::OK);
    let mut failed = 0;
    for _ in 0..100 {
        failed += u64::from(server.get("/resource/x.json", &[]).await.status() != StatusCode::OK);
    }
    assert!((20..80).contains(&failed), "{failed}");
    let faults = server.json("/faults", &[]).await;
    assert_eq!(faults["injected"], json!({"429": 2, "500": failed}));

    let request = server.client.delete(format!("{}/faults", server.base));
    request.send().await.unwrap();
    assert_eq!(server.rows(&[("$limit", "5")]).await.len(), 5);
}

#[tokio::test]
async fn real_recordings_are_served_as_they_are() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !folder.exists() {
        eprintln!("skipped: no recorded data");
        return;
    }
    for (file, records) in [
        ("randomuser_v1_3_plus.jsonl.gz", 469),
        ("randomuser_api_response_111.json", 111),
    ] {
        let dataset = Dataset::load(&folder.join(file)).unwrap();
        let recorded = dataset.records().to_vec();
        let server = Server::start(Some(recorded.clone())).await;
        assert_eq!(server.users(&[("results", "1000")]).await, recorded);
        let sent = server.json("/sent", &[("ids", "false")]).await;
        assert_eq!(sent["api"], json!({"answers": 1, "records": records}));
    }
}

#[tokio::test]
async fn the_dataset_comes_in_every_kind_of_page() {
    let server = Server::start(None).await;
    let all = server.rows(&[]).await;
    let size = ("per_page", "100");

    let second = server.json("/pages/numbered", &[size, ("page", "2")]).await;
    assert_eq!(second["total_pages"], 3);
    assert_eq!(second["items"], json!(all[100..200]));

    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let mut query = vec![size];
        query.extend(after.as_deref().map(|cursor| ("after", cursor)));
        let page = server.json("/pages/cursor", &query).await;
        paged.extend(page["data"].as_array().unwrap().clone());
        match page["paging"]["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!(paged, all);

    let first = server.get("/pages/linked", &[size]).await;
    assert_eq!(
        first.headers()["link"],
        "<?page=2&per_page=100>; rel=\"next\""
    );
    let last = server.get("/pages/linked", &[size, ("page", "3")]).await;
    assert_eq!(last.headers().get("link"), None);
    assert_eq!(last.json::<Value>().await.unwrap(), json!(all[200..]));
}

#[tokio::test]
async fn pages_ask_for_a_token_and_limit_the_rate() {
    let server = Server::start_with(Options {
        token: Some("T".into()),
        rate: Some(3),
        ..Options::default()
    })
    .await;
    let url = format!("{}/pages/linked", server.base);
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status();
    let get = || server.client.get(&url);
    for refused in [
        get(),
        get().bearer_auth("U"),
        get().query(&[("api_key", "U")]),
    ] {
        assert_eq!(status(refused).await, StatusCode::UNAUTHORIZED);
    }
    for known in [
        get().bearer_auth("T"),
        get().header("x-api-key", "T"),
        get().query(&[("api_key", "T")]),
    ] {
        assert_eq!(status(known).await, StatusCode::OK);
    }
    let response = get().bearer_auth("T").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "1");
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn files_come_in_the_packing_that_their_name_asks_for() {
    let server = Server::start(None).await;
    for name in ["meetup_rsvps", "sessions"] {
        let file = async |ending: &str| {
            let response = server.get(&format!("/files/{name}{ending}"), &[]).await;
            assert_eq!(response.status(), StatusCode::OK, "{name}{ending}");
            response.bytes().await.unwrap().to_vec()
        };
        let plain = file(".ndjson").await;
        assert!(lines(str::from_utf8(&plain).unwrap()).len() > 1_000);
        let mut unpacked = Vec::new();
        let packed = file(".ndjson.gz").await;
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, plain);
        let packed = std::io::Cursor::new(file(".zip").await);
        let mut archive = zip::ZipArchive::new(packed).unwrap();
        assert_eq!(archive.len(), 1);
        let mut member = archive.by_name(&format!("{name}.ndjson")).unwrap();
        unpacked.clear();
        member.read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }
    for path in [
        "/files/sessions.csv",
        "/files/nothing.zip",
        "/files/sessions",
    ] {
        assert_eq!(server.get(path, &[]).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn files_of_the_folder_take_the_place_of_generated_ones() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("sessions.ndjson.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(file, Default::default());
    packed.write_all(b"{\"a\":1}\n").unwrap();
    packed.finish().unwrap();
    std::fs::write(folder.path().join("secret.ndjson"), "{}\n").unwrap();
    let path = folder.path().display().to_string().replace('/', "%2F");
    let server = Server::start_with(Options {
        files: Some(folder.path().to_owned()),
        ..Options::default()
    })
    .await;
    let text = server.get("/files/sessions.ndjson", &[]).await;
    assert_eq!(text.text().await.unwrap(), "{\"a\":1}\n");
    let text = server.get("/files/meetup_rsvps.ndjson", &[]).await;
    assert!(text.text().await.unwrap().len() > 1_000);
    for path in [
        "/files/nothing.ndjson",
        "/files/..%2Fsecret.ndjson",
        &format!("/files/{path}%2Fsecret.ndjson"),
    ] {
        assert_eq!(server.get(path, &[]).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn generated_recordings_have_every_form_that_recorded_ones_have() {
    let server = Server::start(None).await;
    let text = server.get("/files/meetup_rsvps.ndjson", &[]).await;
    let rsvps = lines(&text.text().await.unwrap());
    let count = |test: &dyn Fn(&Value) -> bool| rsvps.iter().filter(|rsvp| test(rsvp)).count();
    assert_eq!(rsvps.len(), 5_000);
    assert!(count(&|rsvp| rsvp.get("venue").is_none()) > 500);
    assert!(count(&|rsvp| rsvp["venue"]["lat"] == json!(0)) > 50);
    assert!(count(&|rsvp| rsvp["venue"]["lat"].is_f64()) > 2_000);
    let ids: HashSet<_> = rsvps.iter().map(|rsvp| rsvp["rsvp_id"].as_i64()).collect();
    assert!((3_000..4_900).contains(&ids.len()), "{}", ids.len());
    let times: Vec<_> = rsvps.iter().map(|rsvp| rsvp["mtime"].as_i64()).collect();
    assert!(times.windows(2).any(|pair| pair[1] < pair[0]));

    let text = server.get("/files/sessions.ndjson", &[]).await;
    let events = lines(&text.text().await.unwrap());
    let count = |test: &dyn Fn(&Value) -> bool| events.iter().filter(|event| test(event)).count();
    let starts = count(&|event| event["event"] == "start");
    assert_eq!(starts, 3_000);
    let ends = events.len() - starts;
    assert!((2_700..3_000).contains(&ends), "{ends}");
    assert!(count(&|event| event["event"] == "start" && event.get("country").is_none()) > 0);
    assert!(count(&|event| event["player_id"] == "876c25fb17ef465b9573db4e815cad62") > 20);
    let dates = events
        .iter()
        .map(|event| event["ts"].as_str().unwrap()[..10].to_owned());
    let dates: std::collections::BTreeSet<_> = dates.collect();
    assert!((10..20).contains(&dates.len()), "{dates:?}");
    assert!(dates.iter().any(|date| date.starts_with("2015")));
}
