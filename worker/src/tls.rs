//! Whom to trust.

use std::path::Path;

use anyhow::{Context, ensure};
use reqwest::{Certificate, ClientBuilder};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::config::{ConfigError, Credentials};

/// The authorities in the file; the system's where there is none.
pub fn authorities(path: Option<&Path>) -> Result<RootCertStore, ConfigError> {
    let mut store = RootCertStore::empty();
    let Some(path) = path else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(store);
    };
    let invalid = |reason: String| ConfigError::Certificate {
        path: path.into(),
        reason,
    };
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| invalid(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        store
            .add(certificate)
            .map_err(|error| invalid(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(invalid("there is no certificate in it".into()));
    }
    Ok(store)
}

/// Has an HTTP client trust the authorities in a mounted file, and nobody else, also by plain HTTP.
pub fn trusting(
    client: ClientBuilder,
    credentials: &Credentials,
    file: &str,
) -> anyhow::Result<ClientBuilder> {
    let pem = credentials.require(file, "a certificate authority of its own")?;
    let authorities = Certificate::from_pem_bundle(pem.as_bytes());
    let authorities = authorities.with_context(|| format!("{file} isn't PEM"))?;
    ensure!(!authorities.is_empty(), "there is no certificate in {file}");
    // Also where a redirect or the next page leads.
    Ok(client.tls_certs_only(authorities).https_only(true))
}
