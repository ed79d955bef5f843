//! The order of the modules inside a crate: a module imports only modules below it.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, name_at};
use super::{Problem, report, rust_sources};
use crate::shell::Outcome;

/// The modules of celery-runtime from bottom to top.
///
/// A module may import the modules of its own and of lower layers. Modules of one layer must not
/// import each other in a circle. Names of modules that do not exist are ignored. A nested module
/// such as `app::inner` may have a place of its own; its parent is then the parent without it.
const LAYERS: &[&[&str]] = &[
    &["env"],
    &["boundary"],
    &["backoff", "hostname", "logical_clock", "revocation"],
    &["memory", "conformance"],
    &["routing", "task"],
    &["config"],
    &["queues"],
    &["canvas", "app::inner"],
    &["client"],
    &["control"],
    &["events"],
    &["execution"],
    &["worker::core", "worker::error"],
    &["worker::workflow"],
    &["worker::delivery"],
    &["worker::core::shutdown"],
    &["worker::effects"],
    &["worker::io"],
    &["worker::isolated"],
    &["worker::driver"],
    &["worker"],
    &["app"],
];

/// Modules that may import less than their layer allows: these modules and themselves.
const RESTRICTED: &[(&str, &[&str])] = &[
    ("memory", &["env", "boundary"]),
    ("conformance", &["env", "boundary"]),
];

/// The number of names of the longest path in [`LAYERS`].
const MAX_NAMES: usize = 3;

/// Imports that the checks ignore: from, to, and the reason.
const ACCEPTED: &[Accepted] = &[];

type Accepted = (&'static str, &'static str, &'static str);

/// Crates whose modules share one struct, which must stay below all users of it.
const SHARED: [&str; 2] = ["celery-broker-redis", "celery-broker-amqp"];

/// The module of that struct.
const SHARED_MODULE: &str = "shared";

/// Checks the order inside celery-runtime and the place of `shared` in the brokers.
pub(crate) fn run() -> Outcome {
    let mut runtime = Modules::new("celery-runtime/src/", rust_sources("celery-runtime/src")?);
    runtime.accept(ACCEPTED);
    let mut problems = layer_problems(&runtime);
    for package in SHARED {
        let root = format!("{package}/src/");
        problems.extend(shared_problems(&Modules::new(&root, rust_sources(&root)?)));
    }
    report(problems)
}

/// An import of another top-level module of the same crate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Import {
    from: String,
    to: String,
    path: String,
    line: usize,
}

impl Import {
    fn problem(&self, reason: &str) -> Problem {
        let text = format!("{} imports {}: {reason}", self.from, self.to);
        Problem::new(&self.path, self.line, text)
    }
}

/// The top-level modules of a crate and the imports between them, tests excepted.
#[derive(Debug)]
struct Modules {
    root: String,
    names: BTreeSet<String>,
    imports: Vec<Import>,
}

impl Modules {
    fn new(root: &str, sources: Vec<Source>) -> Self {
        let sources: Vec<_> = sources
            .into_iter()
            .filter(|source| !source.is_test_file())
            .collect();
        let paths = sources.iter().map(|source| module_path(root, &source.path));
        let mut modules = Self {
            root: root.to_owned(),
            names: paths.filter_map(|path| listed_name(&path)).collect(),
            imports: Vec::new(),
        };
        let library = sources
            .iter()
            .find(|source| source.path == format!("{root}lib.rs"));
        let exports = library.map(exports).unwrap_or_default();
        for source in &sources {
            modules.read(source, &exports);
        }
        modules
    }

    /// Adds the imports of a file.
    fn read(&mut self, source: &Source, exports: &BTreeMap<String, String>) {
        let path = module_path(&self.root, &source.path);
        let Some(from) = &listed_name(&path) else {
            return;
        };
        for (at, path) in root_names(source, path.len()) {
            if source.is_test(at) {
                continue;
            }
            let Some(name) = listed_name(&path) else {
                continue;
            };
            let to = if self.names.contains(&name) {
                name
            } else if let Some(module) = exports.get(&name) {
                module.clone()
            } else {
                // A macro or an item that lib.rs itself defines.
                continue;
            };
            // An external crate that lib.rs re-exports is no module.
            if to != *from && self.names.contains(&to) {
                self.imports.push(Import {
                    from: from.clone(),
                    to,
                    path: source.path.clone(),
                    line: source.line(at),
                });
            }
        }
    }

    /// Removes the accepted imports.
    fn accept(&mut self, accepted: &[Accepted]) {
        self.imports.retain(|import| {
            let mut accepted = accepted.iter();
            !accepted.any(|(from, to, _)| *from == import.from && *to == import.to)
        });
    }

    /// Returns the modules that a module imports, directly or through others.
    fn reachable<'m>(&'m self, start: &'m str) -> BTreeSet<&'m str> {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(module) = open.pop() {
            for import in self.imports.iter().filter(|import| import.from == module) {
                if reached.insert(&*import.to) {
                    open.push(&import.to);
                }
            }
        }
        reached
    }
}

/// Returns the path of a file's module; empty for `lib.rs` and `main.rs`.
fn module_path(root: &str, path: &str) -> Vec<String> {
    let path = path.strip_prefix(root).unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if matches!(path, "lib" | "main") {
        return Vec::new();
    }
    path.split('/').map(str::to_owned).collect()
}

/// Returns the name under which the table of layers knows a module: the longest beginning of its
/// path that the table lists, otherwise the first name.
fn listed_name(path: &[String]) -> Option<String> {
    let first = path.first()?;
    let longest_first = (2..=path.len().min(MAX_NAMES)).rev();
    let mut names = longest_first.map(|length| path[..length].join("::"));
    let listed = names.find(|name| layer(LAYERS, name).is_some());
    Some(listed.unwrap_or_else(|| first.clone()))
}

/// Returns the first names that follow the crate's root in paths, with their offsets.
fn root_names(source: &Source, depth: usize) -> Vec<(usize, Vec<String>)> {
    let code = &source.code;
    let absolute = source.find("crate::").map(|at| (at, at + "crate::".len()));
    // As many `super` as the module is deep lead to the root.
    let parents = "super::".repeat(depth);
    let relative = source.find(&parents).filter(|at| {
        let end = at + parents.len();
        !code[..*at].ends_with("super::") && !code[end..].starts_with("super::")
    });
    let relative: Vec<_> = relative.map(|at| (at, at + parents.len())).collect();
    absolute
        .chain(relative)
        .flat_map(|(at, start)| {
            let names = first_names(&code[start..]);
            names.into_iter().map(move |name| (at, name))
        })
        .collect()
}

/// Returns the first names of a path; of several if it begins with a group, `{a::b, c}`.
fn first_names(path: &str) -> Vec<Vec<String>> {
    let Some(group) = path.strip_prefix('{') else {
        let names = leading_names(path);
        return (!names.is_empty()).then_some(names).into_iter().collect();
    };
    let (mut names, mut depth, mut expected) = (Vec::new(), 1_usize, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expected = true,
            c if expected && (c.is_alphabetic() || c == '_') => {
                names.push(leading_names(&group[at..]));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Returns the first names of a path without a group.
fn leading_names(path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = Some(path);
    while let Some(path) = rest.filter(|_| names.len() < MAX_NAMES) {
        let name = name_at(path, 0);
        if name.is_empty() {
            break;
        }
        names.push(name.to_owned());
        rest = path[name.len()..].strip_prefix("::");
    }
    names
}

/// Returns the modules of the items that `lib.rs` re-exports, by item.
fn exports(library: &Source) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for start in library.find("use ") {
        let rest = &library.code[start + "use ".len()..];
        let path = &rest[..rest.find(';').unwrap_or(rest.len())];
        let path = path.strip_prefix("crate::").unwrap_or(path);
        let path = path.strip_prefix("self::").unwrap_or(path);
        let module = name_at(path, 0);
        let names = path.split(|c: char| !c.is_alphanumeric() && c != '_');
        for name in names.filter(|name| !name.is_empty() && *name != module) {
            exports.insert(name.to_owned(), module.to_owned());
        }
    }
    exports
}

/// Returns the position of a module in a table of layers.
fn layer(layers: &[&[&str]], module: &str) -> Option<usize> {
    layers.iter().position(|layer| layer.contains(&module))
}

fn layer_problems(modules: &Modules) -> Vec<Problem> {
    let mut problems = unlisted(modules);
    for import in &modules.imports {
        problems.extend(forbidden(modules, import).map(|reason| import.problem(&reason)));
    }
    problems
}

/// Returns why an import is forbidden, or `None`.
fn forbidden(modules: &Modules, import: &Import) -> Option<String> {
    let (from, to) = (layer(LAYERS, &import.from)?, layer(LAYERS, &import.to)?);
    if to > from {
        return Some("it is in a higher layer".to_owned());
    }
    if to == from && modules.reachable(&import.to).contains(&*import.from) {
        return Some("both are in one layer and import each other in a circle".to_owned());
    }
    let restricted = RESTRICTED
        .iter()
        .find(|(module, _)| *module == import.from)?;
    let is_allowed = restricted.1.contains(&&*import.to);
    (!is_allowed).then(|| format!("it may import only {}", restricted.1.join(", ")))
}

/// Returns the modules that the table of layers does not name.
fn unlisted(modules: &Modules) -> Vec<Problem> {
    let names = modules.names.iter();
    let unlisted = names.filter(|name| layer(LAYERS, name).is_none());
    unlisted
        .map(|name| {
            let text = format!("the module {name} is in no layer; add it to LAYERS in xtask");
            Problem::new(&format!("{}lib.rs", modules.root), 1, text)
        })
        .collect()
}

/// The shared module must not import a module that imports it.
fn shared_problems(modules: &Modules) -> Vec<Problem> {
    if !modules.names.contains(SHARED_MODULE) {
        let text = format!("no module {SHARED_MODULE} for the struct that all modules use");
        return vec![Problem::new(&format!("{}lib.rs", modules.root), 1, text)];
    }
    let imports = modules.imports.iter();
    let upward = imports.filter(|import| {
        import.from == SHARED_MODULE && modules.reachable(&import.to).contains(SHARED_MODULE)
    });
    upward
        .map(|import| import.problem(&format!("it imports {SHARED_MODULE} in a circle")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(files: &[(&str, &str)]) -> Modules {
        let sources = files.iter();
        let sources = sources.map(|(path, text)| Source::parse(&format!("x/src/{path}"), text));
        Modules::new("x/src/", sources.collect())
    }

    fn places(problems: &[Problem]) -> Vec<(&str, usize)> {
        let places = problems.iter();
        places
            .map(|problem| (&*problem.path, problem.line))
            .collect()
    }

    #[test]
    fn import_of_a_higher_layer_is_a_problem() {
        let modules = modules(&[
            (
                "lib.rs",
                "mod task;\nmod client;\npub use client::Client;\n",
            ),
            ("task/mod.rs", "use crate::{client::send, task::b};\n"),
            (
                "task/a.rs",
                "fn a() { crate::Client::new(); }\nuse super::super::client;\n",
            ),
            (
                "task/b.rs",
                "use super::client;\n#[cfg(test)]\nmod tests { use crate::client; }\n",
            ),
            ("client.rs", "use crate::task::Task;\n"),
        ]);
        assert_eq!(
            places(&layer_problems(&modules)),
            [
                ("x/src/task/mod.rs", 1),
                ("x/src/task/a.rs", 1),
                ("x/src/task/a.rs", 2)
            ]
        );
    }

    #[test]
    fn circle_within_a_layer_is_a_problem() {
        let routing = ("routing.rs", "use crate::task::T;\n");
        let one_way = modules(&[routing, ("task.rs", "")]);
        assert!(layer_problems(&one_way).is_empty());
        let circle = modules(&[routing, ("task.rs", "use crate::routing::R;\n")]);
        assert_eq!(layer_problems(&circle).len(), 2);
    }

    #[test]
    fn accepted_import_is_ignored() {
        let routing = ("routing.rs", "use crate::task::T;\n");
        let mut circle = modules(&[routing, ("task.rs", "use crate::routing::R;\n")]);
        circle.accept(&[("task", "routing", "reason")]);
        assert!(layer_problems(&circle).is_empty());
    }

    #[test]
    fn restricted_module_imports_only_what_is_listed() {
        let modules = modules(&[
            (
                "memory/mod.rs",
                "use crate::boundary::B;\nuse crate::backoff::B;\n",
            ),
            ("boundary.rs", ""),
            ("backoff.rs", ""),
        ]);
        assert_eq!(
            places(&layer_problems(&modules)),
            [("x/src/memory/mod.rs", 2)]
        );
    }

    #[test]
    fn nested_module_has_a_layer_of_its_own() {
        let modules = modules(&[
            ("app/mod.rs", "use crate::client::Client;\n"),
            ("app/inner.rs", "use crate::config::Config;\n"),
            (
                "client.rs",
                "use crate::app::inner::I;\nuse crate::app::App;\n",
            ),
            ("config.rs", "use crate::{app::inner::I, env};\n"),
            ("env.rs", ""),
        ]);
        assert_eq!(
            places(&layer_problems(&modules)),
            [("x/src/client.rs", 2), ("x/src/config.rs", 1)]
        );
    }

    #[test]
    fn module_of_third_level_has_a_layer_of_its_own() {
        let modules = modules(&[
            (
                "worker/core/shutdown.rs",
                "use crate::worker::delivery::D;\n",
            ),
            (
                "worker/core/slots.rs",
                "use crate::worker::core::shutdown::S;\nuse crate::worker::delivery::D;\n",
            ),
            (
                "worker/delivery/state.rs",
                "use crate::worker::core::slots::S;\n",
            ),
        ]);
        assert_eq!(
            places(&layer_problems(&modules)),
            [
                ("x/src/worker/core/slots.rs", 1),
                ("x/src/worker/core/slots.rs", 2)
            ]
        );
    }

    #[test]
    fn module_without_a_layer_is_a_problem() {
        let problems = layer_problems(&modules(&[("novelty.rs", "")]));
        assert!(problems[0].text.contains("novelty is in no layer"));
    }

    #[test]
    fn shared_module_must_not_import_its_users() {
        let user = ("link.rs", "use crate::shared::Shared;\n");
        let bottom = modules(&[
            ("shared.rs", "use crate::keys::K;\n"),
            ("keys.rs", ""),
            user,
        ]);
        assert!(shared_problems(&bottom).is_empty());
        let circle = modules(&[("shared.rs", "\nuse crate::link::Link;\n"), user]);
        assert_eq!(places(&shared_problems(&circle)), [("x/src/shared.rs", 2)]);
        assert_eq!(shared_problems(&modules(&[user])).len(), 1);
    }
}
