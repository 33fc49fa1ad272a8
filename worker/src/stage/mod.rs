//! The stages of a pipeline.

mod assignment;
mod consume;
mod flow;
pub mod ingest;
pub mod key;
pub mod process;
