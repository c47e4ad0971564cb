//! Addresses behind the names of endpoints.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tracing::warn;

/// How often the names of endpoints are resolved again: a peer that moved calls by itself, unless it cannot.
pub(super) const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a name server may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The address behind each endpoint.
pub(super) type Resolved = HashMap<String, SocketAddr>;

/// Resolves what can be. An address that is still among those of its name is kept: name servers turn their order, and a
/// peer does not move because of that.
pub(super) async fn resolve(endpoints: impl IntoIterator<Item = &str>, resolved: &mut Resolved) {
    for endpoint in endpoints {
        match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(endpoint)).await {
            Ok(Ok(addresses)) => {
                let addresses: Vec<_> = addresses.collect();
                let kept = resolved.get(endpoint).filter(|known| addresses.contains(known));
                if let (None, Some(first)) = (kept, addresses.first()) {
                    resolved.insert(endpoint.to_owned(), *first);
                }
            }
            Ok(Err(error)) => warn!(endpoint, %error, "endpoint cannot be resolved now"),
            Err(_) => warn!(endpoint, "the name server does not answer"),
        }
    }
}
