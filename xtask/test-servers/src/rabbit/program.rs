//! The scripts of an installed RabbitMQ.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::RABBITMQ_SERVER;
use crate::paths::on_path;

/// Where packages put the scripts, which the `PATH` of an ordinary user lacks.
const FOLDERS: [&str; 2] = ["/usr/lib/rabbitmq/bin", "/usr/sbin"];

/// The script that starts a server; `None` if RabbitMQ is not installed.
pub(super) fn server() -> Option<PathBuf> {
    let chosen = env::var_os(RABBITMQ_SERVER).filter(|path| !path.is_empty());
    let path = chosen.map(PathBuf::from).or_else(|| {
        on_path("rabbitmq-server").or_else(|| {
            let paths = FOLDERS.map(|folder| Path::new(folder).join("rabbitmq-server"));
            paths.into_iter().find(|path| path.is_file())
        })
    })?;
    Some(unwrapped(&path))
}

/// A script of the same installation, such as `rabbitmqctl`.
pub(super) fn beside(server: &Path, name: &str) -> PathBuf {
    server.with_file_name(name)
}

/// A command that sees nothing of a person's own RabbitMQ: no settings, no cookie, no other home.
pub(super) fn command(script: &Path, home: &Path) -> Command {
    let mut command = Command::new(script);
    command
        .current_dir(home)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        // Erlang warns unless names are UTF-8.
        .env("LANG", "C.UTF-8")
        // Neither exists; without these, the files below /etc are read.
        .env("RABBITMQ_CONF_ENV_FILE", home.join("rabbitmq-env.conf"))
        .env(
            "RABBITMQ_ADVANCED_CONFIG_FILE",
            home.join("advanced.config"),
        )
        // Asked for its names when a node starts, if there is one: ours need none.
        .env("ERL_EPMD_PORT", "1")
        // RabbitMQ starts one where it finds none: on an address of nobody it ends at once.
        .env("ERL_EPMD_ADDRESS", "192.0.2.1")
        .env("ERL_CRASH_DUMP_SECONDS", "0");
    command
}

/// The script itself, where a package has put a wrapper before it.
///
/// The wrapper of Debian switches to another user when it runs as root, and refuses everybody
/// else. The scripts themselves all read `rabbitmq-env`, which lies beside them.
fn unwrapped(path: &Path) -> PathBuf {
    let Ok(real) = path.canonicalize() else {
        return path.to_owned();
    };
    let folder = real.parent().unwrap_or(&real);
    // A wrapper in the second folder need not be a link to the first.
    let packaged = FOLDERS.map(Path::new);
    let folders = match packaged.contains(&folder) {
        true => vec![folder, packaged[0]],
        false => vec![folder],
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
    fn a_wrapper_is_passed_by() {
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

        let script = unwrapped(&wrapper);

        assert_eq!(script, lib.canonicalize().unwrap().join("rabbitmq-server"));
        assert_eq!(
            beside(&script, "rabbitmqctl").file_name().unwrap(),
            "rabbitmqctl"
        );
    }
}
