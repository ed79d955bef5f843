//! The effects that a delivery has left: [`EffectQueue`].

use std::collections::VecDeque;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::boundary::QueueEnd;
use crate::worker::delivery::event::{Action, Disposition, Effect};
use crate::worker::workflow::effect::WorkflowEffect;

/// The effects that are left, in order. They are carried out one at a time, and the
/// first one stays in the list until it is done, so that a failure loses nothing.
#[derive(Debug, Default)]
pub(super) struct EffectQueue {
    effects: VecDeque<Effect>,
    /// How often the first effect has failed, for the back-off.
    attempt: u32,
    /// Whether the broker has taken the message back, so that the delivery cannot be
    /// settled.
    pub(super) is_taken_back: bool,
    /// Whether the settlement under way is for an earlier delivery of the message.
    /// Its outcome says nothing about the current one.
    pub(super) is_stale: bool,
}

/// What [`EffectQueue::request`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextEffect {
    /// The first effect is requested.
    Requested,
    /// The first effect is a settlement, and the broker has taken the message back.
    Unsettleable,
    /// No effects are left.
    Nothing,
}

impl EffectQueue {
    pub(super) fn extend(&mut self, effects: impl IntoIterator<Item = Effect>) {
        self.effects.extend(effects);
    }

    pub(super) fn replace(&mut self, effects: Vec<Effect>) {
        self.effects = effects.into();
        self.attempt = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// Returns whether a settlement of the message is left.
    pub(super) fn settles(&self) -> bool {
        let mut effects = self.effects.iter();
        effects.any(|effect| matches!(effect, Effect::Settle(_)))
    }

    /// Returns whether storing a result is left.
    pub(super) fn stores(&self) -> bool {
        let mut effects = self.effects.iter();
        effects.any(|effect| matches!(effect, Effect::Store(_)))
    }

    /// Returns whether the first effect is a settlement.
    pub(super) fn settles_next(&self) -> bool {
        matches!(self.effects.front(), Some(Effect::Settle(_)))
    }

    /// Returns whether the first effect requeues the message at the head of its queue.
    pub(super) fn requeues_next(&self) -> bool {
        let requeue = Disposition::Requeue(QueueEnd::Head);
        matches!(self.effects.front(), Some(Effect::Settle(one)) if *one == requeue)
    }

    /// Returns whether the first effect restores the message.
    pub(super) fn restores_next(&self) -> bool {
        matches!(self.effects.front(), Some(Effect::Restore))
    }

    /// Emits the events at the front and requests the effect after them.
    pub(super) fn request(&mut self, actions: &mut Vec<Action>) -> NextEffect {
        while let Some(effect) = self.effects.front() {
            match effect {
                Effect::Emit(event) => {
                    actions.push(Action::Emit(event.clone()));
                    self.effects.pop_front();
                }
                Effect::Settle(_) if self.is_taken_back => return NextEffect::Unsettleable,
                effect => {
                    actions.push(Action::Effect(effect.clone()));
                    return NextEffect::Requested;
                }
            }
        }
        NextEffect::Nothing
    }

    /// Removes the first effect, and puts the effects that it led to in its place.
    pub(super) fn advance(&mut self, follow_ups: Vec<WorkflowEffect>) -> Option<Effect> {
        self.attempt = 0;
        let first = self.effects.pop_front();
        for effect in follow_ups.into_iter().rev() {
            self.effects.push_front(Effect::Workflow(effect));
        }
        first
    }

    /// Counts a failed attempt and returns the delay before the next one.
    pub(super) fn next_delay(&mut self) -> Duration {
        let delay = Backoff::CONNECTION.delay(self.attempt, 0.0);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// Starts the back-off anew. Returns the number of failed attempts so far.
    pub(super) fn reset_delay(&mut self) -> u32 {
        std::mem::take(&mut self.attempt)
    }

    /// Continues the back-off after this number of failed attempts.
    pub(super) fn set_attempt(&mut self, attempt: u32) {
        self.attempt = attempt;
    }
}
