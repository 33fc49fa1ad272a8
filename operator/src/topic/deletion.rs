//! A Topic goes: its topic goes with it, if it still is the same one and nobody else wants it.

use kube::{Resource, ResourceExt, runtime::controller::Action, runtime::events::EventType};
use millstream_api::{DeletionPolicy, Topic};

use super::{FINALIZER, connect, rivals};
use crate::{context::Context, deadline::Deadline, error::Error, metrics::System};

pub async fn reconcile(topic: &Topic, context: &Context) -> Result<Action, Error> {
    if !topic.finalizers().iter().any(|held| held == FINALIZER) {
        return Ok(Action::await_change());
    }
    if topic.spec.deletion_policy == DeletionPolicy::Delete {
        let name = topic.topic_name();
        match remove(topic, context).await {
            Ok(None) => {}
            Ok(Some(left)) => {
                let note = format!("topic `{name}` is left in Kafka: {left}");
                context
                    .event(topic, EventType::Warning, "LeftInKafka", note)
                    .await;
            }
            Err(error) if Deadline::of(topic.meta()).is_over() => {
                let note = format!("topic `{name}` is left in Kafka: {error}");
                context
                    .event(topic, EventType::Warning, "LeftInKafka", note)
                    .await;
            }
            Err(error) => {
                tracing::warn!(topic = name, "not deleted yet: {error}");
                return Ok(Action::requeue(Deadline::RETRY));
            }
        }
    }
    context.hold(topic, FINALIZER, false).await?;
    Ok(Action::await_change())
}

/// Deletes the topic; or says why it is left.
async fn remove(topic: &Topic, context: &Context) -> Result<Option<String>, Error> {
    let name = topic.topic_name();
    let known = topic.status.as_ref();
    let Some(id) = known.and_then(|status| status.topic_id.as_ref()) else {
        // This resource never had one.
        return Ok(None);
    };
    if let Some(rival) = rivals(topic, context).first() {
        let rival = crate::claims::name(rival.meta());
        return Ok(Some(format!("Topic {rival} claims it too")));
    }
    let kafka = connect(topic, context).await?;
    if kafka.describe(&name).await?.is_none() {
        return Ok(None);
    }
    match kafka.mark(&name).await? {
        Some(mark) if mark.id == *id => {}
        _ => {
            return Ok(Some(
                "it is another topic of the same name, made since this resource last saw it".into(),
            ));
        }
    }
    context.metrics.wrote(System::Kafka);
    kafka.delete(&name).await?;
    kafka.forget_mark(&name).await?;
    Ok(None)
}
