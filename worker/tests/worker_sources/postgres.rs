//! The database source against a real PostgreSQL, started here. Skipped where none is installed.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt,
    path::Path,
    pin::pin,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use millstream_api::source::DatabaseSource;
use millstream_worker::{
    budget::ANSWERS,
    config::Credentials,
    metrics::Metrics,
    source::{Opening, Records, database},
    status::{Status, StatusPart},
};
use serde_json::{Value, json};

use crate::postgres_server::{PASSWORD, Server, run};

impl Server {
    fn source(&self, settings: Value) -> DatabaseSource {
        let mut spec = json!({"postgres": self.connection()});
        for (name, value) in settings.as_object().unwrap() {
            spec[name] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn open(&self, settings: Value, position: Option<&Value>) -> Records {
        self.open_with(settings, position, &status().1)
    }

    fn open_with(&self, settings: Value, position: Option<&Value>, status: &StatusPart) -> Records {
        let credentials = self.folder.path().join("credentials");
        std::fs::create_dir_all(&credentials).unwrap();
        std::fs::write(credentials.join("database-password"), PASSWORD).unwrap();
        let opening = Opening {
            schema: "id BIGINT",
            credentials: &Credentials::new(credentials),
            position,
            status,
            metrics: &Metrics::default().stage("ingest"),
            connections: None,
            answers: ANSWERS,
        };
        database::open(self.source(settings), &opening).unwrap()
    }
}

fn status() -> (Arc<Status>, StatusPart) {
    let status = Arc::new(Status::default());
    let part = status.part("ingest");
    (status, part)
}

fn parsed(records: &[bytes::Bytes]) -> Vec<Value> {
    let records = records.iter();
    records
        .map(|record| serde_json::from_slice(record).unwrap())
        .collect()
}

fn ids(records: &[bytes::Bytes]) -> Vec<i64> {
    let records = parsed(records).into_iter();
    records
        .map(|record| record["id"].as_i64().unwrap())
        .collect()
}

async fn all_ids(records: Records) -> Vec<i64> {
    let batches: Vec<_> = records.collect().await;
    batches
        .iter()
        .flat_map(|batch| ids(&batch.records))
        .collect()
}

#[tokio::test]
async fn types_are_kept() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute(
            r#"CREATE TYPE mood AS ENUM ('calm', 'wild');
            CREATE SCHEMA "Shop";
            CREATE TABLE "Shop"."all ""types""" (
                id bigint PRIMARY KEY, small smallint, whole int, price numeric, exact numeric(38, 10),
                single real, double double precision, yes boolean, name text, code char(3),
                "select" varchar(9), uid uuid, born date, at timestamp, at_zone timestamptz,
                doc json, docb jsonb, list int[], names text[][], raw bytea, mood mood,
                during interval, nothing text
            );
            INSERT INTO "Shop"."all ""types""" VALUES (
                9223372036854775807, -32768, 2147483647,
                123456789012345678901234567890.123456789012345678901234567890,
                -1234567890123456789012345678.0123456789, 0.1, 0.30000000000000004, true,
                E'Zoë "quoted" \\ \n\t', 'ab', 'from', '7a0eed16-9430-4d68-901f-c0d4c1c3bf00',
                '2024-02-29', '2024-02-29 12:00:00.123456', '2024-02-29 12:00:00.5+02',
                '{"n": 1.50, "list": [1, {"deep": null}]}', '{"n": 12345678901234567890.5}',
                '{1,null,3}', '{{a,"b c"},{d,null}}', decode(repeat('00ff10', 40), 'hex'), 'wild',
                '1 day 02:03', null);"#,
        )
        .await;
    let settings = json!({"table": r#"Shop.all "types""#});
    let batches: Vec<_> = server.open(settings, None).collect().await;
    assert_eq!(batches.len(), 1);
    let text = std::str::from_utf8(&batches[0].records[0]).unwrap();
    insta::assert_snapshot!(text.replace(",\"", ",\n\""));
    // It is one JSON object, in one line.
    let record: Value = serde_json::from_str(text).unwrap();
    assert_eq!(record.as_object().unwrap().len(), 23);
    assert!(!text.contains('\n'));
    assert_eq!(
        batches[0].position,
        json!({"after": ["9223372036854775807"], "order": ["id"]})
    );
}

#[tokio::test]
async fn a_table_is_read_in_the_order_of_its_key_from_any_position() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute(
            "CREATE TABLE items (id bigint, part text, shelf int, PRIMARY KEY (shelf, part));
            INSERT INTO items SELECT i, 'p' || i % 10, i / 10 FROM generate_series(0, 999) AS i;",
        )
        .await;
    let settings = json!({"table": "items", "fetchSize": 7});
    let batches: Vec<_> = server.open(settings.clone(), None).collect().await;
    let read: Vec<_> = batches
        .iter()
        .flat_map(|batch| ids(&batch.records))
        .collect();
    assert_eq!(read, (0..1_000).collect::<Vec<_>>());
    assert!(batches.iter().all(|batch| batch.records.len() <= 7));
    let order = ["shelf", "part"];
    let position = json!({"after": ["2", "p7"], "order": order});
    assert_eq!(batches[3].position, position);
    for at in [0, 3, 100, batches.len() - 1] {
        let rest = server.open(settings.clone(), Some(&batches[at].position));
        let seen = (at + 1) * 7;
        assert_eq!(
            all_ids(rest).await,
            (seen as i64..1_000).collect::<Vec<_>>()
        );
    }

    // A column that the key's index only includes may be null.
    server
        .execute(
            "CREATE TABLE included (id bigint, email text, PRIMARY KEY (id) INCLUDE (email));
            INSERT INTO included VALUES (1, 'a'), (2, null), (3, 'c');",
        )
        .await;
    let read = server.open(json!({"table": "included"}), None);
    assert_eq!(all_ids(read).await, [1, 2, 3]);

    // Of a query: the key is given, and what is written is the query's business.
    let query = "SELECT id, upper(part) AS part FROM items WHERE id % 2 = 0 -- even\n; ";
    let read = server.open(
        json!({"query": query, "key": ["id"], "fetchSize": 100}),
        None,
    );
    assert_eq!(
        all_ids(read).await,
        (0..1_000).step_by(2).collect::<Vec<_>>()
    );

    // Polled, everything comes again and again.
    let polled = json!({"table": "items", "fetchSize": 600, "poll": {"interval": "10ms"}});
    let batches: Vec<_> = server.open(polled, None).take(4).collect().await;
    let sizes: Vec<_> = batches.iter().map(|batch| batch.records.len()).collect();
    assert_eq!(sizes, [600, 400, 600, 400]);
    assert_eq!(batches[1].position, json!({"order": order}));

    // With another key the place among the rows means nothing.
    server
        .execute(
            "ALTER TABLE items DROP CONSTRAINT items_pkey;
            ALTER TABLE items ADD PRIMARY KEY (id);",
        )
        .await;
    let (status, part) = status();
    let again = server.open_with(settings, Some(&position), &part);
    assert_eq!(all_ids(again).await.len(), 1_000);
    let warning = &status.report().warnings["ingest"];
    assert!(warning.contains("the primary key has changed"), "{warning}");
    let incremental = json!({"table": "items", "incremental": {"column": "shelf"}});
    let rest = server.open(
        incremental,
        Some(&json!({"after": ["97", "p7"], "order": order})),
    );
    assert_eq!(all_ids(rest).await, (970..1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_column_that_is_added_is_read_from_the_next_pass_on() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1);")
        .await;
    let polled = json!({"table": "items", "poll": {"interval": "10ms"}});
    let mut batches = server.open(polled, None);
    let first = batches.next().await.unwrap();
    assert_eq!(parsed(&first.records), [json!({"id": 1})]);
    server
        .execute("ALTER TABLE items ADD COLUMN name text DEFAULT 'x'")
        .await;
    let named = batches.map(|batch| parsed(&batch.records)).filter(|rows| {
        let is_named = rows == &[json!({"id": 1, "name": "x"})];
        std::future::ready(is_named)
    });
    let named = tokio::time::timeout(Duration::from_secs(10), pin!(named).next()).await;
    assert!(named.unwrap().is_some());
}

#[tokio::test]
async fn new_rows_are_read_once_whatever_they_have_in_common() {
    let Some(server) = Server::start().await else {
        return;
    };
    // Ten rows of every second: pages end within them.
    server
        .execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, updated_at timestamptz);
            CREATE INDEX ON orders (updated_at, id);
            INSERT INTO orders SELECT i, '2024-01-01T00:00:00Z'::timestamptz + i / 10 * interval '1s'
                FROM generate_series(0, 499) AS i;",
        )
        .await;
    let once = json!({
        "table": "orders", "fetchSize": 7,
        "incremental": {"column": "updated_at", "initial": "2024-01-01T00:00:10Z", "settle": "10ms"},
    });
    assert_eq!(
        all_ids(server.open(once.clone(), None)).await,
        (100..500).collect::<Vec<_>>()
    );

    let mut polled = once;
    polled["poll"] = json!({"interval": "20ms"});
    let mut records = server.open(polled.clone(), None);
    let mut read = Vec::new();
    let mut position = json!(null);
    let mut expected: Vec<i64> = (100..500).collect();
    for round in 0..5 {
        // The same second as the last row, and the next; an update moves a row to the end.
        server
            .execute(&format!(
                "INSERT INTO orders SELECT {n} + i, (SELECT max(updated_at) FROM orders) FROM generate_series(0, 9) AS i;
                UPDATE orders SET updated_at = (SELECT max(updated_at) FROM orders) + interval '1s' WHERE id = {round};",
                n = 1_000 + round * 10
            ))
            .await;
        expected.extend((0..10).map(|i| 1_000 + round * 10 + i));
        expected.push(round);
        while read.len() < expected.len() {
            let batch = tokio::time::timeout(Duration::from_secs(20), records.next()).await;
            let batch = batch.expect("more rows in time").unwrap();
            read.extend(ids(&batch.records));
            position = batch.position;
        }
        assert_eq!(read, expected);
        if round == 2 {
            records = server.open(polled.clone(), Some(&position));
        }
    }
}

#[tokio::test]
async fn rows_that_are_never_read_are_told() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, updated_at timestamptz);
            INSERT INTO orders VALUES (1, '2024-01-01T00:00:00Z'), (2, null);",
        )
        .await;
    let (shown, part) = status();
    let settings = json!({
        "table": "orders", "incremental": {"column": "updated_at", "settle": "10ms"},
    });
    let records = server.open_with(settings.clone(), None, &part);
    assert_eq!(all_ids(records).await, [1]);
    let warning = &shown.report().warnings["ingest"];
    assert!(warning.contains("`updated_at` is null"), "{warning}");

    server
        .execute("UPDATE orders SET updated_at = now() WHERE id = 2")
        .await;
    let records = server.open_with(settings, None, &part);
    assert_eq!(all_ids(records).await, [1, 2]);
    assert!(shown.report().warnings.is_empty());
}

#[tokio::test]
async fn rows_are_read_beside_one_that_nothing_is_behind() {
    let Some(server) = Server::start().await else {
        return;
    };
    let settings = json!({"table": "items", "incremental": {"column": "at", "settle": "10ms"}});
    for (data_type, one, two, last) in [
        ("real", "1", "2", "NaN"),
        ("double precision", "1", "2", "infinity"),
        ("numeric", "1", "2", "NaN"),
        ("numeric", "1", "2", "infinity"),
        ("date", "2024-01-01", "2024-01-02", "infinity"),
        ("timestamp", "2024-01-01", "2024-01-02", "infinity"),
        ("timestamptz", "2024-01-01", "2024-01-02", "infinity"),
    ] {
        server
            .execute(&format!(
                "DROP TABLE IF EXISTS items; CREATE TABLE items (id bigint PRIMARY KEY, at {data_type});
                INSERT INTO items VALUES (1, '-infinity'), (2, '{one}'), (3, '{last}');"
            ))
            .await;
        let (shown, part) = status();
        let records = server.open_with(settings.clone(), None, &part);
        let batches: Vec<_> = records.collect().await;
        assert_eq!(ids(&batches[0].records), [1, 2], "{data_type} {last}");
        let warning = &shown.report().warnings["ingest"];
        assert!(warning.contains("infinity or NaN"), "{warning}");
        let more = format!("INSERT INTO items VALUES (4, '{two}')");
        server.execute(&more).await;
        let records = server.open(settings.clone(), Some(&batches[0].position));
        assert_eq!(all_ids(records).await, [4], "{data_type} {last}");
    }
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_waited_for() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute("CREATE TABLE events (id bigserial PRIMARY KEY); INSERT INTO events SELECT FROM generate_series(1, 3);")
        .await;
    let late = server.try_client().await.unwrap();
    late.batch_execute("BEGIN; INSERT INTO events DEFAULT VALUES")
        .await
        .unwrap();
    server.execute("INSERT INTO events DEFAULT VALUES").await;
    let settings = json!({
        "table": "events", "incremental": {"column": "id", "settle": "1500ms"}, "poll": {"interval": "10ms"},
    });
    let mut records = server.open(settings, None);
    let observer = server.try_client().await.unwrap();
    // 5 is there to see and 4 is not, until it is committed: when the reader has asked what the last is.
    let commit = async {
        let asked = "SELECT pid FROM pg_stat_activity \
            WHERE application_name = 'millstream' AND state = 'idle' AND query LIKE '%DESC LIMIT 1'";
        let deadline = Instant::now() + Duration::from_secs(20);
        while observer.query(asked, &[]).await.unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the reader isn't seen waiting");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        late.batch_execute("COMMIT").await.unwrap();
    };
    let (batch, ()) = tokio::join!(records.next(), commit);
    assert_eq!(ids(&batch.unwrap().records), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_restart_in_the_middle_loses_and_doubles_nothing() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    server
        .execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, text text);
            INSERT INTO items SELECT i, repeat('x', 500) FROM generate_series(0, 19999) AS i;",
        )
        .await;
    let (shown, part) = status();
    let settings = json!({"table": "items", "fetchSize": 500, "timeout": "5s"});
    let mut records = server.open_with(settings, None, &part);
    let mut read = Vec::new();
    for _ in 0..5 {
        read.extend(ids(&records.next().await.unwrap().records));
    }
    for _ in 0..2 {
        server.down();
        {
            let next = records.next();
            tokio::pin!(next);
            while shown.report().errors.is_empty() {
                let wait = tokio::time::timeout(Duration::from_millis(100), &mut next);
                assert!(wait.await.is_err(), "there is no server to read from");
            }
            let error = shown.report().errors["ingest"].clone();
            assert!(error.contains("PostgreSQL 127.0.0.1:"), "{error}");
            assert!(!error.contains(PASSWORD), "{error}");
            server.up().await;
            read.extend(ids(&next.await.unwrap().records));
        }
        assert!(shown.report().errors.is_empty());
    }
    read.extend(all_ids(records).await);
    assert_eq!(read, (0..20_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn large_rows_come_in_small_pages() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute(
            "CREATE TABLE files (id bigint PRIMARY KEY, text text);
            INSERT INTO files SELECT i, CASE WHEN i < 30 THEN repeat('x', 1000000) END
                FROM generate_series(0, 199) AS i;",
        )
        .await;
    let batches: Vec<_> = server.open(json!({"table": "files"}), None).collect().await;
    let read: Vec<_> = batches
        .iter()
        .flat_map(|batch| ids(&batch.records))
        .collect();
    assert_eq!(read, (0..200).collect::<Vec<_>>());
    for batch in &batches {
        let bytes: usize = batch.records.iter().map(bytes::Bytes::len).sum();
        assert!(bytes < 6_000_000, "{bytes}");
    }
}

#[tokio::test]
async fn says_what_is_wrong() {
    let Some(server) = Server::start().await else {
        return;
    };
    server
        .execute("CREATE TABLE keyless (id bigint); CREATE TABLE items (id bigint PRIMARY KEY);")
        .await;
    let mut told = BTreeSet::new();
    for settings in [
        json!({"table": "keyless"}),
        json!({"table": "nowhere"}),
        json!({"table": "items", "incremental": {"column": "updated_at"}}),
        json!({"table": "items", "key": ["idd"]}),
        json!({"query": "SELECT id, id FROM items", "key": ["id"]}),
        json!({"query": "SELECT id FRO items", "key": ["id"]}),
        json!({"query": "DELETE FROM items", "key": ["id"]}),
        json!({"query": "SELECT id, pg_sleep(9) FROM (VALUES (1)) AS v(id)", "key": ["id"], "timeout": "200ms"}),
        json!({"query": "SELECT nextval('s') AS id FROM generate_series(1, 2)", "key": ["id"]}),
        json!({"table": "items", "postgres": {"host": "127.0.0.1", "port": server.port, "database": "postgres", "user": "nobody", "passwordSecret": {"name": "a", "key": "b"}}}),
        json!({"table": "items", "postgres": {"host": "127.0.0.1", "port": server.port, "database": "postgres", "user": "postgres", "tls": {}, "passwordSecret": {"name": "a", "key": "b"}}}),
        json!({"table": "items", "postgres": {"host": "127.0.0.1", "port": 1, "database": "postgres", "user": "postgres"}}),
    ] {
        let (shown, part) = status();
        let mut records = server.open_with(settings.clone(), None, &part);
        let next = records.next();
        tokio::pin!(next);
        let deadline = Instant::now() + Duration::from_secs(10);
        while shown.report().errors.is_empty() {
            assert!(Instant::now() < deadline, "{settings} is no error");
            let wait = tokio::time::timeout(Duration::from_millis(20), &mut next);
            assert!(wait.await.is_err(), "{settings} gives records");
        }
        let error = shown.report().errors["ingest"].clone();
        told.insert(error.replace(&server.port.to_string(), "PORT"));
    }
    let told: Vec<_> = told.into_iter().collect();
    insta::assert_snapshot!(told.join("\n"));
}

/// A certificate of the server, and the authority behind it.
fn certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let arguments = arguments.split(' ');
        run(Command::new("openssl").args(arguments).current_dir(folder));
    };
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    for authority in ["ca", "other"] {
        openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -keyout {authority}.key -out {authority}.crt -days 2 -subj /CN={authority}"
        ));
    }
    openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server");
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names",
    );
}

#[tokio::test]
async fn an_encrypted_connection_checks_the_server() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(mut server) = Server::start().await else {
        return;
    };
    server.down();
    let folder = server.folder.path().to_owned();
    certificates(&folder);
    let owner = std::fs::metadata(server.data()).unwrap().uid().to_string();
    for file in ["server.crt", "server.key"] {
        let at = server.data().join(file);
        std::fs::copy(folder.join(file), &at).unwrap();
        run(Command::new("chown").arg(&owner).arg(&at));
        run(Command::new("chmod").arg("600").arg(&at));
    }
    server.tls = true;
    server.up().await;
    let mut connection = server.connection();
    connection["tls"] = json!({"caSecret": {"name": "postgres", "key": "ca"}});
    let settings = json!({
        "postgres": connection,
        "query": "SELECT 1 AS id, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        "key": ["id"],
    });
    let credentials = folder.join("credentials");
    std::fs::create_dir_all(&credentials).unwrap();
    let authority = credentials.join("database-ca.crt");
    std::fs::copy(folder.join("ca.crt"), &authority).unwrap();
    let batch = server.open(settings.clone(), None).next().await.unwrap();
    assert_eq!(parsed(&batch.records), [json!({"id": 1, "ssl": true})]);

    std::fs::copy(folder.join("other.crt"), &authority).unwrap();
    let (shown, part) = status();
    let mut records = server.open_with(settings, None, &part);
    let next = records.next();
    tokio::pin!(next);
    while shown.report().errors.is_empty() {
        let wait = tokio::time::timeout(Duration::from_millis(20), &mut next);
        assert!(wait.await.is_err(), "a stranger was believed");
    }
    let error = shown.report().errors["ingest"].clone();
    assert!(error.contains("invalid peer certificate"), "{error}");
}
