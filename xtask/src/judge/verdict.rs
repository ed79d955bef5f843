//! What is said about our worker in the end. Pure but for printing.

use std::fmt::Write;

use super::side::{Result, Results};
use crate::shell::Outcome;

/// Prints a table of all tests and a summary; fails when our worker fails where Python's does
/// not.
pub(super) fn pronounce(ours: &Results, reference: &Results) -> Outcome {
    println!("\n{}", table(ours, reference));
    let failed = lost(ours, reference);
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "our worker fails {} that Python's passes: {}",
            tests(failed.len()),
            failed.join(", ")
        )),
    }
}

fn table(ours: &Results, reference: &Results) -> String {
    let mut text = format!("{:<10} {:<10} test\n", "ours", "reference");
    let mut left_out = String::from("\nleft out:\n");
    let mut names: Vec<_> = ours.keys().chain(reference.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (own, other) = (ours.get(name), reference.get(name));
        match own {
            Some(result) if result.outcome == "left out" => {
                let _ = writeln!(left_out, "{name}: {}", result.why);
            }
            _ => {
                let _ = writeln!(text, "{:<10} {:<10} {name}", word(own), word(other));
            }
        }
    }
    let count = |results: &Results, outcome: &str| {
        let results = results.values();
        results.filter(|result| result.outcome == outcome).count()
    };
    text += &left_out;
    for (name, results) in [("ours", ours), ("reference", reference)] {
        let [passed, failed, skipped] = ["passed", "failed", "skipped"].map(|o| count(results, o));
        let _ = write!(
            text,
            "\n{name}: {passed} passed, {failed} failed, {skipped} skipped"
        );
    }
    text
}

/// Tests that did not pass with our worker and did with Python's.
fn lost<'a>(ours: &Results, reference: &'a Results) -> Vec<&'a str> {
    let passed = reference
        .iter()
        .filter(|(_, result)| result.outcome == "passed");
    passed
        .filter(|(name, _)| word(ours.get(*name)) != "passed")
        .map(|(name, _)| name.as_str())
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
        let good = results(&[("a", "passed"), ("b", "failed"), ("c", "passed")]);
        assert!(lost(&good, &reference).is_empty());
        let bad = results(&[("a", "failed"), ("b", "failed")]);
        assert_eq!(lost(&bad, &reference), ["a", "c"]);
    }

    #[test]
    fn the_table_shows_both_sides() {
        let ours = results(&[("a", "failed"), ("x", "left out")]);
        let text = table(&ours, &results(&[("a", "passed")]));
        assert!(text.contains("failed     passed     a"), "{text}");
        assert!(
            text.contains("ours: 0 passed, 1 failed, 0 skipped"),
            "{text}"
        );
        assert!(text.contains("\nx: "), "{text}");
    }
}
