//! The boundary to a result backend: [`ResultBackend`].

use std::fmt;

use celery_protocol::{ResultDocument, ResultTree};

use crate::broker::BoxFuture;
use crate::error::{ServiceError, ServiceErrorKind};

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

    /// Remembers which results make up a group, by the group's id.
    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// The group that was stored with this id.
    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>>;

    /// Forgets that the group was stored; what its tasks returned stays.
    fn forget_group<'a>(&'a self, group_id: &'a str) -> BoxFuture<'a, Result<(), ServiceError>> {
        let object = format!("group {group_id}");
        let cause = "this result backend does not store groups";
        let error = ServiceError::new(ServiceErrorKind::Unsupported, "forget", object, cause);
        Box::pin(std::future::ready(Err(error)))
    }

    /// Gets ready to count the parts of a chord: called before the first task
    /// of its header is sent, and again if that is tried again. What an earlier
    /// chord with this id has left behind is as if it were not there.
    fn begin_chord<'a>(&'a self, chord: &'a ChordStart) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(std::future::ready(Err(no_chords(&chord.group_id))))
    }

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

/// In Celery's words.
fn no_chords(group_id: &str) -> ServiceError {
    const CAUSE: &str = "the result backend does not support chords. Note that a group chained \
        with a task is also upgraded to be a chord, as this pattern requires synchronization. \
        Result backends that supports chords: Redis, and the one in memory";
    let object = format!("chord {group_id}");
    ServiceError::new(ServiceErrorKind::Unsupported, "start", object, CAUSE)
}

/// A chord whose header is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChordStart {
    /// The id of its header, by which its parts are counted.
    pub group_id: String,
    /// How many parts there are.
    pub size: usize,
    /// The results of the header, where a part of it is a group itself: then
    /// they are more than the parts in their order.
    pub tree: Option<ResultTree>,
}

impl ChordStart {
    /// A chord of `size` parts whose results are those of `header`.
    pub fn new(group_id: impl Into<String>, size: usize, header: &ResultTree) -> Self {
        let members = header.members.iter().flatten();
        let nested = members.into_iter().any(|member| member.members.is_some());
        Self {
            group_id: group_id.into(),
            size,
            tree: nested.then(|| header.clone()),
        }
    }
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
    /// Whether the parts of chords can be counted.
    pub chords: bool,
}

impl Capabilities {
    /// A backend that every process can read, groups and chords included.
    pub const SHARED: Self = Self {
        shared: true,
        groups: true,
        chords: true,
    };

    /// A backend that gives results to the process that asked for them, and
    /// nothing else.
    pub const PRIVATE: Self = Self {
        shared: false,
        groups: false,
        chords: false,
    };
}
