//! The condition `NetworkReady` of a `Peer`. Pure.

use super::own::Own;
use liquid_crds::{ConditionUpdate, NetworkStatus};
use std::collections::BTreeSet;

/// What was heard of a peer's network, apart from what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble<'a> {
    /// It has not told yet.
    Untold,
    /// It has none.
    Absent(&'a str),
    /// What it told is not taken.
    Invalid(&'a str),
    /// There is no room for its prefixes.
    NoRoom(&'a str),
}

/// What to say of the network with a peer.
pub(super) fn of(
    own: &Own,
    network: Option<&NetworkStatus>,
    trouble: Option<Trouble<'_>>,
) -> ConditionUpdate<'static> {
    let no = |reason: &'static str, message: String| ConditionUpdate {
        type_: super::CONDITION,
        status: Some(false),
        reason,
        message,
    };
    match trouble {
        Some(Trouble::Untold) => {
            return no(
                "Untold",
                "the peer has not told of its network: is it connected, and installed with network.enabled?"
                    .to_owned(),
            );
        }
        Some(Trouble::Absent(why)) => {
            return no("NotOffered", format!("the peer has no network: {why}"));
        }
        Some(Trouble::Invalid(why)) => {
            return no("Invalid", format!("what the peer tells of its network is not taken: {why}"));
        }
        Some(Trouble::NoRoom(why)) => return no("NoRoom", why.to_owned()),
        None => {}
    }
    let nothing = NetworkStatus::default();
    let network = network.unwrap_or(&nothing);
    if own.announcement.pod_cidrs.is_empty() {
        return no(
            "NoPodCIDR",
            "the prefixes of this cluster's pods are not known: its nodes have no spec.podCIDRs; set network.podCIDRs of the chart"
                .to_owned(),
        );
    }
    if network.pod_cidrs.is_empty() {
        return no(
            "PeerHasNoPodCIDR",
            "the peer does not know the prefixes of its pods; see its NetworkReady".to_owned(),
        );
    }
    if network.gateways.is_empty() {
        return no("PeerHasNoGateway", "the peer has no gateway".to_owned());
    }
    if own.ready.is_empty() {
        return no(
            "NoGateway",
            "no gateway of this cluster is ready: see the pods of liquid-gateway".to_owned(),
        );
    }
    let up = network.tunnels.iter().any(|tunnel| tunnel.up && own.ready.contains(&tunnel.gateway));
    if !up {
        let ours = own.announcement.gateways.iter().flat_map(|gateway| &gateway.endpoints);
        let theirs: BTreeSet<&str> =
            network.gateways.iter().flat_map(|gateway| &gateway.endpoints).map(String::as_str).collect();
        let ours: BTreeSet<&str> = ours.map(String::as_str).collect();
        return no(
            "TunnelDown",
            format!(
                "the gateways do not reach each other: UDP must pass to {} or to {}",
                list(&theirs),
                list(&ours)
            ),
        );
    }
    let moved = network.pod_cidrs.iter().filter(|cidr| cidr.real != cidr.seen);
    let moved: Vec<String> = moved.map(|cidr| format!("{} is seen as {}", cidr.real, cidr.seen)).collect();
    let message = if moved.is_empty() {
        "pods of the peer are reached under their own addresses".to_owned()
    } else {
        format!("pods of the peer are reached; {}", moved.join(", "))
    };
    ConditionUpdate { type_: super::CONDITION, status: Some(true), reason: "Connected", message }
}

fn list(endpoints: &BTreeSet<&str>) -> String {
    if endpoints.is_empty() {
        return "(no address known)".to_owned();
    }
    endpoints.iter().copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::announcement::Announcement;
    use liquid_crds::{PeerGateway, PodCidr, TunnelStatus};

    fn own() -> Own {
        Own {
            announcement: Announcement {
                pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                gateways: vec![PeerGateway {
                    public_key: "o".to_owned(),
                    endpoints: vec!["192.0.2.1:1".to_owned()],
                }],
            },
            ready: BTreeSet::from(["liquid-gateway-0".to_owned()]),
            ..Own::default()
        }
    }

    fn network(up: bool) -> NetworkStatus {
        NetworkStatus {
            pod_cidrs: vec![PodCidr { real: "10.244.0.0/16".to_owned(), seen: "10.200.0.0/16".to_owned() }],
            gateways: vec![PeerGateway {
                public_key: "t".to_owned(),
                endpoints: vec!["192.0.2.2:1".to_owned()],
            }],
            tunnels: vec![TunnelStatus {
                gateway: "liquid-gateway-0".to_owned(),
                up,
                endpoint: None,
                since: None,
            }],
            ..NetworkStatus::default()
        }
    }

    #[test]
    fn the_first_thing_that_is_missing_is_the_reason() {
        let reason = |own: &Own, network: Option<&NetworkStatus>, trouble| of(own, network, trouble).reason;
        let up = network(true);
        assert_eq!(reason(&own(), Some(&up), None), "Connected");
        assert_eq!(reason(&own(), Some(&network(false)), None), "TunnelDown");
        assert_eq!(
            reason(&Own { ready: BTreeSet::new(), ..own() }, Some(&up), None),
            "NoGateway",
            "a stale report"
        );
        let other = BTreeSet::from(["liquid-gateway-1".to_owned()]);
        assert_eq!(reason(&Own { ready: other, ..own() }, Some(&up), None), "TunnelDown");
        assert_eq!(
            reason(&own(), Some(&NetworkStatus { gateways: Vec::new(), ..up.clone() }), None),
            "PeerHasNoGateway"
        );
        assert_eq!(reason(&own(), None, None), "PeerHasNoPodCIDR");
        assert_eq!(reason(&Own::default(), Some(&up), None), "NoPodCIDR");
        assert_eq!(reason(&own(), Some(&up), Some(Trouble::Invalid("x"))), "Invalid");
    }

    #[test]
    fn messages_name_addresses() {
        assert!(
            of(&own(), Some(&network(true)), None).message.contains("10.244.0.0/16 is seen as 10.200.0.0/16")
        );
        let down = of(&own(), Some(&network(false)), None).message;
        assert!(down.contains("192.0.2.2:1") && down.contains("192.0.2.1:1"), "{down}");
    }
}
