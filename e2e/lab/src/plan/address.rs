//! Which addresses everything in a lab has.
//!
//! Underlay addresses come from 198.18.0.0/15 (RFC 2544, benchmarking), which no network of a host should use.
//! A lab takes one /20 of it (its *slot*); the first /24 joins the router and the host, each further /24 is the
//! LAN of one cluster. Labs with IPv6 have the same in it: a ULA /48 per slot, a /64 per LAN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::plan::spec::{CidrPlan, ClusterName, IpFamilies, LabSpec, Stack};

/// How many labs fit on one machine: /20 networks in a /15.
pub(crate) const SLOTS: u8 = 32;

/// Control planes need no rights, and one user each: the kernel limits inotify instances per user, and all components
/// as root would use up the default (128) with three labs. The range is one that no distribution gives out.
const FIRST_USER: u32 = 2_000_000_000;

/// Underlay of all labs with IPv6; its third group is the slot. The rest of the first two spells "lab".
const UNDERLAY_V6: [u16; 2] = [0xfd6c, 0x6162];

/// The router's place in every LAN, and the control plane's.
const ROUTER: u8 = 1;
pub(crate) const CONTROL_PLANE: u8 = 2;

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
    /// The same in IPv6, if a cluster has nothing else.
    pub v6: Option<WireV6>,
    /// The clusters, in the order of the spec.
    pub clusters: Vec<ClusterPlan>,
}

/// The way from the host in IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WireV6 {
    /// All underlay addresses of the lab.
    pub network: Ipv6Net,
    /// The router's address towards the host.
    pub router: Ipv6Addr,
    /// The host's address towards the router.
    pub host: Ipv6Addr,
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
    /// The network of its machines; the first address of it is the router's, their default gateway. Without IPv4, nobody else
    /// has one.
    pub lan: Ipv4Net,
    /// The same in IPv6, if machines have that.
    pub lan_v6: Option<Ipv6Net>,
    /// The addresses of the control plane, one of each family, the first family first.
    pub control_plane: Vec<IpAddr>,
    /// The ranges pods take their addresses from, likewise.
    pub pods: Vec<IpNet>,
    /// The ranges ClusterIPs are taken from, likewise.
    pub services: Vec<IpNet>,
    /// ClusterIP of the API server: the first of the first range.
    pub api_service: IpAddr,
    /// ClusterIP of DNS: the tenth of the first range, as kubeadm does.
    pub dns_service: IpAddr,
    /// Its real nodes.
    pub nodes: Vec<NodePlan>,
}

/// Addresses of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodePlan {
    /// Name of the Node object: `CLUSTER-N`, unique in the lab.
    pub name: String,
    /// Its place in the LAN: the end of each of its addresses.
    pub host: u8,
    /// Its addresses in the LAN, one of each family, the first family first.
    pub addresses: Vec<IpAddr>,
    /// Its parts of the pod ranges, likewise.
    pub pods: Vec<IpNet>,
}

impl ClusterPlan {
    /// The router's address in the LAN, in the family of `address`.
    #[must_use]
    pub fn gateway(&self, address: IpAddr) -> IpAddr {
        match self.lan_v6.filter(|_| address.is_ipv6()) {
            Some(lan) => nth6(lan, ROUTER.into()).into(),
            None => nth(self.lan, ROUTER.into()).into(),
        }
    }
}

fn families<T>(families: IpFamilies, v4: impl Into<T>, v6: impl Into<T>) -> Vec<T> {
    match families {
        IpFamilies::Ipv4 => vec![v4.into()],
        IpFamilies::Ipv6 => vec![v6.into()],
        IpFamilies::Dual => vec![v4.into(), v6.into()],
    }
}

impl AddressPlan {
    /// Gives out the addresses of a valid spec in a slot below 32.
    #[must_use]
    pub fn new(spec: &LabSpec, slot: u8) -> Self {
        let network = slot_network(slot);
        let clusters = (1u16..)
            .zip(&spec.clusters)
            .map(|(number, cluster)| {
                let ranges = ranges(spec.cidrs_of(cluster), number - 1);
                let of = spec.ip_families_of(cluster);
                let lan = net(u32::from(network.network()) + (u32::from(number) << 8), 24);
                let lan_v6 = lan_v6(slot, number);
                let addresses =
                    |host: u8| families(of, nth(lan, u32::from(host)), nth6(lan_v6, u128::from(host)));
                let node = |node: u8| {
                    let (host, part) = (10 + node, u32::from(node - 1));
                    let pods = net(u32::from(ranges.pods.network()) + (part << 8), 24);
                    let pods_v6 = Ipv6Net::new_assert(nth6(ranges.pods_v6, u128::from(part) << 64), 64);
                    NodePlan {
                        name: format!("{}-{node}", cluster.name),
                        host,
                        addresses: addresses(host),
                        pods: families(of, pods, pods_v6),
                    }
                };
                let service = |host: u8| {
                    families(
                        of,
                        nth(ranges.services, u32::from(host)),
                        nth6(ranges.services_v6, u128::from(host)),
                    )[0]
                };
                ClusterPlan {
                    name: cluster.name.clone(),
                    stack: cluster.stack,
                    user: FIRST_USER + (u32::from(slot) << 4) + u32::from(number),
                    lan,
                    lan_v6: Some(lan_v6).filter(|_| of != IpFamilies::Ipv4),
                    control_plane: addresses(CONTROL_PLANE),
                    pods: families(of, ranges.pods, ranges.pods_v6),
                    services: families(of, ranges.services, ranges.services_v6),
                    api_service: service(1),
                    dns_service: service(10),
                    nodes: (1..=cluster.nodes).map(node).collect(),
                }
            })
            .collect::<Vec<ClusterPlan>>();
        let v6 = clusters.iter().any(|cluster| cluster.control_plane[0].is_ipv6()).then(|| WireV6 {
            network: Ipv6Net::new_assert(lan_v6(slot, 0).network(), 48),
            router: nth6(lan_v6(slot, 0), ROUTER.into()),
            host: nth6(lan_v6(slot, 0), 2),
        });
        Self { slot, network, router: nth(network, ROUTER.into()), host: nth(network, 2), v6, clusters }
    }
}

/// A LAN of a slot in IPv6; the first of them is the wire to the host.
fn lan_v6(slot: u8, number: u16) -> Ipv6Net {
    let [first, second] = UNDERLAY_V6;
    net6([first, second, u16::from(slot), number, 0, 0, 0, 0], 64)
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
                    ip_families: None,
                })
                .collect(),
            cidrs,
            ip_families: IpFamilies::Dual,
            audit: false,
        }
    }

    #[test]
    fn no_two_machines_of_any_slots_share_an_address_or_a_user() {
        let (mut seen, mut users) = (HashSet::new(), HashSet::new());
        let mut spec = largest(CidrPlan::Same);
        spec.clusters[1].ip_families = Some(IpFamilies::Ipv6);
        for slot in 0..SLOTS {
            let plan = AddressPlan::new(&spec, slot);
            let v6 = plan.v6.as_ref().unwrap();
            let ends: [IpAddr; 4] = [plan.router.into(), plan.host.into(), v6.router.into(), v6.host.into()];
            assert!(ends.into_iter().all(|end| seen.insert(end)));
            for cluster in &plan.clusters {
                assert!(plan.network.contains(&cluster.lan));
                assert!(v6.network.contains(&cluster.lan_v6.unwrap()));
                assert!(users.insert(cluster.user));
                let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
                for address in cluster.control_plane.iter().chain(nodes) {
                    let lan: IpNet = match address {
                        IpAddr::V4(_) => cluster.lan.into(),
                        IpAddr::V6(_) => cluster.lan_v6.unwrap().into(),
                    };
                    assert!(lan.contains(address) && seen.insert(*address));
                    assert!(
                        lan.contains(&cluster.gateway(*address))
                            && !seen.contains(&cluster.gateway(*address))
                    );
                }
            }
        }
        let all: Ipv4Net = "198.18.0.0/15".parse().unwrap();
        assert!(seen.iter().all(|address| address.is_ipv6() || IpNet::from(all).contains(address)));
    }

    #[test]
    fn node_ranges_lie_in_the_pod_range_and_apart() {
        for cidrs in [CidrPlan::Same, CidrPlan::Disjoint, CidrPlan::Asymmetric] {
            for cluster in AddressPlan::new(&largest(cidrs), 0).clusters {
                let mut seen = HashSet::new();
                for node in &cluster.nodes {
                    for (range, part) in cluster.pods.iter().zip(&node.pods) {
                        assert!(range.contains(part) && seen.insert(*part), "{cidrs} {}: {part}", node.name);
                    }
                }
                assert!(cluster.services[0].contains(&cluster.dns_service));
                for (pods, services) in cluster.pods.iter().zip(&cluster.services) {
                    assert!(!pods.contains(services) && !services.contains(pods), "{pods} {services}");
                }
            }
        }
    }

    #[test]
    fn plans_overlap_as_their_names_say() {
        let overlap = |a: IpNet, b: IpNet| a.contains(&b) || b.contains(&a);
        let same = AddressPlan::new(&largest(CidrPlan::Same), 0).clusters;
        assert!(same.iter().all(|c| c.pods == same[0].pods && c.services == same[0].services));

        let disjoint = AddressPlan::new(&largest(CidrPlan::Disjoint), 0).clusters;
        let all: Vec<_> =
            disjoint.iter().flat_map(|c| [c.pods.clone(), c.services.clone()].concat()).collect();
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| !overlap(*one, *other)), "{one}");
        }

        let asymmetric = AddressPlan::new(&largest(CidrPlan::Asymmetric), 0).clusters;
        for family in [0, 1] {
            let pods = |cluster: usize| asymmetric[cluster].pods[family];
            let services = |cluster: usize| asymmetric[cluster].services[family];
            assert!(overlap(pods(0), pods(1)) && pods(0) != pods(1));
            assert!(overlap(services(0), pods(2)) && overlap(pods(0), services(2)));
            // Also where each has one node only.
            assert!(overlap(asymmetric[0].nodes[0].pods[family], services(2)));
            assert!(overlap(asymmetric[2].nodes[0].pods[family], services(0)));
            assert!((0..3).all(|other| !overlap(pods(3), pods(other))));
        }
    }

    #[test]
    fn one_cluster_may_follow_another_plan_and_have_other_families() {
        let mut spec = largest(CidrPlan::Same);
        spec.clusters[3].cidrs = Some(CidrPlan::Disjoint);
        spec.clusters[4].ip_families = Some(IpFamilies::Ipv6);
        spec.ip_families = IpFamilies::Ipv4;
        let clusters = AddressPlan::new(&spec, 0).clusters;
        let text = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(text(&clusters[3].pods), "10.19.0.0/16");
        assert_eq!(text(&clusters[4].pods), "fd00:10:244::/56");
        assert_eq!(text(&clusters[4].nodes[1].pods), "fd00:10:244:1::/64");
        assert_eq!(text(&clusters[5].pods), "10.244.0.0/16");
        assert_eq!(clusters[3].control_plane, ["198.18.4.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(clusters[4].control_plane, ["fd6c:6162:0:5::2".parse::<IpAddr>().unwrap()]);
        assert_eq!(clusters[4].dns_service.to_string(), "fd00:10:96::a");
        assert_eq!(clusters[4].nodes[0].addresses, ["fd6c:6162:0:5::b".parse::<IpAddr>().unwrap()]);
    }
}
