//! A child process and the task that waits for its exit: [`Process`].

use std::io;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::env;

/// How long a process may take to exit after a signal, or after it has closed its
/// socket, before it is killed.
const KILL_DELAY: Duration = Duration::from_secs(2);

/// How long a process may take to exit after its parent has closed the socket,
/// before it is killed: its `main` may have to clean up.
const HANGUP_KILL_DELAY: Duration = Duration::from_secs(4);

/// A running process. After it is dropped, the process is killed unless it exits
/// within [`HANGUP_KILL_DELAY`].
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    requests: mpsc::UnboundedSender<StopRequest>,
    ended: watch::Receiver<Option<Exit>>,
}

/// The exit status, if it is known.
type Exit = Option<ExitStatus>;

#[derive(Debug)]
enum StopRequest {
    /// Kill the process group at once.
    Kill,
    /// Send this signal, and kill the process group after [`KILL_DELAY`].
    Signal(i32),
}

impl Process {
    /// Starts the command in a separate process group, so that signals of a
    /// terminal to the worker's group do not reach it. `on_exit` is called with
    /// the process id after the exit.
    pub(super) fn start(
        mut command: Command,
        on_exit: impl FnOnce(u32) + Send + 'static,
    ) -> io::Result<Self> {
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        // Unbounded: there are only a few requests for each process.
        let (requests, received) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        // The task ends with the process, which exits or is killed soon after
        // this value is dropped.
        env::spawn(async move {
            let status = supervise(child, received).await;
            on_exit(pid);
            end.send_replace(Some(status));
        });
        Ok(Self {
            pid,
            requests,
            ended,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.pid
    }

    /// Kills the process and its process group.
    pub(super) fn kill(&self) {
        // Fails only when the process has exited.
        let _ = self.requests.send(StopRequest::Kill);
    }

    /// Sends a signal, and kills the process if it has not exited after
    /// [`KILL_DELAY`].
    pub(super) fn signal(&self, number: i32) {
        let _ = self.requests.send(StopRequest::Signal(number));
    }

    pub(super) fn has_exited(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for the exit.
    pub(super) async fn wait(&mut self) -> Exit {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|ended| *ended).flatten()
    }

    /// Waits for the exit of a process that has closed its socket, and kills it
    /// after [`KILL_DELAY`].
    pub(super) async fn wait_or_kill(&mut self) -> Exit {
        if let Ok(ended) = tokio::time::timeout(KILL_DELAY, self.wait()).await {
            return ended;
        }
        self.kill();
        self.wait().await
    }
}

/// Owns the process: sends signals and waits for the exit. One task does both, so
/// that a signal cannot reach another process with the same id; an id is free for
/// reuse once its process has been waited for.
async fn supervise(
    mut child: tokio::process::Child,
    mut requests: mpsc::UnboundedReceiver<StopRequest>,
) -> Exit {
    let mut deadline = None;
    let mut has_owner = true;
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return status.ok(),
            request = requests.recv(), if has_owner => match request {
                Some(StopRequest::Kill) => kill(&mut child),
                Some(StopRequest::Signal(number)) => {
                    send(&mut child, number);
                    deadline = Some(Instant::now() + KILL_DELAY);
                }
                None => {
                    has_owner = false;
                    deadline.get_or_insert(Instant::now() + HANGUP_KILL_DELAY);
                }
            },
            () = sleep_until(deadline) => {
                deadline = None;
                kill(&mut child);
            }
        }
    }
}

/// Kills the process group.
fn kill(child: &mut tokio::process::Child) {
    let killed = pid(child).map(|pid| kill_process_group(pid, Signal::KILL));
    if !matches!(killed, Some(Ok(()))) {
        // The process has exited, or is not the leader of a group.
        let _ = child.start_kill();
    }
}

fn send(child: &mut tokio::process::Child, number: i32) {
    let sent = pid(child)
        .zip(Signal::from_named_raw(number))
        .map(|(pid, signal)| kill_process(pid, signal));
    match sent {
        Some(Ok(())) => {}
        _ => kill(child),
    }
}

fn pid(child: &tokio::process::Child) -> Option<Pid> {
    Pid::from_raw(child.id()?.try_into().ok()?)
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;
    use std::sync::mpsc;

    use super::*;

    /// Runs shell code, and returns after its first output.
    fn shell(code: &str) -> (Process, mpsc::Receiver<u32>) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", code]).stdin(OwnedFd::from(theirs));
        let (ended, end) = mpsc::channel();
        let process = Process::start(command, move |pid| ended.send(pid).unwrap()).unwrap();
        ours.read_exact(&mut [0]).unwrap();
        (process, end)
    }

    #[tokio::test]
    async fn exit_status_is_reported() {
        let (mut process, end) = shell("echo >&0; exit 3");
        assert_eq!(process.wait().await.unwrap().code(), Some(3));
        assert!(process.has_exited());
        assert_eq!(end.recv().unwrap(), process.id());
    }

    #[tokio::test]
    async fn process_that_ignores_a_signal_is_killed() {
        let (mut process, _end) = shell("trap '' TERM; echo >&0; while :; do sleep 1; done");
        process.signal(Signal::TERM.as_raw());
        let ended = process.wait().await.unwrap();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    async fn dropped_process_is_killed() {
        let (process, end) = shell("echo >&0; while :; do sleep 1; done");
        drop(process);
        env::spawn_blocking(move || end.recv().unwrap())
            .await
            .unwrap();
    }
}
