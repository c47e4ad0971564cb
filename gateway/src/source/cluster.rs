//! The Peers of the cluster this gateway runs in, and what it says of its tunnels in their status.

use super::Device;
use super::plan::{Plan, SILENCE, TRY};
use super::resolve::{RESOLVE_INTERVAL, Resolved, resolve};
use crate::args::ClusterArgs;
use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::GATEWAY_KEYS;
use liquid_crds::{GROUP, Peer, TunnelStatus, VERSION};
use liquid_gateway::gateway::{Config, PeerStatus};
use liquid_gateway::io::worker::Handle;
use liquid_gateway::wireguard::key::PrivateKey;
use liquid_runtime::health::Part;
use liquid_runtime::watch::{Change, changes};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tracing::{info, warn};

/// Pause before the key is asked for again: liquid-controller makes it.
const KEY_PAUSE: Duration = Duration::from_secs(1);
/// How often the tunnels are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The cluster, once its Peers have been read.
pub(crate) struct ClusterSource {
    client: Client,
    arguments: ClusterArgs,
    private_key: PrivateKey,
    news: BoxStream<'static, Change<Peer>>,
    peers: BTreeMap<String, Peer>,
    plan: Plan,
    resolved: Resolved,
    tries: BTreeMap<String, Try>,
    config: Config,
}

/// Which way to a peer is tried, and since when it was not heard of on it.
#[derive(Debug, Clone, Copy)]
struct Try {
    place: usize,
    since: Instant,
}

impl ClusterSource {
    /// Waits for the key and for the Peers.
    ///
    /// # Errors
    /// If the API server cannot be used, or the key is none.
    pub(crate) async fn load(arguments: ClusterArgs, key: Part, known: Part) -> anyhow::Result<Self> {
        let client = Client::try_default()
            .await
            .context("there is no API server to ask; outside a cluster, use --config")?;
        let private_key = private_key(&client, &arguments).await?;
        key.ready();
        let mut news = changes(Api::<Peer>::all(client.clone()), watcher::Config::default()).boxed();
        let mut peers = BTreeMap::new();
        // Until all are known, none is: a gateway that begins again must not shut out those it has not read yet.
        loop {
            let Some(change) = news.next().await else { bail!("the watch of Peers has ended") };
            let listed = matches!(change, Change::Listed(_));
            learn(&mut peers, change);
            if listed {
                break;
            }
        }
        known.ready();
        let nothing = Config { private_key: private_key.clone(), local: Vec::new(), peers: Vec::new() };
        let mut source = Self {
            client,
            arguments,
            private_key,
            news,
            peers,
            plan: Plan::default(),
            resolved: Resolved::new(),
            tries: BTreeMap::new(),
            config: nothing,
        };
        source.replan().await;
        source.config = source.wanted();
        Ok(source)
    }

    pub(super) fn device(&self) -> Device {
        let ClusterArgs { device, mtu, listen, .. } = &self.arguments;
        Device { name: device.clone(), mtu: *mtu, listen: *listen }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Follows the Peers, tries other ways to those that are silent, and reports.
    pub(super) async fn follow(mut self, handle: &Handle) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut again = tokio::time::interval(RESOLVE_INTERVAL);
        loop {
            tokio::select! {
                change = self.news.next() => {
                    let Some(change) = change else { bail!("the watch of Peers has ended") };
                    learn(&mut self.peers, change);
                    self.replan().await;
                }
                _ = look.tick() => {
                    let tunnels = handle.report().peers;
                    self.turn(&tunnels, Instant::now());
                    self.report(&tunnels, Instant::now()).await;
                }
                _ = again.tick() => {
                    let endpoints = self.plan.endpoints();
                    resolve(endpoints.iter().map(String::as_str), &mut self.resolved).await;
                }
            }
            let wanted = self.wanted();
            if wanted != self.config {
                info!(peers = wanted.peers.len(), "configuration changed");
                self.config = wanted.clone();
                handle.configure(wanted);
            }
        }
    }

    async fn replan(&mut self) {
        let plan = Plan::new(self.peers.iter());
        if plan == self.plan {
            return;
        }
        for (peer, why) in
            plan.refused.iter().filter(|(peer, why)| self.plan.refused.get(*peer) != Some(*why))
        {
            warn!(%peer, %why, "peer cannot be served");
        }
        self.plan = plan;
        self.tries.retain(|name, _| self.plan.peers.contains_key(name));
        let endpoints = self.plan.endpoints();
        self.resolved.retain(|endpoint, _| endpoints.contains(endpoint));
        let new: Vec<&str> = endpoints
            .iter()
            .map(String::as_str)
            .filter(|endpoint| !self.resolved.contains_key(*endpoint))
            .collect();
        resolve(new, &mut self.resolved).await;
    }

    fn wanted(&self) -> Config {
        let chosen = self.tries.iter().map(|(name, tried)| (name.clone(), tried.place)).collect();
        let resolved = |endpoint: &str| self.resolved.get(endpoint).copied();
        self.plan.config(&self.private_key, self.arguments.mtu, &chosen, resolved)
    }

    /// Goes on to the next way to each peer that has been silent on this one for long enough.
    fn turn(&mut self, tunnels: &[PeerStatus], now: Instant) {
        for (name, planned) in &self.plan.peers {
            let up = tunnels.iter().any(|tunnel| tunnel.name == *name && is_up(tunnel, now));
            let tried = self.tries.entry(name.clone()).or_insert(Try { place: 0, since: now });
            if up {
                tried.since = now;
            } else if now.saturating_duration_since(tried.since) >= TRY && planned.ways.len() > 1 {
                *tried = Try { place: (tried.place + 1) % planned.ways.len(), since: now };
                info!(peer = %name, "no answer; trying another address");
            }
        }
    }

    /// Writes into the status of the Peers what has changed.
    async fn report(&self, tunnels: &[PeerStatus], now: Instant) {
        for (name, peer) in &self.peers {
            let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
            let gateway = &self.arguments.pod_name;
            let written =
                network.into_iter().flat_map(|network| &network.tunnels).find(|t| t.gateway == *gateway);
            let tunnel = tunnels.iter().find(|tunnel| tunnel.name == *name);
            let wanted = tunnel.filter(|_| self.plan.peers.contains_key(name)).map(|tunnel| {
                let up = is_up(tunnel, now);
                (up, tunnel.endpoint.filter(|_| up).map(shown))
            });
            if wanted == written.map(|tunnel| (tunnel.up, tunnel.endpoint.clone())) {
                continue;
            }
            let changed = written.map(|tunnel| tunnel.up) != wanted.as_ref().map(|(up, _)| *up);
            let since = written.and_then(|tunnel| tunnel.since.clone()).filter(|_| !changed);
            let status = wanted.map(|(up, endpoint)| TunnelStatus {
                gateway: gateway.clone(),
                up,
                endpoint,
                since: since.or_else(|| Some(Time(Timestamp::now()))),
            });
            if changed {
                info!(peer = %name, up = ?status.as_ref().map(|tunnel| tunnel.up), "tunnel");
            }
            if let Err(error) = self.write(peer, status).await {
                warn!(peer = %name, %error, "status of the tunnel not written; trying again");
            }
        }
    }

    async fn write(&self, peer: &Peer, tunnel: Option<TunnelStatus>) -> Result<(), kube::Error> {
        let status = match tunnel {
            Some(tunnel) => json!({ "network": { "tunnels": [tunnel] } }),
            None => json!({}),
        };
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "Peer",
            "metadata": { "name": peer.name_any(), "uid": peer.metadata.uid },
            "status": status,
        });
        // Each gateway owns its own entry and nothing else.
        let params = PatchParams::apply(&self.arguments.pod_name).force();
        let api = Api::<Peer>::all(self.client.clone());
        match api.patch_status(&peer.name_any(), &params, &Patch::Apply(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn learn(peers: &mut BTreeMap<String, Peer>, change: Change<Peer>) {
    match change {
        Change::Applied(peer) => drop(peers.insert(peer.name_any(), peer)),
        Change::Deleted(peer) => drop(peers.remove(&peer.name_any())),
        Change::Listed(seen) => peers.retain(|name, _| seen.contains(&(String::new(), name.clone()))),
    }
}

fn is_up(tunnel: &PeerStatus, now: Instant) -> bool {
    tunnel.last_heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE)
}

/// An address for people: the socket takes IPv4 as mapped into IPv6.
fn shown(endpoint: SocketAddr) -> String {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port()).to_string()
}

async fn private_key(client: &Client, arguments: &ClusterArgs) -> anyhow::Result<PrivateKey> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &arguments.namespace);
    let mut waited = false;
    loop {
        match secrets.get_opt(GATEWAY_KEYS).await {
            Ok(secret) => {
                let key = secret.and_then(|secret| secret.data?.remove(&arguments.pod_name));
                if let Some(key) = key {
                    let text = String::from_utf8(key.0).unwrap_or_default();
                    return text.parse().with_context(|| {
                        format!(
                            "entry {} of Secret {GATEWAY_KEYS}; delete it to get another",
                            arguments.pod_name
                        )
                    });
                }
                if !waited {
                    info!("waiting for liquid-controller to make the key");
                    waited = true;
                }
            }
            Err(error) => warn!(%error, "key not read; trying again"),
        }
        sleep(KEY_PAUSE).await;
    }
}
