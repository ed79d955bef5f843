//! Locates and runs the scripts of an installed RabbitMQ.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::RABBITMQ_SERVER;
use crate::paths::on_path;

/// The folders in which packages install the scripts; they are not in the `PATH` of ordinary users.
const INSTALL_FOLDERS: [&str; 2] = ["/usr/lib/rabbitmq/bin", "/usr/sbin"];

/// Returns the script that starts a server; `None` if RabbitMQ is not installed.
pub(super) fn server() -> Option<PathBuf> {
    let configured = env::var_os(RABBITMQ_SERVER).filter(|path| !path.is_empty());
    let path = configured.map(PathBuf::from).or_else(|| {
        on_path("rabbitmq-server").or_else(|| {
            let paths = INSTALL_FOLDERS.map(|folder| Path::new(folder).join("rabbitmq-server"));
            paths.into_iter().find(|path| path.is_file())
        })
    })?;
    Some(without_wrapper(&path))
}

/// Returns another script of the same installation, such as `rabbitmqctl`.
pub(super) fn beside(server: &Path, name: &str) -> PathBuf {
    server.with_file_name(name)
}

/// Returns a command that is isolated from an installed RabbitMQ: no settings, cookie or home
/// folder of it.
pub(super) fn command(script: &Path, home: &Path) -> Command {
    let mut command = Command::new(script);
    command
        .current_dir(home)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        // Erlang warns unless file names are UTF-8.
        .env("LANG", "C.UTF-8")
        // Neither file exists; without these variables the files below /etc are read.
        .env("RABBITMQ_CONF_ENV_FILE", home.join("rabbitmq-env.conf"))
        .env(
            "RABBITMQ_ADVANCED_CONFIG_FILE",
            home.join("advanced.config"),
        )
        // A node asks epmd for its names when it starts; there is none on this port.
        .env("ERL_EPMD_PORT", "1")
        // RabbitMQ starts an epmd if it finds none; on this unassigned address it exits at once.
        .env("ERL_EPMD_ADDRESS", "192.0.2.1")
        .env("ERL_CRASH_DUMP_SECONDS", "0");
    command
}

/// Returns the script behind the wrapper of a package, if there is a wrapper.
///
/// The wrapper of Debian switches to another user when it runs as root, and fails for all other
/// users. The real scripts are in the same folder as `rabbitmq-env`, which they all read.
fn without_wrapper(path: &Path) -> PathBuf {
    let Ok(real) = path.canonicalize() else {
        return path.to_owned();
    };
    let folder = real.parent().unwrap_or(&real);
    // A wrapper in the second folder is not always a link to the first folder.
    let packaged = INSTALL_FOLDERS.map(Path::new);
    let folders = if packaged.contains(&folder) {
        vec![folder, packaged[0]]
    } else {
        vec![folder]
    };
    let mut folders = folders.into_iter();
    match folders.find(|folder| folder.join("rabbitmq-env").is_file()) {
        Some(folder) => folder.join("rabbitmq-server"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::process::Folder;

    #[test]
    #[cfg(unix)]
    fn script_behind_a_wrapper_is_found() {
        let folder = Folder::new("scripts");
        let (sbin, lib) = (folder.join("sbin"), folder.join("lib"));
        for path in [&sbin, &lib] {
            fs::create_dir_all(path).unwrap();
        }
        for name in ["rabbitmq-env", "rabbitmq-server", "rabbitmq-script-wrapper"] {
            fs::write(lib.join(name), "").unwrap();
        }
        let wrapper = sbin.join("rabbitmq-server");
        std::os::unix::fs::symlink("../lib/rabbitmq-script-wrapper", &wrapper).unwrap();

        let script = without_wrapper(&wrapper);

        assert_eq!(script, lib.canonicalize().unwrap().join("rabbitmq-server"));
        assert_eq!(
            beside(&script, "rabbitmqctl").file_name().unwrap(),
            "rabbitmqctl"
        );
    }
}
