//! Declaring queues and reading their bindings.

use celery_runtime::{ExchangeKind, Queue, ServiceError, ServiceErrorKind};

use crate::binding::{StoredBinding, routes, stored_pattern};
use crate::link::{Attempt, Command, RedisReply};
use crate::shared::Shared;

impl Shared {
    /// Writes the bindings of a queue, after a look at its lists: a key of
    /// another type is found here and not by the first message.
    pub(crate) async fn declare(&self, queue: &Queue) -> Result<(), ServiceError> {
        let layout = &self.link.options().layout;
        let object = format!("queue {}", queue.name);
        let attempt = Attempt::new("declare", &object);
        let lists = layout.lists(&queue.name);
        let mut commands: Vec<_> = lists.map(|list| Command::new("LLEN").arg(list)).collect();
        for (exchange, routing_key) in routes(queue) {
            let Some(pattern) = stored_pattern(exchange.kind, routing_key) else {
                let cause = format!("there are no {} exchanges on Redis", exchange.kind.name());
                return Err(attempt.error(&self.link, ServiceErrorKind::Unsupported, cause));
            };
            // Fanout exchanges are channels: who reads their set would only
            // push to lists that nobody takes from.
            if exchange.name.is_empty() || exchange.kind == ExchangeKind::Fanout {
                continue;
            }
            let member = layout.binding_member(routing_key, &pattern, &queue.name);
            let bind = |set: String| Command::new("SADD").arg(set).arg(&member);
            commands.push(bind(layout.bindings(&exchange.name)));
            // Queues that expire stay out of it: kombu restore_schedule what has no such set.
            if !queue.arguments.contains_key("x-expires") {
                commands.push(bind(layout.permanent_bindings(&exchange.name)));
            }
        }
        self.link.atomic(attempt, commands).await?;
        self.remember(queue);
        Ok(())
    }

    /// What the binding set of an exchange says; members that cannot be read
    /// are passed over, as kombu does.
    pub(crate) async fn bindings(
        &self,
        exchange: &str,
    ) -> Result<Vec<StoredBinding>, ServiceError> {
        let object = format!("exchange {exchange}");
        let attempt = Attempt::new("read the bindings of", &object);
        let members = self.link.call(attempt, self.members(exchange)).await?;
        Ok(self.read_bindings(members))
    }

    pub(crate) fn members(&self, exchange: &str) -> Command {
        Command::new("SMEMBERS").arg(self.link.options().layout.bindings(exchange))
    }

    pub(crate) fn read_bindings(&self, members: RedisReply) -> Vec<StoredBinding> {
        let layout = &self.link.options().layout;
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
