//! Exchanges, queues and bindings, declared exactly as kombu declares them.

use std::future::Future;

use celery_protocol::{Map, Value};
use celery_runtime::{Exchange, ExchangeKind, Queue, ServiceError, ServiceErrorKind};
use lapin::Channel;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueuePurgeOptions,
};
use lapin::types::{FieldTable, ShortString};

use crate::broker::Shared;
use crate::delay;
use crate::failure::{Attempt, reply_code};
use crate::known::{Kind, Known};
use crate::link::Live;
use crate::table::{short, write_map};

impl Shared {
    /// Declares a queue with its exchanges and bindings.
    pub(crate) async fn declare(&self, live: &Live, queue: &Queue) -> Result<(), ServiceError> {
        let object = format!("queue {}", queue.name);
        let attempt = self.attempt("declare", &object);
        let mut desk = Desk::new(live, attempt);
        for (exchange, ..) in bindings(queue) {
            desk.exchange(exchange).await?;
        }
        desk.queue(queue).await?;
        for (exchange, routing_key, arguments) in bindings(queue) {
            desk.bind_queue(&queue.name, &exchange.name, routing_key, arguments)
                .await?;
        }
        if delay::is_native(queue) {
            delay::bind_native(&mut desk, queue, self.options.delayed_queue_type).await?;
        }
        for (exchange, ..) in bindings(queue) {
            live.known.note(Kind::Exchange, &exchange.name);
        }
        live.known.note(Kind::Queue, &queue.name);
        Ok(())
    }

    /// Where one queue of a worker is a quorum queue, Celery's clients delay the
    /// messages of all that have no direct exchange.
    pub(crate) async fn bind_native_delays(
        &self,
        live: &Live,
        queues: &[Queue],
        attempt: Attempt<'_>,
    ) -> Result<(), ServiceError> {
        if !queues.iter().any(Queue::is_quorum) {
            return Ok(());
        }
        let mut desk = Desk::new(live, attempt);
        for queue in queues.iter().filter(|queue| delay::has_pattern(queue)) {
            delay::bind_native(&mut desk, queue, self.options.delayed_queue_type).await?;
        }
        Ok(())
    }

    /// Makes sure that a queue exists, for somebody who only sends to it by
    /// its name: what exists is taken as it is.
    pub(crate) async fn find_or_declare(
        &self,
        live: &Live,
        queue: &Queue,
    ) -> Result<(), ServiceError> {
        let object = format!("queue {}", queue.name);
        let mut desk = Desk::new(live, self.attempt("look for", &object));
        if desk.waiting(&queue.name).await?.is_some() {
            live.known.note(Kind::Queue, &queue.name);
            return Ok(());
        }
        self.declare(live, queue).await
    }
}

/// The ways to a queue. The anonymous exchange leads to it by itself.
fn bindings(queue: &Queue) -> impl Iterator<Item = (&Exchange, &str, &Map)> {
    let first = (
        &queue.exchange,
        queue.routing_key.as_str(),
        &queue.binding_arguments,
    );
    let more = queue.bindings.iter().map(|binding| {
        (
            &binding.exchange,
            binding.routing_key.as_str(),
            &binding.arguments,
        )
    });
    std::iter::once(first)
        .chain(more)
        .filter(|(exchange, ..)| !exchange.name.is_empty())
}

/// Declares one thing after the other. The server answers what it refuses by
/// closing the channel, so a channel is made when there is none.
pub(crate) struct Desk<'a> {
    live: &'a Live,
    attempt: Attempt<'a>,
    channel: Option<Channel>,
}

impl<'a> Desk<'a> {
    pub(crate) fn new(live: &'a Live, attempt: Attempt<'a>) -> Self {
        Self {
            live,
            attempt,
            channel: None,
        }
    }

    pub(crate) fn known(&self) -> &Known {
        &self.live.known
    }

    pub(crate) async fn exchange(&mut self, exchange: &Exchange) -> Result<(), ServiceError> {
        // Those of RabbitMQ's own exist.
        if exchange.name.starts_with("amq.") {
            return Ok(());
        }
        let options = ExchangeDeclareOptions {
            durable: exchange.durable,
            ..ExchangeDeclareOptions::default()
        };
        let name = self.short(&exchange.name)?;
        let kind = kind(exchange.kind);
        let declared = self.call(|channel| async move {
            let none = FieldTable::default();
            channel.exchange_declare(name, kind, options, none).await
        });
        declared
            .await
            .map_err(|error| self.refused(error, || wanted_exchange(exchange)))
    }

    pub(crate) async fn queue(&mut self, queue: &Queue) -> Result<(), ServiceError> {
        let declared = self.declare_queue(queue).await?;
        declared.map_err(|error| self.refused(error, || wanted_queue(queue)))
    }

    /// The same for a queue that serves as well with other arguments.
    pub(crate) async fn queue_of_any_type(&mut self, queue: &Queue) -> Result<(), ServiceError> {
        match self.declare_queue(queue).await? {
            Err(error) if difference(&error).is_some() => Ok(()),
            declared => declared.map_err(|error| self.attempt.failed(error)),
        }
    }

    async fn declare_queue(&mut self, queue: &Queue) -> Result<lapin::Result<()>, ServiceError> {
        let options = QueueDeclareOptions {
            durable: queue.durable,
            auto_delete: queue.auto_delete,
            ..QueueDeclareOptions::default()
        };
        let name = self.short(&queue.name)?;
        let arguments = self.table(&queue.arguments)?;
        let declared = self
            .call(|channel| async move { channel.queue_declare(name, options, arguments).await });
        Ok(declared.await.map(drop))
    }

    /// How many messages wait in a queue, if it exists.
    pub(crate) async fn waiting(&mut self, queue: &str) -> Result<Option<u32>, ServiceError> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = self.short(queue)?;
        let found = self.call(|channel| async move {
            let none = FieldTable::default();
            channel.queue_declare(name, options, none).await
        });
        let found = found.await.map(|queue| queue.message_count());
        self.unless_missing(found)
    }

    pub(crate) async fn exchange_exists(&mut self, exchange: &str) -> Result<bool, ServiceError> {
        let options = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let name = self.short(exchange)?;
        let found = self.call(|channel| async move {
            let (kind, none) = (lapin::ExchangeKind::Direct, FieldTable::default());
            channel.exchange_declare(name, kind, options, none).await
        });
        let found = found.await;
        Ok(self.unless_missing(found)?.is_some())
    }

    pub(crate) async fn bind_queue(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: &Map,
    ) -> Result<(), ServiceError> {
        let (queue, exchange) = (self.short(queue)?, self.short(exchange)?);
        let (routing_key, arguments) = (self.short(routing_key)?, self.table(arguments)?);
        let bound = self.call(|channel| async move {
            let options = QueueBindOptions::default();
            channel
                .queue_bind(queue, exchange, routing_key, options, arguments)
                .await
        });
        bound.await.map_err(|error| self.attempt.failed(error))
    }

    pub(crate) async fn bind_exchange(
        &mut self,
        destination: &str,
        source: &str,
        routing_key: &str,
    ) -> Result<(), ServiceError> {
        let (destination, source) = (self.short(destination)?, self.short(source)?);
        let routing_key = self.short(routing_key)?;
        let bound = self.call(|channel| async move {
            let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
            channel
                .exchange_bind(destination, source, routing_key, options, none)
                .await
        });
        bound.await.map_err(|error| self.attempt.failed(error))
    }

    /// Deletes what waits in a queue, and says how many they were.
    pub(crate) async fn purge(&mut self, queue: &str) -> Result<Option<u32>, ServiceError> {
        let name = self.short(queue)?;
        let purged = self.call(|channel| async move {
            channel
                .queue_purge(name, QueuePurgeOptions::default())
                .await
        });
        let purged = purged.await;
        self.unless_missing(purged)
    }

    /// Runs one request on the channel. What is refused costs the channel.
    async fn call<T, F>(&mut self, request: impl FnOnce(Channel) -> F) -> lapin::Result<T>
    where
        F: Future<Output = lapin::Result<T>>,
    {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.live.open().await?,
        };
        let answer = self.live.answer(request(channel.clone())).await?;
        self.channel = Some(channel);
        Ok(answer)
    }

    /// A declaration that differs from what exists, told with both sides.
    fn refused(&self, error: lapin::Error, wanted: impl FnOnce() -> String) -> ServiceError {
        match difference(&error) {
            Some(difference) => {
                let cause = format!("{difference}; this program declares {}", wanted());
                self.attempt.refused(&cause, error)
            }
            None => self.attempt.failed(error),
        }
    }

    fn unless_missing<T>(&self, answer: lapin::Result<T>) -> Result<Option<T>, ServiceError> {
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(None),
            Err(error) => Err(self.attempt.failed(error)),
        }
    }

    fn short(&self, text: &str) -> Result<ShortString, ServiceError> {
        short(text).map_err(|cause| self.attempt.error(ServiceErrorKind::Invalid, cause))
    }

    fn table(&self, map: &Map) -> Result<FieldTable, ServiceError> {
        write_map(map).map_err(|cause| self.attempt.error(ServiceErrorKind::Invalid, cause))
    }
}

/// AMQP's reply code for what is not there.
const NOT_FOUND: u16 = 404;

fn kind(kind: ExchangeKind) -> lapin::ExchangeKind {
    match kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Headers => lapin::ExchangeKind::Headers,
        _ => lapin::ExchangeKind::Direct,
    }
}

/// What RabbitMQ says about something that exists in another form: `received
/// none but current is the value '10' of type 'signedint'`.
fn difference(error: &lapin::Error) -> Option<String> {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else {
        return None;
    };
    read_difference(error.get_message().as_str())
}

fn read_difference(text: &str) -> Option<String> {
    let (_, text) = text.split_once("inequivalent arg '")?;
    let (argument, text) = text.split_once('\'')?;
    let (_, text) = text.split_once(": received ")?;
    let (ours, theirs) = text.split_once(" but current is ")?;
    Some(format!(
        "it exists with {argument} {}, and not {}",
        value(theirs),
        value(ours)
    ))
}

/// `the value '10' of type 'signedint'`, `none` or `'true'`.
fn value(text: &str) -> &str {
    text.split('\'').nth(1).unwrap_or(text)
}

fn wanted_exchange(exchange: &Exchange) -> String {
    let lifetime = if exchange.durable {
        "durable"
    } else {
        "transient"
    };
    format!("a {lifetime} {} exchange", exchange.kind.name())
}

fn wanted_queue(queue: &Queue) -> String {
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
    fn a_difference_is_told_in_few_words() {
        for (text, expected) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost \
                 '/': received none but current is the value '10' of type 'signedint'",
                "it exists with x-max-priority 10, and not none",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': \
                 received 'true' but current is 'false'",
                "it exists with durable false, and not true",
            ),
        ] {
            assert_eq!(read_difference(text).as_deref(), Some(expected));
        }
        assert_eq!(read_difference("NOT_FOUND - no queue 'q'"), None);
    }

    #[test]
    fn a_queue_is_described_with_its_arguments() {
        let queue = Queue::new("q").max_priority(5).quorum();
        assert_eq!(
            wanted_queue(&queue),
            "durable=true, x-max-priority=5, x-queue-type=quorum"
        );
    }
}
