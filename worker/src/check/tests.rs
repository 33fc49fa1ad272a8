use super::*;

fn said(text: &str) -> String {
    let findings = check(manifest::parse(text).unwrap());
    let lines = findings.iter().map(|finding| match &finding.verdict {
        Ok(summary) => format!("{}: ok: {summary}", finding.resource),
        Err(problems) => format!("{}: {}", finding.resource, problems.join("\n    ")),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Every one of these is said.
fn assert_says(said: &str, words: &[&str]) {
    for words in words {
        assert!(said.contains(words), "{words:?} isn't in\n{said}");
    }
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

fn topic(metadata: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: millstream.dev/v1alpha1
kind: Topic
metadata: {{{metadata}}}
spec: {{{spec}}}
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
        + &topic("name: b", "");
    insta::assert_snapshot!(said(&text), @r"
    DataPipeline/a: ok: topic a by /id; s → ks.t
    Secret/s: ok: not Millstream's, not looked at
    Keyspace/others: ok: keyspace others with 1 table
    Topic/b: ok: topic b
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
    assert_says(
        &said(&text),
        &[
            "DataPipeline/a: InvalidSQL: sink `s`, line 1, column 12: column `age` is BIGINT",
            "Keyspace/ks: ok",
            "DataPipeline/b: ok",
            "DataPipeline/c: InvalidSQL: sink `s`: column `name` of table t is `bigint` here and `text`",
            "DataPipeline/d: InvalidSpec: sink `s`: no Keyspace of this namespace declares table ks.t",
        ],
    );
}

#[test]
fn a_keyspace_is_in_one_cassandra() {
    let at = |text: &str, server: &str| {
        let spec = format!("spec:\n  cassandra: {{contactPoints: [{server}]}}");
        text.replacen("spec:", &spec, 1)
    };
    let of = |name: &str| pipeline(name, "SELECT id FROM records", BY_ID);
    let person = KEYSPACE.replace("type: int", "type: bigint");
    let refused =
        "ResourceConflict: Keyspace `ks` is of the Cassandra at a, and the pipeline of that at b";
    // Of a person, and of the pipeline before.
    for beside in [at(&person, "a"), at(&of("first"), "a")] {
        let text = |server| beside.clone() + &at(&of("second"), server);
        assert_says(
            &said(&text("b")),
            &[&format!("DataPipeline/second: {refused}")],
        );
        assert_says(&said(&text("a, b")), &["DataPipeline/second: ok"]);
        // The operator's own may be any.
        let text = beside.clone() + &of("second");
        assert_says(&said(&text), &["DataPipeline/second: ok"]);
    }
    // The operator moves one that it made for this pipeline alone.
    let owner = "{apiVersion: millstream.dev/v1alpha1, kind: DataPipeline, name: second, uid: u}";
    let named = format!("metadata: {{name: ks, ownerReferences: [{owner}]}}");
    let made = at(&person, "a").replacen("metadata: {name: ks}", &named, 1);
    let second = at(&of("second"), "b").replacen("{name: second}", "{name: second, uid: u}", 1);
    assert_says(&said(&(made + &second)), &["DataPipeline/second: ok"]);
}

#[test]
fn what_one_claims_no_other_gets() {
    let of = |name: &str| pipeline(name, "SELECT id FROM records", BY_ID);
    let elsewhere = |text: &str| text.replacen("metadata: {", "metadata: {namespace: x, ", 1);
    let keyspace = |name: &str, claims: &str| {
        let named = KEYSPACE.replacen("name: ks", &format!("name: {name}"), 1);
        named.replacen("spec:", &format!("spec:\n  keyspaceName: {claims}"), 1)
    };
    let kafka = |servers: &str| format!("topicName: a, kafka: {{bootstrapServers: '{servers}'}}");
    for (beside, says) in [
        // The names of Topics, wherever they are in the files.
        (
            topic("name: a", ""),
            "DataPipeline/a: ResourceConflict: Topic `a` exists and doesn't belong to this pipeline",
        ),
        (
            topic("name: a-dead-letter", "topicName: t"),
            "DataPipeline/a: ResourceConflict: Topic `a-dead-letter` exists",
        ),
        (
            of("a-dead-letter"),
            "DataPipeline/a-dead-letter: ResourceConflict: Topic `a-dead-letter` exists",
        ),
        // Topics of one Kafka, in all namespaces.
        (
            topic("name: t", "topicName: a"),
            "Topic/t: ResourceConflict: DataPipeline a claims the topic `a` of this Kafka too: give this one another topic name",
        ),
        (
            topic("name: a.dead-letter", ""),
            "Topic/a.dead-letter: ResourceConflict: DataPipeline a claims the topic `a.dead-letter`",
        ),
        (
            elsewhere(&topic("name: a", "")),
            "Topic/a: ResourceConflict: DataPipeline a claims the topic `a`",
        ),
        (
            of("b").replacen("spec:", "spec:\n  topic: {name: a}", 1),
            "DataPipeline/b: ResourceConflict: DataPipeline a claims the topic `a`",
        ),
        (
            topic("name: t", &kafka("k:1,k:2")) + &topic("name: u", &kafka("k:2")),
            "Topic/u: ResourceConflict: Topic t claims the topic `a`",
        ),
        // Keyspaces of one Cassandra, in all namespaces.
        (
            elsewhere(&of("b")),
            "DataPipeline/b: ResourceConflict: Keyspace ks claims the keyspace `ks` of this Cassandra too: declare the tables in that one",
        ),
        (
            elsewhere(&keyspace("k", "ks")),
            "Keyspace/k: ResourceConflict: Keyspace ks claims the keyspace `ks`",
        ),
        (
            keyspace("k", "ks") + &keyspace("l", "ks"),
            "Keyspace/l: ResourceConflict: Keyspace k claims the keyspace `ks`",
        ),
        (
            keyspace("ks", "others"),
            "DataPipeline/a: ResourceConflict: the pipeline needs a Keyspace for `ks`, and its name `ks` is taken by one for `others`",
        ),
    ] {
        assert_says(&said(&(of("a") + &beside)), &[says]);
    }
    let made_by_a = "name: a, ownerReferences: [{apiVersion: millstream.dev/v1alpha1, kind: DataPipeline, name: a, uid: u, controller: true}]";
    for beside in [
        // As `kubectl get millstream -o yaml` gives it.
        topic(made_by_a, ""),
        // A file that is given twice.
        of("a"),
        // Another Kafka, as far as can be known.
        topic("name: t", &kafka("k:1")),
        // Pipelines of one namespace share a Keyspace, made by them or by a person.
        of("b"),
        keyspace("k", "ks"),
    ] {
        let said = said(&(of("a") + &beside));
        let ok = said.lines().all(|line| line.contains(": ok: "));
        assert!(ok, "{said}");
    }
}

#[test]
fn all_that_the_api_server_refuses_is_told_at_once() {
    let text = pipeline("A", "SELECT", "primaryKey: {}").replace("source:", "sorce:");
    let unknown = "---\napiVersion: millstream.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\n";
    assert_says(
        &said(&(text + unknown)),
        &[
            "metadata.name: `A` can't be a name",
            "spec.source: is required",
            "spec.sorce: unknown field; there are",
            "spec.sinks[0].cassandra.primaryKey.partitionKey: is required",
            "Pipeline/p: kind: `Pipeline` is none of DataPipeline, Topic, Keyspace",
        ],
    );
}

#[test]
fn what_the_operator_refuses_has_its_place() {
    let text = pipeline("a", "SELECT id,\n          nam FROM records", BY_ID)
        + &pipeline("b", "SELECT id FROM records", "")
        + &pipeline("c", "SELECT id FROM records", BY_ID).replace("id UUID", "id UUIDD")
        + &pipeline("d", "SELECT id FROM records", BY_ID)
            .replace("spec:", "spec:\n  topic: {name: ..}")
        + &pipeline("e", "SELECT id FROM records", BY_ID)
            .replace("keyspace: ks", "keyspace: system_x")
        + &KEYSPACE.replace("[id]", "[nr]");
    assert_says(
        &said(&text),
        &[
            "DataPipeline/a: InvalidSQL: sink `s`, line 2, column 3: no column `nam`",
            "DataPipeline/b: InvalidSQL: sink `s`: table ks.t has `nr` in its primary key",
            "DataPipeline/c: InvalidSQL: schema, line 1, column 4: `UUIDD` is not a type",
            "DataPipeline/d: InvalidSpec: `..` can't be a topic's name",
            "DataPipeline/e: InvalidSpec: keyspace `system_x` is Cassandra's own",
            "Keyspace/ks: InvalidSpec: spec.tables[t].primaryKey names `nr`",
        ],
    );
}

#[test]
fn a_list_is_what_is_in_it() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: millstream.dev/v1alpha1\n  kind: Topic\n  metadata: {name: a}\n  spec: {}\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: s}\n";
    insta::assert_snapshot!(said(list), @r"
    Topic/a: ok: topic a
    Secret/s: ok: not Millstream's, not looked at
    ");
}

#[test]
fn what_is_no_resource_is_told_so() {
    assert_says(
        &said("- 1\n---\nmetadata: {name: a}\n"),
        &[
            "?/?: it isn't a resource: one has apiVersion, kind, metadata and spec",
            "?/a: kind: is required: one of DataPipeline, Topic, Keyspace",
        ],
    );
}

#[test]
fn a_folder_stands_for_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let empty = manifest::read(std::slice::from_ref(&path)).err().unwrap();
    assert!(empty.to_string().contains("there is no .yaml"), "{empty}");
    let fits = pipeline("a", "SELECT id, CAST(age AS INT) AS age FROM records", "");
    for (name, text) in [
        ("b.yaml", &*fits),
        ("a.yml", KEYSPACE),
        ("notes.md", "# no YAML"),
    ] {
        std::fs::write(path.join(name), text).unwrap();
    }
    let findings = check(manifest::read(&[path]).unwrap());
    let names: Vec<_> = findings
        .iter()
        .map(|finding| finding.resource.as_str())
        .collect();
    assert_eq!(names, ["Keyspace/ks", "DataPipeline/a"]);
    assert!(
        findings.iter().all(|finding| finding.verdict.is_ok()),
        "{findings:?}"
    );
}

#[test]
fn a_file_that_is_not_yaml_is_told_where() {
    let error = manifest::parse("kind: [\nname: x")
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("line"), "{error}");
    assert!(manifest::parse("---\n---\n").is_err());
}
