//! containerd's store with the lab's images in it, made once and given to every node: importing them node by node is
//! most of the work of a start otherwise.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::build::cache::{Cache, KeyBuilder, remove_all};
use crate::build::images;
use crate::build::toolchain::Toolchain;
use crate::cluster::container_runtime;
use crate::host::{command, wait};
use crate::machine::{create_directory, tail};
use crate::progress::Progress;

/// containerd starts, and stops, in a fraction of a second.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A containerd that only takes images in; it ends with this process.
struct Importer {
    child: Child,
    directory: PathBuf,
}

/// Makes the store if the cache does not have it yet.
///
/// # Errors
/// If containerd does not take the images: with the end of its log.
pub(crate) fn prepare(
    cache: &Cache,
    toolchain: &Toolchain,
    archives: &[PathBuf],
    progress: &Progress,
) -> anyhow::Result<PathBuf> {
    let containerd = toolchain.binary("containerd")?;
    let mut key = KeyBuilder::new("image store").text("containerd", &containerd.display().to_string());
    for archive in archives {
        // Archives are in the cache too: their paths say what is in them.
        key = key.text("archive", &archive.display().to_string());
    }
    cache.entry("image-store", &key.finish(), |root| {
        let _step = progress.long("importing images (once)");
        let importer = Importer::start(&containerd, toolchain, root)?;
        archives
            .iter()
            .try_for_each(|archive| importer.import(&toolchain.binary("ctr")?, archive))
            .with_context(|| format!("containerd's log:\n{}", tail(&importer.log())))
    })
}

/// Fills a node's store before its first boot. Files are shared with the cache (hard links) where both are on one
/// file system: containerd never changes what it has stored, except its databases, which are copied.
pub(crate) fn fill(store: &Path, target: &Path) -> anyhow::Result<()> {
    copy_tree(store, target).with_context(|| format!("cannot fill {}", target.display()))
}

impl Importer {
    fn start(containerd: &Path, toolchain: &Toolchain, root: &Path) -> anyhow::Result<Self> {
        let stores = root.parent().unwrap_or(root);
        // A socket's path must be short, so this is not in the cache; one that was killed is found by its name.
        let name = KeyBuilder::new("importer").text("stores", &stores.display().to_string()).finish();
        let directory = std::env::temp_dir().join(format!("liquid-lab-import-{}", name.as_str()));
        remove_all(&directory)?;
        create_directory(&directory)?;
        let config = directory.join("config.toml");
        let socket = directory.join("containerd.sock");
        fs::write(&config, container_runtime::configuration(root, &directory.join("state"), &socket))?;
        let log = fs::File::create(directory.join("log"))?;
        let bin = containerd.parent().unwrap_or(Path::new("/"));
        // Its mounts are its own and it dies with this process, however that ends.
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(containerd)
            .arg("--config")
            .arg(&config)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run containerd")?;
        let importer = Self { child, directory };
        let ctr = toolchain.binary("ctr")?;
        wait::until("containerd listening", LIMIT, POLL, || {
            Ok(importer.ctr(&ctr, &["version"]).is_ok().then_some(()))
        })
        .with_context(|| format!("containerd's log:\n{}", tail(&importer.log())))?;
        Ok(importer)
    }

    fn import(&self, ctr: &Path, archive: &Path) -> anyhow::Result<()> {
        self.ctr(ctr, &["images", "import", &archive.display().to_string()]).map(drop)
    }

    fn ctr(&self, ctr: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.directory.join("containerd.sock");
        let mut command = Command::new(ctr);
        command.arg("--address").arg(socket).args(["--namespace", images::NAMESPACE]).args(arguments);
        command::finish(command.stdin(Stdio::null()), None)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Importer {
    /// Lets it close its databases; one that does not is killed, and the store then fails when it is used.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended = wait::until("the end of containerd", LIMIT, POLL, || {
            self.child.try_wait().map_err(|error| anyhow!(error))
        });
        if ended.is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        drop(remove_all(&self.directory));
    }
}

fn copy_tree(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    fs::set_permissions(target, fs::Permissions::from_mode(fs::metadata(source)?.permissions().mode()))?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let (from, to, kind) = (entry.path(), target.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy_tree(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            let database = from.extension().is_some_and(|extension| extension == "db");
            if database || fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn content_is_shared_and_databases_are_not() {
        let scratch = std::env::temp_dir().join(format!("liquid-store-{}", std::process::id()));
        let (from, to) = (scratch.join("from"), scratch.join("to"));
        fs::create_dir_all(from.join("tmp")).unwrap();
        fs::set_permissions(from.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(from.join("blob"), "x").unwrap();
        fs::write(from.join("meta.db"), "x").unwrap();
        symlink("blob", from.join("link")).unwrap();
        fill(&from, &to).unwrap();
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(from.join("blob")), inode(to.join("blob")));
        assert_ne!(inode(from.join("meta.db")), inode(to.join("meta.db")));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("blob"));
        assert_eq!(fs::metadata(to.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        remove_all(&scratch).unwrap();
    }
}
