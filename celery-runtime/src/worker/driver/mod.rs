//! The worker's loop: one task that owns the parts of a worker.
//!
//! It waits for the next input, passes it to the part concerned and carries out what
//! that part returns. The decisions are made in the pure types of
//! [`core`](crate::worker::core) and [`delivery`](crate::worker::delivery), and the
//! parts in [`io`](crate::worker::io) own connections and tasks. The files here have
//! the steps in which several parts take part. Settlements that are ready together
//! are sent together.
//!
//! - [`connection`]: connecting, receiving, changed queues;
//! - [`deliveries`]: received deliveries and their events; [`actions`]: tasks and
//!   effects; [`settle`]: settlements;
//! - [`slots`]: concurrency; [`pool`]: running tasks; [`stop`]: shutdown;
//! - [`command`]: remote control; [`revocations`].

mod actions;
pub(crate) mod command;
mod connection;
mod deliveries;
pub(crate) mod pool;
mod revocations;
mod settle;
mod slots;
mod stop;

use std::sync::Arc;
use std::time::Instant;

use celery_protocol::ControlReply;
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::boundary::{BoxFuture, Consumer, DeliveryTag, ServiceError, Settled, Settlement};
use crate::config::WorkerSettings;
use crate::env::Now;
use crate::worker::core::rate_limits::RateLimits;
use crate::worker::core::revocations::Revocations;
use crate::worker::core::shutdown::Shutdown;
use crate::worker::core::slots::Slots;
use crate::worker::core::window::Window;
use crate::worker::delivery::decode::MessageDecoder;
use crate::worker::delivery::event::{Admission, DeliveryEvent, EffectError, Outcome, Stop};
use crate::worker::delivery::in_flight::{DeliveryKey, InFlight, LockGuard, Payload};
use crate::worker::driver::connection::ChangedQueues;
use crate::worker::driver::pool::Pool;
use crate::worker::effects::executor::{EffectExecutor, EffectResult};
use crate::worker::error::WorkerError;
use crate::worker::io::admission::UniqueLock;
use crate::worker::io::connection::{Connection, Received};
use crate::worker::io::control_receiver::Incoming;
use crate::worker::io::monitor::Monitor;
use crate::worker::io::remote::Remote;
use crate::worker::io::sweeper::ChordSweeper;

/// Most deliveries received at once, and most outcomes handled between two turns
/// of the loop.
const BATCH_SIZE: usize = 256;

/// The result of a future of the driver.
pub(crate) enum Finished {
    /// The replies of the peers to `hello` (mingle).
    Mingled(Vec<ControlReply>),
    QueuesChanged(ChangedQueues),
    AdmissionChecked(
        DeliveryKey,
        Result<(Admission, Option<UniqueLock>), EffectError>,
    ),
    RevocationsWritten,
    Nothing,
    Connected(Result<Arc<dyn Consumer>, ServiceError>),
    Received(Received),
    Settled(
        Arc<dyn Consumer>,
        Vec<DeliveryKey>,
        Vec<Result<Settled, ServiceError>>,
    ),
    EffectPerformed(DeliveryKey, EffectResult),
    Restored(DeliveryKey, Result<(), EffectError>),
}

/// What the loop waits for.
enum Input {
    Stop(Stop),
    Outcomes,
    LeasesLost(Vec<DeliveryTag>),
    Finished(Finished),
    Remote(Incoming),
    Timeout,
}

/// The running worker: one task that owns its components.
pub(crate) struct Driver {
    pub(crate) settings: Arc<WorkerSettings>,
    /// The time of the current turn of the loop.
    pub(crate) now: Now,
    pub(crate) decoder: MessageDecoder,
    pub(crate) executor: Arc<EffectExecutor>,
    pub(crate) connection: Connection,
    pub(crate) in_flight: InFlight,
    pub(crate) window: Window,
    pub(crate) slots: Slots<DeliveryKey>,
    pub(crate) rates: RateLimits,
    pub(crate) revocations: Revocations,
    pub(crate) shutdown: Shutdown,
    pub(crate) monitor: Monitor,
    pub(crate) remote: Remote,
    pub(crate) pool: Pool,
    pub(crate) futures: FuturesUnordered<BoxFuture<'static, Finished>>,
    pub(crate) settlements: Vec<(DeliveryKey, Settlement)>,
}

impl Driver {
    /// Prepares the loop: prefetch, state file, mingle.
    pub(crate) fn prepare(&mut self) {
        self.set_prefetch();
        self.load_state();
        if let Some(mingle) = self.remote.mingle() {
            self.futures.push(Box::pin(mingle.map(Finished::Mingled)));
        }
    }

    /// Runs until a shutdown was requested and all deliveries are settled.
    pub(crate) async fn run(
        mut self,
        mut stops: impl FnMut() -> BoxFuture<'static, Stop>,
    ) -> Result<(), WorkerError> {
        let _sweeper = ChordSweeper::start(&self.executor);
        self.connect();
        self.emit_worker_event("worker-online");
        let mut stop = stops();
        let mut outcomes = Vec::with_capacity(BATCH_SIZE);
        loop {
            self.flush();
            self.receive();
            if self.is_over() {
                return self.close().await;
            }
            let timeout = self.next_timeout();
            let input = tokio::select! {
                biased;
                kind = &mut stop => Input::Stop(kind),
                () = self.pool.ended(&mut outcomes, BATCH_SIZE) => Input::Outcomes,
                tags = self.connection.lost_leases() => Input::LeasesLost(tags),
                Some(finished) = self.futures.next() => Input::Finished(finished),
                incoming = self.remote.next() => Input::Remote(incoming),
                () = sleep_until(timeout), if timeout.is_some() => Input::Timeout,
            };
            self.now = self.executor.clock.moment();
            match input {
                Input::Stop(kind) => {
                    self.stop(kind);
                    stop = stops();
                }
                Input::Outcomes => self.handle_outcomes(&mut outcomes),
                Input::LeasesLost(tags) => self.leases_lost(&tags),
                Input::Finished(finished) => self.handle_effects(finished),
                Input::Remote(incoming) => self.handle_remote(incoming),
                Input::Timeout => {}
            }
            // The branches above are biased; timers must not starve.
            if timeout.is_some_and(|time| time <= self.now.instant) {
                self.handle_timers();
            }
            // Commands are read in each turn, so that a revocation sent before its
            // task prevents the start.
            if let Some(incoming) = self.remote.try_next() {
                self.handle_remote(incoming);
            }
        }
    }

    /// Grants free slots, and sends collected events and settlements.
    fn flush(&mut self) {
        while let Some(tags) = self.connection.lost_leases().now_or_never() {
            self.leases_lost(&tags);
        }
        // Another worker may have a delivery whose lease is not current.
        if self.connection.has_current_leases() {
            self.grant_slots();
        }
        self.monitor.flush();
        self.write_revocations();
        self.send_settlements();
        let is_idle = self.window.running() == 0;
        self.shutdown.set_idle(is_idle, self.now.instant);
    }

    /// Passes the outcomes of tasks to their deliveries.
    fn handle_outcomes(&mut self, outcomes: &mut Vec<(DeliveryKey, Outcome)>) {
        for (key, outcome) in outcomes.drain(..) {
            self.event(key, DeliveryEvent::Returned(outcome));
        }
    }

    /// Handles the result of a future.
    fn handle_effects(&mut self, finished: Finished) {
        match finished {
            Finished::Mingled(replies) => {
                self.remote.mingled();
                self.merge_peer_state(replies);
            }
            Finished::QueuesChanged(changed) => self.queues_changed(changed),
            Finished::AdmissionChecked(key, Ok((admission, lock))) => {
                if let Some(entry) = self.in_flight.find_mut(key) {
                    entry.lock = lock.map(|lock| Box::new(lock) as LockGuard);
                }
                self.event(key, DeliveryEvent::AdmissionChecked(admission));
            }
            Finished::AdmissionChecked(key, Err(error)) => {
                self.event(key, DeliveryEvent::Failed(error))
            }
            Finished::RevocationsWritten => self.revocations.written(),
            Finished::Nothing => {}
            Finished::Connected(connected) => self.connected(connected),
            Finished::Received(received) => self.received(received),
            Finished::Settled(consumer, keys, settled) => self.settled(&consumer, keys, settled),
            Finished::Restored(key, outcome) => {
                self.monitor.counters.returned += u64::from(outcome.is_ok());
                self.event(key, DeliveryEvent::Restored(outcome));
            }
            Finished::EffectPerformed(key, Ok(effects)) if effects.is_empty() => {
                self.event(key, DeliveryEvent::Done)
            }
            Finished::EffectPerformed(key, Ok(effects)) => {
                self.event(key, DeliveryEvent::DoneWith(effects))
            }
            Finished::EffectPerformed(key, Err(error)) => {
                self.event(key, DeliveryEvent::Failed(error))
            }
        }
    }

    /// Handles all timers that are due.
    fn handle_timers(&mut self) {
        let now = self.now.instant;
        while let Some(key) = self.in_flight.take_due(now) {
            self.event(key, DeliveryEvent::Tick);
        }
        if self.shutdown.end_soft_stage(now) {
            self.stop(Stop::Cold);
        }
        if self.shutdown.give_up(now) {
            self.give_up();
        }
        if self.monitor.take_heartbeat(now) {
            self.emit_worker_event("worker-heartbeat");
            self.scale_down();
        }
        self.decide_elections();
        if self.next_save().is_some_and(|time| time <= now) {
            self.save_state();
        }
    }

    /// Returns when the next timer is due.
    fn next_timeout(&self) -> Option<Instant> {
        let timer = self.in_flight.next_timeout();
        timer
            .into_iter()
            .chain(self.shutdown.deadline())
            .chain(self.monitor.next_heartbeat())
            .chain(self.remote.elections.next_decision())
            .chain(self.next_save())
            .min()
    }

    /// Emits an event of the worker.
    pub(crate) fn emit_worker_event(&mut self, kind: &str) {
        self.monitor
            .worker_event(kind, self.slots.busy(), self.now.wall);
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.executor.messages.hostname
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
