//! Delayed tasks on RabbitMQ: they run when they are due, and no worker holds them
//! before.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use celery::{AsyncResult, Ignored, Signature, Value};
use serde_json::json;

use crate::support::{
    NOW, RETRY_TIMES, Setup, TIMEOUT, WorkerProcess, eventually, for_each_broker, start_python,
    test_tasks,
};

for_each_broker! {
    rust_worker_runs_delayed_tasks_of_python_client_when_due: rabbitmq, quorum, native_delay;
    python_worker_runs_delayed_tasks_of_rust_client_when_due: rabbitmq, quorum, native_delay;
    rust_worker_runs_delayed_tasks_of_rust_client_when_due: rabbitmq, quorum, native_delay;
    retries_wait_for_their_countdown: rabbitmq, quorum, native_delay;
    existing_classic_delay_queues_are_used: native_delay;
    delayed_tasks_reach_every_kind_of_queue: rabbitmq;
    many_delayed_tasks_do_not_block_due_tasks: rabbitmq, quorum;
}

/// Seconds that a task may run after it is due, on a machine that is busy with
/// other tests. The tests print the delays.
const MAX_LATE: f64 = 20.0;

async fn rust_worker_runs_delayed_tasks_of_python_client_when_due(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    // With native delayed delivery, Python rounds to whole seconds.
    let program = r#"
for delay in (1, 2.5, 9):
    due = time.time() + delay
    print(json.dumps([send("test.now", countdown=delay).id, due]))
eta = datetime.datetime.now(timezone.utc) + timedelta(seconds=2)
print(json.dumps([send("test.now", eta=eta).id, eta.timestamp()]))
"#;
    // The broker is observed from the first send on: on a busy machine the tasks
    // are due before the program ends.
    let (output, ()) = tokio::join!(setup.python(program), wait_until_broker_delays(&setup));
    let client = setup.client();
    for line in output.lines() {
        let (id, due): (String, f64) = serde_json::from_str(line).unwrap();
        assert_ran_when_due(&client.result(id), due).await;
    }
    worker.stop().await;
    setup.assert_drained().await;
}

async fn python_worker_runs_delayed_tasks_of_rust_client_when_due(setup: Setup) {
    let python = start_python(setup.python_worker()).await;
    for (sent, due) in send_delayed(&setup).await {
        assert_ran_when_due(&sent, due).await;
    }
    python.terminate();
    setup.assert_drained().await;
}

async fn rust_worker_runs_delayed_tasks_of_rust_client_when_due(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    let sent = send_delayed(&setup).await;
    wait_until_broker_delays(&setup).await;
    for (sent, due) in sent {
        assert_ran_when_due(&sent, due).await;
    }
    worker.stop().await;
    setup.assert_drained().await;
}

/// Waits until the only messages left are in delay queues.
async fn wait_until_broker_delays(setup: &Setup) {
    eventually("all delayed messages are in delay queues", async || {
        let mut queues = setup.vhost().queues().await;
        queues.retain(|_, content| content.unacked > 0 || content.ready > 0);
        let is_delay_queue = |queue: &String| {
            queue.starts_with("celery_delayed_") || queue.starts_with("celery_due")
        };
        (!queues.is_empty() && queues.keys().all(is_delay_queue)).then_some(())
    })
    .await;
}

/// Sends delayed tasks; returns their results and the times at which they are due.
async fn send_delayed(setup: &Setup) -> Vec<(AsyncResult<f64>, f64)> {
    let client = setup.client();
    let mut sent = Vec::new();
    for delay in [1.2, 2.5, 5.0] {
        let due = SystemTime::now() + Duration::from_secs_f64(delay);
        let due_at = due.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let result = client.apply(NOW.s(()).eta(due)).await.unwrap();
        sent.push((result, due_at));
    }
    sent
}

async fn assert_ran_when_due(sent: &AsyncResult<f64>, due: f64) {
    let ran = sent.get_timeout(TIMEOUT).await.unwrap();
    // Python writes times in microseconds.
    let late = ran - due;
    println!("{late:.3} s late");
    assert!((-0.001..MAX_LATE).contains(&late), "{late} s late");
}

async fn retries_wait_for_their_countdown(setup: Setup) {
    let python = start_python(setup.python_worker()).await;
    let begun = Instant::now();
    let by_python = setup.client().send(RETRY_TIMES, (2, DELAY)).await.unwrap();
    assert_eq!(by_python.get_timeout(TIMEOUT).await.unwrap(), 2);
    assert_took_two_delays(begun.elapsed());

    // Each attempt runs on either worker.
    let worker = setup.serve(test_tasks()).await;
    retry(&setup, 6).await;
    python.terminate();
    retry(&setup, 1).await;
    worker.stop().await;
    setup.assert_drained().await;
}

const DELAY: f64 = 1.0;

/// Calls tasks from Python that are retried twice, and checks the time they take.
async fn retry(setup: &Setup, tasks: u32) {
    let program = format!(
        r#"
begun = time.time()
for sent in [send("test.retry", (2, {DELAY})) for _ in range({tasks})]:
    same(get(sent), 2)
print(time.time() - begun)
"#
    );
    let took = setup.python(program).await;
    assert_took_two_delays(Duration::from_secs_f64(took.trim().parse().unwrap()));
}

fn assert_took_two_delays(took: Duration) {
    let late = took.as_secs_f64() - 2.0 * DELAY;
    assert!((0.0..2.0 * MAX_LATE).contains(&late), "{late} s late");
}

/// Delay queues that were declared with other settings are used as they are.
async fn existing_classic_delay_queues_are_used(setup: Setup) {
    let classic = setup.set_both("broker_native_delayed_delivery_queue_type", "classic");
    let python = start_python(classic.python_worker().queues(&["celery"])).await;
    let log = python.terminate();
    assert!(!log.contains("Traceback"), "{log}");
    for setup in [&classic, &setup] {
        let worker = setup.serve(test_tasks()).await;
        let program = r#"
due = time.time() + 4
print(json.dumps([send("test.now", countdown=4).id, due]))
"#;
        let (output, ()) = tokio::join!(setup.python(program), wait_until_broker_delays(setup));
        let (id, due): (String, f64) = serde_json::from_str(&output).unwrap();
        assert_ran_when_due(&setup.client().result(id), due).await;
        worker.stop().await;
    }
    setup.assert_drained().await;
}

/// If any queue is a quorum queue, Python uses native delayed delivery for every
/// queue whose exchange is not direct, and its worker binds them all.
async fn delayed_tasks_reach_every_kind_of_queue(setup: Setup) {
    let on = |kind: &str| json!({"exchange": kind, "exchange_type": kind});
    let setup = setup.set_both(
        "task_queues",
        json!({
            "safe": {"queue_arguments": {"x-queue-type": "quorum"}},
            "plain": {},
            "topic": on("topic"),
            "fanout": on("fanout"),
            "headers": {
                "exchange": "colors", "exchange_type": "headers",
                "binding_arguments": {"color": "blue"},
            },
        }),
    );
    let worker = setup.serve(test_tasks()).await;
    let program = r#"
later = {queue: send("test.now", countdown=1, queue=queue, headers={"color": "blue"})
         for queue in app.conf.task_queues}
lost = lambda: [queue for queue, sent in later.items() if not sent.ready()]
until("all tasks have run, or are lost", lambda: not lost() or time.time() > begun + 8)
print(lost())
"#;
    let lost = setup
        .python(format!("begun = time.time()\n{program}"))
        .await;
    assert_eq!(lost.trim(), "[]", "lost");
    worker.stop().await;
    setup.assert_drained().await;
}

async fn many_delayed_tasks_do_not_block_due_tasks(setup: Setup) {
    const HOUR: Duration = Duration::from_secs(3_600);
    let count = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => 100_000,
        None => 5_000,
    };
    // The tasks would take more than `most_memory` in the worker.
    let padding = "x".repeat(4_000);
    let most_memory = 16 << 20;
    let setup = setup.set("deadline", 20);
    let queue_type = setup.queue_type();
    let client = setup.client();
    let started = Instant::now();
    for _ in (0..count).step_by(500) {
        let calls = (0..500).map(|_| {
            sum(1, 2)
                .header("padding", padding.as_str())
                .countdown(HOUR)
        });
        for sent in client.apply_all(calls).await {
            sent.unwrap();
        }
    }
    println!(
        "{queue_type}: {count} tasks were sent within {:?}",
        started.elapsed()
    );
    // A process of its own, so that its memory is that of the worker only.
    let settings = [
        ("CELERY_TASK_DEFAULT_QUEUE_TYPE", queue_type),
        ("CELERY_DEADLINE", "20"),
        ("CELERY_WORKER_CONCURRENCY", "4"),
        ("RUST_LOG", "warn"),
    ];
    let started = Instant::now();
    let worker = WorkerProcess::start(&setup, &settings).await;
    let before = worker.resident_memory();
    let mut most = before;
    // Delaying all of them takes longer than TIMEOUT.
    while setup.depth("celery_delayed_11").await < count {
        most = most.max(worker.resident_memory());
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "the tasks are not delayed"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "{queue_type}: all were delayed within {:?}, with {} MB more memory",
        started.elapsed(),
        (most - before) >> 20
    );

    for number in 1..=10 {
        let sent = Instant::now();
        let sum = client.apply(sum(number, 1)).await.unwrap();
        assert_eq!(
            sum.get_timeout(TIMEOUT).await.unwrap(),
            Value::Int(number + 1)
        );
        println!("a due task ran within {:?}", sent.elapsed());
    }
    assert_eq!(setup.depth("celery_delayed_11").await, count);
    assert!(most - before < most_memory, "{} MB", (most - before) >> 20);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
    assert_eq!(setup.depth("celery").await, 0);
}

fn sum(x: i64, y: i64) -> Signature<Value, Ignored> {
    Signature::named("tasks.add", (x, y), ())
}
