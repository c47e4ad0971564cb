//! Digests of JSON, computed alike on both sides.

use crate::addresses::Prefixes;
use liquid_link::digest::Hash;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Digest of a JSON value. Objects are compared by content, not by the order of their fields: serde_json keeps
/// them sorted.
pub fn json(value: &Value) -> Hash {
    Hash::of(value.to_string().as_bytes())
}

/// Fields of a pod's status that the provider's kubelet decides and the consumer shows as they are. What a side
/// has of its own (node names, conditions of other controllers) does not count.
const STATUS_FIELDS: [&str; 10] = [
    "phase",
    "reason",
    "message",
    "startTime",
    "qosClass",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "resize",
    "resourceClaimStatuses",
];

/// Conditions the provider's kubelet decides.
pub const STATUS_CONDITIONS: [&str; 6] = [
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    PASSING_CONDITIONS[0],
    PASSING_CONDITIONS[1],
];

/// Of these, conditions that are there while something is under way (KEP-1287), and then are not.
pub const PASSING_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The part of a pod's status that both sides share, but for its addresses.
pub fn shared_pod_status(status: &Value) -> Value {
    let mut shared = Map::new();
    for field in STATUS_FIELDS {
        if let Some(value) = status.get(field).filter(|value| !value.is_null()) {
            shared.insert(field.to_owned(), value.clone());
        }
    }
    let conditions = status.get("conditions").and_then(Value::as_array);
    let mut conditions: Vec<Value> = conditions
        .into_iter()
        .flatten()
        .filter(|c| c.get("type").and_then(Value::as_str).is_some_and(|t| STATUS_CONDITIONS.contains(&t)))
        .map(shared_condition)
        .collect();
    conditions.sort_by(|a, b| a["type"].as_str().cmp(&b["type"].as_str()));
    shared.insert("conditions".to_owned(), Value::Array(conditions));
    Value::Object(shared)
}

/// A condition without its generation, which counts changes of another object on each side.
fn shared_condition(condition: &Value) -> Value {
    let mut condition = condition.clone();
    if let Some(fields) = condition.as_object_mut() {
        fields.remove("observedGeneration");
        fields.remove("lastProbeTime");
    }
    condition
}

/// Addresses a pod can have: one of each family.
const MAX_ADDRESSES: usize = 2;

/// A pod's status, as far as both sides share it, in brief. Addresses are apart: each side has its own view of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusDigest {
    rest: Hash,
    addresses: [Option<IpAddr>; MAX_ADDRESSES],
}

impl StatusDigest {
    /// That of `status`; `None` if nothing was reported yet.
    pub fn of(status: &Value) -> Option<Self> {
        let shared = shared_pod_status(status);
        shared.get("phase")?;
        let mut addresses = [None; MAX_ADDRESSES];
        for (place, address) in addresses.iter_mut().zip(pod_addresses(status)) {
            *place = Some(address);
        }
        Some(Self { rest: json(&shared), addresses })
    }

    /// As the side with the pod at home sees it, to which the addresses here are those of `prefixes`.
    pub fn seen(&self, prefixes: &Prefixes) -> Hash {
        self.with(self.addresses.iter().flatten().filter_map(|address| prefixes.seen(*address)))
    }

    /// As it is.
    fn unchanged(&self) -> Hash {
        self.with(self.addresses.iter().flatten().copied())
    }

    fn with(&self, addresses: impl Iterator<Item = IpAddr>) -> Hash {
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        // Without a network between the clusters there are none, and nothing to add.
        if addresses.is_empty() { self.rest } else { json(&json!([self.rest.to_string(), addresses])) }
    }
}

impl From<Hash> for StatusDigest {
    /// A status without addresses.
    fn from(rest: Hash) -> Self {
        Self { rest, addresses: [None; MAX_ADDRESSES] }
    }
}

/// Digest of the status of a pod at home; `None` if nothing was reported yet.
pub fn pod_status(status: &Value) -> Option<Hash> {
    StatusDigest::of(status).map(|status| status.unchanged())
}

/// The addresses in a pod's status, in their order.
pub fn pod_addresses(status: &Value) -> impl Iterator<Item = IpAddr> {
    let listed = status.get("podIPs").and_then(Value::as_array).into_iter().flatten();
    listed.filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok()).take(MAX_ADDRESSES)
}

/// Puts other addresses into a pod's status.
pub fn set_pod_addresses(status: &mut Value, addresses: &[IpAddr]) {
    let Some(status) = status.as_object_mut() else { return };
    status.remove("podIP");
    status.remove("podIPs");
    if let Some(first) = addresses.first() {
        status.insert("podIP".to_owned(), json!(first));
        let all: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        status.insert("podIPs".to_owned(), all.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_and_foreign_conditions_do_not_count() {
        let remote = json!({
            "phase": "Running", "hostIP": "192.0.2.1", "observedGeneration": 2,
            "conditions": [
                {"type": "Ready", "status": "True", "observedGeneration": 2},
                {"type": "PodScheduled", "status": "True"},
            ],
        });
        let home = json!({
            "phase": "Running", "hostIP": "198.51.100.1",
            "conditions": [
                {"type": "example.org/gate", "status": "True"},
                {"type": "Ready", "status": "True", "observedGeneration": 1, "lastProbeTime": null},
            ],
        });
        assert_eq!(pod_status(&remote), pod_status(&home));
    }

    #[test]
    fn addresses_count_as_home_sees_them() {
        let status = |ips: &[&str]| {
            let mut status = json!({"phase": "Running", "podIP": "old", "podIPs": [{"ip": "192.0.2.9"}]});
            let addresses: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            set_pod_addresses(&mut status, &addresses);
            assert_eq!(pod_addresses(&status).collect::<Vec<_>>(), addresses);
            assert_eq!(status["podIP"].as_str(), ips.first().copied());
            status
        };
        let prefixes = |pairs: &[(&str, &str)]| {
            Prefixes::new(pairs.iter().map(|(real, seen)| (real.parse().unwrap(), seen.parse().unwrap())))
        };
        let remote = StatusDigest::of(&status(&["10.244.1.7", "fd00:1::7"])).unwrap();
        let both = prefixes(&[("10.244.0.0/16", "100.64.0.0/16"), ("fd00:1::/64", "fd00:1::/64")]);
        assert_eq!(Some(remote.seen(&both)), pod_status(&status(&["100.64.1.7", "fd00:1::7"])));
        let one = prefixes(&[("10.244.0.0/16", "100.64.0.0/16")]);
        assert_eq!(Some(remote.seen(&one)), pod_status(&status(&["100.64.1.7"])));
        assert_eq!(Some(remote.seen(&Prefixes::default())), pod_status(&status(&[])));
        assert_ne!(remote.seen(&one), remote.seen(&Prefixes::default()));
    }

    #[test]
    fn what_the_kubelet_reports_counts() {
        let running = json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 0}]});
        let restarted = json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 1}]});
        assert_ne!(pod_status(&running), pod_status(&restarted));
        assert_eq!(pod_status(&json!({})), None);
    }
}
