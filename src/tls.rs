//! The cryptography of every TLS connection this process opens. Knows nothing of where they lead.

use std::{io, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Makes *ring* the provider of cryptography, before TLS is set up. A second call changes nothing.
pub fn install() {
    // Fails when a provider is installed already, which can only be this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Speaks TLS with `host` over `stream`. Trusts the certificates of the system, or those that `SSL_CERT_FILE` or
/// `SSL_CERT_DIR` names; they are read anew each time.
///
/// # Errors
/// When no certificate is trusted or one cannot be read, when `host` is neither a name nor an address, or when the
/// handshake fails.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(host: &str, stream: S) -> io::Result<TlsStream<S>> {
    install();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let found = rustls_native_certs::load_native_certs();
    if let Some(error) = found.errors.into_iter().next() {
        return Err(io::Error::other(error));
    }
    let mut trusted = RootCertStore::empty();
    for certificate in found.certs {
        trusted.add(certificate).map_err(io::Error::other)?;
    }
    if trusted.is_empty() {
        return Err(io::Error::other("no trusted certificates; install ca-certificates or set SSL_CERT_FILE"));
    }
    let config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}
