//! What a policy of a consumer is in the provider: the provider's step.

use super::block::{Block, seen_from_there};
use super::resolve::{DNS_LABEL, DNS_NAMESPACE};
use super::{Peers, PodPeer, Policy, Rule};
use crate::addresses::Prefixes;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

/// On pods and namespaces in the provider: whose they are, and which namespace they stand for. Nobody but the provider
/// sets these.
#[derive(Debug, Clone, Copy)]
pub struct Marks<'a> {
    /// Label with the identity of the consumer.
    pub cluster: &'a str,
    /// Label with the name of the namespace at home.
    pub namespace: &'a str,
    /// Identity of the consumer.
    pub id: &'a str,
}

/// The spec of the NetworkPolicy for `policy`. `home` are the prefixes of the consumer's own pods, with those under which
/// they are seen here; there may be several.
pub fn translate(policy: &Policy, home: &Prefixes, marks: Marks<'_>) -> Value {
    let rules = |rules: &[Rule], peers: &str| -> Value {
        rules.iter().filter_map(|rule| translated(rule, peers, home, marks)).collect()
    };
    json!({
        "podSelector": marked(&policy.pod_selector, marks),
        "policyTypes": policy.policy_types,
        "ingress": rules(&policy.ingress, "from"),
        "egress": rules(&policy.egress, "to"),
    })
}

/// A rule; `None` if nobody is left in it, for that would be everybody.
fn translated(rule: &Rule, peers: &str, home: &Prefixes, marks: Marks<'_>) -> Option<Value> {
    let mut made = json!({});
    if !rule.ports.is_empty() {
        made["ports"] = json!(rule.ports);
    }
    if let Some(meant) = &rule.peers {
        let list = listed(meant, home, marks);
        if list.is_empty() {
            return None;
        }
        made[peers] = list.into();
    }
    Some(made)
}

fn listed(peers: &Peers, home: &Prefixes, marks: Marks<'_>) -> Vec<Value> {
    let mut list: Vec<Value> = peers.pods.iter().map(|pods| pod_peer(pods, marks)).collect();
    if peers.cluster_dns {
        list.push(json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": DNS_NAMESPACE}},
            "podSelector": {"matchLabels": {DNS_LABEL.0: DNS_LABEL.1}},
        }));
    }
    let seen = peers.home_pods.iter().flat_map(|address| home.all_seen(*address));
    let seen: Vec<IpNet> = seen.map(IpNet::from).collect();
    list.extend(IpNet::aggregate(&seen).into_iter().map(|cidr| block(&Block { cidr, except: Vec::new() })));
    list.extend(
        peers
            .home_blocks
            .iter()
            .flat_map(|home_block| seen_from_there(home_block, home))
            .map(|it| block(&it)),
    );
    // Under these addresses the consumer's pods are seen here, whatever has them elsewhere.
    let others = |it: &Block| it.without(home.pairs().iter().map(|(_, seen)| *seen));
    list.extend(peers.blocks.iter().filter_map(others).map(|it| block(&it)));
    list
}

fn pod_peer(peer: &PodPeer, marks: Marks<'_>) -> Value {
    json!({
        "namespaceSelector": {"matchLabels": {marks.cluster: marks.id, marks.namespace: peer.namespace}},
        "podSelector": marked(&peer.selector, marks),
    })
}

/// The selector for pods of the consumer: others in its namespaces are not its.
fn marked(selector: &LabelSelector, marks: Marks<'_>) -> LabelSelector {
    let mut selector = selector.clone();
    selector.match_labels.get_or_insert_default().insert(marks.cluster.to_owned(), marks.id.to_owned());
    selector
}

fn block(block: &Block) -> Value {
    json!({ "ipBlock": block })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks<'_> =
        Marks { cluster: "liquid.mesh/cluster", namespace: "liquid.mesh/namespace", id: "c" };

    fn made(policy: Value, home: &[(&str, &str)]) -> Value {
        let pairs = home.iter().map(|(real, seen)| (real.parse().unwrap(), seen.parse().unwrap()));
        translate(&serde_json::from_value(policy).unwrap(), &Prefixes::new(pairs), MARKS)
    }

    #[test]
    fn pods_namespaces_and_addresses_are_those_of_the_provider() {
        let rule = json!({"ports": [{"port": 80}], "peers": {
            "pods": [{"namespace": "shop", "selector": {"matchLabels": {"app": "a"}}}],
            "homePods": ["10.244.0.4", "10.244.0.5", "192.0.2.1"],
            "homeBlocks": [{"cidr": "10.244.8.0/24"}],
            "blocks": [{"cidr": "100.64.0.0/10"}],
            "clusterDns": true,
        }});
        let policy = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]});
        let mine = json!({"matchLabels": {"liquid.mesh/cluster": "c"}});
        assert_eq!(
            made(policy, &[("10.244.0.0/16", "100.65.0.0/16")]),
            json!({
                "podSelector": mine, "policyTypes": ["Egress"], "ingress": [],
                "egress": [{"ports": [{"port": 80}], "to": [
                    {
                        "namespaceSelector": {"matchLabels": {"liquid.mesh/cluster": "c", "liquid.mesh/namespace": "shop"}},
                        "podSelector": {"matchLabels": {"app": "a", "liquid.mesh/cluster": "c"}},
                    },
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                    },
                    {"ipBlock": {"cidr": "100.65.0.4/31"}},
                    {"ipBlock": {"cidr": "100.65.8.0/24"}},
                    {"ipBlock": {"cidr": "100.64.0.0/10", "except": ["100.65.0.0/16"]}},
                ]}],
            })
        );
    }

    #[test]
    fn who_may_come_two_ways_is_listed_under_both_addresses() {
        let rules = json!([
            {"peers": {"homePods": ["10.244.0.4"]}},
            {"peers": {"homeBlocks": [{"cidr": "10.244.0.0/28"}]}},
        ]);
        let policy = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules});
        let blocks = |cidrs: [&str; 2]| json!({"from": cidrs.map(|cidr| json!({"ipBlock": {"cidr": cidr}}))});
        assert_eq!(
            made(policy, &[("10.244.0.0/24", "10.44.0.0/24"), ("10.244.0.0/24", "10.201.0.0/24")])["ingress"],
            json!([blocks(["10.44.0.4/32", "10.201.0.4/32"]), blocks(["10.44.0.0/28", "10.201.0.0/28"])])
        );
    }

    #[test]
    fn a_rule_without_anybody_left_is_no_rule_for_everybody() {
        let nobody = json!({"peers": {"homePods": ["10.244.0.4"]}});
        let policy = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [nobody, {}]});
        assert_eq!(made(policy, &[])["ingress"], json!([{}]), "what has no peers at home has none here");
    }
}
