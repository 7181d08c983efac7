//! What this machine has, for the settings that are `auto`.

use std::path::Path;

/// Left to the system, the text side and connections: the larger of this and an eighth.
const MARGIN_BYTES: u64 = 256 << 20;

/// Memory that the engine may plan with: what is available on the machine or within the cgroup's limit, less a margin.
///
/// `None` where neither can be found out.
pub fn memory_bytes() -> Option<u64> {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = cgroup_limit(Path::new("/sys/fs/cgroup"), &groups);
    let bytes = match (available, limit) {
        (Some(available), Some(limit)) => available.min(limit),
        (found, None) | (None, found) => found?,
    };
    Some(less_margin(bytes))
}

/// Threads that may run at the same time, by affinity and cgroup quota.
pub fn num_threads() -> u32 {
    std::thread::available_parallelism().ok().and_then(|num| u32::try_from(num.get()).ok()).unwrap_or(1)
}

fn less_margin(bytes: u64) -> u64 {
    bytes.saturating_sub(MARGIN_BYTES.max(bytes / 8)).max(bytes / 2)
}

/// `MemAvailable` of /proc/meminfo: what can be had without swapping.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The smallest limit of the process's cgroup and those above it; version 2, or version 1's memory controller.
fn cgroup_limit(root: &Path, groups: &str) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (base, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            list if list.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let relative = Path::new(path.trim_start_matches('/'));
        // In a container the path names the host's view, and the limit lies at the root of what is mounted.
        for folder in relative.ancestors() {
            let text = std::fs::read_to_string(base.join(folder).join(file)).unwrap_or_default();
            // "max" in version 2, and a number near 2^63 in version 1, stand for no limit.
            if let Some(limit) = text.trim().parse::<u64>().ok().filter(|limit| *limit < 1 << 60) {
                least = Some(least.map_or(limit, |least: u64| least.min(limit)));
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo() {
        let text = "MemTotal:       4028 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available_bytes(text), Some(2048 * 1024));
        assert_eq!(available_bytes("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_tightest_cgroup_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "3000\n");
        assert_eq!(cgroup_limit(root.path(), "0::/a/b\n"), Some(3000));
        write("a/b/memory.max", "2000\n");
        assert_eq!(cgroup_limit(root.path(), "0::/a/b\n"), Some(2000));
        assert_eq!(cgroup_limit(root.path(), "0::/other\n"), None);
        write("memory.max", "9000\n");
        assert_eq!(cgroup_limit(root.path(), "0::/docker/x\n"), Some(9000));
        write("memory/c/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(cgroup_limit(root.path(), "5:cpu,memory:/c\n"), None);
        write("memory/memory.limit_in_bytes", "7000\n");
        assert_eq!(cgroup_limit(root.path(), "5:cpu,memory:/c\n4:pids:/\n"), Some(7000));
    }

    #[test]
    fn the_margin_leaves_something() {
        assert_eq!(less_margin(4 << 30), (4 << 30) - (512 << 20));
        assert_eq!(less_margin(1 << 30), (1 << 30) - (256 << 20));
        assert_eq!(less_margin(300 << 20), 150 << 20);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(num_threads() >= 1);
        if cfg!(target_os = "linux") {
            assert!(memory_bytes().unwrap() > 1 << 20);
        }
    }
}
