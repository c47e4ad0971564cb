//! What workloads may expect of the lab's clusters, on both stacks.

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use liquid_lab::{Cluster, images};
use serde_json::json;

use crate::support::{
    TestLab, client, create, eventually, field, kubectl, pod, server, service, try_shell, wait_ready,
};

#[test]
#[ignore = "starts a lab: needs root"]
fn clusters_of_both_stacks_run_workloads_and_are_apart() {
    let options =
        "--clusters a,b --nodes 2 --pod-cidr asymmetric --ip-families dual --stack b=bridge/iptables";
    let test = TestLab::up("t-work", options);
    let lab = test.open();
    let clusters: Vec<Cluster<'_>> = lab.clusters().collect();
    for cluster in &clusters {
        let node = |number: u8| format!("{}-{number}", cluster.name());
        create(cluster, &server("near", &node(1)));
        create(cluster, &server("far", &node(2)));
        create(cluster, &client("client", &node(1)));
        create(cluster, &service("near", "ClusterIP"));
        create(cluster, &service("far", "NodePort"));
    }
    for cluster in &clusters {
        for name in ["pod/near", "pod/far", "pod/client"] {
            wait_ready(cluster, name);
        }
        check_inside(cluster);
        check_webhook(cluster);
        check_storage(cluster);
        check_pull(cluster);
    }
    check_across(&clusters[0], &clusters[1]);
    check_across(&clusters[1], &clusters[0]);
    check_privileged(&clusters[0]);
}

/// Logs, exec, DNS, Services, and the way from the control plane to pods.
fn check_inside(cluster: &Cluster<'_>) {
    let name = cluster.name();
    assert!(kubectl(cluster, &["logs", "near"]).contains("Started HTTP server"), "{name}");
    check_families(cluster);
    // A pod must be reachable through the Service in front of it from itself (hairpin).
    let address = field(cluster, "service/near", ".spec.clusterIP");
    assert!(
        try_shell(cluster, "near", &format!("wget -qO- http://{address}/hostname")).is_some(),
        "{name}: hairpin"
    );
    assert!(try_shell(cluster, "client", "nslookup no-such-name.example.com").is_none());

    // The API server itself connects to these.
    for path in ["pods/far:8080", "services/far:80"] {
        let path = format!("/api/v1/namespaces/default/{path}/proxy/hostname");
        assert_eq!(kubectl(cluster, &["get", "--raw", &path]), "far", "{name}: {path}");
    }
}

/// Pods of both nodes and the Services in front of them, by name and by the addresses of both families.
fn check_families(cluster: &Cluster<'_>) {
    let name = cluster.name();
    for target in ["near", "far"] {
        let by_name = format!("wget -qO- http://{target}.default.svc.cluster.local/hostname");
        let said = eventually(&format!("{name}: Service {target} answering"), || {
            try_shell(cluster, "client", &by_name)
        });
        assert_eq!(said, target, "{name}");
        for family in [0, 1] {
            let address = |object: &str, path: &str| {
                let address = field(cluster, object, path);
                if family == 0 { address } else { format!("[{address}]") }
            };
            let of_pod = format!(".status.podIPs[{family}].ip");
            let own = address("pod/client", &of_pod);
            let pod = address(&format!("pod/{target}"), &of_pod);
            let service = address(&format!("service/{target}"), &format!(".spec.clusterIPs[{family}]"));
            for place in [format!("{pod}:8080"), service] {
                let from = eventually(&format!("{name}: {place} answering"), || {
                    try_shell(cluster, "client", &format!("wget -qO- http://{place}/clientip"))
                });
                assert!(from.starts_with(&format!("{own}:")), "{name}: {target} sees {from}, and not {own}");
            }
        }
        let addresses = field(cluster, &format!("service/{target}"), ".spec.clusterIPs[*]");
        let resolved = try_shell(cluster, "client", &format!("nslookup {target}.default.svc.cluster.local"))
            .unwrap_or_default();
        let all = addresses.split(' ').all(|address| resolved.contains(address));
        assert!(all, "{name}: {target} is at {addresses}, and said to be at {resolved}");
    }
}

/// The API server asks an admission webhook behind a Service, without a kube-proxy of its own.
fn check_webhook(cluster: &Cluster<'_>) {
    let names = vec!["webhook.default.svc".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
    create(
        cluster,
        &json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "webhook" },
            "data": { "tls.crt": cert.pem(), "tls.key": signing_key.serialize_pem() },
        }),
    );
    let command = [
        "/agnhost",
        "webhook",
        "--port=8080",
        "--tls-cert-file=/tls/tls.crt",
        "--tls-private-key-file=/tls/tls.key",
    ];
    let mut webhook = pod("webhook", &format!("{}-2", cluster.name()), &command);
    webhook["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "tls", "mountPath": "/tls" }]);
    webhook["spec"]["volumes"] = json!([{ "name": "tls", "configMap": { "name": "webhook" } }]);
    create(cluster, &webhook);
    create(cluster, &service("webhook", "ClusterIP"));
    wait_ready(cluster, "pod/webhook");
    create(
        cluster,
        &json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": "deny" },
            "webhooks": [{
                "name": "deny.lab.local",
                "clientConfig": {
                    "service": { "namespace": "default", "name": "webhook", "port": 80, "path": "/always-deny" },
                    "caBundle": BASE64_STANDARD.encode(cert.pem()),
                },
                "rules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"],
                }],
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 2,
            }],
        }),
    );
    eventually("a refusal by the webhook", || {
        let output = cluster
            .kubectl()
            .args(["create", "secret", "generic", "refused", "--dry-run=server"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).contains("denied the request").then_some(())
    });
    kubectl(cluster, &["delete", "validatingwebhookconfiguration", "deny"]);
}

/// A claim without a class gets a writable volume from the default one.
fn check_storage(cluster: &Cluster<'_>) {
    create(
        cluster,
        &json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": "data" },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } },
        }),
    );
    create(
        cluster,
        &json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "writer" },
            "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "c",
                    "image": images::BUSYBOX,
                    "command": ["sh", "-c", "echo kept > /data/file && cat /data/file"],
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                }],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }],
            },
        }),
    );
    kubectl(cluster, &["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s", "pod/writer"]);
    assert_eq!(kubectl(cluster, &["logs", "writer"]).trim(), "kept");
    assert_eq!(field(cluster, "pvc/data", ".status.phase"), "Bound");
}

/// An image that is not there fails at once and visibly: nothing is ever pulled.
fn check_pull(cluster: &Cluster<'_>) {
    let mut missing = pod("missing", &format!("{}-1", cluster.name()), &["true"]);
    missing["spec"]["containers"][0]["image"] = json!("lab.local/missing:1");
    create(cluster, &missing);
    eventually("the failed pull", || {
        let reason = field(cluster, "pod/missing", ".status.containerStatuses[0].state.waiting.reason");
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()).then_some(())
    });
}

/// From one cluster to another: pod addresses lead nowhere, nodes can be reached.
fn check_across(from: &Cluster<'_>, to: &Cluster<'_>) {
    let port = field(to, "service/far", ".spec.ports[0].nodePort");
    let node = &to.nodes()[0];
    let bracketed = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    for (at, node) in node.addresses().iter().enumerate() {
        let node = bracketed(*node);
        let far = field(to, "pod/far", &format!(".status.podIPs[{at}].ip"));
        let far = bracketed(far.parse().expect("an address"));
        let connect = format!("/agnhost connect {far}:8080 --timeout=2s");
        assert!(
            try_shell(from, "client", &connect).is_none(),
            "{far} of {} answers from {}",
            to.name(),
            from.name()
        );
        let seen = try_shell(from, "client", &format!("wget -qO- http://{node}:{port}/hostname"));
        assert_eq!(seen.as_deref(), Some("far"), "NodePort {node} of {} from {}", to.name(), from.name());
    }
}

/// A privileged pod on the host network has the node's network and devices to work with, and no others.
fn check_privileged(cluster: &Cluster<'_>) {
    let node = &cluster.nodes()[0];
    let mut agent = client("agent", node.name());
    agent["spec"]["hostNetwork"] = json!(true);
    agent["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    agent["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "state", "mountPath": "/state" }]);
    agent["spec"]["volumes"] =
        json!([{ "name": "state", "hostPath": { "path": "/var/lib/agent", "type": "DirectoryOrCreate" } }]);
    create(cluster, &agent);
    wait_ready(cluster, "pod/agent");
    assert_eq!(try_shell(cluster, "agent", "hostname").as_deref(), Some(node.name()));
    let links = try_shell(cluster, "agent", "ip -o link").unwrap();
    assert!(links.contains("eth0") && !links.contains("lqlab"), "{links}");
    assert!(try_shell(cluster, "agent", "echo x > /state/file && ls -l /dev/net/tun").is_some());
    assert_eq!(node.exec(&["cat", "/var/lib/agent/file"]).unwrap().trim(), "x");
    assert!(!std::path::Path::new("/var/lib/agent").exists(), "a node wrote to the host's disk");
}
