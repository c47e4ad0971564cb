//! What clusters tell each other of their gateways, checked once at the border.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use liquid_crds::PeerGateway;
use thiserror::Error;

/// Gateways of one cluster, and addresses of each.
pub const MAX_GATEWAYS: usize = 8;
/// Addresses of one gateway.
pub const MAX_ENDPOINTS: usize = 8;
/// Longest name of a gateway: a DNS label.
const MAX_NAME: usize = 63;
/// Longest address: a DNS name, a colon and a port.
const MAX_ENDPOINT: usize = 253 + 6;
/// Length of a WireGuard key.
pub const KEY: usize = 32;

/// Why what is told of gateways is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidGateway {
    /// There is too much of something.
    #[error("it names more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are taken.
        limit: usize,
    },
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

/// Checks gateways as a peer tells of them.
///
/// # Errors
/// If there are too many, or a key or an address is none.
pub fn check(gateways: &[PeerGateway]) -> Result<(), InvalidGateway> {
    let bounded = |count: usize, limit: usize, what: &'static str| {
        if count > limit { Err(InvalidGateway::TooMany { what, limit }) } else { Ok(()) }
    };
    bounded(gateways.len(), MAX_GATEWAYS, "gateways")?;
    for (at, gateway) in gateways.iter().enumerate() {
        bounded(gateway.endpoints.len(), MAX_ENDPOINTS, "addresses of one gateway")?;
        let length = STANDARD.decode(&gateway.public_key).map_or(0, |key| key.len());
        if length != KEY {
            return Err(InvalidGateway::Key(length));
        }
        let name = gateway.name.as_ref();
        if let Some(name) = name.filter(|name| !is_name(name)) {
            return Err(InvalidGateway::Name(name.chars().take(MAX_NAME).collect()));
        }
        let twin = |other: &PeerGateway| {
            other.public_key == gateway.public_key || (name.is_some() && other.name.as_ref() == name)
        };
        if gateways[..at].iter().any(twin) {
            return Err(InvalidGateway::Twins(name.unwrap_or(&gateway.public_key).clone()));
        }
        if let Some(bad) = gateway.endpoints.iter().find(|text| !is_endpoint(text)) {
            return Err(InvalidGateway::Endpoint(bad.chars().take(MAX_ENDPOINT).collect()));
        }
    }
    Ok(())
}

/// A DNS label, as pods of a StatefulSet are called.
fn is_name(text: &str) -> bool {
    let of_a_label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(of_a_label)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(key: usize, endpoints: &[&str]) -> PeerGateway {
        PeerGateway {
            name: None,
            public_key: STANDARD.encode(vec![1; key]),
            endpoints: endpoints.iter().map(|text| (*text).to_owned()).collect(),
            probes: true,
        }
    }

    #[test]
    fn gateways_need_a_key_and_addresses_that_are_some() {
        assert!(check(&[gateway(KEY, &[])]).is_ok(), "it may call");
        assert!(check(&[gateway(KEY, &["192.0.2.1:31820", "[2001:db8::1]:51820", "gw.example:1"])]).is_ok());
        assert_eq!(check(&[gateway(31, &[])]), Err(InvalidGateway::Key(31)));
        for bad in
            ["192.0.2.1", "192.0.2.1:0", "host:99999", ":51820", "2001:db8::1:51820", "a b:1", "$(x):1", ""]
        {
            assert!(check(&[gateway(KEY, &[bad])]).is_err(), "{bad}");
        }
        assert!(check(&[gateway(KEY, &["a:1"; MAX_ENDPOINTS + 1])]).is_err());
    }

    #[test]
    fn gateways_are_few_and_can_be_told_apart() {
        let of = |name: Option<&str>, key: usize| PeerGateway {
            name: name.map(str::to_owned),
            public_key: STANDARD.encode([u8::try_from(key).unwrap(); KEY]),
            ..gateway(KEY, &[])
        };
        let many: Vec<PeerGateway> = (0..=MAX_GATEWAYS).map(|key| of(None, key)).collect();
        assert!(check(&many[1..]).is_ok(), "of an earlier version, without names");
        assert!(check(&many).is_err());
        assert!(check(&[of(Some("g-0"), 1), of(Some("g-1"), 2)]).is_ok());
        assert!(matches!(check(&[of(Some("g-0"), 1), of(Some("g-0"), 2)]), Err(InvalidGateway::Twins(_))));
        assert!(matches!(check(&[of(Some("g-0"), 1), of(Some("g-1"), 1)]), Err(InvalidGateway::Twins(_))));
        assert!(matches!(check(&[of(Some("G 1"), 1)]), Err(InvalidGateway::Name(_))));
    }
}
