//! Checks and plans the schema and the SQL of a `DataPipeline`; runs the plan over batches.
//!
//! Operator, worker and offline check all ask this crate, and so all say the same. It is pure: no
//! I/O, no clock, nothing to wait for. [`RecordSchema`] is the shape of a record, [`SinkPlan`] a
//! query over it, which may join a [`Lookup`], [`SinkExecutor`] runs it, [`topic_key`] finds the key of the topic; [`accept`]
//! holds a whole pipeline to all of that.

mod accept;
pub mod avro;
pub mod claim;
mod engine;
mod error;
mod execute;
mod expectation;
mod fold;
mod group;
mod input;
mod join;
mod key;
mod keyspace;
mod lookup;
mod panics;
mod query;
mod records;
mod refusal;
mod resolve;
mod schedule;
mod schema;
pub mod serve;
mod sink;
mod table;
mod tokens;
mod topic;

pub use accept::{
    Accepted, accept, claim_table, declared_by, delta_type, find_keyspace, has_rounded_statistics,
    keyspace_manager, plan_lookups,
};
pub use error::{KeyProblem, PlanError, Position, QueryProblem, SchemaProblem, TableProblem};
pub use execute::{ExecError, SinkExecutor};
pub use expectation::{Expectations, Failure, Rule};
pub use fold::{Fold, MAX_STATE_BYTES, Results};
pub use input::{ROW_COLUMN, VirtualColumn};
pub use key::topic_key;
pub use keyspace::accept_keyspace;
pub use lookup::{Lookup, LookupError, LookupPlan, LookupTable, Lookups};
pub use panics::caught;
pub use records::check_records;
pub use refusal::Refusal;
pub use schedule::Calendar;
pub use schema::{RecordSchema, SchemaField, SchemaType, timestamp};
pub use sink::{ResultColumn, SinkPlan};
pub use table::{STATE_COLUMN, fits};
pub use topic::accept_topic;
