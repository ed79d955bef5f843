//! Transitions of a delivery that carries out its remaining effects.

use crate::env::Now;
use crate::worker::core::failure::celery_exception;
use crate::worker::delivery::event::{
    Action, DeliveryEvent, Effect, EffectError, FollowUp, StateUpdate,
};
use crate::worker::delivery::state::effects::NextEffect;
use crate::worker::delivery::state::task::{Phase, TaskDelivery};

impl TaskDelivery {
    pub(super) fn finish_with(
        &mut self,
        effects: impl IntoIterator<Item = Effect>,
        actions: &mut Vec<Action>,
    ) {
        self.effects.extend(effects);
        self.next_effect(actions);
    }

    /// Requests the first effect that is left.
    pub(super) fn next_effect(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Finishing;
        loop {
            match self.effects.request(actions) {
                NextEffect::Requested => return,
                NextEffect::Unsettleable => {
                    let waits = self.stopping.is_none() && self.policy.acks_late;
                    if let Some(until) = self.redelivery_deadline.filter(|_| waits) {
                        // Without its late acknowledgement the task would run again.
                        self.phase = Phase::AwaitingRedelivery { until };
                        return;
                    }
                    self.effects.advance(Vec::new());
                }
                NextEffect::Nothing => return self.close(actions),
            }
        }
    }

    /// Applies the report about the first effect.
    pub(super) fn finishing_reported(
        &mut self,
        report: DeliveryEvent,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        // An effect that was under way when the worker gave up.
        if self.effects.restores_next() {
            return;
        }
        if std::mem::take(&mut self.effects.is_stale) {
            return self.next_effect(actions);
        }
        match report {
            DeliveryEvent::Failed(error) => self.effect_failed(error, now, actions),
            DeliveryEvent::DoneWith(follow_ups) => {
                self.effects.advance(follow_ups);
                self.next_effect(actions);
            }
            _ => {
                self.effects.advance(Vec::new());
                self.next_effect(actions);
            }
        }
    }

    /// Repeats a failed effect after a back-off. A refused one is replaced or skipped,
    /// except for a settlement: without it the message would stay with this worker.
    fn effect_failed(&mut self, error: EffectError, now: Now, actions: &mut Vec<Action>) {
        match error {
            EffectError::Refused(cause) if !self.effects.settles_next() => {
                let refused = self.effects.advance(Vec::new());
                self.replace_refused(refused.as_ref(), &cause);
                self.next_effect(actions);
            }
            _ => self.back_off(now),
        }
    }

    /// Replaces the remaining effects if the one that was refused must not be skipped.
    fn replace_refused(&mut self, effect: Option<&Effect>, cause: &str) {
        let exception = match effect {
            // The continuation cannot be sent: the task fails, whatever it returned.
            Some(Effect::Send(
                FollowUp::Success(_) | FollowUp::Retry { .. } | FollowUp::Replacement(_),
            )) => "OperationalError",
            Some(Effect::Store(StateUpdate::Success(_))) => "BackendStoreError",
            _ => return,
        };
        let failure_info = celery_exception(exception, cause);
        self.effects.replace(self.policy.fail(failure_info));
    }

    /// Applies the outcome of [`Effect::Restore`]. Only an attempt that was not sent is
    /// repeated: a second one could push the message twice.
    pub(super) fn restored(
        &mut self,
        outcome: &Result<(), EffectError>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.phase != Phase::Finishing || !self.effects.restores_next() {
            return;
        }
        match outcome {
            Ok(()) => {}
            Err(EffectError::NotSent) => return self.back_off(now),
            Err(EffectError::Unknown | EffectError::Refused(_)) => {
                actions.push(Action::ReportInDoubt);
            }
        }
        self.effects.advance(Vec::new());
        self.next_effect(actions);
    }
}
