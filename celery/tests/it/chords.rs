//! Many chords on Redis with retries, duplicate deliveries, failures and killed
//! workers: each chord runs its body or its errback once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use celery::{AsyncResult, Client, ResultError, State, group};
use serde_json::{Value as Json, json};

use crate::chord_work::{BODY, ERRBACK, Entry, MEMBER, RUNS_KEY};
use crate::support::{RedisState, Setup, TIMEOUT, WorkerProcess, eventually, fast_restore};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, XSUM};

const MEMBERS: u32 = 100;

/// The concurrency of each worker.
const SLOTS: usize = 8;

/// Ready messages above which no more chords are sent.
const MAX_BACKLOG: i64 = 3_000;

/// The time limit of the whole test.
const CHORD_TIMEOUT: Duration = Duration::from_secs(1_800);

/// One in twenty members is retried, and as many are delivered twice: half of the
/// copies while the chord is pending, the others after all chords have ended. One
/// chord in ten has a member that fails. Workers are killed while they run tasks.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn chords_run_their_body_once_despite_crashes() {
    let (chords, kills) = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => (1_000, 10),
        None => (100, 2),
    };
    let begun = Instant::now();
    let setup = Setup::redis();
    let client = setup.client();
    let mut workers = vec![worker(&setup).await, worker(&setup).await];
    let (mut sent, mut copies, mut after_end) = (Vec::new(), 0, Vec::new());
    for number in 0..chords {
        eventually("the workers keep up", async || {
            (setup.redis.depth("celery") < MAX_BACKLOG).then_some(())
        })
        .await;
        sent.push(send(&client, number).await);
        let (now, later) = messages_to_repeat(&setup);
        copies += now.len() + later.len();
        now.iter().for_each(|copy| push(&setup, copy));
        after_end.extend(later);
        if (number + 1) % chords.div_ceil(kills + 1) == 0 {
            workers.remove(0).kill().await;
            assert!(setup.redis.unacked() > 0, "the worker held no deliveries");
            workers.push(worker(&setup).await);
        }
    }
    for (number, result) in (0..).zip(&sent) {
        let outcome = result.get_timeout(CHORD_TIMEOUT).await;
        match outcome {
            Ok(sum) if !fails(number) => assert_eq!(sum, (0..MEMBERS).sum::<u32>()),
            Err(ResultError::Task(failure)) if fails(number) => {
                assert_eq!(failure.exception.exc_type, "ChordError");
            }
            other => panic!("chord {number}: {other:?}"),
        }
    }
    let took = begun.elapsed();
    after_end.iter().for_each(|copy| push(&setup, copy));
    eventually("all chords have ended", async || {
        let pending = setup.redis.command(&["ZCARD", "celery-rs-chords"]);
        let left = [setup.redis.depth("celery"), setup.redis.unacked()];
        (left == [0, 0] && pending.integer() == 0).then_some(())
    })
    .await;

    let repeated = check_runs(&setup, &sent);
    println!(
        "{chords} chords of {MEMBERS} in {took:?}, {copies} copies, {kills} workers killed; \
         {} bodies and errbacks ran again",
        repeated.len()
    );
    // A killed worker may not have stored yet that it had sent the body, called the
    // errback or run the body; then another worker repeats that.
    assert!(repeated.len() <= kills as usize * SLOTS);
    for worker in workers {
        worker.signal("TERM");
        assert_eq!(worker.wait().await, Some(0));
    }
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn broken_chord_does_not_keep_another_from_being_resumed() {
    let setup = Setup::redis();
    let client = setup.client();
    let add = |x| ADD.s((Int(x), Int(1)));
    let chord = group([1, 2].map(add)).then(XSUM.p(()));
    let broken = client.apply(chord.clone()).await.unwrap();
    let stalled = client.apply(chord).await.unwrap();
    let group_id = |chord: &AsyncResult<_>| chord.parent().unwrap().id().to_owned();
    let ids = [group_id(&broken), group_id(&stalled)];
    let key = |id: &str, ending: &str| format!("celery-taskset-meta-{id}{ending}");
    // A worker that has died holds the claims.
    for id in &ids {
        let claim = key(id, ".c");
        setup.redis.command(&["SET", &claim, "dead", "EX", "600"]);
    }
    let worker = setup.worker().await;
    for id in &ids {
        eventually("all members are counted", async || {
            let counted = setup.redis.command(&["SCARD", &key(id, ".d")]);
            (counted.integer() == 2).then_some(())
        })
        .await;
    }
    let added = key(&ids[0], ".t");
    setup.redis.command(&["RPUSH", &added, "not a counter"]);
    for (id, due) in ids.iter().zip(["0", "1"]) {
        setup.redis.command(&["DEL", &key(id, ".c")]);
        let index = "celery-rs-chords";
        setup.redis.command(&["ZADD", index, due, id]);
    }
    assert_eq!(stalled.get_timeout(TIMEOUT).await.unwrap(), Int(5));
    assert_eq!(broken.state().await.unwrap(), State::Pending);
    worker.stop().await;
}

async fn worker(setup: &Setup) -> WorkerProcess {
    let mut options = fast_restore();
    options["visibility_timeout"] = json!(5);
    let (options, slots) = (options.to_string(), SLOTS.to_string());
    let settings = [
        ("CELERY_TASK_ACKS_LATE", "1"),
        ("CELERY_WORKER_CONCURRENCY", &*slots),
        ("CELERY_BROKER_TRANSPORT_OPTIONS", &*options),
        ("RUST_LOG", "warn,celery_runtime::worker::workflow=off"),
    ];
    WorkerProcess::start_example(&["chords"], setup, &settings).await
}

/// Whether one of the chord's members fails.
fn fails(number: u32) -> bool {
    number % 10 == 7
}

async fn send(client: &Client, number: u32) -> AsyncResult<u32> {
    let member = |place| MEMBER.s((number, place, fails(number) && place == 42));
    let chord = group((0..MEMBERS).map(member)).then(BODY.p((number,)));
    let chord = chord.link_error(&ERRBACK.s((number,)));
    client.apply(chord).await.unwrap()
}

/// Returns the messages of one member in twenty of the chord sent last: half to
/// deliver again now, half to deliver again after the end.
fn messages_to_repeat(setup: &Setup) -> (Vec<String>, Vec<String>) {
    let last = MEMBERS.to_string();
    let messages = setup.redis.command(&["LRANGE", "celery", "0", &last]);
    let is_member = |message: &String| {
        let message: Json = serde_json::from_str(message).unwrap();
        message["headers"]["task"] == MEMBER.name()
    };
    let mut now: Vec<_> = messages.texts().into_iter().filter(is_member).collect();
    now.truncate(MEMBERS as usize / 20);
    let later = now.split_off(now.len() / 2);
    (now, later)
}

fn push(setup: &Setup, message: &str) {
    setup.redis.push("celery", message.as_bytes());
}

/// Asserts that each chord has run either its body or its errback, always with the
/// same id. Returns the entries of runs that were repeated.
fn check_runs(setup: &Setup, sent: &[AsyncResult<u32>]) -> Vec<Entry> {
    let ledger = setup
        .redis
        .command(&["LRANGE", RUNS_KEY, "0", "-1"])
        .texts();
    let mut seen: BTreeMap<u32, BTreeSet<_>> = BTreeMap::new();
    let mut repeated = Vec::new();
    for line in ledger {
        let entry = Entry::read(&line).unwrap();
        let effects = seen.entry(entry.chord).or_default();
        if !effects.insert((entry.what.clone(), entry.body_id.clone())) {
            repeated.push(entry);
        }
    }
    for (number, result) in (0..).zip(sent) {
        let what = if fails(number) { "errback" } else { "body" };
        let expected = BTreeSet::from([(what.to_owned(), result.id().to_owned())]);
        assert_eq!(seen.get(&number), Some(&expected), "chord {number}");
    }
    repeated
}
