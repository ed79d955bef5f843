//! The worker of a story: the state machines of its deliveries, and a driver that
//! checks every action.

use std::collections::BTreeSet;
use std::time::Duration;

use super::policy::Kind;
use super::server::{Copy, Place, Request, Server, Tag};
use crate::config::OnUnknown;
use crate::worker::delivery::event::{
    Action, Admission, DeliveryEvent, Disposition, Effect, EffectError, Outcome, Revocation, Stop,
};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::delivery::state::tests::{Time, name};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// It is carried out and not answered.
    AnswerLost,
    /// It is carried out after the next step and not answered.
    Late,
    /// It is never carried out and not answered.
    Never,
    NotSent,
    Refused,
}

/// The effect that a delivery has requested.
#[derive(Clone, Debug)]
enum Requested {
    Admission,
    Change(Request),
}

/// One delivery in flight.
struct InHand {
    state: DeliveryState,
    tag: Tag,
    /// The copies of the message that this delivery stands for.
    copies: BTreeSet<Copy>,
    acks_early: bool,
    is_queued: bool,
    has_slot: bool,
    is_running: bool,
    has_started: bool,
    /// Whether the broker has taken the message back.
    is_lost: bool,
    /// Whether the worker does not know that.
    is_loss_unnoticed: bool,
    /// Whether an acknowledgement of the current tag was sent and not answered.
    is_ack_unanswered: bool,
    /// Whether the task ends by a decision instead of running.
    is_decided: bool,
    requested: Option<Requested>,
    is_removed: bool,
}

pub(super) struct StoryWorker {
    kind: Kind,
    /// Whether deliveries outlive a connection and are held by leases, as on Redis.
    leased: bool,
    time: Time,
    deliveries: Vec<InHand>,
    late: Vec<(u8, Request)>,
    /// Tags that no delivery stands for any more; their leases expire.
    abandoned: Vec<Tag>,
    started: BTreeSet<Copy>,
    decided: BTreeSet<Copy>,
    stopping: bool,
    in_doubt: bool,
    turn: usize,
}

type Checked = Result<(), String>;

impl StoryWorker {
    pub(super) fn new(kind: Kind, leased: bool) -> Self {
        Self {
            kind,
            leased,
            time: Time::new(),
            deliveries: Vec::new(),
            late: Vec::new(),
            abandoned: Vec::new(),
            started: BTreeSet::new(),
            decided: BTreeSet::new(),
            stopping: false,
            in_doubt: false,
            turn: 0,
        }
    }

    pub(super) fn is_leased(&self) -> bool {
        self.leased
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    pub(super) fn has_reported_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Returns whether the task of a copy has started or is ended by a decision, or the
    /// message is in the dead-letter queue.
    pub(super) fn accounts_for(&self, server: &Server, copy: Copy) -> bool {
        let is_decided = match self.kind {
            Kind::Rejected(OnUnknown::Keep) => server.has_written("send dead"),
            Kind::Rejected(_) | Kind::Task(_) => self.decided.contains(&copy),
        };
        is_decided || self.started.contains(&copy)
    }

    pub(super) fn check_settled(&self) -> Checked {
        let left = self.deliveries.iter().find(|one| !one.is_removed);
        left.map_or(Ok(()), |left| {
            Err(format!("it is never removed: {:?}", left.state))
        })
    }

    /// Receives a delivery: a new one, or a redelivery of one in hand.
    pub(super) fn receive(&mut self, server: &Server, tag: Tag, redelivered: bool) -> Checked {
        let leased = self.leased;
        let adopts = |one: &InHand| {
            let may = one.state.awaits_redelivery() || leased && one.state.is_settled_later();
            redelivered && may && !one.is_removed
        };
        if let Some(index) = self.deliveries.iter().position(adopts) {
            let one = &mut self.deliveries[index];
            let old = std::mem::replace(&mut one.tag, tag);
            one.copies.insert(server.copy_of(tag));
            one.is_lost = false;
            one.is_loss_unnoticed = false;
            one.is_ack_unanswered = false;
            if leased {
                self.abandoned.push(old);
            }
            if one.has_started {
                self.started.insert(server.copy_of(tag));
            }
            if one.is_decided {
                self.decided.insert(server.copy_of(tag));
            }
            return self.handle(server, index, DeliveryEvent::Redelivered);
        }
        self.deliveries.push(InHand {
            state: self.kind.state(),
            tag,
            copies: BTreeSet::from([server.copy_of(tag)]),
            acks_early: self.kind.acks_early(),
            is_queued: false,
            has_slot: false,
            is_running: false,
            has_started: false,
            is_lost: false,
            is_loss_unnoticed: false,
            is_ack_unanswered: false,
            is_decided: false,
            requested: None,
            is_removed: false,
        });
        let index = self.deliveries.len() - 1;
        if matches!(self.kind, Kind::Rejected(_)) {
            self.decide(index);
        }
        self.handle(server, index, DeliveryEvent::Arrived)
    }

    pub(super) fn grant(&mut self, server: &Server) -> Result<Option<String>, String> {
        let Some(index) = self.find(|one| one.is_queued) else {
            return Ok(None);
        };
        let one = &mut self.deliveries[index];
        one.is_queued = false;
        // Like the driver: a delivery that left the queue gets no slot.
        if !one.state.is_waiting() {
            return Ok(None);
        }
        one.has_slot = true;
        self.handle(server, index, DeliveryEvent::SlotGranted)?;
        Ok(Some(format!("delivery {index} gets a slot")))
    }

    pub(super) fn limit_rate(&mut self, server: &Server, wait: u64) -> Result<bool, String> {
        let Some(index) = self.find(|one| one.is_queued) else {
            return Ok(false);
        };
        self.deliveries[index].is_queued = false;
        let until = self.time.0.instant + Duration::from_millis(wait);
        self.handle(server, index, DeliveryEvent::RateLimited(until))?;
        Ok(true)
    }

    /// Carries out a requested effect in the way of `fate`, and reports it.
    pub(super) fn report(
        &mut self,
        server: &mut Server,
        fate: Fate,
        admission: Admission,
    ) -> Result<Option<String>, String> {
        let Some(index) = self.find(|one| one.requested.is_some()) else {
            return Ok(None);
        };
        let Some(requested) = self.deliveries[index].requested.take() else {
            return Ok(None);
        };
        // A settlement that is written to a connection has no answer to lose.
        let is_written = !self.leased
            && matches!(&requested, Requested::Change(request) if is_settlement(request));
        let fate = if is_written { Fate::Answered } else { fate };
        let event = format!("{requested:?} of delivery {index}: {fate:?}");
        let error = match fate {
            Fate::Answered => None,
            Fate::AnswerLost | Fate::Late | Fate::Never => Some(EffectError::Unknown),
            Fate::NotSent => Some(EffectError::NotSent),
            Fate::Refused => Some(EffectError::Refused("no".to_owned())),
        };
        let report = match requested {
            Requested::Admission => {
                if error.is_none() && admission != Admission::Start {
                    self.decide(index);
                }
                error.map_or(
                    DeliveryEvent::AdmissionChecked(admission),
                    DeliveryEvent::Failed,
                )
            }
            Requested::Change(request) => {
                if matches!(request, Request::Ack(_)) && error == Some(EffectError::Unknown) {
                    self.deliveries[index].is_ack_unanswered = true;
                }
                let changed = match fate {
                    Fate::Answered | Fate::AnswerLost => server.apply(&request),
                    Fate::Late => {
                        self.late.push((2, request.clone()));
                        false
                    }
                    Fate::Never | Fate::NotSent | Fate::Refused => false,
                };
                match (&request, error) {
                    (Request::Restore(_), error) => {
                        DeliveryEvent::Restored(error.map_or(Ok(()), Err))
                    }
                    (_, Some(error)) => DeliveryEvent::Failed(error),
                    (_, None) if changed || is_written => DeliveryEvent::Done,
                    (_, None) => DeliveryEvent::Gone,
                }
            }
        };
        self.handle(server, index, report)?;
        Ok(Some(event))
    }

    pub(super) fn return_task(
        &mut self,
        server: &Server,
        outcome: impl Fn() -> Outcome,
    ) -> Result<Option<String>, String> {
        let Some(index) = self.find(|one| one.is_running) else {
            return Ok(None);
        };
        let event = format!("the task of delivery {index} ends: {:?}", outcome());
        self.handle(server, index, DeliveryEvent::Returned(outcome()))?;
        Ok(Some(event))
    }

    pub(super) fn pass(&mut self, server: &Server, milliseconds: u64) -> Checked {
        self.time.pass(Duration::from_millis(milliseconds));
        self.each(server, || DeliveryEvent::Tick)
    }

    /// The broker requeues a message because its lease has expired.
    pub(super) fn lose_lease(
        &mut self,
        server: &mut Server,
        notices: bool,
    ) -> Result<Option<String>, String> {
        let Some(index) = self.find(|_| true) else {
            return Ok(None);
        };
        let tag = self.deliveries[index].tag;
        if !server.requeue(tag) {
            return Ok(None);
        }
        self.deliveries[index].is_lost = true;
        self.deliveries[index].is_loss_unnoticed = !notices;
        if notices {
            self.handle(server, index, DeliveryEvent::LeaseLost)?;
        }
        Ok(Some(format!(
            "the lease of tag {tag} is lost, noticed: {notices}"
        )))
    }

    pub(super) fn lose_connection(&mut self, server: &mut Server) -> Checked {
        for index in 0..self.deliveries.len() {
            server.requeue(self.deliveries[index].tag);
            self.deliveries[index].is_lost = true;
            if !self.deliveries[index].is_removed {
                self.handle(server, index, DeliveryEvent::ConnectionLost)?;
            }
        }
        Ok(())
    }

    pub(super) fn revoke(&mut self, server: &Server, revocation: &Revocation) -> Checked {
        for index in 0..self.deliveries.len() {
            if !self.deliveries[index].is_removed {
                self.decide(index);
            }
        }
        self.each(server, || DeliveryEvent::Revoked(revocation.clone()))
    }

    pub(super) fn stop(&mut self, server: &Server, stop: Stop) -> Checked {
        self.stopping = true;
        self.each(server, || DeliveryEvent::Stop(stop))
    }

    pub(super) fn give_up(&mut self, server: &Server) -> Checked {
        for index in 0..self.deliveries.len() {
            if self.deliveries[index].is_removed {
                continue;
            }
            let under_way = self.deliveries[index].requested.take();
            self.handle(server, index, DeliveryEvent::GiveUp)?;
            let one = &mut self.deliveries[index];
            if one.requested.is_none() {
                one.requested = under_way;
            } else if let Some(Requested::Change(request)) = under_way {
                // It may be carried out all the same.
                self.late.push((1, request));
            }
        }
        Ok(())
    }

    pub(super) fn started_elsewhere(&mut self, server: &Server, tag: Tag) {
        self.started.insert(server.copy_of(tag));
    }

    /// Carries out late requests whose time has come, and expires leases.
    pub(super) fn advance_late_requests(&mut self, server: &mut Server) {
        for (steps, request) in std::mem::take(&mut self.late) {
            if steps == 0 {
                server.apply(&request);
            } else {
                self.late.push((steps - 1, request));
            }
        }
        for tag in std::mem::take(&mut self.abandoned) {
            server.requeue(tag);
        }
    }

    pub(super) fn finish_late_requests(&mut self, server: &mut Server) {
        for _ in 0..4 {
            self.advance_late_requests(server);
        }
    }

    /// Finds a delivery in hand, another one in each turn.
    fn find(&mut self, matches: impl Fn(&InHand) -> bool) -> Option<usize> {
        self.turn += 1;
        let count = self.deliveries.len();
        let mut indices = (0..count).map(|index| (index + self.turn) % count);
        indices.find(|index| {
            let one = &self.deliveries[*index];
            !one.is_removed && matches(one)
        })
    }

    fn each(&mut self, server: &Server, event: impl Fn() -> DeliveryEvent) -> Checked {
        for index in 0..self.deliveries.len() {
            if !self.deliveries[index].is_removed {
                self.handle(server, index, event())?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, index: usize) {
        let one = &mut self.deliveries[index];
        one.is_decided = true;
        self.decided.extend(one.copies.iter().copied());
    }

    fn handle(&mut self, server: &Server, index: usize, event: DeliveryEvent) -> Checked {
        if self
            .kind
            .expires()
            .is_some_and(|expires| self.time.0.wall > expires)
        {
            self.decide(index);
        }
        let mut actions = Vec::new();
        let one = &mut self.deliveries[index];
        one.state.handle(event, self.time.0, &mut actions);
        for action in actions {
            self.perform(server, index, &action)?;
        }
        Ok(())
    }

    fn perform(&mut self, server: &Server, index: usize, action: &Action) -> Checked {
        let leased = self.leased;
        let one = &mut self.deliveries[index];
        ensure(!one.is_removed, || format!("{action:?} after the removal"))?;
        match action {
            Action::Queue => {
                ensure(!one.has_slot && !one.is_queued, || {
                    "queued twice".to_owned()
                })?;
                one.is_queued = true;
            }
            Action::FreeSlot => {
                ensure(one.has_slot, || {
                    "freed a slot that it did not have".to_owned()
                })?;
                one.has_slot = false;
                one.is_running = false;
            }
            Action::Start => {
                ensure(one.has_slot && !one.has_started, || {
                    "started twice or without a slot".to_owned()
                })?;
                let place = server.place_of(one.tag);
                let is_held = place == Place::Unacked(one.tag);
                let is_acknowledged = place == Place::Acknowledged;
                let is_safe = match (leased, one.acks_early) {
                    (true, true) => is_acknowledged || one.is_lost && one.is_ack_unanswered,
                    (true, false) => is_held || one.is_loss_unnoticed,
                    // After a lost connection an early acknowledgement becomes a late one.
                    (false, true) => is_acknowledged || is_held || one.is_lost,
                    (false, false) => is_held,
                };
                ensure(is_safe, || {
                    format!("started while its message is {place:?}")
                })?;
                one.has_started = true;
                one.is_running = true;
                self.started.extend(one.copies.iter().copied());
            }
            Action::Effect(effect) => {
                ensure(one.requested.is_none(), || "two effects at once".to_owned())?;
                let requested = requested(effect, one.tag, action);
                let settles =
                    matches!(&requested, Requested::Change(request) if is_settlement(request));
                ensure(leased || !settles || !one.is_lost, || {
                    "settled a delivery of a lost connection".to_owned()
                })?;
                one.requested = Some(requested);
            }
            Action::ReportInDoubt => self.in_doubt = true,
            Action::Remove => {
                ensure(!one.has_slot, || "removed while it held a slot".to_owned())?;
                one.is_removed = true;
            }
            Action::SignalSoftLimit | Action::Abort | Action::Emit(_) | Action::RecordExpiry => {}
        }
        Ok(())
    }
}

fn requested(effect: &Effect, tag: Tag, action: &Action) -> Requested {
    Requested::Change(match effect {
        Effect::CheckAdmission => return Requested::Admission,
        Effect::Settle(Disposition::Ack) => Request::Ack(tag),
        Effect::Settle(Disposition::Reject) => Request::Reject(tag),
        Effect::Settle(Disposition::Requeue(_)) => Request::Requeue(tag),
        Effect::Settle(Disposition::Defer(_)) => Request::Defer(tag),
        Effect::Restore => Request::Restore(tag),
        _ => Request::Write(name(action)),
    })
}

fn is_settlement(request: &Request) -> bool {
    !matches!(request, Request::Write(_) | Request::Restore(_))
}

fn ensure(holds: bool, cause: impl Fn() -> String) -> Checked {
    if holds { Ok(()) } else { Err(cause()) }
}
