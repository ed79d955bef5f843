//! Declaring queues, and reading the bindings of exchanges.

use celery_runtime::{ExchangeKind, Queue, ServiceError, ServiceErrorKind};

use crate::binding::{StoredBinding, routes, stored_pattern};
use crate::client::{Command, Operation, RedisReply};
use crate::shared::Shared;

impl Shared {
    /// Writes the bindings of a queue. It reads the length of the queue's lists
    /// first, so that a key of another type fails the declaration and not the
    /// first message.
    pub(crate) async fn declare(&self, queue: &Queue) -> Result<(), ServiceError> {
        let layout = &self.client.options().layout;
        let object = format!("queue {}", queue.name);
        let operation = Operation::new("declare", &object);
        let lists = layout.lists(&queue.name);
        let mut commands: Vec<_> = lists.map(|list| Command::new("LLEN").arg(list)).collect();
        for (exchange, routing_key) in routes(queue) {
            let Some(pattern) = stored_pattern(exchange.kind, routing_key) else {
                let cause = format!("there are no {} exchanges on Redis", exchange.kind.name());
                return Err(operation.error(&self.client, ServiceErrorKind::Unsupported, cause));
            };
            // A fanout exchange is a channel. A producer that reads a binding
            // set of it would push to lists that no consumer reads.
            if exchange.name.is_empty() || exchange.kind == ExchangeKind::Fanout {
                continue;
            }
            let member = layout.binding_member(routing_key, &pattern, &queue.name);
            let bind = |set: String| Command::new("SADD").arg(set).arg(&member);
            commands.push(bind(layout.bindings(&exchange.name)));
            // kombu removes the bindings of an exchange without such a set
            // after a deadline, which is right for queues that expire.
            if !queue.arguments.contains_key("x-expires") {
                commands.push(bind(layout.permanent_bindings(&exchange.name)));
            }
        }
        self.client.atomic(operation, commands).await?;
        self.record_declaration(queue);
        Ok(())
    }

    /// Returns the bindings of an exchange. Members that cannot be parsed are
    /// skipped, as in kombu.
    pub(crate) async fn bindings(
        &self,
        exchange: &str,
    ) -> Result<Vec<StoredBinding>, ServiceError> {
        let object = format!("exchange {exchange}");
        let operation = Operation::new("read the bindings of", &object);
        let members = self.client.call(operation, self.members(exchange)).await?;
        Ok(self.read_bindings(members))
    }

    /// Returns the command that reads the binding set of an exchange.
    pub(crate) fn members(&self, exchange: &str) -> Command {
        Command::new("SMEMBERS").arg(self.client.options().layout.bindings(exchange))
    }

    /// Parses the reply to [`members`](Self::members).
    pub(crate) fn read_bindings(&self, members: RedisReply) -> Vec<StoredBinding> {
        let layout = &self.client.options().layout;
        let binding = |member: RedisReply| {
            let member = member.text()?;
            let (routing_key, pattern, queue) = layout.split_binding(&member)?;
            Some(StoredBinding {
                routing_key: routing_key.to_owned(),
                pattern: pattern.to_owned(),
                queue: queue.to_owned(),
            })
        };
        members.list().into_iter().filter_map(binding).collect()
    }
}
