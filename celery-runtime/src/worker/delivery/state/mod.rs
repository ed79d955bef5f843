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
//!    |  (rate  |  +---------+-------- late ack -----------^                         |  |  +-> AwaitingRedelivery
//!    |   limit)|                                                         BackingOff +--+ (an effect failed)
//!    |         +- BackingOff
//!    +-> Finishing (expired, revoked, deferred, rejected)
//! ```
//!
//! - `Admitting` runs the [admission checks](crate::worker::delivery::event::AdmissionChecks);
//!   most deliveries have none and skip it. `StoringStarted` is skipped unless the
//!   task tracks its start.
//! - `Finishing` carries out the remaining effects in order, one at a time.
//! - `BackingOff` waits: before a failed effect is repeated, or, where no effects
//!   are left, before the delivery queues for a slot again.
//! - `AwaitingRedelivery` is for a delivery whose connection is lost and of which
//!   only the late acknowledgement is left.
//!
//! Two rules prevent the loss of a task. An early acknowledgement is sent right
//! before the task starts, and the task starts only after it is sent. Everything
//! that follows a task (messages to publish, the result to store) is done before
//! its late acknowledgement, and each effect is repeated until it succeeds.
//!
//! [`admission`] has the transitions up to the start of the task, [`revocation`]
//! those of revoked and expired tasks, [`finish`] those after the end of the task.

mod admission;
mod finish;
mod revocation;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::boundary::QueueEnd;
use crate::config::OnUnknown;
use crate::env::Now;
use crate::worker::core::failure::time_limit_exceeded;
use crate::worker::delivery::event::{
    Action, DeliveryEvent, Disposition, Effect, ExecutionPolicy, Rejection, Revocation, Stop,
};

/// How long to wait for the redelivery of a message of which only the settlement
/// is left.
const REDELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The state of one delivery in flight.
#[derive(Debug)]
pub(crate) struct DeliveryState {
    kind: DeliveryKind,
    phase: Phase,
    /// The effects that are left, in order. The first one stays in the list until
    /// it is done.
    effects: VecDeque<Effect>,
    /// How often the current operation has failed, for the back-off.
    attempt: u32,
    /// Whether the connection of the delivery is lost, so that it cannot be settled.
    invalidated: bool,
    /// Whether the settlement under way belongs to an invalidated delivery. Its
    /// result says nothing about the current one.
    stale_settlement: bool,
    /// When waiting for a redelivery ends, if that begins with the current event.
    redelivery_deadline: Option<Instant>,
    stopping: Option<Stop>,
    /// A revocation that came while an effect before the start is under way.
    revoked: Option<Revocation>,
}

#[derive(Debug)]
enum DeliveryKind {
    Task(ExecutionPolicy),
    Rejected {
        rejection: Rejection,
        on_unknown: OnUnknown,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Arrived,
    /// Queued for a slot.
    Waiting,
    Admitting,
    /// The early acknowledgement is under way.
    Acknowledging,
    StoringStarted,
    Running {
        soft: Option<Instant>,
        hard: Option<Instant>,
    },
    Finishing,
    BackingOff {
        until: Instant,
    },
    AwaitingRedelivery {
        until: Instant,
    },
    Closed,
}

impl DeliveryState {
    /// Creates the state of a delivery whose task is registered.
    pub(crate) fn of_task(policy: ExecutionPolicy) -> Self {
        Self::new(DeliveryKind::Task(policy))
    }

    /// Creates the state of a delivery that this worker cannot run, with the policy
    /// for such messages.
    pub(crate) fn of_rejected(rejection: Rejection, on_unknown: OnUnknown) -> Self {
        Self::new(DeliveryKind::Rejected {
            rejection,
            on_unknown,
        })
    }

    fn new(kind: DeliveryKind) -> Self {
        Self {
            kind,
            phase: Phase::Arrived,
            effects: VecDeque::new(),
            attempt: 0,
            invalidated: false,
            stale_settlement: false,
            redelivery_deadline: None,
            stopping: None,
            revoked: None,
        }
    }

    /// Applies an event and appends the actions to carry out.
    pub(crate) fn handle(&mut self, event: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        self.redelivery_deadline = Some(now.instant + REDELIVERY_TIMEOUT);
        match event {
            _ if self.phase == Phase::Closed => {}
            DeliveryEvent::Arrived => self.arrive(now, actions),
            DeliveryEvent::SlotGranted if self.phase == Phase::Waiting => {
                self.take_slot(now, actions);
            }
            // The delivery left the queue before the slot was assigned.
            DeliveryEvent::SlotGranted => actions.push(Action::FreeSlot),
            DeliveryEvent::RateLimited(until) if self.phase == Phase::Waiting => {
                self.postpone(until, now, actions);
            }
            DeliveryEvent::AdmissionChecked(admission) if self.phase == Phase::Admitting => {
                self.admission_checked(&admission, now, actions);
            }
            DeliveryEvent::Returned(outcome) if self.is_running() => {
                actions.push(Action::FreeSlot);
                let effects = self.policy().effects_of(outcome, now);
                self.finish_with(effects, actions);
            }
            // A report about something that was abandoned.
            DeliveryEvent::RateLimited(_)
            | DeliveryEvent::AdmissionChecked(_)
            | DeliveryEvent::Returned(_) => {}
            DeliveryEvent::Done | DeliveryEvent::DoneWith(_) | DeliveryEvent::Failed(_) => {
                self.effect_reported(event, now, actions);
            }
            DeliveryEvent::Revoked(revocation) => self.revoke(revocation, actions),
            DeliveryEvent::Tick => self.tick(now, actions),
            DeliveryEvent::Stop(stop) => self.stop(stop, actions),
            DeliveryEvent::ConnectionLost => self.invalidate(actions),
            DeliveryEvent::Redelivered => self.redelivered(actions),
        }
    }

    /// Applies the report about the last requested effect.
    fn effect_reported(&mut self, report: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        match (report, self.phase) {
            (DeliveryEvent::Failed(error), Phase::Admitting) => {
                self.admission_failed(&error, now, actions);
            }
            (DeliveryEvent::Done, Phase::Acknowledging) => self.store_started(now, actions),
            (DeliveryEvent::Failed(error), Phase::Acknowledging) => {
                self.ack_failed(&error, now, actions);
            }
            // The state STARTED is informational: the task runs without it, too.
            (DeliveryEvent::Done | DeliveryEvent::Failed(_), Phase::StoringStarted) => {
                self.start(now, actions);
            }
            (_, Phase::Finishing) if self.stale_settlement => {
                self.stale_settlement = false;
                self.next_effect(actions);
            }
            (DeliveryEvent::Done, Phase::Finishing) => self.effect_done(Vec::new(), actions),
            (DeliveryEvent::DoneWith(follow_ups), Phase::Finishing) => {
                self.effect_done(follow_ups, actions);
            }
            (DeliveryEvent::Failed(error), Phase::Finishing) => {
                self.effect_failed(error, now, actions);
            }
            // The effect was abandoned.
            _ => {}
        }
    }

    /// Returns when the machine needs a [`DeliveryEvent::Tick`].
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { soft, hard } => soft.into_iter().chain(hard).min(),
            Phase::BackingOff { until } | Phase::AwaitingRedelivery { until } => Some(until),
            _ => None,
        }
    }

    /// Returns whether the task of the delivery runs or is queued to run.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(
            self.phase,
            Phase::Waiting
                | Phase::Admitting
                | Phase::Acknowledging
                | Phase::StoringStarted
                | Phase::Running { .. }
        )
    }

    /// Returns whether the task has started and not ended.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Returns whether the worker holds the delivery for a task that has not started.
    pub(crate) fn is_reserved(&self) -> bool {
        let postponed = matches!(self.phase, Phase::BackingOff { .. }) && self.effects.is_empty();
        postponed || self.is_pending() && !self.is_running()
    }

    /// Returns whether the delivery was acknowledged early.
    pub(crate) fn is_acknowledged(&self) -> bool {
        let is_early = matches!(&self.kind, DeliveryKind::Task(policy) if !policy.acks_late);
        is_early
            && matches!(
                self.phase,
                Phase::StoringStarted | Phase::Running { .. } | Phase::Finishing
            )
    }

    /// Returns whether the delivery is pending and counts against the prefetch limit
    /// of the broker.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_pending() && !self.is_acknowledged()
    }

    /// Returns whether the delivery is queued for a slot.
    pub(crate) fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    /// Returns whether the task continues without its delivery, and would settle a
    /// redelivery of the message at its end.
    pub(crate) fn awaits_redelivery(&self) -> bool {
        self.invalidated && self.acks_late() && self.phase != Phase::Closed
    }

    /// Returns whether the worker stores the failures of tasks that cannot run
    /// because this one failed.
    pub(crate) fn stores_failures(&self) -> bool {
        match &self.kind {
            DeliveryKind::Task(policy) => policy.stores_result || policy.stores_errors,
            DeliveryKind::Rejected { .. } => true,
        }
    }

    /// Returns why this worker cannot run the delivery, if it cannot.
    pub(crate) fn rejection(&self) -> Option<&Rejection> {
        match &self.kind {
            DeliveryKind::Rejected { rejection, .. } => Some(rejection),
            DeliveryKind::Task(_) => None,
        }
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running {
                hard: Some(hard), ..
            } if hard <= now.instant => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let policy = self.policy();
                let failure_info = time_limit_exceeded(policy.hard_limit.unwrap_or_default());
                let effects = policy.time_out(failure_info);
                self.finish_with(effects, actions);
            }
            Phase::Running {
                soft: Some(soft),
                hard,
            } if soft <= now.instant => {
                self.phase = Phase::Running { soft: None, hard };
                actions.push(Action::SignalSoftLimit);
            }
            Phase::BackingOff { until } if until <= now.instant => self.resume(actions),
            Phase::AwaitingRedelivery { until } if until <= now.instant => self.close(actions),
            _ => {}
        }
    }

    /// Repeats the failed effect after a back-off, or queues for a slot again.
    fn resume(&mut self, actions: &mut Vec<Action>) {
        if self.effects.is_empty() {
            self.phase = Phase::Waiting;
            actions.push(Action::Queue);
        } else {
            self.phase = Phase::Finishing;
            self.next_effect(actions);
        }
    }

    fn stop(&mut self, stop: Stop, actions: &mut Vec<Action>) {
        self.stopping = Some(stop);
        match (self.phase, stop) {
            (Phase::Waiting, _) => self.requeue(actions),
            (Phase::BackingOff { .. }, _) if self.effects.is_empty() => self.requeue(actions),
            (Phase::BackingOff { .. } | Phase::AwaitingRedelivery { .. }, _) => {
                self.phase = Phase::Finishing;
                self.next_effect(actions);
            }
            (Phase::Running { .. }, Stop::Cold) => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let effects = self.policy().cancel();
                self.finish_with(effects, actions);
            }
            _ => {}
        }
    }

    /// Applies the loss of the connection. The broker requeues the message and
    /// delivers it again, to this worker or to another one.
    fn invalidate(&mut self, actions: &mut Vec<Action>) {
        self.invalidated = true;
        match self.phase {
            Phase::Waiting => self.close(actions),
            Phase::BackingOff { .. } if self.effects.is_empty() => self.close(actions),
            // The broker may or may not have the acknowledgement. If it has, no other
            // worker gets the task, so it starts when the settlement is reported. If
            // the message is redelivered, it is acknowledged again after the task.
            Phase::Acknowledging => {
                if let DeliveryKind::Task(policy) = &mut self.kind {
                    policy.acks_late = true;
                }
            }
            Phase::Finishing if matches!(self.effects.front(), Some(Effect::Settle(_))) => {
                self.stale_settlement = true;
            }
            // A running task finishes and its result is stored. Its acknowledgement
            // is skipped unless the message is redelivered here before that.
            _ => {}
        }
    }

    fn redelivered(&mut self, actions: &mut Vec<Action>) {
        self.invalidated = false;
        if matches!(self.phase, Phase::AwaitingRedelivery { .. }) {
            self.next_effect(actions);
        }
    }

    /// Requeues a message whose task has not started, at the head of its queue.
    fn requeue(&mut self, actions: &mut Vec<Action>) {
        let requeue = Effect::Settle(Disposition::Requeue(QueueEnd::Head));
        self.finish_with([requeue], actions);
    }

    fn close(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Closed;
        actions.push(Action::Remove);
    }

    fn acks_late(&self) -> bool {
        matches!(&self.kind, DeliveryKind::Task(policy) if policy.acks_late)
    }

    /// Returns the policy of the task. Only deliveries of tasks get slots, run and
    /// end.
    fn policy(&self) -> &ExecutionPolicy {
        match &self.kind {
            DeliveryKind::Task(policy) => policy,
            DeliveryKind::Rejected { .. } => {
                unreachable!("a rejected message was treated as a task")
            }
        }
    }

    fn back_off(&mut self, now: Now) {
        self.phase = Phase::BackingOff {
            until: now.instant + self.next_delay(),
        };
    }

    fn next_delay(&mut self) -> Duration {
        let delay = Backoff::CONNECTION.delay(self.attempt, 0.0);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests;
