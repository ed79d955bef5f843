//! Transitions of a delivery from its arrival to the start of its task.

use std::time::Instant;

use crate::boundary::QueueEnd;
use crate::config::OnUnknown;
use crate::env::Now;
use crate::task::Conflict;
use crate::worker::core::failure::not_unique;
use crate::worker::core::rate_limits::{MAX_DEFER, MAX_LOCAL_WAIT};
use crate::worker::delivery::event::{
    Action, Admission, Disposition, Effect, EffectError, ExecutionPolicy, FollowUp, Rejection,
    StateUpdate, Stop, TaskEvent,
};
use crate::worker::delivery::state::{DeliveryKind, DeliveryState, Phase};
use crate::worker::workflow::effect::Completion;

impl DeliveryState {
    pub(super) fn arrive(&mut self, now: Now, actions: &mut Vec<Action>) {
        let policy = match &self.kind {
            DeliveryKind::Task(policy) => policy,
            DeliveryKind::Rejected {
                rejection,
                on_unknown,
            } => {
                let (failure, on_unknown) = (failure_effects(rejection), *on_unknown);
                return self.arrive_rejected(failure, on_unknown, now, actions);
            }
        };
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

    fn arrive_rejected(
        &mut self,
        failure: Vec<Effect>,
        on_unknown: OnUnknown,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        match on_unknown {
            OnUnknown::Keep => {
                let keep = [
                    Effect::Send(FollowUp::DeadLetter),
                    Effect::Settle(Disposition::Ack),
                ];
                self.finish_with(failure.into_iter().chain(keep), actions);
            }
            OnUnknown::Reject => {
                let reject = [Effect::Settle(Disposition::Reject)];
                self.finish_with(failure.into_iter().chain(reject), actions);
            }
            OnUnknown::Requeue(delay) => {
                self.effects
                    .push_back(Effect::Settle(Disposition::Requeue(QueueEnd::Tail)));
                self.phase = Phase::BackingOff {
                    until: now.instant + delay,
                };
            }
        }
    }

    pub(super) fn take_slot(&mut self, now: Now, actions: &mut Vec<Action>) {
        let policy = self.policy();
        if is_expired(policy, now) {
            actions.push(Action::FreeSlot);
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
        let attempt = std::mem::take(&mut self.attempt);
        let may_start = self.stopping.is_none() && !self.invalidated;
        if *admission == Admission::Start && may_start {
            return self.acknowledge(now, actions);
        }
        actions.push(Action::FreeSlot);
        match admission {
            Admission::Start if self.stopping.is_some() => self.requeue(actions),
            Admission::Start => self.close(actions),
            Admission::Revoked => self.revoke_unstarted(actions),
            Admission::Succeeded(value) => {
                // The earlier run published its messages before it stored the
                // result, but it reports to a chord only afterwards, so that may be
                // left to do.
                let in_chord = self.policy().continuations.in_chord;
                let completion = Completion::Succeeded(value.clone());
                let report = in_chord.then_some(Effect::Continue(completion));
                let effects = report.into_iter().chain([Effect::Settle(Disposition::Ack)]);
                self.finish_with(effects, actions);
            }
            Admission::Taken(Conflict::Wait) if may_start => {
                self.attempt = attempt;
                let until = now.instant + self.next_delay();
                self.postpone(until, now, actions);
            }
            Admission::Taken(Conflict::Wait) => self.requeue(actions),
            Admission::Taken(Conflict::Drop) => {
                let event = TaskEvent::Revoked {
                    signal: None,
                    terminated: false,
                    expired: false,
                };
                let effects = self.policy().revoke(Conflict::REASON, event);
                self.finish_with(effects, actions);
            }
            Admission::Taken(Conflict::Fail) => {
                let effects = self.policy().fail_unstarted(not_unique());
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
        actions.push(Action::FreeSlot);
        if self.invalidated {
            self.close(actions);
        } else if self.stopping.is_some() {
            self.requeue(actions);
        } else {
            self.back_off(now);
        }
    }

    /// Sends an early acknowledgement; a late one is left for the end.
    fn acknowledge(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.policy().acks_late {
            self.store_started(now, actions);
        } else {
            self.phase = Phase::Acknowledging;
            actions.push(Action::Effect(Effect::Settle(Disposition::Ack)));
        }
    }

    /// Prevents the start of the task when its early acknowledgement failed: the
    /// broker may deliver the message to another worker.
    pub(super) fn ack_failed(&mut self, error: &EffectError, now: Now, actions: &mut Vec<Action>) {
        // The connection was lost during the acknowledgement, see `invalidate`.
        if self.policy().acks_late {
            return self.store_started(now, actions);
        }
        actions.push(Action::FreeSlot);
        if !error.is_transient() {
            self.close(actions);
        } else if self.stopping.is_some() {
            // If the broker has the acknowledgement after all, this does nothing.
            self.requeue(actions);
        } else {
            self.back_off(now);
        }
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
        let policy = self.policy();
        if policy.track_started && policy.stores_result {
            self.phase = Phase::StoringStarted;
            actions.push(Action::Effect(Effect::Store(StateUpdate::Started)));
        } else {
            self.start(now, actions);
        }
    }

    pub(super) fn start(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.attempt = 0;
        if self.stopping == Some(Stop::Cold) {
            actions.push(Action::FreeSlot);
            let effects = self.policy().cancel();
            return self.finish_with(effects, actions);
        }
        if let Some(revocation) = self.revoked.take() {
            actions.push(Action::FreeSlot);
            return self.revoke_with_slot(&revocation, actions);
        }
        let policy = self.policy();
        let started = Action::Emit(TaskEvent::Started);
        actions.extend(policy.emits_events.then_some(started));
        actions.push(Action::Start);
        self.phase = Phase::Running {
            soft: policy.soft_limit.map(|limit| now.instant + limit),
            hard: policy.hard_limit.map(|limit| now.instant + limit),
        };
    }
}

/// Returns the effects that fail the task of a rejected message, if it has one.
fn failure_effects(rejection: &Rejection) -> Vec<Effect> {
    let Some(task) = rejection.task.as_deref() else {
        return Vec::new();
    };
    let failure_info = task.failure_info.clone();
    let mut effects = vec![Effect::Store(StateUpdate::Failure(failure_info.clone()))];
    if task.is_linked {
        effects.push(Effect::Continue(Completion::Failed(failure_info)));
    }
    effects
}

/// Returns whether the task is expired: as in Celery, strictly after the time.
fn is_expired(policy: &ExecutionPolicy, now: Now) -> bool {
    policy.expires.is_some_and(|expires| now.wall > expires)
}
