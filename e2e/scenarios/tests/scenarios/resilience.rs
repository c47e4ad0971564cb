//! Lost links and killed processes.

use crate::manifests::{FOREVER, deployment, drop_namespace, offloaded};
use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::ShadowPod;
use liquid_lab::{Cut, Direction};
use liquid_scenarios::{Cluster, Environment, Look};
use std::collections::{BTreeMap, BTreeSet};
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
fn kill(environment: &Environment, cluster: &str, program: &str) -> anyhow::Result<()> {
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

/// Would catch: a partition that is noticed late or not at all, pods that are stopped because of it, and pods lost or
/// doubled when it is over; a provider that does not heal what it runs while it is alone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn a_partition_is_noticed_survived_and_healed() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let link = environment.lab.as_ref().context("this needs the lab")?.link("a", "b")?;
    offloaded(home, "cut").await?;
    home.apply("cut", &deployment("web", 3, FOREVER)).await?;
    home.wait_for_pods("cut", "app=web", 3, SOON).await?;
    let before: BTreeSet<String> =
        provider.pods("cut-home", "app=web").await?.iter().filter_map(|pod| pod.uid()).collect();

    link.cut(Cut::All, Direction::Both)?;
    let cut = Instant::now();
    home.wait_for_node("liquid-provider", false, Duration::from_secs(30)).await?;
    println!("partition noticed after {:.1} s", cut.elapsed().as_secs_f64());
    let during: BTreeSet<String> =
        provider.pods("cut-home", "app=web").await?.iter().filter_map(|pod| pod.uid()).collect();
    assert_eq!(before, during, "pods run on during the partition");

    // The provider loses a pod and heals it on its own; the user deletes another at home.
    let victim = provider.pods("cut-home", "app=web").await?[0].name_any();
    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "cut-home");
    remote.delete(&victim, &DeleteParams::default().grace_period(0)).await?;
    provider.wait_for_pods("cut-home", "app=web", 3, SOON).await?;
    let deleted = home.pods("cut", "app=web").await?.into_iter().find(|pod| pod.name_any() != victim);
    let deleted = deleted.context("no other pod")?.name_any();
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "cut");
    pods.delete(&deleted, &DeleteParams::default()).await?;
    assert!(remote.get_opt(&deleted).await?.is_some(), "nothing is deleted without a word of the consumer");
    assert!(
        pods.get_opt(&deleted).await?.is_some(),
        "nothing is finished off without a word of the provider"
    );

    link.restore()?;
    let mended = Instant::now();
    home.wait_for_node("liquid-provider", true, SOON).await?;
    println!("healed {:.1} s after the link was back", mended.elapsed().as_secs_f64());
    home.wait_for_pods("cut", "app=web", 3, SOON).await?;
    provider.wait_for_pods("cut-home", "app=web", 3, SOON).await?;
    assert_eq!(uids(home, "cut").await?, shadows(provider, "cut-home").await?);
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

/// Would catch: a leader that goes without giving its lease back, because streams of peers keep it.
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
    home.wait_for_node("liquid-provider", true, SOON).await?;
    println!("another leader, and the node Ready, after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
