//! The network between the pods of peered clusters.

use crate::manifests::offloaded;
use http::Uri;
use kube::config::{KubeConfigOptions, Kubeconfig};
use liquid_crds::PodCidr;
use liquid_scenarios::{Cluster, Environment, Look};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "network";
const THEIRS: &str = "network-theirs";

/// Kubernetes' test server, which says by which address it is called (TCP 8080) and answers to UDP 8081.
const SERVER: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: lab.local/agnhost:1
      imagePullPolicy: IfNotPresent
      command: [/agnhost, netexec, --http-port=8080, --udp-port=8081]
";

/// A pod of a cluster, and how the other cluster sees it.
struct Server {
    real: IpAddr,
    seen: IpAddr,
}

impl Server {
    /// The server of `cluster`, as `other` sees it.
    async fn of(cluster: &Cluster, other: &Cluster) -> anyhow::Result<Self> {
        let pods = cluster.wait_for_pods(NAMESPACE, "app=server", 1, SOON).await?;
        let status = pods[0].status.clone().unwrap_or_default();
        let real: IpAddr = status.pod_ip.unwrap_or_default().parse()?;
        let prefixes = other.wait_for_network(&cluster.name, SOON).await?;
        let seen = seen(&prefixes, real).unwrap_or_else(|| panic!("{real} is in none of {prefixes:?}"));
        Ok(Self { real, seen })
    }
}

/// How a cluster that sees prefixes of another like this sees one of its addresses.
pub(crate) fn seen(prefixes: &[PodCidr], real: IpAddr) -> Option<IpAddr> {
    let mut pairs = prefixes.iter().filter_map(PodCidr::prefixes);
    let (from, to) = pairs.find(|(from, _)| from.contains(&real))?;
    match (real, from.hostmask(), to.network()) {
        (IpAddr::V4(real), IpAddr::V4(host), IpAddr::V4(network)) => Some((real & host | network).into()),
        (IpAddr::V6(real), IpAddr::V6(host), IpAddr::V6(network)) => Some((real & host | network).into()),
        _ => None,
    }
}

fn udp(to: &Server) -> String {
    format!("/agnhost connect --protocol udp --timeout 2s {} && echo reached", SocketAddr::new(to.seen, 8081))
}

async fn call(from: &Cluster, script: &str) -> anyhow::Result<String> {
    Ok(from.shell(NAMESPACE, "server", script).await?.all())
}

/// Would catch: pods that do not reach pods of a peer with the same prefixes, one direction or protocol that works without
/// the other, sources that lead back to somebody else, rules of a cluster about what a peer may reach that are not heeded,
/// or hold up its own calls or say nothing of what they drop, and routes that outlive the peering.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn pods_reach_each_other_although_both_clusters_use_the_same_addresses() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    for cluster in [home, provider] {
        cluster.delete_namespace(NAMESPACE).await?;
        cluster.create_namespace(NAMESPACE).await?;
        cluster.apply(NAMESPACE, SERVER).await?;
    }
    let (at_home, at_provider) = (Server::of(home, provider).await?, Server::of(provider, home).await?);
    for (from, caller, called) in [(home, &at_home, &at_provider), (provider, &at_provider, &at_home)] {
        assert_ne!(called.real, called.seen, "the clusters of the lab overlap");
        let tcp = format!("timeout 5 wget -q -O - http://{}/clientip", SocketAddr::new(called.seen, 8080));
        from.wait(&format!("{} answers", called.seen), SOON, || async {
            let answer = call(from, &tcp).await?;
            // The called side sees the caller under the address it can answer to.
            let from = answer.trim().parse::<SocketAddr>();
            Ok(if from.is_ok_and(|from| from.ip() == caller.seen) {
                Look::Done(())
            } else {
                Look::NotYet(answer)
            })
        })
        .await?;
        let answer = call(from, &udp(called)).await?;
        assert!(answer.contains("reached"), "{answer}");
    }

    // The provider lets in what its rules say, and nothing else of that peer; what it sends itself is answered.
    let label = json!({"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}});
    let rules = json!([{"action": "Allow", "namespaceSelector": label, "ports": [{"port": 8080}]}]);
    let access = json!({"default": "Deny", "rules": rules});
    provider.change_peer("home", json!({"network": {"access": access}})).await?;
    let tcp =
        format!("/agnhost connect --timeout 2s {} && echo reached", SocketAddr::new(at_provider.seen, 8080));
    home.wait("UDP is not let in, and TCP is", SOON, || async {
        let (udp, tcp) = (call(home, &udp(&at_provider)).await?, call(home, &tcp).await?);
        let as_told = !udp.contains("reached") && tcp.contains("reached");
        Ok(if as_told { Look::Done(()) } else { Look::NotYet(format!("UDP {udp:?}, TCP {tcp:?}")) })
    })
    .await?;
    let answer = call(provider, &udp(&at_home)).await?;
    assert!(answer.contains("reached"), "{answer}");
    provider
        .wait("status tells what was denied", SOON, || async {
            let status = provider.liquidctl.run(["status"]).await?.ok()?;
            let line = status.lines().find(|line| line.starts_with("home ") && line.contains(" Deny "));
            let told = line.is_some_and(|line| line.contains(" s ago, node ") && line.contains("dropped"));
            Ok(if told { Look::Done(()) } else { Look::NotYet(status) })
        })
        .await?;
    provider.change_peer("home", json!({"network": null})).await?;
    home.wait("UDP is let in again", SOON, || async {
        let answer = call(home, &udp(&at_provider)).await?;
        Ok(if answer.contains("reached") { Look::Done(()) } else { Look::NotYet(answer) })
    })
    .await?;

    home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
    home.wait(&format!("{} answers no more", at_provider.seen), SOON, || async {
        let answer = call(home, &tcp).await?;
        Ok(if answer.contains("reached") { Look::NotYet(answer) } else { Look::Done(()) })
    })
    .await?;
    for cluster in [home, provider] {
        cluster.delete_namespace(NAMESPACE).await?;
    }
    Ok(())
}

/// A host that is in neither cluster, to be reached by name wherever a pod of home runs.
fn outside(host: IpAddr, port: u16) -> String {
    let family = if host.is_ipv4() { "IPv4" } else { "IPv6" };
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: outside}}
spec: {{ports: [{{port: 443, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: outside-1, labels: {{kubernetes.io/service-name: outside}}}}
addressType: {family}
ports: [{{port: {port}}}]
endpoints: [{{addresses: ['{host}']}}]
"
    )
}

/// Would catch: hosts outside of home that its pods in a provider do not reach through it each time, or whose answers do not come
/// back, a provider in which their addresses are taken for those of others, hosts that nobody offered, others in the provider that
/// reach them, and peers that are offered them although home does not let them in everywhere.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn pods_reach_hosts_outside_of_home_wherever_they_run() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    provider.delete_namespace(NAMESPACE).await?;
    environment.install(home).await?;
    offloaded(home, NAMESPACE).await?;
    // Home's API server is no pod, and on none of its nodes.
    let server: Uri = kube::Config::from_custom_kubeconfig(
        Kubeconfig::read_from(&home.kubeconfig)?,
        &KubeConfigOptions::default(),
    )
    .await?
    .cluster_url;
    let host: IpAddr = server.host().unwrap_or_default().trim_matches(['[', ']']).parse()?;
    let (port, length) = (server.port_u16().unwrap_or(443), if host.is_ipv4() { 32 } else { 128 });
    let pod = SERVER.replace("spec:\n", "spec:\n  nodeSelector: {liquid.mesh/peer: provider}\n");
    home.apply(NAMESPACE, &format!("{pod}---{}", outside(host, port))).await?;
    home.wait_for_pods(NAMESPACE, "app=server", 1, SOON).await?;
    let there = format!("{NAMESPACE}-home");
    // Each call is a connection of its own.
    let ask = "for call in 1 2 3 4 5 6 7 8 9 10; do /agnhost connect --timeout 2s outside:443 || exit 1; done; echo reached";
    let listed = || async {
        let endpoints = provider.endpoints(&there, "outside").await?;
        anyhow::Ok(endpoints.into_iter().flat_map(|endpoint| endpoint.addresses).collect::<Vec<_>>())
    };
    let expect = async |what: &str, addresses: usize| {
        provider
            .wait(what, SOON, || async {
                let listed = listed().await?;
                let said = call(home, ask).await?;
                let right = listed.len() == addresses && said.contains("reached") == (addresses > 0);
                Ok(if right { Look::Done(listed) } else { Look::NotYet(format!("{listed:?}: {said}")) })
            })
            .await
    };
    expect("what is not offered is not reached", 0).await?;
    environment.install_with(home, &[&format!("network.externalCIDRs={{{host}/{length}}}")]).await?;
    let seen = expect("it is offered", 1).await?;
    println!("{host} is seen as {seen:?}");
    assert_ne!(seen, [host.to_string()], "somebody else may have that address in the provider");
    // A pod of the provider itself, which home lets in to its pods.
    provider.delete_namespace(THEIRS).await?;
    provider.create_namespace(THEIRS).await?;
    provider.apply(THEIRS, SERVER).await?;
    provider.wait_for_pods(THEIRS, "app=server", 1, SOON).await?;
    let image = format!("/agnhost connect --timeout 2s {} 2>&1", SocketAddr::new(seen[0].parse()?, port));
    let said = provider.shell(THEIRS, "server", &image).await?;
    assert!(said.out.contains("TIMEOUT"), "somebody else gets there: {said:?}");
    provider.delete_namespace(THEIRS).await?;
    home.change_peer("provider", json!({"network": {"access": {"default": "Deny"}}})).await?;
    expect("the peer is not let in everywhere", 0).await?;
    home.change_peer("provider", json!({"network": null})).await?;
    expect("it is offered again", 1).await?;
    environment.install(home).await?;
    expect("it is not offered any more", 0).await?;
    home.delete_namespace(NAMESPACE).await
}
