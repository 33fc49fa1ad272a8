//! What was served, so that a check can hold a table against it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Apis, dataset};

/// Ids beyond this many are counted and not kept, so that a server left alone stays small.
const KEPT: usize = 1_000_000;

/// What one API has served.
#[derive(Default)]
pub(crate) struct Sent(Mutex<Counts>);

#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    /// Answers with records, those without a fault.
    answers: u64,
    /// Records in them.
    records: u64,
    /// Ids of the records, in the order in which they were served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ids: Vec<Box<str>>,
}

impl Sent {
    pub(crate) fn add(&self, records: &[Value]) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.answers += 1;
        counts.records += records.len() as u64;
        let room = KEPT.saturating_sub(counts.ids.len());
        let ids = records.iter().filter_map(dataset::id).take(room);
        counts.ids.extend(ids.map(Box::from));
    }

    fn counts(&self, with_ids: bool) -> Counts {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match with_ids {
            true => counts.clone(),
            false => Counts {
                ids: Vec::new(),
                ..*counts
            },
        }
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Counts::default();
    }
}

#[derive(Deserialize)]
pub(crate) struct Show {
    #[serde(default = "yes")]
    ids: bool,
}

fn yes() -> bool {
    true
}

/// `GET /sent`. An answer counts when it is handed to the connection: one whose client has gone
/// meanwhile is counted though nobody read it.
pub(crate) async fn show(State(apis): State<Arc<Apis>>, Query(show): Query<Show>) -> Json<Value> {
    Json(json!({
        "api": apis.users_sent.counts(show.ids),
        "resource": apis.rows_sent.counts(show.ids),
    }))
}

/// `DELETE /sent`.
pub(crate) async fn forget(State(apis): State<Arc<Apis>>) {
    apis.users_sent.clear();
    apis.rows_sent.clear();
}
