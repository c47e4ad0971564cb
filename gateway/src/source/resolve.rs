//! Addresses behind the names of endpoints.

use futures::future::join_all;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tracing::warn;

/// How often the names of endpoints are resolved again: an end that has moved calls by itself, unless it cannot.
pub(super) const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a name server may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are used: all are tried when an end does not answer.
const MAX_ADDRESSES: usize = 4;

/// The addresses behind each endpoint.
pub(super) type Resolved = HashMap<String, Vec<SocketAddr>>;

/// Resolves what can be, all at once; what cannot be resolved now stays as it was.
pub(super) async fn resolve(endpoints: impl IntoIterator<Item = &str>, resolved: &mut Resolved) {
    let answers = endpoints.into_iter().map(async |endpoint| {
        let answer = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(endpoint)).await;
        match answer {
            Ok(Ok(addresses)) => {
                let mut addresses: Vec<_> = addresses.collect();
                // Name servers turn their order, and nothing has changed because of that.
                addresses.sort();
                addresses.dedup();
                addresses.truncate(MAX_ADDRESSES);
                Some((endpoint.to_owned(), addresses)).filter(|(_, addresses)| !addresses.is_empty())
            }
            Ok(Err(error)) => {
                warn!(endpoint, %error, "endpoint cannot be resolved now");
                None
            }
            Err(_) => {
                warn!(endpoint, "the name server does not answer");
                None
            }
        }
    });
    resolved.extend(join_all(answers).await.into_iter().flatten());
}
