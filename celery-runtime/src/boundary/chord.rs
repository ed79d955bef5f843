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
/// the repetition gives the same answer and changes nothing more. All may be called
/// concurrently.
///
/// # Cancel safety
///
/// All futures may be dropped at any time; the step may or may not have been carried
/// out. A repetition is harmless.
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
    /// The id of the header group, which identifies the chord.
    pub group_id: String,
    /// The number of members.
    pub size: usize,
    /// The results of the header if it contains groups. Then the body gets the
    /// results in this nesting instead of a flat list.
    pub tree: Option<ResultTree>,
}

impl ChordStart {
    /// A chord of `size` members with the results of `header`.
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

/// A member of a chord: a finished task of its header.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChordMember<'a> {
    /// The id of the header group.
    pub group_id: &'a str,
    /// The task's id. Together with the index it identifies the member, which
    /// counts once however often it completes.
    pub task_id: &'a str,
    /// The position in the header; members without one are ordered last.
    pub index: Option<i64>,
    /// The final state of the task.
    pub state: State,
    /// The return value, or the exception of a failed task, in the result
    /// serializer.
    pub result: &'a Raw<'a>,
    /// The body, as in the task's message. It is stored for the worker that
    /// sends the body when this one has crashed.
    pub body: &'a Raw<'a>,
}

impl<'a> ChordMember<'a> {
    /// A member that returned `result`, of a chord with this body.
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

    /// Sets the final state; SUCCESS by default.
    #[must_use]
    pub fn state(self, state: State) -> Self {
        Self { state, ..self }
    }
}

/// A lease on a complete chord: the right to send its body.
///
/// At most one claim holds at a time. It expires unless it is
/// [renewed](ChordStore::renew_claim), so that another worker can claim the chord
/// of a crashed one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChordClaim {
    /// Identifies the owner: equal for each attempt of one delivery, otherwise
    /// unique.
    pub token: String,
    /// The time to live in whole seconds, at least one.
    pub ttl: Duration,
}

impl ChordClaim {
    /// A claim with this token and time to live.
    pub fn new(token: impl Into<String>, ttl: Duration) -> Self {
        Self {
            token: token.into(),
            ttl,
        }
    }
}

/// The results of a complete chord, for the holder of its claim.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ChordResults {
    /// The members in the order of their [index](ChordMember::index).
    pub members: Vec<MemberResult>,
    /// The results of the header if it contains groups; see
    /// [`ChordStart::tree`].
    pub tree: Option<ResultTree>,
}

impl ChordResults {
    /// The results of these members.
    pub fn new(members: Vec<MemberResult>, tree: Option<ResultTree>) -> Self {
        Self { members, tree }
    }
}

/// The result of one member of a chord.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemberResult {
    /// The task's id.
    pub task_id: String,
    /// The final state of the task.
    pub state: State,
    /// The return value, or the exception of a failed task.
    pub result: Raw<'static>,
}

impl MemberResult {
    /// The result of the task with this id.
    pub fn new(task_id: impl Into<String>, state: State, result: Raw<'static>) -> Self {
        Self {
            task_id: task_id.into(),
            state,
            result,
        }
    }
}

/// A complete chord whose claim expired before it was finished, for the worker
/// that has claimed it now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StalledChord {
    /// The id of the header group.
    pub group_id: String,
    /// The body, from the message of a member.
    pub body: Raw<'static>,
    /// The results of all members.
    pub results: ChordResults,
}

impl StalledChord {
    /// A stalled chord with this body and these results.
    pub fn new(group_id: impl Into<String>, body: Raw<'static>, results: ChordResults) -> Self {
        Self {
            group_id: group_id.into(),
            body,
            results,
        }
    }
}

/// The way in which a chord is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChordEnd {
    /// The body was sent, or could not be sent and has failed. The stored results
    /// of the members are deleted; members that complete again are ignored for
    /// some minutes.
    Continued,
    /// A member has failed, and so has the body. The stored results of the
    /// members remain until they expire.
    Failed,
}
