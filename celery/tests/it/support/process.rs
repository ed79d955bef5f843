//! The example worker as a process of its own, which can be killed.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use test_servers::ProcessGroup;

use super::{Setup, TIMEOUT, blocking, fast_restore};

/// The example `worker`, connected. Killed when dropped.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    group: ProcessGroup,
    log: PathBuf,
}

impl WorkerProcess {
    /// Starts it with these settings, by their names in the environment, and
    /// waits until it says that it is ready.
    pub(crate) async fn start(setup: &Setup, settings: &[(&str, &str)]) -> Self {
        Self::start_example(&["worker"], setup, settings).await
    }

    /// The same with another example, and its arguments.
    pub(crate) async fn start_example(
        program: &[&str],
        setup: &Setup,
        settings: &[(&str, &str)],
    ) -> Self {
        let log = setup.new_log();
        let mut command = Command::new(example(program[0]));
        command
            .args(&program[1..])
            .envs(setup.environment())
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap());
        blocking(move || {
            let mut group = ProcessGroup::spawn(&mut command).unwrap();
            let mut lines = BufReader::new(group.take_stdout().unwrap()).lines();
            let ready = lines.next().and_then(Result::ok);
            let worker = Self { group, log };
            assert_eq!(ready.as_deref(), Some("ready"), "{}", worker.log());
            worker
        })
        .await
    }

    /// One that acknowledges late, and has little patience with others.
    pub(crate) async fn start_acks_late(setup: &Setup, concurrency: &str) -> Self {
        let options = fast_restore().to_string();
        let settings = [
            ("CELERY_TASK_ACKS_LATE", "1"),
            ("CELERY_WORKER_CONCURRENCY", concurrency),
            ("CELERY_TASK_TRACK_STARTED", "1"),
            ("CELERY_BROKER_TRANSPORT_OPTIONS", &options),
        ];
        Self::start(setup, &settings).await
    }

    /// Bytes of it that are in memory.
    pub(crate) fn resident_memory(&self) -> usize {
        const PAGE: usize = 4096;
        let statm = format!("/proc/{}/statm", self.group.id());
        let statm = fs::read_to_string(statm).unwrap();
        let pages = statm.split_whitespace().nth(1).unwrap();
        pages.parse::<usize>().unwrap() * PAGE
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        signal(name, &self.group.id().to_string());
    }

    /// Sends a signal to the whole process group, as a terminal does.
    pub(crate) fn signal_group(&self, name: &str) {
        signal(name, &format!("-{}", self.group.id()));
    }

    /// Waits for its end; answers the exit code, `None` after a deadly signal.
    pub(crate) async fn wait(mut self) -> Option<i32> {
        blocking(move || match self.group.wait(TIMEOUT) {
            Some(status) => status.code(),
            None => panic!("the worker does not end:\n{}", self.log()),
        })
        .await
    }

    /// Ends it as the lack of memory would.
    pub(crate) async fn kill(self) {
        self.signal("KILL");
        assert_eq!(self.wait().await, None);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Sends a signal to a process, or to a group, `-` before its number.
pub(crate) fn signal(name: &str, target: &str) {
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" -- \"$1\"", name, target])
        .status();
    assert!(sent.unwrap().success(), "cannot send SIG{name}");
}

/// Cargo builds the examples beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let tests = env::current_exe().unwrap();
    let profile = tests.ancestors().nth(2).unwrap_or(Path::new("/"));
    let program = profile
        .join("examples")
        .join(format!("{name}{}", env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} is missing: run `cargo xtask test`, or build it first with \
         `cargo build -p celery --examples`",
        program.display()
    );
    program
}
