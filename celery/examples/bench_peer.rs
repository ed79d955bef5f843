//! The Rust side of the comparison with other task queues, run by
//! `cargo xtask bench --comparison`:
//!
//!     cargo run --release --example bench_peer -- publish redis://localhost 100000
//!     cargo run --release --example bench_peer -- consume redis://localhost 100000 256
//!
//! `publish` sends that many calls of a no-op task, a hundred per round trip, to
//! the queue `celery`. `consume` runs a worker until that many have run; the last
//! number is its concurrency. Both print one line, `{"n":100000,"secs":1.5}`; the
//! seconds of a consumer are those from the first task run to the last.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use celery::{App, Config, Task, TaskError, Tasks};
use tokio::sync::Notify;

/// The no-op task, also in xtask/python/bench_peer.py.
const NOOP: Task<(), ()> = Task::new("bench.noop").params(&[]).ignore_result();

/// Calls per round trip.
const BATCH: u64 = 100;

const USAGE: &str = "usage: bench_peer publish|consume URL TASKS [CONCURRENCY]";

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok((tasks, seconds)) => {
            println!("{{\"n\":{tasks},\"secs\":{seconds}}}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(u64, f64), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (verb, url, tasks, concurrency) = match arguments[..] {
        [verb, url, tasks] => (verb, url, tasks.parse()?, None),
        [verb, url, tasks, concurrency] => (verb, url, tasks.parse()?, Some(concurrency.parse()?)),
        _ => return Err(USAGE.into()),
    };
    let app = celery::connect(Config::new().broker_url(url))?;
    let seconds = match verb {
        "publish" => publish(&app, tasks).await?,
        "consume" => consume(&app, tasks, concurrency).await?,
        _ => return Err(USAGE.into()),
    };
    Ok((tasks, seconds))
}

async fn publish(app: &App, tasks: u64) -> Result<f64, Failure> {
    let client = app.client();
    let start = Instant::now();
    let mut sent = 0;
    while sent < tasks {
        let batch = BATCH.min(tasks - sent);
        for result in client.apply_all((0..batch).map(|_| NOOP.s(()))).await {
            result?;
        }
        sent += batch;
    }
    Ok(start.elapsed().as_secs_f64())
}

async fn consume(app: &App, tasks: u64, concurrency: Option<usize>) -> Result<f64, Failure> {
    let progress = Arc::new(Progress::new(tasks));
    let counted = Arc::clone(&progress);
    let handlers = Tasks::new().with(NOOP, move || noop(Arc::clone(&counted)));
    let last_ran = Arc::clone(&progress);
    let worker = app.worker(handlers);
    let worker = match concurrency {
        Some(tasks) => worker.concurrency(tasks),
        None => worker,
    };
    worker
        .run_until(async move { last_ran.finished.notified().await })
        .await?;
    progress.seconds().ok_or_else(|| "no task ran".into())
}

/// Counts the tasks that ran.
struct Progress {
    tasks: u64,
    ran: AtomicU64,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    finished: Notify,
}

impl Progress {
    fn new(tasks: u64) -> Self {
        Self {
            tasks,
            ran: AtomicU64::new(0),
            first: OnceLock::new(),
            last: OnceLock::new(),
            finished: Notify::new(),
        }
    }

    fn seconds(&self) -> Option<f64> {
        let last = self.last.get()?;
        Some(last.duration_since(*self.first.get()?).as_secs_f64())
    }
}

async fn noop(progress: Arc<Progress>) -> Result<(), TaskError> {
    progress.first.get_or_init(Instant::now);
    if progress.ran.fetch_add(1, Ordering::Relaxed) + 1 == progress.tasks {
        progress.last.get_or_init(Instant::now);
        progress.finished.notify_one();
    }
    Ok(())
}
