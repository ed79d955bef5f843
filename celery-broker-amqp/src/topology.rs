//! Declares exchanges, queues and bindings exactly as kombu does.

use celery_protocol::Map;
use celery_runtime::{Exchange, Queue, ServiceError};

use crate::connection::AmqpConnection;
use crate::declaration_cache::EntityKind;
use crate::declarer::Declarer;
use crate::delay;
use crate::error::ErrorContext;
use crate::shared::Shared;

impl Shared {
    /// Declares a queue with its exchanges and bindings, and its dead-letter queue.
    pub(crate) async fn declare(
        &self,
        connection: &AmqpConnection,
        queue: &Queue,
    ) -> Result<(), ServiceError> {
        let object = format!("queue {}", queue.name);
        let context = self.context("declare", &object);
        let mut declarer = Declarer::new(connection, context);
        for (exchange, ..) in bindings(queue) {
            declarer.declare_exchange(exchange).await?;
        }
        if let Some(name) = queue.dead_letter_queue() {
            // Before the queue, which drops what has no other queue.
            declarer
                .declare_queue_with_any_arguments(&Queue::new(name))
                .await?;
        }
        declarer.declare_queue(queue).await?;
        for (exchange, routing_key, arguments) in bindings(queue) {
            declarer
                .bind_queue(&queue.name, &exchange.name, routing_key, arguments)
                .await?;
        }
        if delay::has_native_delay(queue) {
            delay::bind_native(&mut declarer, queue, self.options.delayed_queue_type).await?;
        }
        for (exchange, ..) in bindings(queue) {
            connection.lanes.add_exchange(&exchange.name);
            connection
                .declarations
                .insert(EntityKind::Exchange, &exchange.name);
        }
        connection
            .declarations
            .insert(EntityKind::Queue, &queue.name);
        Ok(())
    }

    /// Binds the queues of a worker for native delays. If one of them is a quorum
    /// queue, Celery's clients delay the messages of all queues whose exchange is
    /// not direct.
    pub(crate) async fn bind_native_delays(
        &self,
        connection: &AmqpConnection,
        queues: &[Queue],
        context: ErrorContext<'_>,
    ) -> Result<(), ServiceError> {
        if !queues.iter().any(Queue::is_quorum) {
            return Ok(());
        }
        let mut declarer = Declarer::new(connection, context);
        for queue in queues
            .iter()
            .filter(|queue| delay::accepts_native_delay(queue))
        {
            delay::bind_native(&mut declarer, queue, self.options.delayed_queue_type).await?;
        }
        Ok(())
    }

    /// Declares a queue for a producer that only knows its name. A queue that another
    /// program has declared meanwhile is used as it is, with any arguments.
    pub(crate) async fn declare_by_name(
        &self,
        connection: &AmqpConnection,
        queue: &Queue,
    ) -> Result<(), ServiceError> {
        let object = format!("queue {}", queue.name);
        let mut declarer = Declarer::new(connection, self.context("declare", &object));
        declarer.declare_queue_with_any_arguments(queue).await?;
        connection
            .declarations
            .insert(EntityKind::Queue, &queue.name);
        Ok(())
    }
}

/// Returns the bindings to declare for a queue. The default exchange has an
/// implicit binding to every queue.
fn bindings(queue: &Queue) -> impl Iterator<Item = (&Exchange, &str, &Map)> {
    let primary = (
        &queue.exchange,
        queue.routing_key.as_str(),
        &queue.binding_arguments,
    );
    let additional = queue.bindings.iter().map(|binding| {
        (
            &binding.exchange,
            binding.routing_key.as_str(),
            &binding.arguments,
        )
    });
    std::iter::once(primary)
        .chain(additional)
        .filter(|(exchange, ..)| !exchange.name.is_empty())
}
