//! TLS set-up: one crypto provider, and certificates that can be replaced while connections run.

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, PoisonError, RwLock};
use thiserror::Error;

/// Why a certificate or key cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The PEM text is damaged or empty.
    #[error("{what}: {reason}")]
    Pem {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate and the key do not fit, or rustls refuses them.
    #[error("certificate and key cannot be used: {0}")]
    Rejected(#[from] rustls::Error),
}

/// Makes ring the provider of this process. Call it first thing in `main`; later calls change nothing.
pub fn install_crypto_provider() {
    // An error only says that a provider is installed already, and ring is the only one compiled in.
    drop(ring::default_provider().install_default());
}

/// The provider in use.
pub fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

/// Reads a certificate chain and its key from PEM.
///
/// # Errors
/// If either is damaged, empty, or they do not belong together.
pub fn certified_key(chain_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|error| TlsError::Pem { what: "private key", reason: error.to_string() })?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}

/// Reads one or more certificates from PEM.
///
/// # Errors
/// If the text is damaged or holds no certificate.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::Pem { what: "certificate", reason };
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if chain.is_empty() { Err(bad("no certificate in the PEM text".to_owned())) } else { Ok(chain) }
}

/// A server certificate that can be replaced; new handshakes get the newest one.
#[derive(Debug, Default)]
pub struct ReloadableCert {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl ReloadableCert {
    /// Replaces the certificate.
    pub fn set(&self, key: CertifiedKey) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }

    /// Whether a certificate has been set.
    pub fn is_set(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl ResolvesServerCert for ReloadableCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server configuration without client certificates, for `cert`; HTTP/1.1 only.
///
/// # Errors
/// If the provider supports no protocol version (it does).
pub fn server_config(cert: Arc<ReloadableCert>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
