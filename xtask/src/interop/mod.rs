//! `cargo xtask interop`: runs Celery's own integration suite against our worker.
//!
//! Each test runs twice at the same time, with separate servers: with our worker and with Python's
//! worker as the reference. The results are recorded in `docs/`.
//!
//! - [`options`] parses the command line, [`suite`] downloads the tests, [`test_run`] runs them;
//! - [`comparison`] compares the results; [`table`] and [`page`] record them.

mod comparison;
mod options;
mod page;
mod suite;
mod table;
mod test_run;

use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use test_servers::{RabbitServer, RedisServer, paths};

use crate::setup::{rabbitmq_server, redis_server, virtual_environment};
use crate::shell::{Outcome, cargo, run as run_command, say};
use options::{Backend, Broker, Fleet, Implementations, Options, Scope};
use suite::Suite;
use table::Table;
use test_run::{TestResults, TestRun, merge};

/// The results of our worker and of the reference; `None` for one that has not run.
type ResultPair = (Option<TestResults>, Option<TestResults>);

/// Runs the selected tests, prints the comparison, and records the results of a complete run.
pub(crate) fn run(arguments: &[&str]) -> Outcome {
    let options = Options::parse(arguments)?;
    let column = options.column();
    if options.implementations == Implementations::Ours {
        // A missing reference is reported before the run instead of after it.
        Table::load()?.reference(&column)?;
    }
    let (python, suite) = prepare()?;
    let (ours, reference) = run_all(&python, &suite, &options)?;
    // Loaded after the run, because another run may have updated another column meanwhile.
    let mut table = Table::load()?;
    if options.scope == Scope::Whole {
        table.update(&column, ours.as_ref(), reference.as_ref());
        table.save()?;
        page::save(&table)?;
    }
    match (ours, reference) {
        (Some(ours), Some(reference)) => comparison::report(&ours, &reference),
        (Some(ours), None) => comparison::report(&ours, &table.reference(&column)?),
        (None, reference) => {
            let reference = reference.unwrap_or_default();
            println!("\n{}", comparison::summary("reference", &reference));
            Ok(())
        }
    }
}

/// Builds the worker, and provides a Python interpreter and the suite.
fn prepare() -> Result<(PathBuf, Suite), String> {
    say("building celery/examples/interop");
    let build = [
        "build",
        "--package",
        "celery",
        "--features",
        "full",
        "--example",
        "interop",
    ];
    run_command(cargo(&build).env("CARGO_TARGET_DIR", paths::target()))?;
    let requirements = ["requirements.txt", "interop/requirements.txt"];
    let python = virtual_environment("interop/venv", &requirements)?;
    let suite = Suite::find_or_download(&python)?;
    Ok((python, suite))
}

/// Runs the tests `--times` times and merges the results.
fn run_all(python: &Path, suite: &Suite, options: &Options) -> Result<ResultPair, String> {
    let mut ours = (options.implementations != Implementations::Reference).then(TestResults::new);
    let mut reference = (options.implementations != Implementations::Ours).then(TestResults::new);
    for repetition in 1..=options.repetitions {
        say(&format!(
            "{}, run {repetition} of {}",
            options.column(),
            options.repetitions
        ));
        let (our_run, reference_run) = run_once(python, suite, options)?;
        for (merged, run) in [(&mut ours, our_run), (&mut reference, reference_run)] {
            if let (Some(merged), Some(run)) = (merged, run) {
                merge(merged, run);
            }
        }
    }
    Ok((ours, reference))
}

/// Runs the selected implementations at the same time.
fn run_once(python: &Path, suite: &Suite, options: &Options) -> Result<ResultPair, String> {
    let servers = Servers::start(options)?;
    let ours = (options.implementations != Implementations::Reference)
        .then(|| servers.test_run("ours", options, python, 0));
    let reference = (options.implementations != Implementations::Ours)
        .then(|| servers.test_run("reference", options, python, 1));
    let run = |test_run: &Option<TestRun>| {
        let test_run = test_run.as_ref();
        test_run
            .map(|test_run| test_run.execute(python, suite, options))
            .transpose()
    };
    thread::scope(|scope| {
        let reference = scope.spawn(|| run(&reference));
        let ours = run(&ours);
        let reference = reference.join();
        let reference =
            reference.unwrap_or_else(|_| Err("the thread of the reference panicked".to_owned()));
        Ok((ours?, reference?))
    })
}

/// The servers of both test runs.
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

    fn test_run(
        &self,
        name: &'static str,
        options: &Options,
        python: &Path,
        number: usize,
    ) -> TestRun {
        let redis = &self.redis[number];
        let broker = match &self.rabbit {
            Some(rabbit) => rabbit.fresh_url(),
            None => redis.database_url(0),
        };
        let backend = match options.backend {
            Backend::Redis => redis.database_url(0),
            // The suite expects this name instead of a URL.
            Backend::Rpc => "rpc".to_owned(),
        };
        let tested = match name {
            "ours" => our_worker(&broker, &backend, options.concurrency),
            _ => python_worker(python, options.concurrency),
        };
        let mut workers = vec![tested];
        if options.fleet == Fleet::Mixed {
            workers.push(python_worker(python, options.concurrency));
        }
        TestRun {
            name,
            workers,
            broker,
            backend,
            redis_port: redis.port(),
        }
    }
}

/// The command line of our worker; the pytest plugin replaces `{node}`.
fn our_worker(broker: &str, backend: &str, concurrency: u32) -> Value {
    let program: PathBuf = paths::target().join("debug/examples/interop");
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

/// The command line of Python's worker; the pytest plugin replaces `{node}`.
fn python_worker(python: &Path, concurrency: u32) -> Value {
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
