//! The worker's loop: one task that owns all components.
//!
//! It waits for the next input, passes it to the delivery concerned and performs
//! the resulting actions. What happens to a delivery is decided by its state
//! machine ([`delivery`](crate::worker::delivery)). Settlements that are ready
//! together are sent together.
//!
//! - [`connection`]: consumers, reconnecting, receiving, changed queues;
//! - [`deliveries`]: deliveries in flight and their events; [`actions`]: tasks and
//!   effects; [`settle`]: settlements;
//! - [`slots`], [`scale`]: concurrency; [`stop`]: shutdown;
//! - [`command`], [`remote`]: remote control; [`monitor`]: events;
//!   [`revocations`].

mod actions;
pub(crate) mod command;
mod connection;
mod deliveries;
pub(crate) mod pool;
mod revocations;
mod scale;
mod settle;
mod slots;
mod stop;

use std::sync::Arc;
use std::time::Instant;

use celery_protocol::ControlReply;
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::boundary::{BoxFuture, Consumer, ServiceError, Settled, Settlement};
use crate::config::{OnUnknown, WorkerSettings};
use crate::env::{Clock, Now};
use crate::worker::core::rate_limits::RateLimits;
use crate::worker::core::revocations::Revocations;
use crate::worker::core::shutdown::Shutdown;
use crate::worker::core::slots::Slots;
use crate::worker::core::window::Window;
use crate::worker::delivery::decode::MessageDecoder;
use crate::worker::delivery::event::{Admission, DeliveryEvent, EffectError, Stop};
use crate::worker::delivery::in_flight::{DeliveryKey, InFlight, LockGuard, Payload};
use crate::worker::driver::connection::ChangedQueues;
use crate::worker::driver::pool::Pool;
use crate::worker::effects::executor::{EffectExecutor, EffectResult};
use crate::worker::error::WorkerError;
use crate::worker::io::admission::UniqueLock;
use crate::worker::io::connection::{Connection, Received};
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

/// The running worker: one task that owns its components.
pub(crate) struct Driver {
    pub(crate) settings: Arc<WorkerSettings>,
    pub(crate) on_unknown: OnUnknown,
    pub(crate) clock: Clock,
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
    /// Sweeps stalled chords until it is dropped.
    pub(crate) _sweeper: Option<ChordSweeper>,
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
        self.connect();
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
                () = self.pool.ended(&mut ended, BATCH_SIZE) => {
                    self.now = self.clock.moment();
                    for (key, outcome) in ended.drain(..) {
                        self.event(key, DeliveryEvent::Returned(outcome));
                    }
                }
                tags = self.connection.lost_leases() => {
                    self.now = self.clock.moment();
                    self.leases_lost(&tags);
                }
                Some(finished) = self.futures.next() => {
                    self.now = self.clock.moment();
                    self.finish(finished);
                }
                incoming = self.remote.next() => {
                    self.now = self.clock.moment();
                    self.handle_incoming(incoming);
                }
                () = sleep_until(wake), if wake.is_some() => self.now = self.clock.moment(),
            }
            // The branches above are biased; timers must not starve.
            if wake.is_some_and(|wake| wake <= self.now.instant) {
                self.tick();
            }
            // Commands are read in each turn, so that a revocation sent before its
            // task prevents the start.
            if let Some(incoming) = self.remote.try_next() {
                self.handle_incoming(incoming);
            }
        }
        self.close().await
    }

    /// Grants free slots, sends collected events and settlements, and receives.
    pub(crate) fn flush(&mut self) {
        self.grant_slots();
        self.monitor.flush();
        self.write_revocations();
        self.send_settlements();
        self.receive();
        let is_idle = self.window.running() == 0;
        self.shutdown.set_idle(is_idle, self.now.instant);
    }

    /// Handles the result of a future.
    pub(crate) fn finish(&mut self, finished: Finished) {
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
    pub(crate) fn tick(&mut self) {
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
    pub(crate) fn wake_at(&self) -> Option<Instant> {
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
