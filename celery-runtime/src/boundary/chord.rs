//! The boundary to the chords of a result backend: [`ChordStore`].

use std::fmt;
use std::time::Duration;

use celery_protocol::{Raw, ResultTree, State};

use super::BoxFuture;
use super::error::ServiceError;

/// Counts the members of chords, so that one worker sends the body of each.
///
/// # Contract
///
/// Every method is one atomic step and may be repeated with the same arguments:
/// the repetition gives the same answer and changes nothing more. All may be
/// called concurrently, and their futures dropped at any time.
pub trait ChordStore: fmt::Debug + Send + Sync {
    /// Prepares the counting of a chord's members; called before the first task
    /// of the header is sent. State of an earlier chord with the same id is
    /// discarded.
    fn begin<'a>(&'a self, chord: &'a ChordStart) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Adds a member to a running chord; called before its task is sent. A task
    /// is added once.
    fn add_member<'a>(
        &'a self,
        group_id: &'a str,
        task_id: &'a str,
    ) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Counts a finished member. The call that completes the chord takes `claim`
    /// and gets the results of all members; the caller then sends the body and
    /// [finishes](Self::finish) the chord before the claim expires. A repetition
    /// with the same claim gets the same answer; with another claim only after
    /// the first one has expired. `None` while members are missing, while another
    /// claim holds, and when the chord is finished.
    ///
    /// Members may complete before the chord [begins](Self::begin).
    fn complete_member<'a>(
        &'a self,
        member: &'a ChordMember<'a>,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<Option<ChordResults>, ServiceError>>;

    /// Sets the time to live of a claim to [`ChordClaim::ttl`] from now. Returns
    /// `false` when another claim holds or the chord is finished.
    fn renew_claim<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Finishes a chord. Returns `false`, with nothing changed, when the claim
    /// no longer holds.
    fn finish<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
        end: ChordEnd,
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Claims up to `limit` complete chords whose claim has expired without the
    /// chord being finished. Chords without a member completed by this
    /// implementation are not found.
    fn claim_stalled<'a>(
        &'a self,
        claim: &'a ChordClaim,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<StalledChord>, ServiceError>>;
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

/// A part of a chord: a task of its header that has ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChordMember<'a> {
    /// The id of the header.
    pub group_id: &'a str,
    /// The task's id. Together with the index it is what a part is counted by,
    /// once, however often it is told.
    pub task_id: &'a str,
    /// Its place in the header; the last one where there is none.
    pub index: Option<i64>,
    /// How it ended.
    pub state: State,
    /// What it returned, or the exception that it failed with, written by the
    /// result serializer.
    pub result: &'a Raw<'a>,
    /// The body, as the task's message has it: kept for whoever has to go on
    /// with the chord when this worker is gone.
    pub body: &'a Raw<'a>,
}

impl<'a> ChordMember<'a> {
    /// A part that has succeeded with `result`, of a chord with this body.
    pub fn new(
        group_id: &'a str,
        task_id: &'a str,
        index: Option<i64>,
        result: &'a Raw<'a>,
        body: &'a Raw<'a>,
    ) -> Self {
        Self {
            group_id,
            task_id,
            index,
            state: State::Success,
            result,
            body,
        }
    }

    /// The same, ended in this state.
    #[must_use]
    pub fn state(self, state: State) -> Self {
        Self { state, ..self }
    }
}

/// The right to go on with a chord all of whose parts are there.
///
/// One claim at a time holds, and ends by itself, so that a chord whose worker
/// has died is taken over by another one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChordClaim {
    /// Who claims: the same for each try of one delivery, else unique.
    pub token: String,
    /// How long the claim holds, in whole seconds; at least one.
    pub ttl: Duration,
}

impl ChordClaim {
    /// A claim of whoever knows `token`.
    pub fn new(token: impl Into<String>, ttl: Duration) -> Self {
        Self {
            token: token.into(),
            ttl,
        }
    }
}

/// All parts of a chord, for the one who has claimed it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ChordResults {
    /// In the order of the header, where the backend keeps it.
    pub parts: Vec<MemberResult>,
    /// Where the header has groups inside: which results the body gets, in the
    /// place of those of the parts.
    pub tree: Option<ResultTree>,
}

impl ChordResults {
    /// These parts.
    pub fn new(parts: Vec<MemberResult>, tree: Option<ResultTree>) -> Self {
        Self { parts, tree }
    }
}

/// What a part of a chord has told.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemberResult {
    /// The task's id.
    pub task_id: String,
    /// How it ended.
    pub state: State,
    /// What it returned, or its exception.
    pub result: Raw<'static>,
}

impl MemberResult {
    /// What the task with this id has told.
    pub fn new(task_id: impl Into<String>, state: State, result: Raw<'static>) -> Self {
        Self {
            task_id: task_id.into(),
            state,
            result,
        }
    }
}

/// A chord that its worker has left behind, taken over by who asked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StalledChord {
    /// The id of its header.
    pub group_id: String,
    /// Its body, as a part has told it.
    pub body: Raw<'static>,
    /// All its parts.
    pub results: ChordResults,
}

impl StalledChord {
    /// The chord of this header.
    pub fn new(group_id: impl Into<String>, body: Raw<'static>, results: ChordResults) -> Self {
        Self {
            group_id: group_id.into(),
            body,
            results,
        }
    }
}

/// How a worker is done with a chord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChordEnd {
    /// The body was sent, or could not be and has failed. A part that is told
    /// once more changes nothing, for some minutes; what was kept is deleted.
    Continued,
    /// A part has failed, and so has the body. What the parts have told stays
    /// to be looked at until it expires.
    Failed,
}
