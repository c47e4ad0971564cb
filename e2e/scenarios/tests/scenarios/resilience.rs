//! Lost links and killed processes.

use crate::manifests::{FOREVER, deployment, drop_namespace, offloaded};
use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::ShadowPod;
use liquid_lab::{Cut, Direction};
use liquid_scenarios::{Cluster, Environment, Look};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);

/// Names and home UIDs of the shadows in the provider: what runs there, for whom.
async fn shadows(provider: &Cluster, namespace: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let api: Api<ShadowPod> = Api::namespaced(provider.client.clone(), namespace);
    let all = api.list(&ListParams::default()).await?;
    Ok(all.iter().map(|shadow| (shadow.name_any(), shadow.spec.home.uid.clone())).collect())
}

async fn uids(home: &Cluster, namespace: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let pods = home.pods(namespace, "app=web").await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect())
}

/// Kills a container of Liquid with SIGKILL, from outside, as the kernel would for want of memory.
pub(crate) fn kill(environment: &Environment, cluster: &str, program: &str) -> anyhow::Result<()> {
    let lab = environment.lab.as_ref().context("this needs the lab")?;
    for node in lab.cluster(cluster)?.nodes() {
        let script = format!(
            "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = {program} ] && kill -9 ${{p#/proc/}}; done; true"
        );
        node.exec(&["sh", "-c", &script])?;
    }
    Ok(())
}

/// Would catch: pods lost or doubled because a process ended between two steps, state that exists only in memory, and
/// restarts that delete what they do not know yet.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn processes_may_be_killed_at_any_time() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "killed").await?;
    home.apply("killed", &deployment("web", 4, FOREVER)).await?;
    home.wait_for_pods("killed", "app=web", 4, SOON).await?;
    let started = Instant::now();
    // Linux truncates the names of processes to 15 characters.
    let victims = [("a", "liquid-kubelet"), ("b", "liquid-controll"), ("a", "liquid-controll")];
    let mut replicas = 4;
    for round in 0..9_usize {
        let (cluster, program) = victims[round % victims.len()];
        replicas = [8, 3, 6][round % 3];
        let scale = format!("--replicas={replicas}");
        home.kubectl.run(["scale", "-n", "killed", "deployment/web", &scale]).await?.ok()?;
        // At another point of the work each time.
        tokio::time::sleep(Duration::from_millis(u64::try_from(round * 70).unwrap_or(0))).await;
        kill(&environment, cluster, program)?;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    home.wait_for_pods("killed", "app=web", replicas, SOON).await?;
    provider.wait_for_pods("killed-home", "app=web", replicas, SOON).await?;
    assert_eq!(uids(home, "killed").await?, shadows(provider, "killed-home").await?);
    println!("9 kills survived in {:.1} s", started.elapsed().as_secs_f64());
    drop_namespace(home, "killed").await
}

/// Serves a file, and ends at once when it is told to.
const SERVE: &str = "echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp & trap exit TERM; while :; do sleep 1 & wait $!; done";
/// The link is installed with its default, which this is.
const LINK_TIMEOUT: Duration = Duration::from_secs(12);

/// UIDs of the pods of a namespace, by name.
async fn instances(cluster: &Cluster, namespace: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let pods = cluster.pods(namespace, "").await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect())
}

/// Would catch: a partition that is noticed late or not at all, pods that are stopped or not served because of it, a
/// provider that does not heal what it runs while it is alone, or hears of what home does meanwhile; pods that are not
/// evicted at home when their own time is over, or are before; and pods lost, doubled or replaced for nothing when the
/// link is back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn both_sides_of_a_partition_go_on_and_agree_again() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let link = environment.lab.as_ref().context("this needs the lab")?.link("a", "b")?;
    offloaded(home, "cut").await?;
    let impatient = "      tolerations:
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
";
    let web = deployment("web", 2, SERVE).replace("      containers:\n", impatient);
    home.apply("cut", &web).await?;
    home.apply("cut", &deployment("steady", 1, FOREVER)).await?;
    home.apply("cut", &deployment("doomed", 1, FOREVER)).await?;
    let service = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}";
    home.apply("cut", service).await?;
    home.wait_for_pods("cut", "", 4, SOON).await?;
    let (before, promised) = (instances(provider, "cut-home").await?, shadows(provider, "cut-home").await?);
    let steady = home.pods("cut", "app=steady").await?[0].clone();
    let serves = || async {
        let client = ["exec", "-n", "cut-home", &steady.name_any(), "--"].map(str::to_owned);
        let ask = ["timeout", "5", "wget", "-q", "-O", "-", "http://web/index.html"].map(str::to_owned);
        provider
            .wait("web is served in the provider", SOON, || async {
                let said = provider.kubectl.run(client.iter().chain(&ask)).await?;
                Ok(if said.out.trim() == "served" { Look::Done(()) } else { Look::NotYet(said.err) })
            })
            .await
    };
    serves().await?;

    link.cut(Cut::All, Direction::Both)?;
    let cut = Instant::now();
    home.wait_for_node("liquid-provider", false, Duration::from_secs(30)).await?;
    let noticed = cut.elapsed();
    println!("partition noticed after {:.1} s", noticed.as_secs_f64());
    assert!(noticed < LINK_TIMEOUT + Duration::from_secs(3));

    // Home: the impatient are evicted after their 2 s, and their owner makes others. The user scales and deletes.
    home.wait("web is evicted and replaced", SOON, || async {
        let pods = home.pods("cut", "app=web").await?;
        let ending = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count();
        Ok(if (ending, pods.len()) == (2, 4) {
            Look::Done(())
        } else {
            Look::NotYet(format!("{ending} of {} are ending", pods.len()))
        })
    })
    .await?;
    println!("pods that tolerate it for 2 s were evicted {:.1} s after the cut", cut.elapsed().as_secs_f64());
    home.kubectl.run(["scale", "-n", "cut", "deployment/web", "--replicas=3"]).await?.ok()?;
    home.kubectl.run(["delete", "-n", "cut", "deployment/doomed"]).await?.ok()?;
    home.wait("the user's wishes are known", SOON, || async {
        let web = home.pods("cut", "app=web").await?.len();
        let doomed = home.pods("cut", "app=doomed").await?;
        let ending = doomed.iter().all(|pod| pod.metadata.deletion_timestamp.is_some());
        Ok(if (web, doomed.len(), ending) == (5, 1, true) {
            Look::Done(())
        } else {
            Look::NotYet(format!("{web} of web, {} of doomed", doomed.len()))
        })
    })
    .await?;

    // The provider: all run on and serve, and what is lost is healed.
    assert_eq!(before, instances(provider, "cut-home").await?, "pods run on during the partition");
    serves().await?;
    let victim = provider.pods("cut-home", "app=web").await?[0].name_any();
    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "cut-home");
    remote.delete(&victim, &DeleteParams::default().grace_period(0)).await?;
    provider.wait_for_pods("cut-home", "", 4, SOON).await?;
    assert_ne!(remote.get(&victim).await?.uid().as_ref(), before.get(&victim), "another instance");
    assert_eq!(promised, shadows(provider, "cut-home").await?, "nothing of what home does gets through");
    serves().await?;

    link.restore()?;
    let mended = Instant::now();
    home.wait_for_node("liquid-provider", true, SOON).await?;
    println!("healed {:.1} s after the link was back", mended.elapsed().as_secs_f64());
    home.wait_for_pods("cut", "", 4, SOON).await?;
    provider.wait_for_pods("cut-home", "", 4, SOON).await?;
    println!("converged {:.1} s after the link was back", mended.elapsed().as_secs_f64());
    home.wait_for_pods("cut", "app=web", 3, SOON).await?;
    assert_eq!(instances(home, "cut").await?, shadows(provider, "cut-home").await?);
    // Who tolerated it is the same, at home and there.
    let after = home.pods("cut", "app=steady").await?[0].clone();
    assert_eq!(after.uid(), steady.uid());
    assert_eq!(remote.get(&steady.name_any()).await?.uid().as_ref(), before.get(&steady.name_any()));
    serves().await?;
    drop_namespace(home, "cut").await
}

/// Would catch: a Node or a shadow that stays away when somebody deletes it, and a pod that ends at home because the
/// provider drains a node.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_others_delete_comes_back() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "back").await?;
    home.apply("back", &deployment("web", 1, FOREVER)).await?;
    let pod = home.wait_for_pods("back", "app=web", 1, SOON).await?[0].name_any();
    let shadows: Api<ShadowPod> = Api::namespaced(provider.client.clone(), "back-home");
    let first = shadows.get(&pod).await?.uid();
    shadows.delete(&pod, &DeleteParams::default()).await?;
    provider
        .wait("the ShadowPod comes back", SOON, || async {
            let now = shadows.get_opt(&pod).await?.and_then(|shadow| shadow.uid());
            Ok(if now.is_some() && now != first { Look::Done(()) } else { Look::NotYet(format!("{now:?}")) })
        })
        .await?;
    provider.wait_for_pods("back-home", "app=web", 1, SOON).await?;
    let before = home.wait_for_pods("back", "app=web", 1, SOON).await?[0].uid();

    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "back-home");
    let first = remote.get(&pod).await?.uid();
    remote.delete(&pod, &DeleteParams::default()).await?;
    provider
        .wait("another Pod takes its place", SOON, || async {
            let now = remote.get_opt(&pod).await?.and_then(|pod| pod.uid());
            Ok(if now.is_some() && now != first { Look::Done(()) } else { Look::NotYet(format!("{now:?}")) })
        })
        .await?;
    let after = home.wait_for_pods("back", "app=web", 1, SOON).await?[0].uid();
    assert_eq!(before, after, "at home it is the same pod");
    drop_namespace(home, "back").await?;

    home.kubectl.run(["delete", "node", "liquid-provider", "--wait=false"]).await?.ok()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    Ok(())
}

/// Would catch: a leader that goes without giving its lease back, because streams of peers keep it; a node that is NotReady in
/// between.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_roll_out_changes_leaders_at_once() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let leases: Api<Lease> = Api::namespaced(provider.client.clone(), "liquid-system");
    let holder = || async {
        let spec = leases.get("liquid-controller").await?.spec.unwrap_or_default();
        anyhow::Ok(spec.holder_identity.unwrap_or_default())
    };
    let nodes: Api<Node> = Api::all(home.client.clone());
    let ready_since = || async {
        let conditions = nodes.get("liquid-provider").await?.status.and_then(|status| status.conditions);
        let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        anyhow::Ok(ready.map(|ready| (ready.status, ready.last_transition_time)))
    };
    let before = ready_since().await?;
    let earlier = holder().await?;
    let started = Instant::now();
    let restart = ["rollout", "restart", "-n", "liquid-system", "deployment/liquid-controller"];
    provider.kubectl.run(restart).await?.ok()?;
    provider
        .wait("another leader", Duration::from_secs(20), || async {
            let now = holder().await?;
            Ok(if now.is_empty() || now == earlier { Look::NotYet(now) } else { Look::Done(()) })
        })
        .await?;
    // The node may still be said to be Ready: only what the new leader does shows that it is heard.
    offloaded(home, "leaders").await?;
    home.apply("leaders", &deployment("after", 1, FOREVER)).await?;
    provider.wait_for_pods("leaders-home", "app=after", 1, SOON).await?;
    println!("another leader, and a pod that it has made, after {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(ready_since().await?, before, "whoever is back soon was not away");
    drop_namespace(home, "leaders").await
}
