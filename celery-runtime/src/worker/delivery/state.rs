//! The life of one delivery, as a pure state machine.
//!
//! Events and the time come in through [`DeliveryState::handle`], actions go out. The
//! machine decides; the driver carries out and reports back. It knows no
//! broker, no backend and no clock, so every order of events can be tested.
//!
//! ```text
//! Arrived -> Waiting -> Asking -> Acknowledging -> Announcing -> Running -> Finishing -> Over
//!    |         ^  |       |         (early ack)     (STARTED)                ^  |
//!    |   (rate |  +-------+--- late ack ----------------^                    |  | (a step failed)
//!    |   limit)|                                                             +- Pausing
//!    |         +- Pausing
//!    +-> Finishing (expired, revoked, parked, refused)
//! ```
//!
//! Asking is left out by most: it is for what somebody else has to be asked
//! before the task may start.
//!
//! Two rules make losing a task impossible: a message is acknowledged early
//! only right before its task starts, and the task starts only after the
//! acknowledgement went out; and whatever has to happen after a task (messages
//! to send, the result to store) happens before a late acknowledgement, each
//! step repeated until it succeeds.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::boundary::QueueEnd;
use crate::config::OnUnknown;
use crate::env::Now;
use crate::task::Conflict;
use crate::worker::core::failure::{celery_exception, not_unique, time_limit_exceeded};
use crate::worker::core::rate_limits::{LONGEST_HOLD, LONGEST_PARK};
use crate::worker::delivery::event::{
    Action, Admission, DeliveryEvent, Disposition, Effect, EffectError, ExecutionPolicy, FollowUp,
    Rejection, Revocation, StateUpdate, Stop, TaskEvent,
};
use crate::worker::workflow::effect::{Completion, WorkflowEffect};

/// One delivery from its arrival until the broker has forgotten it.
#[derive(Debug)]
pub(crate) struct DeliveryState {
    work: DeliveryKind,
    phase: Phase,
    steps: VecDeque<Effect>,
    attempt: u32,
    withdrawn: bool,
    /// The settlement that is on its way is of a delivery that was withdrawn.
    stale: bool,
    /// Until when a withdrawn delivery may come back, counted from now.
    return_limit: Option<Instant>,
    stopping: Option<Stop>,
    /// Set while a step before the start is under way.
    revoked: Option<Revocation>,
}

#[derive(Debug)]
enum DeliveryKind {
    Task(ExecutionPolicy),
    Refused {
        refusal: Rejection,
        policy: OnUnknown,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Arrived,
    Waiting,
    Admitting,
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
    /// All is done but the settlement, of a delivery that was withdrawn and may
    /// come back.
    AwaitingRedelivery {
        until: Instant,
    },
    Over,
}

impl DeliveryState {
    /// A task that this worker knows.
    pub(crate) fn of_task(plan: ExecutionPolicy) -> Self {
        Self::new(DeliveryKind::Task(plan))
    }

    /// A message that cannot be run, and what to do with such.
    pub(crate) fn refused(refusal: Rejection, policy: OnUnknown) -> Self {
        Self::new(DeliveryKind::Refused { refusal, policy })
    }

    fn new(work: DeliveryKind) -> Self {
        Self {
            work,
            phase: Phase::Arrived,
            steps: VecDeque::new(),
            attempt: 0,
            withdrawn: false,
            stale: false,
            return_limit: None,
            stopping: None,
            revoked: None,
        }
    }

    /// Takes note of an event and says what to do now.
    pub(crate) fn handle(&mut self, event: DeliveryEvent, now: Now, actions: &mut Vec<Action>) {
        self.return_limit = Some(now.instant + RETURN_LIMIT);
        match (event, self.phase) {
            (_, Phase::Over) => {}
            (DeliveryEvent::Arrived, _) => self.arrive(now, actions),
            (DeliveryEvent::SlotGranted, Phase::Waiting) => self.take_slot(now, actions),
            (DeliveryEvent::RateLimited(until), Phase::Waiting) => self.hold(until, now, actions),
            (DeliveryEvent::Revoked(revocation), _) => self.revoke(revocation, actions),
            (DeliveryEvent::AdmissionChecked(answer), Phase::Admitting) => {
                self.answered(&answer, now, actions)
            }
            (DeliveryEvent::Failed(error), Phase::Admitting) => {
                self.ask_failed(&error, now, actions);
            }
            (DeliveryEvent::Done, Phase::Acknowledging) => self.announce(now, actions),
            // The state STARTED is a courtesy: the task runs without it, too.
            (DeliveryEvent::Done | DeliveryEvent::Failed(_), Phase::StoringStarted) => {
                self.start(now, actions)
            }
            (
                DeliveryEvent::Done | DeliveryEvent::FollowUps(_) | DeliveryEvent::Failed(_),
                Phase::Finishing,
            ) if self.stale => {
                self.stale = false;
                self.next_step(actions);
            }
            (DeliveryEvent::Done, Phase::Finishing) => self.step_done(Vec::new(), actions),
            (DeliveryEvent::FollowUps(deeds), Phase::Finishing) => self.step_done(deeds, actions),
            (DeliveryEvent::Failed(error), Phase::Acknowledging) => {
                self.ack_failed(&error, now, actions);
            }
            (DeliveryEvent::Failed(error), Phase::Finishing) => {
                self.step_failed(error, now, actions)
            }
            (DeliveryEvent::Returned(outcome), Phase::Running { .. }) => {
                actions.push(Action::FreeSlot);
                let steps = self.plan().conclude(outcome, now);
                self.finish_with(steps, actions);
            }
            (DeliveryEvent::Tick, _) => self.tick(now, actions),
            (DeliveryEvent::Stop(stop), _) => self.stop(stop, actions),
            (DeliveryEvent::ConnectionLost, _) => self.withdraw(actions),
            (DeliveryEvent::Redelivered, phase) => {
                self.withdrawn = false;
                if matches!(phase, Phase::AwaitingRedelivery { .. }) {
                    self.next_step(actions);
                }
            }
            // A slot for what left the line, a report about what was given up.
            (DeliveryEvent::SlotGranted, _) => actions.push(Action::FreeSlot),
            (
                DeliveryEvent::Done
                | DeliveryEvent::FollowUps(_)
                | DeliveryEvent::Failed(_)
                | DeliveryEvent::Returned(_)
                | DeliveryEvent::RateLimited(_)
                | DeliveryEvent::AdmissionChecked(_),
                _,
            ) => {}
        }
    }

    /// When [`DeliveryEvent::Tick`] is wanted.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { soft, hard } => soft.into_iter().chain(hard).min(),
            Phase::BackingOff { until } | Phase::AwaitingRedelivery { until } => Some(until),
            _ => None,
        }
    }

    /// Whether it is held for a task that runs or will.
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

    /// Whether its task was given to the pool and has not ended.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether it is held here for a task that has not started.
    pub(crate) fn is_reserved(&self) -> bool {
        let held = matches!(self.phase, Phase::BackingOff { .. }) && self.steps.is_empty();
        held || self.is_pending() && !self.is_running()
    }

    /// Whether the broker was told that it has been dealt with.
    pub(crate) fn is_acknowledged(&self) -> bool {
        let is_early = matches!(&self.work, DeliveryKind::Task(plan) if !plan.acks_late);
        is_early
            && matches!(
                self.phase,
                Phase::StoringStarted | Phase::Running { .. } | Phase::Finishing
            )
    }

    /// Whether it is pending and the broker still counts it as ours.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_pending() && !self.is_acknowledged()
    }

    /// Whether it is in line for a slot.
    pub(crate) fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    /// Whether it goes on without its delivery, and would settle the message
    /// at its end if that came back.
    pub(crate) fn awaits_return(&self) -> bool {
        let is_late = matches!(&self.work, DeliveryKind::Task(plan) if plan.acks_late);
        self.withdrawn && is_late && self.phase != Phase::Over
    }

    /// Whether the failures of what follows its task are stored, too.
    pub(crate) fn stores_failures(&self) -> bool {
        match &self.work {
            DeliveryKind::Task(plan) => plan.stores_result || plan.stores_errors,
            DeliveryKind::Refused { .. } => true,
        }
    }

    /// Why the message was refused.
    pub(crate) fn refusal(&self) -> Option<&Rejection> {
        match &self.work {
            DeliveryKind::Refused { refusal, .. } => Some(refusal),
            DeliveryKind::Task(_) => None,
        }
    }

    fn arrive(&mut self, now: Now, actions: &mut Vec<Action>) {
        match &self.work {
            DeliveryKind::Task(plan) => match plan.eta {
                _ if is_expired(plan, now) => self.expire(actions),
                Some(eta) if eta > now.wall => {
                    actions.extend(plan.tells.then_some(Action::Emit(TaskEvent::Received)));
                    self.finish_with([Effect::Settle(Disposition::Park(eta))], actions);
                }
                _ => {
                    actions.extend(plan.tells.then_some(Action::Emit(TaskEvent::Received)));
                    self.phase = Phase::Waiting;
                    actions.push(Action::Queue);
                }
            },
            DeliveryKind::Refused { refusal, policy } => {
                let mut failure = Vec::new();
                if let Some(task) = refusal.task.as_deref() {
                    failure.push(Effect::Store(StateUpdate::Failure(
                        task.failure_info.clone(),
                    )));
                    if task.is_linked {
                        failure.push(Effect::Continue(Completion::Failed(
                            task.failure_info.clone(),
                        )));
                    }
                }
                match *policy {
                    OnUnknown::Keep => {
                        let keep = [
                            Effect::Send(FollowUp::Dead),
                            Effect::Settle(Disposition::Ack),
                        ];
                        self.finish_with(failure.into_iter().chain(keep), actions);
                    }
                    OnUnknown::Reject => {
                        let reject = [Effect::Settle(Disposition::Reject)];
                        self.finish_with(failure.into_iter().chain(reject), actions);
                    }
                    OnUnknown::Requeue(delay) => {
                        self.steps
                            .push_back(Effect::Settle(Disposition::Requeue(QueueEnd::Tail)));
                        self.phase = Phase::BackingOff {
                            until: now.instant + delay,
                        };
                    }
                }
            }
        }
    }

    fn take_slot(&mut self, now: Now, actions: &mut Vec<Action>) {
        let plan = self.plan();
        if is_expired(plan, now) {
            actions.push(Action::FreeSlot);
            self.expire(actions);
        } else if plan.asks {
            self.phase = Phase::Admitting;
            actions.push(Action::Effect(Effect::CheckAdmission));
        } else {
            self.acknowledge(now, actions);
        }
    }

    fn answered(&mut self, answer: &Admission, now: Now, actions: &mut Vec<Action>) {
        let attempt = std::mem::take(&mut self.attempt);
        match answer {
            Admission::Start if self.stopping.is_some() => {
                actions.push(Action::FreeSlot);
                self.finish_with(
                    [Effect::Settle(Disposition::Requeue(QueueEnd::Head))],
                    actions,
                );
            }
            Admission::Start if self.withdrawn => {
                actions.push(Action::FreeSlot);
                self.over(actions);
            }
            Admission::Start => self.acknowledge(now, actions),
            Admission::Revoked => {
                actions.push(Action::FreeSlot);
                self.revoke_unstarted(actions);
            }
            Admission::Succeeded(value) => {
                actions.push(Action::FreeSlot);
                // Messages are sent before the result is stored, but a chord is
                // told after that: it may not have been.
                let turn = Completion::Succeeded(value.clone());
                let lead = self.plan().links.in_chord.then_some(Effect::Continue(turn));
                let steps = lead.into_iter().chain([Effect::Settle(Disposition::Ack)]);
                self.finish_with(steps, actions);
            }
            Admission::Taken(Conflict::Wait) if self.stopping.is_none() && !self.withdrawn => {
                actions.push(Action::FreeSlot);
                self.attempt = attempt;
                let until = now.instant + self.next_delay();
                self.hold(until, now, actions);
            }
            Admission::Taken(Conflict::Wait) => {
                actions.push(Action::FreeSlot);
                self.finish_with(
                    [Effect::Settle(Disposition::Requeue(QueueEnd::Head))],
                    actions,
                );
            }
            Admission::Taken(Conflict::Drop) => {
                actions.push(Action::FreeSlot);
                let notice = TaskEvent::Revoked {
                    signal: None,
                    terminated: false,
                    expired: false,
                };
                let steps = self.plan().revoke(Conflict::REASON, notice);
                self.finish_with(steps, actions);
            }
            Admission::Taken(Conflict::Fail) => {
                actions.push(Action::FreeSlot);
                let steps = self.plan().refuse(not_unique());
                self.finish_with(steps, actions);
            }
        }
    }

    /// Nobody could say whether it may start, so it must not, yet.
    fn ask_failed(&mut self, error: &EffectError, now: Now, actions: &mut Vec<Action>) {
        if !error.is_transient() {
            return self.answered(&Admission::Start, now, actions);
        }
        actions.push(Action::FreeSlot);
        if self.withdrawn {
            return self.over(actions);
        }
        if self.stopping.is_some() {
            let back = Effect::Settle(Disposition::Requeue(QueueEnd::Head));
            return self.finish_with([back], actions);
        }
        self.phase = Phase::BackingOff {
            until: now.instant + self.next_delay(),
        };
    }

    fn acknowledge(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.plan().acks_late {
            self.announce(now, actions);
        } else {
            self.phase = Phase::Acknowledging;
            actions.push(Action::Effect(Effect::Settle(Disposition::Ack)));
        }
    }

    /// A short wait is spent here, a long one with the broker, so that neither
    /// the window nor the memory of this worker is held.
    fn hold(&mut self, until: Instant, now: Now, actions: &mut Vec<Action>) {
        let wait = until.saturating_duration_since(now.instant);
        if wait > LONGEST_HOLD {
            let until = now.wall + wait.min(LONGEST_PARK);
            return self.finish_with([Effect::Settle(Disposition::Park(until))], actions);
        }
        self.phase = Phase::BackingOff { until };
    }

    fn revoke(&mut self, revocation: Revocation, actions: &mut Vec<Action>) {
        if matches!(self.work, DeliveryKind::Refused { .. }) {
            return;
        }
        match (self.phase, &revocation) {
            // The broker will deliver it again; whoever gets it then decides.
            (_, Revocation::ConnectionLost) if !self.awaits_return() => {}
            (Phase::Running { .. }, Revocation::ConnectionLost) => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let told = self
                    .plan()
                    .tells
                    .then_some(Action::Emit(TaskEvent::Cancelled));
                actions.extend(told);
                self.over(actions);
            }
            (_, Revocation::ConnectionLost) => {}
            (Phase::Arrived | Phase::Waiting, _) => self.revoke_unstarted(actions),
            (Phase::BackingOff { .. }, _) if self.steps.is_empty() => {
                self.revoke_unstarted(actions)
            }
            (Phase::Admitting | Phase::Acknowledging | Phase::StoringStarted, _) => {
                self.revoked = Some(revocation);
            }
            (Phase::Running { .. }, Revocation::Terminate(_)) => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                self.end_revoked(&revocation, actions);
            }
            _ => {}
        }
    }

    fn revoke_unstarted(&mut self, actions: &mut Vec<Action>) {
        let notice = TaskEvent::Revoked {
            signal: None,
            terminated: false,
            expired: false,
        };
        let steps = self.plan().revoke("revoked", notice);
        self.finish_with(steps, actions);
    }

    /// For a task that got its slot: an early one is acknowledged already.
    fn end_revoked(&mut self, revocation: &Revocation, actions: &mut Vec<Action>) {
        let signal = match revocation {
            Revocation::Terminate(signal) => Some(*signal),
            Revocation::Unstarted | Revocation::ConnectionLost => None,
        };
        let notice = TaskEvent::Revoked {
            signal,
            terminated: signal.is_some(),
            expired: false,
        };
        let reason = if signal.is_some() {
            "terminated"
        } else {
            "revoked"
        };
        let plan = self.plan();
        let mut steps = plan.revoke(reason, notice);
        if !plan.acks_late {
            steps.retain(|step| !matches!(step, Effect::Settle(_)));
        }
        self.finish_with(steps, actions);
    }

    /// The acknowledgement before the start did not go out, so the task must
    /// not start: the broker may hand the message to somebody else.
    fn ack_failed(&mut self, error: &EffectError, now: Now, actions: &mut Vec<Action>) {
        if self.plan().acks_late {
            return self.announce(now, actions);
        }
        actions.push(Action::FreeSlot);
        if !error.is_transient() {
            return self.over(actions);
        }
        // Where the acknowledgement went out after all, giving back does nothing.
        if self.stopping.is_some() {
            let back = Effect::Settle(Disposition::Requeue(QueueEnd::Head));
            return self.finish_with([back], actions);
        }
        self.phase = Phase::BackingOff {
            until: now.instant + self.next_delay(),
        };
    }

    /// Stores STARTED first where it is wanted, and waits for it, since it
    /// must not overwrite the result.
    fn announce(&mut self, now: Now, actions: &mut Vec<Action>) {
        let plan = self.plan();
        if plan.track_started && plan.stores_result {
            self.phase = Phase::StoringStarted;
            actions.push(Action::Effect(Effect::Store(StateUpdate::Started)));
        } else {
            self.start(now, actions);
        }
    }

    fn start(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.attempt = 0;
        if self.stopping == Some(Stop::Cold) {
            actions.push(Action::FreeSlot);
            let steps = self.plan().cancel();
            return self.finish_with(steps, actions);
        }
        if let Some(revocation) = self.revoked.take() {
            actions.push(Action::FreeSlot);
            return self.end_revoked(&revocation, actions);
        }
        let plan = self.plan();
        self.phase = Phase::Running {
            soft: plan.soft_limit.map(|limit| now.instant + limit),
            hard: plan.hard_limit.map(|limit| now.instant + limit),
        };
        actions.extend(
            self.plan()
                .tells
                .then_some(Action::Emit(TaskEvent::Started)),
        );
        actions.push(Action::Start);
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running {
                hard: Some(hard), ..
            } if hard <= now.instant => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let plan = self.plan();
                let failure_info = time_limit_exceeded(plan.hard_limit.unwrap_or_default());
                let steps = plan.time_out(failure_info);
                self.finish_with(steps, actions);
            }
            Phase::Running {
                soft: Some(soft),
                hard,
            } if soft <= now.instant => {
                self.phase = Phase::Running { soft: None, hard };
                actions.push(Action::Warn);
            }
            Phase::BackingOff { until } if until <= now.instant => self.resume(actions),
            Phase::AwaitingRedelivery { until } if until <= now.instant => self.over(actions),
            _ => {}
        }
    }

    /// After a pause: the step that failed again, or the line for a slot
    /// where it was the early acknowledgement.
    fn resume(&mut self, actions: &mut Vec<Action>) {
        if self.steps.is_empty() {
            self.phase = Phase::Waiting;
            actions.push(Action::Queue);
        } else {
            self.phase = Phase::Finishing;
            self.next_step(actions);
        }
    }

    fn stop(&mut self, stop: Stop, actions: &mut Vec<Action>) {
        self.stopping = Some(stop);
        match (self.phase, stop) {
            // A prefetched message goes back to where it was taken from.
            (Phase::Waiting, _) => {
                self.finish_with(
                    [Effect::Settle(Disposition::Requeue(QueueEnd::Head))],
                    actions,
                );
            }
            (Phase::BackingOff { .. }, _) if self.steps.is_empty() => {
                self.finish_with(
                    [Effect::Settle(Disposition::Requeue(QueueEnd::Head))],
                    actions,
                );
            }
            (Phase::BackingOff { .. } | Phase::AwaitingRedelivery { .. }, _) => {
                self.phase = Phase::Finishing;
                self.next_step(actions);
            }
            (Phase::Running { .. }, Stop::Cold) => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let steps = self.plan().cancel();
                self.finish_with(steps, actions);
            }
            _ => {}
        }
    }

    /// The connection that delivered it is gone and with it the right to
    /// settle: somebody else gets the message, or we do, once more.
    fn withdraw(&mut self, actions: &mut Vec<Action>) {
        self.withdrawn = true;
        match self.phase {
            Phase::Waiting => self.over(actions),
            Phase::BackingOff { .. } if self.steps.is_empty() => self.over(actions),
            // Nobody knows whether the broker has the acknowledgement. If it has,
            // nobody else gets the task: it starts when the report is there, and
            // is acknowledged once more at its end, should it come back.
            Phase::Acknowledging => {
                if let DeliveryKind::Task(plan) = &mut self.work {
                    plan.acks_late = true;
                }
            }
            // What comes of a settlement that was sent before says nothing about
            // a delivery that may follow.
            Phase::Finishing if matches!(self.steps.front(), Some(Effect::Settle(_))) => {
                self.stale = true;
            }
            // Running ones finish: their results count, their acknowledgement
            // is left out, unless the message is regained by then.
            _ => {}
        }
    }

    fn expire(&mut self, actions: &mut Vec<Action>) {
        let notice = TaskEvent::Revoked {
            signal: None,
            terminated: false,
            expired: true,
        };
        let steps = self.plan().revoke("expired", notice);
        actions.push(Action::Expired);
        self.finish_with(steps, actions);
    }

    fn finish_with(&mut self, steps: impl IntoIterator<Item = Effect>, actions: &mut Vec<Action>) {
        self.steps.extend(steps);
        self.next_step(actions);
    }

    /// Asks for the first step that is left. It stays in the list until it is
    /// done, so that nothing is forgotten when it fails.
    fn next_step(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Finishing;
        while let Some(step) = self.steps.front() {
            if let Effect::Emit(notice) = step {
                actions.push(Action::Emit(notice.clone()));
                self.steps.pop_front();
                continue;
            }
            if self.withdrawn && matches!(step, Effect::Settle(_)) {
                if let Some(until) = self.return_limit.filter(|_| self.may_return()) {
                    self.phase = Phase::AwaitingRedelivery { until };
                    return;
                }
                self.steps.pop_front();
                continue;
            }
            return actions.push(Action::Effect(step.clone()));
        }
        self.over(actions);
    }

    /// Whether it is worth waiting for the delivery to come back: what is over
    /// but for its late acknowledgement would run again.
    fn may_return(&self) -> bool {
        self.stopping.is_none() && matches!(&self.work, DeliveryKind::Task(plan) if plan.acks_late)
    }

    /// What a step has led to goes before the other ones.
    fn step_done(&mut self, deeds: Vec<WorkflowEffect>, actions: &mut Vec<Action>) {
        self.attempt = 0;
        self.steps.pop_front();
        for deed in deeds.into_iter().rev() {
            self.steps.push_front(Effect::Workflow(deed));
        }
        self.next_step(actions);
    }

    fn step_failed(&mut self, error: EffectError, now: Now, actions: &mut Vec<Action>) {
        match error {
            EffectError::NotSent | EffectError::Unknown => {
                self.phase = Phase::BackingOff {
                    until: now.instant + self.next_delay(),
                };
            }
            EffectError::Refused(cause) => {
                let step = self.steps.pop_front();
                self.give_up(step.as_ref(), &cause);
                self.next_step(actions);
            }
        }
    }

    /// A step that can never succeed must not be passed over as if it had.
    fn give_up(&mut self, step: Option<&Effect>, cause: &str) {
        match step {
            // What was to follow cannot be sent: the task has failed, whatever
            // it returned.
            Some(Effect::Send(
                FollowUp::Success(_) | FollowUp::Retry { .. } | FollowUp::Replacement(_),
            )) => {
                let failure_info = celery_exception("OperationalError", cause);
                self.steps = self.plan().fail(failure_info).into();
            }
            // Never acknowledge a message that could not be kept.
            Some(Effect::Send(FollowUp::Dead)) => {
                self.steps = [Effect::Settle(Disposition::Requeue(QueueEnd::Tail))].into();
            }
            Some(Effect::Store(StateUpdate::Success(_))) => {
                let failure_info = celery_exception("BackendStoreError", cause);
                self.steps = self.plan().fail(failure_info).into();
            }
            _ => {}
        }
    }

    fn over(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Over;
        actions.push(Action::Over);
    }

    /// Only tasks get slots, run and end.
    fn plan(&self) -> &ExecutionPolicy {
        match &self.work {
            DeliveryKind::Task(plan) => plan,
            DeliveryKind::Refused { .. } => unreachable!("a refused message was treated as a task"),
        }
    }

    fn next_delay(&mut self) -> Duration {
        let delay = Backoff::CONNECTION.delay(self.attempt, 0.0);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }
}

/// How long a delivery that was withdrawn may take to come back, when nothing
/// is left to be done but to settle it.
const RETURN_LIMIT: Duration = Duration::from_secs(30);

/// Celery's rule: strictly later than the time of expiry.
fn is_expired(plan: &ExecutionPolicy, now: Now) -> bool {
    plan.expires.is_some_and(|expires| now.wall > expires)
}

#[cfg(test)]
mod tests;
