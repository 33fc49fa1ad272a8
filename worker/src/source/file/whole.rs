//! Files that are read as a whole, from their first record to their last, and not kept.

use std::sync::Arc;

use anyhow::ensure;
use millstream_api::{lookup::SCRATCH_GIBIBYTES, source::file::FileSource};
use millstream_plan::RecordSchema;

use super::{
    Local, blocking, download::download_once, format::Formats, origin::Origin, scratch::Scratch,
    take::Take, unpack::Reading,
};
use crate::{config::Credentials, pointer::Pointer};

/// Gives all records of the files, in the order of their names. Tries nothing again: what was given
/// before an error isn't the whole, and neither is what is there while a file is written anew.
pub async fn read_whole<T: Take + Send + 'static>(
    spec: &FileSource,
    schema: RecordSchema,
    credentials: &Credentials,
    mut take: T,
) -> anyhow::Result<T> {
    let scratch = Scratch::of_lookup(SCRATCH_GIBIBYTES << 30);
    let origin = Origin::new(spec, credentials)?;
    let reading = Arc::new(Reading {
        compression: spec.compression,
        members: spec.members.clone(),
        formats: Formats {
            format: spec.format,
            records: Pointer::parse(spec.records.as_deref().unwrap_or_default()),
            csv: spec.csv.clone(),
            schema,
            scratch: scratch.clone(),
        },
    });
    let names = origin.list(true).await?;
    ensure!(!names.is_empty(), "there are no files");
    for name in names {
        let local = match origin.local(&name) {
            Some(path) => Local {
                path,
                _temporary: None,
            },
            None => {
                let temporary = tempfile::NamedTempFile::new()?.into_temp_path();
                let mut share = scratch.share();
                download_once(&origin, &name, &temporary, &mut share).await?;
                Local {
                    path: temporary.to_path_buf(),
                    _temporary: Some((temporary, share)),
                }
            }
        };
        let file = tokio::fs::metadata(&local.path).await;
        let is_empty = file.is_ok_and(|file| file.len() == 0);
        ensure!(
            !is_empty,
            "{name} is empty: it may be about to be written anew; remove it where it isn't, or let its name begin with `_`"
        );
        let reading = reading.clone();
        let (taken, read) = blocking(move || {
            let read = reading.path(&name, &local.path, &mut take);
            (take, read)
        })
        .await?;
        read?;
        take = taken;
    }
    Ok(take)
}
