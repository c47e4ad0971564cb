//! What a virtual node of a consumer asks for, checked once. Pure.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use liquid_crds::quantity::{Amounts, amounts, format, parse};
use liquid_crds::{LendSpec, LentSlice, Placement, Price};
use liquid_link::digest::Hash;
use liquid_link::proto;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use thiserror::Error;

/// Resources a virtual node may name, and labels it may choose nodes by: with names of 317 bytes at most, a request is
/// well within the 16 KiB of a message.
const MAX_ENTRIES: usize = 16;
/// Longest key of a label or name of a resource: 253 of the domain, 63 of the name.
const MAX_NAME: usize = 317;
/// Longest value of a label.
const MAX_VALUE: usize = 63;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SliceRequest {
    /// At most this.
    pub(crate) resources: Amounts,
    /// On which nodes.
    pub(crate) placement: Placement,
}

/// A request that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct InvalidRequest(String);

/// Why nothing is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declined {
    /// CamelCase, for programs.
    pub(crate) reason: &'static str,
    /// A sentence for people.
    pub(crate) message: String,
}

impl SliceRequest {
    /// Reads a request as it came over the link.
    pub(crate) fn from_wire(wire: &proto::SliceRequest) -> Result<Self, InvalidRequest> {
        let invalid = |what: String| InvalidRequest(what);
        at_most(wire.resources.len())?;
        let resources = wire.resources.iter().map(|(name, text)| {
            let amount =
                parse(&Quantity(text.clone())).ok().filter(|amount| *amount >= 0 && name.len() <= MAX_NAME);
            let amount = amount.ok_or_else(|| invalid(format!("{name}: {text:?} is no amount")))?;
            Ok((name.clone(), amount))
        });
        let node = Some(wire.node.clone()).filter(|node| !node.is_empty());
        if node.as_ref().is_some_and(|node| node.len() > 253 || !node.bytes().all(is_of_name)) {
            return Err(invalid(format!("{:?} is no name of a node", wire.node)));
        }
        let node_selector = selector_from_wire(&wire.node_selector)?;
        Ok(Self {
            resources: resources.collect::<Result<_, _>>()?,
            placement: Placement { node_selector, node },
        })
    }

    /// The request of a slice as it was recorded.
    pub(crate) fn from_record(slice: &LentSlice) -> Self {
        let placement = Placement { node_selector: slice.node_selector.clone(), node: slice.node.clone() };
        Self { resources: amounts(&slice.requested), placement }
    }

    /// Whether the consumer may ask for that.
    ///
    /// # Errors
    /// If it is not lent nodes of its own choice, and why.
    pub(crate) fn check(&self, lend: &LendSpec) -> Result<(), Declined> {
        if self.placement.node.is_some() && !lend.nodes.exposed {
            return Err(nodes_hidden());
        }
        check_selector(&self.placement.node_selector, lend)
    }

    /// Identifies what is asked for and what it costs.
    pub(crate) fn terms(&self, price: Option<&Price>) -> String {
        let resources: BTreeMap<&String, String> =
            self.resources.iter().map(|(name, amount)| (name, format(*amount).0)).collect();
        let terms = json!({ "resources": resources, "placement": self.placement, "price": price });
        Hash::of(terms.to_string().as_bytes()).to_string()
    }
}

/// Checks by which labels nodes are chosen.
pub(crate) fn check_selector(selector: &BTreeMap<String, String>, lend: &LendSpec) -> Result<(), Declined> {
    match selector.keys().find(|label| !lend.may_select(label)) {
        None => Ok(()),
        Some(label) => Err(Declined {
            reason: "LabelNotSelectable",
            message: format!(
                "the provider lets nobody choose its nodes by {label}: its administrator may add that to \
                 spec.lend.nodes.labels of the Peer of this cluster there"
            ),
        }),
    }
}

/// Why there is nothing to say of single nodes.
pub(crate) fn nodes_hidden() -> Declined {
    Declined {
        reason: "NodesNotExposed",
        message: "the provider does not tell of its nodes: its administrator may set spec.lend.nodes.exposed of the Peer of \
                  this cluster there"
            .to_owned(),
    }
}

/// Reads a selector of nodes as it came over the link.
pub(crate) fn selector_from_wire(
    wire: &HashMap<String, String>,
) -> Result<BTreeMap<String, String>, InvalidRequest> {
    at_most(wire.len())?;
    let selects = |(key, value): (&String, &String)| {
        let fits = (1..=MAX_NAME).contains(&key.len()) && value.len() <= MAX_VALUE;
        let label = fits.then(|| (key.clone(), value.clone()));
        label.ok_or_else(|| InvalidRequest(format!("{key:?} is no label")))
    };
    wire.iter().map(selects).collect()
}

fn at_most(entries: usize) -> Result<(), InvalidRequest> {
    let many = || InvalidRequest(format!("more than {MAX_ENTRIES} resources or labels are named"));
    (entries <= MAX_ENTRIES).then_some(()).ok_or_else(many)
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::NodeExposure;

    fn wire() -> proto::SliceRequest {
        proto::SliceRequest {
            resources: [("cpu".to_owned(), "1500m".to_owned())].into(),
            node_selector: [("topology.kubernetes.io/zone".to_owned(), "a".to_owned())].into(),
            ..proto::SliceRequest::default()
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_asked_for() {
        assert_eq!(SliceRequest::from_wire(&wire()).unwrap().resources["cpu"], 1500);
        let with = |change: fn(&mut proto::SliceRequest)| {
            let mut wire = wire();
            change(&mut wire);
            SliceRequest::from_wire(&wire)
        };
        assert!(with(|wire| drop(wire.resources.insert("cpu".to_owned(), "-1".to_owned()))).is_err());
        assert!(with(|wire| drop(wire.resources.insert("x".repeat(318), "1".to_owned()))).is_err());
        assert!(with(|wire| drop(wire.node_selector.insert("a".to_owned(), "v".repeat(64)))).is_err());
        assert!(with(|wire| wire.node = "a/b".to_owned()).is_err());
        assert!(
            with(|wire| wire.resources.extend((0..16).map(|i| (format!("r{i}"), "1".to_owned())))).is_err()
        );
    }

    #[test]
    fn nodes_are_chosen_as_the_provider_allows() {
        let request = |key: &str, node: Option<&str>| SliceRequest {
            placement: Placement {
                node_selector: key.split_whitespace().map(|key| (key.to_owned(), "x".to_owned())).collect(),
                node: node.map(str::to_owned),
            },
            ..SliceRequest::default()
        };
        let mine = LendSpec::default();
        let open = LendSpec {
            nodes: NodeExposure { exposed: true, labels: vec!["example.org/pool".to_owned()] },
            ..LendSpec::default()
        };
        let reason =
            |request: &SliceRequest, lend: &LendSpec| request.check(lend).err().map(|why| why.reason);
        for known in ["", "kubernetes.io/arch topology.kubernetes.io/zone"] {
            assert_eq!(reason(&request(known, None), &mine), None);
        }
        for other in ["example.org/pool", "kubernetes.io/hostname", "node-role.kubernetes.io/control-plane"] {
            assert_eq!(reason(&request(other, None), &mine), Some("LabelNotSelectable"), "{other}");
        }
        assert_eq!(reason(&request("example.org/pool", None), &open), None);
        assert_eq!(reason(&request("", Some("n1")), &mine), Some("NodesNotExposed"));
        assert_eq!(reason(&request("", Some("n1")), &open), None);
    }

    #[test]
    fn terms_change_with_what_is_asked_and_what_it_costs() {
        let request = SliceRequest::from_wire(&wire()).unwrap();
        let price = |cpu: &str| Price {
            currency: "EUR".to_owned(),
            per_hour: BTreeMap::from([("cpu".to_owned(), cpu.to_owned())]),
        };
        let terms = request.terms(Some(&price("1")));
        assert_eq!(terms, SliceRequest::from_wire(&wire()).unwrap().terms(Some(&price("1"))));
        assert_ne!(terms, request.terms(Some(&price("2"))));
        assert_ne!(terms, request.terms(None));
        assert_ne!(terms, SliceRequest::default().terms(Some(&price("1"))));
    }

    #[test]
    fn a_recorded_request_is_the_one_that_was_made() {
        let request = SliceRequest::from_wire(&wire()).unwrap();
        let slice = LentSlice {
            requested: request
                .resources
                .iter()
                .map(|(name, amount)| (name.clone(), format(*amount)))
                .collect(),
            node_selector: request.placement.node_selector.clone(),
            ..LentSlice::default()
        };
        assert_eq!(SliceRequest::from_record(&slice), request);
    }
}
