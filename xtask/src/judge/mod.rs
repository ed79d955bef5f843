//! `cargo xtask judge`: Celery's own integration suite as a judge of our worker.
//!
//! The same tests run twice at the same time, each time with servers of their own: with our
//! worker, and with Python's as the reference.

mod options;
mod side;
mod suite;
mod verdict;

use std::path::PathBuf;
use std::thread;

use serde_json::json;
use xtask::paths;
use xtask::servers::{RabbitServer, RedisServer};

use crate::setup::{rabbitmq_server, redis_server, virtual_environment};
use crate::shell::{Outcome, cargo, run as run_command, say};
use options::{Backend, Broker, Options};
use side::Side;
use suite::Suite;

/// Runs the tests that are asked for and prints what came of them.
pub(crate) fn run(words: &[&str]) -> Outcome {
    let options = Options::read(words)?;
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
    let servers = Servers::start(&options)?;

    say("running each test with our worker and with Python's");
    let ours = servers.side("ours", our_worker, &options, 0);
    let reference = servers.side("reference", |_, _| pythons_worker(&python), &options, 1);
    let (ours, reference) = thread::scope(|scope| {
        let reference = scope.spawn(|| reference.run(&python, &suite, &options.pytest));
        let ours = ours.run(&python, &suite, &options.pytest);
        let reference = reference.join();
        (
            ours,
            reference.unwrap_or_else(|_| Err("the reference panicked".to_owned())),
        )
    });
    verdict::pronounce(&ours?, &reference?)
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

    fn side(
        &self,
        name: &'static str,
        worker: impl FnOnce(&str, &str) -> serde_json::Value,
        options: &Options,
        number: usize,
    ) -> Side {
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
        Side {
            name,
            worker: worker(&broker, &backend),
            broker,
            backend,
            marks: redis.port(),
        }
    }
}

/// The command line of our worker; `{node}` is filled in by the plugin.
fn our_worker(broker: &str, backend: &str) -> serde_json::Value {
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
        "1",
    ])
}

fn pythons_worker(python: &std::path::Path) -> serde_json::Value {
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
        "1",
        "--task-events",
        "--loglevel",
        "INFO",
        "--without-gossip",
        "--without-mingle",
    ])
}
