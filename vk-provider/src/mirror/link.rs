//! The connection to one provider: dialled again whenever it is lost.

use crate::request::within;
use bytes::Bytes;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use liquid_crds::vocabulary::{CREDENTIALS_CONSUME, FINALIZER_CONSUME, credentials_secret};
use liquid_crds::{ConsumeSpec, NoTunnel, Peer, PodCidr, Transport, is_true};
use liquid_link::client::Dialer;
use liquid_link::limits::MAX_MESSAGE;
use liquid_link::liveness::Liveness;
use liquid_link::proto;
use liquid_link::proto::reflection_client::ReflectionClient;
use liquid_link::tls::{ClientCredentials, client_config};
use liquid_reflection::{Prefixes, ProviderFrame};
use liquid_runtime::backoff::{Backoff, entropy};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use tracing::{debug, info, warn};

/// First and longest pause between two tries.
const DIAL_FIRST: Duration = Duration::from_millis(100);
const DIAL_CAP: Duration = Duration::from_secs(3);
/// A link that was up for this long was back.
const SETTLED: Duration = Duration::from_secs(2);
/// Longest pause while a provider that hung up may come back before its node is NotReady.
const DIAL_SOON: Duration = Duration::from_secs(1);
/// Frames on their way to the provider. The state machine bounds the bodies among them.
const FRAME_QUEUE: usize = 64;
/// Frames from the provider that wait for the actor.
const EVENT_QUEUE: usize = 256;

/// What of a `Peer` matters for the connection to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provider {
    /// Name of the `Peer`.
    pub(crate) name: String,
    /// Identity of its cluster.
    pub(crate) cluster_id: String,
    /// How it is reached; unknown once borrowing has been taken out of its `Peer`.
    pub(crate) way: Option<Way>,
    /// This cluster's gateways that have a tunnel to it.
    pub(crate) relays: Result<Vec<String>, NoTunnel>,
    /// We have a client certificate.
    pub(crate) joined: bool,
    /// How the addresses of its pods are seen here.
    pub(crate) prefixes: Prefixes,
    /// Prefixes of this cluster's pods, which its pods may reach.
    pub(crate) own_prefixes: Vec<IpNet>,
    /// Prefixes of hosts outside of this cluster that pods in the provider reach through it.
    pub(crate) outside_prefixes: Vec<IpNet>,
    /// Prefixes of pods in other providers, as they are seen here: those of this cluster's are reached through it.
    pub(crate) transit_prefixes: Vec<IpNet>,
    /// It has ended the peering, or is to be forgotten: nothing runs there any more as far as we are concerned.
    pub(crate) gone: bool,
}

/// How a provider is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// At its endpoints, or through the gateways.
    transport: Transport,
    /// Addresses (host:port) of its link endpoint.
    endpoints: Vec<String>,
    /// SHA-256 of its authority.
    ca_sha256: String,
}

impl From<ConsumeSpec> for Way {
    fn from(consume: ConsumeSpec) -> Self {
        Self { transport: consume.transport, endpoints: consume.endpoints, ca_sha256: consume.ca_sha256 }
    }
}

impl Provider {
    /// A provider that is gone: what is left of it at home can only be removed.
    fn gone(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cluster_id: String::new(),
            way: None,
            relays: Ok(Vec::new()),
            joined: false,
            prefixes: Prefixes::default(),
            own_prefixes: Vec::new(),
            outside_prefixes: Vec::new(),
            transit_prefixes: Vec::new(),
            gone: true,
        }
    }

    /// What there is to know of the provider `name`, of which virtual nodes are left. `last` is what was known before:
    /// once borrowing has been taken out of the `Peer`, that does not tell any more how to reach it, and until it has
    /// been given back (the finalizer says so) its pods run there and their deletion needs its word. After a restart the
    /// Secret with the credentials knows the endpoints.
    pub(crate) fn left(name: &str, peer: Option<&Peer>, last: Option<&Provider>) -> Self {
        let Some(peer) = peer else { return Self::gone(name) };
        if let Some(provider) = Self::of(peer) {
            return provider;
        }
        let finalizers = peer.metadata.finalizers.as_ref();
        let held = finalizers.is_some_and(|held| held.iter().any(|finalizer| finalizer == FINALIZER_CONSUME));
        match last {
            _ if !held || is_over(peer) => Self::gone(name),
            Some(last) => Self { gone: false, relays: peer.relays(), ..last.clone() },
            None => Self {
                cluster_id: peer.spec.cluster_id.clone(),
                relays: peer.relays(),
                joined: true,
                gone: false,
                ..Self::gone(name)
            },
        }
    }

    /// Whether the user wants it to be reached in another way than it was.
    fn is_reached_otherwise(&self, before: &Self) -> bool {
        let transport = |provider: &Self| provider.way.as_ref().map(|way| way.transport);
        transport(self).is_some_and(|now| transport(before).is_some_and(|before| now != before))
    }

    /// The borrowing half of `peer`, if it has one.
    pub(crate) fn of(peer: &Peer) -> Option<Self> {
        let consume = peer.spec.consume.as_ref()?;
        let conditions = peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
        let own = network.iter().flat_map(|network| &network.our_pod_cidrs);
        let outside = network.iter().flat_map(|network| &network.our_external_cidrs);
        let transit = network.iter().flat_map(|network| &network.transit).filter(|cidr| cidr.ready);
        Some(Self {
            name: peer.metadata.name.clone().unwrap_or_default(),
            cluster_id: peer.spec.cluster_id.clone(),
            way: Some(Way { endpoints: peer.endpoints(consume), ..consume.clone().into() }),
            relays: peer.relays(),
            joined: is_true(conditions, "Joined"),
            prefixes: Prefixes::new(
                network.iter().flat_map(|network| network.own_pods()).filter_map(PodCidr::prefixes),
            ),
            own_prefixes: own.filter_map(|prefix| prefix.parse().ok()).collect(),
            outside_prefixes: outside.filter_map(|prefix| prefix.parse().ok()).collect(),
            transit_prefixes: transit.filter_map(|cidr| cidr.seen.parse().ok()).collect(),
            gone: is_over(peer),
        })
    }
}

/// Nothing of the peering is left to wait for at the provider.
fn is_over(peer: &Peer) -> bool {
    peer.ended_by_provider() || peer.is_forgotten()
}

/// State of the connection.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// Not connected, and why.
    Down(String),
    /// It was, and why not now. It is taken to be out of reach at `until`.
    Lost { why: String, until: Instant },
    /// Connected; the channel carries kubelet requests too.
    Up(Channel),
}

impl Link {
    /// Until when a provider that is not connected may be back before it is taken to be out of reach.
    pub(crate) fn excused(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Lost { until, .. } => Some(*until).filter(|until| now < *until),
            Self::Up(_) | Self::Down(_) => None,
        }
    }
}

/// What the connection tells the actor.
pub(super) enum LinkEvent {
    /// A stream is open; frames go here.
    Up(mpsc::Sender<proto::ConsumerFrame>),
    /// The stream is lost.
    Down,
    /// A frame has come.
    Frame(ProviderFrame),
}

/// How providers are reached.
#[derive(Debug, Clone)]
pub(crate) struct Dialing {
    /// Namespace of the Secrets with our client certificates.
    pub(crate) namespace: String,
    /// How soon a link that is broken is noticed.
    pub(crate) liveness: Liveness,
}

/// Keeps the connection; events go to the actor, the state to whoever wants to know.
pub(super) fn keep(
    client: Client,
    dialing: Dialing,
    provider: watch::Receiver<Provider>,
) -> (mpsc::Receiver<LinkEvent>, watch::Receiver<Link>, impl Future<Output = ()> + Send) {
    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let (state, watched) = watch::channel(Link::Down("not connected yet".to_owned()));
    let keeper = Keeper { client, dialing, provider, events, state };
    (receiver, watched, keeper.run())
}

/// What the Secret for a provider holds.
struct Credentials {
    chain: Bytes,
    key: Bytes,
    /// How the provider was reached when it was written.
    way: Option<ConsumeSpec>,
}

struct Keeper {
    client: Client,
    dialing: Dialing,
    provider: watch::Receiver<Provider>,
    events: mpsc::Sender<LinkEvent>,
    state: watch::Sender<Link>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new(DIAL_FIRST, DIAL_CAP);
        let mut lost = None;
        loop {
            let provider = self.provider.borrow_and_update().clone();
            if provider.gone {
                self.state.send_replace(Link::Down("the peering has ended".to_owned()));
                if self.provider.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if !provider.joined {
                self.state
                    .send_replace(Link::Down("this cluster has not joined the provider yet".to_owned()));
                if self.provider.wait_for(|p| p.joined || p.gone).await.is_err() {
                    return;
                }
                continue;
            }
            match self.open(&provider).await {
                Ok((channel, frames, answers)) => {
                    backoff.reset();
                    info!(peer = %provider.name, "link up");
                    if self.events.send(LinkEvent::Up(frames)).await.is_err() {
                        return;
                    }
                    self.state.send_replace(Link::Up(channel));
                    let began = Instant::now();
                    let mut heard = began;
                    let why = self.follow(&provider, answers, &mut heard).await;
                    warn!(peer = %provider.name, %why, "link down");
                    let liveness = self.dialing.liveness;
                    // One that comes and goes puts nothing off.
                    let known = lost.filter(|_| began.elapsed() < SETTLED);
                    let until = known.unwrap_or_else(|| liveness.lost_at(heard, Instant::now()));
                    lost = Some(until);
                    self.state.send_replace(Link::Lost { why, until });
                    if self.events.send(LinkEvent::Down).await.is_err() {
                        return;
                    }
                }
                Err(why) => {
                    debug!(peer = %provider.name, %why, "link not up");
                    self.state.send_modify(|state| match state {
                        Link::Lost { why: known, .. } => *known = why,
                        Link::Down(_) | Link::Up(_) => *state = Link::Down(why),
                    });
                }
            }
            let pause = backoff.next(entropy());
            let pause =
                if lost.is_some_and(|until| Instant::now() < until) { pause.min(DIAL_SOON) } else { pause };
            tokio::select! {
                () = sleep(pause) => {}
                changed = self.provider.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    backoff.reset();
                }
            }
        }
    }

    async fn open(
        &self,
        provider: &Provider,
    ) -> Result<(Channel, mpsc::Sender<proto::ConsumerFrame>, tonic::Streaming<proto::ProviderFrame>), String>
    {
        let Credentials { chain, key, way } = self.credentials(&provider.name).await?;
        let credentials = ClientCredentials { chain_pem: &chain, key_pem: &key };
        let way = provider.way.clone().or_else(|| way.map(Way::from));
        let way = way.ok_or("it is not known how to reach the provider")?;
        let id = provider.cluster_id.parse().map_err(|error| format!("{error}"))?;
        let (tls, name) = client_config(&id, &way.ca_sha256, Some(credentials))
            .map_err(|error| format!("the client certificate cannot be used: {error}"))?;
        let dialer = match way.transport {
            Transport::Direct => Dialer::new(way.endpoints, tls, name),
            Transport::InBand => {
                let relays = provider.relays.clone().map_err(|error| error.to_string())?;
                Dialer::new(relays, tls, name)
            }
        };
        let dialer = dialer.noticing(self.dialing.liveness);
        let channel = dialer.connect().await.map_err(|error| error.to_string())?;
        let (frames, mut queue) = mpsc::channel(FRAME_QUEUE);
        let outgoing = futures::stream::poll_fn(move |cx| queue.poll_recv(cx));
        let answers = ReflectionClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
            .sync(self.dialing.liveness.request(outgoing))
            .await
            .map_err(|status| format!("the provider refuses: {}", status.message()))?;
        Ok((channel, frames, answers.into_inner()))
    }

    async fn credentials(&self, peer: &str) -> Result<Credentials, String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.dialing.namespace);
        let name = credentials_secret(peer);
        let secret = within(secrets.get(&name)).await.map_err(|error| format!("Secret {name}: {error}"))?;
        let field = |key: &str| {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value.filter(|value| !value.0.is_empty()).map(|value| Bytes::from(value.0.clone()))
        };
        match (field("tls.crt"), field("tls.key")) {
            (Some(chain), Some(key)) => {
                let way = field(CREDENTIALS_CONSUME).and_then(|text| serde_json::from_slice(&text).ok());
                Ok(Credentials { chain, key, way })
            }
            _ => Err(format!("Secret {name} holds no certificate yet")),
        }
    }

    /// Passes frames on until the stream ends, and says why it did, and when something was `heard` last.
    async fn follow(
        &mut self,
        dialled: &Provider,
        mut answers: tonic::Streaming<proto::ProviderFrame>,
        heard: &mut Instant,
    ) -> String {
        let over = |now: &Provider| now.gone || now.is_reached_otherwise(dialled);
        loop {
            let message = tokio::select! {
                message = answers.message() => message,
                over = self.provider.wait_for(over) => {
                    let why = match over {
                        Ok(provider) if provider.gone => "the peering has ended",
                        Ok(_) => "the provider is to be reached another way",
                        Err(_) => "shutting down",
                    };
                    return why.to_owned();
                }
            };
            let frame = match message {
                Ok(Some(frame)) => frame,
                Ok(None) => return "the provider hung up".to_owned(),
                Err(status) => return format!("the link broke: {}", status.message()),
            };
            *heard = Instant::now();
            // A beat.
            if frame.frame.is_none() {
                continue;
            }
            match ProviderFrame::try_from(frame) {
                Ok(frame) => {
                    if self.events.send(LinkEvent::Frame(frame)).await.is_err() {
                        return "shutting down".to_owned();
                    }
                }
                // A newer provider may say things this version does not know; they are not for us.
                Err(error) => warn!(%error, "frame of the provider passed over"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::vocabulary::FORGET;
    use serde_json::{Value, json};

    fn peer(consume: bool, metadata: Value) -> Peer {
        let consume = consume.then(|| json!({"endpoints": ["milan:1"], "caSHA256": "ab"}));
        serde_json::from_value(json!({
            "apiVersion": "liquid.mesh/v1alpha1", "kind": "Peer",
            "metadata": metadata, "spec": {"clusterID": "id", "consume": consume},
        }))
        .unwrap()
    }

    #[test]
    fn a_provider_from_which_nothing_more_is_borrowed_is_not_gone_until_all_is_given_back() {
        let known = Provider::of(&peer(true, json!({"name": "milan"}))).unwrap();
        let held = peer(false, json!({"name": "milan", "uid": "u", "finalizers": [FINALIZER_CONSUME]}));
        assert_eq!(Provider::left("milan", Some(&held), Some(&known)), known);
        let after_restart = Provider::left("milan", Some(&held), None);
        assert!(!after_restart.gone && after_restart.joined && after_restart.cluster_id == "id");
    }

    #[test]
    fn a_link_is_dialled_anew_when_the_way_changes_and_not_when_addresses_do() {
        let with = |consume: Value| {
            let mut peer = peer(true, json!({"name": "milan"}));
            peer.spec.consume = serde_json::from_value(consume).unwrap();
            Provider::of(&peer).unwrap()
        };
        let direct = with(json!({"endpoints": ["milan:1"], "caSHA256": "ab"}));
        assert!(!with(json!({"endpoints": ["milan:2"], "caSHA256": "ab"})).is_reached_otherwise(&direct));
        assert!(with(json!({"transport": "InBand", "caSHA256": "ab"})).is_reached_otherwise(&direct));
    }

    #[test]
    fn a_provider_is_gone_with_its_peer_or_when_it_is_given_back_or_forgotten() {
        let known = Provider::of(&peer(true, json!({"name": "milan"}))).unwrap();
        let forgotten = json!({
            "name": "milan", "uid": "u", "finalizers": [FINALIZER_CONSUME], "annotations": {FORGET: "u"},
        });
        for peer in [None, Some(peer(false, json!({"name": "milan"}))), Some(peer(false, forgotten))] {
            assert!(Provider::left("milan", peer.as_ref(), Some(&known)).gone, "{peer:?}");
        }
    }
}
