//! Which crates, libraries and modules may depend on each other.

use std::collections::BTreeSet;

use serde_json::Value;

use super::source::{Source, name_at};
use super::{Problem, report, rust_sources};
use crate::shell::{Outcome, cargo, output};

/// The packages of the workspace and the other packages that each may use outside its tests.
const PACKAGES: &[(&str, &[&str])] = &[
    ("celery-protocol", &[]),
    ("celery-runtime", &["celery-protocol"]),
    (
        "celery-broker-redis",
        &["celery-protocol", "celery-runtime"],
    ),
    ("celery-broker-amqp", &["celery-protocol", "celery-runtime"]),
    // The broker crate owns the shared set-up of Redis connections.
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
    (
        "test-support",
        &["celery-protocol", "celery-runtime", "test-servers"],
    ),
    ("xtask", &["test-servers"]),
];

/// Crates with runtimes, sockets, clocks or randomness.
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

/// The folder of the boundary traits.
const BOUNDARY: &str = "celery-runtime/src/boundary";

/// The crates and modules that the boundary may import.
///
/// `bytes` is allowed because a message's body is `Bytes`: users of the protocol have the crate.
/// `env` is below the boundary and provides ids.
const BOUNDARY_IMPORTS: [&str; 5] = [
    "std",
    "bytes",
    "celery_protocol",
    "crate::env",
    "crate::boundary",
];

/// The crates behind the boundary, which use the exports of celery-runtime only.
const INTEGRATIONS: [&str; 3] = [
    "celery-broker-redis",
    "celery-broker-amqp",
    "celery-backend-redis",
];

/// The public modules of celery-runtime.
const PUBLIC_MODULES: [&str; 3] = ["url", "conformance", "memory"];

/// Libraries whose types must not be part of a public signature.
const HIDDEN: [&str; 7] = [
    "redis",
    "lapin",
    "deadpool",
    "deadpool_redis",
    "amq_protocol",
    "rustix",
    "serde_json",
];

/// Public items that name a hidden library: library, path, part of the item, and reason.
const PUBLIC_EXCEPTIONS: &[(&str, &str, &str, &str)] = &[
    (
        "deadpool_redis",
        "celery-",
        "fn from_pool(",
        "accepts the connection pool of the application",
    ),
    (
        "serde_json",
        "celery-runtime/src/config/",
        "fn set(",
        "sets any setting of Celery by name; becomes a type of ours",
    ),
    (
        "serde_json",
        "celery-runtime/src/config/",
        "fn broker_transport_options(",
        "the options of Celery's configuration are any JSON; becomes a type of ours",
    ),
    (
        "serde_json",
        "celery-runtime/src/config/",
        "fn result_backend_transport_options(",
        "the options of Celery's configuration are any JSON; becomes a type of ours",
    ),
    (
        "serde_json",
        "celery-runtime/src/config/",
        "fn broker_use_ssl(",
        "the options of Celery's configuration are any JSON; becomes a type of ours",
    ),
    (
        "serde_json",
        "celery-broker-redis/src/",
        "fn parse(",
        "takes the transport options of the configuration",
    ),
    (
        "serde_json",
        "celery-broker-amqp/src/options.rs",
        "fn transport_options(",
        "takes the transport options of the configuration",
    ),
    (
        "serde_json",
        "celery-broker-amqp/src/options.rs",
        "fn use_ssl(",
        "takes `broker_use_ssl` of the configuration",
    ),
];

/// Packages whose public signatures are checked.
const PUBLIC: [&str; 5] = [
    "celery",
    "celery-runtime",
    "celery-broker-redis",
    "celery-broker-amqp",
    "celery-backend-redis",
];

/// Returns cargo's metadata of the workspace.
pub(crate) fn metadata() -> Result<Value, String> {
    let text = output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    serde_json::from_str(&text).map_err(|error| format!("cannot parse cargo metadata: {error}"))
}

/// Returns the names of a package's features.
pub(crate) fn features(metadata: &Value, package: &str) -> Result<Vec<String>, String> {
    let package = find(metadata, package)?;
    let features = package["features"].as_object();
    Ok(features.map_or_else(Vec::new, |table| table.keys().cloned().collect()))
}

/// Returns the `rust-version` of the workspace.
pub(crate) fn oldest_rust() -> Result<String, String> {
    let metadata = metadata()?;
    let version = find(&metadata, "celery")?["rust_version"].as_str();
    version
        .map(str::to_owned)
        .ok_or_else(|| "celery/Cargo.toml has no rust-version".to_owned())
}

/// Checks that packages use only the packages below them.
pub(crate) fn packages() -> Outcome {
    let metadata = metadata()?;
    let mut problems = Vec::new();
    for (name, allowed) in PACKAGES {
        for used in uses(find(&metadata, name)?) {
            let is_ours = PACKAGES.iter().any(|(other, _)| *other == used);
            if is_ours && !allowed.contains(&used.as_str()) {
                problems.push(manifest_problem(&metadata, name, &used));
            }
        }
    }
    report(problems)
}

fn manifest_problem(metadata: &Value, name: &str, used: &str) -> Problem {
    let manifest = find(metadata, name).map(|package| package["manifest_path"].clone());
    let manifest = manifest.unwrap_or_default();
    let path = manifest.as_str().unwrap_or(name);
    Problem::new(path, 1, format!("{name} must not depend on {used}"))
}

/// Checks that no dependency of the protocol crate does I/O, reads a clock or is random.
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
    let problems = found.map(|name| {
        let text = format!("celery-protocol must not depend on {name}");
        Problem::new("celery-protocol/Cargo.toml", 1, text)
    });
    report(problems.collect())
}

/// Checks that the boundary imports only the protocol, the standard library and itself, and that
/// the integrations use it through the exports of celery-runtime.
pub(crate) fn boundary() -> Outcome {
    let sources = rust_sources(BOUNDARY)?;
    if sources.is_empty() {
        return Err(format!("no file of the boundary traits in {BOUNDARY}"));
    }
    let mut problems: Vec<_> = sources.iter().flat_map(foreign_imports).collect();
    for package in INTEGRATIONS {
        let sources = rust_sources(package)?;
        problems.extend(sources.iter().flat_map(internal_paths));
    }
    report(problems)
}

/// Checks that public signatures name no type of a library that is an implementation detail.
pub(crate) fn public_types() -> Outcome {
    let mut problems = Vec::new();
    for package in PUBLIC {
        let sources = rust_sources(&format!("{package}/src"))?;
        problems.extend(sources.iter().flat_map(leaks));
    }
    report(problems)
}

fn find<'m>(metadata: &'m Value, package: &str) -> Result<&'m Value, String> {
    let packages = metadata["packages"].as_array();
    packages
        .and_then(|all| all.iter().find(|candidate| candidate["name"] == package))
        .ok_or_else(|| format!("the workspace has no package {package}"))
}

/// Returns the dependencies of a package, except those of its tests.
fn uses(package: &Value) -> impl Iterator<Item = String> {
    let dependencies = package["dependencies"].as_array();
    dependencies
        .into_iter()
        .flatten()
        .filter(|dependency| dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
}

/// Returns the imports of a boundary file that are not allowed.
fn foreign_imports(source: &Source) -> Vec<Problem> {
    let imports = source.find("use ").filter(|at| !source.is_test(*at));
    let imports = imports.map(|at| (at, &source.code[at + "use ".len()..]));
    imports
        .filter(|(_, path)| {
            let is_listed = BOUNDARY_IMPORTS.iter().any(|allowed| {
                let rest = path.strip_prefix(allowed);
                rest.is_some_and(|rest| rest.starts_with([':', ';', ' ']))
            });
            !is_listed && !is_sibling(source, path)
        })
        .map(|(at, path)| {
            let path = path.split([';', '{']).next().unwrap_or_default();
            Problem::at(source, at, format!("the boundary must not import {path}"))
        })
        .collect()
}

/// Returns whether a path begins with a module of the same folder.
fn is_sibling(source: &Source, path: &str) -> bool {
    let path = path.strip_prefix("self::").unwrap_or(path);
    if let Some(parent) = path.strip_prefix("super::") {
        return !parent.starts_with("super::");
    }
    let first = name_at(path, 0);
    source.find("mod ").any(|at| {
        let at = at + "mod ".len();
        name_at(&source.code, at) == first && source.code[at + first.len()..].starts_with(';')
    })
}

/// Returns the paths into modules of celery-runtime that are not public.
fn internal_paths(source: &Source) -> Vec<Problem> {
    let start = "celery_runtime::";
    let paths = source
        .find(start)
        .map(|at| (at, name_at(&source.code, at + start.len())));
    let internal = paths.filter(|(at, name)| {
        let is_path = source.code[at + start.len() + name.len()..].starts_with("::");
        let is_module = name.starts_with(|c: char| c.is_lowercase());
        is_path && is_module && !PUBLIC_MODULES.contains(name)
    });
    internal
        .map(|(at, name)| {
            let text =
                format!("use the exports of celery_runtime instead of celery_runtime::{name}");
            Problem::at(source, at, text)
        })
        .collect()
}

/// Returns the public items that name a hidden library.
fn leaks(source: &Source) -> Vec<Problem> {
    let imported = imported_names(source);
    let items = ["pub ", "impl From<"]
        .into_iter()
        .flat_map(|start| source.find(start));
    let items = items.filter(|at| !source.is_test(*at));
    items
        .filter_map(|at| {
            let item = signature(source, at);
            let library = hidden_library(item, &imported)?;
            let is_exception = PUBLIC_EXCEPTIONS.iter().any(|(name, path, part, _)| {
                *name == library && source.path.starts_with(path) && item.contains(part)
            });
            let text = format!(
                "a type of {library} in a public signature: {}",
                one_line(item)
            );
            (!is_exception).then(|| Problem::at(source, at, text))
        })
        .collect()
}

/// Returns an item up to its body; a field up to its comma.
fn signature(source: &Source, at: usize) -> &str {
    let rest = &source.code[at..];
    let end = rest.find(['{', ';']).unwrap_or(rest.len());
    let item = &rest[..end];
    // A field has no body: it ends with its line.
    let is_field = ![
        "fn ", "impl ", "use ", "struct ", "type ", "const ", "static ", "trait ",
    ]
    .iter()
    .any(|keyword| item.contains(keyword));
    if is_field {
        return item.lines().next().unwrap_or_default();
    }
    item
}

fn one_line(item: &str) -> String {
    item.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the names that a file imports from hidden libraries, with their library.
fn imported_names(source: &Source) -> Vec<(String, &'static str)> {
    let mut names = Vec::new();
    for at in source.find("use ").filter(|at| !source.is_test(*at)) {
        let path = source.code[at + "use ".len()..]
            .split(';')
            .next()
            .unwrap_or_default();
        let first = name_at(path, 0);
        let Some(library) = HIDDEN.iter().find(|library| **library == first) else {
            continue;
        };
        let used = path.split(|c: char| !c.is_alphanumeric() && c != '_');
        let types = used.filter(|name| name.starts_with(|c: char| c.is_uppercase()));
        names.extend(types.map(|name| (name.to_owned(), *library)));
    }
    names
}

/// Returns the hidden library of the first type of a hidden library in an item.
fn hidden_library(item: &str, imported: &[(String, &'static str)]) -> Option<&'static str> {
    let by_path = HIDDEN.iter().find(|library| {
        let path = format!("{library}::");
        item.match_indices(&path)
            .any(|(at, _)| is_start_of_path(item, at))
    });
    by_path.copied().or_else(|| {
        let words: Vec<&str> = item
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        let found = imported.iter().find(|(name, _)| words.contains(&&**name));
        found.map(|(_, library)| *library)
    })
}

/// Returns whether no longer name or path contains this offset: `celery_broker_redis::` is not
/// `redis::`.
fn is_start_of_path(item: &str, at: usize) -> bool {
    let before = item[..at].chars().next_back();
    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(problems: &[Problem]) -> Vec<usize> {
        let mut lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn boundary_imports_only_the_protocol_and_itself() {
        let text = "\
use std::time::Duration;
use celery_protocol::Message;
use tokio::sync::mpsc;
use crate::env;
use crate::environment::Worker;
use super::queue::Queue;
mod message;
pub use message::Content;
#[cfg(test)]
mod tests {
    use crate::memory::MemoryBroker;
}
";
        let source = Source::parse("celery-runtime/src/boundary/mod.rs", text);
        assert_eq!(lines(&foreign_imports(&source)), [3, 5]);
    }

    #[test]
    fn integrations_use_exports_of_the_runtime() {
        let text = "\
use celery_runtime::{Broker, Queue};
use celery_runtime::url::ServiceUrl;
use celery_runtime::broker::Delivery;
fn a() { celery_runtime::Queue::new(); celery_runtime::broker_conformance!(b); }
";
        let source = Source::parse("celery-broker-redis/src/a.rs", text);
        assert_eq!(lines(&internal_paths(&source)), [3]);
    }

    #[test]
    fn library_types_are_found_in_public_items_only() {
        let text = "\
pub fn open(url: &str) -> celery_broker_redis::Broker {}
fn inner(client: redis::Client) {}
pub(crate) fn half(client: redis::Client) {}
pub fn bad(client: redis::Client) {}
pub async fn long(
    url: &str,
    pool: deadpool_redis::Pool,
) -> Self {}
pub fn from_pool(pool: deadpool_redis::Pool) -> Self {}
impl From<lapin::Error> for BrokerError {}
struct S {
    pub field: redis::Value,
    other: u8,
}
#[cfg(test)]
pub fn in_tests(client: redis::Client) {}
";
        let source = Source::parse("celery-broker-redis/src/a.rs", text);
        assert_eq!(lines(&leaks(&source)), [4, 5, 10, 12]);
    }

    #[test]
    fn imported_library_types_are_found() {
        let text = "\
use serde_json::{Map, Value as Json};
pub fn a(map: &Map<String, u8>) {}
pub fn transport_options(self, map: &Map<String, Json>) {}
pub fn b(json: Json) {}
pub fn c(mapping: Mapping) {}
";
        let source = Source::parse("celery-broker-amqp/src/options.rs", text);
        assert_eq!(lines(&leaks(&source)), [2, 4]);
    }

    #[test]
    fn dependencies_of_tests_do_not_count() {
        let package = serde_json::json!({"dependencies": [
            {"name": "celery-runtime", "kind": null},
            {"name": "test-servers", "kind": "dev"},
            {"name": "builder", "kind": "build"},
        ]});
        let used: Vec<String> = uses(&package).collect();
        assert_eq!(used, ["celery-runtime", "builder"]);
    }
}
