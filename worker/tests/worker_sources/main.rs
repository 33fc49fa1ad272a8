//! Sources against the servers that they read, started here; no cluster is needed.

#![allow(clippy::unwrap_used)]

mod file;
mod file_s3;
mod files;
mod http;
mod ports;
mod postgres;
