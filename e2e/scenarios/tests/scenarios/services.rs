//! Services that lead to pods of both clusters, whichever of them asks.

use crate::manifests::{drop_namespace, offloaded};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use liquid_scenarios::{Cluster, Environment, Look};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "across";
const THERE: &str = "across-home";

/// A client, and servers that answer with their names, of one cluster: with the affinity that keeps them there.
fn side(name: &str, virtual_node: &str) -> String {
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{at: {name}}}}}
  template:
    metadata: {{labels: {{at: {name}, app: web, app.kubernetes.io/managed-by: somebody}}}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: [{{key: liquid.mesh/type, operator: {virtual_node}}}]}}]}}}}}}
      containers:
        - name: main
          image: lab.local/agnhost:1
          imagePullPolicy: IfNotPresent
          command: [/agnhost, netexec, --http-port=8080, --udp-port=8081]
          readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-client, labels: {{client: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: [{{key: liquid.mesh/type, operator: {virtual_node}}}]}}]}}}}}}
  containers: [{{name: main, image: 'lab.local/agnhost:1', imagePullPolicy: IfNotPresent, command: [/agnhost, pause]}}]
"
    )
}

/// The label somebody else's tools use is a selector like any other.
const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web, app.kubernetes.io/managed-by: somebody}
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: udp, port: 81, targetPort: 8081, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 8080}]
";

/// Runs a script in the client of one side: through the virtual node, where that is far.
async fn client(home: &Cluster, side: &str, script: &str) -> anyhow::Result<String> {
    let pod = format!("{side}-client");
    Ok(home.shell(NAMESPACE, &pod, script).await?.all())
}

/// Names that answer to a client when it asks again and again.
async fn answers(home: &Cluster, side: &str, ask: &str, expected: &BTreeSet<String>) -> anyhow::Result<()> {
    let script = format!("for i in $(seq 20); do {ask}; echo; done");
    let seen = std::sync::Mutex::new(BTreeSet::new());
    home.wait(&format!("{ask} from the {side} side"), SOON, || async {
        let said = client(home, side, &script).await?;
        let mut seen = seen.lock().unwrap();
        seen.extend(said.lines().map(str::trim).filter(|line| expected.contains(*line)).map(str::to_owned));
        Ok(if *seen == *expected {
            Look::Done(())
        } else {
            Look::NotYet(format!("{seen:?} have answered of {expected:?}: {said}"))
        })
    })
    .await
}

/// Addresses of ready endpoints of a Service.
async fn endpoints(cluster: &Cluster, namespace: &str, service: &str) -> anyhow::Result<BTreeSet<String>> {
    let ready = cluster.endpoints(namespace, service).await?;
    Ok(ready.into_iter().flat_map(|endpoint| endpoint.addresses).collect())
}

async fn wait_for_endpoints(cluster: &Cluster, namespace: &str, count: usize) -> anyhow::Result<()> {
    for service in ["web", "headless"] {
        cluster
            .wait(&format!("{count} endpoints of {service}"), SOON, || async {
                let found = endpoints(cluster, namespace, service).await?;
                Ok(if found.len() == count { Look::Done(()) } else { Look::NotYet(format!("{found:?}")) })
            })
            .await?;
    }
    Ok(())
}

/// Would catch: pods on virtual nodes without an address, Services at home that leave them out, Services in the provider
/// that leave out pods at home, one protocol or direction that works without the other, node ports that do not reach pods
/// of the other cluster, labels of others' tools that are lost on the way, and endpoints that outlive their pods.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_service_leads_to_pods_of_both_clusters_from_both() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    home.wait_for_network(&provider.name, SOON).await?;
    provider.wait_for_network(&home.name, SOON).await?;
    offloaded(home, NAMESPACE).await?;
    home.apply(
        NAMESPACE,
        &format!("{}---{}---{SERVICES}", side("near", "DoesNotExist"), side("far", "Exists")),
    )
    .await?;
    for (selector, count) in [("app=web", 4), ("client", 2)] {
        for pod in home.wait_for_pods(NAMESPACE, selector, count, SOON).await? {
            let address = pod.status.and_then(|status| status.pod_ip);
            assert!(address.is_some(), "{:?} has no address", pod.metadata.name);
        }
    }
    wait_for_endpoints(home, NAMESPACE, 4).await?;
    wait_for_endpoints(provider, THERE, 4).await?;
    let names = home.pods(NAMESPACE, "app=web").await?.into_iter().filter_map(|pod| pod.metadata.name);
    let names: BTreeSet<String> = names.collect();
    let service: Service = Api::namespaced(home.client.clone(), NAMESPACE).get("web").await?;
    let port = service.spec.and_then(|spec| spec.ports?.first()?.node_port).unwrap_or_default();
    let node = home.pods(NAMESPACE, "at=near").await?[0].status.clone().and_then(|status| status.host_ip);
    let node = SocketAddr::new(node.unwrap_or_default().parse()?, port.try_into()?);
    for side in ["near", "far"] {
        answers(home, side, "timeout 5 wget -q -O - http://web/hostname", &names).await?;
        let udp = "for i in $(seq 20); do /agnhost connect --protocol udp --timeout 3s web:81 && echo reached; done";
        let said = client(home, side, udp).await?;
        assert_eq!(said.matches("reached").count(), 20, "UDP from the {side} side: {said}");
        answers(home, side, "for a in $(nslookup headless | awk '/^Address/ {print $NF}' | grep -v -e ']:53' -e '[.][0-9]*:53'); do case $a in *:*) a=[$a];; esac; timeout 5 wget -q -O - http://$a:8080/hostname; echo; done", &names).await?;
    }
    // By the node's own address: what comes in there has the node as its source.
    answers(home, "near", &format!("timeout 5 wget -q -O - http://{node}/hostname"), &names).await?;

    let begin = Instant::now();
    home.kubectl.run(["scale", "-n", NAMESPACE, "deployment/near", "--replicas=0"]).await?.ok()?;
    wait_for_endpoints(provider, THERE, 2).await?;
    println!("endpoints at home gone in the provider after {:.1} s", begin.elapsed().as_secs_f64());
    let far = names.into_iter().filter(|name| name.starts_with("far")).collect();
    answers(home, "far", "timeout 5 wget -q -O - http://web/hostname", &far).await?;
    answers(home, "near", "timeout 5 wget -q -O - http://web/hostname", &far).await?;
    drop_namespace(home, NAMESPACE).await
}
