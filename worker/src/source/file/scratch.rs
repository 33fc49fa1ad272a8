//! Room on the pod's disk: what is beyond would get the pod evicted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A bounded room, shared by downloads and sorting. They write to the system's temporary folder.
#[derive(Clone)]
pub struct Scratch {
    limit: u64,
    /// Whose limit it is, in MiB.
    bound: fn(u64) -> String,
    used: Arc<AtomicU64>,
}

impl Scratch {
    /// A source's room of so many bytes.
    pub fn new(limit: u64) -> Self {
        Scratch {
            limit,
            bound: |limit| format!("`scratchSize` is {limit} MiB: raise it"),
            used: Arc::default(),
        }
    }

    /// A lookup's room of so many bytes.
    pub fn of_lookup(limit: u64) -> Self {
        Scratch {
            bound: |limit| format!("a lookup has {limit} MiB: make its file smaller"),
            ..Scratch::new(limit)
        }
    }

    /// A share of it, empty as yet.
    pub fn share(&self) -> Share {
        Share {
            scratch: self.clone(),
            bytes: 0,
        }
    }
}

/// What somebody has taken of the room; it is given back when it is dropped.
pub struct Share {
    scratch: Scratch,
    bytes: u64,
}

impl Share {
    /// Takes as much in all, where it has less; fails where there isn't as much.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), String> {
        let more = bytes.saturating_sub(self.bytes);
        let used = self.scratch.used.fetch_add(more, Ordering::Relaxed) + more;
        self.bytes += more;
        if more == 0 || used <= self.scratch.limit {
            return Ok(());
        }
        self.give_back(more);
        let mebibytes = |bytes: u64| bytes.div_ceil(1024 * 1024);
        Err(format!(
            "{} MiB of disk are needed, {}",
            mebibytes(used),
            (self.scratch.bound)(mebibytes(self.scratch.limit))
        ))
    }

    /// Takes so much more; fails where there isn't as much.
    pub fn grow(&mut self, bytes: u64) -> Result<(), String> {
        self.grow_to(self.bytes + bytes)
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.give_back(self.bytes);
    }

    fn give_back(&mut self, bytes: u64) {
        self.scratch.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}
