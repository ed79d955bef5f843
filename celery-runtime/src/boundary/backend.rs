//! The boundary to a result backend: [`ResultBackend`].

use std::fmt;

use celery_protocol::{ResultDocument, ResultTree};

use super::BoxFuture;
use super::chord::ChordStore;
use super::error::{ServiceError, ServiceErrorKind};

/// Stores the results of tasks.
///
/// # Contract
///
/// All methods may be called concurrently. A document with the state SUCCESS is
/// never replaced; every other one is replaced by a later one. Implementations
/// do not retry: the worker repeats a store until it succeeds or fails
/// permanently, the client until its operation timeout.
///
/// # Errors
///
/// All methods fail with a [`ServiceError`]: a
/// [transient](ServiceError::is_transient) one without a connection or an answer,
/// [`Invalid`](ServiceErrorKind::Invalid) for a stored value that cannot be decoded,
/// [`Unsupported`](ServiceErrorKind::Unsupported) for a missing feature, and
/// [`Closed`](ServiceErrorKind::Closed) after [`close`](Self::close).
///
/// # Cancel safety
///
/// All futures may be dropped at any time. A dropped [`store`](Self::store) may
/// or may not have stored the document.
pub trait ResultBackend: fmt::Debug + Send + Sync {
    /// Stores a document under its task id and wakes pending calls of
    /// [`wait`](Self::wait).
    fn store<'a>(&'a self, record: ResultRecord<'a>) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Prepares for the results of `ids`; called before their tasks are sent. A
    /// backend that receives results as messages subscribes to them here. Does
    /// nothing by default.
    fn prepare<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Returns the documents of `ids` in their order; `None` where no document is
    /// stored, which Celery calls PENDING.
    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>>;

    /// Waits until the document for `id` is in a final state (SUCCESS, FAILURE
    /// or REVOKED) and returns it, also if it was stored before the call. A
    /// broken connection is an error, never an endless wait.
    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>>;

    /// Deletes the documents of `ids`.
    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Stores the members of a group under the group's id.
    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Returns the group that was stored with this id.
    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>>;

    /// Deletes a stored group. The results of its tasks remain.
    fn forget_group<'a>(&'a self, group_id: &'a str) -> BoxFuture<'a, Result<(), ServiceError>> {
        let object = format!("group {group_id}");
        let cause = "this result backend does not store groups";
        let error = ServiceError::new(ServiceErrorKind::Unsupported, "forget", object, cause);
        Box::pin(std::future::ready(Err(error)))
    }

    /// Returns the [`ChordStore`] of this backend; `None`, which is the default, if
    /// it cannot count the members of chords. Then, and if results are
    /// [shared](BackendCapabilities::shared), a task polls the results of the header
    /// (`celery.chord_unlock`).
    fn chords(&self) -> Option<&dyn ChordStore> {
        None
    }

    /// Returns the optional features of this backend.
    fn capabilities(&self) -> BackendCapabilities;

    /// Returns the queue to which workers send results, for backends that receive
    /// them as messages; it becomes the `reply_to` of every task. `None` by
    /// default.
    fn reply_to(&self) -> Option<String> {
        None
    }

    /// Closes every connection of this backend. Later calls that need a connection fail
    /// with [`ServiceErrorKind::Closed`].
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A document to store, with the reply address of the task's sender.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResultRecord<'a> {
    /// The document.
    pub document: &'a ResultDocument<'a>,
    /// The sender's reply queue, from the task message.
    pub reply_to: Option<&'a str>,
    /// The sender's correlation id, from the task message.
    pub correlation_id: Option<&'a str>,
}

impl<'a> ResultRecord<'a> {
    /// A document without a reply address.
    pub fn new(document: &'a ResultDocument<'a>) -> Self {
        Self {
            document,
            reply_to: None,
            correlation_id: None,
        }
    }

    /// Sets the reply address, from the properties of the task message.
    #[must_use]
    pub fn reply(self, reply_to: Option<&'a str>, correlation_id: Option<&'a str>) -> Self {
        Self {
            reply_to,
            correlation_id,
            ..self
        }
    }
}

/// The optional features of a result backend, for the runtime and the
/// conformance suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendCapabilities {
    /// Whether any process can read a result by its id; `false` by default.
    pub shared: bool,
    /// Whether groups can be stored and read back; `false` by default.
    pub groups: bool,
}

impl BackendCapabilities {
    /// A backend that delivers each result to the process that sent the task, and
    /// stores no groups.
    pub const fn new() -> Self {
        Self {
            shared: false,
            groups: false,
        }
    }

    /// Sets [`shared`](Self::shared).
    #[must_use]
    pub const fn shared(self, shared: bool) -> Self {
        Self { shared, ..self }
    }

    /// Sets [`groups`](Self::groups).
    #[must_use]
    pub const fn groups(self, groups: bool) -> Self {
        Self { groups, ..self }
    }
}

/// Returns whether a task has to poll the results of a chord's header, because
/// the backend shares results and does not count members.
pub(crate) fn polls_chords(backend: &dyn ResultBackend) -> bool {
    backend.capabilities().shared && backend.chords().is_none()
}

/// Returns the error of a backend that does not count the members of chords,
/// with Celery's explanation.
pub(crate) fn no_chords(operation: &'static str, group_id: &str) -> ServiceError {
    const CAUSE: &str = "the result backend does not support chords. Note that a group chained \
        with a task is also upgraded to be a chord, as this pattern requires synchronization";
    let object = format!("chord {group_id}");
    ServiceError::new(ServiceErrorKind::Unsupported, operation, object, CAUSE)
        .with_remedy("set result_backend to one that counts them, such as redis://")
}
