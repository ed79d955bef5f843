//! The life of one delivery, as a pure state machine.
//!
//! Events and the time come in through [`Life::handle`], actions go out. The
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
use crate::worker::core::rate_limits::{LONGEST_HOLD, LONGEST_PARK};
use crate::worker::delivery::event::{
    Action, Answer, Event, Letter, Notice, Obstacle, Plan, Refusal, Report, Revocation, Step, Stop,
    Verdict, celery_exception, not_unique, time_limit_exceeded,
};
use crate::worker::workflow::effect::{Deed, Turn};

/// One delivery from its arrival until the broker has forgotten it.
#[derive(Debug)]
pub(crate) struct Life {
    work: Work,
    phase: Phase,
    steps: VecDeque<Step>,
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
enum Work {
    Task(Plan),
    Refused { refusal: Refusal, policy: OnUnknown },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Arrived,
    Waiting,
    Asking,
    Acknowledging,
    Announcing,
    Running {
        soft: Option<Instant>,
        hard: Option<Instant>,
    },
    Finishing,
    Pausing {
        until: Instant,
    },
    /// All is done but the settlement, of a delivery that was withdrawn and may
    /// come back.
    Awaiting {
        until: Instant,
    },
    Over,
}

impl Life {
    /// A task that this worker knows.
    pub(crate) fn of_task(plan: Plan) -> Self {
        Self::new(Work::Task(plan))
    }

    /// A message that cannot be run, and what to do with such.
    pub(crate) fn refused(refusal: Refusal, policy: OnUnknown) -> Self {
        Self::new(Work::Refused { refusal, policy })
    }

    fn new(work: Work) -> Self {
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
    pub(crate) fn handle(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        self.return_limit = Some(now.instant + RETURN_LIMIT);
        match (event, self.phase) {
            (_, Phase::Over) => {}
            (Event::Arrived, _) => self.arrive(now, actions),
            (Event::Slot, Phase::Waiting) => self.take_slot(now, actions),
            (Event::Hold(until), Phase::Waiting) => self.hold(until, now, actions),
            (Event::Revoked(revocation), _) => self.revoke(revocation, actions),
            (Event::Answered(answer), Phase::Asking) => self.answered(&answer, now, actions),
            (Event::Failed(obstacle), Phase::Asking) => {
                self.ask_failed(&obstacle, now, actions);
            }
            (Event::Done, Phase::Acknowledging) => self.announce(now, actions),
            // The state STARTED is a courtesy: the task runs without it, too.
            (Event::Done | Event::Failed(_), Phase::Announcing) => self.start(now, actions),
            (Event::Done | Event::Led(_) | Event::Failed(_), Phase::Finishing) if self.stale => {
                self.stale = false;
                self.next_step(actions);
            }
            (Event::Done, Phase::Finishing) => self.step_done(Vec::new(), actions),
            (Event::Led(deeds), Phase::Finishing) => self.step_done(deeds, actions),
            (Event::Failed(obstacle), Phase::Acknowledging) => {
                self.ack_failed(&obstacle, now, actions);
            }
            (Event::Failed(obstacle), Phase::Finishing) => self.step_failed(obstacle, now, actions),
            (Event::Returned(outcome), Phase::Running { .. }) => {
                actions.push(Action::FreeSlot);
                let steps = self.plan().conclude(outcome, now);
                self.finish_with(steps, actions);
            }
            (Event::Tick, _) => self.tick(now, actions),
            (Event::Stop(stop), _) => self.stop(stop, actions),
            (Event::Withdrawn, _) => self.withdraw(actions),
            (Event::Regained, phase) => {
                self.withdrawn = false;
                if matches!(phase, Phase::Awaiting { .. }) {
                    self.next_step(actions);
                }
            }
            // A slot for what left the line, a report about what was given up.
            (Event::Slot, _) => actions.push(Action::FreeSlot),
            (
                Event::Done
                | Event::Led(_)
                | Event::Failed(_)
                | Event::Returned(_)
                | Event::Hold(_)
                | Event::Answered(_),
                _,
            ) => {}
        }
    }

    /// When [`Event::Tick`] is wanted.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { soft, hard } => soft.into_iter().chain(hard).min(),
            Phase::Pausing { until } | Phase::Awaiting { until } => Some(until),
            _ => None,
        }
    }

    /// Whether it is held for a task that runs or will.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(
            self.phase,
            Phase::Waiting
                | Phase::Asking
                | Phase::Acknowledging
                | Phase::Announcing
                | Phase::Running { .. }
        )
    }

    /// Whether its task was given to the pool and has not ended.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether it is held here for a task that has not started.
    pub(crate) fn is_reserved(&self) -> bool {
        let held = matches!(self.phase, Phase::Pausing { .. }) && self.steps.is_empty();
        held || self.is_pending() && !self.is_running()
    }

    /// Whether the broker was told that it has been dealt with.
    pub(crate) fn is_acknowledged(&self) -> bool {
        let is_early = matches!(&self.work, Work::Task(plan) if !plan.acks_late);
        is_early
            && matches!(
                self.phase,
                Phase::Announcing | Phase::Running { .. } | Phase::Finishing
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
        let is_late = matches!(&self.work, Work::Task(plan) if plan.acks_late);
        self.withdrawn && is_late && self.phase != Phase::Over
    }

    /// Whether the failures of what follows its task are stored, too.
    pub(crate) fn stores_failures(&self) -> bool {
        match &self.work {
            Work::Task(plan) => plan.stores_result || plan.stores_errors,
            Work::Refused { .. } => true,
        }
    }

    /// Why the message was refused.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        match &self.work {
            Work::Refused { refusal, .. } => Some(refusal),
            Work::Task(_) => None,
        }
    }

    fn arrive(&mut self, now: Now, actions: &mut Vec<Action>) {
        match &self.work {
            Work::Task(plan) => match plan.eta {
                _ if is_expired(plan, now) => self.expire(actions),
                Some(eta) if eta > now.wall => {
                    actions.extend(plan.tells.then_some(Action::Tell(Notice::Received)));
                    self.finish_with([Step::Settle(Verdict::Park(eta))], actions);
                }
                _ => {
                    actions.extend(plan.tells.then_some(Action::Tell(Notice::Received)));
                    self.phase = Phase::Waiting;
                    actions.push(Action::Queue);
                }
            },
            Work::Refused { refusal, policy } => {
                let mut failure = Vec::new();
                if let Some(task) = refusal.task.as_deref() {
                    failure.push(Step::Store(Report::Failure(task.mishap.clone())));
                    if task.is_linked {
                        failure.push(Step::Lead(Turn::Failed(task.mishap.clone())));
                    }
                }
                match *policy {
                    OnUnknown::Keep => {
                        let keep = [Step::Send(Letter::Dead), Step::Settle(Verdict::Ack)];
                        self.finish_with(failure.into_iter().chain(keep), actions);
                    }
                    OnUnknown::Reject => {
                        let reject = [Step::Settle(Verdict::Reject)];
                        self.finish_with(failure.into_iter().chain(reject), actions);
                    }
                    OnUnknown::Requeue(delay) => {
                        self.steps
                            .push_back(Step::Settle(Verdict::Requeue(QueueEnd::Tail)));
                        self.phase = Phase::Pausing {
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
            self.phase = Phase::Asking;
            actions.push(Action::Step(Step::Ask));
        } else {
            self.acknowledge(now, actions);
        }
    }

    fn answered(&mut self, answer: &Answer, now: Now, actions: &mut Vec<Action>) {
        let attempt = std::mem::take(&mut self.attempt);
        match answer {
            Answer::Start if self.stopping.is_some() => {
                actions.push(Action::FreeSlot);
                self.finish_with([Step::Settle(Verdict::Requeue(QueueEnd::Head))], actions);
            }
            Answer::Start if self.withdrawn => {
                actions.push(Action::FreeSlot);
                self.over(actions);
            }
            Answer::Start => self.acknowledge(now, actions),
            Answer::Revoked => {
                actions.push(Action::FreeSlot);
                self.revoke_unstarted(actions);
            }
            Answer::Succeeded(value) => {
                actions.push(Action::FreeSlot);
                // Messages are sent before the result is stored, but a chord is
                // told after that: it may not have been.
                let turn = Turn::Succeeded(value.clone());
                let lead = self.plan().links.in_chord.then_some(Step::Lead(turn));
                let steps = lead.into_iter().chain([Step::Settle(Verdict::Ack)]);
                self.finish_with(steps, actions);
            }
            Answer::Taken(Conflict::Wait) if self.stopping.is_none() && !self.withdrawn => {
                actions.push(Action::FreeSlot);
                self.attempt = attempt;
                let until = now.instant + self.next_delay();
                self.hold(until, now, actions);
            }
            Answer::Taken(Conflict::Wait) => {
                actions.push(Action::FreeSlot);
                self.finish_with([Step::Settle(Verdict::Requeue(QueueEnd::Head))], actions);
            }
            Answer::Taken(Conflict::Drop) => {
                actions.push(Action::FreeSlot);
                let notice = Notice::Revoked {
                    signal: None,
                    terminated: false,
                    expired: false,
                };
                let steps = self.plan().revoke(Conflict::REASON, notice);
                self.finish_with(steps, actions);
            }
            Answer::Taken(Conflict::Fail) => {
                actions.push(Action::FreeSlot);
                let steps = self.plan().refuse(not_unique());
                self.finish_with(steps, actions);
            }
        }
    }

    /// Nobody could say whether it may start, so it must not, yet.
    fn ask_failed(&mut self, obstacle: &Obstacle, now: Now, actions: &mut Vec<Action>) {
        if *obstacle != Obstacle::Passing {
            return self.answered(&Answer::Start, now, actions);
        }
        actions.push(Action::FreeSlot);
        if self.withdrawn {
            return self.over(actions);
        }
        if self.stopping.is_some() {
            let back = Step::Settle(Verdict::Requeue(QueueEnd::Head));
            return self.finish_with([back], actions);
        }
        self.phase = Phase::Pausing {
            until: now.instant + self.next_delay(),
        };
    }

    fn acknowledge(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.plan().acks_late {
            self.announce(now, actions);
        } else {
            self.phase = Phase::Acknowledging;
            actions.push(Action::Step(Step::Settle(Verdict::Ack)));
        }
    }

    /// A short wait is spent here, a long one with the broker, so that neither
    /// the window nor the memory of this worker is held.
    fn hold(&mut self, until: Instant, now: Now, actions: &mut Vec<Action>) {
        let wait = until.saturating_duration_since(now.instant);
        if wait > LONGEST_HOLD {
            let until = now.wall + wait.min(LONGEST_PARK);
            return self.finish_with([Step::Settle(Verdict::Park(until))], actions);
        }
        self.phase = Phase::Pausing { until };
    }

    fn revoke(&mut self, revocation: Revocation, actions: &mut Vec<Action>) {
        if matches!(self.work, Work::Refused { .. }) {
            return;
        }
        match (self.phase, &revocation) {
            // The broker will deliver it again; whoever gets it then decides.
            (_, Revocation::ConnectionLost) if !self.awaits_return() => {}
            (Phase::Running { .. }, Revocation::ConnectionLost) => {
                actions.push(Action::Abort);
                actions.push(Action::FreeSlot);
                let told = self.plan().tells.then_some(Action::Tell(Notice::Cancelled));
                actions.extend(told);
                self.over(actions);
            }
            (_, Revocation::ConnectionLost) => {}
            (Phase::Arrived | Phase::Waiting, _) => self.revoke_unstarted(actions),
            (Phase::Pausing { .. }, _) if self.steps.is_empty() => self.revoke_unstarted(actions),
            (Phase::Asking | Phase::Acknowledging | Phase::Announcing, _) => {
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
        let notice = Notice::Revoked {
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
        let notice = Notice::Revoked {
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
            steps.retain(|step| !matches!(step, Step::Settle(_)));
        }
        self.finish_with(steps, actions);
    }

    /// The acknowledgement before the start did not go out, so the task must
    /// not start: the broker may hand the message to somebody else.
    fn ack_failed(&mut self, obstacle: &Obstacle, now: Now, actions: &mut Vec<Action>) {
        if self.plan().acks_late {
            return self.announce(now, actions);
        }
        actions.push(Action::FreeSlot);
        if *obstacle != Obstacle::Passing {
            return self.over(actions);
        }
        // Where the acknowledgement went out after all, giving back does nothing.
        if self.stopping.is_some() {
            let back = Step::Settle(Verdict::Requeue(QueueEnd::Head));
            return self.finish_with([back], actions);
        }
        self.phase = Phase::Pausing {
            until: now.instant + self.next_delay(),
        };
    }

    /// Stores STARTED first where it is wanted, and waits for it, since it
    /// must not overwrite the result.
    fn announce(&mut self, now: Now, actions: &mut Vec<Action>) {
        let plan = self.plan();
        if plan.track_started && plan.stores_result {
            self.phase = Phase::Announcing;
            actions.push(Action::Step(Step::Store(Report::Started)));
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
        actions.extend(self.plan().tells.then_some(Action::Tell(Notice::Started)));
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
                let mishap = time_limit_exceeded(plan.hard_limit.unwrap_or_default());
                let steps = plan.time_out(mishap);
                self.finish_with(steps, actions);
            }
            Phase::Running {
                soft: Some(soft),
                hard,
            } if soft <= now.instant => {
                self.phase = Phase::Running { soft: None, hard };
                actions.push(Action::Warn);
            }
            Phase::Pausing { until } if until <= now.instant => self.resume(actions),
            Phase::Awaiting { until } if until <= now.instant => self.over(actions),
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
                self.finish_with([Step::Settle(Verdict::Requeue(QueueEnd::Head))], actions);
            }
            (Phase::Pausing { .. }, _) if self.steps.is_empty() => {
                self.finish_with([Step::Settle(Verdict::Requeue(QueueEnd::Head))], actions);
            }
            (Phase::Pausing { .. } | Phase::Awaiting { .. }, _) => {
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
            Phase::Pausing { .. } if self.steps.is_empty() => self.over(actions),
            // Nobody knows whether the broker has the acknowledgement. If it has,
            // nobody else gets the task: it starts when the report is there, and
            // is acknowledged once more at its end, should it come back.
            Phase::Acknowledging => {
                if let Work::Task(plan) = &mut self.work {
                    plan.acks_late = true;
                }
            }
            // What comes of a settlement that was sent before says nothing about
            // a delivery that may follow.
            Phase::Finishing if matches!(self.steps.front(), Some(Step::Settle(_))) => {
                self.stale = true;
            }
            // Running ones finish: their results count, their acknowledgement
            // is left out, unless the message is regained by then.
            _ => {}
        }
    }

    fn expire(&mut self, actions: &mut Vec<Action>) {
        let notice = Notice::Revoked {
            signal: None,
            terminated: false,
            expired: true,
        };
        let steps = self.plan().revoke("expired", notice);
        actions.push(Action::Expired);
        self.finish_with(steps, actions);
    }

    fn finish_with(&mut self, steps: impl IntoIterator<Item = Step>, actions: &mut Vec<Action>) {
        self.steps.extend(steps);
        self.next_step(actions);
    }

    /// Asks for the first step that is left. It stays in the list until it is
    /// done, so that nothing is forgotten when it fails.
    fn next_step(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Finishing;
        while let Some(step) = self.steps.front() {
            if let Step::Tell(notice) = step {
                actions.push(Action::Tell(notice.clone()));
                self.steps.pop_front();
                continue;
            }
            if self.withdrawn && matches!(step, Step::Settle(_)) {
                if let Some(until) = self.return_limit.filter(|_| self.may_return()) {
                    self.phase = Phase::Awaiting { until };
                    return;
                }
                self.steps.pop_front();
                continue;
            }
            return actions.push(Action::Step(step.clone()));
        }
        self.over(actions);
    }

    /// Whether it is worth waiting for the delivery to come back: what is over
    /// but for its late acknowledgement would run again.
    fn may_return(&self) -> bool {
        self.stopping.is_none() && matches!(&self.work, Work::Task(plan) if plan.acks_late)
    }

    /// What a step has led to goes before the other ones.
    fn step_done(&mut self, deeds: Vec<Deed>, actions: &mut Vec<Action>) {
        self.attempt = 0;
        self.steps.pop_front();
        for deed in deeds.into_iter().rev() {
            self.steps.push_front(Step::Deed(deed));
        }
        self.next_step(actions);
    }

    fn step_failed(&mut self, obstacle: Obstacle, now: Now, actions: &mut Vec<Action>) {
        match obstacle {
            Obstacle::Passing => {
                self.phase = Phase::Pausing {
                    until: now.instant + self.next_delay(),
                };
            }
            Obstacle::Lasting(cause) => {
                let step = self.steps.pop_front();
                self.give_up(step.as_ref(), &cause);
                self.next_step(actions);
            }
        }
    }

    /// A step that can never succeed must not be passed over as if it had.
    fn give_up(&mut self, step: Option<&Step>, cause: &str) {
        match step {
            // What was to follow cannot be sent: the task has failed, whatever
            // it returned.
            Some(Step::Send(
                Letter::Success(_) | Letter::Retry { .. } | Letter::Replacement(_),
            )) => {
                let mishap = celery_exception("OperationalError", cause);
                self.steps = self.plan().fail(mishap).into();
            }
            // Never acknowledge a message that could not be kept.
            Some(Step::Send(Letter::Dead)) => {
                self.steps = [Step::Settle(Verdict::Requeue(QueueEnd::Tail))].into();
            }
            Some(Step::Store(Report::Success(_))) => {
                let mishap = celery_exception("BackendStoreError", cause);
                self.steps = self.plan().fail(mishap).into();
            }
            _ => {}
        }
    }

    fn over(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Over;
        actions.push(Action::Over);
    }

    /// Only tasks get slots, run and end.
    fn plan(&self) -> &Plan {
        match &self.work {
            Work::Task(plan) => plan,
            Work::Refused { .. } => unreachable!("a refused message was treated as a task"),
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
fn is_expired(plan: &Plan, now: Now) -> bool {
    plan.expires.is_some_and(|expires| now.wall > expires)
}

#[cfg(test)]
mod tests;
