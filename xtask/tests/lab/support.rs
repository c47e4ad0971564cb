//! Starting labs for a test, and asking their clusters.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use liquid_lab::{Cluster, Lab, LabName, Progress};
use serde_json::{Value, json};

/// Longest wait for anything a cluster does by itself; an idle machine needs a few seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// A lab that ends with the test.
pub(crate) struct TestLab {
    pub(crate) name: LabName,
}

impl TestLab {
    /// Makes sure that nothing of this name is left from a test that was killed.
    pub(crate) fn named(name: &str) -> Self {
        let name: LabName = name.parse().unwrap();
        liquid_lab::down(&name, &Progress::quiet()).unwrap();
        Self { name }
    }

    /// Starts the lab with these options.
    pub(crate) fn up(name: &str, options: &str) -> Self {
        let lab = Self::named(name);
        lab.succeeds(&format!("up {options}"));
        lab
    }

    /// Runs `cargo xtask lab` for this lab.
    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs `cargo xtask lab` and returns its stdout; anything but success fails the test.
    pub(crate) fn succeeds(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "lab {line}: {}\n{}", output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs `cargo xtask lab`, which must end with this code; returns its stderr.
    pub(crate) fn fails(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "lab {line}:\n{}", text(&output.stderr));
        text(&output.stderr)
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["lab", "--lab", self.name.as_str()]).args(line.split_whitespace()).stdin(Stdio::null());
        command
    }

    pub(crate) fn open(&self) -> Lab {
        Lab::open(&self.name).unwrap()
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        let result = liquid_lab::down(&self.name, &Progress::quiet());
        // A second panic while the first unwinds would hide both.
        assert!(std::thread::panicking() || result.is_ok(), "{result:?}");
    }
}

/// Runs kubectl and returns its stdout; anything but success fails the test.
pub(crate) fn kubectl(cluster: &Cluster<'_>, arguments: &[&str]) -> String {
    let output = cluster.kubectl().args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "kubectl {}: {}", arguments.join(" "), text(&output.stderr));
    text(&output.stdout)
}

/// Runs a shell line in a pod; `None` if it fails.
pub(crate) fn try_shell(cluster: &Cluster<'_>, pod: &str, line: &str) -> Option<String> {
    let output = cluster.kubectl().args(["exec", pod, "--", "sh", "-c", line]).output().unwrap();
    output.status.success().then(|| text(&output.stdout).trim().to_owned())
}

/// Creates an object.
pub(crate) fn create(cluster: &Cluster<'_>, object: &Value) {
    let mut child = cluster
        .kubectl()
        .args(["create", "--filename", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "cannot create {object}");
}

/// A pod of agnhost that runs this command on this node.
pub(crate) fn pod(name: &str, node: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": liquid_lab::images::AGNHOST, "command": command }],
        },
    })
}

/// A pod that answers HTTP on port 8080 (`/hostname`, `/clientip`).
pub(crate) fn server(name: &str, node: &str) -> Value {
    pod(name, node, &["/agnhost", "netexec", "--http-port=8080"])
}

/// A pod to run shell lines in.
pub(crate) fn client(name: &str, node: &str) -> Value {
    pod(name, node, &["/agnhost", "pause"])
}

/// A Service of this type in front of the pod of the same name, on port 80.
pub(crate) fn service(name: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": {
            "type": kind,
            "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": name },
            "ports": [{ "port": 80, "targetPort": 8080 }],
        },
    })
}

pub(crate) fn wait_ready(cluster: &Cluster<'_>, what: &str) {
    kubectl(cluster, &["wait", "--for=condition=Ready", "--timeout=90s", what]);
}

/// A field of an object, by JSON path.
pub(crate) fn field(cluster: &Cluster<'_>, object: &str, path: &str) -> String {
    kubectl(cluster, &["get", object, "--output", &format!("jsonpath={{{path}}}")])
}

/// Waits until the check yields a value.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    liquid_lab::until(what, LIMIT, POLL, || Ok(check())).unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
