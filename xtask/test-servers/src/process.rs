//! A server or Python program with its log files, killed at the end of the test.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::paths;
use crate::process_group::{ProcessGroup, poll_until, send_signal};

/// A running program, killed when dropped. If its [`ProcessGroup`] fails to kill it, [`kill_leaks`]
/// finds it by its pid file.
#[derive(Debug)]
pub(super) struct Process {
    group: ProcessGroup,
    pid_file: PathBuf,
}

impl Process {
    /// Starts `command` in its own process group and appends standard output and standard error to
    /// two files, which may be the same.
    pub(super) fn start(command: &mut Command, output: &Path, errors: &Path) -> io::Result<Self> {
        let program = Path::new(command.get_program()).file_name();
        let name = program.unwrap_or_default().to_owned();
        Self::start_as(&name, command, output, errors)
    }

    /// Starts a program that replaces itself by another one (`exec`). `name` is a word that stays
    /// in the command line, by which [`kill_leaks`] identifies the process.
    pub(super) fn start_as(
        name: &OsStr,
        command: &mut Command,
        output: &Path,
        errors: &Path,
    ) -> io::Result<Self> {
        let append = |path| File::options().create(true).append(true).open(path);
        command
            .stdin(Stdio::null())
            .stdout(append(output)?)
            .stderr(append(errors)?);
        let group = ProcessGroup::spawn(command)?;
        let pid_file = pid_folder()?.join(format!("{}.pid", group.id()));
        fs::write(&pid_file, name.as_encoded_bytes())?;
        Ok(Self { group, pid_file })
    }

    pub(super) fn id(&self) -> u32 {
        self.group.id()
    }

    /// Returns the exit status, or `None` while the program runs.
    pub(super) fn exited(&mut self) -> Option<ExitStatus> {
        self.group.exited()
    }

    /// Waits until the program exits; returns `None` after `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.group.wait(limit)
    }

    /// Sends a signal, named without `SIG`, to the program but not to its children.
    pub(super) fn signal(&self, name: &str) {
        assert!(
            send_signal(name, &self.id().to_string()),
            "cannot send SIG{name} to process {}",
            self.id()
        );
        if name == "STOP" {
            self.wait_until_stopped();
        }
    }

    /// Waits until no thread runs: on a busy machine a stopped process replies for a
    /// moment. Only where `/proc` tells.
    fn wait_until_stopped(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.id())) else {
                return;
            };
            let is_stopped = |stat: &str| {
                let state = stat.rsplit(") ").next();
                state.is_some_and(|state| state.starts_with('T'))
            };
            let mut stats = threads
                .flatten()
                .filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
            if stats.all(|stat| is_stopped(&stat)) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills the program and all of its children, and waits until the program has exited.
    pub(super) fn kill(&mut self) {
        self.group.kill();
        let _ = fs::remove_file(&self.pid_file);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The reason why a server did not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// The program cannot be executed.
    Program(OsString, io::Error),
    /// The program exited; the text is the end of its log.
    Exited(String),
    /// The program did not become ready in time; the text is the end of its log.
    Timeout(String),
}

impl StartError {
    /// Returns the error text with a remedy. The name of the Debian package is `program`, too.
    pub(super) fn explain(&self, program: &str, variable: &str) -> String {
        match self {
            Self::Program(path, error) => format!(
                "cannot start {} ({error}): run the tests by `cargo xtask test`, or install \
                 {program} (Debian and Ubuntu: apt-get install {program}), or set {variable} to \
                 the program",
                path.display()
            ),
            Self::Exited(log) => {
                format!("{program} exited during its start; the end of its log:\n{log}")
            }
            Self::Timeout(log) => {
                format!("{program} did not become ready in time; the end of its log:\n{log}")
            }
        }
    }
}

/// Returns the last ten lines of a log file.
pub(super) fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(10).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// A new, empty folder for one program, removed when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(kind: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{kind}-{}-{number}", std::process::id());
        let path = paths::target().join("servers").join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot create the folder {}: {error}", path.display()));
        Self(path)
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Keeps the logs of a failed test.
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A process that was still running after the test that started it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leak {
    /// Its process id.
    pub pid: u32,
    /// The program, or another word of its command line that identifies it.
    pub program: String,
}

/// Kills every server that a test did not stop, and returns them.
///
/// Call this only while no test runs: the servers of running tests are killed, too.
#[must_use]
pub fn kill_leaks() -> Vec<Leak> {
    let Ok(files) = pid_folder().and_then(fs::read_dir) else {
        return Vec::new();
    };
    files
        .flatten()
        .filter_map(|file| {
            let leak = read_pid_file(&file.path())?;
            // After the exit of a test process its watchers need a moment to kill the servers.
            let exited = poll_until(Duration::from_secs(2), || {
                (!is_running(&leak)).then_some(())
            });
            if exited.is_none() {
                send_signal("KILL", &format!("-{}", leak.pid));
            }
            let _ = fs::remove_file(file.path());
            exited.is_none().then_some(leak)
        })
        .collect()
}

fn pid_folder() -> io::Result<PathBuf> {
    let folder = paths::target().join("servers").join("pids");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn read_pid_file(path: &Path) -> Option<Leak> {
    Some(Leak {
        pid: path.file_stem()?.to_str()?.parse().ok()?,
        program: fs::read_to_string(path).ok()?,
    })
}

/// Returns whether the process still runs the same program: process ids are reused.
fn is_running(leak: &Leak) -> bool {
    let listed = Command::new("ps")
        .args(["-o", "args=", "-p", &leak.pid.to_string()])
        .output()
        .map(|output| output.stdout)
        .or_else(|_| fs::read(format!("/proc/{}/cmdline", leak.pid)));
    listed.is_ok_and(|arguments| String::from_utf8_lossy(&arguments).contains(&leak.program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn pid_file_exists_until_the_process_is_killed() {
        let folder = Folder::new("sleeper");
        let log = folder.join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000"]);
        let mut process = Process::start(&mut command, &log, &log).unwrap();
        let path = process.pid_file.clone();
        let leak = read_pid_file(&path).expect("a pid file");
        assert_eq!((leak.pid, leak.program.as_str()), (process.id(), "sh"));
        assert!(is_running(&leak));

        process.kill();

        assert!(!is_running(&leak));
        assert!(!path.exists());
    }
}
