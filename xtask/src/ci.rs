//! `cargo xtask ci`: every check besides the tests, as one table.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_servers::paths;

use crate::invariants;
use crate::shell::{
    Outcome, cargo, command_line, output, run as run_command, say, stream, succeeds,
};

/// One check: what it is called, the seconds it may take on two cores, and what it does.
struct Check {
    name: &'static str,
    budget: u64,
    run: fn() -> Result<CheckStatus, String>,
}

/// How a check ended that found nothing wrong.
enum CheckStatus {
    Passed,
    /// What it needs is not on this machine, or not there yet.
    Skipped(String),
}

/// Cheap ones first: a person waits for the first failure. A budget is for an empty target folder.
const CHECKS: &[Check] = &[
    Check {
        name: "format",
        budget: 10,
        run: || passes(&["fmt", "--all", "--check"]),
    },
    Check {
        name: "dependencies point one way",
        budget: 10,
        run: || done(invariants::layers()),
    },
    Check {
        name: "celery-protocol has no runtime, socket, clock or randomness below it",
        budget: 10,
        run: || done(invariants::pure_protocol()),
    },
    Check {
        name: "the traits import only the protocol",
        budget: 5,
        run: || done(invariants::trait_imports()),
    },
    Check {
        name: "no library's types in public signatures",
        budget: 5,
        run: || done(invariants::public_types()),
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
        name: "licences, bans and sources of dependencies",
        budget: 20,
        run: deny,
    },
    Check {
        name: "compatible with the last release",
        budget: 120,
        run: semver,
    },
];

/// Packages of which every feature has to compile alone.
const FEATURED: [&str; 2] = ["celery", "celery-protocol"];

/// Runs all checks, whatever the outcome of the ones before, and names those that failed.
pub(crate) fn run() -> Outcome {
    let mut failed = Vec::new();
    let mut skipped = 0;
    for check in CHECKS {
        say(check.name);
        let start = Instant::now();
        let status = (check.run)();
        let seconds = start.elapsed().as_secs();
        match status {
            Ok(CheckStatus::Passed) => println!("passed in {seconds} s: {}", check.name),
            Ok(CheckStatus::Skipped(reason)) => {
                skipped += 1;
                println!("skipped: {reason}");
            }
            Err(problem) => {
                println!("{problem}\nfailed in {seconds} s: {}", check.name);
                failed.push(check.name);
            }
        }
        if seconds > check.budget {
            println!("note: the budget is {} s", check.budget);
        }
    }
    println!();
    if failed.is_empty() {
        let passed = CHECKS.len() - skipped;
        println!("{passed} checks passed, {skipped} skipped");
        return Ok(());
    }
    Err(format!("failed checks: {}", failed.join(", ")))
}

fn passes(arguments: &[&str]) -> Result<CheckStatus, String> {
    done(run_command(&mut cargo(arguments)))
}

fn done(outcome: Outcome) -> Result<CheckStatus, String> {
    outcome.map(|()| CheckStatus::Passed)
}

fn lints() -> Result<CheckStatus, String> {
    passes(&[
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
    done(run_command(doc.env("RUSTDOCFLAGS", "-D warnings")))
}

/// Checks each package without features and with each feature alone; a warning is a failure.
fn features() -> Result<CheckStatus, String> {
    let metadata = invariants::metadata()?;
    let mut problems = Vec::new();
    for package in FEATURED {
        problems.extend(check_alone(package, None).err());
        for feature in invariants::features(&metadata, package)? {
            problems.extend(check_alone(package, Some(&feature)).err());
        }
    }
    match problems.is_empty() {
        true => Ok(CheckStatus::Passed),
        false => Err(problems.join("\n")),
    }
}

fn check_alone(package: &str, feature: Option<&str>) -> Outcome {
    let mut command = cargo(&["check", "--quiet", "--no-default-features"]);
    command.args(["--message-format=json", "--package", package]);
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    // Warnings are read from the messages: denying them by a compiler flag would build every
    // dependency anew.
    let mut warnings = String::new();
    let status = stream(&mut command, Duration::from_secs(900), |line| {
        warnings.extend(diagnostic(line));
    })?;
    match status.is_some_and(|status| status.success()) && warnings.is_empty() {
        true => {
            println!("{package}: {}", feature.unwrap_or("no features"));
            Ok(())
        }
        false => Err(format!(
            "`{}` complains:\n{warnings}",
            command_line(&command)
        )),
    }
}

/// The text of a warning or an error among cargo's messages.
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
    // Without the compressions: some of them are C.
    passes(&["check", "--package", "celery-protocol", "--target", TARGET])
}

fn oldest_rust() -> Result<CheckStatus, String> {
    let version = invariants::oldest_rust()?;
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
        // A folder of its own: two compilers in one would build everything twice again next time.
        .env("CARGO_TARGET_DIR", paths::target().join("oldest-rust"));
    done(run_command(&mut check))
}

fn deny() -> Result<CheckStatus, String> {
    if !succeeds(&mut cargo(&["deny", "--version"])) {
        let reason = "no cargo-deny: `cargo install cargo-deny --locked`".to_owned();
        return Ok(CheckStatus::Skipped(reason));
    }
    // Advisories are left out: they change by the day, and a build must not.
    passes(&[
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
        let reason = "there is no release yet to compare with".to_owned();
        return Ok(CheckStatus::Skipped(reason));
    };
    if !succeeds(&mut cargo(&["semver-checks", "--version"])) {
        let reason = "no cargo-semver-checks: `cargo install cargo-semver-checks --locked`";
        return Ok(CheckStatus::Skipped(reason.to_owned()));
    }
    passes(&["semver-checks", "--baseline-rev", release.trim()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnostics_are_found_among_the_messages_of_cargo() {
        let warning =
            r#"{"reason":"compiler-message","message":{"level":"warning","rendered":"unused"}}"#;
        assert_eq!(diagnostic(warning).as_deref(), Some("unused"));
        assert_eq!(
            diagnostic(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(diagnostic(r#"{"reason":"compiler-artifact"}"#), None);
    }
}
