//! What the command says and does, on a lab of control planes alone.

use std::process::Command;

use serde_json::Value;

use crate::footprint::Footprint;
use crate::support::{TestLab, eventually, kubectl, text};

#[test]
#[ignore = "starts a lab: needs root"]
fn control_planes_start_repeat_and_stop() {
    let lab = TestLab::named("t-cli");
    let before = Footprint::take(&lab.name);
    lab.succeeds("up --clusters a,b,c --no-nodes --pod-cidr asymmetric");
    for cluster in lab.open().clusters() {
        assert_eq!(kubectl(&cluster, &["get", "--raw", "/readyz"]), "ok");
    }
    assert_eq!(Footprint::take(&lab.name).listening(), before.listening(), "something listens on the host");

    let repeated = lab.run("up --clusters a,b,c --no-nodes --pod-cidr asymmetric");
    assert!(repeated.status.success());
    assert!(text(&repeated.stderr).contains("is running as wanted"), "{}", text(&repeated.stderr));

    check_mistakes(&lab);
    check_views(&lab);
    check_signing(&lab);

    lab.succeeds("down");
    assert_eq!(Footprint::take(&lab.name), before);
    assert!(text(&lab.run("down").stderr).contains("there is no lab named t-cli"));
    assert!(lab.fails("status", 1).contains("there is no lab named t-cli"));
}

/// Bad arguments and a running lab of another layout end with 2, and say what is wrong.
fn check_mistakes(lab: &TestLab) {
    let message = lab.fails("up --clusters a,b --no-nodes", 2);
    assert!(message.contains("clusters: running a,b,c, wanted a,b"), "{message}");
    assert!(message.contains("pod CIDRs of b: running asymmetric, wanted same"), "{message}");
    assert!(lab.fails("up --clusters A", 2).contains("not a cluster name"));
    assert!(lab.fails("up --clusters a,a", 2).contains("named twice"));
    assert!(lab.fails("up --pod-cidr wide", 2).contains("same, disjoint or asymmetric"));
    assert!(lab.fails("kubectl z get pods", 2).contains("it has a, b, c"));
    assert!(lab.fails("exec a/9 -- true", 2).contains("it has a-cp"));
    assert!(lab.fails("logs a kubelet", 2).contains("no log of kubelet"));
}

fn check_views(lab: &TestLab) {
    let status: Value = serde_json::from_str(&lab.succeeds("status --output json")).unwrap();
    assert_eq!(status["clusters"].as_array().unwrap().len(), 3);
    assert_eq!(status["clusters"][2]["ready"], true);
    assert_eq!(status["clusters"][2]["machines"][0]["components"]["kube-apiserver"], true);
    let table = lab.succeeds("status");
    assert!(table.contains("b-cp") && table.contains("10.244.64.0/18"), "{table}");

    let script = format!(
        "{}\nkubectl --kubeconfig $KUBECONFIG_B get namespace default --output name",
        lab.succeeds("env")
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(text(&output.stdout).trim(), "namespace/default", "{}", text(&output.stderr));

    assert_eq!(lab.succeeds("kubectl c get namespace default --output name").trim(), "namespace/default");
    assert_eq!(lab.succeeds("exec b/cp -- hostname").trim(), "b-cp");
    assert_eq!(lab.succeeds("exec b/cp -- pwd").trim(), "/");
    assert!(lab.succeeds("logs b").contains("kube-apiserver.log"));
    assert!(!lab.succeeds("logs b kube-apiserver").is_empty());
    assert!(lab.succeeds("list").lines().any(|line| line == "t-cli"));
}

/// The signer of kubelet serving certificates works: virtual nodes get theirs from it.
fn check_signing(lab: &TestLab) {
    let lab = lab.open();
    let cluster = lab.cluster("a").unwrap();
    let name = "system:node:virtual";
    let mut params = rcgen::CertificateParams::new(vec!["virtual".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let object = serde_json::json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": { "name": "virtual" },
        "spec": {
            "request": base64(request.as_bytes()),
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "server auth"],
        },
    });
    let file = std::env::temp_dir().join("t-cli-request.json");
    std::fs::write(&file, object.to_string()).unwrap();
    let path = file.display().to_string();
    kubectl(
        &cluster,
        &[
            "create",
            "--as",
            name,
            "--as-group",
            "system:nodes",
            "--as-group",
            "system:authenticated",
            "--filename",
            &path,
        ],
    );
    std::fs::remove_file(&file).unwrap();
    kubectl(&cluster, &["certificate", "approve", "virtual"]);
    eventually("a signed certificate", || {
        let certificate =
            kubectl(&cluster, &["get", "csr", "virtual", "--output", "jsonpath={.status.certificate}"]);
        (!certificate.is_empty()).then_some(())
    });
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}
