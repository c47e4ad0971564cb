//! The provider's side of a negotiation: what was asked, and what is answered. Pure.

use super::book::{Slice, Slices};
use super::slices::{Capacity, Declined, SliceRequest, selector_from_wire};
use super::wire;
use liquid_crds::quantity::amounts;
use liquid_crds::{LendSpec, Offer, SliceState, is_dns_label};
use liquid_link::digest::Hash;
use liquid_link::proto::ask::Ask as Asks;
use liquid_link::proto::bid::Bid as Bids;
use liquid_link::proto::{self, Bid};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Virtual nodes a consumer may ask for: each costs about 1 kB here. A kubelet API takes a port each at home, of which
/// there are 1000.
const MAX_SLICES: usize = 500;
/// Nodes a consumer is told of: with names of 253 bytes they fit into a message.
const MAX_NODES: usize = 5000;
/// What a virtual node asks for.
struct Asked {
    revision: u64,
    accepted_terms: String,
    request: Result<SliceRequest, Declined>,
}

/// One negotiation.
#[derive(Default)]
pub(crate) struct Desk {
    asked: BTreeMap<Arc<str>, Asked>,
    /// Everything has been asked for once.
    complete: bool,
    /// Labels of the nodes the consumer wants to hear of, if it does.
    query: Option<Result<BTreeMap<String, String>, Declined>>,
    /// Digests of what it was told.
    told: BTreeMap<Arc<str>, Hash>,
    told_nodes: Option<Hash>,
}

impl Desk {
    /// Whether everything has been asked for once: before that nothing is answered, for one request changes the offers of
    /// all others.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes in what the consumer says; returns the answer if that is not taken in.
    pub(crate) fn learn(&mut self, ask: Asks) -> Option<Bid> {
        match ask {
            Asks::Request(request) => {
                let name: Arc<str> = Arc::from(request.name.as_str());
                let room = self.asked.len() < MAX_SLICES || self.asked.contains_key(&name);
                if !is_dns_label(&name) || !room {
                    let message = if room {
                        format!("{:?} is no name of a virtual node", request.name)
                    } else {
                        format!("the provider offers for at most {MAX_SLICES} virtual nodes of one consumer")
                    };
                    let declined = Declined { reason: "NotTaken", message };
                    return Some(answer(&request.name, request.revision, Err(&declined)));
                }
                let asked = Asked {
                    revision: request.revision,
                    request: SliceRequest::from_wire(&request).map_err(invalid),
                    accepted_terms: request.accepted_terms,
                };
                self.asked.insert(name, asked);
            }
            Asks::Withdrawn(name) => {
                self.asked.remove(name.as_str());
                self.told.remove(name.as_str());
            }
            Asks::Complete(proto::Complete {}) => {
                self.complete = true;
            }
            Asks::Nodes(query) => {
                self.query = query.wanted.then(|| selector_from_wire(&query.selector).map_err(invalid));
                self.told_nodes = None;
            }
        }
        None
    }

    /// The answers that differ from what was told before, and all slices as they stand now.
    pub(crate) fn answers(&mut self, capacity: &Capacity, lend: &LendSpec) -> (Vec<Bid>, Slices) {
        let sound: Vec<(&Arc<str>, &SliceRequest)> = self
            .asked
            .iter()
            .filter_map(|(name, asked)| Some((name, asked.request.as_ref().ok()?)))
            .collect();
        let requests: Vec<&SliceRequest> = sound.iter().map(|(_, request)| *request).collect();
        let mut offers: BTreeMap<&Arc<str>, Result<Offer, Declined>> =
            sound.iter().map(|(name, _)| *name).zip(capacity.offers(&requests, lend)).collect();
        let (mut bids, mut slices) = (Vec::new(), Slices::new());
        for (name, asked) in &self.asked {
            let offer = match &asked.request {
                Err(declined) => Err(declined.clone()),
                Ok(_) => offers.remove(name).unwrap_or_else(|| Err(invalid("it was not asked for"))),
            };
            // Of the message itself there is no digest: its maps have no order.
            let told = match &offer {
                Ok(offer) => json!([asked.revision, offer]),
                Err(Declined { reason, message }) => json!([asked.revision, reason, message]),
            };
            let digest = Hash::of(told.to_string().as_bytes());
            if self.told.insert(name.clone(), digest) != Some(digest) {
                bids.push(answer(name, asked.revision, offer.as_ref()));
            }
            slices.insert(name.clone(), slice(asked, offer));
        }
        (bids, slices)
    }

    /// The nodes, if the consumer wants to hear of them and was told something else before.
    pub(crate) fn nodes(&mut self, capacity: &Capacity, lend: &LendSpec) -> Option<Bid> {
        let selector = self.query.as_ref()?;
        let names = selector.clone().and_then(|selector| capacity.names(&selector, lend));
        // Part of a list would say of the others that they are gone.
        let names = names.and_then(|names| match names.len() {
            0..=MAX_NODES => Ok(names),
            many => Err(Declined {
                reason: "TooManyNodes",
                message: format!("the provider has {many} such nodes, and tells of at most {MAX_NODES}: choose some by their labels"),
            }),
        });
        let list = match names {
            Ok(names) => proto::NodeList { names, ..proto::NodeList::default() },
            Err(Declined { reason, message }) => {
                proto::NodeList { reason: reason.to_owned(), message, ..proto::NodeList::default() }
            }
        };
        let digest = Hash::of(json!([list.names, list.reason, list.message]).to_string().as_bytes());
        (self.told_nodes.replace(digest) != Some(digest)).then_some(Bid { bid: Some(Bids::Nodes(list)) })
    }
}

/// How a slice stands.
fn slice(asked: &Asked, offer: Result<Offer, Declined>) -> Slice {
    let request = asked.request.clone().unwrap_or_default();
    match offer {
        Err(Declined { message, .. }) => {
            Slice { request, state: SliceState::Refused, message, ..Slice::default() }
        }
        Ok(offer) => {
            let accepted = offer.terms == asked.accepted_terms;
            Slice {
                request,
                offered: amounts(&offer.resources),
                price: offer.price,
                state: if accepted { SliceState::Accepted } else { SliceState::Offered },
                message: String::new(),
            }
        }
    }
}

fn answer(name: &str, revision: u64, offer: Result<&Offer, &Declined>) -> Bid {
    let frame = proto::SliceAnswer { name: name.to_owned(), revision, ..proto::SliceAnswer::default() };
    let answer = match offer {
        Ok(offer) => proto::SliceAnswer { offer: Some(wire::offer(offer, Vec::new())), ..frame },
        Err(Declined { reason, message }) => {
            proto::SliceAnswer { reason: (*reason).to_owned(), message: message.clone(), ..frame }
        }
    };
    Bid { bid: Some(Bids::Answer(answer)) }
}

fn invalid(why: impl std::fmt::Display) -> Declined {
    Declined {
        reason: "InvalidRequest",
        message: format!("the provider does not understand the request: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lend::slices::{Images, Machine};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use liquid_crds::{NodeExposure, Price};

    fn capacity(cpu: &str) -> Capacity {
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": cpu, "pods": "10"},
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux",
                    "osImage": "", "systemUUID": "",
                },
            },
        }));
        let machine = Machine::of(&node.unwrap(), &mut Images::default());
        Capacity { machines: [("n1".to_owned(), Arc::new(machine))].into(), ..Capacity::default() }
    }

    fn request(name: &str, revision: u64, accepted_terms: &str) -> Asks {
        Asks::Request(proto::SliceRequest {
            name: name.to_owned(),
            revision,
            accepted_terms: accepted_terms.to_owned(),
            ..proto::SliceRequest::default()
        })
    }

    fn told(bids: &[Bid]) -> Vec<(&str, u64, String)> {
        bids.iter()
            .map(|bid| match bid.bid.as_ref().unwrap() {
                Bids::Answer(answer) => {
                    let cpu = answer.offer.as_ref().map(|offer| offer.resources["cpu"].clone());
                    (answer.name.as_str(), answer.revision, cpu.unwrap_or_else(|| answer.reason.clone()))
                }
                Bids::Nodes(list) => ("", 0, list.names.join(",") + &list.reason),
            })
            .collect()
    }

    fn terms(bids: &[Bid]) -> String {
        match bids[0].bid.as_ref().unwrap() {
            Bids::Answer(answer) => answer.offer.as_ref().unwrap().terms.clone(),
            Bids::Nodes(_) => panic!("no answer"),
        }
    }

    #[test]
    fn an_offer_counts_when_its_own_terms_are_accepted() {
        let mut desk = Desk::default();
        let mut lend = LendSpec::default();
        desk.learn(request("a", 1, ""));
        let (bids, slices) = desk.answers(&capacity("4"), &lend);
        assert_eq!(told(&bids), [("a", 1, "4".to_owned())]);
        assert_eq!(slices["a"].state, SliceState::Offered);

        desk.learn(request("a", 2, &terms(&bids)));
        let (again, slices) = desk.answers(&capacity("4"), &lend);
        assert_eq!((told(&again)[0].1, slices["a"].state), (2, SliceState::Accepted));
        let (quiet, _) = desk.answers(&capacity("4"), &lend);
        assert!(quiet.is_empty(), "nothing new");
        let (lowered, slices) = desk.answers(&capacity("3"), &lend);
        assert_eq!((told(&lowered)[0].2.as_str(), slices["a"].state), ("3", SliceState::Accepted));

        let per_hour = [("cpu".to_owned(), "0.5".to_owned())].into();
        lend.price = Some(Price { currency: "EUR".to_owned(), per_hour });
        let (dearer, slices) = desk.answers(&capacity("3"), &lend);
        assert_eq!(
            (dearer.len(), slices["a"].state),
            (1, SliceState::Offered),
            "nobody has accepted that price"
        );
    }

    #[test]
    fn one_request_more_changes_the_offers_of_the_others() {
        let mut desk = Desk::default();
        let lend = LendSpec::default();
        desk.learn(request("a", 1, ""));
        desk.answers(&capacity("4"), &lend);
        desk.learn(request("b", 2, ""));
        let (bids, _) = desk.answers(&capacity("4"), &lend);
        assert_eq!(told(&bids), [("a", 1, "2".to_owned()), ("b", 2, "2".to_owned())]);
        desk.learn(Asks::Withdrawn("a".to_owned()));
        let (bids, slices) = desk.answers(&capacity("4"), &lend);
        assert_eq!((told(&bids), slices.len()), (vec![("b", 2, "4".to_owned())], 1));
    }

    #[test]
    fn what_is_not_allowed_is_declined_and_the_others_have_their_offers() {
        let mut desk = Desk::default();
        desk.learn(request("a", 1, ""));
        let on_node =
            proto::SliceRequest { name: "b".to_owned(), node: "n1".to_owned(), ..Default::default() };
        desk.learn(Asks::Request(on_node));
        let nonsense = proto::SliceRequest {
            name: "c".to_owned(),
            resources: [("cpu".to_owned(), "many".to_owned())].into(),
            ..Default::default()
        };
        desk.learn(Asks::Request(nonsense));
        let (bids, slices) = desk.answers(&capacity("4"), &LendSpec::default());
        let reasons: Vec<String> = told(&bids).into_iter().map(|(_, _, what)| what).collect();
        assert_eq!(reasons, ["4", "NodesNotExposed", "InvalidRequest"]);
        assert_eq!(slices["b"].state, SliceState::Refused);
        assert!(desk.learn(request("no_label", 1, "")).is_some());
        for index in 0..MAX_SLICES {
            desk.learn(request(&format!("n-{index}"), 1, ""));
        }
        assert_eq!(desk.asked.len(), MAX_SLICES);
    }

    #[test]
    fn nodes_are_told_to_who_asks_and_may_know() {
        let mut desk = Desk::default();
        let open = LendSpec {
            nodes: NodeExposure { exposed: true, labels: Vec::new() },
            limits: [("cpu".to_owned(), Quantity("1".to_owned()))].into(),
            ..LendSpec::default()
        };
        assert!(desk.nodes(&capacity("4"), &open).is_none(), "nobody has asked");
        desk.learn(Asks::Nodes(proto::NodeQuery { wanted: true, selector: Default::default() }));
        let list = |desk: &mut Desk, lend: &LendSpec| {
            desk.nodes(&capacity("4"), lend).map(|bid| told(&[bid])[0].2.clone())
        };
        assert_eq!(list(&mut desk, &LendSpec::default()).as_deref(), Some("NodesNotExposed"));
        assert_eq!(list(&mut desk, &open).as_deref(), Some("n1"));
        assert_eq!(list(&mut desk, &open), None);
    }
}
