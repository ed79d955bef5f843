//! What has to be done after a task, by how it ended. Pure.

use std::time::Duration;

use celery_protocol::{Exception, Raw, Value};

use crate::boundary::QueueEnd;
use crate::env::{Now, later};
use crate::execution::{
    Failure, ProcessLost, ReadyChord, Requeue, Retry, TaskError, TaskErrorKind, When,
};
use crate::worker::core::failure::{FailureInfo, celery_exception, worker_lost};
use crate::worker::delivery::event::{
    Disposition, Effect, ExecutionPolicy, FollowUp, Outcome, StateUpdate, TaskEvent,
};
use crate::worker::workflow::effect::Completion;

impl ExecutionPolicy {
    /// The steps that an outcome leads to. After a success what follows is
    /// sent first and the result stored then, as Celery does; a retry is
    /// stored first and sent then. Acknowledging comes last.
    pub(crate) fn conclude(&self, outcome: Outcome, now: Now) -> Vec<Effect> {
        match outcome {
            Outcome::Value(value) => self.succeed(value),
            Outcome::Panic(message) => {
                let failure_info = FailureInfo::new(Exception::new("rust", "Panic", message));
                self.fail(failure_info)
            }
            Outcome::Error { error, random } => self.err(error, random, now),
            Outcome::Lost(loss) => self.lose(loss),
        }
    }

    /// A late task whose process is gone may run again; an early one has failed.
    /// One that never began goes back whatever its settings: it did no harm.
    fn lose(&self, loss: ProcessLost) -> Vec<Effect> {
        if self.acks_late && (self.requeued_when_lost || !loss.began) {
            return self.settled(Vec::new(), Disposition::Requeue(QueueEnd::Tail), None);
        }
        self.fail(worker_lost(loss.message))
    }

    /// A late task whose failure is not to be acknowledged is rejected.
    pub(crate) fn fail(&self, failure_info: FailureInfo) -> Vec<Effect> {
        self.end_badly(failure_info, self.acks_on_failure, Disposition::Reject)
    }

    /// A task fails that did not start, so that its message is not acknowledged
    /// yet, late or not.
    pub(crate) fn refuse(&self, failure_info: FailureInfo) -> Vec<Effect> {
        let mut steps = self.fail(failure_info);
        if !self.acks_late {
            steps.push(Effect::Settle(Disposition::Ack));
        }
        steps
    }

    /// A late task that ran out of time may run again.
    pub(crate) fn time_out(&self, failure_info: FailureInfo) -> Vec<Effect> {
        let again = Disposition::Requeue(QueueEnd::Tail);
        self.end_badly(failure_info, self.acks_on_timeout, again)
    }

    fn end_badly(
        &self,
        failure_info: FailureInfo,
        acks: bool,
        unless_acked: Disposition,
    ) -> Vec<Effect> {
        let mut steps = Vec::new();
        let notice = self.tells.then(|| TaskEvent::Failed(failure_info.clone()));
        let turn = self.turn(&failure_info);
        if self.stores_result || self.stores_errors {
            steps.push(Effect::Store(StateUpdate::Failure(failure_info)));
        }
        steps.extend(turn);
        let verdict = if acks { Disposition::Ack } else { unless_acked };
        self.settled(steps, verdict, notice)
    }

    /// What its failure means for its workflow, if it is part of one.
    fn turn(&self, failure_info: &FailureInfo) -> Option<Effect> {
        let is_linked = self.links.in_chord || self.links.on_failure;
        is_linked.then(|| Effect::Continue(Completion::Failed(failure_info.clone())))
    }

    /// A cold stop ends a task as Celery does: a late one goes back to its
    /// queue, an early one, whose message is gone, is marked as to be retried.
    pub(crate) fn cancel(&self) -> Vec<Effect> {
        let mut steps = Vec::new();
        if !self.acks_late && self.stores_result {
            let failure_info = celery_exception("Retry", "cancelled by Celery");
            steps.push(Effect::Store(StateUpdate::Retry(failure_info)));
        }
        let back = Disposition::Requeue(QueueEnd::Head);
        self.settled(steps, back, self.tells.then_some(TaskEvent::Cancelled))
    }

    /// What ends a task that shall not run, or not go on running. One that has
    /// not started is not acknowledged yet, late or not.
    pub(crate) fn revoke(&self, reason: &'static str, notice: TaskEvent) -> Vec<Effect> {
        let mut steps = Vec::new();
        if self.stores_result {
            steps.push(Effect::Store(StateUpdate::Revoked(reason)));
        }
        if self.links.in_chord {
            steps.push(Effect::Continue(Completion::Revoked(reason)));
        }
        steps.push(Effect::Settle(Disposition::Ack));
        steps.extend(self.tells.then_some(Effect::Emit(notice)));
        steps
    }

    fn succeed(&self, value: Option<Raw<'static>>) -> Vec<Effect> {
        let value = value.unwrap_or(Raw::NULL);
        let mut steps = Vec::new();
        let notice = self.tells.then(|| TaskEvent::Succeeded(value.clone()));
        if self.links.on_success {
            steps.push(Effect::Send(FollowUp::Success(value.clone())));
        }
        let turn = self
            .links
            .in_chord
            .then(|| Effect::Continue(Completion::Succeeded(value.clone())));
        if self.stores_result {
            steps.push(Effect::Store(StateUpdate::Success(value)));
        }
        steps.extend(turn);
        self.settled(steps, Disposition::Ack, notice)
    }

    fn err(&self, error: TaskError, random: f64, now: Now) -> Vec<Effect> {
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
            TaskErrorKind::Join(joint) => {
                let ReadyChord {
                    group_id,
                    body,
                    results,
                } = *joint;
                let turn = Completion::Joined {
                    group_id,
                    body,
                    results,
                };
                self.settled(vec![Effect::Continue(turn)], Disposition::Ack, None)
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
        let most = retry.max_retries.unwrap_or(self.max_retries);
        let exhausted = most.is_some_and(|most| self.retries >= most);
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
        let mut steps = Vec::new();
        let notice = self.tells.then(|| TaskEvent::Retried(failure_info.clone()));
        // Stored before the retry is sent: whoever runs it must find nothing
        // that could overwrite his result.
        if self.stores_result {
            steps.push(Effect::Store(StateUpdate::Retry(failure_info)));
        }
        // Told before, too: to those who watch, a retry told after the end of what
        // was sent is a task that has not ended.
        steps.extend(notice.map(Effect::Emit));
        let changes = (!retry.changes.is_empty()).then(|| Box::new(retry.changes));
        steps.push(Effect::Send(FollowUp::Retry { eta, changes }));
        self.settled(steps, Disposition::Ack, None)
    }

    fn reject(&self, requeue: Requeue, reason: String) -> Vec<Effect> {
        let mut steps = Vec::new();
        let mut failed = None;
        if requeue == Requeue::No {
            let mut failure_info = celery_exception("Reject", reason);
            failure_info.exception.exc_message.push(Value::Bool(false));
            failed = self.tells.then(|| TaskEvent::Failed(failure_info.clone()));
            let turn = self.turn(&failure_info);
            if self.stores_result || self.stores_errors {
                steps.push(Effect::Store(StateUpdate::Failure(failure_info)));
            }
            steps.extend(turn);
        }
        let verdict = match requeue {
            Requeue::Yes => Disposition::Requeue(QueueEnd::Tail),
            Requeue::No => Disposition::Reject,
        };
        let requeue = requeue == Requeue::Yes;
        let rejected = self.tells.then_some(TaskEvent::Rejected { requeue });
        self.settled(steps, verdict, failed.into_iter().chain(rejected))
    }

    /// An early message was acknowledged before its task began. Those who watch
    /// are told last, as by Celery.
    fn settled(
        &self,
        mut steps: Vec<Effect>,
        verdict: Disposition,
        notices: impl IntoIterator<Item = TaskEvent>,
    ) -> Vec<Effect> {
        if self.acks_late {
            steps.push(Effect::Settle(verdict));
        }
        steps.extend(notices.into_iter().map(Effect::Emit));
        steps
    }
}
