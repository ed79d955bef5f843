//! Throughput of one large group compared with the same number of plain tasks, over a private Redis
//! server on this machine.
//!
//! Both cases alternate, and the tables show medians, because only ratios are meaningful: client,
//! worker and server share the cores.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::noop::consume;
use benches::rates::{Rates, print_table};
use celery::{App, AsyncResult, Config, GroupResult, Task, group};
use futures_util::future::try_join_all;
use test_servers::{REDIS_SERVER, RedisServer};

const TASKS: usize = 100_000;

const ROUNDS: usize = 3;

/// The concurrency of the worker.
const SLOTS: usize = 256;

/// The number of plain calls in one round trip, and of plain results awaited concurrently.
const BATCH: usize = 1_000;

/// A task that does nothing and whose result is stored.
const NOOP_WITH_RESULT: Task<(), ()> = Task::new("bench.done").params(&[]);

#[tokio::main]
async fn main() {
    let program = env::var(REDIS_SERVER).unwrap_or_else(|_| "redis-server".to_owned());
    if let Err(error) = Command::new(&program).arg("--version").output() {
        println!("skipped: cannot run {program}: {error}");
        return;
    }
    let redis = RedisServer::start();
    let rates = || [Rates::new("plain tasks"), Rates::new("one group")];
    let (mut sending, mut running, mut reading) = (rates(), rates(), rates());
    for _ in 0..ROUNDS {
        for (case, times) in [plain(&redis).await, grouped(&redis).await]
            .into_iter()
            .enumerate()
        {
            sending[case].add(TASKS, times.sending);
            running[case].add(TASKS, times.running);
            reading[case].add(TASKS, times.reading);
        }
    }
    print_table(&format!("send {TASKS} tasks"), &sending);
    print_table(
        &format!("run {TASKS} tasks and store their results"),
        &running,
    );
    print_table(&format!("read {TASKS} results"), &reading);
}

struct Times {
    sending: Duration,
    running: Duration,
    reading: Duration,
}

async fn plain(redis: &RedisServer) -> Times {
    let app = app_with_empty_server(redis);
    let client = app.client();
    let start = Instant::now();
    let mut sent: Vec<AsyncResult<()>> = Vec::with_capacity(TASKS);
    for _ in 0..TASKS / BATCH {
        for result in client
            .apply_all((0..BATCH).map(|_| NOOP_WITH_RESULT.s(())))
            .await
        {
            sent.push(result.expect("the server accepts every message"));
        }
    }
    let sending = start.elapsed();
    let running = consume(&app, NOOP_WITH_RESULT, TASKS as u64, SLOTS).await;
    let start = Instant::now();
    for batch in sent.chunks(BATCH) {
        let results = try_join_all(batch.iter().map(AsyncResult::get)).await;
        results.expect("every task succeeds");
    }
    Times {
        sending,
        running,
        reading: start.elapsed(),
    }
}

async fn grouped(redis: &RedisServer) -> Times {
    let app = app_with_empty_server(redis);
    let client = app.client();
    let start = Instant::now();
    let sent = client
        .apply(group((0..TASKS).map(|_| NOOP_WITH_RESULT.s(()))))
        .await;
    let sent: GroupResult<Vec<()>> = sent.expect("the server accepts every message");
    let sending = start.elapsed();
    let running = consume(&app, NOOP_WITH_RESULT, TASKS as u64, SLOTS).await;
    let start = Instant::now();
    let results = sent.get().await.expect("every task succeeds");
    assert_eq!(results.len(), TASKS);
    Times {
        sending,
        running,
        reading: start.elapsed(),
    }
}

fn app_with_empty_server(redis: &RedisServer) -> App {
    redis.command(&["FLUSHALL"]);
    let config = Config::new()
        .broker_url(redis.url())
        .result_backend(redis.url());
    celery::connect(config).expect("the URL is valid")
}
