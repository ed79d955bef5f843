//! Cases about storing, reading and awaiting results.

use std::sync::Arc;

use celery_protocol::{Exception, Raw, ResultDocument, Serializer, State};

use super::{BackendSetup, Pair, document, fetch};
use crate::conformance::{unique_name, wait_for};

/// `fetch` returns nothing for a task without a stored document.
pub async fn unknown_task_has_no_document(setup: &dyn BackendSetup) {
    let id = unique_name("unknown");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    assert!(pair.fetch(&id).await.is_none());
    assert!(pair.fetch(&unique_name("unexpected")).await.is_none());
}

/// `fetch` returns all fields of a document, and the documents in the order of the
/// ids.
pub async fn stored_document_is_read_back_complete(setup: &dyn BackendSetup) {
    let ids = [unique_name("missing"), unique_name("whole")];
    let pair = Pair::expecting(setup, &ids).await;
    let exception = Exception::new("builtins", "ValueError", "boom");
    let raw = Raw::encode(Serializer::Json, &exception).expect("encoded");
    let mut failed = ResultDocument::new(ids[1].clone(), State::Failure, raw);
    failed.traceback = Some("ValueError: boom\n".into());
    failed.date_done = Some("2026-11-21T08:32:22.557074+00:00".into());
    failed.parent_id = Some("parent".into());
    failed.group_id = Some("group".into());
    failed.name = Some("tasks.fail".into());
    failed.retries = Some(2);
    pair.store(&failed).await;
    pair.until(&ids[1], &State::Failure).await;
    let mut found = wait_for("fetch", pair.reader.fetch(&ids))
        .await
        .expect("fetched");
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

/// With shared results, `fetch` and `wait` of a client that did not prepare for the
/// result return it.
pub async fn shared_result_is_read_by_every_client(setup: &dyn BackendSetup) {
    let id = unique_name("shared");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    if !pair.reader.capabilities().shared {
        return;
    }
    pair.store(&document(&id, State::Success, "42")).await;
    let another = setup.backend();
    let found = fetch(&*another, &id).await.expect("stored");
    assert_eq!(found.result.decode::<i64>(), Ok(42));
    let waited = wait_for("wait", another.wait(&id))
        .await
        .expect("a document");
    assert_eq!(waited.result.decode::<i64>(), Ok(42));
}

/// A document with the state SUCCESS is not replaced by any other.
pub async fn success_document_is_not_replaced(setup: &dyn BackendSetup) {
    let id = unique_name("success");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    pair.store(&document(&id, State::Success, "42")).await;
    for state in [State::Failure, State::Started, State::Retry, State::Success] {
        pair.store(&document(&id, state, "null")).await;
    }
    pair.catch_up().await;
    let kept = pair.fetch(&id).await.expect("stored");
    assert_eq!(
        (kept.status, kept.result.decode::<i64>()),
        (State::Success, Ok(42))
    );
}

/// A document in another state is replaced by a later one, also if its value
/// contains the text of a SUCCESS document.
pub async fn other_document_is_replaced_by_later_one(setup: &dyn BackendSetup) {
    let id = unique_name("replaced");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    let decoy = r#"{"status": "SUCCESS", "text": "\"status\": \"SUCCESS\""}"#;
    let states = [
        State::Started,
        State::Failure,
        State::Custom("PROGRESS".into()),
    ];
    for state in states {
        pair.store(&document(&id, state.clone(), decoy)).await;
        pair.until(&id, &state).await;
    }
    pair.store(&document(&id, State::Success, "1")).await;
    let found = pair.until(&id, &State::Success).await;
    assert_eq!(found.result.decode::<i64>(), Ok(1));
}

/// `wait` returns the final document, whether it was stored before or after the
/// call.
pub async fn wait_returns_result_stored_before_or_after(setup: &dyn BackendSetup) {
    let id = unique_name("wait");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    let waiter = {
        let (backend, id) = (Arc::clone(&pair.reader), id.clone());
        tokio::spawn(async move { backend.wait(&id).await })
    };
    tokio::task::yield_now().await;
    pair.store(&document(&id, State::Started, "{}")).await;
    pair.store(&document(&id, State::Success, "7")).await;
    let before = wait_for("waiter", waiter)
        .await
        .expect("no panic")
        .expect("a document");
    assert_eq!(before.result.decode::<i64>(), Ok(7));
    let after = wait_for("wait", pair.reader.wait(&id))
        .await
        .expect("a document");
    assert_eq!(after.result.decode::<i64>(), Ok(7));
}

/// A thousand concurrent calls of `wait`, two for each task, all return.
pub async fn thousand_concurrent_waits_all_return(setup: &dyn BackendSetup) {
    let prefix = unique_name("many");
    let ids: Vec<_> = (0..500).map(|n| format!("{prefix}-{n}")).collect();
    let pair = Pair::expecting(setup, &ids).await;
    let waiters: Vec<_> = (0..1000)
        .map(|n| {
            let (backend, id) = (Arc::clone(&pair.reader), ids[n / 2].clone());
            tokio::spawn(async move { backend.wait(&id).await })
        })
        .collect();
    for id in &ids {
        pair.store(&document(id, State::Success, "true")).await;
    }
    for waiter in waiters {
        let found = wait_for("waiter", waiter)
            .await
            .expect("no panic")
            .expect("a document");
        assert_eq!(found.result.decode::<bool>(), Ok(true));
    }
}

/// Values that are hard to encode are read back unchanged.
pub async fn unusual_values_are_read_back_unchanged(setup: &dyn BackendSetup) {
    let values = [
        "null",
        "NaN",
        "-Infinity",
        "123456789012345678901234567890",
        r#""\u00e9\ud83d\ude00""#,
        r#"{"__type__": "datetime", "__value__": "2030-01-02T03:04:05"}"#,
        "[[], {}]",
    ];
    let ids = values.map(|_| unique_name("value"));
    let pair = Pair::expecting(setup, &ids).await;
    for (id, json) in ids.iter().zip(values) {
        pair.store(&document(id, State::Success, json)).await;
        let found = pair.until(id, &State::Success).await;
        assert_eq!(
            found.result.to_value(),
            Raw::json(json).to_value(),
            "{json}"
        );
    }
}

/// `forget` deletes results: for every client where results are shared, otherwise
/// for the calling client.
pub async fn forgotten_results_are_not_read(setup: &dyn BackendSetup) {
    let ids = [unique_name("one"), unique_name("two")];
    let pair = Pair::expecting(setup, &ids).await;
    for id in &ids {
        pair.store(&document(id, State::Success, "1")).await;
        pair.until(id, &State::Success).await;
    }
    wait_for("forget", pair.reader.forget(&ids))
        .await
        .expect("forgotten");
    for id in &ids {
        assert!(pair.fetch(id).await.is_none());
    }
    if pair.reader.capabilities().shared {
        assert!(fetch(&*setup.backend(), &ids[0]).await.is_none());
    }
}
