//! Worker processes against the real Kafka, Cassandra and schema registry. Skipped where
//! `MILLSTREAM_ENVIRONMENT` doesn't name them.
//!
//! One program: each one more would be linked against the SQL engine once more.

#![allow(clippy::unwrap_used)]

mod database;
mod delta;
mod documents;
mod exactness;
mod file;
#[path = "../worker_sources/files.rs"]
mod files;
mod kafka;
mod lookup;
mod memory;
mod pipeline;
#[path = "../worker_sources/ports.rs"]
mod ports;
#[path = "../worker_sources/postgres_server.rs"]
mod postgres_server;
mod readback;
mod recovery;
mod replay;
mod schedule;
mod sender;
mod serve;
mod serving;
mod state;
mod support;
