//! The Avro pipeline of the examples: records are Avro of the registered schema, and each user is in
//! the tables that its route leads to, intact.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use millstream_e2e::{Apis, Data, Namespace, with_temp_namespace};
use rdkafka::Message;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{example, users};

const PIPELINE: &str = "users-avro";
/// So many are generated where none are recorded.
const GENERATED: usize = 1000;

/// A row of a route: country, id, name and age.
type Routed = (String, Uuid, String, i32);

/// What the tables of the routes have to hold.
fn routed(users: &[Value], goes: impl Fn(i64) -> bool) -> Result<BTreeSet<Routed>> {
    let mut rows = BTreeSet::new();
    for user in users {
        let text = |pointer: &str| {
            let value = user.pointer(pointer).and_then(Value::as_str);
            value.with_context(|| format!("{pointer} of {user}"))
        };
        let age = user["dob"]["age"].as_i64().context("an age")?;
        if goes(age) {
            let name = format!("{} {}", text("/name/first")?, text("/name/last")?);
            let country = text("/location/country")?.to_owned();
            rows.insert((country, users::uuid(user)?, name, age.try_into()?));
        }
    }
    Ok(rows)
}

async fn rows(namespace: &Namespace, table: &str) -> Result<BTreeSet<Routed>> {
    let keyspace = namespace.unique("spark_streams");
    let cql = format!("SELECT country, id, name, age FROM {keyspace}.{table}");
    let rows = namespace.cassandra.select::<Routed>(&cql).await?;
    Ok(rows.into_iter().collect())
}

/// The id under which the registry has the topic's schema.
async fn registered(namespace: &Namespace, topic: &str) -> Result<u32> {
    let registry = &namespace.environment.addresses.registry;
    let url = format!("{registry}/subjects/{topic}-value/versions/latest");
    let answer = reqwest::get(&url).await?.error_for_status()?;
    let schema: Value = serde_json::from_str(&answer.text().await?)?;
    let id = schema["id"].as_u64().context("the schema's id")?;
    Ok(id.try_into()?)
}

#[test]
fn users_go_through_kafka_as_avro_and_into_the_tables_of_their_routes() {
    with_temp_namespace(PIPELINE, async |namespace| {
        let recorded = users::recorded();
        let count = recorded.as_ref().map_or(GENERATED, Vec::len);
        let answer = recorded.map(|users| json!({"results": users}).to_string());
        let data = answer.as_deref().map_or(Data::Generated(0), Data::Recorded);
        let apis = Apis::start(namespace, data).await?;
        let mut pipeline = example::pipeline(namespace, PIPELINE)?;
        let http = &mut pipeline["spec"]["source"]["http"];
        http["url"] = apis.url("/api/").into();
        http["query"] = json!({"results": count.to_string(), "seed": "e2e"});
        http["poll"] = Value::Null;
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(PIPELINE).await?;
        example::stored(namespace, &pipeline, count).await?;

        // The wire format: a zero byte, the schema's id, and no JSON behind it.
        let topic = namespace.unique("user_data_topic");
        let id = registered(namespace, &topic).await?;
        for record in namespace.kafka.consume(&topic)? {
            let value = record.payload().context("a value")?;
            ensure!(value.first() == Some(&0) && value.get(1..5) == Some(&id.to_be_bytes()[..]));
            ensure!(serde_json::from_slice::<Value>(&value[5..]).is_err());
        }

        let path = format!("/api/?results={count}&seed=e2e");
        let served = apis.get(&path).await?;
        let users = served["results"].as_array().context("results")?;
        ensure!(users.len() == count, "{} users are served", users.len());
        assert_eq!(users::rows(namespace).await?, users::expected(users)?);
        let (seniors, juniors) = (
            routed(users, |age| age >= 65)?,
            routed(users, |age| age < 65)?,
        );
        ensure!(!seniors.is_empty() && !juniors.is_empty());
        assert_eq!(rows(namespace, "seniors").await?, seniors);
        assert_eq!(rows(namespace, "juniors").await?, juniors);
        Ok(())
    });
}
