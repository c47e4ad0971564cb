//! The root file system of a machine: the host's programs read-only, everything else its own.
//!
//! ```text
//! /usr /bin /lib ...   the host's, read-only          /etc    overlay: the host's, changes on the machine's disk
//! /proc /sys /dev      its own                        /run /tmp   memory, empty at every boot
//! everything else      the machine's disk (its directory on the host)
//! ```
//! All mounts live in the machine's mount namespace and end with it; the host's mount table is never changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::Config;
use crate::host::cgroup::Hierarchy;

/// Logs of units, by path below the root.
pub(super) const LOG_DIRECTORY: &str = "var/log/lab";

/// What a machine keeps on its disk besides `/etc`.
const DISK: [&str; 12] =
    ["dev", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "var/lib", LOG_DIRECTORY];
/// Programs and libraries; which of them exist, and which are links into `/usr`, differs between hosts.
const PROGRAMS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Device nodes that containers and their runtime use.
const DEVICES: [&str; 9] = ["null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse", "net/tun"];
/// What a kubelet insists on. The values belong to the whole host, so the machine gets to see these instead.
const PRETENDED: [(&str, &str); 4] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
];

/// Builds the root file system and makes it the root of the calling process and its mount namespace.
pub(super) fn enter(directory: &Path, config: &Config) -> anyhow::Result<()> {
    // First of all: nothing done here may show on the host.
    change("/".as_ref(), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    sethostname(&config.hostname).context("cannot set the host name")?;
    let hierarchies = Hierarchy::all()?;

    let root = directory.join("root");
    for name in DISK {
        create(&root.join(name))?;
    }
    bind(&root, &root)?;
    attach("tmpfs", &root.join("run"), MsFlags::empty(), "mode=0755")?;
    attach("tmpfs", &root.join("tmp"), MsFlags::empty(), "mode=1777")?;
    attach("tmpfs", &root.join("dev"), MsFlags::MS_NOSUID, "mode=0755")?;
    for name in PROGRAMS {
        share(&Path::new("/").join(name), &root.join(name))?;
    }
    // After /tmp and /run: a cache may be in either.
    for path in &config.shared {
        share(path, &inside(&root, path))?;
    }
    mount_etc(directory, &root.join("etc"))?;
    create(&root.join("run/lock"))?;
    link("/run".as_ref(), &root.join("var/run"))?;
    mount_dev(&root.join("dev"))?;
    let secure = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("proc", &root.join("proc"), secure, "")?;
    attach("sysfs", &root.join("sys"), secure, "")?;
    mount_groups(&root.join("sys/fs/cgroup"), &hierarchies)?;

    chdir(&root).context("cannot enter the new root")?;
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the host's root")?;
    chdir("/").context("cannot enter the new root")?;
    // Volumes mounted by one container must show up in others: kubelets rely on it.
    change("/".as_ref(), MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    set_kernel_values(config)
}

fn mount_etc(directory: &Path, target: &Path) -> anyhow::Result<()> {
    let (upper, work) = (directory.join("etc"), directory.join("etc.work"));
    for path in [&upper, &work, &target.to_owned()] {
        create(path)?;
    }
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    attach("overlay", target, MsFlags::empty(), &options)
}

fn mount_dev(dev: &Path) -> anyhow::Result<()> {
    for name in DEVICES {
        let (source, target) = (Path::new("/dev").join(name), dev.join(name));
        if source.exists() {
            target.parent().map_or(Ok(()), create)?;
            fs::write(&target, "").with_context(|| format!("cannot create {}", target.display()))?;
            bind(&source, &target)?;
        }
    }
    for name in ["pts", "shm", "mqueue"] {
        create(&dev.join(name))?;
    }
    attach("devpts", &dev.join("pts"), MsFlags::MS_NOSUID, "newinstance,ptmxmode=0666,mode=620")?;
    attach("tmpfs", &dev.join("shm"), MsFlags::MS_NOSUID, "mode=1777")?;
    attach("mqueue", &dev.join("mqueue"), MsFlags::MS_NOSUID, "")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    links.iter().try_for_each(|(target, name)| link(target.as_ref(), &dev.join(name)))
}

/// Mounts every hierarchy anew: seen from the machine's cgroup namespace, its own group is the root.
fn mount_groups(target: &Path, hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    if let [Hierarchy { v1: None, .. }] = hierarchies {
        return attach("cgroup2", target, MsFlags::empty(), "");
    }
    attach("tmpfs", target, MsFlags::empty(), "mode=0755")?;
    for hierarchy in hierarchies {
        let name = hierarchy.mount.file_name().context("a cgroup hierarchy is mounted at the root")?;
        let path = target.join(name);
        create(&path)?;
        match &hierarchy.v1 {
            None => attach("cgroup2", &path, MsFlags::empty(), "")?,
            Some(options) => attach("cgroup", &path, MsFlags::empty(), options)?,
        }
        // Joint hierarchies (cpu,cpuacct) are also looked up by each of their names.
        let name = name.to_string_lossy();
        for single in name.split(',').filter(|_| name.contains(',')) {
            link(name.as_ref().as_ref(), &target.join(single))?;
        }
    }
    Ok(())
}

fn set_kernel_values(config: &Config) -> anyhow::Result<()> {
    let values = Path::new("/run/sysctl");
    create(values)?;
    for (name, value) in PRETENDED {
        let (source, target) = (values.join(name.replace('/', ".")), Path::new("/proc/sys").join(name));
        if target.exists() {
            fs::write(&source, format!("{value}\n"))?;
            bind(&source, &target)?;
        }
    }
    for (name, value) in &config.sysctls {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))?;
    }
    Ok(())
}

/// Gives the machine a host directory read-only; a link stays the link it is.
fn share(source: &Path, target: &Path) -> anyhow::Result<()> {
    match fs::read_link(source) {
        Ok(destination) => link(&destination, target),
        Err(_) if source.is_dir() => {
            create(target)?;
            bind(source, target)?;
            change(target, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
        }
        Err(_) => Ok(()),
    }
}

fn bind(source: &Path, target: &Path) -> anyhow::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn attach(kind: &str, target: &Path, flags: MsFlags, options: &str) -> anyhow::Result<()> {
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .with_context(|| format!("cannot mount {kind} ({options}) on {}", target.display()))
}

fn change(target: &Path, flags: MsFlags) -> anyhow::Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot change the mount of {}", target.display()))
}

fn create(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Makes a symbolic link; one from an earlier boot is replaced.
fn link(destination: &Path, path: &Path) -> anyhow::Result<()> {
    drop(fs::remove_file(path));
    symlink(destination, path).with_context(|| format!("cannot link {}", path.display()))
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
