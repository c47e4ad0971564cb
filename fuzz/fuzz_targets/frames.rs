//! What the other cluster can say about objects: bytes that are a frame are the same frame after another way over the wire, and
//! frames in any order lead to nothing at home but what they may.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use liquid_link::digest::Hash;
use liquid_link::proto;
use liquid_reflection::consumer;
use liquid_reflection::frame::{Entry, Ref, Refusal, Wanted};
use liquid_reflection::provider::{Action, Outcome, Step};
use liquid_reflection::{Consumer, ConsumerFrame, Key, Kind, Provider, ProviderFrame, SetRef, Uid};
use prost::Message as _;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What one input says at most.
const MAX_FRAMES: usize = 200;
/// What is done of that which one frame leads to: the rest waits.
const MAX_ACTIONS: usize = 200;

fuzz_target!(|input: &[u8]| {
    over_the_wire(input);
    let mut bytes = Unstructured::new(input);
    // They end where the bytes do.
    let _ = to_provider(&mut bytes);
    let mut bytes = Unstructured::new(input);
    let _ = to_consumer(&mut bytes);
});

fn over_the_wire(input: &[u8]) {
    if let Ok(frame) = proto::ConsumerFrame::decode(input)
        && let Ok(frame) = ConsumerFrame::try_from(frame)
    {
        let again = proto::ConsumerFrame::from(frame.clone()).encode_to_vec();
        let again = proto::ConsumerFrame::decode(&*again).expect("ours");
        assert_eq!(ConsumerFrame::try_from(again), Ok(frame));
    }
    if let Ok(frame) = proto::ProviderFrame::decode(input)
        && let Ok(frame) = ProviderFrame::try_from(frame)
    {
        let again = proto::ProviderFrame::from(frame.clone()).encode_to_vec();
        let again = proto::ProviderFrame::decode(&*again).expect("ours");
        assert_eq!(ProviderFrame::try_from(again), Ok(frame));
    }
}

/// Few sets, so that frames meet.
fn set(bytes: &mut Unstructured<'_>) -> Result<SetRef> {
    let (kind, scope) = *bytes.choose(&[
        (Kind::Namespace, ""),
        (Kind::Pod, "node"),
        (Kind::Secret, "shop"),
        (Kind::PersistentVolumeClaim, ""),
    ])?;
    Ok(SetRef { kind, scope: Arc::from(scope) })
}

fn key(set: &SetRef, bytes: &mut Unstructured<'_>) -> Result<Key> {
    let namespace = if set.kind == Kind::Namespace { "" } else { "shop" };
    Ok(Key { namespace: Arc::from(namespace), name: Arc::from(*bytes.choose(&["a", "b"])?) })
}

fn target(bytes: &mut Unstructured<'_>) -> Result<Ref> {
    let set = set(bytes)?;
    Ok(Ref { key: key(&set, bytes)?, uid: uid(bytes)?, set })
}

fn uid(bytes: &mut Unstructured<'_>) -> Result<Uid> {
    Ok(Uid::from(*bytes.choose(&["first", "second"])?))
}

fn hash(bytes: &mut Unstructured<'_>) -> Result<Hash> {
    Ok(Hash::of(&[bytes.int_in_range(0..=2_u8)?]))
}

fn grace(bytes: &mut Unstructured<'_>) -> Result<Option<u32>> {
    bytes.arbitrary()
}

fn wanted(bytes: &mut Unstructured<'_>) -> Result<Wanted> {
    Ok(if bytes.ratio(1, 3)? {
        Wanted::Deleting { grace: grace(bytes)? }
    } else {
        Wanted::Present(hash(bytes)?)
    })
}

fn refusal() -> Refusal {
    Refusal { reason: "NotNow".to_owned(), message: "later".to_owned() }
}

fn consumer_frame(bytes: &mut Unstructured<'_>) -> Result<ConsumerFrame> {
    Ok(match bytes.int_in_range(0..=3)? {
        0 => {
            let count = bytes.int_in_range(0..=4)?;
            ConsumerFrame::Sets((0..count).map(|_| set(bytes)).collect::<Result<_>>()?)
        }
        1 => {
            let set = set(bytes)?;
            let count = bytes.int_in_range(0..=2)?;
            let entry = |_| {
                let status = if bytes.arbitrary()? { Some(hash(bytes)?) } else { None };
                Ok(Entry { key: key(&set, bytes)?, uid: uid(bytes)?, wanted: wanted(bytes)?, status })
            };
            let entries = (0..count).map(entry).collect::<Result<_>>()?;
            ConsumerFrame::Inventory { entries, complete: bytes.arbitrary()?, set }
        }
        2 => ConsumerFrame::Upsert {
            target: target(bytes)?,
            hash: hash(bytes)?,
            body: Bytes::from_static(b"{}"),
        },
        _ => ConsumerFrame::Delete { target: target(bytes)?, grace: grace(bytes)? },
    })
}

fn to_provider(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut provider = Provider::paused();
    let mut now = Instant::now();
    let (mut spoken_of, mut named) = (BTreeSet::new(), BTreeSet::new());
    provider.connected();
    for number in 0..MAX_FRAMES {
        if number == 3 {
            provider.resume();
        }
        match bytes.int_in_range(0..=8)? {
            0 => {
                provider.disconnected();
                provider.connected();
            }
            1 => {
                now += Duration::from_secs(60);
                provider.handle_timeout(now);
            }
            _ => {
                let frame = consumer_frame(bytes)?;
                match &frame {
                    ConsumerFrame::Inventory { set, entries, .. } => {
                        spoken_of.extend(entries.iter().map(|entry| (set.clone(), entry.key.clone())));
                    }
                    ConsumerFrame::Upsert { target, .. } | ConsumerFrame::Delete { target, .. } => {
                        spoken_of.insert((target.set.clone(), target.key.clone()));
                    }
                    ConsumerFrame::Sets(sets) => named.extend(sets.iter().cloned()),
                    ConsumerFrame::Addresses(_) => {}
                }
                provider.received(frame);
            }
        }
        for _ in 0..MAX_ACTIONS {
            let Some(action) = provider.poll_action() else { break };
            let Action::Run { target, step } = action else { continue };
            let known = spoken_of.contains(&(target.set.clone(), target.key.clone()));
            assert!(known, "the consumer never spoke of {target:?}");
            let stores = matches!(step, Step::Store { .. });
            assert!(!stores || named.contains(&target.set), "{target:?} is in a set that was not named");
            let outcome = match bytes.int_in_range(0..=4)? {
                // Under way.
                0 => continue,
                1 => Outcome::Failed(refusal()),
                2 => Outcome::Outdated,
                _ if step == Step::Look => Outcome::Found { record: None, instance: None },
                _ => Outcome::Done,
            };
            provider.done(&target, outcome, now, 0);
        }
    }
    Ok(())
}

fn provider_frame(bytes: &mut Unstructured<'_>) -> Result<ProviderFrame> {
    let target = target(bytes)?;
    Ok(match bytes.int_in_range(0..=4)? {
        0 => ProviderFrame::Want(target),
        1 => ProviderFrame::Ack { target, hash: hash(bytes)? },
        2 => ProviderFrame::Nack { target, hash: hash(bytes)?, refusal: refusal() },
        3 => ProviderFrame::Gone(target),
        _ => ProviderFrame::Status { target, hash: hash(bytes)?, body: Bytes::from_static(b"{}") },
    })
}

fn to_consumer(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut consumer = Consumer::default();
    // What home has told the consumer half to end, and nothing else may.
    let mut deleting = BTreeSet::new();
    for _ in 0..MAX_FRAMES {
        match bytes.int_in_range(0..=9)? {
            0 => consumer.add_set(set(bytes)?),
            1 => {
                let set = set(bytes)?;
                consumer.synced(&set);
            }
            2 => {
                let (target, wanted) = (target(bytes)?, wanted(bytes)?);
                if matches!(wanted, Wanted::Deleting { .. }) {
                    deleting.insert(target.clone());
                }
                consumer.observe(target, wanted, None);
            }
            3 => consumer.connected(),
            4 => consumer.disconnected(),
            _ => consumer.received(provider_frame(bytes)?),
        }
        for _ in 0..MAX_ACTIONS {
            let Some(action) = consumer.poll_action() else { break };
            match action {
                consumer::Action::FinishDeletion(target) => {
                    assert!(deleting.contains(&target), "{target:?} is not being deleted");
                }
                consumer::Action::ApplyStatus { target, .. } => {
                    assert!(consumer.knows(&target), "{target:?}")
                }
                _ => {}
            }
        }
    }
    Ok(())
}
