//! How Redis is reached.

use anyhow::Context;
use millstream_api::source::http::{RedisCache, credentials};
use redis::{Client, ConnectionAddr, IntoConnectionInfo, TlsCertificates};

use crate::config::Credentials;

const PORT: u16 = 6379;

/// A client; nothing is sent yet.
pub fn open(spec: &RedisCache, files: &Credentials) -> anyhow::Result<Client> {
    let (host, port) = match spec.address.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (spec.address.as_str(), Some(PORT)),
    };
    let port =
        port.with_context(|| format!("`cache.redis.address`: `{}` is no host:port", spec.address))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let mut certificates = TlsCertificates {
        client_tls: None,
        root_cert: None,
    };
    let address = match &spec.tls {
        None => ConnectionAddr::Tcp(host, port),
        Some(tls) => {
            if tls.ca_secret.is_some() {
                let ca =
                    files.require(credentials::REDIS_CA, "a certificate authority of Redis")?;
                certificates.root_cert = Some(ca.into_bytes());
            }
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        }
    };
    let mut info = address.into_connection_info()?;
    if spec.password_secret.is_some() {
        let password = files.require(credentials::REDIS_PASSWORD, "a password for Redis")?;
        let settings = info.redis_settings().clone().set_password(password);
        info = info.set_redis_settings(settings);
    }
    let client = match spec.tls {
        Some(_) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    };
    client.context("the cache's Redis can't be used")
}
