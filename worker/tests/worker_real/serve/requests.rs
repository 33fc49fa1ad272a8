//! What may be asked, and by whom: wrong requests, injections, keys and how often.

use serde_json::{Value, json};

use super::{INJECTIONS, encoded, sessions};

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
