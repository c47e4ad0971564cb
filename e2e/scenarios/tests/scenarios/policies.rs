//! NetworkPolicies of home in the provider, on real traffic.

use crate::manifests::drop_namespace;
use anyhow::Context as _;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use liquid_lab::Progress;
use liquid_scenarios::{Cluster, Environment, Look};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "walls";
const THERE: &str = "walls-home";
const WATCH: &str = "walls-watch";

/// A server that is also a client, under its own name, on nodes of one kind.
fn party(name: &str, app: &str, virtual_node: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}, name: {name}, all: 'yes'}}}}
spec:
  terminationGracePeriodSeconds: 1
  affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: [{{key: liquid.mesh/type, operator: {virtual_node}}}]}}]}}}}}}
  containers:
    - name: main
      image: lab.local/agnhost:1
      imagePullPolicy: IfNotPresent
      command: [/agnhost, netexec, --http-port=8080]
      ports: [{{name: web, containerPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{name: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
"
    )
}

/// Clients and watchers may come to servers; clients may go to servers, and resolve names.
const POLICIES: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: servers}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}, {namespaceSelector: {matchLabels: {purpose: watch}}}]
      ports: [{port: web}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {matchLabels: {app: server}}}]
      ports: [{port: web}]
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
      ports: [{port: 53, protocol: UDP}]
";

/// Of the provider's own: nobody may come in.
const CLOSED: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

/// Waits until a pod reaches another, or does not.
async fn reaches(home: &Cluster, from: &str, to: &str, expected: bool) -> anyhow::Result<()> {
    let (namespace, to) =
        if from == "watcher" { (WATCH, format!("{to}.{NAMESPACE}")) } else { (NAMESPACE, to.to_owned()) };
    let ask = format!("timeout 2 wget -q -O - http://{to}/hostname");
    home.wait(
        &format!("{from} {} {to}", if expected { "reaches" } else { "does not reach" }),
        SOON,
        || async {
            let output = home.shell(namespace, from, &ask).await?;
            let reached = output.code == 0 && !output.out.is_empty();
            Ok(if reached == expected { Look::Done(()) } else { Look::NotYet(format!("{output:?}")) })
        },
    )
    .await
}

/// Would catch: policies that are not there, or hold for nobody; pods at home, pods in the provider or namespaces that a policy
/// means and that are not let in, or are although it does not mean them; ports by their names; pods that cannot resolve names
/// any more; labels that change at home and nothing happens; what the provider has closed and home opens; and policies that
/// outlive the wish for them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn network_policies_of_home_hold_in_the_provider() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let lab = environment.lab.clone().context("this needs the lab")?;
    let enforcing = lab.clone();
    let enforce = move || enforcing.cluster("b")?.enforce_network_policies(&Progress::new());
    tokio::task::spawn_blocking(enforce).await??;
    home.wait_for_network(&provider.name, SOON).await?;
    provider.wait_for_network(&home.name, SOON).await?;
    for namespace in [NAMESPACE, WATCH] {
        home.delete_namespace(namespace).await?;
        home.create_namespace(namespace).await?;
    }
    home.kubectl.run(["label", "namespace", WATCH, "purpose=watch"]).await?.ok()?;
    home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
    home.apply(NAMESPACE, POLICIES).await?;
    let mut all = String::new();
    for (side, node) in [("near", "DoesNotExist"), ("far", "Exists")] {
        for app in ["server", "client", "stranger"] {
            all.push_str(&party(&format!("{side}-{app}"), app, node));
        }
    }
    home.apply(NAMESPACE, &all).await?;
    home.apply(WATCH, &party("watcher", "watcher", "DoesNotExist")).await?;
    home.wait_for_pods(NAMESPACE, "all=yes", 6, SOON).await?;
    home.wait_for_pods(WATCH, "all=yes", 1, SOON).await?;

    for (from, to, expected) in [
        ("far-client", "far-server", true),
        ("near-client", "far-server", true),
        ("watcher", "far-server", true),
        ("near-stranger", "far-server", false),
        ("far-stranger", "far-server", false),
        ("far-client", "near-server", true),
        ("far-client", "near-stranger", false),
        ("far-client", "far-stranger", false),
        ("far-stranger", "near-stranger", true),
        ("watcher", "far-stranger", true),
    ] {
        reaches(home, from, to, expected).await?;
    }

    let begun = Instant::now();
    home.kubectl
        .run(["label", "-n", NAMESPACE, "pod/near-stranger", "app=client", "--overwrite"])
        .await?
        .ok()?;
    reaches(home, "near-stranger", "far-server", true).await?;
    println!("a pod at home was let in {:.1} s after its label", begun.elapsed().as_secs_f64());
    home.kubectl
        .run(["label", "-n", NAMESPACE, "pod/near-stranger", "app=stranger", "--overwrite"])
        .await?
        .ok()?;
    reaches(home, "near-stranger", "far-server", false).await?;
    home.kubectl.run(["label", "namespace", WATCH, "purpose-"]).await?.ok()?;
    reaches(home, "watcher", "far-server", false).await?;

    provider.apply(THERE, CLOSED).await?;
    reaches(home, "far-client", "far-server", false).await?;
    home.wait("an Event about that", SOON, || async {
        let events = home.events(NAMESPACE).await?;
        Ok(if events.contains("PolicyOverruled") { Look::Done(()) } else { Look::NotYet(events) })
    })
    .await?;
    provider.kubectl.run(["delete", "networkpolicy", "-n", THERE, "closed"]).await?.ok()?;
    reaches(home, "far-client", "far-server", true).await?;

    home.liquidctl.run(["offload", "namespace", NAMESPACE, "--network-policies", "none"]).await?.ok()?;
    let policies: Api<NetworkPolicy> = Api::namespaced(provider.client.clone(), THERE);
    provider
        .wait("no policies in the provider", SOON, || async {
            let left = policies.list_metadata(&Default::default()).await?.items.len();
            Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left}")) })
        })
        .await?;
    reaches(home, "far-stranger", "far-server", true).await?;
    let end = move || lab.cluster("b")?.stop_enforcing_network_policies();
    tokio::task::spawn_blocking(end).await??;
    home.delete_namespace(WATCH).await?;
    drop_namespace(home, NAMESPACE).await
}
