//! The memory that the rows of all requests share. It is taken as rows come, and nobody waits for it:
//! those who have some would wait for each other.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// Bytes of a cell: as a value of Cassandra's or of JSON (72), and as name and digits in the answer.
const CELL: usize = 96;
/// How often the bytes of rows are there: in values, and in an answer that grows.
const FORMS: usize = 3;
/// The same of rows with collections: a number in one takes as much as a cell does.
const NESTED_FORMS: usize = 20;

/// The room.
pub struct Room {
    /// A permit for each KiB.
    free: Arc<Semaphore>,
    all: usize,
}

impl Room {
    pub fn new(bytes: usize) -> Self {
        let all = bytes / 1024;
        Room {
            free: Arc::new(Semaphore::new(all)),
            all,
        }
    }

    /// A share of it, empty as yet.
    pub fn share(&self) -> Share {
        Share {
            free: self.free.clone(),
            all: self.all,
            taken: Vec::new(),
        }
    }
}

/// What the rows of a request have taken of the room; it is given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    free: Arc<Semaphore>,
    all: usize,
    taken: Vec<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes what more rows need, by their cells and bytes.
    pub fn take(&mut self, cells: usize, bytes: usize, nested: bool) -> Result<(), Problem> {
        let forms = if nested { NESTED_FORMS } else { FORMS };
        let more = (cells * CELL + bytes * forms).div_ceil(1024);
        let taken = self.taken.iter().map(OwnedSemaphorePermit::num_permits);
        if taken.sum::<usize>() + more > self.all {
            return Err(too_large());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let more = self.free.clone().try_acquire_many_owned(more);
        self.taken.push(more.map_err(|_| taken_by_others())?);
        Ok(())
    }
}

fn too_large() -> Problem {
    let detail = "the rows take more memory than the pod has for them; ask for fewer with `limit`, or let the service's owner raise resources.limits.memory";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

fn taken_by_others() -> Problem {
    let detail = "the rows of other requests take the memory that there is; ask again after the time in Retry-After";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1)
}

#[cfg(test)]
mod tests {
    use axum::{http::header, response::IntoResponse};

    use super::*;

    #[test]
    fn rows_have_room_until_they_are_gone() {
        let room = Room::new(1024 * 1024);
        let (mut one, mut other) = (room.share(), room.share());
        one.take(4_000, 10_000, false).unwrap();
        one.take(4_000, 10_000, false).unwrap();
        other.take(100, 1_000, true).unwrap();
        let busy = other.take(4_000, 10_000, false).unwrap_err();
        assert_eq!(busy.status, StatusCode::SERVICE_UNAVAILABLE);
        let busy = busy.into_response();
        assert_eq!(busy.headers()[header::RETRY_AFTER], "1");

        drop(one);
        other.take(4_000, 10_000, false).unwrap();
        // More than there is doesn't come by asking again.
        let large = other.take(0, 40_000, true).unwrap_err();
        assert_eq!(large.status, StatusCode::INTERNAL_SERVER_ERROR);
        drop(other);
        assert_eq!(room.free.available_permits(), 1024);
    }
}
