//! How far the sinks are, by Kafka's own offsets, and how much they lag. Reads only.

use std::collections::BTreeMap;

use kube::ResourceExt;
use millstream_api::{
    DataPipeline, Topic,
    pipeline::{ExpectationStatus, SinkStatus},
    sink::Sink,
    worker::CommitMetadata,
};

use super::provision::{kafka_access, pipeline_ref, watched_guarded};
use crate::{
    context::Context,
    error::Error,
    kafka::{Committed, Kafka},
};

/// A pipeline's topic and the progress of its sinks at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offsets {
    /// Identity of the topic; nothing where it hasn't one yet.
    pub topic_id: Option<String>,
    /// Offsets of the first records that are there, by partition.
    pub starts: Vec<i64>,
    /// Offsets after the last records, by partition.
    pub ends: Vec<i64>,
    /// Records that the ingest stage has sent to the topic; none where it hasn't kept a position.
    pub ingested: Option<i64>,
    pub sinks: Vec<SinkOffsets>,
}

/// How far a sink is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SinkOffsets {
    pub name: String,
    pub group: String,
    /// By partition.
    pub committed: Vec<Committed>,
    /// Records that are there and aren't committed.
    pub lag: i64,
    /// Where there is no record from what is committed up to the end: that end, by partition.
    pub passable: BTreeMap<i32, i64>,
}

impl Offsets {
    /// Records in the topic since it was made, by the count of the ingest stage. The offsets count
    /// the markers of its transactions too: they tell where there are no transactions.
    pub fn records(&self) -> i64 {
        let ingested = self.ingested.filter(|records| *records > 0);
        ingested.unwrap_or_else(|| self.end())
    }

    /// How far the topic's partitions have come together.
    pub fn end(&self) -> i64 {
        self.ends.iter().sum()
    }

    /// The sink that lags most, of those without an error where there is one.
    pub fn slowest(&self, failing: &[&str]) -> Option<&SinkOffsets> {
        let works = |sink: &SinkOffsets| !failing.contains(&sink.name.as_str());
        self.sinks.iter().max_by_key(|sink| (works(sink), sink.lag))
    }

    /// What the status says of the sinks. One without any offset has nothing to say: what was last
    /// seen of it stays.
    pub fn statuses(&self, specs: &[Sink]) -> Vec<SinkStatus> {
        let placed = |sink: &&SinkOffsets| sink.committed.iter().any(|c| c.offset.is_some());
        let status = |sink: &SinkOffsets| {
            let spec = specs.iter().find(|spec| spec.name == sink.name);
            sink.status(spec)
        };
        self.sinks.iter().filter(placed).map(status).collect()
    }

    /// What the sinks have counted so far, by their names.
    pub fn counts(&self) -> BTreeMap<String, CommitMetadata> {
        let counts = |sink: &SinkOffsets| (sink.name.clone(), sink.counts());
        self.sinks.iter().map(counts).collect()
    }

    /// From where on a sink has to read a partition: retention may have removed what was before.
    fn next(&self, sink: &SinkOffsets, partition: usize) -> i64 {
        let start = self.starts.get(partition).copied().unwrap_or(0);
        let committed = sink.committed.get(partition).and_then(|c| c.offset);
        committed.map_or(start, |committed| committed.max(start))
    }
}

impl SinkOffsets {
    fn counts(&self) -> CommitMetadata {
        let mut counts = CommitMetadata::default();
        self.committed.iter().for_each(|c| counts.add(&c.counts));
        counts
    }

    fn status(&self, spec: Option<&Sink>) -> SinkStatus {
        let counts = self.counts();
        let expectations = spec.iter().flat_map(|spec| &spec.expectations);
        let expectations = expectations.map(|expectation| {
            let name = expectation.name.clone();
            let failed = counts.failed.get(&name).copied().unwrap_or(0);
            ExpectationStatus { name, failed }
        });
        SinkStatus {
            name: self.name.clone(),
            lag: Some(self.lag),
            rows: Some(counts.rows),
            dead_lettered: Some(counts.dead_lettered),
            expectations: expectations.collect(),
            last_error: None,
            warning: None,
        }
    }
}

/// Asks Kafka. Nothing where the topic isn't there yet.
pub async fn look(pipeline: &DataPipeline, context: &Context) -> Result<Option<Offsets>, Error> {
    let topic: Option<Topic> =
        watched_guarded(&context.stores.topics, pipeline, &pipeline.name_any());
    let status = topic.and_then(|topic| topic.status);
    let Some(partitions) = status.and_then(|status| status.partitions) else {
        return Ok(None);
    };
    let access = kafka_access(pipeline, context).await?;
    let kafka = context.kafka(&access).await?;
    let topic = pipeline.topic_name();
    let groups: Vec<_> = pipeline
        .spec
        .sinks
        .iter()
        .map(|sink| {
            (
                sink.name.clone(),
                pipeline_ref(pipeline).sink_group(&sink.name),
            )
        })
        .collect();
    let uid = pipeline.uid().unwrap_or_default();
    let mut tails = context
        .memory
        .of_pipeline(&uid, |memory| std::mem::take(&mut memory.tails));
    let offsets = read(&kafka, &topic, partitions, &groups, &mut tails).await;
    context
        .memory
        .of_pipeline(&uid, |memory| memory.tails = tails);
    // Where Kafka is away it isn't asked once more.
    let offsets = offsets?;
    let group = pipeline_ref(pipeline).ingest_group();
    Ok(Some(Offsets {
        ingested: match kafka.ingested(&group, &topic).await {
            Ok(ingested) => ingested.map(|ingested| ingested.records),
            // Kafka doesn't tell while a transaction is being committed, by a worker that hangs too.
            Err(_) => pipeline.status.as_ref().and_then(|status| status.records),
        },
        ..offsets
    }))
}

/// Reads the offsets of a topic and of groups (sink, group), and finds out the lag.
pub async fn read(
    kafka: &Kafka,
    topic: &str,
    partitions: i32,
    groups: &[(String, String)],
    tails: &mut Tails,
) -> Result<Offsets, Error> {
    let topic_id = kafka.mark(topic).await?.map(|mark| mark.id);
    // In this order none can seem to be ahead of another: starts, what is committed, ends.
    let starts = kafka.starts(topic, partitions).await?;
    let mut sinks = Vec::new();
    for (name, group) in groups {
        sinks.push(SinkOffsets {
            name: name.clone(),
            group: group.clone(),
            committed: kafka.committed(group, topic, partitions).await?,
            ..SinkOffsets::default()
        });
    }
    let mut offsets = Offsets {
        topic_id,
        starts,
        ends: kafka.ends(topic, partitions).await?,
        ..Offsets::default()
    };
    for mut sink in sinks {
        let spans = (0..partitions).map(|partition| Span {
            partition,
            next: offsets.next(&sink, partition as usize),
            end: offsets.ends[partition as usize],
        });
        let spans: Vec<_> = spans.collect();
        let standing = tails.standing(&sink.name, &spans);
        if !standing.is_empty() {
            let there = kafka
                .holding_records(&sink.group, topic, standing.clone(), offsets.ends.clone())
                .await?;
            for span in &spans {
                if standing.contains_key(&span.partition) {
                    tails.looked(&sink.name, span, there.contains(&span.partition));
                }
            }
        }
        sink.lag = spans.iter().map(|span| tails.lag(&sink.name, span)).sum();
        sink.passable = passable(&sink, &spans, tails);
        offsets.sinks.push(sink);
    }
    Ok(offsets)
}

/// The ends before which a sink has nothing to read, though it hasn't committed them.
fn passable(sink: &SinkOffsets, spans: &[Span], tails: &Tails) -> BTreeMap<i32, i64> {
    let behind = sink
        .committed
        .iter()
        .zip(spans)
        .filter(|(committed, span)| {
            let place = committed.offset.filter(|offset| *offset < span.end);
            // Where retention has gone past it already, nobody has looked at what was there.
            place == Some(span.next) && tails.lag(&sink.name, span) == 0
        });
    behind.map(|(_, span)| (span.partition, span.end)).collect()
}

/// What a sink has to read of a partition: from an offset up to the end.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub partition: i32,
    pub next: i64,
    pub end: i64,
}

/// What is known of the ends of the partitions, by sink and partition. The offset after the last
/// record isn't always the end: the markers of transactions take offsets too, and nobody ever
/// commits those. So where a sink stands still before an end, it is looked whether there is a
/// record at all.
#[derive(Debug, Default)]
pub struct Tails(BTreeMap<(String, i32), Tail>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Tail {
    next: i64,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// The sink has moved since.
    Nothing,
    /// There is a record.
    Record,
    /// There is no record up to this offset.
    NoneBefore(i64),
}

impl Tails {
    /// The partitions in which it must be looked, and from where on.
    pub fn standing(&mut self, sink: &str, spans: &[Span]) -> BTreeMap<i32, i64> {
        let mut standing = BTreeMap::new();
        for span in spans {
            let key = (sink.to_string(), span.partition);
            let before = self.0.get(&key).filter(|tail| tail.next == span.next);
            let seen = match before.map(|tail| tail.seen) {
                _ if span.next >= span.end => Seen::NoneBefore(span.end),
                None => Seen::Nothing,
                Some(Seen::Record) => Seen::Record,
                Some(Seen::NoneBefore(end)) if end >= span.end => Seen::NoneBefore(end),
                Some(seen) => {
                    let from = match seen {
                        Seen::NoneBefore(end) => end.max(span.next),
                        _ => span.next,
                    };
                    standing.insert(span.partition, from);
                    seen
                }
            };
            let next = span.next;
            self.0.insert(key, Tail { next, seen });
        }
        standing
    }

    /// Takes note of what was found in a partition.
    pub fn looked(&mut self, sink: &str, span: &Span, record: bool) {
        let seen = if record {
            Seen::Record
        } else {
            Seen::NoneBefore(span.end)
        };
        let next = span.next;
        self.0
            .insert((sink.to_string(), span.partition), Tail { next, seen });
    }

    /// Records that are there, as far as is known.
    pub fn lag(&self, sink: &str, span: &Span) -> i64 {
        match self.0.get(&(sink.to_string(), span.partition)) {
            Some(Tail {
                seen: Seen::NoneBefore(end),
                ..
            }) if *end >= span.end => 0,
            _ => (span.end - span.next).max(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64, rows: i64, failed: &[(&str, i64)]) -> Committed {
        Committed {
            offset: Some(offset),
            counts: CommitMetadata {
                rows,
                dead_lettered: 1,
                failed: failed.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect(),
            },
        }
    }

    fn sink_with_expectations() -> Sink {
        serde_json::from_value(serde_json::json!({
            "name": "s", "sql": "SELECT id FROM records",
            "cassandra": {"keyspace": "k", "table": "t"},
            "expectations": [
                {"name": "has-email", "check": "email IS NOT NULL"},
                {"name": "adult", "check": "age >= 18"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn reads_on_where_it_was_or_where_the_log_begins() {
        let sink = SinkOffsets {
            name: "s".to_owned(),
            committed: vec![
                at(7, 6, &[("has-email", 2), ("no-longer-there", 4)]),
                at(2, 0, &[("has-email", 1)]),
                Committed::default(),
            ],
            ..SinkOffsets::default()
        };
        let offsets = Offsets {
            starts: vec![0, 5, 3],
            ends: vec![10, 9, 4],
            sinks: vec![sink.clone()],
            ..Offsets::default()
        };
        let next = [0, 1, 2].map(|partition| offsets.next(&sink, partition));
        assert_eq!(next, [7, 5, 3]);
        assert_eq!(offsets.records(), 23);
        let ingested = |records| Offsets {
            ingested: Some(records),
            ..offsets.clone()
        };
        assert_eq!(ingested(19).records(), 19, "the rest are markers");
        assert_eq!(ingested(0).records(), 23, "of others");
        let status = &offsets.statuses(&[sink_with_expectations()])[0];
        assert_eq!((status.rows, status.dead_lettered), (Some(6), Some(2)));
        let failed = status.expectations.iter();
        let failed: Vec<_> = failed.map(|e| (e.name.as_str(), e.failed)).collect();
        assert_eq!(failed, [("has-email", 3), ("adult", 0)]);
    }

    #[test]
    fn a_sink_without_offsets_says_nothing() {
        let sink = SinkOffsets {
            committed: vec![Committed::default()],
            ..SinkOffsets::default()
        };
        let offsets = Offsets {
            sinks: vec![sink],
            ..Offsets::default()
        };
        assert_eq!(offsets.statuses(&[]), []);
    }

    #[test]
    fn a_sink_can_pass_what_is_known_to_be_no_record() {
        let sink = SinkOffsets {
            committed: vec![at(7, 6, &[]), at(7, 6, &[]), at(7, 6, &[]), at(7, 6, &[])],
            ..SinkOffsets::default()
        };
        let span = |partition, next, end| Span {
            partition,
            next,
            end,
        };
        let spans = [
            span(0, 7, 8),
            span(1, 7, 8),
            span(2, 7, 7),
            // Retention was faster.
            span(3, 8, 8),
        ];
        let mut tails = Tails::default();
        tails.standing("", &spans);
        tails.looked("", &spans[0], false);
        tails.looked("", &spans[1], true);
        let passable = passable(&sink, &spans, &tails);
        assert_eq!(passable, BTreeMap::from([(0, 8)]));
    }

    /// One visit: where the sink and the end are, and whether there is a record if it is looked.
    fn visit(tails: &mut Tails, next: i64, end: i64, record: bool) -> (bool, i64) {
        let span = Span {
            partition: 0,
            next,
            end,
        };
        let looks = !tails.standing("s", &[span]).is_empty();
        if looks {
            tails.looked("s", &span, record);
        }
        (looks, tails.lag("s", &span))
    }

    #[test]
    fn it_is_looked_for_records_only_where_a_sink_stands_still() {
        let mut tails = Tails::default();
        assert_eq!(visit(&mut tails, 0, 10, true), (false, 10));
        assert_eq!(visit(&mut tails, 5, 10, true), (false, 5), "it moves");
        assert_eq!(visit(&mut tails, 9, 10, false), (false, 1));
        assert_eq!(visit(&mut tails, 9, 10, false), (true, 0), "a marker");
        assert_eq!(visit(&mut tails, 9, 10, true), (false, 0), "it is known");
        assert_eq!(visit(&mut tails, 9, 14, true), (true, 5), "a record more");
        assert_eq!(visit(&mut tails, 9, 15, true), (false, 6), "and it stays");
        assert_eq!(visit(&mut tails, 15, 15, true), (false, 0));
        assert_eq!(
            visit(&mut tails, 15, 17, false),
            (true, 0),
            "an empty transaction while nobody reads"
        );
    }
}
