//! Consuming other queues than before, without losing what is in hand.
//!
//! What a consumer reads is fixed when it is made. Another set of queues is
//! another consumer: the old one is interrupted, which makes it give back what
//! was pushed ahead, and lives on until its last delivery is settled.

use std::sync::{Arc, Weak};

use celery_protocol::{ControlRequest, Value};

use crate::boundary::{Consumer, Delivery, ServiceError};
use crate::worker::driver::{DeliveryEvent, Driver, Finished};

/// A consumer of the queues of a request, or why there is none.
pub(crate) struct Change {
    request: ControlRequest,
    done: Value,
    /// The number of the change: only the newest one counts.
    number: u64,
    consumer: Result<Arc<dyn Consumer>, ServiceError>,
}

impl Driver {
    /// Goes over to the queues that the supervisor has been told of.
    pub(crate) fn change_queues(&mut self, request: ControlRequest, done: Value) {
        self.changes += 1;
        let number = self.changes;
        let Some(consumer) = &self.consumer else {
            // The next connection will be to the new queues.
            if !self.connecting {
                self.reconnect();
            }
            return self.answer(&request, Ok(done));
        };
        if self.supervisor.options.queues.is_empty() {
            // Kept for what is in hand.
            consumer.interrupt();
            return self.answer(&request, Ok(done));
        }
        let supervisor = self.supervisor.clone();
        self.futures.push(Box::pin(async move {
            let consumer = supervisor.attempt().await;
            Finished::Changed(Change {
                request,
                done,
                number,
                consumer,
            })
        }));
    }

    pub(crate) fn changed(&mut self, change: Change) {
        let Change {
            request,
            done,
            number,
            consumer,
        } = change;
        match consumer {
            Ok(consumer) if number == self.changes => {
                self.take_over(consumer);
                self.answer(&request, Ok(done));
            }
            // A newer one is under way.
            Ok(_) => self.answer(&request, Ok(done)),
            Err(error) => {
                if let Some(name) = request.arguments.get("queue").and_then(Value::as_str) {
                    let queues = &mut self.supervisor.options.queues;
                    queues.retain(|queue| queue.name != name);
                }
                self.answer(
                    &request,
                    Err(format!("OperationalError({:?})", error.to_string())),
                );
            }
        }
    }

    fn take_over(&mut self, consumer: Arc<dyn Consumer>) {
        if self.stopping.is_some() {
            consumer.interrupt();
        }
        if let Some(old) = self.consumer.replace(consumer) {
            old.interrupt();
            self.retired.push(old);
        }
        self.receiving = false;
        self.let_go();
    }

    /// Ends the consumers that were replaced and have nothing in hand any more.
    pub(crate) fn let_go(&mut self) {
        if !self.retired.is_empty() {
            let entries = &self.entries;
            self.retired.retain(|consumer| entries.any_of(consumer));
        }
    }

    /// What a consumer brought, which may be one that was replaced.
    pub(crate) fn received(
        &mut self,
        consumer: &Arc<dyn Consumer>,
        received: Result<Vec<Delivery>, ServiceError>,
    ) {
        let is_current = self.is_current(consumer);
        if is_current {
            self.receiving = false;
        }
        match received {
            Ok(deliveries) => {
                if !is_current {
                    self.retired.push(Arc::clone(consumer));
                }
                for delivery in deliveries {
                    self.admit(delivery, consumer);
                }
                self.let_go();
            }
            Err(error) if is_current => self.lose_link(error),
            // Its deliveries are taken back; the new one will notice if more
            // is wrong than that.
            Err(error) => {
                tracing::warn!("{error}");
                self.withdraw_of(consumer);
            }
        }
    }

    pub(crate) fn is_current(&self, consumer: &Arc<dyn Consumer>) -> bool {
        let current = self.consumer.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, consumer))
    }

    /// Nothing that this consumer delivered can be settled any more.
    pub(crate) fn withdraw_of(&mut self, consumer: &Arc<dyn Consumer>) {
        if self.settles_after_reconnect() {
            return;
        }
        for key in self.entries.keys() {
            let is_its = self
                .entries
                .find(key)
                .is_some_and(|entry| Weak::ptr_eq(&entry.consumer, &Arc::downgrade(consumer)));
            if is_its {
                self.event(key, DeliveryEvent::ConnectionLost);
                self.entries.note_withdrawn(key);
            }
        }
    }
}
