//! Counting what test programs report.

use std::fmt;

/// Passed, failed and skipped tests of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    /// One line each, which test and where.
    pub(crate) failures: Vec<String>,
    /// One line each, which test and why.
    pub(crate) skips: Vec<String>,
}

impl Tally {
    pub(crate) fn failed(&mut self, what: String) {
        self.failures.push(what);
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }
}

/// The closing line: `N passed, N failed`, and `, N skipped` if any were.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failures.len())?;
        if !self.skips.is_empty() {
            write!(f, ", {} skipped", self.skips.len())?;
        }
        Ok(())
    }
}

/// Reads the output of one test program line by line.
#[derive(Debug)]
pub(crate) struct Reader {
    program: String,
    tally: Tally,
    /// Sum of the failures in the `test result:` lines.
    counted: u64,
    summaries: u64,
}

impl Reader {
    pub(crate) fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            tally: Tally::default(),
            counted: 0,
            summaries: 0,
        }
    }

    pub(crate) fn line(&mut self, line: &str) {
        if let Some((passed, failed)) = summary(line) {
            self.tally.passed += passed;
            self.counted += failed;
            self.summaries += 1;
        } else if let Some((name, outcome)) = test_line(line) {
            let program = &self.program;
            if outcome == "FAILED" {
                self.tally.failures.push(format!("{program}: {name}"));
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                let reason = reason.trim_start_matches(", ");
                let reason = if reason.is_empty() { "ignored" } else { reason };
                self.tally
                    .skips
                    .push(format!("{program}: {name}: {reason}"));
            }
        }
    }

    /// Closes the count; `problem` tells how the program ended if it did not end well.
    pub(crate) fn finish(mut self, problem: Option<String>) -> Tally {
        // A failure whose line was torn apart by the test's own output still counts.
        let named = self.tally.failures.len() as u64;
        for _ in named..self.counted {
            self.tally.failed(format!("{}: a test", self.program));
        }
        if self.summaries == 0 {
            let how = problem.unwrap_or_else(|| "success".to_owned());
            let what = format!("{}: ended without a result ({how})", self.program);
            self.tally.failed(what);
        } else if let Some(how) = problem
            && self.tally.failures.is_empty()
        {
            self.tally.failed(format!("{}: {how}", self.program));
        }
        self.tally
    }
}

/// Passed and failed of a line such as
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`.
fn summary(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        counts.split("; ").find_map(|part| {
            let number = part.strip_suffix(name)?.strip_suffix(' ')?;
            number.parse().ok()
        })
    };
    Some((count("passed")?, count("failed")?))
}

/// Name and outcome of a line such as `test codec::reads_nan ... ok`.
fn test_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, problem: Option<&str>) -> Tally {
        let mut reader = Reader::new("it");
        for line in output.lines() {
            reader.line(line);
        }
        reader.finish(problem.map(str::to_owned))
    }

    #[test]
    fn counts_passed_failed_and_skipped() {
        let tally = read(
            "running 4 tests\n\
             test a ... ok\n\
             test b - should panic ... ok\n\
             test c ... FAILED\n\
             test d ... ignored, needs a moon\n\
             \n\
             test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.00s\n",
            Some("exit status: 101"),
        );
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failures, ["it: c"]);
        assert_eq!(tally.skips, ["it: d: needs a moon"]);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn adds_up_several_summaries_of_one_program() {
        let tally = read(
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
            None,
        );
        assert_eq!(tally.to_string(), "5 passed, 0 failed");
    }

    #[test]
    fn a_program_without_a_result_has_failed() {
        let died = read("running 2 tests\ntest a ... ok\n", Some("signal: 11"));
        assert_eq!(died.failures, ["it: ended without a result (signal: 11)"]);
        let left = read("running 2 tests\n", None);
        assert_eq!(left.to_string(), "0 passed, 1 failed");
    }

    #[test]
    fn a_bad_end_after_a_good_result_is_a_failure() {
        let good = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let tally = read(good, Some("killed after 600 s"));
        assert_eq!(tally.failures, ["it: killed after 600 s"]);
    }

    #[test]
    fn a_failure_without_a_line_of_its_own_counts() {
        let tally = read(
            "test a ... noise of the test FAILED\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            Some("exit status: 101"),
        );
        assert_eq!(tally.to_string(), "0 passed, 1 failed");
    }
}
