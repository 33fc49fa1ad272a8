//! The stages of a pipeline.

mod assignment;
mod consume;
mod flow;
pub mod groups;
pub mod ingest;
pub mod key;
mod place;
pub mod process;
mod turn;

/// The name of the ingest stage, in statuses, metrics and dead letters; the process stage goes by
/// the names of its sinks.
pub const INGEST: &str = "ingest";
