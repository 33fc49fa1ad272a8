//! Whether a pipeline's records can go from its source through its topic.

use millstream_api::{DataPipeline, pipeline::Encoding};

use crate::{PlanError, RecordSchema};

/// Checks that the records can be encoded, and don't go in a circle.
pub fn check_records(pipeline: &DataPipeline, schema: &RecordSchema) -> Result<(), PlanError> {
    if pipeline.spec.topic.encoding == Encoding::Avro {
        schema.avro(&pipeline.topic_name())?;
    }
    if let Some(source) = &pipeline.spec.source.topic
        && source.kafka.is_none()
        && [pipeline.topic_name(), pipeline.dead_letter_topic_name()].contains(&source.name)
    {
        return Err(PlanError::Source(format!(
            "topic `{}` is written by this pipeline itself: give topic.name another name, or read it with another pipeline",
            source.name
        )));
    }
    Ok(())
}
