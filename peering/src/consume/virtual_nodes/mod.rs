//! Virtual nodes of a provider: which there are, what is asked for each of them, and which offers are accepted.
//!
//! [`plan`] says which there are to be, [`acceptance`] which offers are accepted, [`table`] keeps what was asked and
//! answered; all three are pure. [`known`] follows the VirtualNodes.

mod acceptance;
mod known;
mod plan;
mod table;

pub(crate) use known::{KnownNode, KnownNodes, follow};

use crate::status::{Report, report};
use acceptance::Answer;
use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID, OFFER_ACCEPTED};
use liquid_crds::{
    ClusterName, ConditionUpdate, ConsumeSpec, GROUP, Offer, Peer, VERSION, VirtualNode, VirtualNodeSpec,
    set_condition,
};
use liquid_link::proto::peering_client::PeeringClient;
use liquid_link::proto::{Ask, Bid};
use plan::{Keeper, Made, Plan};
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};
use table::{Outcome, Table};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tracing::{debug, info, warn};

/// Pause before a negotiation is begun anew while the link is up, and before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Asks on their way to the provider.
const ASK_QUEUE: usize = 64;
/// Answers taken in before anything follows from them: one VirtualNode more changes all of them.
const BATCH: usize = 256;

/// Who keeps the virtual nodes of one provider.
pub(super) struct VirtualNodesOf<'a> {
    pub(super) client: &'a Client,
    pub(super) peer: &'a Peer,
    pub(super) consume: &'a ConsumeSpec,
    pub(super) known: watch::Receiver<KnownNodes>,
}

impl VirtualNodesOf<'_> {
    /// Keeps them and negotiates for them, as long as there is `link`. Whoever has the link notices first when it ends.
    pub(super) async fn keep(mut self, mut link: PeeringClient<Channel>) -> Infallible {
        loop {
            let (asks, mut queue) = mpsc::channel(ASK_QUEUE);
            let outgoing = futures::stream::poll_fn(move |cx| queue.poll_recv(cx));
            match link.negotiate(outgoing).await {
                Ok(bids) => self.negotiate(asks, bids.into_inner()).await,
                Err(status) if status.code() == Code::Unimplemented => {
                    let message =
                        "the provider's version of Liquid cannot negotiate: upgrade it first".to_owned();
                    warn!(%message);
                    self.tell((false, "NotSupported".to_owned(), message)).await;
                    // One that can begins anew, and the link with it.
                    return std::future::pending().await;
                }
                Err(status) => warn!(error = status.message(), "no negotiation; trying again"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Negotiates until the stream ends.
    async fn negotiate(&mut self, asks: mpsc::Sender<Ask>, bids: Streaming<Bid>) {
        let mut bids = bids.ready_chunks(BATCH);
        let mut table = Table::default();
        let mut keeper = Keeper::default();
        let mut told = None;
        loop {
            let mut again = None;
            let known = self.known.borrow_and_update().clone();
            if let Some(known) = known {
                match self.advance(&known, &mut table, &mut keeper, &mut told, &asks).await {
                    Ok(next) => again = next,
                    Err(Stopped::Stream) => return,
                    Err(Stopped::Request(error)) => {
                        warn!(%error, "virtual nodes not brought in line; trying again");
                        again = Some(Instant::now() + RETRY_PAUSE);
                    }
                }
            }
            let due = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                more = bids.next() => {
                    let Some(more) = more else { return };
                    for bid in more {
                        match bid {
                            Ok(bid) => table.learn(bid),
                            Err(status) => return debug!(error = status.message(), "negotiation ended"),
                        }
                    }
                }
                changed = self.known.changed() => if changed.is_err() { return },
                () = due => {}
            }
        }
    }

    /// Does what follows from all that is known; returns when to look again.
    async fn advance(
        &self,
        known: &BTreeMap<String, KnownNode>,
        table: &mut Table,
        keeper: &mut Keeper,
        told: &mut Option<(bool, String, String)>,
        asks: &mpsc::Sender<Ask>,
    ) -> Result<Option<Instant>, Stopped> {
        let name = self.peer.name_any();
        let ours: BTreeMap<&String, &KnownNode> =
            known.iter().filter(|(_, node)| node.spec.peer == name).collect();
        for ask in table.asks(&ours, self.consume) {
            asks.send(ask).await.map_err(|_| Stopped::Stream)?;
        }
        // What fails for one of them is tried again, and keeps up none of the others.
        let mut failed = None;
        for outcome in table.outcomes(&ours, self.consume) {
            match self.write(&outcome).await {
                Ok(()) => table.written(&outcome),
                Err(error) => failed = Some(error),
            }
        }
        let Ok(peer) = name.parse::<ClusterName>() else { return Ok(None) };
        let made = self.made(&ours);
        let taken = |name: &str| known.contains_key(name) && !made.contains_key(name);
        let plan = keeper.plan(self.consume.virtual_nodes, &peer, &table.nodes, &made, taken, Instant::now());
        let Plan { make, remove, state, again } = plan;
        for (name, node) in make {
            if let Err(error) = self.make(&name, node).await {
                failed = Some(error);
            }
        }
        for name in remove {
            if let Some(node) = ours.get(&name).filter(|node| !node.deleting)
                && let Err(error) = self.remove(&name, &node.uid).await
            {
                failed = Some(error);
            }
        }
        if state.is_some() && *told != state {
            *told = state.clone();
            if let Some(state) = state {
                self.tell(state).await;
            }
        }
        match failed {
            Some(error) => Err(Stopped::Request(error)),
            None => Ok(again),
        }
    }

    /// The virtual nodes that were made for this peering, with the node of the provider behind each.
    fn made(&self, ours: &BTreeMap<&String, &KnownNode>) -> Made {
        let made = ours.iter().filter(|(_, node)| node.made_for == self.peer.metadata.uid);
        made.map(|(name, node)| ((*name).clone(), node.spec.node.clone())).collect()
    }

    async fn make(&self, name: &str, node: Option<String>) -> Result<(), kube::Error> {
        let spec = VirtualNodeSpec { peer: self.peer.name_any(), node, ..VirtualNodeSpec::default() };
        let mut virtual_node = VirtualNode::new(name, spec);
        virtual_node.metadata = ObjectMeta {
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            owner_references: self.peer.owner_ref(&()).map(|peer| vec![peer]),
            ..virtual_node.metadata
        };
        let nodes: Api<VirtualNode> = Api::all(self.client.clone());
        match nodes.create(&PostParams::default(), &virtual_node).await {
            Ok(_) => info!(node = %name, "virtual node made"),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn remove(&self, name: &str, uid: &str) -> Result<(), kube::Error> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let nodes: Api<VirtualNode> = Api::all(self.client.clone());
        match nodes.delete(name, &params).await {
            Ok(_) => info!(node = %name, "virtual node is not wanted any more: it is being removed"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes what the provider has answered, and what became of it, into the status of a VirtualNode.
    async fn write(&self, outcome: &Outcome) -> Result<(), kube::Error> {
        let Outcome { name, uid, answer, verdict, .. } = outcome;
        let nodes: Api<VirtualNode> = Api::all(self.client.clone());
        let Some(found) = nodes.get_opt(name).await?.filter(|found| found.metadata.uid.as_ref() == Some(uid))
        else {
            return Ok(());
        };
        let status = found.status.unwrap_or_default();
        let mut conditions: Vec<Condition> =
            status.conditions.iter().filter(|condition| condition.type_ == OFFER_ACCEPTED).cloned().collect();
        let update = ConditionUpdate {
            type_: OFFER_ACCEPTED,
            status: Some(verdict.accepted),
            reason: &verdict.reason,
            message: verdict.message.clone(),
        };
        set_condition(&mut conditions, update, found.metadata.generation, &Time(Timestamp::now()));
        let offer = match answer {
            Answer::Offer(offer) => Some((**offer).clone()),
            Answer::Declined(reason, message) => status.offer.map(|offer| withdrawn(offer, reason, message)),
        };
        let mut patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "VirtualNode",
            "metadata": { "name": name, "uid": uid },
            "status": { "conditions": conditions },
        });
        if let Some(offer) = offer {
            patch["status"]["offer"] = json!(offer);
        }
        let params = PatchParams::apply("liquid-controller-offers").force();
        match nodes.patch_status(name, &params, &Patch::Apply(&patch)).await {
            Ok(_) => info!(node = %name, accepted = verdict.accepted, reason = %verdict.reason, "offer"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Says in the status of the Peer how it is with its virtual nodes.
    async fn tell(&self, (made, reason, message): (bool, String, String)) {
        let update =
            ConditionUpdate { type_: "VirtualNodesMade", status: Some(made), reason: &reason, message };
        let peers: Api<Peer> = Api::all(self.client.clone());
        let told = async {
            match peers.get_opt(&self.peer.name_any()).await? {
                Some(peer) if peer.metadata.uid == self.peer.metadata.uid => {
                    report(self.client, &peer, &Report::VirtualNodes, vec![update]).await.map(drop)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = told.await {
            warn!(%error, "status not written");
        }
    }
}

/// Why a round was not finished.
enum Stopped {
    /// The stream has ended.
    Stream,
    /// A request failed.
    Request(kube::Error),
}

/// An offer that does not hold any more is kept: it says what the node was made of, and pods run there. Of a node that is
/// gone there is nothing left.
fn withdrawn(mut offer: Offer, reason: &str, message: &str) -> Offer {
    if let Some(node) = offer.node.as_mut().filter(|_| reason == "NoSuchNode") {
        node.ready = false;
        message.clone_into(&mut node.message);
    }
    offer
}
