//! `liquidctl offload namespace`.

use super::duration;
use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::tell;
use crate::wait::{Look, until};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use liquid_crds::vocabulary::OFFLOADING_NAME;
use liquid_crds::{
    ConfigurationReflection, IngressReflection, NamespaceOffloading, NamespaceOffloadingSpec, PodPlacement,
    PolicyReflection, Reflection, RemoteNamespaceSpec, RemoteNamespaceStrategy, ServiceReflection,
    TokenReflection, condition,
};
use std::time::Duration;

/// What is offloaded.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let the pods of a namespace run on virtual nodes
    Namespace(Arguments),
}

/// Arguments of `liquidctl offload namespace`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the namespace
    namespace_to_offload: String,
    /// Where its new pods may run
    #[arg(long, value_enum, default_value_t = Placement::LocalAndRemote)]
    placement: Placement,
    /// Which virtual nodes take part, as a label selector like kubectl's (region=eu,tier!=test); all if not given
    #[arg(long, short = 'l', value_parser = selector)]
    selector: Option<LabelSelector>,
    /// How the namespace is called in the providers
    #[arg(long, value_enum, default_value_t = Strategy::Default)]
    remote_name_strategy: Strategy,
    /// Name of the namespace in the providers
    #[arg(long, conflicts_with = "remote_name_strategy")]
    remote_name: Option<String>,
    /// Which ConfigMaps exist in the providers
    #[arg(long, value_enum, default_value_t = Configuration::Referenced)]
    config_maps: Configuration,
    /// Which Secrets exist in the providers
    #[arg(long, value_enum, default_value_t = Configuration::Referenced)]
    secrets: Configuration,
    /// Which Services exist in the providers
    #[arg(long, value_enum, default_value_t = Whether::All)]
    services: Whether,
    /// Which NetworkPolicies hold in the providers
    #[arg(long, value_enum, default_value_t = Whether::All)]
    network_policies: Whether,
    /// Which Ingresses exist in the providers, as far as these take them
    #[arg(long, value_enum, default_value_t = Whether::None)]
    ingresses: Whether,
    /// Whether pods in the providers have tokens of their service accounts, and reach this cluster's API server: whoever runs
    /// a provider can then act as these accounts
    #[arg(long, value_enum, default_value_t = Tokens::None)]
    service_account_tokens: Tokens,
    /// Longest wait until the providers have the namespace
    #[arg(long, default_value = "1m", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Placement {
    /// Only on physical nodes
    Local,
    /// Only on virtual nodes
    Remote,
    /// On either, as the scheduler decides
    LocalAndRemote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Strategy {
    /// NAMESPACE-CLUSTER
    Default,
    /// As at home
    SameName,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Configuration {
    /// In each provider those that pods there refer to
    Referenced,
    /// All of the namespace
    All,
    /// None: pods find what somebody else has put there
    None,
}

impl From<Configuration> for ConfigurationReflection {
    fn from(which: Configuration) -> Self {
        match which {
            Configuration::Referenced => Self::Referenced,
            Configuration::All => Self::All,
            Configuration::None => Self::None,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whether {
    /// All of the namespace
    All,
    /// None
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tokens {
    /// None: pods that ask for one stay on physical nodes
    None,
    /// Those they ask for, each bound to its pod and renewed
    Bound,
}

/// Reads a label selector in the notation of kubectl.
fn selector(text: &str) -> Result<LabelSelector, String> {
    let bad = |what: &str| format!("{text:?} is no label selector: {what}");
    let mut expressions = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, operator, value) = if let Some((key, value)) = part.split_once("!=") {
            (key, "NotIn", Some(value))
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (key, "In", Some(value))
        } else if let Some(key) = part.strip_prefix('!') {
            (key, "DoesNotExist", None)
        } else {
            (part, "Exists", None)
        };
        let key = key.trim();
        if key.is_empty() || key.contains([' ', '(', ')']) {
            return Err(bad("a key is missing, or the set notation is used, which is not supported here"));
        }
        expressions.push(LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: value.map(|value| vec![value.trim().to_owned()]),
        });
    }
    if expressions.is_empty() {
        return Err(bad("it is empty"));
    }
    Ok(LabelSelector { match_expressions: Some(expressions), match_labels: None })
}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, command: Command) -> Result<(), Failure> {
    let Command::Namespace(arguments) = command;
    let client = cluster.connect().await?;
    require_info(&client, &cluster.namespace).await?;
    let name = &arguments.namespace_to_offload;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(name).await?.is_none() {
        return Err(Failure::input(format!("there is no namespace {name}")));
    }
    if *name == cluster.namespace || name.starts_with("kube-") {
        return Err(Failure::input(format!(
            "namespace {name} belongs to this cluster and cannot be offloaded"
        )));
    }
    let ready = offload(&client, name, spec(&arguments), arguments.timeout).await?;
    tell(&format!("namespace {name} is offloaded: {ready}"));
    Ok(())
}

fn spec(arguments: &Arguments) -> NamespaceOffloadingSpec {
    let strategy = match (&arguments.remote_name, arguments.remote_name_strategy) {
        (Some(_), _) => RemoteNamespaceStrategy::SelectedName,
        (None, Strategy::Default) => RemoteNamespaceStrategy::DefaultName,
        (None, Strategy::SameName) => RemoteNamespaceStrategy::EnforceSameName,
    };
    NamespaceOffloadingSpec {
        pod_placement: match arguments.placement {
            Placement::Local => PodPlacement::Local,
            Placement::Remote => PodPlacement::Remote,
            Placement::LocalAndRemote => PodPlacement::LocalAndRemote,
        },
        virtual_node_selector: arguments.selector.clone().unwrap_or_default(),
        remote_namespace: RemoteNamespaceSpec { strategy, name: arguments.remote_name.clone() },
        reflection: Reflection {
            config_maps: arguments.config_maps.into(),
            secrets: arguments.secrets.into(),
            services: match arguments.services {
                Whether::All => ServiceReflection::All,
                Whether::None => ServiceReflection::None,
            },
            network_policies: match arguments.network_policies {
                Whether::All => PolicyReflection::All,
                Whether::None => PolicyReflection::None,
            },
            ingresses: match arguments.ingresses {
                Whether::All => IngressReflection::All,
                Whether::None => IngressReflection::None,
            },
            service_account_tokens: match arguments.service_account_tokens {
                Tokens::None => TokenReflection::None,
                Tokens::Bound => TokenReflection::Bound,
            },
        },
    }
}

async fn offload(
    client: &Client,
    namespace: &str,
    spec: NamespaceOffloadingSpec,
    timeout: Duration,
) -> Result<String, Failure> {
    let api: Api<NamespaceOffloading> = Api::namespaced(client.clone(), namespace);
    let wanted = NamespaceOffloading::new(OFFLOADING_NAME, spec);
    let apply = PatchParams::apply("liquidctl").force();
    let generation = api.patch(OFFLOADING_NAME, &apply, &Patch::Apply(&wanted)).await?.metadata.generation;
    until(&format!("namespace {namespace}"), timeout, || async {
        let offloading = api.get(OFFLOADING_NAME).await?;
        let status = offloading.status.unwrap_or_default();
        let ready = condition(&status.conditions, "Ready");
        let ready = ready.filter(|condition| condition.observed_generation >= generation);
        let places: Vec<String> = status
            .remote_namespaces
            .iter()
            .map(|remote| format!("{} in {}", remote.name, remote.peer))
            .collect();
        Ok(match ready {
            Some(condition) if condition.status == "True" => Look::Done(places.join(", ")),
            // There may be none yet; that is not for this command to wait for.
            Some(condition) if condition.reason == "NoProvider" => Look::Done(condition.message.clone()),
            Some(condition) => Look::NotYet(condition.message.clone()),
            None => Look::NotYet("liquid-kubelet has not begun".to_owned()),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_kubectl_reads_them() {
        let read = selector("region=eu, tier!=test,gpu,!spot").unwrap();
        let operators: Vec<_> =
            read.match_expressions.iter().flatten().map(|e| (e.key.as_str(), e.operator.as_str())).collect();
        assert_eq!(
            operators,
            [("region", "In"), ("tier", "NotIn"), ("gpu", "Exists"), ("spot", "DoesNotExist")]
        );
        for bad in ["", ",", "=x", "region in (eu, us)"] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }
}
