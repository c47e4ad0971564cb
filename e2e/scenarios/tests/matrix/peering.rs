//! A peering of home with one provider, and what is asked over it.

use crate::Relation;
use crate::cells::{self, Cell, Protocol, Wanted};
use crate::stage::Stage;
use anyhow::{Context as _, ensure};
use futures::future::try_join;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use liquid_crds::PodCidr;
use liquid_scenarios::{Cluster, Look};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Longest wait for anything the clusters do by themselves.
const SOON: Duration = Duration::from_secs(90);
/// Ports of the pods.
const POD_TCP: u16 = 8080;
const POD_UDP: u16 = 8081;
/// Ports of the Service.
const TCP: u16 = 80;
const UDP: u16 = 81;
/// Where the addresses of load balancers begin, counted from the LAN's: clear of the machines.
const FIRST_BALANCER: u8 = 200;

/// A namespace of home that is offloaded to one provider, with a pod on each side and Services over both.
pub(crate) struct Peering<'a> {
    relation: &'a Relation,
    home: &'a Cluster,
    provider: &'a Cluster,
    /// The namespace at home, and what it is called in the provider.
    namespace: String,
    there: String,
    /// A node of home, and the addresses of a load balancer that lead to it.
    node: String,
    balancer: Vec<IpAddr>,
    stage: &'a Stage,
}

/// What came of it.
pub(crate) struct Found {
    pub(crate) asked: usize,
    pub(crate) failures: Vec<String>,
}

/// Addresses of a pod on either side, one of each family of the relation.
#[derive(Debug, Clone)]
struct Addresses {
    near: Vec<IpAddr>,
    far: Vec<IpAddr>,
}

impl<'a> Peering<'a> {
    /// The peering with the provider that stands in this relation to home; its number makes its addresses its own.
    pub(crate) fn new(stage: &'a Stage, relation: &'a Relation, number: u8) -> anyhow::Result<Self> {
        let cluster = stage.lab.cluster("a")?;
        let plan = cluster.addresses();
        let last = FIRST_BALANCER + number;
        let balancer = |v4: &bool| -> anyhow::Result<IpAddr> {
            if *v4 {
                return Ok(Ipv4Addr::from(u32::from(plan.lan.network()) + u32::from(last)).into());
            }
            let lan = plan.lan_v6.context("home has no IPv6")?;
            Ok(Ipv6Addr::from(u128::from(lan.network()) + u128::from(last)).into())
        };
        Ok(Self {
            relation,
            home: &stage.home,
            provider: stage.provider(relation.name)?,
            namespace: relation.name.to_owned(),
            there: format!("{}-home", relation.name),
            node: plan.nodes.first().context("home has no node")?.name.clone(),
            balancer: relation.families.iter().map(balancer).collect::<anyhow::Result<_>>()?,
            stage,
        })
    }

    /// Waits until both sides say that the network is up, and checks that it is of the kind it is here for.
    pub(crate) async fn sees_prefixes_as_it_must(&self) -> anyhow::Result<()> {
        let (at_home, there) = try_join(
            self.home.wait_for_network(&self.provider.name, SOON),
            self.provider.wait_for_network(&self.home.name, SOON),
        )
        .await?;
        for (of, prefixes) in [(&self.provider.name, at_home), (&self.home.name, there)] {
            let pairs: Vec<_> = prefixes.iter().filter_map(PodCidr::prefixes).collect();
            let families: Vec<bool> = pairs.iter().map(|(real, _)| real.addr().is_ipv4()).collect();
            ensure!(
                families == self.relation.families,
                "{}: pods of {of} are seen as {pairs:?}",
                self.namespace
            );
            let moved = pairs.iter().all(|(real, seen)| (real != seen) == self.relation.moved);
            ensure!(moved, "{}: pods of {of} are seen as {pairs:?}", self.namespace);
        }
        Ok(())
    }

    /// Makes pods and Services, and waits until both sides know all their addresses.
    pub(crate) async fn furnish(&self) -> anyhow::Result<()> {
        let (home, namespace) = (self.home, &self.namespace);
        home.delete_namespace(namespace).await?;
        home.create_namespace(namespace).await?;
        let selector = format!("liquid.mesh/peer={}", self.provider.name);
        let offload = ["offload", "namespace", namespace, "--selector", &selector];
        home.liquidctl.run(offload).await?.ok()?;
        let remote = format!("liquid.mesh/peer: {}", self.provider.name);
        let near = pod("near", &format!("kubernetes.io/hostname: {}", self.node));
        let all = format!("{near}---{}---{SERVICES}", pod("far", &remote));
        // Until it is taken, as controllers do: with a selector of virtual nodes, pods are refused while the webhook is late.
        home.wait(&format!("pods and Services of {namespace}"), SOON, || async {
            home.apply(namespace, &all).await.map(Look::Done)
        })
        .await?;
        self.balance().await?;
        home.wait_for_pods(namespace, "app=web", 2, SOON).await?;
        Ok(())
    }

    /// Does what the controller of a load balancer does: gives the Service addresses, and sees that they lead to a node.
    async fn balance(&self) -> anyhow::Result<()> {
        let node = self.stage.lab.cluster("a")?;
        let node = node.machine(&self.node)?;
        for address in &self.balancer {
            let length = if address.is_ipv4() { 32 } else { 128 };
            node.exec(&["ip", "address", "replace", &format!("{address}/{length}"), "dev", "eth0"])?;
        }
        let ingress: Vec<_> = self.balancer.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let services: Api<Service> = Api::namespaced(self.home.client.clone(), &self.namespace);
        services.patch_status("web", &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }

    /// Asks everything from both sides.
    pub(crate) async fn ask(&self) -> anyhow::Result<Found> {
        let (at_home, there) = self.addresses().await?;
        let near = self.cells(self.home, &self.namespace, &at_home, (&at_home.far, &there.near)).await?;
        let far = self.cells(self.provider, &self.there, &there, (&there.near, &at_home.far)).await?;
        let (mut failures, more) =
            futures::future::join(self.ask_from("near", &at_home, &near), self.ask_from("far", &there, &far))
                .await;
        failures.extend(more);
        // The names are one more cell of each side.
        Ok(Found { asked: near.len() + far.len() + 2, failures })
    }

    async fn ask_from(&self, pod: &str, seen: &Addresses, cells: &[Cell]) -> Vec<String> {
        let mut failures = cells::ask(self.home, &self.namespace, pod, cells).await;
        if let Err(error) = self.resolves(pod, seen).await {
            failures.push(format!("{}, from {pod}: {error:#}", self.namespace));
        }
        failures
    }

    /// Deletes what was made in the clusters.
    pub(crate) async fn clear_away(&self) -> anyhow::Result<()> {
        self.home.give_up_namespace(&self.namespace).await
    }

    /// The addresses of both pods as they are at home and in the provider: in the statuses of pods, and in endpoints.
    async fn addresses(&self) -> anyhow::Result<(Addresses, Addresses)> {
        let of = async |cluster: &Cluster, namespace: &str, name: &str| {
            let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
            cluster
                .wait(&format!("addresses of all families of {namespace}/{name}"), SOON, || async {
                    let status = pods.get(name).await?.status.unwrap_or_default();
                    let listed = status.pod_ips.unwrap_or_default();
                    let found: Vec<IpAddr> = listed.iter().filter_map(|ip| ip.ip.parse().ok()).collect();
                    Ok(match self.of_each_family(&found) {
                        Some(found) => Look::Done(found),
                        None => Look::NotYet(format!("{found:?}")),
                    })
                })
                .await
        };
        let near = of(self.home, &self.namespace, "near").await?;
        let far = of(self.home, &self.namespace, "far").await?;
        let far_there = of(self.provider, &self.there, "far").await?;
        let at_home: BTreeSet<IpAddr> = near.iter().chain(&far).copied().collect();
        for service in ["web", "headless"] {
            let found =
                self.endpoints(self.home, &self.namespace, service, |found| *found == at_home).await?;
            ensure!(found == at_home, "{found:?}");
        }
        // Of the pod at home, what the provider's endpoints say is all there is to know.
        let complete = |found: &BTreeSet<IpAddr>| {
            found.len() == at_home.len() && far_there.iter().all(|ip| found.contains(ip))
        };
        let found = self.endpoints(self.provider, &self.there, "web", complete).await?;
        let same = self.endpoints(self.provider, &self.there, "headless", |other| *other == found).await?;
        let others: Vec<IpAddr> = same.into_iter().filter(|ip| !far_there.contains(ip)).collect();
        let near_there =
            self.of_each_family(&others).with_context(|| format!("endpoints in the provider: {found:?}"))?;
        Ok((Addresses { near, far }, Addresses { near: near_there, far: far_there }))
    }

    /// What a pod in `cluster` asks; the other pod is called at the first address of `other`, and sees it under the second.
    async fn cells(
        &self,
        cluster: &Cluster,
        namespace: &str,
        seen: &Addresses,
        (other, source): (&[IpAddr], &[IpAddr]),
    ) -> anyhow::Result<Vec<Cell>> {
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
        let here = services.get("web").await?.spec.unwrap_or_default();
        let cluster_ips: Vec<IpAddr> =
            here.cluster_ips.unwrap_or_default().iter().filter_map(|ip| ip.parse().ok()).collect();
        let cluster_ips = self
            .of_each_family(&cluster_ips)
            .with_context(|| format!("Service {namespace}/web has cluster addresses {cluster_ips:?}"))?;
        // Ways in from outside are at home, whoever asks.
        let services: Api<Service> = Api::namespaced(self.home.client.clone(), &self.namespace);
        let ports = services.get("web").await?.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let node_port = |name: &str| -> anyhow::Result<u16> {
            let port = ports.iter().find(|port| port.name.as_deref() == Some(name));
            Ok(u16::try_from(port.and_then(|port| port.node_port).context("no node port")?)?)
        };
        let node =
            Api::<Node>::all(self.home.client.clone()).get(&self.node).await?.status.unwrap_or_default();
        let node = node.addresses.unwrap_or_default();
        let node: Vec<IpAddr> = node.iter().filter_map(|found| found.address.parse().ok()).collect();
        let node = self.of_each_family(&node).with_context(|| format!("the node has addresses {node:?}"))?;

        let pods = |names: &[&str]| Wanted::Pods(names.iter().map(|name| (*name).to_owned()).collect());
        let all = || pods(&["near", "far"]);
        let mut cells = Vec::new();
        for family in 0..self.relation.families.len() {
            for (protocol, pod, service, name) in
                [(Protocol::Tcp, POD_TCP, TCP, "http"), (Protocol::Udp, POD_UDP, UDP, "udp")]
            {
                let mut cell = |what, ip: IpAddr, port, wanted| {
                    cells.push(Cell { what, protocol, target: SocketAddr::new(ip, port), wanted });
                };
                cell("address of the other pod", other[family], pod, Wanted::Source(source[family]));
                cell("ClusterIP", cluster_ips[family], service, all());
                cell("headless, the pod at home", seen.near[family], pod, pods(&["near"]));
                cell("headless, the pod in the provider", seen.far[family], pod, pods(&["far"]));
                cell("NodePort", node[family], node_port(name)?, all());
                cell("LoadBalancer", self.balancer[family], service, all());
            }
        }
        Ok(cells)
    }

    fn is_of_family(&self, ip: &IpAddr) -> bool {
        self.relation.families.contains(&ip.is_ipv4())
    }

    /// The one address of each family of the relation.
    fn of_each_family(&self, addresses: &[IpAddr]) -> Option<Vec<IpAddr>> {
        let one = |v4: &bool| {
            let mut of = addresses.iter().filter(|ip| ip.is_ipv4() == *v4);
            of.next().copied().filter(|_| of.next().is_none())
        };
        self.relation.families.iter().map(one).collect()
    }

    /// Addresses of ready endpoints of a Service that are of families of the relation, when they are as they must be.
    async fn endpoints(
        &self,
        cluster: &Cluster,
        namespace: &str,
        service: &str,
        complete: impl Fn(&BTreeSet<IpAddr>) -> bool,
    ) -> anyhow::Result<BTreeSet<IpAddr>> {
        cluster
            .wait(&format!("endpoints of all families and pods of {namespace}/{service}"), SOON, || async {
                let ready = cluster.endpoints(namespace, service).await?.into_iter();
                let found = ready.flat_map(|endpoint| endpoint.addresses).filter_map(|ip| ip.parse().ok());
                let found = found.filter(|ip| self.is_of_family(ip)).collect();
                Ok(if complete(&found) { Look::Done(found) } else { Look::NotYet(format!("{found:?}")) })
            })
            .await
    }

    /// Whether the name of the headless Service leads to the addresses of both pods.
    async fn resolves(&self, pod: &str, seen: &Addresses) -> anyhow::Result<()> {
        let wanted: BTreeSet<IpAddr> = seen.near.iter().chain(&seen.far).copied().collect();
        self.home
            .wait("the name of the headless Service", SOON, || async {
                let script = ["exec", "-n", &self.namespace, pod, "--", "nslookup", "headless"];
                let said = self.home.kubectl.run(script).await?;
                // The server's own address has a port.
                let words = said.out.lines().filter(|line| line.starts_with("Address"));
                let found = words.filter_map(|line| line.split_whitespace().last()?.parse().ok());
                let found: BTreeSet<IpAddr> = found.filter(|ip| self.is_of_family(ip)).collect();
                Ok(if found == wanted {
                    Look::Done(())
                } else {
                    Look::NotYet(format!("{found:?}, and not {wanted:?}"))
                })
            })
            .await
    }
}

/// A pod that answers with its name and with the address of who asks, and asks others itself.
fn pod(name: &str, node: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {{{node}}}
  containers:
    - name: main
      image: lab.local/agnhost:1
      imagePullPolicy: IfNotPresent
      command: [/agnhost, netexec, --http-port={POD_TCP}, --udp-port={POD_UDP}]
      readinessProbe: {{httpGet: {{path: /healthz, port: {POD_TCP}}}, periodSeconds: 1}}
"
    )
}

/// Of type LoadBalancer, so that there are an address in the cluster, a node port and an address outside.
const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: udp, port: 81, targetPort: 8081, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports:
    - {name: http, port: 8080}
    - {name: udp, port: 8081, protocol: UDP}
";
