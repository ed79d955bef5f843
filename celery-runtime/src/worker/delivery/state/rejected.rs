//! The state machine of a message that this worker cannot run: [`RejectedDelivery`].

use std::time::Instant;

use crate::boundary::QueueEnd;
use crate::config::OnUnknown;
use crate::env::Now;
use crate::worker::delivery::event::{
    Action, DeliveryEvent, Disposition, Effect, EffectError, FollowUp, Rejection, StateUpdate,
};
use crate::worker::delivery::state::effects::{EffectQueue, NextEffect};
use crate::worker::workflow::effect::{Completion, WorkflowEffect};

/// A delivery that fails its task, if the message names one, and then goes to the
/// dead-letter queue, is rejected or is requeued.
#[derive(Debug)]
pub(crate) struct RejectedDelivery {
    rejection: Rejection,
    on_unknown: OnUnknown,
    phase: RejectedPhase,
    effects: EffectQueue,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum RejectedPhase {
    /// Carries out effects, one at a time.
    Finishing,
    BackingOff {
        until: Instant,
    },
    Closed,
}

impl RejectedDelivery {
    pub(super) fn new(rejection: Rejection, on_unknown: OnUnknown) -> Self {
        Self {
            rejection,
            on_unknown,
            phase: RejectedPhase::Finishing,
            effects: EffectQueue::default(),
        }
    }

    pub(super) fn rejection(&self) -> &Rejection {
        &self.rejection
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            RejectedPhase::BackingOff { until } => Some(until),
            RejectedPhase::Finishing | RejectedPhase::Closed => None,
        }
    }

    pub(super) fn handle(&mut self, event: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        match (event, self.phase) {
            (_, RejectedPhase::Closed) => {}
            (DeliveryEvent::Arrived, _) => self.arrive(now, actions),
            (DeliveryEvent::Done | DeliveryEvent::Gone, RejectedPhase::Finishing) => {
                self.advance(Vec::new(), actions);
            }
            (DeliveryEvent::DoneWith(follow_ups), RejectedPhase::Finishing) => {
                self.advance(follow_ups, actions);
            }
            (DeliveryEvent::Failed(error), RejectedPhase::Finishing) => {
                self.failed(&error, now, actions)
            }
            (DeliveryEvent::Tick, RejectedPhase::BackingOff { until }) if until <= now.instant => {
                self.next_effect(actions);
            }
            (DeliveryEvent::Stop(_), RejectedPhase::BackingOff { .. }) => self.next_effect(actions),
            (DeliveryEvent::ConnectionLost | DeliveryEvent::LeaseLost, _) => {
                self.effects.is_taken_back = true;
            }
            _ => {}
        }
    }

    fn arrive(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.on_unknown {
            OnUnknown::Keep => {
                self.effects.extend(failure_effects(&self.rejection));
                self.effects.extend([
                    Effect::Send(FollowUp::DeadLetter),
                    Effect::Settle(Disposition::Ack),
                ]);
            }
            OnUnknown::Reject => {
                self.effects.extend(failure_effects(&self.rejection));
                self.effects.extend([Effect::Settle(Disposition::Reject)]);
            }
            OnUnknown::Requeue(delay) => {
                self.effects.extend([requeue()]);
                self.phase = RejectedPhase::BackingOff {
                    until: now.instant + delay,
                };
                return;
            }
        }
        self.next_effect(actions);
    }

    fn advance(&mut self, follow_ups: Vec<WorkflowEffect>, actions: &mut Vec<Action>) {
        self.effects.advance(follow_ups);
        self.next_effect(actions);
    }

    /// Repeats a failed effect after a back-off. A message that the dead-letter queue
    /// refuses is requeued, never acknowledged; another refused effect is skipped.
    fn failed(&mut self, error: &EffectError, now: Now, actions: &mut Vec<Action>) {
        if error.is_transient() || self.effects.settles_next() {
            self.phase = RejectedPhase::BackingOff {
                until: now.instant + self.effects.next_delay(),
            };
            return;
        }
        let refused = self.effects.advance(Vec::new());
        if matches!(refused, Some(Effect::Send(FollowUp::DeadLetter))) {
            self.effects.replace(vec![requeue()]);
        }
        self.next_effect(actions);
    }

    fn next_effect(&mut self, actions: &mut Vec<Action>) {
        self.phase = RejectedPhase::Finishing;
        loop {
            match self.effects.request(actions) {
                NextEffect::Requested => return,
                NextEffect::Unsettleable => {
                    self.effects.advance(Vec::new());
                }
                NextEffect::Nothing => {
                    self.phase = RejectedPhase::Closed;
                    return actions.push(Action::Remove);
                }
            }
        }
    }
}

fn requeue() -> Effect {
    Effect::Settle(Disposition::Requeue(QueueEnd::Tail))
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
