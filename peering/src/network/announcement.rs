//! What one cluster tells another of its network, checked once at the border.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use liquid_crds::PeerGateway;
use liquid_link::digest::Hash;
use liquid_link::gateways::{self, InvalidGateway, MAX_ENDPOINTS, MAX_GATEWAYS};
use liquid_link::proto;
use std::collections::BTreeMap;
use std::net::IpAddr;
use thiserror::Error;

/// Prefixes of one cluster: nodes whose prefixes are not neighbours, at most. Together they are less than half of the
/// largest message the link takes.
pub(crate) const MAX_PREFIXES: usize = 256;
/// Prefixes of pods in further clusters, as many as can be told of, or taken, beside these.
pub(crate) const MAX_TRANSIT: usize = 32;
/// Prefixes of hosts outside of a cluster.
pub(crate) const MAX_EXTERNAL: usize = 16;
/// Shortest prefixes taken: the largest private network, and what registries give to providers.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 32;
/// Of hosts outside: the other side needs room for as many addresses.
const SHORTEST_EXTERNAL_V4: u8 = 16;
const SHORTEST_EXTERNAL_V6: u8 = 48;

/// The network of a cluster, as it tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// Prefixes of its pods, as it has them; sorted, none within another.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// Its gateways.
    pub(crate) gateways: Vec<PeerGateway>,
    /// Prefixes of pods in further clusters, as it sees them: it passes on what is sent to them; sorted, apart from those of
    /// its own pods.
    pub(crate) transit: Vec<IpNet>,
    /// Of those it was told of, the ones it has found a place for.
    pub(crate) taken: Vec<IpNet>,
    /// Of those in further clusters, whose they are.
    pub(crate) origins: BTreeMap<IpNet, Origin>,
    /// Pods of the other side may reach all pods here, from prefixes of which this is the digest.
    pub(crate) admits: Option<Hash>,
    /// Prefixes of hosts outside that its pods reach through it; sorted, apart from all others.
    pub(crate) external: Vec<IpNet>,
}

/// Whose pods those of a prefix in a further cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Tells the cluster to those that know it: see [`mark`].
    pub(crate) cluster: Hash,
    /// The prefix as that cluster has it.
    pub(crate) real: IpNet,
}

/// How `to` is told of the cluster `of`. Without its identity, nothing is learned of that.
pub(super) fn mark(of: &str, to: &str) -> Hash {
    Hash::of(format!("{of}@{to}").as_bytes())
}

/// Why an announcement is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Invalid {
    /// It has too many prefixes.
    #[error(
        "it names more than {MAX_PREFIXES} prefixes of pods, {MAX_TRANSIT} of pods in further clusters, or {MAX_EXTERNAL} of hosts outside"
    )]
    TooMany,
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
    /// Its gateways are not such as can be used.
    #[error(transparent)]
    Gateway(#[from] InvalidGateway),
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
        let texts = |prefixes: &[IpNet]| prefixes.iter().map(ToString::to_string).collect();
        let origin = |(index, seen): (u32, &IpNet)| {
            let Origin { cluster, real } = self.origins.get(seen)?;
            let cluster = cluster.as_bytes().to_vec().into();
            Some(proto::TransitOrigin { index, cluster, pod_cidr: real.to_string() })
        };
        proto::NetworkInfo {
            pod_cidrs: texts(&self.pod_cidrs),
            gateways: gateways.take(MAX_GATEWAYS).collect(),
            transit_cidrs: texts(&self.transit),
            taken_cidrs: texts(&self.taken),
            transit_origins: (0..).zip(&self.transit).filter_map(origin).collect(),
            external_cidrs: texts(&self.external),
            admits: self.admits.map(|admits| admits.as_bytes().to_vec().into()).unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::NetworkInfo> for Announcement {
    type Error = Invalid;

    fn try_from(wire: proto::NetworkInfo) -> Result<Self, Invalid> {
        let further = [wire.transit_cidrs.len(), wire.taken_cidrs.len(), wire.transit_origins.len()];
        if wire.pod_cidrs.len() > MAX_PREFIXES
            || further.iter().any(|number| *number > MAX_TRANSIT)
            || wire.external_cidrs.len() > MAX_EXTERNAL
        {
            return Err(Invalid::TooMany);
        }
        // Before anything is made of them.
        if wire.gateways.len() > MAX_GATEWAYS {
            return Err(InvalidGateway::TooMany { what: "gateways", limit: MAX_GATEWAYS }.into());
        }
        let prefixes = |texts: &[String]| {
            let mut prefixes = texts.iter().map(|text| prefix(text)).collect::<Result<Vec<_>, _>>()?;
            prefixes.sort();
            Ok::<_, Invalid>(prefixes)
        };
        let (pod_cidrs, transit) = (prefixes(&wire.pod_cidrs)?, prefixes(&wire.transit_cidrs)?);
        let external = wire.external_cidrs.iter().map(|text| outside(text)).collect::<Result<Vec<_>, _>>()?;
        let mut all = [pod_cidrs.as_slice(), &transit, &external].concat();
        all.sort();
        // Sorted by address, a prefix can only share addresses with its neighbour.
        if let Some(pair) = all.windows(2).find(|pair| overlap(&pair[0], &pair[1])) {
            return Err(Invalid::Overlap(pair[0], pair[1]));
        }
        let gateways = wire.gateways.into_iter().map(|gateway| PeerGateway {
            name: Some(gateway.name).filter(|name| !name.is_empty()),
            public_key: STANDARD.encode(&gateway.public_key),
            endpoints: gateway.endpoints,
            probes: gateway.probes,
        });
        let gateways: Vec<PeerGateway> = gateways.collect();
        gateways::check(&gateways)?;
        let origins =
            wire.transit_origins.iter().filter_map(|origin| Origin::read(origin, &wire.transit_cidrs));
        Ok(Self {
            pod_cidrs,
            gateways,
            origins: origins.collect(),
            taken: prefixes(&wire.taken_cidrs)?,
            transit,
            admits: Hash::from_bytes(&wire.admits),
            external,
        })
    }
}

impl Origin {
    /// With the prefix that it is about, one of `transit`. What makes no sense is none: there is the way through the sender.
    fn read(wire: &proto::TransitOrigin, transit: &[String]) -> Option<(IpNet, Self)> {
        let seen = prefix(transit.get(usize::try_from(wire.index).ok()?)?).ok()?;
        let real = prefix(&wire.pod_cidr).ok()?;
        let fits = real.max_prefix_len() == seen.max_prefix_len() && real.prefix_len() == seen.prefix_len();
        let cluster = Hash::from_bytes(&wire.cluster).filter(|_| fits)?;
        Some((seen, Self { cluster, real }))
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

/// A prefix of hosts outside.
///
/// # Errors
/// If it is none that peers take.
pub(crate) fn outside(text: &str) -> Result<IpNet, Invalid> {
    let prefix = prefix(text)?;
    let shortest = if matches!(prefix, IpNet::V4(_)) { SHORTEST_EXTERNAL_V4 } else { SHORTEST_EXTERNAL_V6 };
    if prefix.prefix_len() < shortest {
        return Err(Invalid::Unfit {
            prefix,
            why: "it has too many addresses for the other side to find room",
        });
    }
    Ok(prefix)
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
        proto::NetworkInfo { pod_cidrs, ..proto::NetworkInfo::default() }.try_into()
    }

    #[test]
    fn what_is_told_arrives() {
        let announced = Announcement {
            pod_cidrs: vec!["10.244.0.0/23".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            gateways: vec![PeerGateway {
                name: Some("liquid-gateway-0".to_owned()),
                probes: true,
                public_key: STANDARD.encode([7; gateways::KEY]),
                endpoints: vec![
                    "192.0.2.1:31820".to_owned(),
                    "[2001:db8::1]:51820".to_owned(),
                    "gw.example:1".to_owned(),
                ],
            }],
            transit: vec!["10.201.0.0/16".parse().unwrap()],
            taken: vec!["10.202.0.0/16".parse().unwrap()],
            origins: BTreeMap::from([(
                "10.201.0.0/16".parse().unwrap(),
                Origin { cluster: mark("of", "to"), real: "10.244.0.0/16".parse().unwrap() },
            )]),
            admits: Some(mark("these", "those")),
            external: vec!["192.0.2.8/32".parse().unwrap()],
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
        let further = proto::NetworkInfo {
            pod_cidrs: vec!["10.1.0.0/16".to_owned()],
            transit_cidrs: vec!["10.1.4.0/24".to_owned()],
            ..proto::NetworkInfo::default()
        };
        assert!(matches!(Announcement::try_from(further), Err(Invalid::Overlap(..))), "whose would they be?");
        let many: Vec<String> =
            (0..=MAX_PREFIXES).map(|at| format!("10.{}.{}.0/24", at / 200, at % 200)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(told(&many[1..]).is_ok());
        assert!(matches!(told(&many), Err(Invalid::TooMany)));
    }

    #[test]
    fn hosts_outside_are_few_and_apart_from_all_else() {
        let told = |external: &[&str]| {
            Announcement::try_from(proto::NetworkInfo {
                pod_cidrs: vec!["10.1.0.0/16".to_owned()],
                external_cidrs: external.iter().map(|text| (*text).to_owned()).collect(),
                ..proto::NetworkInfo::default()
            })
        };
        assert!(told(&["192.0.0.0/16", "10.2.0.1/32", "2001:db8:1::/48"]).is_ok());
        for bad in ["192.0.0.0/15", "2001:db8::/47", "169.254.169.254/32", "10.1.0.7/32", "0.0.0.0/0"] {
            assert!(told(&[bad]).is_err(), "{bad}");
        }
        assert!(told(&["192.0.2.0/24", "192.0.2.7/32"]).is_err());
        let many: Vec<String> = (0..=MAX_EXTERNAL).map(|at| format!("192.0.2.{at}/32")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(told(&many[1..]).is_ok());
        assert!(matches!(told(&many), Err(Invalid::TooMany)));
    }

    #[test]
    fn whose_a_prefix_is_can_only_be_said_of_one_that_was_told() {
        let origin = |index: u32, real: &str, mark: usize| proto::TransitOrigin {
            index,
            cluster: vec![7; mark].into(),
            pod_cidr: real.to_owned(),
        };
        let told = |origin| {
            Announcement::try_from(proto::NetworkInfo {
                pod_cidrs: vec!["10.1.0.0/16".to_owned()],
                transit_cidrs: vec!["10.2.0.0/24".to_owned()],
                transit_origins: vec![origin],
                ..proto::NetworkInfo::default()
            })
        };
        let told = |origin| told(origin).unwrap().origins.len();
        assert_eq!(told(origin(0, "10.244.3.0/24", 16)), 1);
        for bad in [
            origin(1, "10.244.3.0/24", 16),
            origin(0, "10.244.0.0/16", 16),
            origin(0, "fd00::/64", 16),
            origin(0, "10.244.3.0/24", 15),
            origin(0, "127.0.0.0/24", 16),
        ] {
            assert_eq!(told(bad.clone()), 0, "{bad:?}");
        }
    }

    #[test]
    fn gateways_that_cannot_be_used_are_refused() {
        let gateway = |key: usize| {
            let public_key = vec![1; key].into();
            let gateways = vec![proto::GatewayInfo { public_key, ..proto::GatewayInfo::default() }];
            Announcement::try_from(proto::NetworkInfo { gateways, ..proto::NetworkInfo::default() })
        };
        assert!(gateway(gateways::KEY).is_ok(), "it may call, and may have no name");
        assert!(gateway(31).is_err());
    }

    #[test]
    fn the_longest_announcement_fits_into_a_message() {
        let prefixes = |site: u16, most: usize| -> Vec<IpNet> {
            (0..most).map(move |at| format!("2001:db8:{site:x}:{at:x}00::/56").parse().unwrap()).collect()
        };
        let announced = Announcement {
            pod_cidrs: prefixes(0x1234, MAX_PREFIXES),
            transit: prefixes(0x1235, MAX_TRANSIT),
            taken: prefixes(0x1236, MAX_TRANSIT),
            origins: prefixes(0x1235, MAX_TRANSIT)
                .into_iter()
                .map(|real| (real, Origin { cluster: mark("of", "to"), real }))
                .collect(),
            admits: Some(mark("these", "those")),
            external: prefixes(0x1237, MAX_EXTERNAL),
            ..Announcement::default()
        };
        // With room for gateways.
        assert!(prost::Message::encoded_len(&announced.to_wire()) < liquid_link::limits::MAX_UNARY * 3 / 5);
    }
}
