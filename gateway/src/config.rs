//! The configuration file of `liquid-gateway`.

use crate::gateway::Config;
use crate::nat::{Mismatch, Remap};
use crate::peer::PeerConfig;
use crate::transit::Transit;
use crate::tunnel::TunnelConfig;
use crate::wireguard::key::{NoKey, PresharedKey, PrivateKey};
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// IPv6 needs 1,280; more than 65,535 - 80 cannot be sealed.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=65_000;

/// The file. Times are in seconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// File with the private key in base64; relative to this file.
    pub private_key_file: PathBuf,
    /// Address and port for peers.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Name of the TUN device.
    #[serde(default = "default_device")]
    pub device: String,
    /// Longest packet in the tunnel; 1,420 fits a path of 1,500 with IPv6 outside.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// This cluster's prefixes: what peers may send to.
    pub local: Vec<IpNet>,
    /// The peers.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// A peer in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// For logs and metrics; unique.
    pub name: String,
    /// Its prefixes.
    pub prefixes: Vec<Prefix>,
    /// Its gateways; packets are spread over those that work.
    pub tunnels: Vec<Tunnel>,
}

/// A gateway of a peer in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tunnel {
    /// By what it is known when its key changes; without it, by its key.
    pub name: Option<String>,
    /// Its public key in base64.
    pub public_key: String,
    /// File with a key both share, in base64; relative to this file.
    pub preshared_key_file: Option<PathBuf>,
    /// Addresses or DNS names, with port. Without any the other end has to call.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Seconds between packets that keep NATs open.
    pub keepalive_seconds: Option<u16>,
    /// Whether the other end is a liquid-gateway: it answers probes, so that one that fails is left within a second.
    #[serde(default)]
    pub probes: bool,
}

/// A prefix of a peer.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prefix {
    /// As the peer has it.
    pub real: IpNet,
    /// As this cluster sees it, if that differs.
    pub view: Option<IpNet>,
}

/// All addresses, at the port of WireGuard.
#[must_use]
pub fn default_listen() -> SocketAddr {
    SocketAddr::from((IpAddr::from(Ipv6Addr::UNSPECIFIED), 51_820))
}

/// Name of the TUN device.
#[must_use]
pub fn default_device() -> String {
    "liquid-wg".to_owned()
}

/// Longest packet in the tunnel: fits a path of 1,500 with IPv6 outside.
#[must_use]
pub fn default_mtu() -> u16 {
    1420
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file does not follow the format.
    #[error("{path}: {source}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: Box<serde_saphyr::Error>,
    },
    /// A key is none.
    #[error("{what}: {source}")]
    Key {
        /// Which key.
        what: String,
        /// How keys look.
        source: NoKey,
    },
    /// A prefix cannot stand for another.
    #[error("peer {peer}: {source}")]
    Prefix {
        /// Whose.
        peer: String,
        /// Which, and why not.
        source: Mismatch,
    },
    /// Two peers would get the same packets, or they or their tunnels cannot be told apart.
    #[error("peers {first} and {second} have the same {what}")]
    Ambiguous {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// What they share.
        what: String,
    },
    /// The MTU is out of bounds.
    #[error("mtu {0} is not within {start}..={end}", start = MTU_RANGE.start(), end = MTU_RANGE.end())]
    Mtu(u16),
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

impl File {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read or does not follow the format.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut file: Self = serde_saphyr::from_str(&read(path)?)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        let directory = path.parent().unwrap_or(Path::new("."));
        file.private_key_file = directory.join(&file.private_key_file);
        for peer in &mut file.peers {
            for tunnel in &mut peer.tunnels {
                tunnel.preshared_key_file = tunnel.preshared_key_file.take().map(|key| directory.join(key));
            }
        }
        Ok(file)
    }

    /// The configuration of the data path, with the addresses that endpoints have `resolved` to by their text.
    ///
    /// # Errors
    /// If a key file cannot be read, or the file contradicts itself.
    pub fn config(&self, resolved: &HashMap<String, Vec<SocketAddr>>) -> Result<Config, ConfigError> {
        if !MTU_RANGE.contains(&self.mtu) {
            return Err(ConfigError::Mtu(self.mtu));
        }
        let path = &self.private_key_file;
        let private_key: PrivateKey = read(path)?.parse().map_err(no_key(path.display().to_string()))?;
        let mut peers = Vec::with_capacity(self.peers.len());
        for peer in &self.peers {
            let remaps = peer.prefixes.iter().map(|prefix| match prefix.view {
                Some(view) => Remap::new(view, prefix.real),
                None => Ok(Remap::identity(prefix.real)),
            });
            let remaps = remaps.collect::<Result<Vec<_>, _>>();
            let tunnels = peer.tunnels.iter().map(|tunnel| tunnel.config(&peer.name, resolved));
            peers.push(PeerConfig {
                name: peer.name.clone(),
                remaps: remaps.map_err(|source| ConfigError::Prefix { peer: peer.name.clone(), source })?,
                mtu: self.mtu,
                tunnels: tunnels.collect::<Result<_, _>>()?,
            });
        }
        check_unambiguous(&peers)?;
        Ok(Config { private_key, local: self.local.clone(), peers, transit: Transit::default() })
    }

    /// The endpoints to resolve.
    pub fn endpoints(&self) -> HashSet<&str> {
        self.peers
            .iter()
            .flat_map(|peer| &peer.tunnels)
            .flat_map(|tunnel| &tunnel.endpoints)
            .map(String::as_str)
            .collect()
    }
}

impl Tunnel {
    fn config(
        &self,
        peer: &str,
        resolved: &HashMap<String, Vec<SocketAddr>>,
    ) -> Result<TunnelConfig, ConfigError> {
        let preshared_key = match &self.preshared_key_file {
            Some(path) => {
                let key: PresharedKey = read(path)?.parse().map_err(no_key(path.display().to_string()))?;
                Some(key)
            }
            None => None,
        };
        let public_key = self.public_key.parse().map_err(no_key(format!("public key of peer {peer}")))?;
        Ok(TunnelConfig {
            name: self.name.clone().unwrap_or_else(|| self.public_key.clone()),
            public_key,
            preshared_key,
            endpoints: self
                .endpoints
                .iter()
                .filter_map(|text| resolved.get(text))
                .flatten()
                .copied()
                .collect(),
            keepalive: self
                .keepalive_seconds
                .filter(|seconds| *seconds > 0)
                .map(|s| Duration::from_secs(s.into())),
            probes: self.probes,
            tells_lanes: self.probes,
            own_key: None,
            control: None,
        })
    }
}

fn no_key(what: String) -> impl FnOnce(NoKey) -> ConfigError {
    move |source| ConfigError::Key { what, source }
}

fn check_unambiguous(peers: &[PeerConfig]) -> Result<(), ConfigError> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for peer in peers {
        let views = peer.remaps.iter().map(|remap| format!("view {}", remap.view()));
        let keys = peer.tunnels.iter().map(|tunnel| format!("public key {}", tunnel.public_key));
        let names = peer.tunnels.iter().map(|tunnel| format!("tunnel {} of {}", tunnel.name, peer.name));
        let properties = [format!("name {}", peer.name)];
        for what in properties.into_iter().chain(keys).chain(names).chain(views) {
            if let Some(first) = seen.insert(what.clone(), &peer.name) {
                return Err(ConfigError::Ambiguous {
                    first: first.to_owned(),
                    second: peer.name.clone(),
                    what,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";

    fn load(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), format!("{KEY}\n")).unwrap();
        let path = directory.path().join("gateway.yaml");
        std::fs::write(&path, text).unwrap();
        let resolved =
            HashMap::from([("b.example:51820".to_owned(), vec!["192.0.2.2:51820".parse().unwrap()])]);
        File::load(&path)?.config(&resolved)
    }

    fn with_peers(peers: &str) -> Result<Config, ConfigError> {
        load(&format!("privateKeyFile: key\nlocal: [10.244.0.0/16]\npeers:\n{peers}"))
    }

    #[test]
    fn a_whole_file_is_understood() {
        let config = with_peers(&format!(
            "- name: b\n  prefixes: [{{real: 10.244.0.0/16, view: 10.71.0.0/16}}, {{real: fd00::/64}}]\n  \
             tunnels: [{{publicKey: {KEY}, presharedKeyFile: key, endpoints: ['b.example:51820', 'unknown:1'], \
             keepaliveSeconds: 25, probes: true}}]\n"
        ))
        .unwrap();
        let peer = &config.peers[0];
        assert_eq!((peer.mtu, peer.remaps.len()), (1420, 2));
        let tunnel = &peer.tunnels[0];
        assert_eq!(tunnel.endpoints, ["192.0.2.2:51820".parse().unwrap()]);
        assert_eq!((tunnel.keepalive, tunnel.probes), (Some(Duration::from_secs(25)), true));
        assert!(tunnel.preshared_key.is_some() && tunnel.name == KEY);
    }

    #[test]
    fn mistakes_are_named() {
        let peer = |name: &str, prefixes: &str| {
            format!("- {{name: {name}, prefixes: [{prefixes}], tunnels: [{{publicKey: {KEY}}}]}}\n")
        };
        let message = |text: &str| with_peers(text).unwrap_err().to_string();
        assert_eq!(
            message(&peer("b", "{real: 10.0.0.0/16, view: 10.1.0.0/17}")),
            "peer b: 10.1.0.0/17 cannot stand for 10.0.0.0/16: both must be IPv4 or IPv6 prefixes of equal length"
        );
        assert!(
            message(&(peer("b", "") + &peer("c", ""))).starts_with("peers b and c have the same public key")
        );
        assert!(
            message("- {name: b, prefixes: [], tunnels: [{publicKey: short}]}\n")
                .contains("public key of peer b: a key is 32 bytes")
        );
        assert!(load("privateKeyFile: key\nlocal: []\nmtu: 900\n").unwrap_err().to_string().contains("1280"));
        assert!(load("privateKeyFile: key\nlocal: []\ntypo: 1\n").unwrap_err().to_string().contains("typo"));
        assert!(load("privateKeyFile: none\nlocal: []\n").unwrap_err().to_string().contains("cannot read"));
    }
}
