//! Carries out what the deliveries' state machines decide.
//!
//! One task owns everything: it waits for whatever happens next, tells the
//! delivery concerned, and turns the actions that come back into futures. It
//! decides nothing about a delivery itself. Settlements that come up together
//! leave together.

mod argument;
mod command;
mod describe;
mod election;
mod ending;
mod inspect;
mod line;
mod notices;
mod queues;
mod revocation;
mod settling;
mod size;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::carrier::{Carried, Carrier};
use super::delivery::{
    Action, Answer, Event, Obstacle, Outcome, Revocation, Step, Stop, Verdict, soft_limit_exceeded,
};
use super::ears::Ears;
use super::entries::{Entries, Entry, Key, Work};
use super::gate::Lock;
use super::herald::Herald;
use super::intake::{Intake, Read};
use super::life::Life;
use super::rates::Rates;
use super::revoked::Revoked;
use super::scheduled::Scheduled;
use super::supervisor::Supervisor;
use super::sweeper::Sweeper;
use super::tally::Tally;
use super::watchdog::Watchdog;
use super::{Command, WorkerError, gate, pool};
use crate::broker::{BoxFuture, Consumer, Delivery, DeliveryTag, Settled, Settlement};
use crate::clock::{Clock, Now};
use crate::config::{OnUnknown, WorkerSettings};
use crate::error::ServiceError;
use crate::lamport::LogicalClock;
use crate::task::{Declaration, Job};
pub(crate) use describe::describe;
use election::Election;
use queues::Change;
pub(crate) use size::{prefetch, window};

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
enum Finished {
    /// What the peers answered at the start.
    Mingled(Vec<celery_protocol::ControlReply>),
    Changed(Change),
    Answered(Key, Result<(Answer, Option<Lock>), Obstacle>),
    Marked,
    Nothing,
    Connected(Result<Arc<dyn Consumer>, ServiceError>),
    Received(Arc<dyn Consumer>, Result<Vec<Delivery>, ServiceError>),
    Settled(
        Arc<dyn Consumer>,
        Vec<Key>,
        Vec<Result<Settled, ServiceError>>,
    ),
    Stepped(Key, Carried),
}

/// Sizes of the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tasks at the same time, at the start.
    pub(crate) concurrency: usize,
    /// Tasks at the same time and in line, for each of them; 0 is without limit.
    pub(crate) multiplier: usize,
    /// How long a stop waits for results and acknowledgements after the last
    /// task has ended.
    pub(crate) grace: Duration,
}

/// What the driver is made of.
pub(crate) struct Parts {
    pub(crate) intake: Intake,
    pub(crate) carrier: Arc<Carrier>,
    pub(crate) sweeper: Option<Sweeper>,
    pub(crate) clock: Clock,
    pub(crate) supervisor: Supervisor,
    pub(crate) limits: Limits,
    pub(crate) watchdog: Watchdog,
    pub(crate) settings: Arc<WorkerSettings>,
    pub(crate) lamport: LogicalClock,
    pub(crate) herald: Herald,
    pub(crate) ears: Ears,
    /// What is asked of the peers before the first delivery is taken.
    pub(crate) mingle: Option<BoxFuture<'static, Vec<celery_protocol::ControlReply>>>,
    pub(crate) commands: HashMap<String, Command>,
    /// Most and fewest slots, where their number follows the load.
    pub(crate) autoscale: Option<(usize, usize)>,
}

/// The running worker.
pub(crate) struct Driver {
    intake: Intake,
    carrier: Arc<Carrier>,
    /// Works by itself while this lives.
    _sweeper: Option<Sweeper>,
    on_unknown: OnUnknown,
    clock: Clock,
    supervisor: Supervisor,
    limits: Limits,
    watchdog: Watchdog,
    settings: Arc<WorkerSettings>,
    consumer: Option<Arc<dyn Consumer>>,
    /// Consumers that were replaced and have deliveries in hand.
    retired: Vec<Arc<dyn Consumer>>,
    receiving: bool,
    entries: Entries,
    pending: usize,
    /// Those of the pending ones that are not acknowledged.
    unsettled: usize,
    line: VecDeque<Key>,
    concurrency: usize,
    /// Threads for blocking tasks, one for each slot.
    threads: usize,
    /// Slots that are taken; more than there are, right after some went.
    busy: usize,
    autoscale: Option<(usize, usize)>,
    /// How often other queues were asked for.
    changes: u64,
    /// Which of them the connection that is being made is for.
    connected_to: u64,
    connecting: bool,
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    /// Unbounded, and bounded all the same: each entry sends one message.
    ended: mpsc::UnboundedReceiver<(Key, Outcome)>,
    ends: mpsc::UnboundedSender<(Key, Outcome)>,
    futures: FuturesUnordered<BoxFuture<'static, Finished>>,
    settlements: Vec<(Key, Settlement)>,
    stopping: Option<Stop>,
    /// When a soft stop becomes a cold one.
    soft_until: Option<Instant>,
    /// Set with the stop, once no task runs any more.
    give_up_at: Option<Instant>,
    failure: Option<ServiceError>,
    /// Read once for everything that is handled together.
    now: Now,
    /// Kept from event to event for its memory.
    actions: Vec<Action>,

    // What others see of the worker, and tell it.
    lamport: LogicalClock,
    herald: Herald,
    ears: Ears,
    mingling: bool,
    commands: HashMap<String, Command>,
    elections: Vec<Election>,
    revoked: Revoked,
    /// Revoked ids whose results are to say so.
    marks: VecDeque<String>,
    marking: bool,
    /// Whether the state file is behind.
    unsaved: bool,
    saved_at: Instant,
    rates: Rates,
    /// The limits as they were written, by task.
    rate_limits: HashMap<String, String>,
    scheduled: Scheduled,
    tally: Tally,
    beat_at: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            intake,
            carrier,
            sweeper,
            clock,
            supervisor,
            limits,
            watchdog,
            settings,
            lamport,
            herald,
            ears,
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
            on_unknown: carrier.desk.sender.config.on_unknown,
            intake,
            carrier,
            _sweeper: sweeper,
            clock,
            supervisor,
            limits,
            watchdog,
            consumer: None,
            retired: Vec::new(),
            receiving: false,
            entries: Entries::default(),
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
            lamport,
            herald,
            ears,
            mingling,
            commands,
            elections: Vec::new(),
            revoked: Revoked::new(settings.revokes_max, settings.revoke_expires),
            marks: VecDeque::new(),
            marking: false,
            unsaved: false,
            saved_at: now.instant,
            rates: Rates::default(),
            rate_limits: HashMap::new(),
            scheduled: Scheduled::default(),
            tally: Tally::new(),
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
                        self.event(key, Event::Returned(outcome));
                    }
                }
                Some(finished) = self.futures.next() => {
                    self.now = self.clock.moment();
                    self.finish(finished);
                }
                heard = self.ears.next() => {
                    self.now = self.clock.moment();
                    self.hear(heard);
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
            if let Some(heard) = self.ears.next().now_or_never() {
                self.hear(heard);
            }
        }
        self.close().await
    }

    /// Sends off what has collected: settlements, free slots, the next receive.
    fn pump(&mut self) {
        while self.busy < self.concurrency {
            let Some(key) = self.line.pop_front() else {
                break;
            };
            // Left the line meanwhile, as at a stop.
            let Some(entry) = self.entries.find(key).filter(|one| one.life.is_waiting()) else {
                continue;
            };
            if let Work::Task { job, .. } = &entry.work
                && self.revoked.covers(job)
            {
                self.event(key, Event::Revoked(Revocation::Unstarted));
                continue;
            }
            self.busy += 1;
            self.event(key, Event::Slot);
        }
        self.herald.flush();
        self.send_marks();
        self.send_settlements();
        self.receive();
        if self.stopping.is_some() && self.give_up_at.is_none() && self.busy == 0 {
            self.give_up_at = Some(Instant::now() + self.limits.grace);
        }
    }

    fn reconnect(&mut self) {
        self.connected_to = self.changes;
        if self.supervisor.options.queues.is_empty() {
            return;
        }
        self.connecting = true;
        let connecting = self.supervisor.connect();
        self.futures
            .push(Box::pin(async { Finished::Connected(connecting.await) }));
    }

    fn receive(&mut self) {
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

    fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Mingled(replies) => {
                self.mingling = false;
                self.learn(replies);
            }
            Finished::Changed(change) => self.changed(change),
            Finished::Answered(key, Ok((answer, lock))) => {
                if let Some(entry) = self.entries.find_mut(key) {
                    entry.lock = lock;
                }
                self.event(key, Event::Answered(answer));
            }
            Finished::Answered(key, Err(obstacle)) => self.event(key, Event::Failed(obstacle)),
            Finished::Marked => self.marking = false,
            Finished::Nothing => {}
            Finished::Connected(connected) => {
                self.connecting = false;
                self.connected(connected);
            }
            Finished::Received(consumer, received) => self.received(&consumer, received),
            Finished::Settled(consumer, keys, settled) => self.settled(&consumer, keys, settled),
            Finished::Stepped(key, Ok(deeds)) if deeds.is_empty() => self.event(key, Event::Done),
            Finished::Stepped(key, Ok(deeds)) => self.event(key, Event::Led(deeds)),
            Finished::Stepped(key, Err(obstacle)) => self.event(key, Event::Failed(obstacle)),
        }
    }

    fn connected(&mut self, connected: Result<Arc<dyn Consumer>, ServiceError>) {
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

    fn lose_link(&mut self, error: ServiceError) {
        let survives = self.consumer.take().is_some() && self.settles_after_reconnect();
        self.supervisor.lost(error);
        if !survives {
            // They share the connection.
            self.retired.clear();
            for key in self.entries.keys() {
                self.event(key, Event::Withdrawn);
                if self.settings.cancel_on_connection_loss {
                    self.event(key, Event::Revoked(Revocation::ConnectionLost));
                }
                self.entries.note_withdrawn(key);
            }
        }
        self.reconnect();
    }

    fn tick(&mut self) {
        let now = self.now.instant;
        while let Some(Reverse((time, key))) = self.timers.peek().copied() {
            if time > now {
                break;
            }
            self.timers.pop();
            self.event(key, Event::Tick);
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

    fn wake_at(&self) -> Option<Instant> {
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
    fn admit(&mut self, delivery: Delivery, consumer: &Arc<dyn Consumer>) {
        let again = delivery.redelivered || delivery.delivery_count.is_some_and(|count| count > 0);
        let (life, work) = match self.intake.read(
            delivery.content,
            delivery.redelivered,
            delivery.delivery_count,
        ) {
            Read::Task { job, .. }
                if again && self.regain(&job, &delivery.queue, &delivery.tag, consumer) =>
            {
                return;
            }
            Read::Task { job, run, plan } => (Life::of_task(plan), Work::Task { job, run }),
            Read::Refused { content, refusal } => {
                tracing::error!(
                    "cannot run a message of queue {}: {}",
                    delivery.queue,
                    refusal.detail
                );
                self.tell_refused(&refusal);
                (
                    Life::refused(refusal, self.on_unknown),
                    Work::Refused(content),
                )
            }
        };
        let mut entry = Entry::new(
            life,
            delivery.tag,
            Arc::downgrade(consumer),
            delivery.queue,
            work,
        );
        let mut first = Event::Arrived;
        if let Work::Task { job, .. } = &entry.work {
            entry.was_scheduled = self.scheduled.take(&job.id);
            if self.revoked.contains(&job.id) {
                tracing::info!("task {} is revoked", job.id);
                first = Event::Revoked(Revocation::Unstarted);
            }
        }
        let key = self.entries.insert(entry);
        self.event(key, first);
        self.scale_up();
        if let Some(stop) = self.stopping {
            self.event(key, Event::Stop(stop));
        }
    }

    /// Hands a delivery to the entry that lost it with its connection, if there
    /// is one.
    fn regain(
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
        self.event(key, Event::Regained);
        true
    }

    /// Tells a delivery what happened and does what it asks for.
    fn event(&mut self, key: Key, event: Event) {
        let now = self.now;
        let mut actions = std::mem::take(&mut self.actions);
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        if matches!(event, Event::Done | Event::Led(_)) {
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

    fn act(&mut self, key: Key, action: Action) {
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
            Action::Step(step) => self.step(key, step),
            Action::Tell(notice) => self.tell(key, notice),
            Action::Expired => {
                if let Some(Work::Task { job, .. }) = self.entries.find(key).map(|one| &one.work) {
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

    fn start(&mut self, key: Key) {
        let ends = self.ends.clone();
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        let Work::Task { job, run } = &entry.work else {
            return;
        };
        self.tally.start(&job.task);
        let task = pool::run(Arc::clone(run), Arc::clone(job));
        let task = self.watchdog.watch(job, task);
        // Owned by the entry: aborted by it, or by the driver's end.
        let running = tokio::spawn(async move {
            // The driver is gone only when nobody waits for the outcome.
            let _ = ends.send((key, task.await));
        });
        entry.running = Some(running.abort_handle());
        entry.started = Some(self.now);
    }

    fn warn(&mut self, key: Key) {
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        let Work::Task { job, .. } = &entry.work else {
            return;
        };
        if job.control.reach_soft_limit() {
            return;
        }
        entry.abort();
        let outcome = Outcome::Error {
            error: soft_limit_exceeded(),
            random: fastrand::f64(),
        };
        self.event(key, Event::Returned(outcome));
    }

    fn step(&mut self, key: Key, step: Step) {
        let Some(entry) = self.entries.find_mut(key) else {
            return;
        };
        let now = self.now.wall;
        let step = match step {
            Step::Settle(verdict) => {
                if let (Verdict::Park(until), Work::Task { job, .. }) = (verdict, &entry.work) {
                    let hostname = &self.carrier.desk.hostname;
                    self.scheduled.note(job, until, hostname);
                }
                let settlement = settlement(verdict, entry.tag.clone());
                return self.settlements.push((key, settlement));
            }
            Step::Ask => {
                let Work::Task { job, .. } = &entry.work else {
                    return;
                };
                let job = Arc::clone(job);
                return self.ask(key, job);
            }
            Step::Store(report) => self.carrier.store(entry, report, now),
            Step::Send(letter) => self.carrier.send(entry, &letter, now),
            Step::Lead(turn) => self.carrier.lead(entry, &turn, now),
            Step::Deed(deed) => self.carrier.deed(deed),
            // Told by the life itself.
            Step::Tell(_) => return,
        };
        let step = step.map(move |carried| Finished::Stepped(key, carried));
        self.futures.push(Box::pin(step));
    }

    /// Asks what speaks against the start of a task.
    fn ask(&mut self, key: Key, job: Arc<Job>) {
        let Some(task) = self.intake.registry.find(&job.task) else {
            return;
        };
        let Declaration {
            params, options, ..
        } = &task.declaration;
        let questions = self.intake.questions(options, job.redelivered);
        let services = &job.services;
        let lock = questions.unique.and_then(|unique| {
            let (accept, limit) = (&services.accept, services.body_limit);
            // Where the arguments cannot be read, the task fails by itself.
            unique
                .key(&job.task, params, &job.message, accept, limit)
                .ok()
        });
        let deadline = self.carrier.deadline;
        let object = format!("what task {} has to wait for", job.id);
        self.futures.push(Box::pin(async move {
            let asking = gate::ask(job, lock, questions);
            let answer = match tokio::time::timeout(deadline, asking).await {
                Ok(answer) => answer,
                Err(_) => {
                    let error = ServiceError::no_answer("find out", &object, deadline);
                    tracing::warn!("{error}");
                    Err(Obstacle::Passing)
                }
            };
            Finished::Answered(key, answer)
        }));
    }

    fn hostname(&self) -> &str {
        &self.carrier.desk.hostname
    }
}

fn settlement(verdict: Verdict, tag: DeliveryTag) -> Settlement {
    match verdict {
        Verdict::Ack => Settlement::Ack(tag),
        Verdict::Reject => Settlement::Reject(tag),
        Verdict::Requeue(end) => Settlement::Requeue(tag, end),
        Verdict::Park(until) => Settlement::Defer(tag, until),
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
