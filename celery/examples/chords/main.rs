//! A worker for many chords, which records each run of a body or an errback in a
//! list in Redis. A test kills it while it runs:
//!
//!     cargo run --example chords -- redis://localhost redis://localhost/1
//!
//! The list is on the server of the result backend. Settings are read from the
//! environment, as in the example `worker`.

mod work;

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

async fn work() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::from_env()?;
    let mut arguments = std::env::args().skip(1);
    if let Some(url) = arguments.next() {
        config = config.broker_url(url);
    }
    if let Some(url) = arguments.next() {
        config = config.result_backend(url);
    }
    let url = config.result_backend_url().ok_or("no result backend")?;
    let recorder = work::RunRecorder::new(url)?;
    let app = celery::connect(config)?;
    let worker = app
        .worker(work::tasks(recorder))
        .on_connection_event(|event| {
            if matches!(event, ConnectionEvent::Connected) {
                println!("ready");
            }
        });
    worker.run_until(celery::shutdown_signal()).await?;
    Ok(())
}
