//! By which key this cluster is known to the gateways of a peer, before it has joined it. Pure.

use super::invitation::{Invitation, Invited};
use liquid_crds::{GuestStatus, NetworkStatus};
use std::collections::BTreeSet;

/// What the status shall say of being a guest; `ready` are this cluster's gateways.
pub(super) fn guest(
    invited: Option<&Invited>,
    status: Option<&NetworkStatus>,
    ready: &BTreeSet<String>,
) -> Option<GuestStatus> {
    let written = status.and_then(|network| network.guest.clone());
    let key = match invited {
        None => return written,
        Some(Invited::No | Invited::With(Invitation { guest: None, .. })) => return None,
        Some(Invited::With(Invitation { guest: Some(key), .. })) => key,
    };
    match written {
        Some(written) if written.public_key == *key && ready.contains(&written.gateway) => Some(written),
        // The gateways know each other: this cluster lends to the peer, say.
        None if status.is_some_and(|network| network.tunnels.iter().any(|tunnel| tunnel.up)) => None,
        written => {
            let gateway = ready.first().cloned().or(written.map(|written| written.gateway))?;
            Some(GuestStatus { public_key: key.clone(), gateway })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::TunnelStatus;

    fn invited(key: Option<&str>) -> Option<Invited> {
        let guest = key.map(str::to_owned);
        Some(Invited::With(Invitation { gateways: Vec::new(), guest }))
    }

    fn written(guest: Option<(&str, &str)>, up: bool) -> NetworkStatus {
        let guest = guest
            .map(|(key, gateway)| GuestStatus { public_key: key.to_owned(), gateway: gateway.to_owned() });
        let tunnel =
            TunnelStatus { gateway: "g0".to_owned(), up, ways: Vec::new(), relay: None, since: None };
        NetworkStatus { guest, tunnels: vec![tunnel], ..NetworkStatus::default() }
    }

    fn shown(invited: &Option<Invited>, status: &NetworkStatus, ready: &[&str]) -> Option<(String, String)> {
        let ready = ready.iter().map(|name| (*name).to_owned()).collect();
        guest(invited.as_ref(), Some(status), &ready).map(|guest| (guest.public_key, guest.gateway))
    }

    fn some(key: &str, gateway: &str) -> Option<(String, String)> {
        Some((key.to_owned(), gateway.to_owned()))
    }

    #[test]
    fn one_gateway_is_the_guest_and_another_takes_over_if_it_ends() {
        let token = invited(Some("k"));
        assert_eq!(shown(&token, &written(None, false), &["g0", "g1"]), some("k", "g0"));
        assert_eq!(shown(&token, &written(Some(("k", "g1")), true), &["g0", "g1"]), some("k", "g1"));
        assert_eq!(shown(&token, &written(Some(("k", "g1")), false), &["g0"]), some("k", "g0"));
        assert_eq!(
            shown(&token, &written(Some(("k", "g1")), false), &[]),
            some("k", "g1"),
            "none would do better"
        );
        assert_eq!(shown(&token, &written(None, false), &[]), None);
    }

    #[test]
    fn another_token_has_another_key() {
        assert_eq!(
            shown(&invited(Some("new")), &written(Some(("old", "g1")), false), &["g0"]),
            some("new", "g0")
        );
    }

    #[test]
    fn nobody_is_a_guest_where_the_gateways_know_each_other() {
        assert_eq!(shown(&invited(Some("k")), &written(None, true), &["g0"]), None);
        assert_eq!(shown(&invited(None), &written(Some(("k", "g0")), true), &["g0"]), None);
    }

    #[test]
    fn a_guest_stays_one_through_a_restart_until_there_is_no_token_any_more() {
        let status = written(Some(("k", "g0")), true);
        assert_eq!(shown(&None, &status, &[]), some("k", "g0"));
        assert_eq!(shown(&Some(Invited::No), &status, &["g0"]), None);
    }
}
