//! `cargo xtask bench --peers`: the way of a no-op task over Redis, beside Python Celery.
//!
//! Both sides publish into a private Redis server and then consume what they published, one after
//! the other on an otherwise idle machine, in one run. Neither has a result backend.

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

/// Tasks that Python gets when nothing is said.
pub(crate) const TASKS: u64 = 20_000;

/// Ours gets so many times more: it would be done before a clock could tell much.
const OURS_TIMES: u64 = 10;

/// How long a queue may take to become empty.
const CONSUME_LIMIT: Duration = Duration::from_secs(900);

/// Python: prefork with two children, and these prefetch multipliers.
const PREFETCH: [u32; 2] = [4, 128];

/// Ours: this many tasks at once.
const CONCURRENCY: [u32; 2] = [2, 256];

/// Runs all and returns the table.
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
    let python = Peer::new(&redis, tasks);
    for prefetch in PREFETCH {
        table.publish.push(python.publish_python(programs)?);
        table
            .consume
            .push(python.consume_python(programs, prefetch)?);
    }
    let ours = Peer::new(&redis, tasks * OURS_TIMES);
    for concurrency in CONCURRENCY {
        table.publish.push(ours.publish_ours()?);
        table.consume.push(ours.consume_ours(concurrency)?);
    }
    Ok(table.text())
}

/// What one side did in how long.
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
    /// Ratios are to Python's best of the same kind, which comes first.
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

/// One side's run against the server.
#[derive(Debug)]
struct Peer<'r> {
    redis: &'r RedisServer,
    url: String,
    tasks: u64,
}

impl<'r> Peer<'r> {
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

    fn publish_ours(&self) -> Result<Row, String> {
        self.publish("Rust: publish", &mut self.ours("publish"))
    }

    /// Publishes into an empty server and makes sure that all has arrived.
    fn publish(&self, what: &str, command: &mut Command) -> Result<Row, String> {
        self.redis.command(&["FLUSHALL"]);
        let row = self.reported(what, command)?;
        let waiting = self.length("LLEN", "celery");
        if waiting != self.tasks {
            return Err(format!(
                "{what}: the queue has {waiting} tasks, not {}",
                self.tasks
            ));
        }
        Ok(row)
    }

    /// Runs our worker, which counts the tasks that it has run and ends after the last one.
    fn consume_ours(&self, concurrency: u32) -> Result<Row, String> {
        let what = format!("Rust: consume, {concurrency} at once");
        let mut command = self.ours("consume");
        self.reported(&what, command.arg(concurrency.to_string()))
    }

    /// Runs Python's worker and watches the queue: the clock starts when the first task leaves
    /// it and stops when none is there and none is unacknowledged.
    fn consume_python(&self, programs: &Programs, prefetch: u32) -> Result<Row, String> {
        let what = format!("Python: consume, prefork 2, prefetch multiplier {prefetch}");
        say(&what);
        let worker = Python::at(&programs.python)
            .worker(&self.url, "")
            .app(scripts(), "bench_peer")
            .concurrency(2)
            .argument(format!("--prefetch-multiplier={prefetch}"))
            .argument("--loglevel=WARNING");
        // Its log is silent, so that logging does not count: the queue tells when it begins.
        let worker = worker.start_unready();
        let limit = Instant::now() + CONSUME_LIMIT;
        let mut start = Instant::now();
        loop {
            let now = Instant::now();
            let waiting = self.length("LLEN", "celery");
            if waiting == self.tasks {
                start = now;
            } else if waiting == 0 && self.length("HLEN", "unacked") == 0 {
                break;
            }
            if now > limit {
                return Err(format!(
                    "{what}: {waiting} tasks are left\n{}",
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

    fn ours(&self, verb: &str) -> Command {
        let mut command = Command::new(paths::target().join("release/examples/bench_peer"));
        command.args([verb, &self.url, &self.tasks.to_string()]);
        command
    }

    /// Runs a program that says in one line of JSON how many tasks took how long.
    fn reported(&self, what: &str, command: &mut Command) -> Result<Row, String> {
        say(what);
        let text = output(command)?;
        report(&text)
            .map(|(tasks, seconds)| Row {
                what: what.to_owned(),
                tasks,
                seconds,
            })
            .ok_or_else(|| format!("{what}: no figures in {text:?}"))
    }

    fn length(&self, command: &str, key: &str) -> u64 {
        let length = self.redis.command(&[command, key]).integer();
        u64::try_from(length).unwrap_or_default()
    }
}

fn scripts() -> PathBuf {
    paths::workspace().join("xtask/python")
}

/// The figures of the last line that has any: `{"n": 1000, "secs": 1.5}`.
fn report(text: &str) -> Option<(u64, f64)> {
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
    fn ratios_are_to_the_best_of_python() {
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
    fn figures_are_found_after_other_output() {
        assert_eq!(report("hello\n{\"n\": 3, \"secs\": 0.5}\n"), Some((3, 0.5)));
        assert_eq!(report("{\"n\": 3}\n"), None);
    }
}
