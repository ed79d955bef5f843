//! The state machine of a message whose task is registered: [`TaskDelivery`].

use std::time::Duration;

use std::time::Instant;

use crate::boundary::QueueEnd;
use crate::env::Now;
use crate::worker::core::failure::time_limit_exceeded;
use crate::worker::delivery::event::{
    Action, DeliveryEvent, Disposition, Effect, ExecutionPolicy, Revocation, Stop,
};
use crate::worker::delivery::state::effects::EffectQueue;

/// How long to wait for the redelivery of a message of which only the settlement
/// is left.
const REDELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The state of a delivery whose task is registered.
#[derive(Debug)]
pub(crate) struct TaskDelivery {
    pub(super) policy: ExecutionPolicy,
    pub(super) phase: Phase,
    pub(super) effects: EffectQueue,
    /// Whether an early acknowledgement was sent and not answered.
    pub(super) is_ack_in_doubt: bool,
    /// When waiting for a redelivery ends, if that begins with the current event.
    pub(super) redelivery_deadline: Option<Instant>,
    pub(super) stopping: Option<Stop>,
    /// A revocation that came while an effect before the start is under way.
    pub(super) revoked: Option<Revocation>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Arrived,
    /// Queued for a slot.
    Waiting,
    Admitting,
    /// The early acknowledgement is under way.
    Acknowledging,
    /// The early acknowledgement is in doubt and is repeated at this time.
    Resolving {
        until: Instant,
    },
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

impl Phase {
    /// Returns whether a slot is assigned to the delivery.
    fn holds_slot(self) -> bool {
        matches!(
            self,
            Self::Admitting
                | Self::Acknowledging
                | Self::Resolving { .. }
                | Self::StoringStarted
                | Self::Running { .. }
        )
    }
}

impl TaskDelivery {
    pub(super) fn new(policy: ExecutionPolicy) -> Self {
        Self {
            policy,
            phase: Phase::Arrived,
            effects: EffectQueue::default(),
            is_ack_in_doubt: false,
            redelivery_deadline: None,
            stopping: None,
            revoked: None,
        }
    }

    /// Applies an event. A slot is freed by the transition: the delivery had one before
    /// and has none after it.
    pub(super) fn handle(&mut self, event: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        if self.phase == Phase::Closed {
            return;
        }
        let had_slot = self.phase.holds_slot() || matches!(event, DeliveryEvent::SlotGranted);
        let start = actions.len();
        self.redelivery_deadline = Some(now.instant + REDELIVERY_TIMEOUT);
        self.apply(event, now, actions);
        if had_slot && !self.phase.holds_slot() {
            actions.insert(start, Action::FreeSlot);
        }
    }

    fn apply(&mut self, event: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        match event {
            DeliveryEvent::Arrived => self.arrive(now, actions),
            DeliveryEvent::SlotGranted if self.phase == Phase::Waiting => {
                self.take_slot(now, actions);
            }
            DeliveryEvent::RateLimited(until) if self.phase == Phase::Waiting => {
                self.postpone(until, now, actions);
            }
            DeliveryEvent::AdmissionChecked(admission) if self.phase == Phase::Admitting => {
                self.admission_checked(&admission, now, actions);
            }
            DeliveryEvent::Returned(outcome) if self.is_running() => {
                let effects = self.policy.effects_of(outcome, now);
                self.finish_with(effects, actions);
            }
            // A report about something that was abandoned, or a slot for a delivery
            // that does not wait any more.
            DeliveryEvent::SlotGranted
            | DeliveryEvent::RateLimited(_)
            | DeliveryEvent::AdmissionChecked(_)
            | DeliveryEvent::Returned(_) => {}
            DeliveryEvent::Done
            | DeliveryEvent::DoneWith(_)
            | DeliveryEvent::Gone
            | DeliveryEvent::Failed(_) => self.effect_reported(event, now, actions),
            DeliveryEvent::Restored(outcome) => self.restored(&outcome, now, actions),
            DeliveryEvent::Revoked(revocation) => self.revoke(revocation, actions),
            DeliveryEvent::Tick => self.tick(now, actions),
            DeliveryEvent::Stop(stop) => self.stop(stop, actions),
            DeliveryEvent::GiveUp => self.give_up(actions),
            DeliveryEvent::ConnectionLost => self.connection_lost(now, actions),
            DeliveryEvent::LeaseLost => self.lease_lost(actions),
            DeliveryEvent::Redelivered => self.redelivered(actions),
        }
    }

    /// Applies the report about the last requested effect.
    fn effect_reported(&mut self, report: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Admitting => {
                if let DeliveryEvent::Failed(error) = report {
                    self.admission_failed(&error, now, actions);
                }
            }
            Phase::Acknowledging => self.ack_reported(&report, now, actions),
            // The state STARTED is informational: the task runs without it, too.
            Phase::StoringStarted => self.start(now, actions),
            Phase::Finishing => self.finishing_reported(report, now, actions),
            // The effect was abandoned.
            _ => {}
        }
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { soft, hard } => soft.into_iter().chain(hard).min(),
            Phase::Resolving { until }
            | Phase::BackingOff { until }
            | Phase::AwaitingRedelivery { until } => Some(until),
            _ => None,
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.phase == Phase::Waiting || self.phase.holds_slot()
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub(super) fn is_storing(&self) -> bool {
        matches!(self.phase, Phase::Finishing | Phase::BackingOff { .. }) && self.effects.stores()
    }

    pub(super) fn is_reserved(&self) -> bool {
        let postponed = matches!(self.phase, Phase::BackingOff { .. }) && self.effects.is_empty();
        postponed || self.is_pending() && !self.is_running()
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        !self.policy.acks_late
            && matches!(
                self.phase,
                Phase::StoringStarted | Phase::Running { .. } | Phase::Finishing
            )
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    pub(super) fn awaits_redelivery(&self) -> bool {
        self.effects.is_taken_back && self.policy.acks_late && self.phase != Phase::Closed
    }

    pub(super) fn is_settled_later(&self) -> bool {
        match self.phase {
            Phase::Waiting
            | Phase::Admitting
            | Phase::Acknowledging
            | Phase::Resolving { .. }
            | Phase::AwaitingRedelivery { .. } => true,
            Phase::StoringStarted | Phase::Running { .. } => self.policy.acks_late,
            Phase::BackingOff { .. } if self.effects.is_empty() => true,
            Phase::Finishing | Phase::BackingOff { .. } => self.effects.settles(),
            Phase::Arrived | Phase::Closed => false,
        }
    }

    pub(super) fn is_returning(&self) -> bool {
        self.phase == Phase::Finishing && self.effects.requeues_next()
    }

    pub(super) fn is_restoring(&self) -> bool {
        self.phase != Phase::Closed && self.effects.restores_next()
    }

    pub(super) fn stores_failures(&self) -> bool {
        self.policy.stores_result || self.policy.stores_errors
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running {
                hard: Some(hard), ..
            } if hard <= now.instant => {
                actions.push(Action::Abort);
                let limit = self.policy.hard_limit.unwrap_or_default();
                let effects = self.policy.time_out(time_limit_exceeded(limit));
                self.finish_with(effects, actions);
            }
            Phase::Running {
                soft: Some(soft),
                hard,
            } if soft <= now.instant => {
                self.phase = Phase::Running { soft: None, hard };
                actions.push(Action::SignalSoftLimit);
            }
            Phase::Resolving { until } if until <= now.instant => self.request_ack(actions),
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
            self.next_effect(actions);
        }
    }

    fn stop(&mut self, stop: Stop, actions: &mut Vec<Action>) {
        self.stopping = Some(stop);
        match (self.phase, stop) {
            (Phase::Waiting, _) => self.requeue(actions),
            (Phase::BackingOff { .. }, _) if self.effects.is_empty() => self.requeue(actions),
            (Phase::BackingOff { .. } | Phase::AwaitingRedelivery { .. }, _) => {
                self.next_effect(actions);
            }
            (Phase::Resolving { .. }, _) => self.request_ack(actions),
            (Phase::Running { .. }, Stop::Cold) => {
                actions.push(Action::Abort);
                let effects = self.policy.cancel();
                self.finish_with(effects, actions);
            }
            _ => {}
        }
    }

    /// Restores the message of a task that has not started, if it is acknowledged or
    /// may be. Other messages are still on the broker, or their task has ended.
    fn give_up(&mut self, actions: &mut Vec<Action>) {
        let may_be_acknowledged = matches!(
            self.phase,
            Phase::Acknowledging | Phase::Resolving { .. } | Phase::StoringStarted
        );
        if may_be_acknowledged && !self.policy.acks_late {
            self.is_ack_in_doubt = self.phase != Phase::StoringStarted;
            self.finish_with([Effect::Restore], actions);
        }
    }

    /// Applies the loss of the connection. The broker requeues the message and
    /// delivers it again, to this worker or to another one.
    fn connection_lost(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.effects.is_taken_back = true;
        match self.phase {
            Phase::Waiting => self.close(actions),
            Phase::BackingOff { .. } if self.effects.is_empty() => self.close(actions),
            // The broker may or may not have the acknowledgement. If it has, no other
            // worker gets the task, so it starts when the settlement is reported. If
            // the message is redelivered, it is acknowledged again after the task.
            Phase::Acknowledging => self.acknowledge_after_end(),
            Phase::Resolving { .. } => {
                self.acknowledge_after_end();
                self.store_started(now, actions);
            }
            Phase::StoringStarted if self.is_held_for_start() => self.close(actions),
            Phase::Finishing if self.effects.settles_next() => self.effects.is_stale = true,
            // A running task finishes and its result is stored. Its acknowledgement
            // is skipped unless the message is redelivered here before that.
            _ => {}
        }
    }

    /// Turns an early acknowledgement in doubt into a late one.
    fn acknowledge_after_end(&mut self) {
        self.policy.acks_late = true;
        self.is_ack_in_doubt = true;
    }

    /// Returns whether the message is certainly not acknowledged before the start.
    fn is_held_for_start(&self) -> bool {
        self.policy.acks_late && !self.is_ack_in_doubt
    }

    /// Applies the loss of the lease: the message is in its queue again, or another
    /// worker has it. A settlement under way tells the same by its outcome.
    fn lease_lost(&mut self, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Waiting => self.close(actions),
            Phase::BackingOff { .. } if self.effects.is_empty() => self.close(actions),
            Phase::StoringStarted if self.is_held_for_start() => self.close(actions),
            Phase::Acknowledging | Phase::Resolving { .. } => {}
            Phase::Finishing if self.effects.settles_next() => {}
            _ => self.effects.is_taken_back = true,
        }
    }

    /// Applies a redelivery of the message to this worker, whose tag replaces that of
    /// the earlier delivery.
    fn redelivered(&mut self, actions: &mut Vec<Action>) {
        self.effects.is_taken_back = false;
        self.is_ack_in_doubt = false;
        match self.phase {
            Phase::AwaitingRedelivery { .. } => self.next_effect(actions),
            Phase::Acknowledging => self.effects.is_stale = true,
            Phase::Finishing if self.effects.settles_next() => self.effects.is_stale = true,
            _ => {}
        }
    }

    /// Requeues a message whose task has not started, at the head of its queue.
    pub(super) fn requeue(&mut self, actions: &mut Vec<Action>) {
        let requeue = Effect::Settle(Disposition::Requeue(QueueEnd::Head));
        self.finish_with([requeue], actions);
    }

    pub(super) fn close(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Closed;
        actions.push(Action::Remove);
    }

    pub(super) fn back_off(&mut self, now: Now) {
        self.phase = Phase::BackingOff {
            until: now.instant + self.effects.next_delay(),
        };
    }
}
