//! Valid messages in a worker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::{Map, Serializer, Value};
use celery_runtime::{
    Broker, Config, Context, DynTask, Kwargs, Queue, ResultError, Task, TaskError, Tasks,
};
use serde::{Deserialize, Serialize};

use crate::support::{Setup, start_time, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const PUSH: Task<(u32,), ()> = Task::new("tasks.push").params(&["number"]);

async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
    Ok(x + y)
}

fn failure<R: std::fmt::Debug>(result: Result<R, ResultError>) -> celery_runtime::TaskFailure {
    match result.unwrap_err() {
        ResultError::Task(failure) => *failure,
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn positional_and_keyword_arguments_are_bound() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let client = setup.client();
    let typed = client.send(ADD, (2, 3)).await.unwrap();
    assert_eq!(within(5, typed.get()).await.unwrap(), 5);
    for (args, kwargs) in [
        (vec![1], vec![("y", 4)]),
        (vec![], vec![("x", 1), ("y", 4)]),
    ] {
        let kwargs: Map = kwargs
            .into_iter()
            .map(|(name, value)| (Value::from(name), Value::Int(value)))
            .collect();
        let result = client
            .send_by_name("tasks.add", args, kwargs)
            .await
            .unwrap();
        assert_eq!(within(5, result.get()).await.unwrap(), Value::Int(5));
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_arguments_fail_with_python_text() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let result = setup
        .client()
        .send_by_name("tasks.add", (1,), ())
        .await
        .unwrap();
    let failure = failure(within(5, result.get()).await);
    assert_eq!(
        failure.exception.to_string(),
        "TypeError(\"add() missing 1 required positional argument: 'y'\")"
    );
    assert_eq!(failure.exception.exc_module.as_deref(), Some("builtins"));
}

#[tokio::test(start_paused = true)]
async fn panic_fails_only_its_task() {
    const PANIC: Task<(), ()> = Task::new("tasks.panic");
    async fn panics() -> Result<(), TaskError> {
        panic!("oh no");
    }
    let setup = Setup::new();
    let tasks = Tasks::new().with(PANIC, panics).with(ADD, add);
    let _worker = setup.start(tasks);
    let client = setup.client();
    for _ in 0..10 {
        let result = client.send(PANIC, ()).await.unwrap();
        let failure = failure(within(5, result.get()).await);
        assert_eq!(failure.exception.to_string(), "Panic('oh no')");
    }
    let result = client.send(ADD, (1, 1)).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn handler_receives_state_context_and_struct() {
    #[derive(Serialize, Deserialize)]
    struct Greeting {
        name: String,
        punctuation: String,
    }
    const GREET: Task<Kwargs<Greeting>, String> =
        Task::new("tasks.greet").params(&["name", "punctuation=\"!\""]);
    async fn greet(
        ctx: Context<String>,
        Kwargs(greeting): Kwargs<Greeting>,
    ) -> Result<String, TaskError> {
        Ok(format!(
            "{} {}{}",
            ctx.state(),
            greeting.name,
            greeting.punctuation
        ))
    }
    let setup = Setup::new();
    let _worker = setup.start(
        Tasks::new()
            .with(GREET, greet)
            .with_state("Hello".to_owned()),
    );
    let result = setup
        .client()
        .send_by_name("tasks.greet", ("you",), ())
        .await
        .unwrap();
    assert_eq!(
        within(5, result.get()).await.unwrap(),
        Value::from("Hello you!")
    );
}

#[tokio::test(start_paused = true)]
async fn untyped_task_receives_raw_arguments() {
    async fn count(args: Vec<Value>, kwargs: Map) -> Result<Value, TaskError> {
        Ok(Value::from((args.len() + kwargs.len()) as i64))
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with_dyn(DynTask::new("any.name"), count));
    let result = setup
        .client()
        .send_by_name("any.name", (1, "2"), Map::from([("k", 3)]))
        .await
        .unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), Value::Int(3));
}

#[tokio::test]
async fn blocking_task_runs_on_bounded_threads() {
    const BLOCK: Task<(), usize> = Task::new("tasks.block");
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counter, peak) = (Arc::clone(&running), Arc::clone(&most));
    let block = move || -> Result<usize, TaskError> {
        let now = counter.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(now, Ordering::SeqCst);
        std::thread::yield_now();
        counter.fetch_sub(1, Ordering::SeqCst);
        Ok(now)
    };
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with_blocking(BLOCK, block));
    let client = setup.client();
    for result in client.apply_all((0..40).map(|_| BLOCK.s(()))).await {
        result.unwrap().get().await.unwrap();
    }
    assert!((1..=4).contains(&most.load(Ordering::SeqCst)));
}

#[tokio::test(start_paused = true)]
async fn eta_and_expiry_are_observed() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let client = setup.client();

    let later = ADD.s((1, 1)).countdown(Duration::from_secs(3600));
    let later = client.apply(later).await.unwrap();
    let day = ADD
        .s((2, 2))
        .eta(start_time() + Duration::from_secs(86_000));
    let day = client.apply(day).await.unwrap();
    assert_eq!(later.get().await.unwrap(), 2);
    assert_eq!(setup.elapsed().round() as u64, 3600);
    assert_eq!(day.get().await.unwrap(), 4);
    assert_eq!(setup.elapsed().round() as u64, 86_000);

    let expired = ADD
        .s((1, 1))
        .countdown(Duration::from_secs(10))
        .expires_in(Duration::from_secs(5));
    let expired = client.apply(expired).await.unwrap();
    let failure = failure(within(60, expired.get()).await);
    assert_eq!(failure.state.name(), "REVOKED");
    assert_eq!(failure.exception.to_string(), "TaskRevokedError('expired')");
}

#[tokio::test(start_paused = true)]
async fn lower_priority_number_runs_first_and_queues_alternate() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&order);
    let push = move |number: u32| {
        log.lock().unwrap().push(number);
        std::future::ready(Ok::<_, TaskError>(()))
    };
    let setup = Setup::new();
    let client = setup.client();
    let calls = [
        (1, "a", 9),
        (2, "a", 0),
        (3, "b", 0),
        (4, "b", 3),
        (5, "a", 0),
    ];
    let mut results = Vec::new();
    for (number, queue, priority) in calls {
        let call = PUSH.s((number,)).queue(queue).priority(priority);
        results.push(client.apply(call).await.unwrap());
    }
    let worker = setup
        .app
        .worker(Tasks::new().with(PUSH, push))
        .queue("a")
        .queue("b")
        .concurrency(1);
    let _worker = crate::support::Running::start(worker);
    for result in results {
        within(5, result.get()).await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [2, 3, 5, 4, 1]);
}

#[tokio::test(start_paused = true)]
async fn task_with_protocol_1_or_other_serializer_runs() {
    let config = Config::new().set("task_protocol", 1).unwrap();
    let setup = Setup::with_config(config);
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let result = setup.client().send(ADD, (20, 3)).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 23);
    let retried = setup.client().result::<i64>(result.id());
    assert!(retried.ready().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn prefetch_multiplier_one_fetches_only_running_tasks() {
    const WAIT: Task<(u64,), ()> = Task::new("tasks.wait").params(&["seconds"]);
    async fn wait(seconds: u64) -> Result<(), TaskError> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    }
    let setup = Setup::new();
    let client = setup.client();
    let worker = |name: &str| {
        let tasks = Tasks::new().with(WAIT, wait);
        let worker = setup
            .app
            .worker(tasks)
            .concurrency(1)
            .prefetch_multiplier(1)
            .hostname(name);
        crate::support::Running::start(worker)
    };
    let long = client.send(WAIT, (600,)).await.unwrap();
    let _busy = worker("busy");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let short = client.apply_all((0..20).map(|_| WAIT.s((1,)))).await;
    let _idle = worker("idle");
    for result in short {
        within(30, result.unwrap().get()).await.unwrap();
    }
    assert!(!long.ready().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn named_exchange_reaches_bound_queue() {
    let setup = Setup::new();
    let queue = Queue::new("images").bound_to(celery_runtime::Exchange::topic("media"), "image.#");
    setup.broker.declare(&queue).await.unwrap();
    let call = ADD
        .s((1, 2))
        .exchange("media")
        .routing_key("image.png.small");
    setup.client().apply(call).await.unwrap();
    assert_eq!(setup.depth("images").await, 1);
    let call = ADD.s((1, 2)).exchange("media").routing_key("sound.wav");
    let error = setup.client().apply(call).await.unwrap_err().to_string();
    assert!(
        error.contains("media") && error.contains("sound.wav"),
        "{error}"
    );
}

#[test]
fn worker_future_is_send() {
    fn spawnable<T: Send + 'static>(_: &T) {}
    let setup = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async { Setup::new() });
    let worker = setup.app.worker(Tasks::new().with(ADD, add));
    spawnable(&worker.run());
    assert_eq!(Serializer::Json.name(), "json");
}

#[tokio::test(start_paused = true)]
async fn worker_answers_ping_task() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new());
    let ping: Task<(), String> = Task::new("celery.ping");
    let pong = setup.client().send(ping, ()).await.unwrap();
    assert_eq!(within(5, pong.get()).await.unwrap(), "pong");
}

#[tokio::test(start_paused = true)]
async fn early_acknowledged_task_frees_prefetch() {
    const WAIT: Task<(u64,), ()> = Task::new("tasks.wait").params(&["seconds"]);
    async fn wait(seconds: u64) -> Result<(), TaskError> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    }
    for (task, left) in [(WAIT, 1), (WAIT.acks_late(), 2)] {
        let setup = Setup::new();
        let calls = setup.client().apply_all((0..4).map(|_| task.s((9,)))).await;
        assert_eq!(calls.len(), 4);
        let worker = setup.app.worker(Tasks::new().with(task, wait));
        let worker = worker.concurrency(1).prefetch_multiplier(2);
        let _worker = crate::support::Running::start(worker);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(setup.depth("celery").await, left);
    }
}
