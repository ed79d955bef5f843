//! Sends one large group to a worker of the examples' tasks:
//!
//!     cargo run --release --example worker -- redis://localhost redis://localhost/1
//!     cargo run --release --example large_group -- redis://localhost redis://localhost/1 100000
//!
//! Prints the times until the group was sent and all results were received, and on
//! Linux the peak memory of this client.

mod tasks;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use celery::{Config, group};
use tasks::ADD;
use tasks::Number::Int;

const USAGE: &str = "usage: large_group BROKER BACKEND TASKS";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, backend, tasks] = &arguments[..] else {
        return Err(USAGE.into());
    };
    let tasks: i64 = tasks.parse()?;
    let config = Config::from_env()?;
    let config = config.broker_url(broker).result_backend(backend);
    let client = celery::connect(config)?.client();

    let started = Instant::now();
    let all = group((0..tasks).map(|number| ADD.s((Int(number), Int(1)))));
    let sent = client.apply(all).await?;
    println!("sent in {:?}", started.elapsed());
    if let Some(memory) = peak_memory() {
        println!("memory after sending: {memory}");
    }
    let results = sent.get().await?;
    println!("all results in {:?}", started.elapsed());
    let expected = (0..tasks).map(|number| Int(number + 1));
    if !results.into_iter().eq(expected) {
        return Err("the results are wrong".into());
    }
    if let Some(memory) = peak_memory() {
        println!("memory: {memory}");
    }
    Ok(())
}

/// Returns the peak resident memory as Linux writes it, such as `4096 kB`.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mut lines = status.lines();
    let peak = lines.find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(peak.trim().to_owned())
}
