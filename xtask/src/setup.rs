//! Finds or installs what the tests need: redis-server, rabbitmq-server, openssl, and Python with
//! Celery.
//!
//! System packages are installed only by root on Debian or Ubuntu; otherwise a missing program is
//! an error with a remedy. The Python packages are installed in a folder below `target/`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_servers::paths::{self, on_path};
use test_servers::{PYTHON, RABBITMQ_SERVER, REDIS_SERVER, RabbitServer};

use crate::shell::{Outcome, output, run, say, succeeds};

/// The oldest Python version that the pinned Celery supports.
const OLDEST_PYTHON: (u32, u32) = (3, 10);

/// A script that fails unless all serializers and compressions of kombu are available.
const PYTHON_CHECK: &str = "\
import platform
import aio_celery, celery, msgpack, redis, yaml
from kombu.compression import get_encoder
for name in ('zlib', 'bzip2', 'brotli', 'lzma', 'zstd'):
    get_encoder(name)
print(platform.python_version(), 'with Celery', celery.__version__)
";

/// The programs that tests start.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) redis_server: PathBuf,
    pub(crate) rabbitmq_server: PathBuf,
    pub(crate) python: PathBuf,
}

impl Programs {
    pub(crate) fn find_or_install() -> Result<Self, String> {
        let redis_server = redis_server()?;
        let rabbitmq_server = rabbitmq_server()?;
        openssl()?;
        let python = python()?;
        Ok(Self {
            redis_server,
            rabbitmq_server,
            python,
        })
    }

    /// Returns the environment variables with which the tests find these programs.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            (REDIS_SERVER, self.redis_server.clone()),
            (RABBITMQ_SERVER, self.rabbitmq_server.clone()),
            (PYTHON, self.python.clone()),
            // Absolute, because the tests run in the folders of their packages.
            ("CARGO_TARGET_DIR", paths::target()),
        ]
    }
}

/// Finds or installs `redis-server`.
pub(crate) fn redis_server() -> Result<PathBuf, String> {
    let path = server("redis-server", || {
        configured(REDIS_SERVER).or_else(|| on_path("redis-server"))
    })?;
    let version = output(Command::new(&path).arg("--version"))?;
    say(&format!(
        "redis-server: {}: {}",
        path.display(),
        version.trim()
    ));
    Ok(path)
}

/// Finds or installs `rabbitmq-server`; its version is part of its path.
pub(crate) fn rabbitmq_server() -> Result<PathBuf, String> {
    let path = server("rabbitmq-server", RabbitServer::program)?;
    say(&format!("rabbitmq-server: {}", path.display()));
    Ok(path)
}

/// Finds or installs `openssl`, with which the TLS tests create their certificates.
pub(crate) fn openssl() -> Outcome {
    match on_path("openssl") {
        Some(_) => Ok(()),
        None => install(&["openssl"], "openssl is not on PATH"),
    }
}

/// Finds a server, or installs the Debian package of the same name.
fn server(package: &str, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(path) = find() {
        return Ok(path);
    }
    install(&[package], &format!("{package} is not installed"))?;
    // The package starts a service where systemd runs; the tests need private servers only.
    if succeeds(Command::new("systemctl").args(["is-active", "--quiet", package])) {
        run(Command::new("systemctl").args(["stop", package]))?;
    }
    find().ok_or_else(|| {
        format!("the package {package} was installed, but its program is not on PATH")
    })
}

/// Returns a Python interpreter with the pinned packages.
pub(crate) fn python() -> Result<PathBuf, String> {
    let path = match configured(PYTHON) {
        Some(path) => path,
        None => virtual_environment("venv", &["requirements.txt"])?,
    };
    let version = output(Command::new(&path).args(["-c", PYTHON_CHECK])).map_err(|error| {
        let path = path.display();
        format!("{path} lacks packages of xtask/python/requirements.txt; install them\n{error}")
    })?;
    say(&format!("Python: {}: {}", path.display(), version.trim()));
    Ok(path)
}

fn configured(variable: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).filter(|path| !path.is_empty())?;
    Some(PathBuf::from(path))
}

/// Returns the interpreter of a virtual environment below `target/`.
///
/// The environment is created again when the requirements files, which are below `xtask/python`,
/// change.
pub(crate) fn virtual_environment(name: &str, requirements: &[&str]) -> Result<PathBuf, String> {
    let folder = paths::target().join(name);
    let scripts = paths::workspace().join("xtask/python");
    let requirements: Vec<_> = requirements.iter().map(|file| scripts.join(file)).collect();
    let mut required = String::new();
    for file in &requirements {
        required += &fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    }
    let python = if cfg!(windows) {
        folder.join("Scripts/python.exe")
    } else {
        folder.join("bin/python")
    };
    // The stamp is written last, so an incomplete environment has none.
    let stamp = folder.join("requirements.txt");
    let current = fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == required);
    if current && succeeds(Command::new(&python).arg("--version")) {
        return Ok(python);
    }

    say(&format!(
        "creating a virtual environment with Python Celery in {}",
        folder.display()
    ));
    create(&system_python()?, &folder)?;
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    for file in &requirements {
        pip.arg("--requirement").arg(file);
    }
    run(&mut pip).map_err(|error| {
        format!(
            "{error}\ncheck the network, or set {PYTHON} to an interpreter that has these packages"
        )
    })?;
    fs::write(&stamp, required)
        .map_err(|error| format!("cannot write {}: {error}", stamp.display()))?;
    Ok(python)
}

fn create(python: &Path, folder: &Path) -> Outcome {
    let create = || {
        let _ = fs::remove_dir_all(folder);
        output(Command::new(python).args(["-m", "venv"]).arg(folder))
    };
    if let Err(reason) = create() {
        // Debian packages the module venv separately.
        install(&["python3-venv"], &reason)?;
        create()?;
    }
    Ok(())
}

fn system_python() -> Result<PathBuf, String> {
    let (major, minor) = OLDEST_PYTHON;
    let check = format!("import sys; sys.exit(sys.version_info < ({major}, {minor}))");
    let find = || {
        ["python3", "python"].iter().find_map(|name| {
            let path = on_path(name)?;
            succeeds(Command::new(&path).args(["-c", &check])).then_some(path)
        })
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    let missing = format!("no Python of version {major}.{minor} or later is on PATH");
    install(&["python3", "python3-venv"], &missing)?;
    find().ok_or(missing)
}

/// Installs Debian packages; otherwise returns an error with the reason and a remedy.
pub(crate) fn install(packages: &[&str], reason: &str) -> Outcome {
    let packages = packages.join(" ");
    if on_path("apt-get").is_none() {
        return Err(format!(
            "{reason}\ninstall the equivalent of Debian's {packages}, or set {REDIS_SERVER}, \
             {RABBITMQ_SERVER} and {PYTHON} to the programs to use; then run this again"
        ));
    }
    if !is_root() {
        return Err(format!(
            "{reason}\nrun `sudo apt-get update && sudo apt-get install {packages}`, or set \
             {REDIS_SERVER}, {RABBITMQ_SERVER} and {PYTHON} to the programs to use; then run this \
             again"
        ));
    }
    say(&format!("{reason}: installing {packages}"));
    apt_get(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-qq", "-y", "--no-install-recommends"];
    arguments.extend(packages.split(' '));
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Outcome {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Installs the service of the package without starting it.
        .env("RUNLEVEL", "1");
    run(&mut command)
}

pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}
