//! Which program children are, and how they know that they are children.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::worker::isolated::ChildError;

/// The environment variable that marks a child, with the name of the worker
/// that it serves. It is not one of Celery's settings, which begin with
/// `CELERY_`.
pub(super) const MARK: &str = "_CELERY_ISOLATED_CHILD";

/// In the mark: any worker of the program.
pub(super) const ANY: &str = "any";

/// The program that is started as a child.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// This one, once more.
    Own(PathBuf),
    Given(ChildCommand),
}

/// What is kept of a command, which itself cannot be used twice.
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
    /// The one that was given, or else this one.
    pub(super) fn find(given: Option<ChildCommand>) -> Result<Self, ChildError> {
        if let Some(recipe) = given {
            return Ok(Self::Given(recipe));
        }
        let path = env::current_exe().map_err(|error| {
            ChildError::new("this program", format!("its file cannot be found: {error}"))
        })?;
        if is_test_runner(&path) {
            let cause = "it looks like a test runner, whose main starts no worker; name the \
                         program that does with Worker::child_command";
            return Err(ChildError::new(path.display().to_string(), cause));
        }
        Ok(Self::Own(path))
    }

    /// The command for a child that serves this worker.
    pub(super) fn command(&self, worker: &str) -> Command {
        match self {
            Self::Own(path) => {
                let mut command = Command::new(file(path));
                let mut arguments = env::args_os();
                if let Some(name) = arguments.next() {
                    command.arg0(name);
                }
                command.args(arguments).env(MARK, worker);
                command
            }
            Self::Given(recipe) => {
                let mut command = Command::new(&recipe.program);
                command.args(&recipe.arguments);
                for (name, value) in &recipe.environment {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
                if let Some(folder) = &recipe.folder {
                    command.current_dir(folder);
                }
                command.env(MARK, ANY);
                command
            }
        }
    }

    /// What its children should say of themselves; `None` where only they know.
    pub(super) fn expected_build(&self) -> Option<String> {
        match self {
            Self::Own(_) => Some(build()),
            Self::Given(_) => None,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Own(path) => path.display().to_string(),
            Self::Given(recipe) => recipe.program.to_string_lossy().into_owned(),
        }
    }
}

/// Tells this build of this program from others: the version of this crate,
/// and the file's length, age and place on its disk.
pub(super) fn build() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let metadata = env::current_exe().and_then(|path| file(&path).metadata());
    match metadata {
        Ok(of) => format!("{version}/{}/{}/{}", of.len(), of.mtime(), of.ino()),
        Err(_) => version.to_owned(),
    }
}

/// Tells a worker from others in the same program, which have other tasks or
/// queues. The order in which they start says nothing: it may vary.
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

/// On Linux the file that this process was started from, also when another one
/// has its name by now.
fn file(path: &Path) -> PathBuf {
    const SELF: &str = "/proc/self/exe";
    match cfg!(target_os = "linux") && Path::new(SELF).exists() {
        true => PathBuf::from(SELF),
        false => path.to_owned(),
    }
}

/// Cargo runs tests and benches from this folder, and what they test from the
/// one above.
fn is_test_runner(path: &Path) -> bool {
    path.parent().and_then(Path::file_name) == Some(OsStr::new("deps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_runner_is_not_started_again() {
        let error = Program::find(None).unwrap_err().to_string();
        assert!(
            error.contains("test runner") && error.contains("child_command"),
            "{error}"
        );
    }

    #[test]
    fn a_given_command_can_be_used_many_times() {
        let mut given = Command::new("prog");
        given
            .args(["a", "b"])
            .env("X", "1")
            .env_remove("Y")
            .current_dir("/");
        let program = Program::find(Some(ChildCommand::from(&given))).unwrap();
        for _ in 0..2 {
            let command = program.command("ignored");
            assert_eq!(command.get_program(), "prog");
            assert!(command.get_args().eq(["a", "b"]));
            assert_eq!(command.get_current_dir(), Some(Path::new("/")));
            let environment: Vec<_> = command.get_envs().collect();
            assert!(environment.contains(&(OsStr::new("X"), Some(OsStr::new("1")))));
            assert!(environment.contains(&(OsStr::new("Y"), None)));
            assert!(environment.contains(&(OsStr::new(MARK), Some(OsStr::new(ANY)))));
        }
    }

    #[test]
    fn workers_are_told_apart_by_what_they_serve() {
        let name =
            |tasks: &[&str], queue: &str| worker_name(tasks.iter().copied(), &[queue.to_owned()]);
        assert_eq!(name(&["a", "b"], "q"), name(&["b", "a"], "q"));
        assert_ne!(name(&["a", "b"], "q"), name(&["a"], "q"));
        assert_ne!(name(&["a"], "q"), name(&["a"], "r"));
    }
}
