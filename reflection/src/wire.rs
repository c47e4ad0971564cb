//! Frames as they travel: conversion from and to the messages of the peer link. Everything that comes in is
//! checked here, once.

use crate::addresses::Prefixes;
use crate::frame::{ConsumerFrame, Entry, ProviderFrame, Ref, Refusal, Wanted};
use crate::key::{Key, Kind, Role, SetRef, Uid};
use crate::warning::Warning;
use ipnet::IpNet;
use liquid_link::digest::Hash;
use liquid_link::proto;
use std::sync::Arc;
use thiserror::Error;

/// Longest name of a Kubernetes object (DNS subdomain).
const MAX_NAME: usize = 253;
/// Longest message of a refusal passed on; API server messages can hold whole objects.
const MAX_MESSAGE: usize = 4096;

/// Most prefixes of a cluster's pods: as many as are exchanged for the network.
const MAX_PREFIXES: usize = 256;

/// Why a message is no frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A part is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A part is not as it must be.
    #[error("{0} is not valid: {1:?}")]
    Invalid(&'static str, String),
}

fn kind_to_wire(kind: Kind) -> proto::Kind {
    match kind {
        Kind::Namespace => proto::Kind::Namespace,
        Kind::Pod => proto::Kind::Pod,
        Kind::ConfigMap => proto::Kind::ConfigMap,
        Kind::Secret => proto::Kind::Secret,
        Kind::Service => proto::Kind::Service,
        Kind::EndpointSlice => proto::Kind::EndpointSlice,
        Kind::NetworkPolicy => proto::Kind::NetworkPolicy,
        Kind::Ingress => proto::Kind::Ingress,
        Kind::PersistentVolumeClaim => proto::Kind::PersistentVolumeClaim,
    }
}

fn kind_from_wire(kind: i32) -> Result<Kind, WireError> {
    match proto::Kind::try_from(kind) {
        Ok(proto::Kind::Namespace) => Ok(Kind::Namespace),
        Ok(proto::Kind::Pod) => Ok(Kind::Pod),
        Ok(proto::Kind::ConfigMap) => Ok(Kind::ConfigMap),
        Ok(proto::Kind::Secret) => Ok(Kind::Secret),
        Ok(proto::Kind::Service) => Ok(Kind::Service),
        Ok(proto::Kind::EndpointSlice) => Ok(Kind::EndpointSlice),
        Ok(proto::Kind::NetworkPolicy) => Ok(Kind::NetworkPolicy),
        Ok(proto::Kind::Ingress) => Ok(Kind::Ingress),
        Ok(proto::Kind::PersistentVolumeClaim) => Ok(Kind::PersistentVolumeClaim),
        Ok(proto::Kind::Unspecified) | Err(_) => Err(WireError::Invalid("kind", kind.to_string())),
    }
}

fn set_to_wire(set: &SetRef) -> proto::SetRef {
    proto::SetRef { kind: kind_to_wire(set.kind).into(), scope: set.scope.to_string() }
}

fn set_from_wire(set: Option<proto::SetRef>) -> Result<SetRef, WireError> {
    let set = set.ok_or(WireError::Missing("set"))?;
    let kind = kind_from_wire(set.kind)?;
    match kind.role() {
        Role::Namespace | Role::Claim if set.scope.is_empty() => {}
        Role::Namespace | Role::Claim => return Err(WireError::Invalid("scope", set.scope)),
        Role::Pod | Role::Companion => name("scope", &set.scope)?,
    }
    Ok(SetRef { kind, scope: Arc::from(set.scope) })
}

fn key_to_wire(key: &Key) -> proto::Key {
    proto::Key { namespace: key.namespace.to_string(), name: key.name.to_string() }
}

/// Reads the key of an object of `kind`.
///
/// # Errors
/// If a name is missing, too long or no DNS subdomain, or the namespace does not fit the kind.
pub fn key_from_wire(kind: Kind, key: Option<proto::Key>) -> Result<Key, WireError> {
    let key = key.ok_or(WireError::Missing("key"))?;
    name("name", &key.name)?;
    match kind.role() {
        Role::Namespace if key.namespace.is_empty() => {}
        Role::Namespace => return Err(WireError::Invalid("namespace", key.namespace)),
        Role::Pod | Role::Companion | Role::Claim => name("namespace", &key.namespace)?,
    }
    Ok(Key { namespace: Arc::from(key.namespace), name: Arc::from(key.name) })
}

/// Names of pods, namespaces and nodes are DNS subdomains.
fn name(what: &'static str, name: &str) -> Result<(), WireError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let valid = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| inner(b) || b == b'-' || b == b'.')
        && name.bytes().next().is_some_and(inner)
        && name.bytes().last().is_some_and(inner);
    if valid { Ok(()) } else { Err(WireError::Invalid(what, name.chars().take(64).collect())) }
}

fn uid(uid: &str) -> Result<Uid, WireError> {
    let valid = (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if valid { Ok(Uid::from(uid)) } else { Err(WireError::Invalid("uid", uid.chars().take(64).collect())) }
}

fn hash(bytes: &[u8]) -> Result<Hash, WireError> {
    Hash::from_bytes(bytes).ok_or_else(|| WireError::Invalid("hash", format!("{} bytes", bytes.len())))
}

fn ref_to_wire(target: &Ref) -> proto::Ref {
    proto::Ref {
        set: Some(set_to_wire(&target.set)),
        key: Some(key_to_wire(&target.key)),
        uid: target.uid.to_string(),
    }
}

fn ref_from_wire(target: Option<proto::Ref>) -> Result<Ref, WireError> {
    let target = target.ok_or(WireError::Missing("ref"))?;
    parts(target.set, target.key, &target.uid)
}

fn parts(set: Option<proto::SetRef>, key: Option<proto::Key>, id: &str) -> Result<Ref, WireError> {
    let set = set_from_wire(set)?;
    let key = member_from_wire(&set, key)?;
    Ok(Ref { set, key, uid: uid(id)? })
}

/// Reads the key of a member of `set`.
fn member_from_wire(set: &SetRef, key: Option<proto::Key>) -> Result<Key, WireError> {
    let key = key_from_wire(set.kind, key)?;
    if Kind::COMPANIONS.contains(&set.kind) && key.namespace != set.scope {
        return Err(WireError::Invalid("namespace", key.namespace.to_string()));
    }
    Ok(key)
}

fn hash_to_wire(hash: Hash) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(hash.as_bytes())
}

impl From<ConsumerFrame> for proto::ConsumerFrame {
    fn from(frame: ConsumerFrame) -> Self {
        use proto::consumer_frame::Frame;
        let frame = match frame {
            ConsumerFrame::Sets(sets) => {
                Frame::Sets(proto::Sets { sets: sets.iter().map(set_to_wire).collect() })
            }
            ConsumerFrame::Addresses(prefixes) => {
                let pair = |(real, seen): &(IpNet, IpNet)| proto::Prefix {
                    real: real.to_string(),
                    seen: seen.to_string(),
                };
                Frame::Addresses(proto::Addresses { prefixes: prefixes.pairs().iter().map(pair).collect() })
            }
            ConsumerFrame::Inventory { set, entries, complete } => Frame::Inventory(proto::Inventory {
                set: Some(set_to_wire(&set)),
                entries: entries.into_iter().map(entry_to_wire).collect(),
                complete,
            }),
            ConsumerFrame::Upsert { target, hash, body } => Frame::Upsert(proto::Upsert {
                set: Some(set_to_wire(&target.set)),
                key: Some(key_to_wire(&target.key)),
                uid: target.uid.to_string(),
                hash: hash_to_wire(hash),
                body,
            }),
            ConsumerFrame::Delete { target, grace } => Frame::Delete(proto::Delete {
                set: Some(set_to_wire(&target.set)),
                key: Some(key_to_wire(&target.key)),
                uid: target.uid.to_string(),
                deletion: Some(proto::Deletion { grace_seconds: grace }),
            }),
        };
        Self { frame: Some(frame) }
    }
}

fn entry_to_wire(entry: Entry) -> proto::Entry {
    let (hash, deletion) = match entry.wanted {
        Wanted::Present(hash) => (hash_to_wire(hash), None),
        Wanted::Deleting { grace } => (bytes::Bytes::new(), Some(proto::Deletion { grace_seconds: grace })),
    };
    proto::Entry {
        key: Some(key_to_wire(&entry.key)),
        uid: entry.uid.to_string(),
        hash,
        status_hash: entry.status.map(hash_to_wire).unwrap_or_default(),
        deletion,
    }
}

impl TryFrom<proto::ConsumerFrame> for ConsumerFrame {
    type Error = WireError;

    fn try_from(frame: proto::ConsumerFrame) -> Result<Self, WireError> {
        use proto::consumer_frame::Frame;
        match frame.frame.ok_or(WireError::Missing("frame"))? {
            Frame::Sets(sets) => {
                let sets = sets.sets.into_iter().map(|set| set_from_wire(Some(set)));
                Ok(Self::Sets(sets.collect::<Result<_, _>>()?))
            }
            Frame::Addresses(addresses) => prefixes_from_wire(&addresses.prefixes).map(Self::Addresses),
            Frame::Inventory(inventory) => {
                let set = set_from_wire(inventory.set)?;
                let entries = inventory.entries.into_iter().map(|entry| entry_from_wire(&set, entry));
                let entries = entries.collect::<Result<_, _>>()?;
                Ok(Self::Inventory { set, entries, complete: inventory.complete })
            }
            Frame::Upsert(upsert) => Ok(Self::Upsert {
                target: parts(upsert.set, upsert.key, &upsert.uid)?,
                hash: hash(&upsert.hash)?,
                body: upsert.body,
            }),
            Frame::Delete(delete) => Ok(Self::Delete {
                target: parts(delete.set, delete.key, &delete.uid)?,
                grace: delete.deletion.and_then(|deletion| deletion.grace_seconds),
            }),
        }
    }
}

fn prefixes_from_wire(pairs: &[proto::Prefix]) -> Result<Prefixes, WireError> {
    if pairs.len() > MAX_PREFIXES {
        return Err(WireError::Invalid("prefixes", format!("{} of them", pairs.len())));
    }
    let net = |text: &String| {
        text.parse::<IpNet>().map_err(|_| WireError::Invalid("prefix", text.chars().take(64).collect()))
    };
    let pairs = pairs.iter().map(|pair| Ok((net(&pair.real)?.trunc(), net(&pair.seen)?.trunc())));
    Ok(Prefixes::new(pairs.collect::<Result<Vec<_>, WireError>>()?))
}

fn entry_from_wire(set: &SetRef, entry: proto::Entry) -> Result<Entry, WireError> {
    let wanted = match entry.deletion {
        Some(deletion) => Wanted::Deleting { grace: deletion.grace_seconds },
        None => Wanted::Present(hash(&entry.hash)?),
    };
    let status = if entry.status_hash.is_empty() { None } else { Some(hash(&entry.status_hash)?) };
    Ok(Entry { key: member_from_wire(set, entry.key)?, uid: uid(&entry.uid)?, wanted, status })
}

impl From<ProviderFrame> for proto::ProviderFrame {
    fn from(frame: ProviderFrame) -> Self {
        use proto::provider_frame::Frame;
        let frame = match frame {
            ProviderFrame::Want(target) => Frame::Want(ref_to_wire(&target)),
            ProviderFrame::Gone(target) => Frame::Gone(ref_to_wire(&target)),
            ProviderFrame::Ack { target, hash } => {
                Frame::Ack(proto::Ack { r#ref: Some(ref_to_wire(&target)), hash: hash_to_wire(hash) })
            }
            ProviderFrame::Nack { target, hash, refusal } => Frame::Nack(proto::Nack {
                r#ref: Some(ref_to_wire(&target)),
                hash: hash_to_wire(hash),
                reason: refusal.reason,
                message: refusal.message,
            }),
            ProviderFrame::Warning { target, id, warning } => Frame::Warning(proto::Warning {
                r#ref: Some(ref_to_wire(&target)),
                id: id.to_string(),
                reason: warning.reason,
                message: warning.message,
                count: warning.count,
                first: warning.first,
                last: warning.last,
                field_path: warning.field_path.unwrap_or_default(),
                component: warning.component,
            }),
            ProviderFrame::Status { target, hash, body } => Frame::Status(proto::Status {
                r#ref: Some(ref_to_wire(&target)),
                hash: hash_to_wire(hash),
                body,
            }),
        };
        Self { frame: Some(frame) }
    }
}

impl TryFrom<proto::ProviderFrame> for ProviderFrame {
    type Error = WireError;

    fn try_from(frame: proto::ProviderFrame) -> Result<Self, WireError> {
        use proto::provider_frame::Frame;
        match frame.frame.ok_or(WireError::Missing("frame"))? {
            Frame::Want(target) => Ok(Self::Want(ref_from_wire(Some(target))?)),
            Frame::Gone(target) => Ok(Self::Gone(ref_from_wire(Some(target))?)),
            Frame::Ack(ack) => Ok(Self::Ack { target: ref_from_wire(ack.r#ref)?, hash: hash(&ack.hash)? }),
            Frame::Nack(nack) => Ok(Self::Nack {
                target: ref_from_wire(nack.r#ref)?,
                hash: hash(&nack.hash)?,
                refusal: Refusal {
                    reason: reason(nack.reason),
                    message: nack.message.chars().take(MAX_MESSAGE).collect(),
                },
            }),
            Frame::Warning(warning) => Ok(Self::Warning {
                target: ref_from_wire(warning.r#ref)?,
                id: uid(&warning.id)?,
                warning: Box::new(
                    Warning {
                        reason: reason(warning.reason),
                        message: warning.message,
                        count: warning.count,
                        first: warning.first,
                        last: warning.last,
                        field_path: Some(warning.field_path).filter(|path| !path.is_empty()),
                        component: warning.component,
                    }
                    .bounded(),
                ),
            }),
            Frame::Status(status) => Ok(Self::Status {
                target: ref_from_wire(status.r#ref)?,
                hash: hash(&status.hash)?,
                body: status.body,
            }),
        }
    }
}

/// Reasons end up in Events and pod statuses, where only CamelCase words are allowed.
fn reason(reason: String) -> String {
    let valid = (1..=64).contains(&reason.len()) && reason.bytes().all(|b| b.is_ascii_alphanumeric());
    if valid { reason } else { "Refused".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target() -> Ref {
        Ref { set: SetRef::pods("liquid-milan"), key: Key::new("shop", "web-0"), uid: Uid::from("u-1") }
    }

    #[test]
    fn consumer_frames_survive_the_trip() {
        let hash = Hash::of(b"x");
        let entry = |wanted, status| Entry { key: target().key, uid: target().uid, wanted, status };
        for frame in [
            ConsumerFrame::Sets(vec![SetRef::namespaces(), SetRef::pods("n")]),
            ConsumerFrame::Addresses(Prefixes::default()),
            ConsumerFrame::Addresses(Prefixes::new([
                ("10.244.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()),
                ("fd00::/64".parse().unwrap(), "fd00::/64".parse().unwrap()),
            ])),
            ConsumerFrame::Inventory {
                set: SetRef::pods("n"),
                entries: vec![
                    entry(Wanted::Present(hash), Some(hash)),
                    entry(Wanted::Deleting { grace: Some(0) }, None),
                    entry(Wanted::Deleting { grace: None }, None),
                ],
                complete: true,
            },
            ConsumerFrame::Upsert { target: target(), hash, body: "{}".into() },
            ConsumerFrame::Delete { target: target(), grace: Some(0) },
            ConsumerFrame::Delete { target: target(), grace: None },
        ] {
            let sent = proto::ConsumerFrame::from(frame.clone());
            assert_eq!(ConsumerFrame::try_from(sent), Ok(frame));
        }
    }

    #[test]
    fn provider_frames_survive_the_trip() {
        let hash = Hash::of(b"x");
        let refusal = Refusal { reason: "QuotaExceeded".to_owned(), message: "cpu: 3 of 2".to_owned() };
        for frame in [
            ProviderFrame::Want(target()),
            ProviderFrame::Gone(target()),
            ProviderFrame::Ack { target: target(), hash },
            ProviderFrame::Nack { target: target(), hash, refusal },
            ProviderFrame::Status { target: target(), hash, body: "{}".into() },
            ProviderFrame::Warning {
                target: target(),
                id: Uid::from("e-1"),
                warning: Box::new(Warning {
                    reason: "BackOff".to_owned(),
                    message: "m".to_owned(),
                    count: 2,
                    first: "1".to_owned(),
                    last: "2".to_owned(),
                    field_path: Some("spec.containers{c}".to_owned()),
                    component: "kubelet".to_owned(),
                }),
            },
        ] {
            let sent = proto::ProviderFrame::from(frame.clone());
            assert_eq!(ProviderFrame::try_from(sent), Ok(frame));
        }
    }

    #[test]
    fn names_that_could_leave_their_place_in_a_path_are_refused() {
        for bad in ["", "..", "../kube-system", "a/b", "a b", "A", "a%2fb", "-a", "a\u{0}", &"a".repeat(254)]
        {
            let key = proto::Key { namespace: "shop".to_owned(), name: bad.to_owned() };
            assert!(key_from_wire(Kind::Pod, Some(key)).is_err(), "{bad:?}");
            let key = proto::Key { namespace: bad.to_owned(), name: "web".to_owned() };
            assert!(key_from_wire(Kind::Pod, Some(key)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_companion_belongs_to_the_namespace_of_its_set() {
        let frame = |set: SetRef| ConsumerFrame::Delete { target: Ref { set, ..target() }, grace: None };
        let trip = |set| ConsumerFrame::try_from(proto::ConsumerFrame::from(frame(set)));
        let there = SetRef::companions(Kind::Secret, "shop");
        assert_eq!(trip(there.clone()), Ok(frame(there)));
        assert!(trip(SetRef::companions(Kind::Secret, "other")).is_err());
        assert!(trip(SetRef { kind: Kind::Namespace, scope: Arc::from("shop") }).is_err());
    }

    #[test]
    fn a_reason_is_one_word() {
        assert_eq!(reason("TooMuch".to_owned()), "TooMuch");
        assert_eq!(reason("two words".to_owned()), "Refused");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            use prost::Message as _;
            if let Ok(frame) = proto::ConsumerFrame::decode(bytes.as_slice()) {
                let _ = ConsumerFrame::try_from(frame);
            }
            if let Ok(frame) = proto::ProviderFrame::decode(bytes.as_slice()) {
                let _ = ProviderFrame::try_from(frame);
            }
        }
    }
}
