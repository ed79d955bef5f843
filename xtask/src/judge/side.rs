//! One run of the suite, with one worker.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use test_servers::paths;

use super::options::Options;
use super::suite::{Suite, scripts};
use crate::shell::stream;

/// Workers and where they work.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) name: &'static str,
    /// The command lines, in JSON. The first is the one that is judged.
    pub(super) workers: Vec<Value>,
    pub(super) broker: String,
    pub(super) backend: String,
    /// The port of the Redis server in which tasks leave marks.
    pub(super) marks: u16,
}

/// What came of each test, by name.
pub(super) type Results = BTreeMap<String, Result>;

/// What came of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Result {
    /// `passed`, `failed`, `xfailed`, `skipped`, `left out` or `not run`.
    pub(super) outcome: String,
    pub(super) why: String,
}

impl Side {
    /// Runs the tests; what pytest prints is shown with the name of the side.
    pub(super) fn run(
        &self,
        python: &Path,
        suite: &Suite,
        options: &Options,
    ) -> std::result::Result<Results, String> {
        let column = options.column().replace(['/', ' '], "-");
        let folder = paths::target().join("judge").join(column).join(self.name);
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
                "judge_plugin",
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
            .env("REDIS_PORT", self.marks.to_string())
            .env("JUDGE_WORKERS", json!(self.workers).to_string())
            .env("JUDGE_CONDITIONS", options.conditions())
            .env("JUDGE_WHOLE", if options.reads_all() { "1" } else { "" })
            .env("JUDGE_WAIT", options.wait.to_string())
            .env("JUDGE_REPORT", &report)
            .env("JUDGE_LOG", folder.join("worker"));
        let status = stream(&mut command, options.limit(), |line| {
            println!("{:>9} | {line}", self.name)
        })?;
        // 1 is that tests failed, which the report says, too.
        if !status.is_some_and(|status| matches!(status.code(), Some(0 | 1))) {
            return Err(format!(
                "pytest ({}) did not come to its end in {} s: see {}",
                self.name,
                options.limit().as_secs(),
                folder.display()
            ));
        }
        let text = fs::read_to_string(&report)
            .map_err(|error| format!("cannot read {}: {error}", report.display()))?;
        Ok(results(&text))
    }
}

/// Reads a report. Of several lines for one test a failure counts, else the last.
fn results(report: &str) -> Results {
    let mut results = Results::new();
    for line in report.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let result = Result {
            outcome: text("outcome"),
            why: text("why"),
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

/// Adds what came of the same tests another time: what was worse counts.
pub(super) fn merge(all: &mut Results, again: Results) {
    const GOOD_TO_BAD: [&str; 3] = ["passed", "not run", "failed"];
    for (name, result) in again {
        let badness = |outcome: &str| GOOD_TO_BAD.iter().position(|word| *word == outcome);
        match all.get(&name) {
            Some(before) if badness(&before.outcome) >= badness(&result.outcome) => {}
            _ => drop(all.insert(name, result)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_fails_afterwards_has_failed() {
        let report = r#"{"test": "a", "outcome": "passed", "why": ""}
{"test": "a", "outcome": "failed", "why": "in teardown"}
{"test": "b", "outcome": "failed", "why": "in call"}
{"test": "b", "outcome": "passed", "why": ""}
half a line"#;
        let results = results(report);
        assert_eq!(results["a"].why, "in teardown");
        assert_eq!(results["b"].outcome, "failed");
        assert_eq!(results.len(), 2);
    }

    #[test]
    fn a_test_that_fails_once_has_failed() {
        let run = |outcomes: [&str; 2]| {
            let lines = ["a", "b"].into_iter().zip(outcomes);
            let lines = lines.map(|(test, outcome)| {
                format!(r#"{{"test": "{test}", "outcome": "{outcome}", "why": ""}}"#)
            });
            results(&lines.collect::<Vec<_>>().join("\n"))
        };
        let mut all = Results::new();
        for outcomes in [
            ["passed", "failed"],
            ["failed", "passed"],
            ["not run", "passed"],
        ] {
            merge(&mut all, run(outcomes));
        }
        assert_eq!([&*all["a"].outcome, &all["b"].outcome], ["failed"; 2]);
    }
}
