//! Apicurio, a schema registry with the Confluent-compatible API.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::jars::Jars;
use super::{Launch, Place, REGISTRY_API, wire};
use crate::progress::Progress;

pub(super) const PORT: u16 = 8081;
pub(super) const JARS: Jars = Jars {
    name: "registry",
    pom: include_str!("../../services/registry/pom.xml"),
    goal: "unpack",
};

pub(super) fn command(place: &Place, progress: &Progress) -> Result<Launch> {
    let jars = JARS.fetch(progress)?;
    let data = place.data.display();
    let server = vec![
        "-Xmx256m".to_owned(),
        "-XX:+UseSerialGC".to_owned(),
        "-XX:TieredStopAtLevel=1".to_owned(),
        "-XX:+ExitOnOutOfMemoryError".to_owned(),
        format!("-Dquarkus.http.host={}", place.address),
        format!("-Dquarkus.http.port={PORT}"),
        "-Dquarkus.management.host=127.0.0.1".to_owned(),
        "-Dquarkus.management.port=8082".to_owned(),
        "-Dquarkus.log.console.json=false".to_owned(),
        "-Dapicurio.storage.kind=sql".to_owned(),
        format!("-Dapicurio.datasource.url=jdbc:h2:file:{data}/registry"),
        "-jar".to_owned(),
        jars.join("apicurio-registry-app-3.0.9-runner.jar")
            .display()
            .to_string(),
    ];
    Launch::java(place, server)
}

/// Asks for the compatibility rule, and sets it as Confluent's registry has it: the start
/// value here is `NONE`.
pub(super) fn probe(address: SocketAddr) -> Result<()> {
    let path = format!("{REGISTRY_API}/config");
    let (status, body) = wire::http(address, "GET", &path, "")?;
    ensure!(status.contains(" 200"), "{status}");
    if body.contains("BACKWARD") {
        return Ok(());
    }
    let wanted = r#"{"compatibility": "BACKWARD"}"#;
    let (status, body) = wire::http(address, "PUT", &path, wanted)?;
    ensure!(status.contains(" 200"), "{status}: {body}");
    Ok(())
}
