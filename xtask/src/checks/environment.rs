//! Clock, randomness, threads and tasks are used only through `celery_runtime`'s `env`.
//!
//! A simulation replaces `env`, so that a run depends on its seed alone. Code that reads the clock
//! or spawns a task elsewhere is outside the simulation. `tokio::select!` polls its branches in a
//! random order unless it is `biased`. The modules that decide what a worker does run without tokio
//! and get the time as an argument.

use super::source::{Source, item_end};
use super::{Exception, Problem, is_allowed, report, rust_sources};
use crate::shell::Outcome;

/// The crates that a simulation runs.
const CRATES: [&str; 3] = [
    "celery-runtime/src",
    "celery-broker-redis/src",
    "celery-backend-redis/src",
];

/// The module that provides clock, randomness and spawning.
const ENV: [&str; 2] = ["celery-runtime/src/env.rs", "celery-runtime/src/env/"];

/// The modules that run without a runtime.
const PURE: [&str; 3] = [
    "celery-runtime/src/worker/core/",
    "celery-runtime/src/worker/delivery/",
    "celery-runtime/src/worker/workflow/",
];

/// What [`PURE`] modules must not name.
const RUNTIME: &str = "tokio";

const FORBIDDEN: [&str; 8] = [
    "Uuid::new_v4",
    "fastrand",
    "SystemTime::now",
    "Instant::now",
    "tokio::spawn",
    "task::spawn_blocking",
    "thread::spawn",
    "thread::Builder",
];

/// The forbidden text of an unbiased `select!` in [`EXCEPTIONS`].
const UNBIASED: &str = "unbiased select!";

/// The words of a comment that gives the reason for an unbiased `select!`.
const UNBIASED_REASON: &str = "unbiased:";

const EXCEPTIONS: &[Exception] = &[
    (
        "celery-runtime/src/conformance/",
        "",
        "tests of brokers and backends against real servers",
    ),
    (
        "celery-runtime/src/worker/isolated/",
        "",
        "child processes, which a simulation does not run",
    ),
];

/// Checks the crates that a simulation runs.
pub(crate) fn run() -> Outcome {
    let mut problems = Vec::new();
    for folder in CRATES {
        let sources = rust_sources(folder)?;
        problems.extend(sources.iter().flat_map(check));
    }
    report(problems)
}

fn check(source: &Source) -> Vec<Problem> {
    if ENV.iter().any(|path| source.path.starts_with(path)) {
        return Vec::new();
    }
    let calls = FORBIDDEN.iter().flat_map(|needle| {
        let found = source.find(needle);
        found.map(move |at| (at, *needle, format!("use env instead of {needle}")))
    });
    let text = "select! does not begin with `biased;`, and no comment `unbiased:` gives a reason";
    let selects = unbiased_selects(source);
    let selects = selects.map(|at| (at, UNBIASED, text.to_owned()));
    let is_pure = PURE.iter().any(|path| source.path.starts_with(path));
    let runtime = source.find(RUNTIME).filter(|_| is_pure);
    let runtime = runtime.map(|at| (at, RUNTIME, format!("a pure module names {RUNTIME}")));
    calls
        .chain(selects)
        .chain(runtime)
        .filter(|(at, needle, _)| {
            !source.is_test(*at) && !is_allowed(EXCEPTIONS, &source.path, needle)
        })
        .map(|(at, _, text)| Problem::at(source, at, text))
        .collect()
}

fn unbiased_selects(source: &Source) -> impl Iterator<Item = usize> {
    source.find("select!").filter(|at| {
        let Some(open) = source.code[*at..].find('{').map(|brace| at + brace) else {
            return false;
        };
        let body = &source.code[open + 1..item_end(&source.code, open).unwrap_or(open + 1)];
        !body.trim_start().starts_with("biased;") && !has_reason(source, *at)
    })
}

/// Returns whether the comment directly above gives the reason for an unbiased `select!`.
fn has_reason(source: &Source, at: usize) -> bool {
    let lines = (1..source.line(at)).rev();
    let mut comment = lines
        .map(|number| source.line_text(number).trim())
        .take_while(|line| line.starts_with("//"));
    comment.any(|line| line.contains(UNBIASED_REASON))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let source = Source::parse(path, text);
        let mut lines: Vec<_> = check(&source).iter().map(|problem| problem.line).collect();
        lines.sort_unstable();
        lines
    }

    const BAD: &str = "\
fn a() {
    let id = Uuid::new_v4();
    tokio::spawn(async {});
    // Instant::now() in a comment
    tokio::select! {
        x = y => {}
    }
}
#[cfg(test)]
mod tests {
    fn b() { SystemTime::now(); }
}
";

    #[test]
    fn calls_outside_env_are_problems() {
        assert_eq!(lines("celery-runtime/src/client/mod.rs", BAD), [2, 3, 5]);
    }

    #[test]
    fn env_tests_and_exceptions_are_allowed() {
        assert!(lines("celery-runtime/src/env/clock.rs", BAD).is_empty());
        assert!(lines("celery-runtime/src/worker/tests.rs", BAD).is_empty());
        assert!(lines("celery-runtime/src/conformance/broker.rs", BAD).is_empty());
    }

    #[test]
    fn runtime_in_pure_module_is_problem() {
        let text = "use std::time::Instant;\nuse tokio::time::sleep;\n";
        assert_eq!(lines("celery-runtime/src/worker/core/slots.rs", text), [2]);
        assert!(lines("celery-runtime/src/worker/io/monitor.rs", text).is_empty());
    }

    #[test]
    fn select_needs_biased_or_a_reason() {
        let select = |above: &str, first: &str| {
            format!(
                "fn a() {{\n{above}\n    tokio::select! {{\n {first}\n x = y => {{}}\n }}\n}}\n"
            )
        };
        let check =
            |above: &str, first: &str| lines("celery-runtime/src/a.rs", &select(above, first));
        assert!(check("", "biased;").is_empty());
        assert!(check("// unbiased: both are equally urgent", "").is_empty());
        assert_eq!(check("// a comment", "// biased;"), [3]);
    }
}
