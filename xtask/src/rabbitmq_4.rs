//! Installs RabbitMQ 4 below `target/` from the packages of Debian 13.
//!
//! The server runs in a chroot of that system. A script of the name `rabbitmq-server`, with
//! `rabbitmqctl` beside it, enters the chroot, so that the tests start it like an installed server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use test_servers::paths::{self, on_path};

use crate::setup::{install, is_root};
use crate::shell::{Outcome, output, say, stream};

/// The Debian release with RabbitMQ 4.0.
const SUITE: &str = "trixie";

/// The time limit of debootstrap; it takes a minute.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(900);

/// The script that runs the program of its own name in the chroot as the same process, so that
/// signals to its process id reach the Erlang VM. `ROOT` is the chroot; the folder `SHARED`, below
/// which the tests write, has the same path inside. The mounts end with the process.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare --mount sh -c '
set -e
root="$0" shared="$1" program="$2"
shift 2
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" env --chdir="$PWD" "/usr/lib/rabbitmq/bin/$program" "$@"
' 'ROOT' 'SHARED' "${0##*/}" "$@"
"#;

/// Returns the script that starts a server; the error is one line, the reason why there is none.
pub(crate) fn find_or_install() -> Result<PathBuf, String> {
    find_or_install_in(&paths::target().join("rabbitmq-4"))
        .map_err(|error| error.trim_end().replace('\n', ": "))
}

fn find_or_install_in(folder: &Path) -> Result<PathBuf, String> {
    if !is_root() {
        return Err("only root can install and run it (chroot)".to_owned());
    }
    let root = folder.join("root");
    if !root.exists() {
        install_system(&root)?;
    }
    let scripts = ["rabbitmq-server", "rabbitmqctl"].map(|name| folder.join(name));
    for script in &scripts {
        write_script(script, &script_text(&root, &paths::target()))
            .map_err(|error| format!("cannot write {}: {error}", script.display()))?;
    }
    let [server, control] = scripts;
    // Fails where the kernel refuses the mounts or the chroot.
    let version = output(Command::new(control).arg("version").current_dir(folder))?;
    say(&format!(
        "RabbitMQ {}: {}",
        version.trim(),
        server.display()
    ));
    Ok(server)
}

/// Installs a Debian system with RabbitMQ in this folder.
fn install_system(root: &Path) -> Outcome {
    if on_path("debootstrap").is_none() {
        let reason = "debootstrap is not installed";
        if on_path("apt-get").is_none() {
            return Err(reason.to_owned());
        }
        install(&["debootstrap"], reason)?;
    }
    say(&format!("installing RabbitMQ 4 in {}", root.display()));
    // Renamed when it is complete, so that an interrupted installation is not used.
    let incomplete = root.with_extension("incomplete");
    match fs::remove_dir_all(&incomplete) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("cannot remove {}: {error}", incomplete.display()));
        }
        _ => {}
    }
    // In its own mount namespace, so that an interrupted debootstrap leaves no mounts.
    let mut command = Command::new("unshare");
    command.args(["--mount", "debootstrap", "--variant=minbase"]);
    command.args(["--include=rabbitmq-server", SUITE]);
    debootstrap(command.arg(&incomplete).args(mirror()))?;
    // The downloaded packages.
    let _ = fs::remove_dir_all(incomplete.join("var/cache/apt/archives"));
    fs::rename(&incomplete, root).map_err(|error| format!("cannot rename it: {error}"))
}

/// Runs debootstrap; the error contains its last line.
fn debootstrap(command: &mut Command) -> Outcome {
    let mut last = String::new();
    let status = stream(command, INSTALL_TIMEOUT, |line| line.clone_into(&mut last))?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(format!("debootstrap failed: {last}")),
        None => Err(format!("debootstrap was not ready in time: {last}")),
    }
}

/// Returns the mirror of Debian that apt uses; `None` on other systems, where debootstrap chooses
/// one.
fn mirror() -> Option<String> {
    let filter = ["Label: Debian", "Component: main", "Created-By: Packages"];
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]);
    let mirrors = output(command.args(filter)).ok()?;
    mirrors.lines().next().map(str::to_owned)
}

/// Writes a script for the programs in this chroot, with which it shares a folder.
fn script_text(root: &Path, shared: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    SCRIPT
        .replace("'ROOT'", &quoted(root))
        .replace("'SHARED'", &quoted(shared))
}

#[cfg(unix)]
fn write_script(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn write_script(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_quotes_its_folders() {
        let text = script_text(Path::new("/a b/root"), Path::new("/it's"));
        assert!(
            text.ends_with("' '/a b/root' '/it'\\''s' \"${0##*/}\" \"$@\"\n"),
            "{text}"
        );
    }
}
