//! The users pipeline of the examples: every row that the API gave is in the table once, intact.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;
use millstream_api::{DataPipeline, condition::SUCCEEDED};
use millstream_e2e::{
    Apis, Data, Namespace, PATIENCE, await_condition, eventually, with_temp_namespace,
};
use scylla::value::CqlTimestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::example::root;
use crate::schedule::{SELDOM, run_now_of};

const USERS: &str = "users";
const SINK: &str = "created-users";

/// `examples/users/pipeline.yaml`, with its names made this test's own.
fn example(namespace: &Namespace, apis: &Apis<'_>) -> Result<Value> {
    example_of(namespace, apis, "pipeline.yaml")
}

fn example_of(namespace: &Namespace, apis: &Apis<'_>, file: &str) -> Result<Value> {
    let path = root().join("examples/users").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut pipeline: Value = serde_saphyr::from_str(&text)?;
    ensure!(pipeline["metadata"]["name"] == USERS && pipeline["spec"]["sinks"][0]["name"] == SINK);
    if let Some(metadata) = pipeline["metadata"].as_object_mut() {
        metadata.remove("namespace");
    }
    let spec = &mut pipeline["spec"];
    spec["source"]["http"]["url"] = apis.url("/api/").into();
    spec["topic"]["name"] = namespace.unique("users_created").into();
    spec["sinks"][0]["cassandra"]["keyspace"] = namespace.unique("spark_streams").into();
    Ok(pipeline)
}

fn text(record: &Value, pointer: &str) -> Option<String> {
    match record.pointer(pointer)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

pub fn uuid(record: &Value) -> Result<Uuid> {
    let id = text(record, "/login/uuid").context("a user has a uuid")?;
    Ok(id.parse()?)
}

/// The cells besides the id: as the system had them that this pipeline replaces.
fn cells(record: &Value) -> Vec<Option<String>> {
    let of = |pointer: &str| text(record, pointer);
    let address = ["street/number", "street/name", "city", "state", "country"]
        .map(|field| of(&format!("/location/{field}")).unwrap_or_default());
    let [number, street, city, state, country] = address;
    vec![
        of("/name/first"),
        of("/name/last"),
        of("/gender"),
        Some(format!("{number} {street}, {city}, {state}, {country}")),
        of("/location/postcode"),
        of("/email"),
        of("/login/username"),
        of("/registered/date"),
        of("/phone"),
        of("/picture/medium"),
    ]
}

type UserRow = (
    Uuid,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

/// The table's rows by id; an id is there once, because it is the key.
pub async fn rows(namespace: &Namespace) -> Result<BTreeMap<Uuid, Vec<Option<String>>>> {
    let cql = format!(
        "SELECT id, first_name, last_name, gender, address, post_code, email, username, \
         registered_date, phone, picture FROM {}.created_users",
        namespace.unique("spark_streams")
    );
    let rows = namespace
        .cassandra
        .select::<UserRow>(&cql)
        .await?
        .into_iter();
    Ok(rows
        .map(|(id, a, b, c, d, e, f, g, h, i, j)| (id, vec![a, b, c, d, e, f, g, h, i, j]))
        .collect())
}

pub fn expected(users: &[Value]) -> Result<BTreeMap<Uuid, Vec<Option<String>>>> {
    users
        .iter()
        .map(|user| Ok((uuid(user)?, cells(user))))
        .collect()
}

#[test]
fn the_example_becomes_ready_and_stores_all_that_the_api_gives() {
    with_temp_namespace("users", async |namespace| {
        let apis = Apis::start(namespace, Data::Generated(0)).await?;
        let pipeline = example(namespace, &apis)?;
        namespace.apply(&pipeline.to_string()).await?;
        let wait = [
            "wait",
            "--for=condition=Ready",
            "datapipeline/users",
            "--timeout=120s",
        ];
        namespace.kubectl(&wait).await?.ok()?;
        eventually(PATIENCE, async || {
            let rows = rows(namespace).await?.len();
            ensure!(rows >= 300, "{rows} rows");
            Ok(())
        })
        .await?;
        // From here on it gives no more.
        apis.faults(json!({"kind": "500", "rate": 1.0})).await?;
        let topic = namespace.unique("users_created");
        let ids = eventually(PATIENCE, async || {
            let (count, ids) = apis.sent("api").await?;
            let records = namespace.kafka.records(&topic)?;
            ensure!(
                records == i64::try_from(count)?,
                "of {count} records {records} are in the topic"
            );
            Ok(ids)
        })
        .await?;
        namespace.drained(USERS, SINK, &topic, PATIENCE).await?;
        let ids: BTreeSet<Uuid> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let stored: BTreeSet<Uuid> = rows(namespace).await?.into_keys().collect();
        assert_eq!(stored, ids);

        let again = apis.faults(Value::Null);
        again.await?;
        eventually(PATIENCE, async || {
            let rows = rows(namespace).await?.len();
            ensure!(
                rows > stored.len(),
                "no row since the API gives records again"
            );
            Ok(())
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_run_of_the_scheduled_example_stores_all_that_the_api_gave_in_its_time() {
    with_temp_namespace("users-runs", async |namespace| {
        let apis = Apis::start(namespace, Data::Generated(0)).await?;
        let mut pipeline = example_of(namespace, &apis, "scheduled/pipeline.yaml")?;
        let schedule = &mut pipeline["spec"]["schedule"];
        ensure!(
            schedule["runFor"] == "1m",
            "it is polled for a minute: {schedule}"
        );
        // Shorter; and as seldom as can be, because this test asks for its run.
        schedule["runFor"] = "25s".into();
        schedule["cron"] = SELDOM.into();
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(USERS).await?;
        run_now_of(namespace, USERS, "1").await?;
        let topic = namespace.unique("users_created");
        namespace.filled(&topic, 300).await?;
        // From here on it gives no more: no answer is on its way when the time is over.
        apis.faults(json!({"kind": "500", "rate": 1.0})).await?;
        let pipelines = namespace.api::<DataPipeline>();
        let done = await_condition(&pipelines, USERS, SUCCEEDED, PATIENCE).await?;
        let run = done.status.and_then(|status| status.last_run);
        let run = run.context("the run that has succeeded")?;
        let (sent, ids) = apis.sent("api").await?;
        let sent = i64::try_from(sent)?;
        assert_eq!((run.records, run.dead_lettered), (Some(sent), Some(0)));
        assert_eq!(
            (run.sinks[0].name.as_str(), run.sinks[0].rows),
            (SINK, sent)
        );
        let ids: BTreeSet<Uuid> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let stored: BTreeSet<Uuid> = rows(namespace).await?.into_keys().collect();
        assert_eq!(stored, ids);
        let ingest = namespace
            .api::<Deployment>()
            .get_opt("users-ingest")
            .await?;
        assert!(ingest.is_none(), "nobody polls between the runs");
        Ok(())
    });
}

#[test]
fn every_cell_is_as_the_api_gave_it() {
    with_temp_namespace("users", async |namespace| {
        let apis = Apis::start(namespace, Data::Generated(0)).await?;
        let mut pipeline = example(namespace, &apis)?;
        let http = &mut pipeline["spec"]["source"]["http"];
        http["query"] = json!({"results": "1000", "seed": "e2e"});
        http["poll"] = Value::Null;
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(USERS).await?;
        let topic = namespace.unique("users_created");
        eventually(PATIENCE, async || {
            let records = namespace.kafka.records(&topic)?;
            ensure!(records == 1000, "{records} records");
            Ok(())
        })
        .await?;
        namespace.drained(USERS, SINK, &topic, PATIENCE).await?;
        let answer = apis.get("/api/?results=1000&seed=e2e").await?;
        let expected = expected(answer["results"].as_array().context("results")?)?;
        assert_eq!(expected.len(), 1000);
        assert!(
            expected
                .values()
                .flatten()
                .flatten()
                .any(|cell| !cell.is_ascii()),
            "non-ASCII cells"
        );
        assert_eq!(rows(namespace).await?, expected);
        Ok(())
    });
}

/// Records of randomuser.me, which aren't part of this project.
pub fn recorded() -> Option<Vec<Value>> {
    let folder = root().join("../shared/data");
    let mut users = Vec::new();
    for file in [
        "randomuser_api_response_111.json",
        "randomuser_api_response_200.json",
    ] {
        let text = std::fs::read_to_string(folder.join(file)).ok()?;
        let mut answer: Value = serde_json::from_str(&text).expect("an answer is JSON");
        users.append(
            answer["results"]
                .as_array_mut()
                .expect("an answer has results"),
        );
    }
    Some(users)
}

/// Two sinks over one topic: the table of the example, and one with nulls, numbers and times.
fn recorded_pipeline(namespace: &Namespace, apis: &Apis<'_>, count: usize) -> Result<Value> {
    let mut pipeline = example(namespace, apis)?;
    let spec = &mut pipeline["spec"];
    spec["source"] = json!({"http": {
        "url": apis.url("/api/"), "query": {"results": count.to_string()}, "records": "/results",
    }});
    spec["schema"] = "
        gender TEXT,
        name STRUCT<first TEXT, last TEXT>,
        location STRUCT<street STRUCT<number INT, name TEXT>, city TEXT, state TEXT, country TEXT, postcode TEXT>,
        email TEXT,
        login STRUCT<uuid UUID, username TEXT>,
        dob STRUCT<date TIMESTAMP, age INT>,
        registered STRUCT<date TEXT>,
        phone TEXT,
        id STRUCT<name TEXT, value TEXT>,
        picture STRUCT<large TEXT, medium TEXT, thumbnail TEXT>"
        .into();
    let documents = json!({
        "name": "documents",
        "sql": "SELECT login.uuid AS id, dob.age AS age, dob.date AS born, id.name AS kind, id.value AS number FROM records",
        "cassandra": {
            "keyspace": namespace.unique("spark_streams"), "table": "documents",
            "primaryKey": {"partitionKey": ["id"]},
        },
    });
    spec["sinks"]
        .as_array_mut()
        .context("sinks")?
        .push(documents);
    Ok(pipeline)
}

#[test]
fn recorded_users_are_in_the_tables_once_and_intact() {
    with_temp_namespace("recorded", async |namespace| {
        let Some(users) = recorded() else {
            println!("skipped: no recorded data");
            return Ok(());
        };
        let answer = json!({"results": users}).to_string();
        let apis = Apis::start(namespace, Data::Recorded(&answer)).await?;
        let pipeline = recorded_pipeline(namespace, &apis, users.len())?;
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(USERS).await?;
        let topic = namespace.unique("users_created");
        eventually(PATIENCE, async || {
            let records = namespace.kafka.records(&topic)?;
            ensure!(records == i64::try_from(users.len())?, "{records} records");
            Ok(())
        })
        .await?;
        for sink in [SINK, "documents"] {
            namespace.drained(USERS, sink, &topic, PATIENCE).await?;
        }
        let expected = expected(&users)?;
        assert_eq!(expected.len(), users.len(), "the recorded ids are distinct");
        assert!(
            expected
                .values()
                .flatten()
                .flatten()
                .any(|cell| !cell.is_ascii()),
            "non-ASCII cells"
        );
        assert_eq!(rows(namespace).await?, expected);

        type Document = (
            Uuid,
            Option<i32>,
            Option<CqlTimestamp>,
            Option<String>,
            Option<String>,
        );
        let cql = format!(
            "SELECT id, age, born, kind, number FROM {}.documents",
            namespace.unique("spark_streams")
        );
        let stored = namespace.cassandra.select::<Document>(&cql).await?;
        let stored: BTreeMap<_, _> = stored.into_iter().map(|row| (row.0, row)).collect();
        let documents = users.iter().map(|user| {
            let age = user["dob"]["age"].as_i64().map(i32::try_from).transpose()?;
            let born: Timestamp = text_of(user, "/dob/date")?.parse()?;
            let born = Some(CqlTimestamp(born.as_millisecond()));
            Ok((
                uuid(user)?,
                (
                    uuid(user)?,
                    age,
                    born,
                    text(user, "/id/name"),
                    text(user, "/id/value"),
                ),
            ))
        });
        let documents = documents.collect::<Result<BTreeMap<_, _>>>()?;
        let nulls = documents
            .values()
            .filter(|document| document.4.is_none())
            .count();
        assert!(nulls > 0, "there are nulls among the recorded values");
        assert_eq!(stored, documents);
        Ok(())
    });
}

fn text_of(record: &Value, pointer: &str) -> Result<String> {
    text(record, pointer).with_context(|| format!("a user has {pointer}"))
}
