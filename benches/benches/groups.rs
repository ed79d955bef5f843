//! One group of very many tasks beside as many plain ones, a second, over a private Redis server
//! on this machine.
//!
//! Both take turns, and the tables have the medians, since only ratios mean something: client,
//! worker and server share the machine's cores.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::noop::consume;
use benches::sides::{Side, report};
use celery::{App, AsyncResult, Config, GroupResult, Task, group};
use futures_util::future::try_join_all;
use test_servers::{REDIS_SERVER, RedisServer};

const TASKS: usize = 100_000;

const ROUNDS: usize = 3;

/// Tasks that the worker runs at a time.
const SLOTS: usize = 256;

/// Plain calls in one round trip, and plain results that are waited for together.
const BATCH: usize = 1_000;

/// Does nothing, and its result is stored.
const DONE: Task<(), ()> = Task::new("bench.done").params(&[]);

#[tokio::main]
async fn main() {
    let program = env::var(REDIS_SERVER).unwrap_or_else(|_| "redis-server".to_owned());
    if let Err(error) = Command::new(&program).arg("--version").output() {
        println!("skipped: cannot run {program}: {error}");
        return;
    }
    let redis = RedisServer::start();
    let sides = || [Side::new("plain tasks"), Side::new("one group")];
    let (mut sending, mut running, mut reading) = (sides(), sides(), sides());
    for _ in 0..ROUNDS {
        for (side, times) in [plain(&redis).await, grouped(&redis).await]
            .into_iter()
            .enumerate()
        {
            sending[side].add(TASKS, times.sending);
            running[side].add(TASKS, times.running);
            reading[side].add(TASKS, times.reading);
        }
    }
    report(&format!("send {TASKS} tasks"), &sending);
    report(
        &format!("run {TASKS} tasks and store their results"),
        &running,
    );
    report(&format!("read {TASKS} results"), &reading);
}

struct Times {
    sending: Duration,
    running: Duration,
    reading: Duration,
}

async fn plain(redis: &RedisServer) -> Times {
    let app = fresh(redis);
    let client = app.client();
    let begun = Instant::now();
    let mut sent: Vec<AsyncResult<()>> = Vec::with_capacity(TASKS);
    for _ in 0..TASKS / BATCH {
        for result in client.apply_all((0..BATCH).map(|_| DONE.s(()))).await {
            sent.push(result.expect("the server takes every message"));
        }
    }
    let sending = begun.elapsed();
    let running = consume(&app, DONE, TASKS as u64, SLOTS).await;
    let begun = Instant::now();
    for some in sent.chunks(BATCH) {
        let results = try_join_all(some.iter().map(AsyncResult::get)).await;
        results.expect("every task succeeds");
    }
    Times {
        sending,
        running,
        reading: begun.elapsed(),
    }
}

async fn grouped(redis: &RedisServer) -> Times {
    let app = fresh(redis);
    let client = app.client();
    let begun = Instant::now();
    let sent = client.apply(group((0..TASKS).map(|_| DONE.s(())))).await;
    let sent: GroupResult<Vec<()>> = sent.expect("the server takes every message");
    let sending = begun.elapsed();
    let running = consume(&app, DONE, TASKS as u64, SLOTS).await;
    let begun = Instant::now();
    let results = sent.get().await.expect("every task succeeds");
    assert_eq!(results.len(), TASKS);
    Times {
        sending,
        running,
        reading: begun.elapsed(),
    }
}

fn fresh(redis: &RedisServer) -> App {
    redis.command(&["FLUSHALL"]);
    let config = Config::new()
        .broker_url(redis.url())
        .result_backend(redis.url());
    celery::connect(config).expect("the server's URL is one of Redis")
}
