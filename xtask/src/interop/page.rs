//! The recorded results as a page: `docs/celery-suite.md`.

use std::fmt::Write;
use std::fs;

use test_servers::paths;

use super::table::{Cell, Table};

/// Writes the page.
pub(super) fn save(table: &Table) -> Result<(), String> {
    let path = paths::workspace().join("docs/celery-suite.md");
    fs::write(&path, page(table))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

const HEAD: &str = "\
<!-- Written by `cargo xtask interop`. -->

# Celery's integration suite, test by test

Python's Celery has a suite of integration tests: a Python client sends tasks to a worker and checks
the results. `cargo xtask interop` runs the suite against the worker of this project and, as the
reference, against the worker of Python's Celery. It writes this page and the same data as
[a table](celery-suite.tsv); `cargo xtask help` lists its options.

Each complete run fills one column, named after the broker and the result backend. In a *mixed*
column, a worker of this project and a Python worker consume the same queue (reference: two Python
workers). In a *×4* column, each worker runs four tasks at the same time, and only the workflow
tests run.

In each cell the first mark is the result of this project's worker and the second that of the
reference: ✓ passed, ✗ failed, ? not run. A number refers to the reason why the test does not run;
the reasons are at the end of the page. The command fails if a test does not run and no reason is
given.
";

fn page(table: &Table) -> String {
    let mut text = HEAD.to_owned();
    let reasons = reasons(table);
    text += &summary(table);
    let mut file = "";
    for (test, row) in &table.tests {
        let (name, test) = test.split_once("::").unwrap_or((test, "(all)"));
        if name != file {
            file = name;
            let _ = write!(text, "\n## {file}\n\n| test |");
            let columns = table.columns.iter().map(|column| format!(" {column} |"));
            text.extend(columns);
            let _ = write!(text, "\n|---|{}\n", "---|".repeat(table.columns.len()));
        }
        let _ = write!(text, "| {} |", code(test));
        for column in &table.columns {
            let cell = row.get(column).map(|cell| marks(cell, &reasons));
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text += "\n## Reasons\n\n";
    for (number, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "{}. {reason}", number + 1);
    }
    text
}

/// The number of tests that the reference passes, and how many of these our worker passes.
fn summary(table: &Table) -> String {
    let mut text = "\n| | reference passes | of these, ours passes | cannot apply |\n".to_owned();
    text += "|---|---|---|---|\n";
    for column in &table.columns {
        let cells = || table.tests.values().filter_map(|row| row.get(column));
        let passed = || cells().filter(|cell| cell.reference == "passed");
        let both = passed().filter(|cell| cell.ours == "passed").count();
        let reasons = cells().filter(|cell| !cell.reason.is_empty()).count();
        let _ = writeln!(
            text,
            "| {column} | {} | {both} | {reasons} |",
            passed().count()
        );
    }
    text
}

/// All reasons, sorted and without duplicates.
fn reasons(table: &Table) -> Vec<&str> {
    let cells = table.tests.values().flat_map(|row| row.values());
    let mut reasons: Vec<_> = cells.map(|cell| &*cell.reason).collect();
    reasons.retain(|reason| !reason.is_empty());
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

fn marks(cell: &Cell, reasons: &[&str]) -> String {
    let number = reasons.iter().position(|reason| *reason == cell.reason);
    let mark = |outcome: &str| match (outcome, number) {
        ("passed", _) => "✓".to_owned(),
        ("failed", _) => "✗".to_owned(),
        (_, Some(number)) => (number + 1).to_string(),
        _ => "?".to_owned(),
    };
    let marks = [mark(&cell.ours), mark(&cell.reference)];
    if marks[0] == marks[1] && number.is_some() {
        marks[0].clone()
    } else {
        marks.join(" ")
    }
}

/// The name as code in a table cell.
fn code(name: &str) -> String {
    let name = name.replace('|', "\\|");
    if name.contains('`') {
        format!("`` {name} ``")
    } else {
        format!("`{name}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_a_row_for_each_test() {
        let cell = |ours: &str, reference: &str, reason: &str| Cell {
            ours: ours.to_owned(),
            reference: reference.to_owned(),
            reason: reason.to_owned(),
        };
        let mut table = Table {
            columns: vec!["redis/redis".to_owned()],
            ..Table::default()
        };
        for (name, cell) in [
            ("x.py::a", cell("failed", "passed", "")),
            ("x.py::b", cell("excluded", "excluded", "needs a server")),
            ("y.py", cell("", "passed", "")),
        ] {
            let row = [("redis/redis".to_owned(), cell)];
            table.tests.insert(name.to_owned(), row.into());
        }
        let page = page(&table);
        for line in [
            "| redis/redis | 2 | 0 | 1 |",
            "## x.py",
            "| `a` | ✗ ✓ |",
            "| `b` | 1 |",
            "| `(all)` | ? ✓ |",
            "1. needs a server",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}:\n{page}");
        }
    }

    #[test]
    fn recorded_page_shows_the_recorded_table() {
        let path = paths::workspace().join("docs/celery-suite.md");
        assert_eq!(
            fs::read_to_string(path).unwrap(),
            page(&Table::load().unwrap())
        );
    }
}
