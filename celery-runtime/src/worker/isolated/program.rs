//! The program of child processes, and the environment variable that marks them.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::worker::isolated::ChildError;

/// The environment variable that marks a child process. Its value is the name of
/// the parent worker. The underscore keeps it apart from Celery's settings, which
/// begin with `CELERY_`.
pub(super) const CHILD_ENV: &str = "_CELERY_ISOLATED_CHILD";

/// The value of [`CHILD_ENV`] for a child that runs tasks of any worker of the
/// program.
pub(super) const ANY_WORKER: &str = "any";

/// The program that is started as a child.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// The program of this process.
    Own(PathBuf),
    /// The command given with `Worker::child_command`.
    Custom(ChildCommand),
}

/// The parts of a [`Command`], which itself cannot be cloned.
#[derive(Clone, Debug)]
pub(crate) struct ChildCommand {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    folder: Option<PathBuf>,
}

impl From<&Command> for ChildCommand {
    fn from(command: &Command) -> Self {
        let own = OsStr::to_owned;
        let environment = command.get_envs();
        Self {
            program: own(command.get_program()),
            arguments: command.get_args().map(own).collect(),
            environment: environment
                .map(|(name, value)| (own(name), value.map(own)))
                .collect(),
            folder: command.get_current_dir().map(Path::to_owned),
        }
    }
}

impl Program {
    /// Returns the given program, or the program of this process.
    pub(super) fn find(custom: Option<ChildCommand>) -> Result<Self, ChildError> {
        if let Some(custom) = custom {
            return Ok(Self::Custom(custom));
        }
        let path = env::current_exe().map_err(|error| {
            ChildError::new("this program", format!("cannot find its file: {error}"))
        })?;
        if is_test_runner(&path) {
            let cause = "it looks like a test runner, whose main starts no worker; set the \
                         program that does with Worker::child_command";
            return Err(ChildError::new(path.display().to_string(), cause));
        }
        Ok(Self::Own(path))
    }

    /// Returns the command that starts a child of this worker.
    pub(super) fn command(&self, worker: &str) -> Command {
        match self {
            Self::Own(path) => {
                let mut command = Command::new(file(path));
                let mut arguments = env::args_os();
                if let Some(name) = arguments.next() {
                    command.arg0(name);
                }
                command.args(arguments).env(CHILD_ENV, worker);
                command
            }
            Self::Custom(custom) => {
                let mut command = Command::new(&custom.program);
                command.args(&custom.arguments);
                for (name, value) in &custom.environment {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
                if let Some(folder) = &custom.folder {
                    command.current_dir(folder);
                }
                command.env(CHILD_ENV, ANY_WORKER);
                command
            }
        }
    }

    /// Returns the build that children must report; `None` if it is not known.
    pub(super) fn expected_build(&self) -> Option<String> {
        match self {
            Self::Own(_) => Some(build()),
            Self::Custom(_) => None,
        }
    }

    /// Returns the path for logs and errors.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Own(path) => path.display().to_string(),
            Self::Custom(custom) => custom.program.to_string_lossy().into_owned(),
        }
    }
}

/// Identifies this build of the program: the version of this crate, and length,
/// modification time and inode of the file.
pub(super) fn build() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let metadata = env::current_exe().and_then(|path| file(&path).metadata());
    match metadata {
        Ok(file) => format!("{version}/{}/{}/{}", file.len(), file.mtime(), file.ino()),
        Err(_) => version.to_owned(),
    }
}

/// Returns a name that distinguishes a worker from others in the same program by
/// its tasks and queues. A number would not do: the order in which workers start
/// may vary between processes.
pub(super) fn worker_name<'a>(
    tasks: impl Iterator<Item = &'a str>,
    queues: &'a [String],
) -> String {
    let mut tasks: Vec<_> = tasks.collect();
    tasks.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (tasks, queues).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Returns the file of this process. On Linux that is the one it was started from,
/// even if the path has been replaced since, as by a deployment.
fn file(path: &Path) -> PathBuf {
    const SELF: &str = "/proc/self/exe";
    if cfg!(target_os = "linux") && Path::new(SELF).exists() {
        PathBuf::from(SELF)
    } else {
        path.to_owned()
    }
}

/// Cargo puts tests and benchmarks into the folder `deps`, and binaries above it.
fn is_test_runner(path: &Path) -> bool {
    path.parent().and_then(Path::file_name) == Some(OsStr::new("deps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_runner_is_not_started_as_child() {
        let error = Program::find(None).unwrap_err().to_string();
        assert!(
            error.contains("test runner") && error.contains("child_command"),
            "{error}"
        );
    }

    #[test]
    fn custom_command_is_reusable() {
        let mut custom = Command::new("prog");
        custom
            .args(["a", "b"])
            .env("X", "1")
            .env_remove("Y")
            .current_dir("/");
        let program = Program::find(Some(ChildCommand::from(&custom))).unwrap();
        for _ in 0..2 {
            let command = program.command("ignored");
            assert_eq!(command.get_program(), "prog");
            assert!(command.get_args().eq(["a", "b"]));
            assert_eq!(command.get_current_dir(), Some(Path::new("/")));
            let environment: Vec<_> = command.get_envs().collect();
            assert!(environment.contains(&(OsStr::new("X"), Some(OsStr::new("1")))));
            assert!(environment.contains(&(OsStr::new("Y"), None)));
            assert!(environment.contains(&(OsStr::new(CHILD_ENV), Some(OsStr::new(ANY_WORKER)))));
        }
    }

    #[test]
    fn worker_name_depends_on_tasks_and_queues() {
        let name =
            |tasks: &[&str], queue: &str| worker_name(tasks.iter().copied(), &[queue.to_owned()]);
        assert_eq!(name(&["a", "b"], "q"), name(&["b", "a"], "q"));
        assert_ne!(name(&["a", "b"], "q"), name(&["a"], "q"));
        assert_ne!(name(&["a"], "q"), name(&["a"], "r"));
    }
}
