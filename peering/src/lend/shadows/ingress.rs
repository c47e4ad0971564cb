//! Ingresses of consumers: an Ingress opens a way into this cluster from outside, so what is open is this cluster's decision
//! (`spec.lend.ingress` of the Peer). Pure.

use k8s_openapi::api::networking::v1::Ingress;
use liquid_crds::LendIngress;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Whether an Ingress with this spec is taken, and on which terms.
///
/// # Errors
/// If it is not; a sentence says why.
pub(super) fn admit<'a>(spec: &Value, lent: Option<&'a LendIngress>) -> Result<&'a LendIngress, String> {
    let lent =
        lent.ok_or("the provider takes no Ingresses of this cluster (spec.lend.ingress of its Peer there)")?;
    match hosts(spec).into_iter().find(|host| !lent.hosts.iter().any(|pattern| covers(pattern, host))) {
        None => Ok(lent),
        Some("") => Err("the provider takes no Ingresses for all hosts".to_owned()),
        Some(host) => Err(format!("the provider takes no Ingresses for host {host}")),
    }
}

/// Gives an Ingress what it has here.
pub(super) fn classified(spec: &mut Value, annotations: &mut BTreeMap<String, String>, lent: &LendIngress) {
    spec["ingressClassName"] = json!(lent.class_name);
    annotations.retain(|name, _| lent.annotations.contains(name));
}

/// A host of `wanted` that one of `others` has too, for the same controller.
pub(super) fn taken<'a>(wanted: &Value, others: impl Iterator<Item = &'a Ingress>) -> Option<String> {
    let (spec, class) = (&wanted["spec"], wanted["spec"]["ingressClassName"].as_str());
    let hosts = hosts(spec);
    let specs = others.filter_map(|other| other.spec.as_ref());
    let same = specs.filter(|spec| spec.ingress_class_name.as_deref() == class);
    let mut rules = same.flat_map(|spec| spec.rules.iter().flatten());
    rules.find_map(|rule| {
        let host = rule.host.as_deref().filter(|host| !host.is_empty() && hosts.contains(host))?;
        Some(host.to_owned())
    })
}

/// Hosts that requests of an Ingress are for; an empty one stands for all.
fn hosts(spec: &Value) -> BTreeSet<&str> {
    let list = |name: &str| spec.get(name).and_then(Value::as_array).into_iter().flatten();
    let rules = list("rules").map(|rule| rule.get("host").and_then(Value::as_str).unwrap_or_default());
    let certified =
        list("tls").filter_map(|tls| tls.get("hosts")?.as_array()).flatten().filter_map(Value::as_str);
    let rest = spec.get("defaultBackend").map(|_| "");
    rules.chain(certified).chain(rest).collect()
}

/// Whether a pattern of [`LendIngress::hosts`] is about this host.
fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some("") => true,
        // Below the domain, not the domain itself.
        Some(domain) => host.len() > domain.len() && host.ends_with(domain),
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent(hosts: &[&str]) -> LendIngress {
        LendIngress {
            class_name: "public".to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            annotations: Vec::new(),
        }
    }

    #[test]
    fn only_hosts_that_are_lent_are_taken() {
        let some = lent(&["www.example.org", "*.shop.example.org"]);
        let rule = |host: &str| json!({"rules": [{"host": host}]});
        for (spec, admitted) in [
            (rule("www.example.org"), true),
            (rule("a.b.shop.example.org"), true),
            (rule("*.shop.example.org"), true),
            (rule("shop.example.org"), false),
            (rule("evilshop.example.org"), false),
            (rule("example.org"), false),
            (rule(""), false),
            (json!({"rules": [{}]}), false),
            (json!({"defaultBackend": {}}), false),
            (
                json!({"rules": [{"host": "www.example.org"}], "tls": [{"hosts": ["other.example.org"]}]}),
                false,
            ),
        ] {
            assert_eq!(admit(&spec, Some(&some)).is_ok(), admitted, "{spec}");
            assert!(admit(&spec, None).is_err() && admit(&spec, Some(&lent(&["*"]))).is_ok());
        }
    }

    #[test]
    fn a_host_belongs_to_one_namespace() {
        let other = |class: &str| -> Ingress {
            serde_json::from_value(
                json!({"spec": {"ingressClassName": class, "rules": [{"host": "a.org"}, {}]}}),
            )
            .unwrap()
        };
        let wanted = |host: &str| json!({"spec": {"ingressClassName": "public", "rules": [{"host": host}]}});
        assert_eq!(taken(&wanted("a.org"), [&other("public")].into_iter()).as_deref(), Some("a.org"));
        assert_eq!(taken(&wanted("b.org"), [&other("public")].into_iter()), None);
        assert_eq!(taken(&wanted("a.org"), [&other("private")].into_iter()), None);
        assert_eq!(taken(&wanted(""), [&other("public")].into_iter()), None);
    }
}
