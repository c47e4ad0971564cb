//! The fields of a pod in the newest Kubernetes API that `k8s-openapi` knows. Only one version can be compiled in, and that
//! is not the newest; the sources of all of them come with the crate.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules with the types of a pod.
const MODULES: [&str; 2] = ["api/core/v1", "apimachinery/pkg/apis/meta/v1"];

/// A field of a type: its name, its own type if that has fields too, and whether it is a list.
#[derive(Debug)]
struct Property {
    name: String,
    of: Option<String>,
    list: bool,
}

/// The newest version (`1.37`, say), and the paths of the fields that have no fields of their own.
pub(super) fn fields() -> (String, BTreeSet<String>) {
    let (minor, sources) = newest();
    let types = types(&sources);
    let mut fields = BTreeSet::new();
    for (part, of) in [("metadata", "ObjectMeta"), ("spec", "PodSpec"), ("status", "PodStatus")] {
        walk(&types, of, part, &mut fields);
    }
    (format!("1.{minor}"), fields)
}

fn walk(types: &BTreeMap<String, Vec<Property>>, of: &str, path: &str, fields: &mut BTreeSet<String>) {
    for Property { name, of, list } in &types[of] {
        let path = format!("{path}.{name}");
        match of.as_ref().filter(|of| types.get(*of).is_some_and(|properties| !properties.is_empty())) {
            Some(of) => walk(types, of, &if *list { format!("{path}[]") } else { path }, fields),
            None => _ = fields.insert(path),
        }
    }
}

/// The minor number and the directory of the newest version.
fn newest() -> (u32, PathBuf) {
    let rustc = output(Command::new("rustc").arg("-vV"));
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // What other platforms need has not been fetched where nothing but tests were built.
    let metadata = output(
        Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", host])
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")),
    );
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let package = packages.into_iter().find(|package| package["name"] == "k8s-openapi").unwrap();
    let sources = Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src");
    let entries = sources.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let minor = entries.filter_map(|name| name.strip_prefix("v1_")?.parse::<u32>().ok()).max().unwrap();
    (minor, sources.join(format!("v1_{minor}")))
}

fn output(command: &mut Command) -> String {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// The types of the modules, as the generated code describes them. It is formatted strictly, one property after the other.
fn types(version: &Path) -> BTreeMap<String, Vec<Property>> {
    let mut types = BTreeMap::new();
    for file in MODULES.iter().flat_map(|module| version.join(module).read_dir().unwrap()) {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let Some((_, schema)) = text.split_once("impl crate::schemars::JsonSchema for ") else { continue };
        let name = schema.split(' ').next().unwrap().to_owned();
        let properties = schema.split_once("\n            \"properties\": {\n");
        let properties = properties.map_or("", |(_, rest)| rest.split("\n            }").next().unwrap());
        let mut known: Vec<Property> = Vec::new();
        for line in properties.lines() {
            let name = line.strip_prefix("                \"").and_then(|rest| rest.split('"').next());
            if let Some(name) = name {
                known.push(Property { name: name.to_owned(), of: None, list: false });
            }
            let Some(property) = known.last_mut() else { continue };
            property.list |= line == "                    \"type\": \"array\",";
            if let Some((_, rest)) = line.split_once("subschema_for::<") {
                property.of =
                    rest.split('>').next().and_then(|path| path.rsplit("::").next()).map(str::to_owned);
            }
        }
        types.insert(name, known);
    }
    types
}
