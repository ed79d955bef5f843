//! Carries out what the deliveries' state machines decide.
//!
//! One task owns everything: it waits for whatever happens next, tells the
//! delivery concerned, and turns the actions that come back into futures. It
//! decides nothing about a delivery itself. Settlements that come up together
//! leave together.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::carrier::{Carried, Carrier};
use super::delivery::{Action, Event, Obstacle, Outcome, Step, Stop, Verdict, soft_limit_exceeded};
use super::entries::{Entries, Entry, Key, Work};
use super::intake::{Intake, Read};
use super::life::Life;
use super::supervisor::Supervisor;
use super::{WorkerError, pool};
use crate::broker::{BoxFuture, Consumer, Delivery, DeliveryTag, Settlement};
use crate::clock::{Clock, Moment};
use crate::config::OnUnknown;
use crate::error::ServiceError;
use crate::task::Job;

/// Most deliveries taken from the broker at once, and events handled between
/// two looks at everything else.
const BATCH: usize = 256;

/// Deliveries whose task is over and whose result or acknowledgement is still
/// on its way, beyond which no more are received: it bounds what a backend
/// that is away can pile up.
const FINISHING: usize = 4096;

/// What came of a future of the driver.
enum Finished {
    Connected(Result<Arc<dyn Consumer>, ServiceError>),
    Received(Result<Vec<Delivery>, ServiceError>),
    Settled(Vec<Key>, Result<(), ServiceError>),
    Stepped(Key, Carried),
}

/// Sizes of the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tasks at the same time.
    pub(crate) concurrency: usize,
    /// Tasks at the same time and in line.
    pub(crate) window: usize,
    /// How long a stop waits for results and acknowledgements after the last
    /// task has ended.
    pub(crate) grace: Duration,
}

/// The running worker.
pub(crate) struct Driver {
    intake: Intake,
    carrier: Carrier,
    on_unknown: OnUnknown,
    clock: Clock,
    supervisor: Supervisor,
    limits: Limits,
    consumer: Option<Arc<dyn Consumer>>,
    receiving: bool,
    entries: Entries,
    pending: usize,
    line: VecDeque<Key>,
    free: usize,
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    /// Unbounded, and bounded all the same: each entry sends one message.
    ended: mpsc::UnboundedReceiver<(Key, Outcome)>,
    ends: mpsc::UnboundedSender<(Key, Outcome)>,
    futures: FuturesUnordered<BoxFuture<'static, Finished>>,
    settlements: Vec<(Key, Settlement)>,
    stopping: Option<Stop>,
    /// Set with the stop, once no task runs any more.
    give_up_at: Option<Instant>,
    failure: Option<ServiceError>,
    /// Read once for everything that is handled together.
    now: Moment,
    /// Kept from event to event for its memory.
    actions: Vec<Action>,
}

impl Driver {
    pub(crate) fn new(
        intake: Intake,
        carrier: Carrier,
        clock: Clock,
        supervisor: Supervisor,
        limits: Limits,
    ) -> Self {
        let (ends, ended) = mpsc::unbounded_channel();
        let now = clock.moment();
        Self {
            on_unknown: carrier.desk.sender.config.on_unknown,
            intake,
            carrier,
            clock,
            supervisor,
            limits,
            consumer: None,
            receiving: false,
            entries: Entries::default(),
            pending: 0,
            line: VecDeque::new(),
            free: limits.concurrency,
            timers: BinaryHeap::new(),
            ended,
            ends,
            futures: FuturesUnordered::new(),
            settlements: Vec::new(),
            stopping: None,
            give_up_at: None,
            failure: None,
            now,
            actions: Vec::new(),
        }
    }

    /// Works until a stop is asked for and everything taken is dealt with.
    pub(crate) async fn run(
        mut self,
        mut stops: impl FnMut() -> BoxFuture<'static, Stop>,
    ) -> Result<(), WorkerError> {
        self.reconnect();
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
                () = sleep_until(wake), if wake.is_some() => {
                    self.now = self.clock.moment();
                    self.tick();
                }
            }
        }
        self.close().await
    }

    /// Sends off what has collected: settlements, free slots, the next receive.
    fn pump(&mut self) {
        while self.free > 0 {
            let Some(key) = self.line.pop_front() else {
                break;
            };
            // Left the line meanwhile, as at a stop.
            if self
                .entries
                .find(key)
                .is_none_or(|entry| !entry.life.is_waiting())
            {
                continue;
            }
            self.free -= 1;
            self.event(key, Event::Slot);
        }
        self.send_settlements();
        self.receive();
        if self.stopping.is_some()
            && self.give_up_at.is_none()
            && self.free == self.limits.concurrency
        {
            self.give_up_at = Some(Instant::now() + self.limits.grace);
        }
    }

    fn is_over(&self) -> bool {
        let settled = self.entries.is_empty() && !self.receiving;
        let given_up = self.give_up_at.is_some_and(|time| time <= Instant::now());
        self.stopping.is_some() && (settled || given_up)
    }

    async fn close(self) -> Result<(), WorkerError> {
        if let Some(consumer) = &self.consumer {
            let closed = tokio::time::timeout(self.carrier.deadline, consumer.close()).await;
            if let Ok(Err(error)) = closed {
                tracing::warn!("{error}");
            }
        }
        match (self.failure.clone(), self.entries.len()) {
            (Some(error), _) => Err(WorkerError::Broker(error)),
            (None, 0) => Ok(()),
            (None, count) => Err(WorkerError::Unsettled { count }),
        }
    }

    fn reconnect(&mut self) {
        let connecting = self.supervisor.connect();
        self.futures
            .push(Box::pin(async { Finished::Connected(connecting.await) }));
    }

    fn receive(&mut self) {
        let Some(consumer) = self.consumer.clone() else {
            return;
        };
        let finishing = self.entries.len() - self.pending;
        let room = self.limits.window.saturating_sub(self.pending).min(BATCH);
        let blocked = self.receiving || self.stopping.is_some() || finishing >= FINISHING;
        if blocked || room == 0 {
            return;
        }
        self.receiving = true;
        self.futures.push(Box::pin(async move {
            Finished::Received(consumer.receive(room).await)
        }));
    }

    fn send_settlements(&mut self) {
        if self.settlements.is_empty() {
            return;
        }
        // What has to be sent anew first may take long, and the others must not
        // wait for it.
        let is_quick = |(_, settlement): &(Key, Settlement)| settlement.is_quick();
        let all = std::mem::take(&mut self.settlements);
        let (quick, slow): (Vec<_>, Vec<_>) = all.into_iter().partition(is_quick);
        for batch in [quick, slow] {
            if !batch.is_empty() {
                self.send_batch(batch);
            }
        }
    }

    fn send_batch(&mut self, batch: Vec<(Key, Settlement)>) {
        let (keys, batch): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let Some(consumer) = self.consumer.clone() else {
            for key in keys {
                self.event(key, Event::Failed(Obstacle::Passing));
            }
            return;
        };
        let deadline = self.carrier.deadline;
        self.futures.push(Box::pin(async move {
            let result = match tokio::time::timeout(deadline, consumer.settle(&batch)).await {
                Ok(result) => result,
                Err(_) => Err(ServiceError::no_answer("settle", "deliveries", deadline)),
            };
            Finished::Settled(keys, result)
        }));
    }

    fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Connected(Ok(consumer)) => {
                if self.stopping.is_some() {
                    consumer.interrupt();
                }
                self.consumer = Some(consumer);
            }
            Finished::Connected(Err(error)) => {
                tracing::error!("the worker stops: {error}");
                self.failure = Some(error);
                self.stop(Stop::Warm);
            }
            Finished::Received(Ok(deliveries)) => {
                self.receiving = false;
                for delivery in deliveries {
                    self.admit(delivery);
                }
            }
            Finished::Received(Err(error)) => {
                self.receiving = false;
                self.lose_link(error);
            }
            Finished::Settled(keys, Ok(())) => {
                for key in keys {
                    self.event(key, Event::Done);
                }
            }
            Finished::Settled(keys, Err(error)) => {
                tracing::warn!("{error}");
                let obstacle = Obstacle::from(&error);
                for key in keys {
                    self.event(key, Event::Failed(obstacle.clone()));
                }
            }
            Finished::Stepped(key, Ok(())) => self.event(key, Event::Done),
            Finished::Stepped(key, Err(obstacle)) => self.event(key, Event::Failed(obstacle)),
        }
    }

    fn lose_link(&mut self, error: ServiceError) {
        let survives = self
            .consumer
            .take()
            .is_some_and(|consumer| consumer.settles_after_reconnect());
        self.supervisor.lost(error);
        if !survives {
            for key in self.entries.keys() {
                self.event(key, Event::Withdrawn);
                self.entries.note_withdrawn(key);
            }
        }
        self.reconnect();
    }

    fn stop(&mut self, stop: Stop) {
        tracing::info!("{stop:?} stop: {} deliveries in hand", self.entries.len());
        self.stopping = Some(stop);
        if let Some(consumer) = &self.consumer {
            consumer.interrupt();
        }
        // The last one taken goes back first, so that they line up at the
        // head of the queue in the order in which they were taken.
        for key in self.entries.keys().into_iter().rev() {
            self.event(key, Event::Stop(stop));
        }
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
    }

    fn wake_at(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((time, _))| *time);
        timer.into_iter().chain(self.give_up_at).min()
    }

    /// Takes a delivery in. One that is the return of what runs here already
    /// starts nothing.
    fn admit(&mut self, delivery: Delivery) {
        let again = delivery.redelivered || delivery.delivery_count.is_some_and(|count| count > 0);
        let (life, work) = match self.intake.read(
            delivery.content,
            delivery.redelivered,
            delivery.delivery_count,
        ) {
            Read::Task { job, .. }
                if again && self.regain(&job, &delivery.queue, &delivery.tag) =>
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
                (
                    Life::refused(refusal, self.on_unknown),
                    Work::Refused(content),
                )
            }
        };
        let entry = Entry::new(life, delivery.tag, delivery.queue, work);
        let key = self.entries.insert(entry);
        self.event(key, Event::Arrived);
        if let Some(stop) = self.stopping {
            self.event(key, Event::Stop(stop));
        }
    }

    /// Hands a delivery to the entry that lost it with its connection, if there
    /// is one.
    fn regain(&mut self, job: &Job, queue: &str, tag: &DeliveryTag) -> bool {
        let Some(key) = self.entries.take_returned(job, queue) else {
            return false;
        };
        if let Some(entry) = self.entries.find_mut(key) {
            entry.tag = tag.clone();
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
        if matches!(event, Event::Done) {
            entry.letters = None;
        }
        let was_pending = entry.life.is_pending();
        entry.life.handle(event, now, &mut actions);
        let is_pending = entry.life.is_pending();
        if let Some(time) = entry.life.timeout() {
            self.timers.push(Reverse((time, key)));
        }
        self.pending = self.pending + usize::from(is_pending) - usize::from(was_pending);
        for action in actions.drain(..) {
            self.act(key, action);
        }
        self.actions = actions;
    }

    fn act(&mut self, key: Key, action: Action) {
        match action {
            Action::Queue => self.line.push_back(key),
            Action::FreeSlot => self.free += 1,
            Action::Start => self.start(key),
            Action::Warn => self.warn(key),
            Action::Abort => {
                if let Some(entry) = self.entries.find_mut(key) {
                    entry.abort();
                }
            }
            Action::Step(step) => self.step(key, step),
            Action::Over => self.entries.remove(key),
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
        let task = pool::run(Arc::clone(run), Arc::clone(job));
        // Owned by the entry: aborted by it, or by the driver's end.
        let running = tokio::spawn(async move {
            // The driver is gone only when nobody waits for the outcome.
            let _ = ends.send((key, task.await));
        });
        entry.running = Some(running.abort_handle());
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
                let settlement = settlement(verdict, entry.tag.clone());
                return self.settlements.push((key, settlement));
            }
            Step::Store(report) => self.carrier.store(entry, report, now),
            Step::Send(letter) => self.carrier.send(entry, &letter, now),
        };
        let step = step.map(move |carried| Finished::Stepped(key, carried));
        self.futures.push(Box::pin(step));
    }
}

fn settlement(verdict: Verdict, tag: DeliveryTag) -> Settlement {
    match verdict {
        Verdict::Ack => Settlement::Ack(tag),
        Verdict::Reject => Settlement::Reject(tag),
        Verdict::Requeue(end) => Settlement::Requeue(tag, end),
        Verdict::Park(until) => Settlement::Park(tag, until),
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
