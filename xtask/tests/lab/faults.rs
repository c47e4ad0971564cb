//! Components that die, machines that lose power, wires that break.

use liquid_lab::{Cluster, Cut, Direction, Lab};

use crate::footprint::runs;
use crate::support::{TestLab, create, eventually, field, kubectl, server, service, try_shell, wait_ready};

#[test]
#[ignore = "starts a lab: needs root"]
fn components_machines_and_links_fail_and_come_back_on_demand() {
    let test = TestLab::up("t-fault", "--clusters a,b --nodes 1 --audit");
    let lab = test.open();
    let (a, b) = (lab.cluster("a").unwrap(), lab.cluster("b").unwrap());
    for cluster in [&a, &b] {
        create(cluster, &server("web", &format!("{}-1", cluster.name())));
        create(cluster, &service("web", "NodePort"));
        wait_ready(cluster, "pod/web");
    }
    check_components(&a);
    check_links(&lab);
    check_power(&lab);
    check_audit(&a);
}

fn check_components(cluster: &Cluster<'_>) {
    let api = cluster.api().unwrap();
    cluster.stop_component("kube-apiserver").unwrap();
    assert!(!api.is_ready());
    cluster.start_component("kube-apiserver").unwrap();
    eventually("the API server's return", || api.is_ready().then_some(()));

    let node = &cluster.nodes()[0];
    let kubelet = || node.exec(&["busybox", "pidof", "kubelet"]).ok();
    let before = kubelet().unwrap();
    node.stop_component("kubelet").unwrap();
    assert_eq!(kubelet(), None);
    assert!(node.components().unwrap().contains(&("kubelet".to_owned(), false)));
    node.start_component("kubelet").unwrap();
    let after = eventually("a new kubelet", kubelet);
    assert_ne!(before, after);
    // One that dies by itself is started again.
    node.exec(&["busybox", "killall", "-KILL", "kubelet"]).unwrap();
    eventually("a third kubelet", || kubelet().filter(|pid| *pid != after));
    assert!(cluster.stop_component("kubelett").is_err());
}

fn check_links(lab: &Lab) {
    let (a, b) = (lab.cluster("a").unwrap(), lab.cluster("b").unwrap());
    let web = format!("{}:{}", b.nodes()[0].address(), field(&b, "service/web", ".spec.ports[0].nodePort"));
    let api = b.server().replace("https://", "");
    let reaches =
        |target: &str| try_shell(&a, "web", &format!("/agnhost connect {target} --timeout=2s")).is_some();
    let link = lab.link("a", "b").unwrap();

    eventually("a kubelet that takes commands again", || try_shell(&a, "web", "true"));
    let before = link.traffic().unwrap();
    assert!(reaches(&web) && reaches(&api));
    let after = link.traffic().unwrap();
    assert!(
        after.bytes_forth > before.bytes_forth && after.bytes_back > before.bytes_back,
        "{before} {after}"
    );

    link.cut(Cut::Tcp(6443), Direction::Both).unwrap();
    assert_eq!((reaches(&web), reaches(&api)), (true, false));
    link.cut(Cut::All, Direction::Back).unwrap();
    let cut = link.traffic().unwrap();
    assert!(!reaches(&web));
    let later = link.traffic().unwrap();
    assert!(later.packets_forth > cut.packets_forth, "the other direction is cut too");
    assert_eq!(later.bytes_back, cut.bytes_back, "what is dropped is counted");
    link.restore().unwrap();
    assert!(reaches(&web) && reaches(&api));
}

fn check_power(lab: &Lab) {
    let cluster = lab.cluster("b").unwrap();
    let node = &cluster.nodes()[0];
    let init = node.pid().unwrap();
    node.power_off().unwrap();
    assert!(!node.is_running() && node.pid().is_none());
    assert!(!runs(init.unsigned_abs()));
    assert!(node.exec(&["true"]).is_err());
    node.power_off().unwrap();

    node.power_on().unwrap();
    node.power_on().unwrap();
    eventually("the pod's restart", || {
        (field(&cluster, "pod/web", ".status.containerStatuses[0].restartCount") == "1").then_some(())
    });
    wait_ready(&cluster, &format!("node/{}", node.name()));
    wait_ready(&cluster, "pod/web");

    let control_plane = cluster.control_plane();
    control_plane.power_off().unwrap();
    control_plane.power_on().unwrap();
    let api = cluster.api().unwrap();
    eventually("the control plane's return", || api.is_ready().then_some(()));
    assert_eq!(
        kubectl(&cluster, &["get", "pod", "web", "--output", "name"]).trim(),
        "pod/web",
        "etcd forgot"
    );
}

fn check_audit(cluster: &Cluster<'_>) {
    let log = std::fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    assert!(log.lines().any(|line| line.contains("\"username\":\"system:node:a-1\"")));
}
