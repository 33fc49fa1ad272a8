//! Upserts to a collection: in bulk, for as long as it takes.
//!
//! What is new is inserted, and what is there already is looked at, and updated if it is older. A
//! conditional upsert would be one command, but where the document is newer it fails with a duplicate
//! key, at which some servers leave the rest of the command undone.

use std::time::Duration;

use futures::{StreamExt, stream};
use mongodb::{
    Database,
    bson::{Bson, Document, doc},
};

use super::{
    DOCUMENTS,
    bind::{ID, Upsert, VERSION},
    reply::{self, Failure, Problem, Reply, number},
};
use crate::{batch::Rejected, metrics::StageMetrics, retry::Delays, status::StatusPart};

/// Documents of a command.
const BULK: usize = 250;
const BULK_BYTES: usize = 1024 * 1024;
/// Updates of a command: FerretDB keeps a connection of its database open for each of them, and has
/// a hundred.
const UPDATES: usize = 10;
/// Bulks that are being written at once.
const IN_FLIGHT: usize = 2;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the server waits for most of its replicas.
const REPLICAS_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts; short, for a whole collection waits.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Documents that the server refuses: their index, and why.
type Refused = Vec<(usize, String)>;

pub struct Writer {
    database: Database,
    collection: String,
    status: StatusPart,
    metrics: StageMetrics,
}

impl Writer {
    pub fn new(
        database: Database,
        collection: &str,
        status: StatusPart,
        metrics: StageMetrics,
    ) -> Self {
        Writer {
            database,
            collection: collection.to_owned(),
            status,
            metrics,
        }
    }

    /// Writes documents, no two of them the same; returns when each is acknowledged or refused.
    pub async fn write(&self, upserts: Vec<Upsert>) -> Vec<Rejected> {
        let bulks = stream::iter(split(upserts)).map(|bulk| self.write_bulk(bulk));
        let rejected: Vec<_> = bulks.buffer_unordered(IN_FLIGHT).collect().await;
        rejected.concat()
    }

    /// Writes a bulk. What the server refuses is halved until the record that it means stands alone.
    async fn write_bulk(&self, bulk: Vec<Upsert>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut bulks = vec![bulk];
        while let Some(mut bulk) = bulks.pop() {
            match self.write_part(&bulk).await {
                Ok(refused) => {
                    for (index, reason) in refused {
                        match bulk[index].halves() {
                            Some([older, newer]) => bulks.extend([vec![newer], vec![older]]),
                            None => rejected.push(Rejected::new(
                                bulk[index].parts[0].record,
                                format!("the server refuses the document: {reason}"),
                            )),
                        }
                    }
                }
                Err(_) => {
                    let newer = bulk.split_off(bulk.len() / 2);
                    bulks.extend([newer, bulk]);
                }
            }
        }
        rejected
    }

    /// Writes documents, for as long as it takes. The error is why some of several are refused.
    async fn write_part(&self, bulk: &[Upsert]) -> Result<Refused, String> {
        let mut delays = Delays::up_to(LONGEST_DELAY);
        let mut failing = None;
        loop {
            match self.upsert(bulk).await {
                Ok(refused) => return Ok(refused),
                Err(Failure::Refused(reason)) if bulk.len() == 1 => return Ok(vec![(0, reason)]),
                Err(Failure::Refused(reason)) => return Err(reason),
                Err(Failure::Passing(reason)) => {
                    let failing = failing.get_or_insert_with(|| self.status.failing(DOCUMENTS));
                    failing.say(format!("can't write to {}: {reason}", self.collection));
                    self.metrics.write_retries.inc();
                    delays.wait().await;
                }
            }
        }
    }

    /// Inserts documents, and updates those that are there and older.
    async fn upsert(&self, bulk: &[Upsert]) -> Result<Refused, Failure> {
        let documents: Vec<_> = bulk.iter().map(Upsert::document).collect();
        let insert = doc! {"insert": &self.collection, "documents": documents};
        let mut refused = Refused::new();
        let mut there = Vec::new();
        for (index, problem) in self.send(insert).await?.problems {
            match problem {
                Problem::IsThere => there.extend(bulk.get(index).map(|upsert| (index, upsert))),
                Problem::Refused(reason) => refused.push((index, reason)),
            }
        }
        if !there.is_empty() {
            let (older, missing) = self.older(&there).await?;
            for part in older.chunks(UPDATES) {
                self.update(part).await?;
            }
            refused.extend(missing);
        }
        refused.retain(|(index, _)| *index < bulk.len());
        Ok(refused)
    }

    /// Those of the documents that are there and older than what is to be written. One that isn't
    /// there could be inserted but for another unique index.
    async fn older<'a>(
        &self,
        upserts: &[(usize, &'a Upsert)],
    ) -> Result<(Vec<&'a Upsert>, Refused), Failure> {
        let ids: Vec<_> = upserts
            .iter()
            .map(|(_, upsert)| upsert.id.clone())
            .collect();
        let find = doc! {
            "find": &self.collection,
            "filter": {ID: {"$in": ids}},
            "projection": {VERSION: 1},
            "batchSize": BULK as i32,
            "singleBatch": true,
        };
        let answer = self.run(find).await?;
        let found = answer
            .get_document("cursor")
            .and_then(|cursor| cursor.get_array("firstBatch"))
            .map_err(|error| Failure::Passing(format!("an answer without documents: {error}")))?;
        let versions: Vec<_> = found
            .iter()
            .filter_map(Bson::as_document)
            .filter_map(|found| Some((found.get(ID)?, number(found, VERSION))))
            .collect();
        let mut older = Vec::new();
        let mut missing = Refused::new();
        for (index, upsert) in upserts {
            match versions.iter().find(|(id, _)| same(id, &upsert.id)) {
                None => missing.push((*index, ANOTHER_INDEX.into())),
                Some((_, version)) if *version >= Some(upsert.version()) => {}
                Some(_) => older.push(*upsert),
            }
        }
        Ok((older, missing))
    }

    /// Updates documents that are older than what is to be written, still.
    async fn update(&self, upserts: &[&Upsert]) -> Result<(), Failure> {
        let updates = upserts.iter().map(|upsert| {
            // Also where there is no version: then it isn't ours, and older.
            let older = doc! {"$not": {"$gte": upsert.version()}};
            Bson::Document(doc! {
                "q": {ID: upsert.id.clone(), VERSION: older},
                "u": {"$set": upsert.fields()},
            })
        });
        let updates: Vec<_> = updates.collect();
        let count = updates.len() as i64;
        let update = doc! {"update": &self.collection, "updates": updates};
        let reply = self.send(update).await?;
        // Some servers stop at the first problem, and don't say whose it is.
        match reply.problems.into_iter().next() {
            Some((_, Problem::Refused(reason))) => Err(Failure::Refused(reason)),
            Some((_, Problem::IsThere)) => Err(Failure::Refused(ANOTHER_INDEX.into())),
            None if reply.taken == count => Ok(()),
            None => Err(Failure::Passing(
                "another worker writes the same documents".into(),
            )),
        }
    }

    /// Sends a write that is acknowledged by most replicas.
    async fn send(&self, mut write: Document) -> Result<Reply, Failure> {
        let wait = REPLICAS_TIMEOUT.as_millis() as i64;
        write.insert("ordered", false);
        write.insert("writeConcern", doc! {"w": "majority", "wtimeout": wait});
        reply::read(&self.run(write).await?)
    }

    async fn run(&self, command: Document) -> Result<Document, Failure> {
        let answer = self.database.run_command(command).into_future();
        match tokio::time::timeout(COMMAND_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error| reply::failure(&error)),
            Err(_) => Err(Failure::Passing(format!(
                "no answer within {} s",
                COMMAND_TIMEOUT.as_secs()
            ))),
        }
    }
}

/// Whether these are one id, as servers see it: numbers are equal whatever their type.
fn same(one: &Bson, other: &Bson) -> bool {
    let integer = |id: &Bson| id.as_i64().or(id.as_i32().map(i64::from));
    one == other || integer(one).is_some_and(|one| integer(other) == Some(one))
}

const ANOTHER_INDEX: &str = "another document has its value in a unique index";

/// Cuts documents into bulks.
fn split(upserts: Vec<Upsert>) -> Vec<Vec<Upsert>> {
    let mut bulks = Vec::new();
    let mut bulk = Vec::new();
    let mut bytes = 0;
    for upsert in upserts {
        let size = upsert.size();
        let full = bulk.len() == BULK || bytes + size > BULK_BYTES;
        if full && !bulk.is_empty() {
            bulks.push(std::mem::take(&mut bulk));
            bytes = 0;
        }
        bytes += size;
        bulk.push(upsert);
    }
    if !bulk.is_empty() {
        bulks.push(bulk);
    }
    bulks
}
