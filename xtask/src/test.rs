//! `cargo xtask test`: every test there is, with all its set-up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use test_servers::paths;

use crate::setup::Programs;
use crate::shell::{Outcome, cargo, output, say, stream};
use crate::tally::{Reader, Tally};

/// How long one test program may take before it is killed and has failed.
const PROGRAM_LIMIT: Duration = Duration::from_secs(1800);

/// How long the build of all of them may take.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// What is built and run: everything.
const SCOPE: [&str; 2] = ["--workspace", "--all-features"];

/// Sets up, runs the tests whose names contain `filter`, cleans up and prints the count.
pub(crate) fn run(filter: Option<&str>) -> Outcome {
    let mut tally = Tally::default();
    if let Err(problem) = run_all(filter, &mut tally) {
        println!("{problem}");
        tally.failed(problem.lines().next().unwrap_or_default().to_owned());
    }
    for leak in test_servers::kill_leaks() {
        tally.failed(format!(
            "a test left {} running (process {})",
            leak.program, leak.pid
        ));
    }

    println!();
    for (kind, lines) in [("skipped", &tally.skips), ("failed", &tally.failures)] {
        for line in lines {
            println!("{kind}: {line}");
        }
    }
    let nothing_ran = tally.passed == 0 && tally.failures.is_empty();
    if nothing_ran {
        println!("failed: no test has {:?} in its name", filter.unwrap_or(""));
    }
    println!("{tally}");
    match tally.failures.is_empty() && !nothing_ran {
        true => Ok(()),
        false => Err(String::new()),
    }
}

fn run_all(filter: Option<&str>, tally: &mut Tally) -> Outcome {
    clean()?;
    let programs = Programs::find_or_install()?;
    say("building the tests");
    for binary in build()? {
        let mut command = Command::new(&binary.executable);
        command
            .args(filter)
            .arg("--include-ignored")
            .current_dir(&binary.folder)
            .env("CARGO_MANIFEST_DIR", &binary.folder);
        tally.add(run_program(&binary.name, &mut command, &programs)?);
    }

    let mut doc = cargo(&["test", "--doc"]);
    doc.args(SCOPE).args(filter.map(|_| "--")).args(filter);
    tally.add(run_program("doc tests", &mut doc, &programs)?);

    if filter.is_none_or(|filter| "quickstart".contains(filter)) {
        tally.add(quickstart()?);
    }
    Ok(())
}

/// Clears away what an interrupted run may have left.
fn clean() -> Outcome {
    for leak in test_servers::kill_leaks() {
        let (program, pid) = (leak.program, leak.pid);
        say(&format!(
            "killed {program} of an earlier run (process {pid})"
        ));
    }
    let folder = paths::target().join("servers");
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn run_program(name: &str, command: &mut Command, programs: &Programs) -> Result<Tally, String> {
    say(name);
    let mut reader = Reader::new(name);
    let status = stream(
        command.envs(programs.environment()),
        PROGRAM_LIMIT,
        |line| {
            println!("{line}");
            reader.line(line);
        },
    )?;
    let problem = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
        None => Some(format!("killed after {} s", PROGRAM_LIMIT.as_secs())),
    };
    Ok(reader.finish(problem))
}

/// The first command of the README: it counts as one test.
fn quickstart() -> Result<Tally, String> {
    say("cargo run --example quickstart");
    let mut tally = Tally::default();
    let mut command = cargo(&["run", "--quiet", "--example", "quickstart"]);
    match stream(&mut command, PROGRAM_LIMIT, |line| println!("{line}"))? {
        Some(status) if status.success() => tally.passed = 1,
        Some(status) => tally.failed(format!("example quickstart: {status}")),
        None => tally.failed("example quickstart: does not end".to_owned()),
    }
    Ok(tally)
}

/// A program with tests, as cargo built it.
#[derive(Debug, PartialEq, Eq)]
struct Binary {
    /// Package and target, such as `celery-protocol tests/it`.
    name: String,
    executable: PathBuf,
    /// The folder of its package, in which cargo would run it.
    folder: PathBuf,
}

/// Builds every test program.
///
/// They are run one by one instead of by `cargo test`, so that one that hangs can be named and
/// killed alone.
fn build() -> Result<Vec<Binary>, String> {
    let mut command = cargo(&["test", "--no-run"]);
    command
        .args(SCOPE)
        .arg("--message-format=json-render-diagnostics");
    let mut binaries = Vec::new();
    let status = stream(&mut command, BUILD_LIMIT, |line| {
        binaries.extend(test_binary(line));
    })?;
    match status {
        Some(status) if status.success() => {
            binaries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(binaries)
        }
        Some(_) => Err("the tests do not build".to_owned()),
        None => Err("the build of the tests does not end".to_owned()),
    }
}

/// Reads one of cargo's messages; most are about something else.
fn test_binary(message: &str) -> Option<Binary> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let source = Path::new(message["target"]["src_path"].as_str()?);
    let source = source.strip_prefix(folder).unwrap_or(source);
    let package = folder.file_name()?.to_string_lossy();
    Some(Binary {
        name: format!("{package} {}", source.display()),
        executable,
        folder: folder.to_owned(),
    })
}

/// The commit that is checked out, for the reports.
pub(crate) fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]);
    output(git.current_dir(paths::workspace()))
        .map_or_else(|_| "unknown".to_owned(), |commit| commit.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_the_messages_of_cargo() {
        let message = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"/w/celery/Cargo.toml",
                "target":{{"kind":["test"],"name":"it","src_path":"/w/celery/tests/it/main.rs"}},
                "profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let binary = test_binary(&message(true, "\"/t/it-1\"")).unwrap();
        assert_eq!(
            binary,
            Binary {
                name: "celery tests/it/main.rs".to_owned(),
                executable: "/t/it-1".into(),
                folder: "/w/celery".into(),
            }
        );
        assert_eq!(test_binary(&message(false, "\"/t/it-1\"")), None);
        assert_eq!(test_binary(&message(true, "null")), None);
        assert_eq!(
            test_binary(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(test_binary("not json"), None);
    }
}
