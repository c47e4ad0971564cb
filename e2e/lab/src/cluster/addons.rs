//! What every cluster with nodes gets: DNS, and a default StorageClass; and what some get on demand.

use serde_json::{Value, json};

use crate::build::images;
use crate::plan::address::ClusterPlan;

/// Deployments that make up the add-ons, as namespace and name.
pub(crate) const DEPLOYMENTS: [(&str, &str); 2] =
    [("kube-system", "coredns"), ("local-path-storage", "local-path-provisioner")];

/// Names outside the cluster do not exist in a lab: saying so at once beats a timeout.
const COREFILE: &str = "cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 30
    }
    prometheus :9153
    cache 30
    reload
    loadbalance
}
.:53 {
    errors
    template ANY ANY . {
        rcode NXDOMAIN
    }
}
";
const SET_UP: &str = "#!/bin/sh\nset -eu\nmkdir -m 0777 -p \"$VOL_DIR\"\n";
const TEAR_DOWN: &str = "#!/bin/sh\nset -eu\nrm -rf \"$VOL_DIR\"\n";

/// All objects, in an order in which they can be created.
pub(crate) fn objects(plan: &ClusterPlan) -> Vec<Value> {
    let mut all = dns(plan);
    all.extend(storage());
    all
}

/// metrics-server, as its own manifests install it; kubelets are verified by the cluster's authority. Objects in an
/// order in which they can be created, the Deployment last.
pub(crate) fn metrics_server() -> Vec<Value> {
    let (namespace, name) = ("kube-system", "metrics-server");
    let account = json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace });
    let labels = json!({ "k8s-app": name });
    let read = json!(["get", "list", "watch"]);
    let rules = json!([
        { "apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"] },
        { "apiGroups": [""], "resources": ["pods", "nodes"], "verbs": read },
    ]);
    let pod = json!({
        "serviceAccountName": name,
        "containers": [{
            "name": name,
            "image": images::METRICS_SERVER,
            "args": [
                "--cert-dir=/tmp",
                "--secure-port=10250",
                "--kubelet-preferred-address-types=InternalIP",
                "--kubelet-use-node-status-port",
                "--kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
                // The shortest it takes.
                "--metric-resolution=15s",
            ],
            "ports": [{ "name": "https", "containerPort": 10250 }],
            "readinessProbe": {
                "httpGet": { "path": "/readyz", "port": "https", "scheme": "HTTPS" }, "periodSeconds": 1,
            },
        }],
    });
    let rbac = "rbac.authorization.k8s.io/v1";
    vec![
        object("v1", "ServiceAccount", name, Some(namespace), json!({})),
        object(rbac, "ClusterRole", "system:metrics-server", None, json!({ "rules": rules })),
        binding("ClusterRoleBinding", "system:metrics-server", None, "ClusterRole", &account),
        named_binding(
            "ClusterRoleBinding",
            "metrics-server:system:auth-delegator",
            None,
            ("ClusterRole", "system:auth-delegator"),
            &account,
        ),
        named_binding(
            "RoleBinding",
            "metrics-server-auth-reader",
            Some(namespace),
            ("Role", "extension-apiserver-authentication-reader"),
            &account,
        ),
        object(
            "v1",
            "Service",
            name,
            Some(namespace),
            json!({ "spec": { "selector": labels, "ports": [{ "port": 443, "targetPort": "https" }] } }),
        ),
        object(
            "apiregistration.k8s.io/v1",
            "APIService",
            "v1beta1.metrics.k8s.io",
            None,
            json!({ "spec": {
                "service": { "name": name, "namespace": namespace },
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "insecureSkipTLSVerify": true,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            }}),
        ),
        deployment(namespace, name, &labels, &pod),
    ]
}

/// The DaemonSet that enforces NetworkPolicies.
pub(crate) const NETWORK_POLICIES: &str = "network-policies";
/// Where it is in its API.
pub(crate) const NETWORK_POLICIES_PATH: &str = "/namespaces/kube-system/daemonsets/network-policies";

/// What enforces NetworkPolicies on every node. Objects in an order in which they can be created.
pub(crate) fn network_policies() -> Vec<Value> {
    let (namespace, name) = ("kube-system", NETWORK_POLICIES);
    let account = json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace });
    let labels = json!({ "k8s-app": name });
    let rules = json!([
        { "apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"] },
        { "apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"] },
    ]);
    let pod = json!({
        "serviceAccountName": name,
        "hostNetwork": true,
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": name,
            "image": images::NETWORK_POLICIES,
            "env": [{ "name": "NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }],
            "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } },
        }],
        // Virtual nodes have no packets.
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "liquid.mesh/type", "operator": "DoesNotExist" }] },
        ]}}},
    });
    vec![
        object("v1", "ServiceAccount", name, Some(namespace), json!({})),
        object("rbac.authorization.k8s.io/v1", "ClusterRole", name, None, json!({ "rules": rules })),
        binding("ClusterRoleBinding", name, None, "ClusterRole", &account),
        object(
            "apps/v1",
            "DaemonSet",
            name,
            Some(namespace),
            json!({ "spec": {
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod },
            }}),
        ),
    ]
}

fn dns(plan: &ClusterPlan) -> Vec<Value> {
    let account = json!({ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" });
    let labels = json!({ "k8s-app": "kube-dns" });
    let port = |name: &str, port: u16, protocol: &str| json!({ "name": name, "port": port, "targetPort": port, "protocol": protocol });
    let rules = json!([
        { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"],
          "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ]);
    let pod = json!({
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        // DNS comes up while the node does.
        "tolerations": [{ "operator": "Exists", "effect": "NoSchedule", "key": "node.kubernetes.io/not-ready" }],
        "containers": [{
            "name": "coredns",
            "image": images::COREDNS,
            "args": ["-conf", "/etc/coredns/Corefile"],
            "ports": [
                { "containerPort": 53, "protocol": "UDP" },
                { "containerPort": 53, "protocol": "TCP" },
                { "containerPort": 9153, "protocol": "TCP" },
            ],
            "resources": { "requests": { "cpu": "10m", "memory": "32Mi" } },
            "readinessProbe": { "httpGet": { "path": "/ready", "port": 8181 }, "periodSeconds": 1 },
            "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns", "readOnly": true }],
        }],
        "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
    });
    vec![
        object("v1", "ServiceAccount", "coredns", Some("kube-system"), json!({})),
        object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "system:coredns",
            None,
            json!({ "rules": rules }),
        ),
        binding("ClusterRoleBinding", "system:coredns", None, "ClusterRole", &account),
        object(
            "v1",
            "ConfigMap",
            "coredns",
            Some("kube-system"),
            json!({ "data": { "Corefile": COREFILE } }),
        ),
        object(
            "v1",
            "Service",
            "kube-dns",
            Some("kube-system"),
            json!({ "spec": {
                "clusterIP": plan.dns_service,
                "selector": labels,
                "ports": [port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP"), port("metrics", 9153, "TCP")],
            }}),
        ),
        deployment("kube-system", "coredns", &labels, &pod),
    ]
}

fn storage() -> Vec<Value> {
    let (namespace, name) = ("local-path-storage", "local-path-provisioner");
    let account = json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace });
    let all = json!(["get", "list", "watch", "create", "patch", "update", "delete"]);
    let cluster_rules = json!([
        { "apiGroups": [""], "resources": ["nodes", "persistentvolumeclaims", "configmaps", "pods", "pods/log"],
          "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["persistentvolumes"], "verbs": all },
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"] },
        { "apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "watch"] },
    ]);
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": all }]);
    let helper = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "helper-pod" },
        "spec": {
            "priorityClassName": "system-node-critical",
            "containers": [{
                "name": "helper-pod", "image": images::BUSYBOX, "imagePullPolicy": "IfNotPresent",
            }],
        },
    });
    let paths = json!({ "nodePathMap": [{
        "node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["/opt/local-path-provisioner"],
    }]});
    let config = json!({ "data": {
        "config.json": paths.to_string(),
        "setup": SET_UP,
        "teardown": TEAR_DOWN,
        "helperPod.yaml": helper.to_string(),
    }});
    let pod = json!({
        "serviceAccountName": name,
        "containers": [{
            "name": name,
            "image": images::LOCAL_PATH_PROVISIONER,
            "command": [
                "local-path-provisioner", "start", "--config", "/etc/config/config.json",
                "--service-account-name", name,
            ],
            "env": [
                { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                { "name": "CONFIG_MOUNT_PATH", "value": "/etc/config/" },
            ],
            "volumeMounts": [{ "name": "config", "mountPath": "/etc/config/" }],
        }],
        "volumes": [{ "name": "config", "configMap": { "name": "local-path-config" } }],
    });
    let rbac = "rbac.authorization.k8s.io/v1";
    let mut class = object(
        "storage.k8s.io/v1",
        "StorageClass",
        "local-path",
        None,
        json!({
            "provisioner": "rancher.io/local-path",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        }),
    );
    class["metadata"]["annotations"] = json!({ "storageclass.kubernetes.io/is-default-class": "true" });
    vec![
        object("v1", "Namespace", namespace, None, json!({})),
        object("v1", "ServiceAccount", name, Some(namespace), json!({})),
        object(rbac, "Role", name, Some(namespace), json!({ "rules": rules })),
        object(rbac, "ClusterRole", name, None, json!({ "rules": cluster_rules })),
        binding("RoleBinding", name, Some(namespace), "Role", &account),
        binding("ClusterRoleBinding", name, None, "ClusterRole", &account),
        object("v1", "ConfigMap", "local-path-config", Some(namespace), config),
        class,
        deployment(namespace, name, &json!({ "app": name }), &pod),
    ]
}

fn object(version: &str, kind: &str, name: &str, namespace: Option<&str>, body: Value) -> Value {
    let mut object = body;
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    object["metadata"] = json!({ "name": name });
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

/// A binding of the role of its own name.
fn binding(kind: &str, name: &str, namespace: Option<&str>, role: &str, account: &Value) -> Value {
    named_binding(kind, name, namespace, (role, name), account)
}

fn named_binding(
    kind: &str,
    name: &str,
    namespace: Option<&str>,
    (role_kind, role): (&str, &str),
    account: &Value,
) -> Value {
    let body = json!({
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role },
        "subjects": [account],
    });
    object("rbac.authorization.k8s.io/v1", kind, name, namespace, body)
}

fn deployment(namespace: &str, name: &str, labels: &Value, pod: &Value) -> Value {
    let body = json!({ "spec": {
        "replicas": 1,
        "selector": { "matchLabels": labels },
        "template": { "metadata": { "labels": labels }, "spec": pod },
    }});
    object("apps/v1", "Deployment", name, Some(namespace), body)
}
