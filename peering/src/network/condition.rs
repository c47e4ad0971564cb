//! The condition `NetworkReady` of a `Peer`. Pure.

use super::own::Own;
use liquid_crds::{ConditionUpdate, NetworkStatus, PodCidr};
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
    /// Its pods have addresses of one family, pods here of the other.
    NoCommonFamily,
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
        Some(Trouble::NoCommonFamily) => {
            return no(
                "NoCommonIPFamily",
                "pods here and pods of the peer have no family of addresses (IPv4, IPv6) in common; where nodes have IPv6 \
                 podCIDRs, network.ipv6 of the chart has to be set"
                    .to_owned(),
            );
        }
        Some(Trouble::NoRoom(why)) => return no("NoRoom", why.to_owned()),
        None => {}
    }
    let nothing = NetworkStatus::default();
    let network = network.unwrap_or(&nothing);
    if own.announcement.pod_cidrs.is_empty() {
        return no(
            "NoPodCIDR",
            "the prefixes of this cluster's pods are not known: its nodes have no spec.podCIDRs; let the controller manager allocate them"
                .to_owned(),
        );
    }
    if network.own_pods().next().is_none() {
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
    let ready = network.tunnels.iter().filter(|tunnel| own.ready.contains(&tunnel.gateway));
    let ways: Vec<_> = ready.flat_map(|tunnel| tunnel.ways.iter().map(move |way| (tunnel, way))).collect();
    let up = ways.iter().filter(|(_, way)| way.up).count();
    if up == 0 {
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
    let moved = network.own_pods().filter(|cidr| cidr.real != cidr.seen);
    let moved: Vec<String> = moved.map(|cidr| format!("{} is seen as {}", cidr.real, cidr.seen)).collect();
    let views = if moved.is_empty() { "under their own addresses".to_owned() } else { moved.join(", ") };
    let all = own.ready.len() * network.gateways.len();
    let mut message = format!("pods of the peer are reached over {up} of {all} ways; {views}");
    if up < all {
        let down = ways.iter().filter(|(_, way)| !way.up);
        let down: Vec<_> =
            down.map(|(tunnel, way)| format!("{} to {}", tunnel.gateway, way.gateway)).collect();
        message = format!(
            "{message}; down: {}",
            if down.is_empty() { "not known yet".to_owned() } else { down.join(", ") }
        );
    }
    let further = || network.pod_cidrs.iter().filter(|cidr| cidr.transit);
    let direct: BTreeSet<&str> =
        further().filter_map(PodCidr::used_direct).map(|direct| direct.peer.as_str()).collect();
    if !direct.is_empty() {
        let direct: Vec<&str> = direct.into_iter().collect();
        message = format!("{message}; its pods in {} are reached there", direct.join(", "));
    }
    let outside = network.pod_cidrs.iter().filter(|cidr| cidr.external);
    let outside: Vec<String> = outside.map(|cidr| format!("{} as {}", cidr.real, cidr.seen)).collect();
    if !outside.is_empty() {
        message = format!("{message}; hosts outside are reached through it, {}", outside.join(", "));
    }
    let through = further().filter(|cidr| cidr.used_direct().is_none());
    let further: Vec<&str> = through.map(|cidr| cidr.seen.as_str()).collect();
    if !further.is_empty() {
        message = format!(
            "{message}; its pods in further clusters are reached through it, as {}",
            further.join(", ")
        );
    }
    let joined: BTreeSet<&str> =
        network.transit.iter().filter(|cidr| cidr.ready).map(|cidr| cidr.peer.as_str()).collect();
    if !joined.is_empty() {
        let joined: Vec<&str> = joined.into_iter().collect();
        message =
            format!("{message}; pods of this cluster there and in {} reach each other", joined.join(", "));
    }
    let reason = if up < all { "Degraded" } else { "Connected" };
    ConditionUpdate { type_: super::CONDITION, status: Some(true), reason, message }
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
    use liquid_crds::{PeerGateway, PodCidr, TransitCidr, TunnelStatus, WayStatus};

    fn gateway(name: &str, endpoint: &str) -> PeerGateway {
        let (public_key, endpoints) = (name.to_owned(), vec![endpoint.to_owned()]);
        PeerGateway { name: Some(name.to_owned()), public_key, endpoints, probes: true }
    }

    fn tunnel(gateway: &str, ways: &[bool]) -> TunnelStatus {
        let way =
            |(at, up): (usize, &bool)| WayStatus { gateway: format!("theirs-{at}"), up: *up, endpoint: None };
        let up = ways.contains(&true);
        let ways = ways.iter().enumerate().map(way).collect();
        TunnelStatus { gateway: gateway.to_owned(), up, ways, relay: None, since: None }
    }

    fn own() -> Own {
        Own {
            announcement: Announcement {
                pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                gateways: vec![gateway("liquid-gateway-0", "192.0.2.1:1")],
                ..Announcement::default()
            },
            ready: BTreeSet::from(["liquid-gateway-0".to_owned()]),
            ..Own::default()
        }
    }

    fn network(up: bool) -> NetworkStatus {
        NetworkStatus {
            pod_cidrs: vec![PodCidr::own("10.244.0.0/16", "10.200.0.0/16")],
            gateways: vec![gateway("theirs-0", "192.0.2.2:1")],
            tunnels: vec![tunnel("liquid-gateway-0", &[up])],
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
    fn it_is_said_how_many_ways_are_up_and_which_are_not() {
        let own = Own { ready: ["liquid-gateway-0", "liquid-gateway-1"].map(str::to_owned).into(), ..own() };
        let mut network = network(true);
        network.gateways.push(gateway("theirs-1", "192.0.2.3:1"));
        let said = |ways: [[bool; 2]; 2]| {
            let tunnels = (0..).zip(&ways).map(|(at, ways)| tunnel(&format!("liquid-gateway-{at}"), ways));
            let network = NetworkStatus { tunnels: tunnels.collect(), ..network.clone() };
            of(&own, Some(&network), None)
        };
        let all = said([[true; 2]; 2]);
        assert_eq!((all.reason, all.message.contains("4 of 4 ways")), ("Connected", true));
        let some = said([[true, true], [true, false]]);
        assert_eq!((some.reason, some.status), ("Degraded", Some(true)));
        assert!(
            some.message.contains("3 of 4 ways")
                && some.message.ends_with("down: liquid-gateway-1 to theirs-1")
        );
        assert_eq!(said([[false; 2]; 2]).reason, "TunnelDown");
    }

    #[test]
    fn it_is_said_whose_pods_are_reached_through_whom() {
        let mut network = network(true);
        let cidr =
            |ready: bool| TransitCidr { seen: "10.202.0.0/16".to_owned(), peer: "c".to_owned(), ready };
        network.transit = vec![cidr(false)];
        assert!(!of(&own(), Some(&network), None).message.contains("each other"), "not yet");
        network.transit = vec![cidr(true)];
        assert!(of(&own(), Some(&network), None).message.ends_with("there and in c reach each other"));
        let text = "10.203.0.0/16".to_owned();
        network.pod_cidrs.push(PodCidr::transit(&text, &text));
        assert!(of(&own(), Some(&network), None).message.contains("through it, as 10.203.0.0/16"));
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
