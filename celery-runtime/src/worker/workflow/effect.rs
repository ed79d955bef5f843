//! What a workflow asks of the worker on which one of its tasks has ended.

use std::borrow::Cow;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celery_protocol::{Raw, ResultTree, State, WireSignature};

use crate::boundary::{
    Broker, ChordClaim, ChordEnd, ChordResults, ChordStart, Publication, ServiceError,
};
use crate::execution::FailureContext;
use crate::worker::core::failure::FailureInfo;

/// How a task ended, as far as its workflow goes.
#[derive(Clone, Debug)]
pub(crate) enum Completion {
    /// It returned this, and what follows it is sent.
    Succeeded(Raw<'static>),
    /// It failed.
    Failed(FailureInfo),
    /// It was revoked, for this reason.
    Revoked(&'static str),
    /// It found a chord whose header is through.
    Joined {
        group_id: String,
        body: Raw<'static>,
        /// Or why nobody looks any more.
        results: Result<ChordResults, String>,
    },
}

/// One thing to do, which may lead to more. It is done again when it failed for
/// a time, so it holds all that is decided: ids, messages, the claim.
#[derive(Clone, Debug)]
pub(crate) enum WorkflowEffect {
    /// Tell the result backend about a part of a chord.
    CompleteMember(Arc<FinishedMember>),
    /// Bring the results of a chord that is all there together.
    JoinResults(Arc<ClaimedChord>, Arc<ChordResults>),
    /// Send messages, and begin their chords before.
    Send(Arc<OutgoingBatch>),
    /// Send the body of a chord, if it is still ours to go on with.
    SendBody(Arc<ClaimedChord>, Arc<OutgoingBatch>),
    /// Store that a task has failed which never ran.
    StoreFailure(Arc<SkippedTask>),
    /// Call an errback in place.
    CallErrback(Arc<InPlaceErrback>),
    /// Keep a chord for as long as these may take, and do them if it is still
    /// ours.
    RenewClaim(Arc<ClaimedChord>, Arc<[Self]>),
    /// Be done with a chord.
    FinishChord(Arc<ClaimedChord>, ChordEnd),
}

/// Messages that belong together.
#[derive(Debug, Default)]
pub(crate) struct OutgoingBatch {
    pub(crate) chords: Vec<ChordStart>,
    /// How many of them are begun: a second beginning would forget the parts that
    /// have come meanwhile.
    pub(crate) begun: AtomicUsize,
    pub(crate) letters: Vec<Publication>,
    /// Those that the broker did not take, once it was asked.
    unsent: Mutex<Option<Vec<usize>>>,
    /// The results of what is sent, for the sender's own.
    pub(crate) children: Vec<ResultTree>,
}

/// How many messages are sent in one go.
const BATCH_SIZE: usize = 1_000;

impl OutgoingBatch {
    /// Messages that nothing comes after.
    pub(crate) fn of_letters(letters: Vec<Publication>) -> Self {
        Self {
            letters,
            ..Self::default()
        }
    }

    /// Sends what is not sent yet, some at a time, so that after a failure of some
    /// the others do not go twice.
    ///
    /// # Cancel safety
    ///
    /// What was on its way when the future is dropped is sent again by the next.
    pub(crate) async fn publish(&self, broker: &dyn Broker) -> Result<(), ServiceError> {
        let unsent = self.unsent().clone();
        let unsent = unsent.unwrap_or_else(|| (0..self.letters.len()).collect());
        let mut failed = None;
        let mut left = Vec::new();
        for (number, places) in unsent.chunks(BATCH_SIZE).enumerate() {
            let answers = broker.publish(&self.letters_at(places)).await;
            for (place, answer) in places.iter().zip(answers) {
                if let Err(error) = answer {
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

    /// In a row at first; some are left out later.
    fn letters_at(&self, places: &[usize]) -> Cow<'_, [Publication]> {
        let (Some(first), Some(last)) = (places.first(), places.last()) else {
            return Cow::Borrowed(&[]);
        };
        if last - first + 1 == places.len() {
            return Cow::Borrowed(&self.letters[*first..=*last]);
        }
        let letters = places.iter().map(|place| self.letters[*place].clone());
        letters.collect()
    }

    fn unsent(&self) -> MutexGuard<'_, Option<Vec<usize>>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a chord that has ended.
#[derive(Debug)]
pub(crate) struct FinishedMember {
    pub(crate) chord: Arc<ClaimedChord>,
    pub(crate) task_id: String,
    pub(crate) index: Option<i64>,
    pub(crate) state: State,
    pub(crate) result: Raw<'static>,
}

/// A chord that this worker may go on with.
#[derive(Debug)]
pub(crate) struct ClaimedChord {
    pub(crate) group_id: String,
    pub(crate) body: Raw<'static>,
    pub(crate) claim: ChordClaim,
    /// On whose behalf.
    pub(crate) sender: Arc<TaskRequest>,
    /// Whether the backend counts it; otherwise nobody has to be told of its end.
    pub(crate) counted: bool,
    /// Whether its errbacks were called by a worker that has left it behind.
    pub(crate) told: bool,
}

/// A task that will never run.
#[derive(Debug)]
pub(crate) struct SkippedTask {
    pub(crate) id: String,
    pub(crate) failure_info: FailureInfo,
    pub(crate) children: Vec<ResultTree>,
    /// What its signature says, if there is one.
    pub(crate) signature: Option<WireSignature<'static>>,
    pub(crate) group_id: Option<String>,
    pub(crate) parent_id: Option<String>,
    pub(crate) reply_to: Option<String>,
}

/// An errback, called in place.
#[derive(Debug)]
pub(crate) struct InPlaceErrback {
    pub(crate) signature: WireSignature<'static>,
    pub(crate) failure: Arc<FailureContext>,
}

/// A task with its place in a workflow: what Celery calls its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskRequest {
    pub(crate) id: String,
    pub(crate) task: Option<String>,
    pub(crate) root_id: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) group_index: Option<i64>,
    /// How many times it is a replacement.
    pub(crate) replaced: u32,
    /// Where its sender waits for results.
    pub(crate) reply_to: Option<String>,
    /// The body of the chord that it is a part of.
    pub(crate) chord: Option<Raw<'static>>,
    /// What follows it, the next step last.
    pub(crate) chain: Vec<Raw<'static>>,
    pub(crate) callbacks: Vec<Raw<'static>>,
    pub(crate) errbacks: Vec<Raw<'static>>,
    /// Whether failures of what follows it are stored.
    pub(crate) stores: bool,
    /// What it has sent itself.
    pub(crate) children: Vec<ResultTree>,
}
