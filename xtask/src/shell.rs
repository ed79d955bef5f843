//! Running programs and telling about it.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use test_servers::{ProcessGroup, paths};

/// What every command returns: an error is the text for the person who ran it.
pub(crate) type Outcome = Result<(), String>;

/// Announces the next step.
pub(crate) fn say(text: &str) {
    println!("==> {text}");
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(paths::workspace());
    command
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// Runs a command to its end, its outputs shown.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run `{}`: {error}", shown(command)))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`{}` failed: {status}", shown(command)))
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run `{}`: {error}", shown(command)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "`{}` failed: {}\n{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    ))
}

/// Whether the command can be started and succeeds; what it prints is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    output(command).is_ok()
}

/// Runs a command, gives each line of its standard output to `line`, and kills it with all its
/// children when `limit` has passed: then there is no status.
pub(crate) fn stream(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Option<ExitStatus>, String> {
    let deadline = Instant::now() + limit;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut group = ProcessGroup::spawn(command)
        .map_err(|error| format!("cannot run `{}`: {error}", shown(command)))?;
    let stdout = group.take_stdout().expect("standard output is piped");
    let (sender, lines) = mpsc::channel();
    // Not joined: it ends when the last holder of the pipe does, and the killed group holds none.
    thread::spawn(move || {
        for bytes in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
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

    fn streamed(script: &str, limit: Duration) -> (Vec<String>, Option<ExitStatus>) {
        let mut lines = Vec::new();
        let status = stream(Command::new("sh").args(["-c", script]), limit, |line| {
            lines.push(line.to_owned());
        });
        (lines, status.expect("sh starts"))
    }

    #[test]
    fn a_streamed_command_gives_its_lines_and_its_status() {
        let (lines, status) = streamed("echo one; echo two; exit 3", Duration::from_secs(60));
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_has_no_status() {
        let (lines, status) = streamed("echo one; sleep 1000", Duration::from_millis(300));
        assert_eq!(lines, ["one"]);
        assert!(status.is_none());
    }

    #[test]
    fn a_command_that_hangs_after_closing_its_output_is_killed_too() {
        let (_, status) = streamed("exec >&-; sleep 1000", Duration::from_millis(300));
        assert!(status.is_none());
    }

    #[test]
    fn a_failed_command_is_named_in_the_error() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 2"])).unwrap_err();
        assert!(error.starts_with("`sh -c"), "{error}");
        assert!(error.ends_with("why"), "{error}");
    }
}
