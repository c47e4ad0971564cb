//! Everything the lab runs that comes from Go modules: what it is, and how it is built once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::build::cache::{Cache, Key, KeyBuilder};
use crate::host::command;
use crate::progress::Progress;

/// The lab's own Go modules.
const GO_SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../go");
/// No C compiler, no machine paths in binaries; the same for all builds, so that they share Go's build cache.
const ENVIRONMENT: [(&str, &str); 3] =
    [("CGO_ENABLED", "0"), ("GOFLAGS", "-trimpath -buildvcs=false"), ("GOWORK", "off")];
/// No symbol tables: half the size, and the lab debugs Liquid, not Kubernetes.
const LINKER_FLAGS: &str = "-s -w";

/// One thing to build; it may yield several binaries.
struct Tool {
    name: &'static str,
    source: Source,
    tags: &'static str,
}

enum Source {
    /// A package of a module below `e2e/go`, by the module's directory.
    Own { module: &'static str, package: &'static str },
    /// Packages of a published module, as `go install MODULE/PACKAGE@VERSION` takes them.
    Published { module: &'static str, version: &'static str, packages: &'static [&'static str] },
}

/// To add a program, add a line: its binaries are on the `PATH` of every machine of a lab.
const TOOLS: &[Tool] = &[
    own("kube", ".", "./cmd/kube"),
    own("pause", ".", "./cmd/pause"),
    own("agnhost", ".", "k8s.io/kubernetes/test/images/agnhost"),
    own("coredns", "coredns", "."),
    published(
        "containerd",
        "github.com/containerd/containerd/v2",
        "v2.4.2",
        &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
        "no_btrfs,no_zfs,no_devmapper",
    ),
    published(
        "cni-plugins",
        "github.com/containernetworking/plugins",
        "v1.9.1",
        &[
            "plugins/main/ptp",
            "plugins/main/bridge",
            "plugins/main/loopback",
            "plugins/ipam/host-local",
            "plugins/meta/portmap",
        ],
        "",
    ),
    published("local-path-provisioner", "github.com/rancher/local-path-provisioner", "v0.0.30", &["."], ""),
    published("helm", "helm.sh/helm/v3", "v3.22.0", &["cmd/helm"], ""),
];

/// What only some scenarios and the benchmark need: built when the first of them asks for it.
const ON_DEMAND: &[Tool] = &[
    published("metrics-server", "sigs.k8s.io/metrics-server", "v0.9.0", &["cmd/metrics-server"], ""),
    // Nodes of benchmarks.
    published("kwok", "sigs.k8s.io/kwok", "v0.8.0", &["cmd/kwok"], ""),
    // What other ends of tunnels may run.
    published("wireguard", "golang.zx2c4.com/wireguard", "v0.0.0-20260522210424-ecfc5a8d5446", &["."], ""),
    own("network-policies", "policies", "."),
];

/// The names the multi-call binary answers to.
pub(crate) const KUBE_PROGRAMS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

const fn own(name: &'static str, module: &'static str, package: &'static str) -> Tool {
    Tool { name, source: Source::Own { module, package }, tags: "" }
}

const fn published(
    name: &'static str,
    module: &'static str,
    version: &'static str,
    packages: &'static [&'static str],
    tags: &'static str,
) -> Tool {
    Tool { name, source: Source::Published { module, version, packages }, tags }
}

/// The built programs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Directories that hold the binaries, in the order of the table.
    directories: Vec<PathBuf>,
    kubernetes: String,
}

impl Toolchain {
    /// Builds what is not in the cache yet.
    ///
    /// # Errors
    /// If Go is missing, a module cannot be fetched or does not compile: with Go's own words.
    pub fn prepare(cache: &Cache, progress: &Progress) -> anyhow::Result<Self> {
        let builder = Builder::new()?;
        let directories = TOOLS.iter().map(|tool| builder.prepare(tool, cache, progress));
        Ok(Self {
            directories: directories.collect::<anyhow::Result<_>>()?,
            kubernetes: builder.kubernetes.clone(),
        })
    }

    /// The path of a program that is only built on demand.
    ///
    /// # Errors
    /// If there is no such program, or as [`Toolchain::prepare`].
    pub fn on_demand(name: &str, cache: &Cache, progress: &Progress) -> anyhow::Result<PathBuf> {
        let tool = ON_DEMAND.iter().find(|tool| tool.name == name);
        let tool = tool.with_context(|| format!("no tool is named {name}"))?;
        Ok(Builder::new()?.prepare(tool, cache, progress)?.join(name))
    }

    /// The path of a binary.
    ///
    /// # Errors
    /// If no tool of the table yields it.
    pub fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        let mut paths = self.directories.iter().map(|directory| directory.join(name));
        paths.find(|path| path.is_file()).with_context(|| format!("no tool yields a program named {name}"))
    }

    /// Every binary.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn binaries(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for directory in &self.directories {
            let entries =
                fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
            found.extend(entries.flatten().map(|entry| entry.path()));
        }
        Ok(found)
    }

    /// The Kubernetes release, for example `v1.35.4`.
    #[must_use]
    pub fn kubernetes(&self) -> &str {
        &self.kubernetes
    }
}

/// What all builds have in common.
struct Builder {
    sources: PathBuf,
    compiler: String,
    kubernetes: String,
}

impl Builder {
    fn new() -> anyhow::Result<Self> {
        let sources = Path::new(GO_SOURCES).canonicalize().context("the lab's Go sources are missing")?;
        let kubernetes = kubernetes_version(&sources)?;
        let compiler = command::run("go", ["env", "GOVERSION", "GOOS", "GOARCH"])
            .context("Go is needed to build Kubernetes for the lab: see https://go.dev/dl")?;
        Ok(Self { sources, compiler, kubernetes })
    }

    /// The directory with the binaries of a tool.
    fn prepare(&self, tool: &Tool, cache: &Cache, progress: &Progress) -> anyhow::Result<PathBuf> {
        let key = tool.key(&self.sources, &self.compiler, &self.kubernetes)?;
        let name = format!("go/{}", tool.name);
        // Shown too while another process builds the same and this one waits for it.
        let _step = cache
            .find(&name, &key)
            .is_none()
            .then(|| progress.long(&format!("building {} (once)", tool.name)));
        let build = |directory: &Path| tool.build(&self.sources, directory, &self.kubernetes);
        cache.entry(&name, &key, build)
    }
}

impl Tool {
    fn key(&self, sources: &Path, compiler: &str, kubernetes: &str) -> anyhow::Result<Key> {
        let mut key = KeyBuilder::new(self.name)
            .text("compiler", compiler)
            .text("tags", self.tags)
            .text("linker", &linker_flags(kubernetes));
        for (name, value) in ENVIRONMENT {
            key = key.text(name, value);
        }
        match self.source {
            Source::Own { module, package } => {
                let module = sources.join(module);
                key = key.text("package", package);
                key = key.file(&module.join("go.mod"))?.file(&module.join("go.sum"))?;
                if package.starts_with('.') {
                    key = key.files(&module.join(package), ".go")?;
                }
            }
            Source::Published { .. } => key = key.text("packages", &self.packages().join(" ")),
        }
        Ok(key.finish())
    }

    fn build(&self, sources: &Path, into: &Path, kubernetes: &str) -> anyhow::Result<()> {
        let mut go = Command::new("go");
        go.envs(ENVIRONMENT);
        match self.source {
            Source::Own { module, .. } => {
                go.current_dir(sources.join(module)).args(["build", "-o"]).arg(into.join(self.name));
            }
            Source::Published { .. } => {
                go.current_dir(sources).env("GOBIN", into).arg("install");
            }
        }
        go.args(["-tags", self.tags, "-ldflags", &linker_flags(kubernetes)]).args(self.packages());
        command::finish(&mut go, None).with_context(|| format!("cannot build {}", self.name))?;
        Ok(())
    }

    fn packages(&self) -> Vec<String> {
        match self.source {
            Source::Own { package, .. } => vec![package.to_owned()],
            Source::Published { module, version, packages } => packages
                .iter()
                .map(|package| match *package {
                    "." => format!("{module}@{version}"),
                    package => format!("{module}/{package}@{version}"),
                })
                .collect(),
        }
    }
}

/// Without a version, kubectl cannot parse what the server says about itself.
fn linker_flags(kubernetes: &str) -> String {
    let mut numbers = kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    format!(
        "{LINKER_FLAGS} -X {package}.gitVersion={kubernetes} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

/// The release is written down once: in the Go module that pins it.
fn kubernetes_version(sources: &Path) -> anyhow::Result<String> {
    let path = sources.join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let version = text.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    Ok(format!("v{}", version.context("e2e/go/go.mod does not require k8s.io/kubernetes")?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> &'static Tool {
        TOOLS.iter().find(|tool| tool.name == name).unwrap()
    }

    #[test]
    fn every_tool_has_its_own_key_and_another_compiler_another_one() {
        let sources = Path::new(GO_SOURCES);
        let keys = |compiler: &str| -> Vec<Key> {
            let all = TOOLS.iter().chain(ON_DEMAND);
            all.map(|tool| tool.key(sources, compiler, "v1.35.4").unwrap()).collect()
        };
        let (old, new) = (keys("go1.26.8"), keys("go1.26.9"));
        for (index, key) in old.iter().enumerate() {
            assert!(!old[index + 1..].contains(key) && !new.contains(key), "{index}");
        }
    }

    #[test]
    fn packages_are_named_as_go_install_takes_them() {
        assert_eq!(tool("helm").packages(), ["helm.sh/helm/v3/cmd/helm@v3.22.0"]);
        assert_eq!(
            tool("local-path-provisioner").packages(),
            ["github.com/rancher/local-path-provisioner@v0.0.30"]
        );
    }

    #[test]
    fn the_release_comes_from_the_go_module() {
        let version = kubernetes_version(Path::new(GO_SOURCES)).unwrap();
        assert!(version.starts_with("v1."), "{version}");
        assert!(linker_flags("v1.35.4").contains("gitMinor=35"));
    }
}
