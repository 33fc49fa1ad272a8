//! The serve stage against the real Cassandra, and over the Delta Lake tables of real sinks. Skipped
//! where `MILLSTREAM_ENVIRONMENT` doesn't name the servers.

mod answers;
mod faults;
mod requests;
mod sql;

use serde_json::json;

use crate::{
    serving::{Serving, hours_ago},
    support::Environment,
};

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

/// A text as it is in a URL.
fn encoded(text: &str) -> String {
    let encoded: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    encoded.replace('+', "%20")
}
