//! Compares the results of our worker with those of the reference. Pure except for printing.

use std::fmt::Write;

use super::test_run::{TestResult, TestResults};
use crate::shell::Outcome;

/// Prints the differences and a summary.
///
/// Fails when our worker does not pass a test that Python's worker passes, when a test did not run,
/// and when the result of the reference is missing.
pub(super) fn report(ours: &TestResults, reference: &TestResults) -> Outcome {
    println!("\n{}", differences(ours, reference));
    let mut problems = Vec::new();
    for (tests, problem) in [
        (
            regressions(ours, reference),
            "our worker does not pass, Python's worker does",
        ),
        (not_run(ours), "the test did not run"),
        (
            without_reference(ours, reference),
            "the result of the reference is missing",
        ),
    ] {
        problems.extend(tests.iter().map(|test| format!("{problem}: {test}")));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n"))
    }
}

/// The counts of one run.
pub(super) fn summary(name: &str, results: &TestResults) -> String {
    let counts = [
        "passed", "failed", "xfailed", "skipped", "excluded", "not run",
    ]
    .map(|outcome| {
        let results = results.values();
        let count = results.filter(|result| result.outcome == outcome).count();
        format!("{count} {outcome}")
    });
    format!(
        "{name}: {}: {}",
        number_of_tests(results.len()),
        counts.join(", ")
    )
}

/// The tests that did not pass in both runs, except for those that are excluded.
fn differences(ours: &TestResults, reference: &TestResults) -> String {
    let mut text = format!("{:<10} {:<10} test\n", "ours", "reference");
    for (name, our_result) in ours {
        let expected = outcome(reference.get(name));
        if !matches!(
            (&*our_result.outcome, expected),
            ("passed", "passed") | ("excluded", _)
        ) {
            let _ = writeln!(text, "{:<10} {expected:<10} {name}", our_result.outcome);
        }
    }
    let _ = writeln!(text, "\n{}", summary("ours", ours));
    text + &summary("reference", reference)
}

/// Tests that do not pass with our worker and pass with Python's, except for those that this run
/// excludes.
fn regressions<'a>(ours: &'a TestResults, reference: &TestResults) -> Vec<&'a str> {
    let passed = |name: &str| outcome(reference.get(name)) == "passed";
    let regressions = ours.iter().filter(|(name, result)| {
        !matches!(&*result.outcome, "passed" | "excluded" | "not run") && passed(name)
    });
    regressions.map(|(name, _)| &**name).collect()
}

fn not_run(ours: &TestResults) -> Vec<&str> {
    let missing = ours
        .iter()
        .filter(|(_, result)| result.outcome == "not run");
    missing.map(|(name, _)| &**name).collect()
}

/// Tests without a result of the reference.
fn without_reference<'a>(ours: &'a TestResults, reference: &TestResults) -> Vec<&'a str> {
    let names = ours.keys().map(|name| &**name);
    names
        .filter(|name| matches!(outcome(reference.get(*name)), "not run"))
        .collect()
}

fn outcome(result: Option<&TestResult>) -> &str {
    result.map_or("not run", |result| &result.outcome)
}

fn number_of_tests(count: usize) -> String {
    match count {
        1 => "1 test".to_owned(),
        _ => format!("{count} tests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(pairs: &[(&str, &str)]) -> TestResults {
        let pairs = pairs.iter().map(|(name, outcome)| {
            let (outcome, reason) = ((*outcome).to_owned(), String::new());
            ((*name).to_owned(), TestResult { outcome, reason })
        });
        pairs.collect()
    }

    #[test]
    fn only_tests_that_the_reference_passes_are_regressions() {
        let reference = results(&[("a", "passed"), ("b", "failed"), ("c", "passed")]);
        assert!(regressions(&reference, &reference).is_empty());
        let bad = results(&[("a", "failed"), ("b", "failed"), ("c", "skipped")]);
        assert_eq!(regressions(&bad, &reference), ["a", "c"]);
    }

    #[test]
    fn excluded_test_is_no_regression() {
        let reference = results(&[("a", "passed")]);
        assert!(regressions(&results(&[("a", "excluded")]), &reference).is_empty());
    }

    #[test]
    fn test_without_a_result_is_an_error() {
        let ours = results(&[("a", "not run"), ("b", "passed")]);
        assert_eq!(not_run(&ours), ["a"]);
        assert_eq!(
            without_reference(&ours, &results(&[("a", "passed")])),
            ["b"]
        );
        assert!(report(&ours, &ours).is_err());
    }

    #[test]
    fn differences_show_both_outcomes() {
        let ours = results(&[("a", "failed"), ("b", "passed"), ("x", "excluded")]);
        let text = differences(&ours, &results(&[("a", "passed"), ("b", "passed")]));
        assert!(text.contains("failed     passed     a\n\n"), "{text}");
        assert!(text.contains("ours: 3 tests: 1 passed, 1 failed"), "{text}");
    }
}
