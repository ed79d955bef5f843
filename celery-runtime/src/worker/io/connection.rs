//! The connection to the broker: consumers, and changes of the consumed queues:
//! [`Connection`].
//!
//! A consumer's queues are fixed. Another set of queues is another consumer: the
//! old one is interrupted, which makes it return prefetched deliveries, and lives
//! until its last delivery is settled.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::boundary::{
    BoxFuture, Broker, Consumer, Delivery, DeliveryTag, Queue, ServiceError, Settled, Settlement,
};
use crate::env;
use crate::worker::delivery::in_flight::InFlight;
use crate::worker::io::supervisor::Supervisor;

/// The consumers of a worker.
pub(crate) struct Connection {
    supervisor: Supervisor,
    /// How long the broker may take to settle deliveries and to close the consumer.
    deadline: Duration,
    consumer: Option<Arc<dyn Consumer>>,
    /// Since when there is this consumer.
    connected_at: Instant,
    /// Whether this consumer has received a delivery.
    has_received: bool,
    /// The consumer of a lost connection whose deliveries can still be settled, until
    /// there is another one.
    broken: Option<Arc<dyn Consumer>>,
    /// Waits until the broker has taken deliveries back from the consumer.
    lost_leases: BoxFuture<'static, Vec<DeliveryTag>>,
    /// Replaced consumers that still have deliveries in flight.
    retired: Vec<Arc<dyn Consumer>>,
    is_receiving: bool,
    is_connecting: bool,
    /// Whether consumers receive no more.
    is_interrupted: bool,
    /// Whether the current consumer receives no more, because its queues were cancelled.
    is_drained: bool,
    /// The number of changes of the consumed queues.
    queue_generation: u64,
    /// The generation that the connection attempt in progress is for.
    connected_generation: u64,
}

/// An attempt to connect. Its end is passed to [`Connection::connected`].
pub(crate) type Connecting = BoxFuture<'static, Result<Arc<dyn Consumer>, ServiceError>>;

/// What a change of the consumed queues takes.
pub(crate) enum QueueChange {
    /// It has taken effect, or will with the next connection.
    Done,
    /// An attempt to connect.
    Connect(Connecting),
    /// Another consumer, for [`Connection::replace`] together with the generation of
    /// the change.
    Replace(u64, Connecting),
}

/// The end of a receive. It is passed to [`Connection::received`].
pub(crate) struct Received {
    pub(crate) consumer: Arc<dyn Consumer>,
    pub(crate) deliveries: Result<Vec<Delivery>, ServiceError>,
}

impl Connection {
    /// `deadline` is how long the broker may take to settle deliveries and to close the
    /// consumer.
    pub(crate) fn new(supervisor: Supervisor, deadline: Duration) -> Self {
        Self {
            supervisor,
            deadline,
            consumer: None,
            connected_at: env::instant(),
            has_received: false,
            broken: None,
            lost_leases: Box::pin(std::future::pending()),
            retired: Vec::new(),
            is_receiving: false,
            is_connecting: false,
            is_interrupted: false,
            is_drained: false,
            queue_generation: 0,
            connected_generation: 0,
        }
    }

    pub(crate) fn broker(&self) -> &Arc<dyn Broker> {
        &self.supervisor.broker
    }

    /// Returns the consumed queues.
    pub(crate) fn queues(&self) -> &[Queue] {
        &self.supervisor.options.queues
    }

    /// Returns whether a receive is in progress.
    pub(crate) fn is_receiving(&self) -> bool {
        self.is_receiving
    }

    /// Returns whether a consumer is replaced by another one that is connected.
    pub(crate) fn is_replaced(&self, consumer: &Arc<dyn Consumer>) -> bool {
        self.consumer.is_some() && !self.is_current(consumer)
    }

    fn is_current(&self, consumer: &Arc<dyn Consumer>) -> bool {
        let current = self.consumer.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, consumer))
    }

    /// Returns whether a new consumer can settle the deliveries of an old one.
    pub(crate) fn settles_after_reconnect(&self) -> bool {
        self.broker().capabilities().settles_after_reconnect
    }

    /// Connects to the consumed queues, with the supervisor's back-off. Returns `None`
    /// if there are no queues.
    pub(crate) fn connect(&mut self) -> Option<Connecting> {
        self.connected_generation = self.queue_generation;
        if self.queues().is_empty() {
            return None;
        }
        self.is_connecting = true;
        Some(self.supervisor.connect())
    }

    /// Uses the consumer of a connection attempt, unless there is one by now. Returns a
    /// new attempt if the queues have changed since this one began.
    ///
    /// # Errors
    ///
    /// The error of the attempt, after which the worker cannot continue.
    pub(crate) fn connected(
        &mut self,
        connected: Result<Arc<dyn Consumer>, ServiceError>,
    ) -> Result<Option<Connecting>, ServiceError> {
        self.is_connecting = false;
        let consumer = connected?;
        if self.consumer.is_some() {
            // A change of the queues has replaced the lost consumer meanwhile.
            return Ok(None);
        }
        if self.connected_generation != self.queue_generation {
            return Ok(self.connect());
        }
        self.set_consumer(consumer);
        Ok(None)
    }

    /// Returns the consumer that was used before.
    fn set_consumer(&mut self, consumer: Arc<dyn Consumer>) -> Option<Arc<dyn Consumer>> {
        if self.is_interrupted {
            consumer.interrupt();
        }
        // It may have changed during the attempt to connect.
        consumer.set_prefetch(self.supervisor.options.prefetch);
        self.watch_leases(&consumer);
        self.broken = None;
        self.is_drained = false;
        self.connected_at = env::instant();
        self.has_received = false;
        self.consumer.replace(consumer)
    }

    /// Returns whether no other worker can have the deliveries in hand.
    pub(crate) fn has_current_leases(&self) -> bool {
        let consumer = self.consumer.as_ref().or(self.broken.as_ref());
        consumer.is_none_or(|consumer| consumer.has_current_leases())
    }

    fn watch_leases(&mut self, consumer: &Arc<dyn Consumer>) {
        let consumer = Arc::clone(consumer);
        self.lost_leases = Box::pin(async move { consumer.lost().await });
    }

    /// Waits until the broker has taken deliveries back, and returns their tags.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn lost_leases(&mut self) -> Vec<DeliveryTag> {
        let tags = (&mut self.lost_leases).await;
        match self.consumer.clone().or_else(|| self.broken.clone()) {
            Some(consumer) => self.watch_leases(&consumer),
            None => self.lost_leases = Box::pin(std::future::pending()),
        }
        tags
    }

    /// Drops the consumer of a lost connection. Returns whether its deliveries can
    /// still be settled.
    pub(crate) fn lost(&mut self, error: ServiceError) -> bool {
        let consumer = self.consumer.take();
        self.broken = consumer.filter(|_| self.settles_after_reconnect());
        let survives = self.broken.is_some();
        if !survives {
            self.lost_leases = Box::pin(std::future::pending());
        }
        self.supervisor
            .lost(error, self.connected_at, self.has_received);
        if !survives {
            // Replaced consumers share the connection.
            self.retired.clear();
        }
        survives
    }

    /// Requests at most `room` deliveries, unless a receive is in progress or nothing
    /// can be received.
    pub(crate) fn receive(&mut self, room: usize) -> Option<BoxFuture<'static, Received>> {
        // An interrupted consumer answers at once, without end.
        let is_idle = self.is_interrupted || self.is_drained || room == 0;
        if self.is_receiving || is_idle {
            return None;
        }
        let consumer = self.consumer.clone()?;
        self.is_receiving = true;
        Some(Box::pin(async move {
            let deliveries = consumer.receive(room).await;
            Received {
                consumer,
                deliveries,
            }
        }))
    }

    /// Records the end of a receive. Returns whether its consumer is the current one,
    /// and not a replaced one.
    pub(crate) fn received(&mut self, received: &Received) -> bool {
        let is_current = self.is_current(&received.consumer);
        if is_current {
            self.is_receiving = false;
            if received
                .deliveries
                .as_ref()
                .is_ok_and(|all| !all.is_empty())
            {
                self.has_received = true;
                self.supervisor.received();
            }
        }
        is_current
    }

    /// Keeps a replaced consumer until its deliveries are settled.
    pub(crate) fn retire(&mut self, consumer: Arc<dyn Consumer>) {
        self.retired.push(consumer);
    }

    /// Drops a replaced consumer.
    pub(crate) fn drop_replaced(&mut self, consumer: &Arc<dyn Consumer>) {
        self.retired.retain(|one| !Arc::ptr_eq(one, consumer));
    }

    /// Drops replaced consumers without deliveries in flight.
    pub(crate) fn drop_drained(&mut self, in_flight: &InFlight) {
        self.retired.retain(|consumer| in_flight.any_of(consumer));
    }

    /// Ends receiving, with this and every later consumer.
    pub(crate) fn interrupt(&mut self) {
        self.is_interrupted = true;
        if let Some(consumer) = &self.consumer {
            consumer.interrupt();
        }
    }

    pub(crate) fn set_prefetch(&mut self, prefetch: u16) {
        self.supervisor.options.prefetch = prefetch;
        if let Some(consumer) = &self.consumer {
            consumer.set_prefetch(prefetch);
        }
    }

    /// Adds a queue. It is consumed after [`change_queues`](Self::change_queues).
    pub(crate) fn add_queue(&mut self, queue: Queue) {
        self.supervisor.options.queues.push(queue);
    }

    /// Removes a queue; see [`add_queue`](Self::add_queue). Returns whether it was
    /// consumed.
    pub(crate) fn remove_queue(&mut self, name: &str) -> bool {
        let queues = &mut self.supervisor.options.queues;
        let before = queues.len();
        queues.retain(|queue| queue.name != name);
        queues.len() < before
    }

    /// Begins to consume a changed set of queues.
    pub(crate) fn change_queues(&mut self) -> QueueChange {
        self.queue_generation += 1;
        let Some(consumer) = &self.consumer else {
            // The next connection consumes the new queues.
            let attempt = if self.is_connecting {
                None
            } else {
                self.connect()
            };
            return attempt.map_or(QueueChange::Done, QueueChange::Connect);
        };
        if self.queues().is_empty() {
            // The consumer still settles deliveries in flight.
            consumer.interrupt();
            self.is_drained = true;
            return QueueChange::Done;
        }
        let supervisor = self.supervisor.clone();
        let attempt = async move { supervisor.attempt().await };
        QueueChange::Replace(self.queue_generation, Box::pin(attempt))
    }

    /// Replaces the consumer by one for changed queues, unless a newer change is in
    /// progress.
    pub(crate) fn replace(&mut self, generation: u64, consumer: Arc<dyn Consumer>) {
        if generation != self.queue_generation {
            return;
        }
        if let Some(old) = self.set_consumer(consumer) {
            old.interrupt();
            self.retire(old);
        }
        self.is_receiving = false;
    }

    /// Returns the consumer that settles the deliveries which `receiver` received, or
    /// `None` if they cannot be settled.
    pub(crate) fn settling_consumer(
        &self,
        receiver: &Weak<dyn Consumer>,
    ) -> Option<Arc<dyn Consumer>> {
        match &self.consumer {
            Some(current) if self.settles_after_reconnect() => Some(Arc::clone(current)),
            _ => receiver.upgrade().or_else(|| self.broken.clone()),
        }
    }

    /// Settles deliveries by their [`settling_consumer`](Self::settling_consumer).
    /// Returns one result for each settlement.
    pub(crate) fn settle(
        &self,
        consumer: Arc<dyn Consumer>,
        batch: Vec<Settlement>,
    ) -> BoxFuture<'static, Vec<Result<Settled, ServiceError>>> {
        let deadline = self.deadline;
        Box::pin(async move {
            match tokio::time::timeout(deadline, consumer.settle(&batch)).await {
                Ok(settled) => settled,
                Err(_) => {
                    let error = ServiceError::no_answer("settle", "deliveries", deadline);
                    vec![Err(error); batch.len()]
                }
            }
        })
    }

    /// Closes the consumer, which returns its deferred deliveries, within `limit` or the
    /// deadline.
    ///
    /// # Errors
    ///
    /// If deliveries that outlive the connection were not returned.
    pub(crate) async fn close(&mut self, limit: Duration) -> Result<(), ServiceError> {
        let Some(consumer) = self.consumer.as_ref().or(self.broken.as_ref()) else {
            return Ok(());
        };
        let limit = limit.max(self.deadline);
        let closed = match tokio::time::timeout(limit, consumer.close()).await {
            Ok(closed) => closed,
            Err(_) => Err(ServiceError::no_answer("close", "the consumer", limit)),
        };
        if let Err(error) = &closed {
            tracing::error!("{error}");
        }
        closed.or_else(|error| match self.settles_after_reconnect() {
            true => Err(error),
            // The broker requeues what a connection leaves.
            false => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::boundary::{ConsumeOptions, ServiceErrorKind};
    use crate::memory::MemoryBroker;
    use crate::worker::io::supervisor::Failures;

    use super::*;

    fn connection() -> Connection {
        let supervisor = Supervisor {
            broker: Arc::new(MemoryBroker::new()),
            options: ConsumeOptions::new(vec![Queue::new("q")], 0),
            max_retries: None,
            hook: None,
            failures: Failures::default(),
        };
        Connection::new(supervisor, Duration::from_secs(5))
    }

    /// Connects, and returns how long that took.
    async fn connect(connection: &mut Connection) -> Duration {
        let started = env::instant();
        let connected = connection.connect().expect("there are queues").await;
        assert!(connection.connected(connected).unwrap().is_none());
        started.elapsed()
    }

    fn lose(connection: &mut Connection) {
        let kind = ServiceErrorKind::Disconnected;
        connection.lost(ServiceError::new(kind, "consume", "queue q", "cancelled"));
    }

    fn receive_one(connection: &mut Connection) {
        let message = celery_protocol::Message::new(
            celery_protocol::Headers::default(),
            celery_protocol::Properties::default(),
            Vec::new(),
        );
        let delivery = Delivery::new(DeliveryTag::new("1"), "q".into(), message);
        let consumer = connection.consumer.clone().expect("it is connected");
        connection.received(&Received {
            consumer,
            deliveries: Ok(vec![delivery]),
        });
    }

    #[tokio::test(start_paused = true)]
    async fn consumers_that_fail_without_a_delivery_are_replaced_ever_more_slowly() {
        let mut connection = connection();
        assert_eq!(connect(&mut connection).await, Duration::ZERO);
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            lose(&mut connection);
            let delay = connect(&mut connection).await;
            assert!(delay >= Duration::from_millis(25), "{delay:?}");
            longest = longest.max(delay);
        }
        assert!(longest >= Duration::from_secs(1), "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_replaced_consumer_ends_beside_others() {
        let mut connection = connection();
        connect(&mut connection).await;
        let mut replaced = Vec::new();
        for _ in 0..2 {
            let QueueChange::Replace(generation, replacing) = connection.change_queues() else {
                panic!("there is a consumer");
            };
            replaced.push(connection.consumer.clone().expect("it is connected"));
            connection.replace(generation, replacing.await.unwrap());
        }
        connection.drop_replaced(&replaced[0]);
        let ended: Vec<_> = replaced.iter().map(Arc::downgrade).collect();
        drop(replaced);
        assert!(ended[0].upgrade().is_none() && ended[1].upgrade().is_some());
    }

    /// Two consumers would be started, and the second one would not receive while the
    /// first one does.
    #[tokio::test(start_paused = true)]
    async fn reconnection_after_replacement_keeps_the_replacing_consumer() {
        let mut connection = connection();
        connect(&mut connection).await;
        connection.add_queue(Queue::new("new"));
        let QueueChange::Replace(generation, replacing) = connection.change_queues() else {
            panic!("there is a consumer");
        };
        lose(&mut connection);
        let reconnecting = connection.connect().expect("there are queues");
        let replacing = replacing.await.unwrap();
        connection.replace(generation, Arc::clone(&replacing));
        let receiving = connection.receive(1).expect("it receives");

        let reconnected = reconnecting.await;
        assert!(connection.connected(reconnected).unwrap().is_none());

        assert!(connection.is_current(&replacing));
        replacing.interrupt();
        assert!(connection.received(&receiving.await));
        assert!(connection.receive(1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn consumer_that_has_received_or_lasted_is_replaced_at_once() {
        let mut connection = connection();
        connect(&mut connection).await;
        for is_received in [true, false] {
            lose(&mut connection);
            assert!(connect(&mut connection).await > Duration::ZERO);
            match is_received {
                true => receive_one(&mut connection),
                false => tokio::time::advance(Duration::from_secs(60)).await,
            }
            lose(&mut connection);
            assert_eq!(connect(&mut connection).await, Duration::ZERO);
        }
    }
}
