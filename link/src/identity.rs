//! What the certificates of the peer link say.
//!
//! A peer's client certificate names the consumer's cluster and the peering it belongs to in one URI,
//! `liquid://<cluster ID>/peering/<peering UID>`. The peering is the UID of the provider's `Peer` object: when
//! that object is gone, every certificate issued for it is worthless, also after peering anew.

use liquid_crds::ClusterId;
use std::fmt;
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const SCHEME: &str = "liquid://";
const PEERING: &str = "/peering/";

/// Who a peer is, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The consumer's cluster.
    pub cluster_id: ClusterId,
    /// UID of the provider's `Peer` object at the time of issue.
    pub peering: String,
}

/// Why a certificate names no peer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It names nobody.
    #[error("the certificate names no Liquid peer")]
    NoPeer,
}

impl PeerIdentity {
    /// Reads the identity from a certificate (DER) whose chain has been verified.
    ///
    /// # Errors
    /// If the certificate cannot be read or names no peer.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |error: &dyn fmt::Display| IdentityError::Unreadable(error.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| unreadable(&e))?;
        let names = certificate.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let names = names.ok_or(IdentityError::NoPeer)?;
        names
            .value
            .general_names
            .iter()
            .find_map(|name| if let GeneralName::URI(uri) = name { Self::from_uri(uri) } else { None })
            .ok_or(IdentityError::NoPeer)
    }

    /// The URI written into certificates.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}{PEERING}{}", self.cluster_id, self.peering)
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let (cluster, peering) = uri.strip_prefix(SCHEME)?.split_once(PEERING)?;
        // UIDs of Kubernetes objects are UUIDs, like cluster identities.
        let peering: ClusterId = peering.parse().ok()?;
        Some(Self { cluster_id: cluster.parse().ok()?, peering: peering.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";
    const PEERING: &str = "9a2c0a44-8c1e-4a8e-9d55-0123456789ab";

    #[test]
    fn the_uri_round_trips() {
        let identity = PeerIdentity { cluster_id: CLUSTER.parse().unwrap(), peering: PEERING.to_owned() };
        assert_eq!(PeerIdentity::from_uri(&identity.uri()), Some(identity));
    }

    #[test]
    fn other_uris_name_nobody() {
        for bad in
            ["", "liquid://", "https://example.org", "liquid://x/peering/y", &format!("liquid://{CLUSTER}")]
        {
            assert_eq!(PeerIdentity::from_uri(bad), None, "{bad}");
        }
    }
}
