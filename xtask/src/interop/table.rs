//! The recorded results of each test by combination of servers and workers:
//! `docs/celery-suite.tsv`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use test_servers::paths;

use super::test_run::{TestResult, TestResults};

/// The results of all complete runs; each complete run replaces its column.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    /// The cells by test, then by column.
    pub(super) tests: BTreeMap<String, BTreeMap<String, Cell>>,
}

/// The outcomes of a test with our worker and with Python's; empty if it has not run yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) ours: String,
    pub(super) reference: String,
    /// The reason why the test was not run; empty if it was.
    pub(super) reason: String,
}

impl Table {
    /// Reads the file; the table is empty if there is no file.
    pub(super) fn load() -> Result<Self, String> {
        match fs::read_to_string(path()) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("cannot read {}: {error}", path().display())),
        }
    }

    pub(super) fn save(&self) -> Result<(), String> {
        let path = path();
        let folder = path.parent().expect("the path has a parent");
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, self.write()))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Replaces the results of the implementations that have run.
    pub(super) fn update(
        &mut self,
        column: &str,
        ours: Option<&TestResults>,
        reference: Option<&TestResults>,
    ) {
        if !self.columns.iter().any(|name| name == column) {
            self.columns.push(column.to_owned());
            self.columns.sort_by_key(|name| rank(name));
        }
        let before: Vec<_> = self
            .tests
            .values_mut()
            .map(|row| row.remove(column))
            .collect();
        let mut before: BTreeMap<_, _> = self.tests.keys().cloned().zip(before).collect();
        let names = [ours, reference]
            .into_iter()
            .flatten()
            .flat_map(TestResults::keys);
        for name in names {
            let old = before.remove(name).flatten().unwrap_or_default();
            let row = self.tests.entry(name.clone()).or_default();
            let cell = row.entry(column.to_owned()).or_insert(old);
            let [our_result, expected] =
                [ours, reference].map(|results| results.and_then(|all| all.get(name)));
            if let Some(result) = our_result {
                cell.ours.clone_from(&result.outcome);
            }
            if let Some(result) = expected {
                cell.reference.clone_from(&result.outcome);
            }
            let reasons = [our_result, expected].into_iter().flatten().map(reason);
            if let Some(reason) = reasons.into_iter().find(|reason| !reason.is_empty()) {
                cell.reason = reason;
            } else if [&cell.ours, &cell.reference]
                .iter()
                .all(|outcome| needs_no_reason(outcome))
            {
                cell.reason.clear();
            }
        }
        self.tests.retain(|_, row| !row.is_empty());
    }

    /// Returns the recorded results of the reference.
    pub(super) fn reference(&self, column: &str) -> Result<TestResults, String> {
        if !self.columns.iter().any(|name| name == column) {
            return Err(format!(
                "{} has no column {column:?}; run cargo xtask interop with these options first",
                path().display()
            ));
        }
        let cells = self.tests.iter().filter_map(|(name, row)| {
            let cell = row.get(column).filter(|cell| !cell.reference.is_empty())?;
            let (outcome, reason) = (cell.reference.clone(), cell.reason.clone());
            Some((name.clone(), TestResult { outcome, reason }))
        });
        Ok(cells.collect())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(|line| line.split('\t'));
        let columns = lines.next().into_iter().flatten().skip(1);
        let columns: Vec<_> = columns.map(str::to_owned).collect();
        let mut tests = BTreeMap::new();
        for mut line in lines {
            let name = line.next().unwrap_or_default();
            let cells = columns.iter().cloned().zip(line);
            let cells = cells.filter(|(_, cell)| !cell.is_empty());
            let cells: Option<_> = cells
                .map(|(column, cell)| Some((column, Cell::parse(cell)?)))
                .collect();
            let cells =
                cells.ok_or_else(|| format!("{}: malformed cell of {name}", path().display()))?;
            tests.insert(name.to_owned(), cells);
        }
        Ok(Self { columns, tests })
    }

    fn write(&self) -> String {
        let mut text = format!("test\t{}\n", self.columns.join("\t"));
        for (name, row) in &self.tests {
            text += name;
            for column in &self.columns {
                text.push('\t');
                text += &row.get(column).map(Cell::write).unwrap_or_default();
            }
            text.push('\n');
        }
        text
    }
}

impl Cell {
    fn parse(text: &str) -> Option<Self> {
        let (outcomes, reason) = text.split_once(": ").unwrap_or((text, ""));
        let (ours, reference) = outcomes.split_once('/')?;
        Some(Self {
            ours: ours.to_owned(),
            reference: reference.to_owned(),
            reason: reason.to_owned(),
        })
    }

    fn write(&self) -> String {
        let outcomes = format!("{}/{}", self.ours, self.reference);
        if self.reason.is_empty() {
            outcomes
        } else {
            format!("{outcomes}: {}", self.reason)
        }
    }
}

/// Returns whether the outcome needs no reason. An empty outcome means that the test has not run
/// yet.
fn needs_no_reason(outcome: &str) -> bool {
    matches!(outcome, "passed" | "failed" | "")
}

/// The reason why a test was not run; empty for a failed test, whose cause is not recorded.
fn reason(result: &TestResult) -> String {
    let reason = match &*result.outcome {
        "skipped" | "xfailed" | "excluded" => &*result.reason,
        _ => "",
    };
    let reason = reason.trim_start_matches("Skipped: ");
    reason.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sort key of a column: single workers, then mixed fleets, then higher concurrency, each with
/// Redis first.
fn rank(column: &str) -> (bool, bool, bool, String) {
    let redis = column.starts_with("redis");
    let name = column.to_owned();
    (column.contains('×'), column.contains("mixed"), !redis, name)
}

fn path() -> PathBuf {
    paths::workspace().join("docs/celery-suite.tsv")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(list: &[(&str, &str, &str)]) -> TestResults {
        let results = list.iter().map(|(name, outcome, reason)| {
            let (outcome, reason) = ((*outcome).to_owned(), (*reason).to_owned());
            ((*name).to_owned(), TestResult { outcome, reason })
        });
        results.collect()
    }

    #[test]
    fn update_replaces_one_column() {
        let mut table = Table::default();
        let all = results(&[("a", "passed", ""), ("b", "skipped", "Skipped: no\nserver")]);
        table.update("amqp/rpc", Some(&all), Some(&all));
        table.update("redis/redis", None, Some(&results(&[("a", "passed", "")])));
        let again = results(&[("a", "failed", "in call")]);
        table.update("redis/redis", Some(&again), None);
        let text = "test\tredis/redis\tamqp/rpc\n\
                    a\tfailed/passed\tpassed/passed\n\
                    b\t\tskipped/skipped: no server\n";
        assert_eq!(table.write(), text);
        assert_eq!(Table::parse(text).unwrap(), table);
    }

    #[test]
    fn update_removes_tests_that_no_longer_exist() {
        let mut table = Table::default();
        table.update("x", Some(&results(&[("a", "passed", "")])), None);
        table.update("x", Some(&results(&[("b", "passed", "")])), None);
        assert_eq!(table.write(), "test\tx\nb\tpassed/\n");
    }

    #[test]
    fn reason_is_kept_while_one_outcome_needs_it() {
        let mut table = Table::default();
        let one = |outcome: &str, reason: &str| results(&[("a", outcome, reason)]);
        let [skipped, passed] = [one("skipped", "no server"), one("passed", "")];
        table.update("x", Some(&skipped), Some(&skipped));
        table.update("x", Some(&passed), None);
        assert!(table.write().ends_with("a\tpassed/skipped: no server\n"));
        table.update("x", None, Some(&passed));
        assert!(table.write().ends_with("a\tpassed/passed\n"));
    }

    #[test]
    fn reference_is_read_back_from_its_column() {
        let mut table = Table::default();
        let all = results(&[("a", "passed", "")]);
        table.update("x", None, Some(&all));
        assert_eq!(table.reference("x").unwrap(), all);
        assert!(table.reference("y").is_err());
    }

    #[test]
    fn malformed_cell_is_an_error() {
        assert!(Table::parse("test\tx\na\tnonsense\n").is_err());
    }
}
