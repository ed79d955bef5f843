//! Transitions of a delivery from its arrival to the start of its task.

use std::time::Instant;

use crate::env::Now;
use crate::task::Conflict;
use crate::worker::core::failure::not_unique;
use crate::worker::core::rate_limits::{MAX_DEFER, MAX_LOCAL_WAIT};
use crate::worker::delivery::event::{
    Action, Admission, DeliveryEvent, Disposition, Effect, EffectError, ExecutionPolicy,
    StateUpdate, Stop, TaskEvent,
};
use crate::worker::delivery::state::task::{Phase, TaskDelivery};
use crate::worker::workflow::effect::Completion;

impl TaskDelivery {
    pub(super) fn arrive(&mut self, now: Now, actions: &mut Vec<Action>) {
        let policy = &self.policy;
        if is_expired(policy, now) {
            return self.expire(actions);
        }
        let received = Action::Emit(TaskEvent::Received);
        actions.extend(policy.emits_events.then_some(received));
        match policy.eta {
            Some(eta) if eta > now.wall => {
                self.finish_with([Effect::Settle(Disposition::Defer(eta))], actions);
            }
            _ => {
                self.phase = Phase::Waiting;
                actions.push(Action::Queue);
            }
        }
    }

    pub(super) fn take_slot(&mut self, now: Now, actions: &mut Vec<Action>) {
        let policy = &self.policy;
        if is_expired(policy, now) {
            self.expire(actions);
        } else if policy.checks_admission {
            self.phase = Phase::Admitting;
            actions.push(Action::Effect(Effect::CheckAdmission));
        } else {
            self.acknowledge(now, actions);
        }
    }

    pub(super) fn admission_checked(
        &mut self,
        admission: &Admission,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let attempt = self.effects.reset_delay();
        let may_start = self.stopping.is_none() && !self.effects.is_taken_back;
        if *admission == Admission::Start && may_start {
            return self.acknowledge(now, actions);
        }
        match admission {
            Admission::Start if self.stopping.is_some() => self.requeue(actions),
            Admission::Start => self.close(actions),
            Admission::Revoked => self.revoke_unstarted(actions),
            Admission::Succeeded(value) => {
                // The earlier run published its messages before it stored the
                // result, but it reports to a chord only afterwards, so that may be
                // left to do.
                let in_chord = self.policy.continuations.in_chord;
                let completion = Completion::Succeeded(value.clone());
                let report = in_chord.then_some(Effect::Continue(completion));
                let effects = report.into_iter().chain([Effect::Settle(Disposition::Ack)]);
                self.finish_with(effects, actions);
            }
            Admission::Taken(Conflict::Wait) if may_start => {
                self.effects.set_attempt(attempt);
                let until = now.instant + self.effects.next_delay();
                self.postpone(until, now, actions);
            }
            Admission::Taken(Conflict::Wait) => self.requeue(actions),
            Admission::Taken(Conflict::Drop) => {
                let event = TaskEvent::Revoked {
                    signal: None,
                    terminated: false,
                    expired: false,
                };
                let effects = self.policy.revoke(Conflict::REASON, event);
                self.finish_with(effects, actions);
            }
            Admission::Taken(Conflict::Fail) => {
                let effects = self.policy.fail_unstarted(not_unique());
                self.finish_with(effects, actions);
            }
        }
    }

    /// Postpones the start if the checks failed for a time. Checks that can never
    /// succeed do not prevent it.
    pub(super) fn admission_failed(
        &mut self,
        error: &EffectError,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if !error.is_transient() {
            return self.admission_checked(&Admission::Start, now, actions);
        }
        if self.effects.is_taken_back {
            self.close(actions);
        } else if self.stopping.is_some() {
            self.requeue(actions);
        } else {
            self.back_off(now);
        }
    }

    /// Sends an early acknowledgement; a late one is left for the end.
    fn acknowledge(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.policy.acks_late {
            self.store_started(now, actions);
        } else {
            self.request_ack(actions);
        }
    }

    pub(super) fn request_ack(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Acknowledging;
        actions.push(Action::Effect(Effect::Settle(Disposition::Ack)));
    }

    /// Applies the report about an early acknowledgement. The task starts once the
    /// message is acknowledged by this worker. Another worker may have a message that
    /// the broker does not hold for this one any more, unless an earlier attempt
    /// without an answer explains that.
    pub(super) fn ack_reported(
        &mut self,
        report: &DeliveryEvent,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        // The connection was lost during the acknowledgement, see `connection_lost`.
        if self.policy.acks_late {
            return self.store_started(now, actions);
        }
        if std::mem::take(&mut self.effects.is_stale) {
            return self.request_ack(actions);
        }
        match report {
            DeliveryEvent::Gone if !self.is_ack_in_doubt => self.close(actions),
            DeliveryEvent::Failed(EffectError::Unknown) => {
                self.is_ack_in_doubt = true;
                self.resolve_later(now);
            }
            DeliveryEvent::Failed(_) if self.is_ack_in_doubt => self.resolve_later(now),
            DeliveryEvent::Failed(_) if self.stopping.is_some() => self.requeue(actions),
            DeliveryEvent::Failed(_) => self.back_off(now),
            _ => {
                self.is_ack_in_doubt = false;
                self.store_started(now, actions);
            }
        }
    }

    fn resolve_later(&mut self, now: Now) {
        self.phase = Phase::Resolving {
            until: now.instant + self.effects.next_delay(),
        };
    }

    /// Waits until `until`: in this worker if that is soon, otherwise with the
    /// broker, so that the delivery takes up neither prefetch nor memory.
    pub(super) fn postpone(&mut self, until: Instant, now: Now, actions: &mut Vec<Action>) {
        let wait = until.saturating_duration_since(now.instant);
        if wait > MAX_LOCAL_WAIT {
            let until = now.wall + wait.min(MAX_DEFER);
            return self.finish_with([Effect::Settle(Disposition::Defer(until))], actions);
        }
        self.phase = Phase::BackingOff { until };
    }

    /// Stores the state STARTED if the task tracks it. The task starts when that is
    /// done, so that STARTED cannot overwrite its result.
    pub(super) fn store_started(&mut self, now: Now, actions: &mut Vec<Action>) {
        let policy = &self.policy;
        if policy.track_started && policy.stores_result {
            self.phase = Phase::StoringStarted;
            actions.push(Action::Effect(Effect::Store(StateUpdate::Started)));
        } else {
            self.start(now, actions);
        }
    }

    pub(super) fn start(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.effects.reset_delay();
        if let Some(revocation) = self.revoked.take() {
            return self.revoke_with_slot(&revocation, actions);
        }
        if self.stopping == Some(Stop::Cold) {
            return self.finish_with(self.unstarted_effects(), actions);
        }
        let policy = &self.policy;
        let started = Action::Emit(TaskEvent::Started);
        actions.extend(policy.emits_events.then_some(started));
        actions.push(Action::Start);
        self.phase = Phase::Running {
            soft: policy.soft_limit.map(|limit| now.instant + limit),
            hard: policy.hard_limit.map(|limit| now.instant + limit),
        };
    }

    /// Returns the effects of a cold shutdown for a task that was about to start.
    fn unstarted_effects(&self) -> Vec<Effect> {
        if self.policy.acks_late {
            self.policy.cancel()
        } else {
            vec![Effect::Restore]
        }
    }
}

/// Returns whether the task is expired: as in Celery, strictly after the time.
fn is_expired(policy: &ExecutionPolicy, now: Now) -> bool {
    policy.expires.is_some_and(|expires| now.wall > expires)
}
