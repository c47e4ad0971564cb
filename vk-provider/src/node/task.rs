//! The task of one virtual node.

use super::certificate::{Serving, obtain};
use super::drain::{Left, clear, deadline, remove_node};
use super::lease::{RENEW_INTERVAL, renew};
use super::object::{Picture, drifted};
use super::ownership::Ownership;
use super::watched::{Seen, WatchedNodes};
use crate::kubelet::{Authenticator, ClientCa, KubeletApi, Listening, listen};
use crate::mirror::{Link, Mirror};
use crate::request::within;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::FINALIZER_NODE;
use liquid_crds::{ConditionUpdate, GROUP, VERSION, VirtualNode, set_condition};
use liquid_link::digest::Hash;
use serde_json::json;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, sleep_until};
use tracing::{Instrument as _, info, info_span, warn};

/// How often an unchanged status is written: the kubelet's own figure.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);
/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after what only a person can change: a name that is taken, a Node the API server does not accept.
const REJECTED_PAUSE: Duration = Duration::from_secs(10);
/// Pause after somebody else has written the Node in between.
const RACE_PAUSE: Duration = Duration::from_millis(50);
/// How often it is checked whether the pods of a node that is being removed are gone ...
const LEAVE_POLL: Duration = Duration::from_millis(200);
/// ... and whether budgets let more of them go.
const BUDGET_POLL: Duration = Duration::from_secs(2);
/// How long after the start a Node that is Ready stays so while the link and the serving certificate come up: were it
/// written as not ready, the node controller would set all its pods to not ready. Below the 40 s of its lease.
const START_GRACE: Duration = Duration::from_secs(10);

/// What all virtual nodes share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    /// One that sends each request once; the other repeats what is refused for now.
    pub(crate) once: Client,
    pub(crate) authenticator: Arc<Authenticator>,
    /// Address of this process, at which the kubelet APIs are reached.
    pub(crate) address: IpAddr,
    /// First port of kubelet APIs; each node takes the next that is free.
    pub(crate) first_port: u16,
    /// CA of the client certificates that API servers present to kubelets.
    pub(crate) client_ca: ClientCa,
    /// News of their Nodes.
    pub(crate) nodes: WatchedNodes,
    /// Pods show it as the address of their node.
    pub(crate) node_address: watch::Sender<Option<String>>,
}

/// The handle to the task.
pub(crate) struct NodeHandle {
    picture: watch::Sender<Picture>,
    ownership: watch::Receiver<Ownership>,
    task: JoinHandle<()>,
}

impl NodeHandle {
    /// Starts serving a virtual node.
    pub(crate) fn start(shared: Arc<Shared>, picture: Picture, mirror: Arc<Mirror>) -> Self {
        let name = picture.node.name_any();
        let (sender, receiver) = watch::channel(picture);
        let (owner, ownership) = watch::channel(Ownership::Unknown);
        let task = Task {
            shared,
            picture: receiver,
            mirror,
            ownership: owner,
            node_uid: None,
            written: None,
            held_back: None,
            grace: Instant::now(),
            pods_left: None,
        };
        let task = tokio::spawn(task.run().instrument(info_span!("node", %name)));
        Self { picture: sender, ownership, task }
    }

    /// Something of what the node is made from has changed.
    ///
    /// `change` says whether anything has: each change makes the Node looked at.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Picture) -> bool) {
        self.picture.send_if_modified(change);
    }

    /// Whose the Node of that name is.
    pub(crate) fn ownership(&self) -> Ownership {
        *self.ownership.borrow()
    }

    /// Whether the node has been removed.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    shared: Arc<Shared>,
    picture: watch::Receiver<Picture>,
    mirror: Arc<Mirror>,
    ownership: watch::Sender<Ownership>,
    /// UID of the Node, if it is ours.
    node_uid: Option<String>,
    /// Digest of what the Node was last made from; without it, it is written anew.
    written: Option<Hash>,
    /// Digest of what could not be written, and is not tried again before this time.
    held_back: Option<(Hash, Instant)>,
    /// End of [`START_GRACE`], which begins when the kubelet API listens.
    grace: Instant,
    /// Pods that are still there, as reported while the node is being removed.
    pods_left: Option<Left>,
}

/// How writing the Node ended.
enum Wrote {
    All,
    /// There is none, and there shall be none before an offer is accepted.
    Withheld,
    /// Left as it was, for the time after a start.
    Spared,
    /// Somebody else wrote in between.
    Raced,
    /// The name is taken by a node that is not ours.
    Taken,
}

impl Task {
    async fn run(mut self) {
        let name = self.picture.borrow().node.name_any();
        while let Err(error) = self.add_finalizer(&name).await {
            warn!(%error, "finalizer not added; trying again");
            sleep(RETRY_PAUSE).await;
        }
        let shared = &self.shared;
        let authenticator = shared.authenticator.clone();
        let api = KubeletApi::new(name.clone(), shared.client.clone(), &self.mirror, authenticator);
        let listening = loop {
            match listen(self.shared.first_port, &self.shared.client_ca, api.clone()).await {
                Ok(listening) => break listening,
                Err(error) => {
                    warn!(%error, "kubelet API does not listen; trying again");
                    sleep(RETRY_PAUSE).await;
                }
            }
        };
        let client = self.shared.client.clone();
        let mut news = self.shared.nodes.hear(&name);
        let mut link = self.mirror.link.clone();
        let mut leases = interval(RENEW_INTERVAL);
        leases.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refresh = interval_at(Instant::now() + STATUS_INTERVAL, STATUS_INTERVAL);
        let mut certificate = Certificate::Missing(Instant::now());
        // Kept from one round to the next: a request that is dropped half-way stays behind in the cluster.
        let mut obtaining = None;
        self.grace = Instant::now() + START_GRACE;
        loop {
            let leaving = self.picture.borrow().node.metadata.deletion_timestamp.is_some();
            let looked = Instant::now();
            self.write(&listening, &certificate).await;
            let mut again = self.held_back.as_ref().map(|(_, until)| *until);
            if leaving {
                match self.leave().await {
                    Ok(None) => {
                        info!("virtual node removed");
                        return;
                    }
                    Ok(Some(pause)) => again = Some(Instant::now() + pause),
                    Err(error) => {
                        warn!(%error, "virtual node not removed; trying again");
                        again = Some(Instant::now() + RETRY_PAUSE);
                    }
                }
            }
            let lost = self.mirror.link.borrow().excused(looked);
            // No certificate is asked for in the name of somebody else's node.
            let ours = *self.ownership.borrow() == Ownership::Ours && self.node_uid.is_some();
            if ours && obtaining.is_none() {
                let owner = (name.clone(), self.node_uid.clone());
                obtaining =
                    Some(obtain_at(client.clone(), owner, self.shared.address, certificate.due()).boxed());
            }
            let serving = async {
                match &mut obtaining {
                    Some(obtaining) => obtaining.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                serving = serving, if ours => {
                    obtaining = None;
                    match serving {
                        Ok(serving) => {
                            listening.certificate.set(serving.key);
                            info!("kubelet API has its serving certificate");
                            certificate = Certificate::Renew(Instant::now() + serving.renew_in);
                        }
                        Err(error) => {
                            warn!(error = %format!("{error:#}"), "no serving certificate; trying again");
                            certificate = certificate.failed(Instant::now() + RETRY_PAUSE * 5);
                        }
                    }
                }
                _ = leases.tick() => if let Some(uid) = &self.node_uid
                    && let Err(error) = within(renew(&client, &name, uid)).await {
                        warn!(%error, "lease not renewed");
                },
                changed = self.picture.changed() => if changed.is_err() { return },
                changed = link.changed() => if changed.is_err() { return },
                changed = news.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let seen = news.borrow_and_update().clone();
                    match seen {
                        Seen::Unknown => {}
                        // Somebody deleted the Node: it is made anew, for the VirtualNode is still wanted.
                        Seen::Absent => self.start_over(),
                        Seen::Node(node) => {
                            if self.node_uid != node.metadata.uid || self.has_drifted(&node, &listening, &certificate) {
                                self.written = None;
                            }
                        }
                    }
                }
                _ = refresh.tick() => self.written = None,
                () = sleep_until(lost.unwrap_or(self.grace)), if lost.is_some() => {}
                () = sleep_until(again.unwrap_or(self.grace)), if again.is_some() => {}
            }
        }
    }

    /// Whether somebody has changed the Node. Before it has been written, that is nobody's fault.
    fn has_drifted(&self, node: &Node, listening: &Listening, certificate: &Certificate) -> bool {
        let picture = self.current(listening, certificate);
        let status = picture.status(&[], &Time(Timestamp::UNIX_EPOCH));
        self.written.is_some() && drifted(node, &picture.object(), &status)
    }

    /// There is no Node any more.
    fn start_over(&mut self) {
        self.node_uid = None;
        self.written = None;
        self.held_back = None;
    }

    /// The picture as it is now, with what only this task knows.
    fn current(&self, listening: &Listening, certificate: &Certificate) -> Picture {
        let mut picture = self.picture.borrow().clone();
        picture.endpoint = Some((self.shared.address.to_string(), listening.port));
        picture.leaving = picture.node.metadata.deletion_timestamp.is_some();
        let down = match &*self.mirror.link.borrow() {
            Link::Up(_) => None,
            // It may be back before anybody notices, as a kubelet that is restarted.
            link if link.excused(Instant::now()).is_some() => None,
            Link::Down(why) | Link::Lost { why, .. } => {
                Some(("LinkDown", format!("the provider is not connected: {why}")))
            }
        };
        let unserved = matches!(certificate, Certificate::Missing(_)).then(|| {
            ("NoServingCertificate", "the kubelet API waits for its serving certificate".to_owned())
        });
        let unoffered =
            picture.offer.is_none().then(|| ("NoOffer", "the provider has offered nothing yet".to_owned()));
        let behind = picture.offer.as_ref().and_then(|offer| offer.node.as_ref()).filter(|node| !node.ready);
        let behind = behind.map(|node| {
            (
                "ProviderNodeNotReady",
                format!("node {} of the provider is not ready: {}", node.name, node.message),
            )
        });
        picture.not_ready = down.or(unoffered).or(behind).or(unserved);
        picture
    }

    /// Writes the Node and the VirtualNode's status, where they differ from what was written last. What goes wrong is
    /// told in the VirtualNode and tried again later.
    async fn write(&mut self, listening: &Listening, certificate: &Certificate) {
        let picture = self.current(listening, certificate);
        let fixed = Time(Timestamp::UNIX_EPOCH);
        let made_from = json!([picture.object(), picture.status(&[], &fixed), picture.unaccepted]);
        let fingerprint = Hash::of(made_from.to_string().as_bytes());
        let now = Instant::now();
        let held_back =
            self.held_back.as_ref().is_some_and(|(tried, until)| *tried == fingerprint && now < *until);
        if held_back || self.written == Some(fingerprint) {
            return;
        }
        let name = picture.node.name_any();
        let (problem, pause) = match self.write_node(&name, &picture).await {
            Ok(Wrote::All) => {
                let (ready, why) = match &picture.not_ready {
                    None => (true, String::new()),
                    Some((reason, message)) => (false, format!("{reason}: {message}")),
                };
                info!(ready, why, "node written");
                self.written = Some(fingerprint);
                self.held_back = None;
                return;
            }
            Ok(Wrote::Withheld) => match self.withheld(&name, &picture).await {
                Ok(()) => {
                    self.written = Some(fingerprint);
                    self.held_back = None;
                    return;
                }
                Err(error) => (Some(problem(&error)), RETRY_PAUSE),
            },
            Ok(Wrote::Spared) => (None, self.grace.saturating_duration_since(now)),
            Ok(Wrote::Raced) => (None, RACE_PAUSE),
            Ok(Wrote::Taken) => {
                let message = format!("a node {name} exists that is not the one of this virtual node");
                (Some(("NameConflict", message)), REJECTED_PAUSE)
            }
            Err(error) => {
                let (reason, message) = problem(&error);
                let pause = if reason == "NodeInvalid" { REJECTED_PAUSE } else { RETRY_PAUSE };
                (Some((reason, message)), pause)
            }
        };
        self.written = None;
        self.held_back = Some((fingerprint, Instant::now() + pause));
        if let Some((reason, message)) = problem {
            warn!(reason, %message, "node not written; trying again");
            // While it is being removed, the condition tells how far that is.
            if !picture.leaving
                && let Err(error) = self.condition(&name, (reason, message)).await
            {
                warn!(%error, "status of the virtual node not written");
            }
        }
    }

    async fn write_node(&mut self, name: &str, picture: &Picture) -> Result<Wrote, kube::Error> {
        let nodes: Api<Node> = Api::all(self.shared.client.clone());
        let found = self.look(&nodes, name, &picture.node).await?;
        if *self.ownership.borrow() == Ownership::Foreign {
            return Ok(Wrote::Taken);
        }
        let found = match found {
            Some(found) => found,
            None if picture.unaccepted.is_some() || picture.offer.is_none() => return Ok(Wrote::Withheld),
            None => {
                let node: Node = serde_json::from_value(picture.seed()).map_err(kube::Error::SerdeError)?;
                match within(nodes.create(&PostParams::default(), &node)).await {
                    Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(Wrote::Raced),
                    created => created?,
                }
            }
        };
        if self.node_uid != found.metadata.uid {
            self.node_uid = found.metadata.uid.clone();
            if let Some(uid) = &self.node_uid {
                within(renew(&self.shared.client, name, uid)).await?;
            }
        }
        if Instant::now() < self.grace && spared(&found, picture) {
            return Ok(Wrote::Spared);
        }
        let apply = PatchParams::apply("liquid-kubelet").force();
        let applied = within(nodes.patch(name, &apply, &Patch::Apply(&picture.applied(&found)))).await;
        if matches!(&applied, Err(kube::Error::Api(status)) if status.is_conflict()) {
            return Ok(Wrote::Raced);
        }
        // Whether it is ready is told also when the rest is not accepted.
        let status = picture.status(&transitions(&found), &Time(Timestamp::now()));
        let status = Picture::without_withdrawn(status, &found);
        let status =
            within(nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status))).await;
        applied.and(status)?;
        if !picture.leaving {
            self.report(picture).await?;
        }
        Ok(Wrote::All)
    }

    /// Reads the Node. Pods of its name are mirrored as long as it is ours.
    async fn look(
        &mut self,
        nodes: &Api<Node>,
        name: &str,
        virtual_node: &VirtualNode,
    ) -> Result<Option<Node>, kube::Error> {
        let found = within(nodes.get_opt(name)).await?;
        let ownership = Ownership::of(found.as_ref(), virtual_node);
        let known = self.ownership.send_replace(ownership);
        if ownership == Ownership::Foreign {
            self.node_uid = None;
            if known != ownership {
                self.mirror.ignore_pods(name.to_owned()).await;
            }
        } else if known != ownership {
            self.mirror.follow_pods(name.to_owned()).await;
        }
        Ok(found)
    }

    async fn report(&self, picture: &Picture) -> Result<(), kube::Error> {
        let name = picture.node.name_any();
        let update = match &picture.not_ready {
            None => ("Ready", String::new(), Some(true)),
            Some((reason, message)) => (*reason, message.clone(), Some(false)),
        };
        let endpoint = picture.endpoint.as_ref().map(|(address, port)| format!("{address}:{port}"));
        self.write_status(&name, update, endpoint).await
    }

    /// Says why there is no Node.
    async fn withheld(&self, name: &str, picture: &Picture) -> Result<(), kube::Error> {
        if picture.leaving {
            return Ok(());
        }
        let why = match (&picture.offer, &picture.unaccepted) {
            (Some(_), Some(why)) => ("OfferNotAccepted", why.clone()),
            (None, Some(why)) => ("NoOffer", why.clone()),
            (_, None) => ("NoOffer", "the provider has offered nothing yet".to_owned()),
        };
        info!(reason = why.0, message = %why.1, "no node without an accepted offer");
        self.condition(name, why).await
    }

    async fn condition(&self, name: &str, (reason, message): (&str, String)) -> Result<(), kube::Error> {
        self.write_status(name, (reason, message, Some(false)), None).await
    }

    async fn write_status(
        &self,
        name: &str,
        (reason, message, status): (&str, String, Option<bool>),
        endpoint: Option<String>,
    ) -> Result<(), kube::Error> {
        let api: Api<VirtualNode> = Api::all(self.shared.client.clone());
        let Some(node) = within(api.get_opt(name)).await? else { return Ok(()) };
        let known = node.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        // Who accepts offers writes the other one.
        let mut conditions: Vec<_> = known.iter().filter(|c| c.type_ == "Ready").cloned().collect();
        let update = ConditionUpdate { type_: "Ready", status, reason, message };
        let now = Time(Timestamp::now());
        let changed = set_condition(&mut conditions, update, node.metadata.generation, &now);
        let known = node.status.as_ref().and_then(|status| status.kubelet_endpoint.clone());
        if !changed && known == endpoint {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "VirtualNode",
            "metadata": { "name": name, "uid": node.metadata.uid },
            "status": { "kubeletEndpoint": endpoint, "conditions": conditions },
        });
        let apply = PatchParams::apply("liquid-kubelet").force();
        within(api.patch_status(name, &apply, &Patch::Apply(&patch))).await?;
        Ok(())
    }

    /// Goes on with the removal of the node; returns when to look again, or `None` when it is done.
    async fn leave(&mut self) -> Result<Option<Duration>, kube::Error> {
        let client = self.shared.client.clone();
        let virtual_node = self.picture.borrow().node.clone();
        let name = virtual_node.name_any();
        self.look(&Api::all(client.clone()), &name, &virtual_node).await?;
        // Somebody else's node keeps its pods.
        if *self.ownership.borrow() == Ownership::Ours {
            let deadline = deadline(&virtual_node);
            // What ran in a provider that is gone does not run: there is nothing left for a budget to protect.
            let heed_budgets = Timestamp::now() < deadline && !self.mirror.provider().gone;
            let left = clear(&self.shared.once, &name, heed_budgets).await?;
            if self.pods_left != Some(left) {
                info!(pods = left.pods, blocked = left.blocked, "virtual node is being removed");
                self.condition(&name, ("Removing", left.message(deadline))).await?;
                self.pods_left = Some(left);
            }
            if left.pods > 0 {
                let blocked = left.blocked == left.pods;
                return Ok(Some(if blocked { BUDGET_POLL } else { LEAVE_POLL }));
            }
            remove_node(&client, &virtual_node).await?;
        }
        self.mirror.remove_node(name.clone()).await;
        self.remove_finalizer(&name).await?;
        Ok(None)
    }

    async fn add_finalizer(&self, name: &str) -> Result<(), kube::Error> {
        self.change_finalizers(name, |finalizers| {
            let missing = !finalizers.iter().any(|finalizer| finalizer == FINALIZER_NODE);
            if missing {
                finalizers.push(FINALIZER_NODE.to_owned());
            }
            missing
        })
        .await
    }

    async fn remove_finalizer(&self, name: &str) -> Result<(), kube::Error> {
        self.change_finalizers(name, |finalizers| {
            let before = finalizers.len();
            finalizers.retain(|finalizer| finalizer != FINALIZER_NODE);
            finalizers.len() != before
        })
        .await
    }

    async fn change_finalizers(
        &self,
        name: &str,
        change: impl Fn(&mut Vec<String>) -> bool,
    ) -> Result<(), kube::Error> {
        let api: Api<VirtualNode> = Api::all(self.shared.client.clone());
        let Some(node) = within(api.get_opt(name)).await? else { return Ok(()) };
        let mut finalizers = node.finalizers().to_vec();
        // A finalizer cannot be added to what is being deleted already.
        if !change(&mut finalizers)
            || (node.metadata.deletion_timestamp.is_some() && finalizers.len() > node.finalizers().len())
        {
            return Ok(());
        }
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version, "finalizers": finalizers },
        });
        within(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await?;
        Ok(())
    }
}

/// The serving certificate: when the next one is due.
enum Certificate {
    Missing(Instant),
    Renew(Instant),
}

impl Certificate {
    fn due(&self) -> Instant {
        match self {
            Certificate::Missing(at) | Certificate::Renew(at) => *at,
        }
    }

    fn failed(&self, again: Instant) -> Self {
        match self {
            Certificate::Missing(_) => Certificate::Missing(again),
            Certificate::Renew(_) => Certificate::Renew(again),
        }
    }
}

async fn obtain_at(
    client: Client,
    (node, uid): (String, Option<String>),
    address: IpAddr,
    at: Instant,
) -> anyhow::Result<Serving> {
    sleep_until(at).await;
    obtain(&client, &node, uid, address).await
}

/// Reason and message for a Node that could not be written.
fn problem(error: &kube::Error) -> (&'static str, String) {
    match error {
        // Refused by validation (422, 400) or by an admission webhook (403): it will not do as it is.
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
            ("NodeInvalid", status.message.clone())
        }
        kube::Error::Api(status) => ("NotWritten", status.message.clone()),
        error => ("NotWritten", error.to_string()),
    }
}

/// Whether a Node is better left as it is for a while: it is ready, and by `picture` it would not be.
fn spared(found: &Node, picture: &Picture) -> bool {
    let ready = transitions(found).iter().any(|(type_, status, _)| type_ == "Ready" && status == "True");
    ready && picture.not_ready.is_some() && !picture.leaving
}

/// The conditions of a Node: type, status, and since when.
fn transitions(node: &Node) -> Vec<(String, String, Time)> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .map(|c| {
            let since = c.last_transition_time.clone().unwrap_or(Time(Timestamp::now()));
            (c.type_.clone(), c.status.clone(), since)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use liquid_crds::VirtualNodeSpec;

    #[test]
    fn what_the_api_server_does_not_accept_is_told_apart_from_what_may_work_later() {
        for (code, expected) in
            [(422, "NodeInvalid"), (403, "NodeInvalid"), (409, "NotWritten"), (500, "NotWritten")]
        {
            let status = Status::failure("because", "Reason").with_code(code).boxed();
            assert_eq!(problem(&kube::Error::Api(status)), (expected, "because".to_owned()), "{code}");
        }
    }

    #[test]
    fn a_node_that_is_ready_is_spared_while_things_come_up() {
        let node = |ready| -> Node {
            serde_json::from_value(json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap()
        };
        let spec = VirtualNodeSpec { peer: "milan".to_owned(), ..VirtualNodeSpec::default() };
        let waiting = Picture {
            node: Arc::new(VirtualNode::new("liquid-milan", spec)),
            cluster_id: String::new(),
            offer: None,
            unaccepted: None,
            not_ready: Some(("LinkDown", String::new())),
            endpoint: None,
            leaving: false,
        };
        assert!(spared(&node("True"), &waiting));
        assert!(!spared(&node("Unknown"), &waiting));
        assert!(!spared(&node("True"), &Picture { not_ready: None, ..waiting.clone() }));
        assert!(!spared(&node("True"), &Picture { leaving: true, ..waiting }));
    }
}
