//! One run of the suite against one implementation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use test_servers::paths;

use super::options::Options;
use super::suite::{Suite, scripts};
use crate::shell::stream;

/// The workers and servers of one run.
#[derive(Debug)]
pub(super) struct TestRun {
    pub(super) name: &'static str,
    /// The command lines, as JSON arrays. The first is that of the worker under test.
    pub(super) workers: Vec<Value>,
    pub(super) broker: String,
    pub(super) backend: String,
    /// The port of the Redis server to which tasks of the suite write.
    pub(super) redis_port: u16,
}

/// The results by name of the test.
pub(super) type TestResults = BTreeMap<String, TestResult>;

/// The result of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestResult {
    /// `passed`, `failed`, `xfailed`, `skipped`, `excluded` or `not run`.
    pub(super) outcome: String,
    pub(super) reason: String,
}

impl TestRun {
    /// Runs the tests. Each line that pytest prints is shown with the name of the run.
    pub(super) fn execute(
        &self,
        python: &Path,
        suite: &Suite,
        options: &Options,
    ) -> Result<TestResults, String> {
        let column = options.column().replace(['/', ' '], "-");
        let folder = paths::target().join("interop").join(column).join(self.name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)
            .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let report = folder.join("report.jsonl");
        let mut command = Command::new(python);
        command
            .current_dir(&suite.folder)
            .args([
                "-m",
                "pytest",
                "-p",
                "celery.contrib.pytest",
                "-p",
                "interop_plugin",
            ])
            .args(["-v", "--tb=short", "--color=no", "--durations=40"])
            .arg("-o")
            .arg(format!("cache_dir={}", folder.join("cache").display()))
            .args(options.pytest())
            .env("PYTHONPATH", scripts())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("TEST_BROKER", &self.broker)
            .env("TEST_BACKEND", &self.backend)
            .env("REDIS_HOST", "127.0.0.1")
            .env("REDIS_PORT", self.redis_port.to_string())
            .env("INTEROP_WORKERS", json!(self.workers).to_string())
            .env("INTEROP_CONDITIONS", options.conditions())
            .env(
                "INTEROP_WHOLE",
                if options.collects_all() { "1" } else { "" },
            )
            .env("INTEROP_RESULT_TIMEOUT", options.result_timeout.to_string())
            .env("INTEROP_REPORT", &report)
            .env("INTEROP_LOG_PREFIX", folder.join("worker"));
        let status = stream(&mut command, options.time_limit(), |line| {
            println!("{:>9} | {line}", self.name)
        })?;
        // Exit status 1 means that tests failed, which the report says too.
        if !status.is_some_and(|status| matches!(status.code(), Some(0 | 1))) {
            return Err(format!(
                "pytest ({}) did not complete within {} s; its files are in {}",
                self.name,
                options.time_limit().as_secs(),
                folder.display()
            ));
        }
        let text = fs::read_to_string(&report)
            .map_err(|error| format!("cannot read {}: {error}", report.display()))?;
        Ok(parse_report(&text))
    }
}

/// Parses a report. Of several lines about one test a failure wins, otherwise the last line.
fn parse_report(report: &str) -> TestResults {
    let mut results = TestResults::new();
    for line in report.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let result = TestResult {
            outcome: text("outcome"),
            reason: text("reason"),
        };
        let name = text("test");
        if results
            .get(&name)
            .is_none_or(|before| before.outcome != "failed")
        {
            results.insert(name, result);
        }
    }
    results
}

/// Merges the results of another run of the same tests: for each test the worse result wins.
pub(super) fn merge(merged: &mut TestResults, run: TestResults) {
    const BEST_TO_WORST: [&str; 3] = ["passed", "not run", "failed"];
    for (name, result) in run {
        let rank = |outcome: &str| BEST_TO_WORST.iter().position(|other| *other == outcome);
        match merged.get(&name) {
            Some(before) if rank(&before.outcome) >= rank(&result.outcome) => {}
            _ => drop(merged.insert(name, result)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_wins_over_other_lines_of_the_same_test() {
        let report = r#"{"test": "a", "outcome": "passed", "reason": ""}
{"test": "a", "outcome": "failed", "reason": "in teardown"}
{"test": "b", "outcome": "failed", "reason": "in call"}
{"test": "b", "outcome": "passed", "reason": ""}
half a line"#;
        let results = parse_report(report);
        assert_eq!(results["a"].reason, "in teardown");
        assert_eq!(results["b"].outcome, "failed");
        assert_eq!(results.len(), 2);
    }

    #[test]
    fn test_that_fails_in_one_run_has_failed() {
        let run = |outcomes: [&str; 2]| {
            let lines = ["a", "b"].into_iter().zip(outcomes);
            let lines = lines.map(|(test, outcome)| {
                format!(r#"{{"test": "{test}", "outcome": "{outcome}", "reason": ""}}"#)
            });
            parse_report(&lines.collect::<Vec<_>>().join("\n"))
        };
        let mut merged = TestResults::new();
        for outcomes in [
            ["passed", "failed"],
            ["failed", "passed"],
            ["not run", "passed"],
        ] {
            merge(&mut merged, run(outcomes));
        }
        assert_eq!([&*merged["a"].outcome, &merged["b"].outcome], ["failed"; 2]);
    }
}
