//! The table for people: `docs/celery-suite.md`.

use std::fmt::Write;
use std::fs;

use test_servers::paths;

use super::table::{Cell, Table};

/// Writes the page that shows the table.
pub(super) fn save(table: &Table) -> Result<(), String> {
    let path = paths::workspace().join("docs/celery-suite.md");
    fs::write(&path, page(table))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

const HEAD: &str = "\
<!-- Written by `cargo xtask judge`. -->

# Celery's integration suite, test by test

Python's Celery has a suite of integration tests: a client in Python sends tasks to a worker and
looks at what becomes of them. Here it is run with the worker of this project, and beside it with
the worker of Python's Celery as the reference.

`cargo xtask judge` does it and writes this page and
[the same as a table of words](celery-suite.tsv); `cargo xtask help` has its options. A run of all
tests fills one column, which is named by the broker and the result backend. With *mixed*, a worker
of this project and one of Python's share the queue (the reference: two of Python's). With *×4*,
every worker runs four tasks at once, and only the tests of workflows are asked for.

In each cell the first mark is for this project's worker, the second for the reference: ✓ passed,
✗ failed, ? not run. A number stands for the reason why a test is not run; the reasons are listed
at the end. No test is left out without a reason: the command fails if there is one.
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

/// How many tests the reference passes, and how many of these our worker does.
fn summary(table: &Table) -> String {
    let mut text = "\n| | reference passes | of these, ours passes | cannot apply |\n".to_owned();
    text += "|---|---|---|---|\n";
    for column in &table.columns {
        let cells = || table.tests.values().filter_map(|row| row.get(column));
        let passed = || cells().filter(|cell| cell.reference == "passed");
        let both = passed().filter(|cell| cell.ours == "passed").count();
        let reasons = cells().filter(|cell| !cell.why.is_empty()).count();
        let _ = writeln!(
            text,
            "| {column} | {} | {both} | {reasons} |",
            passed().count()
        );
    }
    text
}

/// All reasons, each once.
fn reasons(table: &Table) -> Vec<&str> {
    let cells = table.tests.values().flat_map(|row| row.values());
    let mut reasons: Vec<_> = cells.map(|cell| &*cell.why).collect();
    reasons.retain(|reason| !reason.is_empty());
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

fn marks(cell: &Cell, reasons: &[&str]) -> String {
    let number = reasons.iter().position(|reason| *reason == cell.why);
    let mark = |outcome: &str| match (outcome, number) {
        ("passed", _) => "✓".to_owned(),
        ("failed", _) => "✗".to_owned(),
        (_, Some(number)) => (number + 1).to_string(),
        _ => "?".to_owned(),
    };
    let marks = [mark(&cell.ours), mark(&cell.reference)];
    match marks[0] == marks[1] && number.is_some() {
        true => marks[0].clone(),
        false => marks.join(" "),
    }
}

/// A name as it is, in a cell.
fn code(name: &str) -> String {
    let name = name.replace('|', "\\|");
    match name.contains('`') {
        true => format!("`` {name} ``"),
        false => format!("`{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_row_for_each_test() {
        let cell = |ours: &str, reference: &str, why: &str| Cell {
            ours: ours.to_owned(),
            reference: reference.to_owned(),
            why: why.to_owned(),
        };
        let mut table = Table {
            columns: vec!["redis/redis".to_owned()],
            ..Table::default()
        };
        for (name, cell) in [
            ("x.py::a", cell("failed", "passed", "")),
            ("x.py::b", cell("left out", "left out", "needs a moon")),
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
            "1. needs a moon",
        ] {
            assert!(page.lines().any(|there| there == line), "{line}:\n{page}");
        }
    }
}
