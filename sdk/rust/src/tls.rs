//! How the host is recognised: by the profile's certificate authority and by nothing else.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::{Error, Result};

/// TLS 1.3, trusting only the authorities in `ca_pem`.
pub(crate) fn config(ca_pem: &str) -> Result<ClientConfig> {
    let refused = |what: String| Error::Profile(format!("its certificate authority {what}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate =
            certificate.map_err(|error| refused(format!("is not good PEM ({error})")))?;
        roots
            .add(certificate)
            .map_err(|error| refused(format!("is not a certificate ({error})")))?;
    }
    if roots.is_empty() {
        return Err(refused("is empty; it should hold a PEM certificate".into()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| refused(format!("cannot be used ({error})")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
