//! Enough of a network client to ask a server whether it serves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(2);
/// No answer to these questions is larger.
const LARGEST: usize = 1 << 20;

pub(super) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("nothing listens at {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Sends `request` and reads as many bytes as the answer's fixed part has.
pub(super) fn ask<const N: usize>(stream: &mut TcpStream, request: &[u8]) -> Result<[u8; N]> {
    stream.write_all(request)?;
    let mut answer = [0; N];
    stream.read_exact(&mut answer).context("no answer")?;
    Ok(answer)
}

pub(super) fn read(stream: &mut TcpStream, length: usize) -> Result<Vec<u8>> {
    ensure!(length <= LARGEST, "an answer of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("half an answer")?;
    Ok(body)
}

/// One HTTP/1.0 request; the answer's status line and the rest.
pub(super) fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(String, String)> {
    let mut stream = connect(address)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.take(LARGEST as u64).read_to_string(&mut answer)?;
    let (status, rest) = answer.split_once("\r\n").context("not HTTP")?;
    Ok((status.to_owned(), rest.to_owned()))
}
