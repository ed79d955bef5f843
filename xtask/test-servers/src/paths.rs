//! Paths of the workspace.

use std::env;
use std::path::{Path, PathBuf};

/// Returns the folder of the workspace's `Cargo.toml`.
///
/// # Panics
///
/// Panics if this crate is not two levels below the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask/test-servers is two levels below the workspace")
        .to_owned()
}

/// Returns the build folder: `CARGO_TARGET_DIR`, or `target` in the workspace.
#[must_use]
pub fn target() -> PathBuf {
    // A relative path is relative to the workspace, because tests run in the folder of their
    // package.
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) if !folder.is_empty() => workspace().join(folder),
        _ => workspace().join("target"),
    }
}

/// Returns the folder of the Python application with the example tasks.
#[must_use]
pub fn python_app() -> PathBuf {
    workspace().join("celery/examples/python")
}

/// Returns the program of this name in the folders of `PATH`, if there is one.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    let name = format!("{program}{}", env::consts::EXE_SUFFIX);
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(&name))
        .find(|path| path.is_file())
}
