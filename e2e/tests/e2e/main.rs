//! The promises of Millstream, held against real Kubernetes, Kafka and Cassandra: one a file.
//!
//! `cargo xtask test --only e2e [FILTER]` runs them. A few of them run at a time, each in a
//! namespace of its own; those that stop a service or the operator, or that measure, run alone.

mod crashes;
mod crd;
mod dead_letter;
mod deletion;
mod delta;
mod example;
mod gap;
mod ingest;
mod keyspace;
mod licenses;
mod lookups;
mod meetup;
mod mistakes;
mod operators;
mod orders;
mod runs;
mod scaling;
mod schedule;
mod serve;
mod sessions;
mod steady;
mod topic;
mod users;
mod users_avro;
