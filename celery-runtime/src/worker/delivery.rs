//! The life of one delivery, as a pure state machine.
//!
//! Events and the time come in through [`Life::handle`], actions go out. The
//! machine decides; the driver carries out and reports back. It knows no
//! broker, no backend and no clock, so every order of events can be tested.
//!
//! ```text
//! Arrived -> Waiting -> Acknowledging -> Announcing -> Running -> Finishing -> Over
//!    |          |        (early ack)     (STARTED)                ^  |
//!    |          +--- late ack ----------------^                   |  | (a step failed)
//!    +-> Finishing (expired, parked, refused)                     +- Pausing
//! ```
//!
//! Two rules make losing a task impossible: a message is acknowledged early
//! only right before its task starts, and the task starts only after the
//! acknowledgement went out; and whatever has to happen after a task (messages
//! to send, the result to store) happens before a late acknowledgement, each
//! step repeated until it succeeds.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use celery_protocol::{Exception, Raw, Value};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::broker::QueueEnd;
use crate::clock::Moment;
use crate::config::OnUnknown;
use crate::task::{AutoRetry, Failure, Requeue, Retry, TaskError, TaskErrorKind, When};

/// What was decided about a delivery when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) acks_late: bool,
    pub(crate) acks_on_failure: bool,
    pub(crate) stores_result: bool,
    pub(crate) stores_errors: bool,
    pub(crate) track_started: bool,
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

/// Which messages follow a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) on_success: bool,
    pub(crate) on_failure: bool,
}

/// Something happened to the delivery.
#[derive(Debug)]
pub(crate) enum Event {
    /// It was read from the broker.
    Arrived,
    /// A slot of the pool is free for it.
    Slot,
    /// What was asked for last is done.
    Done,
    /// What was asked for last failed.
    Failed(Obstacle),
    /// The task ended.
    Returned(Outcome),
    /// The time of [`Life::timeout`] has come.
    Tick,
    /// The worker stops.
    Stop(Stop),
    /// The broker has taken the delivery back.
    Withdrawn,
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
    /// Running tasks are ended.
    Cold,
}

/// How a task ended. The random number is drawn by the driver.
#[derive(Debug)]
pub(crate) enum Outcome {
    Value(Option<Raw<'static>>),
    Error { error: TaskError, random: f64 },
    Panic(String),
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
    /// Forget the delivery.
    Over,
}

/// A piece of work after or around the task.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Settle(Verdict),
    Store(Report),
    Send(Letter),
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
    Retry { eta: Option<SystemTime> },
    /// Callbacks and the next task of the chain, with this value.
    Success(Raw<'static>),
    /// The errbacks.
    Failure,
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
    /// Stored as the task's failure, where an id could be read.
    pub(crate) failure: Option<Mishap>,
}

/// One delivery from its arrival until the broker has forgotten it.
#[derive(Debug)]
pub(crate) struct Life {
    work: Work,
    phase: Phase,
    steps: VecDeque<Step>,
    attempt: u32,
    withdrawn: bool,
    stopping: Option<Stop>,
}

#[derive(Debug)]
enum Work {
    Task(Plan),
    Refused {
        refusal: Refusal,
        policy: OnUnknown,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Arrived,
    Waiting,
    Acknowledging,
    Announcing,
    Running {
        soft: Option<Instant>,
        hard: Option<Instant>,
    },
    Finishing,
    Pausing {
        until: Instant,
    },
    Over,
}

impl Life {
    /// A task that this worker knows.
    pub(crate) fn of_task(plan: Plan) -> Self {
        Self::new(Work::Task(plan))
    }

    /// A message that cannot be run, and what to do with such.
    pub(crate) fn refused(refusal: Refusal, policy: OnUnknown) -> Self {
        Self::new(Work::Refused { refusal, policy })
    }

    fn new(work: Work) -> Self {
        Self {
            work,
            phase: Phase::Arrived,
            steps: VecDeque::new(),
            attempt: 0,
            withdrawn: false,
            stopping: None,
        }
    }

    /// Takes note of an event and says what to do now.
    pub(crate) fn handle(&mut self, event: Event, now: Moment, actions: &mut Vec<Action>) {
        match (event, self.phase) {
            (_, Phase::Over) => {}
            (Event::Arrived, _) => self.arrive(now, actions),
            (Event::Slot, Phase::Waiting) => self.take_slot(now, actions),
            (Event::Done, Phase::Acknowledging) => self.announce(now, actions),
            // The state STARTED is a courtesy: the task runs without it, too.
            (Event::Done | Event::Failed(_), Phase::Announcing) => self.start(now, actions),
            (Event::Done, Phase::Finishing) => self.step_done(actions),
            (Event::Failed(obstacle), Phase::Acknowledging) => {
                self.ack_failed(&obstacle, now, actions);
            }
            (Event::Failed(obstacle), Phase::Finishing) => self.step_failed(obstacle, now, actions),
            (Event::Returned(outcome), Phase::Running { .. }) => {
                actions.push(Action::FreeSlot);
                self.conclude(outcome, now);
                self.next_step(actions);
            }
            (Event::Tick, _) => self.tick(now, actions),
            (Event::Stop(stop), _) => self.stop(stop, actions),
            (Event::Withdrawn, _) => self.withdraw(actions),
            // A slot for what left the line, a report about what was given up.
            (Event::Slot, _) => actions.push(Action::FreeSlot),
            (Event::Done | Event::Failed(_) | Event::Returned(_), _) => {}
        }
    }

    /// When [`Event::Tick`] is wanted.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { soft, hard } => soft.into_iter().chain(hard).min(),
            Phase::Pausing { until } => Some(until),
            _ => None,
        }
    }

    /// Whether it counts against the window of messages held for running.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(
            self.phase,
            Phase::Waiting | Phase::Acknowledging | Phase::Announcing | Phase::Running { .. }
        )
    }

    /// Whether it is in line for a slot.
    pub(crate) fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    /// Why the message was refused.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        match &self.work {
            Work::Refused { refusal, .. } => Some(refusal),
            Work::Task(_) => None,
        }
    }

    fn arrive(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match &self.work {
            Work::Task(plan) => match plan.eta {
                _ if is_expired(plan, now) => self.expire(actions),
                Some(eta) if eta > now.wall => {
                    self.finish_with([Step::Settle(Verdict::Park(eta))], actions);
                }
                _ => {
                    self.phase = Phase::Waiting;
                    actions.push(Action::Queue);
                }
            },
            Work::Refused { refusal, policy } => {
                let failure = refusal.failure.clone().map(Report::Failure).map(Step::Store);
                match *policy {
                    OnUnknown::Keep => {
                        let keep = [Step::Send(Letter::Dead), Step::Settle(Verdict::Ack)];
                        self.finish_with(failure.into_iter().chain(keep), actions);
                    }
                    OnUnknown::Reject => {
                        let reject = [Step::Settle(Verdict::Reject)];
                        self.finish_with(failure.into_iter().chain(reject), actions);
                    }
                    OnUnknown::Requeue(delay) => {
                        self.steps
                            .push_back(Step::Settle(Verdict::Requeue(QueueEnd::Tail)));
                        self.phase = Phase::Pausing {
                            until: now.instant + delay,
                        };
                    }
                }
            }
        }
    }

    fn take_slot(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks line up for a slot");
        };
        if is_expired(plan, now) {
            actions.push(Action::FreeSlot);
            self.expire(actions);
        } else if plan.acks_late {
            self.announce(now, actions);
        } else {
            self.phase = Phase::Acknowledging;
            actions.push(Action::Step(Step::Settle(Verdict::Ack)));
        }
    }

    /// The acknowledgement before the start did not go out, so the task must
    /// not start: the broker may hand the message to somebody else.
    fn ack_failed(&mut self, obstacle: &Obstacle, now: Moment, actions: &mut Vec<Action>) {
        actions.push(Action::FreeSlot);
        if self.stopping.is_some() || *obstacle != Obstacle::Passing {
            return self.over(actions);
        }
        self.phase = Phase::Pausing {
            until: now.instant + self.next_delay(),
        };
    }

    /// Stores STARTED first where it is wanted, and waits for it, since it
    /// must not overwrite the result.
    fn announce(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks are started");
        };
        if plan.track_started && plan.stores_result {
            self.phase = Phase::Announcing;
            actions.push(Action::Step(Step::Store(Report::Started)));
        } else {
            self.start(now, actions);
        }
    }

    fn start(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks are started");
        };
        self.attempt = 0;
        if self.stopping == Some(Stop::Cold) {
            actions.push(Action::FreeSlot);
            self.cancel();
            return self.next_step(actions);
        }
        self.phase = Phase::Running {
            soft: plan.soft_limit.map(|limit| now.instant + limit),
            hard: plan.hard_limit.map(|limit| now.instant + limit),
        };
        actions.push(Action::Start);
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running { hard: Some(hard), .. } if hard <= now.instant => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let Work::Task(plan) = &self.work else {
                    unreachable!("only tasks run");
                };
                let limit = plan.hard_limit.unwrap_or_default();
                // A late message whose task ran out of time may run again.
                self.fail(time_limit_exceeded(limit), Verdict::Requeue(QueueEnd::Tail));
                self.next_step(actions);
            }
            Phase::Running { soft: Some(soft), hard } if soft <= now.instant => {
                self.phase = Phase::Running { soft: None, hard };
                actions.push(Action::Warn);
            }
            Phase::Pausing { until } if until <= now.instant => self.resume(actions),
            _ => {}
        }
    }

    /// After a pause: the step that failed again, or the line for a slot
    /// where it was the early acknowledgement.
    fn resume(&mut self, actions: &mut Vec<Action>) {
        if self.steps.is_empty() {
            self.phase = Phase::Waiting;
            actions.push(Action::Queue);
        } else {
            self.phase = Phase::Finishing;
            self.next_step(actions);
        }
    }

    fn stop(&mut self, stop: Stop, actions: &mut Vec<Action>) {
        self.stopping = Some(stop);
        match (self.phase, stop) {
            // A prefetched message goes back to where it was taken from.
            (Phase::Waiting, _) => {
                self.finish_with([Step::Settle(Verdict::Requeue(QueueEnd::Head))], actions);
            }
            (Phase::Pausing { .. }, _) if self.steps.is_empty() => {
                self.finish_with([Step::Settle(Verdict::Requeue(QueueEnd::Head))], actions);
            }
            (Phase::Pausing { .. }, _) => {
                self.phase = Phase::Finishing;
                self.next_step(actions);
            }
            (Phase::Running { .. }, Stop::Cold) => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                self.cancel();
                self.next_step(actions);
            }
            _ => {}
        }
    }

    /// A cold stop ends a task as Celery does: a late one goes back to its
    /// queue, an early one, whose message is gone, is marked as to be retried.
    fn cancel(&mut self) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks run");
        };
        if plan.acks_late {
            self.steps
                .push_back(Step::Settle(Verdict::Requeue(QueueEnd::Head)));
        } else if plan.stores_result {
            let mishap = celery_exception("Retry", "cancelled by Celery");
            self.steps.push_back(Step::Store(Report::Retry(mishap)));
        }
    }

    /// The connection that delivered it is gone and with it the right to
    /// settle: somebody else gets the message.
    fn withdraw(&mut self, actions: &mut Vec<Action>) {
        self.withdrawn = true;
        match self.phase {
            Phase::Waiting => self.over(actions),
            Phase::Pausing { .. } if self.steps.is_empty() => self.over(actions),
            Phase::Acknowledging => {
                actions.push(Action::FreeSlot);
                self.over(actions);
            }
            // Running ones finish: their results count, their acknowledgement
            // is left out.
            _ => {}
        }
    }

    fn conclude(&mut self, outcome: Outcome, now: Moment) {
        match outcome {
            Outcome::Value(value) => self.succeed(value),
            Outcome::Panic(message) => {
                let mishap = Mishap::new(Exception::new("rust", "Panic", message));
                self.fail(mishap, Verdict::Reject);
            }
            Outcome::Error { error, random } => self.err(error, random, now),
        }
    }

    fn succeed(&mut self, value: Option<Raw<'static>>) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks return values");
        };
        let value = value.unwrap_or(Raw::NULL);
        if plan.links.on_success {
            self.steps
                .push_back(Step::Send(Letter::Success(value.clone())));
        }
        if plan.stores_result {
            self.steps.push_back(Step::Store(Report::Success(value)));
        }
        if plan.acks_late {
            self.steps.push_back(Step::Settle(Verdict::Ack));
        }
    }

    fn err(&mut self, error: TaskError, random: f64, now: Moment) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks fail");
        };
        match error.into_kind() {
            TaskErrorKind::Failed(failure) => match plan.autoretry {
                Some(auto) if auto.applies_to(failure.source.as_deref()) => {
                    let delay = auto.backoff.map(|backoff| backoff.countdown(plan.retries, random));
                    let retry = Retry {
                        when: delay.map(When::After),
                        because: Some(failure),
                        ..Retry::default()
                    };
                    self.retry(retry, now);
                }
                _ => self.fail(failure.into(), Verdict::Reject),
            },
            TaskErrorKind::Retry(retry) => self.retry(retry, now),
            TaskErrorKind::Ignore => {
                if plan.acks_late {
                    self.steps.push_back(Step::Settle(Verdict::Ack));
                }
            }
            TaskErrorKind::Reject { requeue, reason } => self.reject(requeue, reason),
        }
    }

    fn retry(&mut self, retry: Retry, now: Moment) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks are retried");
        };
        let most = retry.max_retries.unwrap_or(plan.max_retries);
        if most.is_some_and(|most| plan.retries >= most) {
            let mishap = retry.because.map_or_else(
                || celery_exception("MaxRetriesExceededError", "Can't retry: no retries are left"),
                Mishap::from,
            );
            return self.fail(mishap, Verdict::Reject);
        }
        let eta = match retry.when.unwrap_or(When::After(plan.retry_delay)) {
            When::After(Duration::ZERO) => None,
            When::After(delay) => Some(now.wall + delay),
            When::At(time) => Some(time),
        };
        let mishap = retry.because.map_or_else(
            || celery_exception("Retry", "Retry requested by the task"),
            Mishap::from,
        );
        self.steps.push_back(Step::Send(Letter::Retry { eta }));
        if plan.stores_result {
            self.steps.push_back(Step::Store(Report::Retry(mishap)));
        }
        if plan.acks_late {
            self.steps.push_back(Step::Settle(Verdict::Ack));
        }
    }

    fn reject(&mut self, requeue: Requeue, reason: String) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks reject");
        };
        if requeue == Requeue::No && (plan.stores_result || plan.stores_errors) {
            let mut mishap = celery_exception("Reject", reason);
            mishap.exception.exc_message.push(Value::Bool(false));
            self.steps.push_back(Step::Store(Report::Failure(mishap)));
        }
        if plan.acks_late {
            let verdict = match requeue {
                Requeue::Yes => Verdict::Requeue(QueueEnd::Tail),
                Requeue::No => Verdict::Reject,
            };
            self.steps.push_back(Step::Settle(verdict));
        }
    }

    /// `unless_acked` is what a late message meets whose task is configured
    /// not to be acknowledged when it fails.
    fn fail(&mut self, mishap: Mishap, unless_acked: Verdict) {
        let Work::Task(plan) = &self.work else {
            unreachable!("only tasks fail");
        };
        if plan.stores_result || plan.stores_errors {
            self.steps.push_back(Step::Store(Report::Failure(mishap)));
        }
        if plan.links.on_failure {
            self.steps.push_back(Step::Send(Letter::Failure));
        }
        if plan.acks_late {
            let verdict = if plan.acks_on_failure {
                Verdict::Ack
            } else {
                unless_acked
            };
            self.steps.push_back(Step::Settle(verdict));
        }
    }

    fn expire(&mut self, actions: &mut Vec<Action>) {
        let stores = matches!(&self.work, Work::Task(plan) if plan.stores_result);
        let revoked = stores.then_some(Step::Store(Report::Revoked("expired")));
        let steps = revoked.into_iter().chain([Step::Settle(Verdict::Ack)]);
        self.finish_with(steps, actions);
    }

    fn finish_with(&mut self, steps: impl IntoIterator<Item = Step>, actions: &mut Vec<Action>) {
        self.steps.extend(steps);
        self.next_step(actions);
    }

    /// Asks for the first step that is left. It stays in the list until it is
    /// done, so that nothing is forgotten when it fails.
    fn next_step(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Finishing;
        while let Some(step) = self.steps.front() {
            if self.withdrawn && matches!(step, Step::Settle(_)) {
                self.steps.pop_front();
                continue;
            }
            return actions.push(Action::Step(step.clone()));
        }
        self.over(actions);
    }

    fn step_done(&mut self, actions: &mut Vec<Action>) {
        self.attempt = 0;
        self.steps.pop_front();
        self.next_step(actions);
    }

    fn step_failed(&mut self, obstacle: Obstacle, now: Moment, actions: &mut Vec<Action>) {
        match obstacle {
            Obstacle::Passing => {
                self.phase = Phase::Pausing {
                    until: now.instant + self.next_delay(),
                };
            }
            Obstacle::Lasting(cause) => {
                let step = self.steps.pop_front();
                self.give_up(step, &cause);
                self.next_step(actions);
            }
        }
    }

    /// A step that can never succeed must not be passed over as if it had.
    fn give_up(&mut self, step: Option<Step>, cause: &str) {
        match step {
            // What was to follow cannot be sent: the task has failed, whatever
            // it returned.
            Some(Step::Send(Letter::Success(_) | Letter::Retry { .. })) => {
                self.steps.clear();
                self.fail(celery_exception("OperationalError", cause), Verdict::Reject);
            }
            // Never acknowledge a message that could not be kept.
            Some(Step::Send(Letter::Dead)) => {
                self.steps.clear();
                self.steps
                    .push_back(Step::Settle(Verdict::Requeue(QueueEnd::Tail)));
            }
            Some(Step::Store(Report::Success(_))) => {
                let mishap = celery_exception("BackendStoreError", cause);
                self.steps.push_front(Step::Store(Report::Failure(mishap)));
            }
            _ => {}
        }
    }

    fn over(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Over;
        actions.push(Action::Over);
    }

    fn next_delay(&mut self) -> Duration {
        let delay = Backoff::CONNECTION.delay(self.attempt, 0.0);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }
}

impl Mishap {
    fn new(exception: Exception) -> Self {
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

fn time_limit_exceeded(limit: Duration) -> Mishap {
    let seconds = limit.as_secs_f64();
    let argument = if seconds.fract() == 0.0 {
        Value::Int(seconds as i64)
    } else {
        Value::Float(seconds)
    };
    Mishap::new(billiard_exception("TimeLimitExceeded", [argument]))
}

pub(crate) fn celery_exception(name: &str, message: impl Into<String>) -> Mishap {
    Mishap::new(Exception::new("celery.exceptions", name, message))
}

/// Celery's pool has its own exceptions, and readers know them by this module.
fn billiard_exception(name: &str, args: impl IntoIterator<Item = Value>) -> Exception {
    Exception::new("billiard.exceptions", name, "").with_args(args)
}

/// Celery's rule: strictly later than the time of expiry.
fn is_expired(plan: &Plan, now: Moment) -> bool {
    plan.expires.is_some_and(|expires| now.wall > expires)
}
