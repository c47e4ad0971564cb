//! What pods are made of, on a virtual node: the tables of `docs/pods.md` on real clusters.

use crate::manifests::{FOREVER, drop_namespace, offloaded};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use liquid_crds::ShadowPod;
use liquid_scenarios::{Cluster, Environment, Look, TEST_IMAGE};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// Kubelets look at the files of a pod every minute, or a little later.
const FILES: Duration = Duration::from_secs(150);

/// A container that runs `script`.
fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

/// The spec of a pod that must run on a virtual node, with the fields of `more`.
fn spec(more: Value) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "nodeSelector": {"liquid.mesh/type": "virtual-node"},
    });
    merge(&mut spec, more);
    spec
}

fn merge(into: &mut Value, fields: Value) {
    let (Value::Object(into), Value::Object(fields)) = (into, fields) else { panic!("objects") };
    into.extend(fields);
}

/// A pod that must run on a virtual node, with a label that names it.
fn pod(name: &str, more: Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"note": "say \"hi\""}},
        "spec": spec(more),
    })
    .to_string()
}

/// The pod, as soon as `look` is true of it.
async fn pod_when(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    what: &str,
    look: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    cluster
        .wait(&format!("{name}: {what}"), SOON, || async {
            let Some(pod) = pods.get_opt(name).await? else {
                return Ok(Look::NotYet("no such pod".to_owned()));
            };
            let pod = serde_json::to_value(pod)?;
            Ok(if look(&pod) { Look::Done(pod) } else { Look::NotYet(pod["status"].to_string()) })
        })
        .await
}

fn condition<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|it| it["type"] == name)).unwrap_or(&Value::Null)
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready")["status"] == "True"
}

/// Would catch: applications that are told the names of another cluster, and files that do not follow a label.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_pod_reads_of_itself_what_it_is_at_home() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "downward").await?;
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let mut main = container("main", &format!("env | grep ^MY_; {FOREVER}"));
    main["env"] = json!([
        {"name": "MY_NAME", "valueFrom": field("metadata.name")},
        {"name": "MY_NAMESPACE", "valueFrom": field("metadata.namespace")},
        {"name": "MY_UID", "valueFrom": field("metadata.uid")},
        {"name": "MY_APP", "valueFrom": field("metadata.labels['app']")},
        {"name": "MY_NODE", "valueFrom": field("spec.nodeName")},
        {"name": "MY_ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
        {"name": "MY_URL", "value": "http://$(MY_NAME).$(MY_NAMESPACE)"},
    ]);
    main["volumeMounts"] = json!([{"name": "info", "mountPath": "/info"}]);
    let file = |path: &str, of: &str| json!({"path": path, "fieldRef": {"fieldPath": of}});
    let items = json!([
        file("namespace", "metadata.namespace"),
        file("labels", "metadata.labels"),
        file("annotations", "metadata.annotations"),
    ]);
    let volumes = json!([{"name": "info", "projected": {"sources": [{"downwardAPI": {"items": items}}]}}]);
    home.apply("downward", &pod("self", json!({"containers": [main], "volumes": volumes}))).await?;
    let running = pod_when(home, "downward", "self", "ready", is_ready).await?;

    let logs = home.kubectl.run(["logs", "-n", "downward", "self"]).await?.ok()?;
    let uid = running["metadata"]["uid"].as_str().unwrap();
    for expected in [
        "MY_NAME=self",
        "MY_NAMESPACE=downward",
        &format!("MY_UID={uid}"),
        "MY_APP=self",
        "MY_NODE=liquid-provider",
        "MY_ACCOUNT=default",
        "MY_URL=http://self.downward",
    ] {
        assert!(logs.lines().any(|line| line == expected), "{expected} is not in {logs}");
    }
    let read = |name: &'static str| async move {
        let path = format!("/info/{name}");
        home.kubectl.run(["exec", "-n", "downward", "self", "--", "cat", &path]).await?.ok()
    };
    assert_eq!(read("namespace").await?, "downward");
    assert_eq!(read("labels").await?, "app=\"self\"");
    let annotations = read("annotations").await?;
    assert!(annotations.contains("note=\"say \\\"hi\\\"\""), "{annotations}");
    let ours = |line: &str| line.split('=').next().is_some_and(|key| key.contains("liquid.mesh"));
    assert!(!annotations.lines().any(ours), "{annotations}");

    home.kubectl.run(["label", "-n", "downward", "pod/self", "tier=front"]).await?.ok()?;
    home.wait("the file follows the label", FILES, || async {
        let labels = read("labels").await?;
        let expected = "app=\"self\"\ntier=\"front\"";
        Ok(if labels == expected { Look::Done(()) } else { Look::NotYet(labels) })
    })
    .await?;
    drop_namespace(home, "downward").await
}

/// Would catch: init containers, sidecars, probes and hooks that are lost on the way, or whose states are not shown.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn init_containers_sidecars_probes_and_hooks_work() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "parts").await?;
    let mounts = json!([{"name": "shared", "mountPath": "/shared"}]);
    let mut init = container("init", "echo init >> /shared/order");
    let mut sidecar =
        container("sidecar", &format!("echo sidecar >> /shared/order; touch /shared/up; {FOREVER}"));
    merge(
        &mut sidecar,
        json!({
            "restartPolicy": "Always",
            "startupProbe": {"exec": {"command": ["test", "-e", "/shared/up"]}, "periodSeconds": 1, "failureThreshold": 30},
        }),
    );
    let mut main = container("main", &format!("echo main >> /shared/order; {FOREVER}"));
    merge(
        &mut main,
        json!({
            "readinessProbe": {"exec": {"command": ["test", "-e", "/shared/ready"]}, "periodSeconds": 1},
            "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo hook >> /shared/order"]}}},
        "securityContext": {"allowPrivilegeEscalation": false},
        }),
    );
    for container in [&mut init, &mut sidecar, &mut main] {
        container["volumeMounts"] = mounts.clone();
    }
    let manifest = pod(
        "parts",
        json!({
            "initContainers": [init, sidecar], "containers": [main],
            "securityContext": {"runAsUser": 1234, "fsGroup": 1234},
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "hostname": "chosen", "subdomain": "group",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["elsewhere.example"]}],
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["example"]},
        }),
    );
    home.apply("parts", &manifest).await?;
    let started = pod_when(home, "parts", "parts", "running, not ready", |pod| {
        pod["status"]["containerStatuses"][0]["started"] == true
            && condition(pod, "Ready")["status"] == "False"
    })
    .await?;
    let inits = started["status"]["initContainerStatuses"].as_array().unwrap();
    assert_eq!(inits[0]["state"]["terminated"]["exitCode"], 0, "{inits:?}");
    assert!(inits[1]["state"]["running"].is_object() && inits[1]["started"] == true, "{inits:?}");
    let run = |script: &'static str| async move {
        home.kubectl.run(["exec", "-n", "parts", "parts", "-c", "main", "--", "sh", "-c", script]).await?.ok()
    };
    let order = run("cat /shared/order").await?;
    let order: Vec<_> = order.lines().collect();
    assert_eq!(order[..2], ["init", "sidecar"]);
    assert!(order.contains(&"main") && order.contains(&"hook"), "{order:?}");
    assert_eq!(run("id -u; hostname").await?, "1234\nchosen\n");
    let files = run("cat /etc/hosts /etc/resolv.conf").await?;
    assert!(files.contains("elsewhere.example") && files.contains("nameserver 192.0.2.53"), "{files}");

    run("touch /shared/ready").await?;
    let ready = pod_when(home, "parts", "parts", "ready", is_ready).await?;
    assert_eq!(condition(&ready, "Ready").get("reason"), None, "the reason why it was not ready is gone");
    drop_namespace(home, "parts").await
}

/// Would catch: pods behind readiness gates that never become ready, or are ready without them (as with load balancers
/// whose controllers run at home).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn readiness_gates_are_opened_at_home() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "gates").await?;
    let gates = json!([{"conditionType": "example.org/gate"}]);
    let manifest = pod("gated", json!({"containers": [container("main", FOREVER)], "readinessGates": gates}));
    home.apply("gates", &manifest).await?;
    let closed = pod_when(home, "gates", "gated", "containers ready", |pod| {
        condition(pod, "ContainersReady")["status"] == "True"
    })
    .await?;
    assert_eq!(condition(&closed, "Ready")["reason"], "ReadinessGatesNotReady", "{}", closed["status"]);
    assert_eq!(condition(&closed, "liquid.mesh/ReadyInProvider")["status"], "True");
    pod_when(provider, "gates-home", "gated", "ready in the provider", is_ready).await?;
    for (gate, ready) in [("True", "True"), ("False", "False"), ("True", "True")] {
        let patch =
            json!({"status": {"conditions": [{"type": "example.org/gate", "status": gate}]}}).to_string();
        let patch =
            ["patch", "-n", "gates", "pod/gated", "--subresource=status", "--type=strategic", "-p", &patch];
        home.kubectl.run(patch).await?.ok()?;
        pod_when(home, "gates", "gated", &format!("gate {gate}"), |pod| {
            condition(pod, "Ready")["status"] == ready
        })
        .await?;
    }
    drop_namespace(home, "gates").await
}

/// Would catch: restart counts that begin anew when the provider replaces a pod, or count a replacement twice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn restart_counts_go_on_when_the_provider_replaces_a_pod() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "restarts").await?;
    // Fails once in each of its lives.
    let mut main =
        container("main", &format!("test -e /memory/x || {{ touch /memory/x; exit 1; }}; {FOREVER}"));
    main["volumeMounts"] = json!([{"name": "memory", "mountPath": "/memory"}]);
    let manifest =
        pod("main", json!({"containers": [main], "volumes": [{"name": "memory", "emptyDir": {}}]}));
    home.apply("restarts", &manifest).await?;
    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "restarts-home");
    for expected in [1, 3, 5] {
        let running = pod_when(home, "restarts", "main", &format!("{expected} restarts"), |pod| {
            is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(expected)
        })
        .await?;
        assert_eq!(running["status"]["containerStatuses"][0]["restartCount"], expected);
        if expected == 3 {
            // Whoever counts is replaced too.
            let restart = ["rollout", "restart", "-n", "liquid-system", "deployment/liquid-kubelet"];
            home.kubectl.run(restart).await?.ok()?;
        }
        remote.delete("main", &DeleteParams::default()).await?;
    }
    let rolled = ["rollout", "status", "-n", "liquid-system", "deployment/liquid-kubelet", "--timeout=60s"];
    home.kubectl.run(rolled).await?.ok()?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    drop_namespace(home, "restarts").await
}

/// Would catch: Jobs that never finish, deadlines that do not count or are not told of later, StatefulSets whose pods change their names or exist
/// twice, and DaemonSets that flood virtual nodes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn jobs_stateful_sets_and_daemon_sets_work() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "owners").await?;
    let metadata = |name: &str| json!({"name": name});
    let template =
        |name: &str, more: Value| json!({"metadata": {"labels": {"app": name}}, "spec": spec(more)});
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("job"),
        "spec": {
            "completions": 3, "parallelism": 2, "backoffLimit": 0,
            "template": template("job", json!({"restartPolicy": "Never", "containers": [container("main", "exit 0")]})),
        },
    });
    home.apply("owners", &job.to_string()).await?;
    home.kubectl
        .run(["wait", "-n", "owners", "job/job", "--for=condition=Complete", "--timeout=60s"])
        .await?
        .ok()?;

    let late = json!({"restartPolicy": "Never", "activeDeadlineSeconds": 3, "containers": [container("main", FOREVER)]});
    home.apply("owners", &pod("late", late)).await?;
    let late = pod_when(home, "owners", "late", "failed", |pod| pod["status"]["phase"] == "Failed").await?;
    assert_eq!(late["status"]["reason"], "DeadlineExceeded");

    home.apply("owners", &pod("cut-short", json!({"containers": [container("main", FOREVER)]}))).await?;
    pod_when(home, "owners", "cut-short", "ready", is_ready).await?;
    let patch = r#"{"spec": {"activeDeadlineSeconds": 1}}"#;
    home.kubectl.run(["patch", "-n", "owners", "pod/cut-short", "-p", patch]).await?.ok()?;
    let cut =
        pod_when(home, "owners", "cut-short", "failed", |pod| pod["status"]["phase"] == "Failed").await?;
    assert_eq!(cut["status"]["reason"], "DeadlineExceeded", "what changes in a running pod changes there");

    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata("db"),
        "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": template("db", json!({"containers": [container("main", FOREVER)]})),
        },
    });
    home.apply("owners", &set.to_string()).await?;
    let first = pod_when(home, "owners", "db-0", "ready", is_ready).await?;
    pod_when(home, "owners", "db-1", "ready", is_ready).await?;
    home.kubectl.run(["delete", "-n", "owners", "pod/db-0", "--wait=false"]).await?.ok()?;
    let second = pod_when(home, "owners", "db-0", "ready again", |pod| {
        pod["metadata"]["uid"] != first["metadata"]["uid"] && is_ready(pod)
    })
    .await?;
    let there = pod_when(provider, "owners-home", "db-0", "ready", is_ready).await?;
    assert_eq!(there["metadata"]["labels"]["liquid.mesh/origin-uid"], second["metadata"]["uid"]);
    assert_eq!(provider.pods("owners-home", "app=db").await?.len(), 2);

    let set = |name: &str, tolerations: Value| {
        let containers = json!([container("main", FOREVER)]);
        let spec =
            json!({"terminationGracePeriodSeconds": 1, "tolerations": tolerations, "containers": containers});
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata(name),
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
            },
        })
        .to_string()
    };
    home.apply("owners", &set("kept-off", json!([]))).await?;
    home.apply("owners", &set("invited", json!([{"key": "liquid.mesh/virtual-node", "operator": "Exists"}])))
        .await?;
    let on_virtual = |app: &'static str| async move {
        let pods = home.pods("owners", app).await?;
        let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        anyhow::Ok(pods.iter().filter(|pod| node(pod).as_deref() == Some("liquid-provider")).count())
    };
    home.wait("the invited one is there", SOON, || async {
        let count = on_virtual("app=invited").await?;
        Ok(if count == 1 { Look::Done(()) } else { Look::NotYet(format!("{count} pods")) })
    })
    .await?;
    provider.wait_for_pods("owners-home", "app=invited", 1, SOON).await?;
    assert_eq!(on_virtual("app=kept-off").await?, 0);
    drop_namespace(home, "owners").await
}

/// Would catch: pods that are gone at home and live on in the provider, and those that get no time to end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn deletion_keeps_its_grace_and_force_does_not_wait() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "grace").await?;
    let mut polite = container("main", FOREVER);
    polite["lifecycle"] = json!({"preStop": {"exec": {"command": ["sleep", "3"]}}});
    let deaf = container("main", "trap '' TERM; while :; do sleep 1; done");
    for (name, container) in [("polite", polite), ("deaf", deaf)] {
        let more = json!({"terminationGracePeriodSeconds": 30, "containers": [container]});
        home.apply("grace", &pod(name, more)).await?;
        pod_when(home, "grace", name, "ready", is_ready).await?;
    }
    let before = std::time::Instant::now();
    home.kubectl.run(["delete", "-n", "grace", "pod/polite"]).await?.ok()?;
    let took = before.elapsed();
    assert!(
        (3..20).contains(&took.as_secs()),
        "{took:?}: the hook was cut short, or the pod killed after its grace"
    );
    let before = std::time::Instant::now();
    home.kubectl.run(["delete", "-n", "grace", "pod/deaf", "--force", "--grace-period=0"]).await?.ok()?;
    provider.wait_for_pods("grace-home", "app=deaf", 0, Duration::from_secs(15)).await?;
    println!("forced deletion: {:?} until nothing is left in the provider", before.elapsed());
    drop_namespace(home, "grace").await
}

/// Would catch: pods that wait in the provider for ever because of nodes, zones or classes that only home has.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_only_home_can_fulfil_keeps_no_pod_waiting_in_the_provider() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "placed").await?;
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "urgent-at-home"}, "value": 77,
    });
    home.apply("placed", &class.to_string()).await?;
    let selector = json!({"matchLabels": {"app": "placed"}});
    let term = |topology: &str| json!({"topologyKey": topology, "labelSelector": selector});
    let weighted = json!([{"weight": 5, "podAffinityTerm": term("topology.kubernetes.io/zone")}]);
    let spread = |topology: &str, when: &str| json!({"topologyKey": topology, "maxSkew": 1, "whenUnsatisfiable": when, "labelSelector": {}, "matchLabelKeys": ["app"]});
    let manifest = pod(
        "placed",
        json!({
            "containers": [container("main", FOREVER)],
            "priorityClassName": "urgent-at-home",
            "nodeSelector": {"liquid.mesh/type": "virtual-node", "kubernetes.io/os": "linux"},
            "affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term("kubernetes.io/hostname"), term("liquid.mesh/peer")],
                "preferredDuringSchedulingIgnoredDuringExecution": weighted,
            }},
            "topologySpreadConstraints": [
                spread("kubernetes.io/hostname", "DoNotSchedule"), spread("liquid.mesh/peer", "DoNotSchedule"),
            ],
        }),
    );
    home.apply("placed", &manifest).await?;
    let at_home = pod_when(home, "placed", "placed", "ready", is_ready).await?;
    assert_eq!(at_home["spec"]["priority"], 77);
    let there = pod_when(provider, "placed-home", "placed", "ready", is_ready).await?;
    let spec = &there["spec"];
    assert_eq!(spec["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    let required = &spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(required.as_array().map(Vec::len), Some(1), "{spec}");
    let spread = spec["topologySpreadConstraints"].as_array().unwrap();
    assert_eq!(spread.len(), 1, "{spread:?}");
    let expressions = spread[0]["labelSelector"]["matchExpressions"].as_array().unwrap();
    assert_eq!(*expressions, [json!({"key": "app", "operator": "In", "values": ["placed"]})]);
    assert_eq!(spec["priority"], 0);
    home.kubectl.run(["delete", "priorityclass/urgent-at-home"]).await?.ok()?;
    drop_namespace(home, "placed").await
}

/// Would catch: pods that wait without a word for devices, files or names which the provider cannot give.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_refusal_is_a_condition_and_an_event() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "refusals").await?;
    let main = || json!([container("main", "true")]);
    let volume = |source: Value| {
        let mut volume = json!({"name": "v"});
        merge(&mut volume, source);
        json!({"containers": main(), "volumes": [volume]})
    };
    // Bound by hand: the scheduler would look for the device first.
    let device = json!({
        "nodeName": "liquid-provider", "containers": main(),
        "tolerations": [{"key": "liquid.mesh/virtual-node", "operator": "Exists"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}],
    });
    for (name, more, expected) in [
        ("host-path", volume(json!({"hostPath": {"path": "/etc"}})), "files of nodes at home"),
        ("driver", volume(json!({"csi": {"driver": "csi.example"}})), "csi needs a driver"),
        ("fqdn", json!({"containers": main(), "setHostnameAsFQDN": true}), "setHostnameAsFQDN"),
        ("device", device, "resourceClaims"),
    ] {
        home.apply("refusals", &pod(name, more)).await?;
        let refused = pod_when(home, "refusals", name, "refused", |pod| {
            condition(pod, "liquid.mesh/Refused")["status"] == "True"
        })
        .await?;
        let message = condition(&refused, "liquid.mesh/Refused")["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
        assert_eq!(refused["status"]["message"], message);
        assert_eq!(refused["status"]["reason"], "UnsupportedOnVirtualNode");
        home.wait("event", SOON, || async {
            let events = home.events("refusals").await?;
            Ok(if events.contains(expected) { Look::Done(()) } else { Look::NotYet(events) })
        })
        .await?;
    }
    drop_namespace(home, "refusals").await
}

/// Would catch: two clusters that keep writing to each other when nothing has changed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_has_not_changed_is_not_written() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "quiet").await?;
    home.apply("quiet", &pod("quiet", json!({"containers": [container("main", FOREVER)]}))).await?;
    pod_when(home, "quiet", "quiet", "ready", is_ready).await?;
    pod_when(provider, "quiet-home", "quiet", "ready", is_ready).await?;
    let shadows: Api<ShadowPod> = Api::namespaced(provider.client.clone(), "quiet-home");
    let versions = || async {
        let at_home = pod_when(home, "quiet", "quiet", "there", |_| true).await?;
        let there = pod_when(provider, "quiet-home", "quiet", "there", |_| true).await?;
        let version = |pod: &Value| pod["metadata"]["resourceVersion"].to_string();
        let shadow = shadows.get("quiet").await?.metadata.resource_version;
        anyhow::Ok((version(&at_home), version(&there), shadow))
    };
    // The last status may still be on its way home.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = versions().await?;
    // An event of the pod there that is nobody's business at home.
    provider
        .kubectl
        .run(["annotate", "-n", "quiet-home", "pod/quiet", "seen-by=administrator"])
        .await?
        .ok()?;
    let annotated = versions().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = versions().await?;
    assert_ne!(before.1, annotated.1, "the annotation was written");
    assert_eq!((before.0, annotated.1, before.2), after);
    drop_namespace(home, "quiet").await
}
