//! `cargo xtask bench --comparison`: throughput of no-op tasks over Redis, compared with Python
//! Celery.
//!
//! Both implementations publish to a private Redis server and then consume the same tasks, one
//! after the other in one run. Neither has a result backend.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_servers::{Python, RedisServer, paths};

use crate::bench::thousands;
use crate::setup::Programs;
use crate::shell::{cargo, output, run as run_command, say};

/// The default number of tasks for Python.
pub(crate) const DEFAULT_TASKS: u64 = 20_000;

/// The number of tasks for Rust, as a multiple of Python's: with fewer tasks the measured time
/// would be too short.
const RUST_FACTOR: u64 = 10;

/// The time limit for consuming all tasks.
const CONSUME_TIMEOUT: Duration = Duration::from_secs(900);

/// The prefetch multipliers of Python's worker, which has two prefork children.
const PREFETCH_MULTIPLIERS: [u32; 2] = [4, 128];

/// The concurrency of our worker.
const CONCURRENCIES: [u32; 2] = [2, 256];

/// Runs all measurements and returns the table.
pub(crate) fn run(programs: &Programs, tasks: u64) -> Result<String, String> {
    say("building celery/examples/bench_peer.rs");
    let build = [
        "build",
        "--release",
        "--package",
        "celery",
        "--example",
        "bench_peer",
    ];
    run_command(cargo(&build).env("CARGO_TARGET_DIR", paths::target()))?;

    let redis = RedisServer::builder()
        .program(&programs.redis_server)
        .start();
    let mut table = Table::default();
    let python = Measurement::new(&redis, tasks);
    for prefetch in PREFETCH_MULTIPLIERS {
        table.publish.push(python.publish_python(programs)?);
        table
            .consume
            .push(python.consume_python(programs, prefetch)?);
    }
    let rust = Measurement::new(&redis, tasks * RUST_FACTOR);
    for concurrency in CONCURRENCIES {
        table.publish.push(rust.publish_rust()?);
        table.consume.push(rust.consume_rust(concurrency)?);
    }
    Ok(table.text())
}

/// The number of tasks processed and the time taken.
#[derive(Debug, Clone)]
struct Row {
    what: String,
    tasks: u64,
    seconds: f64,
}

impl Row {
    fn rate(&self) -> f64 {
        self.tasks as f64 / self.seconds
    }
}

#[derive(Debug, Default)]
struct Table {
    publish: Vec<Row>,
    consume: Vec<Row>,
}

impl Table {
    /// Formats the table. Ratios are relative to the best Python row of the same group.
    fn text(&self) -> String {
        let mut text = "| what | tasks | seconds | tasks per second | ratio |\n".to_owned();
        text.push_str("|---|---:|---:|---:|---:|\n");
        for rows in [&self.publish, &self.consume] {
            let python = rows.iter().filter(|row| row.what.starts_with("Python"));
            let best = python.map(Row::rate).fold(f64::MIN_POSITIVE, f64::max);
            for row in rows {
                let (rate, ratio) = (thousands(row.rate()), row.rate() / best);
                let tasks = thousands(row.tasks as f64);
                let (what, seconds) = (&row.what, row.seconds);
                let line = writeln!(
                    text,
                    "| {what} | {tasks} | {seconds:.2} | {rate} | {ratio:.2} |"
                );
                line.expect("writing to a string does not fail");
            }
        }
        text
    }
}

/// The measurements with one number of tasks against one server.
#[derive(Debug)]
struct Measurement<'r> {
    redis: &'r RedisServer,
    url: String,
    tasks: u64,
}

impl<'r> Measurement<'r> {
    fn new(redis: &'r RedisServer, tasks: u64) -> Self {
        let url = redis.database_url(0);
        Self { redis, url, tasks }
    }

    fn publish_python(&self, programs: &Programs) -> Result<Row, String> {
        let mut command = Command::new(&programs.python);
        command
            .arg(scripts().join("bench_peer.py"))
            .args(["publish", &self.tasks.to_string()])
            .env("CELERY_BROKER_URL", &self.url);
        self.publish("Python: publish", &mut command)
    }

    fn publish_rust(&self) -> Result<Row, String> {
        self.publish("Rust: publish", &mut self.rust_program("publish"))
    }

    /// Publishes to an empty server and checks the length of the queue afterwards.
    fn publish(&self, what: &str, command: &mut Command) -> Result<Row, String> {
        self.redis.command(&["FLUSHALL"]);
        let row = self.measure(what, command)?;
        let waiting = self.length("LLEN", "celery");
        if waiting != self.tasks {
            return Err(format!(
                "{what}: the queue has {waiting} tasks instead of {}",
                self.tasks
            ));
        }
        Ok(row)
    }

    /// Runs our worker, which exits after the last task.
    fn consume_rust(&self, concurrency: u32) -> Result<Row, String> {
        let what = format!("Rust: consume, {concurrency} at once");
        let mut command = self.rust_program("consume");
        self.measure(&what, command.arg(concurrency.to_string()))
    }

    /// Runs Python's worker and polls the queue: the time starts when the first task leaves the
    /// queue and stops when neither queued nor unacknowledged tasks remain.
    fn consume_python(&self, programs: &Programs, prefetch: u32) -> Result<Row, String> {
        let what = format!("Python: consume, prefork 2, prefetch multiplier {prefetch}");
        say(&what);
        let worker = Python::at(&programs.python)
            .worker(&self.url, "")
            .app(scripts(), "bench_peer")
            .concurrency(2)
            .argument(format!("--prefetch-multiplier={prefetch}"))
            .argument("--loglevel=WARNING");
        // Logging is off, so that it does not cost time; the queue shows when the worker starts.
        let worker = worker.start_unready();
        let deadline = Instant::now() + CONSUME_TIMEOUT;
        let mut start = Instant::now();
        loop {
            let now = Instant::now();
            let waiting = self.length("LLEN", "celery");
            if waiting == self.tasks {
                start = now;
            } else if waiting == 0 && self.length("HLEN", "unacked") == 0 {
                break;
            }
            if now > deadline {
                return Err(format!(
                    "{what}: {waiting} tasks remain after {} s\n{}",
                    CONSUME_TIMEOUT.as_secs(),
                    worker.log()
                ));
            }
            thread::sleep(Duration::from_millis(10));
        }
        worker.kill();
        Ok(Row {
            what,
            tasks: self.tasks,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn rust_program(&self, verb: &str) -> Command {
        let mut command = Command::new(paths::target().join("release/examples/bench_peer"));
        command.args([verb, &self.url, &self.tasks.to_string()]);
        command
    }

    /// Runs a program that prints the number of tasks and the seconds as a line of JSON.
    fn measure(&self, what: &str, command: &mut Command) -> Result<Row, String> {
        say(what);
        let text = output(command)?;
        parse_figures(&text)
            .map(|(tasks, seconds)| Row {
                what: what.to_owned(),
                tasks,
                seconds,
            })
            .ok_or_else(|| format!("{what}: no figures in the output {text:?}"))
    }

    fn length(&self, command: &str, key: &str) -> u64 {
        let length = self.redis.command(&[command, key]).integer();
        u64::try_from(length).unwrap_or_default()
    }
}

fn scripts() -> PathBuf {
    paths::workspace().join("xtask/python")
}

/// Returns the figures of the last line that has any: `{"n": 1000, "secs": 1.5}`.
fn parse_figures(text: &str) -> Option<(u64, f64)> {
    text.lines().rev().find_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((value["n"].as_u64()?, value["secs"].as_f64()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, tasks: u64) -> Row {
        let what = what.to_owned();
        Row {
            what,
            tasks,
            seconds: 2.0,
        }
    }

    #[test]
    fn ratios_are_relative_to_the_best_python_row() {
        let table = Table {
            publish: vec![row("Python: publish", 1000), row("Rust: publish", 30_000)],
            consume: vec![
                row("Python: a", 500),
                row("Python: b", 1000),
                row("Rust: c", 4000),
            ],
        };
        let text = table.text();
        let ratios: Vec<&str> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split('|').nth(5).map(str::trim))
            .collect();
        assert_eq!(ratios, ["1.00", "30.00", "0.50", "1.00", "4.00"]);
        assert!(
            text.contains("| Rust: publish | 30,000 | 2.00 | 15,000 | 30.00 |"),
            "{text}"
        );
    }

    #[test]
    fn figures_are_parsed_after_other_output() {
        assert_eq!(
            parse_figures("hello\n{\"n\": 3, \"secs\": 0.5}\n"),
            Some((3, 0.5))
        );
        assert_eq!(parse_figures("{\"n\": 3}\n"), None);
    }
}
