//! Carries out what the deliveries' state machines decide.
//!
//! One task owns everything: it waits for whatever happens next, tells the
//! delivery concerned, and turns the actions that come back into futures. It
//! decides nothing about a delivery itself. Settlements that come up together
//! leave together.

pub(crate) mod command;
pub(crate) mod connection;
pub(crate) mod deliveries;
pub(crate) mod monitor;
pub(crate) mod remote;
pub(crate) mod revocations;
mod scale;
mod settle;
pub(crate) mod slots;
pub(crate) mod stop;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::ControlReply;
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::boundary::{
    BoxFuture, Consumer, Delivery, DeliveryTag, ServiceError, Settled, Settlement,
};
use crate::config::{OnUnknown, WorkerSettings};
use crate::env;
use crate::env::{Clock, Now};
use crate::execution::Job;
use crate::task::Declaration;
use crate::worker::core::failure::soft_limit_exceeded;
use crate::worker::core::rate_limits::RateLimits;
use crate::worker::delivery::decode::{Decoded, MessageDecoder};
use crate::worker::delivery::event::{
    Action, Admission, DeliveryEvent, Disposition, Effect, EffectError, Outcome, Revocation, Stop,
};
use crate::worker::delivery::in_flight::{DeliveryKey, InFlightDelivery, LockGuard, Payload};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::driver::connection::{Connection, QueueChange};
use crate::worker::driver::deliveries::Deliveries;
use crate::worker::driver::monitor::Monitor;
use crate::worker::driver::remote::Remote;
use crate::worker::driver::revocations::RevocationState;
use crate::worker::driver::slots::Slots;
use crate::worker::driver::stop::Shutdown;
use crate::worker::effects::executor::{EffectExecutor, EffectResult};
use crate::worker::effects::run_task;
use crate::worker::error::WorkerError;
use crate::worker::io::admission;
use crate::worker::io::admission::UniqueLock;
use crate::worker::io::sweeper::ChordSweeper;
use crate::worker::io::watchdog::Watchdog;

pub(crate) use crate::worker::driver::scale::{prefetch, window};

/// Most deliveries received at once, and most outcomes handled between two turns
/// of the loop.
const BATCH_SIZE: usize = 256;

/// Most deliveries whose task has ended and whose result or acknowledgement is not
/// yet confirmed, beyond which the worker does not receive, unless the window is
/// larger.
///
/// It bounds the backlog of an unreachable backend. With tasks shorter than the
/// storing of their results, the worker constantly holds this many: with late
/// acknowledgement they run again if it dies, and the last one waits for all
/// others, with thousands of them longer than a visibility timeout or a chord's
/// claim.
const MAX_FINISHING: usize = 256;

/// Most ids whose results are set to REVOKED in one request.
const REVOCATION_BATCH: usize = 256;

/// The interval at which a changed state file is written.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// The result of a future of the driver.
pub(crate) enum Finished {
    /// The replies of the peers to the question at the start.
    Mingled(Vec<ControlReply>),
    QueuesChanged(QueueChange),
    AdmissionChecked(
        DeliveryKey,
        Result<(Admission, Option<UniqueLock>), EffectError>,
    ),
    RevocationsWritten,
    Nothing,
    Connected(Result<Arc<dyn Consumer>, ServiceError>),
    Received(Arc<dyn Consumer>, Result<Vec<Delivery>, ServiceError>),
    Settled(
        Arc<dyn Consumer>,
        Vec<DeliveryKey>,
        Vec<Result<Settled, ServiceError>>,
    ),
    EffectPerformed(DeliveryKey, EffectResult),
}

/// Limits of a worker that do not change while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerLimits {
    /// The initial concurrency.
    pub(crate) concurrency: usize,
    /// Prefetched messages for each concurrent task; 0 is without limit.
    pub(crate) multiplier: usize,
    /// How long a shutdown waits for results and acknowledgements after the last
    /// task has ended.
    pub(crate) grace: Duration,
}

/// The outcomes of tasks. The channel is unbounded in type only: each delivery in
/// flight sends one message.
pub(crate) struct Outcomes {
    pub(crate) sender: mpsc::UnboundedSender<(DeliveryKey, Outcome)>,
    pub(crate) receiver: mpsc::UnboundedReceiver<(DeliveryKey, Outcome)>,
}

impl Outcomes {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver }
    }
}

/// The running worker: one task that owns its components.
pub(crate) struct Driver {
    pub(crate) settings: Arc<WorkerSettings>,
    pub(crate) limits: WorkerLimits,
    pub(crate) on_unknown: OnUnknown,
    pub(crate) clock: Clock,
    /// The time of the current turn of the loop.
    pub(crate) now: Now,
    pub(crate) decoder: MessageDecoder,
    pub(crate) executor: Arc<EffectExecutor>,
    pub(crate) connection: Connection,
    pub(crate) deliveries: Deliveries,
    pub(crate) slots: Slots,
    pub(crate) rates: RateLimiter,
    pub(crate) revocations: RevocationState,
    pub(crate) shutdown: Shutdown,
    pub(crate) monitor: Monitor,
    pub(crate) remote: Remote,
    pub(crate) outcomes: Outcomes,
    pub(crate) futures: FuturesUnordered<BoxFuture<'static, Finished>>,
    pub(crate) settlements: Vec<(DeliveryKey, Settlement)>,
    pub(crate) watchdog: Watchdog,
    /// Sweeps stalled chords until it is dropped.
    pub(crate) _sweeper: Option<ChordSweeper>,
}

/// The rate limits of tasks, and their texts for `inspect`.
#[derive(Default)]
pub(crate) struct RateLimiter {
    pub(crate) buckets: RateLimits,
    /// The limits as they were written, by task.
    pub(crate) texts: HashMap<String, String>,
}

impl Driver {
    /// Prepares the loop: prefetch, rate limits, state file, mingle.
    pub(crate) fn prepare(&mut self, mingle: Option<BoxFuture<'static, Vec<ControlReply>>>) {
        self.set_prefetch();
        self.load_rate_limits();
        self.load_state();
        if let Some(mingle) = mingle {
            self.remote.is_mingling = true;
            self.futures
                .push(Box::pin(async { Finished::Mingled(mingle.await) }));
        }
    }

    /// Works until a stop is asked for and everything taken is dealt with.
    pub(crate) async fn run(
        mut self,
        mut stops: impl FnMut() -> BoxFuture<'static, Stop>,
    ) -> Result<(), WorkerError> {
        self.reconnect();
        self.emit_worker_event("worker-online");
        let mut stop = stops();
        let mut ended = Vec::with_capacity(BATCH_SIZE);
        loop {
            self.flush();
            if self.is_over() {
                break;
            }
            let wake = self.wake_at();
            tokio::select! {
                biased;
                kind = &mut stop => {
                    self.now = self.clock.moment();
                    self.stop(kind);
                    stop = stops();
                }
                _ = self.outcomes.receiver.recv_many(&mut ended, BATCH_SIZE) => {
                    self.now = self.clock.moment();
                    for (key, outcome) in ended.drain(..) {
                        self.event(key, DeliveryEvent::Returned(outcome));
                    }
                }
                Some(finished) = self.futures.next() => {
                    self.now = self.clock.moment();
                    self.finish(finished);
                }
                incoming = self.remote.receiver.next() => {
                    self.now = self.clock.moment();
                    self.handle_incoming(incoming);
                }
                () = sleep_until(wake), if wake.is_some() => self.now = self.clock.moment(),
            }
            // What is asked last above is not left out while there is always
            // something before it.
            if wake.is_some_and(|wake| wake <= self.now.instant) {
                self.tick();
            }
            // Each time, so that a task does not start which was revoked before it
            // was sent.
            if let Some(incoming) = self.remote.receiver.next().now_or_never() {
                self.handle_incoming(incoming);
            }
        }
        self.close().await
    }

    /// Sends off what has collected: settlements, free slots, the next receive.
    pub(crate) fn flush(&mut self) {
        while self.slots.busy < self.slots.concurrency {
            let Some(key) = self.slots.ready.pop_front() else {
                break;
            };
            // Left the line meanwhile, as at a stop.
            let Some(entry) = self
                .deliveries
                .in_flight
                .find(key)
                .filter(|one| one.state.is_waiting())
            else {
                continue;
            };
            if let Payload::Task { job, .. } = &entry.payload
                && self.revocations.ids.covers(job)
            {
                self.event(key, DeliveryEvent::Revoked(Revocation::Unstarted));
                continue;
            }
            self.slots.busy += 1;
            self.event(key, DeliveryEvent::SlotGranted);
        }
        self.monitor.dispatcher.flush();
        self.write_revocations();
        self.send_settlements();
        self.receive();
        if self.shutdown.stage.is_some()
            && self.shutdown.give_up_at.is_none()
            && self.slots.busy == 0
        {
            self.shutdown.give_up_at = Some(env::instant() + self.limits.grace);
        }
    }

    pub(crate) fn reconnect(&mut self) {
        self.connection.connected_generation = self.connection.queue_generation;
        if self.connection.supervisor.options.queues.is_empty() {
            return;
        }
        self.connection.is_connecting = true;
        let connecting = self.connection.supervisor.connect();
        self.futures
            .push(Box::pin(async { Finished::Connected(connecting.await) }));
    }

    pub(crate) fn receive(&mut self) {
        let Some(consumer) = self.connection.consumer.clone() else {
            return;
        };
        let finishing = self.deliveries.in_flight.len() - self.deliveries.pending;
        // Where the broker pushes ahead, what runs and is acknowledged has made
        // room for others already: they are here and shall be known.
        let held = match self.multiplier() {
            1 => self.deliveries.pending,
            _ => self.deliveries.unsettled,
        };
        let room = self.window().saturating_sub(held).min(BATCH_SIZE);
        // A consumer of queues that were all given up answers at once, for ever.
        let has_queues = !self.connection.supervisor.options.queues.is_empty();
        let blocked = self.connection.is_receiving
            || self.remote.is_mingling
            || self.shutdown.stage.is_some()
            || finishing >= MAX_FINISHING.max(self.window())
            || !has_queues;
        if blocked || room == 0 {
            return;
        }
        self.connection.is_receiving = true;
        self.futures.push(Box::pin(async move {
            let received = consumer.receive(room).await;
            Finished::Received(consumer, received)
        }));
    }

    pub(crate) fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Mingled(replies) => {
                self.remote.is_mingling = false;
                self.merge_peer_state(replies);
            }
            Finished::QueuesChanged(change) => self.changed(change),
            Finished::AdmissionChecked(key, Ok((answer, lock))) => {
                if let Some(entry) = self.deliveries.in_flight.find_mut(key) {
                    entry.lock = lock.map(|lock| Box::new(lock) as LockGuard);
                }
                self.event(key, DeliveryEvent::AdmissionChecked(answer));
            }
            Finished::AdmissionChecked(key, Err(error)) => {
                self.event(key, DeliveryEvent::Failed(error))
            }
            Finished::RevocationsWritten => self.revocations.is_writing = false,
            Finished::Nothing => {}
            Finished::Connected(connected) => {
                self.connection.is_connecting = false;
                self.connected(connected);
            }
            Finished::Received(consumer, received) => self.received(&consumer, received),
            Finished::Settled(consumer, keys, settled) => self.settled(&consumer, keys, settled),
            Finished::EffectPerformed(key, Ok(deeds)) if deeds.is_empty() => {
                self.event(key, DeliveryEvent::Done)
            }
            Finished::EffectPerformed(key, Ok(deeds)) => {
                self.event(key, DeliveryEvent::FollowUps(deeds))
            }
            Finished::EffectPerformed(key, Err(error)) => {
                self.event(key, DeliveryEvent::Failed(error))
            }
        }
    }

    pub(crate) fn connected(&mut self, connected: Result<Arc<dyn Consumer>, ServiceError>) {
        match connected {
            // Meant for queues that are others now.
            Ok(_) if self.connection.connected_generation != self.connection.queue_generation => {
                self.reconnect()
            }
            Ok(consumer) => {
                if self.shutdown.stage.is_some() {
                    consumer.interrupt();
                }
                self.connection.consumer = Some(consumer);
            }
            Err(error) => {
                tracing::error!("the worker stops: {error}");
                self.shutdown.error = Some(error);
                self.stop(Stop::Warm);
            }
        }
    }

    pub(crate) fn connection_lost(&mut self, error: ServiceError) {
        let survives =
            self.connection.consumer.take().is_some() && self.connection.settles_after_reconnect();
        self.connection.supervisor.lost(error);
        if !survives {
            // They share the connection.
            self.connection.retired.clear();
            for key in self.deliveries.in_flight.keys() {
                self.event(key, DeliveryEvent::ConnectionLost);
                if self.settings.cancel_on_connection_loss {
                    self.event(key, DeliveryEvent::Revoked(Revocation::ConnectionLost));
                }
                self.deliveries.in_flight.record_invalidated(key);
            }
        }
        self.reconnect();
    }

    pub(crate) fn tick(&mut self) {
        let now = self.now.instant;
        while let Some(Reverse((time, key))) = self.deliveries.timers.peek().copied() {
            if time > now {
                break;
            }
            self.deliveries.timers.pop();
            self.event(key, DeliveryEvent::Tick);
        }
        if self.shutdown.soft_until.is_some_and(|until| until <= now) {
            self.shutdown.soft_until = None;
            self.stop(Stop::Cold);
        }
        if self.monitor.heartbeat_at.is_some_and(|beat| beat <= now) {
            self.monitor.heartbeat_at = self.settings.heartbeat.map(|interval| now + interval);
            self.emit_worker_event("worker-heartbeat");
            self.scale_down();
        }
        self.decide_elections();
        if self.revocations.is_unsaved && self.revocations.saved_at + SAVE_INTERVAL <= now {
            self.save_state();
        }
    }

    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let timer = self
            .deliveries
            .timers
            .peek()
            .map(|Reverse((time, _))| *time);
        let election = self
            .remote
            .elections
            .iter()
            .map(|election| election.decided_at);
        let save = (self.revocations.is_unsaved && self.settings.state_file.is_some())
            .then(|| self.revocations.saved_at + SAVE_INTERVAL);
        timer
            .into_iter()
            .chain(self.shutdown.give_up_at)
            .chain(self.shutdown.soft_until)
            .chain(self.monitor.heartbeat_at)
            .chain(election)
            .chain(save)
            .min()
    }

    /// Takes a delivery in. One that is the return of what runs here already
    /// starts nothing.
    pub(crate) fn admit(&mut self, delivery: Delivery, consumer: &Arc<dyn Consumer>) {
        let again = delivery.redelivered || delivery.delivery_count.is_some_and(|count| count > 0);
        let (life, work) = match self.decoder.decode(
            delivery.content,
            delivery.redelivered,
            delivery.delivery_count,
        ) {
            Decoded::Task { job, .. }
                if again && self.reattach(&job, &delivery.queue, &delivery.tag, consumer) =>
            {
                return;
            }
            Decoded::Task { job, run, policy } => {
                (DeliveryState::of_task(policy), Payload::Task { job, run })
            }
            Decoded::Rejected { content, rejection } => {
                tracing::error!(
                    "cannot run a message of queue {}: {}",
                    delivery.queue,
                    rejection.detail
                );
                self.emit_rejected(&rejection);
                (
                    DeliveryState::of_rejected(rejection, self.on_unknown),
                    Payload::Rejected(content),
                )
            }
        };
        let mut entry = InFlightDelivery::new(
            life,
            delivery.tag,
            Arc::downgrade(consumer),
            delivery.queue,
            work,
        );
        let mut first = DeliveryEvent::Arrived;
        if let Payload::Task { job, .. } = &entry.payload {
            entry.was_scheduled = self.monitor.scheduled.remove(&job.id);
            if self.revocations.ids.contains(&job.id) {
                tracing::info!("task {} is revoked", job.id);
                first = DeliveryEvent::Revoked(Revocation::Unstarted);
            }
        }
        let key = self.deliveries.in_flight.insert(entry);
        self.event(key, first);
        self.scale_up();
        if let Some(stop) = self.shutdown.stage {
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }

    /// Hands a delivery to the entry that lost it with its connection, if there
    /// is one.
    pub(crate) fn reattach(
        &mut self,
        job: &Job,
        queue: &str,
        tag: &DeliveryTag,
        consumer: &Arc<dyn Consumer>,
    ) -> bool {
        let Some(key) = self.deliveries.in_flight.take_redelivered(job, queue) else {
            return false;
        };
        if let Some(entry) = self.deliveries.in_flight.find_mut(key) {
            entry.tag = tag.clone();
            entry.consumer = Arc::downgrade(consumer);
        }
        tracing::info!("task {} is delivered again and still in hand", job.id);
        self.event(key, DeliveryEvent::Redelivered);
        true
    }

    /// Tells a delivery what happened and does what it asks for.
    pub(crate) fn event(&mut self, key: DeliveryKey, event: DeliveryEvent) {
        let now = self.now;
        let mut actions = std::mem::take(&mut self.deliveries.actions);
        let Some(entry) = self.deliveries.in_flight.find_mut(key) else {
            return;
        };
        if matches!(event, DeliveryEvent::Done | DeliveryEvent::FollowUps(_)) {
            entry.outgoing = None;
        }
        let was_pending = entry.state.is_pending();
        let was_unsettled = entry.state.is_unsettled();
        entry.state.handle(event, now, &mut actions);
        let is_pending = entry.state.is_pending();
        let is_unsettled = entry.state.is_unsettled();
        if let Some(time) = entry.state.timeout() {
            self.deliveries.timers.push(Reverse((time, key)));
        }
        self.deliveries.pending =
            self.deliveries.pending + usize::from(is_pending) - usize::from(was_pending);
        let before = self.deliveries.unsettled + usize::from(is_unsettled);
        self.deliveries.unsettled = before - usize::from(was_unsettled);
        for action in actions.drain(..) {
            self.perform(key, action);
        }
        self.deliveries.actions = actions;
    }

    pub(crate) fn perform(&mut self, key: DeliveryKey, action: Action) {
        match action {
            Action::Queue => self.enqueue(key),
            Action::FreeSlot => self.release_slot(),
            Action::Start => self.start_task(key),
            Action::SignalSoftLimit => self.warn_soft_limit(key),
            Action::Abort => {
                if let Some(entry) = self.deliveries.in_flight.find_mut(key) {
                    entry.abort();
                }
            }
            Action::Effect(step) => self.perform_effect(key, step),
            Action::Emit(notice) => self.emit(key, notice),
            Action::RecordExpiry => {
                if let Some(Payload::Task { job, .. }) =
                    self.deliveries.in_flight.find(key).map(|one| &one.payload)
                {
                    // As in Celery, where peers learn of it by this.
                    self.revocations.ids.add(&job.id, self.now.wall);
                    self.rates.buckets.release(&job.id);
                    self.revocations.is_unsaved = true;
                }
            }
            Action::Remove => {
                self.deliveries.in_flight.remove(key);
                self.drop_drained_consumers();
            }
        }
    }

    pub(crate) fn start_task(&mut self, key: DeliveryKey) {
        let ends = self.outcomes.sender.clone();
        let Some(entry) = self.deliveries.in_flight.find_mut(key) else {
            return;
        };
        let Payload::Task { job, run } = &entry.payload else {
            return;
        };
        self.monitor.counters.start(&job.task);
        let task = run_task::run(Arc::clone(run), Arc::clone(job));
        let task = self.watchdog.watch(job, task);
        // Owned by the entry: aborted by it, or by the driver's end.
        let running = env::spawn(async move {
            // The driver is gone only when nobody waits for the outcome.
            let _ = ends.send((key, task.await));
        });
        entry.running = Some(running.abort_handle());
        entry.started = Some(self.now);
    }

    pub(crate) fn warn_soft_limit(&mut self, key: DeliveryKey) {
        let Some(entry) = self.deliveries.in_flight.find_mut(key) else {
            return;
        };
        let Payload::Task { job, .. } = &entry.payload else {
            return;
        };
        if job.control.reach_soft_limit() {
            return;
        }
        entry.abort();
        let outcome = Outcome::Error {
            error: soft_limit_exceeded(),
            random: env::random(),
        };
        self.event(key, DeliveryEvent::Returned(outcome));
    }

    pub(crate) fn perform_effect(&mut self, key: DeliveryKey, step: Effect) {
        let Some(entry) = self.deliveries.in_flight.find_mut(key) else {
            return;
        };
        let now = self.now.wall;
        let step = match step {
            Effect::Settle(verdict) => {
                if let (Disposition::Defer(until), Payload::Task { job, .. }) =
                    (verdict, &entry.payload)
                {
                    let hostname = &self.executor.messages.hostname;
                    self.monitor.scheduled.insert(job, until, hostname);
                }
                let settlement = settlement(verdict, entry.tag.clone());
                return self.settlements.push((key, settlement));
            }
            Effect::CheckAdmission => {
                let Payload::Task { job, .. } = &entry.payload else {
                    return;
                };
                let job = Arc::clone(job);
                return self.check_admission(key, job);
            }
            Effect::Store(report) => self.executor.store(entry, report, now),
            Effect::Send(letter) => self.executor.send(entry, &letter, now),
            Effect::Continue(turn) => self.executor.continue_workflow(entry, &turn, now),
            Effect::Workflow(deed) => self.executor.perform(deed),
            // Told by the life itself.
            Effect::Emit(_) => return,
        };
        let step = step.map(move |result| Finished::EffectPerformed(key, result));
        self.futures.push(Box::pin(step));
    }

    /// Asks what speaks against the start of a task.
    pub(crate) fn check_admission(&mut self, key: DeliveryKey, job: Arc<Job>) {
        let Some(task) = self.decoder.registry.find(&job.task) else {
            return;
        };
        let Declaration {
            params, options, ..
        } = &task.declaration;
        let checks = self.decoder.admission_checks(options, job.redelivered);
        let services = &job.services;
        let lock = checks.unique.and_then(|unique| {
            let (accept, limit) = (&services.accept, services.body_limit);
            // Where the arguments cannot be read, the task fails by itself.
            unique
                .key(&job.task, params, &job.message, accept, limit)
                .ok()
        });
        let deadline = self.executor.deadline;
        let object = format!("what task {} has to wait for", job.id);
        self.futures.push(Box::pin(async move {
            let asking = admission::check(job, lock, checks);
            let answer = match tokio::time::timeout(deadline, asking).await {
                Ok(answer) => answer,
                Err(_) => {
                    let error = ServiceError::no_answer("find out", &object, deadline);
                    tracing::warn!("{error}");
                    Err(EffectError::from(&error))
                }
            };
            Finished::AdmissionChecked(key, answer)
        }));
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.executor.messages.hostname
    }
}

fn settlement(verdict: Disposition, tag: DeliveryTag) -> Settlement {
    match verdict {
        Disposition::Ack => Settlement::Ack(tag),
        Disposition::Reject => Settlement::Reject(tag),
        Disposition::Requeue(end) => Settlement::Requeue(tag, end),
        Disposition::Defer(until) => Settlement::Defer(tag, until),
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
