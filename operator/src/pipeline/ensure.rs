//! Sees to it that a child is as it must be, and writes only where it isn't.

use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use millstream_api::DataPipeline;
use millstream_plan::claim::name_conflict;
use serde_json::{Value, json};

use super::children::hash;
use crate::{
    context::{Context, Kind, MANAGER},
    controller::namespace,
    error::Error,
    metrics::System,
};

/// Annotation with the hash of what was last applied: it tells when something was taken out.
const APPLIED: &str = "millstream.dev/applied-hash";

/// Applies a child that belongs to the pipeline alone, if it isn't there as it must be. True where
/// it was applied: what is known of the child is older than that, and says nothing about it.
pub async fn ensure<K: Kind>(
    pipeline: &DataPipeline,
    context: &Context,
    live: Option<&K>,
    desired: Value,
) -> Result<bool, Error> {
    match live {
        Some(live) => check_owner(pipeline, live)?,
        None => check_unknown::<K>(pipeline, context, &desired).await?,
    }
    ensure_part(pipeline, context, live, desired, MANAGER, APPLIED).await
}

/// What is watched lacks what somebody else made, and what can't be read: before a child is made it is
/// asked for.
async fn check_unknown<K: Kind>(
    pipeline: &DataPipeline,
    context: &Context,
    desired: &Value,
) -> Result<(), Error> {
    let name = desired["metadata"]["name"].as_str().unwrap_or_default();
    let api = context.api::<K>(&namespace(pipeline));
    match api.get_metadata_opt(name).await? {
        Some(there) => check_owner(pipeline, &there),
        None => Ok(()),
    }
}

/// Applies the pipeline's part of an object that others have a part in. True where it was applied.
pub async fn ensure_part<K: Kind>(
    pipeline: &DataPipeline,
    context: &Context,
    live: Option<&K>,
    mut desired: Value,
    manager: &str,
    annotation: &str,
) -> Result<bool, Error> {
    let hash = hash(&desired.to_string());
    desired["metadata"]["annotations"][annotation] = json!(hash);
    if let Some(live) = live {
        let live =
            serde_json::to_value(live).map_err(|error| Error::Internal(error.to_string()))?;
        if includes(&live, &desired) {
            return Ok(false);
        }
    }
    context
        .apply::<K>(&namespace(pipeline), manager, &desired)
        .await?;
    Ok(true)
}

/// Deletes an object, if it is there and the pipeline's.
pub async fn delete<K: Kind>(
    pipeline: &DataPipeline,
    context: &Context,
    name: &str,
    how: DeleteParams,
) -> Result<(), Error> {
    let api = context.api::<K>(&namespace(pipeline));
    let Some(live) = api.get_opt(name).await? else {
        return Ok(());
    };
    if check_owner(pipeline, &live).is_err() || live.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let this_one = Preconditions {
        uid: live.uid(),
        resource_version: None,
    };
    context.metrics.wrote(System::Kubernetes);
    match api.delete(name, &how.preconditions(this_one)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Refuses to take over what somebody else made under the same name.
pub fn check_owner<K: Kind>(pipeline: &DataPipeline, live: &K) -> Result<(), Error> {
    let kind = K::kind(&());
    let name = live.name_any();
    let owner = live
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true));
    match owner {
        Some(owner) if Some(&owner.uid) == pipeline.meta().uid.as_ref() => Ok(()),
        Some(owner)
            if owner.name == pipeline.name_any() && owner.kind == DataPipeline::kind(&()) =>
        {
            Err(Error::Waiting(format!(
                "{kind} `{name}` of the deleted pipeline of the same name is still being removed"
            )))
        }
        _ => Err(name_conflict(&kind, &name).into()),
    }
}

/// Whether an object has everything that is wanted; it may have more.
pub fn includes(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| match live.get(key) {
                Some(live) => includes(live, wanted),
                None => false,
            })
        }
        // Lists of objects are maps by name or uid: others may have put in more.
        (Value::Array(live), Value::Array(wanted)) if wanted.iter().all(Value::is_object) => wanted
            .iter()
            .all(|wanted| live.iter().any(|live| includes(live, wanted))),
        (Value::String(live), Value::String(wanted)) => {
            live == wanted || quantity(live).is_some() && quantity(live) == quantity(wanted)
        }
        (live, wanted) => live == wanted,
    }
}

/// A quantity such as `1500m` or `2Gi`: the API server writes them its own way.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "T" => 1e12,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    Some((number * factor * 1e3).round())
}

/// A quantity of bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let bytes = quantity(text)? / 1e3;
    (bytes >= 1.0).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
    use kube::core::{PartialObjectMeta, PartialObjectMetaExt};
    use millstream_api::condition::reason;

    use super::*;

    #[test]
    fn what_somebody_else_made_is_not_taken_over() {
        let orders = |uid: &str| -> DataPipeline {
            let yaml = format!(
                "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {{name: orders, namespace: shop, uid: {uid}}}
spec: {{source: {{generator: {{}}}}, schema: id UUID, sinks: []}}
"
            );
            serde_saphyr::from_str(&yaml).unwrap()
        };
        // As the API server tells of an object of which just the metadata is asked for.
        let of = |owner: Option<&DataPipeline>| -> PartialObjectMeta<ConfigMap> {
            let meta = ObjectMeta {
                name: Some("orders-process".into()),
                owner_references: owner
                    .and_then(|owner| owner.controller_owner_ref(&()))
                    .map(|owner| vec![owner]),
                ..ObjectMeta::default()
            };
            meta.into_response_partial()
        };
        let mine = orders("mine");
        check_owner(&mine, &of(Some(&mine))).unwrap();
        let error = check_owner(&mine, &of(Some(&orders("former")))).unwrap_err();
        assert_eq!(error.reason(), reason::WAITING);
        let error = check_owner(&mine, &of(None)).unwrap_err();
        let says = "ConfigMap `orders-process` exists and doesn't belong to this pipeline";
        assert!(error.to_string().starts_with(says), "{error}");
    }

    #[test]
    fn more_is_fine_and_less_or_other_is_not() {
        let live = json!({
            "spec": {"replicas": 2, "defaulted": true},
            "list": [{"name": "a", "x": 1, "y": 2}, {"name": "b"}],
            "args": ["run", "fast"],
            "cpu": "1500m", "memory": "1Gi",
        });
        for (wanted, there) in [
            (json!({"spec": {"replicas": 2}}), true),
            (json!({"spec": {"replicas": 3}}), false),
            (json!({"list": [{"name": "a", "x": 1}]}), true),
            (json!({"list": [{"name": "c"}]}), false),
            (json!({"args": ["run"]}), false),
            (json!({"cpu": "1.5", "memory": "1024Mi"}), true),
            (json!({"cpu": "2"}), false),
            (json!({"absent": 1}), false),
        ] {
            assert_eq!(includes(&live, &wanted), there, "{wanted}");
        }
    }

    #[test]
    fn bytes_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("512Mi", Some(512 << 20)),
            ("1.5Gi", Some(1536 << 20)),
            ("2Ti", Some(2 << 40)),
            ("500M", Some(500_000_000)),
            ("1e9", Some(1_000_000_000)),
            ("1073741824", Some(1 << 30)),
            ("128974848000m", Some(128_974_848)),
            ("0", None),
            ("much", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
