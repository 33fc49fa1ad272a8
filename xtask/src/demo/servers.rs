//! Names in the cluster for the servers that the examples use beside Kafka and Cassandra.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::environment::Environment;
use crate::install;

/// Makes `redis.millstream-examples.svc` and `documents.millstream-examples.svc` lead to the servers
/// that are up.
pub(super) fn name(environment: &Environment) -> Result<()> {
    let at = &environment.in_cluster;
    let servers = [("redis", &at.redis), ("documents", &at.documents)];
    let manifests = servers.map(|(name, address)| service(name, address));
    let manifests = manifests.into_iter().collect::<Result<Vec<_>>>()?;
    install::apply(environment, &manifests.join("---\n"))
}

fn service(name: &str, address: &str) -> Result<String> {
    let (host, port) = address.rsplit_once(':').context("an address has a port")?;
    let head = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: millstream-examples}}
"
    );
    Ok(match host.parse::<IpAddr>() {
        Err(_) => {
            format!("{head}spec: {{type: ExternalName, externalName: {host}.svc.cluster.local}}\n")
        }
        Ok(ip) => format!(
            "{head}spec: {{clusterIP: None, ports: [{{port: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: millstream-examples
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports: [{{port: {port}}}]
endpoints: [{{addresses: [{ip}]}}]
"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_its_address_or_by_another_name() {
        let by_address = service("redis", "10.97.0.2:6379").unwrap();
        assert!(
            by_address.contains("addresses: [10.97.0.2]"),
            "{by_address}"
        );
        let by_name = service("redis", "redis.millstream-services:6379").unwrap();
        let host = "externalName: redis.millstream-services.svc.cluster.local";
        assert!(by_name.contains(host), "{by_name}");
        for manifests in [by_address, by_name] {
            serde_saphyr::from_multiple::<serde_json::Value>(&manifests).unwrap();
        }
    }
}
