//! What ARCHITECTURE promises about who may know whom, checked by machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use test_servers::paths;

use crate::shell::{Outcome, cargo, output};

/// Each package of the workspace and those of the others that it may use outside its tests.
const LAYERS: &[(&str, &[&str])] = &[
    ("celery-protocol", &[]),
    ("celery-runtime", &["celery-protocol"]),
    (
        "celery-broker-redis",
        &["celery-protocol", "celery-runtime"],
    ),
    ("celery-broker-amqp", &["celery-protocol", "celery-runtime"]),
    // The broker crate owns the shared Redis connection set-up.
    (
        "celery-backend-redis",
        &["celery-protocol", "celery-runtime", "celery-broker-redis"],
    ),
    (
        "celery",
        &[
            "celery-protocol",
            "celery-runtime",
            "celery-broker-redis",
            "celery-broker-amqp",
            "celery-backend-redis",
        ],
    ),
    ("test-servers", &[]),
    ("xtask", &["test-servers"]),
];

/// Crates of runtimes, sockets, clocks and randomness.
const IMPURE: &[&str] = &[
    "async-std",
    "chrono",
    "deadpool",
    "deadpool-redis",
    "fastrand",
    "futures-util",
    "getrandom",
    "lapin",
    "mio",
    "rand",
    "redis",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "uuid",
];

/// Files with the boundary traits: they can move to a smaller crate one day.
const TRAITS: [&str; 2] = ["broker", "backend"];

/// First parts of the paths that those files may import, and the crate's own modules among them.
///
/// A message's body is `Bytes`, so that the protocol's users have that crate anyway.
const TRAIT_IMPORTS: [&str; 6] = [
    "std::",
    "bytes::",
    "celery_protocol::",
    "crate::error::",
    "crate::broker::",
    "crate::backend::",
];

/// Libraries that stay behind our own types.
const HIDDEN: [&str; 6] = [
    "redis",
    "lapin",
    "deadpool",
    "deadpool_redis",
    "amq_protocol",
    "rustix",
];

/// The one exception, for people who bring their own connection pool.
const FROM_POOL: &str = "from_pool";

/// Packages whose public signatures are read.
const PUBLIC: [&str; 5] = [
    "celery",
    "celery-runtime",
    "celery-broker-redis",
    "celery-broker-amqp",
    "celery-backend-redis",
];

/// What cargo knows of the workspace's packages.
pub(crate) fn metadata() -> Result<Value, String> {
    let text = output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    serde_json::from_str(&text).map_err(|error| format!("cannot read cargo's metadata: {error}"))
}

/// The names of a package's features.
pub(crate) fn features(metadata: &Value, package: &str) -> Result<Vec<String>, String> {
    let package = find(metadata, package)?;
    let features = package["features"].as_object();
    Ok(features.map_or_else(Vec::new, |table| table.keys().cloned().collect()))
}

/// The `rust-version` of the workspace.
pub(crate) fn oldest_rust() -> Result<String, String> {
    let metadata = metadata()?;
    let version = find(&metadata, "celery")?["rust_version"].as_str();
    version
        .map(str::to_owned)
        .ok_or_else(|| "celery declares no rust-version".to_owned())
}

/// Packages use only those below them.
pub(crate) fn layers() -> Outcome {
    let metadata = metadata()?;
    let mut problems = Vec::new();
    for (name, allowed) in LAYERS {
        for used in uses(find(&metadata, name)?) {
            if LAYERS.iter().any(|(other, _)| *other == used) && !allowed.contains(&used.as_str()) {
                problems.push(format!("{name} must not depend on {used}"));
            }
        }
    }
    report(problems)
}

/// Nothing below the protocol crate does I/O or asks the machine for anything.
pub(crate) fn pure_protocol() -> Outcome {
    let mut tree = cargo(&["tree", "--edges=normal", "--all-features", "--target=all"]);
    tree.args(["--package=celery-protocol", "--prefix=none"]);
    let text = output(tree.arg("--format={p}"))?;
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    if !names.contains("celery-protocol") {
        return Err("cargo tree does not show celery-protocol".to_owned());
    }
    let found = IMPURE.iter().filter(|name| names.contains(*name));
    report(found.map(|name| format!("celery-protocol depends on {name}")))
}

/// The files of the boundary traits import the protocol, the standard library and their errors.
pub(crate) fn trait_imports() -> Outcome {
    let mut problems = Vec::new();
    for name in TRAITS {
        let folder = paths::workspace().join("celery-runtime/src");
        let (file, parts) = (folder.join(format!("{name}.rs")), folder.join(name));
        let files = match file.is_file() {
            true => vec![file],
            false => sources(&parts)?,
        };
        if files.is_empty() {
            return Err(format!("celery-runtime has no file {name}.rs"));
        }
        for file in files {
            let text = read(&file)?;
            problems.extend(
                foreign_imports(&text).map(|import| format!("{} imports {import}", file.display())),
            );
        }
    }
    report(problems)
}

/// Our public signatures name no type of a library that we may want to replace.
pub(crate) fn public_types() -> Outcome {
    let mut problems = Vec::new();
    for package in PUBLIC {
        for file in sources(&paths::workspace().join(package).join("src"))? {
            let text = read(&file)?;
            let leaks = leaks(&text);
            problems.extend(leaks.map(|(line, text)| {
                format!(
                    "{}:{line}: a library's type is public: {text}",
                    file.display()
                )
            }));
        }
    }
    report(problems)
}

fn report(problems: impl IntoIterator<Item = String>) -> Outcome {
    let problems: Vec<String> = problems.into_iter().collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("\n")),
    }
}

fn find<'m>(metadata: &'m Value, package: &str) -> Result<&'m Value, String> {
    let packages = metadata["packages"].as_array();
    packages
        .and_then(|all| all.iter().find(|candidate| candidate["name"] == package))
        .ok_or_else(|| format!("the workspace has no package {package}"))
}

/// The packages that one depends on, other than for its tests.
fn uses(package: &Value) -> impl Iterator<Item = String> {
    let dependencies = package["dependencies"].as_array();
    dependencies
        .into_iter()
        .flatten()
        .filter(|dependency| dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
}

/// The imports of a file, before its tests, that a trait's file may not have.
fn foreign_imports(text: &str) -> impl Iterator<Item = &str> {
    before_tests(text)
        .filter_map(|(_, line)| {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            line.strip_prefix("use ")
        })
        .filter(|path| {
            !TRAIT_IMPORTS
                .iter()
                .any(|allowed| path.starts_with(allowed))
        })
        // A part of the same folder, which is looked at, too.
        .filter(move |path| {
            let first = path.split("::").next().unwrap_or_default();
            !text.lines().any(|line| line == format!("mod {first};"))
        })
}

/// Line number and text of the public items that name a hidden library.
fn leaks(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut lines = before_tests(text);
    std::iter::from_fn(move || {
        while let Some((number, line)) = lines.next() {
            let mut item = line.trim().to_owned();
            if !is_public(&item) {
                continue;
            }
            // A function's signature may go over several lines; a field's does not.
            while item.contains("fn ") && !item.contains(['{', ';']) {
                let Some((_, more)) = lines.next() else { break };
                item.push(' ');
                item.push_str(more.trim());
            }
            if names_hidden(&item) && !item.contains(FROM_POOL) {
                return Some((number, item));
            }
        }
        None
    })
}

/// An item that users see: its own or a conversion that every user may call.
fn is_public(line: &str) -> bool {
    line.starts_with("pub ") || line.starts_with("impl From<")
}

fn names_hidden(item: &str) -> bool {
    HIDDEN.iter().any(|library| {
        item.match_indices(&format!("{library}::")).any(|(at, _)| {
            // Not the end of a longer name: celery_broker_redis:: is ours.
            let before = item[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
        })
    })
}

/// Numbered lines up to the tests at the bottom of a file.
fn before_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines.enumerate().map(|(index, line)| (index + 1, line))
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_of_a_trait_file_are_sorted_out() {
        let text = "\
use std::time::Duration;
use celery_protocol::Message;
use tokio::sync::mpsc;
use crate::error::BrokerError;
use crate::worker::Worker;
#[cfg(test)]
mod tests {
use super::*;
";
        let foreign: Vec<&str> = foreign_imports(text).collect();
        assert_eq!(foreign, ["tokio::sync::mpsc;", "crate::worker::Worker;"]);
    }

    #[test]
    fn types_of_libraries_are_seen_in_public_items_only() {
        let text = "\
pub fn open(url: &str) -> celery_broker_redis::Broker {
fn inner(client: redis::Client) {
pub(crate) fn half(client: redis::Client) {
pub fn bad(client: redis::Client) {
pub async fn long(
    url: &str,
    pool: deadpool_redis::Pool,
) -> Self {
pub fn from_pool(pool: deadpool_redis::Pool) -> Self {
impl From<lapin::Error> for BrokerError {
    pub field: redis::Value,
#[cfg(test)]
pub fn in_tests(client: redis::Client) {
";
        let lines: Vec<usize> = leaks(text).map(|(line, _)| line).collect();
        assert_eq!(lines, [4, 5, 10, 11]);
    }

    #[test]
    fn dependencies_for_tests_do_not_count() {
        let package = serde_json::json!({"dependencies": [
            {"name": "celery-runtime", "kind": null},
            {"name": "xtask", "kind": "dev"},
            {"name": "builder", "kind": "build"},
        ]});
        let used: Vec<String> = uses(&package).collect();
        assert_eq!(used, ["celery-runtime", "builder"]);
    }
}
