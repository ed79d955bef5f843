//! A worker whose tasks may crash, hang or leak memory: each runs in a child
//! process, and a crash ends only that child.
//!
//!     cargo run --example isolated -- redis://localhost redis://localhost/1
//!
//! Settings are read from the environment, as in the example `worker`; try
//! `CELERY_WORKER_MAX_TASKS_PER_CHILD=10`. Further arguments are queues: each
//! gets a worker of its own, with its own children.

mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use celery::{Config, ConnectionEvent};
use tokio::task::JoinSet;
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
    // `connect` opens no connection, and a child process never opens one.
    let app = celery::connect(config)?;
    let queues: Vec<_> = arguments.collect();
    let pending = Arc::new(AtomicUsize::new(queues.len().max(1)));
    let worker = || {
        let pending = Arc::clone(&pending);
        app.worker(work::tasks()).on_connection_event(move |event| {
            let connected = matches!(event, ConnectionEvent::Connected);
            if connected && pending.fetch_sub(1, Ordering::SeqCst) == 1 {
                println!("ready");
            }
        })
    };
    let workers = if queues.is_empty() {
        vec![worker()]
    } else {
        queues
            .into_iter()
            .map(|queue| worker().queue(queue))
            .collect()
    };
    let mut running = JoinSet::new();
    for worker in workers {
        running.spawn(worker.run_until(celery::shutdown_signal()));
    }
    // In a child process, the one worker that the child serves ends first.
    while let Some(ended) = running.join_next().await {
        ended.expect("a worker does not panic")?;
        if celery::is_isolated_child() {
            break;
        }
    }
    Ok(())
}
