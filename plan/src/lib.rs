//! Checks and plans the schema and the SQL of a `DataPipeline`; runs the plan over batches.
//!
//! Operator, worker and offline check all ask this crate, and so all say the same. It is pure: no
//! I/O, no clock, nothing to wait for. [`RecordSchema`] is the shape of a record, [`SinkPlan`] a
//! query over it, [`SinkExecutor`] runs it, [`key_pointers`] finds the key of the topic.

mod engine;
mod error;
mod execute;
mod input;
mod key;
mod query;
mod resolve;
mod schema;
pub mod serve;
mod sink;
mod table;
mod tokens;

pub use error::{KeyProblem, PlanError, Position, QueryProblem, SchemaProblem, TableProblem};
pub use execute::{ExecError, SinkExecutor};
pub use input::{ROW_COLUMN, VirtualColumn};
pub use key::key_pointers;
pub use schema::{RecordSchema, SchemaField, SchemaType, timestamp};
pub use sink::{ResultColumn, SinkPlan};
pub use table::fits;
