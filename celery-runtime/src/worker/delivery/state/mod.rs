//! The state machine of one delivery, from its receipt to its removal. Pure.
//!
//! Events and the time come in through [`DeliveryState::handle`], [`Action`]s go
//! out. The machine decides; the driver (`worker::driver`) carries actions out and
//! reports the results as events. The machine knows no broker, no result backend
//! and no clock, so tests can run every order of events.
//!
//! ```text
//! Arrived -> Waiting -> Admitting -> Acknowledging -> StoringStarted -> Running -> Finishing -> Closed
//!    |         ^  |         |         (early ack)       (STARTED)                   ^  |  |
//!    |         |  |         |           |    ^                                      |  |  +-> AwaitingRedelivery
//!    |         |  |         |        Resolving (ack in doubt)                       |  |
//!    |  (rate  |  +---------+-------- late ack -----------^                         |  |
//!    |   limit)|                                                         BackingOff +--+ (an effect failed)
//!    |         +- BackingOff
//!    +-> Finishing (expired, revoked, deferred)
//! ```
//!
//! - `Admitting` runs the [admission checks](crate::worker::delivery::event::AdmissionChecks);
//!   most deliveries have none and skip it. `StoringStarted` is skipped unless the
//!   task tracks its start.
//! - `Resolving` waits before it repeats an early acknowledgement that was sent and not
//!   answered. The answer to the repetition tells whether the first one was carried out:
//!   [`Done`](DeliveryEvent::Done) if it was not, [`Gone`](DeliveryEvent::Gone) if it
//!   was. In both cases the message is acknowledged now, and the task starts.
//! - `Finishing` carries out the remaining effects in order, one at a time.
//! - `BackingOff` waits: before a failed effect is repeated, or, where no effects
//!   are left, before the delivery queues for a slot again.
//! - `AwaitingRedelivery` is for a delivery that the broker has taken back and of which
//!   only the late acknowledgement is left.
//!
//! Three rules prevent the loss of a task. An early acknowledgement is sent right
//! before the task starts, and the task starts only after it was carried out; an
//! acknowledgement without an answer is in doubt and is never taken for carried out or
//! for not carried out. Everything that follows a task (messages to publish, the result
//! to store) is done before its late acknowledgement, and each effect is repeated until
//! it succeeds. A message that is acknowledged and whose task cannot start, because the
//! worker stops, is [restored](Effect::Restore) from the copy in memory.
//!
//! [`task`] has the machine of a message whose task is registered: [`admission`] its
//! transitions up to the start of the task, [`revocation`] those of revoked and expired
//! tasks, [`finish`] those after the end of the task. [`rejected`] has the machine of a
//! message that this worker cannot run. Both carry out effects with [`effects`].

mod admission;
mod effects;
mod finish;
mod rejected;
mod revocation;
mod task;

use std::time::Instant;

use crate::config::OnUnknown;
use crate::env::Now;
use crate::worker::delivery::event::{Action, DeliveryEvent, ExecutionPolicy, Rejection};
use rejected::RejectedDelivery;
use task::TaskDelivery;

#[cfg(doc)]
use crate::worker::delivery::event::Effect;

/// The state of one delivery in flight.
#[derive(Debug)]
pub(crate) enum DeliveryState {
    /// The task of the message is registered.
    Task(TaskDelivery),
    /// This worker cannot run the message.
    Rejected(RejectedDelivery),
}

impl DeliveryState {
    /// Creates the state of a delivery whose task is registered.
    pub(crate) fn of_task(policy: ExecutionPolicy) -> Self {
        Self::Task(TaskDelivery::new(policy))
    }

    /// Creates the state of a delivery that this worker cannot run, with the policy
    /// for such messages.
    pub(crate) fn of_rejected(rejection: Rejection, on_unknown: OnUnknown) -> Self {
        Self::Rejected(RejectedDelivery::new(rejection, on_unknown))
    }

    /// Applies an event and appends the actions to carry out.
    pub(crate) fn handle(&mut self, event: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        match self {
            Self::Task(task) => task.handle(event, now, actions),
            Self::Rejected(rejected) => rejected.handle(event, now, actions),
        }
    }

    /// Returns when the machine needs a [`DeliveryEvent::Tick`].
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self {
            Self::Task(task) => task.timeout(),
            Self::Rejected(rejected) => rejected.timeout(),
        }
    }

    /// Returns the state of a task's delivery.
    fn task(&self) -> Option<&TaskDelivery> {
        match self {
            Self::Task(task) => Some(task),
            Self::Rejected(_) => None,
        }
    }

    /// Returns whether the task of the delivery runs or is queued to run.
    pub(crate) fn is_pending(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_pending)
    }

    /// Returns whether the task has started and not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_running)
    }

    /// Returns whether the task has ended and its result is not stored yet.
    pub(crate) fn is_storing(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_storing)
    }

    /// Returns whether the worker holds the delivery for a task that has not started.
    pub(crate) fn is_reserved(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_reserved)
    }

    /// Returns whether the delivery was acknowledged early.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_acknowledged)
    }

    /// Returns whether the delivery is pending and counts against the prefetch limit
    /// of the broker.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_pending() && !self.is_acknowledged()
    }

    /// Returns whether the delivery is queued for a slot.
    pub(crate) fn is_waiting(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_waiting)
    }

    /// Returns whether the broker has taken the message back and the task continues
    /// without it, so that the delivery would settle a redelivery of the message.
    pub(crate) fn awaits_redelivery(&self) -> bool {
        self.task().is_some_and(TaskDelivery::awaits_redelivery)
    }

    /// Returns whether the settlement of the message is still to come, so that the
    /// delivery can settle a redelivery of the message instead.
    pub(crate) fn is_settled_later(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_settled_later)
    }

    /// Returns whether the message is being returned to the head of its queue.
    pub(crate) fn is_returning(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_returning)
    }

    /// Returns whether the message is being restored from the copy in memory.
    pub(crate) fn is_restoring(&self) -> bool {
        self.task().is_some_and(TaskDelivery::is_restoring)
    }

    /// Returns whether the worker stores the failures of tasks that cannot run
    /// because this one failed.
    pub(crate) fn stores_failures(&self) -> bool {
        self.task().is_none_or(TaskDelivery::stores_failures)
    }

    /// Returns why this worker cannot run the delivery, if it cannot.
    pub(crate) fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejected) => Some(rejected.rejection()),
            Self::Task(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
