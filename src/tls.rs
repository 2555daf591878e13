//! The cryptography of every TLS connection this process opens.
//!
//! Knows nothing of who connects where.

/// Makes *ring* the provider of cryptography; to be called before TLS is set up. Calling it again changes nothing.
pub fn install() {
    // It fails when there is one already, and none but this one is ever installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
