//! What kernels say of processes, in `/proc`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

/// The directories of the processes of a machine with this first process, those of its containers among them, and no others.
pub(crate) fn of_machine(init: i32) -> anyhow::Result<impl Iterator<Item = PathBuf>> {
    // The machine's own /proc.
    let proc = PathBuf::from(format!("/proc/{init}/root/proc"));
    let entries = fs::read_dir(&proc).with_context(|| format!("cannot read {}", proc.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()))
}

/// Reads a line like `VmRSS:     12345 kB` (the kernel's kB are 1024 bytes) from `/proc/PID/status`, in bytes.
pub(crate) fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        let resident = |status| bytes(status, "VmRSS:");
        assert_eq!(resident("VmPeak:\t 9 kB\nVmRSS:\t   10240 kB\nRssAnon:\t 1 kB\n"), Some(10_485_760));
        assert_eq!(resident("Name:\tkthreadd\n"), None);
    }
}
