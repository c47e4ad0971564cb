//! One of the two clusters.

use crate::environment::NAMESPACE;
use crate::program::{Output, Program};
use crate::wait::{Look, wait};
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use liquid_crds::vocabulary::JOIN_TOKEN;
use liquid_crds::{Peer, PodCidr, condition};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

/// A cluster, as its administrator sees it.
#[derive(Clone)]
pub struct Cluster {
    /// What scenarios call it; also its cluster name in Liquid.
    pub name: String,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// A client with the administrator's rights.
    pub client: Client,
    /// kubectl for this cluster.
    pub kubectl: Program,
    /// liquidctl for this cluster.
    pub liquidctl: Program,
}

impl Cluster {
    /// Connects.
    ///
    /// # Errors
    /// If the kubeconfig cannot be used.
    pub async fn connect(
        name: &str,
        kubeconfig: PathBuf,
        kubectl: Program,
        liquidctl: Program,
    ) -> anyhow::Result<Self> {
        let read = Kubeconfig::read_from(&kubeconfig)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        Ok(Self {
            name: name.to_owned(),
            client: Client::try_from(config)?,
            kubectl: kubectl.with("--kubeconfig").with(&kubeconfig),
            liquidctl: liquidctl.env("KUBECONFIG", &kubeconfig),
            kubeconfig,
        })
    }

    /// Applies YAML or JSON in a namespace, as `kubectl apply`.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn apply(&self, namespace: &str, manifest: &str) -> anyhow::Result<()> {
        let arguments = ["apply", "--namespace", namespace, "-f", "-"];
        self.kubectl.run_with_input(arguments, manifest.as_bytes()).await?.ok()?;
        Ok(())
    }

    /// Installs Liquid, with this image.
    ///
    /// # Errors
    /// If that fails.
    pub async fn install(&self, image: &str) -> anyhow::Result<()> {
        self.install_with(image, &[]).await
    }

    /// Installs Liquid with values of the chart (`KEY=VALUE`).
    ///
    /// # Errors
    /// If that fails.
    pub async fn install_with(&self, image: &str, values: &[&str]) -> anyhow::Result<()> {
        let arguments = [
            "install",
            "--cluster-name",
            &self.name,
            "--link-service",
            "node-port",
            "--image",
            image,
            "--set",
            "image.pullPolicy=IfNotPresent",
        ];
        let values = values.iter().flat_map(|value| ["--set", *value]);
        self.liquidctl.run(arguments.into_iter().chain(values)).await?.ok().map(drop)
    }

    /// Peers this cluster with a provider, by a token; returns what that told.
    ///
    /// # Errors
    /// If that fails.
    pub async fn peer_with(&self, provider: &Self) -> anyhow::Result<String> {
        let token = provider.liquidctl.run(["invite"]).await?.ok()?;
        let peered = self.liquidctl.run(["peer", "out-of-band", "--token", token.trim()]).await?;
        let told = peered.err.clone();
        peered.ok()?;
        Ok(told)
    }

    /// Whether there is a Peer of the name of `other`.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn is_peered(&self, other: &Self) -> anyhow::Result<bool> {
        Ok(Api::<Peer>::all(self.client.clone()).get_opt(&other.name).await?.is_some())
    }

    /// Waits until this cluster says that the network with `peer` is up, and returns under which prefixes it sees its pods.
    ///
    /// # Errors
    /// If it is not within the limit.
    pub async fn wait_for_network(&self, peer: &str, limit: Duration) -> anyhow::Result<Vec<PodCidr>> {
        let peers: Api<Peer> = Api::all(self.client.clone());
        self.wait(&format!("network with {peer}"), limit, || async {
            let status = peers.get(peer).await?.status.unwrap_or_default();
            Ok(match (condition(&status.conditions, "NetworkReady"), status.network) {
                (Some(said), Some(network)) if said.status == "True" => Look::Done(network.pod_cidrs),
                (said, _) => {
                    Look::NotYet(said.map_or("nothing said".to_owned(), |said| said.message.clone()))
                }
            })
        })
        .await
    }

    /// The ready endpoints of a Service.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn endpoints(&self, namespace: &str, service: &str) -> anyhow::Result<Vec<Endpoint>> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let endpoints = slices.list(&of_service).await?.items.into_iter().flat_map(|slice| slice.endpoints);
        // Where nothing is said of it, they are.
        let ready = |it: &Endpoint| it.conditions.as_ref().and_then(|it| it.ready) != Some(false);
        Ok(endpoints.filter(ready).collect())
    }

    /// Runs a script in a pod.
    ///
    /// # Errors
    /// If kubectl cannot be run; what it and the script come to is in the output.
    pub async fn shell(&self, namespace: &str, pod: &str, script: &str) -> anyhow::Result<Output> {
        self.kubectl.run(["exec", "-n", namespace, pod, "--", "sh", "-c", script]).await
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn create_namespace(&self, name: &str) -> anyhow::Result<()> {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// Waits until no namespace is on its way out.
    ///
    /// # Errors
    /// If one is not gone in time.
    pub async fn settled(&self) -> anyhow::Result<()> {
        for namespace in Api::<Namespace>::all(self.client.clone()).list(&ListParams::default()).await? {
            if namespace.metadata.deletion_timestamp.is_some() {
                self.delete_namespace(&namespace.name_any()).await?;
            }
        }
        Ok(())
    }

    /// Deletes a namespace, and does not wait: Kubernetes takes its time where pods have to end first.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn give_up_namespace(&self, name: &str) -> anyhow::Result<()> {
        match Api::<Namespace>::all(self.client.clone()).delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a namespace and waits until it is gone.
    ///
    /// # Errors
    /// If it is not gone in time.
    pub async fn delete_namespace(&self, name: &str) -> anyhow::Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        if api.get_opt(name).await?.is_none() {
            return Ok(());
        }
        self.give_up_namespace(name).await?;
        self.wait(&format!("namespace {name} gone"), Duration::from_secs(90), || async {
            let Some(left) = api.get_opt(name).await? else { return Ok(Look::Done(())) };
            let conditions = left.status.and_then(|status| status.conditions).unwrap_or_default();
            let why = conditions.into_iter().filter(|c| c.status == "True").filter_map(|c| c.message);
            Ok(Look::NotYet(why.collect::<Vec<_>>().join("; ")))
        })
        .await
    }

    /// Deletes all join tokens: they are the provider's to keep until they expire, and no part of a peering.
    ///
    /// # Errors
    /// If kubectl fails.
    pub async fn drop_tokens(&self) -> anyhow::Result<()> {
        let tokens = ["delete", "secret", "-n", NAMESPACE, "-l", JOIN_TOKEN];
        self.kubectl.run(tokens).await?.ok()?;
        Ok(())
    }

    /// Pods of a namespace with a label selector.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.list(&ListParams::default().labels(selector)).await?.items)
    }

    /// Waits until exactly `count` pods with the label selector are there, all of them Ready, and returns them.
    ///
    /// # Errors
    /// If they are not in time, with the state and the events of the namespace.
    pub async fn wait_for_pods(
        &self,
        namespace: &str,
        selector: &str,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Vec<Pod>> {
        let what = format!("{count} Ready pods {selector} in {namespace}");
        let waited = self
            .wait(&what, limit, || async {
                let pods = self.pods(namespace, selector).await?;
                let ready = pods
                    .iter()
                    .filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none())
                    .count();
                if ready == count && pods.len() == count {
                    return Ok(Look::Done(pods));
                }
                let states: Vec<String> = pods.iter().map(describe).collect();
                Ok(Look::NotYet(format!("{ready} Ready of {}: {}", pods.len(), states.join("; "))))
            })
            .await;
        match waited {
            Ok(pods) => Ok(pods),
            Err(error) => bail!("{error:#}\n{}", self.events(namespace).await.unwrap_or_default()),
        }
    }

    /// Changes the Peer of another cluster: merges this into its spec.
    ///
    /// # Errors
    /// If it is not taken.
    pub async fn change_peer(&self, other: &str, spec: Value) -> anyhow::Result<()> {
        let peers: Api<Peer> = Api::all(self.client.clone());
        peers.patch(other, &PatchParams::default(), &Patch::Merge(&json!({ "spec": spec }))).await?;
        Ok(())
    }

    /// Waits until there is no object of that name.
    ///
    /// # Errors
    /// If it is still there after the limit.
    pub async fn wait_until_gone<K>(&self, api: &Api<K>, name: &str, limit: Duration) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.wait(&format!("{} {name} gone", K::kind(&())), limit, || async {
            Ok(match api.get_metadata_opt(name).await? {
                None => Look::Done(()),
                Some(_) => Look::NotYet("it is there".to_owned()),
            })
        })
        .await
    }

    /// Waits until a Node is Ready, or is not.
    ///
    /// # Errors
    /// If it is not so in time.
    pub async fn wait_for_node(&self, name: &str, ready: bool, limit: Duration) -> anyhow::Result<Node> {
        let api: Api<Node> = Api::all(self.client.clone());
        self.wait(&format!("node {name} ready: {ready}"), limit, || async {
            let node = api.get(name).await?;
            let conditions = node.status.clone().and_then(|status| status.conditions).unwrap_or_default();
            let found = conditions.iter().find(|c| c.type_ == "Ready");
            if found.is_some_and(|c| (c.status == "True") == ready) {
                return Ok(Look::Done(node));
            }
            Ok(Look::NotYet(found.map_or("no condition".to_owned(), |c| {
                format!("{} {}", c.status, c.message.clone().unwrap_or_default())
            })))
        })
        .await
    }

    /// As [`wait`], with the name of the cluster in the failure.
    ///
    /// # Errors
    /// If it is not there in time.
    pub async fn wait<T, F>(&self, what: &str, limit: Duration, look: impl FnMut() -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<Look<T>>>,
    {
        wait(what, limit, look).await.with_context(|| format!("cluster {}", self.name))
    }

    /// Events of a namespace, a line each.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn events(&self, namespace: &str) -> anyhow::Result<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let events = api.list(&ListParams::default()).await?;
        let lines = events.iter().map(|event| {
            let about = event.involved_object.name.clone().unwrap_or_default();
            let reason = event.reason.clone().unwrap_or_default();
            format!("  event {about}: {reason}: {}\n", event.message.clone().unwrap_or_default())
        });
        Ok(lines.collect())
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn describe(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or("-".to_owned());
    let deleting = if pod.metadata.deletion_timestamp.is_some() { " deleting" } else { "" };
    format!(
        "{} on {node}: {}{deleting} {} {}",
        pod.name_any(),
        status.phase.unwrap_or_default(),
        status.reason.unwrap_or_default(),
        status.message.unwrap_or_default()
    )
}
