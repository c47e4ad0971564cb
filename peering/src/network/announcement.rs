//! What one cluster tells another of its network, checked once at the border.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use liquid_crds::PeerGateway;
use liquid_link::proto;
use std::net::IpAddr;
use thiserror::Error;

/// Prefixes of one cluster: nodes whose prefixes are not neighbours, at most. Together they are less than half of the
/// largest message the link takes.
pub(crate) const MAX_PREFIXES: usize = 256;
/// Gateways of one cluster, and addresses of each.
const MAX_GATEWAYS: usize = 8;
const MAX_ENDPOINTS: usize = 8;
/// Longest name of a gateway: a DNS label.
const MAX_NAME: usize = 63;
/// Longest address: a DNS name, a colon and a port.
const MAX_ENDPOINT: usize = 253 + 6;
/// Shortest prefixes taken: the largest private network, and what registries give to providers.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 32;
/// Length of a WireGuard key.
const KEY: usize = 32;

/// The network of a cluster, as it tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// Prefixes of its pods, as it has them; sorted, none within another.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// Its gateways.
    pub(crate) gateways: Vec<PeerGateway>,
}

/// Why an announcement is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Invalid {
    /// It has too much of something.
    #[error("it names more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are taken.
        limit: usize,
    },
    /// A prefix is none.
    #[error("{0:?} is no prefix")]
    NoPrefix(String),
    /// A prefix cannot be one of pods.
    #[error("{prefix} cannot be a prefix of pods: {why}")]
    Unfit {
        /// Which.
        prefix: IpNet,
        /// Why not.
        why: &'static str,
    },
    /// Two prefixes share addresses.
    #[error("its prefixes {0} and {1} overlap")]
    Overlap(IpNet, IpNet),
    /// A gateway has no key.
    #[error("a gateway has a key of {0} bytes instead of {KEY}")]
    Key(usize),
    /// A gateway is called something else than a pod can be.
    #[error("{0:?} is no name of a gateway")]
    Name(String),
    /// Two gateways cannot be told apart.
    #[error("two gateways are {0}")]
    Twins(String),
    /// An address is none.
    #[error("{0:?} is no address of the form host:port")]
    Endpoint(String),
}

impl Announcement {
    /// As it is told to a peer.
    pub(crate) fn to_wire(&self) -> proto::NetworkInfo {
        let gateways = self.gateways.iter().filter_map(|gateway| {
            Some(proto::GatewayInfo {
                public_key: STANDARD.decode(&gateway.public_key).ok()?.into(),
                endpoints: gateway.endpoints.iter().take(MAX_ENDPOINTS).cloned().collect(),
                name: gateway.name.clone().unwrap_or_default(),
                probes: gateway.probes,
            })
        });
        proto::NetworkInfo {
            pod_cidrs: self.pod_cidrs.iter().map(ToString::to_string).collect(),
            gateways: gateways.take(MAX_GATEWAYS).collect(),
        }
    }
}

impl TryFrom<proto::NetworkInfo> for Announcement {
    type Error = Invalid;

    fn try_from(wire: proto::NetworkInfo) -> Result<Self, Invalid> {
        let bounded = |count: usize, limit: usize, what: &'static str| {
            if count > limit { Err(Invalid::TooMany { what, limit }) } else { Ok(()) }
        };
        bounded(wire.pod_cidrs.len(), MAX_PREFIXES, "prefixes of pods")?;
        bounded(wire.gateways.len(), MAX_GATEWAYS, "gateways")?;
        let mut pod_cidrs = wire.pod_cidrs.iter().map(|text| prefix(text)).collect::<Result<Vec<_>, _>>()?;
        pod_cidrs.sort();
        // Sorted by address, a prefix can only share addresses with its neighbour.
        if let Some(pair) = pod_cidrs.windows(2).find(|pair| overlap(&pair[0], &pair[1])) {
            return Err(Invalid::Overlap(pair[0], pair[1]));
        }
        let mut gateways = Vec::with_capacity(wire.gateways.len());
        for gateway in wire.gateways {
            bounded(gateway.endpoints.len(), MAX_ENDPOINTS, "addresses of one gateway")?;
            if gateway.public_key.len() != KEY {
                return Err(Invalid::Key(gateway.public_key.len()));
            }
            if let Some(bad) = gateway.endpoints.iter().find(|text| !is_endpoint(text)) {
                return Err(Invalid::Endpoint(bad.chars().take(MAX_ENDPOINT).collect()));
            }
            let public_key = STANDARD.encode(&gateway.public_key);
            let name = Some(gateway.name).filter(|name| !name.is_empty());
            if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
                return Err(Invalid::Name(name.chars().take(MAX_NAME).collect()));
            }
            let twin = |other: &PeerGateway| {
                other.public_key == public_key || (name.is_some() && other.name == name)
            };
            if gateways.iter().any(twin) {
                return Err(Invalid::Twins(name.unwrap_or(public_key)));
            }
            let (endpoints, probes) = (gateway.endpoints, gateway.probes);
            gateways.push(PeerGateway { name, public_key, endpoints, probes });
        }
        Ok(Self { pod_cidrs, gateways })
    }
}

/// Whether two prefixes share addresses.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn prefix(text: &str) -> Result<IpNet, Invalid> {
    let parsed: IpNet = text.parse().map_err(|_| Invalid::NoPrefix(text.chars().take(64).collect()))?;
    let prefix = parsed.trunc();
    let unfit = |why| Err(Invalid::Unfit { prefix, why });
    if prefix != parsed {
        return unfit("it has bits beyond its length");
    }
    let special = match prefix {
        IpNet::V4(_) if prefix.prefix_len() < SHORTEST_V4 => return unfit("it is larger than any network"),
        IpNet::V6(_) if prefix.prefix_len() < SHORTEST_V6 => return unfit("it is larger than any network"),
        IpNet::V4(_) => ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"].as_slice(),
        IpNet::V6(_) => ["::/16", "fe80::/10", "ff00::/8"].as_slice(),
    };
    let special = special.iter().filter_map(|range| range.parse::<IpNet>().ok());
    if special.into_iter().any(|range| overlap(&range, &prefix)) {
        return unfit("these addresses have a meaning of their own");
    }
    Ok(prefix)
}

fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_sound = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let of_a_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            !host.is_empty() && host.bytes().all(of_a_name)
        }
    };
    text.len() <= MAX_ENDPOINT && host_is_sound && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A DNS label, as pods of a StatefulSet are called.
fn is_name(text: &str) -> bool {
    let of_a_label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= MAX_NAME && text.bytes().all(of_a_label)
}

/// The address in an endpoint (host:port), if it is not a name.
pub(super) fn address(endpoint: &str) -> Option<IpAddr> {
    let (host, _) = endpoint.rsplit_once(':')?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pod_cidrs: &[&str]) -> Result<Announcement, Invalid> {
        let pod_cidrs = pod_cidrs.iter().map(|text| (*text).to_owned()).collect();
        proto::NetworkInfo { pod_cidrs, gateways: Vec::new() }.try_into()
    }

    fn gateway(key: usize, endpoints: &[&str]) -> Result<Announcement, Invalid> {
        let endpoints = endpoints.iter().map(|text| (*text).to_owned()).collect();
        let gateways = vec![proto::GatewayInfo {
            public_key: vec![1; key].into(),
            endpoints,
            ..proto::GatewayInfo::default()
        }];
        proto::NetworkInfo { pod_cidrs: Vec::new(), gateways }.try_into()
    }

    #[test]
    fn what_is_told_arrives() {
        let announced = Announcement {
            pod_cidrs: vec!["10.244.0.0/23".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            gateways: vec![PeerGateway {
                name: Some("liquid-gateway-0".to_owned()),
                probes: true,
                public_key: STANDARD.encode([7; KEY]),
                endpoints: vec![
                    "192.0.2.1:31820".to_owned(),
                    "[2001:db8::1]:51820".to_owned(),
                    "gw.example:1".to_owned(),
                ],
            }],
        };
        assert_eq!(Announcement::try_from(announced.to_wire()), Ok(announced));
    }

    #[test]
    fn prefixes_that_would_catch_other_traffic_are_refused() {
        for bad in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/7",
            "127.0.0.0/8",
            "127.5.0.0/16",
            "169.254.0.0/16",
            "169.254.169.254/32",
            "224.0.0.0/8",
            "255.255.255.255/32",
            "0.0.0.0/8",
            "fe80::/64",
            "ff02::/32",
            "::1/128",
            "::ffff:0:0/96",
            "10.244.0.1/16",
            "10.244.0.0",
            "pods",
            "",
        ] {
            assert!(told(&[bad]).is_err(), "{bad}");
        }
        assert!(told(&["10.0.0.0/8", "2001:db8::/32"]).is_ok());
    }

    #[test]
    fn prefixes_must_be_apart_and_few() {
        assert!(matches!(told(&["10.1.0.0/16", "10.2.0.0/16", "10.1.4.0/24"]), Err(Invalid::Overlap(..))));
        assert!(told(&["10.1.0.0/16", "10.1.0.0/16"]).is_err());
        let many: Vec<String> =
            (0..=MAX_PREFIXES).map(|at| format!("10.{}.{}.0/24", at / 200, at % 200)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(told(&many[1..]).is_ok());
        assert!(matches!(told(&many), Err(Invalid::TooMany { .. })));
    }

    #[test]
    fn gateways_need_a_key_and_addresses_that_are_some() {
        assert!(gateway(KEY, &[]).is_ok(), "it may call");
        assert_eq!(gateway(31, &[]), Err(Invalid::Key(31)));
        for bad in
            ["192.0.2.1", "192.0.2.1:0", "host:99999", ":51820", "2001:db8::1:51820", "a b:1", "$(x):1"]
        {
            assert!(gateway(KEY, &[bad]).is_err(), "{bad}");
        }
        assert!(gateway(KEY, &["a:1"; MAX_ENDPOINTS + 1]).is_err());
    }

    #[test]
    fn gateways_can_be_told_apart() {
        let named = |names: [&str; 2], keys: [u8; 2]| {
            let gateway = |(name, key): (&str, u8)| proto::GatewayInfo {
                public_key: vec![key; KEY].into(),
                name: name.to_owned(),
                ..proto::GatewayInfo::default()
            };
            let gateways = names.into_iter().zip(keys).map(gateway).collect();
            Announcement::try_from(proto::NetworkInfo { pod_cidrs: Vec::new(), gateways })
        };
        assert!(named(["g-0", "g-1"], [1, 2]).is_ok());
        assert!(named(["", ""], [1, 2]).is_ok(), "of an earlier version");
        assert!(matches!(named(["g-0", "g-0"], [1, 2]), Err(Invalid::Twins(_))));
        assert!(matches!(named(["g-0", "g-1"], [1, 1]), Err(Invalid::Twins(_))));
        assert!(matches!(named(["g-0", "G 1"], [1, 2]), Err(Invalid::Name(_))));
    }

    #[test]
    fn the_longest_announcement_fits_into_a_message() {
        let announced = Announcement {
            pod_cidrs: (0..MAX_PREFIXES)
                .map(|at| format!("2001:db8:1234:{at:x}00::/56").parse().unwrap())
                .collect(),
            gateways: Vec::new(),
        };
        assert!(prost::Message::encoded_len(&announced.to_wire()) < liquid_link::limits::MAX_UNARY / 2);
    }
}
