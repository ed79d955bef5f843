//! What came of each test with each combination of servers and workers: `docs/celery-suite.tsv`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use test_servers::paths;

use super::side::{Result as TestResult, Results};

/// The record of all runs; each run of all tests replaces its column.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    /// By test, then by column.
    pub(super) tests: BTreeMap<String, BTreeMap<String, Cell>>,
}

/// What came of a test with our worker and with Python's, as one word each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) ours: String,
    pub(super) reference: String,
    /// Why it was not run, if it was not.
    pub(super) why: String,
}

impl Table {
    /// Reads the file; without one the table is empty.
    pub(super) fn load() -> Result<Self, String> {
        match fs::read_to_string(path()) {
            Ok(text) => Self::read(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("cannot read {}: {error}", path().display())),
        }
    }

    pub(super) fn save(&self) -> Result<(), String> {
        let path = path();
        let folder = path.parent().expect("it is in a folder");
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, self.write()))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Replaces what is said about the sides that were run.
    pub(super) fn update(
        &mut self,
        column: &str,
        ours: Option<&Results>,
        reference: Option<&Results>,
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
            .flat_map(Results::keys);
        for name in names {
            let old = before.remove(name).flatten().unwrap_or_default();
            let row = self.tests.entry(name.clone()).or_default();
            let cell = row.entry(column.to_owned()).or_insert(old);
            let [own, other] = [ours, reference].map(|side| side.and_then(|all| all.get(name)));
            if let Some(result) = own {
                cell.ours.clone_from(&result.outcome);
            }
            if let Some(result) = other {
                cell.reference.clone_from(&result.outcome);
            }
            let reasons = [own, other].into_iter().flatten().map(reason);
            if let Some(why) = reasons.into_iter().find(|why| !why.is_empty()) {
                cell.why = why;
            } else if [&cell.ours, &cell.reference]
                .iter()
                .all(|word| was_run(word))
            {
                cell.why.clear();
            }
        }
        self.tests.retain(|_, row| !row.is_empty());
    }

    /// What the reference has done in an earlier run.
    pub(super) fn reference(&self, column: &str) -> Result<Results, String> {
        if !self.columns.iter().any(|name| name == column) {
            return Err(format!("{} has no column {column}", path().display()));
        }
        let cells = self.tests.iter().filter_map(|(name, row)| {
            let cell = row.get(column).filter(|cell| !cell.reference.is_empty())?;
            let (outcome, why) = (cell.reference.clone(), cell.why.clone());
            Some((name.clone(), TestResult { outcome, why }))
        });
        Ok(cells.collect())
    }

    fn read(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(|line| line.split('\t'));
        let columns = lines.next().into_iter().flatten().skip(1);
        let columns: Vec<_> = columns.map(str::to_owned).collect();
        let mut tests = BTreeMap::new();
        for mut line in lines {
            let name = line.next().unwrap_or_default();
            let cells = columns.iter().cloned().zip(line);
            let cells = cells.filter(|(_, cell)| !cell.is_empty());
            let cells: Option<_> = cells
                .map(|(column, cell)| Some((column, Cell::read(cell)?)))
                .collect();
            let cells = cells.ok_or_else(|| format!("cannot read what is said about {name}"))?;
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
    fn read(text: &str) -> Option<Self> {
        let (words, why) = text.split_once(": ").unwrap_or((text, ""));
        let (ours, reference) = words.split_once('/')?;
        Some(Self {
            ours: ours.to_owned(),
            reference: reference.to_owned(),
            why: why.to_owned(),
        })
    }

    fn write(&self) -> String {
        let words = format!("{}/{}", self.ours, self.reference);
        match self.why.is_empty() {
            true => words,
            false => format!("{words}: {}", self.why),
        }
    }
}

/// Whether there is no reason to ask for. Nothing is known about a side without a word.
fn was_run(outcome: &str) -> bool {
    matches!(outcome, "passed" | "failed" | "")
}

/// The reason for which a test was not run. What went wrong in one that failed is nothing to
/// keep.
fn reason(result: &TestResult) -> String {
    let why = match &*result.outcome {
        "skipped" | "xfailed" | "left out" => &*result.why,
        _ => "",
    };
    let why = why.trim_start_matches("Skipped: ");
    why.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A worker alone first, then fleets, then those with several tasks at once; Redis before the
/// others.
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

    fn results(list: &[(&str, &str, &str)]) -> Results {
        let results = list.iter().map(|(name, outcome, why)| {
            let (outcome, why) = ((*outcome).to_owned(), (*why).to_owned());
            ((*name).to_owned(), TestResult { outcome, why })
        });
        results.collect()
    }

    #[test]
    fn a_run_replaces_its_own_column() {
        let mut table = Table::default();
        let all = results(&[("a", "passed", ""), ("b", "skipped", "Skipped: no\nmoon")]);
        table.update("amqp/rpc", Some(&all), Some(&all));
        table.update("redis/redis", None, Some(&results(&[("a", "passed", "")])));
        let again = results(&[("a", "failed", "in call")]);
        table.update("redis/redis", Some(&again), None);
        let text = "test\tredis/redis\tamqp/rpc\n\
                    a\tfailed/passed\tpassed/passed\n\
                    b\t\tskipped/skipped: no moon\n";
        assert_eq!(table.write(), text);
        assert_eq!(Table::read(text).unwrap(), table);
    }

    #[test]
    fn a_test_that_is_gone_is_gone_from_the_column() {
        let mut table = Table::default();
        table.update("x", Some(&results(&[("a", "passed", "")])), None);
        table.update("x", Some(&results(&[("b", "passed", "")])), None);
        assert_eq!(table.write(), "test\tx\nb\tpassed/\n");
    }

    #[test]
    fn a_reason_stays_as_long_as_one_side_has_it() {
        let mut table = Table::default();
        let one = |outcome: &str, why: &str| results(&[("a", outcome, why)]);
        let [skipped, passed] = [one("skipped", "no moon"), one("passed", "")];
        table.update("x", Some(&skipped), Some(&skipped));
        table.update("x", Some(&passed), None);
        assert!(table.write().ends_with("a\tpassed/skipped: no moon\n"));
        table.update("x", None, Some(&passed));
        assert!(table.write().ends_with("a\tpassed/passed\n"));
    }

    #[test]
    fn the_reference_is_remembered() {
        let mut table = Table::default();
        let all = results(&[("a", "passed", "")]);
        table.update("x", None, Some(&all));
        assert_eq!(table.reference("x").unwrap(), all);
        assert!(table.reference("y").is_err());
    }

    #[test]
    fn what_is_no_table_is_told() {
        assert!(Table::read("test\tx\na\tnonsense\n").is_err());
    }
}
