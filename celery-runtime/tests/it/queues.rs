//! Queues with bindings, and their settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use celery_runtime::{
    Broker, Config, Exchange, Queue, SendError, Signature, Task, TaskError, Tasks, WorkerError,
};
use serde_json::json;

use crate::support::{Running, Setup, within};

const COUNT: Task<(), u32> = Task::new("tasks.count");

/// Returns a task that counts its runs and asks for this many retries.
fn counting(runs: &Arc<AtomicU32>, retries: u32) -> Tasks {
    let runs = Arc::clone(runs);
    Tasks::new().with(COUNT, move || {
        let run = runs.fetch_add(1, Ordering::SeqCst);
        std::future::ready(if run < retries {
            Err(TaskError::retry().after(Duration::from_secs(1)))
        } else {
            Ok(run)
        })
    })
}

fn config(settings: &serde_json::Value) -> Config {
    let settings = settings.as_object().unwrap();
    settings
        .iter()
        .fold(Config::new(), |config, (name, value)| {
            config.set(name, value.clone()).unwrap()
        })
}

#[tokio::test(start_paused = true)]
async fn topic_queue_is_bound_by_first_sender_and_receives_retries() {
    let settings = json!({
        "task_queues": {"counts": {"routing_key": "count.#"}},
        "task_default_exchange": "tasks",
        "task_default_exchange_type": "topic",
        "task_routes": {"tasks.*": {"queue": "counts", "routing_key": "count.now"}},
    });
    let setup = Setup::with_config(config(&settings));
    let result = setup.client().send(COUNT, ()).await.unwrap();
    assert_eq!(setup.depth("counts").await, 1);

    let runs = Arc::default();
    let _worker = setup.start(counting(&runs, 2));
    assert_eq!(within(60, result.get()).await.unwrap(), 2);
    assert_eq!(setup.depth("counts").await, 0);
}

#[tokio::test(start_paused = true)]
async fn broadcast_task_runs_in_every_worker() {
    let settings = json!({"task_queues": {"news": {"broadcast": true}}});
    let setup = Setup::with_config(config(&settings));
    let runs = Arc::default();
    let workers = [0, 1, 2].map(|_| setup.start(counting(&runs, 0)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    setup
        .client()
        .apply(COUNT.s(()).queue("news"))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for worker in workers {
        worker.stop().await.unwrap();
    }
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn direct_queue_reaches_one_worker() {
    let setup = Setup::with_config(config(&json!({"worker_direct": true})));
    let (one, two) = (Arc::default(), Arc::default());
    let worker = |name: &str, runs| {
        let worker = setup.app.worker(counting(runs, 0));
        Running::start(worker.hostname(name))
    };
    let _workers = [worker("w1@here", &one), worker("w2@here", &two)];
    for _ in 0..4 {
        let to_one = COUNT.s(()).queue("w1@here.dq2");
        let result = setup.client().apply(to_one).await.unwrap();
        within(5, result.get()).await.unwrap();
    }
    assert_eq!(one.load(Ordering::SeqCst), 4);
    assert_eq!(two.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn missing_queue_is_refused_for_client_and_worker() {
    let settings = json!({"task_queues": ["known"], "task_create_missing_queues": false});
    let setup = Setup::with_config(config(&settings));
    let to = |queue: &str| Signature::named("tasks.count", (), ()).queue(queue);
    setup.client().apply(to("known")).await.unwrap();
    let error = setup.client().apply(to("unknown")).await.unwrap_err();
    assert!(matches!(error, SendError::Queue { .. }), "{error}");
    assert!(!error.is_transient());
    for word in ["tasks.count", "unknown", "task_create_missing_queues"] {
        assert!(error.to_string().contains(word), "{error}");
    }

    let worker = setup.app.worker(Tasks::new()).queue("unknown");
    let error = within(5, worker.run()).await.unwrap_err();
    assert!(matches!(error, WorkerError::Queue(_)), "{error}");

    // The dead-letter queue is created nevertheless.
    let worker = setup.start(Tasks::new());
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.stop().await.unwrap();
    assert_eq!(setup.depth("known.dead").await, 1);
}

#[tokio::test]
async fn queue_bound_twice_receives_message_once() {
    let setup = Setup::new();
    let topic = |key: &str| Queue::new("q").bound_to(Exchange::topic("logs"), key);
    setup.broker.declare(&topic("#")).await.unwrap();
    setup.broker.declare(&topic("a.*")).await.unwrap();
    let call = COUNT.s(()).exchange("logs").routing_key("a.b");
    setup.client().apply(call).await.unwrap();
    assert_eq!(setup.depth("q").await, 1);
}
