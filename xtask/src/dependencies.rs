//! `cargo xtask dependencies`: whether everything Liquid is linked from may be linked into it.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::output;

/// Licences (SPDX) that a program under Apache-2.0 may include without further conditions than naming them.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Second implementations of what the tree has one of: TLS and its cryptography come from rustls and ring alone.
const BANNED: [&str; 4] = ["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl-sys"];

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", env::consts::ARCH))
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let found = complaints(&metadata)?;
    if !found.is_empty() {
        bail!("dependencies that must not be:\n  {}", found.join("\n  "));
    }
    output::note("all dependencies may be linked in");
    Ok(ExitCode::SUCCESS)
}

fn complaints(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    // The packages of other platforms are listed too; what is linked is what the resolved graph names.
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata resolves nothing")?;
    let linked = |package: &&Value| nodes.iter().any(|node| node["id"] == package["id"]);
    let mut found = Vec::new();
    for package in packages.iter().filter(linked) {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default();
        if BANNED.contains(&name) {
            found.push(format!("{name}: there is one crypto provider, ring"));
        }
        if !allows(licence) {
            found.push(format!("{name}: its licence '{licence}' is not among those allowed"));
        }
    }
    Ok(found)
}

/// Whether an SPDX expression can be met with allowed licences. Old manifests write `/` for `OR`.
fn allows(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> bool {
    let mut met = all(words);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words);
    }
    met
}

fn all(words: &mut Words<'_>) -> bool {
    let mut met = one(words);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words);
    }
    met
}

fn one(words: &mut Words<'_>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words);
        return words.next() == Some(")") && met;
    }
    let Some(name) = words.next() else { return false };
    match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
        Some(exception) => ALLOWED.contains(&format!("{name} WITH {exception}").as_str()),
        None => ALLOWED.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_are_met_by_any_allowed_alternative_and_by_all_joint_ones() {
        for good in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-2.0 OR (MIT AND ISC)",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
        ] {
            assert!(allows(good), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT)", "MIT WITH Something", "MIT GPL-3.0"] {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn only_packages_of_the_resolved_graph_count() {
        let metadata = json!({
            "packages": [
                { "id": "1", "name": "good", "license": "MIT" },
                { "id": "2", "name": "openssl-sys", "license": "MIT" },
                { "id": "3", "name": "elsewhere", "license": "GPL-3.0" },
            ],
            "resolve": { "nodes": [{ "id": "1" }, { "id": "2" }] },
        });
        let found = complaints(&metadata).unwrap();
        assert!(found.len() == 1 && found[0].starts_with("openssl-sys"), "{found:?}");
    }
}
