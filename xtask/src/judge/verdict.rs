//! What is said about our worker in the end. Pure but for printing.

use std::fmt::Write;

use super::side::{Result, Results};
use crate::shell::Outcome;

/// Prints what is not as it should be and a summary; fails when our worker does not pass what
/// Python's does, and when a test was not run.
pub(super) fn pronounce(ours: &Results, reference: &Results) -> Outcome {
    println!("\n{}", table(ours, reference));
    let mut problems = Vec::new();
    for (tests, problem) in [
        (
            lost(ours, reference),
            "our worker does not pass what Python's does",
        ),
        (not_run(ours), "no result came of it"),
        (
            unknown(ours, reference),
            "what the reference does is not known",
        ),
    ] {
        problems.extend(tests.iter().map(|test| format!("{problem}: {test}")));
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("\n")),
    }
}

/// The counts of one side.
pub(super) fn summary(name: &str, results: &Results) -> String {
    let counts = [
        "passed", "failed", "xfailed", "skipped", "left out", "not run",
    ]
    .map(|outcome| {
        let results = results.values();
        let count = results.filter(|result| result.outcome == outcome).count();
        format!("{count} {outcome}")
    });
    format!("{name}: {}: {}", tests(results.len()), counts.join(", "))
}

/// The tests that not both sides have passed, but for those that neither was asked for.
fn table(ours: &Results, reference: &Results) -> String {
    let mut text = format!("{:<10} {:<10} test\n", "ours", "reference");
    for (name, own) in ours {
        let other = reference.get(name);
        if !matches!(
            (&*own.outcome, word(other)),
            ("passed", "passed") | ("left out", _)
        ) {
            let _ = writeln!(text, "{:<10} {:<10} {name}", own.outcome, word(other));
        }
    }
    let _ = writeln!(text, "\n{}", summary("ours", ours));
    text + &summary("reference", reference)
}

/// Tests that did not pass with our worker and did with Python's. Those that were left out only
/// this time are not among them.
fn lost<'a>(ours: &'a Results, reference: &Results) -> Vec<&'a str> {
    let passed = |name: &str| word(reference.get(name)) == "passed";
    let lost = ours.iter().filter(|(name, result)| {
        !matches!(&*result.outcome, "passed" | "left out" | "not run") && passed(name)
    });
    lost.map(|(name, _)| &**name).collect()
}

fn not_run(ours: &Results) -> Vec<&str> {
    let missing = ours
        .iter()
        .filter(|(_, result)| result.outcome == "not run");
    missing.map(|(name, _)| &**name).collect()
}

/// Tests that the reference has never come to.
fn unknown<'a>(ours: &'a Results, reference: &Results) -> Vec<&'a str> {
    let names = ours.keys().map(|name| &**name);
    names
        .filter(|name| matches!(word(reference.get(*name)), "not run"))
        .collect()
}

fn word(result: Option<&Result>) -> &str {
    result.map_or("not run", |result| &result.outcome)
}

fn tests(count: usize) -> String {
    match count {
        1 => "1 test".to_owned(),
        _ => format!("{count} tests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(pairs: &[(&str, &str)]) -> Results {
        let pairs = pairs.iter().map(|(name, outcome)| {
            let (outcome, why) = ((*outcome).to_owned(), String::new());
            ((*name).to_owned(), Result { outcome, why })
        });
        pairs.collect()
    }

    #[test]
    fn only_what_the_reference_passes_has_to_be_passed() {
        let reference = results(&[("a", "passed"), ("b", "failed"), ("c", "passed")]);
        assert!(lost(&reference, &reference).is_empty());
        let bad = results(&[("a", "failed"), ("b", "failed"), ("c", "skipped")]);
        assert_eq!(lost(&bad, &reference), ["a", "c"]);
    }

    #[test]
    fn a_test_that_is_left_out_this_time_is_not_lost() {
        let reference = results(&[("a", "passed")]);
        assert!(lost(&results(&[("a", "left out")]), &reference).is_empty());
    }

    #[test]
    fn a_test_without_a_result_is_a_problem() {
        let ours = results(&[("a", "not run"), ("b", "passed")]);
        assert_eq!(not_run(&ours), ["a"]);
        assert_eq!(unknown(&ours, &results(&[("a", "passed")])), ["b"]);
        assert!(pronounce(&ours, &ours).is_err());
    }

    #[test]
    fn the_table_shows_both_sides() {
        let ours = results(&[("a", "failed"), ("b", "passed"), ("x", "left out")]);
        let text = table(&ours, &results(&[("a", "passed"), ("b", "passed")]));
        assert!(text.contains("failed     passed     a\n\n"), "{text}");
        assert!(text.contains("ours: 3 tests: 1 passed, 1 failed"), "{text}");
    }
}
