//! Sources against the servers that they read, started here; no cluster is needed.

#![allow(clippy::unwrap_used)]

mod certificates;
mod file;
mod file_s3;
mod files;
mod http;
mod https;
mod infer;
mod ports;
mod postgres;
mod postgres_server;
