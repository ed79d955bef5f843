//! Results over RabbitMQ (`rpc://`), which only the sending client receives.

use std::sync::Arc;
use std::time::Duration;

use celery::{App, ResultError, SendError, State, group};
use celery_broker_amqp::RpcBackend;
use celery_protocol::ResultTree;

use crate::support::{
    LANGUAGE, RunningWorker, Setup, TIMEOUT, assert_sums, eventually, for_each_broker, send_adds,
    start_python, test_tasks,
};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, SLEEP, XSUM};

for_each_broker! {
    many_waiters_share_one_reply_queue: rpc;
    many_python_threads_receive_rust_results: rpc;
    started_state_of_python_worker_is_visible: rpc;
    clients_do_not_see_results_of_other_clients: rpc;
    results_for_a_client_that_is_gone_are_dropped: rpc;
    forgotten_result_is_pending: rpc;
    reply_queue_is_deleted_with_its_client: rpc;
    group_results_are_rejected: rpc;
    rpc_chord_is_rejected_before_sending: rpc;
    chord_without_chord_backend_fails: rpc;
}

async fn many_waiters_share_one_reply_queue(setup: Setup) {
    let python = start_python(setup.python_worker().concurrency(2)).await;
    let client = setup.client();
    let adds = send_adds(&client, 200).await;
    let mut waiters = tokio::task::JoinSet::new();
    for (number, add) in (0..).zip(adds) {
        waiters.spawn(async move { (number, add.get_timeout(TIMEOUT).await) });
    }
    while let Some(received) = waiters.join_next().await {
        let (number, sum) = received.unwrap();
        assert_eq!(sum.unwrap(), Int(number + 1));
    }
    python.terminate();
    setup.assert_drained().await;
}

async fn many_python_threads_receive_rust_results(setup: Setup) {
    let worker = setup.worker().await;
    // Each Python thread has a reply queue of its own.
    let program = r#"
from concurrent.futures import ThreadPoolExecutor

def many(thread):
    sent = [(n, send("tasks.add", (n, thread))) for n in range(50)]
    for n, result in reversed(sent):
        same(get(result), n + thread)

with ThreadPoolExecutor(4) as pool:
    list(pool.map(many, range(4)))

sent = [(n, send("tasks.add", (n, 1))) for n in range(200)]
for n, result in sent:
    same(get(result), n + 1)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn started_state_of_python_worker_is_visible(setup: Setup) {
    let setup = setup.set_both("task_track_started", true);
    let _python = start_python(setup.python_worker()).await;
    let slow = setup.client().send(SLEEP, (1.0,)).await.unwrap();
    let info = eventually("the task is started", async || {
        let state = slow.state().await.unwrap();
        assert_ne!(
            state,
            State::Success,
            "the task ended before STARTED was seen"
        );
        let info = slow.info().await.unwrap();
        (state == State::Started).then_some(info)
    })
    .await;
    assert!(info.get("pid").unwrap().as_u64().is_some(), "{info:?}");
    assert_eq!(slow.get_timeout(TIMEOUT).await.unwrap(), 1.0);
    assert_eq!(slow.state().await.unwrap(), State::Success);
}

async fn clients_do_not_see_results_of_other_clients(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    let (one, other) = (setup.client(), setup.client());
    let own = one.send(LANGUAGE, ()).await.unwrap();
    let others = other.send(ADD, (Int(1), Int(2))).await.unwrap();
    assert_eq!(own.get_timeout(TIMEOUT).await.unwrap(), "rust");
    assert_eq!(others.get_timeout(TIMEOUT).await.unwrap(), Int(3));

    let peek = other.result::<String>(own.id());
    assert_eq!(peek.state().await.unwrap(), State::Pending);
    let error = peek.get_timeout(Duration::from_millis(200)).await;
    assert!(matches!(error, Err(ResultError::TimedOut { .. })));
    worker.stop().await;
}

async fn results_for_a_client_that_is_gone_are_dropped(setup: Setup) {
    let sender = setup.app();
    let sent = sender.client().send(LANGUAGE, ()).await.unwrap();
    sender.client().send(LANGUAGE, ()).await.unwrap();
    sender.close().await;
    let broker = Arc::clone(setup.app().broker());
    let backend = RpcBackend::new(Arc::clone(&broker));
    let app = App::new(broker).with_backend(Arc::new(backend.clone()));
    let worker = RunningWorker::start(app.worker(test_tasks())).await;

    // Also the results, for which there is no queue.
    setup.assert_drained().await;
    sent.get_timeout(TIMEOUT).await.unwrap_err();
    worker.stop().await;
}

async fn forgotten_result_is_pending(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    let sent = setup.client().send(LANGUAGE, ()).await.unwrap();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), "rust");
    assert_eq!(sent.state().await.unwrap(), State::Success);
    sent.forget().await.unwrap();
    assert_eq!(sent.state().await.unwrap(), State::Pending);

    let program = r#"
known = send("test.language")
same(get(known), "rust")
known.forget()
same(call("tasks.add", 1, 2), 3)
"#;
    setup.python(program).await;
    worker.stop().await;
}

async fn reply_queue_is_deleted_with_its_client(setup: Setup) {
    let worker = setup.worker().await;
    let app = setup.app();
    let ours = app.backend().and_then(|one| one.reply_to()).unwrap();
    assert_sums(&send_adds(&app.client(), 10).await).await;
    assert!(setup.vhost().queues().await.contains_key(&ours));
    let program = r#"
same(call("tasks.add", 1, 2), 3)
print(app.thread_oid)
"#;
    let theirs = setup.python(program).await.trim().to_owned();
    app.close().await;

    eventually("both queues are deleted", async || {
        let queues = setup.vhost().queues().await;
        (![&ours, &theirs]
            .iter()
            .any(|queue| queues.contains_key(*queue)))
        .then_some(())
    })
    .await;
    worker.stop().await;
}

async fn group_results_are_rejected(setup: Setup) {
    let app = setup.app();
    let backend = app.backend().unwrap();
    let group = ResultTree::group("a-group", vec![ResultTree::task("member")]);
    let stored = backend.store_group(&group).await;
    let read = backend.fetch_group("a-group").await;
    for error in [stored.unwrap_err(), read.unwrap_err()] {
        let text = error.to_string();
        for part in ["a-group", "nothing is stored", "redis://"] {
            assert!(text.contains(part), "{part:?} is missing in {text:?}");
        }
        assert!(!error.is_transient());
    }
}

async fn rpc_chord_is_rejected_before_sending(setup: Setup) {
    let client = setup.client();
    let add = |x: i64, y: i64| ADD.s((Int(x), Int(y)));
    let plus = |y: i64| ADD.p((Int(y),));
    let chord = group([add(1, 1), add(2, 2)]).then(XSUM.p(()));
    let chord_after_task = add(1, 1).then(group([plus(1), plus(2)])).then(XSUM.p(()));
    for canvas in [chord, chord_after_task] {
        let error = client.apply(canvas).await.unwrap_err();
        assert!(matches!(error, SendError::Chord { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("result backend does not support chords"),
            "{text}"
        );
    }
}

async fn chord_without_chord_backend_fails(setup: Setup) {
    let worker = setup.worker().await;
    // The link is a chord in a plain dict, which the client does not check.
    let program = r#"
add, xsum = app.tasks["tasks.add"], app.tasks["tasks.xsum"]
body = xsum.s().set(task_id="body", reply_to=app.thread_oid)
pair = dict(chord([add.s(1), add.s(2)], body))
first = app.signature("tasks.add", (1, 1)).set(link=pair).apply_async()
try:
    first.get(timeout=TIMEOUT)
except Exception as error:
    same("does not support chords" in str(error), True)
else:
    raise AssertionError("it did not fail")
"#;
    setup.python(program).await;
    worker.stop().await;
}
