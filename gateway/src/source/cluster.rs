//! The Peers of the cluster this gateway runs in, and what it says of its tunnels in their status.

use super::Device;
use super::around::{self, Around};
use super::keys::{self, News};
use super::plan::{GUEST, Here, Plan, SILENCE};
use super::resolve::{RESOLVE_INTERVAL, Resolved, resolve};
use crate::args::ClusterArgs;
use crate::relay::directory::{Caller, Directory, Path};
use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::{GROUP, Guests, Peer, TunnelStatus, VERSION, WayStatus};
use liquid_gateway::control::Views;
use liquid_gateway::gateway::Config;
use liquid_gateway::io::workers::Workers;
use liquid_gateway::liveness::Way;
use liquid_gateway::peer::PeerStatus;
use liquid_gateway::transit::Transit;
use liquid_gateway::wireguard::key::PrivateKey;
use liquid_runtime::clock::unix_seconds;
use liquid_runtime::health::Part;
use liquid_runtime::watch::{Change, changes};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// How often the tunnels are looked at, and at the fastest written about for one peer: what comes and goes is not worth
/// more of the API server's time.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// So long the tunnel to a consumer stays that has left, or was told to: it hears that it is over, or asks once more.
const LINGER: Duration = Duration::from_secs(30);
/// So long after its start a gateway waits for its peers before it is ready: those that are away shall not hold up a
/// roll-out.
const PEERS_DEADLINE: Duration = Duration::from_secs(10);

/// What a gateway in a cluster needs before it is ready.
pub(crate) struct Parts {
    /// Its key.
    pub(crate) key: Part,
    /// All Peers.
    pub(crate) peers: Part,
    /// Tunnels to them.
    pub(crate) reached: Part,
}

/// The cluster, once its Peers have been read.
pub(crate) struct ClusterSource {
    client: Client,
    arguments: ClusterArgs,
    private_key: PrivateKey,
    news: BoxStream<'static, News>,
    peers: BTreeMap<String, Peer>,
    plan: Plan,
    resolved: Resolved,
    written: BTreeMap<String, Instant>,
    config: Config,
    /// Ready once all peers are reached, or had their time.
    reached: Part,
    begun: Instant,
    /// Peers that are no more, and since when: the end of a peering is told through their tunnels.
    gone: BTreeMap<String, (Peer, Instant)>,
    guest_keys: BTreeMap<String, PrivateKey>,
    around: watch::Receiver<Around>,
    /// Under which addresses the gateways of peers are seen, by their keys.
    views: Views<[u8; 32]>,
    directory: watch::Sender<Directory>,
}

impl ClusterSource {
    /// Waits for the key and for the Peers.
    ///
    /// # Errors
    /// If the API server cannot be used.
    pub(crate) async fn load(arguments: ClusterArgs, parts: Parts) -> anyhow::Result<Self> {
        let client = Client::try_default()
            .await
            .context("there is no API server to ask; outside a cluster, use --config")?;
        let of_peers = changes(Api::<Peer>::all(client.clone()), watcher::Config::default());
        let of_peers = of_peers.map(|change| News::Peer(Box::new(change)));
        let of_keys = keys::changes(&client, &arguments.namespace, &arguments.pod_name);
        let mut news = futures::stream::select(of_peers, of_keys).boxed();
        let (mut peers, mut private_key, mut listed) = (BTreeMap::new(), None, false);
        let mut guest_keys = BTreeMap::new();
        // Until all are known, none is: a gateway that begins again must not shut out those it has not read yet.
        let private_key = loop {
            match news.next().await {
                Some(News::Peer(change)) => {
                    listed |= matches!(*change, Change::Listed(_));
                    learn(&mut peers, *change);
                    if listed {
                        parts.peers.ready();
                    }
                }
                Some(News::Key(key)) => {
                    private_key = Some(key);
                    parts.key.ready();
                }
                Some(News::NoKey(why)) => parts.key.not_ready(&why),
                Some(News::GuestKeys(keys)) => guest_keys = keys,
                None => bail!("the watches of Peers and keys have ended"),
            }
            if let Some(key) = private_key.take_if(|_| listed) {
                break key;
            }
        };
        let nothing = Config {
            private_key: private_key.clone(),
            local: Vec::new(),
            peers: Vec::new(),
            transit: Transit::default(),
        };
        let (around, followed) = watch::channel(Around::default());
        tokio::spawn(around::follow(client.clone(), arguments.namespace.clone(), around));
        let mut source = Self {
            client,
            arguments,
            private_key,
            news,
            peers,
            plan: Plan::default(),
            resolved: Resolved::new(),
            written: BTreeMap::new(),
            config: nothing,
            reached: parts.reached,
            begun: Instant::now(),
            gone: BTreeMap::new(),
            guest_keys,
            around: followed,
            views: Views::default(),
            directory: watch::Sender::new(Directory::default()),
        };
        source.replan().await;
        source.config = source.wanted();
        Ok(source)
    }

    pub(super) fn device(&self) -> Device {
        let ClusterArgs { device, mtu, listen, .. } = &self.arguments;
        let relay = self.arguments.relay().map(|address| (address, self.directory.subscribe()));
        Device { name: device.clone(), mtu: *mtu, listen: *listen, relay }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Follows the Peers, and reports.
    pub(super) async fn follow(mut self, handle: &Workers) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut again = tokio::time::interval(RESOLVE_INTERVAL);
        loop {
            tokio::select! {
                news = self.news.next() => match news {
                    Some(News::Peer(change)) => {
                        if let Change::Deleted(peer) = &*change {
                            self.see_off(peer);
                        }
                        learn(&mut self.peers, *change);
                        self.replan().await;
                    }
                    Some(News::Key(key)) => self.private_key = key,
                    Some(News::NoKey(why)) => warn!(%why, "the key stays as it was"),
                    Some(News::GuestKeys(keys)) => {
                        self.guest_keys = keys;
                        self.replan().await;
                    }
                    None => bail!("the watches of Peers and keys have ended"),
                },
                changed = self.around.changed() => {
                    changed.context("the watches of guests and links have ended")?;
                    self.replan().await;
                }
                _ = look.tick() => {
                    let (peers, now) = (handle.peers(), Instant::now());
                    if self.has_expired(now) {
                        self.replan().await;
                    }
                    self.tell_relay(&peers);
                    // Guests come when they like.
                    let reached = |peer: &PeerStatus| {
                        peer.name.starts_with(GUEST) || peer.tunnels.iter().any(|tunnel| tunnel.way >= Way::Standby)
                    };
                    if peers.iter().all(reached) || now.saturating_duration_since(self.begun) >= PEERS_DEADLINE {
                        self.reached.ready();
                    }
                    self.report(&peers, now).await;
                }
                _ = again.tick() => {
                    let endpoints = self.plan.endpoints();
                    resolve(endpoints.iter().map(String::as_str), &mut self.resolved).await;
                }
            }
            let wanted = self.wanted();
            if wanted != self.config {
                // Pods in peers come and go.
                if wanted.transit.pods == self.config.transit.pods {
                    info!(peers = wanted.peers.len(), "configuration changed");
                }
                self.config = wanted.clone();
                handle.configure(wanted);
            }
        }
    }

    /// What is left to be said to the consumer of a peering that is over: that it is. Nothing else is.
    fn see_off(&mut self, peer: &Peer) {
        let mut peer = peer.clone();
        if let Some(network) = peer.status.as_mut().and_then(|status| status.network.as_mut())
            && peer.spec.lend.is_some()
        {
            network.pod_cidrs.clear();
            network.our_pod_cidrs.clear();
            network.our_external_cidrs.clear();
            network.transit.clear();
            self.gone.insert(peer.name_any(), (peer, Instant::now()));
        }
    }

    /// Whether the time of somebody is over who has had a tunnel; those who are gone for long enough are forgotten.
    fn has_expired(&mut self, now: Instant) -> bool {
        let before = self.gone.len();
        self.gone.retain(|_, (_, since)| now.saturating_duration_since(*since) < LINGER);
        let now = unix_seconds();
        let expired = |guests: &Guests| guests.expires <= now;
        let guests = self.around.borrow();
        let guest = guests.guests.iter().filter(|(_, guests)| expired(guests));
        let planned = |token: &String| self.plan.peers.contains_key(&format!("{GUEST}{token}"));
        self.gone.len() != before || guest.map(|(token, _)| token).any(planned)
    }

    async fn replan(&mut self) {
        let around = self.around.borrow_and_update().clone();
        let here = Here {
            gateway: &self.arguments.pod_name,
            guest_keys: &self.guest_keys,
            guests: &around.guests,
            now: unix_seconds(),
        };
        let gone = self.gone.iter().filter(|(name, _)| !self.peers.contains_key(*name));
        let plan = Plan::new(self.peers.iter().chain(gone.map(|(name, (peer, _))| (name, peer))), here);
        if plan == self.plan {
            return;
        }
        self.views.keep(&plan.keys());
        for (peer, why) in
            plan.refused.iter().filter(|(peer, why)| self.plan.refused.get(*peer) != Some(*why))
        {
            warn!(%peer, %why, "peer cannot be served");
        }
        self.plan = plan;
        self.written.retain(|name, _| self.peers.contains_key(name));
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
        let resolved = |endpoint: &str| self.resolved.get(endpoint).cloned().unwrap_or_default();
        let pods = self.around.borrow().pods.clone();
        self.plan.config(&self.private_key, self.arguments.mtu, resolved, &self.views, pods)
    }

    /// Tells the relay who reaches whom.
    fn tell_relay(&self, statuses: &[PeerStatus]) {
        let around = self.around.borrow();
        let (clients, link) = (around.clients.clone(), around.link);
        let mut directory = Directory { clients, link, ..Directory::default() };
        for (name, planned) in &self.plan.peers {
            let status = statuses.iter().find(|status| status.name == *name);
            for tunnel in &planned.tunnels {
                let Some(control) = self.views.get(&tunnel.key.0) else { continue };
                let caller = Caller { name: name.clone(), guest: name.starts_with(GUEST) };
                directory.callers.insert(control, caller);
                let Some(cluster) = &planned.cluster else { continue };
                let known = status.into_iter().flat_map(|status| &status.tunnels);
                let way = known.filter(|known| known.name == tunnel.name).map(|known| known.way).next();
                let paths = directory.paths.entry(cluster.clone()).or_default();
                paths.push(Path { control, way: way.unwrap_or(Way::Down) });
            }
        }
        self.directory.send_if_modified(|known| {
            let changed = *known != directory;
            *known = directory;
            changed
        });
    }

    /// Writes into the status of the Peers what has changed.
    async fn report(&mut self, statuses: &[PeerStatus], now: Instant) {
        let gateway = &self.arguments.pod_name;
        let relay = self.arguments.relay().map(|address| address.to_string());
        for (name, peer) in &self.peers {
            let just_written = |at: &Instant| now.saturating_duration_since(*at) < WRITE_INTERVAL;
            if self.written.get(name).is_some_and(just_written) {
                continue;
            }
            let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
            let written =
                network.into_iter().flat_map(|network| &network.tunnels).find(|t| t.gateway == *gateway);
            let status = statuses.iter().find(|status| status.name == *name);
            let ways = status.filter(|_| self.plan.peers.contains_key(name)).map(|status| ways(status, now));
            let same_relay = written.is_none_or(|tunnel| tunnel.relay == relay);
            if ways.as_ref() == written.map(|tunnel| &tunnel.ways) && same_relay {
                continue;
            }
            let tunnel = ways.map(|ways| {
                let up = ways.iter().any(|way| way.up);
                let since =
                    written.filter(|written| written.up == up).and_then(|written| written.since.clone());
                let since = since.or_else(|| Some(Time(Timestamp::now())));
                TunnelStatus { gateway: gateway.clone(), up, ways, relay: relay.clone(), since }
            });
            let up = tunnel.as_ref().map(|tunnel| tunnel.up);
            if up != written.map(|tunnel| tunnel.up) {
                info!(peer = %name, ?up, "tunnel");
            }
            self.written.insert(name.clone(), now);
            if let Err(error) = self.write(peer, tunnel).await {
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

/// How the ways to a peer are.
fn ways(peer: &PeerStatus, now: Instant) -> Vec<WayStatus> {
    let way = |tunnel: &liquid_gateway::tunnel::TunnelStatus| {
        let heard = tunnel.last_heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE);
        let up = heard && tunnel.way >= Way::Standby;
        let endpoint = tunnel.endpoint.filter(|_| up).map(shown);
        WayStatus { gateway: tunnel.name.clone(), up, endpoint }
    };
    let mut ways: Vec<_> = peer.tunnels.iter().map(way).collect();
    ways.sort_by(|a, b| a.gateway.cmp(&b.gateway));
    ways
}

/// An address for people: the socket takes IPv4 as mapped into IPv6.
fn shown(endpoint: SocketAddr) -> String {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port()).to_string()
}
