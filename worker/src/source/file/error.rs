//! Why a file isn't read to its end.

use std::io;

/// Why a file isn't read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody takes the records any more.
    #[error("the source was closed")]
    Closed,
    /// The records that are done aren't the first ones of the file.
    #[error("it isn't the file that was read before: it begins with other records, or has fewer")]
    Rewritten,
    /// The file can't be read, or is damaged.
    #[error("{0}")]
    Unreadable(String),
}

impl ReadError {
    /// The error with the place where it happened.
    pub fn at(self, place: impl std::fmt::Display) -> Self {
        match self {
            ReadError::Unreadable(message) => ReadError::Unreadable(format!("{place}: {message}")),
            other => other,
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Unreadable(match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("it ends too early, is it cut off? ({error})"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                format!("it is damaged ({error})")
            }
            _ => error.to_string(),
        })
    }
}
