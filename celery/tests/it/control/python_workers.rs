//! A Rust client inspects and controls Python workers.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use celery::{App, CommandError, Control, Inspect, Map, Replies, ResultError, State, Value};
use test_servers::{PythonWorker, PythonWorkerBuilder};

use crate::support::{Setup, TIMEOUT, eventually, for_each_broker, start_python, within};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, SLEEP};

/// Returns a worker that replies while it runs tasks, one at a time.
fn worker(setup: &Setup, name: &str) -> PythonWorkerBuilder {
    let worker = setup.python_worker().pool("threads");
    worker.argument("--hostname").argument(name)
}

/// Starts one worker, with an [`Inspect`] that waits for its reply only.
async fn start_one(setup: &Setup, app: &App) -> (PythonWorker, Inspect) {
    let worker = start_python(worker(setup, ONE)).await;
    (worker, one_reply(app.inspect()))
}

fn one_reply(inspect: Inspect) -> Inspect {
    inspect.timeout(TIMEOUT).limit(1)
}

const ONE: &str = "one@test";
const TWO: &str = "two@test";

/// Returns the reply of the one worker.
fn only<T>(replies: Replies<T>) -> T {
    let (node, answer) = replies.into_iter().next().expect("an answer");
    assert_eq!(node, ONE);
    answer.unwrap_or_else(|error| panic!("{error}"))
}

fn nodes<T>(replies: &Replies<T>) -> BTreeSet<&str> {
    replies.answers().map(|(node, _)| node).collect()
}

for_each_broker! {
    inspect_methods_return_replies: redis, rabbitmq;
    commands_take_effect_or_return_errors: redis, rabbitmq;
    revoked_task_is_not_run: redis, rabbitmq;
    running_task_is_terminated: redis, rabbitmq;
    workers_are_addressed_by_name_and_pattern: redis, rabbitmq;
    worker_is_shut_down: redis, rabbitmq;
    dropped_clients_leave_no_mailboxes: redis, rabbitmq;
    client_inspects_restarted_worker: redis, rabbitmq;
}

async fn inspect_methods_return_replies(setup: Setup) {
    let app = setup.app();
    let (_python, inspect) = start_one(&setup, &app).await;
    let client = app.client();
    let running = client.send(SLEEP, (60.0,)).await.unwrap();
    eventually("a task runs", async || {
        let active = only(inspect.active().await.unwrap());
        (active.len() == 1).then_some(())
    })
    .await;
    let waiting = client.send(ADD, (Int(1), Int(2))).await.unwrap();
    let later = ADD
        .s((Int(3), Int(4)))
        .eta(SystemTime::now() + Duration::from_secs(3600));
    let later = client.apply(later).await.unwrap();

    let active = only(inspect.active().await.unwrap()).remove(0);
    assert_eq!((&*active.id, &*active.task), (running.id(), "tasks.sleep"));
    assert_eq!((&*active.hostname, active.acknowledged), (ONE, true));
    assert_eq!(active.args, Value::from(vec![60.0]));
    assert_eq!(active.routing_key, "celery");
    assert!(active.time_start.is_some());
    let reserved = eventually("a task is reserved", async || {
        let reserved = only(inspect.reserved().await.unwrap());
        reserved.into_iter().find(|task| task.id == waiting.id())
    })
    .await;
    assert_eq!((reserved.time_start, reserved.acknowledged), (None, false));
    let scheduled = eventually("a task is scheduled", async || {
        only(inspect.scheduled().await.unwrap()).pop()
    })
    .await;
    assert_eq!(scheduled.request.id, later.id());
    assert!(scheduled.eta.is_some());

    let ids = [running.id(), later.id(), "unknown"];
    let found = only(inspect.query_task(ids).await.unwrap());
    assert_eq!(found[running.id()].state, "active");
    assert_eq!(found[later.id()].state, "scheduled");
    assert_eq!(found.len(), 2);

    let stats = only(inspect.stats().await.unwrap());
    assert_eq!(stats.max_concurrency, Some(1));
    assert!(stats.pid.is_some() && stats.prefetch_count.is_some());
    assert!(stats.total["tasks.sleep"] >= 1 && stats.fields.contains_key("rusage"));
    let transport = stats.transport.unwrap();
    assert!(
        ["redis", "amqp", "pyamqp"].contains(&&*transport),
        "{transport}"
    );

    let tasks = only(inspect.registered(&[]).await.unwrap());
    assert!(tasks.iter().any(|task| task.name == "tasks.add"));
    let tasks = only(inspect.registered(&["max_retries"]).await.unwrap());
    let add = tasks.iter().find(|task| task.name == "tasks.add").unwrap();
    assert_eq!(add.info.as_deref(), Some("max_retries=3"));

    let set = only(inspect.conf().await.unwrap());
    let all = only(inspect.conf_with_defaults().await.unwrap());
    assert!(set.contains_key("broker_url") && all.len() > set.len());
    assert!(only(inspect.report().await.unwrap()).contains("software -> celery"));
    let queues = only(inspect.active_queues().await.unwrap());
    assert_eq!(
        (&*queues[0].name, &*queues[0].routing_key),
        ("celery", "celery")
    );
    assert_eq!(queues[0].exchange.kind, "direct");

    assert!(only(inspect.revoked().await.unwrap()).is_empty());
    let hello = only(inspect.hello("me@test", ["gone"]).await.unwrap()).unwrap();
    assert_eq!(hello.revoked, ["gone"]);
    assert_eq!(only(inspect.revoked().await.unwrap()), ["gone"]);
    assert_eq!(only(inspect.hello(ONE, [""; 0]).await.unwrap()), None);
    let clock = only(inspect.clock().await.unwrap());
    assert!(clock > hello.clock, "{clock}");
    // Without psutil the reply is empty.
    only(inspect.memsample().await.unwrap());
    only(inspect.ping().await.unwrap());
}

async fn commands_take_effect_or_return_errors(setup: Setup) {
    let app = setup.app();
    // Thread pools cannot grow.
    let _python = start_python(worker(&setup, ONE).pool("prefork")).await;
    let inspect = one_reply(app.inspect());
    let control = app.control().timeout(TIMEOUT).limit(1);
    let reply = async |call: celery::ControlCall| only(call.replies().await.unwrap());

    let limited = reply(control.rate_limit("tasks.add", "10/m")).await;
    assert_eq!(limited, Value::from("new rate limit set successfully"));
    let add = only(inspect.registered(&["rate_limit"]).await.unwrap());
    let add = add.into_iter().find(|task| task.name == "tasks.add");
    assert_eq!(add.unwrap().info.as_deref(), Some("rate_limit=10/m"));
    let no_limit = reply(control.rate_limit("tasks.add", 0)).await;
    assert_eq!(no_limit, "rate limit disabled successfully".into());
    let limits = control.time_limit("tasks.add", None, Some(Duration::from_secs(9)));
    assert_eq!(reply(limits).await, "time limits set successfully".into());
    assert_eq!(reply(control.pool_grow(1)).await, "pool will grow".into());
    assert_eq!(
        reply(control.pool_shrink(1)).await,
        "pool will shrink".into()
    );
    reply(control.enable_events()).await;
    let again = reply(control.enable_events()).await;
    assert_eq!(again, "task events already enabled".into());
    let off = reply(control.disable_events()).await;
    assert_eq!(off, "task events disabled".into());
    assert_eq!(reply(control.heartbeat()).await, Value::Null);
    let stamps = Map::from([("tenant", vec!["a"])]);
    let stamped = reply(control.revoke_by_stamped_headers(stamps)).await;
    assert!(stamped.as_str().unwrap().contains("tenant"), "{stamped:?}");
    let added = reply(control.add_consumer("extra")).await;
    assert_eq!(added, "add consumer extra".into());
    eventually("the queue is consumed", async || {
        let queues = only(inspect.active_queues().await.unwrap());
        let found = queues.iter().any(|queue| queue.name == "extra");
        found.then_some(())
    })
    .await;
    let cancelled = reply(control.cancel_consumer("extra")).await;
    assert_eq!(cancelled, "no longer consuming from extra".into());

    let rejected = [
        (control.rate_limit("nowhere", "1/s"), "unknown task"),
        (control.pool_restart(), "Pool restarts not enabled"),
        (control.autoscale(3, 1), "Autoscale not enabled"),
    ];
    for (call, expected) in rejected {
        let (_, answer) = call.replies().await.unwrap().into_iter().next().unwrap();
        let Err(CommandError::Failed { node, cause, .. }) = answer else {
            panic!("{answer:?}");
        };
        assert!(node == ONE && cause.contains(expected), "{cause}");
    }
    let custom = control.call("no_such_command", Map::new()).await.unwrap();
    let error = custom.errors().next().unwrap().to_string();
    assert!(error.contains("KeyError('no_such_command')"), "{error}");
    control
        .broadcast("no_such_command", Map::new())
        .await
        .unwrap();
    only(inspect.ping().await.unwrap());
}

async fn revoked_task_is_not_run(setup: Setup) {
    let app = setup.app();
    let _python = start_python(worker(&setup, ONE).queues(&["elsewhere"])).await;
    let control = app.control().timeout(TIMEOUT).limit(1);
    let waiting = app.client().send(ADD, (Int(1), Int(2))).await.unwrap();
    only(control.revoke([waiting.id()]).replies().await.unwrap());
    let inspect = one_reply(app.inspect());
    assert_eq!(only(inspect.revoked().await.unwrap()), [waiting.id()]);
    only(control.add_consumer("celery").replies().await.unwrap());
    match waiting.get_timeout(TIMEOUT).await {
        Err(ResultError::Task(failure)) => assert_eq!(failure.state, State::Revoked),
        other => panic!("{other:?}"),
    }
}

async fn running_task_is_terminated(setup: Setup) {
    let app = setup.app();
    let python = worker(&setup, ONE).pool("prefork").concurrency(1);
    let _python = start_python(python).await;
    let inspect = one_reply(app.inspect());
    let running = app.client().send(SLEEP, (600.0,)).await.unwrap();
    eventually("the task runs", async || {
        let active = only(inspect.active().await.unwrap());
        active
            .iter()
            .any(|task| task.worker_pid.is_some())
            .then_some(())
    })
    .await;
    let control = app.control();
    control
        .terminate([running.id()], "SIGTERM")
        .send()
        .await
        .unwrap();
    match running.get_timeout(TIMEOUT).await {
        Err(ResultError::Task(failure)) => assert_eq!(failure.state, State::Revoked),
        other => panic!("{other:?}"),
    }
}

/// Starts two workers.
async fn start_two(setup: &Setup) -> [PythonWorker; 2] {
    let (one, two) = tokio::join!(
        start_python(worker(setup, ONE)),
        start_python(worker(setup, TWO))
    );
    [one, two]
}

async fn workers_are_addressed_by_name_and_pattern(setup: Setup) {
    let app = setup.app();
    let _pythons = start_two(&setup).await;
    let both = app.control().timeout(TIMEOUT).limit(2);
    assert_eq!(
        nodes(&both.ping().await.unwrap()),
        BTreeSet::from([ONE, TWO])
    );
    let named = app.inspect().timeout(TIMEOUT).destination([TWO]);
    assert_eq!(nodes(&named.ping().await.unwrap()), BTreeSet::from([TWO]));
    // An excluded worker does not reply, so these calls wait for their timeout.
    let matching: [Control; 2] = [
        app.control().glob("o*@test"),
        app.control().regex("^on[aeiou]@"),
    ];
    for control in matching {
        assert_eq!(nodes(&control.ping().await.unwrap()), BTreeSet::from([ONE]));
    }
    let unknown = app.control().destination(["three@test"]);
    assert!(unknown.ping().await.unwrap().is_empty());
}

async fn worker_is_shut_down(setup: Setup) {
    let app = setup.app();
    let [one, _two] = start_two(&setup).await;
    let first = app.control().destination([ONE]);
    first.shutdown().send().await.unwrap();
    let log = crate::support::blocking(move || one.wait_for_end()).await;
    assert!(
        log.contains("Warm shutdown") || log.contains("remote"),
        "{log}"
    );
    let left = app
        .control()
        .timeout(TIMEOUT)
        .limit(1)
        .ping()
        .await
        .unwrap();
    assert_eq!(nodes(&left), BTreeSet::from([TWO]));
}

async fn dropped_clients_leave_no_mailboxes(setup: Setup) {
    let app = setup.app();
    let (_python, inspect) = start_one(&setup, &app).await;
    let before = lasting_keys(&setup);
    let mut calls = Vec::new();
    for number in 0..200u64 {
        let client = app.inspect();
        calls.push(tokio::spawn(async move {
            // Some calls are dropped while they open the mailbox, some while they wait.
            let timeout = Duration::from_micros(number * number);
            let _ = tokio::time::timeout(timeout, client.stats()).await;
        }));
    }
    for call in calls {
        within("the clients are dropped", call).await.unwrap();
    }
    only(inspect.ping().await.unwrap());
    drop(inspect);
    eventually("the mailboxes are deleted", async || {
        if setup.is_on_redis() {
            let lists = setup.redis.command(&["KEYS", "*.reply.celery.pidbox"]);
            let lists: Vec<_> = lists.texts();
            let is_clean = lists.iter().all(|key| key.starts_with("_kombu"));
            return (is_clean && lasting_keys(&setup) == before).then_some(());
        }
        let queues = setup.vhost().queues().await;
        let left = queues.keys().filter(|name| name.contains("reply"));
        (left.count() == 0).then_some(())
    })
    .await;
}

/// Returns the keys without a time to live.
fn lasting_keys(setup: &Setup) -> BTreeSet<String> {
    if !setup.is_on_redis() {
        return BTreeSet::new();
    }
    let keys = setup.redis.command(&["KEYS", "*"]).texts();
    let lasts = |key: &String| setup.redis.command(&["PTTL", key]).integer() == -1;
    keys.into_iter().filter(lasts).collect()
}

async fn client_inspects_restarted_worker(setup: Setup) {
    let app = setup.app();
    let (python, inspect) = start_one(&setup, &app).await;
    only(inspect.ping().await.unwrap());
    python.kill();
    let (_python, _) = start_one(&setup, &app).await;
    only(inspect.ping().await.unwrap());
}
