//! What is known of claims and their volumes, and what follows from it. Pure.
//!
//! A claim becomes a provider's when its first pod is to run there. Until a PersistentVolume stands for it no pod can have used
//! it, and it may be taken back. After that, two things end it: its deletion with the policy to delete its data, or the mark
//! that asks for the same. That something is *not* known ends nothing.

use super::objects::{Claim, Place, Volume, amount, doubt, volume};
use bytes::Bytes;
use liquid_crds::vocabulary::{PARAMETER_REMOTE_CLASS, STORAGE_DRIVER};
use liquid_link::digest::Hash;
use liquid_reflection::claim::{ClaimBody, ClaimReport, remote_name, volume_name};
use liquid_reflection::frame::Refusal;
use liquid_reflection::{Key, Uid};
use liquid_runtime::storage_classes::StorageClasses;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a provider shall have, and what its pods find: all of it, each time something of it changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ProviderClaims {
    /// Everything is known: what is not named is not wanted.
    pub(crate) complete: bool,
    /// By the names both sides use.
    pub(crate) wanted: BTreeMap<Key, Wish>,
    /// By the names at home, of claims that pods in this provider refer to.
    pub(crate) resolved: BTreeMap<Key, Resolution>,
}

/// A claim at home, and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) uid: Uid,
    /// Its name at home.
    pub(crate) name: Arc<str>,
    pub(crate) state: WantedState,
}

/// What is wanted of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedState {
    /// That it is there.
    Present { hash: Hash, body: Bytes },
    /// That it ends, with its data.
    Deleting,
}

/// What a claim is to pods in a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// It has this name there.
    Ready(String),
    /// It is not, but may become something.
    Waiting(String),
    /// It is of no use there.
    Refused(String),
}

/// What a mirror tells.
#[derive(Debug)]
pub(crate) enum ClaimNews {
    /// The provider has the claim.
    Settled(Uid),
    /// It does not take it, or a change of it.
    Refused(Uid, Refusal),
    /// It has nothing of it any more.
    Gone(Uid),
    /// What has become of it there.
    Report(Uid, ClaimReport),
    /// Pods refer to this claim at home.
    Follow(Key),
    /// No more.
    Unfollow(Key),
}

/// The next thing to do for a claim.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Make its volume.
    Create(Value),
    /// Put the finalizer back on the volume, which Liquid was uninstalled without.
    Hold(Volume),
    /// Whether making it took effect is not known.
    Find(String),
    /// The provider has nothing of it any more: delete the volume.
    Delete(Volume),
    /// Let the volume go: nothing is said to the provider.
    LetGo(Volume),
    /// Its volume is larger by now.
    Grow(Volume, String),
    /// Show in its status what has become of its volume.
    Show(Box<Claim>, Value),
    /// Let the scheduler choose another node.
    Reschedule(Box<Claim>),
    /// Tell its owner why it gets no volume.
    Explain(Box<Claim>, Refusal),
}

/// A class of claims of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnClass {
    /// What providers call the class of its volumes.
    remote: Option<String>,
    policy: String,
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Provider {
    pub(super) cluster: String,
    /// Its word is not waited for any more.
    pub(super) gone: bool,
}

/// What is behind a virtual node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behind {
    /// The peer.
    pub(crate) peer: String,
    /// Certain nodes of the peer.
    pub(crate) placed: bool,
}

/// Volumes are deleted before they are released by hand only, and few at a time: 100 bytes for each.
const MAX_BEREFT: usize = 10_000;

/// What a provider was asked for, and has said.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    /// The claim at home it is for now.
    claim: Uid,
    /// The names both sides use.
    key: Key,
    /// A volume stands for it, or has: it may have data.
    bound: bool,
    /// It is to end.
    ending: bool,
    /// The provider has it, and what it tells of it.
    settled: bool,
    report: Option<ClaimReport>,
    refused: Option<Refusal>,
    /// Nothing of it is left there.
    gone: bool,
}

impl Asked {
    /// What is known of it in the provider, if that has it as it is wanted.
    fn answer(&self) -> Option<&ClaimReport> {
        self.report.as_ref().filter(|_| self.settled && !self.ending)
    }
}

/// Why a claim gets no volume where it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The provider does not want it.
    Refused,
    /// The provider says nothing, or that it cannot yet.
    Silent,
}

fn silent(peer: &str) -> Refusal {
    let message = format!("provider {peer} does not answer: the scheduler may choose another node");
    Refusal { reason: "ProviderNotResponding".to_owned(), message }
}

fn strayed(volume: &Volume) -> Refusal {
    let Volume { name, home, .. } = volume;
    let message = format!(
        "PersistentVolume {name} has data of namespace {home}: claims of other namespaces cannot have it; nothing is done to it"
    );
    Refusal { reason: "VolumeOfAnotherNamespace".to_owned(), message }
}

fn doubtful(report: &ClaimReport, least: Option<&str>) -> Option<Refusal> {
    doubt(report, least).map(|message| Refusal { reason: "VolumeSizeInvalid".to_owned(), message })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Creating {
    UnderWay,
    Unknown,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Picture {
    classes: Option<BTreeMap<String, OwnClass>>,
    nodes: Option<BTreeMap<String, Behind>>,
    providers: BTreeMap<String, Provider>,
    claims: BTreeMap<Uid, Claim>,
    names: BTreeMap<Key, Uid>,
    volumes: BTreeMap<Uid, Volume>,
    /// By the UID by which the provider knows it, and by peer.
    asked: BTreeMap<(Uid, String), Asked>,
    /// Claims that pods refer to, and the peers in which these pods are.
    followed: BTreeMap<Key, BTreeSet<String>>,
    /// Claims whose volume went before them. They may not be known yet, or be heard of once more: watches
    /// keep no order among each other, and may begin again with what was before.
    bereft: BTreeSet<Uid>,
    claims_listed: bool,
    volumes_listed: bool,
    /// Claims whose volume is being made, or may have been.
    creating: BTreeMap<Uid, Creating>,
    /// What the owners of claims were told last.
    explained: BTreeMap<Uid, String>,
    /// Claims that were refused for long enough.
    impatient: BTreeSet<Uid>,
    changes: Changes,
}

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Claims.
    pub(super) uids: BTreeSet<Uid>,
    /// Claims, by names that pods may refer to.
    pub(super) names: BTreeSet<Key>,
}

impl Picture {
    /// The storage classes of the cluster. Returns whether other claims than before may be ours.
    pub(super) fn set_classes(&mut self, all: &StorageClasses) -> bool {
        let own = all.iter().filter(|(_, class)| class.provisioner == STORAGE_DRIVER);
        let own = own.map(|(name, class)| {
            let remote =
                class.parameters.get(PARAMETER_REMOTE_CLASS).filter(|name| !name.is_empty()).cloned();
            (name.to_owned(), OwnClass { remote, policy: class.reclaim_policy.clone() })
        });
        let own: BTreeMap<String, OwnClass> = own.collect();
        let known = self.classes.as_ref();
        let more = known.is_none_or(|known| own.keys().any(|name| !known.contains_key(name)));
        self.classes = Some(own);
        self.reconcile_all();
        more
    }

    pub(super) fn set_nodes(&mut self, nodes: BTreeMap<String, Behind>) {
        if self.nodes.as_ref() != Some(&nodes) {
            self.nodes = Some(nodes);
            self.reconcile_all();
        }
    }

    pub(super) fn set_provider(&mut self, peer: &str, provider: Option<Provider>) {
        if self.providers.get(peer) == provider.as_ref() {
            return;
        }
        match provider {
            Some(provider) => drop(self.providers.insert(peer.to_owned(), provider)),
            None => {
                self.providers.remove(peer);
                self.asked.retain(|(_, at), _| at != peer);
                self.followed.retain(|_, peers| {
                    peers.remove(peer);
                    !peers.is_empty()
                });
            }
        }
        self.reconcile_all();
    }

    /// Whether a claim of this class, of these names, matters.
    pub(super) fn concerns(&self, claim: &Claim) -> bool {
        let own = self.classes.as_ref().is_some_and(|own| own.contains_key(&claim.storage_class));
        own || claim.ours || self.volumes.contains_key(&claim.uid) || self.followed.contains_key(&claim.key)
    }

    pub(super) fn claim_applied(&mut self, claim: Claim) {
        let earlier = self.names.insert(claim.key.clone(), claim.uid.clone());
        if let Some(earlier) = earlier.filter(|earlier| *earlier != claim.uid) {
            self.claims.remove(&earlier);
            self.reconcile(&earlier);
        }
        let uid = claim.uid.clone();
        if claim.selected_node.is_none() {
            self.impatient.remove(&uid);
        }
        self.claims.insert(uid.clone(), claim);
        self.reconcile(&uid);
    }

    pub(super) fn claim_deleted(&mut self, key: &Key, uid: &Uid) {
        if self.names.get(key) == Some(uid) {
            self.names.remove(key);
        }
        self.changes.names.insert(key.clone());
        if self.claims.remove(uid).is_some() {
            self.explained.remove(uid);
            self.impatient.remove(uid);
            self.reconcile(uid);
        }
    }

    /// All claims were listed; those there are not `seen` are gone.
    pub(super) fn claims_listed(&mut self, seen: impl Fn(&Key) -> bool) {
        let gone: Vec<_> =
            self.names.iter().filter(|(key, _)| !seen(key)).map(|(k, u)| (k.clone(), u.clone())).collect();
        for (key, uid) in gone {
            self.claim_deleted(&key, &uid);
        }
        self.claims_listed = true;
        self.reconcile_all();
    }

    pub(super) fn volume_applied(&mut self, volume: Volume) {
        let uid = volume.uid.clone();
        let elsewhere =
            self.volumes.extract_if(.., |other, known| *other != uid && known.name == volume.name);
        for (earlier, _) in elsewhere.collect::<Vec<_>>() {
            self.reconcile(&earlier);
        }
        self.creating.remove(&uid);
        self.volumes.insert(uid.clone(), volume);
        self.reconcile(&uid);
    }

    /// The PersistentVolume with this name is gone.
    pub(super) fn volume_deleted(&mut self, name: &str) {
        let gone = self.volumes.extract_if(.., |_, volume| volume.name == name);
        for (uid, volume) in gone.collect::<Vec<_>>() {
            if !volume.released || self.claims.contains_key(&uid) {
                self.bereft.insert(uid.clone());
                if self.bereft.len() > MAX_BEREFT {
                    self.bereft.pop_first();
                }
            }
            self.reconcile(&uid);
        }
    }

    /// All PersistentVolumes were listed; those there are not `seen` are gone.
    pub(super) fn volumes_listed(&mut self, seen: impl Fn(&str) -> bool) {
        let gone: Vec<String> =
            self.volumes.values().map(|v| v.name.clone()).filter(|name| !seen(name)).collect();
        for name in gone {
            self.volume_deleted(&name);
        }
        self.volumes_listed = true;
        self.reconcile_all();
    }

    /// A mirror tells something.
    pub(super) fn told(&mut self, peer: &str, news: ClaimNews) {
        let mut of = |uid: &Uid, change: &dyn Fn(&mut Asked)| {
            if let Some(asked) = self.asked.get_mut(&(uid.clone(), peer.to_owned())) {
                change(asked);
                let claim = asked.claim.clone();
                self.reconcile(&claim);
            }
        };
        match news {
            ClaimNews::Settled(uid) => of(&uid, &|asked| {
                asked.settled = !asked.ending;
                asked.refused = None;
            }),
            ClaimNews::Refused(uid, refusal) => of(&uid, &|asked| asked.refused = Some(refusal.clone())),
            ClaimNews::Report(uid, report) => of(&uid, &|asked| asked.report = Some(report.clone())),
            ClaimNews::Gone(uid) => of(&uid, &|asked| asked.gone = asked.ending),
            ClaimNews::Follow(key) => {
                self.changes.names.insert(key.clone());
                self.followed.entry(key).or_default().insert(peer.to_owned());
            }
            ClaimNews::Unfollow(key) => {
                self.changes.names.insert(key.clone());
                if let Some(peers) = self.followed.get_mut(&key) {
                    peers.remove(peer);
                    if peers.is_empty() {
                        self.followed.remove(&key);
                    }
                }
                self.forget_unconcerned(&key);
            }
        }
    }

    /// A claim of that name is not known.
    pub(super) fn is_unknown(&self, key: &Key) -> bool {
        !self.names.contains_key(key)
    }

    fn forget_unconcerned(&mut self, key: &Key) {
        let Some(uid) = self.names.get(key).cloned() else { return };
        if self.claims.get(&uid).is_some_and(|claim| !self.concerns(claim)) {
            self.claim_deleted(key, &uid);
        }
    }

    /// Whether everything has been read.
    pub(super) fn is_known(&self) -> bool {
        self.classes.is_some() && self.nodes.is_some() && self.claims_listed && self.volumes_listed
    }

    fn reconcile_all(&mut self) {
        let uids: BTreeSet<Uid> = self
            .claims
            .keys()
            .chain(self.volumes.keys())
            .chain(self.asked.values().map(|asked| &asked.claim))
            .cloned()
            .collect();
        for uid in uids {
            self.reconcile(&uid);
        }
    }

    /// The peer with this identity, if its word can be had.
    fn peer_of(&self, cluster: &str) -> Option<&str> {
        let found = self.providers.iter().find(|(_, provider)| provider.cluster == cluster && !provider.gone);
        found.map(|(peer, _)| peer.as_str())
    }

    /// Where a claim without a volume is wanted.
    fn chosen(&self, claim: &Claim) -> Option<&str> {
        let own = self.classes.as_ref()?.contains_key(&claim.storage_class);
        let free = own && claim.volume.is_none() && !claim.deleting && claim.unsupported.is_none();
        let peer = &self.nodes.as_ref()?.get(claim.selected_node.as_deref().filter(|_| free)?)?.peer;
        self.providers.get(peer).filter(|provider| !provider.gone).map(|_| peer.as_str())
    }

    /// Whether the owner of the claim behind `volume` has given up its data.
    fn is_given_up(&self, volume: &Volume) -> bool {
        // A PersistentVolume that is deleted before its claim is released like any other when the claim is gone. One that is
        // for no claim is kept for the next, unless somebody asks for its deletion.
        let over = volume.released || (volume.free && volume.marked);
        volume.delete_data && over && !self.claims.contains_key(&volume.uid) && self.claims_listed
    }

    /// Brings in line what is asked of providers about one claim.
    fn reconcile(&mut self, uid: &Uid) {
        self.changes.uids.insert(uid.clone());
        let key = self
            .claims
            .get(uid)
            .map(|claim| &claim.key)
            .or(self.volumes.get(uid).map(|volume| &volume.claim));
        self.changes.names.extend(key.cloned());
        if !self.is_known() || self.creating.contains_key(uid) {
            return;
        }
        let (claim, volume) = (self.claims.get(uid), self.volumes.get(uid));
        // Peer, names there, whether it is to end.
        let wanted: Option<(String, Key, bool)> = match (claim, volume) {
            (_, Some(volume)) => {
                let ending = self.is_given_up(volume);
                let key = Key { namespace: volume.home.clone(), name: volume.remote.as_str().into() };
                let said = ending || (claim.is_some() && !volume.is_strayed());
                self.peer_of(&volume.cluster).filter(|_| said).map(|peer| (peer.to_owned(), key, ending))
            }
            (Some(claim), None) => self.chosen(claim).map(|peer| {
                let name = remote_name(&claim.key.name, uid);
                (
                    peer.to_owned(),
                    Key { namespace: claim.key.namespace.clone(), name: name.as_str().into() },
                    false,
                )
            }),
            (None, None) => None,
        };
        let has_volume = volume.is_some();
        let origin = volume.map_or(uid, |volume| &volume.origin).clone();
        let everywhere: Vec<String> = self
            .asked
            .range((origin.clone(), String::new())..)
            .take_while(|((of, _), _)| *of == origin)
            .map(|((_, peer), _)| peer.clone())
            .collect();
        for peer in everywhere {
            let at = (origin.clone(), peer);
            // What was made for this claim, and is another one's by now, is not its matter.
            let Some(asked) = self.asked.get_mut(&at).filter(|asked| asked.claim == *uid) else { continue };
            let there = self.providers.get(&at.1).map(|provider| &provider.cluster);
            asked.bound |= volume.is_some_and(|volume| Some(&volume.cluster) == there);
            match &wanted {
                Some((peer, _, ending)) if *peer == at.1 => {
                    // What was taken back is asked for anew when it is gone: what is still told is about then. Where a
                    // volume stands for it, only that says whether it ends.
                    asked.ending = *ending || (asked.ending && !asked.gone && !has_volume);
                    if !asked.ending && asked.gone {
                        self.asked.remove(&at);
                    }
                }
                _ if asked.bound || asked.gone => drop(self.asked.remove(&at)),
                _ => {
                    asked.ending = true;
                    asked.settled = false;
                }
            }
        }
        if let Some((peer, key, ending)) = wanted {
            // What was asked for the claim that had this volume before is not asked for any more.
            if self.asked.get(&(origin.clone(), peer.clone())).is_some_and(|asked| asked.claim != *uid) {
                self.asked.remove(&(origin.clone(), peer.clone()));
            }
            self.asked.entry((origin, peer)).or_insert(Asked {
                claim: uid.clone(),
                key,
                bound: has_volume || self.bereft.contains(uid),
                ending,
                settled: false,
                report: None,
                refused: None,
                gone: false,
            });
        }
        if claim.is_none() && volume.is_none() {
            self.explained.remove(uid);
        }
    }

    /// What a provider shall have of a claim, and under which names.
    pub(super) fn wish(&self, peer: &str, uid: &Uid) -> Option<(Key, Wish)> {
        let origin = self.volumes.get(uid).map_or(uid, |volume| &volume.origin).clone();
        let asked = self.asked.get(&(origin.clone(), peer.to_owned()));
        let asked = asked.filter(|asked| !asked.gone && asked.claim == *uid)?;
        let state = if asked.ending { WantedState::Deleting } else { self.body(uid)? };
        let claim = self.claims.get(uid).map(|claim| &claim.key);
        let home = claim.or(self.volumes.get(uid).map(|volume| &volume.claim)).unwrap_or(&asked.key);
        Some((asked.key.clone(), Wish { uid: origin, name: home.name.clone(), state }))
    }

    /// What the claim of these names at home is to pods in `peer`; `None` if none of them refers to it.
    pub(super) fn resolution(&self, peer: &str, key: &Key) -> Option<Resolution> {
        self.followed.get(key).filter(|peers| peers.contains(peer)).map(|_| self.resolve(peer, key))
    }

    /// What has changed since the last call.
    pub(super) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Looks at everything again.
    pub(super) fn look_at_all(&mut self) {
        self.reconcile_all();
        self.changes.names.extend(self.followed.keys().cloned());
    }

    /// Looks at a claim again.
    pub(super) fn look_again(&mut self, uid: &Uid) {
        self.changes.uids.insert(uid.clone());
    }

    fn body(&self, uid: &Uid) -> Option<WantedState> {
        let (claim, volume) = (self.claims.get(uid)?, self.volumes.get(uid));
        let class = match volume {
            Some(volume) => volume.class.clone(),
            None => self.classes.as_ref()?.get(&claim.storage_class)?.remote.clone(),
        };
        let mut wanted = claim.wanted.clone();
        wanted.class = class;
        let hash: Hash = wanted.hash();
        let body = json!(ClaimBody { wanted, bound: volume.is_some() });
        Some(WantedState::Present { hash, body: Bytes::from(body.to_string()) })
    }

    /// What a claim is to pods in `peer`.
    fn resolve(&self, peer: &str, key: &Key) -> Resolution {
        let name = &key.name;
        let Some(claim) = self.names.get(key).and_then(|uid| self.claims.get(uid)) else {
            return Resolution::Waiting(format!("PersistentVolumeClaim {name} is not there"));
        };
        match (self.volumes.get(&claim.uid), &claim.volume) {
            (Some(volume), _) if volume.is_strayed() => Resolution::Refused(strayed(volume).message),
            (Some(volume), _) if self.peer_of(&volume.cluster) == Some(peer) => {
                Resolution::Ready(volume.remote.clone())
            }
            (Some(volume), _) => Resolution::Refused(format!(
                "the volume of PersistentVolumeClaim {name} is in cluster {}",
                volume.peer
            )),
            (None, Some(volume)) if *volume != volume_name(&claim.uid) => Resolution::Refused(format!(
                "PersistentVolumeClaim {name} is bound to volume {volume} of this cluster, which is not in the provider"
            )),
            (None, _) => {
                Resolution::Waiting(format!("PersistentVolumeClaim {name} is not bound to a volume"))
            }
        }
    }

    /// The next thing to do for a claim.
    pub(super) fn next_step(&self, uid: &Uid) -> Option<Step> {
        if !self.is_known() {
            return None;
        }
        match self.creating.get(uid) {
            Some(Creating::Unknown) => return Some(Step::Find(volume_name(uid))),
            Some(Creating::UnderWay) => return None,
            None => {}
        }
        let claim = self.claims.get(uid);
        match (self.volumes.get(uid), claim) {
            (Some(volume), _) => self.next_for_volume(volume, claim),
            (None, Some(claim)) => self.next_for_claim(claim),
            (None, None) => None,
        }
    }

    fn next_for_volume(&self, volume: &Volume, claim: Option<&Claim>) -> Option<Step> {
        let peer = self.peer_of(&volume.cluster);
        let asked = peer.and_then(|peer| self.asked.get(&(volume.origin.clone(), peer.to_owned())));
        if self.is_given_up(volume) && asked.is_some_and(|asked| asked.gone) {
            return Some(Step::Delete(volume.clone()));
        }
        // Whoever deletes it without its data, or when nobody can be told, takes leave of it here.
        let unheard = peer.is_none() || !volume.delete_data || (volume.free && !volume.marked);
        let unused = volume.released || volume.free;
        if volume.deleting && unused && claim.is_none() && unheard && volume.is_held() {
            return Some(Step::LetGo(volume.clone()));
        }
        if !volume.deleting && !volume.is_held() {
            return Some(Step::Hold(volume.clone()));
        }
        let explain = |claim: &Claim, refusal: Refusal| {
            let new = self.is_new(claim, &refusal);
            new.then(|| Step::Explain(Box::new(claim.clone()), refusal))
        };
        if volume.is_strayed() {
            return explain(claim?, strayed(volume));
        }
        let (asked, claim) = (asked?, claim?);
        let doubt = || asked.report.as_ref().and_then(|report| doubtful(report, volume.capacity.as_deref()));
        if let Some(step) = asked.refused.clone().or_else(doubt).and_then(|why| explain(claim, why)) {
            return Some(step);
        }
        let report = asked.report.as_ref()?;
        let size = |text: Option<&str>| amount(text);
        if let Some(capacity) = &report.capacity
            && size(Some(capacity)) > size(volume.capacity.as_deref())
        {
            return Some(Step::Grow(volume.clone(), capacity.clone()));
        }
        // Kubernetes shows the size a volume has when it is bound.
        let bound = claim.volume.as_ref() == Some(&volume.name) && claim.capacity.is_some();
        let larger = size(volume.capacity.as_deref()) > size(claim.capacity.as_deref());
        if bound && (larger || report.conditions != claim.conditions) {
            let status = json!({
                "capacity": { "storage": if larger { &volume.capacity } else { &claim.capacity } },
                "conditions": report.conditions,
            });
            return Some(Step::Show(Box::new(claim.clone()), status));
        }
        None
    }

    fn next_for_claim(&self, claim: &Claim) -> Option<Step> {
        if let Some(why) = &claim.unsupported {
            let node = self.nodes.as_ref()?.get(claim.selected_node.as_deref()?);
            let own = self.classes.as_ref()?.contains_key(&claim.storage_class);
            let refusal = Refusal { reason: "ProvisioningFailed".to_owned(), message: why.clone() };
            let tell = own && claim.volume.is_none() && node.is_some() && self.is_new(claim, &refusal);
            return tell.then(|| Step::Explain(Box::new(claim.clone()), refusal));
        }
        let peer = self.chosen(claim)?;
        let asked = self.asked.get(&(claim.uid.clone(), peer.to_owned()))?;
        let explain = |refusal: Refusal| Some(Step::Explain(Box::new(claim.clone()), refusal));
        let impatient = self.impatient.contains(&claim.uid);
        if let Some(refusal) = &asked.refused {
            if self.is_new(claim, refusal) {
                return explain(refusal.clone());
            }
            return impatient.then(|| Step::Reschedule(Box::new(claim.clone())));
        }
        let Some(report) = asked.answer() else {
            let silent = silent(peer);
            return match impatient {
                true if self.is_new(claim, &silent) => explain(silent),
                true => Some(Step::Reschedule(Box::new(claim.clone()))),
                false => None,
            };
        };
        if let Some(doubt) =
            doubtful(report, Some(&claim.wanted.storage)).filter(|doubt| self.is_new(claim, doubt))
        {
            return explain(doubt);
        }
        let class = self.classes.as_ref()?.get(&claim.storage_class)?;
        let node = claim.selected_node.as_ref().filter(|node| {
            self.nodes.as_ref().and_then(|nodes| nodes.get(*node)).is_some_and(|node| node.placed)
        });
        let cluster = self.providers.get(peer)?.cluster.clone();
        let place = Place { cluster, peer: peer.to_owned(), node: node.cloned() };
        let made = volume(claim, class.remote.as_deref(), &class.policy, &place, &asked.key.name, report);
        Some(Step::Create(made))
    }

    fn is_new(&self, claim: &Claim, refusal: &Refusal) -> bool {
        self.explained.get(&claim.uid) != Some(&refusal.message)
    }

    /// Why another node may help a claim without a volume, if so.
    pub(super) fn stuck(&self, uid: &Uid) -> Option<Stuck> {
        let claim = self.claims.get(uid).filter(|_| !self.volumes.contains_key(uid))?;
        let asked = self.asked.get(&(uid.clone(), self.chosen(claim)?.to_owned()))?;
        match &asked.refused {
            // It means to do it, and may be gone before it does.
            Some(refusal) if refusal.reason == "ApiUnavailable" => Some(Stuck::Silent),
            Some(_) => Some(Stuck::Refused),
            None => asked.answer().is_none().then_some(Stuck::Silent),
        }
    }

    /// Whether a claim waits for a volume.
    pub(super) fn is_waiting(&self, uid: &Uid) -> bool {
        self.claims.contains_key(uid) && !self.volumes.contains_key(uid)
    }

    /// Whether it was refused for long enough.
    pub(super) fn is_impatient(&self, uid: &Uid) -> bool {
        self.impatient.contains(uid)
    }

    /// It was stuck for long enough.
    pub(super) fn give_up_waiting(&mut self, uid: &Uid) {
        if self.stuck(uid).is_some() {
            self.impatient.insert(uid.clone());
            self.changes.uids.insert(uid.clone());
        }
    }

    /// A step begins.
    pub(super) fn begun(&mut self, uid: &Uid, step: &Step) {
        match step {
            Step::Create(_) | Step::Find(_) => drop(self.creating.insert(uid.clone(), Creating::UnderWay)),
            Step::Explain(_, refusal) => drop(self.explained.insert(uid.clone(), refusal.message.clone())),
            Step::Hold(_)
            | Step::Delete(_)
            | Step::LetGo(_)
            | Step::Grow(..)
            | Step::Show(..)
            | Step::Reschedule(_) => {}
        }
    }

    /// Whether the volume of a claim exists is not known: making it failed, or looking for it.
    pub(super) fn created_unknown(&mut self, uid: &Uid) {
        self.creating.insert(uid.clone(), Creating::Unknown);
    }

    /// The API server does not take the volume of a claim: that is no better than a refusal of the provider.
    pub(super) fn create_refused(&mut self, uid: &Uid, message: String) {
        let peer = self.claims.get(uid).and_then(|claim| self.chosen(claim)).map(str::to_owned);
        if let Some(asked) = peer.and_then(|peer| self.asked.get_mut(&(uid.clone(), peer))) {
            asked.refused = Some(Refusal { reason: "ProvisioningFailed".to_owned(), message });
        }
        self.not_created(uid);
    }

    /// The volume of a claim was not made.
    pub(super) fn not_created(&mut self, uid: &Uid) {
        self.creating.remove(uid);
        self.reconcile(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::vocabulary::FINALIZER_VOLUME;
    use liquid_runtime::storage_classes::Class;
    use proptest::prelude::*;

    const MILAN: &str = "milan";

    fn uid() -> Uid {
        Uid::from("3f2c0a44-8c1e")
    }

    fn key() -> Key {
        Key::new("shop", "data")
    }

    fn claim(node: Option<&str>) -> Claim {
        Claim {
            key: key(),
            uid: uid(),
            storage_class: "liquid".to_owned(),
            ours: true,
            selected_node: node.map(str::to_owned),
            volume: None,
            deleting: false,
            wanted: liquid_reflection::claim::WantedClaim {
                name: "data".to_owned(),
                access_modes: vec!["ReadWriteOnce".to_owned()],
                storage: "1Gi".to_owned(),
                ..Default::default()
            },
            unsupported: None,
            capacity: None,
            conditions: Vec::new(),
        }
    }

    fn volume() -> Volume {
        Volume {
            name: volume_name(&uid()),
            object: "v1".to_owned(),
            home: "shop".into(),
            claim: key(),
            uid: uid(),
            free: false,
            origin: uid(),
            cluster: "c-milan".to_owned(),
            peer: MILAN.to_owned(),
            namespace: "shop-turin".to_owned(),
            remote: "data-3f2c0a44".to_owned(),
            class: None,
            capacity: Some("1Gi".to_owned()),
            released: false,
            delete_data: true,
            marked: false,
            deleting: false,
            finalizers: vec!["x".to_owned(), FINALIZER_VOLUME.to_owned()],
        }
    }

    fn report(capacity: Option<&str>) -> ClaimReport {
        let capacity = capacity.map(str::to_owned);
        ClaimReport { namespace: "shop-turin".to_owned(), capacity, ..ClaimReport::default() }
    }

    fn virtual_nodes() -> BTreeMap<String, Behind> {
        let node = |peer: &str| (format!("liquid-{peer}"), Behind { peer: peer.to_owned(), placed: false });
        [MILAN, "ohio"].map(node).into()
    }

    fn picture() -> Picture {
        let mut picture = Picture::default();
        let class = Class {
            provisioner: STORAGE_DRIVER.to_owned(),
            parameters: BTreeMap::from([(PARAMETER_REMOTE_CLASS.to_owned(), "fast".to_owned())]),
            reclaim_policy: "Retain".to_owned(),
            ..Class::default()
        };
        picture.set_classes(&[("liquid".to_owned(), class)].into_iter().collect());
        picture.set_nodes(virtual_nodes());
        for peer in [MILAN, "ohio"] {
            picture.set_provider(peer, Some(Provider { cluster: format!("c-{peer}"), gone: false }));
        }
        picture.claims_listed(|_| true);
        picture.volumes_listed(|_| true);
        picture
    }

    fn state(picture: &Picture, peer: &str) -> Option<&'static str> {
        picture.wish(peer, &uid()).map(|(_, wish)| match wish.state {
            WantedState::Present { .. } => "present",
            WantedState::Deleting => "deleting",
        })
    }

    fn body(picture: &Picture) -> ClaimBody {
        match picture.wish(MILAN, &uid()).unwrap().1.state {
            WantedState::Present { body, .. } => serde_json::from_slice(&body).unwrap(),
            WantedState::Deleting => panic!("it ends"),
        }
    }

    #[test]
    fn a_claim_is_asked_for_where_its_first_pod_goes_and_gets_a_volume_when_it_is_there() {
        let mut picture = picture();
        picture.claim_applied(claim(None));
        assert_eq!(state(&picture, MILAN), None, "no pod yet");
        picture.claim_applied(claim(Some("physical")));
        assert_eq!(state(&picture, MILAN), None, "a node of this cluster");
        picture.claim_applied(claim(Some("liquid-milan")));
        assert_eq!((state(&picture, MILAN), state(&picture, "ohio")), (Some("present"), None));
        let ClaimBody { wanted, bound } = body(&picture);
        assert_eq!((wanted.class.as_deref(), bound), (Some("fast"), false));

        assert_eq!(picture.next_step(&uid()), None);
        picture.told(MILAN, ClaimNews::Settled(uid()));
        assert_eq!(picture.next_step(&uid()), None, "where it is there, is not known");
        picture.told(MILAN, ClaimNews::Report(uid(), report(None)));
        let Some(Step::Create(made)) = picture.next_step(&uid()) else { panic!("not made") };
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(made["spec"]["csi"]["volumeAttributes"]["namespace"], "shop-turin");

        picture.volume_applied(volume());
        assert!(body(&picture).bound, "if it is gone there by now, its data is");
        assert_eq!(picture.next_step(&uid()), None);
    }

    #[test]
    fn what_no_pod_has_used_is_taken_back_and_asked_for_anew_only_when_it_is_gone() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        picture.told(MILAN, ClaimNews::Settled(uid()));
        picture.told(MILAN, ClaimNews::Report(uid(), report(None)));
        picture.claim_applied(claim(Some("liquid-ohio")));
        assert_eq!((state(&picture, MILAN), state(&picture, "ohio")), (Some("deleting"), Some("present")));

        picture.claim_applied(claim(Some("liquid-milan")));
        assert_eq!(state(&picture, MILAN), Some("deleting"), "what is told now is about then");
        picture.told(MILAN, ClaimNews::Settled(uid()));
        assert_eq!(picture.next_step(&uid()), None);
        picture.told(MILAN, ClaimNews::Gone(uid()));
        assert_eq!(state(&picture, MILAN), Some("present"));
        assert_eq!(picture.next_step(&uid()), None, "not settled yet");

        picture.told("ohio", ClaimNews::Gone(uid()));
        assert_eq!(state(&picture, "ohio"), None);
        picture.claim_deleted(&key(), &uid());
        assert_eq!(state(&picture, MILAN), Some("deleting"));
    }

    #[test]
    fn a_volume_that_turns_up_for_what_was_taken_back_keeps_its_data() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        picture.claim_applied(claim(None));
        assert_eq!(state(&picture, MILAN), Some("deleting"));
        picture.volume_applied(volume());
        assert_eq!(state(&picture, MILAN), Some("present"), "an earlier process has made it");
        picture.told(MILAN, ClaimNews::Gone(uid()));
        assert!(body(&picture).bound, "nobody may make an empty one in its place");
    }

    #[test]
    fn data_is_deleted_with_its_claim_if_the_policy_says_so_and_the_volume_when_that_is_done() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        picture.volume_applied(volume());
        picture.claim_deleted(&key(), &uid());
        assert_ne!(
            state(&picture, MILAN),
            Some("deleting"),
            "Kubernetes has not said that the volume is released"
        );
        picture.volume_applied(Volume { released: true, ..volume() });
        assert_eq!((state(&picture, MILAN), picture.next_step(&uid())), (Some("deleting"), None));
        picture.told(MILAN, ClaimNews::Gone(uid()));
        assert_eq!(picture.next_step(&uid()), Some(Step::Delete(Volume { released: true, ..volume() })));
        picture.volume_deleted(&volume_name(&uid()));
        assert_eq!((state(&picture, MILAN), picture.next_step(&uid())), (None, None));
    }

    #[test]
    fn data_that_is_retained_or_of_which_nobody_can_be_told_stays() {
        let retained = Volume { released: true, delete_data: false, ..volume() };
        let mut kept = picture();
        kept.volume_applied(retained.clone());
        assert_eq!((state(&kept, MILAN), kept.next_step(&uid())), (None, None));
        let deleted = Volume { deleting: true, ..retained };
        kept.volume_applied(deleted.clone());
        assert_eq!((state(&kept, MILAN), kept.next_step(&uid())), (None, Some(Step::LetGo(deleted))));

        let mut lost = picture();
        let released = Volume { released: true, ..volume() };
        lost.set_provider(MILAN, Some(Provider { cluster: "c-milan".to_owned(), gone: true }));
        lost.volume_applied(released.clone());
        assert_eq!((state(&lost, MILAN), lost.next_step(&uid())), (None, None));
        let deleted = Volume { deleting: true, ..released };
        lost.volume_applied(deleted.clone());
        assert_eq!(lost.next_step(&uid()), Some(Step::LetGo(deleted)));
    }

    #[test]
    fn a_volume_that_was_retained_may_be_bound_to_another_claim() {
        let mut picture = picture();
        picture.volume_applied(Volume { released: true, delete_data: false, ..volume() });
        let another = Uid::from("another");
        picture.claim_applied(Claim {
            uid: another.clone(),
            volume: Some(volume_name(&uid())),
            ..claim(None)
        });
        picture.volume_applied(Volume { uid: another.clone(), delete_data: false, ..volume() });
        let (key, wish) = picture.wish(MILAN, &another).unwrap();
        assert_eq!((&*key.name, &wish.uid), ("data-3f2c0a44", &uid()), "the provider knows it as before");
        assert!(matches!(wish.state, WantedState::Present { .. }));
        assert_eq!(picture.wish(MILAN, &uid()), None);
        picture.told(MILAN, ClaimNews::Report(uid(), report(Some("2Gi"))));
        assert!(matches!(picture.next_step(&another), Some(Step::Grow(..))));

        picture.claim_deleted(&key_of("data"), &another);
        let released = Volume { uid: another.clone(), released: true, ..volume() };
        picture.volume_applied(released);
        assert_eq!(picture.wish(MILAN, &another).map(|(_, wish)| wish.state), Some(WantedState::Deleting));
    }

    #[test]
    fn a_volume_that_is_taken_off_a_claim_that_stays_serves_the_next_one() {
        let mut picture = picture();
        let (second, third) = (Uid::from("second"), Uid::from("third"));
        for uid in [&second, &third] {
            let volume = Some(volume().name);
            picture.claim_applied(Claim {
                uid: uid.clone(),
                key: key_of(uid.as_str()),
                volume,
                ..claim(None)
            });
        }
        for bound in [second.clone(), uid(), third.clone()] {
            picture.volume_applied(Volume { free: bound == uid(), uid: bound, ..volume() });
        }
        assert_eq!(picture.wish(MILAN, &second), None);
        assert!(picture.wish(MILAN, &third).is_some());
    }

    fn key_of(name: &str) -> Key {
        Key::new("shop", name)
    }

    #[test]
    fn a_volume_that_is_for_no_claim_is_kept_for_the_next_one_and_let_go_when_it_is_deleted() {
        let mut picture = picture();
        let free = Volume { free: true, claim: Key::new("shop", "data-3f2c0a44"), ..volume() };
        picture.volume_applied(Volume { released: true, delete_data: false, ..volume() });
        picture.volume_applied(free.clone());
        assert_eq!((state(&picture, MILAN), picture.next_step(&uid())), (None, None));
        let deleted = Volume { deleting: true, ..free.clone() };
        picture.volume_applied(deleted.clone());
        assert_eq!((state(&picture, MILAN), picture.next_step(&uid())), (None, Some(Step::LetGo(deleted))));

        let marked = Volume { marked: true, ..free };
        picture.volume_applied(marked.clone());
        assert_eq!((state(&picture, MILAN), picture.next_step(&uid())), (Some("deleting"), None));
        picture.told(MILAN, ClaimNews::Gone(uid()));
        assert_eq!(picture.next_step(&uid()), Some(Step::Delete(marked)));
    }

    #[test]
    fn a_claim_of_another_namespace_does_not_get_the_data_and_its_deletion_deletes_what_it_was_of() {
        let mut picture = picture();
        let (another, theirs) = (Uid::from("another"), Key::new("bank", "data"));
        let strayed = Volume { uid: another.clone(), claim: theirs.clone(), ..volume() };
        picture.told(MILAN, ClaimNews::Follow(theirs.clone()));
        let name = Some(strayed.name.clone());
        picture.claim_applied(Claim {
            key: theirs.clone(),
            uid: another.clone(),
            volume: name,
            ..claim(None)
        });
        picture.volume_applied(strayed.clone());
        assert_eq!(picture.wish(MILAN, &another), None, "it would be told that its volume is lost");
        let Some(Step::Explain(about, why)) = picture.next_step(&another) else { panic!("nothing said") };
        assert_eq!((&about.key, why.reason.as_str()), (&theirs, "VolumeOfAnotherNamespace"));
        picture.begun(&another, &Step::Explain(about, why));
        assert_eq!(picture.next_step(&another), None);
        assert!(matches!(picture.resolution(MILAN, &theirs), Some(Resolution::Refused(_))));

        picture.claim_deleted(&theirs, &another);
        picture.volume_applied(Volume { released: true, ..strayed });
        let (key, wish) = picture.wish(MILAN, &another).unwrap();
        assert_eq!((key, wish.state), (Key::new("shop", "data-3f2c0a44"), WantedState::Deleting));
    }

    #[test]
    fn a_volume_that_lost_the_finalizer_gets_it_back() {
        let mut picture = picture();
        let bare = Volume { finalizers: vec!["x".to_owned()], ..volume() };
        picture.volume_applied(bare.clone());
        assert_eq!(picture.next_step(&uid()), Some(Step::Hold(bare.clone())));
        picture.volume_applied(volume());
        assert_eq!(picture.next_step(&uid()), None);
        picture.volume_applied(Volume { deleting: true, ..bare });
        assert_eq!(picture.next_step(&uid()), None, "too late");
    }

    #[test]
    fn a_volume_that_the_api_server_does_not_take_is_a_refusal() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        picture.told(MILAN, ClaimNews::Settled(uid()));
        picture.told(MILAN, ClaimNews::Report(uid(), report(None)));
        let create = picture.next_step(&uid()).unwrap();
        picture.begun(&uid(), &create);
        picture.create_refused(&uid(), "no such class".to_owned());
        let Some(Step::Explain(about, why)) = picture.next_step(&uid()) else { panic!("nothing said") };
        assert_eq!(why.message, "no such class");
        picture.begun(&uid(), &Step::Explain(about, why));
        assert_eq!((picture.next_step(&uid()), picture.stuck(&uid())), (None, Some(Stuck::Refused)));
        picture.give_up_waiting(&uid());
        assert!(matches!(picture.next_step(&uid()), Some(Step::Reschedule(_))));
    }

    #[test]
    fn a_provider_that_does_not_answer_is_not_waited_for_for_ever() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        assert_eq!((picture.stuck(&uid()), picture.next_step(&uid())), (Some(Stuck::Silent), None));
        picture.give_up_waiting(&uid());
        let Some(Step::Explain(about, why)) = picture.next_step(&uid()) else { panic!("nothing said") };
        assert_eq!(why.reason, "ProviderNotResponding");
        picture.begun(&uid(), &Step::Explain(about, why));
        assert!(matches!(picture.next_step(&uid()), Some(Step::Reschedule(_))));
        // What was taken back is not answered either, and chosen again.
        picture.claim_applied(claim(None));
        picture.claim_applied(claim(Some("liquid-milan")));
        assert_eq!((state(&picture, MILAN), picture.stuck(&uid())), (Some("deleting"), Some(Stuck::Silent)));
        picture.told(MILAN, ClaimNews::Gone(uid()));
        picture.told(MILAN, ClaimNews::Settled(uid()));
        picture.told(MILAN, ClaimNews::Report(uid(), report(None)));
        assert_eq!(picture.stuck(&uid()), None);
        assert!(matches!(picture.next_step(&uid()), Some(Step::Create(_))));
    }

    #[test]
    fn a_size_that_cannot_be_right_is_told_once_and_not_waited_for() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        picture.told(MILAN, ClaimNews::Settled(uid()));
        picture.told(MILAN, ClaimNews::Report(uid(), report(Some("1Mi"))));
        let Some(Step::Explain(about, why)) = picture.next_step(&uid()) else { panic!("nothing said") };
        assert_eq!(why.reason, "VolumeSizeInvalid");
        picture.begun(&uid(), &Step::Explain(about, why));
        let Some(Step::Create(made)) = picture.next_step(&uid()) else { panic!("not made") };
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        picture.volume_applied(volume());
        assert_eq!(picture.next_step(&uid()), None, "told already");
        picture.told(MILAN, ClaimNews::Report(uid(), report(Some("large"))));
        assert!(matches!(picture.next_step(&uid()), Some(Step::Explain(..))));
    }

    #[test]
    fn a_volume_for_certain_nodes_stays_with_their_virtual_node() {
        let mut picture = picture();
        let placed = Behind { peer: MILAN.to_owned(), placed: true };
        picture.set_nodes(BTreeMap::from([("milan-n1".to_owned(), placed)]));
        picture.claim_applied(claim(Some("milan-n1")));
        picture.told(MILAN, ClaimNews::Settled(uid()));
        picture.told(MILAN, ClaimNews::Report(uid(), report(None)));
        let Some(Step::Create(made)) = picture.next_step(&uid()) else { panic!("not made") };
        let terms = &made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"];
        assert_eq!(terms[1]["values"], json!(["milan-n1"]));
    }

    #[test]
    fn whether_a_volume_was_made_is_found_out_before_anything_else() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        picture.told(MILAN, ClaimNews::Settled(uid()));
        picture.told(MILAN, ClaimNews::Report(uid(), report(None)));
        let step = picture.next_step(&uid()).unwrap();
        picture.begun(&uid(), &step);
        picture.created_unknown(&uid());
        picture.claim_applied(claim(Some("liquid-ohio")));
        assert_eq!(state(&picture, MILAN), Some("present"), "there may be a volume, and pods that use it");
        let find = picture.next_step(&uid());
        assert_eq!(find, Some(Step::Find(volume_name(&uid()))));
        picture.begun(&uid(), &find.unwrap());
        picture.not_created(&uid());
        assert_eq!(state(&picture, MILAN), Some("deleting"));
    }

    #[test]
    fn a_refusal_is_told_once_and_the_scheduler_may_choose_again_after_a_while() {
        let mut picture = picture();
        picture.claim_applied(claim(Some("liquid-milan")));
        let refusal = Refusal { reason: "StorageClassNotOffered".to_owned(), message: "no".to_owned() };
        picture.told(MILAN, ClaimNews::Refused(uid(), refusal));
        let step = picture.next_step(&uid()).unwrap();
        assert!(matches!(step, Step::Explain(..)) && picture.stuck(&uid()) == Some(Stuck::Refused));
        picture.begun(&uid(), &step);
        assert_eq!(picture.next_step(&uid()), None);
        picture.give_up_waiting(&uid());
        assert!(matches!(picture.next_step(&uid()), Some(Step::Reschedule(_))));
        picture.claim_applied(claim(None));
        assert_eq!((state(&picture, MILAN), picture.next_step(&uid())), (Some("deleting"), None));

        let mut later = picture;
        later.told(MILAN, ClaimNews::Gone(uid()));
        later.claim_applied(claim(Some("liquid-milan")));
        let down = Refusal { reason: "ApiUnavailable".to_owned(), message: "later".to_owned() };
        later.told(MILAN, ClaimNews::Refused(uid(), down));
        assert_eq!(later.stuck(&uid()), Some(Stuck::Silent), "it may come to it");
    }

    #[test]
    fn a_volume_that_has_grown_is_shown_on_both_objects() {
        let mut picture = picture();
        let bound = |capacity: &str| Claim {
            volume: Some(volume_name(&uid())),
            capacity: Some(capacity.to_owned()),
            ..claim(Some("liquid-milan"))
        };
        picture.claim_applied(bound("1Gi"));
        picture.volume_applied(volume());
        picture.told(MILAN, ClaimNews::Report(uid(), report(Some("1024Mi"))));
        assert_eq!(picture.next_step(&uid()), None, "the same size in other words");
        picture.told(MILAN, ClaimNews::Report(uid(), report(Some("2Gi"))));
        assert_eq!(picture.next_step(&uid()), Some(Step::Grow(volume(), "2Gi".to_owned())));
        picture.volume_applied(Volume { capacity: Some("2Gi".to_owned()), ..volume() });
        let Some(Step::Show(_, status)) = picture.next_step(&uid()) else { panic!("not shown") };
        assert_eq!(status["capacity"]["storage"], "2Gi");
        picture.claim_applied(bound("2Gi"));
        assert_eq!(picture.next_step(&uid()), None);
        let resizing = vec![json!({"type": "Resizing", "status": "True"})];
        let report = ClaimReport { conditions: resizing.clone(), ..report(Some("2Gi")) };
        picture.told(MILAN, ClaimNews::Report(uid(), report));
        let Some(Step::Show(_, status)) = picture.next_step(&uid()) else { panic!("not shown") };
        assert_eq!(
            (&status["conditions"], &status["capacity"]["storage"]),
            (&json!(resizing), &json!("2Gi"))
        );
    }

    #[test]
    fn pods_find_the_claims_that_are_in_their_provider_and_hear_of_others() {
        let mut picture = picture();
        assert_eq!(picture.resolution(MILAN, &key()), None);
        picture.told(MILAN, ClaimNews::Follow(key()));
        let is = |picture: &Picture| picture.resolution(MILAN, &key()).unwrap();
        assert!(matches!(is(&picture), Resolution::Waiting(_)), "it does not exist");
        picture.claim_applied(claim(Some("liquid-milan")));
        assert!(matches!(is(&picture), Resolution::Waiting(_)), "it has no volume");
        picture.volume_applied(volume());
        assert_eq!(is(&picture), Resolution::Ready("data-3f2c0a44".to_owned()));
        picture.volume_applied(Volume { cluster: "c-ohio".to_owned(), ..volume() });
        assert!(matches!(is(&picture), Resolution::Refused(_)), "it is in another one");
        picture.volume_deleted(&volume_name(&uid()));
        for here in ["nfs".to_owned(), format!("pvc-{}", uid())] {
            picture.claim_applied(Claim { volume: Some(here), ..claim(None) });
            assert!(matches!(is(&picture), Resolution::Refused(_)), "it is here");
        }
        picture.told(MILAN, ClaimNews::Unfollow(key()));
        assert_eq!(picture.resolution(MILAN, &key()), None);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Claim { node: usize, deleting: bool },
        ClaimDeleted,
        Volume { released: bool, delete: bool, deleting: bool, free: bool, marked: bool },
        VolumeDeleted,
        Told(usize, usize),
        Providers { gone: usize, there: bool },
        Nodes(bool),
        Listed { claims: bool, volumes: bool },
        Create(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..4_usize, any::<bool>()).prop_map(|(node, d)| Event::Claim { node, deleting: d && node == 0 }),
            2 => Just(Event::ClaimDeleted),
            4 => (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
                |(released, delete, deleting, free, marked)| {
                    let released = released && !free;
                    Event::Volume { released, delete: delete || marked, deleting, free, marked }
                }
            ),
            1 => Just(Event::VolumeDeleted),
            5 => (0..2_usize, 0..4_usize).prop_map(|(peer, what)| Event::Told(peer, what)),
            1 => (0..2_usize, any::<bool>()).prop_map(|(gone, there)| Event::Providers { gone, there }),
            1 => any::<bool>().prop_map(Event::Nodes),
            1 => (any::<bool>(), any::<bool>()).prop_map(|(claims, volumes)| Event::Listed { claims, volumes }),
            2 => (0..3_usize).prop_map(Event::Create),
        ]
    }

    fn gives_up(volume: &Volume) -> bool {
        volume.delete_data && (volume.released || (volume.free && volume.marked))
    }

    proptest! {
        /// Whatever is heard in whatever order: once a volume stood for a claim, a provider is told to delete its data only
        /// while a volume says that it is released and its data is to go, or that it is for none and somebody has asked for it.
        #[test]
        fn data_is_given_up_only_by_a_released_volume_that_says_so(events in prop::collection::vec(event(), 1..60)) {
            let mut picture = picture();
            let nodes = [None, Some("liquid-milan"), Some("liquid-ohio"), Some("physical")];
            let peers = [MILAN, "ohio"];
            let mut stood = false;
            // A volume is released when its claim is gone, and no other has its UID. It may be seen as long as the volume.
            let mut over = false;
            for event in events {
                let released = picture.volumes.get(&uid()).is_some_and(|volume| volume.released);
                match event {
                    Event::Claim { .. } if over => {}
                    Event::Claim { node, deleting } => {
                        let volume = picture.volumes.get(&uid()).map(|volume| volume.name.clone());
                        picture.claim_applied(Claim { deleting, volume, ..claim(nodes[node]) });
                    }
                    Event::ClaimDeleted => picture.claim_deleted(&key(), &uid()),
                    Event::Volume { released, delete, deleting, free, marked } => {
                        stood = true;
                        let delete_data = delete;
                        picture.volume_applied(Volume { released, delete_data, deleting, free, marked, ..volume() });
                    }
                    Event::VolumeDeleted => picture.volume_deleted(&volume_name(&uid())),
                    Event::Told(peer, what) => picture.told(peers[peer], match what {
                        0 => ClaimNews::Settled(uid()),
                        1 => ClaimNews::Report(uid(), report(Some("1Gi"))),
                        2 => ClaimNews::Gone(uid()),
                        _ => ClaimNews::Refused(uid(), Refusal { reason: "X".to_owned(), message: "x".to_owned() }),
                    }),
                    Event::Providers { gone, there } => {
                        let cluster = format!("c-{}", peers[gone]);
                        picture.set_provider(peers[gone], there.then_some(Provider { cluster, gone: stood }));
                    }
                    Event::Nodes(all) => {
                        picture.set_nodes(if all { virtual_nodes() } else { BTreeMap::new() });
                    }
                    Event::Listed { claims, volumes } => {
                        picture.claims_listed(|_| claims);
                        picture.volumes_listed(|_| volumes);
                    }
                    Event::Create(how) => {
                        if let Some(step) = picture.next_step(&uid()) {
                            let (delete, create) = (matches!(step, Step::Delete(_)), matches!(step, Step::Create(_)));
                            if delete {
                                let volume = &picture.volumes[&uid()];
                                prop_assert!(gives_up(volume));
                            }
                            picture.begun(&uid(), &step);
                            if create {
                                match how {
                                    0 => picture.not_created(&uid()),
                                    1 => picture.created_unknown(&uid()),
                                    _ => {
                                        stood = true;
                                        picture.volume_applied(volume());
                                    }
                                }
                            }
                        }
                    }
                }
                over |= released && !picture.volumes.contains_key(&uid());
                for peer in peers {
                    if stood && state(&picture, peer) == Some("deleting") {
                        let volume = picture.volumes.get(&uid());
                        let given_up = volume.is_some_and(|v| gives_up(v) && v.cluster == format!("c-{peer}"));
                        // What was asked of another one before never had a pod.
                        let elsewhere = peer != MILAN;
                        prop_assert!(given_up || elsewhere, "{peer} is told to delete the data");
                    }
                }
            }
        }
    }
}
