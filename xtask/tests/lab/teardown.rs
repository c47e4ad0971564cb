//! Whatever happens to a start, `down` leaves nothing.

use std::path::Path;
use std::process::{Child, Stdio};

use liquid_lab::{LabName, Layout};

use crate::footprint::{Footprint, Inside};
use crate::support::{TestLab, eventually, kubectl, wait_ready};

/// How far a start has come when it is killed.
const STAGES: [&str; 5] = ["state", "router", "control plane", "node", "Ready"];

#[test]
#[ignore = "starts a lab: needs root"]
fn a_start_killed_at_any_stage_leaves_nothing_after_down() {
    let lab = TestLab::named("t-kill");
    let before = Footprint::take(&lab.name);
    for stage in STAGES {
        let mut start = start(&lab);
        eventually(stage, || {
            assert!(start.try_wait().unwrap().is_none(), "the start ended before it came to: {stage}");
            reached(&lab.name, stage).then_some(())
        });
        start.kill().unwrap();
        start.wait().unwrap();
        let inside = Inside::of(&lab.name);
        assert!(stage == "state" || inside.len() > 0, "nothing to compare at: {stage}");
        lab.succeeds("down");
        assert_eq!(Footprint::take(&lab.name), before, "after a start killed at: {stage}");
        assert_eq!(inside.processes(), Vec::<String>::new(), "after a start killed at: {stage}");
    }
}

#[test]
#[ignore = "starts a lab: needs root"]
fn a_start_after_a_killed_one_works_and_repairs_what_died() {
    let lab = TestLab::named("t-again");
    let before = Footprint::take(&lab.name);
    let mut start = start(&lab);
    eventually("a control plane", || reached(&lab.name, "control plane").then_some(()));
    start.kill().unwrap();
    start.wait().unwrap();
    lab.succeeds("up --clusters a --nodes 1");

    // A machine that was killed from outside is started again by the next up, one that is off on purpose is not.
    let open = lab.open();
    let cluster = open.cluster("a").unwrap();
    let node = &cluster.nodes()[0];
    node.power_off().unwrap();
    lab.succeeds("up --clusters a --nodes 1");
    assert!(!node.is_running());
    node.power_on().unwrap();
    let pid = node.pid().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    eventually("the node's end", || (!node.is_running()).then_some(()));
    lab.succeeds("up --clusters a --nodes 1");
    assert!(node.is_running());
    wait_ready(&cluster, "node/a-1");
    assert!(kubectl(&cluster, &["get", "nodes"]).contains("a-1"));

    let inside = Inside::of(&lab.name);
    lab.succeeds("down");
    assert_eq!(Footprint::take(&lab.name), before);
    assert_eq!(inside.processes(), Vec::<String>::new());
}

fn start(lab: &TestLab) -> Child {
    lab.command("up --clusters a --nodes 1").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn reached(name: &LabName, stage: &str) -> bool {
    let layout = Layout::new(name);
    let machine_runs = |machine: &str| {
        let path = layout.machine(machine).join("processes.json");
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"init\": {"))
    };
    match stage {
        "state" => layout.state_file().exists(),
        "router" => Path::new("/run/netns").join(layout.router_netns()).exists(),
        "control plane" => machine_runs("a-cp"),
        "node" => machine_runs("a-1"),
        _ => std::fs::read_to_string(layout.machine("a-1").join("root/var/log/lab/kubelet.log"))
            .is_ok_and(|log| log.contains("Successfully registered node")),
    }
}
