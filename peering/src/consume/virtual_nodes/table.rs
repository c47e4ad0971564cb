//! The consumer's side of a negotiation: what is asked, what was answered, and what follows from it. Pure.

use super::acceptance::{Answer, Verdict, judge};
use super::known::KnownNode;
use super::plan::Nodes;
use crate::consume::offer::{from_wire, reason, text};
use liquid_crds::{ConsumeSpec, VirtualNodes, is_dns_subdomain};
use liquid_link::digest::Hash;
use liquid_link::proto::ask::Ask as Asks;
use liquid_link::proto::bid::Bid as Bids;
use liquid_link::proto::{self, Ask, Bid, Complete, NodeQuery, SliceRequest};
use serde_json::json;
use std::collections::BTreeMap;

/// Longest message of the provider that is shown.
const MAX_MESSAGE: usize = 512;

/// What was asked for a virtual node.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    /// UID of the VirtualNode: one of the same name is another one.
    uid: String,
    request: SliceRequest,
}

/// An answer that counts.
#[derive(Debug, Clone)]
struct Answered {
    revision: u64,
    answer: Answer,
    digest: Hash,
}

/// What is to be written into the status of a VirtualNode.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) answer: Answer,
    pub(super) verdict: Verdict,
    /// Identifies all of it.
    pub(super) digest: Hash,
}

/// One negotiation; the next stream begins with an empty table.
#[derive(Debug)]
pub(super) struct Table {
    asked: BTreeMap<String, Asked>,
    answered: BTreeMap<String, Answered>,
    /// What is written already, by name: UID of the VirtualNode, and digest of the outcome.
    written: BTreeMap<String, (String, Hash)>,
    pub(super) nodes: Nodes,
    complete: bool,
    revision: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            written: BTreeMap::new(),
            nodes: Nodes::Unheard,
            complete: false,
            revision: 0,
        }
    }
}

impl Table {
    /// Takes in what the provider says.
    pub(super) fn learn(&mut self, bid: Bid) {
        match bid.bid {
            Some(Bids::Answer(proto::SliceAnswer { name, revision, offer, reason: why, message })) => {
                if !self.asked.contains_key(&name) {
                    return;
                }
                let answer = match offer {
                    Some(offer) => Answer::Offer(Box::new(from_wire(offer))),
                    None => Answer::Declined(reason(&why), text(&message, MAX_MESSAGE)),
                };
                let body = match &answer {
                    Answer::Offer(offer) => json!({ "offer": offer }),
                    Answer::Declined(reason, message) => json!([reason, message]),
                };
                let digest = Hash::of(body.to_string().as_bytes());
                self.answered.insert(name, Answered { revision, answer, digest });
            }
            Some(Bids::Nodes(proto::NodeList { names, reason: why, message })) => {
                self.nodes = if why.is_empty() {
                    // Names that no node has would become names of objects.
                    Nodes::Told(names.into_iter().filter(|name| is_dns_subdomain(name)).collect())
                } else {
                    Nodes::Withheld(reason(&why), text(&message, MAX_MESSAGE))
                };
            }
            // Something newer than this version.
            None => {}
        }
    }

    /// What there is to say, `nodes` being the VirtualNodes of the provider.
    pub(super) fn asks(&mut self, nodes: &BTreeMap<&String, &KnownNode>, consume: &ConsumeSpec) -> Vec<Ask> {
        let mut asks = Vec::new();
        let ask = |ask| Ask { ask: Some(ask) };
        let gone: Vec<String> = self
            .asked
            .iter()
            .filter(|(name, asked)| nodes.get(name).is_none_or(|node| node.uid != asked.uid))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.asked.remove(&name);
            self.answered.remove(&name);
            self.written.remove(&name);
            asks.push(ask(Asks::Withdrawn(name)));
        }
        for (name, node) in nodes {
            let wanted = self.request(name, node, consume);
            let known = self.asked.get(*name);
            let same = known.is_some_and(|known| {
                SliceRequest { revision: wanted.revision, ..known.request.clone() } == wanted
            });
            if same {
                continue;
            }
            // An offer for something else is no answer; one that is only accepted stays.
            let only_accepted = known.is_some_and(|known| {
                let accepted_terms = wanted.accepted_terms.clone();
                SliceRequest { revision: wanted.revision, accepted_terms, ..known.request.clone() } == wanted
            });
            self.revision += 1;
            if only_accepted && let Some(answered) = self.answered.get_mut(*name) {
                answered.revision = self.revision;
            }
            let request = SliceRequest { revision: self.revision, ..wanted };
            let asked = Asked { uid: node.uid.clone(), request: request.clone() };
            self.asked.insert((*name).clone(), asked);
            asks.push(ask(Asks::Request(request)));
        }
        if !self.complete {
            let wanted = consume.virtual_nodes == VirtualNodes::PerNode;
            let selector = consume.node_selector.clone().into_iter().collect();
            asks.push(ask(Asks::Nodes(NodeQuery { wanted, selector })));
            asks.push(ask(Asks::Complete(Complete {})));
            self.complete = true;
        }
        asks
    }

    fn request(&self, name: &str, node: &KnownNode, consume: &ConsumeSpec) -> SliceRequest {
        let spec = &node.spec;
        let amounts = spec.resources.iter().map(|(name, amount)| (name.clone(), amount.0.clone()));
        let accepted_terms = match self.answer(name) {
            // Until it is answered, what was accepted before stays so.
            None => match self.asked.get(name) {
                Some(asked) => asked.request.accepted_terms.clone(),
                None => node.accepted_terms.clone().unwrap_or_default(),
            },
            Some(Answered { answer: Answer::Offer(offer), .. }) => {
                let offered = Answer::Offer(offer.clone());
                let verdict = judge(&consume.acceptance, spec.accepted_offer.as_deref(), &offered);
                if verdict.accepted { offer.terms.clone() } else { String::new() }
            }
            Some(Answered { answer: Answer::Declined(..), .. }) => String::new(),
        };
        SliceRequest {
            name: name.to_owned(),
            revision: 0,
            resources: amounts.collect(),
            node_selector: spec.node_selector.clone().into_iter().collect(),
            node: spec.node.clone().unwrap_or_default(),
            accepted_terms,
        }
    }

    /// The answer to the latest request.
    fn answer(&self, name: &str) -> Option<&Answered> {
        let asked = self.asked.get(name)?;
        self.answered.get(name).filter(|answered| answered.revision == asked.request.revision)
    }

    /// What is to be written, as far as it is not what was written last.
    pub(super) fn outcomes(
        &self,
        nodes: &BTreeMap<&String, &KnownNode>,
        consume: &ConsumeSpec,
    ) -> Vec<Outcome> {
        let outcome = |(name, node): (&&String, &&KnownNode)| {
            let Answered { answer, digest, .. } = self.answer(name)?;
            let verdict = judge(&consume.acceptance, node.spec.accepted_offer.as_deref(), answer);
            let whole = json!([digest.to_string(), verdict.accepted, verdict.reason, verdict.message]);
            let digest = Hash::of(whole.to_string().as_bytes());
            let uid = node.uid.clone();
            let known = self.written.get(*name).is_some_and(|known| *known == (uid.clone(), digest));
            (!known && !node.deleting).then(|| Outcome {
                name: (*name).clone(),
                uid,
                answer: answer.clone(),
                verdict,
                digest,
            })
        };
        nodes.iter().filter_map(outcome).collect()
    }

    /// An outcome is in the status of its VirtualNode.
    pub(super) fn written(&mut self, outcome: &Outcome) {
        self.written.insert(outcome.name.clone(), (outcome.uid.clone(), outcome.digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lend::book::Slices;
    use crate::lend::desk::Desk;
    use crate::lend::slices::{Capacity, Images, Machine};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use liquid_crds::{Acceptance, Approval, LendSpec, NodeExposure, Price, SliceState, VirtualNodeSpec};
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::Arc;

    fn known(uid: &str, spec: VirtualNodeSpec) -> KnownNode {
        KnownNode { uid: uid.to_owned(), spec, made_for: None, deleting: false, accepted_terms: None }
    }

    fn view(nodes: &BTreeMap<String, KnownNode>) -> BTreeMap<&String, &KnownNode> {
        nodes.iter().collect()
    }

    fn price(cents: u8) -> Price {
        Price { currency: "EUR".to_owned(), per_hour: [("cpu".to_owned(), format!("0.0{cents}"))].into() }
    }

    /// A provider with one node.
    struct Provider {
        desk: Desk,
        capacity: Capacity,
        lend: LendSpec,
        slices: Slices,
    }

    impl Provider {
        fn new() -> Self {
            let lend =
                LendSpec { nodes: NodeExposure { exposed: true, labels: Vec::new() }, ..LendSpec::default() };
            let mut provider =
                Self { desk: Desk::default(), capacity: Capacity::default(), lend, slices: Slices::new() };
            provider.has(4);
            provider
        }

        fn has(&mut self, cpu: u8) {
            let node = serde_json::from_value(json!({
                "metadata": {"name": "n1"},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "allocatable": {"cpu": cpu.to_string(), "pods": "10"},
                    "nodeInfo": {
                        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux",
                        "osImage": "", "systemUUID": "",
                    },
                },
            }));
            let machine = Machine::of(&node.unwrap(), &mut Images::default());
            self.capacity.machines = [("n1".to_owned(), Arc::new(machine))].into();
        }

        fn hear(&mut self, asks: Vec<Ask>) -> Vec<Bid> {
            for ask in asks {
                self.desk.learn(ask.ask.unwrap());
            }
            if !self.desk.is_complete() {
                return Vec::new();
            }
            let (mut bids, slices) = self.desk.answers(&self.capacity, &self.lend);
            self.slices = slices;
            bids.extend(self.desk.nodes(&self.capacity, &self.lend));
            bids
        }
    }

    /// Lets both sides talk until neither has anything to say; returns the latest outcome for each virtual node.
    fn settle(
        table: &mut Table,
        provider: &mut Provider,
        nodes: &BTreeMap<String, KnownNode>,
        consume: &ConsumeSpec,
        statuses: &mut BTreeMap<String, Outcome>,
    ) {
        for _ in 0..20 {
            let asks = table.asks(&view(nodes), consume);
            let bids = provider.hear(asks);
            let quiet = bids.is_empty();
            bids.into_iter().for_each(|bid| table.learn(bid));
            for outcome in table.outcomes(&view(nodes), consume) {
                table.written(&outcome);
                statuses.insert(outcome.name.clone(), outcome);
            }
            if quiet && table.asks(&view(nodes), consume).is_empty() {
                return;
            }
        }
        panic!("they go on for ever");
    }

    #[test]
    fn an_offer_is_asked_for_accepted_and_followed() {
        let (mut table, mut provider) = (Table::default(), Provider::new());
        let nodes = [("v".to_owned(), known("u1", VirtualNodeSpec::default()))].into();
        let (consume, mut statuses) = (ConsumeSpec::default(), BTreeMap::new());
        settle(&mut table, &mut provider, &nodes, &consume, &mut statuses);
        assert!(statuses["v"].verdict.accepted);
        assert_eq!(provider.slices["v"].state, SliceState::Accepted);
        provider.has(3);
        settle(&mut table, &mut provider, &nodes, &consume, &mut statuses);
        let Answer::Offer(offer) = &statuses["v"].answer else { panic!("no offer") };
        assert_eq!(offer.resources["cpu"].0, "3");
        assert!(statuses["v"].verdict.accepted, "a lower amount is the same offer");
        settle(&mut table, &mut provider, &BTreeMap::new(), &consume, &mut statuses);
        assert!(provider.slices.is_empty(), "a virtual node that is gone asks for nothing");
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_none() {
        let mut table = Table::default();
        let mut nodes = BTreeMap::from([("v".to_owned(), known("u1", VirtualNodeSpec::default()))]);
        let consume = ConsumeSpec::default();
        let revision = |asks: &[Ask]| match asks[0].ask.as_ref().unwrap() {
            Asks::Request(request) => request.revision,
            _ => panic!("no request"),
        };
        let first = revision(&table.asks(&view(&nodes), &consume));
        nodes.get_mut("v").unwrap().spec.resources = [("cpu".to_owned(), Quantity("1".to_owned()))].into();
        let second = revision(&table.asks(&view(&nodes), &consume));
        let mut answer = |revision| {
            let offer = Some(proto::Offer { terms: "t".to_owned(), ..proto::Offer::default() });
            let name = "v".to_owned();
            let answer = proto::SliceAnswer { name, revision, offer, ..proto::SliceAnswer::default() };
            table.learn(Bid { bid: Some(Bids::Answer(answer)) });
            table.outcomes(&view(&nodes), &consume).len()
        };
        assert_eq!((answer(first), answer(second)), (0, 1));
    }

    #[test]
    fn what_was_accepted_before_a_reconnect_is_accepted_at_once() {
        let node =
            KnownNode { accepted_terms: Some("t".to_owned()), ..known("u1", VirtualNodeSpec::default()) };
        let nodes = BTreeMap::from([("v".to_owned(), node)]);
        let asks = Table::default().asks(&view(&nodes), &ConsumeSpec::default());
        let Some(Asks::Request(request)) = &asks[0].ask else { panic!("no request") };
        assert_eq!(request.accepted_terms, "t");
        assert!(matches!(asks.last().unwrap().ask, Some(Asks::Complete(_))));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(u8, Option<u8>),
        Approve(u8),
        Remove(u8),
        Capacity(u8),
        Price(Option<u8>),
        Exposed(bool),
        Policy(bool, Option<u8>),
        Reconnect,
        Settle,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0..3_u8, prop::option::of(0..6_u8)).prop_map(|(node, cpu)| Event::Ask(node, cpu)),
            2 => (0..3_u8).prop_map(Event::Approve),
            1 => (0..3_u8).prop_map(Event::Remove),
            2 => (0..6_u8).prop_map(Event::Capacity),
            2 => prop::option::of(0..4_u8).prop_map(Event::Price),
            1 => any::<bool>().prop_map(Event::Exposed),
            2 => (any::<bool>(), prop::option::of(0..4_u8)).prop_map(|(manual, most)| Event::Policy(manual, most)),
            1 => Just(Event::Reconnect),
            4 => Just(Event::Settle),
        ]
    }

    proptest! {
        /// Whatever happens in between: when both have said all, the provider counts as accepted exactly what the
        /// consumer's policy accepts, at the price it asks now; and what is promised is there.
        #[test]
        fn both_sides_agree_on_what_is_accepted(events in prop::collection::vec(event(), 1..40)) {
            let (mut table, mut provider) = (Table::default(), Provider::new());
            let mut nodes: BTreeMap<String, KnownNode> = BTreeMap::new();
            let mut consume = ConsumeSpec::default();
            let mut statuses: BTreeMap<String, Outcome> = BTreeMap::new();
            let mut uids = 0;
            let mut cpu = 4;
            for event in events.into_iter().chain([Event::Settle]) {
                match event {
                    Event::Ask(node, amount) => {
                        let name = format!("v{node}");
                        // One of them asks for a certain node.
                        let on = (node == 2).then(|| "n1".to_owned());
                        uids += 1;
                        let fresh = || known(&format!("u{uids}"), VirtualNodeSpec { node: on, ..Default::default() });
                        let known = nodes.entry(name).or_insert_with(fresh);
                        let amounts = amount.map(|amount| ("cpu".to_owned(), Quantity(amount.to_string())));
                        known.spec.resources = amounts.into_iter().collect();
                    }
                    Event::Approve(node) => {
                        let name = format!("v{node}");
                        let terms = statuses.get(&name).and_then(|status| match &status.answer {
                            Answer::Offer(offer) => Some(offer.terms.clone()),
                            Answer::Declined(..) => None,
                        });
                        if let Some(known) = nodes.get_mut(&name) {
                            known.spec.accepted_offer = terms;
                        }
                    }
                    Event::Remove(node) => {
                        nodes.remove(&format!("v{node}"));
                        statuses.remove(&format!("v{node}"));
                    }
                    Event::Capacity(amount) => {
                        cpu = amount;
                        provider.has(amount);
                    }
                    Event::Price(cents) => provider.lend.price = cents.map(price),
                    Event::Exposed(exposed) => provider.lend.nodes.exposed = exposed,
                    Event::Policy(manual, most) => {
                        let approval = if manual { Approval::Manual } else { Approval::Automatic };
                        consume.acceptance = Acceptance { approval, maximum_price: most.map(price) };
                    }
                    Event::Reconnect => {
                        // The consumer knows what it has written.
                        for (name, known) in &mut nodes {
                            let status = statuses.get(name).filter(|status| status.verdict.accepted && status.uid == known.uid);
                            known.accepted_terms = status.and_then(|status| match &status.answer {
                                Answer::Offer(offer) => Some(offer.terms.clone()),
                                Answer::Declined(..) => None,
                            });
                        }
                        table = Table::default();
                        provider.desk = Desk::default();
                    }
                    Event::Settle => {
                        settle(&mut table, &mut provider, &nodes, &consume, &mut statuses);
                        let told: Vec<&str> = provider.slices.keys().map(|name| &**name).collect();
                        prop_assert_eq!(told, nodes.keys().map(String::as_str).collect::<Vec<_>>());
                        let mut promised = 0;
                        for (name, slice) in &provider.slices {
                            let status = &statuses[&**name];
                            let accepted = slice.state == SliceState::Accepted;
                            prop_assert_eq!(accepted, status.verdict.accepted, "{}: {:?} {:?}", name, slice, status);
                            if let Answer::Offer(offer) = &status.answer {
                                let current = slice.request.terms(slice.price.as_ref());
                                prop_assert_eq!(&offer.terms, &current, "an offer of the past");
                                promised += slice.offered.get("cpu").copied().unwrap_or(0);
                            } else {
                                prop_assert_eq!(slice.state, SliceState::Refused);
                            }
                        }
                        prop_assert!(promised <= i128::from(cpu) * 1000);
                    }
                }
            }
        }
    }
}
