//! What a pod asks for, as the scheduler counts it. Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use liquid_crds::quantity::{Amounts, MAX, Milli, parse};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Part of the spec of a pod. It may come from another cluster: whatever is in it, it can be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SpecView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) restart_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
    containers: Vec<ContainerView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerView>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    overhead: BTreeMap<String, Amount>,
    /// Of the pod as a whole (KEP-2837).
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<ResourcesView>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerView {
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<ResourcesView>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct ResourcesView {
    requests: BTreeMap<String, Amount>,
    limits: BTreeMap<String, Amount>,
}

/// A quantity: API servers write texts, and read numbers too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Amount {
    Text(String),
    Number(serde_json::Number),
}

impl Amount {
    /// Negative amounts count as nothing, and texts that are none as more than there is: no API server lets such a pod run.
    fn value(&self) -> Milli {
        let text = match self {
            Amount::Text(text) => text.clone(),
            Amount::Number(number) => number.to_string(),
        };
        parse(&Quantity(text)).unwrap_or(MAX).max(0)
    }
}

/// What a pod asks for: the larger of the sum over its containers and sidecars, and the need of any init container
/// together with the sidecars started before it; what is asked for the pod as a whole if that is more (it cannot be less where
/// API servers know it); plus the overhead of its runtime. It takes one of `pods`.
pub(crate) fn demand(spec: &SpecView) -> Amounts {
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in &spec.init_containers {
        let during = plus(&sidecars, container);
        raise(&mut peak, &during);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = during;
        }
    }
    let running = spec.containers.iter().fold(sidecars, |sum, container| plus(&sum, container));
    raise(&mut peak, &running);
    if let Some(whole) = &spec.resources {
        raise(&mut peak, &requests(whole).collect());
    }
    for (resource, overhead) in &spec.overhead {
        add(&mut peak, resource, overhead.value());
    }
    add(&mut peak, "pods", 1000);
    peak
}

fn plus(sum: &Amounts, container: &ContainerView) -> Amounts {
    let mut sum = sum.clone();
    for (resource, amount) in container.resources.iter().flat_map(requests) {
        add(&mut sum, &resource, amount);
    }
    sum
}

/// Where only a limit is given, the API server makes it the request.
fn requests(resources: &ResourcesView) -> impl Iterator<Item = (String, Milli)> {
    let defaults =
        resources.limits.iter().filter(|(resource, _)| !resources.requests.contains_key(*resource));
    resources.requests.iter().chain(defaults).map(|(resource, amount)| (resource.clone(), amount.value()))
}

fn raise(peak: &mut Amounts, candidate: &Amounts) {
    for (resource, amount) in candidate {
        let highest = peak.entry(resource.clone()).or_default();
        *highest = (*highest).max(*amount);
    }
}

fn add(sum: &mut Amounts, resource: &str, amount: Milli) {
    match sum.get_mut(resource) {
        Some(sum) => *sum = sum.saturating_add(amount),
        None => drop(sum.insert(resource.to_owned(), amount)),
    }
}

impl From<&PodSpec> for SpecView {
    fn from(spec: &PodSpec) -> Self {
        let containers = |all: &[Container]| all.iter().map(ContainerView::from).collect();
        Self {
            restart_policy: spec.restart_policy.clone(),
            node_name: spec.node_name.clone(),
            containers: containers(&spec.containers),
            init_containers: containers(spec.init_containers.as_deref().unwrap_or_default()),
            overhead: amounts(spec.overhead.as_ref()),
            resources: spec.resources.as_ref().map(ResourcesView::from),
        }
    }
}

impl From<&Container> for ContainerView {
    fn from(container: &Container) -> Self {
        Self {
            restart_policy: container.restart_policy.clone(),
            resources: container.resources.as_ref().map(ResourcesView::from),
        }
    }
}

impl From<&ResourceRequirements> for ResourcesView {
    fn from(resources: &ResourceRequirements) -> Self {
        Self { requests: amounts(resources.requests.as_ref()), limits: amounts(resources.limits.as_ref()) }
    }
}

fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, Amount> {
    let quantities = quantities.into_iter().flatten();
    quantities.map(|(resource, amount)| (resource.clone(), Amount::Text(amount.0.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value) -> Amounts {
        demand(&serde_json::from_value(spec).unwrap())
    }

    fn container(cpu: &str, policy: Option<&str>) -> Value {
        json!({"name": "c", "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn sidecars_count_with_the_init_containers_after_them() {
        let spec = json!({
            "initContainers": [container("1", None), container("200m", Some("Always")), container("2", None)],
            "containers": [container("500m", None), container("600m", None)],
            "overhead": {"cpu": "10m"},
        });
        assert_eq!(of(spec.clone())["cpu"], 2_210);
        let typed: PodSpec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(demand(&SpecView::from(&typed)), of(spec));
    }

    #[test]
    fn what_is_asked_for_the_whole_pod_counts_if_it_is_more_than_that_of_its_containers() {
        let spec = json!({
            "containers": [container("500m", None), {"resources": {"requests": {"memory": "1Mi"}}}],
            "resources": {"requests": {"cpu": "2"}},
            "overhead": {"cpu": "10m"},
        });
        let found = of(spec);
        assert_eq!((found["cpu"], found["memory"], found["pods"]), (2_010, 1_048_576_000, 1000));
        // An API server that does not know the field drops it.
        let less = json!({"containers": [container("2", None)], "resources": {"requests": {"cpu": "0"}}});
        assert_eq!(of(less)["cpu"], 2_000);
    }

    #[test]
    fn a_limit_is_a_request_where_there_is_none() {
        let resources =
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3", "memory": "5", "example.org/gpu": 2}});
        let found = of(json!({"containers": [{"resources": resources}]}));
        assert_eq!((found["cpu"], found["memory"], found["example.org/gpu"]), (1_000, 5_000, 2_000));
    }

    #[test]
    fn nothing_a_consumer_writes_lowers_or_overflows_the_sum() {
        let huge = "9999999999999999999E";
        let found = of(json!({"containers": [
            {"resources": {"requests": {"cpu": "-5", "memory": "much", "a": -3, "b": 1e3, "c": "1E"}}},
            {"resources": {"requests": {"cpu": "0000000000000000000001", "c": huge}}},
        ]}));
        assert_eq!((found["cpu"], found["memory"], found["a"], found["b"]), (1_000, MAX, 0, 1_000_000));
        assert!(found["c"] >= MAX);
    }
}
