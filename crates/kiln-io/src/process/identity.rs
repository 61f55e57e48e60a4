//! Which process a number means: pid and start time together, since numbers are used again.

use std::fs;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

/// A process of this boot of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

impl Identity {
    /// `None` when there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start_time: start_time(pid)?, boot: host_boot_id() })
    }

    pub fn alive(&self) -> bool {
        self.boot == host_boot_id() && alive(self.pid, self.start_time)
    }
}

/// Whether this very process still runs. A zombie does not.
pub fn alive(pid: u32, start_time: u64) -> bool {
    stat(pid).is_some_and(|(state, start)| start == start_time && !matches!(state, 'Z' | 'X'))
}

/// When a process started, in clock ticks since boot.
pub fn start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, start)| start)
}

/// The kernel's boot id; empty where `/proc` is missing.
pub fn host_boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Sends TERM, or KILL when `force`, to a whole process group; to the process alone while it has no group yet.
pub fn kill_group(pid: u32, force: bool) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let signal = if force { Signal::KILL } else { Signal::TERM };
    if kill_process_group(pid, signal).is_err() {
        // Gone, or not yet the leader of its own session: both are fine to ignore here.
        let _ = kill_process(pid, signal);
    }
}

fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_number_is_another_process() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.alive());
        assert!(!alive(own.pid, own.start_time + 1));
        assert!(!Identity { boot: "another".into(), ..own }.alive());
    }
}
