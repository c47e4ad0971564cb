//! Runs Helm on the chart that is compiled in.

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use include_dir::{Dir, include_dir};
use liquid_crds::{Manifest, manifests};
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::process::Command;

static CHART: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/liquid");

/// Name of the release.
pub(crate) const RELEASE: &str = "liquid";

/// Helm, with the chart unpacked beside it.
pub(crate) struct Helm {
    program: OsString,
    directory: TempDir,
    cluster: ClusterArgs,
}

impl Helm {
    /// Finds Helm (`HELM`, or `helm` on the path) and unpacks the chart.
    pub(crate) async fn prepare(cluster: &ClusterArgs) -> Result<Self, Failure> {
        let program = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
        let version = Command::new(&program)
            .args(["version", "--short"])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| {
                Failure::failed(format!(
                    "Helm is needed, and {} cannot be run ({error}): install Helm 3 or newer (https://helm.sh), or set \
                     HELM to its path; `liquidctl install --print-values` needs no Helm",
                    program.to_string_lossy()
                ))
            })?;
        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        if !version.status.success() || !text.trim_start_matches('v').starts_with(['3', '4']) {
            return Err(Failure::failed(format!("Helm 3 or newer is needed; this is {:?}", text.trim())));
        }
        let directory = tempfile::tempdir()?;
        CHART.extract(directory.path())?;
        Ok(Self { program, directory, cluster: cluster.clone() })
    }

    /// Writes a file beside the chart and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<OsString, Failure> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.into_os_string())
    }

    /// Path of the chart.
    pub(crate) fn chart(&self) -> &Path {
        self.directory.path()
    }

    /// Runs Helm and returns what it prints.
    pub(crate) async fn run(&self, arguments: Vec<OsString>) -> Result<String, Failure> {
        let mut command = Command::new(&self.program);
        command.args(&arguments).arg("--namespace").arg(&self.cluster.namespace).stdin(Stdio::null());
        if let Some(kubeconfig) = &self.cluster.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &self.cluster.context {
            command.arg("--kube-context").arg(context);
        }
        let output = command.kill_on_drop(true).output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        let what = arguments.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
        Err(Failure::failed(format!("helm {what}: {}", complaint.trim().trim_start_matches("Error: "))))
    }
}

/// The CRDs, which `liquidctl` applies itself: Helm installs them but never changes them.
pub(crate) fn crds() -> Vec<Manifest> {
    manifests()
}
