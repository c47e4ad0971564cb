//! Offers as they travel.

use liquid_crds::{Offer, OfferedImage, OfferedNode, Price};
use liquid_link::proto;

/// An offer as it is sent, with the addresses at which the link can be reached.
pub(crate) fn offer(offer: &Offer, endpoints: Vec<String>) -> proto::Offer {
    proto::Offer {
        resources: offer.resources.iter().map(|(name, amount)| (name.clone(), amount.0.clone())).collect(),
        architectures: offer.architectures.clone(),
        labels: offer.labels.clone().into_iter().collect(),
        kubernetes_version: offer.kubernetes_version.clone(),
        cordoned: offer.cordoned,
        endpoints,
        pressures: offer.pressures.clone(),
        storage_classes: offer.storage_classes.clone(),
        price: offer.price.as_ref().map(price),
        terms: offer.terms.clone(),
        taints: offer
            .taints
            .iter()
            .map(|taint| proto::Taint {
                key: taint.key.clone(),
                value: taint.value.clone().unwrap_or_default(),
                effect: taint.effect.as_str().to_owned(),
            })
            .collect(),
        images: offer.images.iter().map(image).collect(),
        operating_system: offer.operating_system.clone(),
        node: offer.node.as_ref().map(node),
    }
}

fn price(price: &Price) -> proto::Price {
    proto::Price { currency: price.currency.clone(), per_hour: price.per_hour.clone().into_iter().collect() }
}

fn image(image: &OfferedImage) -> proto::Image {
    proto::Image { names: image.names.clone(), size_bytes: image.size_bytes }
}

fn node(node: &OfferedNode) -> proto::Node {
    proto::Node {
        name: node.name.clone(),
        ready: node.ready,
        message: node.message.clone(),
        unschedulable: node.unschedulable,
        capacity: node.capacity.iter().map(|(name, amount)| (name.clone(), amount.0.clone())).collect(),
        kubelet_version: node.kubelet_version.clone(),
        kernel_version: node.kernel_version.clone(),
        os_image: node.os_image.clone(),
        container_runtime_version: node.container_runtime_version.clone(),
    }
}
