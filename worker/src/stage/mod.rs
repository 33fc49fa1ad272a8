//! The stages of a pipeline.

pub mod assignment;
pub mod ingest;
pub mod process;
