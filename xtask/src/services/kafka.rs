//! Apache Kafka: one KRaft broker that is its own controller.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::jars::Jars;
use super::{Launch, Place, wire};
use crate::progress::Progress;
use crate::template::render;

pub(super) const PORT: u16 = 9092;
pub(super) const JARS: Jars = Jars {
    name: "kafka",
    pom: include_str!("../../services/kafka/pom.xml"),
    goal: "copy-dependencies",
};
const PROPERTIES: &str = include_str!("../../services/kafka/server.properties");
/// Any constant does: no other cluster is ever joined.
const CLUSTER_ID: &str = "bWlsbHN0cmVhbS1kZXYtMQ";

pub(super) fn launch(place: &Place, progress: &Progress) -> Result<Launch> {
    let jars = JARS.fetch(progress)?;
    let properties = place.config.join("server.properties");
    let text = render(
        PROPERTIES,
        &[
            ("address", &place.address.to_string()),
            ("data", &place.data.display().to_string()),
        ],
    )?;
    std::fs::write(&properties, text)?;
    let properties = properties.display().to_string();
    let class_path = format!("{}/*", jars.display());
    let java = |options: &[&str], class: &[&str]| -> Vec<String> {
        let mut words = vec!["java".to_owned()];
        words.extend(options.iter().map(ToString::to_string));
        words.extend(["-cp".to_owned(), class_path.clone()]);
        words.extend(class.iter().map(ToString::to_string));
        words
    };
    let format = java(
        &["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"],
        &["kafka.tools.StorageTool", "format", "--ignore-formatted", "--cluster-id", CLUSTER_ID]
    );
    let users = ["admin", "app"].map(|user| {
        format!("SCRAM-SHA-512=[name={user},password={user}-secret]")
    });
    let mut format = format;
    format.extend(["--config".to_owned(), properties.clone()]);
    for user in users {
        format.extend(["--add-scram".to_owned(), user]);
    }
    let server = java(
        &[
            "-Xms256m",
            "-Xmx512m",
            "-XX:+UseG1GC",
            "-XX:+ExitOnOutOfMemoryError",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
        ],
        &["kafka.Kafka", &properties],
    );
    let formatted = place.data.join("meta.properties").exists();
    Ok(Launch {
        before: (!formatted).then_some(format),
        server,
    })
}

/// `ApiVersions`, which a broker answers once it takes requests.
pub(super) fn probe(address: SocketAddr) -> Result<()> {
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
    let answer: [u8; 10] = wire::ask(&mut wire::connect(address)?, &REQUEST)?;
    ensure!(answer[4..8] == [0, 0, 0, 7], "an answer to another question");
    ensure!(answer[8..10] == [0, 0], "error code {}", answer[9]);
    Ok(())
}
