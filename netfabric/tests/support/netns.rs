//! Network namespaces, and programs in them. Everything is gone when the values are dropped.

pub(crate) use liquid_load::pause;

use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take to come about.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Tries until it works.
pub(crate) fn eventually<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, attempt)
}

/// Tries until it works, but not for longer than `time`.
pub(crate) fn within<T>(time: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + time;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {time:?}");
        pause(Duration::from_millis(10));
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new(name: String) -> Self {
        run("ip", &["netns", "add", &name]).unwrap();
        let namespace = Self { name };
        namespace.sh("ip link set lo up");
        // Link-local addresses are there at once.
        namespace.sysctl("ipv6/conf/default/accept_dad", "0");
        namespace
    }

    /// Writes a setting below `/proc/sys/net`.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        self.inside(|| fs::write(format!("/proc/sys/net/{key}"), value).unwrap());
    }

    /// Runs a line of shell; what it prints.
    pub(crate) fn sh(&self, line: &str) -> String {
        self.try_sh(line).unwrap()
    }

    pub(crate) fn try_sh(&self, line: &str) -> Result<String, String> {
        run("ip", &["netns", "exec", &self.name, "sh", "-ec", line])
    }

    /// Runs a function on a thread in the namespace.
    pub(crate) fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        liquid_load::inside(&Path::new("/run/netns").join(&self.name), function)
    }

    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whatever still runs in it keeps the kernel from freeing it, but not its name.
        drop(run("ip", &["netns", "del", &self.name]));
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// SIGTERM, and wait.
    pub(crate) fn terminate(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
