//! Canvases: partial signatures, groups, chains and chords, on an in-memory broker
//! with a worker in this process:
//!
//!     cargo run --example canvas
//!
//! With the URLs of a broker and a result backend (or `CELERY_BROKER_URL` and
//! `CELERY_RESULT_BACKEND`) it only sends to workers in any language:
//!
//!     cargo run --example canvas -- redis://localhost redis://localhost/1

mod handlers;
mod tasks;

use std::time::Duration;

use celery::{App, Client, Config, group};
use tasks::Number::{self, Int};
use tasks::{ADD, MUL, XSUM};

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
    if config.require_broker_url().is_ok() {
        return send(&celery::connect(config)?.client()).await;
    }
    let app = App::memory().with_config(config);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = app.worker(handlers::all());
    let worker = tokio::spawn(worker.run_until(async { stopped.await.unwrap_or(()) }));
    let sent = send(&app.client()).await;
    let _ = stop.send(());
    worker.await.expect("the worker does not panic")?;
    sent
}

async fn send(client: &Client) -> Result<(), celery::Error> {
    // A partial signature with the last argument; the first is supplied later.
    let plus_two = ADD.p((Int(2),));
    let ten = client.apply(plus_two.given((Int(8),))).await?;
    println!("add(8, 2) = {}", ten.get_timeout(TIMEOUT).await?);

    // A group runs its members concurrently and returns their results in order.
    let doubles = group((0..10).map(|i| ADD.s((Int(i), Int(i)))));
    let doubles = client.apply(doubles).await?;
    println!("add(i, i) = {}", list(&doubles.get_timeout(TIMEOUT).await?));

    // A partial group: every member receives the 10.
    let plus_ten = group((0..10).map(|i| ADD.p((Int(i),))));
    let plus_ten = client.apply(plus_ten.given((Int(10),))).await?;
    println!(
        "add(10, i) = {}",
        list(&plus_ten.get_timeout(TIMEOUT).await?)
    );

    // A chain passes the result of each step to the next one.
    let product = client
        .apply(ADD.s((Int(4), Int(4))).then(MUL.p((Int(8),))))
        .await?;
    println!("(4 + 4) * 8 = {}", product.get_timeout(TIMEOUT).await?);

    // A chord calls its body with the list of the group's results.
    let sum = group((0..10).map(|i| ADD.s((Int(i), Int(i))))).then(XSUM.p(()));
    let sum = client.apply(sum).await?;
    println!("the sum of add(i, i) = {}", sum.get_timeout(TIMEOUT).await?);
    Ok(())
}

fn list(numbers: &[Number]) -> String {
    let numbers: Vec<_> = numbers.iter().map(Number::to_string).collect();
    numbers.join(", ")
}

/// The time limit of each wait; without a worker on the queue it would never end.
const TIMEOUT: Duration = Duration::from_secs(10);
