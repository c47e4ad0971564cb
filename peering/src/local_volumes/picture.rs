//! What is known of claims, the claims beside them and their volumes, and the one next step of each. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use liquid_crds::quantity::parse;
use liquid_crds::vocabulary::{
    MANAGED_BY, MANAGED_BY_LIQUID, ORIGIN_NAME, ORIGIN_NAMESPACE, ORIGIN_UID, PARAMETER_LOCAL_CLASS,
    RECLAIM_POLICY, STORAGE_DRIVER,
};
use liquid_reflection::claim::{SELECTED_NODE, unsupported};
use liquid_runtime::storage_classes::{Class, StorageClasses};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A provisioner that makes no volumes: those of its class are made by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";

/// Namespace and name of a claim.
pub(super) type Name = (String, String);

/// A claim of one of Liquid's classes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    pub(super) name: Name,
    pub(super) uid: String,
    pub(super) storage_class: String,
    pub(super) node: Option<String>,
    pub(super) volume: Option<String>,
    pub(super) deleting: bool,
    /// Why no volume can be made for it.
    unsupported: Option<String>,
    /// It wants to be larger than it is.
    grows: bool,
    /// What it asks for, but for its class.
    spec: Value,
}

impl Claim {
    pub(super) fn read(claim: &PersistentVolumeClaim) -> Option<Self> {
        let spec = claim.spec.clone().unwrap_or_default();
        let size = |amounts: Option<&BTreeMap<String, Quantity>>| parse(amounts?.get("storage")?).ok();
        let requested = size(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        let capacity = size(claim.status.as_ref().and_then(|status| status.capacity.as_ref()));
        Some(Self {
            name: (claim.namespace()?, claim.name_any()),
            uid: claim.uid()?,
            storage_class: spec.storage_class_name.clone().unwrap_or_default(),
            node: claim.annotations().get(SELECTED_NODE).cloned(),
            volume: spec.volume_name.clone().filter(|name| !name.is_empty()),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            unsupported: unsupported(&json!(spec)),
            grows: capacity.is_some() && requested > capacity,
            spec: json!({
                "accessModes": spec.access_modes, "volumeMode": spec.volume_mode, "resources": spec.resources,
            }),
        })
    }

    /// It waits for a volume on its node.
    fn waits(&self) -> bool {
        self.volume.is_none() && !self.deleting && self.node.is_some()
    }
}

/// A claim in Liquid's namespace, for a volume of a local class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) name: String,
    pub(super) uid: String,
    /// The claim it is for.
    pub(super) claim: Name,
    pub(super) of: String,
    /// The node it was made for, and whether its provisioner still means to use it.
    made_for: String,
    selected: bool,
    /// Its storage class.
    class: String,
    pub(super) volume: Option<String>,
    pub(super) deleting: bool,
}

/// Annotation on a [`Beside`]: the node it was made for.
const MADE_FOR: &str = "liquid.mesh/node";

impl Beside {
    pub(super) fn read(claim: &PersistentVolumeClaim) -> Option<Self> {
        let annotations = claim.annotations();
        let text = |name: &str| annotations.get(name).cloned();
        Some(Self {
            name: claim.name_any(),
            uid: claim.uid()?,
            claim: (text(ORIGIN_NAMESPACE)?, text(ORIGIN_NAME)?),
            of: text(ORIGIN_UID)?,
            made_for: text(MADE_FOR)?,
            selected: annotations.contains_key(SELECTED_NODE),
            class: claim.spec.as_ref()?.storage_class_name.clone().unwrap_or_default(),
            volume: claim.spec.as_ref()?.volume_name.clone().filter(|name| !name.is_empty()),
            deleting: claim.metadata.deletion_timestamp.is_some(),
        })
    }

    /// Its name.
    fn name_for(claim: &str) -> String {
        format!("volume-{claim}")
    }
}

/// A volume on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) uid: String,
    /// UID of the claim it belongs to now.
    pub(super) owner: String,
    /// Policy it gets when all is over; it was handed over.
    pub(super) policy: Option<String>,
}

impl Volume {
    /// Reads a volume; `None` if it is not on its way between claims of ours.
    pub(super) fn read(volume: &PersistentVolume, own_namespace: &str) -> Option<Self> {
        let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
        let policy = volume.annotations().get(RECLAIM_POLICY).cloned();
        let beside = claim.namespace.as_deref() == Some(own_namespace);
        (beside || policy.is_some()).then_some(())?;
        Some(Self { name: volume.name_any(), uid: volume.uid()?, owner: claim.uid.clone()?, policy })
    }
}

/// The next thing to do for a claim.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Ask for a volume, if the node is one of this cluster; or tell the owner why none is asked for.
    Ask { claim: Box<Claim>, beside: Result<Value, String> },
    /// Hand the volume over.
    HandOver { claim: Box<Claim>, volume: Volume, policy: String },
    /// Delete the claim beside.
    Discard(Beside),
    /// All is over: give the volume its policy.
    Settle(Volume, String),
    /// Let the scheduler choose another node.
    Reschedule(Box<Claim>),
    /// See whether the volume of a claim that wants to grow can.
    CheckGrowth(Box<Claim>),
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Picture {
    classes: StorageClasses,
    claims: BTreeMap<String, Claim>,
    beside: BTreeMap<String, Beside>,
    volumes: BTreeMap<String, Volume>,
    /// Claims whose node is not one of this cluster: they are somebody else's.
    elsewhere: BTreeMap<String, String>,
    /// What owners were told last.
    explained: BTreeMap<String, String>,
    listed: (bool, bool),
    changed: BTreeSet<String>,
}

impl Picture {
    /// The storage classes. Returns whether other claims than before may be ours.
    pub(super) fn set_classes(&mut self, classes: StorageClasses) -> bool {
        let is_own = |class: &Class| class.provisioner == STORAGE_DRIVER;
        let known = |name: &str| self.classes.get(name).is_some_and(|(_, class)| is_own(class));
        let more = classes.iter().any(|(name, class)| is_own(class) && !known(name));
        self.classes = classes;
        self.explained.clear();
        self.changed.extend(self.claims.keys().cloned());
        more
    }

    /// Whether a claim is of one of Liquid's classes, or was.
    pub(super) fn concerns(&self, claim: &Claim) -> bool {
        let own = self
            .classes
            .get(&claim.storage_class)
            .is_some_and(|(_, class)| class.provisioner == STORAGE_DRIVER);
        own || self.beside.contains_key(&claim.uid)
    }

    pub(super) fn claim_applied(&mut self, claim: Claim) {
        let uid = claim.uid.clone();
        if claim.volume.is_some() && !claim.grows && !self.beside.contains_key(&uid) {
            // It has what it wants; only its volume may still have to be settled.
            let settled = !self.volumes.values().any(|volume| volume.owner == uid);
            self.elsewhere.remove(&uid);
            if settled {
                self.claims.remove(&uid);
                return;
            }
        }
        self.claims.insert(uid.clone(), claim);
        self.changed.insert(uid);
    }

    pub(super) fn claim_deleted(&mut self, uid: &str) {
        self.claims.remove(uid);
        self.elsewhere.remove(uid);
        self.explained.remove(uid);
        self.changed.insert(uid.to_owned());
    }

    pub(super) fn beside_applied(&mut self, beside: Beside) {
        let uid = beside.of.clone();
        self.beside.insert(uid.clone(), beside);
        self.changed.insert(uid);
    }

    pub(super) fn beside_deleted(&mut self, beside: &Beside) {
        if self.beside.get(&beside.of).is_some_and(|known| known.uid == beside.uid) {
            self.beside.remove(&beside.of);
        }
        self.changed.insert(beside.of.clone());
    }

    pub(super) fn volume_applied(&mut self, name: &str, volume: Option<Volume>) {
        let earlier = match volume {
            Some(volume) => {
                self.touch(&volume.owner);
                self.volumes.insert(name.to_owned(), volume)
            }
            None => self.volumes.remove(name),
        };
        if let Some(earlier) = earlier {
            self.touch(&earlier.owner);
        }
    }

    /// Who has this UID, or whose claim beside has it, is to be looked at.
    fn touch(&mut self, owner: &str) {
        let of = self.beside.values().find(|beside| beside.uid == owner).map(|beside| beside.of.clone());
        self.changed.insert(of.unwrap_or(owner.to_owned()));
    }

    /// All claims were listed.
    pub(super) fn claims_listed(&mut self, seen: impl Fn(&Name) -> bool, own_namespace: &str) {
        let gone: Vec<String> =
            self.claims.iter().filter(|(_, c)| !seen(&c.name)).map(|(uid, _)| uid.clone()).collect();
        gone.iter().for_each(|uid| self.claim_deleted(uid));
        let there = |beside: &Beside| seen(&(own_namespace.to_owned(), beside.name.clone()));
        let gone: Vec<Beside> = self.beside.values().filter(|beside| !there(beside)).cloned().collect();
        gone.iter().for_each(|beside| self.beside_deleted(beside));
        self.listed.0 = true;
        self.look_at_all();
    }

    /// All volumes were listed.
    pub(super) fn volumes_listed(&mut self, seen: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.volumes.keys().filter(|name| !seen(name)).cloned().collect();
        gone.iter().for_each(|name| self.volume_applied(name, None));
        self.listed.1 = true;
        self.look_at_all();
    }

    fn look_at_all(&mut self) {
        let owners: Vec<String> = self.volumes.values().map(|volume| volume.owner.clone()).collect();
        owners.iter().for_each(|owner| self.touch(owner));
        self.changed.extend(self.claims.keys().chain(self.beside.keys()).cloned());
    }

    /// Claims that are to be looked at.
    pub(super) fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// Looks at a claim again.
    pub(super) fn look_again(&mut self, uid: &str) {
        self.changed.insert(uid.to_owned());
    }

    /// The node of a claim is not one of this cluster, as far as is known now.
    pub(super) fn is_elsewhere(&mut self, claim: &Claim) {
        if let Some(node) = &claim.node {
            self.elsewhere.insert(claim.uid.clone(), node.clone());
        }
    }

    /// Whose node is where may have changed.
    pub(super) fn look_elsewhere_again(&mut self, uid: &str) {
        self.elsewhere.remove(uid);
        self.look_again(uid);
    }

    /// The owner of a claim was told this.
    pub(super) fn explained(&mut self, uid: &str, why: &str) {
        self.explained.insert(uid.to_owned(), why.to_owned());
    }

    /// The claim beside one that has waited for its volume in vain, so far.
    pub(super) fn unfulfilled(&self, uid: &str) -> Option<(&Claim, &Beside)> {
        let beside = self.beside.get(uid).filter(|beside| beside.volume.is_none() && !beside.deleting)?;
        Some((self.claims.get(uid)?, beside))
    }

    /// The next thing to do for a claim.
    pub(super) fn next_step(&self, uid: &str) -> Option<Step> {
        if self.listed != (true, true) {
            return None;
        }
        let claim = self.claims.get(uid);
        match self.beside.get(uid) {
            Some(beside) if beside.deleting => None,
            Some(beside) => self.next_with(beside, claim),
            None => {
                let settled = self.volumes.values().find(|volume| volume.owner == uid);
                if let Some((volume, policy)) =
                    settled.and_then(|volume| Some((volume, volume.policy.clone()?)))
                {
                    return Some(Step::Settle(volume.clone(), policy));
                }
                self.next_without(claim?)
            }
        }
    }

    /// The step of a claim for which a volume was asked.
    fn next_with(&self, beside: &Beside, claim: Option<&Claim>) -> Option<Step> {
        let volume = beside.volume.as_ref().and_then(|name| self.volumes.get(name));
        if let Some(volume) = volume.filter(|volume| volume.owner == beside.of) {
            // It was handed over. When Kubernetes has bound it, or its new owner is gone, nobody needs this one any more.
            let bound = claim.is_none_or(|claim| claim.volume.as_ref() == Some(&volume.name));
            return bound.then(|| Step::Discard(beside.clone()));
        }
        let Some(claim) = claim.filter(|claim| claim.waits()) else {
            return Some(Step::Discard(beside.clone()));
        };
        if claim.node.as_ref() != Some(&beside.made_for) {
            return Some(Step::Discard(beside.clone()));
        }
        if let Some(volume) = volume.filter(|volume| volume.owner == beside.uid) {
            let (_, class) = self.classes.get(&claim.storage_class)?;
            let policy = class.reclaim_policy.clone();
            return Some(Step::HandOver { claim: Box::new(claim.clone()), volume: volume.clone(), policy });
        }
        // Its provisioner finds no room on this node. One that does not wait for a node was never told of one.
        let waits = self.classes.get(&beside.class).is_some_and(|(_, class)| class.waits_for_consumer);
        let given_up = waits && !beside.selected && beside.volume.is_none();
        given_up.then(|| Step::Reschedule(Box::new(claim.clone())))
    }

    /// The step of a claim for which nothing was asked yet.
    fn next_without(&self, claim: &Claim) -> Option<Step> {
        let told = |why: &str| self.explained.get(&claim.uid).is_some_and(|told| told == why);
        if claim.grows && claim.volume.is_some() {
            return (!told(&growth(claim))).then(|| Step::CheckGrowth(Box::new(claim.clone())));
        }
        let node = claim.node.as_ref().filter(|_| claim.waits())?;
        if self.elsewhere.get(&claim.uid) == Some(node) {
            return None;
        }
        let beside = self.beside_for(claim, node);
        let known = beside.as_ref().is_err_and(|why| told(why));
        (!known).then(|| Step::Ask { claim: Box::new(claim.clone()), beside })
    }

    /// The claim beside one whose first pod is to run on `node`, or why there is none.
    fn beside_for(&self, claim: &Claim, node: &str) -> Result<Value, String> {
        if let Some(why) = &claim.unsupported {
            return Err(why.clone());
        }
        let (name, class) = self.local_class(&claim.storage_class)?;
        let mut spec = claim.spec.clone();
        spec["storageClassName"] = json!(name);
        let mut annotations = json!({
            ORIGIN_NAMESPACE: claim.name.0, ORIGIN_NAME: claim.name.1, ORIGIN_UID: claim.uid, MADE_FOR: node,
        });
        // Without this its provisioner would not begin; for a class that does not wait it would mean nothing.
        if class.waits_for_consumer {
            annotations[SELECTED_NODE] = json!(node);
        }
        Ok(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": Beside::name_for(&claim.uid),
                "labels": { MANAGED_BY: MANAGED_BY_LIQUID },
                "annotations": annotations,
            },
            "spec": spec,
        }))
    }

    /// The class of volumes on nodes of this cluster, for claims of the class `own`.
    fn local_class(&self, own: &str) -> Result<(&str, &Class), String> {
        let (_, class) = self.classes.get(own).ok_or_else(|| format!("there is no storage class {own}"))?;
        let name = match class.parameters.get(PARAMETER_LOCAL_CLASS).filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => self.classes.default_of(|class| class.provisioner != STORAGE_DRIVER).ok_or_else(|| {
                format!(
                    "this cluster has no default storage class for volumes on its nodes, and storage class {own} names none \
                     (parameter {PARAMETER_LOCAL_CLASS})"
                )
            })?,
        };
        match self.classes.get(name) {
            None => Err(format!("storage class {own} stands for {name}, which does not exist")),
            Some((_, local)) if local.provisioner == STORAGE_DRIVER => {
                Err(format!("storage class {own} stands for {name}, which stands for another one itself"))
            }
            Some((_, local)) if local.provisioner == BY_HAND => {
                Err(format!("storage class {own} stands for {name}, whose volumes are made by hand"))
            }
            Some(local) => Ok(local),
        }
    }
}

/// What the owner of a claim is told whose volume cannot grow.
pub(super) fn growth(claim: &Claim) -> String {
    let size = claim.spec.pointer("/resources/requests/storage").and_then(Value::as_str).unwrap_or_default();
    format!("the volume of this claim is of a class that does not grow: it will not become {size} large")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "liquid-system";

    fn class(provisioner: &str, waits: bool, default: bool) -> Class {
        Class {
            provisioner: provisioner.to_owned(),
            reclaim_policy: "Delete".to_owned(),
            waits_for_consumer: waits,
            default_since: default.then(|| "2026".to_owned()),
            ..Class::default()
        }
    }

    fn classes(local: Class) -> StorageClasses {
        [("liquid".to_owned(), class(STORAGE_DRIVER, true, false)), ("local".to_owned(), local)]
            .into_iter()
            .collect()
    }

    fn claim(change: impl FnOnce(&mut Value)) -> Claim {
        let mut claim = json!({
            "metadata": {
                "name": "data", "namespace": "shop", "uid": "c1", "annotations": {SELECTED_NODE: "n1"},
            },
            "spec": {
                "storageClassName": "liquid", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        change(&mut claim);
        Claim::read(&serde_json::from_value(claim).unwrap()).unwrap()
    }

    fn beside(volume: Option<&str>, selected: bool) -> Beside {
        Beside {
            name: "volume-c1".to_owned(),
            uid: "b1".to_owned(),
            claim: ("shop".to_owned(), "data".to_owned()),
            of: "c1".to_owned(),
            made_for: "n1".to_owned(),
            selected,
            class: "local".to_owned(),
            volume: volume.map(str::to_owned),
            deleting: false,
        }
    }

    fn volume(owner: &str, policy: Option<&str>) -> Volume {
        let policy = policy.map(str::to_owned);
        Volume { name: "v1".to_owned(), uid: "u1".to_owned(), owner: owner.to_owned(), policy }
    }

    fn picture(claim: Option<Claim>) -> Picture {
        let mut picture = Picture::default();
        picture.set_classes(classes(class("x", true, true)));
        if let Some(claim) = claim {
            picture.claim_applied(claim);
        }
        picture.listed = (true, true);
        picture
    }

    #[test]
    fn nothing_is_done_before_everything_is_known() {
        let mut picture = picture(Some(claim(|_| ())));
        picture.listed = (true, false);
        assert_eq!(picture.next_step("c1"), None);
    }

    #[test]
    fn a_volume_is_asked_for_on_the_node_of_the_first_pod_and_read_back() {
        let asked = |local: Class| {
            let mut picture = picture(Some(claim(|_| ())));
            picture.set_classes(classes(local));
            match picture.next_step("c1") {
                Some(Step::Ask { beside, .. }) => beside.unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let mut made = asked(class("x", true, true));
        assert_eq!(made["spec"]["storageClassName"], "local");
        assert_eq!(made["spec"]["resources"]["requests"]["storage"], "1Gi");
        assert_eq!(made["metadata"]["annotations"][SELECTED_NODE], "n1");
        made["metadata"]["uid"] = json!("b1");
        assert_eq!(Beside::read(&serde_json::from_value(made).unwrap()), Some(beside(None, true)));
        let immediate = asked(class("x", false, true));
        assert!(immediate["metadata"]["annotations"].get(SELECTED_NODE).is_none());
    }

    #[test]
    fn what_cannot_be_asked_for_is_explained_once() {
        for local in [class("x", true, false), class(BY_HAND, true, true), class(STORAGE_DRIVER, true, true)]
        {
            let mut picture = picture(Some(claim(|_| ())));
            picture.set_classes(classes(local));
            let Some(Step::Ask { beside: Err(why), .. }) = picture.next_step("c1") else {
                panic!("not explained")
            };
            picture.explained("c1", &why);
            assert_eq!(picture.next_step("c1"), None);
        }
        let picture = picture(Some(claim(|claim| claim["spec"]["selector"] = json!({"matchLabels": {}}))));
        assert!(matches!(picture.next_step("c1"), Some(Step::Ask { beside: Err(_), .. })));
    }

    #[test]
    fn a_claim_that_has_no_node_or_one_elsewhere_is_left_alone() {
        let no_node = claim(|claim| claim["metadata"]["annotations"] = json!({}));
        assert_eq!(picture(Some(no_node)).next_step("c1"), None);
        let mut picture = picture(Some(claim(|_| ())));
        picture.is_elsewhere(&claim(|_| ()));
        assert_eq!(picture.next_step("c1"), None);
        picture.claim_applied(claim(|claim| claim["metadata"]["annotations"][SELECTED_NODE] = json!("n2")));
        assert!(matches!(picture.next_step("c1"), Some(Step::Ask { .. })), "another node");
    }

    /// The order in which a volume changes hands: at no point is it with nobody, or reclaimed with the claim beside.
    #[test]
    fn a_volume_is_handed_over_bound_and_only_then_settled() {
        let mut picture = picture(Some(claim(|_| ())));
        picture.beside_applied(beside(None, true));
        assert_eq!(picture.next_step("c1"), None, "its provisioner is at it");
        picture.beside_applied(beside(Some("v1"), true));
        picture.volume_applied("v1", Some(volume("b1", None)));
        let Some(Step::HandOver { policy, .. }) = picture.next_step("c1") else { panic!("not handed over") };
        assert_eq!(policy, "Delete");

        picture.volume_applied("v1", Some(volume("c1", Some("Delete"))));
        assert_eq!(picture.next_step("c1"), None, "not bound yet");
        picture.claim_applied(claim(|claim| claim["spec"]["volumeName"] = json!("v1")));
        assert_eq!(picture.next_step("c1"), Some(Step::Discard(beside(Some("v1"), true))));
        picture.beside_applied(Beside { deleting: true, ..beside(Some("v1"), true) });
        assert_eq!(picture.next_step("c1"), None, "settled only when it is gone");

        picture.beside_deleted(&beside(Some("v1"), true));
        let settle = Step::Settle(volume("c1", Some("Delete")), "Delete".to_owned());
        assert_eq!(picture.next_step("c1"), Some(settle));
        picture.volume_applied("v1", None);
        assert_eq!(picture.next_step("c1"), None);
    }

    /// The volume is made at once, wherever its provisioner likes; the scheduler goes by where it is when it is bound.
    #[test]
    fn a_volume_of_a_class_that_does_not_wait_for_a_node_is_waited_for_and_handed_over() {
        let mut picture = picture(Some(claim(|_| ())));
        picture.set_classes(classes(class("x", false, true)));
        let Some(Step::Ask { beside: Ok(mut made), .. }) = picture.next_step("c1") else {
            panic!("not asked")
        };
        made["metadata"]["uid"] = json!("b1");
        let asked = Beside::read(&serde_json::from_value(made).unwrap()).unwrap();
        assert_eq!(asked, beside(None, false));
        picture.beside_applied(asked);
        assert_eq!(picture.next_step("c1"), None, "its provisioner is at it");
        picture.beside_applied(beside(Some("v1"), false));
        picture.volume_applied("v1", Some(volume("b1", None)));
        assert!(matches!(picture.next_step("c1"), Some(Step::HandOver { .. })));
        picture.volume_applied("v1", Some(volume("c1", Some("Delete"))));
        assert_eq!(picture.next_step("c1"), None, "not bound yet");
        picture.claim_applied(claim(|claim| claim["spec"]["volumeName"] = json!("v1")));
        assert_eq!(picture.next_step("c1"), Some(Step::Discard(beside(Some("v1"), false))));
        picture.beside_deleted(&beside(Some("v1"), false));
        assert!(matches!(picture.next_step("c1"), Some(Step::Settle(..))));
    }

    #[test]
    fn what_was_asked_for_in_vain_goes() {
        let mut changed =
            picture(Some(claim(|claim| claim["metadata"]["annotations"][SELECTED_NODE] = json!("n2"))));
        changed.beside_applied(beside(None, true));
        assert_eq!(
            changed.next_step("c1"),
            Some(Step::Discard(beside(None, true))),
            "the scheduler has changed its mind"
        );
        let mut gone = picture(None);
        gone.beside_applied(beside(Some("v1"), true));
        gone.volume_applied("v1", Some(volume("b1", None)));
        assert_eq!(gone.next_step("c1"), Some(Step::Discard(beside(Some("v1"), true))), "the claim is gone");
        let mut full = picture(Some(claim(|_| ())));
        full.beside_applied(beside(None, false));
        assert_eq!(
            full.next_step("c1"),
            Some(Step::Reschedule(Box::new(claim(|_| ())))),
            "no room on the node"
        );
    }

    #[test]
    fn a_volume_that_was_handed_over_to_a_claim_that_is_gone_gets_the_policy_of_its_class() {
        let mut picture = picture(None);
        picture.beside_applied(beside(Some("v1"), true));
        picture.volume_applied("v1", Some(volume("c1", Some("Delete"))));
        assert_eq!(picture.next_step("c1"), Some(Step::Discard(beside(Some("v1"), true))));
        picture.beside_deleted(&beside(Some("v1"), true));
        assert!(matches!(picture.next_step("c1"), Some(Step::Settle(..))));
    }

    #[test]
    fn lists_take_away_what_they_do_not_hold() {
        let mut picture = picture(Some(claim(|_| ())));
        picture.beside_applied(beside(None, true));
        picture.claims_listed(|name| name.0 == OWN, OWN);
        assert_eq!(picture.next_step("c1"), Some(Step::Discard(beside(None, true))));
        picture.claims_listed(|_| false, OWN);
        assert_eq!(picture.next_step("c1"), None);
    }
}
