//! The two ends of the peer link's TLS 1.3 handshake.

use crate::digest::{decode_hex, sha256};
use liquid_crds::ClusterId;
use liquid_runtime::tls::{ReloadableCert, TlsError, certificates, certified_key, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use thiserror::Error as ThisError;

/// Why a TLS configuration cannot be made.
#[derive(Debug, ThisError)]
pub enum LinkTlsError {
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Credentials(#[from] TlsError),
    /// rustls refuses the combination.
    #[error("the TLS configuration cannot be used: {0}")]
    Config(String),
    /// The pinned digest is no SHA-256.
    #[error("the CA digest {0:?} is not 64 hexadecimal digits")]
    Digest(String),
}

/// What a provider's link endpoint presents and accepts: clients with a certificate of `ca_pem`, and guests
/// without one (they may only join).
///
/// # Errors
/// If the CA certificate cannot be used.
pub fn server_config(ca_pem: &str, cert: Arc<ReloadableCert>) -> Result<ServerConfig, LinkTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem.as_bytes())? {
        roots.add(certificate).map_err(|error| LinkTlsError::Config(error.to_string()))?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| LinkTlsError::Config(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| LinkTlsError::Config(error.to_string()))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A consumer's client certificate and key, PEM.
pub struct ClientCredentials<'a> {
    /// Leaf first.
    pub chain_pem: &'a [u8],
    /// PKCS#8.
    pub key_pem: &'a [u8],
}

/// What a consumer presents and accepts: only the cluster `provider_id` under the CA with the given SHA-256.
/// Without credentials the provider lets it do nothing but join.
///
/// # Errors
/// If the digest or the credentials cannot be used.
pub fn client_config(
    provider_id: &ClusterId,
    ca_sha256: &str,
    credentials: Option<ClientCredentials<'_>>,
) -> Result<(ClientConfig, ServerName<'static>), LinkTlsError> {
    let mut pinned = [0; 32];
    decode_hex(ca_sha256, &mut pinned).ok_or_else(|| LinkTlsError::Digest(ca_sha256.to_owned()))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| LinkTlsError::Config(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { pinned }));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(ClientCredentials { chain_pem, key_pem }) => {
            let key = certified_key(chain_pem, key_pem)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(provider_id.link_name())
        .map_err(|error| LinkTlsError::Config(error.to_string()))?;
    Ok((config, name))
}

/// Trusts exactly one authority, known by the SHA-256 of its certificate, which the server must present as
/// part of its chain.
#[derive(Debug)]
struct PinnedCa {
    pinned: [u8; 32],
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.pinned)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("the peer link speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
