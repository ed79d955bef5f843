//! A child process and its descendants, killed together.

use std::io;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The interval of [`poll_until`].
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A process group, killed when dropped and also when this process exits without dropping it.
///
/// For the second case a shell, the watcher, reads from a pipe whose other end only this process
/// holds, and kills the group at the end of file. Outside Unix there are no process groups: only
/// the child itself is killed.
#[derive(Debug)]
pub struct ProcessGroup {
    child: Child,
    watcher: Option<Child>,
}

impl ProcessGroup {
    /// Starts the command as the leader of a new group.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Command::spawn`].
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        own_group(command);
        let child = command.spawn()?;
        let watcher = watch(child.id());
        Ok(Self { child, watcher })
    }

    /// Returns the process id of the leader.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Takes the leader's standard output, if it is piped and has not been taken before.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Returns the leader's exit status, or `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until the leader exits; returns `None` after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll_until(limit, || self.exited())
    }

    /// Kills the leader and all of its descendants, and waits until the leader has exited.
    pub fn kill(&mut self) {
        let Some(mut watcher) = self.watcher.take() else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return;
        };
        // The group exists longer than its leader, so the signal also reaches orphaned children.
        send_signal("KILL", &format!("-{}", self.id()));
        let _ = self.child.wait();
        let _ = watcher.kill();
        let _ = watcher.wait();
    }

    /// Closes the pipe of the watcher, as the exit of this process would.
    #[cfg(all(test, target_os = "linux"))]
    fn abandon(&mut self) {
        drop(self.watcher.as_mut().and_then(|shell| shell.stdin.take()));
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `condition` every ten milliseconds until it returns a value; returns `None` after `limit`.
pub fn poll_until<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Sends a signal, named without `SIG`, to a process id or to a group (`-` before its id).
///
/// Uses the shell's builtin `kill`, which needs no procps.
pub(crate) fn send_signal(name: &str, target: &str) -> bool {
    Command::new("sh")
        .args(["-c", "kill -s \"$0\" -- \"$1\"", name, target])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Starts the shell that kills the group once our end of its standard input is closed.
fn watch(pid: u32) -> Option<Child> {
    if !cfg!(unix) {
        return None;
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "read -r _; kill -s KILL -- \"-$0\""])
        .arg(pid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // In its own group, so that Ctrl-C stops this process but not the watcher.
    own_group(&mut command);
    command.spawn().ok()
}

#[cfg(unix)]
fn own_group(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn own_group(_command: &mut Command) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Starts a shell with a child, and returns the child's process id.
    fn group_with_child() -> (ProcessGroup, String) {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let mut group = ProcessGroup::spawn(command.stdout(Stdio::piped())).expect("sh starts");
        let mut child = String::new();
        let stdout = group.take_stdout().expect("is piped");
        BufReader::new(stdout).read_line(&mut child).expect("a pid");
        (group, child.trim().to_owned())
    }

    fn exits(pid: &str) -> bool {
        let path = format!("/proc/{pid}/cmdline");
        // A zombie still has the file, but it is empty.
        let is_running = || fs::read(&path).is_ok_and(|line| !line.is_empty());
        poll_until(TIMEOUT, || (!is_running()).then_some(())).is_some()
    }

    #[test]
    fn kill_reaches_the_children() {
        let (mut group, child) = group_with_child();
        group.kill();
        assert!(exits(&child));
    }

    #[test]
    fn children_of_an_exited_leader_are_killed() {
        let (mut group, child) = group_with_child();
        assert!(send_signal("KILL", &group.id().to_string()));
        assert!(group.wait(TIMEOUT).is_some());
        drop(group);
        assert!(exits(&child));
    }

    #[test]
    fn watcher_kills_the_group_when_its_pipe_closes() {
        let (mut group, child) = group_with_child();
        group.abandon();
        assert!(group.wait(TIMEOUT).is_some_and(|status| !status.success()));
        assert!(exits(&child));
    }
}
