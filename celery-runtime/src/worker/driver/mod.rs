//! Carries out what the deliveries' state machines decide.
//!
//! One task owns everything: it waits for whatever happens next, tells the
//! delivery concerned, and turns the actions that come back into futures. It
//! decides nothing about a delivery itself. Settlements that come up together
//! leave together.

pub(crate) mod command;
mod queues;
mod revocation;
mod scale;
mod settle;
mod shutdown;
mod slots;
mod task_events;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

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
use crate::logical_clock::LogicalClock;
use crate::task::Declaration;
use crate::worker::core::counters::Counters;
use crate::worker::core::failure::soft_limit_exceeded;
use crate::worker::core::rate_limits::RateLimits;
use crate::worker::core::revocations::Revocations;
use crate::worker::core::scheduled::Scheduled;
use crate::worker::delivery::decode::{Decoded, MessageDecoder};
use crate::worker::delivery::event::{
    Action, Admission, DeliveryEvent, Disposition, Effect, EffectError, Outcome, Revocation, Stop,
};
use crate::worker::delivery::in_flight::{
    DeliveryKey, InFlight, InFlightDelivery, LockGuard, Payload,
};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::driver::command::Command;
use crate::worker::driver::command::election::Election;
use crate::worker::driver::queues::Change;
use crate::worker::effects::executor::{EffectExecutor, EffectResult};
use crate::worker::effects::run_task;
use crate::worker::error::WorkerError;
use crate::worker::io::admission;
use crate::worker::io::admission::UniqueLock;
use crate::worker::io::control_receiver::ControlReceiver;
use crate::worker::io::event_dispatcher::EventDispatcher;
use crate::worker::io::supervisor::Supervisor;
use crate::worker::io::sweeper::Sweeper;
use crate::worker::io::watchdog::Watchdog;
use crate::worker::isolated::Children;

pub(crate) use crate::worker::driver::scale::{prefetch, window};

/// Most deliveries taken from the broker at once, and events handled between
/// two looks at everything else.
const BATCH: usize = 256;

/// Deliveries whose task is over and whose result or acknowledgement is still
/// on its way, beyond which no more are received, unless the window is larger.
///
/// It bounds what a backend that is away can pile up. Where tasks are shorter than
/// the storing of their results, it is also what a worker holds all the time:
/// with late acknowledgement that much runs again when the worker dies, and the
/// last of them waits for all before it, longer than a visibility timeout or a
/// claim lasts if there are thousands.
const FINISHING: usize = 256;

/// Ids whose state is written as revoked at a time.
const MARKED_TOGETHER: usize = 256;

/// How often what was revoked is written to the state file.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// What came of a future of the driver.
pub(crate) enum Finished {
    /// What the peers answered at the start.
    Mingled(Vec<celery_protocol::ControlReply>),
    Changed(Change),
    AdmissionChecked(
        DeliveryKey,
        Result<(Admission, Option<UniqueLock>), EffectError>,
    ),
    Marked,
    Nothing,
    Connected(Result<Arc<dyn Consumer>, ServiceError>),
    Received(Arc<dyn Consumer>, Result<Vec<Delivery>, ServiceError>),
    Settled(
        Arc<dyn Consumer>,
        Vec<DeliveryKey>,
        Vec<Result<Settled, ServiceError>>,
    ),
    Stepped(DeliveryKey, EffectResult),
}

/// Sizes of the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerLimits {
    /// Tasks at the same time, at the start.
    pub(crate) concurrency: usize,
    /// Tasks at the same time and in line, for each of them; 0 is without limit.
    pub(crate) multiplier: usize,
    /// How long a stop waits for results and acknowledgements after the last
    /// task has ended.
    pub(crate) grace: Duration,
}

/// What the driver is made of.
pub(crate) struct DriverParts {
    /// The child processes, where there are isolated tasks.
    pub(crate) children: Option<Arc<Children>>,
    pub(crate) decoder: MessageDecoder,
    pub(crate) executor: Arc<EffectExecutor>,
    pub(crate) sweeper: Option<Sweeper>,
    pub(crate) clock: Clock,
    pub(crate) supervisor: Supervisor,
    pub(crate) limits: WorkerLimits,
    pub(crate) watchdog: Watchdog,
    pub(crate) settings: Arc<WorkerSettings>,
    pub(crate) logical_clock: LogicalClock,
    pub(crate) events: EventDispatcher,
    pub(crate) control: ControlReceiver,
    /// What is asked of the peers before the first delivery is taken.
    pub(crate) mingle: Option<BoxFuture<'static, Vec<celery_protocol::ControlReply>>>,
    pub(crate) commands: HashMap<String, Command>,
    /// Most and fewest slots, where their number follows the load.
    pub(crate) autoscale: Option<(usize, usize)>,
}

/// The running worker.
pub(crate) struct Driver {
    /// The child processes, where there are isolated tasks.
    pub(crate) children: Option<Arc<Children>>,
    pub(crate) decoder: MessageDecoder,
    pub(crate) executor: Arc<EffectExecutor>,
    /// Works by itself while this lives.
    pub(crate) _sweeper: Option<Sweeper>,
    pub(crate) on_unknown: OnUnknown,
    pub(crate) clock: Clock,
    pub(crate) supervisor: Supervisor,
    pub(crate) limits: WorkerLimits,
    pub(crate) watchdog: Watchdog,
    pub(crate) settings: Arc<WorkerSettings>,
    pub(crate) consumer: Option<Arc<dyn Consumer>>,
    /// Consumers that were replaced and have deliveries in hand.
    pub(crate) retired: Vec<Arc<dyn Consumer>>,
    pub(crate) receiving: bool,
    pub(crate) entries: InFlight,
    pub(crate) pending: usize,
    /// Those of the pending ones that are not acknowledged.
    pub(crate) unsettled: usize,
    pub(crate) line: VecDeque<DeliveryKey>,
    pub(crate) concurrency: usize,
    /// Threads for blocking tasks, one for each slot.
    pub(crate) threads: usize,
    /// Slots that are taken; more than there are, right after some went.
    pub(crate) busy: usize,
    pub(crate) autoscale: Option<(usize, usize)>,
    /// How often other queues were asked for.
    pub(crate) changes: u64,
    /// Which of them the connection that is being made is for.
    pub(crate) connected_to: u64,
    pub(crate) connecting: bool,
    pub(crate) timers: BinaryHeap<Reverse<(Instant, DeliveryKey)>>,
    /// Unbounded, and bounded all the same: each entry sends one message.
    pub(crate) ended: mpsc::UnboundedReceiver<(DeliveryKey, Outcome)>,
    pub(crate) ends: mpsc::UnboundedSender<(DeliveryKey, Outcome)>,
    pub(crate) futures: FuturesUnordered<BoxFuture<'static, Finished>>,
    pub(crate) settlements: Vec<(DeliveryKey, Settlement)>,
    pub(crate) stopping: Option<Stop>,
    /// When a soft stop becomes a cold one.
    pub(crate) soft_until: Option<Instant>,
    /// Set with the stop, once no task runs any more.
    pub(crate) give_up_at: Option<Instant>,
    pub(crate) failure: Option<ServiceError>,
    /// Read once for everything that is handled together.
    pub(crate) now: Now,
    /// Kept from event to event for its memory.
    pub(crate) actions: Vec<Action>,

    // What others see of the worker, and tell it.
    pub(crate) logical_clock: LogicalClock,
    pub(crate) events: EventDispatcher,
    pub(crate) control: ControlReceiver,
    pub(crate) mingling: bool,
    pub(crate) commands: HashMap<String, Command>,
    pub(crate) elections: Vec<Election>,
    pub(crate) revoked: Revocations,
    /// Revoked ids whose results are to say so.
    pub(crate) marks: VecDeque<String>,
    pub(crate) marking: bool,
    /// Whether the state file is behind.
    pub(crate) unsaved: bool,
    pub(crate) saved_at: Instant,
    pub(crate) rates: RateLimits,
    /// The limits as they were written, by task.
    pub(crate) rate_limits: HashMap<String, String>,
    pub(crate) scheduled: Scheduled,
    pub(crate) counters: Counters,
    pub(crate) beat_at: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(parts: DriverParts) -> Self {
        let DriverParts {
            children,
            decoder,
            executor,
            sweeper,
            clock,
            supervisor,
            limits,
            watchdog,
            settings,
            logical_clock,
            events,
            control,
            mingle,
            commands,
            autoscale,
        } = parts;
        let (ends, ended) = mpsc::unbounded_channel();
        let now = clock.moment();
        let futures = FuturesUnordered::new();
        let mingling = mingle.is_some();
        if let Some(mingle) = mingle {
            let mingled: BoxFuture<'static, Finished> =
                Box::pin(async { Finished::Mingled(mingle.await) });
            futures.push(mingled);
        }
        let mut driver = Self {
            children,
            on_unknown: executor.messages.sender.config.on_unknown,
            decoder,
            executor,
            _sweeper: sweeper,
            clock,
            supervisor,
            limits,
            watchdog,
            consumer: None,
            retired: Vec::new(),
            receiving: false,
            entries: InFlight::default(),
            pending: 0,
            unsettled: 0,
            line: VecDeque::new(),
            concurrency: limits.concurrency,
            threads: limits.concurrency,
            busy: 0,
            autoscale,
            changes: 0,
            connected_to: 0,
            connecting: false,
            timers: BinaryHeap::new(),
            ended,
            ends,
            futures,
            settlements: Vec::new(),
            stopping: None,
            soft_until: None,
            give_up_at: None,
            failure: None,
            now,
            actions: Vec::new(),
            logical_clock,
            events,
            control,
            mingling,
            commands,
            elections: Vec::new(),
            revoked: Revocations::new(settings.revokes_max, settings.revoke_expires),
            marks: VecDeque::new(),
            marking: false,
            unsaved: false,
            saved_at: now.instant,
            rates: RateLimits::default(),
            rate_limits: HashMap::new(),
            scheduled: Scheduled::default(),
            counters: Counters::new(),
            beat_at: settings.heartbeat.map(|_| now.instant),
            settings,
        };
        driver.set_prefetch();
        driver.limit_rates();
        driver.load_state();
        driver
    }

    /// Works until a stop is asked for and everything taken is dealt with.
    pub(crate) async fn run(
        mut self,
        mut stops: impl FnMut() -> BoxFuture<'static, Stop>,
    ) -> Result<(), WorkerError> {
        self.reconnect();
        self.tell_of_worker("worker-online");
        let mut stop = stops();
        let mut ended = Vec::with_capacity(BATCH);
        loop {
            self.pump();
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
                _ = self.ended.recv_many(&mut ended, BATCH) => {
                    self.now = self.clock.moment();
                    for (key, outcome) in ended.drain(..) {
                        self.event(key, DeliveryEvent::Returned(outcome));
                    }
                }
                Some(finished) = self.futures.next() => {
                    self.now = self.clock.moment();
                    self.finish(finished);
                }
                incoming = self.control.next() => {
                    self.now = self.clock.moment();
                    self.hear(incoming);
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
            if let Some(incoming) = self.control.next().now_or_never() {
                self.hear(incoming);
            }
        }
        self.close().await
    }

    /// Sends off what has collected: settlements, free slots, the next receive.
    pub(crate) fn pump(&mut self) {
        while self.busy < self.concurrency {
            let Some(key) = self.line.pop_front() else {
                break;
            };
            // Left the line meanwhile, as at a stop.
            let Some(entry) = self.entries.find(key).filter(|one| one.life.is_waiting()) else {
                continue;
            };
            if let Payload::Task { job, .. } = &entry.work
                && self.revoked.covers(job)
            {
                self.event(key, DeliveryEvent::Revoked(Revocation::Unstarted));
                continue;
            }
            self.busy += 1;
            self.event(key, DeliveryEvent::SlotGranted);
        }
        self.events.flush();
        self.send_marks();
        self.send_settlements();
        self.receive();
        if self.stopping.is_some() && self.give_up_at.is_none() && self.busy == 0 {
            self.give_up_at = Some(env::instant() + self.limits.grace);
        }
    }

    pub(crate) fn reconnect(&mut self) {
        self.connected_to = self.changes;
        if self.supervisor.options.queues.is_empty() {
            return;
        }
        self.connecting = true;
        let connecting = self.supervisor.connect();
        self.futures
            .push(Box::pin(async { Finished::Connected(connecting.await) }));
    }

    pub(crate) fn receive(&mut self) {
        let Some(consumer) = self.consumer.clone() else {
            return;
        };
        let finishing = self.entries.len() - self.pending;
        // Where the broker pushes ahead, what runs and is acknowledged has made
        // room for others already: they are here and shall be known.
        let held = match self.multiplier() {
            1 => self.pending,
            _ => self.unsettled,
        };
        let room = self.window().saturating_sub(held).min(BATCH);
        // A consumer of queues that were all given up answers at once, for ever.
        let has_queues = !self.supervisor.options.queues.is_empty();
        let blocked = self.receiving
            || self.mingling
            || self.stopping.is_some()
            || finishing >= FINISHING.max(self.window())
            || !has_queues;
        if blocked || room == 0 {
            return;
        }
        self.receiving = true;
        self.futures.push(Box::pin(async move {
            let received = consumer.receive(room).await;
            Finished::Received(consumer, received)
        }));
    }

    pub(crate) fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Mingled(replies) => {
                self.mingling = false;
                self.learn(replies);
            }
            Finished::Changed(change) => self.changed(change),
            Finished::AdmissionChecked(key, Ok((answer, lock))) => {
                if let Some(entry) = self.entries.find_mut(key) {
                    entry.lock = lock.map(|lock| Box::new(lock) as LockGuard);
                }
                self.event(key, DeliveryEvent::AdmissionChecked(answer));
            }
            Finished::AdmissionChecked(key, Err(error)) => {
                self.event(key, DeliveryEvent::Failed(error))
            }
            Finished::Marked => self.marking = false,
            Finished::Nothing => {}
            Finished::Connected(connected) => {
                self.connecting = false;
                self.connected(connected);
            }
            Finished::Received(consumer, received) => self.received(&consumer, received),
            Finished::Settled(consumer, keys, settled) => self.settled(&consumer, keys, settled),
            Finished::Stepped(key, Ok(deeds)) if deeds.is_empty() => {
                self.event(key, DeliveryEvent::Done)
            }
            Finished::Stepped(key, Ok(deeds)) => self.event(key, DeliveryEvent::FollowUps(deeds)),
            Finished::Stepped(key, Err(error)) => self.event(key, DeliveryEvent::Failed(error)),
        }
    }

    pub(crate) fn connected(&mut self, connected: Result<Arc<dyn Consumer>, ServiceError>) {
        match connected {
            // Meant for queues that are others now.
            Ok(_) if self.connected_to != self.changes => self.reconnect(),
            Ok(consumer) => {
                if self.stopping.is_some() {
                    consumer.interrupt();
                }
                self.consumer = Some(consumer);
            }
            Err(error) => {
                tracing::error!("the worker stops: {error}");
                self.failure = Some(error);
                self.stop(Stop::Warm);
            }
        }
    }

    pub(crate) fn lose_link(&mut self, error: ServiceError) {
        let survives = self.consumer.take().is_some() && self.settles_after_reconnect();
        self.supervisor.lost(error);
        if !survives {
            // They share the connection.
            self.retired.clear();
            for key in self.entries.keys() {
                self.event(key, DeliveryEvent::ConnectionLost);
                if self.settings.cancel_on_connection_loss {
                    self.event(key, DeliveryEvent::Revoked(Revocation::ConnectionLost));
                }
                self.entries.note_withdrawn(key);
            }
        }
        self.reconnect();
    }

    pub(crate) fn tick(&mut self) {
        let now = self.now.instant;
        while let Some(Reverse((time, key))) = self.timers.peek().copied() {
            if time > now {
                break;
            }
            self.timers.pop();
            self.event(key, DeliveryEvent::Tick);
        }
        if self.soft_until.is_some_and(|until| until <= now) {
            self.soft_until = None;
            self.stop(Stop::Cold);
        }
        if self.beat_at.is_some_and(|beat| beat <= now) {
            self.beat_at = self.settings.heartbeat.map(|interval| now + interval);
            self.tell_of_worker("worker-heartbeat");
            self.scale_down();
        }
        self.decide_elections();
        if self.unsaved && self.saved_at + SAVE_EVERY <= now {
            self.save_state();
        }
    }

    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((time, _))| *time);
        let election = self.elections.iter().map(|election| election.decided_at);
        let save = (self.unsaved && self.settings.state_file.is_some())
            .then(|| self.saved_at + SAVE_EVERY);
        timer
            .into_iter()
            .chain(self.give_up_at)
            .chain(self.soft_until)
            .chain(self.beat_at)
            .chain(election)
            .chain(save)
            .min()
    }

    /// Takes a delivery in. One that is the return of what runs here already
    /// starts nothing.
    pub(crate) fn admit(&mut self, delivery: Delivery, consumer: &Arc<dyn Consumer>) {
        let again = delivery.redelivered || delivery.delivery_count.is_some_and(|count| count > 0);
        let (life, work) = match self.decoder.read(
            delivery.content,
            delivery.redelivered,
            delivery.delivery_count,
        ) {
            Decoded::Task { job, .. }
                if again && self.regain(&job, &delivery.queue, &delivery.tag, consumer) =>
            {
                return;
            }
            Decoded::Task { job, run, plan } => {
                (DeliveryState::of_task(plan), Payload::Task { job, run })
            }
            Decoded::Refused { content, refusal } => {
                tracing::error!(
                    "cannot run a message of queue {}: {}",
                    delivery.queue,
                    refusal.detail
                );
                self.tell_refused(&refusal);
                (
                    DeliveryState::refused(refusal, self.on_unknown),
                    Payload::Refused(content),
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
        if let Payload::Task { job, .. } = &entry.work {
            entry.was_scheduled = self.scheduled.take(&job.id);
            if self.revoked.contains(&job.id) {
                tracing::info!("task {} is revoked", job.id);
                first = DeliveryEvent::Revoked(Revocation::Unstarted);
            }
        }
        let key = self.entries.insert(entry);
        self.event(key, first);
        self.scale_up();
        if let Some(stop) = self.stopping {
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }

    /// Hands a delivery to the entry that lost it with its connection, if there
    /// is one.
    pub(crate) fn regain(
        &mut self,
        job: &Job,
        queue: &str,
        tag: &DeliveryTag,
        consumer: &Arc<dyn Consumer>,
    ) -> bool {
        let Some(key) = self.entries.take_returned(job, queue) else {
            return false;
        };
        if let Some(entry) = self.entries.find_mut(key) {
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
        let mut actions = std::mem::take(&mut self.actions);
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        if matches!(event, DeliveryEvent::Done | DeliveryEvent::FollowUps(_)) {
            entry.letters = None;
        }
        let was_pending = entry.life.is_pending();
        let was_unsettled = entry.life.is_unsettled();
        entry.life.handle(event, now, &mut actions);
        let is_pending = entry.life.is_pending();
        let is_unsettled = entry.life.is_unsettled();
        if let Some(time) = entry.life.timeout() {
            self.timers.push(Reverse((time, key)));
        }
        self.pending = self.pending + usize::from(is_pending) - usize::from(was_pending);
        let before = self.unsettled + usize::from(is_unsettled);
        self.unsettled = before - usize::from(was_unsettled);
        for action in actions.drain(..) {
            self.act(key, action);
        }
        self.actions = actions;
    }

    pub(crate) fn act(&mut self, key: DeliveryKey, action: Action) {
        match action {
            Action::Queue => self.line_up(key),
            Action::FreeSlot => self.free_slot(),
            Action::Start => self.start(key),
            Action::Warn => self.warn(key),
            Action::Abort => {
                if let Some(entry) = self.entries.find_mut(key) {
                    entry.abort();
                }
            }
            Action::Effect(step) => self.step(key, step),
            Action::Emit(notice) => self.tell(key, notice),
            Action::Expired => {
                if let Some(Payload::Task { job, .. }) = self.entries.find(key).map(|one| &one.work)
                {
                    // As in Celery, where peers learn of it by this.
                    self.revoked.add(&job.id, self.now.wall);
                    self.rates.forget(&job.id);
                    self.unsaved = true;
                }
            }
            Action::Over => {
                self.entries.remove(key);
                self.let_go();
            }
        }
    }

    pub(crate) fn start(&mut self, key: DeliveryKey) {
        let ends = self.ends.clone();
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        let Payload::Task { job, run } = &entry.work else {
            return;
        };
        self.counters.start(&job.task);
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

    pub(crate) fn warn(&mut self, key: DeliveryKey) {
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        let Payload::Task { job, .. } = &entry.work else {
            return;
        };
        if job.control.signal_soft_limit() {
            return;
        }
        entry.abort();
        let outcome = Outcome::Error {
            error: soft_limit_exceeded(),
            random: env::random(),
        };
        self.event(key, DeliveryEvent::Returned(outcome));
    }

    pub(crate) fn step(&mut self, key: DeliveryKey, step: Effect) {
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        let now = self.now.wall;
        let step = match step {
            Effect::Settle(verdict) => {
                if let (Disposition::Park(until), Payload::Task { job, .. }) =
                    (verdict, &entry.work)
                {
                    let hostname = &self.executor.messages.hostname;
                    self.scheduled.note(job, until, hostname);
                }
                let settlement = settlement(verdict, entry.tag.clone());
                return self.settlements.push((key, settlement));
            }
            Effect::CheckAdmission => {
                let Payload::Task { job, .. } = &entry.work else {
                    return;
                };
                let job = Arc::clone(job);
                return self.ask(key, job);
            }
            Effect::Store(report) => self.executor.store(entry, report, now),
            Effect::Send(letter) => self.executor.send(entry, &letter, now),
            Effect::Continue(turn) => self.executor.lead(entry, &turn, now),
            Effect::Workflow(deed) => self.executor.deed(deed),
            // Told by the life itself.
            Effect::Emit(_) => return,
        };
        let step = step.map(move |result| Finished::Stepped(key, result));
        self.futures.push(Box::pin(step));
    }

    /// Asks what speaks against the start of a task.
    pub(crate) fn ask(&mut self, key: DeliveryKey, job: Arc<Job>) {
        let Some(task) = self.decoder.registry.find(&job.task) else {
            return;
        };
        let Declaration {
            params, options, ..
        } = &task.declaration;
        let checks = self.decoder.checks(options, job.redelivered);
        let lock = checks.unique.and_then(|unique| {
            // A task whose arguments cannot be decoded fails when it runs.
            unique.key(&job.task, params, || job.payload()).ok()
        });
        let deadline = self.executor.deadline;
        let object = format!("what task {} has to wait for", job.id);
        self.futures.push(Box::pin(async move {
            let asking = admission::ask(job, lock, checks);
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
        Disposition::Park(until) => Settlement::Defer(tag, until),
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
