//! Which addresses everything in a lab has.
//!
//! Underlay addresses come from 198.18.0.0/15 (RFC 2544, benchmarking), which no network of a host should use.
//! A lab takes one /20 of it (its *slot*); the first /24 joins the router and the host, each further /24 is the
//! LAN of one cluster. IPv6 is not built yet; the same numbers fit a ULA /48 per slot and /64 per LAN.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use crate::plan::spec::{CidrPlan, ClusterName, LabSpec, Stack};

/// How many labs fit on one machine: /20 networks in a /15.
pub(crate) const SLOTS: u8 = 32;

/// Control planes need no rights, and one user each: the kernel limits inotify instances per user, and all components
/// as root would use up the default (128) with three labs. The range is one that no distribution gives out.
const FIRST_USER: u32 = 2_000_000_000;

/// Every range and address of one lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressPlan {
    /// Number of the lab on this machine.
    pub slot: u8,
    /// All underlay addresses of the lab.
    pub network: Ipv4Net,
    /// The router's address towards the host.
    pub router: Ipv4Addr,
    /// The host's address towards the router.
    pub host: Ipv4Addr,
    /// The clusters, in the order of the spec.
    pub clusters: Vec<ClusterPlan>,
}

/// Ranges and addresses of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterPlan {
    /// Name of the cluster.
    pub name: ClusterName,
    /// Pod network and Service implementation of its nodes.
    pub stack: Stack,
    /// The user its control plane runs as, on the host and inside.
    pub user: u32,
    /// The network of its machines.
    pub lan: Ipv4Net,
    /// The router's address in the LAN: default gateway of every machine.
    pub gateway: Ipv4Addr,
    /// The address of the control plane.
    pub control_plane: Ipv4Addr,
    /// The range pods take their addresses from.
    pub pods: Ipv4Net,
    /// The range ClusterIPs are taken from.
    pub services: Ipv4Net,
    /// ClusterIP of the API server: the first of the range.
    pub api_service: Ipv4Addr,
    /// ClusterIP of DNS: the tenth of the range, as kubeadm does.
    pub dns_service: Ipv4Addr,
    /// Its real nodes.
    pub nodes: Vec<NodePlan>,
}

/// Addresses of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodePlan {
    /// Name of the Node object: `CLUSTER-N`, unique in the lab.
    pub name: String,
    /// Its address in the LAN.
    pub address: Ipv4Addr,
    /// Its part of the pod range.
    pub pods: Ipv4Net,
}

impl AddressPlan {
    /// Gives out the addresses of a valid spec in a slot below 32.
    #[must_use]
    pub fn new(spec: &LabSpec, slot: u8) -> Self {
        let network = slot_network(slot);
        let clusters = (1u32..)
            .zip(&spec.clusters)
            .map(|(number, cluster)| {
                let (pods, services) = ranges(spec.cidrs, number - 1);
                let lan = net(u32::from(network.network()) + (number << 8), 24);
                ClusterPlan {
                    name: cluster.name.clone(),
                    stack: cluster.stack,
                    user: FIRST_USER + (u32::from(slot) << 4) + number,
                    lan,
                    gateway: nth(lan, 1),
                    control_plane: nth(lan, 2),
                    pods,
                    services,
                    api_service: nth(services, 1),
                    dns_service: nth(services, 10),
                    nodes: (1..=u32::from(cluster.nodes))
                        .map(|node| NodePlan {
                            name: format!("{}-{node}", cluster.name),
                            address: nth(lan, 10 + node),
                            pods: net(u32::from(pods.network()) + ((node - 1) << 8), 24),
                        })
                        .collect(),
                }
            })
            .collect();
        Self { slot, network, router: nth(network, 1), host: nth(network, 2), clusters }
    }
}

/// The underlay range of a slot.
#[must_use]
pub(crate) fn slot_network(slot: u8) -> Ipv4Net {
    net(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (u32::from(slot) << 12), 20)
}

/// Pod and service range of the cluster with this index.
fn ranges(plan: CidrPlan, index: u32) -> (Ipv4Net, Ipv4Net) {
    let ten = |second: u32, third: u32, len: u8| net((10 << 24) | (second << 16) | (third << 8), len);
    match plan {
        CidrPlan::Same => (ten(244, 0, 16), ten(96, 0, 16)),
        CidrPlan::Disjoint => (ten(16 + index, 0, 16), ten(112 + index, 0, 16)),
        // The second cluster's pods lie inside the first's; the third has pods where the first has services and
        // the other way round; the fourth overlaps with nobody's pods. Further clusters repeat the pattern.
        CidrPlan::Asymmetric => match index % 4 {
            0 => (ten(244, 0, 16), ten(96, 0, 16)),
            1 => (ten(244, 64, 18), ten(97, 0, 20)),
            2 => (ten(96, 0, 17), ten(244, 0, 20)),
            _ => (ten(128, 0, 20), ten(96, 64, 24)),
        },
    }
}

fn nth(network: Ipv4Net, host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()) + host)
}

fn net(address: u32, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(address), prefix)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::plan::spec::{CLUSTERS_MAX, ClusterSpec, NODES_MAX};

    fn largest(cidrs: CidrPlan) -> LabSpec {
        LabSpec {
            clusters: (0..CLUSTERS_MAX)
                .map(|n| ClusterSpec {
                    name: format!("c{n}").parse().unwrap(),
                    nodes: NODES_MAX,
                    stack: Stack::default(),
                })
                .collect(),
            cidrs,
            audit: false,
        }
    }

    #[test]
    fn no_two_machines_of_any_slots_share_an_address_or_a_user() {
        let (mut seen, mut users) = (HashSet::new(), HashSet::new());
        for slot in 0..SLOTS {
            let plan = AddressPlan::new(&largest(CidrPlan::Same), slot);
            assert!(seen.insert(plan.router) && seen.insert(plan.host));
            for cluster in &plan.clusters {
                assert!(plan.network.contains(&cluster.lan));
                assert!(seen.insert(cluster.gateway) && seen.insert(cluster.control_plane));
                assert!(users.insert(cluster.user));
                for node in &cluster.nodes {
                    assert!(cluster.lan.contains(&node.address) && seen.insert(node.address));
                }
            }
        }
        let all: Ipv4Net = "198.18.0.0/15".parse().unwrap();
        assert!(seen.iter().all(|address| all.contains(address)));
    }

    #[test]
    fn node_ranges_lie_in_the_pod_range_and_apart() {
        for cidrs in [CidrPlan::Same, CidrPlan::Disjoint, CidrPlan::Asymmetric] {
            for cluster in AddressPlan::new(&largest(cidrs), 0).clusters {
                let mut seen = HashSet::new();
                for node in &cluster.nodes {
                    assert!(cluster.pods.contains(&node.pods), "{cidrs} {}", node.name);
                    assert!(seen.insert(node.pods));
                }
                assert!(cluster.services.contains(&cluster.dns_service));
                assert!(
                    !cluster.pods.contains(&cluster.services) && !cluster.services.contains(&cluster.pods)
                );
            }
        }
    }

    #[test]
    fn plans_overlap_as_their_names_say() {
        let overlap = |a: Ipv4Net, b: Ipv4Net| a.contains(&b) || b.contains(&a);
        let same = AddressPlan::new(&largest(CidrPlan::Same), 0).clusters;
        assert!(same.iter().all(|c| c.pods == same[0].pods && c.services == same[0].services));

        let disjoint = AddressPlan::new(&largest(CidrPlan::Disjoint), 0).clusters;
        let all: Vec<_> = disjoint.iter().flat_map(|c| [c.pods, c.services]).collect();
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| !overlap(*one, *other)), "{one}");
        }

        let asymmetric = AddressPlan::new(&largest(CidrPlan::Asymmetric), 0).clusters;
        assert!(overlap(asymmetric[0].pods, asymmetric[1].pods) && asymmetric[0].pods != asymmetric[1].pods);
        assert!(overlap(asymmetric[0].services, asymmetric[2].pods));
    }
}
