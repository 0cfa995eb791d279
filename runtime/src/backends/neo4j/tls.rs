//! What an encrypted connection needs beforehand.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use seawall_actors::backend::BackendError;

/// A process with several providers of ciphers built in, or none, has no default, and rustls would panic. Whoever was
/// first has chosen.
pub(super) fn choose_ciphers() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whether a file holds a certificate in PEM. The crate `neo4rs` passes over what it cannot read.
pub(super) fn check_certificate(file: &Path) -> Result<(), BackendError> {
    CertificateDer::from_pem_file(file).map(|_| ()).map_err(|_| unreadable(file, "certificate"))
}

/// Whether a file holds a key in PEM. The crate `neo4rs` panics where it finds none.
pub(super) fn check_key(file: &Path) -> Result<(), BackendError> {
    PrivateKeyDer::from_pem_file(file).map(|_| ()).map_err(|_| unreadable(file, "private key"))
}

fn unreadable(file: &Path, what: &str) -> BackendError {
    BackendError::permanent(format!("`{}` cannot be read, or holds no {what} in PEM", file.display()))
}
