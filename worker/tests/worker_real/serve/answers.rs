//! What is answered: rows, types, pages and formats, and what the service says of itself.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::sessions;
use crate::serving;

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
