//! The API server's audit log: who wrote what.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Environment, OPERATOR_NAMESPACE};

/// The audit log from a point in time on.
pub struct AuditLog {
    path: PathBuf,
    from: u64,
}

impl AuditLog {
    /// From now on. `None` where the provider keeps no audit log.
    ///
    /// # Errors
    /// When the log isn't where the environment says.
    pub fn from_now(environment: &Environment) -> Result<Option<Self>> {
        let Some(path) = environment.audit_log.clone() else {
            return Ok(None);
        };
        let from = std::fs::metadata(&path)
            .with_context(|| path.display().to_string())?
            .len();
        Ok(Some(AuditLog { path, from }))
    }

    /// What the operator has written since, one line a write.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn writes_by_the_operator(&self) -> Result<Vec<String>> {
        let user = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:");
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // The last line may not be whole yet.
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let entries = serde_json::Deserializer::from_slice(&bytes[..whole]).into_iter::<Value>();
        let mut writes = Vec::new();
        for entry in entries {
            let entry = entry?;
            let by = entry["user"]["username"].as_str().unwrap_or_default();
            // The lease is renewed for as long as the operator lives.
            let renews = entry["objectRef"]["resource"] == "leases";
            if by.starts_with(&user) && entry["stage"] == "ResponseComplete" && !renews {
                writes.push(format!(
                    "{} {} {}",
                    entry["requestReceivedTimestamp"], entry["verb"], entry["requestURI"]
                ));
            }
        }
        Ok(writes)
    }
}
