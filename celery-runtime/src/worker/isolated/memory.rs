//! The memory usage of a process.

/// Returns the resident memory of a process in KiB; `None` if the system does not
/// report it.
pub(super) fn resident(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse(&status)
}

fn parse(status: &str) -> Option<u32> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_parsed() {
        let status = "Name:\tx\nVmHWM:\t    900 kB\nVmRSS:\t    812 kB\nThreads:\t1\n";
        assert_eq!(parse(status), Some(812));
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resident_memory_of_this_process_is_read() {
        assert!(resident(std::process::id()).unwrap() > 100);
    }
}
