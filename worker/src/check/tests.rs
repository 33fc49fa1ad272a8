use super::*;

fn said(text: &str) -> String {
    let findings = check(manifest::parse(text).unwrap());
    let lines = findings.iter().map(|finding| match &finding.verdict {
        Ok(summary) => format!("{}: ok: {summary}", finding.resource),
        Err(problems) => format!("{}: {}", finding.resource, problems.join("\n    ")),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn pipeline(name: &str, sql: &str, primary_key: &str) -> String {
    format!(
        "---
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {{name: {name}}}
spec:
  source: {{generator: {{}}}}
  schema: id UUID, name TEXT, age BIGINT
  sinks:
    - name: s
      sql: |
        {sql}
      cassandra: {{keyspace: ks, table: t, {primary_key}}}
"
    )
}

const BY_ID: &str = "primaryKey: {partitionKey: [id]}";

const KEYSPACE: &str = "---
apiVersion: millstream.dev/v1alpha1
kind: Keyspace
metadata: {name: ks}
spec:
  tables:
    - {name: t, columns: [{name: id, type: uuid}, {name: age, type: int}], primaryKey: {partitionKey: [id]}}
";

#[test]
fn what_is_right_is_summed_up() {
    let text = pipeline("a", "SELECT id, name FROM records", BY_ID)
        + "---\n"
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"
        + &KEYSPACE.replace("name: ks", "name: others")
        + "---\napiVersion: millstream.dev/v1alpha1\nkind: Topic\nmetadata: {name: a}\nspec: {}\n";
    insta::assert_snapshot!(said(&text), @r"
    DataPipeline/a: ok: topic a by /id; s → ks.t
    Secret/s: ok: not Millstream's, not looked at
    Keyspace/others: ok: keyspace others with 1 tables
    Topic/a: ok: topic a
    ");
}

#[test]
fn keyspaces_of_the_file_count_as_declared() {
    let fits = pipeline("a", "SELECT id, CAST(age AS INT) AS age FROM records", "");
    assert!(said(&(fits + KEYSPACE)).contains("DataPipeline/a: ok"));
    let text = pipeline("a", "SELECT id, age FROM records", "")
        + KEYSPACE
        // What one pipeline declares holds for the next.
        + &pipeline("b", "SELECT id, name FROM records", BY_ID).replace("keyspace: ks", "keyspace: own")
        + &pipeline("c", "SELECT id, age AS name FROM records", BY_ID).replace("keyspace: ks", "keyspace: own")
        // Another namespace has Keyspaces of its own.
        + &pipeline("d", "SELECT id, age FROM records", "").replace("name: d", "name: d, namespace: x");
    insta::assert_snapshot!(said(&text));
}

#[test]
fn all_that_the_api_server_refuses_is_told_at_once() {
    let text = pipeline("A", "SELECT", "primaryKey: {}").replace("source:", "sorce:");
    let unknown = "---\napiVersion: millstream.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\n";
    insta::assert_snapshot!(said(&(text + unknown)));
}

#[test]
fn what_the_operator_refuses_has_its_place() {
    let text = pipeline("a", "SELECT id,\n          nam FROM records", BY_ID)
        + &pipeline("b", "SELECT id FROM records", "")
        + &pipeline("c", "SELECT id FROM records", BY_ID).replace("id UUID", "id UUIDD")
        + &pipeline("d", "SELECT id FROM records", BY_ID)
            .replace("spec:", "spec:\n  topic: {name: ..}")
        + &KEYSPACE.replace("[id]", "[nr]");
    insta::assert_snapshot!(said(&text));
}

#[test]
fn a_file_that_is_not_yaml_is_told_where() {
    let error = manifest::parse("kind: [\nname: x")
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("line 2"), "{error}");
    assert!(manifest::parse("---\n---\n").is_err());
}
