//! What an encrypted connection needs beforehand.

use std::path::Path;

use rustls::pki_types::pem::{PemObject, SectionKind};
use seawall_actors::backend::BackendError;

/// A process with several providers of ciphers built in, or none, has no default, and rustls would panic. Whoever was
/// first has chosen.
pub(super) fn choose_ciphers() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whether there is anything in a file of certificates or keys. The crate `neo4rs` ignores what it cannot read, and
/// panics where no key is left.
pub(super) fn check_pem(file: &Path) -> Result<(), BackendError> {
    let section = <(SectionKind, Vec<u8>)>::from_pem_file(file);
    section.map(|_| ()).map_err(|_| {
        BackendError::permanent(format!("`{}` cannot be read, or holds no certificate or key in PEM", file.display()))
    })
}
