//! Remote control: Python clients control Rust workers, and Rust clients control
//! Python workers.

mod cluster;
mod events;
mod inspect;
mod malformed;
mod pool_and_queues;
mod python_workers;
mod revoke;

use std::time::Duration;

use celery::{Tasks, Worker};

use crate::support::{RunningWorker, Setup, test_tasks};

/// Returns a worker that sends heartbeats often, so that monitors see it at once.
fn heartbeating(setup: &Setup, name: &str, tasks: Tasks) -> Worker {
    let worker = setup.app().worker(tasks).hostname(name).concurrency(1);
    worker.heartbeat(Some(Duration::from_millis(100)))
}

/// Starts a worker with task events.
async fn start(setup: &Setup, name: &str) -> RunningWorker {
    RunningWorker::start(heartbeating(setup, name, test_tasks()).task_events(true)).await
}

/// Runs a Python program in which `node` is the worker `rust@test`.
async fn run_program(setup: &Setup, program: &str) -> String {
    let code = format!("from workers import *\nnode = Node('rust@test')\n{program}");
    setup.python(code).await
}
