//! Names of types: no two types of one folder, and no two public types, share one.

use std::collections::BTreeMap;

use super::source::{Source, name_at};
use super::{Problem, report, rust_sources};
use crate::shell::Outcome;

/// The folders of sources. A public type of one of the first is visible to users.
const CRATES: [&str; 6] = [
    "celery-protocol/src",
    "celery-runtime/src",
    "celery-broker-redis/src",
    "celery-broker-amqp/src",
    "celery-backend-redis/src",
    "celery/src",
];

/// The folders of sources of unpublished crates.
const UNPUBLISHED: [&str; 4] = [
    "benches/src",
    "xtask/src",
    "xtask/test-servers/src",
    "xtask/test-support/src",
];

/// Checks all crates of the workspace.
pub(crate) fn run() -> Outcome {
    let mut sources = Vec::new();
    for folder in CRATES.iter().chain(&UNPUBLISHED) {
        sources.extend(rust_sources(folder)?);
    }
    report(problems(&sources))
}

/// A type and where it is defined.
struct Definition<'s> {
    source: &'s Source,
    at: usize,
    name: &'s str,
    is_public: bool,
}

fn problems(sources: &[Source]) -> Vec<Problem> {
    let definitions: Vec<_> = sources.iter().flat_map(definitions).collect();
    let mut by_folder: BTreeMap<_, Vec<&Definition<'_>>> = BTreeMap::new();
    let mut public: BTreeMap<_, Vec<&Definition<'_>>> = BTreeMap::new();
    for definition in &definitions {
        let path = &definition.source.path;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        by_folder
            .entry((folder, definition.name))
            .or_default()
            .push(definition);
        if definition.is_public && CRATES.iter().any(|root| path.starts_with(root)) {
            public.entry(definition.name).or_default().push(definition);
        }
    }
    let in_folder = by_folder.into_values().map(|same| (same, "in this folder"));
    let in_public = public.into_values().map(|same| (same, "that is public"));
    in_folder
        .chain(in_public)
        .flat_map(|(same, place)| repetitions(&same, place))
        .collect()
}

/// Returns a problem for each definition after the first.
fn repetitions(same: &[&Definition<'_>], place: &str) -> Vec<Problem> {
    let Some((first, rest)) = same.split_first() else {
        return Vec::new();
    };
    let other = format!("{}:{}", first.source.path, first.source.line(first.at));
    let text = |name| format!("{name} is also the name of a type {place}: {other}");
    rest.iter()
        .map(|one| Problem::at(one.source, one.at, text(one.name)))
        .collect()
}

/// Returns the types that a file defines at the top level, outside tests. One of several
/// alternatives under `cfg` counts once.
fn definitions(source: &Source) -> Vec<Definition<'_>> {
    let mut found: Vec<Definition<'_>> = Vec::new();
    if source.is_test_file() || is_alternative(source) {
        return found;
    }
    for keyword in ["struct ", "enum ", "trait ", "union ", "type "] {
        for at in source.find(keyword) {
            let start = source.code[..at].rfind('\n').map_or(0, |end| end + 1);
            let visibility = &source.code[start..at];
            let is_top_level = visibility.is_empty() || visibility.starts_with("pub");
            let name = name_at(&source.code, at + keyword.len());
            let is_known = found.iter().any(|one| one.name == name);
            if is_top_level && !source.is_test(at) && !name.is_empty() && !is_known {
                found.push(Definition {
                    source,
                    at,
                    name,
                    is_public: visibility == "pub ",
                });
            }
        }
    }
    found
}

/// Returns whether a file takes the place of another one on some systems.
fn is_alternative(source: &Source) -> bool {
    source.path.ends_with("/unsupported.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source::parse(path, text))
            .collect();
        problems(&sources).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn types_of_one_folder_must_differ() {
        let found = texts(&[
            ("celery-runtime/src/worker/a.rs", "struct Entry;\n"),
            (
                "celery-runtime/src/worker/b.rs",
                "\npub(crate) enum Entry {}\n",
            ),
            ("celery-runtime/src/client/c.rs", "struct Entry;\n"),
        ]);
        assert_eq!(
            found,
            [
                "celery-runtime/src/worker/b.rs:2: Entry is also the name of a type in this \
                 folder: celery-runtime/src/worker/a.rs:1"
            ]
        );
    }

    #[test]
    fn public_types_of_all_crates_must_differ() {
        let found = texts(&[
            ("celery-protocol/src/a.rs", "pub struct Route;\n"),
            ("celery-runtime/src/b.rs", "pub struct Route;\n"),
            ("xtask/src/c.rs", "pub struct Route;\n"),
        ]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("celery-runtime/src/b.rs:1: Route"));
    }

    #[test]
    fn associated_and_alternative_types_do_not_count() {
        let found = texts(&[
            (
                "celery-runtime/src/a.rs",
                "impl T for A {\n    type Error = E;\n}\n#[cfg(unix)]\nstruct S;\n#[cfg(not(unix))]\nstruct S;\n",
            ),
            (
                "celery-runtime/src/b.rs",
                "type Error = E;\n#[cfg(test)]\nmod tests {\nstruct S;\n}\n",
            ),
            ("celery-runtime/src/unsupported.rs", "struct S;\n"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
