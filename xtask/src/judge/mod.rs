//! `cargo xtask judge`: Celery's own integration suite as a judge of our worker.
//!
//! The same tests run twice at the same time, each time with servers of their own: with our
//! worker, and with Python's as the reference. What came of them is kept in `docs/`.
//!
//! - [`options`] says what is asked for, [`suite`] has the tests, [`side`] runs them;
//! - [`verdict`] compares; [`table`] and [`page`] are the record.

mod options;
mod page;
mod side;
mod suite;
mod table;
mod verdict;

use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use test_servers::{RabbitServer, RedisServer, paths};

use crate::setup::{rabbitmq_server, redis_server, virtual_environment};
use crate::shell::{Outcome, cargo, run as run_command, say};
use options::{Backend, Broker, Fleet, Options, Scope, Sides};
use side::{Results, Side, merge};
use suite::Suite;
use table::Table;

/// What came of the tests, for each side that has run.
type Outcomes = (Option<Results>, Option<Results>);

/// Runs the tests that are asked for, prints what came of them, and records it if all were.
pub(crate) fn run(words: &[&str]) -> Outcome {
    let options = Options::read(words)?;
    let column = options.column();
    if options.sides == Sides::Ours {
        // Said now rather than after the run.
        Table::load()?.reference(&column)?;
    }
    let (python, suite) = prepare()?;
    let (ours, reference) = run_all(&python, &suite, &options)?;
    // Not read before: another run may have filled another column meanwhile.
    let mut table = Table::load()?;
    if options.scope == Scope::Whole {
        table.update(&column, ours.as_ref(), reference.as_ref());
        table.save()?;
        page::save(&table)?;
    }
    match (ours, reference) {
        (Some(ours), Some(reference)) => verdict::pronounce(&ours, &reference),
        (Some(ours), None) => verdict::pronounce(&ours, &table.reference(&column)?),
        (None, reference) => {
            let reference = reference.unwrap_or_default();
            println!("\n{}", verdict::summary("reference", &reference));
            Ok(())
        }
    }
}

/// The worker, an interpreter for the suite, and the suite.
fn prepare() -> Result<(PathBuf, Suite), String> {
    say("building celery/examples/judge");
    let build = [
        "build",
        "--package",
        "celery",
        "--features",
        "full",
        "--example",
        "judge",
    ];
    run_command(cargo(&build).env("CARGO_TARGET_DIR", paths::target()))?;
    let requirements = ["requirements.txt", "judge/requirements.txt"];
    let python = virtual_environment("judge/venv", &requirements)?;
    let suite = Suite::find_or_download(&python)?;
    Ok((python, suite))
}

/// Runs the tests as often as is asked for.
fn run_all(python: &Path, suite: &Suite, options: &Options) -> Result<Outcomes, String> {
    let mut ours = (options.sides != Sides::Reference).then(Results::new);
    let mut reference = (options.sides != Sides::Ours).then(Results::new);
    for time in 1..=options.times {
        say(&format!(
            "{}, time {time} of {}",
            options.column(),
            options.times
        ));
        let (first, second) = run_once(python, suite, options)?;
        for (all, again) in [(&mut ours, first), (&mut reference, second)] {
            if let (Some(all), Some(again)) = (all, again) {
                merge(all, again);
            }
        }
    }
    Ok((ours, reference))
}

/// Runs each side that is asked for, at the same time.
fn run_once(python: &Path, suite: &Suite, options: &Options) -> Result<Outcomes, String> {
    let servers = Servers::start(options)?;
    let ours =
        (options.sides != Sides::Reference).then(|| servers.side("ours", options, python, 0));
    let reference =
        (options.sides != Sides::Ours).then(|| servers.side("reference", options, python, 1));
    let run = |side: &Option<Side>| {
        let side = side.as_ref();
        side.map(|side| side.run(python, suite, options))
            .transpose()
    };
    thread::scope(|scope| {
        let reference = scope.spawn(|| run(&reference));
        let ours = run(&ours);
        let reference = reference.join();
        let reference = reference.unwrap_or_else(|_| Err("the reference panicked".to_owned()));
        Ok((ours?, reference?))
    })
}

/// The servers of both sides.
struct Servers {
    redis: [RedisServer; 2],
    rabbit: Option<RabbitServer>,
}

impl Servers {
    fn start(options: &Options) -> Result<Self, String> {
        let program = redis_server()?;
        let redis = || RedisServer::builder().program(&program).start();
        let rabbit = match options.broker {
            Broker::Redis => None,
            Broker::Amqp => {
                rabbitmq_server()?;
                Some(RabbitServer::start())
            }
        };
        Ok(Self {
            redis: [redis(), redis()],
            rabbit,
        })
    }

    fn side(&self, name: &'static str, options: &Options, python: &Path, number: usize) -> Side {
        let redis = &self.redis[number];
        let broker = match &self.rabbit {
            Some(rabbit) => rabbit.fresh_url(),
            None => redis.database_url(0),
        };
        let backend = match options.backend {
            Backend::Redis => redis.database_url(0),
            // The suite knows it by this word.
            Backend::Rpc => "rpc".to_owned(),
        };
        let judged = match name {
            "ours" => our_worker(&broker, &backend, options.concurrency),
            _ => pythons_worker(python, options.concurrency),
        };
        let mut workers = vec![judged];
        if options.fleet == Fleet::Mixed {
            workers.push(pythons_worker(python, options.concurrency));
        }
        Side {
            name,
            workers,
            broker,
            backend,
            marks: redis.port(),
        }
    }
}

/// The command line of our worker; `{node}` is filled in by the plugin.
fn our_worker(broker: &str, backend: &str, concurrency: u32) -> Value {
    let program: PathBuf = paths::target().join("debug/examples/judge");
    let backend = match backend {
        "rpc" => "rpc://",
        url => url,
    };
    json!([
        program,
        "--node",
        "{node}",
        "--broker",
        broker,
        "--backend",
        backend,
        "--concurrency",
        concurrency.to_string(),
    ])
}

fn pythons_worker(python: &Path, concurrency: u32) -> Value {
    json!([
        python,
        "-m",
        "celery",
        "-A",
        "reference",
        "worker",
        "--hostname",
        "{node}",
        "--concurrency",
        concurrency.to_string(),
        "--task-events",
        "--loglevel",
        "INFO",
        "--without-gossip",
        "--without-mingle",
    ])
}
