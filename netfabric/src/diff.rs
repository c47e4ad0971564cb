//! From what shall be and what is to the steps between them.

use crate::filter::Table;
use crate::state::{Desired, DeviceSettings, Link, Mac, Observed, Route, RouteKey, Rule};
use ipnet::IpNet;
use std::net::IpAddr;

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replaces our packet filter table, or makes it: all at once.
    SetFilter(Table),
    /// Removes it.
    RemoveFilter,
    /// Makes the overlay device.
    AddLink(Link),
    /// Changes MAC, MTU and whether it is up.
    ChangeLink(Link),
    /// Removes the device of this name, and all that depends on it.
    RemoveLink(String),
    /// Changes settings of a device.
    Configure(String, DeviceSettings),
    /// Adds an address to the overlay device.
    AddAddress(IpNet),
    /// Removes one.
    RemoveAddress(IpNet),
    /// Adds or replaces a neighbour.
    SetNeighbour(IpAddr, Mac),
    /// Removes one.
    RemoveNeighbour(IpAddr),
    /// Adds or replaces where frames for a MAC are sent.
    SetForwarding(Mac, IpAddr),
    /// Removes it.
    RemoveForwarding(Mac, IpAddr),
    /// Adds or replaces a route.
    SetRoute(RouteKey, Route),
    /// Removes one.
    RemoveRoute(RouteKey),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes one.
    RemoveRule(Rule),
}

impl Step {
    /// What kind of thing is changed, for metrics.
    #[must_use]
    pub fn piece(&self) -> &'static str {
        match self {
            Self::SetFilter(_) | Self::RemoveFilter => "filter",
            Self::AddLink(_) | Self::ChangeLink(_) | Self::RemoveLink(_) => "link",
            Self::Configure(..) => "setting",
            Self::AddAddress(_) | Self::RemoveAddress(_) => "address",
            Self::SetNeighbour(..) | Self::RemoveNeighbour(_) => "neighbour",
            Self::SetForwarding(..) | Self::RemoveForwarding(..) => "forwarding",
            Self::SetRoute(..) | Self::RemoveRoute(_) => "route",
            Self::AddRule(_) | Self::RemoveRule(_) => "rule",
        }
    }
}

/// The steps from `observed` to `desired`, in the order in which they have to be taken: what is new is in place before
/// anything leads to it, and what is old goes when nothing leads to it any more.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    // The packet filter first: no packet gets through before the guard is up.
    if let Some(table) = &desired.filter
        && observed.filter.as_ref() != Some(&table.outline())
    {
        steps.push(Step::SetFilter(table.clone()));
    }
    let made_anew;
    let mut observed = observed;
    match (&desired.link, &observed.link) {
        (Some(wanted), Some(there)) if there.can_become(wanted) => {
            if there != wanted {
                steps.push(Step::ChangeLink(wanted.clone()));
            }
        }
        (Some(wanted), there) => {
            steps.extend(there.iter().map(|there| Step::RemoveLink(there.name.clone())));
            steps.push(Step::AddLink(wanted.clone()));
            made_anew = without_link(observed, there.as_ref());
            observed = &made_anew;
        }
        (None, _) => {}
    }
    for (device, wanted) in &desired.settings {
        if observed.settings.get(device) != Some(wanted) {
            steps.push(Step::Configure(device.clone(), *wanted));
        }
    }
    steps.extend(desired.addresses.difference(&observed.addresses).copied().map(Step::AddAddress));
    for (address, mac) in &desired.neighbours {
        if observed.neighbours.get(address) != Some(mac) {
            steps.push(Step::SetNeighbour(*address, *mac));
        }
    }
    let forwarding = desired.forwarding.difference(&observed.forwarding);
    steps.extend(forwarding.map(|(mac, address)| Step::SetForwarding(*mac, *address)));
    for (key, route) in &desired.routes {
        if observed.routes.get(key) != Some(route) {
            steps.push(Step::SetRoute(*key, route.clone()));
        }
    }
    steps.extend(desired.rules.difference(&observed.rules).cloned().map(Step::AddRule));

    steps.extend(observed.rules.difference(&desired.rules).cloned().map(Step::RemoveRule));
    for (key, route) in &observed.routes {
        // Somebody else's route in a table of ours stays, unless it takes the place of one of ours.
        if route.ours && !desired.routes.contains_key(key) {
            steps.push(Step::RemoveRoute(*key));
        }
    }
    let link_goes = desired.link.is_none();
    if !link_goes {
        let forwarding = observed.forwarding.difference(&desired.forwarding);
        steps.extend(forwarding.map(|(mac, address)| Step::RemoveForwarding(*mac, *address)));
        let neighbours = observed.neighbours.keys().filter(|key| !desired.neighbours.contains_key(*key));
        steps.extend(neighbours.copied().map(Step::RemoveNeighbour));
        // Link-local ones the kernel gives.
        let addresses = observed.addresses.difference(&desired.addresses).filter(|own| !is_link_local(own));
        steps.extend(addresses.copied().map(Step::RemoveAddress));
    } else if let Some(link) = &observed.link {
        steps.push(Step::RemoveLink(link.name.clone()));
    }
    if desired.filter.is_none() && observed.filter.is_some() {
        steps.push(Step::RemoveFilter);
    }
    steps
}

/// What is left when the overlay device goes: all that is on it goes too, and every route over it.
fn without_link(observed: &Observed, link: Option<&Link>) -> Observed {
    use crate::state::Target;
    let mut left = Observed {
        settings: observed.settings.clone(),
        rules: observed.rules.clone(),
        filter: observed.filter.clone(),
        ..Observed::default()
    };
    if let Some(link) = link {
        left.settings.remove(&link.name);
    }
    let stays = |route: &Route| matches!(route.target, Target::Device(_) | Target::Unreachable);
    let routes = observed.routes.iter().filter(|(_, route)| stays(route) && route.source.is_none());
    left.routes = routes.map(|(key, route)| (*key, route.clone())).collect();
    left
}

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}
