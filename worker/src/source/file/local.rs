//! A file on the local disk that must stay as it is while it is read.

use std::{
    fs::{File, Metadata},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
    time::SystemTime,
};

use bytes::Bytes;
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};

/// Read at once.
pub const BUFFER: usize = 128 * 1024;

/// A file; reading it fails once it has changed, so that two versions are never mixed.
pub struct LocalFile {
    file: File,
    opened: Stamp,
}

#[derive(Clone, Debug, PartialEq)]
struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Stamp {
            size: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}

impl LocalFile {
    /// Opens a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        LocalFile::new(File::open(path)?)
    }

    /// A file that is open, from its beginning.
    pub fn new(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        let opened = file.metadata()?.into();
        Ok(LocalFile { file, opened })
    }

    fn again(&self) -> io::Result<Self> {
        Ok(LocalFile {
            file: self.file.try_clone()?,
            opened: self.opened.clone(),
        })
    }

    /// What was read is given only where the file hasn't changed until after it was read.
    fn unchanged(&self) -> io::Result<()> {
        let now = Stamp::from(self.file.metadata()?);
        if now == self.opened {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the file changed while it was read: it had {} bytes, now {}; it is read again when it stays as it is",
            self.opened.size, now.size
        )))
    }
}

impl Read for LocalFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.unchanged()?;
        Ok(read)
    }
}

impl Seek for LocalFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Length for LocalFile {
    fn len(&self) -> u64 {
        self.opened.size
    }
}

impl ChunkReader for LocalFile {
    type T = BufReader<LocalFile>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let mut again = self.again()?;
        again.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(again))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // The length comes from the file: a damaged one may say anything.
        let inside = start.checked_add(length as u64);
        if inside.is_none_or(|end| end > self.opened.size) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} are beyond the file's end"
            )));
        }
        let mut again = self.again()?;
        again.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; length];
        again.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}
