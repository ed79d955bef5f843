//! Example workers as processes: [`WorkerProcess`].

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use test_servers::ProcessGroup;

use super::{Setup, TIMEOUT, blocking, example, fast_restore, send_signal};

/// A connected example worker in a process of its own. Dropping it kills the
/// process.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    group: ProcessGroup,
    log: PathBuf,
}

impl WorkerProcess {
    /// Starts the example `worker` with these environment variables and waits
    /// until it prints `ready`.
    pub(crate) async fn start(setup: &Setup, settings: &[(&str, &str)]) -> Self {
        Self::start_example(&["worker"], setup, settings).await
    }

    /// Starts the example `program[0]` with the other elements as arguments; see
    /// [`start`](Self::start).
    pub(crate) async fn start_example(
        program: &[&str],
        setup: &Setup,
        settings: &[(&str, &str)],
    ) -> Self {
        let log = setup.new_log();
        let mut command = Command::new(example(program[0]));
        command
            .args(&program[1..])
            // Variables of the tests are no settings, about which the worker would warn.
            .env_remove("CELERY_TEST_PYTHON")
            .env_remove("CELERY_TEST_REDIS_SERVER")
            .env_remove("CELERY_TEST_RABBITMQ_SERVER")
            .env_remove("CELERY_TEST_LONG")
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

    /// Starts the example `worker` with late acknowledgements, STARTED states and
    /// [`fast_restore`].
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

    /// Returns the resident memory in bytes.
    pub(crate) fn resident_memory(&self) -> usize {
        const PAGE: usize = 4096;
        let statm = format!("/proc/{}/statm", self.group.id());
        let statm = fs::read_to_string(statm).unwrap();
        let pages = statm.split_whitespace().nth(1).unwrap();
        pages.parse::<usize>().unwrap() * PAGE
    }

    /// Returns the path of the log.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        send_signal(name, &self.group.id().to_string());
    }

    /// Sends a signal to the whole process group, as a terminal does.
    pub(crate) fn signal_group(&self, name: &str) {
        send_signal(name, &format!("-{}", self.group.id()));
    }

    /// Waits for the end of the process and returns its exit code, or `None` if a
    /// signal ended it.
    pub(crate) async fn wait(mut self) -> Option<i32> {
        blocking(move || match self.group.wait(TIMEOUT) {
            Some(status) => status.code(),
            None => panic!("the worker does not exit:\n{}", self.log()),
        })
        .await
    }

    /// Sends SIGKILL and waits for the end of the process.
    pub(crate) async fn kill(self) {
        self.signal("KILL");
        assert_eq!(self.wait().await, None);
    }

    /// Returns what the process has written to its standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
