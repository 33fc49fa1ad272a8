//! Where the sinks start: the workers never choose a place themselves.

use std::collections::BTreeMap;

use kube::{ResourceExt, runtime::events::EventType};
use millstream_api::{DataPipeline, pipeline::OnDataGap, worker::TopicRef};

use super::{
    gap::{self, DataGap},
    offsets::{Offsets, SinkOffsets},
};
use crate::{context::Context, error::Error, kafka::Kafka, metrics::System};

/// Sees to it that every sink has a committed offset in every partition, and that records which are
/// gone aren't passed over in silence. Gives the reason why the process pods must stop, if they
/// must.
pub async fn start(
    pipeline: &DataPipeline,
    context: &Context,
    kafka: &Kafka,
    topic: &TopicRef,
    offsets: &Offsets,
) -> Result<Option<Error>, Error> {
    let gap = gap::find(&pipeline.status.clone().unwrap_or_default(), topic, offsets);
    if let Some(gap) = &gap
        && pipeline.spec.on_data_gap == OnDataGap::Stop
    {
        return Ok(Some(Error::DataGap {
            reason: gap.reason,
            message: gap.message(),
        }));
    }
    for sink in &offsets.sinks {
        let starts = starts(sink, gap.as_ref(), offsets);
        if starts.is_empty() {
            continue;
        }
        context.metrics.wrote(System::Kafka);
        // Kafka takes them only from a group without members.
        if !kafka.commit(&sink.group, &topic.name, starts).await? {
            return Ok(Some(Error::Waiting(format!(
                "sink `{}` has no valid offset in some partition: the process pods are stopped, the offset is set to the beginning, and they are started again",
                sink.name
            ))));
        }
    }
    if let Some(gap) = gap {
        let note = format!(
            "{}: it goes on from the first record that is there",
            gap.lost
        );
        context
            .event(pipeline, EventType::Warning, gap.reason, note)
            .await;
    }
    let uid = pipeline.uid().unwrap_or_default();
    context.memory.of_pipeline(&uid, |memory| {
        memory.started = Some(topic.id.clone());
    });
    Ok(None)
}

/// The beginning of the log, with the counts so far, where a sink has no offset or one that means
/// nothing any longer.
fn starts(
    sink: &SinkOffsets,
    gap: Option<&DataGap>,
    offsets: &Offsets,
) -> BTreeMap<i32, (i64, millstream_api::worker::CommitMetadata)> {
    let partitions = (0..).zip(sink.committed.iter().zip(&offsets.starts));
    let wrong = partitions.filter(|(partition, (committed, _))| {
        let place = (sink.name.clone(), *partition);
        committed.offset.is_none() || gap.is_some_and(|gap| gap.places.contains(&place))
    });
    wrong
        .map(|(partition, (committed, start))| (partition, (*start, committed.counts.clone())))
        .collect()
}
