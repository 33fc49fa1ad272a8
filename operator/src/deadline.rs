//! How long a deletion may wait for what is outside Kubernetes.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

/// Counts from the moment when the deletion was asked for.
pub struct Deadline(Option<Timestamp>);

impl Deadline {
    /// A resource, and so a namespace, can always be deleted within this time and a little more.
    const LIMIT: Duration = Duration::from_secs(60);
    /// Tried again after this time.
    pub const RETRY: Duration = Duration::from_secs(3);

    /// The deadline of an object that is being deleted.
    pub fn of(meta: &ObjectMeta) -> Self {
        Deadline(meta.deletion_timestamp.as_ref().map(|time| time.0))
    }

    /// Whether nothing is waited for any longer.
    pub fn is_over(&self) -> bool {
        let Some(asked) = self.0 else { return false };
        let waited = Timestamp::now().duration_since(asked);
        waited.unsigned_abs() >= Self::LIMIT && !waited.is_negative()
    }
}
