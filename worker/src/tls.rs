//! Whom to trust.

use std::path::Path;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::config::ConfigError;

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
