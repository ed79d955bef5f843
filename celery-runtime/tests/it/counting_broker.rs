//! A broker that counts messages.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::Message;
use celery_protocol::kombu::{self, EnvelopeRoute};
use celery_runtime::memory::MemoryBroker;
use celery_runtime::{
    App, BoxFuture, Broker, BrokerCapabilities, ConsumeOptions, Consumer, Exchange, Mailbox,
    Publication, Queue, ServiceError, Subscription,
};

use crate::support::Setup;

/// An in-memory broker that counts broadcasts, records the sizes of published
/// messages, and can delay broadcasts.
#[derive(Clone, Debug)]
pub(crate) struct CountingBroker {
    broker: MemoryBroker,
    delay: Duration,
    broadcasts: Arc<AtomicUsize>,
    sizes: Arc<Mutex<Vec<usize>>>,
    batches: Arc<Mutex<Vec<usize>>>,
}

impl CountingBroker {
    pub(crate) fn new(broker: &MemoryBroker) -> Self {
        Self {
            broker: broker.clone(),
            delay: Duration::ZERO,
            broadcasts: Arc::default(),
            sizes: Arc::default(),
            batches: Arc::default(),
        }
    }

    pub(crate) fn with_delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Returns an app with this broker.
    pub(crate) fn app(&self, setup: &Setup) -> App {
        App::new(Arc::new(self.clone())).with_clock(setup.clock.clone())
    }

    pub(crate) fn broadcasts(&self) -> usize {
        self.broadcasts.load(Ordering::SeqCst)
    }

    /// Returns the size of each published message in bytes, as on Redis.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.sizes.lock().unwrap().clone()
    }

    /// Returns the number of messages of each publish call.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.batches.lock().unwrap().clone()
    }
}

impl Broker for CountingBroker {
    fn declare<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<(), ServiceError>> {
        self.broker.declare(queue)
    }

    fn publish<'a>(
        &'a self,
        batch: &'a [Publication],
    ) -> BoxFuture<'a, Vec<Result<(), ServiceError>>> {
        let size = |publication: &Publication| {
            let route = EnvelopeRoute {
                exchange: &publication.exchange,
                routing_key: &publication.routing_key,
            };
            let envelope = kombu::encode(&publication.message, route, &"t".repeat(36));
            envelope.unwrap().len()
        };
        self.batches.lock().unwrap().push(batch.len());
        self.sizes.lock().unwrap().extend(batch.iter().map(size));
        self.broker.publish(batch)
    }

    fn consume<'a>(
        &'a self,
        options: &'a ConsumeOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Consumer>, ServiceError>> {
        self.broker.consume(options)
    }

    fn broadcast<'a>(
        &'a self,
        exchange: &'a Exchange,
        routing_key: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<Option<u64>, ServiceError>> {
        self.broadcasts.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if !self.delay.is_zero() {
                tokio::time::sleep(self.delay).await;
            }
            self.broker.broadcast(exchange, routing_key, message).await
        })
    }

    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>> {
        self.broker.subscribe(mailbox)
    }

    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        self.broker.depth(queue)
    }

    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        self.broker.purge(queue)
    }

    fn capabilities(&self) -> BrokerCapabilities {
        self.broker.capabilities()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.broker.close()
    }
}
