//! What of this cluster a peer may reach: rules about pods, and the addresses that these have. Pure.
//!
//! Each node sees to its own pods, for it sees both directions of their connections, whatever gateways they pass.

use crate::filter::{Action, AddressSet, Chain, Condition, Rule};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};
use liquid_crds::{AccessPort, AccessRule, AccessSpec, Protocol, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Chains of this beginning drop what peers may not reach.
const CHAIN: &str = "from-";
/// Sets of the addresses of all pods that are known, by family.
const KNOWN: [&str; 2] = ["pods", "pods6"];

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The pods of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pods {
    /// They cannot be read.
    pub unknown: bool,
    /// Labels of all namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Those with addresses of their own, by namespace and name.
    pub pods: BTreeMap<(String, String), Pod>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a peer may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    rules: Vec<Selecting>,
    default: Verdict,
    /// Why the rules could not be read. Nothing is let in then.
    unreadable: Option<String>,
}

impl Pods {
    /// Each address with the pod that has it: the latest, for that of an earlier one may be another's before it is known to
    /// have ended. Pods of namespaces whose labels are not known are not among them.
    fn by_address(&self) -> BTreeMap<IpAddr, (&Labels, &Pod)> {
        let mut found: BTreeMap<IpAddr, (&Labels, &Pod)> = BTreeMap::new();
        for ((namespace, _), pod) in &self.pods {
            let Some(labels) = self.namespaces.get(namespace) else { continue };
            for address in &pod.addresses {
                let known = found.entry(*address).or_insert((labels, pod));
                if known.1.created < pod.created {
                    *known = (labels, pod);
                }
            }
        }
        found
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selecting {
    verdict: Verdict,
    namespaces: Option<Selector>,
    pods: Option<Selector>,
    ports: Vec<AccessPort>,
}

impl Access {
    /// Reads the rules of a Peer; none if they keep nothing out.
    #[must_use]
    pub fn read(spec: &AccessSpec) -> Option<Self> {
        if !spec.restricts() {
            return None;
        }
        Some(match spec.rules.iter().map(Selecting::read).collect() {
            Ok(rules) => Self { rules, default: spec.default, unreadable: None },
            Err(why) => Self { rules: Vec::new(), default: Verdict::Deny, unreadable: Some(why) },
        })
    }

    /// Why the rules could not be read.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }
}

impl Selecting {
    fn read(rule: &AccessRule) -> Result<Self, String> {
        let selector = |of: &Option<_>| of.clone().map(Selector::try_from).transpose();
        let bad = |error: kube::core::ParseExpressionError| error.to_string();
        Ok(Self {
            verdict: rule.verdict,
            namespaces: selector(&rule.namespace_selector).map_err(bad)?,
            pods: selector(&rule.pod_selector).map_err(bad)?,
            ports: rule.ports.clone(),
        })
    }

    fn is_about_all(&self) -> bool {
        let all = |selector: &Option<Selector>| selector.as_ref().is_none_or(Selector::selects_all);
        all(&self.namespaces) && all(&self.pods)
    }

    fn fits(&self, namespace: &Labels, pod: &Labels) -> bool {
        let fits = |selector: &Option<Selector>, labels: &Labels| {
            selector.as_ref().is_none_or(|selector| selector.matches(labels))
        };
        fits(&self.namespaces, namespace) && fits(&self.pods, pod)
    }
}

/// The peer whose packets a chain drops.
#[must_use]
pub fn peer_of(chain: &str) -> Option<&str> {
    chain.strip_prefix(CHAIN)
}

/// What keeps peers from what they may not reach.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Rules of the forward chain, about packets that come in from peers.
    pub(crate) jumps: Vec<Rule>,
    pub(crate) chains: Vec<Chain>,
    pub(crate) sets: BTreeMap<String, AddressSet>,
}

impl Guard {
    /// Adds a peer that is seen at these prefixes. `inside` is the condition of what comes from peers.
    pub(crate) fn add(
        &mut self,
        inside: &Condition,
        peer: &str,
        prefixes: &BTreeSet<IpNet>,
        access: &Access,
        pods: &Pods,
    ) {
        let name = format!("{CHAIN}{peer}");
        self.jumps.extend(prefixes.iter().map(|prefix| Rule {
            when: vec![inside.clone(), Condition::Source(prefix.trunc()), Condition::Unconnected],
            action: Action::Jump(name.clone()),
        }));
        let mut rules = Vec::new();
        let known = pods.by_address();
        // Whether a pod is meant is not known before the pod is.
        for (v6, set) in [(false, KNOWN[0]), (true, KNOWN[1])] {
            let set = set.to_owned();
            let addresses = known.keys().filter(|it| it.is_ipv6() == v6).copied().collect();
            self.sets.entry(set.clone()).or_insert(AddressSet { v6, addresses });
            rules.push(Rule { when: vec![Condition::DestinationNotIn { v6, set }], action: Action::Drop });
        }
        for (number, rule) in access.rules.iter().enumerate() {
            for which in self.destinations(peer, number, rule, &known) {
                let action = || if rule.verdict == Verdict::Allow { Action::Accept } else { Action::Drop };
                if rule.ports.is_empty() {
                    rules.push(Rule { when: which.clone(), action: action() });
                }
                rules.extend(rule.ports.iter().map(|ports| {
                    let when = which.iter().cloned().chain([condition(ports)]).collect();
                    Rule { when, action: action() }
                }));
            }
        }
        if access.default == Verdict::Deny {
            rules.push(Rule { when: Vec::new(), action: Action::Drop });
        }
        self.chains.push(Chain { name, base: None, rules });
    }

    /// The conditions of the pods of a rule, by family: none of them if it is about all pods.
    fn destinations(
        &mut self,
        peer: &str,
        number: usize,
        rule: &Selecting,
        known: &BTreeMap<IpAddr, (&Labels, &Pod)>,
    ) -> Vec<Vec<Condition>> {
        if rule.is_about_all() {
            return vec![Vec::new()];
        }
        let fitting = known.iter().filter(|(_, (namespace, pod))| rule.fits(namespace, &pod.labels));
        let all: BTreeSet<IpAddr> = fitting.map(|(address, _)| *address).collect();
        let mut conditions = Vec::new();
        for (v6, family) in [(false, 4), (true, 6)] {
            let addresses: BTreeSet<_> = all.iter().copied().filter(|it| it.is_ipv6() == v6).collect();
            if !addresses.is_empty() {
                let set = format!("{peer}.{number}.{family}");
                self.sets.insert(set.clone(), AddressSet { v6, addresses });
                conditions.push(vec![Condition::DestinationIn { v6, set }]);
            }
        }
        conditions
    }
}

fn condition(ports: &AccessPort) -> Condition {
    let protocol = match ports.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    Condition::Ports { protocol, first: ports.port, last: ports.end_port.unwrap_or(ports.port) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn access(spec: Value) -> Option<Access> {
        Access::read(&from_value(spec).unwrap())
    }

    fn pods() -> Pods {
        let labels = |labels: &[(&str, &str)]| -> Labels {
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let pod = |app: &str, addresses: &[&str]| Pod {
            labels: labels(&[("app", app)]),
            created: None,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let name = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        Pods {
            unknown: false,
            namespaces: BTreeMap::from([
                ("shop".to_owned(), labels(&[("team", "shop")])),
                ("ops".to_owned(), Labels::new()),
            ]),
            pods: BTreeMap::from([
                (name("shop", "web"), pod("web", &["10.244.1.7", "fd00::7"])),
                (name("ops", "web"), pod("web", &["10.244.1.8"])),
                (name("new", "web"), pod("web", &["10.244.1.9"])),
            ]),
        }
    }

    fn guard(spec: Value) -> Guard {
        let mut guard = Guard::default();
        let prefixes = BTreeSet::from(["10.201.0.0/16".parse().unwrap()]);
        let access = access(spec).unwrap();
        guard.add(&Condition::InDevice("o".to_owned()), "milan", &prefixes, &access, &pods());
        guard
    }

    fn text(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_that_deny_nothing_cost_nothing() {
        assert_eq!(access(json!({})), None);
        assert_eq!(access(json!({"rules": [{"action": "Allow", "podSelector": {}}]})), None);
        assert!(access(json!({"default": "Deny"})).is_some());
        assert!(access(json!({"rules": [{"action": "Deny"}]})).is_some());
    }

    #[test]
    fn rules_are_asked_in_their_order_about_the_pods_they_select() {
        let shop = json!({"matchLabels": {"team": "shop"}});
        let Guard { jumps, chains, sets } = guard(json!({
            "default": "Deny",
            "rules": [
                {"action": "Deny", "ports": [{"protocol": "UDP", "port": 53}]},
                {"action": "Allow", "namespaceSelector": shop, "ports": [{"port": 80}, {"port": 1000, "endPort": 2000}]},
                {"action": "Allow", "podSelector": {"matchLabels": {"app": "none"}}},
            ],
        }));
        assert_eq!(text(&jumps), ["iif o ip saddr 10.201.0.0/16 unconnected jump from-milan"]);
        assert_eq!(
            text(&chains[0].rules),
            [
                "ip daddr != @pods drop",
                "ip6 daddr != @pods6 drop",
                "protocol 17 dport 53-53 drop",
                "ip daddr @milan.1.4 protocol 6 dport 80-80 accept",
                "ip daddr @milan.1.4 protocol 6 dport 1000-2000 accept",
                "ip6 daddr @milan.1.6 protocol 6 dport 80-80 accept",
                "ip6 daddr @milan.1.6 protocol 6 dport 1000-2000 accept",
                "drop",
            ]
        );
        let set = |name: &str| sets[name].addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(set("pods"), ["10.244.1.7", "10.244.1.8"]);
        assert_eq!(set("milan.1.4"), ["10.244.1.7"]);
        assert_eq!(set("milan.1.6"), ["fd00::7"]);
        assert_eq!(peer_of(&chains[0].name), Some("milan"));
    }

    #[test]
    fn an_address_is_that_of_the_latest_pod_that_has_it() {
        let mut pods = pods();
        let name = ("ops".to_owned(), "later".to_owned());
        let later = Pod {
            labels: Labels::from([("app".to_owned(), "db".to_owned())]),
            created: Some(Timestamp::UNIX_EPOCH),
            addresses: vec!["10.244.1.7".parse().unwrap()],
        };
        pods.pods.insert(name, later);
        let app =
            |address: &str| pods.by_address()[&address.parse::<IpAddr>().unwrap()].1.labels["app"].clone();
        assert_eq!((app("10.244.1.7"), app("fd00::7")), ("db".to_owned(), "web".to_owned()));
    }

    #[test]
    fn what_cannot_be_read_lets_nothing_in() {
        let bad = json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["x"]}]});
        let spec = json!({"rules": [{"action": "Allow"}, {"action": "Deny", "namespaceSelector": bad}]});
        assert!(access(spec.clone()).unwrap().unreadable().is_some());
        assert_eq!(text(&guard(spec).chains[0].rules).last().map(String::as_str), Some("drop"));
    }
}
