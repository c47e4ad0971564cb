//! Persistent volumes: where they are made, that they are found again, and that nobody deletes them but their owner.

use crate::manifests::{FOREVER, drop_namespace, offloaded};
use crate::resilience::kill;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::{NamespaceOffloading, Peer};
use liquid_lab::{Cut, Direction};
use liquid_scenarios::{Cluster, Environment, Look, TEST_IMAGE};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);

/// Driver of the volumes that are in another cluster.
const REMOTE: &str = "storage.liquid.mesh";

/// A small database: it counts, each number is on the disk before the next, and it says in a journal where it began.
const DATABASE: &str = "trap exit TERM; echo began at $(cat /data/count 2>/dev/null || echo 0) >> /data/journal; \
    while :; do n=$(( $(cat /data/count 2>/dev/null || echo 0) + 1 )); echo $n > /data/next; sync; mv /data/next /data/count; \
    sync; sleep 0.2 & wait; done";

/// The namespace of the scenario, its claims and volumes.
struct Stage<'a> {
    home: &'a Cluster,
    provider: &'a Cluster,
    namespace: &'static str,
}

impl Stage<'_> {
    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.home.client.clone(), self.namespace)
    }

    /// Claims in the provider.
    fn remote(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.provider.client.clone(), &format!("{}-home", self.namespace))
    }

    async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        self.home.apply(self.namespace, manifest).await
    }

    /// The claim in the provider for one at home.
    async fn counterpart(&self, claim: &str) -> anyhow::Result<Option<PersistentVolumeClaim>> {
        let all = self.remote().list(&ListParams::default()).await?;
        let is = |there: &PersistentVolumeClaim| {
            there.annotations().get("liquid.mesh/origin-name").is_some_and(|name| name == claim)
        };
        Ok(all.into_iter().find(is))
    }

    /// The volume bound to a claim at home.
    async fn volume(&self, claim: &str) -> anyhow::Result<PersistentVolume> {
        let volumes: Api<PersistentVolume> = Api::all(self.home.client.clone());
        self.home
            .wait(&format!("claim {claim} bound"), SOON, || async {
                let claim = self.claims().get(claim).await?;
                let phase = claim.status.and_then(|status| status.phase).unwrap_or_default();
                match claim.spec.and_then(|spec| spec.volume_name).filter(|_| phase == "Bound") {
                    Some(volume) => Ok(Look::Done(volumes.get(&volume).await?)),
                    None => Ok(Look::NotYet(phase)),
                }
            })
            .await
    }

    /// Runs a command in a pod, as its user would.
    async fn exec(&self, pod: &str, script: &str) -> anyhow::Result<String> {
        Ok(self.home.shell(self.namespace, pod, script).await?.ok()?.trim().to_owned())
    }

    async fn ready(&self, pod: &str) -> anyhow::Result<Pod> {
        let pods = self.home.wait_for_pods(self.namespace, &format!("app={pod}"), 1, SOON).await?;
        Ok(pods[0].clone())
    }

    async fn delete_pod(&self, pod: &str) -> anyhow::Result<()> {
        let arguments = ["delete", "pod", "-n", self.namespace, pod, "--timeout=60s"];
        self.home.kubectl.run(arguments).await?.ok()?;
        Ok(())
    }

    /// Waits for an Event of this object with this in its message.
    async fn event(&self, object: &str, part: &str) -> anyhow::Result<()> {
        self.home
            .wait(&format!("an Event of {object} with {part:?}"), SOON, || async {
                let events = self.home.events(self.namespace).await?;
                let line = format!("event {object}:");
                let found = events.lines().any(|event| event.contains(&line) && event.contains(part));
                Ok(if found { Look::Done(()) } else { Look::NotYet(events) })
            })
            .await
    }
}

fn claim(name: &str, class: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, labels: {{team: blue}}}}\n\
         spec: {{storageClassName: {class}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 32Mi}}}}}}\n---\n"
    )
}

/// A pod with `volume` (of a pod's spec) at /data.
fn pod(name: &str, place: &str, volume: &str, mount: &str) -> String {
    let placed = match place {
        "there" => "nodeSelector: {liquid.mesh/type: virtual-node}",
        "here" => {
            "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: \
             [{key: liquid.mesh/type, operator: DoesNotExist}]}]}}}"
        }
        _ => "terminationGracePeriodSeconds: 1",
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  restartPolicy: Never\n  \
         {placed}\n  containers:\n    - name: main\n      image: {TEST_IMAGE}\n      imagePullPolicy: IfNotPresent\n      \
         command: [sh, -c, {FOREVER:?}]\n      volumeMounts: [{{name: data, mountPath: /data{mount}}}]\n  volumes: [{{name: data, \
         {volume}}}]\n---\n"
    )
}

/// A pod that goes to virtual nodes although Liquid would keep it from them.
fn tolerating(pod: &str) -> String {
    pod.replace(
        "  restartPolicy",
        "  tolerations: [{key: liquid.mesh/virtual-node, operator: Exists}]\n  restartPolicy",
    )
}

fn of_claim(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}}}")
}

fn driver(volume: &PersistentVolume) -> &str {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    csi.map_or("of this cluster", |csi| csi.driver.as_str())
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Would catch: a StatefulSet that cannot have volumes on virtual nodes, data that does not outlive a pod, a process of Liquid
/// or the link, a claim that a restart makes anew, a claim that is erased without a word of its owner, and one that is not
/// when that comes late.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn a_database_keeps_its_data() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let stage = Stage { home, provider, namespace: "db" };
    offloaded(home, "db").await?;
    stage
        .apply(&format!(
            r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 1
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 2
      nodeSelector: {{liquid.mesh/type: virtual-node}}
      containers:
        - name: main
          image: {TEST_IMAGE}
          imagePullPolicy: IfNotPresent
          command: [sh, -c, {DATABASE:?}]
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{storageClassName: liquid, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 32Mi}}}}}}
"#
        ))
        .await?;
    let started = Instant::now();
    stage.ready("db").await?;
    println!(
        "a StatefulSet with a volume in the provider runs after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let count = || async {
        // A process that was killed serves the kubelet API again in a moment.
        home.wait("the count", SOON, || async {
            Ok(match stage.exec("db-0", "cat /data/count").await {
                Ok(count) => Look::Done(count.parse::<u64>()?),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })
        .await
    };
    let volume = stage.volume("data-db-0").await?;
    assert_eq!(driver(&volume), REMOTE);
    let first = stage.counterpart("data-db-0").await?.context("no claim in the provider")?;

    let before = count().await?;
    stage.delete_pod("db-0").await?;
    stage.ready("db").await?;
    assert!(count().await? >= before, "the pod that follows goes on");

    for (cluster, program) in
        [("a", "liquid-kubelet"), ("b", "liquid-controll"), ("a", "liquid-controll"), ("b", "liquid-kubelet")]
    {
        kill(&environment, cluster, program)?;
    }
    home.wait_for_node("liquid-provider", true, SOON).await?;
    let before = count().await?;
    stage.delete_pod("db-0").await?;
    stage.ready("db").await?;
    assert!(count().await? >= before, "so it does after everything was killed");

    // A claim that is given up while the provider is away.
    stage.apply(&(claim("scrap", "liquid") + &pod("scrap", "there", &of_claim("scrap"), ""))).await?;
    stage.ready("scrap").await?;
    let scrap = stage.counterpart("scrap").await?.context("no claim in the provider")?.name_any();
    stage.delete_pod("scrap").await?;
    let before = count().await?;
    let link = environment.lab.as_ref().context("this needs the lab")?.link("a", "b")?;
    link.cut(Cut::All, Direction::Both)?;
    home.wait_for_node("liquid-provider", false, Duration::from_secs(30)).await?;
    stage.claims().delete("scrap", &DeleteParams::default()).await?;
    home.wait_until_gone(&stage.claims(), "scrap", SOON).await?;
    // Its pod is lost there, too, and healed without home.
    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "db-home");
    remote.delete("db-0", &DeleteParams::default().grace_period(0)).await?;
    provider.wait_for_pods("db-home", "app=db", 1, SOON).await?;
    assert!(stage.remote().get_opt(&scrap).await?.is_some(), "nobody has told the provider");
    link.restore()?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    provider.wait_until_gone(&stage.remote(), &scrap, SOON).await?;
    stage.ready("db").await?;
    assert!(count().await? > before, "the data has survived the partition");

    let now = stage.counterpart("data-db-0").await?.context("no claim in the provider")?;
    assert_eq!(now.uid(), first.uid(), "it was the same claim all the time");
    let journal = stage.exec("db-0", "cat /data/journal").await?;
    let starts: Vec<u64> = journal.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(starts.len() >= 4 && starts[0] == 0 && starts[1..].iter().all(|at| *at > 0), "{journal}");
    drop_namespace(home, "db").await
}

/// Would catch: a volume that is made in the wrong cluster, pods that do not follow their volume, something that is left of how a
/// local volume is made, volumes that only one pod can use, and ephemeral volumes that do not work or stay.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn volumes_are_made_where_the_first_pod_runs_and_draw_others_there() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let stage = Stage { home, provider, namespace: "gravity" };
    offloaded(home, "gravity").await?;
    let both = [claim("near", "liquid"), claim("far", "liquid"), claim("other", "local-path")].concat();
    let first =
        [pod("near-1", "here", &of_claim("near"), ""), pod("far-1", "there", &of_claim("far"), "")].concat();
    let scratch = "ephemeral: {volumeClaimTemplate: {spec: {storageClassName: liquid, accessModes: [ReadWriteOnce], \
                   resources: {requests: {storage: 8Mi}}}}}";
    // A pod with a volume of another class is not let onto virtual nodes, where nobody would make it.
    let other = pod("other", "", &of_claim("other"), "");
    stage.apply(&[both, first, other, pod("scratch", "there", scratch, "")].concat()).await?;
    let elsewhere = stage.ready("other").await?;
    let tolerations = elsewhere.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let keys: Vec<_> = tolerations.filter_map(|toleration| toleration.key.as_deref()).collect();
    assert!(node(&elsewhere) != "liquid-provider" && !keys.contains(&"liquid.mesh/virtual-node"), "{keys:?}");
    for name in ["near-1", "far-1", "scratch"] {
        stage.ready(name).await?;
        stage.exec(name, "mkdir -p /data/part && echo hello > /data/part/note && sync").await?;
    }
    let near = stage.volume("near").await?;
    assert_eq!(driver(&near), "of this cluster");
    assert!(stage.counterpart("near").await?.is_none());
    let far = stage.counterpart("far").await?.context("no claim in the provider")?;
    assert_eq!(far.labels().get("team").map(String::as_str), Some("blue"));
    assert_eq!(driver(&stage.volume("far").await?), REMOTE);

    // liquid-kubelet may stand for volumes in providers, and make no other ones.
    let mount = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: gravity-root}\nspec: {capacity: {storage: 1Gi}, \
                 accessModes: [ReadWriteOnce], hostPath: {path: /}}\n";
    let arguments = ["create", "--as", "system:serviceaccount:liquid-system:liquid-kubelet", "-f", "-"];
    let refused = home.kubectl.run_with_input(arguments, mount.as_bytes()).await?;
    assert!(
        refused.err.contains("may only write PersistentVolumes of the driver"),
        "{}{}",
        refused.out,
        refused.err
    );

    let larger = r#"{"spec":{"resources":{"requests":{"storage":"64Mi"}}}}"#;
    let arguments = ["patch", "pvc", "far", "-n", "gravity", "--type=merge", "-p", larger];
    let arguments =
        arguments.into_iter().chain(["--as", "system:serviceaccount:liquid-system:liquid-kubelet"]);
    let refused = home.kubectl.run(arguments).await?;
    assert!(refused.err.contains("may not change what claims ask for"), "{}{}", refused.out, refused.err);

    // A local volume is an ordinary one in the end.
    let volumes: Api<PersistentVolume> = Api::all(home.client.clone());
    let beside: Api<PersistentVolumeClaim> = Api::namespaced(home.client.clone(), "liquid-system");
    home.wait("the volume is handed over", SOON, || async {
        let volume = volumes.get(&near.name_any()).await?;
        let left = beside.list(&ListParams::default()).await?.items.len();
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.clone());
        let marked = volume.annotations().keys().any(|key| key.starts_with("liquid.mesh/"));
        let so = left == 0 && policy.as_deref() == Some("Delete") && !marked;
        Ok(if so { Look::Done(()) } else { Look::NotYet(format!("{left} claims beside, {policy:?}")) })
    })
    .await?;

    // Pods that may run anywhere go where their data is; several at a time, for reading or for a part of it.
    let note = |mount: &str| mount.to_owned();
    let second = [
        pod("near-2", "", &of_claim("near"), ""),
        pod("far-2", "", &of_claim("far"), &note(", subPath: part")),
        pod("far-3", "", "persistentVolumeClaim: {claimName: far, readOnly: true}", ""),
    ];
    stage.apply(&second.concat()).await?;
    for (name, there, path) in [
        ("near-2", false, "/data/part/note"),
        ("far-2", true, "/data/note"),
        ("far-3", true, "/data/part/note"),
    ] {
        let pod = stage.ready(name).await?;
        assert_eq!(node(&pod) == "liquid-provider", there, "{name} is on {}", node(&pod));
        assert_eq!(stage.exec(name, &format!("cat {path}")).await?, "hello", "{name}");
    }
    assert!(stage.exec("far-3", "touch /data/x").await.is_err(), "it is read-only");

    // The volume of a pod goes with it, on both sides.
    assert!(stage.counterpart("scratch-data").await?.is_some());
    stage.delete_pod("scratch").await?;
    home.wait_until_gone(&stage.claims(), "scratch-data", SOON).await?;
    provider
        .wait("its claim in the provider goes", SOON, || async {
            Ok(match stage.counterpart("scratch-data").await? {
                None => Look::Done(()),
                Some(left) => Look::NotYet(left.name_any()),
            })
        })
        .await?;
    drop_namespace(home, "gravity").await
}

/// Would catch: data that is deleted because a namespace is not offloaded any more or a peering has ended, that is not found
/// again, that nobody is told of, or that stays although its deletion was asked for.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn data_outlives_offloading_and_peering_unless_its_deletion_is_asked_for() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let stage = Stage { home, provider, namespace: "kept" };
    offloaded(home, "kept").await?;
    let writer = || [claim("data", "liquid"), pod("user", "there", &of_claim("data"), "")].concat();
    stage.apply(&writer()).await?;
    stage.ready("user").await?;
    stage.exec("user", "echo precious > /data/note && sync").await?;
    let there = stage.counterpart("data").await?.context("no claim in the provider")?;
    let namespaces: Api<Namespace> = Api::all(provider.client.clone());

    let told = home.liquidctl.run(["unoffload", "namespace", "kept"]).await?;
    let said = told.err.clone();
    told.ok()?;
    assert!(said.contains("kept/data (32Mi) in cluster provider as kept-home/data-"), "{said}");
    assert!(namespaces.get("kept-home").await?.labels().contains_key("liquid.mesh/kept"));
    // As an uninstalled Liquid leaves it.
    let volumes: Api<PersistentVolume> = Api::all(home.client.clone());
    let name = stage.volume("data").await?.name_any();
    let bare = json!({ "metadata": { "finalizers": ["kubernetes.io/pv-protection"] } });
    volumes.patch(&name, &PatchParams::default(), &Patch::Merge(&bare)).await?;
    home.wait("the finalizer of the volume is back", SOON, || async {
        let held =
            volumes.get(&name).await?.finalizers().iter().any(|finalizer| finalizer.contains("liquid"));
        Ok(if held { Look::Done(()) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await?;
    home.liquidctl.run(["offload", "namespace", "kept"]).await?.ok()?;
    stage.apply(&writer()).await?;
    stage.ready("user").await?;
    assert_eq!(stage.exec("user", "cat /data/note").await?, "precious");
    assert!(!namespaces.get("kept-home").await?.labels().contains_key("liquid.mesh/kept"));

    let told = home.liquidctl.run(["unpeer", "provider"]).await?;
    let said = told.err.clone();
    told.ok()?;
    assert!(said.contains("volumes are kept"), "{said}");
    assert_eq!(stage.remote().get(&there.name_any()).await?.uid(), there.uid());
    // Whoever has a token may say that it is this cluster; that it has its key it cannot say.
    let of_another =
        json!({ "metadata": { "annotations": { "liquid.mesh/consumer-authority": "another" } } });
    namespaces.patch("kept-home", &PatchParams::default(), &Patch::Merge(&of_another)).await?;
    environment.peer().await?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    let refused = home.liquidctl.run(["offload", "namespace", "kept", "--timeout", "10s"]).await?;
    assert!(refused.ok().is_err(), "the data of another key was given away");
    let offloadings: Api<NamespaceOffloading> = Api::namespaced(home.client.clone(), "kept");
    let said = json!(offloadings.list(&ListParams::default()).await?.items).to_string();
    let peer = Api::<Peer>::all(provider.client.clone()).get("home").await?.uid().context("no Peer")?;
    assert!(
        said.contains(&format!("kubectl annotate namespace kept-home liquid.mesh/released-to={peer}")),
        "{said}"
    );
    let released = json!({ "metadata": { "annotations": { "liquid.mesh/released-to": peer } } });
    namespaces.patch("kept-home", &PatchParams::default(), &Patch::Merge(&released)).await?;
    let ready = || async {
        home.liquidctl.run(["offload", "namespace", "kept"]).await?.ok()?;
        stage.apply(&writer()).await?;
        stage.ready("user").await
    };
    ready().await?;
    assert_eq!(stage.exec("user", "cat /data/note").await?, "precious");
    assert_eq!(stage.counterpart("data").await?.context("no claim")?.uid(), there.uid());

    home.liquidctl.run(["unoffload", "namespace", "kept", "--delete-volumes"]).await?.ok()?;
    home.wait_until_gone(&stage.claims(), "data", SOON).await?;
    provider.wait_until_gone(&namespaces, "kept-home", SOON).await?;

    // A provider that ends the peering keeps the data as well, unless its owner wants otherwise.
    home.liquidctl.run(["offload", "namespace", "kept"]).await?.ok()?;
    ready().await?;
    assert_eq!(stage.exec("user", "ls /data").await?, "", "another claim, another volume");
    let told = provider.liquidctl.run(["unpeer", "home"]).await?;
    let said = told.err.clone();
    told.ok()?;
    assert!(said.contains("kept-home (of its namespace kept)"), "{said}");
    assert!(stage.counterpart("data").await?.is_some());
    home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
    // Nobody can be told any more that it is to go: what stood for it goes when that is deleted, the data does not.
    stage.claims().delete("data", &DeleteParams::default()).await?;
    home.wait_until_gone(&stage.claims(), "data", SOON).await?;
    let left = volumes.list(&ListParams::default()).await?;
    let of_claim = |volume: &&PersistentVolume| {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        driver(volume) == REMOTE && claim.is_some_and(|claim| claim.namespace.as_deref() == Some("kept"))
    };
    let left: Vec<String> = left.iter().filter(of_claim).map(kube::ResourceExt::name_any).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // Somebody means to give it to another claim, and thinks better of it.
    let free = json!({ "spec": { "claimRef": null } });
    volumes.patch(&left[0], &PatchParams::default(), &Patch::Merge(&free)).await?;
    volumes.delete(&left[0], &DeleteParams::default()).await?;
    home.wait_until_gone(&volumes, &left[0], SOON).await?;
    assert!(stage.counterpart("data").await?.is_some());
    provider.delete_namespace("kept-home").await?;
    environment.peer().await?;
    drop_namespace(home, "kept").await
}

/// Would catch: a policy that is not heeded, old data in a new claim of the same name, classes that a provider does not lend or
/// sizes beyond its quota that are lent, reasons that nobody sees, and growth that does not arrive or does not come back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn classes_policies_quotas_and_growth() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let stage = Stage { home, provider, namespace: "classes" };
    offloaded(home, "classes").await?;
    let classes = |cluster: &Cluster| Api::<StorageClass>::all(cluster.client.clone());
    let made = [
        // Local volumes do not grow; whether a class says so is all that Kubernetes asks, and the rest is done here.
        (
            provider,
            json!({"metadata": {"name": "growing"}, "provisioner": "rancher.io/local-path", "allowVolumeExpansion": true}),
        ),
        (
            home,
            json!({"metadata": {"name": "liquid-fast"}, "provisioner": REMOTE, "allowVolumeExpansion": true,
            "reclaimPolicy": "Retain", "parameters": {"remoteClass": "fast"}}),
        ),
        (
            home,
            json!({"metadata": {"name": "liquid-unknown"}, "provisioner": REMOTE, "parameters": {"remoteClass": "unknown"}}),
        ),
    ];
    for (cluster, mut class) in made.clone() {
        class["volumeBindingMode"] = json!("WaitForFirstConsumer");
        classes(cluster).create(&PostParams::default(), &serde_json::from_value(class)?).await?;
    }
    let course = course(&stage).await;
    lend(provider, Value::Null, Value::Null).await?;
    for (cluster, class) in &made {
        let name = class["metadata"]["name"].as_str().unwrap_or_default();
        classes(cluster).delete(name, &DeleteParams::default()).await?;
    }
    course?;
    drop_namespace(home, "classes").await
}

/// Sets what the provider lends.
async fn lend(provider: &Cluster, limits: Value, storage: Value) -> anyhow::Result<()> {
    let patch = json!({ "spec": { "lend": { "limits": limits, "storage": storage } } });
    let peers: Api<Peer> = Api::all(provider.client.clone());
    peers.patch("home", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

async fn course(stage: &Stage<'_>) -> anyhow::Result<()> {
    let (home, provider) = (stage.home, stage.provider);
    let fast = json!({"classes": [{"name": "standard", "storageClassName": "local-path"}, {"name": "fast", "storageClassName": "growing"}]});
    lend(provider, json!({ "requests.storage": "70Mi" }), fast).await?;
    home.wait("the offer names the classes", SOON, || async {
        let peer: Peer = Api::all(home.client.clone()).get("provider").await?;
        let offer = peer.status.and_then(|status| status.consume?.offer).unwrap_or_default();
        let so = offer.storage_classes == ["standard", "fast"];
        Ok(if so { Look::Done(()) } else { Look::NotYet(format!("{:?}", offer.storage_classes)) })
    })
    .await?;

    // What is not lent is refused, and both the claim and its pod say so.
    let refused = [claim("odd", "liquid-unknown"), pod("odd", "there", &of_claim("odd"), "")].concat();
    let cloned = claim("copy", "liquid")
        .replace("accessModes", "dataSource: {kind: PersistentVolumeClaim, name: odd}, accessModes");
    let cloned = [cloned, pod("copy", "there", &of_claim("copy"), "")].concat();
    let foreign = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: classes-foreign}\nspec: {capacity: {storage: 8Mi}, \
                   accessModes: [ReadWriteOnce], storageClassName: by-hand, persistentVolumeReclaimPolicy: Retain, \
                   nfs: {server: 192.0.2.1, path: /x}}\n---\n";
    let foreign = [
        foreign.to_owned(),
        claim("foreign", "by-hand").replace("32Mi", "8Mi"),
        tolerating(&pod("foreign", "there", &of_claim("foreign"), "")),
    ]
    .concat();
    stage.apply(&[refused, cloned, foreign].concat()).await?;
    let not_offered = "does not offer storage class \"unknown\"; it offers standard, fast";
    stage.event("odd", not_offered).await?;
    stage.event("odd", &format!("PersistentVolumeClaim odd: the provider {not_offered}")).await?;
    stage.event("copy", "spec.dataSource of the claim").await?;
    stage.event("foreign", "bound to volume classes-foreign of this cluster").await?;
    home.kubectl
        .run(["delete", "-n", stage.namespace, "pod", "odd", "copy", "foreign", "--now"])
        .await?
        .ok()?;
    home.kubectl.run(["delete", "-n", stage.namespace, "pvc", "odd", "copy", "foreign"]).await?.ok()?;
    home.kubectl.run(["delete", "pv", "classes-foreign"]).await?.ok()?;

    // The mapped class, and the policy to retain.
    stage
        .apply(&[claim("data", "liquid-fast"), pod("user", "there", &of_claim("data"), "")].concat())
        .await?;
    stage.ready("user").await?;
    stage.exec("user", "echo old > /data/note && sync").await?;
    let there = stage.counterpart("data").await?.context("no claim in the provider")?;
    assert_eq!(there.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()), Some("growing"));

    grow(stage, &there).await?;

    let volume = stage.volume("data").await?;
    stage.delete_pod("user").await?;
    stage.claims().delete("data", &DeleteParams::default()).await?;
    let volumes: Api<PersistentVolume> = Api::all(home.client.clone());
    home.wait("the volume is released", SOON, || async {
        let phase = volumes.get(&volume.name_any()).await?.status.and_then(|status| status.phase);
        Ok(if phase.as_deref() == Some("Released") {
            Look::Done(())
        } else {
            Look::NotYet(format!("{phase:?}"))
        })
    })
    .await?;
    // A claim of the same name gets a volume of its own. It does not fit into the quota beside what is kept.
    stage.apply(&[claim("data", "liquid"), pod("user", "there", &of_claim("data"), "")].concat()).await?;
    stage
        .event(
            "data",
            "requested requests.storage=32Mi, used requests.storage=49Mi, limited requests.storage=70Mi",
        )
        .await?;
    lend(provider, json!({ "requests.storage": "1Gi" }), Value::Null).await?;
    stage.ready("user").await?;
    assert_eq!(stage.exec("user", "ls /data").await?, "");
    assert_eq!(stage.remote().get(&there.name_any()).await?.uid(), there.uid(), "what is retained is there");

    // Without the policy to retain, the data goes with its claim.
    let next = stage.remote().list(&ListParams::default()).await?;
    let next = next
        .iter()
        .map(kube::ResourceExt::name_any)
        .find(|name| *name != there.name_any())
        .context("no second claim")?;
    stage.delete_pod("user").await?;
    let second = stage.volume("data").await?.name_any();
    stage.claims().delete("data", &DeleteParams::default()).await?;
    provider.wait_until_gone(&stage.remote(), &next, SOON).await?;
    home.wait_until_gone(&volumes, &second, SOON).await?;
    assert!(stage.remote().get_opt(&there.name_any()).await?.is_some());
    volumes.delete(&volume.name_any(), &DeleteParams::default()).await?;
    home.wait_until_gone(&volumes, &volume.name_any(), SOON).await?;
    assert!(
        stage.remote().get_opt(&there.name_any()).await?.is_some(),
        "its owner has not given up the data"
    );
    stage.remote().delete(&there.name_any(), &DeleteParams::default()).await?;
    Ok(())
}

/// A claim grows at home; the provider's driver (here: this scenario) makes its volume larger; home shows it.
async fn grow(stage: &Stage<'_>, there: &PersistentVolumeClaim) -> anyhow::Result<()> {
    let (home, provider) = (stage.home, stage.provider);
    let size = |size: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } } });
    let merge = PatchParams::default();
    stage.claims().patch("data", &merge, &Patch::Merge(&size("48Mi"))).await?;
    let asked = provider
        .wait("the provider is asked for more", SOON, || async {
            let claim = stage.remote().get(&there.name_any()).await?;
            let asked = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
            Ok(match asked.map(|asked| asked.0.as_str()) {
                Some("48Mi") => Look::Done(claim),
                other => Look::NotYet(format!("{other:?}")),
            })
        })
        .await?;
    let volume = asked.spec.and_then(|spec| spec.volume_name).context("it is not bound")?;
    let larger = json!({ "spec": { "capacity": { "storage": "48Mi" } } });
    Api::<PersistentVolume>::all(provider.client.clone())
        .patch(&volume, &merge, &Patch::Merge(&larger))
        .await?;
    let resized = json!({ "status": { "capacity": { "storage": "48Mi" } } });
    stage.remote().patch_status(&there.name_any(), &merge, &Patch::Merge(&resized)).await?;
    home.wait("home shows the new size", SOON, || async {
        let claim = stage.claims().get("data").await?;
        let shown = claim.status.and_then(|status| status.capacity?.get("storage").cloned());
        let volume = stage.volume("data").await?.spec.and_then(|spec| spec.capacity?.get("storage").cloned());
        let so = [&shown, &volume].iter().all(|size| size.as_ref().is_some_and(|size| size.0 == "48Mi"));
        Ok(if so { Look::Done(()) } else { Look::NotYet(format!("{shown:?} {volume:?}")) })
    })
    .await?;
    // What the quota has no room for does not grow, and its owner hears of it.
    stage.claims().patch("data", &merge, &Patch::Merge(&size("100Mi"))).await?;
    stage.event("data", "requested requests.storage=100Mi").await?;
    // Kubernetes lets a request shrink again, to more than there is.
    stage.claims().patch("data", &merge, &Patch::Merge(&size("49Mi"))).await?;
    Ok(())
}
