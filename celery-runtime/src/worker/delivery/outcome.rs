//! What has to be done after a task, by how it ended. Pure.

use std::time::Duration;

use celery_protocol::{Exception, Raw, Value};

use crate::boundary::QueueEnd;
use crate::env::{Now, later};
use crate::execution::{Failure, Joint, Loss, Requeue, Retry, TaskError, TaskErrorKind, When};
use crate::worker::delivery::event::{
    Letter, Mishap, Notice, Outcome, Plan, Report, Step, Verdict, celery_exception, worker_lost,
};
use crate::worker::workflow::effect::Turn;

impl Plan {
    /// The steps that an outcome leads to. After a success what follows is
    /// sent first and the result stored then, as Celery does; a retry is
    /// stored first and sent then. Acknowledging comes last.
    pub(crate) fn conclude(&self, outcome: Outcome, now: Now) -> Vec<Step> {
        match outcome {
            Outcome::Value(value) => self.succeed(value),
            Outcome::Panic(message) => {
                let mishap = Mishap::new(Exception::new("rust", "Panic", message));
                self.fail(mishap)
            }
            Outcome::Error { error, random } => self.err(error, random, now),
            Outcome::Lost(loss) => self.lose(loss),
        }
    }

    /// A late task whose process is gone may run again; an early one has failed.
    /// One that never began goes back whatever its settings: it did no harm.
    fn lose(&self, loss: Loss) -> Vec<Step> {
        if self.acks_late && (self.requeued_when_lost || !loss.began) {
            return self.settled(Vec::new(), Verdict::Requeue(QueueEnd::Tail), None);
        }
        self.fail(worker_lost(loss.message))
    }

    /// A late task whose failure is not to be acknowledged is rejected.
    pub(crate) fn fail(&self, mishap: Mishap) -> Vec<Step> {
        self.end_badly(mishap, self.acks_on_failure, Verdict::Reject)
    }

    /// A task fails that did not start, so that its message is not acknowledged
    /// yet, late or not.
    pub(crate) fn refuse(&self, mishap: Mishap) -> Vec<Step> {
        let mut steps = self.fail(mishap);
        if !self.acks_late {
            steps.push(Step::Settle(Verdict::Ack));
        }
        steps
    }

    /// A late task that ran out of time may run again.
    pub(crate) fn time_out(&self, mishap: Mishap) -> Vec<Step> {
        let again = Verdict::Requeue(QueueEnd::Tail);
        self.end_badly(mishap, self.acks_on_timeout, again)
    }

    fn end_badly(&self, mishap: Mishap, acks: bool, unless_acked: Verdict) -> Vec<Step> {
        let mut steps = Vec::new();
        let notice = self.tells.then(|| Notice::Failed(mishap.clone()));
        let turn = self.turn(&mishap);
        if self.stores_result || self.stores_errors {
            steps.push(Step::Store(Report::Failure(mishap)));
        }
        steps.extend(turn);
        let verdict = if acks { Verdict::Ack } else { unless_acked };
        self.settled(steps, verdict, notice)
    }

    /// What its failure means for its workflow, if it is part of one.
    fn turn(&self, mishap: &Mishap) -> Option<Step> {
        let is_linked = self.links.in_chord || self.links.on_failure;
        is_linked.then(|| Step::Lead(Turn::Failed(mishap.clone())))
    }

    /// A cold stop ends a task as Celery does: a late one goes back to its
    /// queue, an early one, whose message is gone, is marked as to be retried.
    pub(crate) fn cancel(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.acks_late && self.stores_result {
            let mishap = celery_exception("Retry", "cancelled by Celery");
            steps.push(Step::Store(Report::Retry(mishap)));
        }
        let back = Verdict::Requeue(QueueEnd::Head);
        self.settled(steps, back, self.tells.then_some(Notice::Cancelled))
    }

    /// What ends a task that shall not run, or not go on running. One that has
    /// not started is not acknowledged yet, late or not.
    pub(crate) fn revoke(&self, reason: &'static str, notice: Notice) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.stores_result {
            steps.push(Step::Store(Report::Revoked(reason)));
        }
        if self.links.in_chord {
            steps.push(Step::Lead(Turn::Revoked(reason)));
        }
        steps.push(Step::Settle(Verdict::Ack));
        steps.extend(self.tells.then_some(Step::Tell(notice)));
        steps
    }

    fn succeed(&self, value: Option<Raw<'static>>) -> Vec<Step> {
        let value = value.unwrap_or(Raw::NULL);
        let mut steps = Vec::new();
        let notice = self.tells.then(|| Notice::Succeeded(value.clone()));
        if self.links.on_success {
            steps.push(Step::Send(Letter::Success(value.clone())));
        }
        let turn = self
            .links
            .in_chord
            .then(|| Step::Lead(Turn::Succeeded(value.clone())));
        if self.stores_result {
            steps.push(Step::Store(Report::Success(value)));
        }
        steps.extend(turn);
        self.settled(steps, Verdict::Ack, notice)
    }

    fn err(&self, error: TaskError, random: f64, now: Now) -> Vec<Step> {
        match error.into_kind() {
            TaskErrorKind::Failed(failure) => self.failed(failure, random, now),
            TaskErrorKind::Retry(retry) => self.retry(retry, now),
            TaskErrorKind::Ignore => self.settled(Vec::new(), Verdict::Ack, None),
            TaskErrorKind::Replace(canvas) => {
                if let Some(reason) = canvas.is_no_replacement() {
                    return self.fail(celery_exception("ImproperlyConfigured", reason));
                }
                let send = Step::Send(Letter::Replacement(canvas));
                self.settled(vec![send], Verdict::Ack, None)
            }
            TaskErrorKind::Join(joint) => {
                let Joint {
                    group_id,
                    body,
                    results,
                } = *joint;
                let turn = Turn::Joined {
                    group_id,
                    body,
                    results,
                };
                self.settled(vec![Step::Lead(turn)], Verdict::Ack, None)
            }
            TaskErrorKind::Reject { requeue, reason } => self.reject(requeue, reason),
        }
    }

    fn failed(&self, failure: Failure, random: f64, now: Now) -> Vec<Step> {
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

    fn retry(&self, retry: Retry, now: Now) -> Vec<Step> {
        let most = retry.max_retries.unwrap_or(self.max_retries);
        let exhausted = most.is_some_and(|most| self.retries >= most);
        let mishap = match retry.because {
            Some(cause) => cause.into(),
            None if exhausted => celery_exception(
                "MaxRetriesExceededError",
                "Can't retry: no retries are left",
            ),
            None => celery_exception("Retry", "Retry requested by the task"),
        };
        if exhausted {
            return self.fail(mishap);
        }
        let eta = match retry.when.unwrap_or(When::After(self.retry_delay)) {
            When::After(Duration::ZERO) => None,
            When::After(delay) => Some(later(now.wall, delay)),
            When::At(time) => Some(time),
        };
        let mut steps = Vec::new();
        let notice = self.tells.then(|| Notice::Retried(mishap.clone()));
        // Stored before the retry is sent: whoever runs it must find nothing
        // that could overwrite his result.
        if self.stores_result {
            steps.push(Step::Store(Report::Retry(mishap)));
        }
        // Told before, too: to those who watch, a retry told after the end of what
        // was sent is a task that has not ended.
        steps.extend(notice.map(Step::Tell));
        let changes = (!retry.changes.is_empty()).then(|| Box::new(retry.changes));
        steps.push(Step::Send(Letter::Retry { eta, changes }));
        self.settled(steps, Verdict::Ack, None)
    }

    fn reject(&self, requeue: Requeue, reason: String) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut failed = None;
        if requeue == Requeue::No {
            let mut mishap = celery_exception("Reject", reason);
            mishap.exception.exc_message.push(Value::Bool(false));
            failed = self.tells.then(|| Notice::Failed(mishap.clone()));
            let turn = self.turn(&mishap);
            if self.stores_result || self.stores_errors {
                steps.push(Step::Store(Report::Failure(mishap)));
            }
            steps.extend(turn);
        }
        let verdict = match requeue {
            Requeue::Yes => Verdict::Requeue(QueueEnd::Tail),
            Requeue::No => Verdict::Reject,
        };
        let requeue = requeue == Requeue::Yes;
        let rejected = self.tells.then_some(Notice::Rejected { requeue });
        self.settled(steps, verdict, failed.into_iter().chain(rejected))
    }

    /// An early message was acknowledged before its task began. Those who watch
    /// are told last, as by Celery.
    fn settled(
        &self,
        mut steps: Vec<Step>,
        verdict: Verdict,
        notices: impl IntoIterator<Item = Notice>,
    ) -> Vec<Step> {
        if self.acks_late {
            steps.push(Step::Settle(verdict));
        }
        steps.extend(notices.into_iter().map(Step::Tell));
        steps
    }
}
