//! Python programs and Python Celery workers.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::paths;
use crate::process::{Folder, Process};
use crate::process_group::poll_until;

/// The time limit of a script.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// The time limit for a worker to become ready, and for a warm shutdown.
const WORKER_TIMEOUT: Duration = Duration::from_secs(60);

/// A Python interpreter that has the pinned Celery installed.
///
/// ```no_run
/// use test_servers::{Python, RedisServer};
///
/// let redis = RedisServer::start();
/// let python = Python::new();
/// let url = redis.url();
/// let worker = python.worker(&url, &url).concurrency(2).start();
/// let sum = python.code(
///     "import tasks; print(tasks.add.delay(2, 2).get(timeout=10))",
///     &[("CELERY_BROKER_URL", &url), ("CELERY_RESULT_BACKEND", &url)],
/// );
/// assert_eq!(sum.trim(), "4");
/// worker.terminate();
/// ```
#[derive(Debug, Clone)]
pub struct Python {
    interpreter: PathBuf,
}

impl Python {
    /// Returns the interpreter named by the environment variable [`PYTHON`](super::PYTHON).
    ///
    /// # Panics
    ///
    /// Panics if the variable is not set.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "`default` must not panic")]
    pub fn new() -> Self {
        let interpreter = env::var_os(super::PYTHON).filter(|path| !path.is_empty());
        let interpreter = interpreter.unwrap_or_else(|| {
            panic!(
                "{} is not set: run the tests by `cargo xtask test`, which creates a virtual \
                 environment with Celery, or set it to a Python interpreter that has the packages \
                 of xtask/python/requirements.txt",
                super::PYTHON
            )
        });
        Self::at(interpreter)
    }

    /// Returns the interpreter at this path.
    #[must_use]
    pub fn at(interpreter: impl Into<PathBuf>) -> Self {
        Self {
            interpreter: interpreter.into(),
        }
    }

    /// Runs the interpreter with these arguments and returns its standard output.
    ///
    /// The current folder is that of the example application, so that a script may `import tasks`.
    ///
    /// # Panics
    ///
    /// Panics with the standard error if the program fails or runs longer than two minutes.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A], environment: &[(&str, &str)]) -> String {
        let folder = Folder::new("script");
        let (output, errors) = (folder.join("stdout"), folder.join("stderr"));
        let mut command = self.command(&paths::python_app());
        command.args(arguments).envs(environment.iter().copied());
        let mut process = Process::start(&mut command, &output, &errors)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.interpreter.display()));
        let status = process.wait(SCRIPT_TIMEOUT);
        process.kill();

        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (output, errors) = (read(&output), read(&errors));
        match status {
            Some(status) if status.success() => output,
            Some(status) => panic!("the Python program failed ({status}):\n{errors}\n{output}"),
            None => panic!("the Python program did not exit in time:\n{errors}\n{output}"),
        }
    }

    /// Runs a program given as text; otherwise like [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// Panics like `run`.
    pub fn code(&self, code: &str, environment: &[(&str, &str)]) -> String {
        self.run(&["-c", code], environment)
    }

    /// Returns a builder for a worker of the example application with the `solo` pool; without a
    /// result backend if `backend` is empty.
    pub fn worker(&self, broker: &str, backend: &str) -> PythonWorkerBuilder {
        PythonWorkerBuilder {
            python: self.clone(),
            folder: paths::python_app(),
            app: "tasks".to_owned(),
            pool: "solo".to_owned(),
            concurrency: 1,
            has_peers: false,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
        .environment("CELERY_BROKER_URL", broker)
        .environment("CELERY_RESULT_BACKEND", backend)
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.interpreter);
        command
            .current_dir(folder)
            .env("PYTHONPATH", folder)
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONIOENCODING", "utf-8")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// Settings of a [`PythonWorker`].
#[derive(Debug, Clone)]
#[must_use]
pub struct PythonWorkerBuilder {
    python: Python,
    folder: PathBuf,
    app: String,
    pool: String,
    concurrency: u32,
    has_peers: bool,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl PythonWorkerBuilder {
    /// Sets the application: the name of a module in `folder`.
    pub fn app(mut self, folder: impl Into<PathBuf>, name: &str) -> Self {
        self.folder = folder.into();
        name.clone_into(&mut self.app);
        self
    }

    /// Sets the pool: `solo` (the default), `prefork` or `threads`.
    pub fn pool(mut self, pool: &str) -> Self {
        pool.clone_into(&mut self.pool);
        self
    }

    /// Sets the concurrency; above one it replaces the pool `solo` by `prefork`.
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = concurrency;
        if concurrency > 1 && self.pool == "solo" {
            return self.pool("prefork");
        }
        self
    }

    /// Enables mingle and gossip, which delays the start by a second.
    pub fn peers(self) -> Self {
        Self {
            has_peers: true,
            ..self
        }
    }

    /// Sets the queues to consume; default: `celery`.
    pub fn queues(self, names: &[&str]) -> Self {
        let names = names.join(",");
        self.argument("-Q").argument(names)
    }

    /// Adds an argument of `celery worker`.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds an environment variable.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the worker and waits until it logs that it is ready.
    ///
    /// # Panics
    ///
    /// Panics with the worker's log if it is not ready within a minute.
    #[must_use]
    pub fn start(self) -> PythonWorker {
        let mut worker = self.start_unready();
        worker.wait_for_log(" ready.");
        worker
    }

    /// Starts the worker without waiting until it is ready, for a log level that hides the ready
    /// line.
    ///
    /// # Panics
    ///
    /// Panics if the interpreter cannot be started.
    #[must_use]
    pub fn start_unready(self) -> PythonWorker {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = Folder::new("worker");
        let log = folder.join("worker.log");
        let mut command = self.python.command(&self.folder);
        command
            .args(["-m", "celery", "-A", &self.app, "worker"])
            .args(["--loglevel", "INFO"]);
        if !self.has_peers {
            command.args(["--without-mingle", "--without-gossip"]);
        }
        command
            .args(["--pool", &self.pool])
            .args(["--concurrency", &self.concurrency.to_string()])
            .args(["--hostname", &format!("python{number}@%h")])
            .args(&self.arguments)
            .envs(self.environment);
        let process = Process::start(&mut command, &log, &log).unwrap_or_else(|error| {
            panic!(
                "cannot start {}: {error}",
                self.python.interpreter.display()
            )
        });
        PythonWorker {
            process,
            log,
            _folder: folder,
        }
    }
}

/// A Python Celery worker, killed with its child processes when dropped.
#[derive(Debug)]
pub struct PythonWorker {
    process: Process,
    log: PathBuf,
    // Declared after the process, so that it is removed after the process has exited.
    _folder: Folder,
}

impl PythonWorker {
    /// Returns the process id of the main process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the log so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log contains `text`.
    ///
    /// # Panics
    ///
    /// Panics if the text is not logged within a minute, or the worker exits before.
    pub fn wait_for_log(&mut self, text: &str) {
        let found = poll_until(WORKER_TIMEOUT, || {
            let exited = self.process.exited().is_some();
            // Read after the check of the process, so that its last lines are in the log.
            let found = self.log().contains(text);
            (found || exited).then_some(found)
        });
        assert!(
            found == Some(true),
            "the Python worker did not log {text:?}:\n{}",
            self.log()
        );
    }

    /// Requests a warm shutdown, waits for the exit, and returns the whole log.
    ///
    /// # Panics
    ///
    /// Panics if the worker has not exited after a minute.
    pub fn terminate(self) -> String {
        self.process.signal("TERM");
        self.wait_for_end()
    }

    /// Waits for the exit and returns the whole log.
    ///
    /// # Panics
    ///
    /// Panics if the worker has not exited after a minute.
    pub fn wait_for_end(mut self) -> String {
        assert!(
            self.process.wait(WORKER_TIMEOUT).is_some(),
            "the Python worker did not exit in time:\n{}",
            self.log()
        );
        self.log()
    }

    /// Kills the worker and its children with SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RedisServer;

    #[test]
    #[ignore = "needs redis-server and a Python with Celery"]
    fn python_client_calls_python_worker() {
        let redis = RedisServer::start();
        let url = redis.url();
        let python = Python::new();
        let worker = python.worker(&url, &url).concurrency(2).start();

        let output = python.run(
            &["client.py"],
            &[("CELERY_BROKER_URL", &url), ("CELERY_RESULT_BACKEND", &url)],
        );

        assert_eq!(
            output,
            fs::read_to_string(paths::python_app().join("client.expected")).unwrap()
        );
        let log = worker.terminate();
        assert!(log.contains("Task tasks.add["), "{log}");
    }

    #[test]
    #[should_panic(expected = "ValueError: expected")]
    #[ignore = "needs a Python"]
    fn failing_script_panics_with_its_traceback() {
        Python::new().code("raise ValueError('expected')", &[]);
    }
}
