//! The serve stage against the real Cassandra, and over the Delta Lake tables of real sinks. Skipped
//! where `MILLSTREAM_ENVIRONMENT` doesn't name the servers.

use std::collections::BTreeSet;

use crate::{
    delta,
    serving::{self, Gate, Serving, hours_ago},
    support::{Environment, Pipeline, Settings, StoppedService},
};
use serde_json::{Value, json};

/// A service over three tables: rows by key, counts, and one column of each type.
async fn sessions() -> Option<Serving> {
    Some(sessions_in(Environment::find().await?).await)
}

async fn sessions_in(environment: Environment) -> Serving {
    let mut serving = Serving::create(environment).await;
    for ddl in [
        "CREATE TABLE completed (player_id text, ts timestamp, session_id text, country text, \
            PRIMARY KEY (player_id, ts)) WITH CLUSTERING ORDER BY (ts DESC)",
        "CREATE TABLE started (country text, ts timestamp, player_id text, PRIMARY KEY (country, ts))",
        "CREATE TABLE venues (venue_id bigint PRIMARY KEY, venue_name text, n bigint)",
        "CREATE TABLE kinds (id uuid PRIMARY KEY, a ascii, b boolean, bl blob, d date, de decimal, \
            do double, f float, i int, bi bigint, inet inet, l list<int>, m map<text, int>, \
            s set<text>, sm smallint, ti tinyint, t time, ts timestamp, tu timeuuid, v varint, \
            tup frozen<tuple<int, text>>, du duration)",
    ] {
        serving.execute(ddl).await;
    }
    for index in 0..25 {
        serving
            .execute(&format!(
                "INSERT INTO completed (player_id, ts, session_id, country) \
                VALUES ('p1', '2016-11-05 {:02}:00:00Z', 's{index}', 'IT')",
                index % 24
            ))
            .await;
    }
    for (hours, player) in [(1, "a"), (23, "b"), (25, "c")] {
        let ts = hours_ago("2016-11-06T00:00:00Z", hours);
        serving
            .execute(&format!(
                "INSERT INTO started (country, ts, player_id) VALUES ('IT', '{ts}', '{player}')"
            ))
            .await;
    }
    for (id, name, n) in [
        (1, "Caffè <b>Nero</b>", 7),
        (2, "O'Hara & Sons", 3),
        (3, "\"Quotes\"", 11),
        (4, "Empty", 0),
    ] {
        let name = name.replace('\'', "''");
        serving
            .execute(&format!(
                "INSERT INTO venues (venue_id, venue_name, n) VALUES ({id}, '{name}', {n})"
            ))
            .await;
    }
    serving.serve = json!({
        "title": "Sessions",
        "now": "2016-11-06T00:00:00Z",
        "endpoints": [
            {
                "name": "completed-sessions",
                "path": "/models/completed-sessions/{player_id}",
                "description": "The sessions that a player completed, newest first.",
                "parameters": [{"name": "player_id", "type": "text", "maxLength": 40}],
                "cql": "SELECT player_id, session_id, country, ts FROM completed WHERE player_id = :player_id",
                "shape": "object",
                "maxRows": 100,
            },
            {
                "name": "started-sessions",
                "path": "/models/started_sessions/{country}/{hours}",
                "parameters": [
                    {"name": "country", "type": "text", "enum": ["IT", "FR"]},
                    {"name": "hours", "type": "int", "minimum": 1, "maximum": 24, "ago": "hours"},
                ],
                "cql": "SELECT player_id, ts FROM started WHERE country = :country AND ts >= :hours AND ts <= :now",
                "shape": "object",
            },
            {
                "name": "top-venues",
                "path": "/api/top_venues",
                "parameters": [{"name": "top", "type": "int", "default": "3", "minimum": 1}],
                "cql": "SELECT venue_name, n FROM venues",
                "transform": "SELECT venue_name, n FROM rows ORDER BY n DESC, venue_name LIMIT $top",
                "plot": {"label": "venue_name", "value": "n", "title": "Top venues <by> RSVPs"},
                "format": "html",
            },
            {"name": "data", "path": "/api/data", "cql": "SELECT venue_id, venue_name, n FROM venues"},
            {
                "name": "narrow", "path": "/api/narrow", "maxRows": 2,
                "cql": "SELECT n FROM venues", "transform": "SELECT sum(n) AS n FROM rows",
            },
            {
                "name": "lately", "path": "/lately", "shape": "object",
                "parameters": [{"name": "days", "type": "int", "ago": "days"}],
                "cql": "SELECT ts FROM completed WHERE player_id = 'p1' AND ts >= :days",
            },
            {
                "name": "kinds", "path": "/kinds/{id}",
                "parameters": [{"name": "id", "type": "uuid"}],
                "cql": "SELECT * FROM kinds WHERE id = :id",
            },
            {
                "name": "kinds-transformed", "path": "/kinds-transformed",
                "cql": "SELECT * FROM kinds", "transform": "SELECT * FROM rows",
            },
            {
                "name": "typed", "path": "/typed",
                "parameters": [
                    {"name": "venue", "type": "bigint", "default": "1"},
                    {"name": "flag", "type": "boolean", "default": "true"},
                    {"name": "least", "type": "double", "default": "0.5"},
                    {"name": "since", "type": "timestamp", "default": "2016-01-01"},
                    {"name": "word", "type": "text", "default": "x"},
                    {"name": "key", "type": "uuid", "default": "9a723211-0e87-41f1-b1e4-ed1a15226b80"},
                ],
                "cql": "SELECT venue_name, n FROM venues WHERE venue_id = :venue",
                "transform": "SELECT venue_name, n, $word AS word, $key AS key, $since AS since \
                    FROM rows WHERE $flag AND n > $least",
            },
        ],
    });
    serving
}

#[tokio::test]
async fn rows_come_in_the_shape_that_is_asked_for() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let server = serving.start().await;

    let (status, body) = server.json("/models/completed-sessions/p1").await;
    assert_eq!(status, 200);
    assert_eq!(body["count"], 24, "an hour is there twice");
    assert_eq!(body["items"][0]["ts"], "2016-11-05T23:00:00.000Z");
    assert_eq!(body["items"][0]["session_id"], "s23");
    assert!(body.get("next").is_none());
    let (status, body) = server.json("/models/completed-sessions/nobody").await;
    assert_eq!((status, body), (200, json!({"count": 0, "items": []})));

    let (_, body) = server.json("/models/started_sessions/IT/24").await;
    let players: Vec<_> = body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["player_id"])
        .collect();
    assert_eq!(players, ["b", "a"], "25 hours ago is beyond 24");
    let (_, body) = server.json("/models/started_sessions/IT/1").await;
    assert_eq!(body["count"], 1);

    let (_, body) = server.json("/api/data").await;
    assert_eq!(body.as_array().unwrap().len(), 4, "a bare array");
    let (_, body) = server.json("/api/top_venues?format=json&top=2").await;
    assert_eq!(
        body,
        json!([{"venue_name": "\"Quotes\"", "n": 11}, {"venue_name": "Caffè <b>Nero</b>", "n": 7}])
    );
    let (_, body) = server
        .json("/typed?word=%27%3B%20DROP&since=2018-05-06T12:00:00%2B02:00")
        .await;
    assert_eq!(
        body,
        json!([{
            "venue_name": "Caffè <b>Nero</b>", "n": 7, "word": "'; DROP",
            "key": "9a723211-0e87-41f1-b1e4-ed1a15226b80", "since": "2018-05-06T10:00:00.000Z",
        }])
    );
}

#[tokio::test]
async fn every_type_has_a_form() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let id = "9a723211-0e87-41f1-b1e4-ed1a15226b80";
    serving
        .execute(&format!(
            "INSERT INTO kinds (id, a, b, bl, d, de, do, f, i, bi, inet, l, m, s, sm, ti, t, ts, tu, v, tup, du) \
            VALUES ({id}, 'a', true, 0x00ff, '2018-05-06', -10.50, 1.5, 0.1, -3, 9007199254740993, \
            '::1', [1, 2], {{'k': 1}}, {{'x'}}, 4, 5, '08:12:54.123', '2018-05-06 12:00:00.250Z', \
            e3d8f2b0-5100-11e8-8080-808080808080, 18446744073709551616, (1, 'x'), 1mo2d3h)"
        ))
        .await;
    let server = serving.start().await;
    let (status, body) = server.json(&format!("/kinds/{id}")).await;
    assert_eq!(status, 200, "{body}");
    let expected = json!({
        "id": id, "a": "a", "b": true, "bi": 9_007_199_254_740_993_i64, "bl": "0x00ff",
        "d": "2018-05-06", "de": "-10.50", "do": 1.5, "du": "P1M2DT10800S", "f": 0.1, "i": -3,
        "inet": "::1", "l": [1, 2], "m": {"k": 1}, "s": ["x"], "sm": 4, "t": "08:12:54.123",
        "ti": 5, "ts": "2018-05-06T12:00:00.250Z", "tu": "e3d8f2b0-5100-11e8-8080-808080808080",
        "tup": [1, "x"], "v": "18446744073709551616",
    });
    assert_eq!(body, json!([expected]));

    // The same through SQL, in which lists and the like are text.
    let (status, body) = server.json("/kinds-transformed").await;
    assert_eq!(status, 200, "{body}");
    for (name, value) in expected.as_object().unwrap() {
        let value = match value {
            Value::Array(_) | Value::Object(_) => json!(value.to_string()),
            other => other.clone(),
        };
        assert_eq!(body[0][name], value, "{name}");
    }
    // A null is null.
    serving
        .execute(&format!(
            "DELETE b, i, ts, l, de FROM kinds WHERE id = {id}"
        ))
        .await;
    for path in [format!("/kinds/{id}"), "/kinds-transformed".into()] {
        let (_, body) = server.json(&path).await;
        for name in ["b", "i", "ts", "l", "de"] {
            assert_eq!(body[0][name], Value::Null, "{path} {name}");
        }
    }
}

#[tokio::test]
async fn wrong_requests_are_told_why() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let server = serving.start().await;
    let long = "x".repeat(41);
    for (path, status, says) in [
        (
            "/models/started_sessions/IT/25",
            400,
            "parameter `hours` is 25, and may be 24 at most",
        ),
        (
            "/models/started_sessions/IT/0",
            400,
            "parameter `hours` is 0, and may be 1 at least",
        ),
        (
            "/models/started_sessions/IT/x",
            400,
            "parameter `hours` is `x`, which is not an integer",
        ),
        (
            "/models/started_sessions/DE/1",
            400,
            "parameter `country` is `DE`, and may be one of IT, FR",
        ),
        (
            "/models/started_sessions/IT/99999999999",
            400,
            "is not an integer of 32 bits",
        ),
        (
            &format!("/models/completed-sessions/{long}"),
            400,
            "is longer than 40 characters",
        ),
        (
            "/models/completed-sessions/%ff",
            400,
            "parameter `player_id` isn't UTF-8",
        ),
        (
            "/models/completed-sessions/p1?limit=0",
            400,
            "parameter `limit` may be 1 to 100",
        ),
        (
            "/models/completed-sessions/p1?limit=101",
            400,
            "parameter `limit` may be 1 to 100",
        ),
        (
            "/models/completed-sessions/p1?page=AAAA",
            400,
            "parameter `page` isn't a token",
        ),
        (
            "/models/completed-sessions/p1?page=%00",
            400,
            "parameter `page` isn't a token",
        ),
        (
            "/models/completed-sessions/p1?format=xml",
            400,
            "parameter `format` may be one of json, html",
        ),
        (
            "/models/completed-sessions/p1?format=svg",
            400,
            "this endpoint has no plot",
        ),
        (
            "/models/completed-sessions/p1?limit=1&limit=2",
            400,
            "parameter `limit` is given twice",
        ),
        (
            "/models/completed-sessions/p1?player_id=p2",
            400,
            "parameter `player_id` isn't known",
        ),
        (
            "/api/data?x=1",
            400,
            "parameter `x` isn't known; there are format, limit, page",
        ),
        (
            "/api/top_venues?page=x",
            400,
            "parameter `page` isn't for this endpoint",
        ),
        ("/kinds/1234", 400, "which is not a UUID"),
        ("/typed?flag=yes", 400, "which is not true or false"),
        ("/typed?least=NaN", 400, "which is not a finite number"),
        ("/typed?since=yesterday", 400, "which is not a time"),
        (
            "/typed?venue=9223372036854775808",
            400,
            "which is not an integer of 64 bits",
        ),
        (
            "/api/narrow",
            500,
            "more than 2 rows; narrow the parameters, or let the service's owner raise maxRows",
        ),
        (
            "/models/completed-sessions",
            404,
            "there is nothing at this path",
        ),
        (
            "/models/completed-sessions/p1/",
            404,
            "there is nothing at this path",
        ),
        ("/../etc/passwd", 404, "there is nothing at this path"),
        (
            &format!("/api/data?format={}", "x".repeat(9_000)),
            414,
            "more than 8192 bytes",
        ),
    ] {
        let (found, body) = server.json(path).await;
        assert_eq!(found, status, "{path}: {body}");
        assert_eq!(body["status"], status, "{path}");
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{path}: {detail}");
    }
    let response = server
        .client
        .post(server.url("/api/data"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "GET, HEAD");
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let response = server
        .client
        .get(server.url("/api/data"))
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
    let response = server
        .client
        .head(server.url("/api/data"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (response.status().as_u16(), response.text().await.unwrap()),
        (200, String::new())
    );
}

/// What people try to break out with.
const INJECTIONS: [&str; 12] = [
    "' OR '1'='1",
    "p1'; DROP TABLE completed; --",
    "p1' AND ts > '2000-01-01' ALLOW FILTERING --",
    "'); SELECT * FROM system_auth.roles; --",
    "\"; DROP KEYSPACE system; --",
    "$$ OR $$",
    "${jndi:ldap://x}",
    "1 UNION SELECT 1",
    "<script>alert(1)</script>",
    ":player_id",
    "%27%20OR%201=1",
    "a\u{0}b\r\nSet-Cookie: x=1",
];

#[tokio::test]
async fn injections_are_nothing_but_data() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    for injection in INJECTIONS {
        let ts = "2016-11-05 00:00:00Z";
        let text = injection.replace('\'', "''");
        serving
            .execute(&format!(
                "INSERT INTO completed (player_id, ts, session_id) VALUES ('{text}', '{ts}', 'own')"
            ))
            .await;
    }
    let server = serving.start().await;
    for injection in INJECTIONS {
        let encoded = encoded(injection);
        // In the path's text: it finds the row of that very key and no other.
        let path = format!("/models/completed-sessions/{encoded}");
        let (status, body) = server.json(&path).await;
        if injection.chars().count() <= 40 {
            assert_eq!(status, 200, "{injection}: {body}");
            assert_eq!(body["count"], 1, "{injection}: {body}");
            assert_eq!(body["items"][0]["player_id"], injection);
            let page = server.text(&format!("{path}?format=html")).await.1;
            assert!(!page.contains("<script>"), "{injection}: {page}");
        } else {
            assert_eq!(status, 400, "{injection}");
        }
        // In a transform: as it is.
        let (status, body) = server.json(&format!("/typed?word={encoded}")).await;
        assert_eq!(status, 200, "{injection}: {body}");
        assert_eq!(body[0]["word"], injection);
        // Where a number, a UUID, a time or one of some words belongs: refused.
        for path in [
            format!("/models/started_sessions/{encoded}/1"),
            format!("/models/started_sessions/IT/{encoded}"),
            format!("/kinds/{encoded}"),
            format!("/typed?venue={encoded}"),
            format!("/typed?flag={encoded}"),
            format!("/typed?least={encoded}"),
            format!("/typed?since={encoded}"),
            format!("/typed?key={encoded}"),
            format!("/api/top_venues?top={encoded}"),
            format!("/api/top_venues?format={encoded}"),
            format!("/api/data?limit={encoded}"),
            format!("/api/data?page={encoded}"),
            format!("/api/data?{encoded}=1"),
        ] {
            let response = server.get(&path).await;
            assert_eq!(response.status(), 400, "{path}");
            assert!(response.headers().get("set-cookie").is_none());
        }
    }
    // Nothing is gone, nothing was let in.
    let (_, body) = server.json("/models/completed-sessions/p1").await;
    assert_eq!(body["count"], 24);
}

#[tokio::test]
async fn pages_go_on_where_the_last_ended() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let server = serving.start().await;
    let mut seen = Vec::new();
    let mut path = "/models/completed-sessions/p1?limit=7".to_owned();
    let mut tokens = Vec::new();
    loop {
        let response = server.get(&path).await;
        let link = response
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        let body: Value = response.json().await.unwrap();
        seen.extend(
            body["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["session_id"].to_string()),
        );
        assert_eq!(link.is_some(), body.get("next").is_some());
        let Some(link) = link else { break };
        tokens.push(body["next"].as_str().unwrap().to_owned());
        path = link.split(['<', '>']).nth(1).unwrap().to_owned();
        assert!(path.contains(tokens.last().unwrap()), "{path}");
    }
    assert_eq!(seen.len(), 24);
    assert_eq!(
        seen.iter().collect::<BTreeSet<_>>().len(),
        24,
        "no row twice"
    );

    // A token is of its query alone, and can't be made up.
    let token = &tokens[0];
    let (status, _) = server
        .json(&format!("/models/completed-sessions/p1?page={token}"))
        .await;
    assert_eq!(status, 200);
    let mut forged = token.clone().into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for path in [
        format!("/models/completed-sessions/p2?page={token}"),
        format!("/api/data?page={token}"),
        format!("/models/completed-sessions/p1?page={forged}"),
    ] {
        assert_eq!(server.json(&path).await.0, 400, "{path}");
    }
    // Another pod, or the same after a restart, takes it too; and so it does while time goes by.
    serving.serve.as_object_mut().unwrap().remove("now");
    let again = serving.start().await;
    let (status, body) = again
        .json(&format!(
            "/models/completed-sessions/p1?limit=7&page={token}"
        ))
        .await;
    assert_eq!((status, &body["count"]), (200, &json!(7)));
    let path = "/lately?days=36500&limit=20";
    let (_, body) = again.json(path).await;
    let token = body["next"].as_str().unwrap();
    let (status, body) = again.json(&format!("{path}&page={token}")).await;
    assert_eq!((status, &body["count"]), (200, &json!(4)));
}

#[tokio::test]
async fn an_answer_that_is_known_is_not_sent_again() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let server = serving.start().await;
    let response = server.get("/api/data").await;
    let tag = response.headers()["etag"].clone();
    assert_eq!(response.headers()["cache-control"], "private, no-cache");
    let ask = async |tag: &str| {
        let request = server
            .client
            .get(server.url("/api/data"))
            .header("if-none-match", tag);
        let response = request.send().await.unwrap();
        (
            response.status().as_u16(),
            response.text().await.unwrap().len(),
        )
    };
    let tag = tag.to_str().unwrap();
    assert_eq!(ask(tag).await, (304, 0));
    assert_eq!(
        ask(&format!("\"other\", {}", tag.trim_start_matches("W/"))).await,
        (304, 0)
    );
    assert_eq!(ask("W/\"other\"").await.0, 200);
    serving
        .execute("UPDATE venues SET n = 8 WHERE venue_id = 1")
        .await;
    assert_eq!(ask(tag).await.0, 200, "the rows are others");
}

#[tokio::test]
async fn formats_follow_accept_and_the_query() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let server = serving.start().await;
    let ask = async |path: &str, accept: &str| {
        let request = server.client.get(server.url(path)).header("accept", accept);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let content_type = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (content_type, response.text().await.unwrap())
    };
    let (content_type, page) = ask("/api/top_venues", "*/*").await;
    assert_eq!(content_type, "text/html; charset=utf-8");
    assert!(
        page.contains(
            "<td class=\"text\">Caffè &lt;b&gt;Nero&lt;/b&gt;</td><td class=\"number\">7</td>"
        ),
        "{page}"
    );
    assert!(page.contains("O'Hara &amp; Sons"));
    serving::keep("top_venues.html", &page);
    let (content_type, _) = ask("/api/top_venues", "application/json").await;
    assert_eq!(content_type, "application/json");
    let (content_type, plot) = ask("/api/top_venues?format=svg&top=4", "*/*").await;
    assert_eq!(content_type, "image/svg+xml");
    assert!(
        plot.starts_with("<svg") && plot.contains("Top venues &lt;by&gt; RSVPs"),
        "{plot}"
    );
    assert!(plot.contains("Caffè &lt;b&gt;Nero&lt;/b&gt;"), "{plot}");
    serving::keep("top_venues.svg", &plot);
    let (content_type, page) = ask("/api/data?limit=1", "text/html").await;
    assert!(content_type.starts_with("text/html"));
    assert!(page.contains("rel=\"next\""), "{page}");

    let compressed = reqwest::Client::builder().no_gzip().build().unwrap();
    let request = compressed.get(server.url("/models/completed-sessions/p1"));
    let response = request
        .header("accept-encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(response.bytes().await.unwrap().len() < 800);
}

#[tokio::test]
async fn it_describes_itself() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    let server = serving.start().await;
    assert_eq!(
        server.json("/health").await,
        (200, json!({"status": "healthy", "cassandra": "reachable"}))
    );
    let (_, document) = server.json("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let get = &document["paths"]["/models/started_sessions/{country}/{hours}"]["get"];
    assert_eq!(
        get["parameters"][1]["schema"],
        json!({"type": "integer", "format": "int32", "minimum": 1.0, "maximum": 24.0})
    );
    let row = &get["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["items"]
        ["items"];
    assert_eq!(
        row["properties"]["ts"],
        json!({"type": ["string", "null"], "format": "date-time"})
    );
    assert!(
        !document.to_string().contains("SELECT"),
        "the queries are nobody's business"
    );
    serving::keep("openapi.json", &document.to_string());
    let (status, docs) = server.text("/docs").await;
    assert_eq!(status, 200);
    assert!(
        docs.contains("<code>/models/started_sessions/{country}/{hours}</code>"),
        "{docs}"
    );
    assert!(
        !docs.contains("http://") && !docs.contains("https://"),
        "nothing is fetched from elsewhere"
    );
    assert_eq!(server.text("/docs/docs.js").await.0, 200);
    let response = server.get("/docs").await;
    assert!(
        response.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("script-src 'self'")
    );
    let metrics = server.admin("/metrics").await;
    assert!(
        metrics.contains("millstream_worker_requests_total{endpoint=\"/docs\",status=\"200\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn only_those_with_a_key_are_let_in() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["auth"] =
        json!({"apiKeysSecret": {"name": "keys"}, "basicSecret": {"name": "users"}});
    serving.secret(
        "serve-api-keys.json",
        &json!({"app": "k-1", "other": "k-2"}),
    );
    serving.secret("serve-passwords.json", &json!({"ann": "se:cret"}));
    let server = serving.start().await;
    let ask = async |name: &str, value: &str| {
        let request = server
            .client
            .get(server.url("/api/data"))
            .header(name, value);
        request.send().await.unwrap().status().as_u16()
    };
    let response = server.get("/api/data").await;
    assert_eq!(response.status(), 401);
    let challenges: Vec<_> = response
        .headers()
        .get_all("www-authenticate")
        .iter()
        .collect();
    assert_eq!(challenges.len(), 2);
    assert_eq!(
        response.json::<Value>().await.unwrap()["title"],
        "Unauthorized"
    );
    for (name, value, status) in [
        ("x-api-key", "k-1", 200),
        ("x-api-key", "k-2", 200),
        ("x-api-key", "k-3", 401),
        ("x-api-key", "", 401),
        ("authorization", "Basic YW5uOnNlOmNyZXQ=", 200),
        ("authorization", "basic YW5uOnNlOmNyZXQ=", 200),
        ("authorization", "Basic YW5uOndyb25n", 401),
        ("authorization", "Basic Ym9iOnNlOmNyZXQ=", 401),
        ("authorization", "Basic %%%", 401),
        ("authorization", "Bearer k-1", 401),
    ] {
        assert_eq!(ask(name, value).await, status, "{name}: {value}");
    }
    for path in ["/health", "/docs", "/openapi.json"] {
        assert_eq!(
            server.get(path).await.status(),
            200,
            "{path} asks for no key"
        );
    }
    let (_, document) = server.json("/openapi.json").await;
    assert_eq!(document["security"], json!([{"apiKey": []}, {"basic": []}]));
}

#[tokio::test]
async fn a_client_that_asks_too_often_waits() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["rateLimit"] = json!({"requestsPerSecond": 1, "burst": 3});
    serving.serve["auth"] = json!({"apiKeysSecret": {"name": "keys"}});
    serving.secret(
        "serve-api-keys.json",
        &json!({"app": "k-1", "other": "k-2"}),
    );
    let server = serving.start().await;
    let ask = async |key: &str| {
        let request = server
            .client
            .get(server.url("/api/data"))
            .header("x-api-key", key);
        request.send().await.unwrap()
    };
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(ask("k-1").await.status().as_u16());
    }
    assert_eq!(statuses[..3], [200, 200, 200]);
    assert!(statuses[3..].contains(&429), "{statuses:?}");
    assert_eq!(ask("k-2").await.status(), 200, "another client has its own");
    // Who guesses keys has one for all of them.
    let mut guesses = Vec::new();
    for guess in 0..6 {
        guesses.push(ask(&format!("guess-{guess}")).await.status().as_u16());
    }
    assert_eq!(guesses[..3], [401, 401, 401]);
    assert!(guesses[3..].contains(&429), "{guesses:?}");
    let response = loop {
        let response = ask("k-1").await;
        if response.status() == 429 {
            break response;
        }
    };
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3).contains(&wait), "{wait}");
}

#[tokio::test]
async fn without_cassandra_it_says_so_and_comes_back() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    // The driver takes nodes for what they say of themselves, with the gate's port.
    if !serving.cassandra.starts_with("127.") {
        eprintln!("skipped: Cassandra isn't on the loopback address, no gate can stand before it");
        return;
    }
    let gate = Gate::open(&serving.cassandra).await;
    serving.cassandra = gate.address.clone();
    gate.shut();
    // It starts without Cassandra, too.
    let server = serving.start_unready().await;
    let response = server.get("/api/data").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(server.get("/docs").await.status(), 200);
    assert_eq!(
        server.json("/health").await,
        (
            503,
            json!({"status": "unhealthy", "cassandra": "unreachable"})
        )
    );
    gate.unshut();
    server.await_status("/api/data", 200).await;
    server.await_status("/health", 200).await;

    gate.shut();
    server.await_status("/api/data", 503).await;
    server.await_status("/health", 503).await;
    assert_eq!(server.json("/api/top_venues?format=json").await.0, 503);
    assert_eq!(
        server.json("/api/data?limit=0").await.0,
        400,
        "what is wrong is wrong all the same"
    );
    let status = server.admin("/status").await;
    assert!(status.contains("Cassandra can't be reached"), "{status}");
    gate.unshut();
    server.await_status("/api/data", 200).await;
    server.await_status("/health", 200).await;
    assert!(!server.admin("/status").await.contains("Cassandra"));
}

#[tokio::test]
async fn cassandra_may_be_stopped_and_started() {
    let Some(environment) = Environment::find_alone().await else {
        return;
    };
    let mut serving = sessions_in(environment).await;
    let server = serving.start().await;
    let paths = [
        "/models/completed-sessions/p1",
        "/api/top_venues?format=json",
    ];
    let mut before = Vec::new();
    for path in paths {
        let (status, body) = server.json(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        before.push(body);
    }
    let Some(cassandra) = StoppedService::stop("cassandra").await else {
        return;
    };
    server.await_status("/health", 503).await;
    for path in paths {
        let response = server.get(path).await;
        assert_eq!(response.status(), 503, "{path}");
        assert!(response.headers().contains_key("retry-after"));
        let body: Value = response.json().await.unwrap();
        let detail = body["detail"].as_str().unwrap();
        assert!(
            detail.contains("Cassandra can't be reached") || detail.contains("took longer"),
            "{path}: {detail}"
        );
    }
    let status = server.admin("/status").await;
    assert!(status.contains("Cassandra can't be reached"), "{status}");
    cassandra.start().await;
    server.await_status("/health", 200).await;
    for (path, before) in paths.into_iter().zip(before) {
        server.await_status(path, 200).await;
        assert_eq!(server.json(path).await.1, before, "{path}");
    }
}

const EVENTS: Settings = Settings {
    schema: "id BIGINT, country TEXT, ts TIMESTAMP, day DATE, kind TEXT, price DECIMAL(10, 2), \
        tags ARRAY<TEXT>",
    sql: "SELECT id, country, ts, day, kind, price, tags FROM records",
    columns: &[("id", "bigint"), ("country", "text")],
    key: "/id",
    partitions: 2,
    base: 1_700_000_000_000_000,
};

fn event(id: i64, country: &str) -> (String, Vec<u8>) {
    let record = json!({
        "id": id, "country": country, "ts": format!("2016-11-05T{:02}:00:00Z", id % 24),
        "day": "2016-11-05", "kind": if id % 2 == 0 { "even" } else { "odd" }, "price": "1.50",
        "tags": ["a", country],
    });
    (id.to_string(), record.to_string().into_bytes())
}

/// A pipeline whose sink merges into a Delta Lake table, which isn't there yet, and a service over it.
struct Lake {
    pipeline: Pipeline,
    sink: Value,
    serving: Serving,
    _folder: tempfile::TempDir,
}

async fn lake() -> Option<Lake> {
    let pipeline = Pipeline::create(Environment::find().await?, EVENTS).await;
    let mut serving = Serving::create(pipeline.environment.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let merge = json!({"mode": "merge", "mergeKeys": ["id"], "partitionBy": ["day", "kind"]});
    let sink = delta::lake(folder.path(), merge);
    serving.tables = json!([{"name": "event-log", "path": sink["delta"]["path"]}]);
    serving.serve = json!({
        "now": "2016-11-06T00:00:00Z",
        "endpoints": [
            {"name": "all", "path": "/all", "sql": "SELECT * FROM \"event-log\" ORDER BY id", "maxRows": 30},
            {
                "name": "found", "path": "/found/{country}", "shape": "object",
                "parameters": [{"name": "country", "type": "text"}],
                "sql": "SELECT id, country FROM \"event-log\" WHERE country = $country ORDER BY id",
            },
            {
                "name": "kinds", "path": "/kinds", "plot": {"label": "kind", "value": "n"},
                "sql": "SELECT kind, count(*) AS n FROM \"event-log\" GROUP BY kind ORDER BY kind",
            },
            {
                "name": "typed", "path": "/typed",
                "parameters": [
                    {"name": "id", "type": "bigint", "default": "1"},
                    {"name": "flag", "type": "boolean", "default": "true"},
                    {"name": "least", "type": "double", "default": "0.5"},
                    {"name": "since", "type": "timestamp", "default": "2016-11-05"},
                    {"name": "hours", "type": "int", "default": "24", "ago": "hours"},
                    {"name": "word", "type": "text", "default": "x"},
                    {"name": "key", "type": "uuid", "default": "9a723211-0e87-41f1-b1e4-ed1a15226b80"},
                ],
                "sql": "SELECT id, $word AS word, $key AS key FROM \"event-log\" \
                    WHERE id = $id AND $flag AND CAST(price AS DOUBLE) > $least \
                    AND ts >= $since AND ts >= $hours AND ts < $now",
            },
        ],
    });
    Some(Lake {
        pipeline,
        sink,
        serving,
        _folder: folder,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_reads_the_delta_lake_table_of_a_sink() {
    let Some(mut lake) = lake().await else {
        return;
    };
    // The table isn't there yet: the service is, and says so.
    let server = lake.serving.start().await;
    let response = server.get("/kinds").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let body: Value = response.json().await.unwrap();
    let detail = body["detail"].as_str().unwrap();
    let absent = "the table of sink `event-log` isn't there yet";
    assert!(detail.starts_with(absent), "{detail}");
    let away = json!({"status": "unhealthy", "tables": "unreadable"});
    assert_eq!(server.json("/health").await, (503, away));
    assert!(server.admin("/status").await.contains(absent));

    let _worker = delta::start(&lake.pipeline, &lake.sink);
    let records: Vec<_> = (1..=20).map(|id| event(id, "IT")).collect();
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    let kinds =
        |even: i64, odd: i64| json!([{"kind": "even", "n": even}, {"kind": "odd", "n": odd}]);
    assert_eq!(server.json("/kinds").await, (200, kinds(10, 10)));
    server.await_status("/health", 200).await;
    assert!(!server.admin("/status").await.contains("event-log"));
    let (_, body) = server.json("/all?limit=1").await;
    let first = json!({
        "id": 1, "country": "IT", "ts": "2016-11-05T01:00:00.000Z", "day": "2016-11-05",
        "kind": "odd", "price": "1.50", "tags": ["a", "IT"],
    });
    assert_eq!(body, json!([first]), "the columns of the result alone");

    // What is committed is there, as rows that are new and as rows that replace others.
    let response = server.get("/kinds").await;
    let tag = response.headers()["etag"].clone();
    let records: Vec<_> = (15..=30).map(|id| event(id, "FR")).collect();
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    assert_eq!(server.json("/kinds").await, (200, kinds(15, 15)));
    assert_ne!(server.get("/kinds").await.headers()["etag"], tag);
    let (_, body) = server.json("/found/FR").await;
    assert_eq!(body["count"], 16);
    let (_, body) = server.json("/found/IT").await;
    assert_eq!(body["count"], 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_waits_neither_for_cassandra_nor_for_other_tables() {
    let Some(environment) = Environment::find().await else {
        return;
    };
    let mut serving = Serving::create(environment).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("_delta_log");
    std::fs::create_dir(&log).unwrap();
    std::fs::write(log.join("00000000000000000000.json"), "no JSON").unwrap();
    serving.tables = json!([{"name": "broken", "path": folder.path()}]);
    let broken = json!({"name": "broken", "path": "/broken", "sql": "SELECT * FROM broken"});
    let one = json!({"name": "one", "path": "/one", "sql": "SELECT 1 AS n"});
    serving.serve = json!({"endpoints": [broken, one]});
    let server = serving.start().await;
    assert_eq!(server.json("/one").await, (200, json!([{"n": 1}])));
    assert_eq!(server.get("/broken").await.status(), 503);
    let health = json!({"status": "unhealthy", "tables": "unreadable"});
    assert_eq!(server.json("/health").await, (503, health));
    let status = server.admin("/status").await;
    assert!(status.contains("sink `broken` can't be read"), "{status}");
    drop(server);

    // Nobody listens there.
    serving.cassandra = "127.0.0.1:1".into();
    let cql = json!({"name": "cql", "path": "/cql", "cql": "SELECT * FROM t"});
    serving.serve = json!({"endpoints": [cql, broken, one]});
    let server = serving.start().await;
    assert_eq!(server.json("/one").await, (200, json!([{"n": 1}])));
    assert_eq!(server.get("/cql").await.status(), 503);
    let health = json!({"status": "unhealthy", "cassandra": "unreachable", "tables": "unreadable"});
    assert_eq!(server.json("/health").await, (503, health));
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_is_bounded_and_shown_like_everything_else() {
    let Some(mut lake) = lake().await else {
        return;
    };
    let _worker = delta::start(&lake.pipeline, &lake.sink);
    let records: Vec<_> = (1..=31).map(|id| event(id, "IT")).collect();
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    let server = lake.serving.start().await;
    for (path, status, says) in [
        ("/all", 500, "gives more than 30 rows"),
        ("/all?limit=31", 400, "parameter `limit` may be 1 to 30"),
        (
            "/all?page=x",
            400,
            "parameter `page` isn't for this endpoint",
        ),
        ("/typed?id=x", 400, "which is not an integer of 64 bits"),
        ("/typed?nothing=1", 400, "parameter `nothing` isn't known"),
        ("/all/1", 404, "there is nothing at this path"),
    ] {
        let (found, body) = server.json(path).await;
        let detail = body["detail"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{path}: {detail}");
        assert!(detail.contains(says), "{path}: {detail}");
    }
    let (status, body) = server.json("/all?limit=30").await;
    assert_eq!((status, body.as_array().unwrap().len()), (200, 30));
    let (_, page) = server.text("/kinds?format=html").await;
    assert!(page.contains("<td class=\"number\">15</td>"), "{page}");
    let (_, plot) = server.text("/kinds?format=svg").await;
    assert!(plot.starts_with("<svg"), "{plot}");

    let (_, document) = server.json("/openapi.json").await;
    let get = &document["paths"]["/all"]["get"];
    let row = &get["responses"]["200"]["content"]["application/json"]["schema"]["items"];
    let ts = json!({"type": ["string", "null"], "format": "date-time"});
    assert_eq!(row["properties"]["ts"], ts);
    let names = get["parameters"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|parameter| &parameter["name"]).collect();
    assert_eq!(names, ["format", "limit"]);
    assert!(!document.to_string().contains("SELECT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn injections_into_sql_are_nothing_but_data() {
    let Some(mut lake) = lake().await else {
        return;
    };
    let _worker = delta::start(&lake.pipeline, &lake.sink);
    let mut records = vec![event(1, "IT")];
    let injections = INJECTIONS.iter().zip(100..);
    records.extend(
        injections
            .clone()
            .map(|(injection, id)| event(id, injection)),
    );
    lake.pipeline.produce_all(&records).await;
    lake.pipeline.await_commits().await;
    let server = lake.serving.start().await;
    for (injection, id) in injections {
        let encoded = encoded(injection);
        // It finds the row of that very text and no other.
        let (status, body) = server.json(&format!("/found/{encoded}")).await;
        assert_eq!(status, 200, "{injection}: {body}");
        let items = json!([{"id": id, "country": injection}]);
        assert_eq!(body["items"], items, "{injection}");
        let (status, body) = server.json(&format!("/typed?word={encoded}")).await;
        assert_eq!(status, 200, "{injection}: {body}");
        assert_eq!(body[0]["word"], *injection);
        for name in [
            "id", "flag", "least", "since", "hours", "key", "limit", "page", "format",
        ] {
            let path = format!("/typed?{name}={encoded}");
            let (status, body) = server.json(&path).await;
            assert_eq!(status, 400, "{path}: {body}");
        }
    }
    let (_, body) = server.json("/all").await;
    assert_eq!(body.as_array().unwrap().len(), 1 + INJECTIONS.len());
}

/// A text as it is in a URL.
fn encoded(text: &str) -> String {
    let encoded: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    encoded.replace('+', "%20")
}

/// An endpoint that takes its time: so many hashes.
fn slow(hashes: u32) -> Value {
    json!({
        "name": "slow", "path": "/slow", "cql": "SELECT n FROM venues",
        "transform": format!(
            "SELECT count(sha256(CAST(value AS TEXT))) AS n FROM generate_series(1, {hashes})"
        ),
    })
}

#[tokio::test]
async fn what_has_begun_is_answered_before_it_ends() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["timeout"] = json!("1m");
    let endpoints = serving.serve["endpoints"].as_array_mut().unwrap();
    endpoints.push(slow(1_000_000));
    let server = serving.start().await;
    let begun = tokio::spawn(server.client.get(server.url("/slow")).send());
    // It has come: the transform runs.
    while !server
        .admin("/metrics")
        .await
        .contains("requests_in_flight 1")
    {
        assert!(!begun.is_finished(), "it is answered before it was seen");
    }
    let ended = server.terminate();
    let answer = begun.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.json::<Value>().await.unwrap(),
        json!([{"n": 1_000_000}])
    );
    assert_eq!(ended.await, Some(0));
}

#[tokio::test]
async fn what_takes_too_long_is_given_up() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["timeout"] = json!("500ms");
    let endpoints = serving.serve["endpoints"].as_array_mut().unwrap();
    endpoints.push(slow(200_000_000));
    let server = serving.start().await;
    for _ in 0..3 {
        let (status, body) = server.json("/slow").await;
        assert_eq!(status, 503, "{body}");
    }
    // What was given up doesn't run on: others get their turn.
    server.await_status("/api/top_venues", 200).await;
}

#[tokio::test]
async fn a_query_that_cassandra_refuses_is_in_the_status() {
    let Some(mut serving) = sessions().await else {
        return;
    };
    serving.serve["endpoints"]
        .as_array_mut()
        .unwrap()
        .push(json!({
            "name": "wrong", "path": "/wrong", "cql": "SELECT nothing FROM venues",
        }));
    let server = serving.start_unready().await;
    server.await_status("/api/data", 200).await;
    assert_eq!(server.get("/wrong").await.status(), 503);
    let status = server.admin("/status").await;
    assert!(
        status.contains("endpoint `wrong`") && status.contains("nothing"),
        "{status}"
    );
    assert!(
        server.admin("/readyz").await.contains("_serve"),
        "old pods aren't replaced by it"
    );
}
