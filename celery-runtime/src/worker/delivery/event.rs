//! The words in which a delivery's life is told: what happens to it, what is to
//! be done, and what is stored and sent for it.

use std::time::{Duration, SystemTime};

use celery_protocol::{DecodeError, Embed, Raw};
use tokio::time::Instant;

use crate::boundary::{QueueEnd, ServiceError};
use crate::canvas::Canvas;
use crate::execution::{Changes, ProcessLost, TaskError};
use crate::task::{AutoRetry, Conflict, Unique};
use crate::worker::core::failure::FailureInfo;
use crate::worker::workflow::effect::{Completion, WorkflowEffect};

/// What was decided about a delivery when it was read.
#[derive(Clone, Debug)]
pub(crate) struct ExecutionPolicy {
    pub(crate) acks_late: bool,
    pub(crate) acks_on_failure: bool,
    pub(crate) acks_on_timeout: bool,
    /// Whether a late message goes back when the process running its task is
    /// lost.
    pub(crate) requeued_when_lost: bool,
    pub(crate) stores_result: bool,
    pub(crate) stores_errors: bool,
    pub(crate) track_started: bool,
    /// Whether somebody is to be told what happens to it.
    pub(crate) tells: bool,
    /// Whether there is a question to be answered before it may start.
    pub(crate) asks: bool,
    /// Whether other tasks wait for this one's value, or for its failure.
    pub(crate) links: Continuations,
    pub(crate) eta: Option<SystemTime>,
    pub(crate) expires: Option<SystemTime>,
    pub(crate) soft_limit: Option<Duration>,
    pub(crate) hard_limit: Option<Duration>,
    pub(crate) retries: u32,
    pub(crate) max_retries: Option<u32>,
    pub(crate) retry_delay: Duration,
    pub(crate) autoretry: Option<AutoRetry>,
}

/// What follows a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Continuations {
    /// Messages, when it has succeeded.
    pub(crate) on_success: bool,
    /// Errbacks, or steps that fail with it.
    pub(crate) on_failure: bool,
    /// Whether it is a part of a chord.
    pub(crate) in_chord: bool,
}

impl Continuations {
    /// What follows a task with this embed, by a look that goes one level deep. Where
    /// the answer is an error, the message is kept, so that nothing of its workflow is
    /// lost.
    pub(crate) fn of(embed: &Embed<'_>) -> Result<Self, DecodeError> {
        let has_callbacks = !embed.callbacks()?.is_empty();
        let has_errbacks = !embed.errbacks()?.is_empty();
        let has_chain = !embed.chain()?.is_empty();
        Ok(Self {
            on_success: has_callbacks || has_chain,
            on_failure: has_errbacks || has_chain,
            in_chord: embed.chord()?.is_some(),
        })
    }
}

/// Something happened to the delivery.
#[derive(Debug)]
pub(crate) enum DeliveryEvent {
    /// It was read from the broker.
    Arrived,
    /// A slot of the pool is free for it.
    SlotGranted,
    /// Its turn to line up is later, as when tasks of its type are limited.
    RateLimited(Instant),
    /// The question before the start is answered.
    AdmissionChecked(Admission),
    /// It shall not run, or not go on running.
    Revoked(Revocation),
    /// What was asked for last is done.
    Done,
    /// The same, and these are to be done next.
    FollowUps(Vec<WorkflowEffect>),
    /// What was asked for last failed.
    Failed(EffectError),
    /// The task ended.
    Returned(Outcome),
    /// The time of [`DeliveryState::timeout`](crate::worker::delivery::state::DeliveryState::timeout) has come.
    Tick,
    /// The worker stops.
    Stop(Stop),
    /// The broker has taken the delivery back.
    ConnectionLost,
    /// The broker has delivered it again, to us: it can be settled once more.
    Redelivered,
}

/// What was asked before a task starts, and found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Admission {
    /// Nothing speaks against it.
    Start,
    /// It was revoked while nobody listened.
    Revoked,
    /// It has succeeded before with this value, and was delivered again.
    Succeeded(Raw<'static>),
    /// It has to be the only one, and is not.
    Taken(Conflict),
}

/// The questions about one task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AdmissionChecks {
    /// Whether it may have run before, and how that ended.
    pub(crate) success: bool,
    /// Whether it was revoked for good.
    pub(crate) revoked: bool,
    pub(crate) unique: Option<Unique>,
}

impl AdmissionChecks {
    pub(crate) fn any(&self) -> bool {
        self.success || self.revoked || self.unique.is_some()
    }
}

/// How a task is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// Before it starts; one that runs goes on.
    Unstarted,
    /// One that runs is ended, by this signal where that means something.
    Terminate(i32),
    /// It is ended because its message has gone back to the broker, which will
    /// deliver it again.
    ConnectionLost,
}

/// Why an effect failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum EffectError {
    /// The effect can never be carried out, for this reason.
    Refused(String),
    /// The effect was not carried out and may succeed later.
    NotSent,
    /// The request was sent and not answered: the effect may have been carried
    /// out.
    Unknown,
}

impl EffectError {
    /// Whether a repetition may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::NotSent | Self::Unknown => true,
        }
    }
}

impl From<&ServiceError> for EffectError {
    fn from(error: &ServiceError) -> Self {
        if !error.is_transient() {
            Self::Refused(error.to_string())
        } else if error.is_in_doubt() {
            Self::Unknown
        } else {
            Self::NotSent
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Running tasks finish, the others go back.
    Warm,
    /// As warm, with an end to the patience; tasks are told.
    Soft,
    /// Running tasks are ended.
    Cold,
}

/// How a task ended. The random number is drawn by the driver.
#[derive(Debug)]
pub(crate) enum Outcome {
    Value(Option<Raw<'static>>),
    Error {
        error: TaskError,
        random: f64,
    },
    Panic(String),
    /// The process that was to run it is gone.
    Lost(ProcessLost),
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Line up for a slot.
    Queue,
    /// Run the task in the slot that was given.
    Start,
    /// Tell the task that its soft limit is reached; if it does not listen,
    /// end it and report [`soft_limit_exceeded`].
    Warn,
    /// End the task.
    Abort,
    /// Give the slot back.
    FreeSlot,
    /// Carry out a step and report `Done` or `Failed`.
    Effect(Effect),
    /// Tell those who watch.
    Emit(TaskEvent),
    /// Remember that the task's time to start is over.
    Expired,
    /// Forget the delivery.
    Over,
}

/// A piece of work after or around the task.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Settle(Disposition),
    Store(StateUpdate),
    Send(FollowUp),
    /// Work out what the workflow asks for now, and report it.
    Continue(Completion),
    /// One of those things.
    Workflow(WorkflowEffect),
    /// Ask whether it may start, and report `Answered` or `Failed`.
    CheckAdmission,
    /// Tell those who watch, which succeeds at once.
    Emit(TaskEvent),
}

/// Something about a task that those who watch are told.
#[derive(Clone, Debug)]
pub(crate) enum TaskEvent {
    Received,
    Started,
    Succeeded(Raw<'static>),
    Failed(FailureInfo),
    Retried(FailureInfo),
    Rejected {
        requeue: bool,
    },
    Revoked {
        signal: Option<i32>,
        terminated: bool,
        expired: bool,
    },
    Cancelled,
}

/// What becomes of the message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Disposition {
    Ack,
    Reject,
    Requeue(QueueEnd),
    Park(SystemTime),
}

/// What is stored for the task.
#[derive(Clone, Debug)]
pub(crate) enum StateUpdate {
    Started,
    Success(Raw<'static>),
    Failure(FailureInfo),
    Retry(FailureInfo),
    Revoked(&'static str),
}

/// What is sent on behalf of the task.
#[derive(Clone, Debug)]
pub(crate) enum FollowUp {
    /// The same task again.
    Retry {
        eta: Option<SystemTime>,
        changes: Option<Box<Changes>>,
    },
    /// Callbacks and the next task of the chain, with this value.
    Success(Raw<'static>),
    /// What takes the task's place.
    Replacement(Box<Canvas>),
    /// The message itself, to the queue of dead ones.
    Dead,
}

/// Why a delivery cannot be run here.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    /// A word for machines, kept with the message.
    pub(crate) reason: &'static str,
    /// A sentence for people.
    pub(crate) detail: String,
    /// The task that it would have been, where that could be read and somebody
    /// may wait for its result.
    pub(crate) task: Option<Box<RejectedTask>>,
}

/// What is known of a task that nobody here can run.
#[derive(Clone, Debug)]
pub(crate) struct RejectedTask {
    pub(crate) id: String,
    pub(crate) reply_to: Option<String>,
    /// Whether its workflow has to be told.
    pub(crate) is_linked: bool,
    /// Stored as its failure.
    pub(crate) failure_info: FailureInfo,
}
