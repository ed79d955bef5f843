//! What has to be done after a task, by how it ended. Pure.

use std::time::Duration;

use celery_protocol::{Exception, Raw, Value};

use super::delivery::{
    Letter, Mishap, Outcome, Plan, Report, Step, Verdict, celery_exception, worker_lost,
};
use crate::broker::QueueEnd;
use crate::clock::Moment;
use crate::task::{Failure, Loss, Requeue, Retry, TaskError, TaskErrorKind, When};

impl Plan {
    /// The steps that an outcome leads to. After a success what follows is
    /// sent first and the result stored then, as Celery does; a retry is
    /// stored first and sent then. Acknowledging comes last.
    pub(crate) fn conclude(&self, outcome: Outcome, now: Moment) -> Vec<Step> {
        match outcome {
            Outcome::Value(value) => self.succeed(value),
            Outcome::Panic(message) => {
                let mishap = Mishap::new(Exception::new("rust", "Panic", message));
                self.fail(mishap, Verdict::Reject)
            }
            Outcome::Error { error, random } => self.err(error, random, now),
            Outcome::Lost(loss) => self.lose(loss),
        }
    }

    /// A late task whose process is gone may run again; an early one has failed.
    /// One that never began goes back whatever its settings: it did no harm.
    fn lose(&self, loss: Loss) -> Vec<Step> {
        if self.acks_late && (self.requeued_when_lost || !loss.began) {
            return self.settled(Vec::new(), Verdict::Requeue(QueueEnd::Tail));
        }
        self.fail(worker_lost(loss.message), Verdict::Reject)
    }

    /// `unless_acked` is what a late message meets whose task is configured
    /// not to be acknowledged when it fails.
    pub(crate) fn fail(&self, mishap: Mishap, unless_acked: Verdict) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.stores_result || self.stores_errors {
            steps.push(Step::Store(Report::Failure(mishap)));
        }
        if self.links.on_failure {
            steps.push(Step::Send(Letter::Failure));
        }
        let verdict = if self.acks_on_failure {
            Verdict::Ack
        } else {
            unless_acked
        };
        self.settled(steps, verdict)
    }

    /// A cold stop ends a task as Celery does: a late one goes back to its
    /// queue, an early one, whose message is gone, is marked as to be retried.
    pub(crate) fn cancel(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.acks_late && self.stores_result {
            let mishap = celery_exception("Retry", "cancelled by Celery");
            steps.push(Step::Store(Report::Retry(mishap)));
        }
        self.settled(steps, Verdict::Requeue(QueueEnd::Head))
    }

    fn succeed(&self, value: Option<Raw<'static>>) -> Vec<Step> {
        let value = value.unwrap_or(Raw::NULL);
        let mut steps = Vec::new();
        if self.links.on_success {
            steps.push(Step::Send(Letter::Success(value.clone())));
        }
        if self.stores_result {
            steps.push(Step::Store(Report::Success(value)));
        }
        self.settled(steps, Verdict::Ack)
    }

    fn err(&self, error: TaskError, random: f64, now: Moment) -> Vec<Step> {
        match error.into_kind() {
            TaskErrorKind::Failed(failure) => self.failed(failure, random, now),
            TaskErrorKind::Retry(retry) => self.retry(retry, now),
            TaskErrorKind::Ignore => self.settled(Vec::new(), Verdict::Ack),
            TaskErrorKind::Reject { requeue, reason } => self.reject(requeue, reason),
        }
    }

    fn failed(&self, failure: Failure, random: f64, now: Moment) -> Vec<Step> {
        let auto = self.autoretry.filter(|auto| failure.is_retried_by(auto));
        let Some(auto) = auto else {
            return self.fail(failure.into(), Verdict::Reject);
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

    fn retry(&self, retry: Retry, now: Moment) -> Vec<Step> {
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
            return self.fail(mishap, Verdict::Reject);
        }
        let eta = match retry.when.unwrap_or(When::After(self.retry_delay)) {
            When::After(Duration::ZERO) => None,
            When::After(delay) => Some(now.wall + delay),
            When::At(time) => Some(time),
        };
        let mut steps = Vec::new();
        // Stored before the retry is sent: whoever runs it must find nothing
        // that could overwrite his result.
        if self.stores_result {
            steps.push(Step::Store(Report::Retry(mishap)));
        }
        steps.push(Step::Send(Letter::Retry { eta }));
        self.settled(steps, Verdict::Ack)
    }

    fn reject(&self, requeue: Requeue, reason: String) -> Vec<Step> {
        let mut steps = Vec::new();
        if requeue == Requeue::No && (self.stores_result || self.stores_errors) {
            let mut mishap = celery_exception("Reject", reason);
            mishap.exception.exc_message.push(Value::Bool(false));
            steps.push(Step::Store(Report::Failure(mishap)));
        }
        let verdict = match requeue {
            Requeue::Yes => Verdict::Requeue(QueueEnd::Tail),
            Requeue::No => Verdict::Reject,
        };
        self.settled(steps, verdict)
    }

    /// An early message was acknowledged before its task began.
    fn settled(&self, mut steps: Vec<Step>, verdict: Verdict) -> Vec<Step> {
        if self.acks_late {
            steps.push(Step::Settle(verdict));
        }
        steps
    }
}
