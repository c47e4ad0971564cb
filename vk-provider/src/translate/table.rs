//! Holds the code to the tables of `docs/pods.md`: they name every field of a pod that the compiled or the newest known
//! Kubernetes API has, no other, and each field fares as its row says. A new API version cannot bring a field that nobody
//! has thought about.

use super::{Access, newest, tokens};
use crate::status;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DynamicObject;
use liquid_crds::vocabulary::RESTARTS_BEFORE;
use liquid_reflection::frame::Refusal;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The body of a pod whose claims have other names there.
fn pod(home: &Value, access: Access) -> Result<Value, Refusal> {
    super::pod(home, access, |claim| Some(format!("{claim}-there")))
}

const DOCUMENT: &str = include_str!("../../../docs/pods.md");

/// What a row says becomes of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The same on the other side.
    Copied,
    /// Changed, as one of [`examples`] shows.
    Rewritten,
    /// Not on the other side, and nothing below it.
    Left,
    /// A pod with it, or with anything below it, is refused.
    Refused,
    /// Not in the body, nor anything below it: it is said otherwise.
    Beside,
}

impl Verdict {
    /// What is true of the field is true of everything below it.
    fn covers_all_below(self) -> bool {
        matches!(self, Self::Left | Self::Refused | Self::Beside)
    }
}

#[derive(Debug)]
struct Row {
    verdict: Verdict,
    /// The compiled API version does not have it yet.
    newer: bool,
}

/// The rows by path.
fn rows() -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    let tables = DOCUMENT.split("\n\n").filter_map(|block| block.split_once("| field | | why, and how |"));
    for line in tables.flat_map(|(_, rows)| rows.lines()).filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [names, verdict, reason] = cells[..] else { panic!("three cells: {line}") };
        assert!(verdict == "copied" || !reason.is_empty(), "no reason: {line}");
        let verdict = match verdict {
            "copied" => Verdict::Copied,
            "rewritten" => Verdict::Rewritten,
            "left" => Verdict::Left,
            "refused" => Verdict::Refused,
            "beside" => Verdict::Beside,
            other => panic!("{other:?} in {line}"),
        };
        for path in names.split('`').skip(1).step_by(2).flat_map(expand) {
            // Containers of all kinds fare alike; their types have the same fields.
            let others = ["initContainers", "ephemeralContainers"].map(|kind| {
                path.strip_prefix("spec.containers[]").map(|rest| format!("spec.{kind}[]{rest}"))
            });
            for path in others.into_iter().flatten().chain([path.clone()]) {
                let row = Row { verdict, newer: names.ends_with("(newer)") };
                assert!(rows.insert(path.clone(), row).is_none(), "{path} is there twice");
            }
        }
    }
    rows
}

/// `a.{b,c.{d,e}}` stands for `a.b`, `a.c.d` and `a.c.e`.
fn expand(path: &str) -> Vec<String> {
    let Some(open) = path.find('{') else { return vec![path.to_owned()] };
    let (mut depth, mut begin, mut alternatives, mut end) = (0, open + 1, Vec::new(), path.len());
    for (at, c) in path.char_indices().skip(open) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || (c == '}' && depth == 0) {
            alternatives.push(&path[begin..at]);
            begin = at + 1;
        }
        if depth == 0 {
            end = at + 1;
            break;
        }
    }
    let rests =
        alternatives.iter().map(|alternative| format!("{}{alternative}{}", &path[..open], &path[end..]));
    rests.flat_map(|path| expand(&path)).collect()
}

fn is_within(field: &str, ancestor: &str) -> bool {
    field.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The fields of a pod that have no fields of their own, by path, each with a value it may have.
fn fields() -> BTreeMap<String, Value> {
    let schema = serde_json::to_value(schemars::schema_for!(Pod)).unwrap();
    let mut fields = BTreeMap::new();
    for part in ["metadata", "spec", "status"] {
        walk(&schema["$defs"], &schema["properties"][part], part, &mut fields);
    }
    fields
}

fn walk(definitions: &Value, schema: &Value, path: &str, fields: &mut BTreeMap<String, Value>) {
    let schema = resolve(definitions, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(definitions, property, &format!("{path}.{name}"), fields);
        }
    } else if schema["items"].is_object() && resolve(definitions, &schema["items"])["properties"].is_object()
    {
        walk(definitions, &schema["items"], &format!("{path}[]"), fields);
    } else {
        fields.insert(path.to_owned(), sample(definitions, schema));
    }
}

fn resolve<'a>(definitions: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref")).and_then(Value::as_str);
    match reference {
        Some(reference) => resolve(definitions, &definitions[reference.strip_prefix("#/$defs/").unwrap()]),
        None => schema,
    }
}

fn sample(definitions: &Value, schema: &Value) -> Value {
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").unwrap(),
        kind => kind,
    };
    match kind.as_str() {
        Some("array") => json!([sample(definitions, resolve(definitions, &schema["items"]))]),
        Some("object") => json!({"key": "value"}),
        Some("boolean") => json!(true),
        Some("integer" | "number") => json!(7),
        _ => json!("text"),
    }
}

/// A pod with this one field.
fn with(path: &str, value: &Value) -> Value {
    let Some((first, rest)) = path.split_once('.') else { return json!({ path: value }) };
    let inner = with(rest, value);
    match first.strip_suffix("[]") {
        Some(list) => json!({ list: [inner] }),
        None => json!({ first: inner }),
    }
}

/// The value of a field; of lists, that of the first item.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    value.pointer(&format!("/{}", path.replace("[]", ".0").replace('.', "/")))
}

/// What is rewritten: paths, a pod, and what becomes of it.
fn examples() -> Vec<(&'static str, Value, Value)> {
    let terms = |topology: &str, app: &str| {
        json!({"topologyKey": topology, "labelSelector": {
            "matchLabels": {"app": app}, "matchExpressions": [{"key": app, "operator": app, "values": [app]}],
        }})
    };
    let affinity = |terms: &[Value]| {
        let weighted: Vec<_> = terms
            .iter()
            .enumerate()
            .map(|(i, term)| json!({"weight": i + terms.len(), "podAffinityTerm": term}))
            .collect();
        let both = json!({
            "requiredDuringSchedulingIgnoredDuringExecution": terms,
            "preferredDuringSchedulingIgnoredDuringExecution": weighted,
        });
        json!({"spec": {"affinity": {"podAffinity": both, "podAntiAffinity": both}}})
    };
    let (zone, machine) = (terms("topology.kubernetes.io/zone", "a"), terms("kubernetes.io/hostname", "b"));
    let mut apart = affinity(std::slice::from_ref(&machine));
    for kind in ["podAffinity", "podAntiAffinity"] {
        apart["spec"]["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"] =
            json!(3);
    }
    let node = |expressions: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": expressions}],
        }}}}})
    };
    let arch = json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]});
    let spread = |list: Value| json!({"spec": {"topologySpreadConstraints": list}});
    let skewed = |key: &str, when: &str, n: u32| {
        let mut constraint = terms(key, &format!("a{n}"));
        constraint["whenUnsatisfiable"] = json!(when);
        for field in ["maxSkew", "nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint[field] = json!(n);
        }
        constraint
    };
    let reference = |path: &str| json!({"fieldPath": path});
    let namespace = "metadata.annotations['home.liquid.mesh/namespace']";
    let reading = |path: &str| {
        let env = json!([{"valueFrom": {"fieldRef": reference(path)}}]);
        let items = json!({"items": [{"fieldRef": reference(path)}]});
        json!({"spec": {
            "containers": [{"env": env}], "initContainers": [{"env": env}], "ephemeralContainers": [{"env": env}],
            "volumes": [{"downwardAPI": items, "projected": {"sources": [{"downwardAPI": items}]}}],
        }})
    };
    let mut home = reading("metadata.namespace");
    home["metadata"] = json!({"namespace": "shop"});
    let mut shadow = reading(namespace);
    shadow["metadata"] = json!({"annotations": {"home.liquid.mesh/namespace": "shop"}});
    let toleration = |key: &str, n: u32| json!({"key": key, "operator": format!("o{n}"), "value": format!("v{n}"), "effect": format!("e{n}"), "tolerationSeconds": n});
    vec![
        (
            "metadata.annotations",
            json!({"metadata": {"annotations": {"a": "b", "kubectl.kubernetes.io/last-applied-configuration": "{}", "liquid.mesh/x": "y"}}}),
            json!({"metadata": {"annotations": {"a": "b"}}}),
        ),
        (
            "spec.nodeSelector",
            json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "amd64", "disk": "ssd"}}}),
            json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "amd64"}}}),
        ),
        (
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[].matchExpressions[].{key,operator,values}",
            node(json!([{"key": "disk", "operator": "NotIn", "values": ["hdd"]}, arch])),
            node(json!([arch])),
        ),
        (
            "spec.affinity.{podAffinity,podAntiAffinity}.{requiredDuringSchedulingIgnoredDuringExecution[],preferredDuringSchedulingIgnoredDuringExecution[].podAffinityTerm}.{topologyKey,labelSelector.{matchLabels,matchExpressions[].{key,operator,values}}}",
            affinity(&[zone.clone(), machine.clone()]),
            apart.clone(),
        ),
        (
            "spec.affinity.{podAffinity,podAntiAffinity}.preferredDuringSchedulingIgnoredDuringExecution[].weight",
            affinity(&[zone, machine]),
            apart,
        ),
        (
            "spec.topologySpreadConstraints[].{labelSelector.{matchLabels,matchExpressions[].{key,operator,values}},maxSkew,nodeAffinityPolicy,nodeTaintsPolicy,topologyKey,whenUnsatisfiable}",
            spread(json!([
                skewed("liquid.mesh/peer", "DoNotSchedule", 1),
                skewed("topology.kubernetes.io/zone", "DoNotSchedule", 2),
            ])),
            spread(json!([skewed("topology.kubernetes.io/zone", "ScheduleAnyway", 2)])),
        ),
        (
            "spec.tolerations[].{effect,key,operator,tolerationSeconds,value}",
            json!({"spec": {"tolerations": [toleration("liquid.mesh/virtual-node", 1), toleration("gpu", 2)]}}),
            json!({"spec": {"tolerations": [toleration("gpu", 2)]}}),
        ),
        (
            "spec.{containers,initContainers,ephemeralContainers}[].env[].valueFrom.fieldRef.fieldPath",
            home.clone(),
            shadow.clone(),
        ),
        (
            "spec.volumes[].persistentVolumeClaim.claimName",
            json!({"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}}),
            json!({"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data-there"}}]}}),
        ),
        (
            "spec.volumes[].{downwardAPI,projected.sources[].downwardAPI}.items[].fieldRef.fieldPath",
            home,
            shadow,
        ),
    ]
}

#[test]
fn the_table_names_every_field_of_a_pod_and_no_other() {
    let fields = fields();
    let rows = rows();
    let covered = |field: &String| {
        rows.iter()
            .any(|(path, row)| path == field || (row.verdict.covers_all_below() && is_within(field, path)))
    };
    let (version, newest) = newest::fields();
    assert!(
        DOCUMENT.contains(&format!("that of {version};")),
        "docs/pods.md does not say that it is about {version}"
    );
    assert!(newest.len() > 800, "{} fields: the sources of k8s-openapi look different", newest.len());
    let all: BTreeSet<&String> = fields.keys().chain(&newest).collect();
    // Of the status, each field is one matter.
    let (of_status, of_pod): (BTreeSet<_>, BTreeSet<_>) =
        all.into_iter().partition(|field| field.starts_with("status."));
    let missing: BTreeSet<_> = of_pod.into_iter().filter(|field| !covered(field)).collect();
    assert!(missing.is_empty(), "not in docs/pods.md: {missing:#?}");
    for field in of_status {
        let top = field.split(['.', '[']).take(2).collect::<Vec<_>>().join(".");
        assert!(rows.contains_key(&top), "not in docs/pods.md: {top}");
    }
    for (path, row) in &rows {
        let known = fields.keys().any(|field| is_within(field, path));
        assert!(known || newest.iter().any(|field| is_within(field, path)), "{path}: no such field");
        assert_eq!(known, !row.newer, "{path}: only fields the compiled version does not have are (newer)");
    }
}

#[test]
fn each_field_of_a_pod_fares_as_its_row_says() {
    let fields = fields();
    let rows = rows();
    let mut shown = BTreeSet::new();
    for (paths, home, expected) in examples() {
        let mut body = pod(&home, Access::None).unwrap();
        if body["metadata"]["labels"] == json!({}) {
            body["metadata"].as_object_mut().unwrap().remove("labels");
        }
        if body["metadata"]["annotations"] == json!({}) {
            body["metadata"].as_object_mut().unwrap().remove("annotations");
        }
        body.as_object_mut().unwrap().retain(|_, part| *part != json!({}));
        assert_eq!(body, expected, "{paths}");
        for path in expand(paths) {
            assert_ne!(at(&home, &path), at(&body, &path), "{path} is not rewritten");
            assert_eq!(rows.get(&path).map(|row| row.verdict), Some(Verdict::Rewritten), "{path}");
            shown.insert(path);
        }
    }
    for (path, row) in rows.iter().filter(|(path, _)| !path.starts_with("status.")) {
        let mut below: Map<String, Value> = fields
            .iter()
            .filter(|(field, _)| is_within(field, path))
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect();
        if row.newer {
            below.insert(path.clone(), json!("text"));
        }
        assert!(!below.is_empty(), "{path}");
        for (field, value) in &below {
            let body = pod(&with(field, value), Access::None);
            match row.verdict {
                Verdict::Copied => assert_eq!(at(&body.unwrap(), field), Some(value), "{field}"),
                Verdict::Left | Verdict::Beside => assert_eq!(at(&body.unwrap(), field), None, "{field}"),
                Verdict::Refused => assert!(body.is_err(), "{field} is not refused: {body:?}"),
                Verdict::Rewritten => assert!(shown.contains(path), "{path} has no example"),
            }
        }
    }
}

#[test]
fn each_field_of_a_status_fares_as_its_row_says() {
    for (path, row) in rows().iter().filter(|(path, _)| path.starts_with("status.")) {
        let name = path.strip_prefix("status.").unwrap();
        let there = json!({"shown": "as it is"});
        let patch = status::patch("u1", &json!({ name: there }), Some("192.0.2.1"));
        let shown = patch["status"].get(name);
        match row.verdict {
            Verdict::Copied => assert_eq!(shown, Some(&there), "{path}"),
            Verdict::Left => assert_eq!(shown, None, "{path}"),
            Verdict::Rewritten => assert!(shown.is_some() && shown != Some(&there), "{path}: {shown:?}"),
            Verdict::Refused | Verdict::Beside => panic!("{path}: {row:?}"),
        }
    }
}

/// Values of other kinds than a field has, in its place and in that of everything above it.
#[test]
fn a_pod_that_is_not_as_the_schema_says_does_no_harm() {
    let odd = [
        json!(null),
        json!("text"),
        json!(7),
        json!([]),
        json!({}),
        json!([null]),
        json!([[7]]),
        json!([{}]),
    ];
    let fields = fields();
    let places: BTreeSet<&str> = fields
        .keys()
        .flat_map(|field| {
            field.match_indices(['.', '[']).map(|(end, _)| &field[..end]).chain([field.as_str()])
        })
        .collect();
    for place in places {
        for value in &odd {
            let odd_pod = with(place, value);
            // Whether it is refused does not matter here.
            drop(pod(&odd_pod, Access::None));
            drop(pod(&odd_pod, Access::Server));
            drop(tokens(odd_pod.get("spec").unwrap_or(&Value::Null)));
            let object = |status: &Value| -> DynamicObject {
                let gates = json!({"readinessGates": [{"conditionType": "x"}]});
                let restarts = json!({"annotations": {RESTARTS_BEFORE: r#"{"text": 1}"#}});
                serde_json::from_value(json!({"metadata": restarts, "spec": gates, "status": status}))
                    .unwrap()
            };
            let status = &odd_pod["status"];
            let home = object(status);
            let _ = status::digest(&home);
            let mut patch = status::patch("u1", status, None);
            status::fit(&mut patch, &home);
            status::fit(&mut patch, &object(&json!({"startTime": "another"})));
            status::keep_ended(&mut patch, &json!({"spec": {"restartPolicy": "Never"}, "status": status}));
        }
    }
}

#[test]
fn paths_are_spelled_out() {
    assert_eq!(expand("a.{b,c.{d,e}}.f"), ["a.b.f", "a.c.d.f", "a.c.e.f"]);
    assert_eq!(with("a.b[].c", &json!(1)), json!({"a": {"b": [{"c": 1}]}}));
    assert_eq!(at(&json!({"a": {"b": [{"c": 1}]}}), "a.b[].c"), Some(&json!(1)));
}
