//! Apache Cassandra: one node, password authentication, datacenter `datacenter1`.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::jars::Jars;
use super::{CASSANDRA_PASSWORD, CASSANDRA_USER, Launch, Place, wire};
use crate::progress::Progress;
use crate::template::render;

pub(super) const PORT: u16 = 9042;
pub(super) const JARS: Jars = Jars {
    name: "cassandra",
    pom: include_str!("../../services/cassandra/pom.xml"),
    goal: "copy-dependencies",
};
const YAML: &str = include_str!("../../services/cassandra/cassandra.yaml");
const LOGBACK: &str = include_str!("../../services/cassandra/logback.xml");
/// The Java options, one a line; `#` begins a comment.
const JVM: &str = include_str!("../../services/cassandra/jvm.options");

pub(super) fn configure(place: &Place) -> Result<()> {
    std::fs::write(place.config.join("cassandra.yaml"), fill(YAML, place)?)?;
    std::fs::write(place.config.join("logback.xml"), LOGBACK)?;
    std::fs::create_dir_all(place.data.join("triggers"))?;
    Ok(())
}

fn fill(template: &str, place: &Place) -> Result<String> {
    let values = [
        ("address", &*place.address.to_string()),
        ("data", &*place.data.display().to_string()),
        ("config", &*place.config.display().to_string()),
    ];
    render(template, &values)
}

pub(super) fn command(place: &Place, progress: &Progress) -> Result<Launch> {
    let jars = JARS.fetch(progress)?;
    let options = fill(JVM, place)?;
    let options = options.lines().map(str::trim);
    let options = options.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut server: Vec<_> = options.map(str::to_owned).collect();
    server.extend([
        "-cp".to_owned(),
        // Jars alone: a folder on the class path would turn class-data sharing off.
        format!("{}/*", jars.display()),
        "org.apache.cassandra.service.CassandraDaemon".to_owned(),
    ]);
    Launch::java(place, server)
}

// Opcodes of the CQL native protocol, version 4.
const STARTUP: u8 = 0x01;
const AUTHENTICATE: u8 = 0x03;
const AUTH_RESPONSE: u8 = 0x0f;
const AUTH_SUCCESS: u8 = 0x10;

/// Logs in: the port is open a moment before the superuser exists.
pub(super) fn probe(address: SocketAddr) -> Result<()> {
    let mut stream = wire::connect(address)?;
    let startup = b"\x00\x01\x00\x0bCQL_VERSION\x00\x053.0.0";
    expect(&mut stream, &frame(STARTUP, startup), AUTHENTICATE)?;
    let token = format!("\0{CASSANDRA_USER}\0{CASSANDRA_PASSWORD}");
    let mut credentials = (token.len() as u32).to_be_bytes().to_vec();
    credentials.extend(token.bytes());
    expect(
        &mut stream,
        &frame(AUTH_RESPONSE, &credentials),
        AUTH_SUCCESS,
    )
}

fn frame(opcode: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![4, 0, 0, 0, opcode];
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

fn expect(stream: &mut std::net::TcpStream, request: &[u8], wanted: u8) -> Result<()> {
    let [_, _, _, _, opcode, length @ ..]: [u8; 9] = wire::ask(stream, request)?;
    let body = wire::read(stream, u32::from_be_bytes(length) as usize)?;
    if opcode != wanted {
        bail!("Cassandra said {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}
