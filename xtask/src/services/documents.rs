//! FerretDB: MongoDB's protocol over SQLite files, for the document sink.
//!
//! It is published as a Go module that others embed; the main function around it is ours.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Launch, Place, wire};
use crate::cache;
use crate::go;
use crate::install::root;
use crate::process;
use crate::progress::Progress;

pub(super) const PORT: u16 = 27017;
const NAME: &str = "documents";
const SOURCE: &str = "xtask/services/documents";
const GO_MOD: &str = include_str!("../../services/documents/go.mod");
const GO_SUM: &str = include_str!("../../services/documents/go.sum");
const MAIN: &str = include_str!("../../services/documents/main.go");
const FLAGS: &str = "-s -w";
const TIMEOUT: Duration = Duration::from_secs(1800);

/// The server's program; the first time it is built.
pub(super) fn program(progress: &Progress) -> Result<PathBuf> {
    let source = root().join(SOURCE);
    let go = go::version(&source)?;
    let key = cache::key(&[GO_MOD, GO_SUM, MAIN, &go, FLAGS]);
    let entry = cache::entry("go", &format!("{NAME}-{key}"), |folder| {
        let step = progress.step("building FerretDB (1 min on 2 cores)");
        let log = cache::root()?.join("go-build-documents.log");
        let mut build = go::command(&source);
        build
            .args(["build", "-v", "-trimpath", "-ldflags", FLAGS, "-o"])
            .args([folder.join(NAME).as_os_str(), ".".as_ref()]);
        process::logged(&mut build, &log, &step, TIMEOUT)?;
        step.done("done");
        Ok(())
    })?;
    Ok(entry.join(NAME))
}

pub(super) fn command(place: &Place, progress: &Progress) -> Result<Launch> {
    Ok(Launch {
        program: NAME,
        command: vec![
            program(progress)?.display().to_string(),
            SocketAddr::new(place.address, PORT).to_string(),
            place.data.display().to_string(),
        ],
    })
}

/// Asks with `hello`, as clients do first.
pub(super) fn probe(address: SocketAddr) -> Result<()> {
    let mut stream = wire::connect(address)?;
    let header: [u8; 16] = wire::ask(&mut stream, &request())?;
    let [a, b, c, d, ..] = header;
    let length = (u32::from_le_bytes([a, b, c, d]) as usize).saturating_sub(header.len());
    let answer = wire::read(&mut stream, length)?;
    ensure!(is_ok(&answer), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// `{hello: 1, $db: "admin"}` in an `OP_MSG`.
fn request() -> Vec<u8> {
    const OP_MSG: u32 = 2013;
    let fields = b"\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0";
    let mut body = vec![0; 5]; // no flags; one document
    body.extend((fields.len() as u32 + 4).to_le_bytes());
    body.extend(fields);
    let length = body.len() as u32 + 16;
    let header = [length, 1, 0, OP_MSG].map(u32::to_le_bytes);
    [header.concat(), body].concat()
}

/// Whether there is `ok: 1.0` in the answer.
fn is_ok(answer: &[u8]) -> bool {
    let wanted = [b"\x01ok\0".as_slice(), &1.0_f64.to_le_bytes()].concat();
    answer.windows(wanted.len()).any(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_as_long_as_it_says() {
        let request = request();
        assert_eq!(request[0] as usize, request.len());
        assert_eq!(request[21] as usize, request.len() - 21);
        assert!(is_ok(b"..\x01ok\0\0\0\0\0\0\0\xf0\x3f\0"));
        assert!(!is_ok(b"..\x01ok\0\0\0\0\0\0\0\0\0\0"));
    }
}
