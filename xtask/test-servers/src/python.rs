//! The real Celery: Python programs and workers.

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

/// How long a script may run.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

/// How long a worker may take to be ready, or to finish its tasks and end.
const WORKER_LIMIT: Duration = Duration::from_secs(60);

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
    /// The interpreter named by the environment variable [`PYTHON`](super::PYTHON).
    ///
    /// # Panics
    ///
    /// If the variable is not set.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a value that may panic is asked for by name"
    )]
    pub fn new() -> Self {
        let interpreter = env::var_os(super::PYTHON).filter(|path| !path.is_empty());
        let interpreter = interpreter.unwrap_or_else(|| {
            panic!(
                "{} is not set: run the tests by `cargo xtask test`, which makes a virtual \
                 environment with Celery, or set it to a Python interpreter that has the packages \
                 of xtask/python/requirements.txt",
                super::PYTHON
            )
        });
        Self::at(interpreter)
    }

    /// The interpreter at this path.
    #[must_use]
    pub fn at(interpreter: impl Into<PathBuf>) -> Self {
        Self {
            interpreter: interpreter.into(),
        }
    }

    /// Runs the interpreter with these arguments and returns what it printed.
    ///
    /// The current folder is the one of the example application, so that a script may
    /// `import tasks`.
    ///
    /// # Panics
    ///
    /// If the program fails or takes longer than two minutes, with what it wrote to standard
    /// error.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A], environment: &[(&str, &str)]) -> String {
        let folder = Folder::new("script");
        let (output, errors) = (folder.join("stdout"), folder.join("stderr"));
        let mut command = self.command(&paths::python_app());
        command.args(arguments).envs(environment.iter().copied());
        let mut process = Process::start(&mut command, &output, &errors)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.interpreter.display()));
        let status = process.wait(SCRIPT_LIMIT);
        process.kill();

        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (output, errors) = (read(&output), read(&errors));
        match status {
            Some(status) if status.success() => output,
            Some(status) => panic!("the Python program failed ({status}):\n{errors}\n{output}"),
            None => panic!("the Python program does not end:\n{errors}\n{output}"),
        }
    }

    /// Runs a program given as text, otherwise as [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As `run`.
    pub fn code(&self, code: &str, environment: &[(&str, &str)]) -> String {
        self.run(&["-c", code], environment)
    }

    /// A Celery worker of the example application, with the `solo` pool; no backend if its URL is
    /// empty.
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
    /// Another application: the name of a module in `folder`.
    pub fn app(mut self, folder: impl Into<PathBuf>, name: &str) -> Self {
        self.folder = folder.into();
        name.clone_into(&mut self.app);
        self
    }

    /// `solo` (from the start), `prefork`, `threads`.
    pub fn pool(mut self, pool: &str) -> Self {
        pool.clone_into(&mut self.pool);
        self
    }

    /// How many tasks run at once; more than one asks for another pool than `solo`.
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = concurrency;
        if concurrency > 1 && self.pool == "solo" {
            return self.pool("prefork");
        }
        self
    }

    /// Lets it look for other workers, with mingle and gossip, which takes a second at the start.
    pub fn peers(self) -> Self {
        Self {
            has_peers: true,
            ..self
        }
    }

    /// The queues to consume, instead of `celery`.
    pub fn queues(self, names: &[&str]) -> Self {
        let names = names.join(",");
        self.argument("-Q").argument(names)
    }

    /// One more argument of `celery worker`.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// One more environment variable.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the worker and waits until it says that it is ready.
    ///
    /// # Panics
    ///
    /// If it is not ready within a minute; the text has the worker's log.
    #[must_use]
    pub fn start(self) -> PythonWorker {
        let mut worker = self.start_unready();
        worker.wait_for_log(" ready.");
        worker
    }

    /// Starts the worker without waiting: for one that logs too little to tell.
    ///
    /// # Panics
    ///
    /// If there is no such interpreter.
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

/// A Python Celery worker; it and its child processes are killed when it is dropped.
#[derive(Debug)]
pub struct PythonWorker {
    process: Process,
    log: PathBuf,
    // After the process, so that it is removed when nobody writes to it any more.
    _folder: Folder,
}

impl PythonWorker {
    /// The process id of the main process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log contains `text`.
    ///
    /// # Panics
    ///
    /// If that takes more than a minute, or the worker ends without it.
    pub fn wait_for_log(&mut self, text: &str) {
        let found = poll_until(WORKER_LIMIT, || {
            let ended = self.process.exited().is_some();
            // Read after the look at the process: what it wrote last is in the log by then.
            let found = self.log().contains(text);
            (found || ended).then_some(found)
        });
        assert!(
            found == Some(true),
            "the Python worker did not log {text:?}:\n{}",
            self.log()
        );
    }

    /// Warm shutdown: the worker finishes its running tasks and ends. Returns its whole log.
    ///
    /// # Panics
    ///
    /// If it has not ended after a minute.
    pub fn terminate(self) -> String {
        self.process.signal("TERM");
        self.wait_for_end()
    }

    /// Waits until it has ended for a reason of its own. Returns its whole log.
    ///
    /// # Panics
    ///
    /// If it has not ended after a minute.
    pub fn wait_for_end(mut self) -> String {
        assert!(
            self.process.wait(WORKER_LIMIT).is_some(),
            "the Python worker does not end:\n{}",
            self.log()
        );
        self.log()
    }

    /// Kills the worker and its children in mid-work.
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
    fn a_python_client_calls_a_python_worker() {
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
    #[should_panic(expected = "ValueError: seen")]
    #[ignore = "needs a Python"]
    fn a_failing_script_panics_with_its_traceback() {
        Python::new().code("raise ValueError('seen')", &[]);
    }
}
