//! Compression and archives: from a file to the streams of bytes in it.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use millstream_api::source::file::{Compression, FileFormat};
use zip::ZipArchive;

use super::{
    error::ReadError,
    format::{self, Formats, Input, Output},
    local::{BUFFER, LocalFile},
    take::Take,
};

/// Names go into the position, and Kafka keeps 4 KiB of it.
const MAX_NAME: usize = 1024;

/// How files are unpacked and read.
pub struct Reading {
    /// Found out for each file where there is none.
    pub compression: Option<Compression>,
    /// Which members of a zip are read, with `*` and `?`.
    pub members: Option<String>,
    pub formats: Formats,
}

impl Reading {
    /// Reads the file at a path to its end.
    pub fn path(&self, name: &str, path: &Path, take: &mut dyn Take) -> Result<(), ReadError> {
        let file = LocalFile::open(path).map_err(|error| ReadError::from(error).at(name))?;
        self.file(name, file, take)
    }

    /// Reads a file to its end.
    pub fn file(&self, name: &str, file: LocalFile, take: &mut dyn Take) -> Result<(), ReadError> {
        let mut file = BufReader::with_capacity(BUFFER, file);
        let read = match self.compression(&mut file)? {
            Compression::Zip => self.archive(name, file, take),
            compression => self.single(name, compression, file, take),
        };
        read.map_err(|error| error.at(name))
    }

    fn compression(&self, file: &mut impl BufRead) -> Result<Compression, ReadError> {
        match self.compression {
            Some(compression) => Ok(compression),
            None => Ok(detect(file.fill_buf()?)),
        }
    }

    fn single(
        &self,
        name: &str,
        compression: Compression,
        mut file: BufReader<LocalFile>,
        take: &mut dyn Take,
    ) -> Result<(), ReadError> {
        if !take.begin(None)? {
            return Ok(());
        }
        let mut output = Output {
            place: name,
            take: &mut *take,
        };
        let plain = compression == Compression::None;
        if plain && self.formats.of(name, &mut file)? == FileFormat::Parquet {
            format::read_parquet(file.into_inner(), &mut output)?;
        } else {
            let input = decompress(compression, file)?;
            format::read(&self.formats, name, input, &mut output)?;
        }
        take.end()
    }

    /// Members in the order of their names, each checked against its checksum before any of its
    /// records is given.
    fn archive(
        &self,
        name: &str,
        file: BufReader<LocalFile>,
        take: &mut dyn Take,
    ) -> Result<(), ReadError> {
        let mut archive = ZipArchive::new(file).map_err(damaged)?;
        if archive.has_duplicate_names() {
            // Of those of one name the last would be read alone.
            let message = "several members of the zip have the same name: give each its own";
            return Err(ReadError::Unreadable(message.into()));
        }
        let mut members = Vec::new();
        for index in 0..archive.len() {
            let member = archive.by_index_raw(index).map_err(damaged)?;
            let member_name = member.name().map_err(damaged)?.to_string();
            // What macOS adds is no data.
            if member.is_dir() || member_name.starts_with("__MACOSX/") {
                continue;
            }
            let wanted = self.members.as_deref();
            if wanted.is_none_or(|pattern| matches(pattern, &member_name)) {
                members.push((member_name, index));
            }
        }
        if members.is_empty() {
            let pattern = self.members.as_deref().unwrap_or("*");
            return Err(ReadError::Unreadable(format!(
                "the zip has no member `{pattern}`"
            )));
        }
        members.sort();
        for (member, index) in members {
            let place = format!("{name}, member {member}");
            if member.len() > MAX_NAME {
                let message = format!("the name of a member is longer than {MAX_NAME} bytes");
                return Err(ReadError::Unreadable(message));
            }
            if take.begin(Some(&member))? {
                let mut output = Output {
                    place: &place,
                    take: &mut *take,
                };
                self.member(&mut archive, &member, index, &mut output)
                    .map_err(|error| error.at(format!("member {member}")))?;
                take.end()?;
            }
        }
        Ok(())
    }

    fn member(
        &self,
        archive: &mut ZipArchive<BufReader<LocalFile>>,
        name: &str,
        index: usize,
        output: &mut Output<'_>,
    ) -> Result<(), ReadError> {
        let mut checked = archive.by_index(index).map_err(damaged)?;
        io::copy(&mut checked, &mut io::sink())?;
        drop(checked);
        let mut member = BufReader::new(archive.by_index(index).map_err(damaged)?);
        let compression = match detect(member.fill_buf()?) {
            Compression::Zip => Compression::None,
            other => other,
        };
        format::read(
            &self.formats,
            name,
            decompress(compression, member)?,
            output,
        )
    }
}

fn damaged(error: zip::result::ZipError) -> ReadError {
    ReadError::Unreadable(format!("the zip can't be read: {error}"))
}

fn decompress<'a>(
    compression: Compression,
    file: impl BufRead + 'a,
) -> Result<Input<'a>, ReadError> {
    let input: Box<dyn Read + 'a> = match compression {
        Compression::None | Compression::Zip => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
    };
    Ok(BufReader::with_capacity(BUFFER, input))
}

/// By the bytes that these formats begin with.
fn detect(beginning: &[u8]) -> Compression {
    match beginning {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A block of data, or the end where there are none.
        [
            b'B',
            b'Z',
            b'h',
            b'1'..=b'9',
            0x31,
            0x41,
            0x59,
            0x26,
            0x53,
            0x59,
            ..,
        ]
        | [
            b'B',
            b'Z',
            b'h',
            b'1'..=b'9',
            0x17,
            0x72,
            0x45,
            0x38,
            0x50,
            0x90,
            ..,
        ] => Compression::Bzip2,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Compression::Zip,
        _ => Compression::None,
    }
}

/// Whether a name fits a pattern, in which `*` is any text and `?` any one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where to go on when the text of the last `*` has to be longer.
    let mut star = None;
    while here < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[here] => {
                at += 1;
                here += 1;
            }
            _ => match star {
                Some((star_at, star_here)) => {
                    at = star_at + 1;
                    here = star_here + 1;
                    star = Some((star_at, here));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.csv", "a/b.csv", true),
            ("*.csv", "b.csv.gz", false),
            ("2018-??.json", "2018-05.json", true),
            ("2018-??.json", "2018-5.json", false),
            ("*a*b*", "xxaxxbx", true),
            ("*a*b", "xxaxxbx", false),
            ("", "", true),
            ("*", "", true),
            ("é?", "éß", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
