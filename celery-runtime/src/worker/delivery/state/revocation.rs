//! Transitions of a delivery whose task is revoked or expired.

use crate::worker::delivery::event::{Action, Effect, Revocation, TaskEvent};
use crate::worker::delivery::state::task::{Phase, TaskDelivery};

impl TaskDelivery {
    pub(super) fn revoke(&mut self, revocation: Revocation, actions: &mut Vec<Action>) {
        if revocation == Revocation::ConnectionLost {
            return self.cancel_after_connection_loss(actions);
        }
        match (self.phase, &revocation) {
            (Phase::Arrived | Phase::Waiting, _) => self.revoke_unstarted(actions),
            (Phase::BackingOff { .. }, _) if self.effects.is_empty() => {
                self.revoke_unstarted(actions);
            }
            (
                Phase::Admitting
                | Phase::Acknowledging
                | Phase::Resolving { .. }
                | Phase::StoringStarted,
                _,
            ) => {
                self.revoked = Some(revocation);
            }
            (Phase::Running { .. }, Revocation::Terminate(_)) => {
                actions.push(Action::Abort);
                self.revoke_with_slot(&revocation, actions);
            }
            _ => {}
        }
    }

    /// Aborts a running task whose message the broker will deliver again. The worker
    /// that gets the redelivery decides about the task.
    fn cancel_after_connection_loss(&mut self, actions: &mut Vec<Action>) {
        if !self.awaits_redelivery() || !self.is_running() {
            return;
        }
        actions.push(Action::Abort);
        let cancelled = Action::Emit(TaskEvent::Cancelled);
        actions.extend(self.policy.emits_events.then_some(cancelled));
        self.close(actions);
    }

    /// Revokes a task without a slot, whose message is not acknowledged yet.
    pub(super) fn revoke_unstarted(&mut self, actions: &mut Vec<Action>) {
        let event = TaskEvent::Revoked {
            signal: None,
            terminated: false,
            expired: false,
        };
        let effects = self.policy.revoke("revoked", event);
        self.finish_with(effects, actions);
    }

    /// Revokes a task that had a slot. An early message is acknowledged already.
    pub(super) fn revoke_with_slot(&mut self, revocation: &Revocation, actions: &mut Vec<Action>) {
        let signal = match revocation {
            Revocation::Terminate(signal) => Some(*signal),
            Revocation::Unstarted | Revocation::ConnectionLost => None,
        };
        let event = TaskEvent::Revoked {
            signal,
            terminated: signal.is_some(),
            expired: false,
        };
        let reason = if signal.is_some() {
            "terminated"
        } else {
            "revoked"
        };
        let policy = &self.policy;
        let mut effects = policy.revoke(reason, event);
        if !policy.acks_late {
            effects.retain(|effect| !matches!(effect, Effect::Settle(_)));
        }
        self.finish_with(effects, actions);
    }

    pub(super) fn expire(&mut self, actions: &mut Vec<Action>) {
        let event = TaskEvent::Revoked {
            signal: None,
            terminated: false,
            expired: true,
        };
        let effects = self.policy.revoke("expired", event);
        actions.push(Action::RecordExpiry);
        self.finish_with(effects, actions);
    }
}
