//! Describes the exit status of a child process in the words of Celery. Pure.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::Signal;

/// Returns the message of the `WorkerLostError` of a task whose process ended.
/// `job` is the number of the task among all isolated tasks of the worker.
pub(crate) fn message(status: Option<ExitStatus>, job: u64) -> String {
    format!(
        "Worker exited prematurely: {} Job: {job}.",
        describe(status)
    )
}

/// Describes how a process ended.
pub(crate) fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "exitcode unknown".to_owned();
    };
    match status.signal() {
        Some(number) => match signal_name(number) {
            Some(name) => format!("signal {number} ({name})"),
            None => format!("signal {number}"),
        },
        None => format!("exitcode {}", status.code().unwrap_or_default()),
    }
}

/// The names of the signals that end processes.
const SIGNAL_NAMES: [(Signal, &str); 16] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::ILL, "SIGILL"),
    (Signal::TRAP, "SIGTRAP"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::BUS, "SIGBUS"),
    (Signal::FPE, "SIGFPE"),
    (Signal::KILL, "SIGKILL"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::USR2, "SIGUSR2"),
    (Signal::PIPE, "SIGPIPE"),
    (Signal::ALARM, "SIGALRM"),
    (Signal::TERM, "SIGTERM"),
    (Signal::SYS, "SIGSYS"),
];

fn signal_name(number: i32) -> Option<&'static str> {
    let found = SIGNAL_NAMES
        .iter()
        .find(|(signal, _)| signal.as_raw() == number);
    found.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_message_matches_celery() {
        let ended = |raw| Some(ExitStatus::from_raw(raw));
        assert_eq!(
            message(ended(9), 3),
            "Worker exited prematurely: signal 9 (SIGKILL) Job: 3."
        );
        assert_eq!(
            message(ended(3 << 8), 0),
            "Worker exited prematurely: exitcode 3 Job: 0."
        );
    }
}
