//! What a join token tells of the network of a peer that this cluster has not joined yet, and what the peer is told of this
//! one when it does.

use super::announcement::Announcement;
use super::{Heard, Network, keys};
use kube::{Client, ResourceExt as _};
use liquid_crds::{ClusterId, Peer, PeerGateway};
use liquid_link::proto::NetworkInfo;
use liquid_link::token::Tunnel;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;

/// Longest wait until what a consumer tells when it joins is in its `Peer`: two requests to the API server.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of an invitation. Before anything is, what the status of the `Peer` says holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Invited {
    /// There is a token to be used.
    With(Invitation),
    /// There is none (any more).
    No,
}

/// What a token says of the way to the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invitation {
    /// Gateways of the peer.
    pub(super) gateways: Vec<PeerGateway>,
    /// Public key that these answer to, if not to those of this cluster's gateways.
    pub(super) guest: Option<String>,
}

impl Network {
    /// The gateways shall find the way to `peer` that a join token names.
    pub(crate) async fn invited(
        &self,
        client: &Client,
        namespace: &str,
        peer: &Peer,
        tunnel: &Tunnel,
    ) -> Result<(), kube::Error> {
        let Ok(id) = peer.spec.cluster_id.parse::<ClusterId>() else { return Ok(()) };
        let invitation = Invitation { gateways: tunnel.gateways.clone(), guest: tunnel.guest() };
        let invited = Invited::With(invitation);
        if self.invited.borrow().get(&id) == Some(&invited) {
            return Ok(());
        }
        if let Some(private) = tunnel.guest_key() {
            keys::keep_guest(client, namespace, &peer.name_any(), private).await?;
        }
        self.invited.send_modify(|known| drop(known.insert(id, invited)));
        Ok(())
    }

    /// This cluster is no guest of `peer` (any more): its gateways go by their own keys.
    pub(crate) async fn uninvited(
        &self,
        client: &Client,
        namespace: &str,
        peer: &Peer,
    ) -> Result<(), kube::Error> {
        let Ok(id) = peer.spec.cluster_id.parse::<ClusterId>() else { return Ok(()) };
        if self.invited.borrow().get(&id) == Some(&Invited::No) {
            return Ok(());
        }
        keys::drop_guest(client, namespace, &peer.name_any()).await?;
        self.invited.send_modify(|known| drop(known.insert(id, Invited::No)));
        Ok(())
    }

    /// What a provider is told when this cluster joins it through a tunnel.
    ///
    /// # Errors
    /// If there is nothing to tell, with what is missing.
    pub(crate) fn introduction(&self) -> Result<NetworkInfo, String> {
        if !self.enabled {
            return Err("this cluster has no network: install with network.enabled=true".to_owned());
        }
        match self.own.borrow().as_ref() {
            Some(own) if !own.announcement.gateways.is_empty() => Ok(own.announcement.to_wire()),
            _ => Err("the gateways of this cluster are not known yet".to_owned()),
        }
    }

    /// As a provider: takes in what a consumer tells when it joins through a tunnel, and returns when this cluster's
    /// gateways can know it.
    pub(crate) async fn record(&self, consumer: &ClusterId, told: NetworkInfo) -> Result<(), Status> {
        if !self.enabled {
            return Err(Status::failed_precondition("the provider has no network"));
        }
        let announcement = Announcement::try_from(told).map_err(|error| {
            Status::invalid_argument(format!("what the consumer tells of its network is not taken: {error}"))
        })?;
        let keys: Vec<String> =
            announcement.gateways.iter().map(|gateway| gateway.public_key.clone()).collect();
        let of_consumer = |peer: &&Peer| peer.spec.cluster_id == consumer.as_str();
        let recorded = |peer: &Peer| {
            let network = peer.status.as_ref().and_then(|status| status.network.as_ref());
            let known = network.map(|network| network.gateways.as_slice()).unwrap_or_default();
            keys.iter().all(|key| known.iter().any(|gateway| gateway.public_key == *key))
        };
        let mut peers = self.peers.subscribe();
        let taken_in = async {
            // What is heard of somebody unknown is forgotten.
            peers
                .wait_for(|peers| {
                    peers.iter().flat_map(|peers| peers.values()).any(|peer| of_consumer(&peer))
                })
                .await
                .ok()?;
            self.hear(consumer, Heard::Told(announcement));
            let known = |peers: &Option<_>| {
                let peers: Option<&std::collections::BTreeMap<String, Peer>> = peers.as_ref();
                peers.into_iter().flat_map(|peers| peers.values()).filter(of_consumer).any(recorded)
            };
            peers.wait_for(known).await.ok().map(drop)
        };
        match timeout(RECORD_TIMEOUT, taken_in).await {
            Ok(Some(())) => Ok(()),
            _ => Err(Status::unavailable(
                "the provider has not told its gateways of the consumer yet; try again",
            )),
        }
    }
}
