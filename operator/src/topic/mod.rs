//! `Topic`: created, or adopted, grown and configured; drift is put right.

mod deletion;
pub mod plan;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Resource, ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use millstream_api::{DeletionPolicy, Topic, TopicStatus};
use millstream_plan::{
    accept_topic,
    claim::{same_kafka, topic_conflict},
};

use self::plan::{DesiredTopic, TopicChange, plan};
use crate::{
    claims, conditions,
    context::Context,
    controller::{Reconcile, namespace},
    error::Error,
    kafka::{Kafka, ObservedTopic, TopicMark},
    metrics::{Metrics, System},
};

/// On a Topic: what its records are keyed by, or an empty text. The partitions of one with a key aren't
/// grown once it exists in Kafka.
pub const KEY: &str = "millstream.dev/key";

/// On a Topic whose records are put together in groups, or in rows that later ones replace: it takes
/// no second key.
pub const GROUPED: &str = "millstream.dev/grouped";

/// Seconds after which a topic's mark is written anew.
const MARK_AGE: i64 = 24 * 60 * 60;

impl Reconcile for Topic {
    const FINALIZER: &'static str = "millstream.dev/topic";

    async fn reconcile(&self, context: &Context) -> Result<Action, Error> {
        if self.meta().deletion_timestamp.is_some() {
            return deletion::reconcile(self, context).await;
        }
        let deletes = self.spec.deletion_policy == DeletionPolicy::Delete;
        context.hold(self, Self::FINALIZER, deletes).await?;
        let outcome = provision(self, context).await;
        report(self, context, &outcome).await?;
        outcome.map(|_| Action::requeue(context.resync))
    }
}

/// The topic as it is after a visit.
struct Provisioned {
    observed: ObservedTopic,
    mark: TopicMark,
    drift: Option<String>,
}

async fn provision(topic: &Topic, context: &Context) -> Result<Provisioned, Error> {
    // 1. Accept. (no client)
    let desired = desired(topic)?;
    if let Some(rival) = older_claim(topic, context) {
        let rival = format!("the older Topic {rival}");
        return Err(topic_conflict(&rival, &desired.name).into());
    }
    // 2. Observe.
    let kafka = connect(topic, context).await?;
    let (observed, mark) = observe(&kafka, &desired.name, &context.metrics).await?;
    // 3. Plan. (no client)
    let changes = plan(&desired, observed.as_ref())?;
    // 4. Apply.
    let drift = apply(topic, context, &kafka, &desired, &changes).await?;
    let observed = match observed {
        Some(observed) if changes.is_empty() => observed,
        _ => kafka.describe(&desired.name).await?.ok_or_else(|| {
            Error::Waiting(format!("topic `{}` doesn't show up in Kafka", desired.name))
        })?,
    };
    let mark = identify(topic, context, &kafka, &desired, mark).await?;
    Ok(Provisioned {
        observed,
        mark,
        drift,
    })
}

/// The topic as it is in Kafka, and its mark. One that is a day old is written anew before anything
/// else can fail: Kafka forgets it after a week, however long the resource isn't ready.
pub async fn observe(
    kafka: &Kafka,
    name: &str,
    metrics: &Metrics,
) -> Result<(Option<ObservedTopic>, Option<TopicMark>), Error> {
    let Some(observed) = kafka.describe(name).await? else {
        return Ok((None, None));
    };
    let mut mark = kafka.mark(name).await?;
    let now = Timestamp::now().as_second();
    if let Some(mark) = &mut mark
        && now - mark.written >= MARK_AGE
    {
        mark.written = now;
        metrics.wrote(System::Kafka);
        kafka.set_mark(name, mark).await?;
    }
    Ok((Some(observed), mark))
}

/// The connection of a Topic.
async fn connect(topic: &Topic, context: &Context) -> Result<Arc<Kafka>, Error> {
    let own = topic.spec.kafka.as_ref();
    let access = context.credentials.kafka(&namespace(topic), own).await?;
    context.kafka(&access).await
}

fn desired(topic: &Topic) -> Result<DesiredTopic, Error> {
    let name = topic.topic_name();
    accept_topic(&name)?;
    Ok(DesiredTopic {
        name,
        partitions: topic.spec.partitions,
        replication_factor: topic.spec.replication_factor,
        config: topic.spec.config.clone(),
        key: topic.annotations().get(KEY).cloned(),
        grouped: topic.annotations().contains_key(GROUPED),
    })
}

/// An older Topic of any namespace that claims the same topic of the same Kafka.
fn older_claim(topic: &Topic, context: &Context) -> Option<String> {
    let rivals = rivals(topic, context);
    claims::older(topic.meta(), rivals.iter().map(Resource::meta))
}

/// Other Topics that claim the same topic of the same Kafka.
fn rivals(topic: &Topic, context: &Context) -> Vec<Topic> {
    let default = context.config.kafka.as_ref();
    let mine = topic.spec.kafka.as_ref().or(default);
    let mut rivals = context.stores.topics();
    rivals.retain(|rival| {
        rival.uid() != topic.uid()
            && rival.topic_name() == topic.topic_name()
            && same_kafka(mine, rival.spec.kafka.as_ref().or(default))
    });
    rivals
}

/// Makes the changes; says what was put right, where the topic had been as declared before.
async fn apply(
    topic: &Topic,
    context: &Context,
    kafka: &Kafka,
    desired: &DesiredTopic,
    changes: &[TopicChange],
) -> Result<Option<String>, Error> {
    let name = &desired.name;
    let before = topic.status.as_ref();
    let generation = topic.meta().generation;
    let was_as_declared =
        before.is_some_and(|status| conditions::was_provisioned(&status.conditions, generation));
    let mut drift = None;
    for change in changes {
        context.metrics.wrote(System::Kafka);
        match change {
            TopicChange::Create => {
                let factor = desired.replication_factor;
                kafka
                    .create(name, desired.partitions, factor, &desired.config)
                    .await?;
            }
            TopicChange::GrowPartitions { to, .. } => kafka.grow(name, *to).await?,
            TopicChange::SetConfig { all, .. } => kafka.set_config(name, all).await?,
        }
        let (reason, what) = match (was_as_declared, change) {
            (true, TopicChange::Create) => (
                "TopicRecreated",
                "the topic was gone, its records with it: created it anew".to_string(),
            ),
            (true, change) => ("DriftCorrected", change.describe()),
            (false, change) => (change.event_reason(), change.describe()),
        };
        let type_ = if was_as_declared {
            drift = Some(what.clone());
            EventType::Warning
        } else {
            EventType::Normal
        };
        context
            .event(topic, type_, reason, format!("{what} (`{name}`)"))
            .await;
    }
    Ok(drift)
}

/// Who the topic is: the mark that was observed, or that it has by now, or a new one. It tells by what the
/// records are keyed, so that it is known for as long as the records are there, whatever becomes of the
/// resources.
async fn identify(
    topic: &Topic,
    context: &Context,
    kafka: &Kafka,
    desired: &DesiredTopic,
    observed: Option<TopicMark>,
) -> Result<TopicMark, Error> {
    let now = Timestamp::now();
    let name = &desired.name;
    let mark = match observed {
        Some(mark) => Some(mark),
        None => kafka.mark(name).await?,
    };
    let keys = desired.keys(mark.as_ref().map_or(&[], |mark| &mark.keys));
    let mark = match mark {
        Some(mark) if mark.keys == keys => return Ok(mark),
        Some(mark) => TopicMark {
            written: now.as_second(),
            keys,
            ..mark
        },
        None => {
            let known = topic.status.as_ref();
            let last_base = known.and_then(|status| status.timestamp_base);
            TopicMark {
                id: uuid::Uuid::new_v4().to_string(),
                base: later_base(now.as_microsecond(), last_base),
                written: now.as_second(),
                keys,
            }
        }
    };
    context.metrics.wrote(System::Kafka);
    kafka.set_mark(name, &mark).await?;
    Ok(mark)
}

/// A base in microseconds of write timestamps that are later than all with the last base, also where the
/// clock was set back since: an offset was added to each of them.
fn later_base(now: i64, last: Option<i64>) -> i64 {
    /// As many as no partition has. Not added to a clock that goes on: what people write by hand has to be
    /// later than rows.
    const OFFSETS: i64 = 1 << 40;
    match last {
        Some(last) if last >= now => last + OFFSETS,
        _ => now,
    }
}

async fn report(
    topic: &Topic,
    context: &Context,
    outcome: &Result<Provisioned, Error>,
) -> Result<(), Error> {
    let before = topic.status.clone().unwrap_or_default();
    let generation = topic.meta().generation;
    let message = match outcome {
        Ok(provisioned) => message(topic, &provisioned.observed),
        Err(_) => String::new(),
    };
    let verdicts = conditions::accepted_and_provisioned(outcome.as_ref().map(|_| message.as_str()));
    let mut status = TopicStatus {
        observed_generation: generation,
        conditions: conditions::merge(&before.conditions, &verdicts, &message, generation),
        topic_name: Some(topic.topic_name()),
        // What was seen last stays true enough while Kafka can't be asked.
        ..before.clone()
    };
    if let Ok(provisioned) = outcome {
        status.topic_id = Some(provisioned.mark.id.clone());
        status.timestamp_base = Some(provisioned.mark.base);
        status.keys = provisioned.mark.keys.clone();
        status.partitions = Some(provisioned.observed.partitions);
        status.replication_factor = Some(provisioned.observed.replication_factor);
        status.last_drift = provisioned.drift.clone().or(before.last_drift.clone());
    }
    if topic.status.as_ref() == Some(&status) {
        return Ok(());
    }
    context.patch_status::<Topic>(topic.meta(), &status).await?;
    context
        .event_of_transition(topic, &before.conditions, &status.conditions)
        .await;
    Ok(())
}

fn message(topic: &Topic, observed: &ObservedTopic) -> String {
    let name = topic.topic_name();
    let there = observed.partitions;
    if there > topic.spec.partitions {
        return format!(
            "topic `{name}` has {there} partitions, more than the {} declared: a topic is never shrunk",
            topic.spec.partitions
        );
    }
    let plural = if there == 1 { "" } else { "s" };
    format!("topic `{name}` has {there} partition{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_timestamps_rise_from_topic_to_topic() {
        assert_eq!(later_base(1_000, None), 1_000);
        assert_eq!(later_base(1_000, Some(999)), 1_000);
        for set_back in [1_000, 2_000] {
            let offset = 1_000_000_000_000;
            assert!(later_base(1_000, Some(set_back)) > set_back + offset);
        }
    }
}
