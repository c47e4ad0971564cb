//! Processes that are measured: started, killed, and what the kernel counts of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use liquid_load::processor_time;
use serde::Serialize;

use crate::proc;

/// What the kernel counts of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// Processor time since its start, in seconds.
    pub(crate) cpu_s: f64,
    /// Resident memory now (`VmRSS`): anonymous memory and what is in memory of its file.
    pub(crate) resident: u64,
    /// Of it, anonymous memory (`RssAnon`).
    pub(crate) anonymous: u64,
    /// Most resident memory since [`Process::reset_peak`] (`VmHWM`).
    pub(crate) peak: u64,
}

/// A process of Liquid. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    /// Name of the program.
    pub(crate) program: &'static str,
    /// Starts it.
    command: Command,
    child: Option<Child>,
}

impl Process {
    /// Starts a program; what it says goes to `log`.
    pub(crate) fn start(program: &'static str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut process = Self { program, command, child: None };
        process.again()?;
        Ok(process)
    }

    /// Starts it again, after [`Process::kill`].
    pub(crate) fn again(&mut self) -> anyhow::Result<()> {
        let child = self.command.spawn().with_context(|| format!("cannot start {}", self.program))?;
        self.child = Some(child);
        Ok(())
    }

    /// Kills it (SIGKILL): it has no time to give anything back.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What the kernel counts of it.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage(&self.directory()?).with_context(|| format!("{} has ended: see its log", self.program))
    }

    /// Lets its peak begin anew.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn reset_peak(&self) -> anyhow::Result<()> {
        let path = self.directory()?.join("clear_refs");
        // "5" is what resets VmHWM (proc(5)).
        fs::write(&path, "5").with_context(|| format!("cannot write {}", path.display()))
    }

    fn directory(&self) -> anyhow::Result<PathBuf> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.program))?;
        Ok(Path::new("/proc").join(child.id().to_string()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The process of a program in a machine with this first process, by its directory in `/proc`.
pub(crate) fn of_machine(init: i32, program: &str) -> anyhow::Result<PathBuf> {
    let found = proc::of_machine(init)?.find(|path| is_program(path, program));
    found.with_context(|| format!("no {program} runs"))
}

fn is_program(path: &Path, program: &str) -> bool {
    let line = fs::read(path.join("cmdline")).unwrap_or_default();
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(first).rsplit('/').next() == Some(program)
}

/// What the kernel counts of the process with this directory in `/proc`.
///
/// # Errors
/// If there is none (any more).
pub(crate) fn usage(directory: &Path) -> anyhow::Result<Usage> {
    let status = fs::read_to_string(directory.join("status"))?;
    let memory = |field| proc::bytes(&status, field);
    let (resident, peak) = (memory("VmRSS:"), memory("VmHWM:"));
    ensure!(resident.is_some(), "the process has ended");
    Ok(Usage {
        cpu_s: processor_time(directory).context("/proc/PID/stat has another form")?.as_secs_f64(),
        resident: resident.unwrap_or_default(),
        anonymous: memory("RssAnon:").unwrap_or_default(),
        peak: peak.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_is_seen_to() {
        let own = Path::new("/proc/self");
        let before = usage(own).unwrap();
        let work: Vec<u64> = (0..20_000_000_u64).map(|n| n.wrapping_mul(n)).collect();
        assert!(!work.is_empty());
        let after = usage(own).unwrap();
        assert!(after.cpu_s > before.cpu_s && after.peak > before.peak, "{before:?} {after:?}");
        assert!(usage(Path::new("/proc/0")).is_err());
    }
}
