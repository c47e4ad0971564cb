//! Offers of a provider, checked where they come in: it is not trusted to be reasonable. Pure.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use liquid_crds::{NodeTaint, Offer, OfferedImage, OfferedNode, Price, TaintEffect};
use liquid_link::proto;
use std::collections::{BTreeMap, HashMap};

/// Entries of each list that are taken in.
const MAX_ENTRIES: usize = 128;
/// Images that are taken in, and names of each: as many as kubelets report.
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;
/// Longest text for people, and longest name of an image.
const MAX_TEXT: usize = 256;
const MAX_IMAGE_NAME: usize = 512;

/// Reads an offer.
pub(super) fn from_wire(offer: proto::Offer) -> Offer {
    Offer {
        resources: quantities(offer.resources),
        // They become labels.
        architectures: words(offer.architectures),
        labels: sorted(offer.labels).filter(|(key, value)| may_label(key, value)).collect(),
        kubernetes_version: text(&offer.kubernetes_version, 64),
        cordoned: offer.cordoned,
        pressures: words(offer.pressures),
        storage_classes: offer
            .storage_classes
            .into_iter()
            .filter(|name| is_word(name, 253))
            .take(MAX_ENTRIES)
            .collect(),
        price: offer.price.map(price),
        terms: text(&offer.terms, 64),
        taints: offer.taints.into_iter().filter_map(taint).take(MAX_ENTRIES).collect(),
        images: offer.images.into_iter().filter_map(image).take(MAX_IMAGES).collect(),
        operating_system: Some(offer.operating_system).filter(|name| is_word(name, 63)).unwrap_or_default(),
        node: offer.node.map(node),
    }
}

/// A text for people, cut to a length that can be kept.
pub(super) fn text(text: &str, longest: usize) -> String {
    text.chars().take(longest).collect()
}

/// A CamelCase reason for a condition; what is none becomes one.
pub(super) fn reason(given: &str) -> String {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':');
    let sound = (1..=64).contains(&given.len())
        && given.starts_with(|c: char| c.is_ascii_alphabetic())
        && given.ends_with(|c: char| c.is_ascii_alphanumeric())
        && given.chars().all(inner);
    if sound { given.to_owned() } else { "Refused".to_owned() }
}

fn sorted(map: HashMap<String, String>) -> impl Iterator<Item = (String, String)> {
    map.into_iter().collect::<BTreeMap<_, _>>().into_iter().take(MAX_ENTRIES)
}

/// An amount that is no quantity would make the Node unwritable.
fn quantities(map: HashMap<String, String>) -> BTreeMap<String, Quantity> {
    let amounts = sorted(map).map(|(name, amount)| (name, Quantity(amount)));
    amounts.filter(|(_, amount)| liquid_crds::quantity::parse(amount).is_ok()).collect()
}

fn words(list: Vec<String>) -> Vec<String> {
    list.into_iter().filter(|name| is_word(name, 63)).take(MAX_ENTRIES).collect()
}

/// One that cannot be read is passed on: nobody accepts it without having seen it.
fn price(price: proto::Price) -> Price {
    Price {
        currency: text(&price.currency, 16),
        per_hour: sorted(price.per_hour).take(32).map(|(name, amount)| (name, text(&amount, 20))).collect(),
    }
}

fn taint(taint: proto::Taint) -> Option<NodeTaint> {
    let effect = TaintEffect::keeping_off(&taint.effect)?;
    let valid = is_key(&taint.key)
        && !is_reserved(&taint.key)
        && (taint.value.is_empty() || is_word(&taint.value, 63));
    let value = Some(taint.value).filter(|value| !value.is_empty());
    valid.then_some(NodeTaint { key: taint.key, value, effect })
}

fn image(image: proto::Image) -> Option<OfferedImage> {
    let printable = |name: &String| {
        (1..=MAX_IMAGE_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
    };
    let names: Vec<String> = image.names.into_iter().filter(printable).take(MAX_IMAGE_NAMES).collect();
    (!names.is_empty()).then_some(OfferedImage { names, size_bytes: image.size_bytes.max(0) })
}

fn node(node: proto::Node) -> OfferedNode {
    OfferedNode {
        name: text(&node.name, 253),
        ready: node.ready,
        message: text(&node.message, MAX_TEXT),
        unschedulable: node.unschedulable,
        capacity: quantities(node.capacity),
        kubelet_version: text(&node.kubelet_version, MAX_TEXT),
        kernel_version: text(&node.kernel_version, MAX_TEXT),
        os_image: text(&node.os_image, MAX_TEXT),
        container_runtime_version: text(&node.container_runtime_version, MAX_TEXT),
    }
}

/// Whether a text may be the value of a label, or the last part of its key.
fn is_word(text: &str, longest: usize) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= longest
        && text.bytes().all(inner)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// Whether a text may be the key of a label or a taint.
fn is_key(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let lower = |domain: &str| !domain.bytes().any(|b| b.is_ascii_uppercase() || b == b'_');
    domain.is_none_or(|domain| is_word(domain, 253) && lower(domain)) && is_word(name, 63)
}

/// Whether a key is of a domain of Kubernetes or Liquid.
fn is_reserved(key: &str) -> bool {
    let domain = key.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|domain| {
        ["kubernetes.io", "k8s.io", "liquid.mesh"]
            .iter()
            .any(|top| domain == *top || domain.strip_suffix(top).is_some_and(|rest| rest.ends_with('.')))
    })
}

/// Domains of Kubernetes whose labels a provider may set on the Node that stands for it.
const OFFERED_DOMAINS: [&str; 2] = ["topology.kubernetes.io/", "node.kubernetes.io/"];

/// Whether a label of the provider may be put on a Node: an invalid one would make the Node unwritable, and those of
/// Kubernetes and Liquid say what the Node is here.
fn may_label(key: &str, value: &str) -> bool {
    let allowed = !is_reserved(key) || OFFERED_DOMAINS.iter().any(|domain| key.starts_with(domain));
    allowed && is_key(key) && (value.is_empty() || is_word(value, 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_make_the_node_unwritable_is_left_out_of_an_offer() {
        let taint = |key: &str, effect: &str| proto::Taint {
            key: key.to_owned(),
            value: String::new(),
            effect: effect.to_owned(),
        };
        let image = |name: &str| proto::Image { names: vec![name.to_owned()], size_bytes: -1 };
        let offer = from_wire(proto::Offer {
            architectures: vec!["arm64".to_owned(), "no label".to_owned(), String::new()],
            resources: [("cpu".to_owned(), "many".to_owned()), ("memory".to_owned(), "1Gi".to_owned())]
                .into(),
            pressures: vec!["MemoryPressure".to_owned(), "x\n".to_owned()],
            taints: vec![
                taint("gpu", "NoSchedule"),
                taint("liquid.mesh/virtual-node", "NoExecute"),
                taint("node.kubernetes.io/unreachable", "NoExecute"),
                taint("a b", "NoSchedule"),
                taint("soft", "PreferNoSchedule"),
            ],
            images: vec![image("nginx:1"), image("a\nb"), image(&"x".repeat(513))],
            operating_system: "lin ux".to_owned(),
            ..proto::Offer::default()
        });
        assert_eq!(offer.architectures, ["arm64"]);
        assert_eq!(offer.resources.keys().collect::<Vec<_>>(), ["memory"]);
        assert_eq!(offer.pressures, ["MemoryPressure"]);
        assert_eq!(offer.taints.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["gpu"]);
        assert_eq!((offer.images.len(), offer.images[0].size_bytes), (1, 0));
        assert_eq!(offer.operating_system, "");
    }

    #[test]
    fn a_provider_may_say_where_it_is_but_not_what_its_node_is() {
        for (key, value, may) in [
            ("region", "eu", true),
            ("topology.kubernetes.io/region", "eu-south", true),
            ("node.kubernetes.io/instance-type", "m5.large", true),
            ("example.org/tier", "", true),
            ("node-role.kubernetes.io/control-plane", "", false),
            ("kubernetes.io/hostname", "a", false),
            ("liquid.mesh/type", "x", false),
            ("bad key", "x", false),
            ("key", "bad value", false),
            ("", "x", false),
            ("a/b/c", "x", false),
        ] {
            assert_eq!(may_label(key, value), may, "{key}={value}");
        }
    }

    #[test]
    fn reasons_are_fit_for_a_condition() {
        assert_eq!(reason("NoSuchNode"), "NoSuchNode");
        for bad in ["", "no such node", "1st", "x".repeat(65).as_str(), "a:"] {
            assert_eq!(reason(bad), "Refused", "{bad}");
        }
    }
}
