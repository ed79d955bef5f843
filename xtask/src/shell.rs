//! Runs programs and reports progress.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use test_servers::{ProcessGroup, paths};

/// The result of a command; the error is a text for the user.
pub(crate) type Outcome = Result<(), String>;

/// Prints the next step.
pub(crate) fn say(text: &str) {
    println!("==> {text}");
}

/// Returns a command for the cargo that runs this program, in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(paths::workspace());
    command
}

/// Formats the command as on a command line.
pub(crate) fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// Runs a command and shows its output.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run `{}`: {error}", command_line(command)))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`{}` failed: {status}", command_line(command)))
}

/// Runs a command and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run `{}`: {error}", command_line(command)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "`{}` failed: {}\n{}",
        command_line(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    ))
}

/// Runs a command without output and returns whether it succeeds.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    output(command).is_ok()
}

/// Runs a command and passes each line of its standard output to `line`.
///
/// Kills the command with all of its children after `limit` and returns no status then.
pub(crate) fn stream(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Option<ExitStatus>, String> {
    let deadline = Instant::now() + limit;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut group = ProcessGroup::spawn(command)
        .map_err(|error| format!("cannot run `{}`: {error}", command_line(command)))?;
    let stdout = group.take_stdout().expect("standard output is piped");
    let (sender, lines) = mpsc::channel();
    // Not joined: the thread ends when the pipe closes, at the latest when the group is killed.
    thread::spawn(move || {
        for bytes in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(remaining) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(group.wait(deadline.saturating_duration_since(Instant::now())));
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run_script(script: &str, limit: Duration) -> (Vec<String>, Option<ExitStatus>) {
        let mut lines = Vec::new();
        let status = stream(Command::new("sh").args(["-c", script]), limit, |line| {
            lines.push(line.to_owned());
        });
        (lines, status.expect("sh starts"))
    }

    #[test]
    fn stream_passes_lines_and_returns_the_status() {
        let (lines, status) = run_script("echo one; echo two; exit 3", Duration::from_secs(60));
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn hanging_command_is_killed_without_a_status() {
        let (lines, status) = run_script("echo one; sleep 1000", Duration::from_millis(300));
        assert_eq!(lines, ["one"]);
        assert!(status.is_none());
    }

    #[test]
    fn command_that_hangs_after_closing_its_output_is_killed() {
        let (_, status) = run_script("exec >&-; sleep 1000", Duration::from_millis(300));
        assert!(status.is_none());
    }

    #[test]
    fn error_names_the_failed_command() {
        let error = output(Command::new("sh").args(["-c", "echo reason >&2; exit 2"])).unwrap_err();
        assert!(error.starts_with("`sh -c"), "{error}");
        assert!(error.ends_with("reason"), "{error}");
    }
}
