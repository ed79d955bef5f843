//! Broadcasts and replies: queues of our own, read without acknowledgement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use celery_protocol::{DeliveryInfo, Map, Message, Value};
use celery_runtime::{
    BoxFuture, Exchange, ExchangeKind, ServiceError, ServiceErrorKind, Subscription,
};
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use uuid::Uuid;

use crate::broker::Shared;
use crate::link::Live;
use crate::message;
use crate::table::{short, write_map};
use crate::topology::Desk;

/// As Celery's event receivers have it: what nobody has read by then is old.
const BROADCAST_LIFETIME: Duration = Duration::from_secs(5);

/// As Celery's event receivers have it: how long an unused queue stays.
const QUEUE_LIFETIME: Duration = Duration::from_secs(60);

/// Reads a queue that nobody else reads.
pub(crate) struct AmqpSubscription {
    shared: Arc<Shared>,
    object: String,
    consumer: lapin::Consumer,
    /// Both end with this subscription, and the queue with them.
    _channel: Channel,
    _live: Arc<Live>,
}

impl AmqpSubscription {
    /// What is sent to `exchange` under keys that match.
    pub(crate) async fn to_exchange(
        shared: &Arc<Shared>,
        exchange: &Exchange,
        pattern: &str,
    ) -> Result<Self, ServiceError> {
        let object = format!("exchange {}", exchange.name);
        let name = format!("{}.{}", exchange.name, Uuid::new_v4());
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let lifetimes = [
            ("x-expires", QUEUE_LIFETIME),
            ("x-message-ttl", BROADCAST_LIFETIME),
        ];
        let pattern = match (exchange.kind, pattern) {
            (ExchangeKind::Topic, "") => "#",
            (_, pattern) => pattern,
        };
        let bind = Some((exchange, pattern));
        Self::open(shared, object, &name, options, &lifetimes, bind).await
    }

    /// What is sent to the queue `name`, declared as Celery's rpc backend
    /// declares its own.
    pub(crate) async fn to_replies(
        shared: &Arc<Shared>,
        name: &str,
        expires: Duration,
    ) -> Result<Self, ServiceError> {
        let object = format!("reply queue {name}");
        let options = QueueDeclareOptions {
            durable: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let lifetimes = [("x-expires", expires)];
        Self::open(shared, object, name, options, &lifetimes, None).await
    }

    async fn open(
        shared: &Arc<Shared>,
        object: String,
        name: &str,
        options: QueueDeclareOptions,
        lifetimes: &[(&str, Duration)],
        bind: Option<(&Exchange, &str)>,
    ) -> Result<Self, ServiceError> {
        let attempt = shared.attempt("subscribe to", &object);
        let live = shared.consuming.live(attempt).await?;
        let failed = |error| attempt.failed(error);
        let invalid = |cause| attempt.error(ServiceErrorKind::Invalid, cause);
        let queue = short(name).map_err(invalid)?;
        let arguments: Map = lifetimes
            .iter()
            .map(|(name, lifetime)| (*name, milliseconds(*lifetime)))
            .collect();
        let arguments = write_map(&arguments).map_err(invalid)?;

        let channel = live.open().await.map_err(failed)?;
        let declared = channel.queue_declare(queue.clone(), options, arguments);
        live.answer(declared).await.map_err(failed)?;
        if let Some((exchange, pattern)) = bind {
            let mut desk = Desk::new(&live, attempt);
            desk.exchange(exchange).await?;
            desk.bind_queue(name, &exchange.name, pattern, &Map::new())
                .await?;
        }
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let consumer = live.answer(consumer).await.map_err(failed)?;
        Ok(Self {
            shared: Arc::clone(shared),
            object,
            consumer,
            _channel: channel,
            _live: live,
        })
    }
}

impl Subscription for AmqpSubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            let attempt = self.shared.attempt("read", &self.object);
            match self.consumer.next().await {
                Some(Ok(delivery)) => {
                    let mut info = DeliveryInfo::new(
                        delivery.exchange.as_str(),
                        delivery.routing_key.as_str(),
                    );
                    info.redelivered = delivery.redelivered;
                    let body = Bytes::from(delivery.data);
                    Ok(message::read(&delivery.properties, info, body).0)
                }
                Some(Err(error)) => Err(attempt.failed(error)),
                None => Err(attempt.error(
                    ServiceErrorKind::Disconnected,
                    "RabbitMQ ended the consumption, as when a queue is deleted",
                )),
            }
        })
    }
}

impl fmt::Debug for AmqpSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AmqpSubscription")
            .field(&self.object)
            .finish()
    }
}

fn milliseconds(time: Duration) -> Value {
    Value::Int(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
