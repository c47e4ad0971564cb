//! Which addresses everything in a lab has.
//!
//! Underlay addresses come from 198.18.0.0/15 (RFC 2544, benchmarking), which no network of a host should use.
//! A lab takes one /20 of it (its *slot*); the first /24 joins the router and the host, each further /24 is the
//! LAN of one cluster. Dual-stack labs have the same in IPv6: a ULA /48 per slot, a /64 per LAN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::plan::spec::{CidrPlan, ClusterName, IpFamilies, LabSpec, Stack};

/// How many labs fit on one machine: /20 networks in a /15.
pub(crate) const SLOTS: u8 = 32;

/// Control planes need no rights, and one user each: the kernel limits inotify instances per user, and all components
/// as root would use up the default (128) with three labs. The range is one that no distribution gives out.
const FIRST_USER: u32 = 2_000_000_000;

/// Underlay of all dual-stack labs; its third group is the slot. The rest of the first two spells "lab".
const UNDERLAY_V6: [u16; 2] = [0xfd6c, 0x6162];

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
    /// What it has in IPv6 beside all that, if it is dual-stack.
    pub v6: Option<ClusterV6>,
    /// Its real nodes.
    pub nodes: Vec<NodePlan>,
}

/// Ranges and addresses of IPv6 of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterV6 {
    /// The network of its machines.
    pub lan: Ipv6Net,
    /// The router's address in the LAN: default gateway of every machine.
    pub gateway: Ipv6Addr,
    /// The address of the control plane.
    pub control_plane: Ipv6Addr,
    /// The range pods take their addresses from.
    pub pods: Ipv6Net,
    /// The range ClusterIPs are taken from.
    pub services: Ipv6Net,
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
    /// What it has in IPv6 beside that, if its cluster is dual-stack.
    pub v6: Option<NodeV6>,
}

/// Addresses of IPv6 of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NodeV6 {
    /// Its address in the LAN.
    pub address: Ipv6Addr,
    /// Its part of the pod range.
    pub pods: Ipv6Net,
}

impl ClusterPlan {
    /// Its pod ranges, IPv4 first.
    #[must_use]
    pub fn pod_ranges(&self) -> Vec<IpNet> {
        both(self.pods, self.v6.as_ref().map(|v6| v6.pods))
    }

    /// Its Service ranges, IPv4 first.
    #[must_use]
    pub fn service_ranges(&self) -> Vec<IpNet> {
        both(self.services, self.v6.as_ref().map(|v6| v6.services))
    }
}

impl NodePlan {
    /// Its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        both(self.address, self.v6.map(|v6| v6.address))
    }

    /// Its parts of the pod ranges, IPv4 first.
    #[must_use]
    pub fn pod_ranges(&self) -> Vec<IpNet> {
        both(self.pods, self.v6.map(|v6| v6.pods))
    }
}

fn both<T: From<A> + From<B>, A, B>(v4: A, v6: Option<B>) -> Vec<T> {
    std::iter::once(v4.into()).chain(v6.map(Into::into)).collect()
}

impl AddressPlan {
    /// Gives out the addresses of a valid spec in a slot below 32.
    #[must_use]
    pub fn new(spec: &LabSpec, slot: u8) -> Self {
        let network = slot_network(slot);
        let clusters = (1u16..)
            .zip(&spec.clusters)
            .map(|(number, cluster)| {
                let ranges = ranges(cluster.cidrs.unwrap_or(spec.cidrs), number - 1);
                let lan = net(u32::from(network.network()) + (u32::from(number) << 8), 24);
                let v6 = (spec.ip_families == IpFamilies::Dual).then(|| {
                    let [first, second] = UNDERLAY_V6;
                    let lan = net6([first, second, u16::from(slot), number, 0, 0, 0, 0], 64);
                    ClusterV6 {
                        lan,
                        gateway: nth6(lan, 1),
                        control_plane: nth6(lan, 2),
                        pods: ranges.pods_v6,
                        services: ranges.services_v6,
                    }
                });
                let node = |node: u8| NodePlan {
                    name: format!("{}-{node}", cluster.name),
                    address: nth(lan, 10 + u32::from(node)),
                    pods: net(u32::from(ranges.pods.network()) + (u32::from(node - 1) << 8), 24),
                    v6: v6.as_ref().map(|v6| NodeV6 {
                        address: nth6(v6.lan, 10 + u128::from(node)),
                        pods: Ipv6Net::new_assert(nth6(v6.pods, u128::from(node - 1) << 64), 64),
                    }),
                };
                ClusterPlan {
                    name: cluster.name.clone(),
                    stack: cluster.stack,
                    user: FIRST_USER + (u32::from(slot) << 4) + u32::from(number),
                    lan,
                    gateway: nth(lan, 1),
                    control_plane: nth(lan, 2),
                    pods: ranges.pods,
                    services: ranges.services,
                    api_service: nth(ranges.services, 1),
                    dns_service: nth(ranges.services, 10),
                    nodes: (1..=cluster.nodes).map(node).collect(),
                    v6,
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

/// Pod and Service ranges of a cluster.
struct Ranges {
    pods: Ipv4Net,
    services: Ipv4Net,
    pods_v6: Ipv6Net,
    services_v6: Ipv6Net,
}

/// The ranges of the cluster with this index. Those of IPv6 overlap as those of IPv4 do: 10.244.0.0/16 goes with
/// fd00:10:244::/56, of which a node takes a /64, and 10.96.0.0/16 with fd00:10:96::/112.
fn ranges(plan: CidrPlan, index: u16) -> Ranges {
    let ten =
        |second: u16, third: u32, len: u8| net((10 << 24) | (u32::from(second) << 16) | (third << 8), len);
    // The second number is written alike in both families, as in kind: its decimal digits are read as hexadecimal ones.
    let digits = |number: u16| u16::from_str_radix(&number.to_string(), 16).unwrap_or(number);
    let ula = |second: u16, node: u16, last: u16, len: u8| {
        net6([0xfd00, 0x10, digits(second), node, 0, 0, 0, last], len)
    };
    let common = || Ranges {
        pods: ten(244, 0, 16),
        services: ten(96, 0, 16),
        pods_v6: ula(244, 0, 0, 56),
        services_v6: ula(96, 0, 0, 112),
    };
    match plan {
        CidrPlan::Same => common(),
        CidrPlan::Disjoint => Ranges {
            pods: ten(16 + index, 0, 16),
            services: ten(112 + index, 0, 16),
            pods_v6: ula(16 + index, 0, 0, 56),
            services_v6: ula(112 + index, 0, 0, 112),
        },
        // The second cluster's pods lie inside the first's; the third has pods where the first has services and
        // the other way round; the fourth overlaps with nobody's pods. Further clusters repeat the pattern.
        CidrPlan::Asymmetric => match index % 4 {
            0 => common(),
            1 => Ranges {
                pods: ten(244, 64, 18),
                services: ten(97, 0, 20),
                pods_v6: ula(244, 0x40, 0, 58),
                services_v6: ula(97, 0, 0, 116),
            },
            2 => Ranges {
                pods: ten(96, 0, 17),
                services: ten(244, 0, 20),
                pods_v6: ula(96, 0, 0, 57),
                services_v6: ula(244, 0, 0, 116),
            },
            _ => Ranges {
                pods: ten(128, 0, 20),
                services: ten(96, 64, 24),
                pods_v6: ula(128, 0, 0, 60),
                services_v6: ula(96, 0, 0x4000, 120),
            },
        },
    }
}

fn nth(network: Ipv4Net, host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()) + host)
}

fn nth6(network: Ipv6Net, host: u128) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(network.network()) + host)
}

fn net(address: u32, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(address), prefix)
}

fn net6(groups: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from(groups), prefix)
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
                    cidrs: None,
                })
                .collect(),
            cidrs,
            ip_families: IpFamilies::Dual,
            audit: false,
        }
    }

    #[test]
    fn no_two_machines_of_any_slots_share_an_address_or_a_user() {
        let (mut seen, mut seen_v6, mut users) = (HashSet::new(), HashSet::new(), HashSet::new());
        for slot in 0..SLOTS {
            let plan = AddressPlan::new(&largest(CidrPlan::Same), slot);
            assert!(seen.insert(plan.router) && seen.insert(plan.host));
            for cluster in &plan.clusters {
                assert!(plan.network.contains(&cluster.lan));
                assert!(seen.insert(cluster.gateway) && seen.insert(cluster.control_plane));
                let v6 = cluster.v6.as_ref().unwrap();
                assert!(seen_v6.insert(v6.gateway) && seen_v6.insert(v6.control_plane));
                assert!(users.insert(cluster.user));
                for node in &cluster.nodes {
                    assert!(cluster.lan.contains(&node.address) && seen.insert(node.address));
                    let address = node.v6.unwrap().address;
                    assert!(v6.lan.contains(&address) && seen_v6.insert(address));
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
                let (pods, services) = (cluster.pod_ranges(), cluster.service_ranges());
                for node in &cluster.nodes {
                    for (range, part) in pods.iter().zip(node.pod_ranges()) {
                        assert!(range.contains(&part) && seen.insert(part), "{cidrs} {}: {part}", node.name);
                    }
                }
                assert!(cluster.services.contains(&cluster.dns_service));
                for (pods, services) in pods.iter().zip(&services) {
                    assert!(!pods.contains(services) && !services.contains(pods), "{pods} {services}");
                }
            }
        }
    }

    #[test]
    fn plans_overlap_as_their_names_say() {
        let overlap = |a: IpNet, b: IpNet| a.contains(&b) || b.contains(&a);
        let same = AddressPlan::new(&largest(CidrPlan::Same), 0).clusters;
        assert!(same.iter().all(|c| c.pod_ranges() == same[0].pod_ranges()));
        assert!(same.iter().all(|c| c.service_ranges() == same[0].service_ranges()));

        let disjoint = AddressPlan::new(&largest(CidrPlan::Disjoint), 0).clusters;
        let all: Vec<_> =
            disjoint.iter().flat_map(|c| [c.pod_ranges(), c.service_ranges()].concat()).collect();
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| !overlap(*one, *other)), "{one}");
        }

        let asymmetric = AddressPlan::new(&largest(CidrPlan::Asymmetric), 0).clusters;
        for family in [0, 1] {
            let pods = |cluster: usize| asymmetric[cluster].pod_ranges()[family];
            let services = |cluster: usize| asymmetric[cluster].service_ranges()[family];
            assert!(overlap(pods(0), pods(1)) && pods(0) != pods(1));
            assert!(overlap(services(0), pods(2)) && overlap(pods(0), services(2)));
            // Also where each has one node only.
            assert!(overlap(asymmetric[0].nodes[0].pod_ranges()[family], services(2)));
            assert!(overlap(asymmetric[2].nodes[0].pod_ranges()[family], services(0)));
            assert!((0..3).all(|other| !overlap(pods(3), pods(other))));
        }
    }

    #[test]
    fn one_cluster_may_follow_another_plan_and_have_no_ipv6() {
        let mut spec = largest(CidrPlan::Same);
        spec.clusters[3].cidrs = Some(CidrPlan::Disjoint);
        spec.ip_families = IpFamilies::Ipv4;
        let clusters = AddressPlan::new(&spec, 0).clusters;
        assert_eq!(clusters[3].pods.to_string(), "10.19.0.0/16");
        assert_eq!(clusters[4].pods.to_string(), "10.244.0.0/16");
        assert_eq!(clusters[3].pod_ranges().len(), 1);
        assert_eq!(clusters[3].nodes[0].addresses().len(), 1);
    }
}
