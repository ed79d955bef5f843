//! The cases for [`ResultBackend`] and its [`ChordStore`](crate::ChordStore):
//! [`backend_conformance!`].
//!
//! [`backend_conformance!`]: crate::backend_conformance

pub mod chords;
pub mod groups;
pub mod results;

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, ResultDocument, State};

use crate::boundary::{ResultBackend, ResultRecord};
use crate::conformance::{unique_name, wait_for};

/// A result backend under test.
pub trait BackendSetup: Send + Sync {
    /// Returns a new client of the same server.
    fn backend(&self) -> Arc<dyn ResultBackend>;
}

/// Makes a test of each case for a result backend and its chords.
///
/// The argument is an expression that makes a
/// [`BackendSetup`](crate::conformance::backend::BackendSetup); each test
/// evaluates it. Cases of a capability that the backend does not declare pass
/// without an assertion, and so do the cases of chords where
/// [`ResultBackend::chords`](crate::ResultBackend::chords) returns `None`.
///
/// ```
/// use std::sync::Arc;
///
/// use celery_runtime::ResultBackend;
/// use celery_runtime::conformance::backend::BackendSetup;
/// use celery_runtime::memory::MemoryBackend;
///
/// struct Setup(MemoryBackend);
///
/// impl BackendSetup for Setup {
///     fn backend(&self) -> Arc<dyn ResultBackend> {
///         Arc::new(self.0.clone())
///     }
/// }
///
/// celery_runtime::backend_conformance!(Setup(MemoryBackend::new()));
/// # fn main() {}
/// ```
///
/// Tests that need a server can be ignored by default, with a reason:
/// `backend_conformance!(ignore = "needs a server", Setup::start())`.
#[macro_export]
macro_rules! backend_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::conformance_tests!((backend::results) $attributes $setup,
            unknown_task_has_no_document
            stored_document_is_read_back_complete
            shared_result_is_read_by_every_client
            success_document_is_not_replaced
            other_document_is_replaced_by_later_one
            wait_returns_result_stored_before_or_after
            thousand_concurrent_waits_all_return
            unusual_values_are_read_back_unchanged
            forgotten_results_are_not_read
        );
        $crate::conformance_tests!((backend::groups) $attributes $setup,
            stored_group_is_read_back_and_forgotten
            chord_header_is_stored_as_group
        );
        $crate::conformance_tests!((backend::chords) $attributes $setup,
            repeated_member_is_counted_once
            members_are_returned_in_header_order
            members_are_returned_complete
            only_one_claim_holds_at_a_time
            expired_claim_is_taken_by_next
            expired_claim_without_successor_is_renewed
            members_count_before_chord_begins
            added_member_is_awaited_once
            finished_chord_ignores_late_members
            nested_header_is_returned_with_members
            stalled_chord_is_claimed_by_one_worker
            chord_with_many_members_completes
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::backend_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::backend_conformance!(@cases [] $setup);
    };
}

/// Returns a document of a task without children.
fn document(id: &str, state: State, json: &'static str) -> ResultDocument<'static> {
    let mut document = ResultDocument::new(id.to_owned(), state, Raw::json(json));
    document.children = Some(Raw::json("[]"));
    document
}

/// A client that reads results and a worker that stores them, as two processes
/// would: a stored result may reach the reader with a delay.
struct Pair {
    reader: Arc<dyn ResultBackend>,
    writer: Arc<dyn ResultBackend>,
}

impl Pair {
    /// Returns both, prepared for the results of `ids`.
    async fn expecting(setup: &dyn BackendSetup, ids: &[String]) -> Self {
        let pair = Self {
            reader: setup.backend(),
            writer: setup.backend(),
        };
        pair.prepare(ids).await;
        pair
    }

    async fn prepare(&self, ids: &[String]) {
        wait_for("prepare", self.reader.prepare(ids))
            .await
            .expect("prepared");
    }

    async fn store(&self, document: &ResultDocument<'_>) {
        let reply_to = self.reader.reply_to();
        let record =
            ResultRecord::new(document).reply(reply_to.as_deref(), Some(&document.task_id));
        wait_for("store", self.writer.store(record))
            .await
            .expect("stored");
    }

    async fn fetch(&self, id: &str) -> Option<ResultDocument<'static>> {
        fetch(&*self.reader, id).await
    }

    /// Waits until the document is in this state and returns it.
    async fn until(&self, id: &str, state: &State) -> ResultDocument<'static> {
        let arrived = async {
            loop {
                match self.fetch(id).await {
                    Some(document) if document.status == *state => return document,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        wait_for("the document", arrived).await
    }

    /// Waits until all earlier documents have reached the reader.
    async fn catch_up(&self) {
        let last = unique_name("last");
        self.prepare(std::slice::from_ref(&last)).await;
        self.store(&document(&last, State::Success, "null")).await;
        self.until(&last, &State::Success).await;
    }
}

/// Returns the document of one task.
async fn fetch(backend: &dyn ResultBackend, id: &str) -> Option<ResultDocument<'static>> {
    let ids = [id.to_owned()];
    let mut found = wait_for("fetch", backend.fetch(&ids))
        .await
        .expect("fetched");
    assert_eq!(found.len(), 1);
    found.pop().flatten()
}
