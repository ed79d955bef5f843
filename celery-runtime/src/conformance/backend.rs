//! The contract of [`ResultBackend`].

use std::sync::Arc;

use celery_protocol::{Exception, Raw, ResultDocument, Serializer, State};

use super::{fresh, soon};
use crate::backend::{Record, ResultBackend};

/// A backend to test.
pub trait Setup: Send + Sync {
    /// A new client of the same server.
    fn backend(&self) -> Arc<dyn ResultBackend>;
}

/// One test for each case of the suite; those of capabilities that the backend
/// does not declare pass without doing anything.
#[macro_export]
macro_rules! backend_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::__conformance_tests!(backend $attributes $setup,
            nothing_is_known_of_a_task_at_first
            a_document_is_read_back_whole
            a_success_is_never_replaced
            everything_else_is_replaced
            waiting_before_and_after_the_result
            a_thousand_wait_at_once
            values_of_every_kind_survive
            forgotten_results_are_gone
            groups_are_read_back
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::backend_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::backend_conformance!(@cases [] $setup);
    };
}

fn document(id: &str, state: State, json: &'static str) -> ResultDocument<'static> {
    let mut document = ResultDocument::new(id.to_owned(), state, Raw::json(json));
    document.children = Some(Raw::json("[]"));
    document
}

async fn store(backend: &dyn ResultBackend, document: &ResultDocument<'_>) {
    soon("store", backend.store(Record::new(document)))
        .await
        .expect("stored");
}

async fn fetch(backend: &dyn ResultBackend, id: &str) -> Option<ResultDocument<'static>> {
    let ids = [id.to_owned()];
    let mut found = soon("fetch", backend.fetch(&ids)).await.expect("fetched");
    assert_eq!(found.len(), 1);
    found.pop().flatten()
}

/// A task that nothing was stored for.
pub async fn nothing_is_known_of_a_task_at_first(setup: &dyn Setup) {
    let backend = setup.backend();
    assert!(fetch(&*backend, &fresh("unknown")).await.is_none());
}

/// All fields come back, for several ids in their order.
pub async fn a_document_is_read_back_whole(setup: &dyn Setup) {
    let backend = setup.backend();
    let id = fresh("whole");
    let exception = Exception::new("builtins", "ValueError", "boom");
    let raw = Raw::encode(Serializer::Json, &exception).expect("encoded");
    let mut failed = ResultDocument::new(id.clone(), State::Failure, raw);
    failed.traceback = Some("ValueError: boom\n".into());
    failed.date_done = Some("2026-11-21T08:32:22.557074+00:00".into());
    failed.parent_id = Some("parent".into());
    failed.group_id = Some("group".into());
    failed.name = Some("tasks.fail".into());
    failed.retries = Some(2);
    store(&*backend, &failed).await;
    let ids = [fresh("missing"), id];
    let mut found = soon("fetch", backend.fetch(&ids)).await.expect("fetched");
    let read = found.pop().flatten().expect("stored");
    assert!(found.pop().flatten().is_none());
    assert_eq!(read.status, State::Failure);
    assert_eq!(
        read.exception().expect("readable").expect("there"),
        exception
    );
    assert_eq!(read.traceback, failed.traceback);
    assert_eq!(read.date_done, failed.date_done);
    assert_eq!(read.parent_id, failed.parent_id);
    assert_eq!(read.group_id, failed.group_id);
    assert_eq!(read.name, failed.name);
    assert_eq!(read.retries, Some(2));
    assert_eq!(read.task_id, failed.task_id);
}

/// SUCCESS stays, whatever comes.
pub async fn a_success_is_never_replaced(setup: &dyn Setup) {
    let backend = setup.backend();
    let id = fresh("success");
    store(&*backend, &document(&id, State::Success, "42")).await;
    for state in [State::Failure, State::Started, State::Retry, State::Success] {
        store(&*backend, &document(&id, state, "null")).await;
    }
    let kept = fetch(&*backend, &id).await.expect("stored");
    assert_eq!(
        (kept.status, kept.result.decode::<i64>()),
        (State::Success, Ok(42))
    );
}

/// Every other state gives way, and a value that looks like one does not fool.
pub async fn everything_else_is_replaced(setup: &dyn Setup) {
    let backend = setup.backend();
    let id = fresh("replaced");
    let decoy = r#"{"status": "SUCCESS", "text": "\"status\": \"SUCCESS\""}"#;
    for state in [
        State::Started,
        State::Failure,
        State::Custom("PROGRESS".into()),
    ] {
        store(&*backend, &document(&id, state, decoy)).await;
    }
    store(&*backend, &document(&id, State::Success, "1")).await;
    let found = fetch(&*backend, &id).await.expect("stored");
    assert_eq!(
        (found.status, found.result.decode::<i64>()),
        (State::Success, Ok(1))
    );
}

/// Those who wait before and those who ask after get it alike.
pub async fn waiting_before_and_after_the_result(setup: &dyn Setup) {
    let (backend, writer) = (setup.backend(), setup.backend());
    let id = fresh("wait");
    let waiter = {
        let (backend, id) = (Arc::clone(&backend), id.clone());
        tokio::spawn(async move { backend.wait(&id).await })
    };
    tokio::task::yield_now().await;
    store(&*writer, &document(&id, State::Started, "{}")).await;
    store(&*writer, &document(&id, State::Success, "7")).await;
    let before = soon("waiter", waiter)
        .await
        .expect("no panic")
        .expect("a document");
    assert_eq!(before.result.decode::<i64>(), Ok(7));
    let after = soon("wait", backend.wait(&id)).await.expect("a document");
    assert_eq!(after.result.decode::<i64>(), Ok(7));
}

/// Many waiters, two for each task, and none is forgotten.
pub async fn a_thousand_wait_at_once(setup: &dyn Setup) {
    let (backend, writer) = (setup.backend(), setup.backend());
    let prefix = fresh("many");
    let id = |n: usize| format!("{prefix}-{n}");
    let waiters: Vec<_> = (0..1000)
        .map(|n| {
            let (backend, id) = (Arc::clone(&backend), id(n / 2));
            tokio::spawn(async move { backend.wait(&id).await })
        })
        .collect();
    for n in 0..500 {
        store(&*writer, &document(&id(n), State::Success, "true")).await;
    }
    for waiter in waiters {
        let found = soon("waiter", waiter)
            .await
            .expect("no panic")
            .expect("a document");
        assert_eq!(found.result.decode::<bool>(), Ok(true));
    }
}

/// Values that are hard to carry come back as they were.
pub async fn values_of_every_kind_survive(setup: &dyn Setup) {
    let backend = setup.backend();
    for json in [
        "null",
        "NaN",
        "-Infinity",
        "123456789012345678901234567890",
        r#""\u00e9\ud83d\ude00""#,
        r#"{"__type__": "datetime", "__value__": "2030-01-02T03:04:05"}"#,
        "[[], {}]",
    ] {
        let id = fresh("value");
        store(&*backend, &document(&id, State::Success, json)).await;
        let found = fetch(&*backend, &id).await.expect("stored");
        assert_eq!(
            found.result.to_value(),
            Raw::json(json).to_value(),
            "{json}"
        );
    }
}

/// `forget` deletes.
pub async fn forgotten_results_are_gone(setup: &dyn Setup) {
    let backend = setup.backend();
    let ids = [fresh("one"), fresh("two")];
    for id in &ids {
        store(&*backend, &document(id, State::Success, "1")).await;
    }
    soon("forget", backend.forget(&ids))
        .await
        .expect("forgotten");
    for id in &ids {
        assert!(fetch(&*backend, id).await.is_none());
    }
}

/// The members of a group come back in their order.
pub async fn groups_are_read_back(setup: &dyn Setup) {
    let backend = setup.backend();
    if !backend.capabilities().groups {
        return;
    }
    let group = fresh("group");
    assert_eq!(
        soon("fetch", backend.fetch_group(&group))
            .await
            .expect("fetched"),
        None
    );
    let members: Vec<_> = (0..10).map(|n| format!("{group}-{n}")).collect();
    soon("store", backend.store_group(&group, &members))
        .await
        .expect("stored");
    let found = soon("fetch", setup.backend().fetch_group(&group))
        .await
        .expect("fetched");
    assert_eq!(found, Some(members));
}
