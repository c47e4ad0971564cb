//! A PersistentVolumeClaim as it travels, and what is told of it back.
//!
//! A claim is known to both sides under a name of its own ([`remote_name`]), so that a claim that is deleted at home and
//! made anew never meets the volume of its predecessor.

use crate::companion::HOME_ANNOTATIONS;
use crate::digest;
use crate::key::Uid;
use liquid_link::digest::Hash;
use liquid_runtime::request::annotation_path;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Annotation in which the scheduler says on which node the first pod of a claim runs. Taking it away lets it choose again.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The JSON patch that takes the node away from a claim, if it is still this claim and this node.
#[must_use]
pub fn deselect(uid: &str, node: Option<&str>) -> Value {
    let path = annotation_path(SELECTED_NODE);
    json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "test", "path": path, "value": node },
        { "op": "remove", "path": path },
    ])
}

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// Characters of the UID in a name: two claims of one name have the same once in four billion times, which is a conflict that
/// is reported.
const UID_PART: usize = 8;

/// Name of a claim in the provider: that at home, and the beginning of its UID.
pub fn remote_name(name: &str, uid: &Uid) -> String {
    let part: String = uid.as_str().chars().filter(char::is_ascii_alphanumeric).take(UID_PART).collect();
    let short: String = name.chars().take(MAX_NAME - UID_PART - 1).collect();
    format!("{}-{}", short.trim_end_matches(['-', '.']), part.to_ascii_lowercase())
}

/// Name of the PersistentVolume that is made at home for the claim with this UID. Provisioners call theirs `pvc-UID`.
pub fn volume_name(uid: &Uid) -> String {
    format!("liquid-{uid}")
}

/// Annotations that say how a claim fares in its own cluster.
const CLUSTER_ANNOTATIONS: [&str; 3] =
    ["pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/"];

/// Whether an annotation of a claim means something in another cluster.
pub fn is_portable(annotation: &str) -> bool {
    !HOME_ANNOTATIONS.contains(&annotation)
        && !CLUSTER_ANNOTATIONS.iter().any(|prefix| annotation.starts_with(prefix))
}

/// Why no volume can be made for a claim with this spec, if so: it asks for one that exists, or for the content of one.
pub fn unsupported(spec: &Value) -> Option<String> {
    let set = |field: &str| spec.get(field).is_some_and(|value| !value.is_null());
    let asks = |what: &str, why: &str| Some(format!("{what} of the claim: {why}"));
    if set("selector") {
        return asks("spec.selector", "volumes are made anew, none is chosen by its labels");
    }
    if set("dataSource") || set("dataSourceRef") {
        return asks(
            "spec.dataSource",
            "snapshots and clones cannot be volumes of this class; use a class of this cluster",
        );
    }
    if set("volumeAttributesClassName") {
        return asks(
            "spec.volumeAttributesClassName",
            "volumes of this class may be of several drivers, an attributes class is of one",
        );
    }
    None
}

/// What the consumer sends of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimBody {
    /// What is wanted.
    pub wanted: WantedClaim,
    /// At home a volume is bound to it: it was made here before. If it is gone its data is, and an empty one in its place
    /// would hide that.
    #[serde(default)]
    pub bound: bool,
}

/// What is wanted of a claim. What has this digest is the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WantedClaim {
    /// Name of the claim at home.
    pub name: String,
    /// The storage class, as the provider calls it in its offer; its default one if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Access modes.
    pub access_modes: Vec<String>,
    /// `Filesystem` or `Block`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<String>,
    /// Size, a quantity.
    pub storage: String,
    /// Largest size, a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_limit: Option<String>,
    /// Labels at home.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations at home, without those of Kubernetes.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl WantedClaim {
    /// Its digest.
    pub fn hash(&self) -> Hash {
        digest::json(&json!(self))
    }
}

/// What is told of the provider's claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimReport {
    /// Its namespace in the provider.
    pub namespace: String,
    /// Its storage class there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// `Pending`, `Bound` or `Lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Size of its volume, a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Conditions (of a change of its size, for one), as its status has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Value>,
    /// Somebody deletes it there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
}

/// Fields of a condition that say something at home: not when it was looked at.
const CONDITION_FIELDS: [&str; 4] = ["type", "status", "reason", "message"];

/// Conditions of one claim; Kubernetes knows a handful.
const MAX_CONDITIONS: usize = 16;

/// Phases of a claim.
const PHASES: [&str; 3] = ["Pending", "Bound", "Lost"];

/// Longest quantity an API server writes.
const MAX_QUANTITY: usize = 64;

/// Longest text of a condition, in bytes: as that of an Event.
const MAX_TEXT: usize = 1024;

/// Conditions as both sides know them, and as an API server takes and keeps them: each type once, texts, none empty or too long.
fn conditions<'a>(all: impl IntoIterator<Item = &'a Value>) -> Vec<Value> {
    let shown = |condition: &Value| -> Option<Map<String, Value>> {
        let fields = CONDITION_FIELDS.iter().filter_map(|field| {
            let text = condition.get(*field)?.as_str().filter(|text| !text.is_empty())?;
            Some(((*field).to_owned(), Value::from(cut(text, MAX_TEXT))))
        });
        let fields: Map<_, _> = fields.collect();
        (fields.contains_key("type") && fields.contains_key("status")).then_some(fields)
    };
    let mut kept: Vec<Map<String, Value>> = Vec::new();
    for condition in all.into_iter().filter_map(shown) {
        if kept.len() < MAX_CONDITIONS && kept.iter().all(|known| known.get("type") != condition.get("type"))
        {
            kept.push(condition);
        }
    }
    kept.into_iter().map(Value::from).collect()
}

fn cut(text: &str, longest: usize) -> &str {
    text.get(..text.floor_char_boundary(longest)).unwrap_or(text)
}

impl ClaimReport {
    /// What `claim` (as the provider's API server has it) tells.
    pub fn of(claim: &Value) -> Self {
        let text = |pointer: &str| claim.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let told = claim.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        Self {
            namespace: text("/metadata/namespace").unwrap_or_default(),
            class: text("/spec/storageClassName"),
            phase: text("/status/phase"),
            capacity: text("/status/capacity/storage"),
            conditions: conditions(told),
            deleting: claim.pointer("/metadata/deletionTimestamp").is_some(),
        }
    }

    /// What a provider has sent, as far as it can be what it says.
    ///
    /// # Errors
    /// If it is no report.
    pub fn received(body: &[u8]) -> Result<Self, serde_json::Error> {
        let Self { namespace, class, phase, capacity, conditions: told, deleting } =
            serde_json::from_slice(body)?;
        let name = |text: String| cut(&text, MAX_NAME).to_owned();
        Ok(Self {
            namespace: name(namespace),
            class: class.map(name),
            phase: phase.filter(|phase| PHASES.contains(&phase.as_str())),
            // Whether it is a size is judged by who knows what was asked for.
            capacity: capacity.map(|text| cut(&text, MAX_QUANTITY).to_owned()),
            conditions: conditions(&told),
            deleting,
        })
    }

    /// Its digest.
    pub fn hash(&self) -> Hash {
        digest::json(&json!(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_two_claims_of_one_name_apart_and_are_names() {
        let uid = |text: &str| Uid::from(text);
        assert_eq!(
            remote_name("data-db-0", &uid("3F2c0a44-8c1e-4a8e-9d55-0123456789ab")),
            "data-db-0-3f2c0a44"
        );
        assert_ne!(remote_name("data", &uid("a1")), remote_name("data", &uid("a2")));
        let long = format!("{}.x", "n".repeat(243));
        let name = remote_name(&long, &uid("3f2c0a44-8c1e"));
        assert!(name.len() <= MAX_NAME && name.ends_with("n-3f2c0a44"), "{name}");
        assert_eq!(remote_name(&"n".repeat(253), &uid("3f2c0a44-8c1e")).len(), MAX_NAME);
    }

    #[test]
    fn a_claim_for_what_exists_already_is_not_for_us() {
        assert_eq!(unsupported(&json!({"resources": {}, "selector": null, "dataSource": null})), None);
        for field in ["selector", "dataSource", "dataSourceRef", "volumeAttributesClassName"] {
            let why = unsupported(&json!({ field: {"name": "x"} })).unwrap();
            assert!(why.contains(field.trim_end_matches("Ref")), "{why}");
        }
        assert!(is_portable("team") && !is_portable("volume.kubernetes.io/selected-node"));
    }

    #[test]
    fn a_report_is_about_the_volume_and_not_about_when_it_was_looked_at() {
        let claim = |probed: &str, message: &str| {
            json!({
                "metadata": {"namespace": "shop-turin", "resourceVersion": probed},
                "spec": {"storageClassName": "fast"},
                "status": {
                    "phase": "Bound", "capacity": {"storage": "2Gi"},
                    "conditions": [{"type": "Resizing", "status": "True", "lastProbeTime": probed, "message": message}],
                },
            })
        };
        let report = ClaimReport::of(&claim("1", "m"));
        assert_eq!(report.hash(), ClaimReport::of(&claim("2", "m")).hash());
        assert_ne!(report.hash(), ClaimReport::of(&claim("1", "n")).hash());
        assert_eq!((report.phase.as_deref(), report.capacity.as_deref()), (Some("Bound"), Some("2Gi")));
        let again: ClaimReport = serde_json::from_value(json!(report)).unwrap();
        assert_eq!(again, report);
        assert_eq!(ClaimReport::of(&json!({"status": {"conditions": "x"}})), ClaimReport::default());
    }

    #[test]
    fn of_what_a_provider_sends_only_that_is_kept_that_an_api_server_takes() {
        let long = "ü".repeat(MAX_TEXT);
        let condition =
            |type_: Value, message: Value| json!({"type": type_, "status": "True", "message": message});
        let mut sent = vec![
            condition(json!("Resizing"), json!(long)),
            condition(json!("Resizing"), json!("again")),
            condition(json!("A"), json!("")),
            condition(json!("B"), json!({"not": "a text"})),
            condition(Value::Null, json!("no type")),
            json!("no condition"),
        ];
        sent.extend((0..100).map(|n| condition(json!(format!("T{n}")), Value::Null)));
        let body = json!({
            "namespace": "n".repeat(1000), "phase": "Exploded", "capacity": "9".repeat(1000), "conditions": sent,
        });
        let report = ClaimReport::received(body.to_string().as_bytes()).unwrap();
        assert_eq!((report.namespace.len(), report.phase.as_deref()), (MAX_NAME, None));
        assert_eq!(report.capacity.as_ref().map(String::len), Some(MAX_QUANTITY));
        assert_eq!(report.conditions.len(), MAX_CONDITIONS);
        assert_eq!(report.conditions[0]["message"].as_str().map(str::len), Some(MAX_TEXT));
        assert_eq!(report.conditions[1], json!({"type": "A", "status": "True"}));
        assert_eq!(report.conditions[2], json!({"type": "B", "status": "True"}));
        let kept = ClaimReport::of(&json!({"status": {"conditions": report.conditions}}));
        assert_eq!(kept.conditions, report.conditions, "it would be written again and again");
        assert!(ClaimReport::received(b"[]").is_err());
    }

    #[test]
    fn whether_it_is_bound_at_home_is_no_part_of_what_is_wanted() {
        let wanted =
            WantedClaim { name: "data".to_owned(), storage: "1Gi".to_owned(), ..WantedClaim::default() };
        let body = |bound| json!(ClaimBody { wanted: wanted.clone(), bound });
        let read = |body: Value| serde_json::from_value::<ClaimBody>(body).unwrap().wanted.hash();
        assert_eq!(read(body(true)), read(body(false)));
        let larger = WantedClaim { storage: "2Gi".to_owned(), ..wanted.clone() };
        assert_ne!(larger.hash(), wanted.hash());
    }
}
