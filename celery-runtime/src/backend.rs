//! The boundary to a result backend: [`ResultBackend`].

use std::fmt;

use celery_protocol::ResultDocument;

use crate::broker::BoxFuture;
use crate::error::ServiceError;

/// Keeps what tasks returned, for those who asked.
///
/// # Contract
///
/// All methods may be called concurrently. A document that says SUCCESS is
/// never replaced, whoever tries; every other one is replaced by a later
/// one. Implementations do not retry: the worker repeats a store until it
/// succeeds or fails for good, the client until its deadline. All futures
/// may be dropped at any time; a dropped [`store`](Self::store) may or may not
/// have stored.
pub trait ResultBackend: fmt::Debug + Send + Sync {
    /// Stores a document under its task id and wakes those who wait for it.
    fn store<'a>(&'a self, record: Record<'a>) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Gets ready for the results of `ids`: called before their tasks are
    /// sent. A backend that is made of messages has to be there to get them.
    fn expect<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Reads the documents of `ids`, in their order; `None` where there is none,
    /// which Celery calls PENDING.
    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>>;

    /// Waits until the document for `id` is in a final state (SUCCESS, FAILURE
    /// or REVOKED) and returns it. Whoever asks after it was stored gets it
    /// too, and a broken connection is an error, never an endless wait.
    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>>;

    /// Deletes what is stored for `ids`.
    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Remembers which tasks make up a group.
    fn store_group<'a>(
        &'a self,
        group_id: &'a str,
        members: &'a [String],
    ) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// The tasks of a group that was stored, in their order.
    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<String>>, ServiceError>>;

    /// What this backend offers beyond storing and waiting.
    fn capabilities(&self) -> Capabilities;

    /// The queue to which workers shall send results, for backends that are
    /// made of messages; goes into the `reply_to` of every task.
    fn reply_to(&self) -> Option<String> {
        None
    }

    /// Ends every connection of this backend. Later calls fail as closed.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A document to store, with the address of the task's sender.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Record<'a> {
    /// The document.
    pub document: &'a ResultDocument<'a>,
    /// The sender's reply queue, from the task message.
    pub reply_to: Option<&'a str>,
    /// The sender's correlation id, from the task message.
    pub correlation_id: Option<&'a str>,
}

impl<'a> Record<'a> {
    /// A document whose task message asked for no reply.
    pub fn new(document: &'a ResultDocument<'a>) -> Self {
        Self {
            document,
            reply_to: None,
            correlation_id: None,
        }
    }

    /// The same with the reply address of the task message.
    #[must_use]
    pub fn reply(self, reply_to: Option<&'a str>, correlation_id: Option<&'a str>) -> Self {
        Self {
            reply_to,
            correlation_id,
            ..self
        }
    }
}

/// What a result backend offers; the conformance suite asks accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether any process can read a result by its id.
    pub shared: bool,
    /// Whether groups can be stored and read back.
    pub groups: bool,
}

impl Capabilities {
    /// A backend that every process can read, groups included.
    pub const SHARED: Self = Self {
        shared: true,
        groups: true,
    };

    /// A backend that gives results to the process that asked for them, and
    /// nothing else.
    pub const PRIVATE: Self = Self {
        shared: false,
        groups: false,
    };
}
