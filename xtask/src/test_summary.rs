//! Counts the results that test programs print.

use std::fmt;

/// The passed, failed and skipped tests of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TestSummary {
    pub(crate) passed: u64,
    /// One line for each failed test: program and name.
    pub(crate) failures: Vec<String>,
    /// One line for each skipped test: program, name and reason.
    pub(crate) skips: Vec<String>,
}

impl TestSummary {
    pub(crate) fn add_failure(&mut self, failure: String) {
        self.failures.push(failure);
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }
}

/// The last line of output: `N passed, N failed`, with `, N skipped` if tests were skipped.
impl fmt::Display for TestSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failures.len())?;
        if !self.skips.is_empty() {
            write!(f, ", {} skipped", self.skips.len())?;
        }
        Ok(())
    }
}

/// Parses the output of one test program line by line.
#[derive(Debug)]
pub(crate) struct OutputReader {
    program: String,
    summary: TestSummary,
    /// The sum of the failures in the `test result:` lines.
    counted_failures: u64,
    result_lines: u64,
}

impl OutputReader {
    pub(crate) fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            summary: TestSummary::default(),
            counted_failures: 0,
            result_lines: 0,
        }
    }

    pub(crate) fn line(&mut self, line: &str) {
        if let Some((passed, failed)) = result_line(line) {
            self.summary.passed += passed;
            self.counted_failures += failed;
            self.result_lines += 1;
        } else if let Some((name, outcome)) = test_line(line) {
            let program = &self.program;
            if outcome == "FAILED" {
                self.summary.failures.push(format!("{program}: {name}"));
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                let reason = reason.trim_start_matches(", ");
                let reason = if reason.is_empty() { "ignored" } else { reason };
                self.summary
                    .skips
                    .push(format!("{program}: {name}: {reason}"));
            }
        }
    }

    /// Returns the counts; `problem` describes an unsuccessful exit of the program.
    pub(crate) fn finish(mut self, problem: Option<String>) -> TestSummary {
        // Counts failures whose line is unreadable because the test printed into it.
        let named = self.summary.failures.len() as u64;
        for _ in named..self.counted_failures {
            self.summary
                .add_failure(format!("{}: unnamed test", self.program));
        }
        if self.result_lines == 0 {
            let how = problem.unwrap_or_else(|| "success".to_owned());
            let failure = format!("{}: exited without a test result ({how})", self.program);
            self.summary.add_failure(failure);
        } else if let Some(how) = problem
            && self.summary.failures.is_empty()
        {
            self.summary.add_failure(format!("{}: {how}", self.program));
        }
        self.summary
    }
}

/// Parses the passed and failed tests of a line such as
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        counts.split("; ").find_map(|part| {
            let number = part.strip_suffix(name)?.strip_suffix(' ')?;
            number.parse().ok()
        })
    };
    Some((count("passed")?, count("failed")?))
}

/// Parses the name and outcome of a line such as `test codec::reads_nan ... ok`.
fn test_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, problem: Option<&str>) -> TestSummary {
        let mut reader = OutputReader::new("it");
        for line in output.lines() {
            reader.line(line);
        }
        reader.finish(problem.map(str::to_owned))
    }

    #[test]
    fn passed_failed_and_skipped_tests_are_counted() {
        let summary = read(
            "running 4 tests\n\
             test a ... ok\n\
             test b - should panic ... ok\n\
             test c ... FAILED\n\
             test d ... ignored, needs a server\n\
             \n\
             test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.00s\n",
            Some("exit status: 101"),
        );
        assert_eq!(summary.passed, 2);
        assert_eq!(summary.failures, ["it: c"]);
        assert_eq!(summary.skips, ["it: d: needs a server"]);
        assert_eq!(summary.to_string(), "2 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn several_result_lines_are_added_up() {
        let summary = read(
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
            None,
        );
        assert_eq!(summary.to_string(), "5 passed, 0 failed");
    }

    #[test]
    fn program_without_a_result_line_has_failed() {
        let died = read("running 2 tests\ntest a ... ok\n", Some("signal: 11"));
        assert_eq!(
            died.failures,
            ["it: exited without a test result (signal: 11)"]
        );
        let unfinished = read("running 2 tests\n", None);
        assert_eq!(unfinished.to_string(), "0 passed, 1 failed");
    }

    #[test]
    fn unsuccessful_exit_after_passed_tests_is_a_failure() {
        let good = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let summary = read(good, Some("killed after 600 s"));
        assert_eq!(summary.failures, ["it: killed after 600 s"]);
    }

    #[test]
    fn failure_without_a_readable_line_is_counted() {
        let summary = read(
            "test a ... noise of the test FAILED\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            Some("exit status: 101"),
        );
        assert_eq!(summary.to_string(), "0 passed, 1 failed");
    }
}
