//! Where the sinks start: the workers never choose a place themselves.

use std::collections::BTreeMap;

use kube::{ResourceExt, runtime::events::EventType};
use millstream_api::{DataPipeline, worker::TopicRef};

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
    let before = pipeline.status.clone().unwrap_or_default();
    let gap = gap::find(&before, topic, offsets);
    if let Some(gap) = &gap
        && gap.stops(pipeline.spec.on_data_gap, &before)
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
    if gap.is_none() {
        pass(context, kafka, topic, offsets).await?;
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

/// Commits what is behind the last record, such as the markers of transactions, for sinks without
/// members: when retention removes that, nothing is missing. Those with members do it themselves.
async fn pass(
    context: &Context,
    kafka: &Kafka,
    topic: &TopicRef,
    offsets: &Offsets,
) -> Result<(), Error> {
    for sink in &offsets.sinks {
        let places = sink.passable.iter().filter_map(|(partition, end)| {
            let committed = sink.committed.get(usize::try_from(*partition).ok()?)?;
            Some((*partition, (*end, committed.counts.clone())))
        });
        let places: BTreeMap<_, _> = places.collect();
        if !places.is_empty() && kafka.commit(&sink.group, &topic.name, places).await? {
            context.metrics.wrote(System::Kafka);
        }
    }
    Ok(())
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
