//! The licences of the examples: all rows of a paged API, through a cache, are in the tables and the
//! collection, as an independent computation on the same records has them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::civil;
use k8s_openapi::jiff::tz::TimeZone;
use millstream_e2e::{Apis, Data, Documents, Namespace, with_temp_namespace};
use mongodb::bson::{Bson, DateTime};
use scylla::value::CqlTimestamp;
use serde_json::{Value, json};

use crate::example::{self, root};

const PIPELINE: &str = "licenses";
const RECORDED: &str = "../shared/data/nyc_dca_businesses.soda.deid.jsonl.gz";
/// Where nothing recorded is at hand.
const GENERATED: u64 = 2_000;
/// What isn't served of what is recorded, as all of it doesn't fit into a ConfigMap: texts, of which
/// there are enough others, and what isn't in the schema.
const LEFT_OUT: [&str; 7] = [
    "community_board",
    "council_district",
    "bin",
    "bbl",
    "nta",
    "census_tract",
    "location",
];
const TEXTS: [&str; 22] = [
    "license_nbr",
    "license_type",
    "license_status",
    "industry",
    "business_name",
    "business_name_2",
    "detail",
    "address_building",
    "address_street_name",
    "address_street_name_2",
    "address_city",
    "address_state",
    "address_zip",
    "contact_phone",
    "address_borough",
    "borough_code",
    "community_board",
    "council_district",
    "bin",
    "bbl",
    "nta",
    "census_tract",
];
const TIMES: [&str; 2] = ["lic_expir_dd", "license_creation_date"];
const NUMBERS: [&str; 2] = ["longitude", "latitude"];

/// The recorded licences, but for what is left out.
fn recorded() -> Result<Option<Vec<Value>>> {
    let Ok(file) = std::fs::File::open(root().join(RECORDED)) else {
        return Ok(None);
    };
    let lines = serde_json::Deserializer::from_reader(flate2::read::GzDecoder::new(file));
    let mut records = lines.into_iter().collect::<Result<Vec<Value>, _>>()?;
    for fields in records.iter_mut().filter_map(Value::as_object_mut) {
        fields.retain(|name, _| !LEFT_OUT.contains(&name.as_str()));
    }
    Ok(Some(records))
}

/// The server, and what it serves.
async fn serve(namespace: &Namespace) -> Result<(Apis<'_>, Vec<Value>)> {
    let Some(records) = recorded()? else {
        let apis = Apis::start(namespace, Data::Generated(GENERATED)).await?;
        let answer = apis
            .get(&format!("/resource/w7w3-xahh.json?$limit={GENERATED}"))
            .await?;
        let records = answer.as_array().context("an array")?.clone();
        return Ok((apis, records));
    };
    let text = json!(records).to_string();
    let apis = Apis::start(namespace, Data::Recorded(&text)).await?;
    Ok((apis, records))
}

/// The example's pipeline with addresses and names of this test's own, and its Secret.
fn manifests(namespace: &Namespace, apis: &Apis<'_>) -> Result<(Value, Value)> {
    let inside = &namespace.environment.in_cluster;
    let mut pipeline = example::pipeline(namespace, PIPELINE)?;
    let http = &mut pipeline["spec"]["source"]["http"];
    http["url"] = apis.url("/resource/w7w3-xahh.json").into();
    let redis = &mut http["cache"]["redis"];
    redis["address"] = inside.redis.as_str().into();
    redis["keyPrefix"] = namespace.unique("licenses:").into();
    redis["recordTtl"] = "1h".into();
    let document = pipeline
        .pointer_mut("/spec/sinks/2/document")
        .context("the third sink is of documents")?;
    document["database"] = namespace.unique("nyc").into();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": document["connectionSecret"]["name"]},
        "stringData": {"uri": format!("mongodb://{}/", inside.documents)},
    });
    Ok((pipeline, secret))
}

/// Milliseconds since 1970 of a time without a zone, which is UTC.
fn millis(text: &str) -> Result<i64> {
    let time: civil::DateTime = text.parse()?;
    Ok(time.to_zoned(TimeZone::UTC)?.timestamp().as_millisecond())
}

/// What the document of a licence has to hold, but for its version.
fn document(record: &Value) -> Result<BTreeMap<String, Bson>> {
    let mut fields = BTreeMap::new();
    fields.insert("_id".to_owned(), record["license_nbr"].as_str().into());
    for (name, value) in record.as_object().context("a record is an object")? {
        let text = value.as_str();
        let number = value.as_f64().or(text.and_then(|text| text.parse().ok()));
        let value = match name.as_str() {
            name if TEXTS.contains(&name) => text.into(),
            name if TIMES.contains(&name) => {
                DateTime::from_millis(millis(text.context("a time is a text")?)?).into()
            }
            name if NUMBERS.contains(&name) => number.into(),
            "location" => continue,
            other => bail!("`{other}` isn't known here"),
        };
        fields.insert(name.clone(), value);
    }
    Ok(fields)
}

async fn assert_documents(documents: &Documents, records: &[Value]) -> Result<()> {
    let mut stored = BTreeMap::new();
    for document in documents.all(PIPELINE).await? {
        let mut fields: BTreeMap<String, Bson> = document.into_iter().collect();
        let version = fields.remove("_version");
        assert!(matches!(version, Some(Bson::Int64(1..))), "{version:?}");
        let id = fields["_id"].as_str().context("an id")?.to_owned();
        stored.insert(id, fields);
    }
    let mut expected = BTreeMap::new();
    for record in records {
        let fields = document(record)?;
        expected.insert(
            fields["license_nbr"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            fields,
        );
    }
    assert_eq!(stored.len(), expected.len());
    for (id, fields) in expected {
        assert_eq!(stored.get(&id), Some(&fields), "{id}");
    }
    Ok(())
}

type Row = (
    String,
    Option<String>,
    Option<CqlTimestamp>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<f64>,
);

async fn assert_rows(namespace: &Namespace, records: &[Value]) -> Result<()> {
    let keyspace = namespace.unique("nyc");
    let cql = format!(
        "SELECT license_nbr, business_name, lic_expir_dd, contact_phone, license_status, \
         business_name_2, detail, latitude FROM {keyspace}.licenses"
    );
    let rows = namespace.cassandra.select::<Row>(&cql).await?;
    let stored: BTreeMap<String, Row> = rows.into_iter().map(|row| (row.0.clone(), row)).collect();
    let mut expected = BTreeMap::new();
    for record in records {
        let text = |name: &str| record[name].as_str().map(str::to_owned);
        let number = text("license_nbr").context("a licence has a number")?;
        let expires = text("lic_expir_dd").map(|text| millis(&text)).transpose()?;
        let fields = document(record)?;
        let row = (
            number.clone(),
            text("business_name"),
            expires.map(CqlTimestamp),
            text("contact_phone"),
            text("license_status"),
            text("business_name_2"),
            text("detail"),
            fields.get("latitude").and_then(Bson::as_f64),
        );
        expected.insert(number, row);
    }
    assert_eq!(stored.len(), expected.len());
    for (number, row) in &expected {
        assert_eq!(stored.get(number), Some(row));
    }

    let active = records.iter().filter(|record| {
        record["license_status"] == "Active" && record["address_borough"].is_string()
    });
    let active: BTreeSet<(String, String)> = active
        .filter_map(|record| {
            let text = |name: &str| record[name].as_str().map(str::to_owned);
            Some((text("address_borough")?, text("license_nbr")?))
        })
        .collect();
    let cql = format!("SELECT borough, license_nbr FROM {keyspace}.active_by_borough");
    let stored = namespace.cassandra.select(&cql).await?;
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), active);
    Ok(())
}

#[test]
fn licences_come_by_pages_and_are_rows_and_documents() {
    with_temp_namespace(PIPELINE, async |namespace| {
        let (apis, records) = serve(namespace).await?;
        let (pipeline, secret) = manifests(namespace, &apis)?;
        let database = namespace.unique("nyc");
        let documents = Documents::of(&namespace.environment, &database).await?;
        namespace.apply(&secret.to_string()).await?;
        namespace.apply(&pipeline.to_string()).await?;
        namespace.ready(PIPELINE).await?;
        example::stored(namespace, &pipeline, records.len()).await?;
        assert_rows(namespace, &records).await?;
        assert_documents(&documents, &records).await?;

        // Another run within the hour makes no request to the API.
        let (sent, _) = apis.sent("resource").await?;
        let mut again = pipeline;
        let name = "licenses-again";
        again["metadata"]["name"] = name.into();
        again["spec"]["topic"]["name"] = namespace.unique(name).into();
        again["spec"]["sinks"]
            .as_array_mut()
            .context("sinks")?
            .truncate(1);
        namespace.apply(&again.to_string()).await?;
        example::stored(namespace, &again, records.len()).await?;
        assert_eq!(apis.sent("resource").await?.0, sent);
        documents.drop().await
    });
}
