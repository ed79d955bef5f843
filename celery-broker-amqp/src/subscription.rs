//! Mailboxes for broadcasts and replies, consumed without acknowledgement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use celery_protocol::{DeliveryInfo, Map, Message, Value};
use celery_runtime::{
    Binding, BoxFuture, ExchangeKind, Mailbox, ServiceError, ServiceErrorKind, Subscription,
};
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::connection::AmqpConnection;
use crate::declarer::Declarer;
use crate::error::ErrorContext;
use crate::message;
use crate::shared::Shared;
use crate::table::{encode_table, short_string};

/// A subscription to a mailbox, which has no other consumer.
pub(crate) struct AmqpSubscription {
    shared: Arc<Shared>,
    /// The mailbox, for errors.
    object: String,
    consumer: lapin::Consumer,
    /// Kept open for the consumer. Dropping the channel cancels the consumer, and
    /// RabbitMQ deletes the auto-delete queue.
    _channel: Channel,
    _connection: Arc<AmqpConnection>,
}

impl AmqpSubscription {
    /// Declares the mailbox with its exchange and its binding, and consumes it.
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        mailbox: &Mailbox,
    ) -> Result<Self, ServiceError> {
        let binding = mailbox.binding.as_ref();
        let object = match binding {
            Some(binding) => {
                format!(
                    "exchange {} by mailbox {}",
                    binding.exchange.name, mailbox.name
                )
            }
            None => format!("reply queue {}", mailbox.name),
        };
        let context = shared.context("subscribe to", &object);
        let connection = shared.consuming.connection(context).await?;
        let failed = |error| context.wrap(error);
        let invalid = |cause| context.error(ServiceErrorKind::Invalid, cause);
        let queue = short_string(&mailbox.name).map_err(invalid)?;
        let arguments = encode_table(&expiry_arguments(mailbox)).map_err(invalid)?;

        let channel = connection.open_channel().await.map_err(failed)?;
        let options = QueueDeclareOptions {
            durable: mailbox.durable,
            exclusive: mailbox.exclusive,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare(queue.clone(), options, arguments);
        connection.await_response(declared).await.map_err(failed)?;
        if let Some(binding) = binding {
            bind(&connection, context, mailbox, binding).await?;
        }
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let consumer = connection.await_response(consumer).await.map_err(failed)?;
        Ok(Self {
            shared: Arc::clone(shared),
            object,
            consumer,
            _channel: channel,
            _connection: connection,
        })
    }
}

impl Subscription for AmqpSubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            let context = self.shared.context("read", &self.object);
            match self.consumer.next().await {
                Some(Ok(delivery)) => {
                    let mut info = DeliveryInfo::new(
                        delivery.exchange.as_str(),
                        delivery.routing_key.as_str(),
                    );
                    info.redelivered = delivery.redelivered;
                    let body = Bytes::from(delivery.data);
                    Ok(message::decode(&delivery.properties, info, body).0)
                }
                Some(Err(error)) => Err(context.wrap(error)),
                None => Err(context.error(
                    ServiceErrorKind::Disconnected,
                    "RabbitMQ cancelled the consumer, for example because the queue was deleted",
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

/// Declares the exchange of a mailbox and binds the mailbox to it.
async fn bind(
    connection: &AmqpConnection,
    context: ErrorContext<'_>,
    mailbox: &Mailbox,
    binding: &Binding,
) -> Result<(), ServiceError> {
    let mut declarer = Declarer::new(connection, context);
    declarer.declare_exchange(&binding.exchange).await?;
    declarer
        .bind_queue(
            &mailbox.name,
            &binding.exchange.name,
            binding_key(binding),
            &binding.arguments,
        )
        .await
}

/// Returns the arguments for the expiry of the queue and of its messages.
fn expiry_arguments(mailbox: &Mailbox) -> Map {
    let mut arguments = Map::new();
    arguments.insert("x-expires", milliseconds(mailbox.expires));
    if let Some(lifetime) = mailbox.message_ttl {
        arguments.insert("x-message-ttl", milliseconds(lifetime));
    }
    arguments
}

/// Returns the binding key. An empty one means all messages, which is `#` for a
/// topic exchange.
fn binding_key(binding: &Binding) -> &str {
    match (binding.exchange.kind, &*binding.routing_key) {
        (ExchangeKind::Topic, "") => "#",
        (_, pattern) => pattern,
    }
}

fn milliseconds(time: Duration) -> Value {
    Value::Int(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
