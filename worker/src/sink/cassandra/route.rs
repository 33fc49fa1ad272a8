//! Where rows belong: the tokens of their partitions, and the nodes that have these.
//!
//! It only tells which rows travel together. The driver sends a batch to the nodes of its first
//! row's token, which it computes itself.

use std::{collections::HashMap, sync::Arc};

use scylla::{
    client::session::Session,
    cluster::ClusterState,
    routing::{
        Token,
        partitioner::{Murmur3Partitioner, Partitioner, PartitionerHasher},
    },
    statement::prepared::PreparedStatement,
};
use uuid::Uuid;

use crate::sink::cassandra::bind::Values;

/// The cells of a statement that are the partition key, in the key's order.
pub struct PartitionKey(Vec<usize>);

impl PartitionKey {
    pub fn new(prepared: &PreparedStatement) -> Self {
        let mut parts = prepared.get_variable_pk_indexes().to_vec();
        parts.sort_unstable_by_key(|part| part.sequence);
        PartitionKey(parts.iter().map(|part| part.index.into()).collect())
    }

    /// The token of a row's partition. The driver's own function encodes the whole row for it; here
    /// the key's cells are read where they are.
    pub fn token(&self, row: &Values<'_>) -> Token {
        let mut hasher = Murmur3Partitioner.build_hasher();
        let part = |cell: usize| row.cell(cell).unwrap_or_default();
        match self.0.as_slice() {
            &[cell] => hasher.write(part(cell)),
            cells => {
                for value in cells.iter().map(|&cell| part(cell)) {
                    // Longer ones aren't bound.
                    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
                    hasher.write(&length.to_be_bytes());
                    hasher.write(value);
                    hasher.write(&[0]);
                }
            }
        }
        hasher.finish()
    }
}

/// Numbers for the sets of nodes that have the partitions of a table.
pub struct ReplicaSets<'a> {
    cluster: Arc<ClusterState>,
    keyspace: &'a str,
    table: &'a str,
    /// The set of a range of tokens, by the ring's token at its end.
    ranges: HashMap<i64, usize>,
    sets: HashMap<Vec<Uuid>, usize>,
}

impl<'a> ReplicaSets<'a> {
    /// Those of the table that a statement is for.
    pub fn new(session: &Session, prepared: &'a PreparedStatement) -> Self {
        ReplicaSets {
            cluster: session.get_cluster_state(),
            keyspace: prepared.get_keyspace_name().unwrap_or_default(),
            table: prepared.get_table_name().unwrap_or_default(),
            ranges: HashMap::new(),
            sets: HashMap::new(),
        }
    }

    /// The set that has a token.
    pub fn of(&mut self, token: Token) -> usize {
        if self.cluster.get_nodes_info().len() <= 1 {
            return 0;
        }
        // From one token of the ring to the next all partitions are on the same nodes.
        let ring = self.cluster.replica_locator().ring();
        let end = ring.ring_range_full(token).next();
        let end = end.map_or(0, |(end, _)| end.value());
        if let Some(&set) = self.ranges.get(&end) {
            return set;
        }
        let set = self.add(token);
        self.ranges.insert(end, set);
        set
    }

    fn add(&mut self, token: Token) -> usize {
        let nodes = self
            .cluster
            .get_token_endpoints(self.keyspace, self.table, token);
        let mut nodes: Vec<_> = nodes.iter().map(|(node, _)| node.host_id).collect();
        nodes.sort_unstable();
        let number = self.sets.len();
        *self.sets.entry(nodes).or_insert(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::cassandra::bind::BoundRows;

    fn cell(value: &str) -> Vec<u8> {
        let length = i32::try_from(value.len()).unwrap();
        [&length.to_be_bytes(), value.as_bytes()].concat()
    }

    fn token(key: &[usize], cells: &[&str]) -> i64 {
        let cells: Vec<_> = cells.iter().map(|value| cell(value)).collect();
        let cells: Vec<_> = cells.iter().map(Vec::as_slice).collect();
        let mut rows = BoundRows::default();
        rows.push(&cells, None, 0);
        let row = rows.values().next().unwrap();
        PartitionKey(key.to_vec()).token(&row).value()
    }

    #[test]
    fn tokens_are_those_of_cassandra() {
        // SELECT token('test').
        const TEST: i64 = -6_017_608_668_500_074_083;
        assert_eq!(token(&[0], &["test", "a"]), TEST);
        assert_eq!(token(&[1], &["a", "test"]), TEST);
        let composite = Murmur3Partitioner.hash_one(b"\0\x04test\0\0\0\0\0\x01b\0");
        assert_eq!(token(&[2, 1, 0], &["b", "", "test"]), composite.value());
    }
}
