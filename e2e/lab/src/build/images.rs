//! The images every lab has: written from the toolchain's binaries, imported into every node, never pulled.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::build::archive::{Entry, Image};
use crate::build::cache::{Cache, KeyBuilder};
use crate::build::toolchain::Toolchain;
use crate::host::command;
use crate::progress::Progress;

/// Holds the namespaces of a pod.
pub const PAUSE: &str = "lab.local/pause:1";
/// Cluster DNS.
pub const COREDNS: &str = "lab.local/coredns:1";
/// The provisioner behind the default StorageClass.
pub const LOCAL_PATH_PROVISIONER: &str = "lab.local/local-path-provisioner:1";
/// A shell and the usual small tools (`/bin/sh`, `/bin/busybox`).
pub const BUSYBOX: &str = "lab.local/busybox:1";
/// Kubernetes' test server (`/agnhost netexec`, `connect`, `logs-generator`, ...), with busybox' tools beside it.
pub const AGNHOST: &str = "lab.local/agnhost:1";

/// The resource metrics API, where it is installed.
pub const METRICS_SERVER: &str = "lab.local/metrics-server:1";
/// What enforces NetworkPolicies, where it is installed.
pub const NETWORK_POLICIES: &str = "lab.local/network-policies:1";
/// `/bin/kubectl` and a shell, where it is installed.
pub const KUBECTL: &str = "lab.local/kubectl:1";

/// The namespace of containerd in which kubelets find images.
pub(crate) const NAMESPACE: &str = "k8s.io";
/// Debian's `busybox-static`.
const BUSYBOX_BINARY: &str = "/bin/busybox";
/// Changes whenever [`write_image`] puts something else into images.
const LAYOUT: &str = "1";

/// What an image is called and made of.
struct Recipe {
    reference: &'static str,
    /// The toolchain's program and where it goes; without one, the image is busybox alone.
    program: Option<(&'static str, &'static str)>,
    shell: bool,
    arguments: &'static [&'static str],
}

/// In the order nodes need them.
const RECIPES: &[Recipe] = &[
    Recipe { reference: PAUSE, program: Some(("pause", "pause")), shell: false, arguments: &[] },
    Recipe { reference: COREDNS, program: Some(("coredns", "coredns")), shell: false, arguments: &[] },
    Recipe {
        reference: LOCAL_PATH_PROVISIONER,
        program: Some(("local-path-provisioner", "usr/bin/local-path-provisioner")),
        shell: false,
        arguments: &[],
    },
    Recipe { reference: BUSYBOX, program: None, shell: true, arguments: &["sh"] },
    Recipe { reference: AGNHOST, program: Some(("agnhost", "agnhost")), shell: true, arguments: &["pause"] },
];

/// Writes the archives that are not in the cache yet; returns all, in the order nodes need them.
///
/// # Errors
/// If busybox is missing or an archive cannot be written.
pub fn prepare(cache: &Cache, toolchain: &Toolchain, progress: &Progress) -> anyhow::Result<Vec<PathBuf>> {
    RECIPES
        .iter()
        .map(|recipe| {
            let program = recipe.program.map(|(name, _)| toolchain.binary(name)).transpose()?;
            archive(recipe, program.as_deref(), cache, progress)
        })
        .collect()
}

/// An image that only some scenarios need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDemand {
    MetricsServer,
    NetworkPolicies,
    Kubectl,
}

impl OnDemand {
    /// Writes its archive, with `program` in it, unless it is in the cache.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(self, program: &Path, cache: &Cache, progress: &Progress) -> anyhow::Result<PathBuf> {
        let (reference, place) = match self {
            Self::MetricsServer => (METRICS_SERVER, ("metrics-server", "metrics-server")),
            Self::NetworkPolicies => (NETWORK_POLICIES, ("network-policies", "network-policies")),
            Self::Kubectl => (KUBECTL, ("kubectl", "bin/kubectl")),
        };
        let shell = self == Self::Kubectl;
        let arguments: &[&str] = if shell { &["help"] } else { &[] };
        archive(&Recipe { reference, program: Some(place), shell, arguments }, Some(program), cache, progress)
    }
}

fn archive(
    recipe: &Recipe,
    program: Option<&Path>,
    cache: &Cache,
    progress: &Progress,
) -> anyhow::Result<PathBuf> {
    let mut key = KeyBuilder::new(recipe.reference)
        .text("layout", LAYOUT)
        // The cache names a program's directory by the hash of its inputs.
        .text("program", &program.map(cache_name).unwrap_or_default())
        .text("arguments", &recipe.arguments.join(" "));
    if recipe.shell {
        key = key.file(Path::new(BUSYBOX_BINARY))?;
    }
    let name = recipe.reference.trim_start_matches("lab.local/").trim_end_matches(":1");
    let entry = cache.entry(&format!("images/{name}"), &key.finish(), |directory| {
        let _step = progress.long(&format!("writing image {}", recipe.reference));
        write_image(recipe, program, &directory.join("image.tar"))
    })?;
    Ok(entry.join("image.tar"))
}

fn write_image(recipe: &Recipe, program: Option<&Path>, archive: &Path) -> anyhow::Result<()> {
    let mut entries = vec![
        Entry::Directory("tmp", 0o1777),
        Entry::Directory("etc", 0o755),
        Entry::Text("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
        Entry::Text("etc/group", "root:x:0:\nnobody:x:65534:\n"),
    ];
    if recipe.shell {
        let applets = command::run(BUSYBOX_BINARY, ["--list"]).context("busybox does not run")?;
        entries.push(Entry::Directory("bin", 0o755));
        entries.push(Entry::Program("bin/busybox", Path::new(BUSYBOX_BINARY)));
        let applets = applets.lines().filter(|applet| *applet != "busybox" && !applet.contains('/'));
        entries.extend(applets.map(|applet| Entry::Link(format!("bin/{applet}"), "busybox")));
    }
    let mut entrypoint = Vec::new();
    let path;
    if let (Some((_, target)), Some(source)) = (recipe.program, program) {
        entries.push(Entry::Program(target, source));
        path = format!("/{target}");
        entrypoint.push(path.as_str());
    }
    Image { reference: recipe.reference, entries, entrypoint, arguments: recipe.arguments.to_vec() }
        .write(archive)
}

fn cache_name(binary: &Path) -> String {
    binary.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
}
