//! Checks of rules that the compiler does not know.
//!
//! - [`dependencies`]: the crates, their libraries, and the boundary traits;
//! - [`layers`]: the order of the modules inside a crate;
//! - [`environment`]: clock, randomness and spawning only through `env`;
//! - [`names`]: no two types of one folder, and no two public types, share a name;
//! - [`sizes`]: the length of functions and files;
//! - [`words`]: the wording of comments, errors, logs, test names and documents.

pub(crate) mod dependencies;
pub(crate) mod environment;
pub(crate) mod layers;
pub(crate) mod names;
pub(crate) mod sizes;
mod source;
pub(crate) mod words;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use test_servers::paths;

use crate::shell::Outcome;
use source::Source;

/// A violation of a rule, shown as `path:line: text`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    line: usize,
    text: String,
}

impl Problem {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            text: text.into(),
        }
    }

    fn at(source: &Source, offset: usize, text: impl Into<String>) -> Self {
        Self::new(&source.path, source.line(offset), text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// An exception from a rule: the beginning of a path, the forbidden text, and the reason.
///
/// An empty text allows everything in the files.
type Exception = (&'static str, &'static str, &'static str);

/// Returns whether an exception allows the forbidden text in the file.
fn is_allowed(exceptions: &[Exception], path: &str, forbidden: &str) -> bool {
    exceptions.iter().any(|(prefix, text, _)| {
        path.starts_with(prefix) && (text.is_empty() || *text == forbidden)
    })
}

/// Returns an error that lists the problems, unless there is none.
fn report(mut problems: Vec<Problem>) -> Outcome {
    problems.sort();
    problems.dedup();
    if problems.is_empty() {
        return Ok(());
    }
    let count = problems.len();
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    Err(format!("{}\n{count} problems", lines.join("\n")))
}

/// Reads the Rust files below a folder of the workspace; none if there is no such folder.
fn rust_sources(folder: &str) -> Result<Vec<Source>, String> {
    let files = files(folder, &["rs"])?;
    let sources = files
        .into_iter()
        .map(|(path, text)| Source::parse(&path, &text));
    Ok(sources.collect())
}

/// Reads the files with these extensions below a folder of the workspace, with their relative
/// paths.
fn files(folder: &str, extensions: &[&str]) -> Result<Vec<(String, String)>, String> {
    let root = paths::workspace();
    let mut found = Vec::new();
    let start = root.join(folder);
    if start.is_dir() {
        collect(&start, extensions, &mut found)?;
    }
    let mut files = Vec::new();
    for path in found {
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        files.push((relative(&root, &path), text));
    }
    files.sort();
    Ok(files)
}

/// Folders without sources of this project.
const SKIPPED_FOLDERS: [&str; 4] = ["target", "fixtures", "corpus", "artifacts"];

fn collect(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) -> Outcome {
    let entries = fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&&*name) {
                collect(&path, extensions, found)?;
            }
        } else if let Some((_, extension)) = name.rsplit_once('.')
            && extensions.contains(&extension)
        {
            found.push(path);
        }
    }
    Ok(())
}

fn relative(root: &Path, path: &Path) -> String {
    let path = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_sorted_and_counted() {
        let problems = vec![Problem::new("b.rs", 2, "x"), Problem::new("a.rs", 10, "y")];
        let text = report(problems).unwrap_err();
        assert_eq!(text, "a.rs:10: y\nb.rs:2: x\n2 problems");
        assert_eq!(report(Vec::new()), Ok(()));
    }

    #[test]
    fn exception_allows_one_text_or_all_texts_of_a_path() {
        let exceptions: [Exception; 2] = [("a/", "x", "reason"), ("b.rs", "", "reason")];
        assert!(is_allowed(&exceptions, "a/c.rs", "x"));
        assert!(!is_allowed(&exceptions, "a/c.rs", "y"));
        assert!(is_allowed(&exceptions, "b.rs", "y"));
    }

    #[test]
    fn files_of_the_workspace_have_relative_paths() {
        let sources = rust_sources("xtask/src/checks").unwrap();
        assert!(
            sources
                .iter()
                .any(|source| source.path == "xtask/src/checks/mod.rs")
        );
        assert!(rust_sources("no-such-folder").unwrap().is_empty());
    }
}
