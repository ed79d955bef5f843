//! Requests that declare, inspect and purge queues and exchanges.

use std::future::Future;

use celery_protocol::{Map, Value};
use celery_runtime::{Exchange, ExchangeKind, Queue, ServiceError, ServiceErrorKind};
use lapin::Channel;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueuePurgeOptions,
};
use lapin::types::{FieldTable, ShortString};

use crate::connection::AmqpConnection;
use crate::declaration_cache::DeclarationCache;
use crate::error::{ErrorContext, inequivalent_argument, is_missing};
use crate::table::{encode_table, short_string};
use crate::transient_channel::TransientChannel;

/// Sends one request after the other on the transient channel, which it holds from its
/// first request until it is dropped. Two declarers in one task would wait for each
/// other.
pub(crate) struct Declarer<'a> {
    connection: &'a AmqpConnection,
    context: ErrorContext<'a>,
    channel: Option<TransientChannel>,
}

impl<'a> Declarer<'a> {
    pub(crate) fn new(connection: &'a AmqpConnection, context: ErrorContext<'a>) -> Self {
        Self {
            connection,
            context,
            channel: None,
        }
    }

    pub(crate) fn declarations(&self) -> &DeclarationCache {
        &self.connection.declarations
    }

    /// Declares an exchange.
    pub(crate) async fn declare_exchange(
        &mut self,
        exchange: &Exchange,
    ) -> Result<(), ServiceError> {
        // RabbitMQ declares its own exchanges.
        if exchange.name.starts_with("amq.") {
            return Ok(());
        }
        let options = ExchangeDeclareOptions {
            durable: exchange.durable,
            ..ExchangeDeclareOptions::default()
        };
        let name = self.short_string(&exchange.name)?;
        let kind = exchange_kind(exchange.kind);
        let declared = self.request(|channel| async move {
            let none = FieldTable::default();
            channel.exchange_declare(name, kind, options, none).await
        });
        declared
            .await
            .map_err(|error| self.declaration_error(error, || describe_exchange(exchange)))
    }

    /// Declares a queue.
    pub(crate) async fn declare_queue(&mut self, queue: &Queue) -> Result<(), ServiceError> {
        let declared = self.try_declare_queue(queue).await?;
        declared.map_err(|error| self.declaration_error(error, || describe_queue(queue)))
    }

    /// Declares a queue, and accepts an existing one with other arguments.
    pub(crate) async fn declare_queue_with_any_arguments(
        &mut self,
        queue: &Queue,
    ) -> Result<(), ServiceError> {
        match self.try_declare_queue(queue).await? {
            Err(error) if inequivalent_argument(&error).is_some() => Ok(()),
            declared => declared.map_err(|error| self.context.wrap(error)),
        }
    }

    async fn try_declare_queue(
        &mut self,
        queue: &Queue,
    ) -> Result<lapin::Result<()>, ServiceError> {
        let options = QueueDeclareOptions {
            durable: queue.durable,
            auto_delete: queue.auto_delete,
            ..QueueDeclareOptions::default()
        };
        let name = self.short_string(&queue.name)?;
        let arguments = self.table(&queue.arguments)?;
        let declared =
            self.request(
                |channel| async move { channel.queue_declare(name, options, arguments).await },
            );
        Ok(declared.await.map(drop))
    }

    /// Returns the number of ready messages of a queue, or `None` if it does not
    /// exist.
    pub(crate) async fn message_count(&mut self, queue: &str) -> Result<Option<u32>, ServiceError> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = self.short_string(queue)?;
        let found = self.request(|channel| async move {
            let none = FieldTable::default();
            channel.queue_declare(name, options, none).await
        });
        let found = found.await.map(|queue| queue.message_count());
        self.found_or_none(found)
    }

    /// Binds a queue to an exchange.
    pub(crate) async fn bind_queue(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: &Map,
    ) -> Result<(), ServiceError> {
        let (queue, exchange) = (self.short_string(queue)?, self.short_string(exchange)?);
        let (routing_key, arguments) = (self.short_string(routing_key)?, self.table(arguments)?);
        let bound = self.request(|channel| async move {
            let options = QueueBindOptions::default();
            channel
                .queue_bind(queue, exchange, routing_key, options, arguments)
                .await
        });
        bound.await.map_err(|error| self.context.wrap(error))
    }

    /// Binds an exchange to another one.
    pub(crate) async fn bind_exchange(
        &mut self,
        destination: &str,
        source: &str,
        routing_key: &str,
    ) -> Result<(), ServiceError> {
        let (destination, source) = (self.short_string(destination)?, self.short_string(source)?);
        let routing_key = self.short_string(routing_key)?;
        let bound = self.request(|channel| async move {
            let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
            channel
                .exchange_bind(destination, source, routing_key, options, none)
                .await
        });
        bound.await.map_err(|error| self.context.wrap(error))
    }

    /// Deletes the ready messages of a queue, and returns their number, or `None`
    /// if the queue does not exist.
    pub(crate) async fn purge(&mut self, queue: &str) -> Result<Option<u32>, ServiceError> {
        let name = self.short_string(queue)?;
        let purged = self.request(|channel| async move {
            channel
                .queue_purge(name, QueuePurgeOptions::default())
                .await
        });
        let purged = purged.await;
        self.found_or_none(purged)
    }

    /// Sends one request. RabbitMQ closes the channel when it refuses a request, and the
    /// next request opens another one.
    async fn request<T, F>(&mut self, send: impl FnOnce(Channel) -> F) -> lapin::Result<T>
    where
        F: Future<Output = lapin::Result<T>>,
    {
        let connection = self.connection;
        let mut declaring = match self.channel.take() {
            Some(declaring) => declaring,
            None => TransientChannel::open(connection).await?,
        };
        // A late answer would be taken for that of the next request.
        declaring.is_reusable = false;
        let answer = send(declaring.channel.clone());
        let answer = connection.await_response(answer).await?;
        declaring.is_reusable = true;
        self.channel = Some(declaring);
        Ok(answer)
    }

    /// Converts the error of a declaration. If the existing object differs, the
    /// error names both forms.
    fn declaration_error(
        &self,
        error: lapin::Error,
        description: impl FnOnce() -> String,
    ) -> ServiceError {
        match inequivalent_argument(&error) {
            Some(difference) => {
                let cause = format!("{difference}; this program declares {}", description());
                self.context.wrap_with_cause(&cause, error)
            }
            None => self.context.wrap(error),
        }
    }

    /// Returns `None` if the server reports that the object does not exist.
    fn found_or_none<T>(&self, answer: lapin::Result<T>) -> Result<Option<T>, ServiceError> {
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.context.wrap(error)),
        }
    }

    fn short_string(&self, text: &str) -> Result<ShortString, ServiceError> {
        short_string(text).map_err(|cause| self.context.error(ServiceErrorKind::Invalid, cause))
    }

    fn table(&self, map: &Map) -> Result<FieldTable, ServiceError> {
        encode_table(map).map_err(|cause| self.context.error(ServiceErrorKind::Invalid, cause))
    }
}

fn exchange_kind(kind: ExchangeKind) -> lapin::ExchangeKind {
    match kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Headers => lapin::ExchangeKind::Headers,
        _ => lapin::ExchangeKind::Direct,
    }
}

fn describe_exchange(exchange: &Exchange) -> String {
    let lifetime = if exchange.durable {
        "durable"
    } else {
        "transient"
    };
    format!("a {lifetime} {} exchange", exchange.kind.name())
}

fn describe_queue(queue: &Queue) -> String {
    let mut text = format!("durable={}", queue.durable);
    if queue.auto_delete {
        text.push_str(", auto_delete=true");
    }
    for (name, argument) in &queue.arguments {
        let name = name.as_str().unwrap_or_default();
        let argument = match argument {
            Value::Str(text) => text.clone(),
            Value::Int(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        text.push_str(&format!(", {name}={argument}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_description_has_its_arguments() {
        let queue = Queue::new("q").max_priority(5).quorum();
        assert_eq!(
            describe_queue(&queue),
            "durable=true, x-max-priority=5, x-queue-type=quorum"
        );
    }
}
