//! Where the source tree is, and the cargo that builds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// This program, even if its file has been replaced since it was started.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";
/// The root of the source tree.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The cargo this was started by, in the root of the source tree.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(Path::new(ROOT));
    command
}

/// A command of this program, in the root of the source tree.
pub(crate) fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(OWN_PROGRAM);
    command.args(arguments).current_dir(Path::new(ROOT));
    command
}

/// A program of the workspace, built with the profile this one was built with.
pub(crate) fn built(name: &str) -> PathBuf {
    // Where this program was started from, even if its file has been replaced since.
    let own = env::current_exe().unwrap_or_else(|_| Path::new(ROOT).join("target/debug/xtask"));
    own.with_file_name(name)
}
