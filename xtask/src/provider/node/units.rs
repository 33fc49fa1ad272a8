//! Starting the node's units, and waiting for them to serve.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};

use super::layout::Layout;
use super::namespaces::{Namespaces, Started, Unit};
use crate::process;

/// The units of one `up`: those that run already and those it started.
pub(super) struct Units<'a> {
    node: &'a Namespaces,
    layout: &'a Layout,
    running: BTreeMap<String, u32>,
    started: Mutex<BTreeMap<&'static str, Started>>,
}

impl<'a> Units<'a> {
    pub(super) fn new(node: &'a Namespaces, layout: &'a Layout) -> Self {
        Self {
            node,
            layout,
            running: node.running(),
            started: Mutex::default(),
        }
    }

    pub(super) fn runs(&self, unit: &str) -> bool {
        self.running.contains_key(unit)
    }

    /// How many had to be started.
    pub(super) fn count_started(&self) -> usize {
        self.lock().len()
    }

    /// Starts a unit unless it runs; whether it had to.
    pub(super) fn start(&self, unit: &Unit) -> Result<bool> {
        if self.runs(unit.name) {
            return Ok(false);
        }
        let started = self.node.start(unit)?;
        self.lock().insert(unit.name, started);
        Ok(true)
    }

    /// Lets one go on that was paused.
    pub(super) fn resume(&self, unit: &str) -> Result<()> {
        self.node.signal(unit, "CONT")
    }

    /// Polls until `ready` succeeds; its last error tells why it didn't, with the unit's log.
    /// Gives up at once when the unit ends.
    pub(super) fn wait(
        &self,
        unit: &str,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut not_yet = None;
        let waited = process::wait_until(what, timeout, || {
            match ready() {
                Ok(()) => return Ok(Some(())),
                Err(reason) => not_yet = Some(reason),
            }
            if self.lock().get_mut(unit).is_some_and(Started::has_ended) {
                bail!("{unit} ended");
            }
            Ok(None)
        });
        let Err(error) = waited else {
            return Ok(());
        };
        let error = match not_yet {
            Some(reason) => reason.context(error.to_string()),
            None => error,
        };
        let start = self.lock().get(unit).map_or(0, |started| started.log_start);
        let log = process::quoted(&self.layout.log(unit), start);
        Err(error.context(format!("{unit} failed to start; {log}")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
