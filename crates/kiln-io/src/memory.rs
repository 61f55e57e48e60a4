//! How much memory of this machine is left for a guest.

use std::path::{Path, PathBuf};

/// Bytes that a new process can use without swapping: what the kernel estimates for the machine, and what the limits of
/// this process's control groups leave. `None` where the kernel does not say.
pub fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_the_machine(&text));
    let group = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| of_the_groups(&text, Path::new("/sys/fs/cgroup")));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// `MemAvailable` of `/proc/meminfo`.
fn of_the_machine(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least that a control group (version 2) or one it lies in leaves.
fn of_the_groups(text: &str, root: &Path) -> Option<u64> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut group: PathBuf = root.join(path);
    let mut least = None;
    while group != root && group.starts_with(root) {
        let number = |file: &str| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        // `max` is no number, and no limit.
        if let (Some(most), Some(used)) = (number("memory.max"), number("memory.current")) {
            let left = most.saturating_sub(used);
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
        if !group.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_estimates() {
        let text = "MemTotal:       24689764 kB\nMemFree:          1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(of_the_machine(text), Some(23_000_000 * 1024));
        assert_eq!(of_the_machine("MemTotal: 1 kB\n"), None);
        assert!(available().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn the_tightest_group_counts_and_one_without_a_limit_does_not() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("ci/job");
        std::fs::create_dir_all(&inner).unwrap();
        let limit = |directory: &Path, most: &str, used: &str| {
            std::fs::write(directory.join("memory.max"), most).unwrap();
            std::fs::write(directory.join("memory.current"), used).unwrap();
        };
        limit(&inner, "max\n", "500\n");
        assert_eq!(of_the_groups("0::/ci/job\n", root.path()), None);
        limit(&root.path().join("ci"), "1000\n", "400\n");
        assert_eq!(of_the_groups("0::/ci/job\n", root.path()), Some(600));
        limit(&inner, "700\n", "800\n");
        assert_eq!(of_the_groups("0::/ci/job\n", root.path()), Some(0));
    }
}
