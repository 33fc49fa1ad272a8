use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use millstream_api::{keyspace::TableSpec, serve::Serve};
use millstream_plan::serve::{EndpointQuery, LakeTable, Readable, plan_service};

use crate::assert_told;

const TABLES: &str = "
- name: sessions
  columns:
    - {name: player_id, type: text}
    - {name: session_id, type: uuid}
    - {name: country, type: text}
    - {name: ts, type: timestamp}
    - {name: level, type: int}
    - {name: tags, type: list<text>}
  primaryKey: {partitionKey: [player_id], clusteringKey: [{name: ts, order: DESC}]}
";

/// The Delta Lake tables of two sinks.
fn lake() -> Vec<LakeTable> {
    let day = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let columns = [
        Field::new("country", DataType::Utf8, true),
        Field::new("level", DataType::Int32, true),
        Field::new("ts", day, true),
    ];
    let table = |name: &str| LakeTable {
        name: name.into(),
        columns: Some(Arc::new(Schema::new(columns.to_vec()))),
    };
    vec![table("events"), table("event-sessions")]
}

const PLAYER: &str = "{name: p, type: text}";

/// What becomes of one endpoint; `more` are its fields besides the name.
fn told(endpoint: &str) -> String {
    told_in(endpoint, &["games"])
}

fn told_in(endpoint: &str, keyspaces: &[&str]) -> String {
    let serve = format!("endpoints: [{{name: e, {endpoint}}}]");
    let serve: Serve = match serde_saphyr::from_str(&serve) {
        Ok(serve) => serve,
        Err(error) => panic!("{endpoint}: {error}"),
    };
    let tables: Vec<TableSpec> = serde_saphyr::from_str(TABLES).unwrap();
    let tables: Vec<_> = tables
        .into_iter()
        .map(|table| ("games".to_owned(), table))
        .collect();
    let keyspaces: Vec<_> = keyspaces.iter().map(|name| (*name).to_owned()).collect();
    let readable = Readable {
        keyspaces: &keyspaces,
        tables: &tables,
        lake: &lake(),
    };
    match plan_service(&serve, &readable) {
        Ok(plans) => match &plans[0].query {
            EndpointQuery::Cql(statement) => format!("accepted: {statement}"),
            EndpointQuery::Sql(tables) => format!("accepted, of {}", tables.join(", ")),
        },
        Err(error) => error.to_string(),
    }
}

#[test]
fn takes_one_select_on_the_pipelines_tables() {
    let cql = |cql: &str| {
        told(&format!(
            "path: '/e/{{p}}', parameters: [{PLAYER}], cql: {cql:?}"
        ))
    };
    assert_told!(
        [
            "SELECT * FROM sessions WHERE player_id = :p",
            "select distinct player_id from games.sessions where player_id = :p;",
            "SELECT player_id, level AS l, count(*) FROM \"games\".\"sessions\" WHERE player_id = :p GROUP BY player_id -- ;",
            "SELECT cast(level as text) AS l FROM sessions /* FROM x */ WHERE player_id = :p AND ts > :now - 2d LIMIT 5",
            "SELECT ';' FROM sessions WHERE player_id = :P AND session_id = 9a723211-0e87-41f1-b1e4-ed1a15226b80",
            "SELECT other FROM unknown WHERE player_id = :p",
        ],
        cql
    );
}

#[test]
fn refuses_everything_else() {
    let cql = |cql: &str| {
        told(&format!(
            "path: '/e/{{p}}', parameters: [{PLAYER}], cql: {cql:?}"
        ))
    };
    assert_told!(
        [
            "DELETE FROM sessions WHERE player_id = :p",
            "INSERT INTO sessions (player_id) VALUES (:p)",
            "SELECT * FROM sessions WHERE player_id = :p; DROP TABLE sessions",
            "/* SELECT */ UPDATE sessions SET level = 1 WHERE player_id = :p",
            "SELECT * FROM system_auth.roles WHERE role = :p",
            "SELECT * FROM sessions, roles WHERE player_id = :p",
            "SELECT * FROM sessions s WHERE player_id = :p",
            "SELECT JSON * FROM sessions WHERE player_id = :p",
            "SELECT * FROM sessions WHERE player_id = ?",
            "SELECT * FROM sessions WHERE player_id = 'it''s :p",
            "SELECT * WHERE player_id = :p",
            "SELECT * FROM sessions WHERE player_id = :p AND level = :level",
            "SELECT * FROM sessions WHERE playerid = :p",
            "SELECT sesion_id FROM sessions WHERE player_id = :p",
            "SELECT * FROM sessions WHERE level = :p",
            "SELECT * FROM sessions WHERE player_id = 'x' LIMIT :p",
            "SELECT * FROM sessions",
            "",
        ],
        cql
    );
    let either = told_in(
        &format!("path: '/e/{{p}}', parameters: [{PLAYER}], cql: 'SELECT * FROM t WHERE k = :p'"),
        &["games", "shop"],
    );
    assert_eq!(
        either,
        "serve: endpoint `e`: cql: write the keyspace before the table, as in `keyspace.t`; it can be one of games, shop"
    );
}

#[test]
fn checks_paths_and_parameters() {
    let of = |parameters: &str| {
        let path = if parameters.contains("path") {
            ""
        } else {
            "path: /e, "
        };
        let cql = "SELECT * FROM sessions WHERE country = :a";
        told(&format!("{path}{parameters}, cql: '{cql}'"))
    };
    assert_told!(
        [
            "parameters: [{name: a, type: text, default: IT, enum: [IT, FR]}]",
            "parameters: [{name: a, type: text, default: DE, enum: [IT, FR]}]",
            "parameters: [{name: a, type: text, minimum: 1}]",
            "parameters: [{name: a, type: text}, {name: b, type: int}]",
            "parameters: [{name: a, type: int}]",
            "parameters: [{name: a, type: text}, {name: limit, type: int}]",
            "parameters: [{name: a, type: int, minimum: 2, maximum: 1}]",
            "parameters: [{name: a, type: int, default: x}]",
            "parameters: [{name: a, type: uuid, maxLength: 3}]",
            "parameters: [{name: a, type: bigint, ago: hours}]",
            "path: '/e/{b}', parameters: [{name: a, type: text}]",
            "path: '/e/{a}', parameters: [{name: a, type: text, default: x}]",
            "path: '/e/{a}/{a}', parameters: [{name: a, type: text}]",
            "path: '/docs/{a}', parameters: [{name: a, type: text}]",
            "path: /health, parameters: [{name: a, type: text}]",
        ],
        of
    );
}

#[test]
fn plans_transforms_and_plots() {
    let of = |more: &str| {
        let cql = "SELECT country, level, ts, tags FROM sessions";
        told(&format!("path: /e, cql: '{cql}', {more}"))
    };
    assert_told!(
        [
            "transform: SELECT country FROM rows",
            "transform: 'SELECT country, count(*) AS n FROM rows GROUP BY country ORDER BY n DESC, country LIMIT 10', plot: {label: country, value: n}",
            "transform: 'SELECT country, row_number() OVER (ORDER BY level) AS place FROM rows'",
            "transform: 'WITH a AS (SELECT * FROM rows) SELECT a.level FROM a JOIN rows USING (country)'",
            "transform: 'SELECT country FROM rows WHERE ts > $now - INTERVAL ''1 day'' LIMIT $top', parameters: [{name: top, type: int, default: ''}]",
            "transform: 'SELECT country FROM rows WHERE ts > $now - INTERVAL ''1 day'' LIMIT $top', parameters: [{name: top, type: int}]",
            "transform: SELECT county FROM rows",
            "transform: SELECT country FROM rows WHERE country IS DISTINCT FROM 'IT' AND level > 2",
            "transform: SELECT country FROM rows WHERE country SIMILAR TO 'I%'",
            "transform: SELECT country FROM sessions",
            "transform: SELECT country FROM rows WHERE level > $least",
            "transform: SELECT country + ts AS x FROM rows",
            "transform: DROP TABLE rows",
            "transform: 'CREATE TABLE x AS SELECT * FROM rows'",
            "transform: 'COPY rows TO ''/tmp/x'''",
            "transform: INSERT INTO rows SELECT * FROM rows",
            "transform: SELECT 1; SELECT 2",
            "transform: SELEC",
            "plot: {label: country, value: level}",
            "plot: {label: country, value: ts}",
            "plot: {label: county, value: level}",
            "format: svg",
        ],
        of
    );
    let deep = format!(
        "transform: 'SELECT {}1{} AS x FROM rows'",
        "(".repeat(2_000),
        ")".repeat(2_000)
    );
    assert!(of(&deep).ends_with("it is too deep; write it simpler"));
    let nested = format!(
        "transform: '{}SELECT level FROM rows{}'",
        "SELECT level FROM (".repeat(300),
        ")".repeat(300)
    );
    assert!(of(&nested).ends_with("it is too deep; write it simpler"));
}

#[test]
fn takes_sql_on_the_delta_lake_tables_of_the_sinks() {
    let of = |more: &str| told(&format!("path: /e, {more}"));
    assert_told!(
        [
            "sql: SELECT * FROM events",
            r#"sql: 'SELECT e.country, count(*) AS n FROM "event-sessions" e JOIN events USING (country) GROUP BY e.country', plot: {label: country, value: n}"#,
            "sql: 'WITH best AS (SELECT max(level) AS level FROM events) SELECT country FROM best JOIN events USING (level)'",
            "sql: SELECT country FROM events WHERE country = $c AND ts > $since AND ts < $now, parameters: [{name: c, type: text}, {name: since, type: int, ago: hours}]",
            "sql: SELECT country FROM event",
            r#"sql: SELECT country FROM "event-session""#,
            "sql: SELECT country FROM sessions",
            "sql: SELECT table_name FROM information_schema.tables",
            "sql: SELECT * FROM '/etc/passwd'",
            "sql: SELECT county FROM events",
            "sql: SELECT _version FROM events",
            "sql: SELECT country FROM events WHERE level = (SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY ts) AS n FROM events) AS numbered)",
            "sql: SELECT sum(level) OVER w AS n FROM events WINDOW w AS (PARTITION BY country)",
            "sql: SELECT country FROM events WHERE level > $least",
            "sql: SELECT country FROM events, parameters: [{name: c, type: text}]",
            "sql: SELECT country FROM events WHERE ts > $c, parameters: [{name: c, type: boolean}]",
            "sql: SELECT country FROM events, plot: {label: country, value: country}",
            "sql: EXPLAIN SELECT country FROM events",
            "sql: SHOW TABLES",
            "sql: DROP TABLE events",
            "sql: INSERT INTO events SELECT * FROM events",
            "sql: 'COPY events TO ''/tmp/x.csv'''",
            "sql: 'CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION ''/etc'''",
            "sql: SELECT 1; SELECT 2",
            "sql: SELECT country FROM events, transform: SELECT * FROM rows",
            "sql: SELECT country FROM events, cql: SELECT country FROM sessions",
            "description: nothing",
        ],
        of
    );
    let deep = format!(
        "sql: 'SELECT {}1{} AS x FROM events'",
        "(".repeat(2_000),
        ")".repeat(2_000)
    );
    assert!(of(&deep).ends_with("it is too deep; write it simpler"));
}

#[test]
fn endpoints_have_paths_of_their_own() {
    let serve: Serve = serde_saphyr::from_str(
        "{endpoints: [{name: a, path: '/x/{p}', parameters: [{name: p, type: text}], cql: 'SELECT * FROM t WHERE k = :p'}, \
         {name: b, path: '/x/{q}', parameters: [{name: q, type: text}], cql: 'SELECT * FROM t WHERE k = :q'}]}",
    )
    .unwrap();
    let keyspaces = ["k".to_owned()];
    let readable = Readable {
        keyspaces: &keyspaces,
        tables: &[],
        lake: &[],
    };
    let error = plan_service(&serve, &readable).unwrap_err().to_string();
    assert_eq!(
        error,
        "serve: endpoints `a` and `b` have the same path; change one of them"
    );
    let now = Serve {
        now: Some("2016-11-06T25:00:00Z".into()),
        ..serve
    };
    let error = plan_service(&now, &readable).unwrap_err().to_string();
    assert!(
        error.starts_with("serve.now: `2016-11-06T25:00:00Z` is not a time"),
        "{error}"
    );
}
