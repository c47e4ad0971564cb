//! Writes the CRD manifests of the chart, or checks that they are in sync: `crdgen DIR [--check]`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

const HEADER: &str = "# Generated from crds/src by `cargo xtask gen`; do not edit.\n";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(directory) = arguments.next().map(PathBuf::from) else {
        return complain("usage: crdgen DIR [--check]");
    };
    let check = match arguments.next().as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => return complain(&format!("unknown argument {other}; usage: crdgen DIR [--check]")),
    };
    match run(&directory, check) {
        Ok(stale) if stale.is_empty() => ExitCode::SUCCESS,
        Ok(stale) => complain(&format!("not in sync: {}; run `cargo xtask gen`", stale.join(", "))),
        Err(error) => complain(&format!("{}: {error}", directory.display())),
    }
}

/// Writes the manifests, or returns the names of those that differ.
fn run(directory: &Path, check: bool) -> io::Result<Vec<String>> {
    let mut stale = Vec::new();
    let mut expected = Vec::new();
    for manifest in liquid_crds::manifests() {
        let yaml = serde_saphyr::to_string(&manifest.crd).map_err(io::Error::other)?;
        let text = format!("{HEADER}{yaml}");
        let path = directory.join(&manifest.file);
        let current = fs::read_to_string(&path).unwrap_or_default();
        if current != text {
            if check {
                stale.push(manifest.file.clone());
            } else {
                fs::write(&path, text)?;
            }
        }
        expected.push(manifest.file);
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !expected.contains(&name) {
            if check {
                stale.push(name);
            } else {
                fs::remove_file(directory.join(name))?;
            }
        }
    }
    Ok(stale)
}

#[allow(clippy::print_stderr, reason = "a command line tool")]
fn complain(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
