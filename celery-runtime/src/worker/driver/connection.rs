//! The connection to the broker: consumers, and changes of the consumed queues.
//!
//! A consumer's queues are fixed. Another set of queues is another consumer: the
//! old one is interrupted, which makes it return prefetched deliveries, and lives
//! until its last delivery is settled.

use std::sync::{Arc, Weak};

use celery_protocol::{ControlRequest, Value};

use crate::boundary::{Consumer, Delivery, ServiceError};
use crate::worker::driver::{DeliveryEvent, Driver, Finished};
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
        if self.shutdown.stage.is_some() {
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
            let entries = &self.deliveries.in_flight;
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
        for key in self.deliveries.in_flight.keys() {
            let is_its = self
                .deliveries
                .in_flight
                .find(key)
                .is_some_and(|entry| Weak::ptr_eq(&entry.consumer, &Arc::downgrade(consumer)));
            if is_its {
                self.event(key, DeliveryEvent::ConnectionLost);
                self.deliveries.in_flight.record_invalidated(key);
            }
        }
    }
}
