//! Labels, annotations, taints and finalizers of Liquid, in one place.

/// On everything Liquid makes: who manages it.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGED_BY_LIQUID: &str = "liquid";

/// On shadows and their namespaces in a provider: identity of the consumer they belong to. Only objects
/// that carry it are ever changed or deleted on behalf of that consumer.
pub const ORIGIN_CLUSTER: &str = "liquid.mesh/origin-cluster";
/// On a shadow namespace and on shadow pods: the name of the namespace at home.
pub const ORIGIN_NAMESPACE: &str = "liquid.mesh/origin-namespace";
/// On a shadow pod: the virtual node its home pod is bound to.
pub const ORIGIN_NODE: &str = "liquid.mesh/origin-node";
/// On a shadow pod and (as an annotation) a shadow namespace: the UID of what it stands for at home.
pub const ORIGIN_UID: &str = "liquid.mesh/origin-uid";

/// Annotation on a claim in a provider: its name at home.
pub const ORIGIN_NAME: &str = "liquid.mesh/origin-name";

/// Annotation on shadows: digest of what they were made from.
pub const HASH: &str = "liquid.mesh/hash";

/// On a virtual node, with [`TYPE_VIRTUAL_NODE`]: tells it from physical nodes.
pub const TYPE: &str = "liquid.mesh/type";
/// Value of [`TYPE`] on virtual nodes.
pub const TYPE_VIRTUAL_NODE: &str = "virtual-node";
/// On a virtual node: name of the peer behind it.
pub const PEER: &str = "liquid.mesh/peer";
/// On a virtual node: identity of the cluster behind it.
pub const CLUSTER_ID: &str = "liquid.mesh/cluster-id";

/// On a virtual node that stands for one node of the peer: its name there, if it may be the value of a label.
pub const PROVIDER_NODE: &str = "liquid.mesh/provider-node";

/// Labels every kubelet sets on its Node, meaning the same in every cluster: the kind of machine, and no machine.
pub const MACHINE_KIND: [&str; 2] = ["kubernetes.io/arch", "kubernetes.io/os"];

/// Labels of a virtual node that begin with this end with an architecture of the provider's nodes; their value is "true".
/// A node has one `kubernetes.io/arch`, the provider may have nodes of several.
pub const ARCHITECTURE_PREFIX: &str = "arch.liquid.mesh/";

/// Taint of every virtual node; pods of offloaded namespaces tolerate it.
pub const VIRTUAL_NODE_TAINT: &str = "liquid.mesh/virtual-node";
/// Annotation on a virtual node: the taints Liquid has put there (KEY:EFFECT, separated by commas). All others are left
/// as they are.
pub const TAINTS: &str = "liquid.mesh/taints";

/// On an offloaded namespace at home: the pod webhook looks at its pods.
pub const OFFLOADING: &str = "liquid.mesh/offloading";
/// Value of [`OFFLOADING`]: pods that the webhook could not look at get what they need later.
pub const OFFLOADING_ENABLED: &str = "enabled";
/// Value of [`OFFLOADING`]: pods must be bound to certain nodes, so the webhook has to look at every one.
pub const OFFLOADING_BINDING: &str = "binding";

/// Prefix of annotations on shadows: values that a pod reads of itself and that differ in the provider.
pub const HOME_VALUE: &str = "home.liquid.mesh/";

/// Annotation on a pod at home whose instance in the provider was replaced: restarts of each container before that, as
/// JSON. They are part of the restart counts at home.
pub const RESTARTS_BEFORE: &str = "liquid.mesh/restarts-before";
/// Condition of a pod at home: it does not run, and this is why. Taken away when it runs.
pub const CONDITION_REFUSED: &str = "liquid.mesh/Refused";
/// Condition of a pod at home that has readiness gates: what the provider says of its readiness.
pub const CONDITION_READY_THERE: &str = "liquid.mesh/ReadyInProvider";

/// On pods in the provider: the keys of their labels and annotations that come from home, as JSON. The others are the
/// provider's.
pub const HOME_KEYS: &str = "liquid.mesh/home-keys";

/// On objects in the provider into which it has put something of its own (addresses as it sees them, the class of an
/// Ingress): digest of what that was.
pub const TERMS: &str = "liquid.mesh/terms";

/// On the body of a pod that is to reach home's API server.
pub const API_SERVER: &str = "liquid.mesh/api-server";
/// Value of [`API_SERVER`].
pub const API_SERVER_HOME: &str = "home";

/// Provisioner of the storage classes whose volumes Liquid provides, and driver of those that are in another cluster.
pub const STORAGE_DRIVER: &str = "storage.liquid.mesh";
/// Parameter of such a class: the class of volumes for pods on physical nodes; the cluster's default one if unset.
pub const PARAMETER_LOCAL_CLASS: &str = "localClass";
/// Parameter of such a class: the class of volumes for pods on virtual nodes, as providers call it; their default one if unset.
pub const PARAMETER_REMOTE_CLASS: &str = "remoteClass";
/// Attributes of a volume that is in another cluster: where to find it there.
pub const VOLUME_PEER: &str = "peer";
/// Namespace of the claim there.
pub const VOLUME_NAMESPACE: &str = "namespace";
/// Name of the claim there.
pub const VOLUME_CLAIM: &str = "claim";
/// UID of the claim here for which it was made.
pub const VOLUME_UID: &str = "uid";
/// Keeps a PersistentVolume at home until the provider has said what has become of its volume.
pub const FINALIZER_VOLUME: &str = "liquid.mesh/volume";
/// Annotation on a PersistentVolume at home: its volume is to be deleted with it whatever its reclaim policy. Its value is
/// the UID of the PersistentVolume, so that it cannot be set by copying a manifest.
pub const DELETE_VOLUME: &str = "liquid.mesh/delete-volume";
/// Annotation on a PersistentVolume of a local class on its way to the claim it was made for: the reclaim policy it gets.
pub const RECLAIM_POLICY: &str = "liquid.mesh/reclaim-policy";

/// On a namespace in a provider that its consumer has given up and that is kept for the claims in it.
pub const KEPT: &str = "liquid.mesh/kept";
/// Annotation beside [`KEPT`]: a sentence for people.
pub const KEPT_BECAUSE: &str = "liquid.mesh/kept-because";
/// Annotation on a namespace in a provider: the claim that was made in it last. It changes with each, so that what was decided
/// about the namespace before is void.
pub const LAST_CLAIM: &str = "liquid.mesh/last-claim";

/// Reason of the condition `LinkUp` of a `Peer` whose provider has ended the peering on purpose.
pub const ENDED_BY_PROVIDER: &str = "EndedByProvider";

/// Condition of a `VirtualNode`: whether the offer of its provider is accepted.
pub const OFFER_ACCEPTED: &str = "OfferAccepted";

/// Reason of Events on a Peer: connections were denied by its `spec.network.access`.
pub const ACCESS_DENIED: &str = "AccessDenied";

/// Field of the Secret with the credentials for a provider: the `ConsumeSpec` they were written for.
pub const CREDENTIALS_CONSUME: &str = "consume.json";

/// On a `Peer` that borrows: SHA-256 of the public keys its certificates were last issued for, comma-separated.
pub const CONSUMER_KEYS: &str = "liquid.mesh/consumer-keys";

/// On a `Peer` that borrows, and on namespaces that it has here: SHA-256 of the public key of its certificate authority, by which
/// the cluster is known again.
pub const CONSUMER_AUTHORITY: &str = "liquid.mesh/consumer-authority";

/// Annotation on a namespace that is kept for the claims in it: the UID of the `Peer` that may have it, by the word of whoever
/// runs the provider.
pub const RELEASED_TO: &str = "liquid.mesh/released-to";

/// On Secrets that hold a join token's digest (provider side).
pub const JOIN_TOKEN: &str = "liquid.mesh/join-token";

/// On the pod of `liquid-controller` that leads; the Services of the peer link and webhook select it.
pub const LEADER: &str = "liquid.mesh/leader";

/// Keeps a `Peer` until the consumer half has given back what it borrowed.
pub const FINALIZER_CONSUME: &str = "liquid.mesh/consume";
/// Keeps a `Peer` until the provider half has removed what it ran for the consumer.
pub const FINALIZER_LEND: &str = "liquid.mesh/lend";
/// Keeps a `VirtualNode` until its pods are gone and its Node is deleted.
pub const FINALIZER_NODE: &str = "liquid.mesh/node";
/// Keeps a `NamespaceOffloading` until its pods and remote namespaces are gone.
pub const FINALIZER_OFFLOADING: &str = "liquid.mesh/offloading";

/// The one name a `NamespaceOffloading` may have in its namespace.
pub const OFFLOADING_NAME: &str = "offloading";

/// ConfigMap in Liquid's namespace in which the controller publishes what a peer needs to know of this cluster.
pub const CLUSTER_INFO: &str = "liquid-cluster-info";

/// Secret in Liquid's namespace with the private keys of the gateways, each under the name of its pod.
pub const GATEWAY_KEYS: &str = "liquid-gateway-keys";
/// What entries of Secret [`GATEWAY_KEYS`] begin with that are not of gateways: with the name of a peer behind it, it is the
/// private key by which this cluster is known to the peer's gateways before it has joined it. No gateway is called so: the
/// names of their pods have no dot.
pub const GUEST_KEY: &str = "guest.";
/// ConfigMap in Liquid's namespace that says whom the gateways let in besides peers, so that it can join: an entry for each
/// join token that is for use through a tunnel.
pub const GATEWAY_GUESTS: &str = "liquid-gateway-guests";

/// ConfigMap with the addresses of this cluster's pods in peers, between which its gateways pass packets on; and its entry.
pub const GATEWAY_TRANSIT: &str = "liquid-gateway-transit";
/// The addresses, separated by spaces.
pub const TRANSIT_PODS: &str = "pods";
/// Key in it: addresses of pods in peers that reach hosts outside of this cluster.
pub const OUTWARD_PODS: &str = "outward";
/// On everything of Liquid's chart: which process it is of.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT`] on the gateways' pods and Services.
pub const COMPONENT_GATEWAY: &str = "gateway";
/// Values of [`COMPONENT`] on the pods that have links to peers.
pub const COMPONENTS_WITH_LINKS: [&str; 2] = ["controller", "kubelet"];
/// Service in front of the link endpoint, made by the chart.
pub const LINK_SERVICE: &str = "liquid-link";

/// Annotation on a `Peer` that is being deleted: do not wait for the other cluster, it is gone for good. Its value is
/// the UID of the `Peer`, so that it cannot be set by copying a manifest.
pub const FORGET: &str = "liquid.mesh/forget";

/// Secret with the client certificate for the link to the peer of this name.
pub fn credentials_secret(peer: &str) -> String {
    format!("liquid-peer-{peer}")
}
