//! `liquidctl install`: drives the Helm chart.

use super::duration;
use crate::cluster::{ClusterArgs, ClusterInfo, info};
use crate::failure::Failure;
use crate::helm::{Helm, RELEASE, crds};
use crate::output::{print, tell};
use crate::rollout;
use crate::wait::{Look, until};
use clap::{Args, ValueEnum};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use liquid_crds::vocabulary::LEADER;
use liquid_crds::{ClusterName, Peer};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for a CRD to be served.
const CRD_TIMEOUT: Duration = Duration::from_secs(30);
/// The newest Kubernetes the chart is tested with.
const TESTED_KUBERNETES: &str = "1.35.0";
/// Longest wait for an API server that may not be there: values and manifests are made without one, too.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for nodes of a cluster that is there.
const NODES_TIMEOUT: Duration = Duration::from_secs(30);
/// Nodes that are asked for to see which families pods have: all have the same, but while a cluster is changed.
const NODES_LOOKED_AT: u32 = 100;

/// Arguments of `liquidctl install`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of this cluster, unique among its peers: 1 to 42 lower-case letters, digits or '-'
    #[arg(long)]
    cluster_name: ClusterName,
    /// Label of this cluster for the virtual nodes of its consumers (key=value); may be repeated
    #[arg(long = "cluster-label", value_name = "KEY=VALUE", value_parser = key_value)]
    cluster_labels: Vec<(String, String)>,
    /// How peers reach this cluster, its link endpoint and its gateway; cluster-ip is enough for a cluster that only
    /// borrows
    #[arg(long, value_enum, default_value_t = ServiceType::LoadBalancer)]
    link_service: ServiceType,
    /// Address (host:port) under which peers reach this cluster, if it cannot be found at the Service; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Image to run (repository:tag): there is no published one yet, `cargo xtask image` builds it
    #[arg(long)]
    image: Option<String>,
    /// Value of the chart, as `helm --set`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// File with values of the chart, as `helm --values`; may be repeated
    #[arg(long = "values", short = 'f', value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Print the values that would be given to the chart, and do nothing
    #[arg(long, conflicts_with = "print_manifests")]
    print_values: bool,
    /// Print the manifests that would be applied, and do nothing
    #[arg(long)]
    print_manifests: bool,
    /// Longest wait until everything runs
    #[arg(long, default_value = "3m", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ServiceType {
    LoadBalancer,
    NodePort,
    ClusterIp,
}

impl ServiceType {
    fn kubernetes(self) -> &'static str {
        match self {
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::NodePort => "NodePort",
            ServiceType::ClusterIp => "ClusterIP",
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
    if key.is_empty() { Err("the key is empty".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, arguments: Arguments) -> Result<(), Failure> {
    if arguments.image.is_none() && !names_image(&arguments) {
        return Err(Failure::input(
            "say which image to run with --image: there is no published one yet, `cargo xtask image` builds it",
        ));
    }
    // What is only printed may be for a cluster that is not there.
    let ipv6 = if arguments.print_values || arguments.print_manifests {
        pods_have_ipv6(cluster, SERVER_TIMEOUT).await.unwrap_or(false)
    } else {
        pods_have_ipv6(cluster, NODES_TIMEOUT).await?
    };
    let values = values(&arguments, ipv6)?;
    if arguments.print_values {
        return print(&yaml(&values)?);
    }
    let helm = Helm::prepare(cluster).await?;
    let values_file = helm.write("liquidctl-values.yaml", &yaml(&values)?)?;
    let mut options: Vec<OsString> = vec![RELEASE.into(), helm.chart().into()];
    // What is given by file or --set wins over what follows from other arguments.
    options.extend(["--values".into(), values_file]);
    for file in &arguments.values {
        options.extend(["--values".into(), file.into()]);
    }
    for set in &arguments.set {
        options.extend(["--set".into(), set.into()]);
    }
    if arguments.print_manifests {
        options.insert(0, "template".into());
        options.push("--include-crds".into());
        // Without a cluster Helm assumes the version it was built for, which the chart may refuse.
        options.extend(["--kube-version".into(), kube_version(cluster).await.into()]);
        return print(&helm.run(options).await?);
    }

    let client = cluster.connect().await?;
    refuse_rename(&client, cluster, &arguments.cluster_name).await?;
    apply_crds(&client).await?;
    tell("installing the chart");
    options.insert(0, "upgrade".into());
    options.extend(["--install".into(), "--create-namespace".into(), "--skip-crds".into()]);
    helm.run(options).await?;
    for deployment in ["liquid-controller", "liquid-kubelet"] {
        rollout::wait::<Deployment>(&client, &cluster.namespace, deployment, arguments.timeout).await?;
    }
    // Without a network there are none.
    let (namespace, timeout) = (&cluster.namespace, arguments.timeout);
    rollout::wait_if_there::<StatefulSet>(&client, namespace, "liquid-gateway", timeout).await?;
    rollout::wait_if_there::<DaemonSet>(&client, namespace, "liquid-fabric", timeout).await?;
    let published = wait_published(&client, &cluster.namespace, &arguments).await?;
    tell(&format!("Liquid {} runs in cluster {} ({})", published.version, published.name, published.id));
    if published.endpoints.is_empty() {
        tell(
            "peers cannot borrow from this cluster: its link endpoint has no address outside; use --link-service \
             load-balancer or node-port, or --advertise, if they shall",
        );
    } else {
        tell(&format!("peers reach it at {}", published.endpoints.join(", ")));
    }
    Ok(())
}

fn values(arguments: &Arguments, ipv6: bool) -> Result<Value, Failure> {
    let labels: Map<String, Value> =
        arguments.cluster_labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut values = json!({
        "clusterName": arguments.cluster_name.as_str(),
        "clusterLabels": labels,
        "link": {
            "service": { "type": arguments.link_service.kubernetes() },
            "advertise": arguments.advertise,
        },
        "network": { "service": { "type": arguments.link_service.kubernetes() } },
    });
    if ipv6 {
        values["network"]["ipv6"] = json!(true);
    }
    if let Some(image) = &arguments.image {
        let (repository, tag) = image
            .rsplit_once(':')
            .filter(|(_, tag)| !tag.contains('/') && !tag.is_empty())
            .ok_or_else(|| Failure::input(format!("--image {image:?} must be of the form repository:tag")))?;
        values["image"] = json!({ "repository": repository, "tag": tag });
    }
    Ok(values)
}

/// Whether the user's own values name an image. Of files that cannot be read Helm has to tell.
fn names_image(arguments: &Arguments) -> bool {
    let in_file = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        let values: Value = serde_saphyr::from_str(&text).ok()?;
        Some(values.pointer("/image/repository").is_some())
    };
    let mut set = arguments.set.iter().flat_map(|set| set.split(','));
    set.any(|set| set.starts_with("image.repository="))
        || arguments.values.iter().any(|file| in_file(file).unwrap_or(true))
}

fn yaml(value: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(Failure::failed)
}

/// A cluster that has peers cannot change its name: they know it by that.
async fn refuse_rename(client: &Client, cluster: &ClusterArgs, name: &ClusterName) -> Result<(), Failure> {
    let Some(known) = info(client, &cluster.namespace).await? else { return Ok(()) };
    if known.name == *name {
        return Ok(());
    }
    let peers = Api::<Peer>::all(client.clone()).list(&Default::default()).await?;
    if peers.items.is_empty() {
        return Ok(());
    }
    Err(Failure::input(format!(
        "this cluster is called {} and has peers that know it by that name; unpeer them before you rename it",
        known.name
    )))
}

async fn apply_crds(client: &Client) -> Result<(), Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("liquidctl").force();
    for manifest in crds() {
        let name = manifest.crd.metadata.name.clone().unwrap_or_default();
        api.patch(&name, &apply, &Patch::Apply(&manifest.crd)).await?;
        until(&format!("definition {name}"), CRD_TIMEOUT, || async {
            let conditions = api.get(&name).await?.status.and_then(|status| status.conditions);
            let established =
                conditions.into_iter().flatten().any(|c| c.type_ == "Established" && c.status == "True");
            Ok(if established { Look::Done(()) } else { Look::NotYet("not served yet".to_owned()) })
        })
        .await?;
    }
    Ok(())
}

/// Waits until the controller that leads is of this installation, and what it publishes is its own.
async fn wait_published(
    client: &Client,
    namespace: &str,
    arguments: &Arguments,
) -> Result<ClusterInfo, Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let leaders = ListParams::default().labels(&format!("{LEADER}=true"));
    until("cluster information", arguments.timeout, || async {
        // A predecessor that is ending may still lead, and have published what is there.
        if !pods.list(&leaders).await?.iter().any(leads) {
            return Ok(Look::NotYet("no liquid-controller leads yet".to_owned()));
        }
        Ok(match info(client, namespace).await? {
            Some(info) if is_current(&info, arguments) => Look::Done(info),
            _ => Look::NotYet("liquid-controller has not published it".to_owned()),
        })
    })
    .await
}

fn leads(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn is_current(info: &ClusterInfo, arguments: &Arguments) -> bool {
    // Addresses may also come from values that win over --advertise.
    let exact = !arguments.advertise.is_empty() && arguments.set.is_empty() && arguments.values.is_empty();
    info.name == arguments.cluster_name && (!exact || info.endpoints == arguments.advertise)
}

/// The Kubernetes version for which manifests are made without installing them.
async fn kube_version(cluster: &ClusterArgs) -> String {
    let ask = async { Some(cluster.connect().await.ok()?.apiserver_version().await.ok()?.git_version) };
    let server = timeout(SERVER_TIMEOUT, ask).await.ok().flatten();
    server.filter(|version| !version.is_empty()).unwrap_or_else(|| TESTED_KUBERNETES.to_owned())
}

/// Whether nodes have IPv6 addresses to give to pods. Some of them are enough to tell.
async fn pods_have_ipv6(cluster: &ClusterArgs, limit: Duration) -> Result<bool, Failure> {
    let some = ListParams::default().limit(NODES_LOOKED_AT);
    let ask = async {
        let nodes = Api::<Node>::all(cluster.connect().await?).list(&some).await;
        let nodes = nodes.map_err(|error| Failure::failed(format!("cannot list nodes: {error}")))?;
        Ok(nodes.iter().any(has_ipv6_pod_cidr))
    };
    let late = |_| Failure::failed("cannot list nodes: the API server does not answer");
    timeout(limit, ask).await.map_err(late)?
}

fn has_ipv6_pod_cidr(node: &Node) -> bool {
    let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    cidrs.into_iter().flatten().any(|cidr| cidr.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(more: &[&str]) -> Arguments {
        Line::parse_from(["install", "--cluster-name", "milan"].iter().chain(more)).arguments
    }

    #[test]
    fn an_image_is_split_at_its_tag() {
        let image =
            |text: &str| values(&arguments(&["--image", text]), false).map(|values| values["image"].clone());
        assert_eq!(
            image("registry:5000/liquid:1").unwrap(),
            json!({"repository": "registry:5000/liquid", "tag": "1"})
        );
        for bad in ["liquid", "registry:5000/liquid", "liquid:"] {
            assert!(image(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_that_are_about_something_else_name_no_image() {
        let named = |more: &[&str]| names_image(&arguments(more));
        assert!(!named(&[]) && !named(&["--set", "image.pullSecrets[0].name=image.repository=x"]));
        assert!(named(&["--set", "image.tag=1,image.repository=registry/liquid"]));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, "image: {pullPolicy: Always}\nlog: info\n").unwrap();
        assert!(!named(&["--values", path]));
        std::fs::write(path, "image: {repository: registry/liquid}\n").unwrap();
        assert!(named(&["--values", path]));
        assert!(named(&["--values", "/no/such/file"]), "Helm says that there is none");
    }

    #[test]
    fn ipv6_is_asked_for_where_pods_have_it() {
        let node =
            |cidrs: Value| -> Node { serde_json::from_value(json!({"spec": {"podCIDRs": cidrs}})).unwrap() };
        assert!(has_ipv6_pod_cidr(&node(json!(["10.244.0.0/24", "fd00:1::/64"]))));
        assert!(
            !has_ipv6_pod_cidr(&node(json!(["10.244.0.0/24"]))) && !has_ipv6_pod_cidr(&node(json!(null)))
        );
        assert_eq!(values(&arguments(&[]), true).unwrap()["network"]["ipv6"], true);
        assert_eq!(values(&arguments(&[]), false).unwrap()["network"]["ipv6"], Value::Null);
    }

    #[test]
    fn what_an_earlier_installation_has_published_is_told_from_what_is_wanted() {
        let info = ClusterInfo {
            id: "6a9f0d5e-0000-4000-8000-000000000001".parse().unwrap(),
            name: "milan".parse().unwrap(),
            ca_sha256: String::new(),
            endpoints: vec!["old:7443".to_owned()],
            gateways: Vec::new(),
            version: String::new(),
        };
        assert!(is_current(&info, &arguments(&[])));
        assert!(is_current(&info, &arguments(&["--advertise", "old:7443"])));
        assert!(!is_current(&info, &arguments(&["--advertise", "new:7443"])));
        assert!(is_current(
            &info,
            &arguments(&["--advertise", "new:7443", "--set", "link.advertise={old:7443}"])
        ));
        let renamed = ClusterInfo { name: "rome".parse().unwrap(), ..info };
        assert!(!is_current(&renamed, &arguments(&[])));
    }

    #[test]
    fn a_controller_that_is_ending_or_not_ready_does_not_lead() {
        let pod = |ready: &str, deleted: Option<&str>| -> Pod {
            let object = json!({
                "metadata": {"deletionTimestamp": deleted},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            serde_json::from_value(object).unwrap()
        };
        assert!(leads(&pod("True", None)));
        assert!(!leads(&pod("False", None)));
        assert!(!leads(&pod("True", Some("2026-01-01T00:00:00Z"))));
    }

    #[tokio::test]
    async fn without_a_cluster_manifests_are_for_the_version_that_is_tested() {
        let cluster = ClusterArgs {
            kubeconfig: Some("/nonexistent".into()),
            context: None,
            namespace: "liquid-system".to_owned(),
        };
        assert_eq!(kube_version(&cluster).await, TESTED_KUBERNETES);
    }
}
