//! The topic source and Avro against real clusters and a real schema registry. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.

#![allow(clippy::unwrap_used)]

mod avro;
mod registry;
#[allow(dead_code)]
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod topic;
mod upstream;
