//! `cargo xtask test`: everything a change has to pass, from the quickest to the slowest.

mod stage;
mod summary;

use std::process::{Command, ExitCode};

use clap::Args;
use liquid_lab::{Cache, Lab, LabName, Progress, Toolchain};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

use self::stage::{Run, Stage};
use crate::child::Interrupt;
use crate::temporary_lab::TemporaryLab;
use crate::{output, workspace};

/// What the names of labs begin with that the lab's own tests start.
const TEST_LABS: &str = "t-";

/// What a run without any caches leaves on the disk: `target`, the build cache of Go, its modules, and what is built from them.
const FILLS_GB: u64 = 15;

/// How each fuzz target is tried: new code is reached within seconds or not for hours, and what passes once shall pass again.
const FUZZ: [&str; 5] = ["fuzz", "--seconds", "10", "--seed", "1"];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Leave out what needs root and clusters: tests in network namespaces, the lab's own tests and what plays on
    /// whole clusters: scenarios, matrix, leaves.
    #[arg(long)]
    quick: bool,
    /// Name of the lab these play in, one after the other; one of that name is taken down before and after.
    #[arg(long = "lab", default_value = "test", value_name = "NAME")]
    lab: LabName,
    /// Cargo profile of the image they install.
    #[arg(long, default_value = "release", value_name = "PROFILE")]
    profile: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let mut run = Run::new(&interrupt);
    note_space();
    source(&mut run);
    let left_out = match (arguments.quick, Uid::effective().is_root()) {
        (true, _) => Some("--quick"),
        (false, false) => Some("needs root"),
        (false, true) => None,
    };
    if let Some(why) = left_out {
        let plays = PLAYS.iter().map(|play| play.stages[2]);
        ["netns", "lab"].into_iter().chain(plays).for_each(|stage| run.skip(stage, why));
    } else {
        netns(&mut run);
        lab(&mut run);
        plays(&mut run, arguments);
    }
    let outcomes = run.finish();
    output::note(&summary::failures(&outcomes));
    output::result(&summary::table(&outcomes));
    if interrupt.is_set() {
        return Ok(interrupt.exit_code());
    }
    let failed = outcomes.iter().any(summary::Outcome::is_failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Says how much room there is: a disk that fills up makes the strangest stages fail.
fn note_space() {
    if let Ok(disk) = statvfs(workspace::ROOT) {
        let free = disk.blocks_available() * disk.fragment_size() / 1_000_000_000;
        output::note(&format!("== {free} GB of disk free; from nothing, a whole run fills about {FILLS_GB}"));
    }
}

/// What needs nothing but the source tree.
///
/// Stages run one after the other: compilers of Rust and Go both keep every core busy, so that doing two things at once
/// only made both slower.
fn source(run: &mut Run<'_>) {
    let cargo = workspace::cargo;
    run.stage(Stage::new("format", cargo(&["fmt", "--all", "--check"])));
    let mut gofmt = Command::new("gofmt");
    gofmt.args(["-l", "e2e/go"]).current_dir(workspace::ROOT);
    // It names files that are not formatted, and succeeds.
    run.stage(Stage::new("gofmt", gofmt).silent());
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run.stage(Stage::new("clippy", cargo(&clippy)));
    let mut docs = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    run.stage(Stage::new("docs", docs));
    run.stage(Stage::new("generated", workspace::xtask(&["gen", "--check"])));
    run.stage(Stage::new("dependencies", workspace::xtask(&["dependencies"])));
    run.stage(Stage::new("unit", cargo(&["test", "--workspace", "--no-fail-fast"])));
    run.stage(Stage::new("fuzz", workspace::xtask(&FUZZ)));
}

/// Programs of the data path in network namespaces: no cluster, one thing at a time.
fn netns(run: &mut Run<'_>) {
    let wireguard =
        Cache::open().and_then(|cache| Toolchain::on_demand("wireguard", &cache, &Progress::new()));
    let wireguard = match wireguard {
        Ok(program) => program,
        Err(error) => return run.fail("netns", &error),
    };
    let tests = [
        "test",
        "--workspace",
        "--no-fail-fast",
        "--test",
        "netns",
        "--",
        "--ignored",
        "--test-threads=1",
        "--show-output",
        "--skip",
        "by_hand",
    ];
    let mut command = workspace::cargo(&tests);
    command.env("WIREGUARD_GO", wireguard);
    run.stage(Stage::new("netns", command));
}

/// The lab's own tests. The first one builds Kubernetes, if that was never done on this machine.
fn lab(run: &mut Run<'_>) {
    // The whole workspace, here and below, although one package is meant: with another choice of packages, cargo
    // chooses other features of what they depend on, and compiles it again.
    let tests =
        ["test", "--workspace", "--no-fail-fast", "--test", "lab", "--", "--ignored", "--test-threads=1"];
    if run.stage(Stage::new("lab", workspace::cargo(&tests))) {
        return;
    }
    // A test that was killed could not take its lab down.
    for name in Lab::all().iter().filter(|name| name.as_str().starts_with(TEST_LABS)) {
        if let Err(error) = liquid_lab::down(name, &Progress::new()) {
            output::error(&error);
        }
    }
}

/// Tests that play in a lab of their own, with the image of this source tree.
struct Play {
    /// What the stages are called: the lab, the image, the tests.
    stages: [&'static str; 3],
    /// Options of the lab.
    lab: &'static [&'static str],
    /// The test target.
    tests: &'static str,
}

/// One lab after the other, so that two cores do.
const PLAYS: [Play; 4] = [
    // The provider has a node to lose.
    Play { stages: ["lab up", "image", "scenarios"], lab: &["--nodes", "1,b=2"], tests: "scenarios" },
    Play {
        stages: ["matrix lab up", "matrix image", "matrix"],
        lab: &[
            "--clusters",
            "a,b,c,d",
            "--pod-cidr",
            "same,c=asymmetric,d=disjoint",
            "--stack",
            "ptp/nftables,d=bridge/iptables",
            "--ip-families",
            "dual",
        ],
        tests: "matrix",
    },
    Play {
        stages: ["IPv6 lab up", "IPv6 image", "IPv6 matrix"],
        lab: &["--clusters", "a,b,c", "--pod-cidr", "same,c=disjoint", "--ip-families", "ipv6,c=dual"],
        tests: "matrix",
    },
    Play {
        stages: ["leaves lab up", "leaves image", "leaves"],
        lab: &["--clusters", "a,b,c", "--ip-families", "dual"],
        tests: "leaves",
    },
];

/// What is tried on whole clusters.
fn plays(run: &mut Run<'_>, arguments: &Arguments) {
    let liquidctl = ["build", "--quiet", "--workspace", "--bin", "liquidctl"];
    let built = run.stage(Stage::new("liquidctl", workspace::cargo(&liquidctl)));
    for one in PLAYS {
        if built {
            play(run, arguments, &one);
        } else {
            run.skip(one.stages[2], "what they need has failed");
        }
    }
}

fn play(run: &mut Run<'_>, arguments: &Arguments, play: &Play) {
    let [lab_up, image_built, tests] = play.stages;
    let lab = match TemporaryLab::new(&arguments.lab) {
        Ok(lab) => lab,
        Err(error) => return run.fail(lab_up, &error),
    };
    let name = arguments.lab.as_str();
    let up = [&["lab", "up", "--lab", name], play.lab].concat();
    let build = ["image", "--lab", name, "--profile", &arguments.profile];
    let ready = run.stage(Stage::new(lab_up, workspace::xtask(&up)))
        && run.stage(Stage::new(image_built, workspace::xtask(&build)));
    // The result of `cargo xtask image` is its last line.
    let image = run.last_line().to_owned();
    if ready {
        // They print what they measure.
        let target = play.tests;
        let words =
            ["test", "--workspace", "--test", target, "--", "--ignored", "--test-threads=1", "--show-output"];
        let mut command = workspace::cargo(&words);
        command.env("LIQUID_LAB", name);
        command.env("LIQUIDCTL", workspace::built("liquidctl"));
        command.env("LIQUID_IMAGE", image);
        run.stage(Stage::new(tests, command));
    } else {
        run.skip(tests, "what they need has failed");
    }
    // Also when the user wants to end.
    if let Err(error) = lab.down() {
        run.fail("lab down", &error);
    }
}
