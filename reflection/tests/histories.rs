//! Histories the simulation once found to go wrong, in their shortest form.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use liquid_link::digest::Hash;
use liquid_reflection::consumer;
use liquid_reflection::frame::{ConsumerFrame, Entry, ProviderFrame, Ref, Refusal, Wanted};
use liquid_reflection::provider::{Action, Deleted, Hold, Instance, Outcome, Record, Step};
use liquid_reflection::{Consumer, Key, Provider, SetRef, Uid};
use std::time::{Duration, Instant};

fn set() -> SetRef {
    SetRef::pods("liquid-a")
}

fn target(uid: &str) -> Ref {
    Ref { set: set(), key: Key::new("shop", "web"), uid: Uid::from(uid) }
}

fn hash() -> Hash {
    Hash::of(b"body")
}

fn record(object: &str, version: u64, home: &str) -> Record {
    let (object, home) = (Uid::from(object), Uid::from(home));
    Record {
        object,
        version,
        home,
        hash: hash(),
        terminating: false,
        finished: false,
        status: None,
        hold: Hold::Nothing,
    }
}

fn instance(object: &str, version: u64, home: &str) -> Instance {
    let (object, home) = (Uid::from(object), Uid::from(home));
    Instance {
        object,
        version,
        home,
        hash: hash(),
        terminating: false,
        finished: false,
        status: None,
        interim: None,
        fresh: false,
    }
}

fn inventory(entries: &[(&str, Wanted)]) -> ConsumerFrame {
    let entry = |(uid, wanted): &(&str, Wanted)| Entry {
        key: target(uid).key,
        uid: Uid::from(*uid),
        wanted: *wanted,
        status: None,
    };
    ConsumerFrame::Inventory { set: set(), entries: entries.iter().map(entry).collect(), complete: true }
}

fn upsert(uid: &str) -> ConsumerFrame {
    ConsumerFrame::Upsert { target: target(uid), hash: hash(), body: Bytes::from_static(b"body") }
}

fn delete(uid: &str) -> ConsumerFrame {
    ConsumerFrame::Delete { target: target(uid), grace: Some(0) }
}

fn actions(provider: &mut Provider) -> Vec<Action> {
    std::iter::from_fn(|| provider.poll_action()).collect()
}

fn steps(provider: &mut Provider) -> Vec<Step> {
    let run = |action| if let Action::Run { step, .. } = action { Some(step) } else { None };
    actions(provider).into_iter().filter_map(run).collect()
}

fn failed() -> Outcome {
    Outcome::Failed(Refusal { reason: "Timeout".to_owned(), message: "no answer".to_owned() })
}

fn connected() -> Provider {
    let mut provider = Provider::default();
    connect(&mut provider);
    provider
}

fn connect(provider: &mut Provider) {
    provider.connected();
    provider.received(ConsumerFrame::Sets(vec![set()]));
}

#[test]
fn gone_is_not_said_while_a_create_may_still_have_taken_effect() {
    let mut provider = connected();
    provider.received(upsert("u1"));
    actions(&mut provider);
    provider.done(&target("u1"), failed(), Instant::now(), 0);
    actions(&mut provider);

    provider.received(delete("u1"));

    assert_eq!(steps(&mut provider), [Step::Look]);
    let found = Outcome::Found { record: Some(record("r1", 5, "u1")), instance: None };
    provider.done(&target("u1"), found, Instant::now(), 0);
    assert_eq!(steps(&mut provider), [Step::Erase(Uid::from("r1"))]);
}

#[test]
fn uncertainty_outlives_the_wish_that_caused_it() {
    let mut provider = Provider::default();
    provider.record_changed(&set(), &target("u1").key, Ok(record("r1", 1, "u1")));
    assert_eq!(steps(&mut provider), [Step::Start]);
    let now = Instant::now();
    provider.done(&target("u1"), failed(), now, 0);
    let gone = Deleted { object: Uid::from("r1"), version: 2 };
    provider.record_changed(&set(), &target("u1").key, Err(gone));

    provider.handle_timeout(now + Duration::from_secs(60));

    assert_eq!(steps(&mut provider), [Step::Look], "the pod may have been started");
}

#[test]
fn a_new_object_of_the_same_name_is_asked_for_although_its_predecessor_was() {
    let mut provider = connected();
    provider.received(inventory(&[("u1", Wanted::Present(hash()))]));
    assert_eq!(actions(&mut provider), [Action::Send(ProviderFrame::Want(target("u1")))]);

    provider.received(inventory(&[("u2", Wanted::Present(hash()))]));

    assert_eq!(actions(&mut provider), [Action::Send(ProviderFrame::Want(target("u2")))]);
}

#[test]
fn what_is_left_of_a_predecessor_is_removed_without_its_successor() {
    let mut provider = connected();
    provider.received(upsert("u2"));
    actions(&mut provider);
    let stored = Outcome::Stored(record("r2", 7, "u2"));
    provider.done(&target("u2"), stored, Instant::now(), 0);
    actions(&mut provider);

    provider.instance_changed(&set(), &target("u1").key, Ok(instance("p1", 3, "u1")));
    provider.done(&target("u2"), failed(), Instant::now(), 0);
    provider.handle_timeout(Instant::now() + Duration::from_secs(60));

    let stop = Step::Stop { object: Uid::from("p1"), grace: None };
    assert_eq!(steps(&mut provider), std::slice::from_ref(&stop));
    provider.done(&target("u2"), Outcome::Done, Instant::now(), 0);
    assert_eq!(steps(&mut provider), [], "the record of the successor stays");
}

#[test]
fn an_answer_from_before_the_lists_were_read_anew_is_not_believed() {
    let mut provider = connected();
    provider.received(upsert("u1"));
    actions(&mut provider);
    provider.relisted([]);

    provider.done(&target("u1"), Outcome::Stored(record("r1", 5, "u1")), Instant::now(), 0);

    assert_eq!(steps(&mut provider), [Step::Look]);
}

#[test]
fn an_instance_without_a_record_is_not_stopped_on_hearsay() {
    let mut provider = Provider::default();
    provider.instance_changed(&set(), &target("u1").key, Ok(instance("p1", 3, "u1")));
    assert_eq!(steps(&mut provider), [Step::Look], "the watch of records may only be late");
}

#[test]
fn an_outdated_picture_does_not_make_a_busy_loop() {
    let mut provider = Provider::default();
    provider.record_changed(&set(), &target("u1").key, Ok(record("r1", 1, "u1")));
    assert_eq!(steps(&mut provider), [Step::Start]);

    // The record was gone when the shell looked.
    provider.done(&target("u1"), Outcome::Done, Instant::now(), 0);

    assert_eq!(steps(&mut provider), [], "waits for the news");
    let gone = Deleted { object: Uid::from("r1"), version: 2 };
    provider.record_changed(&set(), &target("u1").key, Err(gone));
    assert!(!provider.exists(&set(), &target("u1").key));
}

#[test]
fn what_turns_up_after_a_complete_inventory_unmentioned_is_removed() {
    let mut provider = connected();
    provider.received(ConsumerFrame::Sets(vec![set()]));
    provider.received(inventory(&[]));

    provider.record_changed(&set(), &target("u1").key, Ok(record("r1", 9, "u1")));

    assert_eq!(steps(&mut provider), [Step::Erase(Uid::from("r1"))]);
}

#[test]
fn a_body_is_sent_again_when_it_is_wanted_although_it_was_sent() {
    let mut consumer = Consumer::default();
    consumer.add_set(set());
    consumer.synced(&set());
    consumer.connected();
    consumer.observe(target("u1"), Wanted::Present(hash()), None);
    let sent = consumer::Action::SendBody { target: target("u1"), hash: hash() };
    let drain = |consumer: &mut Consumer| -> Vec<_> {
        let bodies = |action: &consumer::Action| matches!(action, consumer::Action::SendBody { .. });
        std::iter::from_fn(|| consumer.poll_action()).filter(bodies).collect()
    };
    assert_eq!(drain(&mut consumer), std::slice::from_ref(&sent));

    consumer.received(ProviderFrame::Want(target("u1")));

    assert_eq!(drain(&mut consumer), [sent]);
}

#[test]
fn nothing_is_given_up_before_an_inventory_is_complete() {
    let mut provider = Provider::default();
    provider.record_changed(&set(), &target("u1").key, Ok(record("r1", 1, "u1")));
    provider.instance_changed(&set(), &target("u1").key, Ok(instance("p1", 2, "u1")));
    actions(&mut provider);
    provider.done(&target("u1"), Outcome::Running(instance("p1", 2, "u1")), Instant::now(), 0);

    connect(&mut provider);
    provider.received(ConsumerFrame::Sets(vec![set()]));
    let part = ConsumerFrame::Inventory { set: set(), entries: Vec::new(), complete: false };
    provider.received(part);
    provider.disconnected();

    assert_eq!(steps(&mut provider), []);
}

/// A pod that somebody deletes in the provider ends as Failed there, which would end it for good at home.
#[test]
fn what_is_replaced_does_not_end_at_home() {
    let mut provider = connected();
    provider.received(upsert("u1"));
    actions(&mut provider);
    let running = Instance { status: Some(Hash::of(b"running").into()), ..instance("p1", 2, "u1") };
    let found = Outcome::Found { record: Some(record("r1", 1, "u1")), instance: Some(running.clone()) };
    provider.done(&target("u1"), found, Instant::now(), 0);
    actions(&mut provider);
    let shown = |provider: &mut Provider| {
        let status = |action| match action {
            Action::SendStatus { hash, interim, .. } => Some((hash, interim)),
            Action::Send(_) | Action::Run { .. } => None,
        };
        actions(provider).into_iter().filter_map(status).collect::<Vec<_>>()
    };

    let (failed, instead) = (Hash::of(b"failed"), Hash::of(b"instead"));
    let ending = Instance {
        version: 3,
        terminating: true,
        status: Some(failed.into()),
        interim: Some(instead.into()),
        ..running
    };
    provider.instance_changed(&set(), &target("u1").key, Ok(ending));
    assert_eq!(shown(&mut provider), [(instead, true)]);

    provider.received(delete("u1"));
    assert_eq!(shown(&mut provider), [(failed, false)], "wanted no more, it is shown as it is");
}

#[test]
fn how_something_ended_is_told_also_when_it_is_gone() {
    let mut provider = Provider::default();
    let status = Some(Hash::of(b"succeeded").into());
    let finished = Record { finished: true, status, ..record("r1", 1, "u1") };
    provider.record_changed(&set(), &target("u1").key, Ok(finished));
    connect(&mut provider);
    provider.received(inventory(&[("u1", Wanted::Present(hash()))]));
    let told = Action::SendStatus { target: target("u1"), hash: Hash::of(b"succeeded"), interim: false };
    assert!(actions(&mut provider).contains(&told));
}

/// A claim of which nobody has used the volume yet is in the namespace when the peering ends: it stays, and nothing waits for it.
#[test]
fn the_end_of_a_peering_does_not_wait_for_a_claim_that_is_still_pending() {
    let (claims, claim) = (SetRef::claims(), Key::new("shop", "data-1"));
    let (namespaces, shop) = (SetRef::namespaces(), Key::new("", "shop"));
    let namespace = Ref { set: namespaces.clone(), key: shop.clone(), uid: Uid::from("offloading") };
    let mut provider = Provider::default();
    provider.record_changed(&claims, &claim, Ok(record("c1", 1, "claim")));
    provider.record_changed(&namespaces, &shop, Ok(record("n1", 2, "offloading")));
    provider.end();
    assert_eq!(steps(&mut provider), [Step::Retire(Uid::from("n1"))]);
    assert!(!provider.is_empty(), "the namespace is not retired yet");
    let retired = Record { hold: Hold::Retired, ..record("n1", 3, "offloading") };
    let found = Outcome::Found { record: Some(retired), instance: None };
    provider.done(&namespace, found, Instant::now(), 0);
    assert_eq!(steps(&mut provider), []);
    assert!(provider.is_empty());
}

#[test]
fn a_body_of_a_set_that_was_not_named_is_refused_and_not_stored() {
    let mut provider = connected();
    provider.received(ConsumerFrame::Sets(Vec::new()));
    provider.received(upsert("a"));
    let [Action::Send(ProviderFrame::Nack { target: refused, refusal, .. })] = &actions(&mut provider)[..]
    else {
        panic!("it would wait for an answer for ever")
    };
    assert_eq!((refused, refusal.reason.as_str()), (&target("a"), "UnknownSet"));
    assert!(provider.is_empty());
}

#[test]
fn what_is_made_on_other_terms_is_made_anew_until_it_is_not_though_nothing_changes_by_that() {
    let mut provider = connected();
    provider.received(upsert("u1"));
    actions(&mut provider);
    let outdated = || Record { hash: Hash::of(b"made on other terms"), ..record("r1", 5, "u1") };
    provider.record_changed(&set(), &target("u1").key, Ok(outdated()));
    actions(&mut provider);
    // The answer to the request by which it was made comes after that.
    provider.done(&target("u1"), Outcome::Stored(outdated()), Instant::now(), 0);
    assert_eq!(actions(&mut provider), [Action::Send(ProviderFrame::Want(target("u1")))]);
    provider.received(upsert("u1"));
    assert_eq!(steps(&mut provider).len(), 1);
    // The terms are those of before again: what the API server has is what it is asked to store.
    provider.done(&target("u1"), Outcome::Stored(record("r1", 5, "u1")), Instant::now(), 0);
    assert_eq!(steps(&mut provider), [Step::Start], "it is what is wanted");
}

#[test]
fn of_a_pod_that_was_just_made_is_told_only_whom_its_predecessor_was_shown() {
    let status = |name: &[u8]| Some(Hash::of(name).into());
    let sent = |provider: &mut Provider| {
        let found = actions(provider).into_iter().filter(|it| matches!(it, Action::SendStatus { .. }));
        found.count()
    };
    let mut provider = connected();
    provider.received(inventory(&[("u1", Wanted::Present(hash()))]));
    provider.record_changed(&set(), &target("u1").key, Ok(record("r1", 1, "u1")));
    let made = |object: &str, version| Instance {
        status: status(b"new"),
        fresh: true,
        ..instance(object, version, "u1")
    };
    provider.instance_changed(&set(), &target("u1").key, Ok(made("p1", 2)));
    assert_eq!(sent(&mut provider), 0);
    let running = Instance { status: status(b"running"), ..instance("p1", 3, "u1") };
    provider.instance_changed(&set(), &target("u1").key, Ok(running));
    assert_eq!(sent(&mut provider), 1);
    provider.instance_changed(&set(), &target("u1").key, Ok(made("p2", 4)));
    assert_eq!(sent(&mut provider), 1, "it is not running any more");
}
