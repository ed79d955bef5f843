//! Connecting, receiving, and changes of the consumed queues.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use celery_protocol::{ControlRequest, Value};
use futures_util::FutureExt;

use crate::boundary::{Consumer, DeliveryTag, ServiceError};
use crate::worker::delivery::event::{DeliveryEvent, Revocation, Stop};
use crate::worker::delivery::in_flight::InFlightDelivery;
use crate::worker::driver::{BATCH_SIZE, Driver, Finished};
use crate::worker::io::connection::{Connecting, QueueChange, Received};

/// The end of a change of the consumed queues.
pub(crate) struct ChangedQueues {
    request: ControlRequest,
    done: Value,
    generation: u64,
    consumer: Result<Arc<dyn Consumer>, ServiceError>,
}

impl Driver {
    /// Connects to the consumed queues.
    pub(crate) fn connect(&mut self) {
        let attempt = self.connection.connect();
        self.await_connection(attempt);
    }

    fn await_connection(&mut self, attempt: Option<Connecting>) {
        if let Some(attempt) = attempt {
            self.futures
                .push(Box::pin(attempt.map(Finished::Connected)));
        }
    }

    /// Handles the end of a connection attempt.
    pub(crate) fn connected(&mut self, connected: Result<Arc<dyn Consumer>, ServiceError>) {
        match self.connection.connected(connected) {
            Ok(attempt) => self.await_connection(attempt),
            Err(error) => {
                tracing::error!("shutting down: {error}");
                self.shutdown.fail(error);
                self.stop(Stop::Warm);
            }
        }
    }

    /// Requests deliveries if the window has room.
    pub(crate) fn receive(&mut self) {
        if self.remote.is_mingling() {
            return;
        }
        // With autoscaling the backlog has to exceed the current slots to be seen.
        let slots = self.slots.max_concurrency();
        let room = self.window.room(slots, self.in_flight.len());
        if let Some(receiving) = self.connection.receive(room.min(BATCH_SIZE)) {
            self.futures
                .push(Box::pin(receiving.map(Finished::Received)));
        }
    }

    /// Handles the end of a receive; the consumer may be a replaced one.
    pub(crate) fn received(&mut self, received: Received) {
        let is_current = self.connection.received(&received);
        let Received {
            consumer,
            deliveries,
        } = received;
        match deliveries {
            Ok(deliveries) => {
                for delivery in deliveries {
                    self.admit(delivery, &consumer);
                }
                if !is_current {
                    self.connection.retire(consumer);
                }
                self.connection.drop_drained(&self.in_flight);
            }
            Err(error) if is_current => self.connection_lost(error),
            // The broker redelivers its deliveries; the current consumer detects
            // a broken connection itself.
            Err(error) => {
                tracing::warn!("{error}");
                self.invalidate_deliveries_of(&consumer);
            }
        }
    }

    /// Handles a lost connection and reconnects.
    fn connection_lost(&mut self, error: ServiceError) {
        if !self.connection.lost(error) {
            for key in self.in_flight.keys() {
                self.event(key, DeliveryEvent::ConnectionLost);
                if self.settings.cancel_on_connection_loss {
                    self.event(key, DeliveryEvent::Revoked(Revocation::ConnectionLost));
                }
            }
        }
        self.connect();
    }

    /// Handles deliveries that the broker has taken back.
    pub(crate) fn leases_lost(&mut self, tags: &[DeliveryTag]) {
        if !tags.is_empty() {
            let count = tags.len();
            tracing::warn!("{count} deliveries were not renewed in time and are delivered again");
        }
        let tags: HashSet<_> = tags.iter().collect();
        for key in self.in_flight.keys() {
            let is_lost = |one: &InFlightDelivery| tags.contains(&one.tag);
            if self.in_flight.find(key).is_some_and(is_lost) {
                self.event(key, DeliveryEvent::LeaseLost);
            }
        }
    }

    /// Marks the deliveries of a broken consumer as no longer settleable, and drops it:
    /// the broker redelivers what an open consumer holds only after it has ended.
    pub(crate) fn invalidate_deliveries_of(&mut self, consumer: &Arc<dyn Consumer>) {
        if self.connection.settles_after_reconnect() {
            return;
        }
        self.connection.drop_replaced(consumer);
        for key in self.in_flight.keys() {
            let is_its = self
                .in_flight
                .find(key)
                .is_some_and(|entry| Weak::ptr_eq(&entry.consumer, &Arc::downgrade(consumer)));
            if is_its {
                self.event(key, DeliveryEvent::ConnectionLost);
            }
        }
    }

    /// Consumes a changed set of queues, and answers the command that changed it with
    /// `done`.
    pub(crate) fn change_queues(&mut self, request: ControlRequest, done: Value) {
        match self.connection.change_queues() {
            QueueChange::Done => self.answer(&request, Ok(done)),
            QueueChange::Connect(attempt) => {
                self.await_connection(Some(attempt));
                self.answer(&request, Ok(done));
            }
            QueueChange::Replace(generation, attempt) => {
                let changed = attempt.map(move |consumer| {
                    Finished::QueuesChanged(ChangedQueues {
                        request,
                        done,
                        generation,
                        consumer,
                    })
                });
                self.futures.push(Box::pin(changed));
            }
        }
    }

    pub(crate) fn queues_changed(&mut self, changed: ChangedQueues) {
        let answer = match changed.consumer {
            Ok(consumer) => {
                self.connection.replace(changed.generation, consumer);
                self.connection.drop_drained(&self.in_flight);
                Ok(changed.done)
            }
            Err(error) => {
                let queue = changed.request.arguments.get("queue");
                if let Some(name) = queue.and_then(Value::as_str) {
                    self.connection.remove_queue(name);
                }
                Err(format!("OperationalError({:?})", error.to_string()))
            }
        };
        self.answer(&changed.request, answer);
    }
}
