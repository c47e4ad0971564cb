//! What a policy of home means: the consumer's step.

use super::block::{Block, split};
use super::census::{Census, CensusPod, Labels};
use super::{Peers, PodPeer, Policy, Port, Rule, is_portable, parsed};
use crate::addresses::Prefixes;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube_core::{Selector, SelectorExt as _};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Where the servers are that resolve names, and what they are called, in every distribution of Kubernetes.
pub(super) const DNS_NAMESPACE: &str = "kube-system";
pub(super) const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

/// Addresses of pods at home in one policy. In the provider each takes some 40 bytes, of the 1.5 MB an object may have.
const MAX_HOME_PODS: usize = 10_000;

/// What there is to know for reading a policy.
#[derive(Debug)]
pub struct View<'a> {
    /// Who is where at home.
    pub census: &'a Census,
    /// Namespaces whose pods may run in the provider.
    pub offloaded: &'a BTreeSet<String>,
    /// Prefixes of pods at home, if there is a network between the clusters, and in other providers that are reached through
    /// home.
    pub own: &'a [IpNet],
    /// Prefixes of hosts outside of home that pods in the provider reach through it, under other addresses than their own.
    pub outside: &'a [IpNet],
    /// Prefixes of the provider's pods, and those under which home sees them.
    pub seen: &'a Prefixes,
}

/// A policy as it goes to the provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// What it says.
    pub policy: Policy,
    /// What it does not say although home's does, for people.
    pub notes: BTreeSet<String>,
}

/// Fields of a policy, as far as they are known: others may mean anything.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    pod_selector: LabelSelector,
    #[serde(default)]
    policy_types: Vec<String>,
    #[serde(default)]
    ingress: Option<Vec<Value>>,
    #[serde(default)]
    egress: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HomeRule {
    #[serde(default)]
    ports: Vec<Port>,
    #[serde(default, alias = "to")]
    from: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HomePeer {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    ip_block: Option<Block>,
}

impl HomePeer {
    /// Whether it is about pods by their labels.
    fn is_pods(&self) -> bool {
        self.ip_block.is_none() && (self.pod_selector.is_some() || self.namespace_selector.is_some())
    }
}

/// A direction of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// What has to be known of home to read a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// The labels of all namespaces.
    pub namespaces: bool,
    /// The pods of these namespaces; `None` if that cannot be said before the namespaces are known.
    pub pods: Option<BTreeSet<Arc<str>>>,
}

/// What has to be known to read the policy `spec` of `namespace`.
pub fn needs(spec: &Value, namespace: &str, census: &Census) -> Needs {
    let mut selectors: Vec<Option<LabelSelector>> = Vec::new();
    for (direction, rules) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
        let rules = list_of(spec.get(rules)).filter_map(|rule| HomeRule::deserialize(rule).ok());
        for rule in rules {
            if rule.from.is_empty() && is_named(direction, &rule.ports) {
                selectors.push(Some(LabelSelector::default()));
            }
            let peers = rule.from.iter().filter_map(|peer| HomePeer::deserialize(peer).ok());
            selectors.extend(peers.filter(HomePeer::is_pods).map(|peer| peer.namespace_selector));
        }
    }
    let namespaces = selectors.iter().any(Option::is_some);
    let mut pods = BTreeSet::new();
    for selector in selectors {
        match (selector, census.namespaces.as_deref()) {
            (None, _) => _ = pods.insert(Arc::from(namespace)),
            (Some(selector), Some(known)) => pods.extend(matching(parsed(&selector).as_ref(), known)),
            (Some(_), None) => return Needs { namespaces, pods: None },
        }
    }
    Needs { namespaces, pods: Some(pods) }
}

/// Whether ports are named that are those of the other end.
fn is_named(direction: Direction, ports: &[Port]) -> bool {
    direction == Direction::Egress && ports.iter().any(Port::is_named)
}

/// Reads the policy `spec` of `namespace`, as home's API server has it.
pub fn resolve(spec: &Value, namespace: &str, view: &View<'_>) -> Resolved {
    let mut notes = BTreeSet::new();
    let Ok(read) = Spec::deserialize(spec) else {
        return closed("it says something this version of Liquid does not know");
    };
    if !is_portable(&read.pod_selector) {
        return closed("podSelector is about labels of Liquid, which pods in the provider do not have");
    }
    // Whether a policy closes a direction must not depend on whether a rule of it is left.
    let types = if read.policy_types.is_empty() {
        let egress = read.egress.is_some().then(|| "Egress".to_owned());
        ["Ingress".to_owned()].into_iter().chain(egress).collect()
    } else {
        read.policy_types
    };
    let mut reader = Reader { namespace, view, notes: &mut notes, left: MAX_HOME_PODS };
    let ingress = reader.rules(Direction::Ingress, read.ingress.unwrap_or_default());
    let egress = reader.rules(Direction::Egress, read.egress.unwrap_or_default());
    Resolved {
        policy: Policy { pod_selector: read.pod_selector, policy_types: types, ingress, egress },
        notes,
    }
}

/// Nobody may talk to anybody: what a policy becomes that cannot be read.
fn closed(why: &str) -> Resolved {
    Resolved {
        policy: Policy {
            pod_selector: LabelSelector::default(),
            policy_types: vec!["Ingress".to_owned(), "Egress".to_owned()],
            ingress: Vec::new(),
            egress: Vec::new(),
        },
        notes: BTreeSet::from([format!("all pods of the namespace are closed: {why}")]),
    }
}

struct Reader<'a> {
    namespace: &'a str,
    view: &'a View<'a>,
    notes: &'a mut BTreeSet<String>,
    /// How many more addresses there is room for.
    left: usize,
}

impl<'a> Reader<'a> {
    fn rules(&mut self, direction: Direction, rules: Vec<Value>) -> Vec<Rule> {
        let mut read = Vec::new();
        for (index, rule) in rules.into_iter().enumerate() {
            let place = match direction {
                Direction::Ingress => format!("ingress[{index}]"),
                Direction::Egress => format!("egress[{index}]"),
            };
            match serde_json::from_value::<HomeRule>(rule) {
                Ok(rule) => read.extend(self.rule(direction, &place, rule)),
                Err(_) => self.left_out(&place, "it says something this version of Liquid does not know"),
            }
        }
        read
    }

    fn rule(&mut self, direction: Direction, place: &str, rule: HomeRule) -> Vec<Rule> {
        if rule.from.is_empty() {
            if !is_named(direction, &rule.ports) {
                return vec![Rule { ports: rule.ports, peers: None }];
            }
            // Everybody by the numbers, and by the names all pods there are: only they have such ports.
            let (named, numbers): (Vec<Port>, Vec<Port>) = rule.ports.into_iter().partition(Port::is_named);
            let mut peers = Peers::default();
            let all = Some(LabelSelector::default());
            let at_home = self.pods(direction, place, None, all, &mut peers);
            let mut rules = self.rules_for(direction, named, peers, at_home);
            if !numbers.is_empty() {
                rules.push(Rule { ports: numbers, peers: None });
            }
            return rules;
        }
        let mut peers = Peers::default();
        let mut at_home: Vec<&CensusPod> = Vec::new();
        for (index, peer) in rule.from.into_iter().enumerate() {
            let place = format!("{place}, peer {index}");
            match serde_json::from_value::<HomePeer>(peer) {
                Ok(HomePeer { ip_block: Some(block), pod_selector: None, namespace_selector: None }) => {
                    let split = split(&block, self.view.own, self.view.outside, self.view.seen);
                    if split.home.is_empty() && split.there.is_empty() {
                        self.left_out(&place, "these addresses mean something else in the provider");
                    }
                    peers.home_blocks.extend(split.home);
                    peers.blocks.extend(split.there);
                }
                Ok(peer) if peer.is_pods() => {
                    let HomePeer { pod_selector, namespace_selector, .. } = peer;
                    let pods = self.pods(direction, &place, pod_selector, namespace_selector, &mut peers);
                    at_home.extend(pods);
                }
                _ => self.left_out(&place, "it says something this version of Liquid does not know"),
            }
        }
        self.rules_for(direction, rule.ports, peers, at_home)
    }

    /// Pods that are meant by their labels: where they are, and which of them are at home.
    fn pods(
        &mut self,
        direction: Direction,
        place: &str,
        labels: Option<LabelSelector>,
        namespaces: Option<LabelSelector>,
        peers: &mut Peers,
    ) -> Vec<&'a CensusPod> {
        let labels = labels.unwrap_or_default();
        let Some(selector) = parsed(&labels) else {
            self.left_out(place, "its podSelector cannot be read");
            return Vec::new();
        };
        let view = self.view;
        let namespaces: Vec<Arc<str>> = match &namespaces {
            None => vec![Arc::from(self.namespace)],
            Some(selector) => {
                let known = view.census.namespaces.as_deref();
                known.map(|known| matching(parsed(selector).as_ref(), known).collect()).unwrap_or_default()
            }
        };
        let mut at_home = Vec::new();
        for namespace in namespaces {
            if view.offloaded.contains(&*namespace) {
                if is_portable(&labels) {
                    peers.pods.push(PodPeer { namespace: namespace.to_string(), selector: labels.clone() });
                } else {
                    self.left_out(place, "pods in the provider do not have the labels of Liquid it is about");
                }
            }
            let pods = view.census.pods.get(&namespace).into_iter().flat_map(|pods| pods.values());
            for pod in pods.filter(|pod| selector.matches(&pod.labels)) {
                let dns = pod.labels.get(DNS_LABEL.0).is_some_and(|value| value == DNS_LABEL.1);
                peers.cluster_dns |= direction == Direction::Egress && *namespace == *DNS_NAMESPACE && dns;
                at_home.push(pod);
            }
        }
        at_home
    }

    /// The rules for `peers` and the pods at home. Names of ports are those of the pod at the other end: where that is an
    /// address only, as pods at home are in the provider, there are numbers in their place, or nothing.
    fn rules_for(
        &mut self,
        direction: Direction,
        ports: Vec<Port>,
        mut peers: Peers,
        at_home: Vec<&CensusPod>,
    ) -> Vec<Rule> {
        let named = is_named(direction, &ports);
        let mut groups: BTreeMap<String, (Vec<Port>, Peers)> = BTreeMap::new();
        let numbers: Vec<Port> = ports.iter().filter(|port| !port.is_named()).cloned().collect();
        if named {
            let home_blocks = std::mem::take(&mut peers.home_blocks);
            let blocks = std::mem::take(&mut peers.blocks);
            if !numbers.is_empty() {
                let addresses = Peers { home_blocks, blocks, ..Peers::default() };
                groups.insert(key(&numbers), (numbers, addresses));
            }
        }
        for pod in at_home {
            let ports = if named { numbered(&ports, pod) } else { ports.clone() };
            if named && ports.is_empty() {
                continue;
            }
            let own = |address: &&IpAddr| self.view.own.iter().any(|prefix| prefix.contains(*address));
            let addresses: Vec<IpAddr> = pod.addresses.iter().filter(own).copied().collect();
            if addresses.len() > self.left {
                let all = format!("of pods at home, only {MAX_HOME_PODS} addresses are in it");
                self.notes.insert(all);
                break;
            }
            self.left -= addresses.len();
            if named {
                let group = groups.entry(key(&ports)).or_insert_with(|| (ports, Peers::default()));
                group.1.home_pods.extend(addresses);
            } else {
                peers.home_pods.extend(addresses);
            }
        }
        let all = [(ports, peers)].into_iter().chain(groups.into_values());
        // No peers at all would mean everybody.
        let some = all.filter(|(_, peers)| *peers != Peers::default());
        some.map(|(ports, peers)| Rule { ports, peers: Some(peers) }).collect()
    }

    fn left_out(&mut self, place: &str, why: &str) {
        self.notes.insert(format!("{place} is left out: {why}"));
    }
}

/// Tells rules by their ports.
fn key(ports: &[Port]) -> String {
    format!("{ports:?}")
}

/// The ports of a rule as this pod has them.
fn numbered(ports: &[Port], pod: &CensusPod) -> Vec<Port> {
    let mut numbered = Vec::new();
    for port in ports {
        let Some(name) = port.port.as_ref().and_then(Value::as_str) else {
            numbered.push(port.clone());
            continue;
        };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let meant = pod.ports.iter().filter(|its| its.name == name && its.protocol == protocol);
        numbered.extend(meant.map(|its| Port { port: Some(its.port.into()), ..port.clone() }));
    }
    numbered
}

fn matching<'c>(
    selector: Option<&'c Selector>,
    namespaces: &'c BTreeMap<Arc<str>, Labels>,
) -> impl Iterator<Item = Arc<str>> + use<'c> {
    let matches = move |labels: &Labels| selector.is_some_and(|selector| selector.matches(labels));
    namespaces.iter().filter(move |(_, labels)| matches(labels)).map(|(name, _)| name.clone())
}

fn list_of(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::super::census::NamedPort;
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(app: &str, address: &str, port: u16) -> CensusPod {
        CensusPod {
            labels: labels(&[("app", app), ("k8s-app", app)]),
            addresses: vec![address.parse().unwrap()],
            ports: vec![NamedPort { name: "web".to_owned(), protocol: "TCP".to_owned(), port }],
        }
    }

    fn census() -> Census {
        let namespaces = ["shop", "monitoring", "kube-system"]
            .map(|name| (Arc::from(name), labels(&[("kubernetes.io/metadata.name", name)])));
        let pods = |list: &[(&str, CensusPod)]| {
            Arc::new(list.iter().map(|(name, pod)| (Arc::from(*name), pod.clone())).collect())
        };
        Census {
            namespaces: Some(Arc::new(namespaces.into_iter().collect())),
            pods: BTreeMap::from([
                (
                    Arc::from("shop"),
                    pods(&[
                        ("a", pod("client", "10.244.0.5", 80)),
                        ("b", pod("db", "10.244.0.6", 81)),
                        ("c", pod("client", "10.9.0.1", 80)),
                    ]),
                ),
                (Arc::from("monitoring"), pods(&[("p", pod("prometheus", "10.244.0.7", 80))])),
                (Arc::from("kube-system"), pods(&[("dns", pod("kube-dns", "10.244.0.8", 53))])),
            ]),
        }
    }

    fn read(spec: Value) -> Resolved {
        let census = census();
        let view = View {
            census: &census,
            offloaded: &BTreeSet::from(["shop".to_owned()]),
            own: &["10.244.0.0/16".parse().unwrap()],
            outside: &[],
            seen: &Prefixes::default(),
        };
        resolve(&spec, "shop", &view)
    }

    fn as_json(resolved: &Resolved) -> Value {
        serde_json::to_value(&resolved.policy).unwrap()
    }

    #[test]
    fn pods_of_the_namespace_are_those_in_the_provider_and_those_at_home() {
        let client = json!({"matchLabels": {"app": "client"}});
        let read = read(json!({
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": client}], "ports": [{"port": "web"}]}],
        }));
        assert_eq!(
            as_json(&read),
            json!({
                "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                "ingress": [{
                    "ports": [{"port": "web"}],
                    // That of the pod in another provider is not reached from there.
                    "peers": {"pods": [{"namespace": "shop", "selector": client}], "homePods": ["10.244.0.5"]},
                }],
            })
        );
        assert!(read.notes.is_empty());
    }

    #[test]
    fn namespaces_are_those_of_home() {
        let by_name = json!({"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}});
        let read = read(json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": by_name}]}]}));
        let rule = json!([{"peers": {"homePods": ["10.244.0.7"]}}]);
        assert_eq!(as_json(&read)["ingress"], rule);
        assert_eq!(as_json(&read)["policyTypes"], json!(["Ingress"]));
    }

    #[test]
    fn the_servers_that_resolve_names_are_those_of_the_provider_too() {
        for (peer, dns) in [
            (json!({"namespaceSelector": {}}), true),
            (json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}), true),
            (json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "prometheus"}}}), false),
        ] {
            let read =
                read(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]}));
            assert_eq!(read.policy.egress[0].peers.as_ref().unwrap().cluster_dns, dns, "{peer}");
        }
    }

    #[test]
    fn names_of_ports_are_those_of_the_pod_at_the_other_end() {
        let read = read(json!({
            "podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "web"}, {"port": 9, "protocol": "UDP"}]}],
        }));
        let udp = json!({"port": 9, "protocol": "UDP"});
        let peers = |addresses: Value| json!({"homePods": addresses});
        assert_eq!(
            as_json(&read)["egress"],
            json!([
                {"ports": [{"port": "web"}, udp], "peers": {"pods": [{"namespace": "shop", "selector": {}}]}},
                {"ports": [{"port": 80}, udp], "peers": peers(json!(["10.244.0.5"]))},
                {"ports": [{"port": 81}, udp], "peers": peers(json!(["10.244.0.6"]))},
            ])
        );
    }

    #[test]
    fn what_is_not_understood_opens_nothing() {
        let own = json!({"matchLabels": {"liquid.mesh/x": "y"}});
        for (spec, ingress, note) in [
            (json!({"podSelector": {}, "ingress": [{"from": [{"fqdn": "x"}]}]}), 0, "ingress[0], peer 0"),
            (json!({"podSelector": {}, "ingress": [{}, {"action": "Deny"}]}), 1, "ingress[1]"),
            (json!({"podSelector": {}, "ingress": [{"ports": [{"path": "/"}]}]}), 0, "ingress[0]"),
            (json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": own}]}]}), 0, "peer 0"),
            (json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]}), 0, "peer 0"),
            (json!({"podSelector": own, "ingress": [{}]}), 0, "all pods"),
            (json!({"podSelector": {}, "tier": 1, "ingress": [{}]}), 0, "all pods"),
            (json!({"podSelector": {}, "ingress": [{"from": [{}]}]}), 0, "peer 0"),
        ] {
            let read = read(spec.clone());
            assert_eq!(read.policy.ingress.len(), ingress, "{spec}");
            assert!(read.policy.policy_types.contains(&"Ingress".to_owned()));
            assert!(read.notes.iter().any(|said| said.contains(note)), "{spec}: {:?}", read.notes);
        }
    }

    #[test]
    fn pods_are_asked_for_where_policies_are_about_them() {
        let census = census();
        let needed = |spec: Value, census: &Census| {
            Some(needs(&spec, "shop", census).pods?.iter().map(|name| name.to_string()).collect::<Vec<_>>())
        };
        let named = json!({"egress": [{"ports": [{"port": "web"}]}]});
        assert!(needs(&named, "shop", &census).namespaces);
        let same = json!({"ingress": [{"from": [{"podSelector": {}}]}]});
        assert_eq!(needed(same, &Census::default()), Some(vec!["shop".to_owned()]));
        let others = json!({"egress": [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]}]});
        assert_eq!(needed(others.clone(), &Census::default()), None);
        assert_eq!(needed(others, &census), Some(vec!["monitoring".to_owned()]));
        assert_eq!(
            needed(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}, {}]}), &census),
            Some(vec![])
        );
    }
}
