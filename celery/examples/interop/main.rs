//! A worker for Celery's own integration suite: it registers the tasks of the
//! suite under the same names.
//!
//!     cargo run --example interop -- --node interop@host \
//!         --broker redis://localhost --backend redis://localhost --concurrency 1
//!
//! Some tasks write to the Redis server of `REDIS_HOST` and `REDIS_PORT`.
//! `cargo xtask interop` starts the servers and runs the suite.

mod arithmetic;
mod errbacks;
mod failing;
mod nested;
mod plain;
mod redis_writes;
mod replacing;
mod request;
mod retrying;
mod workflows;

use std::sync::atomic::AtomicU32;

use celery::{Config, Tasks};
use tracing_subscriber::EnvFilter;

/// The Python module of the suite's tasks: the prefix of their names.
const MODULE: &str = "t.integration.tasks";

/// The state that tasks share.
struct State {
    /// The server to which tasks write.
    redis: redis::Client,
    /// The number of retries that the task `retry` has requested.
    attempts: AtomicU32,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    // lapin logs each message that RabbitMQ returns, with its arguments.
    let default = |_| EnvFilter::new("info,lapin=off");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(default);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    celery::exit(run_worker().await)
}

async fn run_worker() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::from_env()?.set("result_extended", true)?;
    let mut node = None;
    let mut concurrency = 1;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        match &*name {
            "--node" => node = Some(value),
            "--broker" => config = config.broker_url(value),
            "--backend" => config = config.result_backend(value),
            "--concurrency" => concurrency = value.parse()?,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    let app = celery::connect(config)?;
    let mut worker = app.worker(tasks(State::new()?)).concurrency(concurrency);
    if let Some(node) = node {
        worker = worker.hostname(node);
    }
    worker.run_until(celery::shutdown_signal()).await?;
    Ok(())
}

fn tasks(state: State) -> Tasks {
    let tasks = plain::add_to(Tasks::new());
    let tasks = errbacks::add_to(tasks);
    let tasks = failing::add_to(tasks);
    let tasks = nested::add_to(tasks);
    let tasks = replacing::add_to(tasks);
    let tasks = request::add_to(tasks);
    let tasks = retrying::add_to(tasks);
    let tasks = workflows::add_to(tasks);
    redis_writes::add_to(tasks).with_state(state)
}

impl State {
    fn new() -> redis::RedisResult<Self> {
        let variable =
            |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let (host, port) = (
            variable("REDIS_HOST", "localhost"),
            variable("REDIS_PORT", "6379"),
        );
        Ok(Self {
            redis: redis::Client::open(format!("redis://{host}:{port}/0"))?,
            attempts: AtomicU32::new(0),
        })
    }
}
