//! The boundary to a result backend: [`ResultBackend`].

mod chord;

use std::fmt;

use celery_protocol::{ResultDocument, ResultTree};

use crate::broker::BoxFuture;
use crate::error::{ServiceError, ServiceErrorKind};
pub use chord::{
    ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart, MemberResult, StalledChord,
};

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
    fn prepare<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
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
    fn begin<'a>(&'a self, chord: &'a ChordStart) -> BoxFuture<'a, Result<(), ServiceError>> {
        refuse_chord("start", &chord.group_id)
    }

    /// Adds a part to a chord that is under way; called before the part's task
    /// is sent, and again if that is tried again: a task is counted once.
    fn add_member<'a>(
        &'a self,
        group_id: &'a str,
        _task_id: &'a str,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        refuse_chord("extend", group_id)
    }

    /// Counts a part of a chord. Who counts the last one, with the claim that
    /// comes with it, gets all parts and has to go on with the chord: send its
    /// body and [end](Self::finish) it, within the time of the claim. Told
    /// once more with the same claim, a part gets the same answer; with another
    /// claim only when the first one does not hold any more. `None` where parts
    /// are missing, somebody else goes on with it, or it is over.
    ///
    /// Parts that are told before the chord is [begun](Self::begin) count,
    /// too.
    fn complete_member<'a>(
        &'a self,
        part: &'a ChordMember<'a>,
        _claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<Option<ChordResults>, ServiceError>> {
        refuse_chord("count a part of", part.group_id)
    }

    /// Lets a claim hold for the time it says, from now on, if it is still the
    /// only one. `false` says that the chord is somebody else's or over.
    fn renew_claim<'a>(
        &'a self,
        group_id: &'a str,
        _claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        refuse_chord("hold", group_id)
    }

    /// Ends a chord. `false` says that the claim did not hold any more, and that
    /// nothing was done.
    fn finish<'a>(
        &'a self,
        group_id: &'a str,
        _claim: &'a ChordClaim,
        _end: ChordEnd,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        refuse_chord("end", group_id)
    }

    /// Takes over chords, `limit` at most, all of whose parts are there and which
    /// nobody goes on with, because the worker that was to has died. A chord
    /// that none of our workers has told a part of is not known here.
    fn claim_stalled<'a>(
        &'a self,
        _claim: &'a ChordClaim,
        _limit: usize,
    ) -> BoxFuture<'a, Result<Vec<StalledChord>, ServiceError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
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
fn refuse_chord<T: Send + 'static>(
    operation: &'static str,
    group_id: &str,
) -> BoxFuture<'static, Result<T, ServiceError>> {
    const CAUSE: &str = "the result backend does not support chords. Note that a group chained \
        with a task is also upgraded to be a chord, as this pattern requires synchronization. \
        Result backends that supports chords: Redis, and the one in memory";
    let object = format!("chord {group_id}");
    let error = ServiceError::new(ServiceErrorKind::Unsupported, operation, object, CAUSE);
    Box::pin(std::future::ready(Err(error)))
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
    /// Whether the parts of chords can be counted. Where they cannot, and results
    /// are shared, a task looks again and again whether all are there
    /// (`celery.chord_unlock`).
    pub chords: bool,
}

impl Capabilities {
    /// A backend that every process can read, groups and chords included.
    pub const SHARED: Self = Self {
        shared: true,
        groups: true,
        chords: true,
    };

    /// Whether the headers of chords are looked after by a task.
    pub(crate) fn unlocks_chords(self) -> bool {
        self.shared && !self.chords
    }

    /// A backend that gives results to the process that asked for them, and
    /// nothing else.
    pub const PRIVATE: Self = Self {
        shared: false,
        groups: false,
        chords: false,
    };
}
