//! The task of one virtual node.

use super::certificate::{Serving, obtain};
use super::drain::{remove_node, remove_pods};
use super::lease::{RENEW_INTERVAL, renew};
use super::object::Picture;
use crate::kubelet::{Authenticator, KubeletApi, Listening, listen};
use crate::mirror::{Link, Mirror};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{FINALIZER_NODE, TYPE, TYPE_VIRTUAL_NODE};
use liquid_crds::{ConditionUpdate, GROUP, VERSION, VirtualNode, set_condition};
use liquid_runtime::watch::{Change, changes};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{Instrument as _, info, info_span, warn};

/// How often an unchanged status is written: the kubelet's own figure.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);
/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What all virtual nodes share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) authenticator: Arc<Authenticator>,
    /// Address of this process, at which the kubelet APIs are reached.
    pub(crate) address: IpAddr,
    /// First port of kubelet APIs; each node takes the next that is free.
    pub(crate) first_port: u16,
    /// CA of the client certificates that API servers present to kubelets, PEM.
    pub(crate) client_ca: Vec<u8>,
    /// Pods show it as the address of their node.
    pub(crate) node_address: watch::Sender<Option<String>>,
}

/// The handle to the task.
pub(crate) struct NodeHandle {
    picture: watch::Sender<Picture>,
    task: JoinHandle<()>,
}

impl NodeHandle {
    /// Starts serving a virtual node.
    pub(crate) fn start(shared: Arc<Shared>, picture: Picture, mirror: Arc<Mirror>) -> Self {
        let name = picture.node.name_any();
        let (sender, receiver) = watch::channel(picture);
        let task = Task { shared, picture: receiver, mirror, node_uid: None };
        let task = tokio::spawn(task.run().instrument(info_span!("node", %name)));
        Self { picture: sender, task }
    }

    /// Something of what the node is made from has changed.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Picture)) {
        self.picture.send_modify(change);
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
    node_uid: Option<String>,
}

impl Task {
    async fn run(mut self) {
        let name = self.picture.borrow().node.name_any();
        while let Err(error) = self.add_finalizer(&name).await {
            warn!(%error, "finalizer not added; trying again");
            sleep(RETRY_PAUSE).await;
        }
        let api = KubeletApi::new(name.clone(), self.mirror.link.clone(), self.shared.authenticator.clone());
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
        let nodes: Api<Node> = Api::all(client.clone());
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut news = changes(nodes, only).boxed();
        let mut link = self.mirror.link.clone();
        let mut leases = interval(RENEW_INTERVAL);
        leases.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut certificate = Certificate::Missing(Instant::now());
        // Kept from one round to the next: a request that is dropped half-way stays behind in the cluster.
        let mut obtaining = None;
        let mut written: Option<(Value, Instant)> = None;
        loop {
            let leaving = self.picture.borrow().node.metadata.deletion_timestamp.is_some();
            if let Err(error) = self.write(&listening, &certificate, &mut written).await {
                warn!(%error, "node not written; trying again");
                written = None;
                sleep(RETRY_PAUSE).await;
                continue;
            }
            if leaving && self.leave(&name).await {
                return;
            }
            let owner = (name.clone(), self.node_uid.clone());
            let serving = obtaining.get_or_insert_with(|| {
                obtain_at(client.clone(), owner, self.shared.address, certificate.due()).boxed()
            });
            tokio::select! {
                serving = serving => {
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
                    && let Err(error) = renew(&client, &name, uid).await {
                        warn!(%error, "lease not renewed");
                },
                changed = self.picture.changed() => if changed.is_err() { return },
                changed = link.changed() => if changed.is_err() { return },
                Some(change) = news.next() => match change {
                    // Somebody deleted the Node: it is made anew, for the VirtualNode is still wanted.
                    Change::Deleted(_) => { self.node_uid = None; written = None; }
                    Change::Applied(node) => if self.node_uid != node.metadata.uid || drifted(&node, &written) { written = None },
                    Change::Listed(seen) => if seen.is_empty() { self.node_uid = None; written = None },
                },
                () = sleep(STATUS_INTERVAL) => written = None,
            }
        }
    }

    /// The picture as it is now, with what only this task knows.
    fn current(&self, listening: &Listening, certificate: &Certificate) -> Picture {
        let mut picture = self.picture.borrow().clone();
        picture.endpoint = Some((self.shared.address.to_string(), listening.port));
        picture.leaving = picture.node.metadata.deletion_timestamp.is_some();
        let down = match &*self.mirror.link.borrow() {
            Link::Up(_) => None,
            Link::Down(why) => Some(("LinkDown", format!("the provider is not connected: {why}"))),
        };
        let unserved = matches!(certificate, Certificate::Missing(_)).then(|| {
            ("NoServingCertificate", "the kubelet API waits for its serving certificate".to_owned())
        });
        let unoffered =
            picture.offer.is_none().then(|| ("NoOffer", "the provider has offered nothing yet".to_owned()));
        picture.not_ready = down.or(unoffered).or(unserved);
        picture
    }

    /// Writes the Node and the VirtualNode's status, where they differ from what was written last.
    async fn write(
        &mut self,
        listening: &Listening,
        certificate: &Certificate,
        written: &mut Option<(Value, Instant)>,
    ) -> Result<(), kube::Error> {
        let picture = self.current(listening, certificate);
        let object = picture.object();
        let fixed = Time(Timestamp::UNIX_EPOCH);
        let fingerprint = json!([object, picture.status(&[], &fixed)]);
        let due = written.as_ref().is_none_or(|(known, _)| *known != fingerprint);
        if !due {
            return Ok(());
        }
        let nodes: Api<Node> = Api::all(self.shared.client.clone());
        let name = picture.node.name_any();
        let Some(current) = self.ensure(&nodes, &name, &object).await? else { return Ok(()) };
        let conditions = current.status.as_ref().and_then(|status| status.conditions.as_ref());
        let conditions: Vec<_> = conditions
            .into_iter()
            .flatten()
            .map(|c| {
                (
                    c.type_.clone(),
                    c.status.clone(),
                    c.last_transition_time.clone().unwrap_or(Time(Timestamp::now())),
                )
            })
            .collect();
        let status = picture.status(&conditions, &Time(Timestamp::now()));
        nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&status)).await?;
        if self.node_uid != current.metadata.uid {
            self.node_uid = current.metadata.uid.clone();
            if let Some(uid) = &self.node_uid {
                renew(&self.shared.client, &name, uid).await?;
            }
        }
        self.report(&picture).await?;
        let (ready, why) = match &picture.not_ready {
            None => (true, String::new()),
            Some((reason, message)) => (false, format!("{reason}: {message}")),
        };
        info!(ready, why, "node written");
        *written = Some((fingerprint, Instant::now()));
        Ok(())
    }

    /// Makes the Node, or brings it in line; `None` if the name is taken by a node that is not ours.
    async fn ensure(
        &self,
        nodes: &Api<Node>,
        name: &str,
        object: &Value,
    ) -> Result<Option<Node>, kube::Error> {
        match nodes.get_opt(name).await? {
            None => {
                let node: Node = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
                Ok(Some(nodes.create(&PostParams::default(), &node).await?))
            }
            Some(node) if node.labels().get(TYPE).map(String::as_str) != Some(TYPE_VIRTUAL_NODE) => {
                let message = format!("a node {name} exists that is not a virtual node");
                warn!(%message, "conflict");
                self.condition(name, ("NameConflict", message)).await?;
                sleep(RETRY_PAUSE * 10).await;
                Ok(None)
            }
            Some(_) => {
                let apply = PatchParams::apply("liquid-kubelet").force();
                Ok(Some(nodes.patch(name, &apply, &Patch::Apply(object)).await?))
            }
        }
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
        let Some(node) = api.get_opt(name).await? else { return Ok(()) };
        let mut conditions = node.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
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
        api.patch_status(name, &apply, &Patch::Apply(&patch)).await?;
        Ok(())
    }

    /// Removes the node; returns whether that is done.
    async fn leave(&self, name: &str) -> bool {
        let client = &self.shared.client;
        let report = |left: usize| async move {
            info!(pods = left, "virtual node is being removed");
            let message = format!("{left} pods are ending");
            if let Err(error) = self.condition(name, ("Removing", message)).await {
                warn!(%error, "progress not written");
            }
        };
        let peer = self.picture.borrow().node.spec.peer.clone();
        let removed = async {
            remove_pods(client, name, report).await?;
            remove_node(client, name, &peer).await?;
            self.mirror.remove_node(name.to_owned()).await;
            self.remove_finalizer(name).await
        };
        match removed.await {
            Ok(()) => {
                info!("virtual node removed");
                true
            }
            Err(error) => {
                warn!(%error, "virtual node not removed; trying again");
                sleep(RETRY_PAUSE).await;
                false
            }
        }
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
        let Some(node) = api.get_opt(name).await? else { return Ok(()) };
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
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
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
    tokio::time::sleep_until(at).await;
    obtain(&client, &node, uid, address).await
}

/// Whether somebody has changed what we wrote into the Node.
fn drifted(node: &Node, written: &Option<(Value, Instant)>) -> bool {
    let Some((fingerprint, _)) = written else { return false };
    let wanted = &fingerprint[0];
    let labels = wanted.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let relabelled =
        labels.into_iter().any(|(key, value)| node.labels().get(key).map(String::as_str) != value.as_str());
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let ours = wanted.pointer("/spec/taints").and_then(Value::as_array).into_iter().flatten();
    let untainted = ours.into_iter().any(|taint| {
        !taints.into_iter().flatten().any(|known| Some(known.key.as_str()) == taint["key"].as_str())
    });
    let ready = fingerprint[1]["status"]["conditions"][0]["status"].as_str();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let said = conditions.into_iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.as_str());
    relabelled || untainted || said != ready
}
