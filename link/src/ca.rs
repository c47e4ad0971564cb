//! The certificate authority of a cluster. Every cluster makes its own; none is shared.

use crate::digest::{hex, sha256};
use crate::identity::PeerIdentity;
use crate::limits::{CLOCK_SKEW, PEER_CERTIFICATE_LIFE, SERVER_CERTIFICATE_LIFE};
use liquid_crds::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SigningKey as _,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateSigningRequestDer;
use std::time::Duration;
use thiserror::Error;
use time::OffsetDateTime;

/// Life of the authority itself.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why the authority could not do what was asked.
#[derive(Debug, Error)]
pub enum CaError {
    /// Generating or signing failed.
    #[error("cannot make the certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A stored authority cannot be read.
    #[error("the stored certificate authority cannot be used: {0}")]
    Stored(String),
    /// Whoever asks does not have the key of the authority it says it has.
    #[error("the request is not signed by the certificate authority it names")]
    Proof,
    /// A request for a certificate is damaged or its signature is wrong.
    #[error("the certificate request cannot be used: {0}")]
    Request(String),
}

/// A certificate with its key, PEM.
pub struct Credentials {
    /// Leaf first, then the authority.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

/// A signed certificate, PEM.
pub struct SignedCertificate {
    /// Leaf first, then the authority.
    pub chain_pem: String,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

/// The authority of this cluster.
pub struct ClusterCa {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate_der: Vec<u8>,
    key_pem: String,
}

impl ClusterCa {
    /// Makes a new authority for `cluster`.
    ///
    /// # Errors
    /// If the key cannot be generated.
    pub fn generate(cluster: &ClusterId, now: OffsetDateTime) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("Liquid CA of {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, CA_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Loads a stored authority.
    ///
    /// # Errors
    /// If the certificate or the key cannot be read.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let stored = |error: &dyn std::fmt::Display| CaError::Stored(error.to_string());
        let key = KeyPair::from_pem(key_pem).map_err(|e| stored(&e))?;
        let mut chain =
            liquid_runtime::tls::certificates(certificate_pem.as_bytes()).map_err(|e| stored(&e))?;
        let der = chain.remove(0).to_vec();
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(|e| stored(&e))?;
        Ok(Self {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
            certificate_der: der,
            key_pem: key_pem.to_owned(),
        })
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's key, PEM. It belongs into a Secret and nowhere else.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the certificate (DER), as join tokens carry it.
    pub fn fingerprint(&self) -> String {
        hex(&sha256(&self.certificate_der))
    }

    /// A certificate for the link endpoint of `cluster`.
    ///
    /// # Errors
    /// If generating or signing fails.
    pub fn issue_link_server(
        &self,
        cluster: &ClusterId,
        now: OffsetDateTime,
    ) -> Result<Credentials, CaError> {
        self.issue_server(&[cluster.link_name()], SERVER_CERTIFICATE_LIFE, now)
    }

    /// A server certificate for DNS names inside this cluster (the admission webhook).
    ///
    /// # Errors
    /// If a name is no DNS name, or generating or signing fails.
    pub fn issue_server(
        &self,
        names: &[String],
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Credentials, CaError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = common_name(names.first().map_or("liquid", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, now, life);
        let key = KeyPair::generate()?;
        let not_after = params.not_after;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Credentials { chain_pem: self.chain(&leaf), key_pem: key.serialize_pem(), not_after })
    }

    /// A client certificate for the peer `identity`, for the key of a PKCS#10 request (DER). Nothing but the
    /// key is taken from the request.
    ///
    /// # Errors
    /// If the request is damaged or not signed with its key, or signing fails.
    pub fn issue_peer(
        &self,
        csr: &[u8],
        identity: &PeerIdentity,
        now: OffsetDateTime,
    ) -> Result<SignedCertificate, CaError> {
        let request = check_request(csr)?;
        let uri = identity.uri().try_into().map_err(CaError::Generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(identity.cluster_id.as_str());
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, now, PEER_CERTIFICATE_LIFE);
        let not_after = params.not_after;
        let leaf = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(SignedCertificate { chain_pem: self.chain(&leaf), not_after })
    }

    /// The public key of the authority, and its signature under a join: by it a provider knows the cluster again.
    ///
    /// # Errors
    /// If signing fails.
    pub fn prove(&self, token: &str, csr: &[u8]) -> Result<(Vec<u8>, Vec<u8>), CaError> {
        let key = self.issuer.key();
        let proof = key.sign(&statement(token, csr))?;
        Ok((key.public_key_raw().to_vec(), proof))
    }

    fn chain(&self, leaf: &rcgen::Certificate) -> String {
        format!("{}{}", leaf.pem(), self.certificate_pem)
    }
}

/// A fresh key and a PKCS#10 request (DER) for it.
///
/// # Errors
/// If generating or signing fails.
pub fn certificate_request() -> Result<(KeyPair, Vec<u8>), CaError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((key, request.der().to_vec()))
}

/// What is signed in a join: a token is of one provider and used once, so nobody else can make anything of it.
fn statement(token: &str, csr: &[u8]) -> Vec<u8> {
    [b"liquid join\0".as_slice(), &sha256(token.as_bytes()), &sha256(csr)].concat()
}

/// Checks that whoever joins with this token and request has the key of `authority`. Returns the SHA-256 of that, hexadecimal.
///
/// # Errors
/// If it has not.
pub fn check_proof(authority: &[u8], proof: &[u8], token: &str, csr: &[u8]) -> Result<String, CaError> {
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, authority);
    key.verify(&statement(token, csr), proof).map_err(|_| CaError::Proof)?;
    Ok(hex(&sha256(authority)))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn set_validity(params: &mut CertificateParams, now: OffsetDateTime, life: Duration) {
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
}

/// Reads a certificate request, checking that whoever made it has the key.
///
/// # Errors
/// If it is damaged or not signed with its own key.
pub fn check_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, CaError> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr.to_vec()))
        .map_err(|error| CaError::Request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    const CLUSTER: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";

    fn ca() -> ClusterCa {
        ClusterCa::generate(&CLUSTER.parse().unwrap(), OffsetDateTime::now_utc()).unwrap()
    }

    fn identity() -> PeerIdentity {
        PeerIdentity {
            cluster_id: CLUSTER.parse().unwrap(),
            peering: "9a2c0a44-8c1e-4a8e-9d55-0123456789ab".to_owned(),
        }
    }

    #[test]
    fn a_stored_authority_is_the_same_authority() {
        let made = ca();
        let loaded = ClusterCa::load(made.certificate_pem(), made.key_pem()).unwrap();
        assert_eq!(made.fingerprint(), loaded.fingerprint());
        assert_eq!(made.fingerprint().len(), 64);
    }

    #[test]
    fn a_peer_certificate_carries_the_identity_and_may_not_serve() {
        let (_, csr) = certificate_request().unwrap();
        let signed = ca().issue_peer(&csr, &identity(), OffsetDateTime::now_utc()).unwrap();
        let chain = liquid_runtime::tls::certificates(signed.chain_pem.as_bytes()).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(PeerIdentity::from_certificate(&chain[0]), Ok(identity()));
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        let usage = leaf.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert!(!leaf.is_ca());
    }

    #[test]
    fn a_request_cannot_choose_its_names() {
        let key = KeyPair::generate().unwrap();
        let wish = CertificateParams::new(["evil.example".to_owned()]).unwrap();
        let csr = wish.serialize_request(&key).unwrap();
        let signed = ca().issue_peer(csr.der(), &identity(), OffsetDateTime::now_utc()).unwrap();
        let chain = liquid_runtime::tls::certificates(signed.chain_pem.as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert!(!leaf.is_ca());
        assert!(!format!("{:?}", leaf.subject_alternative_name()).contains("evil"));
    }

    #[test]
    fn a_cluster_is_known_again_by_its_authority_and_by_nothing_else() {
        let ca = ca();
        let (_, csr) = certificate_request().unwrap();
        let (authority, proof) = ca.prove("t1", &csr).unwrap();
        let known = check_proof(&authority, &proof, "t1", &csr).unwrap();
        let (_, later) = certificate_request().unwrap();
        let loaded = ClusterCa::load(ca.certificate_pem(), ca.key_pem()).unwrap();
        let (again, renewed) = loaded.prove("t2", &later).unwrap();
        assert_eq!(check_proof(&again, &renewed, "t2", &later).unwrap(), known);
        // What was said to one provider is of no use with another token, or for another key.
        assert!(check_proof(&authority, &proof, "t2", &csr).is_err());
        assert!(check_proof(&authority, &proof, "t1", &later).is_err());
        let stranger = ClusterCa::generate(&CLUSTER.parse().unwrap(), OffsetDateTime::now_utc()).unwrap();
        let (other, of_other) = stranger.prove("t1", &csr).unwrap();
        assert!(check_proof(&authority, &of_other, "t1", &csr).is_err());
        assert_ne!(check_proof(&other, &of_other, "t1", &csr).unwrap(), known);
        assert!(check_proof(b"", b"", "t1", &csr).is_err());
    }

    #[test]
    fn damaged_requests_are_refused() {
        let (_, mut csr) = certificate_request().unwrap();
        assert!(matches!(
            ca().issue_peer(b"", &identity(), OffsetDateTime::now_utc()),
            Err(CaError::Request(_))
        ));
        // The signature is at the end.
        *csr.last_mut().unwrap() ^= 1;
        assert!(matches!(
            ca().issue_peer(&csr, &identity(), OffsetDateTime::now_utc()),
            Err(CaError::Request(_))
        ));
    }
}
