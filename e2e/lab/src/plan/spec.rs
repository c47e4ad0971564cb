//! What a lab is asked to be: its clusters, their nodes and networks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Usage;

/// Longest lab name: it becomes part of namespace, cgroup and directory names.
const LAB_NAME_MAX: usize = 16;
/// Longest cluster name: `lan-NAME` and `NAME-NNN` are interface names, which the kernel limits to 15 bytes.
const CLUSTER_NAME_MAX: usize = 8;
/// Clusters per lab: each takes a /24 of the lab's /20, and the first /24 is the way to the host.
pub(crate) const CLUSTERS_MAX: usize = 15;
/// Real nodes per cluster: the smallest pod range of a plan is a /20 (of IPv6, a /60), and a node takes a /24 (a /64) of it.
pub(crate) const NODES_MAX: u8 = 16;

/// The name of a lab: a DNS label of at most 16 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

/// The name of a cluster: a letter, then letters and digits, at most 8 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

/// Everything that decides what a lab consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSpec {
    /// The clusters, in the order their addresses are given out.
    pub clusters: Vec<ClusterSpec>,
    /// How pod and service ranges of the clusters relate.
    pub cidrs: CidrPlan,
    /// Which families pods, Services and nodes have addresses of.
    #[serde(default)]
    pub ip_families: IpFamilies,
    /// Whether API servers write an audit log (metadata of every request).
    pub audit: bool,
}

/// One cluster of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Its name.
    pub name: ClusterName,
    /// How many real nodes it has; 0 is a control plane alone.
    pub nodes: u8,
    /// Its pod network and Service implementation.
    pub stack: Stack,
    /// Another plan for its own ranges than that of the lab.
    #[serde(default)]
    pub cidrs: Option<CidrPlan>,
    /// Other families than those of the lab.
    #[serde(default)]
    pub ip_families: Option<IpFamilies>,
}

/// How the pod and service ranges of the clusters relate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CidrPlan {
    /// All clusters use the same ranges, as clusters set up by the same recipe do.
    #[default]
    Same,
    /// No two ranges overlap.
    Disjoint,
    /// Ranges of different sizes that overlap in part, across pods and services: a mapping mistake shows.
    Asymmetric,
}

/// Which families pods, Services and nodes have addresses of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamilies {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both; IPv4 is the first.
    Dual,
}

/// The pod network and the Service implementation of a cluster's nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// The CNI plugin that connects a pod to its node.
    pub cni: Cni,
    /// The mode kube-proxy runs in; the node's masquerade rule uses the same tool.
    pub proxy: ProxyMode,
}

/// The CNI plugin that connects a pod to its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A veth pair per pod, routed.
    #[default]
    Ptp,
    /// A bridge per node.
    Bridge,
}

/// The mode kube-proxy runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// nftables.
    #[default]
    Nftables,
    /// iptables (the nf_tables variant Debian ships).
    Iptables,
}

impl LabSpec {
    /// Checks what the types do not say: at least one cluster, no name twice, not more than fits the addresses.
    ///
    /// # Errors
    /// Says which argument is wrong and what is allowed.
    pub fn validate(&self) -> Result<(), Usage> {
        if self.clusters.is_empty() || self.clusters.len() > CLUSTERS_MAX {
            return Err(Usage(format!(
                "a lab has 1 to {CLUSTERS_MAX} clusters, not {}",
                self.clusters.len()
            )));
        }
        for (index, cluster) in self.clusters.iter().enumerate() {
            if self.clusters[..index].iter().any(|earlier| earlier.name == cluster.name) {
                return Err(Usage(format!("cluster {} is named twice", cluster.name)));
            }
            if cluster.nodes > NODES_MAX {
                return Err(Usage(format!(
                    "cluster {}: {} nodes are more than the {NODES_MAX} the addresses allow",
                    cluster.name, cluster.nodes
                )));
            }
        }
        Ok(())
    }

    /// The plan for the ranges of one of its clusters.
    #[must_use]
    pub fn cidrs_of(&self, cluster: &ClusterSpec) -> CidrPlan {
        cluster.cidrs.unwrap_or(self.cidrs)
    }

    /// The families that one of its clusters has addresses of.
    #[must_use]
    pub fn ip_families_of(&self, cluster: &ClusterSpec) -> IpFamilies {
        cluster.ip_families.unwrap_or(self.ip_families)
    }

    /// What differs between this (running) spec and a wanted one, one line each; empty when they are the same.
    #[must_use]
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let names =
            |spec: &Self| spec.clusters.iter().map(|c| c.name.to_string()).collect::<Vec<_>>().join(",");
        if names(self) != names(wanted) {
            lines.push(format!("clusters: running {}, wanted {}", names(self), names(wanted)));
        }
        for running in &self.clusters {
            let Some(other) = wanted.clusters.iter().find(|c| c.name == running.name) else {
                continue;
            };
            if running.nodes != other.nodes {
                lines.push(format!(
                    "nodes of {}: running {}, wanted {}",
                    running.name, running.nodes, other.nodes
                ));
            }
            let (runs, wants) = (self.cidrs_of(running), wanted.cidrs_of(other));
            if runs != wants {
                lines.push(format!("pod CIDRs of {}: running {runs}, wanted {wants}", running.name));
            }
            let (runs, wants) = (self.ip_families_of(running), wanted.ip_families_of(other));
            if runs != wants {
                lines.push(format!("IP families of {}: running {runs}, wanted {wants}", running.name));
            }
            if running.stack != other.stack {
                lines.push(format!(
                    "stack of {}: running {}, wanted {}",
                    running.name, running.stack, other.stack
                ));
            }
        }
        if self.audit != wanted.audit {
            lines.push(format!("audit log: running {}, wanted {}", self.audit, wanted.audit));
        }
        lines
    }
}

impl LabName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LabName {
    fn default() -> Self {
        Self("lab".to_owned())
    }
}

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabName {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if text.is_empty() || text.len() > LAB_NAME_MAX || !inner || !edges {
            return Err(Usage(format!(
                "'{text}' is not a lab name: 1 to {LAB_NAME_MAX} lower-case letters, digits and inner dashes"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for ClusterName {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if text.len() > CLUSTER_NAME_MAX || !inner || !first {
            return Err(Usage(format!(
                "'{text}' is not a cluster name: a lower-case letter, then letters or digits, \
                 at most {CLUSTER_NAME_MAX} characters"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for CidrPlan {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        match text {
            "same" => Ok(Self::Same),
            "disjoint" => Ok(Self::Disjoint),
            "asymmetric" => Ok(Self::Asymmetric),
            other => Err(Usage(format!("'{other}' is not a CIDR plan: same, disjoint or asymmetric"))),
        }
    }
}

impl FromStr for IpFamilies {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        match text {
            "ipv4" => Ok(Self::Ipv4),
            "ipv6" => Ok(Self::Ipv6),
            "dual" => Ok(Self::Dual),
            other => Err(Usage(format!("'{other}' does not name IP families: ipv4, ipv6 or dual"))),
        }
    }
}

impl FromStr for Stack {
    type Err = Usage;

    /// Parses `CNI/PROXY`, for example `bridge/iptables`.
    fn from_str(text: &str) -> Result<Self, Usage> {
        let wrong = || Usage(format!("'{text}' is not a stack: (ptp|bridge)/(nftables|iptables)"));
        let (cni, proxy) = text.split_once('/').ok_or_else(wrong)?;
        let cni = match cni {
            "ptp" => Cni::Ptp,
            "bridge" => Cni::Bridge,
            _ => return Err(wrong()),
        };
        let proxy = match proxy {
            "nftables" => ProxyMode::Nftables,
            "iptables" => ProxyMode::Iptables,
            _ => return Err(wrong()),
        };
        Ok(Self { cni, proxy })
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CidrPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Disjoint => "disjoint",
            Self::Asymmetric => "asymmetric",
        })
    }
}

impl fmt::Display for IpFamilies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        })
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cni = match self.cni {
            Cni::Ptp => "ptp",
            Cni::Bridge => "bridge",
        };
        write!(f, "{cni}/{}", self.proxy)
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl TryFrom<String> for LabName {
    type Error = Usage;

    fn try_from(text: String) -> Result<Self, Usage> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl TryFrom<String> for ClusterName {
    type Error = Usage;

    fn try_from(text: String) -> Result<Self, Usage> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

#[cfg(test)]
impl LabSpec {
    /// One dual-stack cluster.
    pub(crate) fn alone(name: &str, nodes: u8) -> Self {
        let name = name.parse().unwrap();
        Self {
            clusters: vec![ClusterSpec {
                name,
                nodes,
                stack: Stack::default(),
                cidrs: None,
                ip_families: None,
            }],
            cidrs: CidrPlan::default(),
            ip_families: IpFamilies::Dual,
            audit: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(names: &[&str]) -> LabSpec {
        LabSpec {
            clusters: names
                .iter()
                .map(|name| ClusterSpec {
                    name: name.parse().unwrap(),
                    nodes: 1,
                    stack: Stack::default(),
                    cidrs: None,
                    ip_families: None,
                })
                .collect(),
            cidrs: CidrPlan::Same,
            ip_families: IpFamilies::Ipv4,
            audit: false,
        }
    }

    #[test]
    fn names_that_would_break_interface_or_directory_names_are_refused() {
        for bad in ["", "A", "a_b", "ninechars", "1a", "a-b", "a/b", ".."] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
        for bad in ["", "-a", "a-", "a/b", "..", "seventeen-letters"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
        assert!("eightchr".parse::<ClusterName>().is_ok());
        assert!("sixteen-letters-".parse::<LabName>().is_err());
        assert!("my-lab-2".parse::<LabName>().is_ok());
    }

    #[test]
    fn a_cluster_named_twice_is_refused() {
        assert!(spec(&["a", "b", "a"]).validate().unwrap_err().0.contains("twice"));
        assert!(spec(&[]).validate().is_err());
        assert!(spec(&["a", "b"]).validate().is_ok());
    }

    #[test]
    fn differences_name_every_field_that_differs() {
        let running = spec(&["a", "b"]);
        assert!(running.differences(&running).is_empty());
        let mut wanted = running.clone();
        wanted.clusters[1].nodes = 3;
        wanted.clusters[0].stack = "bridge/iptables".parse().unwrap();
        wanted.cidrs = CidrPlan::Asymmetric;
        wanted.ip_families = IpFamilies::Dual;
        wanted.audit = true;
        let lines = running.differences(&wanted).join("\n");
        for part in ["nodes of b: running 1, wanted 3", "stack of a", "asymmetric", "wanted dual", "audit"] {
            assert!(lines.contains(part), "{part} is not in\n{lines}");
        }
        assert!(running.differences(&spec(&["a"]))[0].contains("running a,b, wanted a"));
        let mut wanted = running.clone();
        wanted.clusters[1].cidrs = Some(CidrPlan::Same);
        assert!(running.differences(&wanted).is_empty());
        wanted.clusters[1].cidrs = Some(CidrPlan::Disjoint);
        assert_eq!(running.differences(&wanted), ["pod CIDRs of b: running same, wanted disjoint"]);
        let mut wanted = running.clone();
        wanted.clusters[1].ip_families = Some(IpFamilies::Ipv4);
        assert!(running.differences(&wanted).is_empty());
        wanted.clusters[1].ip_families = Some(IpFamilies::Ipv6);
        assert_eq!(running.differences(&wanted), ["IP families of b: running ipv4, wanted ipv6"]);
    }

    #[test]
    fn a_spec_survives_being_written_and_read() {
        let spec = spec(&["a", "b"]);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<LabSpec>(&text).unwrap(), spec);
        assert!(serde_json::from_str::<LabSpec>(&text.replace("\"a\"", "\"../a\"")).is_err());
    }
}
