//! A worker for the examples' tasks:
//!
//!     cargo run --example worker -- redis://localhost redis://localhost/1
//!
//! Broker and result backend come from the command line or from the
//! environment (`CELERY_BROKER_URL`, `CELERY_RESULT_BACKEND`). The environment
//! also has all other settings of Celery, such as `CELERY_TASK_ACKS_LATE=1` or
//! `CELERY_WORKER_CONCURRENCY=4`. Further arguments are the queues to consume
//! instead of the default one. The first SIGTERM or Ctrl-C shuts the worker down
//! after its running tasks, the second one at once.

mod handlers;
mod tasks;

use celery::{Config, ConnectionEvent};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    // lapin logs each message that RabbitMQ returns, with its arguments.
    let default = |_| EnvFilter::new("info,lapin=off");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(default);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    celery::exit(work().await)
}

async fn work() -> Result<(), celery::Error> {
    let mut config = Config::from_env()?;
    let mut arguments = std::env::args().skip(1);
    if let Some(url) = arguments.next() {
        config = config.broker_url(url);
    }
    if let Some(url) = arguments.next() {
        config = config.result_backend(url);
    }
    let app = celery::connect(config)?;
    let worker = app.worker(handlers::all()).on_connection_event(|event| {
        if matches!(event, ConnectionEvent::Connected) {
            println!("ready");
        }
    });
    let worker = arguments.fold(worker, |worker, queue| worker.queue(queue));
    worker.run_until(celery::shutdown_signal()).await?;
    Ok(())
}
