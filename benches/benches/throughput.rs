//! Messages per second over a private Redis server on this machine, with one client or one worker
//! at a time. `cargo xtask bench --comparison` compares with Python Celery.
//!
//! Client, worker and server share the cores, so the figures only serve to compare two commits on
//! one machine.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::noop::{NOOP, consume};
use celery::{App, Client, Config};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use test_servers::{REDIS_SERVER, RedisServer};
use tokio::runtime::{Builder, Runtime};

/// The number of calls in one round trip.
const BATCH: u64 = 100;

/// The number of tasks in one run of the worker.
const TASKS: u64 = 20_000;

fn main() {
    let program = env::var(REDIS_SERVER).unwrap_or_else(|_| "redis-server".to_owned());
    if let Err(error) = Command::new(&program).arg("--version").output() {
        println!("skipped: cannot run {program}: {error}");
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = Builder::new_multi_thread().enable_all().build();
    let bench = Bench {
        redis: RedisServer::start(),
        runtime: runtime.expect("a runtime starts"),
    };
    bench.publish(&mut criterion);
    bench.consume(&mut criterion);
    criterion.final_summary();
}

struct Bench {
    redis: RedisServer,
    runtime: Runtime,
}

impl Bench {
    /// Measures the calls per second of one client, one by one and in batches.
    fn publish(&self, criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("throughput, publish");
        for (name, batch) in [("one by one", 1), ("batches of 100", BATCH)] {
            group.throughput(Throughput::Elements(batch));
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| self.time_to_publish(rounds, batch));
            });
        }
    }

    /// Measures the no-op tasks per second of one worker with a full queue.
    fn consume(&self, criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("throughput, consume");
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.throughput(Throughput::Elements(TASKS));
        for (name, task) in [
            ("early ack", NOOP.acks_early()),
            ("late ack", NOOP.acks_late()),
        ] {
            group.bench_function(BenchmarkId::new(name, "256 slots"), |bencher| {
                bencher.iter_custom(|runs| {
                    let one_run = |_| {
                        self.time_to_publish(TASKS / BATCH, BATCH);
                        self.runtime
                            .block_on(consume(&self.app(), task, TASKS, 256))
                    };
                    (0..runs).map(one_run).sum()
                });
            });
        }
    }

    /// Sends batches to an empty server and returns the time.
    fn time_to_publish(&self, rounds: u64, batch: u64) -> Duration {
        self.redis.command(&["FLUSHALL"]);
        let client = self.app().client();
        self.runtime.block_on(async {
            // Connects before the measurement.
            send(&client, 0).await;
            let start = Instant::now();
            for _ in 0..rounds {
                send(&client, batch).await;
            }
            start.elapsed()
        })
    }

    fn app(&self) -> App {
        let config = Config::new().broker_url(self.redis.url());
        celery::connect(config).expect("the URL is valid")
    }
}

async fn send(client: &Client, batch: u64) {
    for result in client.apply_all((0..batch).map(|_| NOOP.s(()))).await {
        result.expect("the server accepts every message");
    }
}
