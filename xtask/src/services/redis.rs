//! Redis, from Debian.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::{Launch, Place, wire, words};

pub(super) const PORT: u16 = 6379;

pub(super) fn command(place: &Place) -> Launch {
    let (address, port) = (place.address.to_string(), PORT.to_string());
    let data = place.data.display().to_string();
    let arguments = words(&[
        "--bind",
        &address,
        "--port",
        &port,
        "--dir",
        &data,
        // No password: only this machine and its pods reach the address.
        "--protected-mode",
        "no",
        // What is written outlives a restart.
        "--appendonly",
        "yes",
        "--save",
        "",
        // A title would overwrite the environment by which the process is found again.
        "--set-proc-title",
        "no",
    ]);
    Launch::new("redis-server", arguments)
}

pub(super) fn probe(address: SocketAddr) -> Result<()> {
    let answer: [u8; 7] = wire::ask(&mut wire::connect(address)?, b"PING\r\n")?;
    ensure!(
        &answer == b"+PONG\r\n",
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
