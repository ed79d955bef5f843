//! `cargo xtask bench`: runs the benchmarks and writes their figures to BENCHMARKS.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::Value;
use test_servers::paths;

use crate::comparison;
use crate::setup::Programs;
use crate::shell::{Outcome, cargo, output, run as run_command, say};
use crate::test::commit;

/// The page of the figures.
const PAGE: &str = "BENCHMARKS.md";

/// The beginning of a new page.
const NEW_PAGE: &str = "\
# Benchmarks

Written by `cargo xtask bench`, without options and with `--groups`, `--rabbitmq` and
`--comparison`. Figures of different machines are not comparable; all figures of a section are from
one run.
";

/// Runs the selected benchmarks and writes their section of the page.
pub(crate) fn run(options: &[&str]) -> Outcome {
    match *options {
        [] => micro(),
        ["--groups"] => groups(),
        ["--rabbitmq"] => rabbitmq(),
        ["--comparison" | "--peers"] => comparison(comparison::DEFAULT_TASKS),
        ["--comparison" | "--peers", "--tasks", number] => {
            let number = number.parse();
            comparison(number.map_err(|_| "--tasks takes a number of tasks")?)
        }
        _ => Err(format!(
            "cargo xtask bench has no options {}; see cargo xtask help",
            options.join(" ")
        )),
    }
}

fn micro() -> Outcome {
    let results = paths::target().join("criterion");
    // Removes the figures of an earlier run.
    let _ = fs::remove_dir_all(&results);
    let mut bench = cargo(&["bench", "--package", "benches"]);
    for name in ["codec", "dispatch", "throughput"] {
        bench.args(["--bench", name]);
    }
    run_command(bench.env("CARGO_TARGET_DIR", paths::target()))?;

    let mut figures = Vec::new();
    collect(&results, &mut figures)?;
    figures.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = "| benchmark | median | mean | per second |\n|---|---:|---:|---:|\n".to_owned();
    for figure in &figures {
        table.push_str(&figure.row());
    }
    write_section("cargo xtask bench", "Codec and dispatch", &table)
}

fn groups() -> Outcome {
    tables("groups", "Groups compared with plain tasks over Redis")
}

fn rabbitmq() -> Outcome {
    tables(
        "rabbitmq",
        "Comparison with plain lapin and aio-celery over RabbitMQ",
    )
}

/// Runs a benchmark that prints its own tables.
fn tables(name: &str, title: &str) -> Outcome {
    let programs = Programs::find_or_install()?;
    let mut bench = cargo(&["bench", "--package", "benches", "--bench", name]);
    let tables = output(bench.envs(programs.environment()))?;
    println!("{tables}");
    write_section(&format!("cargo xtask bench --{name}"), title, &tables)
}

fn comparison(tasks: u64) -> Outcome {
    let programs = Programs::find_or_install()?;
    let table = comparison::run(&programs, tasks)?;
    println!("{table}");
    write_section(
        "cargo xtask bench --comparison",
        "Comparison with Python Celery over Redis",
        &table,
    )
}

/// One benchmark's estimates, in nanoseconds.
#[derive(Debug, PartialEq)]
struct Figure {
    name: String,
    median: f64,
    mean: f64,
    /// The number of elements that one iteration processes, if the benchmark declares it.
    elements: Option<f64>,
}

impl Figure {
    fn row(&self) -> String {
        let rate = 1e9 / self.median * self.elements.unwrap_or(1.0);
        format!(
            "| {} | {} | {} | {} |\n",
            self.name,
            nanoseconds(self.median),
            nanoseconds(self.mean),
            thousands(rate)
        )
    }

    /// Reads `estimates.json` and `benchmark.json` as criterion writes them.
    fn read(estimates: &Value, benchmark: &Value) -> Option<Self> {
        Some(Self {
            name: benchmark["full_id"].as_str()?.to_owned(),
            median: estimates["median"]["point_estimate"].as_f64()?,
            mean: estimates["mean"]["point_estimate"].as_f64()?,
            elements: benchmark["throughput"]["Elements"].as_f64(),
        })
    }
}

/// Collects the results from the folders named `new` below a folder.
fn collect(folder: &Path, figures: &mut Vec<Figure>) -> Outcome {
    let entries = fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let folders = entries.flatten().map(|entry| entry.path());
    for path in folders.filter(|path| path.is_dir()) {
        if path.ends_with("new") {
            let json = |name: &str| read_json(&path.join(name));
            let figure = Figure::read(&json("estimates.json")?, &json("benchmark.json")?);
            figures.push(figure.ok_or_else(|| format!("no estimates in {}", path.display()))?);
        } else {
            collect(&path, figures)?;
        }
    }
    Ok(())
}

fn read_json(path: &PathBuf) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Replaces one section of the page.
fn write_section(command: &str, title: &str, body: &str) -> Outcome {
    let path = paths::workspace().join(PAGE);
    let page = fs::read_to_string(&path).unwrap_or_else(|_| NEW_PAGE.to_owned());
    let body = format!("`{command}`, commit {}, {}.\n\n{body}", commit(), machine());
    fs::write(&path, with_section(&page, title, &body))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    say(&format!("updated section {title:?} of {}", path.display()));
    Ok(())
}

fn with_section(page: &str, title: &str, body: &str) -> String {
    let heading = format!("\n## {title}\n");
    let (before, after) = match page.split_once(&heading) {
        Some((before, rest)) => {
            let next = rest.find("\n## ").unwrap_or(rest.len());
            (before, &rest[next..])
        }
        None => (page, ""),
    };
    format!(
        "{}\n{heading}\n{}\n{after}",
        before.trim_end(),
        body.trim_end()
    )
}

/// Processor, cores, system and compiler, in one line.
fn machine() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or(std::env::consts::ARCH, |(_, name)| name);
    let compiler = output(Command::new("rustc").arg("--version")).unwrap_or_default();
    format!(
        "{processor}, {cores} cores, {}, {}",
        std::env::consts::OS,
        compiler.trim()
    )
}

fn nanoseconds(time: f64) -> String {
    match time {
        ..1e3 => format!("{time:.1} ns"),
        ..1e6 => format!("{:.2} µs", time / 1e3),
        ..1e9 => format!("{:.2} ms", time / 1e6),
        _ => format!("{:.2} s", time / 1e9),
    }
}

/// Formats a number without decimals, with its digits in groups of three.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_formatted_as_a_row() {
        let estimates = serde_json::json!({
            "mean": {"point_estimate": 1234.5}, "median": {"point_estimate": 500.0},
        });
        let benchmark = serde_json::json!({"full_id": "encode/v2", "throughput": {"Elements": 2}});
        let figure = Figure::read(&estimates, &benchmark).unwrap();
        assert_eq!(
            figure.row(),
            "| encode/v2 | 500.0 ns | 1.23 µs | 4,000,000 |\n"
        );
        assert_eq!(Figure::read(&estimates, &Value::Null), None);
    }

    #[test]
    fn section_is_added_or_replaced_and_others_are_kept() {
        let page = with_section("# Page\n", "One", "first");
        assert_eq!(page, "# Page\n\n## One\n\nfirst\n");
        let page = with_section(&page, "Two", "second\n");
        let page = with_section(&page, "One", "new");
        assert_eq!(page, "# Page\n\n## One\n\nnew\n\n## Two\n\nsecond\n");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        let numbers = [0.4, 999.0, 1000.0, 1_234_567.0];
        assert_eq!(numbers.map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
