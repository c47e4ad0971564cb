//! `cargo xtask fuzz`: arbitrary input, guided by coverage, for what reads bytes from outside.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::child::{self, Interrupt};
use crate::{output, workspace};

/// What input may be made of it: parsers have bounds of their own, and short input is tried faster.
const MAX_LENGTH: u32 = 4096;
/// No input takes a thousandth of this.
const TIMEOUT_SECONDS: u32 = 10;
/// Far above what a gateway needs; what grows without bound gets there.
const MEMORY_MB: u32 = 1024;
/// Time for the build, and for each target beside what was asked for.
const SLACK: Duration = Duration::from_secs(20 * 60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What to try; everything, if nothing is named.
    targets: Vec<String>,
    /// How long to try each.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Try the same input in the same order, as far as that depends on chance; another one each time, if unset.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    seed: Option<u32>,
    /// Run this input alone: one that made a target fail before.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "seed"])]
    input: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let root = Path::new(workspace::ROOT);
    let known = targets(&root.join("fuzz/fuzz_targets"))?;
    if let Some(unknown) = arguments.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no target '{unknown}'; there are {}", known.join(", "));
    }
    let chosen = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    if arguments.input.is_some() && chosen.len() != 1 {
        bail!("an input is for one target: name it");
    }

    // The whole workspace, although one package is meant: with another choice of packages, cargo chooses other features of what
    // they depend on, and compiles it again.
    let mut build = workspace::cargo(&["build", "--workspace"]);
    build.args(chosen.iter().flat_map(|target| ["--bin".to_owned(), format!("fuzz-{target}")]));
    build.env("RUSTC_WORKSPACE_WRAPPER", fs::canonicalize(root.join("fuzz/rustc"))?);
    child::run(&mut build, &interrupt, SLACK)?.success("building the targets")?;

    for target in chosen {
        output::note(&format!("fuzz {target}"));
        let mut command = command(target, arguments)?;
        let limit = SLACK + Duration::from_secs(arguments.seconds.into());
        let tried = child::run(&mut command, &interrupt, limit)?;
        if interrupt.is_set() {
            return Ok(interrupt.exit_code());
        }
        tried.success(&format!("target '{target}'")).with_context(|| {
            format!("run what it failed on again with `cargo xtask fuzz {target} --input FILE` (the file is named above)")
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of all targets, in order.
fn targets(directory: &Path) -> anyhow::Result<Vec<String>> {
    let files = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Runs a target. What it learns stays in the target directory for the next time, and so does what it fails on.
fn command(target: &str, arguments: &Arguments) -> anyhow::Result<Command> {
    let program = workspace::built(&format!("fuzz-{target}"));
    let kept = program.with_file_name("fuzz").join(target);
    let corpus = kept.join("corpus");
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut command = Command::new(program);
    command.arg(format!("-timeout={TIMEOUT_SECONDS}")).arg(format!("-rss_limit_mb={MEMORY_MB}"));
    if let Some(input) = &arguments.input {
        command.arg(input);
        return Ok(command);
    }
    // Not all integers that are compared have the lengths libFuzzer looks at by itself.
    command.args(["-use_value_profile=1", "-print_final_stats=1", "-verbosity=0"]);
    command.arg(format!("-max_len={MAX_LENGTH}")).arg(format!("-max_total_time={}", arguments.seconds));
    if let Some(seed) = arguments.seed {
        command.arg(format!("-seed={seed}"));
    }
    let mut failures = OsString::from("-artifact_prefix=");
    failures.push(kept.join(""));
    command.arg(failures).arg(corpus);
    Ok(command)
}
