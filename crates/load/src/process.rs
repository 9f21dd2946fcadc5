//! CPU time and memory of processes, from `/proc`.

use std::fs;

use serde::Serialize;

/// Clock ticks per second in `/proc/PID/stat`. Linux fixes what user space sees at 100 on every
/// architecture that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// Samples of the server processes over a run.
#[derive(Debug)]
pub(crate) struct Servers {
    /// One for each process id that was given.
    pub(crate) processes: Vec<Sample>,
}

/// What one process used.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Process id.
    pub(crate) pid: u32,
    /// CPU time between begin and end, microseconds.
    pub(crate) cpu_us: u64,
    /// Resident memory at the end, bytes.
    pub(crate) resident_bytes: u64,
    #[serde(skip)]
    begin_us: Option<u64>,
}

impl Servers {
    /// Nothing sampled yet.
    pub(crate) fn new(pids: &[u32]) -> Self {
        let sample = |&pid| Sample { pid, cpu_us: 0, resident_bytes: 0, begin_us: None };
        Self { processes: pids.iter().map(sample).collect() }
    }

    /// The measurement begins.
    ///
    /// # Errors
    /// When a process is not there.
    pub(crate) fn begin(&mut self) -> Result<(), String> {
        for sample in &mut self.processes {
            sample.begin_us = Some(cpu_us(sample.pid)?);
        }
        Ok(())
    }

    /// The measurement ends. A process that has begun no measurement has used nothing.
    ///
    /// # Errors
    /// When a process is not there any more.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        for sample in &mut self.processes {
            let now_us = cpu_us(sample.pid)?;
            sample.cpu_us = now_us.saturating_sub(sample.begin_us.unwrap_or(now_us));
            sample.resident_bytes = resident_bytes(sample.pid)?;
        }
        Ok(())
    }
}

/// Reads the CPU time that process `pid` has used so far, all its threads, user and system, ended ones
/// included, in microseconds with a resolution of 10,000.
///
/// # Errors
/// When there is no such process.
pub(crate) fn cpu_us(pid: u32) -> Result<u64, String> {
    let stat = read(pid, "stat")?;
    cpu_ticks(&stat)
        .map(|ticks| ticks * (1_000_000 / TICKS_PER_SECOND))
        .ok_or_else(|| format!("/proc/{pid}/stat is not as expected"))
}

/// Reads the resident memory of process `pid` in bytes.
///
/// # Errors
/// When there is no such process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, String> {
    let status = read(pid, "status")?;
    resident_kib(&status)
        .map(|kib| kib * 1024)
        .ok_or_else(|| format!("/proc/{pid}/status is not as expected"))
}

fn read(pid: u32, file: &str) -> Result<String, String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
}

/// utime + stime: fields 14 and 15. The second field, the name in parentheses, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 25 0 0 20 0 4 0 99 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(175));
        assert_eq!(cpu_ticks("7 (x) S 1"), None);
        assert_eq!(resident_kib("VmPeak:\t9 kB\nVmRSS:\t  1234 kB\n"), Some(1234));
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(cpu_us(pid).is_ok());
        assert!(resident_bytes(pid).is_ok_and(|bytes| bytes > 0));
        assert!(cpu_us(u32::MAX).is_err());
    }
}
