//! The words in which a delivery's life is told: what happens to it, what is to
//! be done, and what is stored and sent for it.

use std::time::{Duration, SystemTime};

use celery_protocol::{Exception, Raw, Value};
use tokio::time::Instant;

use crate::boundary::QueueEnd;
use crate::canvas::Canvas;
use crate::execution::{Changes, Failure, Loss, TaskError};
use crate::task::{AutoRetry, Conflict};
use crate::worker::workflow::effect::{Deed, Turn};

/// What was decided about a delivery when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
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
    pub(crate) links: Links,
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
pub(crate) struct Links {
    /// Messages, when it has succeeded.
    pub(crate) on_success: bool,
    /// Errbacks, or steps that fail with it.
    pub(crate) on_failure: bool,
    /// Whether it is a part of a chord.
    pub(crate) in_chord: bool,
}

/// Something happened to the delivery.
#[derive(Debug)]
pub(crate) enum Event {
    /// It was read from the broker.
    Arrived,
    /// A slot of the pool is free for it.
    Slot,
    /// Its turn to line up is later, as when tasks of its type are limited.
    Hold(Instant),
    /// The question before the start is answered.
    Answered(Answer),
    /// It shall not run, or not go on running.
    Revoked(Revocation),
    /// What was asked for last is done.
    Done,
    /// The same, and these are to be done next.
    Led(Vec<Deed>),
    /// What was asked for last failed.
    Failed(Obstacle),
    /// The task ended.
    Returned(Outcome),
    /// The time of [`Life::timeout`](crate::worker::delivery::state::Life::timeout) has come.
    Tick,
    /// The worker stops.
    Stop(Stop),
    /// The broker has taken the delivery back.
    Withdrawn,
    /// The broker has delivered it again, to us: it can be settled once more.
    Regained,
}

/// What was asked before a task starts, and found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// Nothing speaks against it.
    Start,
    /// It was revoked while nobody listened.
    Revoked,
    /// It has succeeded before with this value, and was delivered again.
    Succeeded(Raw<'static>),
    /// It has to be the only one, and is not.
    Taken(Conflict),
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

/// Why a step could not be carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Obstacle {
    /// It may succeed later.
    Passing,
    /// It never will.
    Lasting(String),
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
    Lost(Loss),
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
    Step(Step),
    /// Tell those who watch.
    Tell(Notice),
    /// Remember that the task's time to start is over.
    Expired,
    /// Forget the delivery.
    Over,
}

/// A piece of work after or around the task.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Settle(Verdict),
    Store(Report),
    Send(Letter),
    /// Work out what the workflow asks for now, and report it.
    Lead(Turn),
    /// One of those things.
    Deed(Deed),
    /// Ask whether it may start, and report `Answered` or `Failed`.
    Ask,
    /// Tell those who watch, which succeeds at once.
    Tell(Notice),
}

/// Something about a task that those who watch are told.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    Received,
    Started,
    Succeeded(Raw<'static>),
    Failed(Mishap),
    Retried(Mishap),
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
pub(crate) enum Verdict {
    Ack,
    Reject,
    Requeue(QueueEnd),
    Park(SystemTime),
}

/// What is stored for the task.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    Started,
    Success(Raw<'static>),
    Failure(Mishap),
    Retry(Mishap),
    Revoked(&'static str),
}

/// An exception and its traceback, ready to be stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mishap {
    pub(crate) exception: Exception,
    pub(crate) traceback: Option<String>,
}

/// What is sent on behalf of the task.
#[derive(Clone, Debug)]
pub(crate) enum Letter {
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
pub(crate) struct Refusal {
    /// A word for machines, kept with the message.
    pub(crate) reason: &'static str,
    /// A sentence for people.
    pub(crate) detail: String,
    /// The task that it would have been, where that could be read and somebody
    /// may wait for its result.
    pub(crate) task: Option<Box<RefusedTask>>,
}

/// What is known of a task that nobody here can run.
#[derive(Clone, Debug)]
pub(crate) struct RefusedTask {
    pub(crate) id: String,
    pub(crate) reply_to: Option<String>,
    /// Whether its workflow has to be told.
    pub(crate) is_linked: bool,
    /// Stored as its failure.
    pub(crate) mishap: Mishap,
}

impl Mishap {
    pub(crate) fn new(exception: Exception) -> Self {
        Self {
            exception,
            traceback: None,
        }
    }
}

impl From<Failure> for Mishap {
    fn from(failure: Failure) -> Self {
        Self {
            traceback: Some(failure.traceback()),
            exception: failure.exception,
        }
    }
}

/// What a task fails with that did not heed its soft limit.
pub(crate) fn soft_limit_exceeded() -> TaskError {
    TaskError::failed(billiard_exception("SoftTimeLimitExceeded", []))
}

pub(crate) fn time_limit_exceeded(limit: Duration) -> Mishap {
    let seconds = limit.as_secs_f64();
    let argument = if seconds.fract() == 0.0 {
        Value::Int(seconds as i64)
    } else {
        Value::Float(seconds)
    };
    Mishap::new(billiard_exception("TimeLimitExceeded", [argument]))
}

/// What a task fails with that had to be the only one.
pub(crate) fn not_unique() -> Mishap {
    Mishap::new(Exception::new("celery_rs", "NotUnique", Conflict::REASON))
}

/// What a task fails with whose process is gone.
pub(crate) fn worker_lost(message: String) -> Mishap {
    Mishap::new(billiard_exception("WorkerLostError", [Value::Str(message)]))
}

pub(crate) fn celery_exception(name: &str, message: impl Into<String>) -> Mishap {
    Mishap::new(Exception::new("celery.exceptions", name, message))
}

/// Celery's pool has its own exceptions, and readers know them by this module.
fn billiard_exception(name: &str, args: impl IntoIterator<Item = Value>) -> Exception {
    Exception::new("billiard.exceptions", name, "").with_args(args)
}
