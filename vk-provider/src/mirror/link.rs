//! The connection to one provider: dialled again whenever it is lost.

use bytes::Bytes;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use liquid_crds::vocabulary::{FORGET, credentials_secret};
use liquid_crds::{Peer, condition, is_true};
use liquid_link::client::Dialer;
use liquid_link::limits::MAX_MESSAGE;
use liquid_link::proto;
use liquid_link::proto::reflection_client::ReflectionClient;
use liquid_link::tls::{ClientCredentials, client_config};
use liquid_reflection::ProviderFrame;
use liquid_runtime::backoff::Backoff;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

/// First and longest pause between two tries.
const DIAL_FIRST: Duration = Duration::from_millis(100);
const DIAL_CAP: Duration = Duration::from_secs(3);
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
    /// Where it may be reached.
    pub(crate) endpoints: Vec<String>,
    /// SHA-256 of its authority.
    pub(crate) ca_sha256: String,
    /// We have a client certificate.
    pub(crate) joined: bool,
    /// It has ended the peering, or is to be forgotten: nothing runs there any more as far as we are concerned.
    pub(crate) gone: bool,
}

impl Provider {
    /// A provider whose `Peer` is gone: what is left of it at home can only be removed.
    pub(crate) fn missing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cluster_id: String::new(),
            endpoints: Vec::new(),
            ca_sha256: String::new(),
            joined: false,
            gone: true,
        }
    }

    /// The borrowing half of `peer`, if it has one.
    pub(crate) fn of(peer: &Peer) -> Option<Self> {
        let consume = peer.spec.consume.as_ref()?;
        let status = peer.status.as_ref();
        let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let mut endpoints = consume.endpoints.clone();
        let announced = status.and_then(|status| status.consume.as_ref());
        for endpoint in announced.iter().flat_map(|consume| &consume.endpoints) {
            if !endpoints.contains(endpoint) {
                endpoints.push(endpoint.clone());
            }
        }
        let ended = condition(conditions, "LinkUp").is_some_and(|c| c.reason == "EndedByProvider");
        let annotations = peer.metadata.annotations.as_ref();
        let forget = annotations.and_then(|annotations| annotations.get(FORGET));
        Some(Self {
            name: peer.metadata.name.clone().unwrap_or_default(),
            cluster_id: peer.spec.cluster_id.clone(),
            endpoints,
            ca_sha256: consume.ca_sha256.clone(),
            joined: is_true(conditions, "Joined"),
            gone: ended || (forget.is_some() && forget == peer.metadata.uid.as_ref()),
        })
    }
}

/// State of the connection.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// Not connected, and why.
    Down(String),
    /// Connected; the channel carries kubelet requests too.
    Up(Channel),
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

/// Keeps the connection; events go to the actor, the state to whoever wants to know.
pub(super) fn keep(
    client: Client,
    namespace: String,
    provider: watch::Receiver<Provider>,
) -> (mpsc::Receiver<LinkEvent>, watch::Receiver<Link>, impl Future<Output = ()> + Send) {
    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let (state, watched) = watch::channel(Link::Down("not connected yet".to_owned()));
    let keeper = Keeper { client, namespace, provider, events, state };
    (receiver, watched, keeper.run())
}

struct Keeper {
    client: Client,
    namespace: String,
    provider: watch::Receiver<Provider>,
    events: mpsc::Sender<LinkEvent>,
    state: watch::Sender<Link>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new(DIAL_FIRST, DIAL_CAP);
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
                    let why = self.follow(answers).await;
                    warn!(peer = %provider.name, %why, "link down");
                    self.state.send_replace(Link::Down(why));
                    if self.events.send(LinkEvent::Down).await.is_err() {
                        return;
                    }
                }
                Err(why) => {
                    debug!(peer = %provider.name, %why, "link not up");
                    self.state.send_replace(Link::Down(why));
                }
            }
            let pause = backoff.next(RandomState::new().build_hasher().finish());
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
        let (chain, key) = self.credentials(&provider.name).await?;
        let credentials = ClientCredentials { chain_pem: &chain, key_pem: &key };
        let id = provider.cluster_id.parse().map_err(|error| format!("{error}"))?;
        let (tls, name) = client_config(&id, &provider.ca_sha256, Some(credentials))
            .map_err(|error| format!("the client certificate cannot be used: {error}"))?;
        let dialer = Dialer::new(provider.endpoints.clone(), tls, name);
        let channel = dialer.connect().await.map_err(|error| error.to_string())?;
        let (frames, mut queue) = mpsc::channel(FRAME_QUEUE);
        let outgoing = futures::stream::poll_fn(move |cx| queue.poll_recv(cx));
        let answers = ReflectionClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
            .sync(outgoing)
            .await
            .map_err(|status| format!("the provider refuses: {}", status.message()))?;
        Ok((channel, frames, answers.into_inner()))
    }

    async fn credentials(&self, peer: &str) -> Result<(Bytes, Bytes), String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = credentials_secret(peer);
        let secret = secrets.get(&name).await.map_err(|error| format!("Secret {name}: {error}"))?;
        let field = |key: &str| {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value.filter(|value| !value.0.is_empty()).map(|value| Bytes::from(value.0.clone()))
        };
        match (field("tls.crt"), field("tls.key")) {
            (Some(chain), Some(key)) => Ok((chain, key)),
            _ => Err(format!("Secret {name} holds no certificate yet")),
        }
    }

    /// Passes frames on until the stream ends, and says why it did.
    async fn follow(&mut self, mut answers: tonic::Streaming<proto::ProviderFrame>) -> String {
        loop {
            let message = tokio::select! {
                message = answers.message() => message,
                gone = self.provider.wait_for(|provider| provider.gone) => {
                    return if gone.is_ok() { "the peering has ended" } else { "shutting down" }.to_owned();
                }
            };
            let frame = match message {
                Ok(Some(frame)) => frame,
                Ok(None) => return "the provider hung up".to_owned(),
                Err(status) => return format!("the link broke: {}", status.message()),
            };
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
