//! Actions of the delivery state machine: starting tasks, effects, settlements.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::boundary::{DeliveryTag, ServiceError, Settlement};
use crate::env;
use crate::execution::Job;
use crate::task::Declaration;
use crate::worker::core::failure::soft_limit_exceeded;
use crate::worker::delivery::event::{
    Action, DeliveryEvent, Disposition, Effect, EffectError, Outcome,
};
use crate::worker::delivery::in_flight::{DeliveryKey, Payload};
use crate::worker::driver::{Driver, Finished};
use crate::worker::io::admission;

impl Driver {
    /// Performs an action of a delivery's state machine.
    pub(crate) fn perform(&mut self, key: DeliveryKey, action: Action) {
        match action {
            Action::Queue => self.enqueue(key),
            Action::FreeSlot => self.release_slot(),
            Action::Start => self.start_task(key),
            Action::SignalSoftLimit => self.warn_soft_limit(key),
            Action::Abort => {
                if let Some(entry) = self.in_flight.find_mut(key) {
                    entry.running = None;
                }
            }
            Action::Effect(effect) => self.perform_effect(key, effect),
            Action::Emit(event) => {
                if let Some(entry) = self.in_flight.find(key) {
                    self.monitor.task_event(entry, event, self.now);
                }
            }
            Action::RecordExpiry => {
                if let Some(Payload::Task { job, .. }) =
                    self.in_flight.find(key).map(|one| &one.payload)
                {
                    // As in Celery: peers receive the id by mingle.
                    self.revocations.add(&job.id, self.now.wall);
                    self.rates.release(&job.id);
                }
            }
            Action::ReportInDoubt => self.report_in_doubt(key),
            Action::Remove => {
                if let Some(removed) = self.in_flight.remove(key) {
                    self.return_replaced(removed);
                }
                self.connection.drop_drained(&self.in_flight);
            }
        }
    }

    /// Runs a task in the slot that was granted.
    pub(crate) fn start_task(&mut self, key: DeliveryKey) {
        let Some(entry) = self.in_flight.find_mut(key) else {
            return;
        };
        let Payload::Task { job, run } = &entry.payload else {
            return;
        };
        self.monitor.counters.start(&job.task);
        entry.running = Some(self.pool.run(key, job, run));
        entry.started = Some(self.now);
    }

    /// Signals the soft time limit, or ends a task that does not handle it.
    pub(crate) fn warn_soft_limit(&mut self, key: DeliveryKey) {
        let Some(entry) = self.in_flight.find_mut(key) else {
            return;
        };
        let Payload::Task { job, .. } = &entry.payload else {
            return;
        };
        if job.control.signal_soft_limit() {
            return;
        }
        entry.running = None;
        let outcome = Outcome::Error {
            error: soft_limit_exceeded(),
            random: env::random(),
        };
        self.event(key, DeliveryEvent::Returned(outcome));
    }

    /// Starts an effect of a delivery; its end is a [`Finished`].
    pub(crate) fn perform_effect(&mut self, key: DeliveryKey, effect: Effect) {
        let Some(entry) = self.in_flight.find_mut(key) else {
            return;
        };
        let now = self.now.wall;
        let performing = match effect {
            Effect::Settle(disposition) => {
                if let (Disposition::Defer(until), Payload::Task { job, .. }) =
                    (disposition, &entry.payload)
                {
                    let hostname = &self.executor.messages.hostname;
                    self.monitor.scheduled.insert(job, until, hostname);
                }
                let settlement = settlement(disposition, entry.tag.clone());
                return self.settlements.push((key, settlement));
            }
            Effect::CheckAdmission => {
                let Payload::Task { job, .. } = &entry.payload else {
                    return;
                };
                let job = Arc::clone(job);
                return self.check_admission(key, job);
            }
            Effect::Restore => return self.restore(key),
            Effect::Store(update) => self.executor.store(entry, update, now),
            Effect::Send(follow_up) => self.executor.send(entry, &follow_up, now),
            Effect::Continue(completion) => {
                self.executor.continue_workflow(entry, &completion, now)
            }
            Effect::Workflow(effect) => self.executor.perform(effect),
            // The state machine emits events by `Action::Emit`.
            Effect::Emit(_) => return,
        };
        let performing = performing.map(move |result| Finished::EffectPerformed(key, result));
        self.futures.push(Box::pin(performing));
    }

    /// Runs the admission checks of a task.
    pub(crate) fn check_admission(&mut self, key: DeliveryKey, job: Arc<Job>) {
        let Some(task) = self.decoder.registry.find(&job.task) else {
            return;
        };
        let Declaration {
            params, options, ..
        } = &task.declaration;
        let checks = self.decoder.admission_checks(options, job.redelivered);
        let lock = checks.unique.and_then(|unique| {
            // A task whose arguments cannot be decoded fails when it runs.
            unique.key(&job.task, params, || job.payload()).ok()
        });
        let deadline = self.executor.deadline;
        let object = format!("the admission checks of task {}", job.id);
        self.futures.push(Box::pin(async move {
            let checking = admission::check(job, lock, checks);
            let answer = match tokio::time::timeout(deadline, checking).await {
                Ok(answer) => answer,
                Err(_) => {
                    let error = ServiceError::no_answer("run", &object, deadline);
                    tracing::warn!("{error}");
                    Err(EffectError::from(&error))
                }
            };
            Finished::AdmissionChecked(key, answer)
        }));
    }
}

fn settlement(disposition: Disposition, tag: DeliveryTag) -> Settlement {
    match disposition {
        Disposition::Ack => Settlement::Ack(tag),
        Disposition::Reject => Settlement::Reject(tag),
        Disposition::Requeue(end) => Settlement::Requeue(tag, end),
        Disposition::Defer(until) => Settlement::Defer(tag, until),
    }
}
