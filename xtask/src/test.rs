//! `cargo xtask test`: sets up the environment and runs every test of the workspace, or the tests
//! of the AMQP broker against RabbitMQ 4.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use test_servers::{RABBITMQ_SERVER, paths};

use crate::rabbitmq_4;
use crate::setup::{self, Programs};
use crate::shell::{Outcome, cargo, output, say, stream};
use crate::test_summary::{OutputReader, TestSummary};

/// The time limit of one test program; after it the program is killed and counts as failed.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(1800);

/// The time limit for building all test programs.
const BUILD_TIMEOUT: Duration = Duration::from_secs(1800);

/// The arguments of cargo that select all packages and features.
const SCOPE: [&str; 2] = ["--workspace", "--all-features"];

/// The arguments of cargo that select the tests of the AMQP broker that need a server.
const AMQP_BROKER: [&str; 5] = [
    "--package",
    "celery-broker-amqp",
    "--all-features",
    "--test",
    "it",
];

/// The environment variables with which the tests find their programs.
type Environment = [(&'static str, PathBuf)];

/// Sets up, runs the tests whose names contain `filter`, cleans up and prints the summary.
pub(crate) fn run(filter: Option<&str>) -> Outcome {
    run_and_report(filter, run_all)
}

/// Runs the tests of the AMQP broker whose names contain `filter` against RabbitMQ 4, cleans up
/// and prints the summary. Skips them where RabbitMQ 4 cannot be installed.
pub(crate) fn run_on_rabbitmq_4(filter: Option<&str>) -> Outcome {
    run_and_report(filter, run_amqp_broker)
}

fn run_and_report(
    filter: Option<&str>,
    run: impl FnOnce(Option<&str>, &mut TestSummary) -> Outcome,
) -> Outcome {
    let mut summary = TestSummary::default();
    if let Err(problem) = run(filter, &mut summary) {
        println!("{problem}");
        summary.add_failure(problem.lines().next().unwrap_or_default().to_owned());
    }
    for leak in test_servers::kill_leaks() {
        summary.add_failure(format!(
            "a test did not stop {} (process {})",
            leak.program, leak.pid
        ));
    }

    println!();
    for (kind, lines) in [("skipped", &summary.skips), ("failed", &summary.failures)] {
        for line in lines {
            println!("{kind}: {line}");
        }
    }
    let no_test_ran = summary == TestSummary::default();
    if no_test_ran {
        println!(
            "failed: the name of no test contains {:?}",
            filter.unwrap_or("")
        );
    }
    println!("{summary}");
    if summary.failures.is_empty() && !no_test_ran {
        Ok(())
    } else {
        Err(String::new())
    }
}

fn run_all(filter: Option<&str>, summary: &mut TestSummary) -> Outcome {
    clean_up()?;
    let environment = Programs::find_or_install()?.environment();
    run_binaries(&SCOPE, filter, &environment, summary)?;

    let mut doc = cargo(&["test", "--doc"]);
    doc.args(SCOPE).args(filter.map(|_| "--")).args(filter);
    summary.add(run_program("doc tests", &mut doc, &environment)?);

    if filter.is_none_or(|filter| "quickstart".contains(filter)) {
        summary.add(quickstart()?);
    }
    Ok(())
}

fn run_amqp_broker(filter: Option<&str>, summary: &mut TestSummary) -> Outcome {
    clean_up()?;
    let rabbitmq_server = match rabbitmq_4::find_or_install() {
        Ok(path) => path,
        Err(reason) => {
            summary.skips.push(format!("RabbitMQ 4: {reason}"));
            return Ok(());
        }
    };
    setup::openssl()?;
    let environment = [
        (RABBITMQ_SERVER, rabbitmq_server),
        ("CARGO_TARGET_DIR", paths::target()),
    ];
    run_binaries(&AMQP_BROKER, filter, &environment, summary)
}

/// Builds the test programs in this scope of cargo and runs their tests.
fn run_binaries(
    scope: &[&str],
    filter: Option<&str>,
    environment: &Environment,
    summary: &mut TestSummary,
) -> Outcome {
    say("building the tests");
    for binary in build(scope)? {
        let mut command = Command::new(&binary.executable);
        command
            .args(filter)
            .arg("--include-ignored")
            .current_dir(&binary.folder)
            .env("CARGO_MANIFEST_DIR", &binary.folder);
        summary.add(run_program(&binary.name, &mut command, environment)?);
    }
    Ok(())
}

/// Removes processes and files of an interrupted earlier run.
fn clean_up() -> Outcome {
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

fn run_program(
    name: &str,
    command: &mut Command,
    environment: &Environment,
) -> Result<TestSummary, String> {
    say(name);
    let mut reader = OutputReader::new(name);
    let environment = environment.iter().map(|(name, value)| (name, value));
    let status = stream(command.envs(environment), PROGRAM_TIMEOUT, |line| {
        println!("{line}");
        reader.line(line);
    })?;
    let problem = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
        None => Some(format!("killed after {} s", PROGRAM_TIMEOUT.as_secs())),
    };
    Ok(reader.finish(problem))
}

/// Runs the first command of the README, which counts as one test.
fn quickstart() -> Result<TestSummary, String> {
    say("cargo run --example quickstart");
    let mut summary = TestSummary::default();
    let mut command = cargo(&["run", "--quiet", "--example", "quickstart"]);
    match stream(&mut command, PROGRAM_TIMEOUT, |line| println!("{line}"))? {
        Some(status) if status.success() => summary.passed = 1,
        Some(status) => summary.add_failure(format!("example quickstart: {status}")),
        None => summary.add_failure("example quickstart: no exit within the time limit".to_owned()),
    }
    Ok(summary)
}

/// A test program that cargo has built.
#[derive(Debug, PartialEq, Eq)]
struct TestBinary {
    /// The package and target, such as `celery-protocol tests/it`.
    name: String,
    executable: PathBuf,
    /// The folder of its package, which cargo uses as the current folder.
    folder: PathBuf,
}

/// Builds the test programs in this scope of cargo.
///
/// The programs run one by one instead of by `cargo test`, so that a program that hangs is killed
/// and named in the summary.
fn build(scope: &[&str]) -> Result<Vec<TestBinary>, String> {
    let mut command = cargo(&["test", "--no-run"]);
    command
        .args(scope)
        .arg("--message-format=json-render-diagnostics");
    let mut binaries = Vec::new();
    let status = stream(&mut command, BUILD_TIMEOUT, |line| {
        binaries.extend(test_binary(line));
    })?;
    match status {
        Some(status) if status.success() => {
            binaries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(binaries)
        }
        Some(_) => Err("cannot build the tests; see the messages of cargo above".to_owned()),
        None => Err(format!(
            "cannot build the tests within {} s",
            BUILD_TIMEOUT.as_secs()
        )),
    }
}

/// Parses a message of cargo; `None` unless it announces a test program.
fn test_binary(message: &str) -> Option<TestBinary> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let source = Path::new(message["target"]["src_path"].as_str()?);
    let source = source.strip_prefix(folder).unwrap_or(source);
    let package = folder.file_name()?.to_string_lossy();
    Some(TestBinary {
        name: format!("{package} {}", source.display()),
        executable,
        folder: folder.to_owned(),
    })
}

/// The current commit for reports, with `-dirty` if there are uncommitted changes.
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
    fn test_programs_are_parsed_from_messages_of_cargo() {
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
            TestBinary {
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
