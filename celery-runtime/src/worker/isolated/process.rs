//! A child process, from its start until nothing is left of it.

use std::io;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::env;

/// How long a process may go on after a signal that was to end it, or after it
/// has hung up itself.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// How long it may go on when its worker has hung up: its `main` may have things
/// to close.
const FAREWELL: Duration = Duration::from_secs(4);

/// A running process. Dropped, it is given a while to end by itself.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    orders: mpsc::UnboundedSender<Order>,
    ended: watch::Receiver<Option<Ended>>,
}

/// How it ended, if that is known.
type Ended = Option<ExitStatus>;

#[derive(Debug)]
enum Order {
    /// End now, with everything that it started.
    Kill,
    /// This signal, and be killed if that is not the end.
    Signal(i32),
}

impl Process {
    /// Starts the command in a process group of its own, so that what a
    /// terminal sends to the worker's group does not reach it. `on_end` is
    /// called when it has ended, whether somebody waits for that or not.
    pub(super) fn start(
        mut command: Command,
        on_end: impl FnOnce(u32) + Send + 'static,
    ) -> io::Result<Self> {
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        // Unbounded: there are a few in the life of a process.
        let (orders, ordered) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        // Ends by itself soon after the process does, which ends soon after
        // this value is dropped.
        env::spawn(async move {
            let status = keep(child, ordered).await;
            on_end(pid);
            end.send_replace(Some(status));
        });
        Ok(Self { pid, orders, ended })
    }

    pub(super) fn id(&self) -> u32 {
        self.pid
    }

    /// Ends it now, with everything that it started.
    pub(super) fn kill(&self) {
        // Its keeper is gone only when it has ended.
        let _ = self.orders.send(Order::Kill);
    }

    /// Sends a signal that shall end it.
    pub(super) fn signal(&self, number: i32) {
        let _ = self.orders.send(Order::Signal(number));
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for the end.
    pub(super) async fn ended(&mut self) -> Ended {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|ended| *ended).flatten()
    }

    /// Waits for the end of a process that has hung up, which it only does
    /// when it ends; kills it otherwise.
    pub(super) async fn ending(&mut self) -> Ended {
        if let Ok(ended) = tokio::time::timeout(LAST_MOMENTS, self.ended()).await {
            return ended;
        }
        self.kill();
        self.ended().await
    }
}

/// Owns the process, so that no signal can reach another one that has got its
/// number: numbers are free again when their process has been waited for, which
/// is done here.
async fn keep(
    mut child: tokio::process::Child,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Ended {
    let mut deadline = None;
    let mut is_owned = true;
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return status.ok(),
            order = orders.recv(), if is_owned => match order {
                Some(Order::Kill) => kill(&mut child),
                Some(Order::Signal(number)) => {
                    send(&mut child, number);
                    deadline = Some(Instant::now() + LAST_MOMENTS);
                }
                None => {
                    is_owned = false;
                    deadline.get_or_insert(Instant::now() + FAREWELL);
                }
            },
            () = sleep_until(deadline) => {
                deadline = None;
                kill(&mut child);
            }
        }
    }
}

/// Kills the group that the process leads.
fn kill(child: &mut tokio::process::Child) {
    let killed = pid(child).map(|pid| kill_process_group(pid, Signal::KILL));
    if !matches!(killed, Some(Ok(()))) {
        // It has ended already, or did not become a leader.
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

    /// Runs the shell's code; it is at work when this returns.
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
    async fn its_end_is_known() {
        let (mut process, end) = shell("echo >&0; exit 3");
        assert_eq!(process.ended().await.unwrap().code(), Some(3));
        assert!(process.has_ended());
        assert_eq!(end.recv().unwrap(), process.id());
    }

    #[tokio::test]
    async fn who_ignores_a_signal_is_killed() {
        let (mut process, _end) = shell("trap '' TERM; echo >&0; while :; do sleep 1; done");
        process.signal(Signal::TERM.as_raw());
        let ended = process.ended().await.unwrap();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    async fn a_process_of_nobody_is_ended() {
        let (process, end) = shell("echo >&0; while :; do sleep 1; done");
        drop(process);
        env::spawn_blocking(move || end.recv().unwrap())
            .await
            .unwrap();
    }
}
