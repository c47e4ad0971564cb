//! What both ends of a link tell each other of their networks.

use super::announcement::Announcement;
use super::own::Own;
use super::transit::announcement;
use super::{Heard, Network};
use crate::lend::consumers::{Consumer, Consumers};
use futures::{Stream, StreamExt as _};
use liquid_crds::{ClusterId, Peer};
use liquid_link::proto::NetworkInfo;
use liquid_link::proto::peering_client::PeeringClient;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

/// Pause before the exchange is begun anew while the link is up.
const RETRY_PAUSE: Duration = Duration::from_secs(3);
/// Longest text of the other side that is kept.
const MAX_TEXT: usize = 256;

impl Network {
    /// As a consumer: tells the provider at the other end of `link`, and hears it, until the link ends; whoever has
    /// the link notices that first.
    pub(crate) async fn exchange(&self, mut link: PeeringClient<Channel>, provider: &ClusterId) {
        if !self.enabled {
            return std::future::pending().await;
        }
        loop {
            let (_told, telling) = until_dropped(self.announcements(provider));
            match link.network(telling).await {
                Ok(answers) => self.listen(answers.into_inner(), provider, || true).await,
                Err(status) if matches!(status.code(), Code::Unimplemented | Code::FailedPrecondition) => {
                    let why = match status.code() {
                        Code::Unimplemented => "its version of Liquid knows of none".to_owned(),
                        _ => shortened(status.message()),
                    };
                    info!(%why, "the provider has no network");
                    self.hear(provider, Heard::Absent(why));
                    // A provider that gets one begins anew, and the link with it.
                    return std::future::pending().await;
                }
                Err(status) => warn!(error = status.message(), "network not exchanged; trying again"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// As a provider: hears the consumer as long as its peering lasts, and tells it what the returned stream has.
    pub(crate) fn answer(
        &self,
        consumers: Arc<Consumers>,
        consumer: Consumer,
        told: Streaming<NetworkInfo>,
    ) -> Result<impl Stream<Item = Result<NetworkInfo, Status>> + Send + 'static, Status> {
        if !self.enabled {
            return Err(Status::failed_precondition("it was installed with network.enabled=false"));
        }
        let this = self.clone();
        let telling = self.announcements(&consumer.id);
        tokio::spawn(async move {
            let still = || {
                consumers
                    .get(&consumer.id)
                    .is_some_and(|known| known.peering == consumer.peering && !known.ending)
            };
            this.listen(told, &consumer.id, still).await;
        });
        Ok(telling.map(Ok))
    }

    fn announcements(&self, to: &ClusterId) -> impl Stream<Item = NetworkInfo> + Send + use<> {
        announcements(self.own.subscribe(), self.peers.subscribe(), to.clone())
    }

    async fn listen(&self, mut told: Streaming<NetworkInfo>, from: &ClusterId, still: impl Fn() -> bool) {
        while let Ok(Some(info)) = told.message().await {
            if !still() {
                return;
            }
            let heard = match Announcement::try_from(info) {
                Ok(announcement) => Heard::Told(announcement),
                Err(error) => {
                    warn!(%error, "what a peer tells of its network is not taken");
                    Heard::Invalid(error.to_string())
                }
            };
            self.hear(from, heard);
        }
    }
}

/// What there is to tell a peer, as soon as it is known and at each change.
fn announcements(
    own: watch::Receiver<Option<Own>>,
    peers: watch::Receiver<Option<BTreeMap<String, Peer>>>,
    to: ClusterId,
) -> impl Stream<Item = NetworkInfo> + Send + 'static {
    let begin = (own, peers, None::<Announcement>);
    futures::stream::unfold(begin, move |(mut own, mut peers, told)| {
        let to = to.clone();
        async move {
            loop {
                let next = {
                    let (own, peers) = (own.borrow_and_update(), peers.borrow_and_update());
                    own.as_ref().zip(peers.as_ref()).map(|(own, peers)| announcement(own, peers, &to))
                };
                if let Some(next) = next.filter(|next| told.as_ref() != Some(next)) {
                    return Some((next.to_wire(), (own, peers, Some(next))));
                }
                tokio::select! {
                    changed = own.changed() => changed.ok()?,
                    changed = peers.changed() => changed.ok()?,
                }
            }
        }
    })
}

/// The stream, until the other half of the result is dropped. A call that is given up holds its connection for as long as
/// there may be more to send, and a peer has a bounded number of them.
fn until_dropped<S: Stream>(stream: S) -> (oneshot::Sender<Infallible>, impl Stream<Item = S::Item>) {
    let (held, dropped) = oneshot::channel();
    (held, stream.take_until(dropped))
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ClusterId {
        "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap()
    }

    #[tokio::test]
    async fn peers_are_told_when_it_is_known_and_only_of_what_concerns_them() {
        let (own, peers) = (watch::Sender::new(None), watch::Sender::new(None));
        let mut told = Box::pin(announcements(own.subscribe(), peers.subscribe(), id()));
        let cidr = |text: &str| Own {
            announcement: Announcement { pod_cidrs: vec![text.parse().unwrap()], ..Announcement::default() },
            ..Own::default()
        };
        own.send_replace(Some(cidr("10.1.0.0/16")));
        assert!(futures::poll!(told.next()).is_pending(), "what a peer is told of others is in its status");
        peers.send_replace(Some(BTreeMap::new()));
        assert_eq!(told.next().await.unwrap().pod_cidrs, ["10.1.0.0/16"]);
        own.send_replace(Some(Own { reserved: vec!["10.9.0.0/16".parse().unwrap()], ..cidr("10.1.0.0/16") }));
        assert!(futures::poll!(told.next()).is_pending());
        own.send_replace(Some(cidr("10.2.0.0/16")));
        assert_eq!(told.next().await.unwrap().pod_cidrs, ["10.2.0.0/16"]);
    }

    #[tokio::test]
    async fn nothing_more_is_to_be_told_once_nobody_listens() {
        let own = watch::Sender::new(Some(Own::default()));
        let peers = watch::Sender::new(Some(BTreeMap::new()));
        let (held, told) = until_dropped(announcements(own.subscribe(), peers.subscribe(), id()));
        let mut told = Box::pin(told);
        assert!(told.next().await.is_some());
        assert!(futures::poll!(told.next()).is_pending());
        drop(held);
        assert!(told.next().await.is_none());
    }
}
