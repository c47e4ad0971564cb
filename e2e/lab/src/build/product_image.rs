//! The image of Liquid itself: static binaries of this source tree, assembled by buildah without any registry.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::build::cache::{Cache, KeyBuilder};
use crate::host::command;
use crate::progress::Progress;

/// Repository of the image; the tag is the hash of its content.
const REPOSITORY: &str = "liquid.mesh/liquid";
/// What the image holds: to add a binary, add its package and name.
const BINARIES: [(&str, &str); 4] = [
    ("liquid-peering", "liquid-controller"),
    ("liquid-vk-provider", "liquid-kubelet"),
    ("liquid-gateway", "liquid-gateway"),
    ("liquid-fabric", "liquid-fabric"),
];
/// The root of the source tree.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// There is no C library in an image built from scratch.
const RUST_FLAGS: &str = "-C target-feature=+crt-static";

/// A built image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductImage {
    /// What pods name it by. Another content has another reference, so that a changed binary rolls a Deployment.
    pub reference: String,
    /// Where it is, as a `docker save` archive.
    pub archive: PathBuf,
}

impl ProductImage {
    /// Builds the binaries with a cargo profile (`release`, or `dev` for a faster build of slower binaries) and the
    /// image from them. Nothing is written anew if nothing changed.
    ///
    /// # Errors
    /// If the binaries do not compile, are not static, or buildah fails.
    pub fn build(profile: &str, cache: &Cache, progress: &Progress) -> anyhow::Result<Self> {
        let workspace = workspace()?;
        let containerfile = workspace.join("Containerfile");
        let binaries = Self::programs(profile)?;
        let mut key = KeyBuilder::new(REPOSITORY).file(&containerfile)?;
        for binary in &binaries {
            key = key.file(binary)?;
        }
        let key = key.finish();
        let reference = format!("{REPOSITORY}:dev-{}", key.as_str());
        let entry = cache.entry("images/liquid", &key, |directory| {
            let _step = progress.long("assembling the image");
            assemble(&containerfile, &binaries, &reference, directory)
        })?;
        Ok(Self { reference, archive: entry.join("image.tar") })
    }

    /// Builds what the image holds: the programs as they are in it.
    ///
    /// # Errors
    /// If the binaries do not compile, or are not static.
    pub fn programs(profile: &str) -> anyhow::Result<Vec<PathBuf>> {
        compile(&workspace()?, profile)
    }
}

fn workspace() -> anyhow::Result<PathBuf> {
    Path::new(WORKSPACE).canonicalize().context("the source tree is missing")
}

fn compile(workspace: &Path, profile: &str) -> anyhow::Result<Vec<PathBuf>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut build = Command::new(&cargo);
    build.current_dir(workspace).args(["build", "--profile", profile, "--target", &target]);
    // Flags of the target only: build scripts and macros run on the host and stay as they are.
    build.env(format!("CARGO_TARGET_{}_RUSTFLAGS", target.replace('-', "_").to_uppercase()), RUST_FLAGS);
    for (package, binary) in BINARIES {
        build.args(["--package", package, "--bin", binary]);
    }
    let shown = command::describe(&build);
    // cargo reports its own progress and errors.
    let status = build.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed");
    }
    let mut metadata = Command::new(&cargo);
    metadata.current_dir(workspace).args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&command::finish(&mut metadata, None)?)?;
    let root = metadata["target_directory"].as_str().context("cargo does not say where it builds")?;
    let directory = Path::new(root).join(target).join(if profile == "dev" { "debug" } else { profile });
    let binaries: Vec<PathBuf> = BINARIES.iter().map(|(_, binary)| directory.join(binary)).collect();
    binaries.iter().try_for_each(|binary| check_static(binary))?;
    Ok(binaries)
}

/// In an image from scratch, a binary that wants a loader fails with "no such file": better found out here.
fn check_static(binary: &Path) -> anyhow::Result<()> {
    let content = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    if names_loader(&content).with_context(|| format!("{} is not a 64-bit ELF file", binary.display()))? {
        bail!("{} is linked dynamically and would not start in the image", binary.display());
    }
    Ok(())
}

/// Whether a 64-bit little-endian ELF file has a program header of type `PT_INTERP` (ELF-64 object file format).
fn names_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let number = |offset: usize| Some(u16::from_le_bytes(elf.get(offset..offset + 2)?.try_into().ok()?));
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(number(54)?), usize::from(number(56)?));
    let kind = |index: usize| {
        let start = table.checked_add(index * size)?;
        Some(u32::from_le_bytes(elf.get(start..start.checked_add(4)?)?.try_into().ok()?))
    };
    Some((0..count).any(|index| kind(index) == Some(PT_INTERP)))
}

/// buildah keeps its state below the directory of the entry and leaves nothing elsewhere.
fn assemble(
    containerfile: &Path,
    binaries: &[PathBuf],
    reference: &str,
    directory: &Path,
) -> anyhow::Result<()> {
    let (context, storage) = (directory.join("context"), directory.join("storage"));
    fs::create_dir_all(context.join("bin"))?;
    for binary in binaries {
        let name = binary.file_name().context("a binary without a name")?;
        fs::copy(binary, context.join("bin").join(name))
            .with_context(|| format!("cannot copy {}", binary.display()))?;
    }
    let buildah = || {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    };
    let mut build = buildah();
    build.args(["build", "--format", "docker", "--timestamp", "0", "--tag", reference, "--file"]);
    command::finish(build.arg(containerfile).arg(&context), None)?;
    let archive = format!("docker-archive:{}:{reference}", directory.join("image.tar").display());
    command::finish(buildah().args(["push", reference, &archive]), None)?;
    for temporary in [context, storage] {
        crate::build::cache::remove_all(&temporary)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_file_that_is_none() {
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        assert_eq!(names_loader(&own), Some(true));
        assert_eq!(names_loader(b"#!/bin/sh\n"), None);
        assert_eq!(names_loader(&own[..40]), None);
    }
}
