//! A Topic goes: its topic goes with it, if it still is the same one and nobody else wants it.

use kube::{Resource, runtime::controller::Action};
use millstream_api::{DeletionPolicy, Topic};

use super::{connect, rivals};
use crate::{
    context::Context, controller::Reconcile, deadline::let_go, error::Error, metrics::System,
};

pub async fn reconcile(topic: &Topic, context: &Context) -> Result<Action, Error> {
    let what = format!("topic `{}` is left in Kafka", topic.topic_name());
    let event = ("LeftInKafka", what.as_str());
    let remove = remove(topic, context);
    let_go(topic, context, Topic::FINALIZER, event, remove).await
}

/// Deletes the topic; or says why it is left.
async fn remove(topic: &Topic, context: &Context) -> Result<Option<String>, Error> {
    if topic.spec.deletion_policy == DeletionPolicy::Retain {
        return Ok(None);
    }
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
