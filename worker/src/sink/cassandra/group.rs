//! Which rows travel together.

use std::ops::Range;

/// Partitions of a batch: as many as Cassandra takes without a warning.
const BATCH_PARTITIONS: usize = 10;
/// Rows of a batch, where partitions have several.
pub const BATCH_ROWS: usize = 32;

/// Where a row belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The set of nodes that have it, by a number.
    pub replicas: usize,
    /// Of its partition.
    pub token: i64,
    /// Its index: in the order of arrival.
    pub row: usize,
    /// What Cassandra counts for it.
    pub bytes: usize,
}

impl Place {
    fn partition(&self) -> (usize, i64) {
        (self.replicas, self.token)
    }
}

/// Sorts rows by replica set, partition and arrival, and cuts them into batches. A batch has
/// rows of one replica set. A partition is cut only where it is too large for a batch.
pub fn group(rows: &mut [Place], batch_bytes: usize) -> Vec<Range<usize>> {
    rows.sort_unstable_by_key(|place| (place.replicas, place.token, place.row));
    let mut batches = Batches {
        done: Vec::with_capacity(rows.len() / BATCH_PARTITIONS + 1),
        limit: batch_bytes,
        open: 0..0,
        bytes: 0,
        partitions: 0,
        last: None,
    };
    for partition in rows.chunk_by(|a, b| a.partition() == b.partition()) {
        let bytes = partition.iter().map(|place| place.bytes).sum();
        if !batches.takes_partition(partition[0].replicas, partition.len(), bytes) {
            batches.close();
        }
        for place in partition {
            if !batches.takes(1, place.bytes) {
                batches.close();
            }
            batches.add(place);
        }
    }
    batches.close();
    batches.done
}

/// Batches, the last of which is being filled.
struct Batches {
    done: Vec<Range<usize>>,
    /// Bytes of a batch.
    limit: usize,
    open: Range<usize>,
    bytes: usize,
    partitions: usize,
    /// Replica set and token of the last row.
    last: Option<(usize, i64)>,
}

impl Batches {
    /// An empty batch takes a row of any size.
    fn takes(&self, rows: usize, bytes: usize) -> bool {
        self.open.is_empty()
            || (self.open.len() + rows <= BATCH_ROWS && self.bytes + bytes <= self.limit)
    }

    fn takes_partition(&self, replicas: usize, rows: usize, bytes: usize) -> bool {
        self.last.is_none_or(|(last, _)| last == replicas)
            && self.partitions < BATCH_PARTITIONS
            && self.takes(rows, bytes)
    }

    fn add(&mut self, place: &Place) {
        if self.last != Some(place.partition()) {
            self.last = Some(place.partition());
            self.partitions += 1;
        }
        self.open.end += 1;
        self.bytes += place.bytes;
    }

    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let end = self.open.end;
        self.done.push(std::mem::replace(&mut self.open, end..end));
        self.bytes = 0;
        self.partitions = 0;
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups rows of a replica set, a token and a size each; gives the rows of every batch.
    fn batches(batch_bytes: usize, rows: &[(usize, i64, usize)]) -> Vec<Vec<usize>> {
        let rows = rows.iter().enumerate();
        let mut places: Vec<_> = rows
            .map(|(row, &(replicas, token, bytes))| Place {
                replicas,
                token,
                row,
                bytes,
            })
            .collect();
        let batches = group(&mut places, batch_bytes);
        let rows = |batch: Range<usize>| places[batch].iter().map(|place| place.row).collect();
        batches.into_iter().map(rows).collect()
    }

    #[test]
    fn rows_of_a_partition_stand_together_in_their_order() {
        let rows = [7, -3, 7, 5, -3, 7].map(|token| (0, token, 30));
        assert_eq!(batches(1_000, &rows), [[1, 4, 3, 0, 2, 5]]);
        assert_eq!(batches(1_000, &[]), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_partition_that_fits_into_a_batch_is_not_cut() {
        let rows = [1, 2, 3, 1, 2, 3, 3].map(|token| (0, token, 30));
        let expected: [&[usize]; 2] = [&[0, 3, 1, 4], &[2, 5, 6]];
        assert_eq!(batches(150, &rows), expected);
        let expected: [&[usize]; 3] = [&[0, 3], &[1, 4], &[2, 5, 6]];
        assert_eq!(batches(100, &rows), expected);
    }

    #[test]
    fn a_partition_that_is_too_large_is_cut_and_its_rest_travels_on() {
        let rows = [4, 4, 4, 4, 4, 9, 2].map(|token| (0, token, 30));
        let expected: [&[usize]; 3] = [&[6], &[0, 1, 2], &[3, 4, 5]];
        assert_eq!(batches(100, &rows), expected);
        let many = [(0, 4, 1); 70];
        let lengths: Vec<_> = batches(1_000, &many).iter().map(Vec::len).collect();
        assert_eq!(lengths, [32, 32, 6]);
    }

    #[test]
    fn a_row_that_is_too_large_travels_alone() {
        let rows = [(0, 1, 30), (0, 2, 500), (0, 3, 30), (0, 3, 500)];
        let expected: [&[usize]; 4] = [&[0], &[1], &[2], &[3]];
        assert_eq!(batches(100, &rows), expected);
    }

    #[test]
    fn a_batch_has_ten_partitions_and_as_many_rows_as_fit() {
        let rows: Vec<_> = (0..25).map(|token| (0, token, 1)).collect();
        let lengths = |rows: &[_]| -> Vec<_> { batches(100, rows).iter().map(Vec::len).collect() };
        assert_eq!(lengths(&rows), [10, 10, 5]);
        let rows: Vec<_> = (0..36).map(|row| (0, row / 3, 1)).collect();
        assert_eq!(lengths(&rows), [30, 6]);
    }

    #[test]
    fn a_batch_has_rows_of_one_replica_set() {
        let rows = [
            (1, 10, 30),
            (0, 20, 30),
            (2, 30, 30),
            (1, 5, 30),
            (0, 20, 30),
            (1, 10, 30),
        ];
        let expected: [&[usize]; 3] = [&[1, 4], &[3, 0, 5], &[2]];
        assert_eq!(batches(1_000, &rows), expected);
        let expected: [&[usize]; 4] = [&[1, 4], &[3], &[0, 5], &[2]];
        assert_eq!(batches(60, &rows), expected);
    }

    #[test]
    fn no_row_is_lost_or_doubled() {
        // Tokens, sets and sizes of all kinds, by a simple generator.
        let mut seed: usize = 42;
        let mut next = |below| {
            seed = (seed * 1_103_515_245 + 12_345) % (1 << 31);
            (seed >> 8) % below
        };
        for _ in 0..200 {
            let rows: Vec<_> = (0..next(300))
                .map(|_| (next(3), i64::try_from(next(40)).unwrap(), 1 + next(400)))
                .collect();
            let limit = 1 + next(2_000);
            let batches = batches(limit, &rows);
            let mut seen: Vec<usize> = batches.concat();
            for batch in &batches {
                let bytes: usize = batch.iter().map(|&row| rows[row].2).sum();
                assert!(!batch.is_empty() && batch.len() <= BATCH_ROWS);
                assert!(bytes <= limit || batch.len() == 1);
                assert!(batch.iter().all(|&row| rows[row].0 == rows[batch[0]].0));
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..rows.len()));
        }
    }
}
