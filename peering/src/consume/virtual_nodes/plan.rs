//! Which virtual nodes there are to be for a peer. Pure.

use liquid_crds::{ClusterName, VirtualNodes};
use liquid_link::digest::Hash;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Virtual nodes made for the nodes of one peer: of a kubelet API's thousand ports half.
const MAX_PER_NODE: usize = 500;
/// Longest name of a virtual node: it is a DNS label.
const MAX_NAME: usize = 63;
/// How long a node of the provider has to be gone before its virtual node is removed. Nodes that register anew are back
/// sooner; pods of a node that is gone for good are lost there after 40 s in any case.
const GONE_FOR: Duration = Duration::from_secs(30);

/// What the provider says of its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Nodes {
    /// Nothing yet.
    Unheard,
    /// It does not tell: reason, and message for people.
    Withheld(String, String),
    /// These, and no others.
    Told(BTreeSet<String>),
}

/// A virtual node that was made for the peer, by its name.
pub(super) type Made = BTreeMap<String, Option<String>>;

/// What there is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Virtual nodes to make: name, and the node of the provider behind it, if it is one.
    pub(super) make: Vec<(String, Option<String>)>,
    /// Virtual nodes to remove.
    pub(super) remove: Vec<String>,
    /// How it is: whether all is made, CamelCase reason, and message for people.
    pub(super) state: Option<(bool, String, String)>,
    /// When to look again, if nothing happens before.
    pub(super) again: Option<Instant>,
}

/// Keeps in mind since when nodes have been gone.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    gone: BTreeMap<String, Instant>,
}

impl Keeper {
    /// What is to be done for `peer`. `made` are the virtual nodes that were made for it, with the node behind each; names
    /// for which `taken` holds belong to somebody else.
    ///
    /// What is not known removes nothing: only nodes the provider does not name in a list it has told are gone.
    pub(super) fn plan(
        &mut self,
        mode: VirtualNodes,
        peer: &ClusterName,
        nodes: &Nodes,
        made: &Made,
        taken: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Plan {
        match mode {
            VirtualNodes::None => Plan {
                remove: made.keys().cloned().collect(),
                state: Some((true, "None".to_owned(), "no virtual nodes are wanted".to_owned())),
                ..Plan::default()
            },
            VirtualNodes::PerPeer => {
                let name = peer.virtual_node();
                let there = made.contains_key(&name) || taken(&name);
                Plan {
                    remove: made.keys().filter(|known| **known != name).cloned().collect(),
                    make: if there { Vec::new() } else { vec![(name, None)] },
                    state: Some((true, "PerPeer".to_owned(), "there is one for the whole peer".to_owned())),
                    again: None,
                }
            }
            VirtualNodes::PerNode => match nodes {
                Nodes::Unheard => Plan::default(),
                Nodes::Withheld(reason, message) => {
                    Plan { state: Some((false, reason.clone(), message.clone())), ..Plan::default() }
                }
                Nodes::Told(nodes) => self.per_node(peer, nodes, made, taken, now),
            },
        }
    }

    fn per_node(
        &mut self,
        peer: &ClusterName,
        nodes: &BTreeSet<String>,
        made: &Made,
        taken: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Plan {
        let mut plan = Plan::default();
        let served: BTreeSet<&String> = made.values().flatten().collect();
        let mut conflicts = Vec::new();
        // Those that have a virtual node keep it, whatever other nodes there are.
        let missing = nodes.iter().filter(|node| !served.contains(node));
        let room = MAX_PER_NODE.saturating_sub(served.len());
        for node in missing.take(room) {
            let free = |name: &String| !taken(name) && !made.contains_key(name);
            let planned = |name: &String| plan.make.iter().any(|(known, _)| known == name);
            match names(peer, node).into_iter().find(|name| free(name) && !planned(name)) {
                Some(name) => plan.make.push((name, Some(node.clone()))),
                None => conflicts.push(node.as_str()),
            }
        }
        self.gone.retain(|name, _| made.contains_key(name));
        for (name, node) in made {
            match node {
                // The one for the whole peer: its nodes are known one by one now.
                None => plan.remove.push(name.clone()),
                Some(node) if nodes.contains(node) => drop(self.gone.remove(name)),
                Some(_) => {
                    let due = *self.gone.entry(name.clone()).or_insert(now) + GONE_FOR;
                    if due <= now {
                        plan.remove.push(name.clone());
                    } else {
                        plan.again = Some(plan.again.map_or(due, |again| again.min(due)));
                    }
                }
            }
        }
        let all = nodes.len();
        plan.state = Some(if !conflicts.is_empty() {
            let message = format!(
                "virtual nodes for {} cannot be made: others have their names",
                conflicts.into_iter().take(3).collect::<Vec<_>>().join(", ")
            );
            (false, "NameTaken".to_owned(), message)
        } else if all > MAX_PER_NODE {
            let message = format!(
                "the peer has {all} nodes, and {MAX_PER_NODE} get a virtual node: choose some by nodeSelector"
            );
            (false, "TooManyNodes".to_owned(), message)
        } else {
            (true, "PerNode".to_owned(), format!("there is one for each of {all} nodes"))
        });
        plan
    }
}

/// Names for the virtual node of a node, the best first.
fn names(peer: &ClusterName, node: &str) -> [String; 2] {
    let plain = format!("liquid-{peer}-{}", node.replace('.', "-"));
    let hash = Hash::of(node.as_bytes()).to_string();
    let mut short = plain.clone();
    short.truncate(MAX_NAME - 9);
    let unique = format!("{}-{}", short.trim_end_matches('-'), &hash[..8]);
    // a.b and a-b are two nodes.
    if node.contains('.') || plain.len() > MAX_NAME { [unique.clone(), unique] } else { [plain, unique] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer() -> ClusterName {
        "milan".parse().unwrap()
    }

    fn told(nodes: &[&str]) -> Nodes {
        Nodes::Told(nodes.iter().map(|node| (*node).to_owned()).collect())
    }

    fn made(nodes: &[(&str, Option<&str>)]) -> Made {
        nodes.iter().map(|(name, node)| ((*name).to_owned(), node.map(str::to_owned))).collect()
    }

    fn plan(mode: VirtualNodes, nodes: &Nodes, made: &Made) -> Plan {
        Keeper::default().plan(mode, &peer(), nodes, made, |_| false, Instant::now())
    }

    #[test]
    fn each_node_gets_one_and_the_one_for_all_goes() {
        let plan = plan(
            VirtualNodes::PerNode,
            &told(&["n1", "n2"]),
            &made(&[("liquid-milan", None), ("x", Some("n1"))]),
        );
        assert_eq!(plan.make, [("liquid-milan-n2".to_owned(), Some("n2".to_owned()))]);
        assert_eq!(plan.remove, ["liquid-milan"]);
        assert_eq!(plan.state.unwrap().1, "PerNode");
    }

    #[test]
    fn what_is_not_known_removes_nothing() {
        let made = made(&[("liquid-milan", None), ("liquid-milan-n1", Some("n1"))]);
        let withheld = Nodes::Withheld("NodesNotExposed".to_owned(), "why".to_owned());
        for nodes in [Nodes::Unheard, withheld] {
            let plan = plan(VirtualNodes::PerNode, &nodes, &made);
            assert_eq!((plan.make.len(), plan.remove.len()), (0, 0), "{nodes:?}");
        }
        assert_eq!(
            plan(VirtualNodes::PerPeer, &Nodes::Unheard, &made).remove,
            ["liquid-milan-n1"],
            "it was asked for"
        );
        assert_eq!(plan(VirtualNodes::None, &Nodes::Unheard, &made).remove.len(), 2);
    }

    #[test]
    fn a_node_that_comes_back_soon_was_not_gone() {
        let mut keeper = Keeper::default();
        let made = made(&[("v", Some("n1"))]);
        let start = Instant::now();
        let mut at = |seconds: u64, nodes: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            keeper.plan(VirtualNodes::PerNode, &peer(), &told(nodes), &made, |_| false, now)
        };
        assert_eq!(at(0, &[]).again, Some(start + GONE_FOR));
        assert!(at(29, &[]).remove.is_empty());
        assert!(at(29, &["n1"]).again.is_none());
        assert!(at(31, &[]).remove.is_empty(), "it is counted anew");
        assert_eq!(at(61, &[]).remove, ["v"]);
    }

    #[test]
    fn names_are_labels_and_no_two_nodes_have_the_same() {
        let long = "n".repeat(250);
        let nodes = ["a.b", "a-b", "ip-10-0-0-1.eu-south-1.compute.internal", &long];
        let plan = plan(VirtualNodes::PerNode, &told(&nodes), &Made::new());
        let names: BTreeSet<String> = plan.make.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), nodes.len());
        for name in &names {
            assert!(
                name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
                "{name}"
            );
        }
        assert!(names.contains("liquid-milan-a-b"));
    }

    #[test]
    fn names_of_others_are_left_alone() {
        let mut keeper = Keeper::default();
        let mut with = |taken: fn(&str) -> bool| {
            keeper.plan(VirtualNodes::PerNode, &peer(), &told(&["n1"]), &Made::new(), taken, Instant::now())
        };
        let made = with(|name| name == "liquid-milan-n1").make;
        assert!(made[0].0.starts_with("liquid-milan-n1-"), "{made:?}");
        let none = with(|_| true);
        assert_eq!((none.make.len(), none.state.unwrap().1.as_str()), (0, "NameTaken"));
        let plan = keeper.plan(
            VirtualNodes::PerPeer,
            &peer(),
            &Nodes::Unheard,
            &Made::new(),
            |_| true,
            Instant::now(),
        );
        assert!(plan.make.is_empty(), "the user has one of that name");
    }

    #[test]
    fn there_is_a_bound() {
        let nodes: Vec<String> = (0..600).map(|index| format!("n{index:03}")).collect();
        let nodes = Nodes::Told(nodes.into_iter().collect());
        let plan = plan(VirtualNodes::PerNode, &nodes, &Made::new());
        assert_eq!((plan.make.len(), plan.state.unwrap().1.as_str()), (MAX_PER_NODE, "TooManyNodes"));
    }

    proptest! {
        /// Carried out again and again, plans come to one virtual node for each node, and stay there.
        #[test]
        fn plans_converge(
            histories in prop::collection::vec(prop::collection::btree_set("[a-d][.-]?[a-d]", 0..6), 1..6),
        ) {
            let mut keeper = Keeper::default();
            let mut there = Made::new();
            let mut now = Instant::now();
            for nodes in histories {
                for _ in 0..2 {
                    now += GONE_FOR;
                    let told = Nodes::Told(nodes.clone());
                    let plan = keeper.plan(VirtualNodes::PerNode, &peer(), &told, &there, |_| false, now);
                    for name in plan.remove {
                        let node = there.remove(&name).flatten();
                        prop_assert!(node.is_some_and(|node| !nodes.contains(&node)), "a node that is there lost its own");
                    }
                    there.extend(plan.make);
                }
                let served: Vec<&String> = there.values().flatten().collect();
                let distinct: BTreeSet<String> = served.iter().map(|node| (*node).clone()).collect();
                prop_assert_eq!(served.len(), distinct.len());
                prop_assert_eq!(distinct, nodes);
            }
        }
    }
}
