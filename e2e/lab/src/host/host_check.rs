//! What the lab needs from its host: checked before anything is made, installed where that is Debian's job.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::unistd::Uid;

use crate::host::command;
use crate::plan::spec::{Cni, LabSpec};
use crate::progress::Progress;

/// Programs from the distribution, and the Debian package each comes in.
const PROGRAMS: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("socat", "socat"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("tail", "coreutils"),
    ("busybox", "busybox-static"),
    ("buildah", "buildah"),
    ("modprobe", "kmod"),
];
/// Where a service's programs may be, whatever the user's `PATH` says.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// inotify instances of one node: eight were counted, and with cgroup version 2 every container takes one more.
const INOTIFY_PER_NODE: u32 = 12;
/// File systems and network devices the kernel must know.
const FILE_SYSTEMS: [&str; 2] = ["overlay", "tmpfs"];
/// Each is tried in a network namespace that ends with the try.
const NETWORK: [(&str, &str); 4] = [
    ("veth pairs (CONFIG_VETH)", "ip link add type veth"),
    ("bridges (CONFIG_BRIDGE)", "ip link add type bridge"),
    ("nftables with NAT (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ)", NFT_TRY),
    ("iptables over nf_tables (CONFIG_NFT_COMPAT)", "iptables -t nat -A POSTROUTING -j MASQUERADE"),
];
const NFT_TRY: &str = "nft 'table ip t { chain c { type nat hook postrouting priority 100; ip saddr 10.0.0.0/8 masquerade; }; }'";

/// Checks the host and installs missing packages if it is a Debian (or a relative) and this is root.
///
/// # Errors
/// Lists everything that is missing and says how to get it.
pub(crate) fn check(spec: &LabSpec, progress: &Progress) -> anyhow::Result<()> {
    let missing = missing_packages();
    if !missing.is_empty() {
        install(&missing, progress)?;
    }
    let mut lacking: Vec<String> = missing_file_systems()?;
    lacking.extend(
        NETWORK
            .iter()
            .filter(|(_, attempt)| !works_in_scratch_netns(attempt))
            .map(|(what, _)| (*what).to_owned()),
    );
    if spec.clusters.iter().any(|cluster| cluster.stack.cni == Cni::Bridge) && !filters_bridges() {
        lacking.push(
            "packet filtering on bridges (CONFIG_BRIDGE_NETFILTER), which the bridge stack needs".to_owned(),
        );
    }
    if !lacking.is_empty() {
        bail!("the kernel lacks: {}. Boot one that has them, built in or as modules", lacking.join("; "));
    }
    Ok(())
}

/// Fails if root's inotify instances will not do for so many more nodes: their components would end one after the other
/// with "too many open files".
pub(crate) fn check_inotify(nodes: u32) -> anyhow::Result<()> {
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let limit: u32 =
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u32::MAX);
    let needed = inotify_in_use() + nodes * INOTIFY_PER_NODE;
    if nodes > 0 && needed > limit {
        bail!(
            "with {nodes} more node(s), root needs about {needed} inotify instances, and this host allows {limit}: \
             sysctl -w fs.inotify.max_user_instances={}",
            needed.next_power_of_two()
        );
    }
    Ok(())
}

/// The inotify instances of root's processes.
fn inotify_in_use() -> u32 {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let is_root = |process: &fs::DirEntry| process.metadata().is_ok_and(|found| found.uid() == 0);
    let is_inotify = |file: &fs::DirEntry| {
        fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:inotify")
    };
    let of = |process: fs::DirEntry| entries(&process.path().join("fd")).filter(is_inotify).count();
    let total: usize = entries(Path::new("/proc")).filter(is_root).map(of).sum();
    u32::try_from(total).unwrap_or(u32::MAX)
}

/// Only root can see or change a lab.
pub(crate) fn require_root() -> anyhow::Result<()> {
    if !Uid::effective().is_root() {
        bail!(
            "the lab makes network namespaces, mounts and control groups: run it as root (for example with sudo -E)"
        );
    }
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let there = |program: &str| PLACES.iter().any(|place| Path::new(place).join(program).exists());
    // A kernel without modules needs no program to load them.
    let needed = |program: &str| program != "modprobe" || Path::new("/proc/modules").exists();
    PROGRAMS.iter().filter(|(name, _)| needed(name) && !there(name)).map(|(_, package)| *package).collect()
}

fn install(packages: &[&str], progress: &Progress) -> anyhow::Result<()> {
    let names = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing programs; install what your distribution has for these Debian packages: {names}");
    }
    let _step = progress.long(&format!("installing {names}"));
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command::finish(&mut apt, None)
    };
    // Package lists may be missing or old; fetching them is only worth it then.
    install()
        .or_else(|_| command::run("apt-get", ["update"]).and_then(|_| install()))
        .with_context(|| format!("cannot install: {names}"))?;
    Ok(())
}

fn missing_file_systems() -> anyhow::Result<Vec<String>> {
    let known = || fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems");
    let has = |text: &str, name: &str| text.lines().any(|line| line.split_whitespace().last() == Some(name));
    let mut missing = Vec::new();
    for name in FILE_SYSTEMS {
        if !has(&known()?, name) {
            // It may be a module that nobody has used yet.
            drop(command::run("modprobe", [name]));
            if !has(&known()?, name) {
                missing.push(format!("the {name} file system"));
            }
        }
    }
    Ok(missing)
}

/// Services between pods of one bridge work only if the packet filter sees what crosses the bridge. Kubernetes asks the
/// same of every node; the module is loaded if the kernel has it as one.
fn filters_bridges() -> bool {
    let present = || Path::new("/proc/sys/net/bridge").exists();
    present() || (command::run("modprobe", ["br_netfilter"]).is_ok() && present())
}

fn works_in_scratch_netns(attempt: &str) -> bool {
    command::run("unshare", ["--net", "--mount", "sh", "-c", attempt]).is_ok()
}
