//! Names that identify clusters, validated once at the border.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// Longest cluster name: with the prefix `liquid-` of a virtual node and a suffix of 14 characters the
/// result still is a DNS label (63 characters).
pub const MAX_CLUSTER_NAME: usize = 42;

/// A name or identifier that breaks the rules for its kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidName {
    /// The cluster name is no DNS label of 1 to 42 characters.
    #[error(
        "cluster name {0:?} must have 1 to {MAX_CLUSTER_NAME} lower-case letters, digits or '-', and start and end with a letter or digit"
    )]
    ClusterName(String),
    /// The cluster identifier is no UUID.
    #[error("cluster ID {0:?} must be a UUID (the UID of the namespace kube-system)")]
    ClusterId(String),
}

/// A cluster's name for people: a DNS label of 1 to 42 characters, unique among the peers of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the virtual node that stands for this cluster unless the user says otherwise.
    pub fn virtual_node(&self) -> String {
        format!("liquid-{}", self.0)
    }
}

/// Whether a text is a DNS label (RFC 1123), as names of namespaces and Services are.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    is_dns(text, 63, b"-")
}

/// Whether a text is a DNS subdomain in Kubernetes' sense, as names of nodes and pods are.
#[must_use]
pub fn is_dns_subdomain(text: &str) -> bool {
    is_dns(text, 253, b"-.")
}

fn is_dns(text: &str, longest: usize, between: &[u8]) -> bool {
    let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=longest).contains(&text.len())
        && text.bytes().all(|b| outer(b) || between.contains(&b))
        && text.bytes().next().is_some_and(outer)
        && text.bytes().last().is_some_and(outer)
}

impl TryFrom<String> for ClusterName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        if is_dns_label(&name) && name.len() <= MAX_CLUSTER_NAME {
            Ok(Self(name))
        } else {
            Err(InvalidName::ClusterName(name))
        }
    }
}

impl std::str::FromStr for ClusterName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::try_from(name.to_owned())
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A cluster's identity: the UID of its namespace `kube-system`, which lives as long as the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

/// Domain of the names by which link endpoints are known in TLS.
const LINK_DOMAIN: &str = ".link.liquid.mesh";

impl ClusterId {
    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// DNS name in the certificate of the cluster's link endpoint, and in the first message of whoever calls it. It
    /// depends on the cluster alone, so addresses may change, and load balancers and gateways stand in between.
    pub fn link_name(&self) -> String {
        format!("{}{LINK_DOMAIN}", self.0)
    }

    /// The cluster whose link endpoint has this name.
    pub fn of_link_name(name: &str) -> Option<Self> {
        name.strip_suffix(LINK_DOMAIN)?.parse().ok()
    }
}

impl TryFrom<String> for ClusterId {
    type Error = InvalidName;

    fn try_from(id: String) -> Result<Self, InvalidName> {
        let groups = [8, 4, 4, 4, 12];
        let valid = id.split('-').count() == groups.len()
            && id.split('-').zip(groups).all(|(part, length)| {
                part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            });
        if valid { Ok(Self(id)) } else { Err(InvalidName::ClusterId(id)) }
    }
}

impl std::str::FromStr for ClusterId {
    type Err = InvalidName;

    fn from_str(id: &str) -> Result<Self, InvalidName> {
        Self::try_from(id.to_owned())
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_dns_labels_of_bounded_length() {
        for good in ["a", "milan", "edge-7", "0", &"x".repeat(42)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Milan", "a.b", "a_b", "über", &"x".repeat(43)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_name_still_makes_a_valid_node_name() {
        let name: ClusterName = "x".repeat(MAX_CLUSTER_NAME).parse().unwrap();
        assert!(name.virtual_node().len() <= 63);
    }

    #[test]
    fn cluster_ids_are_lower_case_uuids() {
        assert!("3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse::<ClusterId>().is_ok());
        for bad in
            ["", "3f2c0a44", "3F2C0A44-8C1E-4A8E-9D55-0123456789AB", "3f2c0a44-8c1e-4a8e-9d55-0123456789ab-1"]
        {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_name_leads_back_to_its_cluster() {
        let id: ClusterId = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap();
        assert_eq!(id.link_name(), "3f2c0a44-8c1e-4a8e-9d55-0123456789ab.link.liquid.mesh");
        assert_eq!(ClusterId::of_link_name(&id.link_name()), Some(id));
        for other in ["", "link.liquid.mesh", ".link.liquid.mesh", "milan.link.liquid.mesh", "example.org"] {
            assert_eq!(ClusterId::of_link_name(other), None, "{other}");
        }
    }
}
