//! Which pods may reach the API server, by their addresses.

use super::relay::Gate;
use liquid_reflection::Key;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a caller that is not known is held: its address is in the pod's status, which may be on its way. Clients of
/// Kubernetes wait 10 s for a handshake.
const HOLD: Duration = Duration::from_secs(5);

/// The pods that may.
#[derive(Debug, Default)]
pub(crate) struct Callers(watch::Sender<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By virtual node and pod.
    pods: BTreeMap<(Arc<str>, Key), Vec<IpAddr>>,
    /// How many of them have an address.
    addresses: HashMap<IpAddr, usize>,
}

impl Known {
    /// Counts and discounts; returns whether that changes anything.
    fn replace(&mut self, earlier: &[IpAddr], addresses: &[IpAddr]) -> bool {
        for address in addresses {
            *self.addresses.entry(*address).or_default() += 1;
        }
        for address in earlier {
            if let Some(count) = self.addresses.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(address);
                }
            }
        }
        earlier != addresses
    }
}

impl Callers {
    /// The pod on this virtual node may, from these addresses; if there are none, it may not.
    pub(crate) fn set(&self, node: &str, pod: &Key, addresses: Vec<IpAddr>) {
        let at = (Arc::from(node), pod.clone());
        self.0.send_if_modified(|known| {
            let earlier = if addresses.is_empty() {
                known.pods.remove(&at)
            } else {
                known.pods.insert(at, addresses.clone())
            };
            known.replace(&earlier.unwrap_or_default(), &addresses)
        });
    }

    /// Of the pods on this virtual node, only these may.
    pub(crate) fn retain(&self, node: &str, left: impl Fn(&Key) -> bool) {
        self.0.send_if_modified(|known| {
            let gone = known.pods.extract_if(.., |(on, pod), _| **on == *node && !left(pod));
            let gone: Vec<IpAddr> = gone.flat_map(|(_, addresses)| addresses).collect();
            known.replace(&gone, &[])
        });
    }
}

impl Gate for Callers {
    async fn admits(&self, source: IpAddr) -> bool {
        let mut known = self.0.subscribe();
        timeout(HOLD, known.wait_for(|known| known.addresses.contains_key(&source)))
            .await
            .is_ok_and(|known| known.is_ok())
    }

    async fn closes(&self, source: IpAddr) {
        let mut known = self.0.subscribe();
        // The sender is part of this.
        drop(known.wait_for(|known| !known.addresses.contains_key(&source)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, advance};

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_let_in_while_it_has_its_address_and_may() {
        let callers = Callers::default();
        let (a, b) = (Key::new("shop", "a"), Key::new("shop", "b"));
        callers.set("n", &a, vec![address("10.200.0.5")]);
        assert!(callers.admits(address("10.200.0.5")).await);
        // The address goes over to another pod before the first is said to be gone.
        callers.set("n", &b, vec![address("10.200.0.5")]);
        callers.set("n", &a, vec![]);
        assert!(callers.admits(address("10.200.0.5")).await);
        callers.retain("m", |_| false);
        assert!(callers.admits(address("10.200.0.5")).await);
        callers.retain("n", |_| false);
        callers.closes(address("10.200.0.5")).await;
        assert!(callers.0.borrow().addresses.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_for_its_address_to_be_known_but_not_for_ever() {
        let callers = Arc::new(Callers::default());
        let begun = Instant::now();
        assert!(!callers.admits(address("10.200.0.6")).await);
        assert_eq!(begun.elapsed(), HOLD);
        let waiting = tokio::spawn({
            let callers = callers.clone();
            async move { callers.admits(address("10.200.0.7")).await }
        });
        advance(Duration::from_secs(1)).await;
        callers.set("n", &Key::new("shop", "a"), vec![address("10.200.0.7")]);
        assert!(waiting.await.unwrap());
    }
}
