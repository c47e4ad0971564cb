//! NetworkPolicies against a model: who may talk to whom in the provider is who may at home, for random policies over random
//! pods. The model reads policies as Kubernetes says, at home and in the provider, and knows nothing of how one becomes the
//! other.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube_core::{Selector, SelectorExt as _};
use liquid_reflection::Prefixes;
use liquid_reflection::policy::{
    Census, CensusPod, Labels, Marks, NamedPort, View, needs, resolve, translate,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const NAMESPACES: [&str; 4] = ["shop", "other", "closed", "kube-system"];
/// Those that may run in the provider.
const OFFLOADED: [&str; 2] = ["shop", "other"];
const MARKS: Marks<'_> =
    Marks { cluster: "liquid.mesh/cluster", namespace: "liquid.mesh/namespace", id: "turin" };

/// Prefix of pods at home.
const HOME: &str = "10.244.0.0/16";

/// How the clusters see each other's pods.
#[derive(Debug, Clone, Copy)]
struct Network {
    /// Prefix of the provider's pods, and how home sees it.
    there: &'static str,
    there_at_home: &'static str,
    /// How the provider sees pods at home.
    home_there: &'static str,
}

const NETWORKS: [Network; 3] = [
    // Both use the same addresses.
    Network { there: "10.244.0.0/16", there_at_home: "10.200.0.0/16", home_there: "10.201.0.0/16" },
    Network { there: "10.245.0.0/16", there_at_home: "10.245.0.0/16", home_there: "10.244.0.0/16" },
    // They do not, and something else is in the way.
    Network { there: "10.245.0.0/16", there_at_home: "10.200.0.0/16", home_there: "10.201.0.0/16" },
];

/// Where machines are that both clusters reach.
const OUTSIDE: &str = "192.0.2.0/24";

/// Where something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Home,
    Provider,
    /// A pod of the provider's own.
    Foreign,
    /// In neither cluster.
    Outside,
}

/// Somebody at one end of a connection.
#[derive(Debug, Clone)]
struct Party {
    place: Place,
    namespace: &'static str,
    labels: Labels,
    /// Number of its port `web`.
    web: u16,
    network: Network,
    /// Its place in the prefix of its cluster.
    host: u16,
}

/// What policies of one cluster see of somebody.
struct Seen {
    address: IpAddr,
    /// Labels of its namespace, its own, and its port `web`, if it is a pod there.
    pod: Option<(String, Labels, Labels, u16)>,
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn namespace_labels(name: &str) -> Labels {
    let team = if name == "shop" || name == "closed" { "blue" } else { "red" };
    labels(&[("kubernetes.io/metadata.name", name), ("team", team)])
}

fn address(prefix: &str, host: u16) -> IpAddr {
    let IpAddr::V4(network) = prefix.parse::<IpNet>().unwrap().network() else { panic!("IPv6") };
    IpAddr::V4((u32::from(network) | u32::from(host)).into())
}

impl Party {
    /// As home sees it: its own pods wherever they run, and addresses.
    fn at_home(&self) -> Seen {
        let pod =
            (self.namespace.to_owned(), namespace_labels(self.namespace), self.labels.clone(), self.web);
        let (prefix, pod) = match self.place {
            Place::Home => (HOME, Some(pod)),
            Place::Provider => (self.network.there_at_home, Some(pod)),
            Place::Foreign => (self.network.there_at_home, None),
            Place::Outside => (OUTSIDE, None),
        };
        Seen { address: address(prefix, self.host), pod }
    }

    /// As the provider sees it.
    fn there(&self) -> Seen {
        let (prefix, pod) = match self.place {
            Place::Home => (self.network.home_there, None),
            Place::Provider => {
                let mut own = self.labels.clone();
                own.insert(MARKS.cluster.to_owned(), MARKS.id.to_owned());
                let name = format!("{}-turin", self.namespace);
                let namespace = labels(&[
                    ("kubernetes.io/metadata.name", &name),
                    (MARKS.cluster, MARKS.id),
                    (MARKS.namespace, self.namespace),
                ]);
                (self.network.there, Some((name, namespace, own, self.web)))
            }
            // Named and labelled to be taken for the consumer's, where it can be.
            Place::Foreign => {
                let namespace = namespace_labels(self.namespace);
                let pod = (self.namespace.to_owned(), namespace, self.labels.clone(), self.web);
                (self.network.there, Some(pod))
            }
            Place::Outside => (OUTSIDE, None),
        };
        Seen { address: address(prefix, self.host), pod }
    }
}

fn selects(selector: &Value, labels: &Labels) -> bool {
    let selector: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
    Selector::try_from(selector).unwrap().matches(labels)
}

fn is_peer(peer: &Value, namespace: &str, other: &Seen) -> bool {
    if let Some(block) = peer.get("ipBlock") {
        let holds = |cidr: &Value| cidr.as_str().unwrap().parse::<IpNet>().unwrap().contains(&other.address);
        return holds(&block["cidr"]) && !block["except"].as_array().into_iter().flatten().any(holds);
    }
    let Some((its_namespace, namespace_labels, labels, _)) = &other.pod else { return false };
    let of_namespace = match peer.get("namespaceSelector") {
        None => its_namespace == namespace,
        Some(selector) => selects(selector, namespace_labels),
    };
    of_namespace && peer.get("podSelector").is_none_or(|selector| selects(selector, labels))
}

fn is_port(port: &Value, server: &Seen, number: u16) -> bool {
    if port.get("protocol").is_some_and(|protocol| protocol != "TCP") {
        return false;
    }
    match port.get("port") {
        None => true,
        Some(Value::String(name)) => {
            server.pod.as_ref().is_some_and(|(.., web)| name == "web" && *web == number)
        }
        Some(first) => {
            let first = first.as_u64().unwrap();
            let last = port.get("endPort").and_then(Value::as_u64).unwrap_or(first);
            (first..=last).contains(&u64::from(number))
        }
    }
}

/// Whether policies of `namespace` let `subject` talk to `other` in this direction.
fn allowed(
    policies: &[Value],
    namespace: &str,
    subject: &Seen,
    other: &Seen,
    egress: bool,
    number: u16,
) -> bool {
    let (kind, rules, peers) =
        if egress { ("Egress", "egress", "to") } else { ("Ingress", "ingress", "from") };
    let subject_labels = &subject.pod.as_ref().unwrap().2;
    let closing: Vec<&Value> = policies
        .iter()
        .filter(|policy| policy["policyTypes"].as_array().unwrap().contains(&json!(kind)))
        .filter(|policy| selects(&policy["podSelector"], subject_labels))
        .collect();
    let opens = |rule: &Value| {
        let list = |name: &str| rule[name].as_array().cloned().unwrap_or_default();
        let (peers, ports) = (list(peers), list("ports"));
        let server = if egress { other } else { subject };
        // Names of ports are those of pods; an address, as such, has none.
        let open = |by_address: bool| {
            let named = |port: &Value| egress && by_address && port["port"].is_string();
            ports.is_empty() || ports.iter().any(|port| !named(port) && is_port(port, server, number))
        };
        let is_open_for =
            |peer: &Value| is_peer(peer, namespace, other) && open(peer.get("ipBlock").is_some());
        if peers.is_empty() { open(false) } else { peers.iter().any(is_open_for) }
    };
    let mut opening = closing.iter().flat_map(|policy| policy[rules].as_array().into_iter().flatten());
    closing.is_empty() || opening.any(opens)
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        "[abc]".prop_map(|app| json!({"matchLabels": {"app": app}})),
        "[ab]".prop_map(
            |app| json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [app]}]})
        ),
        Just(json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]})),
        Just(json!({"matchLabels": {"k8s-app": "kube-dns"}})),
    ]
}

fn namespaces() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        proptest::sample::select(&["blue", "red"][..])
            .prop_map(|team| json!({"matchLabels": {"team": team}})),
        proptest::sample::select(&NAMESPACES[..])
            .prop_map(|name| json!({"matchLabels": {"kubernetes.io/metadata.name": name}})),
    ]
}

fn block() -> impl Strategy<Value = Value> {
    let cidrs = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.192.0.0/10",
        "10.244.0.0/16",
        "10.244.0.0/29",
        "10.244.0.0/28",
        "10.200.0.0/16",
        "10.200.0.0/28",
        "10.201.0.0/16",
        "10.245.0.0/16",
        "10.245.0.0/28",
        "192.0.2.0/24",
        "192.0.2.4/30",
    ];
    let cidr = proptest::sample::select(cidrs.to_vec());
    (cidr.clone(), proptest::collection::vec(cidr, 0..3)).prop_map(|(cidr, except)| {
        let outer: IpNet = cidr.parse().unwrap();
        let inside = |net: &&&str| {
            let net: IpNet = net.parse().unwrap();
            outer.contains(&net) && net != outer
        };
        json!({"ipBlock": {"cidr": cidr, "except": except.iter().filter(inside).collect::<Vec<_>>()}})
    })
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        namespaces().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (namespaces(), selector())
            .prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})),
        block(),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port": "web"})),
        (80..83u16).prop_map(|port| json!({"port": port, "protocol": "TCP"})),
        Just(json!({"port": 80, "endPort": 81})),
        Just(json!({"protocol": "UDP", "port": 80})),
        Just(json!({"protocol": "TCP"})),
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(port(), 0..3)).prop_map(
        move |(list, ports)| {
            let mut rule = json!({});
            if !list.is_empty() {
                rule[peers] = list.into();
            }
            if !ports.is_empty() {
                rule["ports"] = ports.into();
            }
            rule
        },
    )
}

fn policy() -> impl Strategy<Value = Value> {
    let rules = |peers| proptest::collection::vec(rule(peers), 0..3);
    (selector(), 0..4u8, rules("from"), rules("to")).prop_map(|(pods, types, ingress, egress)| {
        let types = match types {
            0 => json!(["Ingress"]),
            1 => json!(["Egress"]),
            _ => json!(["Ingress", "Egress"]),
        };
        json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress})
    })
}

fn party(network: Network, place: Place, number: u8) -> impl Strategy<Value = Party> {
    let namespace: &'static [&'static str] = if place == Place::Provider { &OFFLOADED } else { &NAMESPACES };
    let namespace = proptest::sample::select(namespace);
    // Two pods of the provider have two addresses.
    let host = u16::from(number) + if place == Place::Foreign { 8 } else { 0 };
    (namespace, "[abc]", any::<bool>(), any::<bool>(), 80..82u16).prop_map(
        move |(namespace, app, tier, dns, web)| {
            let mut labels = labels(&[("app", &app)]);
            if tier {
                labels.insert("tier".to_owned(), "x".to_owned());
            }
            if dns && namespace == "kube-system" {
                labels.insert("k8s-app".to_owned(), "kube-dns".to_owned());
            }
            // Servers that resolve names have the same ports in every cluster.
            let web = if labels.contains_key("k8s-app") { 80 } else { web };
            Party { place, namespace, labels, web, network, host }
        },
    )
}

fn parties() -> impl Strategy<Value = (Network, Vec<Party>)> {
    let places = [Place::Home, Place::Provider, Place::Foreign, Place::Outside];
    proptest::sample::select(&NETWORKS[..]).prop_flat_map(move |network| {
        let of = |place| (1..4u8).map(move |number| party(network, place, number));
        (Just(network), places.into_iter().flat_map(of).collect::<Vec<_>>())
    })
}

fn census(parties: &[Party]) -> Census {
    let mut pods: BTreeMap<Arc<str>, BTreeMap<Arc<str>, CensusPod>> =
        NAMESPACES.iter().map(|name| (Arc::from(*name), BTreeMap::new())).collect();
    for (index, party) in parties.iter().enumerate() {
        // Pods in the provider are pods of home, too.
        if matches!(party.place, Place::Home | Place::Provider) {
            let pod = CensusPod {
                labels: party.labels.clone(),
                addresses: vec![party.at_home().address],
                ports: vec![NamedPort {
                    name: "web".to_owned(),
                    protocol: "TCP".to_owned(),
                    port: party.web,
                }],
            };
            pods.get_mut(party.namespace).unwrap().insert(Arc::from(format!("p{index}")), pod);
        }
    }
    let namespaces = NAMESPACES.iter().map(|name| (Arc::from(*name), namespace_labels(name))).collect();
    Census {
        namespaces: Some(Arc::new(namespaces)),
        pods: pods.into_iter().map(|(name, pods)| (name, Arc::new(pods))).collect(),
    }
}

fn prefixes(real: &str, seen: &str) -> Prefixes {
    Prefixes::new([(real.parse().unwrap(), seen.parse().unwrap())])
}

fn is_dns(party: &Party) -> bool {
    party.namespace == "kube-system" && party.labels.contains_key("k8s-app")
}

proptest! {
    #[test]
    fn who_may_talk_to_whom_in_the_provider_is_who_may_at_home(
        policies in proptest::collection::vec(policy(), 1..3),
        (network, parties) in parties(),
    ) {
        let census = census(&parties);
        let offloaded: BTreeSet<String> = OFFLOADED.iter().map(|name| (*name).to_owned()).collect();
        let own = [HOME.parse().unwrap()];
        let seen = prefixes(network.there, network.there_at_home);
        let view = View { census: &census, offloaded: &offloaded, own: &own, outside: &[], seen: &seen };
        let translated: Vec<Value> = policies
            .iter()
            .map(|policy| {
                let needed = needs(policy, "shop", &census).pods.unwrap();
                assert!(needed.iter().all(|name| census.pods.contains_key(name)));
                let resolved = resolve(policy, "shop", &view);
                // As it travels.
                let sent = serde_json::to_string(&resolved.policy).unwrap();
                let policy = serde_json::from_str(&sent).unwrap();
                translate(&policy, &prefixes(HOME, network.home_there), MARKS)
            })
            .collect();
        let subjects = parties.iter().filter(|party| party.place == Place::Provider && party.namespace == "shop");
        let dns_at_home: Vec<&Party> =
            parties.iter().filter(|party| party.place == Place::Home && is_dns(party)).collect();
        for subject in subjects {
            for other in &parties {
                for egress in [true, false] {
                    for port in 80..82u16 {
                        let home = |other: &Seen| allowed(&policies, "shop", &subject.at_home(), other, egress, port);
                        let (at_home, there) = (
                            home(&other.at_home()),
                            allowed(&translated, "shop-turin", &subject.there(), &other.there(), egress, port),
                        );
                        // Names are resolved by the provider's own servers, which stand for those of home.
                        let stands_for = egress && other.place == Place::Foreign && is_dns(other);
                        let stand_in = stands_for && dns_at_home.iter().any(|dns| home(&dns.at_home()));
                        prop_assert!(
                            there == at_home || (there && stand_in),
                            "{:?} {:?} {} {port}: {at_home} at home, {there} there\n{}\n{}",
                            subject, other, if egress { "to" } else { "from" },
                            json!(policies), json!(translated),
                        );
                    }
                }
            }
        }
    }

    /// Without a network between the clusters nobody at home can be named in the provider, and what is private at home may
    /// be anybody's there.
    #[test]
    fn without_a_network_nobody_else_may(policies in proptest::collection::vec(policy(), 1..3), (_, parties) in parties()) {
        let census = census(&parties);
        let offloaded: BTreeSet<String> = OFFLOADED.iter().map(|name| (*name).to_owned()).collect();
        let view = View { census: &census, offloaded: &offloaded, own: &[], outside: &[], seen: &Prefixes::default() };
        let translated: Vec<Value> = policies
            .iter()
            .map(|policy| translate(&resolve(policy, "shop", &view).policy, &Prefixes::default(), MARKS))
            .collect();
        for subject in parties.iter().filter(|party| party.place == Place::Provider && party.namespace == "shop") {
            for other in parties.iter().filter(|party| party.place != Place::Home && !is_dns(party)) {
                for egress in [true, false] {
                    // Home has no addresses for pods in the provider, and does not see the provider's own at all.
                    let mut home = other.at_home();
                    if other.place != Place::Outside {
                        home.address = "203.0.113.1".parse().unwrap();
                    }
                    let at_home = |other: &Seen| allowed(&policies, "shop", &subject.at_home(), other, egress, 80);
                    let there = allowed(&translated, "shop-turin", &subject.there(), &other.there(), egress, 80);
                    prop_assert!(
                        !there || at_home(&home),
                        "{:?} {:?}\n{}\n{}", subject, other, json!(policies), json!(translated),
                    );
                }
            }
        }
    }
}
