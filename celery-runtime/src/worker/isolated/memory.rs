//! How much memory a process has.

/// Its resident memory in KiB; `None` where the system does not tell.
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
    fn found_among_the_rest() {
        let status = "Name:\tx\nVmHWM:\t    900 kB\nVmRSS:\t    812 kB\nThreads:\t1\n";
        assert_eq!(parse(status), Some(812));
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn known_of_this_process() {
        assert!(resident(std::process::id()).unwrap() > 100);
    }
}
