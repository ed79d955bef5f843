//! The connection to the broker: consumers, and changes of the consumed queues.
//!
//! A consumer's queues are fixed. Another set of queues is another consumer: the
//! old one is interrupted, which makes it return prefetched deliveries, and lives
//! until its last delivery is settled.

use std::sync::{Arc, Weak};

use celery_protocol::{ControlRequest, Value};

use crate::boundary::{Consumer, Delivery, ServiceError};
use crate::worker::delivery::event::{DeliveryEvent, Revocation, Stop};
use crate::worker::driver::{BATCH_SIZE, Driver, Finished};
use crate::worker::io::supervisor::Supervisor;

/// The consumers of a worker.
pub(crate) struct Connection {
    pub(crate) supervisor: Supervisor,
    pub(crate) consumer: Option<Arc<dyn Consumer>>,
    /// Replaced consumers that still have deliveries in flight.
    pub(crate) retired: Vec<Arc<dyn Consumer>>,
    pub(crate) is_receiving: bool,
    pub(crate) is_connecting: bool,
    /// The number of changes of the consumed queues.
    pub(crate) queue_generation: u64,
    /// The generation that the connection attempt in progress is for.
    pub(crate) connected_generation: u64,
}

impl Connection {
    pub(crate) fn new(supervisor: Supervisor) -> Self {
        Self {
            supervisor,
            consumer: None,
            retired: Vec::new(),
            is_receiving: false,
            is_connecting: false,
            queue_generation: 0,
            connected_generation: 0,
        }
    }

    /// Whether a new consumer can settle the deliveries of an old one.
    pub(crate) fn settles_after_reconnect(&self) -> bool {
        self.supervisor
            .broker
            .capabilities()
            .settles_after_reconnect
    }

    pub(crate) fn is_current(&self, consumer: &Arc<dyn Consumer>) -> bool {
        let current = self.consumer.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, consumer))
    }
}

/// The consumer for changed queues, or the error that prevented it.
pub(crate) struct QueueChange {
    request: ControlRequest,
    done: Value,
    /// Only the consumer of the newest generation is used.
    generation: u64,
    consumer: Result<Arc<dyn Consumer>, ServiceError>,
}

impl Driver {
    /// Replaces the consumer by one for the supervisor's changed queues.
    pub(crate) fn change_queues(&mut self, request: ControlRequest, done: Value) {
        self.connection.queue_generation += 1;
        let generation = self.connection.queue_generation;
        let Some(consumer) = &self.connection.consumer else {
            // The next connection consumes the new queues.
            if !self.connection.is_connecting {
                self.reconnect();
            }
            return self.answer(&request, Ok(done));
        };
        if self.connection.supervisor.options.queues.is_empty() {
            // The consumer still settles deliveries in flight.
            consumer.interrupt();
            return self.answer(&request, Ok(done));
        }
        let supervisor = self.connection.supervisor.clone();
        self.futures.push(Box::pin(async move {
            let consumer = supervisor.attempt().await;
            Finished::QueuesChanged(QueueChange {
                request,
                done,
                generation,
                consumer,
            })
        }));
    }

    pub(crate) fn changed(&mut self, change: QueueChange) {
        let QueueChange {
            request,
            done,
            generation,
            consumer,
        } = change;
        match consumer {
            Ok(consumer) if generation == self.connection.queue_generation => {
                self.replace_consumer(consumer);
                self.answer(&request, Ok(done));
            }
            // A newer change is in progress.
            Ok(_) => self.answer(&request, Ok(done)),
            Err(error) => {
                if let Some(name) = request.arguments.get("queue").and_then(Value::as_str) {
                    let queues = &mut self.connection.supervisor.options.queues;
                    queues.retain(|queue| queue.name != name);
                }
                self.answer(
                    &request,
                    Err(format!("OperationalError({:?})", error.to_string())),
                );
            }
        }
    }

    fn replace_consumer(&mut self, consumer: Arc<dyn Consumer>) {
        if self.shutdown.is_requested() {
            consumer.interrupt();
        }
        if let Some(old) = self.connection.consumer.replace(consumer) {
            old.interrupt();
            self.connection.retired.push(old);
        }
        self.connection.is_receiving = false;
        self.drop_drained_consumers();
    }

    /// Drops replaced consumers without deliveries in flight.
    pub(crate) fn drop_drained_consumers(&mut self) {
        if !self.connection.retired.is_empty() {
            let entries = &self.in_flight;
            self.connection
                .retired
                .retain(|consumer| entries.any_of(consumer));
        }
    }

    /// Handles the answer of a receive; the consumer may be a replaced one.
    pub(crate) fn received(
        &mut self,
        consumer: &Arc<dyn Consumer>,
        received: Result<Vec<Delivery>, ServiceError>,
    ) {
        let is_current = self.connection.is_current(consumer);
        if is_current {
            self.connection.is_receiving = false;
        }
        match received {
            Ok(deliveries) => {
                if !is_current {
                    self.connection.retired.push(Arc::clone(consumer));
                }
                for delivery in deliveries {
                    self.admit(delivery, consumer);
                }
                self.drop_drained_consumers();
            }
            Err(error) if is_current => self.connection_lost(error),
            // The broker redelivers its deliveries; the current consumer detects
            // a broken connection itself.
            Err(error) => {
                tracing::warn!("{error}");
                self.invalidate_deliveries_of(consumer);
            }
        }
    }

    /// Marks the deliveries of a broken consumer as no longer settleable.
    pub(crate) fn invalidate_deliveries_of(&mut self, consumer: &Arc<dyn Consumer>) {
        if self.connection.settles_after_reconnect() {
            return;
        }
        for key in self.in_flight.keys() {
            let is_its = self
                .in_flight
                .find(key)
                .is_some_and(|entry| Weak::ptr_eq(&entry.consumer, &Arc::downgrade(consumer)));
            if is_its {
                self.event(key, DeliveryEvent::ConnectionLost);
                self.in_flight.record_invalidated(key);
            }
        }
    }
}

impl Driver {
    /// Connects to the consumed queues, with the supervisor's back-off.
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

    /// Requests deliveries if the window has room and nothing forbids it.
    pub(crate) fn receive(&mut self) {
        let Some(consumer) = self.connection.consumer.clone() else {
            return;
        };
        // With autoscaling the backlog has to exceed the current slots to be seen.
        let slots = self.slots.max_concurrency();
        let room = self
            .window
            .room(slots, self.in_flight.len())
            .min(BATCH_SIZE);
        // A consumer whose queues were all cancelled answers at once, without end.
        let has_queues = !self.connection.supervisor.options.queues.is_empty();
        let blocked = self.connection.is_receiving
            || self.remote.is_mingling
            || self.shutdown.is_requested()
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

    /// Handles the end of a connection attempt.
    pub(crate) fn connected(&mut self, connected: Result<Arc<dyn Consumer>, ServiceError>) {
        match connected {
            // The queues have changed since the attempt began.
            Ok(_) if self.connection.connected_generation != self.connection.queue_generation => {
                self.reconnect()
            }
            Ok(consumer) => {
                if self.shutdown.is_requested() {
                    consumer.interrupt();
                }
                self.connection.consumer = Some(consumer);
            }
            Err(error) => {
                tracing::error!("shutting down: {error}");
                self.shutdown.fail(error);
                self.stop(Stop::Warm);
            }
        }
    }

    /// Handles a lost connection and reconnects.
    pub(crate) fn connection_lost(&mut self, error: ServiceError) {
        let survives =
            self.connection.consumer.take().is_some() && self.connection.settles_after_reconnect();
        self.connection.supervisor.lost(error);
        if !survives {
            // Replaced consumers share the connection.
            self.connection.retired.clear();
            for key in self.in_flight.keys() {
                self.event(key, DeliveryEvent::ConnectionLost);
                if self.settings.cancel_on_connection_loss {
                    self.event(key, DeliveryEvent::Revoked(Revocation::ConnectionLost));
                }
                self.in_flight.record_invalidated(key);
            }
        }
        self.reconnect();
    }
}
