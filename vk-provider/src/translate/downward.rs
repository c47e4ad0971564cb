//! Downward API: what a container reads of its own pod is what the user sees of it at home.
//!
//! Values that differ in the provider travel as annotations of the shadow, and references are turned to these. They
//! stay references: a volume shows a label that is changed at home within a minute or so, as anywhere.

use super::{OWN_PREFIX, each_container, list_mut};
use liquid_crds::vocabulary::HOME_VALUE;
use liquid_link::digest::Hash;
use liquid_reflection::companion::HOME_ANNOTATIONS;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Turns the references in `spec` to values of `pod` that differ in the provider; what they are turned to is added to
/// `annotations`.
pub(super) fn keep(pod: &Value, spec: &mut Map<String, Value>, annotations: &mut Map<String, Value>) {
    each_container(spec, |container| {
        for variable in list_mut(container, "/env") {
            redirect(variable.pointer_mut("/valueFrom/fieldRef"), pod, annotations);
        }
    });
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        for file in list_mut(volume, "/downwardAPI/items") {
            redirect(file.pointer_mut("/fieldRef"), pod, annotations);
        }
        for source in list_mut(volume, "/projected/sources") {
            for file in list_mut(source, "/downwardAPI/items") {
                redirect(file.pointer_mut("/fieldRef"), pod, annotations);
            }
        }
    }
}

fn redirect(reference: Option<&mut Value>, pod: &Value, annotations: &mut Map<String, Value>) {
    let Some(reference) = reference else { return };
    let Some(path) = reference.get("fieldPath").and_then(Value::as_str) else { return };
    let Some(value) = differs(pod, path) else { return };
    let name = annotation_for(path);
    reference["fieldPath"] = json!(format!("metadata.annotations['{name}']"));
    annotations.insert(name, Value::String(value));
}

/// The value of a field at home, if the provider's is another one.
///
/// Addresses are not among them: a process can listen on, and reach its machine by, only those it really has.
fn differs(pod: &Value, path: &str) -> Option<String> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    match path {
        "metadata.namespace" => Some(text("/metadata/namespace")),
        "metadata.uid" => Some(text("/metadata/uid")),
        "metadata.labels" => Some(lines(pod.pointer("/metadata/labels"))),
        "metadata.annotations" => Some(lines(pod.pointer("/metadata/annotations"))),
        "spec.nodeName" => Some(text("/spec/nodeName")),
        "spec.serviceAccountName" => Some(text("/spec/serviceAccountName")),
        _ => {
            let (field, key) = path.strip_suffix("']")?.split_once("['")?;
            let replaced = match field {
                "metadata.labels" => key.starts_with(OWN_PREFIX),
                "metadata.annotations" => HOME_ANNOTATIONS.contains(&key) || key.starts_with(OWN_PREFIX),
                _ => false,
            };
            let value = || pod.pointer(&format!("/{}", field.replace('.', "/")))?.get(key);
            replaced.then(|| value().and_then(Value::as_str).unwrap_or_default().to_owned())
        }
    }
}

/// Name of the annotation for a field. Keys of labels may be too long to be part of it.
fn annotation_for(path: &str) -> String {
    match path {
        "metadata.namespace" => format!("{HOME_VALUE}namespace"),
        "metadata.uid" => format!("{HOME_VALUE}uid"),
        "metadata.labels" => format!("{HOME_VALUE}labels"),
        "metadata.annotations" => format!("{HOME_VALUE}annotations"),
        "spec.nodeName" => format!("{HOME_VALUE}node-name"),
        "spec.serviceAccountName" => format!("{HOME_VALUE}service-account-name"),
        _ => format!("{HOME_VALUE}{}", Hash::of(path.as_bytes())),
    }
}

/// Labels or annotations as kubelets write them into a file: sorted, `KEY="VALUE"`, one a line.
fn lines(values: Option<&Value>) -> String {
    let mut text = String::new();
    let values = values.and_then(Value::as_object).into_iter().flatten();
    for (key, value) in values.filter(|(key, _)| !key.starts_with(OWN_PREFIX)) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(key);
        text.push('=');
        quote(&mut text, value.as_str().unwrap_or_default());
    }
    text
}

/// Quotes like Go's `%q`, which kubelets use.
fn quote(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\x07' => text.push_str("\\a"),
            '\x08' => text.push_str("\\b"),
            '\x0c' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\x0b' => text.push_str("\\v"),
            ' '..='~' => text.push(c),
            // Writing to a String does not fail.
            '\0'..='\x7f' => drop(write!(text, "\\x{:02x}", u32::from(c))),
            _ if printable(c) => text.push(c),
            '\u{10000}'.. => drop(write!(text, "\\U{:08x}", u32::from(c))),
            _ => drop(write!(text, "\\u{:04x}", u32::from(c))),
        }
    }
    text.push('"');
}

/// The table behind `escape_debug` is that of Go's `IsPrint`; only at the start of a text it escapes combining marks too.
fn printable(c: char) -> bool {
    let text = format!("a{c}");
    text.escape_debug().eq(text.chars())
}

#[cfg(test)]
mod tests {
    use super::super::{Access, pod_without_claims as pod};
    use super::*;

    fn home(env: &Value, items: &Value) -> Value {
        json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u1",
                "labels": {"app": "web", "tier": "front"},
                "annotations": {
                    "note": "say \"hi\"\n", "liquid.mesh/x": "y",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}",
                },
            },
            "spec": {
                "nodeName": "liquid-milan", "serviceAccountName": "seller",
                "containers": [{"name": "c", "env": env}],
                "volumes": [
                    {"name": "info", "downwardAPI": {"items": items}},
                    {"name": "more", "projected": {"sources": [{"downwardAPI": {"items": items}}]}},
                ],
            },
        })
    }

    /// What a container in the provider reads: the reference resolved against the shadow.
    fn reads(path: &str) -> String {
        let reference = json!({"fieldRef": {"fieldPath": path}});
        let body =
            pod(&home(&json!([{"name": "V", "valueFrom": reference}]), &json!([reference])), Access::None)
                .unwrap();
        let path = |pointer: &str| {
            body.pointer(&format!("/spec{pointer}/fieldRef/fieldPath")).unwrap().as_str().unwrap().to_owned()
        };
        let turned = path("/containers/0/env/0/valueFrom");
        assert_eq!(path("/volumes/0/downwardAPI/items/0"), turned);
        assert_eq!(path("/volumes/1/projected/sources/0/downwardAPI/items/0"), turned);
        let Some(name) = turned.strip_prefix("metadata.annotations['").and_then(|it| it.strip_suffix("']"))
        else {
            return format!("-> {turned}");
        };
        assert!(name.rsplit('/').next().unwrap().len() <= 63, "{name}");
        body["metadata"]["annotations"][name].as_str().unwrap_or("(none)").to_owned()
    }

    #[test]
    fn containers_read_of_their_pod_what_it_is_at_home() {
        let long = format!("metadata.labels['liquid.mesh/{}']", "x".repeat(63));
        for (path, expected) in [
            ("metadata.namespace", "shop"),
            ("metadata.uid", "u1"),
            ("metadata.labels", "app=\"web\"\ntier=\"front\""),
            (
                "metadata.annotations",
                "kubectl.kubernetes.io/last-applied-configuration=\"{}\"\nnote=\"say \\\"hi\\\"\\n\"",
            ),
            ("spec.nodeName", "liquid-milan"),
            ("spec.serviceAccountName", "seller"),
            ("metadata.annotations['kubectl.kubernetes.io/last-applied-configuration']", "{}"),
            (&long, ""),
            // The same there, and live.
            ("metadata.name", "-> metadata.name"),
            ("metadata.labels['app']", "-> metadata.labels['app']"),
            ("metadata.annotations['note']", "say \"hi\"\n"),
            ("status.podIP", "-> status.podIP"),
            ("status.podIPs", "-> status.podIPs"),
            ("status.hostIP", "-> status.hostIP"),
            ("status.hostIPs", "-> status.hostIPs"),
        ] {
            assert_eq!(reads(path), expected, "{path}");
        }
    }

    #[test]
    fn a_label_changed_at_home_reaches_the_file() {
        let items = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
        let mut changed = home(&json!([]), &items);
        let before = pod(&changed, Access::None).unwrap();
        changed["metadata"]["labels"]["app"] = json!("web2");
        let after = pod(&changed, Access::None).unwrap();
        assert_eq!(before["spec"], after["spec"], "what cannot be changed in a running pod stays");
        let text = after["metadata"]["annotations"][format!("{HOME_VALUE}labels")].as_str().unwrap();
        assert!(text.contains("app=\"web2\""), "{text}");
    }

    #[test]
    fn pods_that_do_not_ask_carry_nothing_more() {
        let body = pod(&home(&json!([]), &json!([])), Access::None).unwrap();
        assert_eq!(body["metadata"]["annotations"], json!({"note": "say \"hi\"\n"}));
    }

    #[test]
    fn files_are_quoted_as_kubelets_do() {
        for (value, quoted) in [
            ("\u{7}\u{8}\u{b}\u{c}\r\t\\", r#""\a\b\v\f\r\t\\""#),
            ("\u{0}\u{1b}\u{7f}", r#""\x00\x1b\x7f""#),
            ("grüße 'x' \u{301}", "\"grüße 'x' \u{301}\""),
            ("\u{a0}\u{200b}\u{e0001}", r#""\u00a0\u200b\U000e0001""#),
        ] {
            let mut text = String::new();
            quote(&mut text, value);
            assert_eq!(text, quoted);
        }
    }
}
