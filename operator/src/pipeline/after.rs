//! `spec.after`: pipelines that must have succeeded before this one reads its source.

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use millstream_api::{DataPipeline, condition};
use millstream_plan::Calendar;

use super::{
    children::Stage,
    provision::{watched, watched_guarded},
    runs::{self, due::undecided},
};
use crate::{conditions, context::Context};

/// What the pipeline waits for, if it does. Without a schedule it is looked at but once: what has
/// begun goes on.
pub fn waits_for(pipeline: &DataPipeline, context: &Context, now: Timestamp) -> Option<String> {
    let ingest = Stage::Ingest.object_name(pipeline);
    let begun = watched::<Deployment>(&context.stores.deployments, pipeline, &ingest);
    if pipeline.spec.schedule.is_none() && begun.is_some() {
        return None;
    }
    let mut names = pipeline.spec.after.iter();
    names.find_map(|name| {
        let other = watched_guarded(&context.stores.pipelines, pipeline, name);
        lacks(name, other.as_ref(), now)
    })
}

/// What a pipeline lacks to have succeeded.
fn lacks(name: &str, other: Option<&DataPipeline>, now: Timestamp) -> Option<String> {
    let Some(other) = other else {
        return Some(format!(
            "it is to begin after pipeline `{name}`, and there is none of this name"
        ));
    };
    if other.spec.schedule.is_none() && !other.spec.source.ends() {
        return Some(format!(
            "it is to begin after pipeline `{name}`, whose source has no end: give that one a schedule, or take it out of after"
        ));
    }
    let status = other.status.clone().unwrap_or_default();
    let generation = other.metadata.generation;
    let succeeded = conditions::holds(&status.conditions, condition::SUCCEEDED, generation);
    (!succeeded || is_due(other, now))
        .then(|| format!("it begins when pipeline `{name}` has succeeded"))
}

/// Whether a time of its schedule has come of which it hasn't decided yet: it may wait itself, or for
/// Kafka. Its `nextRun` is told anew meanwhile.
fn is_due(pipeline: &DataPipeline, now: Timestamp) -> bool {
    let schedule = pipeline.spec.schedule.as_ref();
    let calendar = schedule.and_then(|schedule| Calendar::new(schedule).ok());
    let status = pipeline.status.as_ref();
    let decided = status.and_then(|status| status.schedule.as_ref());
    let decided = decided.map_or(Timestamp::MIN, |schedule| schedule.decided.0);
    let suspended = runs::is_suspended(pipeline);
    calendar.is_some_and(|calendar| undecided(&calendar, decided, suspended, now).is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn other(spec: Value, status: Value) -> DataPipeline {
        let mut pipeline = json!({
            "apiVersion": "millstream.dev/v1alpha1",
            "kind": "DataPipeline",
            "metadata": {"name": "first", "generation": 2},
            "spec": {"source": {"generator": {"count": 3}}, "schema": "id UUID", "sinks": []},
            "status": status,
        });
        for (field, value) in spec.as_object().unwrap() {
            pipeline["spec"][field] = value.clone();
        }
        serde_json::from_value(pipeline).unwrap()
    }

    fn succeeded(status: &str, generation: i64) -> Value {
        json!([{
            "type": "Succeeded", "status": status, "reason": "R", "message": "",
            "observedGeneration": generation, "lastTransitionTime": "2026-11-21T10:00:00Z",
        }])
    }

    fn waits(spec: Value, status: Value) -> Option<String> {
        let now = "2026-11-21T10:10:00Z".parse().unwrap();
        lacks("first", Some(&other(spec, status)), now)
    }

    #[test]
    fn waits_until_the_other_has_succeeded_as_it_now_is() {
        let conditions = |status, generation| json!({"conditions": succeeded(status, generation)});
        assert_eq!(waits(json!({}), conditions("True", 2)), None);
        let begins = Some("it begins when pipeline `first` has succeeded".to_string());
        for status in [conditions("False", 2), conditions("True", 1), json!({})] {
            assert_eq!(waits(json!({}), status), begins);
        }
    }

    #[test]
    fn a_run_that_is_due_comes_first() {
        let scheduled = || json!({"schedule": {"cron": "*/10 * * * *"}});
        for (decided, waits_on) in [("10:00:00", true), ("10:09:59", true), ("10:10:00", false)] {
            let status = json!({
                "conditions": succeeded("True", 2),
                // It waits for something itself.
                "nextRun": "2026-11-21T10:20:00Z",
                "schedule": {"plan": "", "decided": format!("2026-11-21T{decided}Z")},
            });
            assert_eq!(
                waits(scheduled(), status.clone()).is_some(),
                waits_on,
                "{decided}"
            );
            let suspended = json!({"schedule": {"cron": "*/10 * * * *", "suspend": true}});
            assert_eq!(waits(suspended, status), None, "it begins no run");
        }
    }

    #[test]
    fn what_never_comes_is_told() {
        assert!(
            lacks("first", None, Timestamp::UNIX_EPOCH)
                .unwrap()
                .contains("none of this name")
        );
        let endless = json!({"source": {"generator": {}}});
        assert!(waits(endless, json!({})).unwrap().contains("no end"));
    }
}
