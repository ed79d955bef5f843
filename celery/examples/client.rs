//! A client that calls the examples' tasks on a worker in Rust or Python:
//!
//!     cargo run --example client -- redis://localhost redis://localhost/1

mod tasks;

use std::time::Duration;

use celery::{Client, Config, ResultError, Value};
use tasks::Number::Int;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), celery::Error> {
    let mut config = Config::from_env()?;
    let mut arguments = std::env::args().skip(1);
    if let Some(url) = arguments.next() {
        config = config.broker_url(url);
    }
    if let Some(url) = arguments.next() {
        config = config.result_backend(url);
    }
    let client = celery::connect(config)?.client();

    let sum = client.send(tasks::ADD, (Int(2), Int(3))).await?;
    println!("add(2, 3) = {}", sum.get_timeout(TIMEOUT).await?);

    let later = tasks::MUL
        .s((Int(6), Int(7)))
        .countdown(Duration::from_secs(1));
    println!(
        "mul(6, 7), a second later = {}",
        client.apply(later).await?.get_timeout(TIMEOUT).await?
    );

    let batch = (1..=3).map(|n| tasks::SUB.s((Int(n), Int(1))));
    for result in client.apply_all(batch).await {
        println!(
            "sub(n, 1), sent in one batch = {}",
            result?.get_timeout(TIMEOUT).await?
        );
    }

    let failed = client.send(tasks::DIVIDE, (Int(1), Int(0))).await?;
    match failed.get_timeout(TIMEOUT).await {
        Err(ResultError::Task(failure)) => println!("divide(1, 0) raised {}", failure.exception),
        other => println!("divide(1, 0) = {other:?}"),
    }

    progress(&client).await
}

/// Calls a task that reports its progress, by its name.
async fn progress(client: &Client) -> Result<(), celery::Error> {
    let running = client.send_by_name("tasks.progress", (3,), ()).await?;
    let Value::Int(steps) = running.get_timeout(TIMEOUT).await? else {
        println!("progress(3) did not return a number");
        return Ok(());
    };
    println!("progress(3) = {steps}");
    Ok(())
}

/// The time limit of each wait; without a worker on the queue it would never end.
const TIMEOUT: Duration = Duration::from_secs(10);
