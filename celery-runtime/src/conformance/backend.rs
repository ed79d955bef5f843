//! The contract of [`ResultBackend`].

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Exception, Raw, ResultDocument, ResultTree, Serializer, State};

use super::{fresh, soon};
use crate::backend::{ChordStart, Record, ResultBackend};

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
            every_process_reads_what_is_shared
            a_success_is_never_replaced
            everything_else_is_replaced
            waiting_before_and_after_the_result
            a_thousand_wait_at_once
            values_of_every_kind_survive
            forgotten_results_are_gone
            groups_are_read_back
            chords_are_begun_or_refused
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

/// A client that waits for results, and a worker that stores them: two
/// processes, in which a result may take a while from one to the other.
struct Pair {
    reader: Arc<dyn ResultBackend>,
    writer: Arc<dyn ResultBackend>,
}

impl Pair {
    /// Both, ready for the results of `ids`.
    async fn expecting(setup: &dyn Setup, ids: &[String]) -> Self {
        let pair = Self {
            reader: setup.backend(),
            writer: setup.backend(),
        };
        pair.expect(ids).await;
        pair
    }

    async fn expect(&self, ids: &[String]) {
        soon("expect", self.reader.expect(ids))
            .await
            .expect("ready for results");
    }

    async fn store(&self, document: &ResultDocument<'_>) {
        let reply_to = self.reader.reply_to();
        let record = Record::new(document).reply(reply_to.as_deref(), Some(&document.task_id));
        soon("store", self.writer.store(record))
            .await
            .expect("stored");
    }

    async fn fetch(&self, id: &str) -> Option<ResultDocument<'static>> {
        fetch(&*self.reader, id).await
    }

    /// The document once it is in this state.
    async fn until(&self, id: &str, state: &State) -> ResultDocument<'static> {
        let arrived = async {
            loop {
                match self.fetch(id).await {
                    Some(document) if document.status == *state => return document,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        soon("the document", arrived).await
    }

    /// Waits until everything that was stored has arrived.
    async fn catch_up(&self) {
        let last = fresh("last");
        self.expect(std::slice::from_ref(&last)).await;
        self.store(&document(&last, State::Success, "null")).await;
        self.until(&last, &State::Success).await;
    }
}

async fn fetch(backend: &dyn ResultBackend, id: &str) -> Option<ResultDocument<'static>> {
    let ids = [id.to_owned()];
    let mut found = soon("fetch", backend.fetch(&ids)).await.expect("fetched");
    assert_eq!(found.len(), 1);
    found.pop().flatten()
}

/// A task that nothing was stored for.
pub async fn nothing_is_known_of_a_task_at_first(setup: &dyn Setup) {
    let id = fresh("unknown");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    assert!(pair.fetch(&id).await.is_none());
    assert!(pair.fetch(&fresh("unexpected")).await.is_none());
}

/// All fields come back, for several ids in their order.
pub async fn a_document_is_read_back_whole(setup: &dyn Setup) {
    let ids = [fresh("missing"), fresh("whole")];
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
    let mut found = soon("fetch", pair.reader.fetch(&ids))
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

/// Who did not wait for it finds it, too, where results are for everybody.
pub async fn every_process_reads_what_is_shared(setup: &dyn Setup) {
    let id = fresh("shared");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    if !pair.reader.capabilities().shared {
        return;
    }
    pair.store(&document(&id, State::Success, "42")).await;
    let another = setup.backend();
    let found = fetch(&*another, &id).await.expect("stored");
    assert_eq!(found.result.decode::<i64>(), Ok(42));
    let waited = soon("wait", another.wait(&id)).await.expect("a document");
    assert_eq!(waited.result.decode::<i64>(), Ok(42));
}

/// SUCCESS stays, whatever comes.
pub async fn a_success_is_never_replaced(setup: &dyn Setup) {
    let id = fresh("success");
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

/// Every other state gives way, and a value that looks like one does not fool.
pub async fn everything_else_is_replaced(setup: &dyn Setup) {
    let id = fresh("replaced");
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

/// Those who wait before and those who ask after get it alike.
pub async fn waiting_before_and_after_the_result(setup: &dyn Setup) {
    let id = fresh("wait");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    let waiter = {
        let (backend, id) = (Arc::clone(&pair.reader), id.clone());
        tokio::spawn(async move { backend.wait(&id).await })
    };
    tokio::task::yield_now().await;
    pair.store(&document(&id, State::Started, "{}")).await;
    pair.store(&document(&id, State::Success, "7")).await;
    let before = soon("waiter", waiter)
        .await
        .expect("no panic")
        .expect("a document");
    assert_eq!(before.result.decode::<i64>(), Ok(7));
    let after = soon("wait", pair.reader.wait(&id))
        .await
        .expect("a document");
    assert_eq!(after.result.decode::<i64>(), Ok(7));
}

/// Many waiters, two for each task, and none is forgotten.
pub async fn a_thousand_wait_at_once(setup: &dyn Setup) {
    let prefix = fresh("many");
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
        let found = soon("waiter", waiter)
            .await
            .expect("no panic")
            .expect("a document");
        assert_eq!(found.result.decode::<bool>(), Ok(true));
    }
}

/// Values that are hard to carry come back as they were.
pub async fn values_of_every_kind_survive(setup: &dyn Setup) {
    let values = [
        "null",
        "NaN",
        "-Infinity",
        "123456789012345678901234567890",
        r#""\u00e9\ud83d\ude00""#,
        r#"{"__type__": "datetime", "__value__": "2030-01-02T03:04:05"}"#,
        "[[], {}]",
    ];
    let ids = values.map(|_| fresh("value"));
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

/// `forget` deletes: for everybody where results are shared, else for who calls it.
pub async fn forgotten_results_are_gone(setup: &dyn Setup) {
    let ids = [fresh("one"), fresh("two")];
    let pair = Pair::expecting(setup, &ids).await;
    for id in &ids {
        pair.store(&document(id, State::Success, "1")).await;
        pair.until(id, &State::Success).await;
    }
    soon("forget", pair.reader.forget(&ids))
        .await
        .expect("forgotten");
    for id in &ids {
        assert!(pair.fetch(id).await.is_none());
    }
    if pair.reader.capabilities().shared {
        assert!(fetch(&*setup.backend(), &ids[0]).await.is_none());
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
    let members = (0..10).map(|n| ResultTree::task(format!("{group}-{n}")));
    let inner = ResultTree::group(format!("{group}-inner"), members.clone().collect());
    let members = members.chain([inner]).collect();
    let tree = ResultTree::group(group.as_str(), members).after(ResultTree::task("before"));
    soon("store", backend.store_group(&tree))
        .await
        .expect("stored");
    let found = soon("fetch", setup.backend().fetch_group(&group))
        .await
        .expect("fetched");
    assert_eq!(found, Some(tree));
    soon("forget", backend.forget_group(&group))
        .await
        .expect("forgotten");
    let found = soon("fetch", backend.fetch_group(&group)).await;
    assert_eq!(found.expect("fetched"), None);
}

/// A chord is begun, also twice, or refused by who cannot count its parts.
pub async fn chords_are_begun_or_refused(setup: &dyn Setup) {
    let backend = setup.backend();
    let group = fresh("chord");
    let parts = vec![ResultTree::task("a"), ResultTree::group("b", Vec::new())];
    let header = ResultTree::group(group.as_str(), parts);
    let chord = ChordStart::new(group.as_str(), 2, &header);
    let begun = soon("begin", backend.begin_chord(&chord)).await;
    if !backend.capabilities().chords {
        let error = begun.expect_err("refused");
        assert!(
            !error.is_transient() && error.to_string().contains("chords"),
            "{error}"
        );
        return;
    }
    begun.expect("begun");
    let again = soon("begin", backend.begin_chord(&chord)).await;
    again.expect("begun again");
    let found = soon("fetch", setup.backend().fetch_group(&group)).await;
    assert_eq!(found.expect("fetched"), Some(header));
}
