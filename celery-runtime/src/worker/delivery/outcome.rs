//! Turns the outcome of a task into effects. Pure; called by the state machine.

use std::time::Duration;

use celery_protocol::{Exception, Raw, Value};

use crate::boundary::QueueEnd;
use crate::env::{Now, later};
use crate::execution::{
    Failure, FailureInfo, ProcessLost, ReadyChord, Requeue, Retry, TaskError, TaskErrorKind, When,
};
use crate::worker::core::failure::{celery_exception, worker_lost};
use crate::worker::delivery::event::{
    Disposition, Effect, ExecutionPolicy, FollowUp, Outcome, StateUpdate, TaskEvent,
};
use crate::worker::workflow::effect::Completion;

impl ExecutionPolicy {
    /// Returns the effects of an outcome. As in Celery, the continuations of a success
    /// are sent before its result is stored, and the state of a retry is stored before
    /// the retry is sent. The settlement comes after both.
    pub(crate) fn effects_of(&self, outcome: Outcome, now: Now) -> Vec<Effect> {
        match outcome {
            Outcome::Value(value) => self.succeed(value),
            Outcome::Panic(message) => {
                let failure_info = FailureInfo::new(Exception::new("rust", "Panic", message));
                self.fail(failure_info)
            }
            Outcome::Error { error, random } => self.error(error, random, now),
            Outcome::Lost(lost) => self.process_lost(lost),
        }
    }

    /// Requeues a late-acknowledged task whose process is lost, if it is set to run
    /// again or has not begun. Otherwise the task fails.
    fn process_lost(&self, lost: ProcessLost) -> Vec<Effect> {
        if self.acks_late && (self.requeued_when_lost || !lost.began) {
            return self.settled(Vec::new(), Disposition::Requeue(QueueEnd::Tail), None);
        }
        self.fail(worker_lost(lost.message))
    }

    /// Returns the effects of a failure. A late message is acknowledged or, with
    /// `acks_on_failure` off, rejected.
    pub(crate) fn fail(&self, failure_info: FailureInfo) -> Vec<Effect> {
        self.fail_with(failure_info, self.acks_on_failure, Disposition::Reject)
    }

    /// Returns the effects of a failure before the start, when an early message is not
    /// acknowledged yet either.
    pub(crate) fn fail_unstarted(&self, failure_info: FailureInfo) -> Vec<Effect> {
        let mut effects = self.fail(failure_info);
        if !self.acks_late {
            effects.push(Effect::Settle(Disposition::Ack));
        }
        effects
    }

    /// Returns the effects of an exceeded hard time limit. A late message is
    /// acknowledged or, with `acks_on_timeout` off, requeued.
    pub(crate) fn time_out(&self, failure_info: FailureInfo) -> Vec<Effect> {
        let requeue = Disposition::Requeue(QueueEnd::Tail);
        self.fail_with(failure_info, self.acks_on_timeout, requeue)
    }

    fn fail_with(
        &self,
        failure_info: FailureInfo,
        acks: bool,
        otherwise: Disposition,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let event = self
            .emits_events
            .then(|| TaskEvent::Failed(failure_info.clone()));
        let completion = self.continue_on_failure(&failure_info);
        if self.stores_result || self.stores_errors {
            effects.push(Effect::Store(StateUpdate::Failure(failure_info)));
        }
        effects.extend(completion);
        let disposition = if acks { Disposition::Ack } else { otherwise };
        self.settled(effects, disposition, event)
    }

    /// Returns the effect that propagates a failure to the workflow, if there is one.
    fn continue_on_failure(&self, failure_info: &FailureInfo) -> Option<Effect> {
        let is_linked = self.continuations.in_chord || self.continuations.on_failure;
        is_linked.then(|| Effect::Continue(Completion::Failed(failure_info.clone())))
    }

    /// Returns the effects of a cold shutdown. As in Celery, a late message is requeued,
    /// and the task of an early one gets the state RETRY.
    pub(crate) fn cancel(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !self.acks_late && self.stores_result {
            let failure_info = celery_exception("Retry", "cancelled by Celery");
            effects.push(Effect::Store(StateUpdate::Retry(failure_info)));
        }
        let requeue = Disposition::Requeue(QueueEnd::Head);
        self.settled(
            effects,
            requeue,
            self.emits_events.then_some(TaskEvent::Cancelled),
        )
    }

    /// Returns the effects of a revocation before the start, when an early message is
    /// not acknowledged yet either.
    pub(crate) fn revoke(&self, reason: &'static str, event: TaskEvent) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.stores_result {
            effects.push(Effect::Store(StateUpdate::Revoked(reason)));
        }
        if self.continuations.in_chord {
            effects.push(Effect::Continue(Completion::Revoked(reason)));
        }
        effects.push(Effect::Settle(Disposition::Ack));
        effects.extend(self.emits_events.then_some(Effect::Emit(event)));
        effects
    }

    fn succeed(&self, value: Option<Raw<'static>>) -> Vec<Effect> {
        let value = value.unwrap_or(Raw::NULL);
        let mut effects = Vec::new();
        let event = self
            .emits_events
            .then(|| TaskEvent::Succeeded(value.clone()));
        if self.continuations.on_success {
            effects.push(Effect::Send(FollowUp::Success(value.clone())));
        }
        let completion = self
            .continuations
            .in_chord
            .then(|| Effect::Continue(Completion::Succeeded(value.clone())));
        if self.stores_result {
            effects.push(Effect::Store(StateUpdate::Success(value)));
        }
        effects.extend(completion);
        self.settled(effects, Disposition::Ack, event)
    }

    fn error(&self, error: TaskError, random: f64, now: Now) -> Vec<Effect> {
        match error.into_kind() {
            TaskErrorKind::Failed(failure) => self.failed(failure, random, now),
            TaskErrorKind::Retry(retry) => self.retry(retry, now),
            TaskErrorKind::Ignore => self.settled(Vec::new(), Disposition::Ack, None),
            TaskErrorKind::Replace(canvas) => {
                if let Some(reason) = canvas.replacement_error() {
                    return self.fail(celery_exception("ImproperlyConfigured", reason));
                }
                let send = Effect::Send(FollowUp::Replacement(canvas));
                self.settled(vec![send], Disposition::Ack, None)
            }
            TaskErrorKind::Join(chord) => {
                let ReadyChord {
                    group_id,
                    body,
                    results,
                } = *chord;
                let completion = Completion::Joined {
                    group_id,
                    body,
                    results,
                };
                self.settled(vec![Effect::Continue(completion)], Disposition::Ack, None)
            }
            TaskErrorKind::Reject { requeue, reason } => self.reject(requeue, reason),
        }
    }

    fn failed(&self, failure: Failure, random: f64, now: Now) -> Vec<Effect> {
        let auto = self.autoretry.filter(|auto| failure.is_retried_by(auto));
        let Some(auto) = auto else {
            return self.fail(failure.into());
        };
        let delay = auto
            .backoff
            .map(|backoff| backoff.countdown(self.retries, random));
        let retry = Retry {
            when: delay.map(When::After),
            because: Some(failure),
            ..Retry::default()
        };
        self.retry(retry, now)
    }

    fn retry(&self, retry: Retry, now: Now) -> Vec<Effect> {
        let max_retries = retry.max_retries.unwrap_or(self.max_retries);
        let exhausted = max_retries.is_some_and(|max_retries| self.retries >= max_retries);
        let failure_info = match retry.because {
            Some(cause) => cause.into(),
            None if exhausted => celery_exception(
                "MaxRetriesExceededError",
                "Can't retry: no retries are left",
            ),
            None => celery_exception("Retry", "Retry requested by the task"),
        };
        if exhausted {
            return self.fail(failure_info);
        }
        let eta = match retry.when.unwrap_or(When::After(self.retry_delay)) {
            When::After(Duration::ZERO) => None,
            When::After(delay) => Some(later(now.wall, delay)),
            When::At(time) => Some(time),
        };
        let mut effects = Vec::new();
        let event = self
            .emits_events
            .then(|| TaskEvent::Retried(failure_info.clone()));
        // Stored before the retry is sent, so that RETRY cannot overwrite the result of
        // the retry.
        if self.stores_result {
            effects.push(Effect::Store(StateUpdate::Retry(failure_info)));
        }
        // Emitted before, too: for a monitor, a task whose `task-retried` arrives after
        // its `task-succeeded` never ends.
        effects.extend(event.map(Effect::Emit));
        let changes = (!retry.changes.is_empty()).then(|| Box::new(retry.changes));
        effects.push(Effect::Send(FollowUp::Retry { eta, changes }));
        self.settled(effects, Disposition::Ack, None)
    }

    fn reject(&self, requeue: Requeue, reason: String) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut failed = None;
        if requeue == Requeue::No {
            let mut failure_info = celery_exception("Reject", reason);
            failure_info.exception.exc_message.push(Value::Bool(false));
            failed = self
                .emits_events
                .then(|| TaskEvent::Failed(failure_info.clone()));
            let completion = self.continue_on_failure(&failure_info);
            if self.stores_result || self.stores_errors {
                effects.push(Effect::Store(StateUpdate::Failure(failure_info)));
            }
            effects.extend(completion);
        }
        let disposition = match requeue {
            Requeue::Yes => Disposition::Requeue(QueueEnd::Tail),
            Requeue::No => Disposition::Reject,
        };
        let requeue = requeue == Requeue::Yes;
        let rejected = self.emits_events.then_some(TaskEvent::Rejected { requeue });
        self.settled(effects, disposition, failed.into_iter().chain(rejected))
    }

    /// Appends the settlement of a late message, then the monitoring events: as in
    /// Celery, they come last.
    fn settled(
        &self,
        mut effects: Vec<Effect>,
        disposition: Disposition,
        events: impl IntoIterator<Item = TaskEvent>,
    ) -> Vec<Effect> {
        if self.acks_late {
            effects.push(Effect::Settle(disposition));
        }
        effects.extend(events.into_iter().map(Effect::Emit));
        effects
    }
}
