//! Records that are gone before a sink has read them, or the ingest stage. Pure: no client, no clock.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use millstream_api::{
    DataPipelineStatus,
    condition::{self, reason},
    pipeline::OnDataGap,
    worker::{TopicGap, TopicRef},
};

use super::offsets::{Offsets, SinkOffsets};
use crate::conditions;

/// What a person can do.
const WAY_OUT: &str = "the process pods are stopped; with spec.onDataGap: Continue the pipeline goes on from the first record that is there";

/// What a person can do about what the source's own topic has lost.
const WAY_OUT_OF_SOURCE: &str = "nothing more is read there; with spec.source.topic.onGap: Continue the source goes on from the first record that is there";

/// How the condition begins where it is about the source's own topic.
const OF_SOURCE: &str = "the source: ";

/// What the condition says of records that the pipeline's own topic has lost.
pub fn message(lost: &str) -> String {
    format!("{lost}; {WAY_OUT}")
}

/// What the condition says of records that the source's own topic has lost.
pub fn message_of_source(gap: &TopicGap) -> String {
    format!("{OF_SOURCE}{}; {WAY_OUT_OF_SOURCE}", gap.lost)
}

/// Whether a condition tells that the source's own topic has lost records.
pub fn is_of_source(condition: &Condition) -> bool {
    condition.status == "True" && condition.message.starts_with(OF_SOURCE)
}

/// Records are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataGap {
    pub reason: &'static str,
    /// What is gone.
    pub lost: String,
    /// Where the committed offset means nothing any longer: sink and partition.
    pub places: BTreeSet<(String, i32)>,
}

impl DataGap {
    /// For the condition.
    pub fn message(&self) -> String {
        message(&self.lost)
    }

    /// Whether the process pods stop for it now. One that is to be passed over is told before: what
    /// the offsets show of a truncated log may be gone by the next look.
    pub fn stops(&self, on_data_gap: OnDataGap, before: &DataPipelineStatus) -> bool {
        let last = conditions::find(&before.conditions, condition::DATA_GAP);
        let is_told = last.is_some_and(|last| {
            last.status == "True" && last.reason == self.reason && !is_of_source(last)
        });
        on_data_gap == OnDataGap::Stop || !is_told
    }
}

/// Looks for records that are gone; `before` is the status that was written last.
pub fn find(before: &DataPipelineStatus, topic: &TopicRef, offsets: &Offsets) -> Option<DataGap> {
    let everywhere = |sinks: &[&SinkOffsets]| {
        let partitions = 0..topic.partitions;
        let places = partitions.flat_map(|partition| {
            let of = move |sink: &&SinkOffsets| (sink.name.clone(), partition);
            sinks.iter().map(of).collect::<Vec<_>>()
        });
        places.collect()
    };
    let all: Vec<_> = offsets.sinks.iter().collect();
    if before.topic_id.as_ref().is_some_and(|id| *id != topic.id) {
        let name = &topic.name;
        return Some(DataGap {
            reason: reason::TOPIC_RECREATED,
            lost: format!(
                "topic `{name}` was deleted and made anew, and what no sink had read of the old one is lost; or its mark in Kafka was forgotten, as no operator renewed it for a week: then it is the same topic, Continue reads all of it again, and what counts or appends does so twice"
            ),
            places: everywhere(&all),
        });
    }
    // A truncated log grows past the committed offset again, over records that nobody has read: whatever
    // the offsets show by now, that is still so.
    let last = conditions::find(&before.conditions, condition::DATA_GAP);
    let is_truncation = |last: &&Condition| {
        last.status == "True" && last.reason == reason::LOG_TRUNCATED && !is_of_source(last)
    };
    if let Some(last) = last.filter(is_truncation) {
        return Some(DataGap {
            reason: reason::LOG_TRUNCATED,
            lost: last.message.replace(&format!("; {WAY_OUT}"), ""),
            places: everywhere(&all),
        });
    }
    if let Some(gap) = removed(offsets) {
        return Some(gap);
    }
    if let Some(sink) = all.iter().find(|sink| forgotten(before, offsets, sink)) {
        return Some(DataGap {
            reason: reason::OFFSETS_LOST,
            lost: format!(
                "sink `{}`: Kafka has forgotten its committed offsets, as it does after a week without pods, and retention has removed records since",
                sink.name
            ),
            places: everywhere(&[sink]),
        });
    }
    None
}

/// Partitions whose log doesn't hold what is to be read next.
fn removed(offsets: &Offsets) -> Option<DataGap> {
    let mut gap: Option<DataGap> = None;
    for sink in &offsets.sinks {
        let bounds = offsets.starts.iter().zip(&offsets.ends);
        for (partition, (committed, (start, end))) in sink.committed.iter().zip(bounds).enumerate()
        {
            let Some(next) = committed.offset else {
                continue;
            };
            let name = &sink.name;
            let (reason, lost) = if next < *start {
                let lost = format!(
                    "sink `{name}`: retention has removed the records {next} to {} of partition {partition} before they were read",
                    start - 1
                );
                (reason::RETENTION_PASSED, lost)
            } else if next > *end {
                let lost = format!(
                    "sink `{name}`: partition {partition} was truncated: it ends at offset {end}, and was read up to {next}"
                );
                (reason::LOG_TRUNCATED, lost)
            } else {
                continue;
            };
            let gap = gap.get_or_insert_with(|| DataGap {
                reason,
                lost: lost.clone(),
                places: BTreeSet::new(),
            });
            if reason == reason::LOG_TRUNCATED && gap.reason != reason {
                // The one that has to be remembered.
                (gap.reason, gap.lost) = (reason, lost);
            }
            gap.places.insert((name.clone(), partition as i32));
        }
    }
    if let Some(gap) = &mut gap
        && gap.places.len() > 1
    {
        let more = gap.places.len() - 1;
        gap.lost = format!("{}, and so in {more} more of its places", gap.lost);
    }
    gap
}

/// Whether a sink that had come somewhere has no offsets any more, and can't read again what it
/// has read, because that isn't there.
fn forgotten(before: &DataPipelineStatus, offsets: &Offsets, sink: &SinkOffsets) -> bool {
    let known = before.sinks.iter().find(|known| known.name == sink.name);
    let came_somewhere =
        known.is_some_and(|known| known.rows.unwrap_or(0) + known.dead_lettered.unwrap_or(0) > 0);
    came_somewhere
        && sink.committed.iter().all(|c| c.offset.is_none())
        && offsets.starts.iter().any(|start| *start > 0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use millstream_api::pipeline::SinkStatus;

    use super::*;
    use crate::kafka::Committed;

    fn topic() -> TopicRef {
        TopicRef {
            name: "t".into(),
            id: "one".into(),
            timestamp_base: 0,
            partitions: 2,
        }
    }

    fn before() -> DataPipelineStatus {
        let known = SinkStatus {
            name: "a".into(),
            rows: Some(5),
            ..SinkStatus::default()
        };
        DataPipelineStatus {
            topic_id: Some("one".into()),
            sinks: vec![known],
            ..DataPipelineStatus::default()
        }
    }

    /// Sink `a` in two partitions.
    fn offsets(starts: [i64; 2], committed: [Option<i64>; 2], ends: [i64; 2]) -> Offsets {
        let committed = committed.map(|offset| Committed {
            offset,
            ..Committed::default()
        });
        Offsets {
            starts: starts.to_vec(),
            ends: ends.to_vec(),
            sinks: vec![SinkOffsets {
                name: "a".into(),
                committed: committed.to_vec(),
                ..SinkOffsets::default()
            }],
            ..Offsets::default()
        }
    }

    fn reason_and_places(gap: Option<DataGap>) -> (&'static str, Vec<i32>) {
        gap.map_or(("", Vec::new()), |gap| {
            (gap.reason, gap.places.iter().map(|(_, p)| *p).collect())
        })
    }

    #[test]
    fn what_is_gone() {
        let cases = [
            (
                "nothing: all read, some read, retention behind the sink",
                offsets([0, 5], [Some(10), Some(5)], [10, 9]),
                ("", vec![]),
            ),
            (
                "nothing: a new partition or sink starts at the beginning",
                offsets([0, 0], [None, Some(5)], [10, 9]),
                ("", vec![]),
            ),
            (
                "nothing: the offsets are lost, and all can be read again",
                offsets([0, 0], [None, None], [10, 9]),
                ("", vec![]),
            ),
            (
                "retention",
                offsets([0, 6], [Some(10), Some(5)], [10, 9]),
                (reason::RETENTION_PASSED, vec![1]),
            ),
            (
                "truncated",
                offsets([0, 0], [Some(11), Some(5)], [10, 9]),
                (reason::LOG_TRUNCATED, vec![0]),
            ),
            (
                "truncated, and retention elsewhere",
                offsets([6, 0], [Some(5), Some(10)], [10, 9]),
                (reason::LOG_TRUNCATED, vec![0, 1]),
            ),
            (
                "the offsets are lost, and records are removed",
                offsets([0, 3], [None, None], [10, 9]),
                (reason::OFFSETS_LOST, vec![0, 1]),
            ),
        ];
        for (name, offsets, expected) in cases {
            let found = find(&before(), &topic(), &offsets);
            assert_eq!(reason_and_places(found), expected, "{name}");
        }
    }

    #[test]
    fn another_topic_of_the_same_name() {
        let mut before = before();
        before.topic_id = Some("zero".into());
        let same = offsets([0, 0], [Some(3), None], [3, 0]);
        let found = find(&before, &topic(), &same);
        assert_eq!(
            reason_and_places(found),
            (reason::TOPIC_RECREATED, vec![0, 1])
        );
        before.topic_id = None;
        assert_eq!(find(&before, &topic(), &same), None, "the first visit");
    }

    #[test]
    fn a_truncated_log_that_grew_again_is_still_one() {
        let mut before = before();
        let truncated = find(
            &before,
            &topic(),
            &offsets([0, 0], [Some(11), Some(5)], [10, 9]),
        )
        .unwrap();
        let stops = |before: &DataPipelineStatus| {
            [OnDataGap::Stop, OnDataGap::Continue].map(|then| truncated.stops(then, before))
        };
        assert_eq!(stops(&before), [true, true], "it isn't told yet");
        before.conditions = vec![Condition {
            type_: condition::DATA_GAP.into(),
            status: "True".into(),
            reason: truncated.reason.into(),
            message: truncated.message(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }];
        let grown = find(
            &before,
            &topic(),
            &offsets([0, 0], [Some(11), Some(5)], [20, 9]),
        )
        .unwrap();
        assert_eq!(grown.reason, reason::LOG_TRUNCATED);
        assert_eq!(grown.message(), truncated.message());
        assert_eq!(stops(&before), [true, false]);
        // Whatever else is seen by now.
        let others = offsets([0, 6], [Some(11), Some(5)], [20, 9]);
        let expected = (reason::LOG_TRUNCATED, vec![0, 1]);
        assert_eq!(
            reason_and_places(find(&before, &topic(), &others)),
            expected
        );
        let fine = offsets([0, 0], [Some(11), Some(5)], [20, 9]);
        // The topic of the source is another one.
        before.conditions[0].message = message_of_source(&TopicGap::default());
        assert_eq!(find(&before, &topic(), &fine), None);
        assert_eq!(stops(&before), [true, true]);
        before.conditions[0].message = truncated.message();
        before.conditions[0].status = "False".into();
        assert_eq!(find(&before, &topic(), &fine), None);
    }
}
