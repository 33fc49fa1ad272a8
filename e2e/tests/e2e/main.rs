//! The promises of Millstream, held against real Kubernetes, Kafka and Cassandra: one a file.
//!
//! `cargo xtask test --only e2e [FILTER]` runs them. They share one machine, so one at a time.

mod crashes;
mod crd;
mod dead_letter;
mod deletion;
mod gap;
mod ingest;
mod keyspace;
mod lookups;
mod mistakes;
mod operators;
mod orders;
mod scaling;
mod serve;
mod steady;
mod topic;
mod users;
