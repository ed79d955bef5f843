//! Inputs and outputs of the delivery state machine in
//! [`state`](crate::worker::delivery::state): events, actions, effects, and the
//! result states and messages that effects store and send.

use std::time::{Duration, Instant, SystemTime};

use celery_protocol::{DecodeError, Embed, Raw};

use crate::boundary::{QueueEnd, ServiceError};
use crate::canvas::Canvas;
use crate::execution::{Changes, FailureInfo, ProcessLost, TaskError};
use crate::task::{AutoRetry, Conflict, Unique};
use crate::worker::workflow::effect::{Completion, WorkflowEffect};

/// The options that apply to one delivery, resolved from its message, its task and
/// the configuration when the message is decoded.
#[derive(Clone, Debug)]
pub(crate) struct ExecutionPolicy {
    pub(crate) acks_late: bool,
    pub(crate) acks_on_failure: bool,
    pub(crate) acks_on_timeout: bool,
    /// Whether a late-acknowledged message is requeued when the process that runs
    /// its task is lost (Celery's `reject_on_worker_lost`).
    pub(crate) requeued_when_lost: bool,
    pub(crate) stores_result: bool,
    pub(crate) stores_errors: bool,
    pub(crate) track_started: bool,
    /// Whether monitoring events are emitted for the task.
    pub(crate) emits_events: bool,
    /// Whether an [`AdmissionChecks`] applies before the start.
    pub(crate) checks_admission: bool,
    /// Which continuations the message has.
    pub(crate) continuations: Continuations,
    pub(crate) eta: Option<SystemTime>,
    pub(crate) expires: Option<SystemTime>,
    pub(crate) soft_limit: Option<Duration>,
    pub(crate) hard_limit: Option<Duration>,
    pub(crate) retries: u32,
    pub(crate) max_retries: Option<u32>,
    pub(crate) retry_delay: Duration,
    pub(crate) autoretry: Option<AutoRetry>,
}

/// Which kinds of continuations the message of a task has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Continuations {
    /// Callbacks or chain steps, sent when the task succeeds.
    pub(crate) on_success: bool,
    /// Errbacks, or chain steps that fail together with the task.
    pub(crate) on_failure: bool,
    /// Whether the task is a member of a chord header.
    pub(crate) in_chord: bool,
}

impl Continuations {
    /// Returns the continuations of an embed, reading one level deep.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read. The message is then rejected as a whole, so
    /// that no continuation is dropped.
    pub(crate) fn from_embed(embed: &Embed<'_>) -> Result<Self, DecodeError> {
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

/// An input of the delivery state machine.
#[derive(Debug)]
pub(crate) enum DeliveryEvent {
    /// The consumer received the delivery.
    Arrived,
    /// A slot is assigned to the delivery.
    SlotGranted,
    /// The rate limit of the task allows the next attempt to queue at this time.
    RateLimited(Instant),
    /// The admission checks are complete.
    AdmissionChecked(Admission),
    /// The task is revoked.
    Revoked(Revocation),
    /// The last requested effect is done.
    Done,
    /// The last requested effect is done, and these effects come next.
    DoneWith(Vec<WorkflowEffect>),
    /// The last requested settlement changed nothing: the broker does not hold the
    /// delivery any more.
    Gone,
    /// The last requested effect failed.
    Failed(EffectError),
    /// The outcome of [`Effect::Restore`].
    Restored(Result<(), EffectError>),
    /// The task ended.
    Returned(Outcome),
    /// The deadline of
    /// [`DeliveryState::timeout`](crate::worker::delivery::state::DeliveryState::timeout)
    /// has passed.
    Tick,
    /// The worker shuts down.
    Stop(Stop),
    /// The time to wait for effects at a shutdown is over.
    GiveUp,
    /// The connection of the delivery is lost, so the broker requeues the message.
    ConnectionLost,
    /// The broker has returned the message to its queue, because the delivery was not
    /// renewed in time.
    LeaseLost,
    /// The broker delivered the message to this worker again, so that it can be
    /// settled.
    Redelivered,
}

/// The result of the admission checks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Admission {
    /// The task may start.
    Start,
    /// A durable revocation of the task exists.
    Revoked,
    /// An earlier delivery of the task succeeded with this value.
    Succeeded(Raw<'static>),
    /// The task is unique and another instance holds the lock.
    Taken(Conflict),
}

/// The checks to make before one task starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AdmissionChecks {
    /// Whether to look for a success of an earlier delivery.
    pub(crate) success: bool,
    /// Whether to look for a durable revocation.
    pub(crate) revoked: bool,
    /// The lock to acquire, for a unique task.
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
    /// Prevents the start; a running task is not affected.
    Unstarted,
    /// Prevents the start or aborts the running task. The signal goes into the
    /// monitoring event and to the child process of an isolated task.
    Terminate(i32),
    /// Aborts a running task whose message the broker will deliver again, because
    /// the connection was lost.
    ConnectionLost,
}

/// Why an effect has no result.
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
    /// Returns whether repeating the effect may succeed.
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

/// A kind of shutdown, as in Celery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Running tasks finish, other deliveries are requeued.
    Warm,
    /// Like `Warm`; becomes `Cold` when the soft shutdown timeout has passed.
    Soft,
    /// Running tasks are aborted.
    Cold,
}

/// How the run of a task ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Value(Option<Raw<'static>>),
    Error {
        error: TaskError,
        /// Between 0 and 1, for the jitter of a retry.
        random: f64,
    },
    Panic(String),
    /// The child process that was assigned to the task exited.
    Lost(ProcessLost),
}

/// An output of the delivery state machine, carried out by the driver.
#[derive(Debug)]
pub(crate) enum Action {
    /// Queue the delivery for a slot.
    Queue,
    /// Run the task in the assigned slot.
    Start,
    /// Signal the soft time limit to the task. A task that does not observe it is
    /// aborted, and its outcome is
    /// [`soft_limit_exceeded`](crate::worker::core::failure::soft_limit_exceeded).
    SignalSoftLimit,
    /// Abort the running task.
    Abort,
    /// Release the slot.
    FreeSlot,
    /// Carry out an effect and report `Done`, `DoneWith`, `AdmissionChecked` or
    /// `Failed`.
    Effect(Effect),
    /// Emit a monitoring event.
    Emit(TaskEvent),
    /// Add the expired task to the revoked ones.
    RecordExpiry,
    /// Report the delivery as in doubt: whether its message is still on the broker is
    /// unknown, and its task does not run here.
    ReportInDoubt,
    /// Remove the delivery from the table of deliveries in flight.
    Remove,
}

/// An asynchronous operation for a delivery. The state machine requests one at a
/// time and repeats it until it succeeds or fails permanently.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Settle the message.
    Settle(Disposition),
    /// Store a state of the task in the result backend.
    Store(StateUpdate),
    /// Publish messages.
    Send(FollowUp),
    /// Compute the workflow effects of the completed task.
    Continue(Completion),
    /// Carry out a workflow effect.
    Workflow(WorkflowEffect),
    /// Run the admission checks.
    CheckAdmission,
    /// Return the message to the head of its queue, from the copy in memory if the
    /// broker does not hold the delivery any more. It is not idempotent, so it is
    /// requested again only after [`EffectError::NotSent`].
    Restore,
    /// Emit a monitoring event. The state machine turns it into [`Action::Emit`],
    /// which needs no report.
    Emit(TaskEvent),
}

/// A monitoring event about a task (`task-received`, `task-started`, ...).
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

/// How the message is settled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Disposition {
    Ack,
    Reject,
    Requeue(QueueEnd),
    /// The broker redelivers the message at this time.
    Defer(SystemTime),
}

/// A state of the task to store in the result backend.
#[derive(Clone, Debug)]
pub(crate) enum StateUpdate {
    Started,
    Success(Raw<'static>),
    Failure(FailureInfo),
    Retry(FailureInfo),
    /// With the reason.
    Revoked(&'static str),
}

/// Messages to publish because of a task.
#[derive(Clone, Debug)]
pub(crate) enum FollowUp {
    /// The task again, at `eta` or at once.
    Retry {
        eta: Option<SystemTime>,
        changes: Option<Box<Changes>>,
    },
    /// The callbacks and the next step of the chain, with this value.
    Success(Raw<'static>),
    /// The canvas that replaces the task.
    Replacement(Box<Canvas>),
    /// The message itself, to the dead-letter queue.
    DeadLetter,
}

/// Why this worker cannot run a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    /// A code such as `unregistered`, for the `x-dead-reason` header.
    pub(crate) reason: &'static str,
    /// The cause, for the log and the `x-dead-detail` header.
    pub(crate) detail: String,
    /// The task of the message, if its headers could be read. It fails.
    pub(crate) task: Option<Box<RejectedTask>>,
}

/// A task that this worker cannot run and that fails for this reason.
#[derive(Clone, Debug)]
pub(crate) struct RejectedTask {
    pub(crate) id: String,
    pub(crate) reply_to: Option<String>,
    /// Whether the failure is propagated to the workflow of the task.
    pub(crate) is_linked: bool,
    /// The failure to store.
    pub(crate) failure_info: FailureInfo,
}
