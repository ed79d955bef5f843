//! The length of functions and files.

use serde_json::Value;

use super::dependencies::metadata;
use super::source::Source;
use super::{Problem, relative, report, rust_sources};
use crate::shell::Outcome;

/// The maximum number of lines of 99 of 100 functions of a crate, tests excepted.
const MAX_FUNCTION: usize = 50;

/// The maximum number of lines of a file.
const MAX_FILE: usize = 600;

/// Files that may be longer, with the reason.
const LONG_FILES: &[(&str, &str)] = &[(
    "celery-runtime/src/config/settings.rs",
    "a table with one row for each setting",
)];

/// The folders of a package with Rust files.
const FOLDERS: [&str; 4] = ["src", "tests", "benches", "examples"];

/// Prints the figures of each package and checks them.
pub(crate) fn run() -> Outcome {
    let mut problems = Vec::new();
    println!(
        "{:<22} files  longest  functions  p90  p99  longest",
        "package"
    );
    for (name, folder) in packages(&metadata()?) {
        let mut sources = Vec::new();
        for part in FOLDERS {
            sources.extend(rust_sources(&format!("{folder}/{part}"))?);
        }
        problems.extend(sources.iter().filter_map(long_file));
        let functions = function_lengths(&sources);
        print_figures(&name, &sources, &functions);
        problems.extend(long_functions(&name, &functions));
    }
    report(problems)
}

/// Returns the names and folders of the packages of the workspace.
fn packages(metadata: &Value) -> Vec<(String, String)> {
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .filter_map(|package| {
            let manifest = relative(root.as_ref(), package["manifest_path"].as_str()?.as_ref());
            let folder = manifest.strip_suffix("/Cargo.toml")?.to_owned();
            Some((package["name"].as_str()?.to_owned(), folder))
        })
        .collect()
}

/// The length of a function in lines, and its place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FunctionLength {
    lines: usize,
    path: String,
    line: usize,
    name: String,
}

/// Returns the lengths of the functions without tests, the shortest first.
fn function_lengths(sources: &[Source]) -> Vec<FunctionLength> {
    let mut lengths = Vec::new();
    for source in sources {
        for (name, range) in source.functions() {
            if source.is_test(range.start) {
                continue;
            }
            let line = source.line(range.start);
            lengths.push(FunctionLength {
                lines: source.line(range.end - 1) + 1 - line,
                path: source.path.clone(),
                line,
                name: name.to_owned(),
            });
        }
    }
    lengths.sort();
    lengths
}

/// Returns the index of a percentile in a sorted list (nearest rank).
fn rank(length: usize, percent: usize) -> usize {
    (length * percent).div_ceil(100).max(1) - 1
}

fn percentile(functions: &[FunctionLength], percent: usize) -> usize {
    let function = functions.get(rank(functions.len(), percent));
    function.map_or(0, |function| function.lines)
}

/// Returns the functions above the limit from the 99th percentile on, if that is above the limit.
fn long_functions(package: &str, functions: &[FunctionLength]) -> Vec<Problem> {
    let p99 = percentile(functions, 99);
    if p99 <= MAX_FUNCTION {
        return Vec::new();
    }
    let long = functions
        .iter()
        .filter(|function| function.lines > MAX_FUNCTION);
    long.map(|function| {
        let FunctionLength {
            lines, path, line, name,
        } = function;
        let text = format!(
            "fn {name} has {lines} lines; the 99th percentile of {package} is {p99}, above {MAX_FUNCTION}"
        );
        Problem::new(path, *line, text)
    })
    .collect()
}

fn long_file(source: &Source) -> Option<Problem> {
    let lines = source.text.lines().count();
    let is_listed = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    if lines <= MAX_FILE || is_listed {
        return None;
    }
    let text = format!("the file has {lines} lines, above {MAX_FILE}");
    Some(Problem::new(&source.path, MAX_FILE + 1, text))
}

fn print_figures(name: &str, sources: &[Source], functions: &[FunctionLength]) {
    let lines = sources.iter().map(|source| source.text.lines().count());
    let longest = functions.last().map_or(0, |function| function.lines);
    println!(
        "{name:<22} {:>5} {:>8} {:>10} {:>4} {:>4} {longest:>8}",
        sources.len(),
        lines.max().unwrap_or_default(),
        functions.len(),
        percentile(functions, 90),
        percentile(functions, 99),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    a();\n".repeat(lines - 2))
    }

    #[test]
    fn long_functions_are_problems_when_there_are_too_many() {
        let check = |short: usize, long: usize| {
            let text = function(5).repeat(short) + &function(60).repeat(long);
            let source = Source::parse("x/src/a.rs", &text);
            long_functions("x", &function_lengths(&[source]))
        };
        assert!(check(99, 1).is_empty());
        let problems = check(90, 2);
        assert_eq!(problems.len(), 2);
        assert_eq!(problems[0].line, 90 * 5 + 1);
        assert!(problems[0].text.starts_with("fn f has 60 lines"));
    }

    #[test]
    fn functions_of_tests_do_not_count() {
        let text = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(60));
        assert!(function_lengths(&[Source::parse("x/src/a.rs", &text)]).is_empty());
        assert!(function_lengths(&[Source::parse("x/tests/a.rs", &function(60))]).is_empty());
    }

    #[test]
    fn long_file_is_a_problem_unless_it_is_listed() {
        let text = "\n".repeat(601);
        let check = |path: &str| long_file(&Source::parse(path, &text));
        assert!(check("x/tests/a.rs").is_some());
        assert!(check(LONG_FILES[0].0).is_none());
    }

    #[test]
    fn percentile_is_the_nearest_rank() {
        assert_eq!(
            [rank(100, 99), rank(1, 99), rank(200, 99), rank(10, 90)],
            [98, 0, 197, 8]
        );
    }
}
