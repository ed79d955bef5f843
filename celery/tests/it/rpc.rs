//! Results over RabbitMQ, from worker to client and to nobody else.

use std::sync::Arc;
use std::time::Duration;

use celery::{App, ResultError, State};
use celery_broker_amqp::RpcBackend;
use celery_protocol::ResultTree;

use crate::support::{
    PATIENCE, Running, Setup, WHO, assert_sums, eventually, send_adds, start, stories, story,
};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, SLEEP};

stories! {
    many_wait_for_python_on_one_queue: rpc;
    many_python_threads_wait_for_us: rpc;
    python_reports_what_it_has_started: rpc;
    two_clients_do_not_see_each_others_results: rpc;
    results_for_nobody_are_dropped_and_counted: rpc;
    a_forgotten_result_is_not_known_any_more: rpc;
    the_reply_queue_ends_with_its_client: rpc;
    groups_are_refused: rpc;
}

async fn many_wait_for_python_on_one_queue(setup: Setup) {
    let python = start(setup.python_worker().concurrency(2)).await;
    let client = setup.client();
    let adds = send_adds(&client, 200).await;
    let mut waiters = tokio::task::JoinSet::new();
    for (number, add) in (0..).zip(adds) {
        waiters.spawn(async move { (number, add.get_timeout(PATIENCE).await) });
    }
    while let Some(woken) = waiters.join_next().await {
        let (number, sum) = woken.unwrap();
        assert_eq!(sum.unwrap(), Int(number + 1));
    }
    python.terminate();
    setup.assert_nothing_left().await;
}

async fn many_python_threads_wait_for_us(setup: Setup) {
    let worker = setup.worker().await;
    // Each of Python's threads has a reply queue of its own.
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
    setup.assert_nothing_left().await;
}

async fn python_reports_what_it_has_started(setup: Setup) {
    let setup = setup.with("task_track_started", true);
    let _python = start(setup.python_worker()).await;
    let slow = setup.client().send(SLEEP, (1.0,)).await.unwrap();
    let info = eventually("it is started", async || {
        let state = slow.state().await.unwrap();
        assert_ne!(state, State::Success, "it was over before it was seen");
        let info = slow.info().await.unwrap();
        (state == State::Started).then_some(info)
    })
    .await;
    assert!(info.get("pid").unwrap().as_u64().is_some(), "{info:?}");
    assert_eq!(slow.get_timeout(PATIENCE).await.unwrap(), 1.0);
    assert_eq!(slow.state().await.unwrap(), State::Success);
}

async fn two_clients_do_not_see_each_others_results(setup: Setup) {
    let worker = setup.serve(story()).await;
    let (one, other) = (setup.client(), setup.client());
    let own = one.send(WHO, ()).await.unwrap();
    let others = other.send(ADD, (Int(1), Int(2))).await.unwrap();
    assert_eq!(own.get_timeout(PATIENCE).await.unwrap(), "rust");
    assert_eq!(others.get_timeout(PATIENCE).await.unwrap(), Int(3));

    let peek = other.result::<String>(own.id());
    assert_eq!(peek.state().await.unwrap(), State::Pending);
    let error = peek.get_timeout(Duration::from_millis(200)).await;
    assert!(matches!(error, Err(ResultError::TimedOut { .. })));
    worker.stop().await;
}

async fn results_for_nobody_are_dropped_and_counted(setup: Setup) {
    let sender = setup.app();
    let sent = sender.client().send(WHO, ()).await.unwrap();
    sender.client().send(WHO, ()).await.unwrap();
    sender.close().await;
    let broker = Arc::clone(setup.app().broker());
    let backend = RpcBackend::new(Arc::clone(&broker));
    let app = App::new(broker).with_backend(Arc::new(backend.clone()));
    let worker = Running::start(app.worker(story())).await;

    eventually("they are dropped", async || {
        (backend.dropped() == 2).then_some(())
    })
    .await;
    sent.get_timeout(PATIENCE).await.unwrap_err();
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn a_forgotten_result_is_not_known_any_more(setup: Setup) {
    let worker = setup.serve(story()).await;
    let sent = setup.client().send(WHO, ()).await.unwrap();
    assert_eq!(sent.get_timeout(PATIENCE).await.unwrap(), "rust");
    assert_eq!(sent.state().await.unwrap(), State::Success);
    sent.forget().await.unwrap();
    assert_eq!(sent.state().await.unwrap(), State::Pending);

    let program = r#"
known = send("story.who")
same(get(known), "rust")
known.forget()
same(call("tasks.add", 1, 2), 3)
"#;
    setup.python(program).await;
    worker.stop().await;
}

async fn the_reply_queue_ends_with_its_client(setup: Setup) {
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

    eventually("both are gone", async || {
        let queues = setup.vhost().queues().await;
        (![&ours, &theirs]
            .iter()
            .any(|queue| queues.contains_key(*queue)))
        .then_some(())
    })
    .await;
    worker.stop().await;
}

async fn groups_are_refused(setup: Setup) {
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
