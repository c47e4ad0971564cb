//! Peering when nothing of either cluster is reachable but one UDP port of one of them.

use crate::manifests::offloaded;
use crate::network::seen;
use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::vocabulary::CLUSTER_INFO;
use liquid_crds::{Peer, PeerGateway, Verdict};
use liquid_lab::{Cut, Direction, Link, Opening};
use liquid_scenarios::{Cluster, Environment, Look, Snapshot};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);
/// Gateways that know each other send more often than that.
const SILENCE: Duration = Duration::from_secs(6);
const NAMESPACE: &str = "in-band";
const LIQUID: &str = "liquid-system";
const GATEWAYS: &str = "app.kubernetes.io/component=gateway";
const PROCESSES: &str = "app.kubernetes.io/component in (controller,kubelet,gateway)";

/// A server at home and one that runs in the provider.
const SERVERS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: there, labels: {app: there}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {liquid.mesh/type: virtual-node}
  containers:
    - name: main
      image: lab.local/agnhost:1
      imagePullPolicy: IfNotPresent
      command: [/agnhost, netexec, --http-port=8080]
---
apiVersion: v1
kind: Pod
metadata: {name: here, labels: {app: here}}
spec:
  terminationGracePeriodSeconds: 1
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: liquid.mesh/type, operator: DoesNotExist}]}]}}}
  containers:
    - name: main
      image: lab.local/agnhost:1
      imagePullPolicy: IfNotPresent
      command: [/agnhost, netexec, --http-port=8080]
";

/// Lets some of a cluster's gateways be called from outside and the others not, as `network.service.type` does for all of
/// them; returns what the cluster tells of them then.
async fn callable(cluster: &Cluster, which: impl Fn(&str) -> bool) -> anyhow::Result<Vec<PeerGateway>> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), LIQUID);
    for service in services.list(&ListParams::default().labels(GATEWAYS)).await? {
        let type_ = if which(&service.name_any()) { "NodePort" } else { "ClusterIP" };
        let patch = Patch::Merge(json!({"spec": {"type": type_}}));
        services.patch(&service.name_any(), &PatchParams::default(), &patch).await?;
    }
    let published: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), LIQUID);
    cluster
        .wait("what is told of the gateways", SOON, || async {
            let text = published.get(CLUSTER_INFO).await?.data.and_then(|mut data| data.remove("gateways"));
            let gateways: Vec<PeerGateway> = serde_json::from_str(&text.unwrap_or_default())?;
            let as_wanted = |gateway: &PeerGateway| {
                gateway.endpoints.is_empty() != which(gateway.name.as_deref().unwrap_or_default())
            };
            let told = gateways.iter().all(as_wanted);
            Ok(if told { Look::Done(gateways) } else { Look::NotYet(format!("{gateways:?}")) })
        })
        .await
}

/// Does something while a firewall lets only one gateway of `called` be reached, and no other gateway has an address; then
/// everything is as it was, whatever has come of it.
async fn behind_a_firewall<T>(
    environment: &Environment,
    called: &Cluster,
    what: impl AsyncFnOnce(&Link, Opening) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let lab = environment.lab.as_ref().context("this needs the lab")?;
    let link = lab.link("a", "b")?;
    let at_first = called.name == environment.home.name;
    let other = if at_first { &environment.provider } else { &environment.home };
    let done = async {
        callable(other, |_| false).await?;
        let gateways = callable(called, |name| name == "liquid-gateway-0").await?;
        let mut endpoints = gateways.iter().flat_map(|gateway| &gateway.endpoints);
        let (_, port) =
            endpoints.next().and_then(|endpoint| endpoint.rsplit_once(':')).context("no endpoint")?;
        let opening = Opening { at_first, port: port.parse()? };
        link.only(opening)?;
        quiet(&link).await?;
        link.only(opening)?;
        what(&link, opening).await
    };
    let done = done.await;
    link.restore()?;
    for cluster in [called, other] {
        callable(cluster, |_| true).await?;
    }
    done
}

/// Waits until an earlier peering is over for the gateways of the provider, too: they keep to its consumer for a while.
async fn quiet(link: &Link) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    let (mut stopped, mut since) = (link.stopped()?, Instant::now());
    while since.elapsed() < SILENCE {
        ensure!(Instant::now() < deadline, "there are packets of an earlier peering still");
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = link.stopped()?;
        if now != stopped {
            (stopped, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// That nothing was tried but the one way there is.
fn nothing_else(link: &Link, told: &str) -> anyhow::Result<()> {
    let stopped = link.stopped()?;
    println!("{told}: packets besides the one UDP port, forth and back: {stopped:?}");
    ensure!(stopped == (0, 0), "{told}: packets were stopped: {stopped:?}");
    Ok(())
}

/// Pods of both clusters, what people do with them, and what they do with each other; those in the provider as far as home lets
/// them in.
async fn pods_work(environment: &Environment, access: Verdict) -> anyhow::Result<()> {
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, NAMESPACE).await?;
    home.apply(NAMESPACE, SERVERS).await?;
    let address = async |name: &str| -> anyhow::Result<IpAddr> {
        let pods = home.wait_for_pods(NAMESPACE, &format!("app={name}"), 1, SOON).await?;
        Ok(pods[0].status.clone().unwrap_or_default().pod_ip.context("no address")?.parse()?)
    };
    let (here, there) = (address("here").await?, address("there").await?);
    let here_from_there = seen(&provider.wait_for_network("home", SOON).await?, here).context("no prefix")?;
    home.wait_for_network("provider", SOON).await?;
    for (from, to) in [("here", there), ("there", here_from_there)] {
        let script = format!("timeout 5 wget -q -O - http://{}/hostname", SocketAddr::new(to, 8080));
        if from == "there" && access == Verdict::Deny {
            let output = home.shell(NAMESPACE, from, &script).await?;
            ensure!(output.code != 0 && output.out.is_empty(), "it is let in: {output:?}");
            continue;
        }
        home.wait(&format!("{to} answers {from}"), SOON, || async {
            // From the pod in the provider, this is exec over the link.
            let output = home.shell(NAMESPACE, from, &script).await?;
            let other = if from == "here" { "there" } else { "here" };
            Ok(if output.out.trim() == other { Look::Done(()) } else { Look::NotYet(output.err) })
        })
        .await?;
    }
    let logs = home.kubectl.run(["logs", "-n", NAMESPACE, "there"]).await?.ok()?;
    ensure!(logs.contains("Started HTTP server"), "{logs}");
    Ok(())
}

/// Deletes the pods of all processes that the link passes, in both clusters at once, and waits until home can use the provider
/// again.
async fn everything_restarts(environment: &Environment) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut before = Vec::new();
    for cluster in [&environment.home, &environment.provider] {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), LIQUID);
        let processes = ListParams::default().labels(PROCESSES);
        before.push((cluster, pods.list(&processes).await?.items.len()));
        pods.delete_collection(&DeleteParams::default().grace_period(0), &processes).await?;
    }
    for (cluster, count) in before {
        cluster.wait_for_pods(LIQUID, PROCESSES, count, SOON).await?;
    }
    environment.home.wait_for_node("liquid-provider", true, SOON).await?;
    Ok(began.elapsed())
}

/// Would catch: a peering that needs more than one UDP port of the provider, packets of Liquid that go elsewhere, tunnels
/// that come up only with the link that goes through them, a token that is of use twice, and anything that is left of it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn a_token_and_one_udp_port_of_the_provider_are_enough() -> anyhow::Result<()> {
    let environment = Environment::open().await?.unpeered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    home.delete_namespace(NAMESPACE).await?;
    provider.drop_tokens().await?;
    let before = [Snapshot::take(&home.client).await?, Snapshot::take(&provider.client).await?];
    behind_a_firewall(&environment, provider, async |link, opening| {
        let token = provider.liquidctl.run(["invite", "--in-band"]).await?.ok()?;
        let direct = home.liquidctl.run(["peer", "out-of-band", "--token", token.trim()]).await?;
        ensure!(direct.code == 2 && direct.err.contains("in-band"), "{}", direct.err);
        let told = home.liquidctl.run(["peer", "in-band", "--token", token.trim()]).await?;
        println!("{}", told.err.trim());
        told.ok()?;
        pods_work(&environment, Verdict::Allow).await?;
        nothing_else(link, "peered")?;

        link.cut(Cut::All, Direction::Both)?;
        let cut = Instant::now();
        home.wait_for_node("liquid-provider", false, SOON).await?;
        println!("loss of the way noticed after {:.1} s", cut.elapsed().as_secs_f64());
        link.only(opening)?;
        let mended = Instant::now();
        home.wait_for_node("liquid-provider", true, SOON).await?;
        println!("back {:.1} s after the way was", mended.elapsed().as_secs_f64());

        let restarted = everything_restarts(&environment).await?;
        println!(
            "all processes of the link restarted, in both clusters, in {:.1} s",
            restarted.as_secs_f64()
        );
        // The Node leads to the liquid-kubelet of before until its successor has written it.
        home.wait("logs come again", SOON, || async {
            let logs = home.kubectl.run(["logs", "-n", NAMESPACE, "there"]).await?;
            let come = logs.code == 0 && logs.out.contains("Started HTTP server");
            Ok(if come { Look::Done(()) } else { Look::NotYet(logs.err) })
        })
        .await?;

        let status = home.liquidctl.run(["status"]).await?.ok()?;
        ensure!(status.contains("InBand"), "{status}");
        home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
        let again =
            home.liquidctl.run(["peer", "in-band", "--timeout", "6s", "--token", token.trim()]).await?;
        println!("the token again: {}", again.err.trim());
        ensure!(again.code == 1 && again.err.contains("was used"), "{}", again.err);
        // Who is refused is left as before; who was not even heard may try again.
        if Api::<Peer>::all(home.client.clone()).get_opt("provider").await?.is_some() {
            home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
        }
        nothing_else(link, "unpeered")
    })
    .await?;
    home.delete_namespace(NAMESPACE).await?;
    provider.drop_tokens().await?;
    for (before, cluster) in before.iter().zip([home, provider]) {
        before.is_restored(&cluster.client).await.with_context(|| format!("cluster {}", cluster.name))?;
    }
    Ok(())
}

/// Would catch: a provider that cannot be called, and does not call, whether somebody has both kubeconfigs or not; an administrator
/// who is not told what to do about it; pods that are let in although peering was to let none in.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn a_provider_that_cannot_be_called_calls() -> anyhow::Result<()> {
    let environment = Environment::open().await?.unpeered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    home.delete_namespace(NAMESPACE).await?;
    behind_a_firewall(&environment, home, async |link, _| {
        let refused = provider.liquidctl.run(["invite", "--in-band"]).await?;
        ensure!(refused.code == 1 && refused.err.contains("liquidctl introduce"), "{}", refused.err);
        let kubeconfig = provider.kubeconfig.to_string_lossy().into_owned();
        let told = home.liquidctl.run(["peer", "in-band", "--remote-kubeconfig", &kubeconfig]).await?;
        println!("{}", told.err.trim());
        told.ok()?;
        pods_work(&environment, Verdict::Allow).await?;
        let part = async || {
            provider.liquidctl.run(["unpeer", "home"]).await?.ok()?;
            home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
            home.delete_namespace(NAMESPACE).await
        };
        part().await?;
        // By hand, as two administrators do it, of whom one lets nothing in.
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, home.liquidctl.run(["introduce"]).await?.ok()?)?;
        let file = file.path().to_string_lossy();
        let token = provider.liquidctl.run(["invite", "--in-band", "--introduction", &file]).await?.ok()?;
        let peer = ["peer", "in-band", "--access", "deny", "--token", token.trim()];
        let told = home.liquidctl.run(peer).await?;
        println!("{}", told.err.trim());
        told.ok()?;
        pods_work(&environment, Verdict::Deny).await?;
        part().await?;
        nothing_else(link, "the provider calls")
    })
    .await?;
    provider.drop_tokens().await
}
