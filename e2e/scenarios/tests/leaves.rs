//! Pods of one cluster that run in two others, and clusters that reach each other by IPv6 alone, on a lab of three dual-stack
//! clusters: `cargo xtask lab up --clusters a,b,c --ip-families dual`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use liquid_crds::{Peer, PodCidr};
use liquid_lab::{Cut, Direction, Link};
use liquid_scenarios::{Cluster, Environment, Look};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "leaves";
const THERE: &str = "leaves-home";
/// A namespace of the providers' own.
const STRANGERS: &str = "strangers";
/// Of a pod that stays at home.
const NEAR: &str = "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: \
                    [{matchExpressions: [{key: liquid.mesh/type, operator: DoesNotExist}]}]}}}";
/// Longer than it takes to be answered, and than TCP needs to try twice.
const NO_ANSWER: &str = "4s";

/// Kubernetes' test server, which says by which address it is called (TCP 8080) and answers to UDP 8081.
fn server(name: &str, placement: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web, name: {name}}}}}
spec:
  hostname: {name}
  subdomain: headless
  terminationGracePeriodSeconds: 1
  {placement}
  containers:
    - name: main
      image: lab.local/agnhost:1
      imagePullPolicy: IfNotPresent
      command: [/agnhost, netexec, --http-port=8080, --udp-port=8081]
      readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
"
    )
}

const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: udp, port: 81, targetPort: 8081, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}
";

/// Runs a script in a pod of home, wherever that runs.
async fn run(cluster: &Cluster, namespace: &str, pod: &str, script: &str) -> anyhow::Result<String> {
    Ok(cluster.shell(namespace, pod, script).await?.all())
}

/// Waits until what a pod of home does has this outcome.
async fn expect(
    home: &Cluster,
    pod: &str,
    script: &str,
    outcome: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    home.wait(&format!("{script} in {pod}"), SOON, || async {
        let said = run(home, NAMESPACE, pod, script).await?;
        Ok(if outcome(&said) { Look::Done(said) } else { Look::NotYet(said) })
    })
    .await
}

/// Ready endpoints of the Service `headless` by their host names.
async fn listed(cluster: &Cluster, namespace: &str) -> anyhow::Result<BTreeMap<String, Vec<IpAddr>>> {
    let mut listed: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for endpoint in cluster.endpoints(namespace, "headless").await? {
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
        listed.entry(endpoint.hostname.unwrap_or_default()).or_default().extend(addresses);
    }
    listed.values_mut().for_each(|addresses| addresses.sort());
    Ok(listed)
}

/// Waits until a provider lists the endpoints of these pods and no others; returns their addresses.
async fn lists(
    provider: &Cluster,
    pods: &[&str],
    families: usize,
) -> anyhow::Result<BTreeMap<String, Vec<IpAddr>>> {
    provider
        .wait(&format!("endpoints of {pods:?}"), SOON, || async {
            let listed = listed(provider, THERE).await?;
            let all = listed.keys().map(String::as_str).eq(pods.iter().copied())
                && listed.values().all(|addresses| addresses.len() == families);
            Ok(if all { Look::Done(listed) } else { Look::NotYet(format!("{listed:?}")) })
        })
        .await
}

fn url(address: IpAddr, path: &str) -> String {
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    format!("http://{host}:8080/{path}")
}

fn endpoint(address: IpAddr, port: u16) -> String {
    if address.is_ipv6() { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Waits until a provider lists the endpoint of a pod in the other under a prefix of that peering, or under none.
async fn lists_as_peer(
    provider: &Cluster,
    other: &Cluster,
    pod: &str,
    families: usize,
    limit: Duration,
    as_peer: bool,
) -> anyhow::Result<Vec<IpAddr>> {
    let peers: Api<Peer> = Api::all(provider.client.clone());
    provider
        .wait(&format!("endpoint of {pod}, of a peer: {as_peer}"), limit, || async {
            let status = peers.get_opt(&other.name).await?.and_then(|peer| peer.status);
            let network = status.and_then(|status| status.network).unwrap_or_default();
            let of_peer = |address: &IpAddr| {
                let mut prefixes = network.own_pods().filter_map(PodCidr::prefixes);
                prefixes.any(|(_, seen)| seen.contains(address))
            };
            let listed = listed(provider, THERE).await?.remove(pod).unwrap_or_default();
            let right = listed.len() == families && listed.iter().all(|address| of_peer(address) == as_peer);
            Ok(if right { Look::Done(listed) } else { Look::NotYet(format!("{listed:?}")) })
        })
        .await
}

/// The two providers become peers of each other.
async fn between_peers(environment: &Environment, third: &Cluster, families: usize) -> anyhow::Result<()> {
    let (home, provider) = (&environment.home, &environment.provider);
    let lab = environment.lab.as_ref().context("the lab")?;
    let links = [lab.link("a", "b")?, lab.link("a", "c")?, lab.link("b", "c")?];
    let both = [(provider, third, "at-b", "at-c"), (third, provider, "at-c", "at-b")];
    for (_, _, from, to) in both {
        let call = format!("timeout 2 wget -q -O - http://{to}.headless:8080/hostname >/dev/null");
        let script = format!(
            "rm -f /tmp/calls /tmp/stop; (while [ ! -e /tmp/stop ]; do {call} && echo yes || echo no; sleep 0.1; done \
             >> /tmp/calls) >/dev/null 2>&1 &"
        );
        run(home, NAMESPACE, from, &script).await?;
    }
    provider.peer_with(third).await?;
    for (one, other) in [(provider, third), (third, provider)] {
        one.wait_for_network(&other.name, SOON).await?;
    }
    let begin = Instant::now();
    let mut seen = BTreeMap::new();
    for (there, other, _, beyond) in both {
        seen.insert(beyond, lists_as_peer(there, other, beyond, families, SOON, true).await?);
    }
    println!("endpoints are those of the peer after {:.1} s", begin.elapsed().as_secs_f64());
    // Names lead there when they are looked up anew.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for (_, _, from, _) in both {
        let calls = run(home, NAMESPACE, from, "touch /tmp/stop; cat /tmp/calls").await?;
        let (right, lost) = (calls.matches("yes").count(), calls.matches("no").count());
        println!("calls from {from} while they become peers: {right}, lost {lost}");
        assert!(right > 50 && lost == 0, "{from}: {right} and {lost}");
    }
    for (there, _, _, beyond) in both {
        let status = there.liquidctl.run(["status"]).await?.ok()?;
        let is_it = |line: &str| line.starts_with("this cluster") && line.contains("direct");
        assert_eq!(status.lines().filter(|line| is_it(line)).count(), families, "{beyond}: {status}");
    }
    // They need home for nothing now. Commands take the way through home's link, so it is asked before that is cut.
    let asks = |to: &str| {
        let loops = seen[to].iter().map(|target| {
            format!(
                "timeout 3 wget -q -O - '{}' >> /tmp/said || echo no >> /tmp/said",
                url(*target, "clientip")
            )
        });
        let asked = loops.collect::<Vec<_>>().join("; echo >> /tmp/said; ");
        format!("rm -f /tmp/said; (sleep 3; {asked}; echo end >> /tmp/said) >/dev/null 2>&1 &")
    };
    let asked = Instant::now();
    for (_, _, from, to) in both {
        run(home, NAMESPACE, from, &asks(to)).await?;
    }
    links[..2].iter().try_for_each(|link| link.cut(Cut::All, Direction::Both))?;
    assert!(asked.elapsed() < Duration::from_secs(3), "they were asked before");
    tokio::time::sleep(Duration::from_secs(6)).await;
    links[..2].iter().try_for_each(Link::restore)?;
    for (_, _, from, to) in both {
        let said = expect(home, from, "cat /tmp/said", |said| said.contains("end")).await?;
        for caller in &seen[from] {
            let listed = endpoint(*caller, 0);
            assert!(said.contains(listed.trim_end_matches('0')), "{from} to {to}, home cut off: {said}");
        }
    }
    // Without the direct way there is the one through home again.
    links[2].cut(Cut::All, Direction::Both)?;
    let begin = Instant::now();
    for (there, other, from, beyond) in both {
        let seen = lists_as_peer(there, other, beyond, families, SOON, false).await?;
        for target in seen {
            let ask = format!("timeout 3 wget -q -O - '{}'", url(target, "hostname"));
            expect(home, from, &ask, |said| said.trim() == beyond).await?;
        }
    }
    println!("through home again {:.1} s after the direct way was cut", begin.elapsed().as_secs_f64());
    links[2].restore()?;
    // It is taken again, and not where somebody is kept out.
    lists_as_peer(third, provider, "at-b", families, SOON, true).await?;
    third.change_peer("provider", json!({"network": {"access": {"default": "Deny"}}})).await?;
    for (there, other, _, beyond) in both {
        lists_as_peer(there, other, beyond, families, SOON, false).await?;
    }
    third.change_peer("provider", json!({"network": null})).await?;
    lists_as_peer(provider, third, "at-c", families, SOON, true).await?;
    provider.liquidctl.run(["unpeer", "third"]).await?.ok()?;
    lists_as_peer(third, provider, "at-b", families, SOON, false).await.map(drop)
}

/// Would catch: pods in two providers that do not reach each other by address, Service or name, one protocol, family or
/// direction that works without the other, sources that are not those that endpoints and policies list, endpoints of pods
/// that are not ready or are gone, providers that are peers and go through home, lose something while they become peers, or have
/// no other way than the direct one, other pods of a provider that get to another provider through home, and a peer that shall take
/// no part and does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a lab of three clusters"]
async fn pods_in_two_providers_reach_each_other_through_home_and_nobody_else_does() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let third = environment.further("c", "third").await?;
    let (home, provider) = (&environment.home, &environment.provider);
    if !home.is_peered(&third).await? {
        home.peer_with(&third).await?;
    }
    home.wait_for_node("liquid-third", true, SOON).await?;
    for cluster in [provider, &third] {
        cluster.delete_namespace(STRANGERS).await?;
        cluster.create_namespace(STRANGERS).await?;
        cluster.apply(STRANGERS, &server("stranger", "restartPolicy: Always")).await?;
    }
    home.delete_namespace(NAMESPACE).await?;
    home.create_namespace(NAMESPACE).await?;
    home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
    let begin = Instant::now();
    let at = |peer: &str| format!("nodeSelector: {{liquid.mesh/peer: {peer}}}");
    let pods =
        [server("at-b", &at("provider")), server("at-c", &at("third")), server("at-home", NEAR)].concat();
    home.apply(NAMESPACE, &format!("{pods}{SERVICES}")).await?;
    let started = home.wait_for_pods(NAMESPACE, "app=web", 3, SOON).await?;
    let families = started[0].status.as_ref().unwrap().pod_ips.as_ref().unwrap().len();

    // Each provider lists all three, the one in the other under the address it sees.
    let all = ["at-b", "at-c", "at-home"];
    let (of_b, of_c) = (lists(provider, &all, families).await?, lists(&third, &all, families).await?);
    println!("{families} families; all endpoints everywhere after {:.1} s", begin.elapsed().as_secs_f64());
    for ((from, to), (seen, source)) in
        [(("at-b", "at-c"), (&of_b, &of_c)), (("at-c", "at-b"), (&of_c, &of_b))]
    {
        for (target, caller) in seen[to].iter().zip(&source[from]) {
            let ask = format!("timeout 5 wget -q -O - '{}'", url(*target, "clientip"));
            let listed = endpoint(*caller, 0);
            let prefix = listed.trim_end_matches('0');
            expect(home, from, &ask, |said| said.starts_with(prefix)).await?;
            let udp = format!(
                "/agnhost connect --protocol udp --timeout 3s '{}' && echo reached",
                endpoint(*target, 8081)
            );
            expect(home, from, &udp, |said| said.contains("reached")).await?;
        }
        let by_name = format!("timeout 5 wget -q -O - http://{to}.headless:8080/hostname");
        expect(home, from, &by_name, |said| said.trim() == to).await?;
        // Connections are spread by chance: of 30, with all right, one in 60,000 tries would miss somebody.
        let ask = "for i in $(seq 30); do timeout 5 wget -q -O - http://web/hostname; echo; done";
        expect(home, from, ask, |said| {
            all.iter().all(|name| said.contains(name))
                && said.lines().filter(|line| !line.trim().is_empty()).all(|line| all.contains(&line.trim()))
        })
        .await?;
        let ask = "for i in $(seq 20); do /agnhost connect --protocol udp --timeout 3s web:81 && echo reached; done";
        let said = run(home, NAMESPACE, from, ask).await?;
        assert_eq!(said.matches("reached").count(), 20, "UDP to the Service from {from}: {said}");
        // What does not fit one packet.
        let long = format!(
            "timeout 10 wget -q -O - 'http://{to}.headless:8080/echo?msg='$(head -c 6000 /dev/zero | tr '\\0' x) | wc -c"
        );
        expect(home, from, &long, |said| said.trim().parse().is_ok_and(|length: usize| length >= 6000))
            .await?;
    }
    println!("reached by address, name and Service after {:.1} s", begin.elapsed().as_secs_f64());

    // All three say so.
    for (cluster, row) in [
        (home, ["provider", "of third", "this cluster", "ready"]),
        (home, ["third", "of provider", "this cluster", "ready"]),
        (provider, ["this cluster", "10.", "home", "known"]),
        (&third, ["this cluster", "10.", "home", "known"]),
    ] {
        let status = cluster.liquidctl.run(["status"]).await?.ok()?;
        let is_it = |line: &str| line.starts_with(row[0]) && row.iter().all(|word| line.contains(word));
        assert!(status.lines().any(is_it), "{row:?} in the status of {}: {status}", cluster.name);
    }

    // Policies let in the very addresses that callers have.
    let policies: Api<NetworkPolicy> = Api::namespaced(third.client.clone(), THERE);
    third
        .wait("the policy lists the pod in the other provider", SOON, || async {
            let policy = json!(policies.get("web").await?.spec).to_string();
            let known = of_c["at-b"].iter().all(|address| policy.contains(&address.to_string()));
            Ok(if known { Look::Done(()) } else { Look::NotYet(policy) })
        })
        .await?;

    // Pods of the providers' own reach those at home, as ever, and no further.
    for (cluster, seen, beyond) in [(provider, &of_b, "at-c"), (&third, &of_c, "at-b")] {
        cluster.wait_for_pods(STRANGERS, "name=stranger", 1, SOON).await?;
        for address in &seen["at-home"] {
            let ask = format!(
                "/agnhost connect --timeout {NO_ANSWER} '{}' && echo reached",
                endpoint(*address, 8080)
            );
            let said = run(cluster, STRANGERS, "stranger", &ask).await?;
            assert!(said.contains("reached"), "{said}");
        }
        for address in &seen[beyond] {
            let ask = format!(
                "/agnhost connect --timeout {NO_ANSWER} '{}' && echo reached",
                endpoint(*address, 8080)
            );
            let said = run(cluster, STRANGERS, "stranger", &ask).await?;
            assert!(said.contains("TIMEOUT") && !said.contains("reached"), "{}: {said}", cluster.name);
        }
    }

    // A peer that takes no part is neither listed nor reached, and takes part again when it shall.
    let target = of_b["at-c"][0];
    let ask = format!("/agnhost connect --timeout {NO_ANSWER} '{}' && echo reached", endpoint(target, 8080));
    home.change_peer("third", json!({"network": {"transit": "None"}})).await?;
    lists(provider, &["at-b", "at-home"], families).await?;
    lists(&third, &["at-c", "at-home"], families).await?;
    expect(home, "at-b", &ask, |said| !said.contains("reached")).await?;
    home.change_peer("third", json!({"network": null})).await?;
    lists(provider, &all, families).await?;
    expect(home, "at-b", &ask, |said| said.contains("reached")).await?;

    between_peers(&environment, &third, families).await?;

    // What has ended is not listed.
    let begin = Instant::now();
    home.kubectl.run(["delete", "pod", "-n", NAMESPACE, "at-c", "--wait=false"]).await?.ok()?;
    lists(provider, &["at-b", "at-home"], families).await?;
    println!(
        "endpoint of a pod in one provider gone in the other after {:.1} s",
        begin.elapsed().as_secs_f64()
    );

    home.delete_namespace(NAMESPACE).await?;
    home.liquidctl.run(["unpeer", "third"]).await?.ok()?;
    for cluster in [provider, &third] {
        cluster.give_up_namespace(STRANGERS).await?;
    }
    Ok(())
}

/// Would catch: addresses of nodes or Services that are told in one family only, sockets that listen for one, tunnels or links
/// that give up when the first address leads nowhere.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a lab of three clusters"]
async fn clusters_that_reach_each_other_by_ipv6_alone_are_peered() -> anyhow::Result<()> {
    let environment = Environment::open().await?.unpeered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let link = environment.lab.as_ref().context("the lab")?.link("a", "b")?;
    home.delete_namespace(NAMESPACE).await?;
    link.cut(Cut::Ipv4, Direction::Both)?;
    let done = async {
        for (transport, invite) in [("out-of-band", &["invite"][..]), ("in-band", &["invite", "--in-band"])] {
            let token = provider.liquidctl.run(invite.iter().copied()).await?.ok()?;
            let begin = Instant::now();
            home.liquidctl.run(["peer", transport, "--token", token.trim()]).await?.ok()?;
            let peered = begin.elapsed().as_secs_f64();
            home.wait_for_node("liquid-provider", true, SOON).await?;
            for (one, other) in [(home, provider), (provider, home)] {
                one.wait_for_network(&other.name, SOON).await?;
            }
            println!("{transport} {peered:.1} s, with the network {:.1} s", begin.elapsed().as_secs_f64());
            home.create_namespace(NAMESPACE).await?;
            home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
            let there = server("there", "nodeSelector: {liquid.mesh/peer: provider}");
            home.apply(NAMESPACE, &format!("{there}{}", server("here", NEAR))).await?;
            let pods = home.wait_for_pods(NAMESPACE, "app=web", 2, SOON).await?;
            let is_there = |pod: &&Pod| pod.metadata.name.as_deref() == Some("there");
            let addresses = pods.iter().find(is_there).and_then(|pod| pod.status.clone()?.pod_ips);
            let addresses = addresses.context("addresses")?;
            assert_eq!(addresses.len(), 2);
            for address in addresses {
                let ask = format!("timeout 5 wget -q -O - '{}'", url(address.ip.parse()?, "hostname"));
                expect(home, "here", &ask, |said| said.trim() == "there").await?;
            }
            home.delete_namespace(NAMESPACE).await?;
            provider.liquidctl.run(["unpeer", "home"]).await?;
            home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
        }
        anyhow::Ok(())
    };
    let done = done.await;
    link.restore()?;
    done?;
    provider.drop_tokens().await
}
