//! Brings it all together: one [`Mirror`] per provider, one task per virtual node, and namespaces to the providers that
//! are selected for them.

use crate::api_server::{self, Callers};
use crate::kubelet::{Authenticator, ClientCa};
use crate::metrics::Metrics;
use crate::mirror::{Common, Dialing, Mirror, Provider, RemoteState, WantedNamespace};
use crate::neighbours::Neighbours;
use crate::node::{NodeHandle, Ownership, Picture, Shared, WatchedNodes};
use crate::offloading::{NodeView, remote_name, report, selects, wanted};
use crate::request::within;
use crate::volumes::{self, Behind};
use futures::StreamExt as _;
use futures::stream::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{
    CLUSTER_INFO, FINALIZER_CONSUME, FINALIZER_OFFLOADING, OFFER_ACCEPTED, OFFLOADING, OFFLOADING_BINDING,
    OFFLOADING_ENABLED, OFFLOADING_NAME,
};
use liquid_crds::{
    ConditionUpdate, GROUP, NamespaceOffloading, NamespaceOffloadingStatus, Offer, Peer, TokenReflection,
    VERSION, VirtualNode, condition, set_condition,
};
use liquid_link::liveness::Liveness;
use liquid_runtime::health::Part;
use liquid_runtime::watch::{Change, ObjectName, changes, object_name};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest time one namespace may hold up the others; what is left to do is done in the next round.
const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the progress of namespaces that are being given up is looked at.
const POLL: Duration = Duration::from_millis(250);

/// What the supervisor needs from the command line.
pub(crate) struct Settings {
    /// A client that sends each request once.
    pub(crate) once: Client,
    pub(crate) namespace: String,
    pub(crate) pod_name: String,
    pub(crate) address: IpAddr,
    pub(crate) first_port: u16,
    pub(crate) client_ca: ClientCa,
    /// How soon a link that is broken is noticed.
    pub(crate) liveness: Liveness,
    /// Host and port of the API server.
    pub(crate) api_server: (String, u16),
}

/// A virtual node as it is wanted, and what is offered for it.
struct Wanted {
    node: Arc<VirtualNode>,
    offer: Option<Arc<Offer>>,
    /// Why the offer does not count, if it does not.
    unaccepted: Option<String>,
}

impl Wanted {
    /// Takes a VirtualNode apart: its status is large, and others copy the rest.
    fn of(mut node: VirtualNode) -> Self {
        node.metadata.managed_fields = None;
        let status = node.status.take().unwrap_or_default();
        let accepted = condition(&status.conditions, OFFER_ACCEPTED);
        let unaccepted = match accepted {
            Some(accepted) if accepted.status == "True" => None,
            Some(accepted) => Some(accepted.message.clone()),
            None => Some("the provider has offered nothing yet".to_owned()),
        };
        Self { node: Arc::new(node), offer: status.offer.map(Arc::new), unaccepted }
    }
}

enum News {
    Peer(Box<Change<Peer>>),
    Node(Box<Change<VirtualNode>>),
    Offloading(Box<Change<NamespaceOffloading>>),
}

/// Follows Peers, VirtualNodes and NamespaceOffloadings for ever.
pub(crate) async fn supervise(client: Client, settings: Settings, metrics: Metrics, ready: Part) {
    let own_name = own_name(&client, &settings.namespace).await;
    let (node_address, _) = watch::channel(Some(settings.address.to_string()));
    let shared = Arc::new(Shared {
        client: client.clone(),
        once: settings.once,
        authenticator: Arc::new(Authenticator::new(client.clone())),
        address: settings.address,
        first_port: settings.first_port,
        client_ca: settings.client_ca,
        nodes: WatchedNodes::default(),
        node_address,
    });
    let following = shared.nodes.clone().follow(client.clone());
    let reporter =
        Reporter { controller: "liquid-kubelet".to_owned(), instance: Some(settings.pod_name.clone()) };
    let (nudge, mut nudged) = mpsc::channel(1);
    let sets_known = watch::channel(false).0;
    let recorder = Recorder::new(client.clone(), reporter);
    let (volumes, keeping) = volumes::follow(client.clone(), recorder.clone());
    tokio::spawn(keeping);
    let common = Common {
        client: client.clone(),
        dialing: Dialing { namespace: settings.namespace, liveness: settings.liveness },
        recorder,
        node_address: shared.node_address.subscribe(),
        metrics: metrics.clone(),
        sets_known: sets_known.subscribe(),
        neighbours: Neighbours::start(client.clone()),
        api_server: (settings.address, api_server::PORT).into(),
        callers: Arc::new(Callers::default()),
        volumes,
    };
    let mut supervisor = Supervisor {
        client: client.clone(),
        own_name,
        shared,
        common,
        api_server: Some(settings.api_server),
        metrics,
        peers: BTreeMap::new(),
        virtual_nodes: BTreeMap::new(),
        offloadings: BTreeMap::new(),
        mirrors: BTreeMap::new(),
        nodes: BTreeMap::new(),
        unlisted: BTreeSet::from(["Peer", "VirtualNode", "NamespaceOffloading"]),
        sets_known,
        nudge,
        unfinished: false,
    };
    let any = watcher::Config::default;
    let mut news = select_all([
        changes(Api::<Peer>::all(client.clone()), any()).map(|c| News::Peer(Box::new(c))).boxed(),
        changes(Api::<VirtualNode>::all(client.clone()), any()).map(|c| News::Node(Box::new(c))).boxed(),
        changes(Api::<NamespaceOffloading>::all(client), any())
            .map(|c| News::Offloading(Box::new(c)))
            .boxed(),
    ]);
    let mut following = pin!(following);
    loop {
        tokio::select! {
            () = &mut following => return,
            item = news.next() => match item {
                Some(item) => supervisor.learn(item),
                None => return,
            },
            _ = nudged.recv() => {}
            () = sleep(POLL), if supervisor.unfinished => {}
        }
        if supervisor.unlisted.is_empty() {
            supervisor.reconcile().await;
            ready.ready();
        }
    }
}

/// The name of this cluster, as the controller publishes it.
async fn own_name(client: &Client, namespace: &str) -> String {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    loop {
        match within(api.get_opt(CLUSTER_INFO)).await {
            Ok(Some(info)) => {
                if let Some(name) = info.data.and_then(|mut data| data.remove("clusterName")) {
                    return name;
                }
            }
            Ok(None) => info!("waiting for liquid-controller to publish ConfigMap {CLUSTER_INFO}"),
            Err(error) => warn!(%error, "ConfigMap {CLUSTER_INFO} not read; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

struct Supervisor {
    client: Client,
    own_name: String,
    shared: Arc<Shared>,
    /// What the mirrors share.
    common: Common,
    /// The API server, until pods in providers are led to it.
    api_server: Option<(String, u16)>,
    metrics: Metrics,
    peers: BTreeMap<String, Peer>,
    virtual_nodes: BTreeMap<String, Wanted>,
    offloadings: BTreeMap<String, NamespaceOffloading>,
    mirrors: BTreeMap<String, Arc<Mirror>>,
    nodes: BTreeMap<String, NodeHandle>,
    unlisted: BTreeSet<&'static str>,
    sets_known: watch::Sender<bool>,
    /// Tells the loop that the state of a namespace in a provider has changed.
    nudge: mpsc::Sender<()>,
    /// Something is under way that makes no news of its own.
    unfinished: bool,
}

impl Supervisor {
    fn learn(&mut self, news: News) {
        match news {
            News::Peer(change) => {
                if apply(&mut self.peers, *change, |name| name.1.clone(), |peer| peer) {
                    self.unlisted.remove("Peer");
                }
            }
            News::Node(change) => {
                if apply(&mut self.virtual_nodes, *change, |name| name.1.clone(), Wanted::of) {
                    self.unlisted.remove("VirtualNode");
                }
            }
            News::Offloading(change) => {
                if apply(&mut self.offloadings, *change, |name| name.0.clone(), |offloading| offloading) {
                    self.unlisted.remove("NamespaceOffloading");
                }
            }
        }
    }

    async fn reconcile(&mut self) {
        self.unfinished = false;
        self.lead_to_api_server();
        self.keep_mirrors().await;
        self.keep_nodes().await;
        self.keep_namespaces().await;
        self.sets_known.send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// Opens the way to the API server when it is first needed: nothing listens where no pod may come.
    fn lead_to_api_server(&mut self) {
        let bound = |offloading: &NamespaceOffloading| {
            offloading.spec.reflection.service_account_tokens == TokenReflection::Bound
        };
        if self.offloadings.values().any(bound)
            && let Some(server) = self.api_server.take()
        {
            let (callers, metrics) = (self.common.callers.clone(), self.metrics.clone());
            tokio::spawn(api_server::serve(self.shared.address, server, callers, metrics));
        }
    }

    async fn keep_mirrors(&mut self) {
        let mut wanted: BTreeMap<String, Provider> =
            self.peers.values().filter_map(Provider::of).map(|p| (p.name.clone(), p)).collect();
        // Until a provider has been given back what was borrowed, it has to hear which volumes are to go.
        let held = |peer: &&Peer| peer.finalizers().iter().any(|finalizer| finalizer == FINALIZER_CONSUME);
        let held = self.peers.values().filter(held).map(kube::ResourceExt::name_any);
        let nodes = self.virtual_nodes.values().map(|wanted| wanted.node.spec.peer.clone());
        for name in &nodes.chain(held).collect::<BTreeSet<_>>() {
            let left = || {
                let last = self.mirrors.get(name).map(|mirror| mirror.provider());
                Provider::left(name, self.peers.get(name), last.as_ref())
            };
            wanted.entry(name.clone()).or_insert_with(left);
        }
        for (name, _) in self.mirrors.extract_if(.., |name, _| !wanted.contains_key(name)).collect::<Vec<_>>()
        {
            self.metrics.forget(&name);
            self.common.volumes.forget(name).await;
        }
        for (name, provider) in wanted {
            self.common.volumes.provider(name.clone(), provider.cluster_id.clone(), provider.gone).await;
            match self.mirrors.get(&name) {
                Some(mirror) => mirror.update(provider),
                None => {
                    let mirror = Mirror::start(self.common.clone(), provider);
                    self.nudge_on_change(&mirror);
                    self.mirrors.insert(name, Arc::new(mirror));
                }
            }
        }
    }

    fn nudge_on_change(&self, mirror: &Mirror) {
        let (mut namespaces, nudge) = (mirror.namespaces.clone(), self.nudge.clone());
        tokio::spawn(async move {
            while namespaces.changed().await.is_ok() {
                // One nudge that waits is as good as many.
                let _ = nudge.try_send(());
            }
        });
    }

    async fn keep_nodes(&mut self) {
        let nodes = self.virtual_nodes.iter().map(|(name, wanted)| {
            let spec = &wanted.node.spec;
            let placed = spec.node.is_some() || !spec.node_selector.is_empty();
            (name.clone(), Behind { peer: spec.peer.clone(), placed })
        });
        self.common.volumes.nodes(nodes.collect()).await;
        self.nodes.retain(|name, handle| self.virtual_nodes.contains_key(name) || !handle.is_finished());
        for (name, wanted) in &self.virtual_nodes {
            let Wanted { node, offer, unaccepted } = wanted;
            let Some(mirror) = self.mirrors.get(&node.spec.peer) else { continue };
            match self.nodes.get(name) {
                Some(handle) if !handle.is_finished() => handle.update(|picture| {
                    let same = Arc::ptr_eq(&picture.node, node);
                    picture.node = node.clone();
                    picture.offer = offer.clone();
                    picture.unaccepted = unaccepted.clone();
                    !same
                }),
                _ => {
                    let peer = self.peers.get(&node.spec.peer);
                    let picture = Picture {
                        node: node.clone(),
                        cluster_id: peer.map(|peer| peer.spec.cluster_id.clone()).unwrap_or_default(),
                        offer: offer.clone(),
                        unaccepted: unaccepted.clone(),
                        not_ready: None,
                        endpoint: None,
                        leaving: false,
                    };
                    // The provider ends what is in no set, so its set is there before the link is.
                    mirror.add_node(name.clone()).await;
                    let handle = NodeHandle::start(self.shared.clone(), picture, mirror.clone());
                    self.nodes.insert(name.clone(), handle);
                }
            }
        }
    }

    /// Virtual nodes as offloading sees them; those that are being removed take nothing new, and a provider whose offer was
    /// not accepted gets nothing.
    fn views(&self) -> Vec<NodeView> {
        let nodes = self.virtual_nodes.values().filter(|wanted| {
            let refused = wanted.offer.is_some() && wanted.unaccepted.is_some();
            wanted.node.metadata.deletion_timestamp.is_none() && !refused
        });
        nodes
            .filter_map(|Wanted { node, offer, unaccepted }| {
                let peer = self.peers.get(&node.spec.peer)?;
                let picture = Picture {
                    node: node.clone(),
                    cluster_id: peer.spec.cluster_id.clone(),
                    offer: offer.clone(),
                    unaccepted: unaccepted.clone(),
                    not_ready: None,
                    endpoint: None,
                    leaving: false,
                };
                Some(NodeView { peer: node.spec.peer.clone(), labels: picture.labels() })
            })
            .collect()
    }

    async fn keep_namespaces(&mut self) {
        let views = self.views();
        let mut per_peer: BTreeMap<String, BTreeMap<String, WantedNamespace>> = BTreeMap::new();
        let offloadings: Vec<(String, NamespaceOffloading)> =
            self.offloadings.iter().map(|(name, offloading)| (name.clone(), offloading.clone())).collect();
        for (namespace, offloading) in &offloadings {
            let kept = timeout(NAMESPACE_TIMEOUT, self.keep_namespace(namespace, offloading, &views)).await;
            match kept.unwrap_or_else(|_| Err(kube::Error::Service("it takes too long".into()))) {
                Ok(wanted) => {
                    for (peer, wanted) in wanted {
                        per_peer.entry(peer).or_default().insert(namespace.clone(), wanted);
                    }
                }
                Err(error) => {
                    warn!(%namespace, %error, "offloading not brought in line; trying again");
                    self.unfinished = true;
                    // What is there stays as it is.
                    for (peer, mirror) in &self.mirrors {
                        let known =
                            mirror.namespaces.borrow().contains_key(namespace) || recorded(offloading, peer);
                        if let Some(kept) =
                            known.then(|| wanted(offloading, &self.own_name, peer, &views, true)).flatten()
                        {
                            per_peer.entry(peer.clone()).or_default().insert(namespace.clone(), kept);
                        }
                    }
                }
            }
        }
        for (peer, mirror) in &self.mirrors {
            mirror.wanted_namespaces(per_peer.remove(peer).unwrap_or_default()).await;
        }
    }

    /// Brings one offloaded namespace in line; returns what each provider shall have of it.
    async fn keep_namespace(
        &mut self,
        namespace: &str,
        offloading: &NamespaceOffloading,
        views: &[NodeView],
    ) -> Result<BTreeMap<String, WantedNamespace>, kube::Error> {
        let deleting = offloading.metadata.deletion_timestamp.is_some();
        let held = offloading.finalizers().iter().any(|finalizer| finalizer == FINALIZER_OFFLOADING);
        if deleting && !held {
            return Ok(BTreeMap::new());
        }
        if !deleting {
            self.write_finalizer(namespace, offloading, true).await?;
        }
        let label = if offloading.spec.binds_pods() { OFFLOADING_BINDING } else { OFFLOADING_ENABLED };
        self.label(namespace, (!deleting).then_some(label)).await?;
        let mut states = BTreeMap::new();
        for (peer, mirror) in &self.mirrors {
            let state = mirror.namespaces.borrow().get(namespace).cloned();
            let state = state.or_else(|| recorded(offloading, peer).then_some(RemoteState::Pending));
            let has_it = state.as_ref().is_some_and(|state| *state != RemoteState::Gone);
            let selected = views
                .iter()
                .any(|view| view.peer == *peer && selects(&offloading.spec.virtual_node_selector, view));
            // Only while a namespace is on its way out does it matter whether pods are left.
            let in_use =
                (deleting || !selected) && has_it && self.pods_left(namespace, peer, deleting).await?;
            if deleting && !has_it {
                continue;
            }
            let known = wanted(offloading, &self.own_name, peer, views, in_use).or_else(|| {
                // No longer selected and not in use: given up, and reported until it is gone.
                let remote =
                    remote_name(namespace, &self.own_name, &offloading.spec.remote_namespace).ok()?;
                let uid = offloading.uid().unwrap_or_default();
                let reflection = offloading.spec.reflection;
                has_it.then_some(WantedNamespace { uid, remote, reflection, leaving: true })
            });
            if let Some(wanted) = known {
                self.unfinished |= in_use || wanted.leaving;
                states.insert(peer.clone(), (wanted, state));
            }
        }
        if deleting && states.is_empty() {
            self.write_finalizer(namespace, offloading, false).await?;
            info!(%namespace, "namespace is offloaded no more");
            return Ok(BTreeMap::new());
        }
        self.write_status(namespace, offloading, &states).await?;
        Ok(states.into_iter().map(|(peer, (wanted, _))| (peer, wanted)).collect())
    }

    /// Whether pods of the namespace are left on virtual nodes of `peer`; with `delete` they are deleted.
    async fn pods_left(&self, namespace: &str, peer: &str, delete: bool) -> Result<bool, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut left = false;
        let nodes = self.virtual_nodes.iter().filter(|(_, wanted)| wanted.node.spec.peer == peer);
        for (node, _) in nodes {
            match self.nodes.get(node).map_or(Ownership::Unknown, NodeHandle::ownership) {
                Ownership::Ours => {}
                Ownership::Foreign => continue,
                // Whether its pods are ours turns out in a moment.
                Ownership::Unknown => {
                    left = true;
                    continue;
                }
            }
            let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
            for pod in pods.list_metadata(&of_node).await? {
                left = true;
                if delete && pod.metadata.deletion_timestamp.is_none() {
                    match pods.delete(&pod.name_any(), &DeleteParams::default()).await {
                        Ok(_) => {}
                        Err(kube::Error::Api(status)) if status.is_not_found() => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(left)
    }

    async fn label(&self, namespace: &str, value: Option<&str>) -> Result<(), kube::Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let Some(current) = api.get_metadata_opt(namespace).await? else { return Ok(()) };
        if current.labels().get(OFFLOADING).map(String::as_str) == value {
            return Ok(());
        }
        let patch = json!({ "metadata": { "labels": { OFFLOADING: value } } });
        api.patch(namespace, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    async fn write_finalizer(
        &self,
        namespace: &str,
        offloading: &NamespaceOffloading,
        on: bool,
    ) -> Result<(), kube::Error> {
        let mut finalizers = offloading.finalizers().to_vec();
        let held = finalizers.iter().any(|finalizer| finalizer == FINALIZER_OFFLOADING);
        if held == on {
            return Ok(());
        }
        if on {
            finalizers.push(FINALIZER_OFFLOADING.to_owned());
        } else {
            finalizers.retain(|finalizer| finalizer != FINALIZER_OFFLOADING);
        }
        let api: Api<NamespaceOffloading> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({
            "metadata": { "uid": offloading.metadata.uid, "finalizers": finalizers },
        });
        match api.patch(OFFLOADING_NAME, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn write_status(
        &self,
        namespace: &str,
        offloading: &NamespaceOffloading,
        states: &BTreeMap<String, (WantedNamespace, Option<RemoteState>)>,
    ) -> Result<(), kube::Error> {
        let remote_namespaces = report(states);
        let known = offloading.status.clone().unwrap_or_default();
        let mut conditions = known.conditions.clone();
        let waiting = remote_namespaces.iter().find(|remote| !remote.ready);
        let name = remote_name(namespace, &self.own_name, &offloading.spec.remote_namespace);
        let (status, reason, message) = match (&name, waiting) {
            _ if offloading.metadata.deletion_timestamp.is_some() => (
                false,
                "Leaving",
                "its pods and the namespaces in the providers are being removed".to_owned(),
            ),
            (Err(error), _) => (false, "InvalidName", error.clone()),
            (Ok(_), _) if remote_namespaces.is_empty() => {
                (false, "NoProvider", "no virtual node is selected; pods stay on physical nodes".to_owned())
            }
            (Ok(_), Some(waiting)) => (false, "Waiting", format!("{}: {}", waiting.peer, waiting.message)),
            (Ok(_), None) => (true, "Ready", "every selected provider has the namespace".to_owned()),
        };
        let update = ConditionUpdate { type_: "Ready", status: Some(status), reason, message };
        let now = Time(Timestamp::now());
        let changed = set_condition(&mut conditions, update, offloading.metadata.generation, &now);
        if !changed && known.remote_namespaces == remote_namespaces {
            return Ok(());
        }
        let status = NamespaceOffloadingStatus { remote_namespaces, conditions };
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "NamespaceOffloading",
            "metadata": { "name": OFFLOADING_NAME, "uid": offloading.metadata.uid },
            "status": status,
        });
        let api: Api<NamespaceOffloading> = Api::namespaced(self.client.clone(), namespace);
        let apply = PatchParams::apply("liquid-kubelet").force();
        match api.patch_status(OFFLOADING_NAME, &apply, &Patch::Apply(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the status says that the provider has the namespace: after a restart nothing else does.
fn recorded(offloading: &NamespaceOffloading, peer: &str) -> bool {
    let remote = offloading.status.iter().flat_map(|status| &status.remote_namespaces);
    remote.into_iter().any(|remote| remote.peer == peer)
}

/// Learns a change; returns whether a list was read to its end.
fn apply<K: kube::Resource, V>(
    known: &mut BTreeMap<String, V>,
    change: Change<K>,
    key: impl Fn(&ObjectName) -> String,
    value: impl Fn(K) -> V,
) -> bool {
    match change {
        Change::Applied(object) => {
            known.insert(key(&object_name(&object)), value(object));
            false
        }
        Change::Deleted(object) => {
            known.remove(&key(&object_name(&object)));
            false
        }
        Change::Listed(seen) => {
            let seen: BTreeSet<String> = seen.iter().map(key).collect();
            known.retain(|name, _| seen.contains(name));
            true
        }
    }
}
