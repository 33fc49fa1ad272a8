use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use millstream_api::worker::{PipelineRef, TopicRef};
use millstream_plan::accept;

use super::*;
use crate::pipeline::children;

const COUNTS: &str = "SELECT id, count(*) AS n FROM records GROUP BY id";
const ROWS: &str = "SELECT id, name FROM records";
const A: Option<&[&str]> = Some(&["a"]);
const B: Option<&[&str]> = Some(&["b"]);

fn pipeline(sinks: &str) -> DataPipeline {
    let head = "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: counts, namespace: shop, uid: 1-2-3}
spec:
  source: {generator: {}}
  schema: id UUID, name TEXT
";
    serde_saphyr::from_str(&format!("{head}  sinks: [{sinks}]\n")).unwrap()
}

/// A sink whose rows go to Cassandra.
fn rows(name: &str, sql: &str, keyspace: &str, table: &str) -> String {
    format!(
        "{{name: {name}, sql: '{sql}', cassandra: {{keyspace: {keyspace}, table: {table}, primaryKey: {{partitionKey: [id]}}}}}}"
    )
}

/// A sink whose states alone are in Cassandra.
fn states(name: &str, keyspace: &str, table: &str) -> String {
    format!(
        "{{name: {name}, sql: '{COUNTS}', state: {{keyspace: {keyspace}, table: {table}}}, delta: {{mode: merge, mergeKeys: [id], volume: {{persistentVolumeClaim: {{claimName: lake}}, path: t}}}}}}"
    )
}

fn cassandra(servers: &[&str]) -> CassandraConnection {
    CassandraConnection {
        contact_points: servers.iter().map(|server| (*server).into()).collect(),
        datacenter: None,
        credentials_secret: None,
        tls: None,
    }
}

/// What the process pods of a pipeline with these sinks were told, as it is in the ConfigMap.
fn told(sinks: &str, servers: &[&str]) -> ProcessConfig {
    let accepted = accept(&pipeline(sinks), &[]).unwrap();
    let config = ProcessConfig {
        pipeline: PipelineRef {
            namespace: "shop".into(),
            name: "counts".into(),
        },
        kafka: serde_saphyr::from_str("{bootstrapServers: 'k:9092'}").unwrap(),
        cassandra: Some(cassandra(servers)),
        topic: TopicRef {
            name: "counts".into(),
            id: "0x1f".into(),
            timestamp_base: 1_700_000_000_000_000,
            partitions: 1,
        },
        dead_letter_topic: "counts.dead-letter".into(),
        schema: "id UUID, name TEXT".into(),
        avro: None,
        lookups: accepted.lookups,
        sinks: accepted.sinks,
        memory_limit: Some(512 << 20),
    };
    let yaml = children::worker_yaml(&WorkerConfig::Process(config.clone())).unwrap();
    let read = read(&yaml).unwrap();
    assert_eq!(read, config);
    read
}

/// What is said of a pipeline with these sinks, and this Cassandra, after another.
fn said(before: &ProcessConfig, sinks: &str, servers: &[&str]) -> String {
    let accepted = accept(&pipeline(sinks), &[]).unwrap();
    let schema = &pipeline(sinks).spec.schema;
    match check_groups(before, Some(&cassandra(servers)), schema, &accepted) {
        Ok(()) => String::new(),
        Err(refusal) => format!("{}: {refusal}", refusal.reason()),
    }
}

#[test]
fn a_key_keeps_the_digits_behind_its_point() {
    let of = |schema: &str| {
        let sql = "SELECT id, count(*) AS n FROM records GROUP BY id";
        let mut pipeline = pipeline(&rows("s", sql, "ks", "t"));
        pipeline.spec.schema = schema.into();
        pipeline
    };
    let said = |before: &str, now: &str| {
        let former = ProcessConfig {
            schema: before.into(),
            sinks: accept(&of(before), &[]).unwrap().sinks,
            ..told(&rows("s", COUNTS, "ks", "t"), &["a"])
        };
        let accepted = accept(&of(now), &[]).unwrap();
        let checked = check_groups(&former, Some(&cassandra(&["a"])), now, &accepted);
        checked.err().map(|refusal| refusal.to_string())
    };
    assert_eq!(said("id DECIMAL(10, 2)", "id DECIMAL(12, 2)"), None);
    assert_eq!(said("id UUID", "id UUID, name TEXT"), None);
    let refused = said("id DECIMAL(10, 2)", "id DECIMAL(12, 4)").unwrap();
    assert!(
        refused.contains("its key `id` would have another"),
        "{refused}"
    );
}

#[test]
fn groups_are_counted_on_where_they_were_counted() {
    let there = rows("s", COUNTS, "ks", "t");
    let other = rows("s", &COUNTS.replace("count(*)", "max(name)"), "ks", "t");
    let was_rows = rows("s", ROWS, "ks", "t");
    for (before, after, servers) in [
        (&there, there.clone(), &["a"][..]),
        // One server in common.
        (&there, there.clone(), &["b", "A"]),
        (&there, states("s", "ks", "t"), &["a"]),
        (&states("s", "ks", "t"), there.clone(), &["a"]),
        // It is told by the states' own table.
        (&there, other.clone(), &["a"]),
        // Nothing is counted: rows have no state.
        (&there, was_rows.clone(), &["a"]),
        (&was_rows, rows("s", ROWS, "ks", "u"), &["b"]),
        // A name that reads from the beginning.
        (&there, rows("new", COUNTS, "ks", "u"), &["b"]),
        (
            &was_rows,
            format!("{was_rows}, {}", rows("new", COUNTS, "ks", "u")),
            &["a"],
        ),
    ] {
        let said = said(&told(before, &["a"]), &after, servers);
        assert_eq!(said, "", "{after} at {servers:?} after {before}");
    }
}

#[test]
fn groups_that_would_be_counted_anew_are_refused() {
    let there = rows("s", COUNTS, "ks", "t");
    let was_rows = rows("s", ROWS, "ks", "t");
    let of_two = |table| {
        format!(
            "{}, {}",
            rows("one", COUNTS, "ks", "one"),
            rows("s", COUNTS, "ks", table)
        )
    };
    let moved = |here: &str| {
        format!("its groups were counted in `ks.t`, and would be counted from nothing in {here}:")
    };
    for (before, after, servers, words) in [
        (&there, rows("s", COUNTS, "ks", "u"), "a", moved("`ks.u`")),
        (&there, rows("s", COUNTS, "ks2", "t"), "a", moved("`ks2.t`")),
        (&there, states("s", "ks", "u"), "a", moved("`ks.u`")),
        (
            &states("s", "ks", "t"),
            states("s", "ks2", "t"),
            "a",
            moved("`ks2.t`"),
        ),
        // Also of a sink that isn't the first with groups.
        (&of_two("t"), of_two("u"), "a", moved("`ks.u`")),
        (
            &there,
            there.clone(),
            "b",
            "in `ks.t` of the Cassandra at a,".into(),
        ),
        (
            &was_rows,
            there.clone(),
            "a",
            "read without a GROUP BY".into(),
        ),
        (
            &was_rows,
            rows("s", COUNTS, "ks", "u"),
            "a",
            "read without a GROUP BY".into(),
        ),
    ] {
        let said = said(&told(before, &["a"]), &after, &[servers]);
        assert!(said.starts_with("Incompatible: sink `s`: "), "{said}");
        assert!(said.contains(&words), "{words} isn't in: {said}");
        assert!(said.contains("new name"), "{said}");
    }
}

#[test]
fn a_keyspace_of_others_is_of_the_pipelines_cassandra() {
    let default = cassandra(&["default"]);
    let at = |servers: Option<&[&str]>| {
        let mut pipeline = pipeline("");
        pipeline.spec.cassandra = servers.map(cassandra);
        pipeline
    };
    // As the pipeline with this Cassandra makes it, with the other owners that it has.
    let made = |servers, others: &[&str]| {
        let made = children::keyspace(&at(servers), "ks", None, &[]);
        let mut made: Keyspace = serde_json::from_value(made).unwrap();
        let other = |uid: &&str| OwnerReference {
            uid: (*uid).into(),
            ..OwnerReference::default()
        };
        made.owner_references_mut().extend(others.iter().map(other));
        made
    };
    let by_a_person = |servers| {
        let mut keyspace = made(servers, &[]);
        keyspace.metadata.labels = None;
        keyspace.metadata.owner_references = None;
        keyspace
    };
    for (keyspace, mine, accepted) in [
        (made(A, &[]), A, true),
        (made(A, &[]), B, true),
        (made(A, &[]), None, true),
        (made(A, &["4-5-6"]), A, true),
        (made(A, &["4-5-6"]), Some(&["b", "a"][..]), true),
        (made(A, &["4-5-6"]), B, false),
        (made(A, &["4-5-6"]), None, false),
        (made(None, &["4-5-6"]), None, true),
        (made(None, &["4-5-6"]), Some(&["default"][..]), true),
        (made(None, &["4-5-6"]), B, false),
        (by_a_person(A), A, true),
        (by_a_person(A), B, false),
        (by_a_person(None), B, false),
    ] {
        let said = check_keyspace(&at(mine), &keyspace, Some(&default));
        assert_eq!(said.is_ok(), accepted, "{mine:?} {keyspace:?}");
        if let Err(refusal) = said {
            assert_eq!(refusal.reason(), "ResourceConflict");
            assert!(refusal.to_string().contains("`ks`"), "{refusal}");
        }
        // What others have a part in is left as it is.
        let part = children::keyspace(&at(mine), "ks", Some(&keyspace), &[]);
        let part: Keyspace = serde_json::from_value(part).unwrap();
        let expected = match keyspace.labels().is_empty() {
            // A person's isn't touched.
            true => None,
            false if is_alone(&at(mine), &keyspace) => mine.map(cassandra),
            false => keyspace.spec.cassandra.clone(),
        };
        assert_eq!(part.spec.cassandra, expected);
    }
}
