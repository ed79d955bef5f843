//! Transitions of a delivery that carries out its remaining effects.

use crate::boundary::QueueEnd;
use crate::env::Now;
use crate::worker::core::failure::celery_exception;
use crate::worker::delivery::event::{
    Action, Disposition, Effect, EffectError, FollowUp, StateUpdate,
};
use crate::worker::delivery::state::{DeliveryState, Phase};
use crate::worker::workflow::effect::WorkflowEffect;

impl DeliveryState {
    pub(super) fn finish_with(
        &mut self,
        effects: impl IntoIterator<Item = Effect>,
        actions: &mut Vec<Action>,
    ) {
        self.effects.extend(effects);
        self.next_effect(actions);
    }

    /// Requests the first effect that is left. It stays in the list until it is
    /// done, so that a failure loses nothing.
    pub(super) fn next_effect(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Finishing;
        while let Some(effect) = self.effects.front() {
            if let Effect::Emit(event) = effect {
                actions.push(Action::Emit(event.clone()));
                self.effects.pop_front();
                continue;
            }
            if self.invalidated && matches!(effect, Effect::Settle(_)) {
                let waits = self.stopping.is_none() && self.acks_late();
                if let Some(until) = self.redelivery_deadline.filter(|_| waits) {
                    // Without its late acknowledgement the task would run again.
                    self.phase = Phase::AwaitingRedelivery { until };
                    return;
                }
                self.effects.pop_front();
                continue;
            }
            return actions.push(Action::Effect(effect.clone()));
        }
        self.close(actions);
    }

    /// Continues with the effects that the last one led to, then with the others.
    pub(super) fn effect_done(
        &mut self,
        follow_ups: Vec<WorkflowEffect>,
        actions: &mut Vec<Action>,
    ) {
        self.attempt = 0;
        self.effects.pop_front();
        for effect in follow_ups.into_iter().rev() {
            self.effects.push_front(Effect::Workflow(effect));
        }
        self.next_effect(actions);
    }

    pub(super) fn effect_failed(
        &mut self,
        error: EffectError,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        match error {
            EffectError::NotSent | EffectError::Unknown => self.back_off(now),
            EffectError::Refused(cause) => {
                let effect = self.effects.pop_front();
                self.replace_failed(effect.as_ref(), &cause);
                self.next_effect(actions);
            }
        }
    }

    /// Replaces the remaining effects if the one that failed permanently must not be
    /// skipped.
    fn replace_failed(&mut self, effect: Option<&Effect>, cause: &str) {
        match effect {
            // The continuation cannot be sent: the task fails, whatever it returned.
            Some(Effect::Send(
                FollowUp::Success(_) | FollowUp::Retry { .. } | FollowUp::Replacement(_),
            )) => {
                let failure_info = celery_exception("OperationalError", cause);
                self.effects = self.policy().fail(failure_info).into();
            }
            // A message that is not in the dead-letter queue is never acknowledged.
            Some(Effect::Send(FollowUp::DeadLetter)) => {
                self.effects = [Effect::Settle(Disposition::Requeue(QueueEnd::Tail))].into();
            }
            Some(Effect::Store(StateUpdate::Success(_))) => {
                let failure_info = celery_exception("BackendStoreError", cause);
                self.effects = self.policy().fail(failure_info).into();
            }
            _ => {}
        }
    }
}
