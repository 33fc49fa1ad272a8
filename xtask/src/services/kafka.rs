//! Apache Kafka: one KRaft broker that is its own controller.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::jars::Jars;
use super::java;
use super::{KAFKA_USERS, Launch, Place, wire, words};
use crate::certificates::{authority, certificate, openssl};
use crate::progress::Progress;
use crate::template::render;

pub(super) const PORT: u16 = 9092;
pub(super) const JARS: Jars = Jars {
    name: "kafka",
    pom: include_str!("../../services/kafka/pom.xml"),
    goal: "copy-dependencies",
};
const PROPERTIES: &str = include_str!("../../services/kafka/server.properties");
const LOG_WARNINGS: &str = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn";
const SERVER_OPTIONS: &[&str] = &[
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseG1GC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
];
/// Any constant does: no other cluster is ever joined.
const CLUSTER_ID: &str = "bWlsbHN0cmVhbS1kZXYtMQ";

pub(super) fn configure(place: &Place) -> Result<()> {
    let tls = tls_folder(place.config);
    create_certificates(&tls, place.address)?;
    let values = [
        ("address", &*place.address.to_string()),
        ("tls", &*tls.display().to_string()),
        ("data", &*place.data.display().to_string()),
    ];
    fs::write(properties(place), render(PROPERTIES, &values)?)?;
    let hosts = format!("127.0.0.1 localhost\n{} kafka\n", place.address);
    fs::write(place.config.join("hosts"), hosts)?;
    Ok(())
}

/// Where the certificates are of a Kafka that is configured in this folder.
pub(super) fn tls_folder(config: &Path) -> PathBuf {
    config.join("tls")
}

/// Writes what the TLS listener shows, its authority, and another one that it isn't of. They stay
/// for as long as the environment is up, as clients read them once.
fn create_certificates(folder: &Path, address: IpAddr) -> Result<()> {
    let server = folder.join("server.pem");
    if server.exists() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    authority(folder, "ca", "/CN=millstream-kafka")?;
    authority(folder, "other-ca", "/CN=another")?;
    let names = format!("subjectAltName=IP:{address},DNS:kafka");
    certificate(folder, "kafka", "/CN=kafka", &names)?;
    // Java reads no other form.
    let form = ["pkcs8", "-topk8", "-nocrypt", "-in", "kafka.key", "-out"];
    openssl(folder, &[&form[..], &["kafka.p8"]].concat())?;
    let read = |name: &str| fs::read_to_string(folder.join(name));
    fs::write(server, read("kafka.p8")? + &read("kafka.crt")?)?;
    Ok(())
}

fn properties(place: &Place) -> PathBuf {
    place.config.join("server.properties")
}

pub(super) fn command(place: &Place, progress: &Progress) -> Result<Launch> {
    let class_path = format!("{}/*", JARS.fetch(progress)?.display());
    let properties = properties(place).display().to_string();
    let mut server = words(SERVER_OPTIONS);
    // SASL looks up the names of addresses, and the broker stands still while a nameserver that
    // can't be reached doesn't answer: with a file of its own, Java asks none.
    let hosts = place.config.join("hosts");
    server.push(format!("-Djdk.net.hosts.file={}", hosts.display()));
    server.extend(words(&["-cp", &class_path, "kafka.Kafka", &properties]));
    let launch = Launch::java(place, server)?;
    if place.data.join("meta.properties").exists() {
        return Ok(launch);
    }
    let java = java::find()?.program.display().to_string();
    let mut format = words(&[&java, "-XX:TieredStopAtLevel=1", LOG_WARNINGS]);
    format.extend(words(&[
        "-cp",
        &class_path,
        "kafka.tools.StorageTool",
        "format",
    ]));
    format.extend(words(&["--ignore-formatted", "--cluster-id", CLUSTER_ID]));
    format.extend(words(&["--config", &properties]));
    for (user, password) in KAFKA_USERS {
        let scram = format!("SCRAM-SHA-512=[name={user},password={password}]");
        format.extend(words(&["--add-scram", &scram]));
    }
    Ok(launch.after(&format))
}

/// `ApiVersions`, which a broker answers once it takes requests.
pub(super) fn probe(address: SocketAddr) -> Result<()> {
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
    let answer: [u8; 10] = wire::ask(&mut wire::connect(address)?, &REQUEST)?;
    ensure!(
        answer[4..8] == [0, 0, 0, 7],
        "an answer to another question"
    );
    ensure!(answer[8..10] == [0, 0], "error code {}", answer[9]);
    Ok(())
}
