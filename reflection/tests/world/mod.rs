//! A small world: a home cluster, a link, and a provider cluster, all driven by one random number generator.

mod claims;
mod course;
mod home;
mod link;
mod provider;

use liquid_link::digest::Hash;
use liquid_reflection::Prefixes;
use liquid_reflection::consumer::{self, Consumer};
use liquid_reflection::digest::StatusDigest;
use liquid_reflection::frame::{ConsumerFrame, ProviderFrame, Ref};
use liquid_reflection::key::{Key, Kind, SetRef, Uid};
use liquid_reflection::provider::{Deleted, Instance, Outcome, Provider, Record, StatusFound, Step};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAMES: u64 = 6;
/// More requests than any of these small worlds needs to settle.
const MOST_REQUESTS: u32 = 10_000;
const NODES: [&str; 2] = ["liquid-a", "liquid-b"];

/// What happened, to see that histories are interesting.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) steps: u64,
    pub(crate) created: u64,
    pub(crate) reused_names: u64,
    pub(crate) link_losses: u64,
    pub(crate) consumer_restarts: u64,
    pub(crate) provider_restarts: u64,
    pub(crate) watch_gaps: u64,
    pub(crate) failed_requests: u64,
    pub(crate) owner_deletions: u64,
    pub(crate) finished: u64,
    pub(crate) renumberings: u64,
    pub(crate) endings: u64,
    pub(crate) written: u64,
    pub(crate) erased: u64,
    pub(crate) retained: u64,
    pub(crate) retired: u64,
    pub(crate) foreign: u64,
    pub(crate) outdated: u64,
    pub(crate) agreements: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.created += other.created;
        self.reused_names += other.reused_names;
        self.link_losses += other.link_losses;
        self.consumer_restarts += other.consumer_restarts;
        self.provider_restarts += other.provider_restarts;
        self.watch_gaps += other.watch_gaps;
        self.failed_requests += other.failed_requests;
        self.owner_deletions += other.owner_deletions;
        self.finished += other.finished;
        self.renumberings += other.renumberings;
        self.endings += other.endings;
        self.written += other.written;
        self.erased += other.erased;
        self.retained += other.retained;
        self.retired += other.retired;
        self.foreign += other.foreign;
        self.outdated += other.outdated;
        self.agreements += other.agreements;
    }

    pub(crate) fn every_kind_happened(&self) -> bool {
        [
            self.created,
            self.reused_names,
            self.link_losses,
            self.consumer_restarts,
            self.provider_restarts,
            self.watch_gaps,
            self.failed_requests,
            self.owner_deletions,
            self.finished,
            self.renumberings,
            self.endings,
            self.written,
            self.erased,
            self.retained,
            self.retired,
            self.foreign,
            self.outdated,
            self.agreements,
        ]
        .iter()
        .all(|count| *count > 10)
    }
}

#[derive(Debug, Clone)]
struct HomeObject {
    set: SetRef,
    uid: Uid,
    hash: Hash,
    deleting: Option<Option<u32>>,
    status: Option<Hash>,
    /// No pod refers to it.
    unwanted: bool,
}

#[derive(Debug, Clone)]
enum HomeEvent {
    Changed(Key),
    Removed {
        set: SetRef,
        key: Key,
        uid: Uid,
        grace: Option<u32>,
    },
    /// Nothing is said about it any more.
    Released {
        set: SetRef,
        key: Key,
    },
}

#[derive(Debug, Clone)]
struct Pod {
    set: SetRef,
    owner: Uid,
    instance: Instance,
}

type StoredAt = (Kind, Key);

/// A request on its way to the API server, or answered.
#[derive(Debug)]
struct Request {
    target: Ref,
    step: Step,
    answer: Option<Outcome>,
}

pub(crate) struct World {
    random: u64,
    seed: u64,
    telling: bool,
    now: Instant,
    serial: u64,
    pub(crate) counts: Counts,

    home: BTreeMap<(Kind, Key), HomeObject>,
    /// UIDs at home that are deleted, being deleted, or given up: the only ones that may be destroyed.
    released: BTreeSet<Uid>,
    /// Claims that are there according to the provider, so that pods may use them.
    provisioned: BTreeSet<Uid>,
    /// Claims with data in their volume.
    written: BTreeSet<Uid>,
    /// Claims whose owner gave them up, but not their data.
    retained: BTreeSet<Uid>,
    /// Claims whose data their owner gave up.
    erasable: BTreeSet<Uid>,
    home_events: VecDeque<HomeEvent>,
    consumer: Consumer,
    /// How home sees the addresses of the provider's pods.
    prefixes: Prefixes,
    consumer_todo: VecDeque<consumer::Action>,
    /// Namespaces the shell of the consumer was told of: pods wait for them.
    settled: BTreeSet<Uid>,

    link: bool,
    to_provider: VecDeque<ConsumerFrame>,
    to_consumer: VecDeque<ProviderFrame>,

    records: BTreeMap<StoredAt, (SetRef, Record)>,
    pods: BTreeMap<Key, Pod>,
    /// Namespaces with claims of others in them.
    foreign: BTreeSet<Arc<str>>,
    /// Statuses being read, with what was found.
    reads: Vec<(Ref, Option<StatusFound>)>,
    record_events: VecDeque<(SetRef, Key, Result<Record, Deleted>)>,
    pod_events: VecDeque<(SetRef, Key, Result<Instance, Deleted>)>,
    provider: Provider,
    requests: Vec<Request>,
    /// Requests of a process that has ended; they may still take effect.
    ghosts: Vec<(Ref, Step)>,
    /// UIDs at home for which that has happened: what they made must go away, but nobody can know it in time.
    haunted: BTreeSet<Uid>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            seed,
            telling: std::env::var_os("LIQUID_SIM_SEED").is_some(),
            now: Instant::now(),
            serial: 0,
            counts: Counts::default(),
            home: BTreeMap::new(),
            released: BTreeSet::new(),
            provisioned: BTreeSet::new(),
            written: BTreeSet::new(),
            retained: BTreeSet::new(),
            erasable: BTreeSet::new(),
            home_events: VecDeque::new(),
            consumer: Consumer::default(),
            prefixes: Prefixes::default(),
            consumer_todo: VecDeque::new(),
            settled: BTreeSet::new(),
            link: false,
            to_provider: VecDeque::new(),
            to_consumer: VecDeque::new(),
            records: BTreeMap::new(),
            pods: BTreeMap::new(),
            foreign: BTreeSet::new(),
            reads: Vec::new(),
            record_events: VecDeque::new(),
            pod_events: VecDeque::new(),
            provider: Provider::default(),
            requests: Vec::new(),
            ghosts: Vec::new(),
            haunted: BTreeSet::new(),
        };
        world.restart_consumer();
        world
    }

    fn next(&mut self) -> u64 {
        // xorshift64*: repeatable everywhere.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    pub(crate) fn chance(&mut self, one: u64, of: u64) -> bool {
        self.below(of) < one
    }

    /// Says what happens, if only one history is run.
    fn tell(&self, what: std::fmt::Arguments<'_>) {
        if self.telling {
            println!("{:>5} {what}", self.counts.steps);
        }
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn fresh_uid(&mut self, what: &str) -> Uid {
        Uid::from(format!("{what}{}", self.serial()).as_str())
    }

    fn fresh_status(&mut self) -> StatusDigest {
        let (phase, host) = (self.serial().to_string(), self.below(200));
        let status = json!({"phase": phase, "podIPs": [{"ip": format!("10.244.0.{host}")}]});
        StatusDigest::of(&status).unwrap()
    }

    fn fresh_hash(&mut self) -> Hash {
        Hash::of(&self.serial().to_be_bytes())
    }

    pub(crate) fn random_step(&mut self) {
        self.counts.steps += 1;
        let pause = self.below(300);
        self.now += Duration::from_millis(pause);
        match self.below(100) {
            0..9 => self.user_step(),
            9..12 => self.claim_step(),
            12..14 => self.cut_or_join(),
            14..15 => self.rare_step(),
            15..17 => self.owner_step(),
            17..28 => self.kubelet_step(),
            28..30 => self.volume_step(),
            30..45 => self.deliver_home_event(),
            45..55 => self.consumer_step(),
            55..68 => self.deliver_frame(),
            68..80 => self.request_step(),
            80..95 => self.deliver_watch_event(),
            95 => self.ghost_step(),
            96 => self.foreign_step(),
            97 | 98 => self.read_step(),
            _ => self.provider.handle_timeout(self.now),
        }
        self.drain();
    }
}
