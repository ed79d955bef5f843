//! Tasks on the in-memory broker, without a server:
//! `cargo run --example quickstart`.

mod handlers;
mod tasks;

use celery::{App, AsyncResult, Client, Map, SendError, Value};
use tasks::Number::{Float, Int};

#[tokio::main]
async fn main() -> Result<(), celery::Error> {
    // Broker and result backend in this process. With a server, replace this line by
    // celery::connect("redis://localhost")?.
    let app = App::memory();

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = app
        .worker(handlers::all())
        .concurrency(4)
        .run_until(async { stopped.await.unwrap_or(()) });
    let worker = tokio::spawn(worker);

    for (call, result) in send(&app.client()).await? {
        let outcome = match result.get().await {
            Ok(value) => show(&value),
            Err(error) => error.to_string(),
        };
        println!(
            "{} {call:<22} {:<8} {outcome}",
            result.id(),
            result.state().await?
        );
    }

    let _ = stop.send(());
    worker.await.expect("the worker does not panic")?;
    Ok(())
}

/// Sends some tasks, and returns each call as text with its result.
async fn send(client: &Client) -> Result<Vec<(&'static str, AsyncResult<Value>)>, SendError> {
    let add = client.send(tasks::ADD, (Int(2), Int(3))).await?;
    let sub = client.send(tasks::SUB, (Int(7), Int(9))).await?;
    let mul = client.send(tasks::MUL, (Float(1.5), Int(4))).await?;
    let divide = client.send(tasks::DIVIDE, (Int(7), Int(2))).await?;
    let zero = client.send(tasks::DIVIDE, (Int(1), Int(0))).await?;
    let retry = client.send(tasks::RETRY, (2,)).await?;
    let fail = client.send(tasks::FAIL, ("as asked".to_owned(),)).await?;
    let by_name = client
        .send_by_name("tasks.echo", ("hello",), Map::from([("to", "world")]))
        .await;

    let untyped = |id: &str| client.result::<Value>(id);
    Ok(vec![
        ("add(2, 3)", untyped(add.id())),
        ("sub(7, 9)", untyped(sub.id())),
        ("mul(1.5, 4)", untyped(mul.id())),
        ("divide(7, 2)", untyped(divide.id())),
        ("divide(1, 0)", untyped(zero.id())),
        ("retry(times=2)", untyped(retry.id())),
        ("fail(\"as asked\")", untyped(fail.id())),
        ("echo(\"hello\", ..)", by_name?),
    ])
}

fn show(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}
