//! Workflow effects and their data. The workflow decides on them, the
//! [`EffectExecutor`](crate::worker::effects::executor::EffectExecutor) carries them
//! out.

use std::borrow::Cow;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celery_protocol::{Raw, ResultTree, State, WireSignature};

use crate::boundary::{
    Broker, ChordClaim, ChordEnd, ChordResults, ChordStart, Publication, ServiceError,
};
use crate::execution::{FailureContext, FailureInfo};

/// How a task ended, as seen by its workflow.
#[derive(Clone, Debug)]
pub(crate) enum Completion {
    /// The task returned this value, and its continuations are sent.
    Succeeded(Raw<'static>),
    /// The task failed.
    Failed(FailureInfo),
    /// The task was revoked for this reason.
    Revoked(&'static str),
    /// The task polled the header of a chord, and all its members are ready.
    Joined {
        group_id: String,
        body: Raw<'static>,
        /// The results of the header, or why the polling was given up.
        results: Result<ChordResults, String>,
    },
}

/// An operation of a workflow, which may lead to further ones. A transient failure is
/// followed by a repetition, so an effect contains everything that must not change
/// between attempts: ids, messages, the claim.
#[derive(Clone, Debug)]
pub(crate) enum WorkflowEffect {
    /// Count a finished member of a chord in the result backend.
    CompleteMember(Arc<FinishedMember>),
    /// Join the results of a complete chord header.
    JoinResults(Arc<ClaimedChord>, Arc<ChordResults>),
    /// Start the chords of a batch, then publish its messages.
    Send(Arc<OutgoingBatch>),
    /// Publish the body of a chord, if this worker still holds the claim.
    SendBody(Arc<ClaimedChord>, Arc<OutgoingBatch>),
    /// Store the failure of a task that never runs.
    StoreFailure(Arc<SkippedTask>),
    /// Call an errback in this worker.
    CallErrback(Arc<InPlaceErrback>),
    /// Renew the claim of a chord for the duration of these effects, and carry them out
    /// if this worker still holds it.
    RenewClaim(Arc<ClaimedChord>, Arc<[Self]>),
    /// Finish a chord in the result backend.
    FinishChord(Arc<ClaimedChord>, ChordEnd),
}

/// Messages that are sent together, with the chords to start before.
#[derive(Debug, Default)]
pub(crate) struct OutgoingBatch {
    pub(crate) chords: Vec<ChordStart>,
    /// How many of the chords are started. Starting one again would discard the members
    /// counted since.
    pub(crate) started_chords: AtomicUsize,
    pub(crate) messages: Vec<Publication>,
    /// The indices of messages that the broker has not taken; `None` before the first
    /// attempt.
    unsent: Mutex<Option<Vec<usize>>>,
    /// The results of the messages, which become children of the sender's result.
    pub(crate) children: Vec<ResultTree>,
}

/// The maximum number of messages in one publish call.
const BATCH_SIZE: usize = 1_000;

impl OutgoingBatch {
    /// Creates a batch of messages without chords.
    pub(crate) fn of_messages(messages: Vec<Publication>) -> Self {
        Self {
            messages,
            ..Self::default()
        }
    }

    /// Publishes the unsent messages in chunks, and remembers which ones failed, so that
    /// a repetition publishes only those.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the next call publishes the messages of the current
    /// chunk again.
    pub(crate) async fn publish(&self, broker: &dyn Broker) -> Result<(), ServiceError> {
        let unsent = self.unsent().clone();
        let unsent = unsent.unwrap_or_else(|| (0..self.messages.len()).collect());
        let mut failed = None;
        let mut left = Vec::new();
        for (number, places) in unsent.chunks(BATCH_SIZE).enumerate() {
            let outcomes = broker.publish(&self.messages_at(places)).await;
            for (place, outcome) in places.iter().zip(outcomes) {
                if let Err(error) = outcome {
                    left.push(*place);
                    failed.get_or_insert(error);
                }
            }
            let after = unsent.iter().skip((number + 1) * BATCH_SIZE);
            *self.unsent() = Some(left.iter().chain(after).copied().collect());
            if failed.as_ref().is_some_and(ServiceError::is_transient) {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Returns the messages at these indices, borrowed if the indices are contiguous as
    /// in the first attempt.
    fn messages_at(&self, places: &[usize]) -> Cow<'_, [Publication]> {
        let (Some(first), Some(last)) = (places.first(), places.last()) else {
            return Cow::Borrowed(&[]);
        };
        if last - first + 1 == places.len() {
            return Cow::Borrowed(&self.messages[*first..=*last]);
        }
        let messages = places.iter().map(|place| self.messages[*place].clone());
        messages.collect()
    }

    fn unsent(&self) -> MutexGuard<'_, Option<Vec<usize>>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member of a chord header that has ended.
#[derive(Debug)]
pub(crate) struct FinishedMember {
    pub(crate) chord: Arc<ClaimedChord>,
    pub(crate) task_id: String,
    pub(crate) index: Option<i64>,
    pub(crate) state: State,
    pub(crate) result: Raw<'static>,
}

/// A chord with the claim under which this worker continues it.
#[derive(Debug)]
pub(crate) struct ClaimedChord {
    pub(crate) group_id: String,
    pub(crate) body: Raw<'static>,
    pub(crate) claim: ChordClaim,
    /// The task on whose behalf the chord continues: the parent of its messages.
    pub(crate) sender: Arc<TaskRequest>,
    /// Whether the result backend counts the members. Otherwise there is no claim to
    /// renew and no chord to finish.
    pub(crate) counted: bool,
    /// Whether the worker that held the claim before has called the errbacks already.
    pub(crate) errbacks_called: bool,
}

/// A task that never runs, because a task before it failed.
#[derive(Debug)]
pub(crate) struct SkippedTask {
    pub(crate) id: String,
    pub(crate) failure_info: FailureInfo,
    pub(crate) children: Vec<ResultTree>,
    /// The signature, for an extended result.
    pub(crate) signature: Option<WireSignature<'static>>,
    pub(crate) group_id: Option<String>,
    pub(crate) parent_id: Option<String>,
    pub(crate) reply_to: Option<String>,
}

/// An errback that the worker calls itself, without a message.
#[derive(Debug)]
pub(crate) struct InPlaceErrback {
    pub(crate) signature: WireSignature<'static>,
    pub(crate) failure: Arc<FailureContext>,
}

/// A task with its position in a workflow, which Celery calls its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskRequest {
    pub(crate) id: String,
    pub(crate) task: Option<String>,
    pub(crate) root_id: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) group_index: Option<i64>,
    /// How many replacements led to this task (Celery's `replaced_task_nesting`).
    pub(crate) replaced: u32,
    /// The reply queue of its sender.
    pub(crate) reply_to: Option<String>,
    /// The body of the chord that the task is a member of.
    pub(crate) chord: Option<Raw<'static>>,
    /// The remaining steps of the chain, the next one last.
    pub(crate) chain: Vec<Raw<'static>>,
    pub(crate) callbacks: Vec<Raw<'static>>,
    pub(crate) errbacks: Vec<Raw<'static>>,
    /// Whether failures of later chain steps are stored.
    pub(crate) stores_failures: bool,
    /// The results of the tasks that it has sent.
    pub(crate) children: Vec<ResultTree>,
}
