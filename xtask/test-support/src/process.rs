//! Other processes: the example programs, and signals.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sends a signal, by its name without `SIG`, to a process id, or to a process
/// group if `target` begins with `-`.
///
/// # Panics
///
/// Panics when the signal cannot be sent.
pub fn send_signal(name: &str, target: &str) {
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" -- \"$1\"", name, target])
        .status();
    assert!(sent.unwrap().success(), "cannot send SIG{name} to {target}");
}

/// Returns the path of an example program of the tested crate, which Cargo
/// builds beside its tests.
///
/// # Panics
///
/// Panics when the program has not been built.
#[must_use]
pub fn example(name: &str) -> PathBuf {
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
