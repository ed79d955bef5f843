//! `cargo xtask ci`: all checks except the tests.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_servers::paths;

use crate::checks::{dependencies, environment, layers, names, sizes, words};
use crate::shell::{
    Outcome, cargo, command_line, output, run as run_command, say, stream, succeeds,
};

/// A check: its name, its time budget in seconds on two cores, and the function.
struct Check {
    name: &'static str,
    budget: u64,
    run: fn() -> Result<CheckStatus, String>,
}

/// The status of a check without problems.
enum CheckStatus {
    Passed,
    /// The check needs something that is missing; the text is the reason and the remedy.
    Skipped(String),
}

/// The checks, the fastest first so that a failure shows early.
///
/// The budgets are for an empty target folder.
const CHECKS: &[Check] = &[
    Check {
        name: "format",
        budget: 10,
        run: || cargo_check(&["fmt", "--all", "--check"]),
    },
    Check {
        name: "dependencies between packages",
        budget: 10,
        run: || status(dependencies::packages()),
    },
    Check {
        name: "pure dependencies of celery-protocol",
        budget: 10,
        run: || status(dependencies::pure_protocol()),
    },
    Check {
        name: "imports of the boundary",
        budget: 5,
        run: || status(dependencies::boundary()),
    },
    Check {
        name: "library types in public signatures",
        budget: 5,
        run: || status(dependencies::public_types()),
    },
    Check {
        name: "layers of modules",
        budget: 5,
        run: || status(layers::run()),
    },
    Check {
        name: "environment",
        budget: 5,
        run: || status(environment::run()),
    },
    Check {
        name: "names of types",
        budget: 5,
        run: || status(names::run()),
    },
    Check {
        name: "sizes of functions and files",
        budget: 5,
        run: || status(sizes::run()),
    },
    Check {
        name: "words",
        budget: 5,
        run: || status(words::run()),
    },
    Check {
        name: "lints",
        budget: 240,
        run: lints,
    },
    Check {
        name: "docs",
        budget: 90,
        run: docs,
    },
    Check {
        name: "each feature alone",
        budget: 300,
        run: features,
    },
    Check {
        name: "celery-protocol on wasm32",
        budget: 60,
        run: wasm,
    },
    Check {
        name: "oldest supported Rust",
        budget: 180,
        run: oldest_rust,
    },
    Check {
        name: "licenses, bans and sources of dependencies",
        budget: 20,
        run: deny,
    },
    Check {
        name: "compatibility with the last release",
        budget: 120,
        run: semver,
    },
];

/// Packages whose features must each compile alone.
const FEATURED: [&str; 2] = ["celery", "celery-protocol"];

/// The names of the checks by their status.
#[derive(Debug, Default)]
struct Summary {
    passed: usize,
    failed: Vec<&'static str>,
    /// With the reason of each.
    skipped: Vec<(&'static str, String)>,
}

impl Summary {
    fn add(&mut self, name: &'static str, result: Result<CheckStatus, String>) {
        match result {
            Ok(CheckStatus::Passed) => self.passed += 1,
            Ok(CheckStatus::Skipped(reason)) => self.skipped.push((name, reason)),
            Err(_) => self.failed.push(name),
        }
    }
}

/// One line for each skipped and failed check; the last line has the counts.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, reason) in &self.skipped {
            writeln!(f, "skipped: {name}: {reason}")?;
        }
        for name in &self.failed {
            writeln!(f, "failed: {name}")?;
        }
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        write!(
            f,
            "{} checks passed, {failed} failed, {skipped} skipped",
            self.passed
        )
    }
}

/// Runs the checks whose names contain `filter`, even after a failure, and prints a summary.
pub(crate) fn run(filter: &str) -> Outcome {
    let mut summary = Summary::default();
    for check in CHECKS.iter().filter(|check| check.name.contains(filter)) {
        say(check.name);
        let start = Instant::now();
        let result = (check.run)();
        let seconds = start.elapsed().as_secs();
        match &result {
            Ok(CheckStatus::Passed) => println!("passed in {seconds} s: {}", check.name),
            Ok(CheckStatus::Skipped(reason)) => println!("skipped: {reason}"),
            Err(problem) => println!("{problem}\nfailed in {seconds} s: {}", check.name),
        }
        if seconds > check.budget {
            println!("note: above the budget of {} s", check.budget);
        }
        summary.add(check.name, result);
    }
    println!("\n{summary}");
    if summary.failed.is_empty() {
        Ok(())
    } else {
        Err(String::new())
    }
}

fn cargo_check(arguments: &[&str]) -> Result<CheckStatus, String> {
    status(run_command(&mut cargo(arguments)))
}

fn status(outcome: Outcome) -> Result<CheckStatus, String> {
    outcome.map(|()| CheckStatus::Passed)
}

fn lints() -> Result<CheckStatus, String> {
    cargo_check(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ])
}

fn docs() -> Result<CheckStatus, String> {
    let mut doc = cargo(&["doc", "--workspace", "--all-features", "--no-deps"]);
    status(run_command(doc.env("RUSTDOCFLAGS", "-D warnings")))
}

/// Checks each package without features and with each feature alone; warnings are failures.
fn features() -> Result<CheckStatus, String> {
    let metadata = dependencies::metadata()?;
    let mut problems = Vec::new();
    for package in FEATURED {
        problems.extend(check_alone(package, None).err());
        for feature in dependencies::features(&metadata, package)? {
            problems.extend(check_alone(package, Some(&feature)).err());
        }
    }
    if problems.is_empty() {
        Ok(CheckStatus::Passed)
    } else {
        Err(problems.join("\n"))
    }
}

fn check_alone(package: &str, feature: Option<&str>) -> Outcome {
    let mut command = cargo(&["check", "--quiet", "--no-default-features"]);
    command.args(["--message-format=json", "--package", package]);
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    // Warnings are parsed from the messages: a compiler flag would rebuild every dependency.
    let mut warnings = String::new();
    let status = stream(&mut command, Duration::from_secs(900), |line| {
        warnings.extend(diagnostic(line));
    })?;
    let succeeded = status.is_some_and(|status| status.success());
    if !succeeded || !warnings.is_empty() {
        return Err(format!("`{}` failed:\n{warnings}", command_line(&command)));
    }
    println!("{package}: {}", feature.unwrap_or("no features"));
    Ok(())
}

/// Parses a message of cargo and returns the text of a warning or error.
fn diagnostic(message: &str) -> Option<String> {
    let message: Value = serde_json::from_str(message).ok()?;
    let text = message["message"]["rendered"].as_str()?;
    (message["reason"] == "compiler-message").then(|| text.to_owned())
}

fn wasm() -> Result<CheckStatus, String> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
    if !library.exists() {
        let reason = format!("no standard library for {TARGET}: `rustup target add {TARGET}`");
        return Ok(CheckStatus::Skipped(reason));
    }
    // Without the compressions, some of which are C libraries.
    cargo_check(&["check", "--package", "celery-protocol", "--target", TARGET])
}

fn oldest_rust() -> Result<CheckStatus, String> {
    let version = dependencies::oldest_rust()?;
    if !succeeds(Command::new("rustup").args(["run", &version, "cargo", "--version"])) {
        let reason = format!("no Rust {version}: `rustup toolchain install {version}`");
        return Ok(CheckStatus::Skipped(reason));
    }
    let mut check = Command::new("rustup");
    check
        .args(["run", &version, "cargo", "check", "--workspace"])
        .arg("--all-features")
        .current_dir(paths::workspace())
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        // A separate folder: two compilers in one folder would discard each other's artifacts.
        .env("CARGO_TARGET_DIR", paths::target().join("oldest-rust"));
    status(run_command(&mut check))
}

fn deny() -> Result<CheckStatus, String> {
    if !succeeds(&mut cargo(&["deny", "--version"])) {
        let reason = "no cargo-deny: `cargo install cargo-deny --locked`".to_owned();
        return Ok(CheckStatus::Skipped(reason));
    }
    // Without advisories, which change independently of the sources.
    cargo_check(&[
        "deny",
        "--all-features",
        "check",
        "licenses",
        "bans",
        "sources",
    ])
}

fn semver() -> Result<CheckStatus, String> {
    let mut tags = Command::new("git");
    tags.args(["describe", "--tags", "--abbrev=0", "--match", "v*"]);
    let Ok(release) = output(tags.current_dir(paths::workspace())) else {
        let reason = "no release to compare with".to_owned();
        return Ok(CheckStatus::Skipped(reason));
    };
    if !succeeds(&mut cargo(&["semver-checks", "--version"])) {
        let reason = "no cargo-semver-checks: `cargo install cargo-semver-checks --locked`";
        return Ok(CheckStatus::Skipped(reason.to_owned()));
    }
    cargo_check(&["semver-checks", "--baseline-rev", release.trim()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnostics_are_parsed_from_messages_of_cargo() {
        let warning =
            r#"{"reason":"compiler-message","message":{"level":"warning","rendered":"unused"}}"#;
        assert_eq!(diagnostic(warning).as_deref(), Some("unused"));
        assert_eq!(
            diagnostic(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(diagnostic(r#"{"reason":"compiler-artifact"}"#), None);
    }

    #[test]
    fn summary_counts_skipped_checks_in_its_last_line() {
        let mut summary = Summary::default();
        summary.add("a", Ok(CheckStatus::Passed));
        summary.add("b", Ok(CheckStatus::Skipped("no tool".to_owned())));
        summary.add("c", Err("problem".to_owned()));
        let text = summary.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "skipped: b: no tool",
                "failed: c",
                "1 checks passed, 1 failed, 1 skipped"
            ]
        );
    }
}
