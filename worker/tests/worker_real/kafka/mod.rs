//! The topic source and Avro against real clusters and a real schema registry. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.

mod avro;
mod preview;
mod registry;
mod tls;
mod topic;
mod upstream;
