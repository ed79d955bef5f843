//! A child process together with everything it starts, ended as one.

use std::io;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long between two looks at something that has no way to wake us.
const POLL: Duration = Duration::from_millis(10);

/// A process group: killed when dropped, and also when this process ends without dropping it.
///
/// The second is the work of a shell that waits for the closing of a pipe whose other end only
/// this process holds. Outside Unix there are no process groups: only the child itself is killed.
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
    /// Those of [`Command::spawn`].
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        own_group(command);
        let child = command.spawn()?;
        let watcher = watch(child.id());
        Ok(Self { child, watcher })
    }

    /// The process id of the leader.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The leader's standard output, if it was piped and not taken before.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The leader's exit status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the leader to end by itself; `None` when `limit` has passed before.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll_until(limit, || self.exited())
    }

    /// Kills the leader and everything it started, and waits until the leader is gone.
    pub fn kill(&mut self) {
        let Some(mut watcher) = self.watcher.take() else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return;
        };
        // The group outlives its leader, so this also reaches the children of a dead one.
        send_signal("KILL", &format!("-{}", self.id()));
        let _ = self.child.wait();
        let _ = watcher.kill();
        let _ = watcher.wait();
    }

    /// Closes the pipe that the watcher waits on, as the end of this process would.
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

/// Asks again and again until there is an answer or `limit` has passed.
pub fn poll_until<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Sends a signal, by its name without `SIG`, to a process id or to a group, `-` before its id.
///
/// Through the shell's own `kill`, which is there even where procps is not.
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
    // Not in our own group: Ctrl-C must end us and leave the watcher to do its work.
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

    const LIMIT: Duration = Duration::from_secs(10);

    /// A shell with a child of its own, and that child's process id.
    fn tree() -> (ProcessGroup, String) {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let mut group = ProcessGroup::spawn(command.stdout(Stdio::piped())).expect("sh starts");
        let mut child = String::new();
        let stdout = group.take_stdout().expect("is piped");
        BufReader::new(stdout).read_line(&mut child).expect("a pid");
        (group, child.trim().to_owned())
    }

    fn ends(pid: &str) -> bool {
        let path = format!("/proc/{pid}/cmdline");
        // A zombie still has the file, with nothing in it.
        let gone = || fs::read(&path).is_ok_and(|line| !line.is_empty());
        poll_until(LIMIT, || (!gone()).then_some(())).is_some()
    }

    #[test]
    fn killing_reaches_the_children_too() {
        let (mut group, child) = tree();
        group.kill();
        assert!(ends(&child));
    }

    #[test]
    fn the_children_of_a_leader_that_died_are_killed_too() {
        let (mut group, child) = tree();
        assert!(send_signal("KILL", &group.id().to_string()));
        assert!(group.wait(LIMIT).is_some());
        drop(group);
        assert!(ends(&child));
    }

    #[test]
    fn the_watcher_kills_when_nobody_else_does() {
        let (mut group, child) = tree();
        group.abandon();
        assert!(group.wait(LIMIT).is_some_and(|status| !status.success()));
        assert!(ends(&child));
    }
}
